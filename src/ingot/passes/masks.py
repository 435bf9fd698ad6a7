"""Rules on the index arithmetic that exporters write around attention masks."""
from __future__ import annotations

import numpy as np

from ingot.graph import Dim, Node
from ingot.passes.rewrite import Match, P, Rule, State, attribute
from ingot.passes.views import reshaped

LOOKTHROUGH = frozenset({"Reshape", "Unsqueeze", "Squeeze"})


def _counts_along(state: State, value: str) -> tuple[int | None, Dim] | None:
    """(axis, length) when a value of positions is 0, 1, 2, ... along one axis and constant along the others.

    The axis is None, and the length 1, for a value that is all 0. None when it is not of that form.
    """
    shape = state.types[value].shape
    array = state.constants.get(value)
    if array is not None:
        return _constant_counts(array)
    node = state.producers.get(value)
    if node is None:
        return None
    if node.op == "Range":
        start, delta = attribute(node, "start"), attribute(node, "delta")
        return (0, shape[0]) if tuple(map(str, _items(start))) == ("0",) and tuple(map(str, _items(delta))) == ("1",) \
            else None
    if node.op == "Expand":
        found = _counts_along(state, node.inputs[0])
        if found is None or found[0] is None:
            return found
        return found[0] + len(shape) - state.types[node.inputs[0]].rank, found[1]
    if node.op in LOOKTHROUGH:
        return _through_reshape(state, node)
    if node.op in ("Max", "Add") and len(node.inputs) == 2:
        # a broadcast written as the sum or maximum with zeros
        for x, zero in (node.inputs, node.inputs[::-1]):
            array = state.constants.get(zero)
            if array is not None and not np.any(array):
                found = _counts_along(state, x)
                if found is None or found[0] is None:
                    return found
                return found[0] + len(shape) - state.types[x].rank, found[1]
    return None


def _items(value: object) -> tuple[object, ...]:
    return tuple(value) if isinstance(value, (tuple, list)) else (value,)


def _constant_counts(array: np.ndarray) -> tuple[int | None, Dim] | None:
    if array.dtype.kind not in "iu" or array.size == 0:
        return None
    if not np.any(array):
        return None, 1
    for axis, size in enumerate(array.shape):
        line = np.arange(size).reshape(tuple(size if i == axis else 1 for i in range(array.ndim)))
        if size > 1 and np.array_equal(array, np.broadcast_to(line, array.shape)):
            return axis, size
    return None


def _through_reshape(state: State, node: Node) -> tuple[int | None, Dim] | None:
    """A reshape that only puts in or drops axes of size 1 keeps the order of the others."""
    before, after = state.types[node.inputs[0]].shape, state.types[node.output].shape
    found = _counts_along(state, node.inputs[0])
    if found is None or found[0] is None:
        return found
    kept_before, kept_after = ([i for i, d in enumerate(s) if d != 1] for s in (before, after))
    if [before[i] for i in kept_before] != [after[i] for i in kept_after] or found[0] not in kept_before:
        return None
    return kept_after[kept_before.index(found[0])], found[1]


def _grid(match: Match) -> tuple[str, ...] | str:
    """The parts of a GatherND's indices, one for each axis of the data; or why they are not a grid."""
    x, batch = match.type("x"), match.attr(match.root, "batch_dims")
    if batch:
        return "it has batch axes"
    node = match.node("Concat")
    rank = match.type("at").rank if match["at"] else match.state.types[node.output].rank
    if int(str(match.attr(node, "axis"))) % rank != rank - 1 or len(node.inputs) != x.rank:
        return "its indices are not one position for each axis of the data"
    if any(match.state.types[i].shape[-1] != 1 for i in node.inputs):
        return "its indices are not joined from single positions"
    return node.inputs


def _not_a_grid(match: Match) -> str | None:
    parts = _grid(match)
    if isinstance(parts, str):
        return parts
    x, out, last = match.type("x"), match.out, -1
    seen: list[int] = []
    for axis, part in enumerate(parts):
        found = _counts_along(match.state, part)
        if found is None:
            return f"the positions on axis {axis} do not count 0, 1, 2, ..."
        place, length = found
        if length != x.shape[axis]:
            return f"the positions on axis {axis} count to {length}, its size is {x.shape[axis]}"
        if place is None:
            continue
        if place <= last:
            return "the axes come in another order"
        last = place
        seen.append(place)
    if any(d != 1 for i, d in enumerate(out.shape) if i not in seen):
        return "the result repeats elements along an axis"
    return None


RULES = (
    Rule("gather-grid", P("GatherND", "x", P("Concat", "*", shared=True)), decline=_not_a_grid,
         make=lambda m: reshaped(m, m["x"], m.out.shape)),
)
