"""Compare an engine with the model it was built from, and say who compared what with what, on which inputs."""
from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace

import numpy as np

from ingot.errors import InputError, ModelError, VerifyError, in_one_line
from ingot.graph import Expr, Graph, data_symbol
from ingot.ops.reference import bindings_from, run_graph
from ingot.verify.original import Original
from ingot.verify.parity import Difference, compare
from ingot.verify.probe import Probe, probes
from ingot.verify.ties import moved_ties, rounds_to_integers
from ingot.verify.tolerance import Tolerance, tolerances

Feeds = Mapping[str, np.ndarray]
Run = Callable[[Feeds], Mapping[str, np.ndarray]]

# Ops that may spread a NaN or an infinity further than their formula: those whose inexact kernels sum other products
# (minimal filtering over its tile, Strassen's scheme over its row), ...
_INEXACT = frozenset({"Conv", "MatMul", "Gemm"})
# ... and those whose kernels, or the forms they are recognised from, guard against NaN in another way.
_GUARDED = frozenset({"Resize", "GridSample", "Softmax", "LogSoftmax", "IsNaN", "IsInf", "Where", "Pow", "Sqrt",
                      "Attention", "Gelu", "LayerNormalization", "RMSNormalization",
                      "Sigmoid", "Tanh", "Erf", "HardSwish", "HardSigmoid"})
# Ops that pick by comparing: an original that is not the reference may lose a NaN there, and ours goes further.
_COMPARING = frozenset({"MaxPool", "GlobalMaxPool", "Max", "Min", "Clip", "Relu", "LeakyRelu", "ReduceMax",
                        "ReduceMin"})
_FEW = 16       # an item of fewer elements is too small to be its own scale: its values may cancel to near zero


@dataclass(frozen=True)
class Case:
    """One set of inputs, one output: how far apart engine and original were."""

    inputs: str             # what the inputs were
    output: str
    largest: float          # largest absolute difference
    relative: float         # relative to the largest magnitude
    cosine: float
    tolerance: float        # what `relative` may be at most
    source: str             # where the tolerance comes from
    passed: bool
    note: str = ""          # why it did not pass, or why it was not tried
    pattern: bool = True    # NaN and infinities are where they belong


@dataclass(frozen=True)
class Verdict:
    """The outcome of a verification; it is stored in the engine and printed."""

    original: str                       # who gave the right answers
    engine: str                         # what was judged
    cases: tuple[Case, ...] = ()
    skipped: tuple[str, ...] = ()       # inputs that were not tried, with the reason
    diverged: str = ""                  # the first node whose value differs, where that was found
    notes: tuple[str, ...] = ()         # which export was taken, and every alarm
    seconds: float = field(default=0.0, compare=False)

    @property
    def passed(self) -> bool:
        """True when at least one case was compared and none differed."""
        return bool(self.cases) and all(c.passed for c in self.cases)

    @property
    def worst(self) -> Case | None:
        """The case nearest to its tolerance or farthest beyond it."""
        return max(self.cases, key=lambda c: (not c.passed, c.relative / c.tolerance if c.tolerance else c.relative),
                   default=None)

    def to_json(self) -> dict[str, object]:
        """Plain data, the seconds left out: the same comparison gives the same bytes."""
        data = asdict(self)
        del data["seconds"]
        return {**data, "passed": self.passed}

    @staticmethod
    def from_json(data: Mapping[str, object]) -> Verdict:
        """The verdict that `to_json` wrote."""
        cases = tuple(Case(**c) for c in data.get("cases", ()))  # type: ignore[attr-defined]
        return Verdict(str(data.get("original", "")), str(data.get("engine", "")), cases,
                       tuple(map(str, data.get("skipped", ()))),  # type: ignore[call-overload]
                       str(data.get("diverged", "")), tuple(map(str, data.get("notes", ()))))  # type: ignore[call-overload]

    def __str__(self) -> str:
        worst = self.worst
        if worst is None:
            return "not verified" + "".join(f"\n  not tried: {s}" for s in self.skipped)
        word = "verified" if self.passed else "NOT verified"
        head = f"{word}: {self.engine} against {self.original}, {len(self.cases)} comparisons; largest difference"
        lines = [f"{head} {worst.relative:.2g} of {worst.tolerance:.2g} allowed ({worst.source})"]
        lines += [f"  {'ok  ' if c.passed else 'FAIL'} {c.output} on {c.inputs}: {c.largest:.2g} absolute, "
                  f"{c.relative:.2g} relative, cosine {c.cosine:.9f}" + (f"; {c.note}" if c.note else "")
                  for c in self.cases]
        lines += [f"  not tried: {s}" for s in self.skipped]
        lines += [f"  first diverging node: {self.diverged}"] if self.diverged else []
        lines += [f"  {n}" for n in self.notes]
        return "\n".join(lines)


def noted(difference: Difference, tolerance: Tolerance) -> str:
    """Why a difference is too large, in words; empty where it is not."""
    if difference.note:
        return difference.note
    at = f" at {list(difference.where)}"
    further = (f"the input's NaN or infinity went {difference.spread} elements of its item further"
               if difference.spread else "")
    if difference.wrong_pattern:
        return f"{difference.wrong_pattern} elements are NaN or infinite on one side only, the first{at}"
    return f"beyond {tolerance.relative:.2g}{at}" if difference.relative > tolerance.relative else further


def _judge(graph: Graph, probe: Probe, got: Mapping[str, np.ndarray], wanted: Mapping[str, np.ndarray],
           spreading: frozenset[str], short: str = "", rounded: Mapping[str, int] | None = None) -> list[Case]:
    allowed = tolerances(graph, probe.bindings, short, rounded)
    cases = []
    for name in graph.outputs:
        shape = graph.types[name].shape
        batched = bool(shape) and isinstance(shape[0], Expr)
        per_item = batched and wanted[name][:1].size >= _FEW
        difference = compare(got[name], wanted[name], items=per_item,
                             loose=_loose(graph, probe, wanted[name], batched, spreading))
        tolerance = allowed[name]
        cases.append(Case(probe.name, name, difference.largest, difference.relative, difference.cosine,
                          tolerance.relative, tolerance.source, difference.within(tolerance.relative),
                          noted(difference, tolerance), not difference.note and not difference.wrong_pattern))
    return cases


_LAST_BIT = 2.0**-23


def _conditioned(cases: Sequence[Case], graph: Graph, probe: Probe, wanted: Mapping[str, np.ndarray],
                 original: Original) -> tuple[list[Case], list[str]]:
    """Cases beyond their tolerance, judged once more by the model's condition on these very inputs.

    Special inputs can be ill-conditioned: a normalisation of what is constant but for rounding, a sigmoid of large
    sums that cancel. There a right answer's error is that of a well-conditioned sum times the condition number, which
    is measured: how far the original's own answer moves when every input moves by its last bit, over that bit. Where
    that allows everything, there is no right answer to compare with: told as not tried, not as passed.
    """
    moved = original.run({name: _nudged(array) for name, array in probe.feeds.items()})
    found, unjudged = [], []
    for case in cases:
        shape = graph.types[case.output].shape
        per_item = bool(shape) and isinstance(shape[0], Expr) and wanted[case.output][:1].size >= _FEW
        condition = compare(moved[case.output], wanted[case.output], items=per_item).relative / _LAST_BIT
        allowed = case.tolerance * max(1.0, condition) if np.isfinite(condition) else case.tolerance
        if not case.passed and case.pattern and 0 < case.relative <= allowed:
            if allowed >= 1.0:
                unjudged.append(f"{case.output} on {case.inputs}: no answer is right here to even one digit, the "
                                f"original's own moves by {condition * _LAST_BIT:.2g} with the inputs' last bit")
                continue
            case = replace(case, tolerance=allowed, passed=True, note="",
                           source=f"{case.source}, times the condition number {condition:.3g} of these inputs")
        found.append(case)
    return found, unjudged


def _spread(cases: Sequence[Case], graph: Graph, probe: Probe, wanted: Mapping[str, np.ndarray],
            original: Original) -> list[Case]:
    """Cases of a quantised model beyond their tolerance, judged once more by how far right answers lie apart here.

    That is measured: the original's own answers when each value moves by its last roundings right before it becomes an
    integer, twice with other signs. The engine may lie twice as far away. What the kernels do is judged more sharply
    elsewhere (`kernel_by_kernel`).
    """
    if original.graph is None:
        return list(cases)
    moved = [run_graph(moved_ties(original.graph, probe.bindings, seed), probe.feeds) for seed in (0, 1)]
    found = []
    for case in cases:
        shape = graph.types[case.output].shape
        per_item = bool(shape) and isinstance(shape[0], Expr) and wanted[case.output][:1].size >= _FEW
        apart = max(compare(m[case.output], wanted[case.output], items=per_item).relative for m in moved)
        if not case.passed and case.pattern and case.relative <= min(_APART * apart, _DIGIT):
            case = replace(case, tolerance=_APART * apart, passed=True, note="",
                           source=f"{_APART:g} times what the original moves by here when ties fall otherwise")
        found.append(case)
    return found


_APART, _DIGIT = 2.0, 0.5


def _nudged(array: np.ndarray) -> np.ndarray:
    """Every number moved by its last bit, up or down; zeros by half of 1's last bit."""
    if array.dtype.kind != "f":
        return array
    signs = np.random.default_rng(0).choice([-1.0, 1.0], array.shape)
    with np.errstate(all="ignore"):
        moved = np.where(array == 0, signs * _LAST_BIT / 2, array.astype(np.float64) * (1 + signs * _LAST_BIT))
    return np.asarray(moved, array.dtype)


def _loose(graph: Graph, probe: Probe, wanted: np.ndarray, batched: bool,
           spreading: frozenset[str]) -> np.ndarray | None:
    """Where the inputs themselves were NaN or infinite and the model has ops that may spread those further."""
    floats = [a for a in probe.feeds.values() if a.dtype.kind == "f"]
    if not any(n.op in spreading for n in graph.nodes) or all(np.isfinite(a).all() for a in floats):
        return None
    if not batched or any(len(a) != len(wanted) for a in floats):
        return np.array(True)
    return np.asarray(np.any([~np.isfinite(a.reshape(len(a), -1)).all(1) for a in floats], axis=0))


def loosened(graph: Graph, probe: Probe, wanted: np.ndarray) -> np.ndarray | None:
    """Where an intermediate value may hold any NaN or infinity, for the inputs of a probe held some."""
    return _loose(graph, probe, wanted, False, _GUARDED | _INEXACT)


def verify(run: Run, original: Original, graph: Graph, *, engine: str = "engine", inputs: Sequence[Feeds] = (),
           seed: int = 0, seconds: float = 60.0, exact: bool = False,
           tried: Sequence[Probe] | None = None, short: str = "",
           rounded: Mapping[str, int] | None = None) -> Verdict:
    """Compare `run` with the original on the given inputs and on generated ones, or on those of `tried`.

    `graph` is the model as it was loaded: it says what the inputs may be and how much its sums may round. Special
    values are tried as long as `seconds` last; what was not tried is listed. An `exact` engine has no kernels that
    spread a NaN of an input over a tile or a row, so that is no excuse there. `short` names the type ("f16") in which
    an engine keeps values that the model has in f32, `rounded` how many of those lie on the longest way to each output,
    where the engine knows. Never raises for a difference: the
    verdict says it. Raises InputError where the original takes none of the inputs.
    """
    begin = time.perf_counter()
    given = [Probe(f"given inputs {i + 1}", feeds, bindings_of(graph, feeds)) for i, feeds in enumerate(inputs)]
    generated = probes(graph, seed) if tried is None else tried
    spreading = _GUARDED if exact else _GUARDED | _INEXACT
    if not original.name.startswith("onnx.reference"):
        spreading |= _COMPARING
    integers = rounds_to_integers(graph)
    cases: list[Case] = []
    skipped: list[str] = []
    refused: list[InputError] = []
    if all(p.name.startswith("random") for p in generated):
        skipped.append("special values: the model has no floating-point input")
    picked = [v for v in graph.outputs if any(data_symbol(d) is not None for d in graph.types[v].shape)]
    for probe in [*given, *generated]:
        needed = probe.name.startswith(("given", "random"))
        if not needed and picked:
            skipped.append(f"{probe.name}: how much is picked depends on the data ({', '.join(picked)}), and what is "
                           "picked of equal or undefined scores is nobody's to say")
            continue
        if not needed and time.perf_counter() - begin > seconds:
            skipped.append(f"{probe.name}: the {seconds:g} seconds for verification were used up")
            continue
        with np.errstate(all="ignore"):
            try:
                wanted = original.run(probe.feeds)
            except InputError as error:         # the original itself does not take these
                refused.append(error)
                skipped.append(f"{probe.name}: {error.what}")
                continue
            except (ModelError, ValueError, ArithmeticError, LookupError) as error:
                if needed:
                    raise
                skipped.append(f"{probe.name}: the original ends with {type(error).__name__}: {in_one_line(error)}")
                continue
            try:
                got = run(probe.feeds)
            except (ModelError, ValueError, ArithmeticError, LookupError) as error:     # an op on the reference path
                if needed:
                    raise
                skipped.append(f"{probe.name}: a node on the reference path cannot compute it: {in_one_line(error)}")
                continue
            judged = _judge(graph, probe, got, wanted, spreading, short, rounded)
            if integers and any(not c.passed and c.pattern for c in judged):
                judged = _spread(judged, graph, probe, wanted, original)
            if not needed and any(not c.passed and c.pattern for c in judged):
                judged, unjudged = _conditioned(judged, graph, probe, wanted, original)
                skipped += unjudged
            cases += judged
    if refused and not cases:
        raise refused[0]
    return Verdict(original.name, engine, tuple(cases), tuple(skipped), seconds=time.perf_counter() - begin)


def bindings_of(graph: Graph, feeds: Feeds) -> dict[str, int]:
    return {**{s.name: s.opt for s in graph.symbols.values()}, **bindings_from(graph, feeds)}


def failing_probe(verdict: Verdict, graph: Graph, inputs: Sequence[Feeds] = (), seed: int = 0) -> Probe | None:
    """The inputs of the first case that did not pass, made again."""
    given = [Probe(f"given inputs {i + 1}", feeds, bindings_of(graph, feeds)) for i, feeds in enumerate(inputs)]
    failed = {c.inputs for c in verdict.cases if not c.passed}
    return next((p for p in [*given, *probes(graph, seed)] if p.name in failed), None)


def refuse(verdict: Verdict) -> VerifyError:
    """The error for a verdict that did not pass."""
    worst = verdict.worst
    why = tuple(f"{c.output} on {c.inputs}: {c.note or 'differs'}; {c.relative:.2g} relative, {c.tolerance:.2g} "
                f"allowed ({c.source})" for c in verdict.cases if not c.passed)
    what = (f"the engine differs from {verdict.original} by {worst.relative:.2g}, {worst.tolerance:.2g} is allowed"
            if worst else f"nothing could be compared with {verdict.original}")
    return VerifyError(what, where=verdict.diverged, why=why,
                       mend="--allow-unverified keeps the engine, marked so; please report it with the model")
