"""Several profiles in one engine: the ranges each is tuned and planned for, over one graph that knows them all."""
from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from types import MappingProxyType

import numpy as np

from ingot.errors import InputError, UnsupportedError
from ingot.frontend import ShapeSpec
from ingot.frontend.shapes import read_profiles
from ingot.graph import Expr, Graph, Symbol
from ingot.runtime.feeds import bind
from ingot.verify import Verdict


def profiles_of(graph: Graph, shapes: Mapping[str, ShapeSpec] | None) -> tuple[Graph, ...]:
    """The graph once for each profile, its symbols narrowed to that profile's ranges; itself alone where there is one.

    The graph was read with the ranges that hold all profiles. Raises InputError where inputs have different numbers
    of profiles, or ranges that contradict.
    """
    told = {name: found for name, spec in (shapes or {}).items() if len(found := read_profiles(spec)) > 1}
    counts = {name: len(found) for name, found in told.items()}
    if not counts:
        return (graph,)
    if len(set(counts.values())) > 1:
        raise InputError("the inputs have different numbers of profiles",
                         why=tuple(f"{name}: {n}" for name, n in counts.items()),
                         mend="give every input that varies one shape for each profile, in the same order")
    made = []
    for k in range(next(iter(counts.values()))):
        ranges = dict(graph.symbols)
        given: set[str] = set()
        for name, found in told.items():
            for dim, axis in zip(graph.types[name].shape, found[k], strict=True):
                label = str(dim)
                if not isinstance(dim, Expr) or label not in ranges:
                    continue
                low, opt, high = (axis.min, axis.opt, axis.max) if isinstance(axis, Symbol) else (axis,) * 3
                wanted = Symbol(label, low, opt, high)
                if label in given and ranges[label] != wanted:
                    raise InputError(f"profile {k + 1} gives {label} two ranges: {ranges[label]} and {wanted}",
                                     mend="give one range wherever the model uses that name")
                ranges[label] = wanted
                given.add(label)
        made.append(replace(graph, symbols=MappingProxyType(ranges)))
    return tuple(made)


def one_only(shapes: Mapping[str, ShapeSpec] | None, what: str) -> None:
    """Raises UnsupportedError where several profiles were given to what takes one."""
    if any(len(read_profiles(spec)) > 1 for spec in (shapes or {}).values()):
        raise UnsupportedError(f"{what} takes one profile", mend="give one range for each input")


def fitting(graph: Graph, inputs: Sequence[Mapping[str, np.ndarray]]) -> tuple[Mapping[str, np.ndarray], ...]:
    """Those sets of inputs whose sizes lie in the graph's profile."""
    found = []
    for feeds in inputs:
        try:
            bind(graph.inputs, graph.types, graph.symbols, [np.shape(feeds[n]) for n in graph.inputs])
        except InputError:
            continue
        found.append(feeds)
    return tuple(found)


def all_of(verdicts: Sequence[Verdict]) -> Verdict:
    """One verdict of them all."""
    first = verdicts[0]
    if len(verdicts) == 1:
        return first
    cases = tuple(replace(c, inputs=f"profile {k + 1}, {c.inputs}") for k, v in enumerate(verdicts) for c in v.cases)
    return replace(first, cases=cases, skipped=tuple(dict.fromkeys(s for v in verdicts for s in v.skipped)),
                   diverged=next((v.diverged for v in verdicts if v.diverged), ""),
                   seconds=sum(v.seconds for v in verdicts))
