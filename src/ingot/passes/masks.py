"""Rules on the index arithmetic that exporters write around attention masks.

Positions are followed as `offset + sum of stride * place` along each axis, with symbolic strides: a gather at
positions that walk the data in order is a Reshape, and a comparison that holds everywhere is true.
"""
from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from ingot.graph import Dim, Node
from ingot.ops import OPS
from ingot.ops.contents import least
from ingot.ops.movement import slices_of
from ingot.ops.shape import shape_span
from ingot.ops.shapes import dim_from
from ingot.passes.algebra import spread
from ingot.passes.rewrite import Const, Match, P, Rule, State, attribute
from ingot.passes.views import reshaped, sliced

LARGEST = 1 << 16       # elements of the largest constant that is looked at


@dataclass(frozen=True)
class Walk:
    """Positions offset + sum of strides[axis] * place; an axis of size 1 has stride 0."""

    offset: Dim
    strides: tuple[Dim, ...]

    def shifted(self, lead: int) -> Walk:
        """The same with axes of size 1 before."""
        return Walk(self.offset, (0,) * lead + self.strides)


def walk(state: State, value: str, depth: int = 16) -> Walk | None:
    """How a value of positions walks along its axes, None when it is not known to."""
    shape = state.types[value].shape
    array = state.constants.get(value)
    if array is not None:
        return _constant_walk(array)
    node = state.producers.get(value)
    if node is None or depth == 0:
        return None
    if (size := _size(state, node)) is not None:
        return Walk(size, (0,) * len(shape))
    if node.op == "Range":
        start, delta = (_number(attribute(node, name)) for name in ("start", "delta"))
        return None if start is None or delta is None else Walk(start, (delta,))
    if node.op in ("Cast", "Identity") and state.types[node.inputs[0]].dtype.kind in ("int", "uint"):
        return walk(state, node.inputs[0], depth - 1) if state.types[value].dtype.kind in ("int", "uint") else None
    if node.op == "Expand":
        found = walk(state, node.inputs[0], depth - 1)
        return found and found.shifted(len(shape) - len(found.strides))
    if node.op in ("Reshape", "Unsqueeze", "Squeeze"):
        return _reshaped_walk(state, node, depth)
    if node.op == "Slice":
        found = walk(state, node.inputs[0], depth - 1)
        cuts = slices_of(state.types[node.inputs[0]], {**OPS["Slice"].attrs, **node.attrs})
        return found and Walk(sum((a * s for (a, _, _), s in zip(cuts, found.strides, strict=True)), found.offset),
                              tuple(s * step for (_, _, step), s in zip(cuts, found.strides, strict=True)))
    if node.op in ("Add", "Sub", "Mul", "Max") and len(node.inputs) == 2:
        return _joined_walk(state, node, len(shape), depth)
    return None


def _number(value: object) -> Dim | None:
    items = value if isinstance(value, (tuple, list)) else (value,)
    return dim_from(items[0]) if len(items) == 1 and not isinstance(items[0], float) else None


def _size(state: State, node: Node) -> Dim | None:
    """The one size a Slice of a Shape, or a Shape of one axis, holds."""
    source = state.producers.get(node.inputs[0]) if node.inputs else None
    if node.op in ("Reshape", "Squeeze", "Unsqueeze", "Cast") and source is not None and \
            state.types[node.output].size == 1 and state.types[node.output].dtype.kind == "int":
        return _size(state, source)
    first = 0
    if node.op == "Slice" and source is not None and state.types[node.output].size == 1:
        starts, steps = attribute(node, "starts"), attribute(node, "steps")
        if not isinstance(starts, tuple) or len(starts) != 1 or not isinstance(starts[0], int) or starts[0] < 0:
            return None
        if steps not in (None, (1,)):
            return None
        first, node = starts[0], source
    if node.op != "Shape":
        return None
    shape = state.types[node.inputs[0]].shape
    start, end = shape_span({"start": attribute(node, "start"), "end": attribute(node, "end")}, len(shape))
    sizes = shape[start:end]
    return sizes[first] if (first or len(sizes) == 1 or node is source) and first < len(sizes) else None


def _constant_walk(array: np.ndarray) -> Walk | None:
    if array.dtype.kind not in "iu" or array.size == 0 or array.size > LARGEST:
        return None
    offset = int(array.flat[0])
    strides = tuple(int(array[tuple(int(i == axis) for i in range(array.ndim))]) - offset if size > 1 else 0
                    for axis, size in enumerate(array.shape))
    grid = np.full(array.shape, offset, np.int64)
    for axis, (size, stride) in enumerate(zip(array.shape, strides, strict=True)):
        grid += (np.arange(size) * stride).reshape(tuple(size if i == axis else 1 for i in range(array.ndim)))
    return Walk(offset, strides) if np.array_equal(grid, array) else None


def _reshaped_walk(state: State, node: Node, depth: int) -> Walk | None:
    """A reshape that only puts in or drops axes of size 1 keeps the order of the others."""
    before, after = state.types[node.inputs[0]].shape, state.types[node.output].shape
    found = walk(state, node.inputs[0], depth - 1)
    if found is None or [d for d in before if d != 1] != [d for d in after if d != 1]:
        return None
    strides = iter(s for s, d in zip(found.strides, before, strict=True) if d != 1)
    return Walk(found.offset, tuple(0 if d == 1 else next(strides) for d in after))


def _joined_walk(state: State, node: Node, rank: int, depth: int) -> Walk | None:
    a, b = (walk(state, i, depth - 1) for i in node.inputs)
    if a is None or b is None:
        return None
    a, b = a.shifted(rank - len(a.strides)), b.shifted(rank - len(b.strides))
    if node.op == "Add":
        return Walk(a.offset + b.offset, tuple(x + y for x, y in zip(a.strides, b.strides, strict=True)))
    if node.op == "Sub":
        return Walk(a.offset - b.offset, tuple(x - y for x, y in zip(a.strides, b.strides, strict=True)))
    for x, y in ((a, b), (b, a)):
        if any(s != 0 for s in y.strides):
            continue
        if node.op == "Mul":
            return Walk(x.offset * y.offset, tuple(s * y.offset for s in x.strides))
        if y.offset == 0 and _never_negative(x):        # Max with zeros: a broadcast, written so
            return x
    return None


def _never_negative(found: Walk) -> bool:
    return all((low := least(d)) is not None and low >= 0 for d in (found.offset, *found.strides))


# --- gathers in order ---

def _parts(match: Match) -> tuple[str, ...] | str:
    """The parts of a GatherND's indices, one for each axis of the data; or why there are none."""
    node, x = match.node("Concat"), match.type("x")
    rank = match.state.types[node.output].rank
    if match.attr(match.root, "batch_dims"):
        return "it has batch axes"
    if int(str(match.attr(node, "axis"))) % rank != rank - 1 or len(node.inputs) != x.rank:
        return "its indices are not one position for each axis of the data"
    if any(match.state.types[i].shape[-1] != 1 for i in node.inputs):
        return "its indices are not joined from single positions"
    return node.inputs


def _out_of_order(shape: tuple[Dim, ...], found: Walk, size: Dim) -> str | None:
    """Why positions of this shape do not walk an axis of this size from first to last."""
    if found.offset != 0:
        return f"the positions start at {found.offset}"
    step: Dim = 1
    for axis in reversed(range(len(shape))):
        if shape[axis] != 1:
            if found.strides[axis] != step:
                return f"along axis {axis} the positions advance by {found.strides[axis]}, not by {step}"
            step = step * shape[axis]
    return None if step == size else f"the positions reach {step}, the axis has size {size}"


def _not_a_grid(match: Match) -> str | None:
    parts = _parts(match)
    if isinstance(parts, str):
        return parts
    x = match.type("x")
    step: Dim = 1
    strides: tuple[Dim, ...] = (0,) * match.out.rank
    offset: Dim = 0
    for axis in reversed(range(x.rank)):
        found = walk(match.state, parts[axis])
        if found is None:
            return f"the positions on axis {axis} do not count 0, 1, 2, ..."
        offset = offset + found.offset * step
        strides = tuple(s + t * step for s, t in zip(strides, found.strides[:-1], strict=True))
        step = step * x.shape[axis]
    return _out_of_order(match.out.shape, Walk(offset, strides), step)


def _not_in_order(match: Match) -> str | None:
    x, at = match.type("x"), match.type("at")
    if match.const("at") is not None and x.shape != match.out.shape:
        return "its positions are constant: other rules see to it"
    found = walk(match.state, match["at"])
    if found is None:
        return "the positions do not walk in order"
    return _out_of_order(at.shape, found, x.shape[int(str(match.attr("Gather", "axis"))) % x.rank])


def _not_a_span(match: Match) -> str | None:
    found = walk(match.state, match["at"])
    moving = [i for i, d in enumerate(match.shape("at")) if d != 1]
    if found is None or len(moving) != 1 or found.strides[moving[0]] != 1:
        return "the positions do not count along one axis"
    return None if _never_negative(found) else "they may be negative"


def _span(match: Match) -> str:
    found = walk(match.state, match["at"]) or Walk(0, ())
    length = next(d for d in match.shape("at") if d != 1)
    axis = int(str(match.attr("Gather", "axis"))) % match.type("x").rank
    cut = sliced(match, match["x"], (found.offset,), (found.offset + length,), (axis,))
    return reshaped(match, cut, match.out.shape)


def _not_always(match: Match) -> str | None:
    found = walk(match.state, match["x"])
    if found is None:
        return "its left side is not known to walk"
    return None if _never_negative(found) else "its left side may be negative"


def _true(match: Match) -> str:
    return spread(match, match.constant(np.ones((1,) * match.out.rank, bool), "true"), match.out.shape)


RULES = (
    Rule("gather-grid", P("GatherND", "x", P("Concat", "*", shared=True)), decline=_not_a_grid,
         make=lambda m: reshaped(m, m["x"], m.out.shape)),
    Rule("gather-in-order", P("Gather", "x", "at"), decline=_not_in_order,
         make=lambda m: reshaped(m, m["x"], m.out.shape)),
    Rule("gather-span", P("Gather", "x", "at"), decline=_not_a_span, make=_span),
    Rule("never-below-zero", P("GreaterOrEqual", "x", Const(value=0.0)), make=_true, decline=_not_always),
)
