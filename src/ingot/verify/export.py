"""Is the export still the model? Each way to ONNX is held against the framework's own run, until one passes.

The example, fresh values, another size of every dynamic axis, other ranges of values and special values; and where the
model's own code decides by the data, inputs that make it decide otherwise.
"""
from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial

import numpy as np

from ingot.errors import IngotError, InputError, ModelError, UnsupportedError, VerifyError, in_one_line
from ingot.frontend import read
from ingot.frontend.source import Alarm, Export, Source
from ingot.graph import Flow, Graph
from ingot.ops.flow import reference_flow
from ingot.verify.alarms import graph_alarms, scale_alarms
from ingot.verify.original import Original, reference_original
from ingot.verify.parity import compare
from ingot.verify.probe import Probe, probes
from ingot.verify.tolerance import tolerances
from ingot.verify.verify import Case, Verdict, bindings_of, verify

Feeds = Mapping[str, np.ndarray]


@dataclass(frozen=True)
class Attempt:
    """One exporter: what its graph gave beside the original, or why there is none."""

    export: str
    verdict: Verdict | None = None
    reason: str = ""
    alarms: tuple[Alarm, ...] = ()

    @property
    def passed(self) -> bool:
        return self.verdict is not None and self.verdict.passed and not any(a.grave for a in self.alarms)

    def __str__(self) -> str:
        if self.verdict is None:
            return f"{self.export}: {self.reason}"
        worst = self.verdict.worst
        far = f"{worst.relative:.2g} of {worst.tolerance:.2g} allowed" if worst else "nothing could be compared"
        failed = next((f"; {c.output} on {c.inputs}: {c.note}" for c in self.verdict.cases if not c.passed), "")
        grave = next((f"; {a}" for a in self.alarms if a.grave), "")
        return f"{self.export}: {'right' if self.passed else 'WRONG'}, {far}{failed}{grave}"


@dataclass(frozen=True)
class Accepted:
    """The graph that was taken, from which exporter, and everything that was noticed on the way."""

    graph: Graph
    export: str
    original: Original
    attempts: tuple[Attempt, ...]
    alarms: tuple[Alarm, ...]
    flow: Flow | None = None            # where data decides its course; `graph` is then its picture

    @property
    def lines(self) -> tuple[str, ...]:
        """The attempts and alarms in words, for the verdict."""
        return (*(f"export by {a}" for a in self.attempts), *(f"alarm, {a}" for a in self.alarms))


@dataclass(frozen=True)
class _Read:
    """An export as Ingot reads it: one graph, or the flow it is a picture of; and what the reference makes of it."""

    graph: Graph
    flow: Flow | None = None

    def run(self, feeds: Feeds) -> Mapping[str, np.ndarray]:
        """By the reference. Raises InputError where it cannot compute something."""
        if self.flow is None:
            return reference_original(self.graph).run(feeds)
        try:
            return {k: np.asarray(v) for k, v in reference_flow(self.flow, dict(feeds)).items()}
        except (ModelError, ValueError, ArithmeticError, LookupError) as error:
            raise InputError(f"the reference cannot compute it: {in_one_line(error)}",
                             mend="give inputs it is defined for") from None


def accept(source: Source, *, inputs: Sequence[Feeds] = (), seed: int = 0, check: bool = True,
           lenient: bool = False) -> Accepted:
    """The first export that is the model, in the order of the source's trust.

    `check=False` takes the first that can be read; `lenient` takes the best of the wrong ones, if none is right.
    Raises UnsupportedError where no exporter gives a graph, VerifyError where none gives a right one.
    """
    if check and not lenient and any(a.grave for a in source.alarms):
        raise _wrong(source, [])
    given = [*([source.examples] if source.examples else []), *inputs]
    attempts: list[Attempt] = []
    graphs: list[_Read | None] = []
    for export in source.exports:
        try:
            graph, alarms = _graph(source, export)
        except (ModelError, UnsupportedError, InputError) as error:
            attempts.append(Attempt(export.name, reason=_short(error)))
            graphs.append(None)
            continue
        graphs.append(graph)
        if not check:
            attempts.append(Attempt(export.name, reason="not compared", alarms=alarms))
            return _accepted(source, graphs, attempts, len(attempts) - 1)
        verdict, noticed = _compared(source, graph, export.name, given, seed)
        frozen = _frozen_branches(source, graph)
        alarms = (*alarms, *scale_alarms(graph.graph)) if not verdict.passed else \
            alarms if frozen else _undecided(source, alarms)
        attempts.append(Attempt(export.name, verdict, alarms=(*noticed, *frozen, *alarms)))
        if attempts[-1].passed:
            return _accepted(source, graphs, attempts, len(attempts) - 1)
    best = min((i for i, g in enumerate(graphs) if g is not None), key=lambda i: _distance(attempts[i]), default=None)
    if best is None:
        raise UnsupportedError(f"no exporter can turn {source.name} into ONNX", where=source.framework,
                               why=(*map(str, attempts), *map(str, source.alarms)),
                               mend="change the module where the reasons say, or export it yourself and give the "
                                    ".onnx file")
    if lenient:
        return _accepted(source, graphs, attempts, best)
    raise _wrong(source, attempts)


def _accepted(source: Source, graphs: Sequence[_Read | None], attempts: Sequence[Attempt], chosen: int) -> Accepted:
    found = graphs[chosen]
    if found is None:
        raise UnsupportedError("no exporter gave a graph", where=source.name)
    alarms = dict.fromkeys((*source.alarms, *attempts[chosen].alarms, *_old_opset(source, attempts, chosen),
                            *graph_alarms(found.graph)))
    other = any(a.kind == "not finite" for a in alarms)
    return Accepted(found.graph, attempts[chosen].export, _original(source, found, other), tuple(attempts),
                    tuple(alarms), found.flow)


def _old_opset(source: Source, attempts: Sequence[Attempt], chosen: int) -> tuple[Alarm, ...]:
    """The opset that was asked for gives other results, and the newest the right ones."""
    wrong = [(e.opset, a) for e, a in zip(source.exports, attempts, strict=False)
             if e.opset and a.verdict and not a.passed]
    if source.exports[chosen].opset or not wrong or not attempts[chosen].passed:
        return ()
    return (Alarm("old opset", f"opset {wrong[0][0]} changes the results; the exporter's own choice was taken instead",
                  why=str(wrong[0][1]), mend="export without naming an opset, or with a newer one"),)


def _original(source: Source, found: _Read, other: bool) -> Original:
    """The framework's own run; `other`: but for inputs that are not finite, where the export is known to differ."""
    def run(feeds: Feeds) -> Mapping[str, np.ndarray]:
        if other and not all(np.isfinite(a).all() for a in feeds.values() if a.dtype.kind == "f"):
            return found.run(feeds)
        return _run(source, found.graph, feeds)
    return Original(f"{source.framework} {source.name}", run)


def _run(source: Source, graph: Graph, feeds: Feeds) -> Mapping[str, np.ndarray]:
    """The framework's own run. What the graph does not read is as in the example."""
    return named(source.run({**source.examples, **feeds}), graph)


def named(found: Mapping[str, np.ndarray], graph: Graph) -> dict[str, np.ndarray]:
    """The framework's results under the graph's names: the same, else in order. Raises InputError."""
    if set(graph.outputs) <= found.keys():
        return {n: found[n] for n in graph.outputs}
    if len(found) != len(graph.outputs):
        raise InputError(f"the original gives {len(found)} tensors, the export {len(graph.outputs)}",
                         mend="return the same number of tensors for every input")
    return dict(zip(graph.outputs, found.values(), strict=True))


def _graph(source: Source, export: Export) -> tuple[_Read, tuple[Alarm, ...]]:
    model, alarms = export.model()
    held = {v.name for v in model.graph.input} if hasattr(model, "graph") else set(source.shapes)
    found = read(model, {k: v for k, v in source.shapes.items() if k in held})
    return (_Read(found.graph, found) if isinstance(found, Flow) else _Read(found)), alarms


def _short(error: IngotError) -> str:
    text = error.what + (f" at {error.where}" if error.where else "")
    return text + (f": {'; '.join(error.why[:3])}" if error.why else "")


def _compared(source: Source, export: _Read, name: str, given: Sequence[Feeds], seed: int
              ) -> tuple[Verdict, tuple[Alarm, ...]]:
    """The export's verdict, by the reference, on given and generated inputs.

    Where they part only over NaN and infinities, those inputs are made finite and tried again, and an alarm says so.
    """
    graph = export.graph
    held: dict[int, Mapping[str, np.ndarray]] = {}

    def judged(feeds: Feeds) -> Mapping[str, np.ndarray]:
        held.clear()
        held[id(feeds)] = export.run(feeds)          # first: it says where it cannot compute something
        return _run(source, graph, feeds)

    judge = Original(f"{source.framework} {source.name}", judged)
    feeds = [{k: v for k, v in one.items() if k in graph.inputs} for one in given]

    def compared(tried: Sequence[Probe]) -> Verdict:
        return verify(lambda f: held.get(id(f)) or export.run(f), judge, graph,
                      engine=f"the export by {name}", inputs=feeds, tried=tried)

    tried = probes(graph, seed)
    verdict = compared(tried)
    odd = {c.inputs for c in verdict.cases if not c.passed and not c.pattern}
    wild = [p for p in tried if p.name in odd and not _all_finite(p.feeds)]
    if not wild:
        return verdict, ()
    calm = [replace(p, feeds={k: _finite(a) for k, a in p.feeds.items()}) if p in wild else p for p in tried]
    again = compared(calm)
    if not all(c.passed for c in again.cases if c.inputs in odd):
        return verdict, ()
    note = next(c for c in verdict.cases if not c.passed and not c.pattern)
    return again, (Alarm("not finite", "where an input is NaN or infinite the export gives other values than "
                         f"{source.framework}", why=f"{note.output} on {note.inputs}: {note.note}",
                         mend="keep such inputs out, or compare with what the engine gives for them"),)


def _all_finite(feeds: Feeds) -> bool:
    return all(np.isfinite(a).all() for a in feeds.values() if a.dtype.kind == "f")


def _finite(array: np.ndarray) -> np.ndarray:
    return np.nan_to_num(array, nan=0.0, posinf=1.0, neginf=-1.0) if array.dtype.kind == "f" else array


def _distance(attempt: Attempt) -> tuple[bool, int, float]:
    verdict = attempt.verdict
    if verdict is None:
        return True, 0, float("inf")
    failed = [c.relative for c in verdict.cases if not c.passed]
    return False, len(failed), max(failed, default=0.0)


def _wrong(source: Source, attempts: Sequence[Attempt]) -> VerifyError:
    alarms = [a for t in attempts for a in t.alarms] + list(source.alarms)
    causes = [a for a in alarms if a.grave] or alarms
    mends = tuple(dict.fromkeys(a.mend for a in causes if a.mend))
    return VerifyError(f"no export of {source.name} gives what {source.framework} gives" if attempts else
                       f"no engine can give what {source.name} gives",
                       where=causes[0].where if causes else "",
                       why=(*map(str, attempts), *(str(a) for a in dict.fromkeys(causes))),
                       mend="; ".join((*mends, "--allow-unverified takes the nearest export, marked so")))


# --- branches -------------------------------------------------------------------------------------------------------

def variations(examples: Feeds) -> list[tuple[str, Feeds]]:
    """The example made over in ways that turn decisions: negated, all zeros, larger, smaller, ordered, and fresh."""
    def each(change: Callable[[np.ndarray], np.ndarray], kinds: str = "f") -> Feeds:
        with np.errstate(all="ignore"):
            return {k: np.asarray(change(a), a.dtype) if a.dtype.kind in kinds else a for k, a in examples.items()}

    found: list[tuple[str, Feeds]] = [
        ("the example, negated", each(lambda a: -a)), ("zeros", each(np.zeros_like, "fiub")),
        ("the example times 1000", each(lambda a: a * 1000)), ("the example over 1000", each(lambda a: a / 1000)),
        ("the example, all positive", each(np.abs)), ("the example, all negative", each(lambda a: -np.abs(a))),
        ("the example plus 1", each(lambda a: a + 1, "iu")), ("the example doubled", each(lambda a: a * 2, "iu")),
        ("the example plus 10", each(lambda a: a + 10)), ("the example minus 10", each(lambda a: a - 10)),
        ("ones", each(np.ones_like, "fiub")), ("the example, reversed", each(lambda a: np.flip(a), "fiub")),
        ("the example, each value the first", each(lambda a: np.full_like(a, a.flat[0] if a.size else 0), "fiu")),
        ("the example, sorted", each(lambda a: np.sort(a, axis=None).reshape(a.shape), "fiu"))]
    for seed in range(6):
        rng = np.random.default_rng(seed)
        found.append((f"noise, seed {seed}", each(partial(_noise, rng))))
    return found


def _noise(rng: np.random.Generator, array: np.ndarray) -> np.ndarray:
    return np.asarray(rng.standard_normal(array.shape) * 10.0 ** rng.integers(-1, 2))


def _frozen_branches(source: Source, export: _Read) -> tuple[Alarm, ...]:
    """Decisions by the data that the export keeps as the example made them, each with inputs that show it."""
    if source.branches is None or not source.examples:
        return ()
    taken = source.branches(source.examples)
    if not taken:
        return ()
    alarms: dict[str, Alarm] = {}
    for name, feeds in variations(source.examples):
        others = source.branches(feeds)
        at = next((i for i, (a, b) in enumerate(zip(taken, others, strict=False)) if a != b), None)
        if at is None and len(taken) == len(others):
            continue
        at = min(len(taken), len(others)) - 1 if at is None else at
        line, outcome = others[at]
        key = taken[at][0] or line
        if key in alarms or not _differs(source, export, feeds):
            continue
        alarms[key] = Alarm(
            "frozen branch", f"a branch on data was frozen as the example took it: {taken[at][1]} there, "
            f"{outcome} for {name}", where=key, why=f"{shown(feeds)} takes the other way, and the export does not",
            mend="write it with torch.where (both sides are computed) or torch.cond", grave=True)
    return tuple(alarms.values())


def _undecided(source: Source, alarms: tuple[Alarm, ...]) -> tuple[Alarm, ...]:
    """What the tracer warned of and the model does decide by the data, though no input tried made it show.

    The rest are sizes: those were tried.
    """
    if source.branches is None or not source.examples:
        return alarms
    lines = {line.split(": ")[0] for line, _ in source.branches(source.examples)}
    return tuple(a for a in alarms if a.where.split(": ")[0] in lines)


def _differs(source: Source, export: _Read, feeds: Feeds) -> bool:
    """Whether export and model give different results for these inputs."""
    graph = export.graph
    try:
        wanted = named(source.run(feeds), graph)
    except InputError:
        return False
    feeds = {k: v for k, v in feeds.items() if k in graph.inputs}
    with np.errstate(all="ignore"):
        got = export.run(feeds)
    allowed = tolerances(graph, bindings_of(graph, feeds))
    return any(not compare(got[n], wanted[n]).within(max(allowed[n].relative, 1e-6)) for n in graph.outputs)


def shown(feeds: Feeds) -> str:
    """Inputs in a few words: what a reader needs to make them again."""
    def one(name: str, a: np.ndarray) -> str:
        numbers = a.astype(np.float64) if a.dtype.kind in "fiub" else None
        head = ", ".join(f"{v:.3g}" for v in numbers.flat[:3]) if numbers is not None else ""
        return f"{name} = {a.dtype}{list(a.shape)} [{head}{', ...' if a.size > 3 else ''}]"
    return ", ".join(one(n, a) for n, a in feeds.items())


def causes_of(cases: Sequence[Case]) -> tuple[str, ...]:
    """What the pattern of failures says: sizes that were frozen, values that were."""
    failed = {c.inputs for c in cases if not c.passed}
    right = {c.inputs for c in cases if c.passed} - failed
    if not failed or not any(n.startswith("given") for n in right):
        return ()
    if any(n.startswith("random at") for n in failed):
        return ("it is right on the example and wrong at another size or other values: something was frozen",)
    return ("it is right on the example and wrong on other values: something was frozen",)


__all__ = ["Accepted", "Attempt", "accept", "causes_of", "named", "shown", "variations"]
