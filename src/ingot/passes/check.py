"""Prove each pass against the reference: the graph before and after it gives the same numbers.

`Checker` is a watcher for `optimize`. Each pass that changes the graph is run before and after on random inputs, zeros,
extremes (the largest and smallest numbers), infinities and NaN, at the sizes the profile is tuned for and at its
smallest. What is compared, honestly:

- Passes in EXACT move, share or drop work, and change no sum: every bit pattern is kept, NaN and infinities included.
- Other passes may sum in another order or round differently. Errors are measured against the largest number of the
  output: at most 1024 units of the element type's precision. NaN and infinities must stay in their places, with their
  sign; of the passes MAY_DIFFER names this is asked on random and zero inputs only, and extremes are not asked at all.
- MAY_DIFFER says which passes may treat NaN, infinities and overflow differently, and why: each folds factors into
  weights, or replaces a written-out formula by an op whose meaning differs there.

Layout has no meaning for the reference: a wrong layout is caught by type inference, not here.
"""
from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

import numpy as np

from ingot.errors import InternalError
from ingot.graph import Graph, TensorType
from ingot.ops.reference import run_graph
from ingot.passes.rewrite import attribute

EXACT = frozenset({"remove_dead_code", "fold_constants", "merge_duplicates", "choose_layout"})
MAY_DIFFER: Mapping[str, str] = {
    "fold_batchnorm": "the factor is applied to the weight: a product that overflowed before its factor no longer does",
    "fold_scale": "the factor is applied to the weight: a product that overflowed before its factor no longer does",
    "split_gemm": "alpha is applied to an operand instead of to the product",
    "simplify": "constants that meet are combined first, and x**3 is a product: both overflow at another size",
    "recognise": "a normalisation of an infinity is NaN in its op, and may be zero where it is written out",
    "recognise_attention": "a row that attends nothing is zero in Attention and NaN in a plain Softmax; a NaN passes "
                           "through Attention where the exporter's guard hides it; scales are joined",
}
UNITS = 1024            # precision units an inexact pass may differ by, of the output's largest number
Feeds = Mapping[str, np.ndarray]


@dataclass(frozen=True)
class Finding:
    """What one pass did to the numbers, on one set of inputs."""

    step: str               # name of the pass
    probe: str              # which inputs
    error: float            # largest difference, over the largest number of the output
    tolerance: float
    problem: str = ""       # what is wrong, empty if nothing is

    def __str__(self) -> str:
        verdict = self.problem or f"error {self.error:.2g} of {self.tolerance:.2g}"
        return f"{self.step} on {self.probe}: {verdict}"


def _highest(graph: Graph, name: str) -> int:
    """The size below which an integer input must stay to be a valid position wherever it is one."""
    limits = []
    for node in graph.readers.get(name, ()):
        if node.op == "Gather" and node.inputs[1] == name:
            x = graph.types[node.inputs[0]]
            size = x.shape[int(str(attribute(node, "axis"))) % x.rank]
            limits.append(size if isinstance(size, int) else 1)
        elif node.op in ("Cast", "Reshape", "Unsqueeze", "Squeeze", "Identity"):
            limits.append(_highest(graph, node.output))
    return min(limits, default=2)


def _special(rng: np.random.Generator, type_: TensorType, probe: str) -> np.ndarray:
    shape = tuple(int(str(d)) for d in type_.shape)
    x = rng.standard_normal(shape)
    limits = np.finfo(np.float32 if type_.dtype.bits >= 32 else np.float16)
    values = {"zeros": (0.0, -0.0), "extremes": (float(limits.max), -float(limits.max), float(limits.tiny), 1.0),
              "infinities": (np.inf, -np.inf), "NaN": (np.nan,)}.get(probe, ())
    if probe in ("zeros", "extremes"):
        x = rng.choice(np.asarray(values), shape)
    elif values:
        # a few special values among ordinary ones, so that not every sum is one of them
        x = np.where(rng.random(shape) < 0.02, rng.choice(np.asarray(values), shape), x)
        if x.size:
            x.flat[int(rng.integers(x.size))] = values[0]
    return np.asarray(x)


PROBES = ("random", "zeros", "extremes", "infinities", "NaN")


def feeds_for(graph: Graph, probe: str = "random", bindings: Mapping[str, int] | None = None, seed: int = 0) -> Feeds:
    """Inputs for a graph at the given sizes (else the profile's opt): see PROBES."""
    sizes = {name: s.opt for name, s in graph.symbols.items()} if bindings is None else bindings
    rng = np.random.default_rng(seed)
    feeds = {}
    for name in graph.inputs:
        t = graph.types[name].at(sizes)
        if t.dtype.kind == "float":
            with np.errstate(all="ignore"):
                feeds[name] = _special(rng, t, probe).astype(t.dtype.numpy)
        else:
            feeds[name] = rng.integers(0, _highest(graph, name), tuple(int(str(d)) for d in t.shape)).astype(
                t.dtype.numpy)
    return feeds


def _difference(expected: np.ndarray, found: np.ndarray) -> float:
    """The largest difference of finite numbers, over the largest of them."""
    a, b = expected.astype(np.float64), found.astype(np.float64)
    both = np.isfinite(a) & np.isfinite(b)
    if not both.any():
        return 0.0
    largest = float(np.abs(a[both]).max())
    return float(np.abs(a[both] - b[both]).max()) / max(largest, 1e-30)


def _pattern(expected: np.ndarray, found: np.ndarray) -> str:
    for what, test in (("NaN", np.isnan), ("+inf", np.isposinf), ("-inf", np.isneginf)):
        if moved := int((test(expected) != test(found)).sum()):
            return f"{what} in {moved} other places"
    return ""


def compare(step: str, probe: str, expected: Mapping[str, np.ndarray], found: Mapping[str, np.ndarray]) -> Finding:
    """Hold the outputs after a pass against those before it."""
    worst, tolerance = 0.0, 0.0
    for name, a in expected.items():
        b = found.get(name)
        if b is None or b.dtype != a.dtype or b.shape != a.shape:
            got = "nothing" if b is None else f"{b.dtype}{list(b.shape)}"
            return Finding(step, probe, float("inf"), 0.0, f"'{name}' is {got}, not {a.dtype}{list(a.shape)}")
        if step in EXACT or a.dtype.kind in "biuOS":
            if not np.array_equal(a, b, equal_nan=a.dtype.kind == "f"):
                return Finding(step, probe, float("inf"), 0.0, f"'{name}' differs, and must be equal")
            continue
        precision = float(np.finfo(a.dtype).eps) if a.dtype.kind == "f" else 2.0 ** -7
        tolerance = UNITS * precision
        lenient = step in MAY_DIFFER and probe not in ("random", "zeros")
        if lenient and probe == "extremes":
            continue        # overflow decides here, and these passes may move it
        with np.errstate(all="ignore"):
            worst = max(worst, _difference(a, b))
            moved = "" if lenient else _pattern(a.astype(np.float64), b.astype(np.float64))
        if moved or worst > tolerance:
            problem = moved or f"error {worst:.2g} beyond {tolerance:.2g}"
            return Finding(step, probe, worst, tolerance, f"'{name}': {problem}")
    return Finding(step, probe, worst, tolerance)


def check_pass(step: str, before: Graph, after: Graph, inputs: Mapping[str, Feeds]) -> tuple[Finding, ...]:
    """One finding for each named set of inputs."""
    return tuple(compare(step, probe, run_graph(before, feeds), run_graph(after, feeds))
                 for probe, feeds in inputs.items())


@dataclass
class Checker:
    """A watcher that checks each pass as it runs, on `probes` and on `extra` inputs of the caller's."""

    probes: tuple[str, ...] = PROBES
    extra: Mapping[str, Feeds] = field(default_factory=dict)
    findings: list[Finding] = field(default_factory=list)
    _known: dict[str, Mapping[str, np.ndarray]] = field(default_factory=dict)      # of the last graph, by probe
    _inputs: dict[str, Feeds] = field(default_factory=dict)

    def __call__(self, name: str, before: Graph, after: Graph) -> None:
        if not self._inputs:
            self._inputs = dict(self._sets(before))
        if after is before:
            return
        for probe, feeds in self._inputs.items():
            expected = self._known.get(probe) or run_graph(before, feeds)
            found = run_graph(after, feeds)
            self.findings.append(compare(name, probe.split(" at ")[0], expected, found))
            self._known[probe] = found

    def _sets(self, graph: Graph) -> Iterable[tuple[str, Feeds]]:
        yield from self.extra.items()
        for seed, probe in enumerate(self.probes):
            yield probe, feeds_for(graph, probe, seed=seed)
        if any(s.min != s.opt for s in graph.symbols.values()):
            yield "random at min", feeds_for(graph, "random", {n: s.min for n, s in graph.symbols.items()}, seed=99)

    @property
    def wrong(self) -> tuple[Finding, ...]:
        return tuple(f for f in self.findings if f.problem)

    def verify(self) -> None:
        """Raise InternalError if a pass changed the numbers."""
        if self.wrong:
            raise InternalError(f"pass {self.wrong[0].step} changed the numbers",
                                why=tuple(map(str, self.wrong)))


__all__ = ["EXACT", "MAY_DIFFER", "PROBES", "Checker", "Finding", "check_pass", "compare", "feeds_for"]
