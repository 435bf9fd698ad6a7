"""Rules on movement: what is moved twice is moved once, what does not move is not moved."""
from __future__ import annotations

from collections.abc import Callable

import numpy as np

from ingot.graph import Dim, Expr, Node, TensorType, evaluate
from ingot.ops import OPS
from ingot.ops.movement import slices_of, split_sizes
from ingot.passes.algebra import spread
from ingot.passes.rewrite import Const, Match, P, Rule, attribute

Decline = Callable[[Match], str | None]
END = (1 << 63) - 1     # a Slice's "to the end"


def perm_of(match: Match, name: str) -> tuple[int, ...]:
    """The permutation of a bound Transpose, its default spelled out."""
    node = match.node(name)
    return permutation(node, match.state.types[node.inputs[0]].rank)


def permutation(node: Node, rank: int) -> tuple[int, ...]:
    """The permutation of a Transpose of this rank, its default spelled out."""
    given = attribute(node, "perm")
    return tuple(given) if isinstance(given, (tuple, list)) else tuple(reversed(range(rank)))


def reshaped(match: Match, value: str, shape: tuple[Dim, ...]) -> str:
    """The value under another shape; itself where it has it."""
    if match.state.types[value].shape == shape:
        return value
    return match.add("Reshape", value, **spelled(shape))


def spelled(shape: tuple[Dim, ...]) -> dict[str, object]:
    """The attributes of the Reshape to this shape; a size that may be 0 must not mean "as in the input"."""
    return {"shape": shape} if all(map(_positive, shape)) else {"shape": shape, "allowzero": 1}


def _positive(dim: Dim) -> bool:
    """Whether a size cannot be 0, symbols being at least 1."""
    if not isinstance(dim, Expr):
        return dim > 0
    return all(factor > 0 and all(isinstance(atom, str) for atom in monomial) for monomial, factor in dim.terms)


def transposed(match: Match, value: str, perm: tuple[int, ...]) -> str:
    """The value with its axes in another order; itself where that is the order they have."""
    return value if perm == tuple(range(len(perm))) else match.add("Transpose", value, perm=perm)


def _same_type(match: Match) -> str | None:
    return None if match.type("x") == match.out else f"it turns {match.type('x')} into {match.out}"


# --- reshapes -------------------------------------------------------------------------------------------------------

def _not_canonical(match: Match) -> str | None:
    """A Reshape that already spells out its shape stays."""
    if match.root.op == "Reshape" and dict(match.root.attrs) == spelled(match.out.shape):
        return "it spells out its shape already"
    return None


def _spelled(match: Match) -> str:
    return match.add("Reshape", match["x"], **spelled(match.out.shape))


def _not_one_swap(match: Match) -> str | None:
    """Why [.., S, D] -> [M, S, D] -> transposed [M, D, S] -> [.., D, S] is not one Transpose."""
    middle, end = match.state.types[match.node("Transpose").inputs[0]].shape, match.out.shape
    if len(middle) != 3 or perm_of(match, "Transpose") != (0, 2, 1):
        return "it does not swap the last two of three axes"
    if len(end) < 3 or end[-2:] != (middle[2], middle[1]):
        return f"{list(middle)} transposed does not keep its last two axes in {list(end)}"
    return None


def _one_swap(match: Match) -> str:
    *lead, columns, rows = match.out.shape
    source = reshaped(match, match["x"], (*lead, rows, columns))
    return match.add("Transpose", source, perm=(*range(len(lead)), len(lead) + 1, len(lead)))


RESHAPES = (
    Rule("reshape-of-itself", P("Reshape|Squeeze|Unsqueeze|Flatten|Identity", "x"), make=lambda m: m["x"],
         decline=_same_type),
    Rule("reshape-spelled-out", P("Reshape|Squeeze|Unsqueeze|Flatten", "x"), make=_spelled, decline=_not_canonical),
    Rule("reshape-of-reshape", P("Reshape", P("Reshape", "x", bind="inner", shared=True)), make=_spelled),
    Rule("transpose-between-reshapes", P("Reshape", P("Transpose", P("Reshape", "x", bind="inner", shared=True))),
         make=_one_swap, decline=_not_one_swap),
)


# --- transposes -----------------------------------------------------------------------------------------------------

def _composed(match: Match) -> str:
    outer, inner = perm_of(match, "Transpose"), perm_of(match, "inner")
    return transposed(match, match["x"], tuple(inner[p] for p in outer))


def _moves_data(match: Match) -> str | None:
    shape = match.shape("x")
    moving = [p for p in perm_of(match, "Transpose") if shape[p] != 1]
    if moving == sorted(moving):
        return None
    return f"it moves the axes {moving}"


TRANSPOSES = (
    Rule("transpose-of-transpose", P("Transpose", P("Transpose", "x", bind="inner", shared=True)), make=_composed),
    Rule("transpose-of-ones", P("Transpose", "x"), make=lambda m: reshaped(m, m["x"], m.out.shape),
         decline=_moves_data),
)


# --- slices, pieces -------------------------------------------------------------------------------------------------

def _slices(match: Match, name: str) -> tuple[tuple[Dim, Dim, int], ...]:
    node = match.node(name)
    return slices_of(match.state.types[node.inputs[0]], {**OPS["Slice"].attrs, **node.attrs})


def _slice_cuts(match: Match) -> str | None:
    if backwards := [i for i, (_, _, step) in enumerate(_slices(match, "Slice")) if step < 0]:
        return f"axis {backwards[0]} runs backwards"
    return _same_type(match)


def _slice_of_slice(match: Match) -> str:
    starts, ends, axes, steps = [], [], [], []
    cuts = zip(_slices(match, "inner"), _slices(match, "Slice"), strict=True)
    for axis, ((a, _, s), (b, count, t)) in enumerate(cuts):
        if match.shape("x")[axis] != count or s != 1 or t != 1:
            start = a + b * s
            starts.append(start)
            ends.append(start + (count - 1) * s * t + 1)
            axes.append(axis)
            steps.append(s * t)
    return sliced(match, match["x"], tuple(starts), tuple(ends), tuple(axes), tuple(steps))


def sliced(match: Match, value: str, starts: tuple[Dim, ...], ends: tuple[Dim, ...], axes: tuple[int, ...],
           steps: tuple[int, ...] = ()) -> str:
    """A Slice of the value; steps are 1 where none are given."""
    return match.add("Slice", value, starts=starts, ends=ends, axes=axes, steps=steps or (1,) * len(starts))


def _symbolic_slices(match: Match) -> str | None:
    for a, count, step in (*_slices(match, "inner"), *_slices(match, "Slice")):
        if not isinstance(a, int) or step < 0 or (isinstance(count, Expr) and (a != 0 or step != 1)):
            return "a start is symbolic, or it runs backwards"
        if count == 0:
            return "a size is zero"
    return None


def _index(match: Match) -> int | None:
    array = match.const("index")
    return int(array.flat[0]) if array is not None and array.size == 1 else None


def _axis(match: Match, node: str | Node, of: str = "x") -> int:
    axis, rank = match.attr(node, "axis"), len(match.shape(of))
    return int(axis) % rank if isinstance(axis, int) else 0


def _not_one_index(match: Match) -> str | None:
    at = _index(match)
    if at is None:
        return f"the indices are {match.type('index')}, not one known number"
    size = match.shape("x")[_axis(match, match.root)]
    if not isinstance(size, int):
        if at < 0:
            return f"the axis has size {size}, and the index counts from its end"
        symbols = match.state.symbols.items()
        few = min(evaluate(size, {k: getattr(s, end) for k, s in symbols}) for end in ("min", "max"))
        return f"the axis has size {size}, which may be {few}" if few <= at else None
    return None if -size <= at < size else f"the index {at} is outside [-{size}, {size})"


def _taken(match: Match) -> str:
    at, axis = _index(match) or 0, _axis(match, match.root)
    size = match.shape("x")[axis]
    at += size if at < 0 and isinstance(size, int) else 0
    return reshaped(match, sliced(match, match["x"], (at,), (at + 1,), (axis,)), match.out.shape)


def _not_one_part(match: Match) -> str | None:
    return None if len(match.root.outputs) == 1 else f"it makes {len(match.root.outputs)} parts"


def _split_into_slice(match: Match) -> str | None:
    read = [o for o in match.root.outputs if o and match.state.uses[o]]
    if len(match.root.outputs) < 2 or len(read) > 1:
        return f"{len(read)} of its parts are read"
    sizes = split_sizes(match.type("x"), {**OPS["Split"].attrs, **match.root.attrs}, len(match.root.outputs))
    return None if all(isinstance(s, int) for s in sizes) else "a size is symbolic"


def _the_one_slice(match: Match) -> tuple[str, ...]:
    outputs, axis = match.root.outputs, _axis(match, match.root)
    sizes = split_sizes(match.type("x"), {**OPS["Split"].attrs, **match.root.attrs}, len(outputs))
    start: Dim = 0
    made: list[str] = []
    for output, size in zip(outputs, sizes, strict=True):
        wanted = output and match.state.uses[output]
        made.append(sliced(match, match["x"], (start,), (start + size,), (axis,)) if wanted else "")
        start = start + size
    return tuple(made)


def _rejoins(match: Match) -> str | None:
    node = match.state.producers.get(match.root.inputs[0])
    if node is None or node.op != "Split" or node.outputs != match.root.inputs:
        return "its parts are not all the parts of one Split, in order"
    rank = match.state.types[node.inputs[0]].rank
    here, there = match.attr(match.root, "axis"), match.attr(node, "axis")
    if not isinstance(here, int) or not isinstance(there, int) or here % rank != there % rank:
        return "the axes differ"
    return None if match.state.types[node.inputs[0]] == match.out else "the types differ"


def _split_source(match: Match) -> str:
    return match.state.producers[match.root.inputs[0]].inputs[0]


def _nested_concat(match: Match) -> Node | None:
    for value in match.root.inputs:
        node = match.state.producers.get(value)
        if node is not None and node.op == "Concat" and match.state.uses[value] == 1:
            rank = match.out.rank
            if int(str(attribute(node, "axis"))) % rank == int(str(match.attr(match.root, "axis"))) % rank:
                return node
    return None


def _flat_concat(match: Match) -> str:
    inner = _nested_concat(match)
    parts: list[str] = []
    for value in match.root.inputs:
        parts += inner.inputs if inner is not None and value == inner.output else (value,)
    return match.add("Concat", *parts, axis=match.attr(match.root, "axis"))


PIECES = (
    Rule("slice-of-all", P("Slice", "x"), make=lambda m: m["x"], decline=_slice_cuts),
    Rule("slice-of-slice", P("Slice", P("Slice", "x", bind="inner", shared=True)), make=_slice_of_slice,
         decline=_symbolic_slices),
    Rule("gather-one", P("Gather", "x", Const("index")), make=_taken, decline=_not_one_index),
    Rule("split-of-one", P("Split", "x"), make=lambda m: (m["x"],), decline=_not_one_part),
    Rule("split-read-once", P("Split", "x"), make=_the_one_slice, decline=_split_into_slice),
    Rule("concat-of-one", P("Concat", "*"), make=lambda m: m.root.inputs[0],
         decline=lambda m: None if len(m.root.inputs) == 1 else f"it joins {len(m.root.inputs)} parts"),
    Rule("concat-of-split", P("Concat", "*"), make=_split_source, decline=_rejoins),
    Rule("concat-of-concat", P("Concat", "*"), make=_flat_concat,
         decline=lambda m: None if _nested_concat(m) else "no part is another Concat on that axis, read by it alone"),
)


# --- broadcasts, pads, casts ----------------------------------------------------------------------------------------

def _pads(match: Match) -> str | None:
    pads = match.attr("Pad", "pads")
    return None if isinstance(pads, tuple) and all(p == 0 for p in pads) else "it pads"


def _filled(match: Match) -> str:
    value = match.attr(match.root, "value")
    scalar = match.constant(np.full((1,) * match.out.rank, value, match.out.dtype.numpy))
    return spread(match, scalar, match.out.shape)


def _loses(match: Match) -> str | None:
    """Why the inner of two casts may not be skipped."""
    x, between = match.type("x").dtype, match.state.types[match.node("inner").output].dtype
    wide = {"float": 2, "int": 1, "uint": 1, "bool": 0}
    if x.kind == "bool" and between.kind in wide:
        return None
    if x.kind == "float" == between.kind and between.bits > x.bits and {x.name, between.name} != {"f16", "bf16"}:
        return None
    if x.kind == between.kind == "int" and between.bits > x.bits:
        return None
    return f"{x} to {between} may lose something"


MISCELLANY = (
    Rule("cast-to-itself", P("Cast|CastLike", "x", "*"), make=lambda m: m["x"], decline=_same_type),
    Rule("cast-of-cast", P("Cast", P("Cast", "x", bind="inner", shared=True)), decline=_loses,
         make=lambda m: m.add("Cast", m["x"], to=m.out.dtype.name)),
    Rule("pad-by-nothing", P("Pad", "x", "*"), make=lambda m: m["x"], decline=_pads),
    Rule("expand-of-itself", P("Expand|Tile", "x"), make=lambda m: m["x"], decline=_same_type),
    Rule("expand-of-expand", P("Expand", P("Expand", "x", bind="inner", shared=True)),
         make=lambda m: spread(m, m["x"], m.out.shape)),
    Rule("fill-as-expand", P("ConstantOfShape"), make=_filled),
    Rule("dropout", P("Dropout", "x", "*"), make=lambda m: m["x"],
         decline=lambda m: "it trains" if _trains(m) else "its mask is read" if _mask_is_read(m) else None),
)


def _trains(match: Match) -> bool:
    inputs = match.root.inputs
    return len(inputs) > 2 and bool(inputs[2]) and match.scalar(inputs[2]) != 0


def _mask_is_read(match: Match) -> bool:
    return any(match.state.uses[o] for o in match.root.outputs[1:] if o)


RULES = (*RESHAPES, *TRANSPOSES, *PIECES, *MISCELLANY)
__all__ = ["RULES", "TensorType", "perm_of", "permutation", "reshaped", "sliced", "transposed"]
