"""Kernels of a quantised engine, judged between integers, where nothing drifts.

From end to end, right answers of a quantised network lie far apart (`verify.ties`). Here that drift is taken away: the
reference walks through the graph, and wherever the engine wrote a value, goes on from the engine's. Each kernel then
answers for itself alone: integers may differ by one quantum, and only as many of them as lie beside a tie; reals by
what a few roundings allow.
"""
from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np

from ingot.graph import Graph
from ingot.ops.reference import run_graph
from ingot.verify.bisect import WINDOW, windows
from ingot.verify.parity import compare
from ingot.verify.probe import Probe
from ingot.verify.tolerance import UNIT_ROUNDOFF, Tolerance, tolerances
from ingot.verify.verify import Case

Values = Mapping[str, np.ndarray]
KERNELS = "kernel by kernel"
_TIE = "one quantum: a value beside a tie falls to either side"


def kernel_by_kernel(run: Callable[[tuple[str, ...]], Values], graph: Graph, written: Sequence[str], probe: Probe,
                     limit: int = WINDOW) -> tuple[Case, ...]:
    """Every value the engine writes beside what the reference makes of the engine's own values before it.

    `run` gives the engine's values for these names, once per window of `limit` bytes. The cases are those that differ
    too much; where there are none, the worst of all integers and of all reals.
    """
    parts = windows(graph, written, probe.bindings, limit)
    part_of = {v: i for i, part in enumerate(parts) for v in part}
    allowed = tolerances(graph, probe.bindings, known=part_of)
    held: dict[int, Values] = {}
    cases: list[Case] = []

    def watch(value: str, right: np.ndarray) -> np.ndarray | None:
        if value not in part_of:
            return None
        number = part_of[value]
        if number not in held:
            held.clear()
            held[number] = run(parts[number])
        got = np.asarray(held[number][value])
        rounded = right.dtype.kind in "iu" and allowed[value].relative > 0
        cases.append(_integers(got, right, value, beside_ties(graph, value, right.size, allowed)) if rounded
                     else _reals(value, got, right, allowed[value].relative, allowed[value].source))
        return got

    with np.errstate(all="ignore"):
        run_graph(graph, probe.feeds, watch=watch)
    wrong = tuple(c for c in cases if not c.passed)
    kinds = ([c for c in cases if c.source == _TIE], [c for c in cases if c.source != _TIE])
    return wrong or tuple(max(k, key=lambda c: c.relative / max(c.tolerance, 1e-30)) for k in kinds if k)


def _reals(value: str, got: np.ndarray, right: np.ndarray, tolerance: float, source: str) -> Case:
    d = compare(got, right, loose=np.array(True))
    passed = d.within(tolerance)
    return Case(KERNELS, value, d.largest, d.relative, d.cosine, tolerance, source, passed,
                d.note if passed or d.note else f"beyond {tolerance:.2g} at {list(d.where)}",
                not d.note and not d.wrong_pattern)


def _integers(got: np.ndarray, right: np.ndarray, value: str, near: float) -> Case:
    d = compare(got, right)
    levels = float(np.iinfo(right.dtype).max) - float(np.iinfo(right.dtype).min)
    apart = np.abs(got.astype(np.float64) - right.astype(np.float64)) if got.shape == right.shape else np.array(levels)
    moved = int((apart > 0).sum())
    note = "more than a quantum" if apart.max(initial=0.0) > 1 else \
        f"{moved} of {right.size} moved, no more than {near:.0f} lie beside a tie" if moved > near else ""
    return Case(KERNELS, value, d.largest, float(apart.max(initial=0.0)) / levels, d.cosine, 1 / levels, _TIE,
                not note, note)


def beside_ties(graph: Graph, value: str, count: int, allowed: Mapping[str, Tolerance]) -> float:
    """How many of `count` integers may lie so near a tie that right roundings part them, with 1 in 10^13 more.

    A real that is not cut off lies within 256 quanta: its tolerance in quanta is 256 times the relative one, and as
    many of them lie beside a tie, on either side, as that is of a quantum.
    """
    reals: list[float] = []
    pending, seen = [value], {value}
    while pending:                      # the reals that became these integers
        maker = graph.producers.get(pending.pop())
        for name in (maker.inputs if maker else ()):
            if name and name not in seen and name in graph.producers:
                seen.add(name)
                if graph.types[name].dtype.name in UNIT_ROUNDOFF:
                    reals.append(allowed[name].relative)
                else:
                    pending.append(name)
    share = min(1.0, 2 * 256 * max(reals, default=16 * UNIT_ROUNDOFF["f32"]))
    return count * share + 8 * float(np.sqrt(count * share)) + 8
