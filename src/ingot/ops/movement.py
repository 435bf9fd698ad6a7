"""Ops that move elements and change none: reshape, transpose, slice, concatenate, pad, tile, resize."""
from __future__ import annotations

from collections.abc import Mapping

from ingot.graph import Dim, TensorType, evaluate, product
from ingot.ops.op import REQUIRED, Attrs, Op, Types, declare
from ingot.ops.samples import f32, f64, i64, scalar
from ingot.ops.shapes import (
    axes_of,
    axis_of,
    broadcast,
    dims,
    given,
    integer,
    ints,
    joined_layout,
    same_dim,
    same_dtype,
    word,
)


def _reshape(types: Types, attrs: Attrs, outputs: int) -> tuple[TensorType, ...]:
    x, wanted = given(types[0]), dims(attrs, "shape") or ()
    shape: list[Dim] = []
    for i, d in enumerate(wanted):
        if d == 0 and not attrs["allowzero"]:
            if i >= x.rank:
                raise ValueError(f"shape {wanted} copies axis {i}, which {x} has not")
            d = x.shape[i]
        shape.append(d)
    if (free := shape.count(-1)) > 1:
        raise ValueError(f"shape {wanted} leaves two sizes open")
    if free:
        rest = product(tuple(d for d in shape if d != -1))
        if isinstance(rest, int) and rest == 0:
            raise ValueError(f"shape {wanted} leaves a size open beside a zero")
        size = x.size // rest
        if isinstance(size, int) and isinstance(x.size, int) and size * rest != x.size:
            raise ValueError(f"{x} has {x.size} elements, which shape {wanted} does not divide")
        shape[shape.index(-1)] = size
    elif isinstance(x.size, int) and isinstance(total := product(tuple(shape)), int) and total != x.size:
        raise ValueError(f"{x} has {x.size} elements, shape {wanted} has {total}")
    return (TensorType(x.dtype, tuple(shape)),)


declare(Op("Reshape", "the same elements in row-major order under another shape", ("x",), _reshape,
           {"shape": REQUIRED, "allowzero": 0}, promoted={1: "shape"}, samples=(
    ((f32(4, 33),), {"shape": (33, 4)}), ((f32(2, 3, 5, 7),), {"shape": (0, -1)}), ((f32(6, 4),), {"shape": (2, 3, 4)}),
    ((f32(1),), {"shape": ()}), ((i64(12),), {"shape": (3, -1)}), ((f32(2, 8, 12),), {"shape": (0, 0, 3, 4)}))))


def _flatten(types: Types, attrs: Attrs, outputs: int) -> tuple[TensorType, ...]:
    x, axis = given(types[0]), integer(attrs, "axis")
    if not -x.rank <= axis <= x.rank:
        raise ValueError(f"axis {axis} is outside [-{x.rank}, {x.rank}]")
    at = axis + x.rank if axis < 0 else axis
    return (TensorType(x.dtype, (product(x.shape[:at]), product(x.shape[at:]))),)


declare(Op("Flatten", "the axes before `axis` as one, and the others as one", ("x",), _flatten, {"axis": 1}, samples=(
    ((f32(2, 3, 5, 7),), {}), ((f32(2, 3, 5, 7),), {"axis": 2}), ((f32(4, 5),), {"axis": 0}),
    ((f32(2, 3, 4),), {"axis": -1}))))


def _squeeze(types: Types, attrs: Attrs, outputs: int) -> tuple[TensorType, ...]:
    x, axes = given(types[0]), ints(attrs, "axes")
    if axes is None:
        if loose := [d for d in x.shape if not isinstance(d, int)]:
            raise ValueError(f"whether {loose[0]} is 1 is not known: give the axes")
        gone: tuple[int, ...] = tuple(i for i, d in enumerate(x.shape) if d == 1)
    else:
        gone = axes_of(axes, x.rank)
    for i in gone:
        if x.shape[i] != 1:
            raise ValueError(f"axis {i} of {x} is {x.shape[i]}, not 1")
    return (TensorType(x.dtype, tuple(d for i, d in enumerate(x.shape) if i not in gone)),)


declare(Op("Squeeze", "axes of size 1 dropped", ("x",), _squeeze, {"axes": None}, promoted={1: "axes"}, samples=(
    ((f32(1, 3, 1, 5),), {"axes": (0, 2)}), ((f32(1, 3, 1, 5),), {}), ((f32(3, 1),), {"axes": (-1,)}),
    ((f32(1),), {"axes": (0,)}))))


def _unsqueeze(types: Types, attrs: Attrs, outputs: int) -> tuple[TensorType, ...]:
    x, axes = given(types[0]), ints(attrs, "axes") or ()
    rank = x.rank + len(axes)
    new, rest = axes_of(axes, rank), iter(x.shape)
    return (TensorType(x.dtype, tuple(1 if i in new else next(rest) for i in range(rank))),)


declare(Op("Unsqueeze", "axes of size 1 put in", ("x",), _unsqueeze, {"axes": REQUIRED}, promoted={1: "axes"}, samples=(
    ((f32(3, 5),), {"axes": (0, 2)}), ((f32(3),), {"axes": (-1,)}), ((f32(),), {"axes": (0,)}),
    ((f32(2, 3),), {"axes": (3, 0)}))))


def _transpose(types: Types, attrs: Attrs, outputs: int) -> tuple[TensorType, ...]:
    x = given(types[0])
    perm = ints(attrs, "perm")
    order = tuple(reversed(range(x.rank))) if perm is None else perm
    if sorted(order) != list(range(x.rank)):
        raise ValueError(f"perm {order} is no order of {x.rank} axes")
    return (TensorType(x.dtype, tuple(x.shape[i] for i in order)),)


declare(Op("Transpose", "the axes in another order", ("x",), _transpose, {"perm": None}, samples=(
    ((f32(33, 47),), {}), ((f32(2, 3, 5, 7),), {"perm": (0, 2, 3, 1)}), ((f32(2, 17, 12, 64),), {"perm": (0, 2, 1, 3)}),
    ((f32(2, 3, 5),), {"perm": (1, 0, 2)}), ((f32(2, 3, 5, 7),), {"perm": (3, 1, 0, 2)}), ((i64(4, 5),), {}),
    ((f32(2, 12, 19, 16),), {"perm": (0, 1, 3, 2)}), ((f32(1, 64, 65),), {"perm": (0, 2, 1)}),
    ((f32(7),), {}), ((f32(2, 3, 4, 5, 6),), {"perm": (0, 4, 1, 3, 2)}), ((f64(3, 4),), {}))))


def _concat(types: Types, attrs: Attrs, outputs: int) -> tuple[TensorType, ...]:
    parts = [given(t) for t in types]
    axis = axis_of(integer(attrs, "axis"), parts[0].rank)
    shape = list(parts[0].shape)
    total: Dim = 0
    for t in parts:
        if t.rank != parts[0].rank:
            raise ValueError("the parts have different ranks")
        total = total + t.shape[axis]
        shape = [d if i == axis else same_dim(d, t.shape[i], f"axis {i} of the parts") for i, d in enumerate(shape)]
    shape[axis] = total
    return (TensorType(same_dtype(types), tuple(shape), joined_layout(types, axis)),)


declare(Op("Concat", "the parts one after another along the axis", ("x*",), _concat, {"axis": REQUIRED}, blocked=True,
           samples=(
    ((f32(2, 16, 3, 5, layout="c16"), f32(2, 19, 3, 5, layout="c16")), {"axis": 1}),
    ((f32(2, 19, 3, 5, layout="c16"), f32(2, 19, 3, 2, layout="c16")), {"axis": 3}),
    ((f32(1, 24, 7, layout="c8"), f32(1, 8, 7, layout="c8")), {"axis": 1}),
    ((f32(2, 24, 3, 5, layout="c16"), f32(2, 8, 3, 5, layout="c16"), f32(2, 40, 3, 5, layout="c16"),
      f32(2, 19, 3, 5, layout="c16")), {"axis": 1}),
    ((f32(2, 3), f32(2, 5)), {"axis": 1}), ((f32(2, 3), f32(4, 3), f32(1, 3)), {"axis": 0}),
    ((f32(2, 3, 5, 7), f32(2, 9, 5, 7)), {"axis": 1}), ((f32(2, 3, 4), f32(2, 3, 1)), {"axis": -1}),
    ((i64(3), i64(1)), {"axis": 0}), ((f32(2, 3),), {"axis": 0}), ((f32(1, 1, 64), f32(1, 196, 64)), {"axis": 1}))))


def split_sizes(x: TensorType, attrs: Attrs, outputs: int) -> tuple[Dim, ...]:
    """How long each part of a Split is."""
    axis = axis_of(integer(attrs, "axis"), x.rank)
    sizes, size = dims(attrs, "split"), x.shape[axis]
    if sizes is None:
        count = int(integer(attrs, "num_outputs")) if attrs.get("num_outputs") is not None else outputs
        if count != outputs:        # before so many sizes are written down
            raise ValueError(f"{count} parts are described, {outputs} outputs are named")
        step = -(-size // count)
        sizes = (*(step,) * (count - 1), size - step * (count - 1))
    if len(sizes) != outputs:
        raise ValueError(f"{len(sizes)} parts are described, {outputs} outputs are named")
    total: Dim = 0
    for s in sizes:
        if isinstance(s, int) and s < 0:
            raise ValueError(f"a part has size {s}")
        total = total + s
    same_dim(total, size, "the parts together and the axis")
    return sizes


def _split(types: Types, attrs: Attrs, outputs: int) -> tuple[TensorType, ...]:
    x = given(types[0])
    axis = axis_of(integer(attrs, "axis"), x.rank)
    parts = tuple(TensorType(x.dtype, (*x.shape[:axis], s, *x.shape[axis + 1:]), x.layout)
                  for s in split_sizes(x, attrs, outputs))
    joined_layout(parts, axis)
    return parts


declare(Op("Split", "pieces along the axis, of the given sizes or equal", ("x",), _split,
           {"split": None, "axis": 0, "num_outputs": None}, promoted={1: "split"}, outputs=-1, blocked=True, samples=(
    ((f32(2, 40, 3, 5, layout="c16"),), {"axis": 1, "split": (16, 24)}),
    ((f32(2, 59, 3, 5, layout="c16"),), {"axis": 1, "split": (24, 8, 24, 3)}),
    ((f32(2, 19, 6, 5, layout="c16"),), {"axis": 2, "split": (2, 4)}),
    ((f32(6, 5),), {"split": (2, 4)}), ((f32(2, 9, 3),), {"axis": 1, "split": (3, 1, 5)}),
    ((f32(4, 7),), {"axis": -1, "num_outputs": 2}), ((f32(2, 5, 96),), {"axis": 2, "split": (32, 32, 32)}))))


def sliced(size: Dim, start: Dim, end: Dim, step: int) -> tuple[Dim, Dim]:
    """First position and length of a slice of an axis, ONNX's clamping applied.

    Where a size or bound is symbolic, bounds other than "to the end" are taken to lie within the axis, since what a
    clamp does would not be one expression; `clamps` tells for given sizes whether that holds.
    """
    if step == 0:
        raise ValueError("a slice has step 0")
    if isinstance(size, int) and isinstance(start, int) and isinstance(end, int):
        places = range(*slice(start, end if end >= -size or step > 0 else None, step).indices(size))
        return (places.start, len(places))
    if step > 0:
        first = _place(size, start)
        last = size if isinstance(end, int) and end >= _FAR else _place(size, end)
    else:
        first = size - 1 if isinstance(start, int) and start >= _FAR else _place(size, start)
        last = -1 if isinstance(end, int) and end <= -_FAR else _place(size, end)
    if isinstance(last, int) and isinstance(size, int):
        last = min(last, size)
    length = (last - first + step - 1) // step if step > 0 else (first - last - step - 1) // -step
    if isinstance(length, int):
        length = max(length, 0)
    return first, length


_FAR = (1 << 31) - 1      # what exporters write for "to the end"


def _place(size: Dim, at: Dim) -> Dim:
    return size + at if isinstance(at, int) and at < 0 else at


def slices_of(x: TensorType, attrs: Attrs) -> tuple[tuple[Dim, Dim, int], ...]:
    """(first position, length, step) of a Slice along every axis of its input."""
    starts, ends = dims(attrs, "starts") or (), dims(attrs, "ends") or ()
    axes = axes_of(ints(attrs, "axes") or range(len(starts)), x.rank)
    steps = ints(attrs, "steps") or (1,) * len(starts)
    if not len(starts) == len(ends) == len(axes) == len(steps):
        raise ValueError("starts, ends, axes and steps differ in length")
    found: list[tuple[Dim, Dim, int]] = [(0, d, 1) for d in x.shape]
    for a, start, end, step in zip(axes, starts, ends, steps, strict=True):
        found[a] = (*sliced(x.shape[a], start, end, step), step)
    return tuple(found)


def clamps(x: TensorType, attrs: Attrs, sizes: Mapping[str, int]) -> bool:
    """Whether at these sizes of its symbols a Slice meets a clamp that its inferred shape does not account for."""
    for (first, length, step), size in zip(slices_of(x, attrs), x.shape, strict=True):
        start, count, total = evaluate(first, sizes), evaluate(length, sizes), evaluate(size, sizes)
        last = start + (count - 1) * step
        if count < 0 or (count and not (0 <= start < total and 0 <= last < total)):
            return True
    return False


def _slice(types: Types, attrs: Attrs, outputs: int) -> tuple[TensorType, ...]:
    x = given(types[0])
    return (TensorType(x.dtype, tuple(length for _, length, _ in slices_of(x, attrs))),)


_LAST = (1 << 63) - 1
declare(Op("Slice", "every step-th element from start to before end, per axis", ("x",), _slice,
           {"starts": REQUIRED, "ends": REQUIRED, "axes": None, "steps": None},
           promoted={1: "starts", 2: "ends", 3: "axes", 4: "steps"}, samples=(
    ((f32(6, 9),), {"starts": (1, 2), "ends": (5, 8)}), ((f32(6, 9),), {"starts": (0,), "ends": (_LAST,), "axes": (1,),
                                                                       "steps": (2,)}),
    ((f32(2, 3, 9),), {"starts": (-4,), "ends": (-1,), "axes": (-1,)}), ((f32(6, 9),), {"starts": (3,), "ends": (99,),
                                                                                       "axes": (0,)}),
    ((f32(7, 5),), {"starts": (-1,), "ends": (-_LAST,), "axes": (0,), "steps": (-1,)}),
    ((f32(2, 3, 8, 8),), {"starts": (0, 1), "ends": (_LAST, 8), "axes": (2, 3), "steps": (2, 3)}),
    ((i64(5),), {"starts": (1,), "ends": (3,)}))))


def _pad(types: Types, attrs: Attrs, outputs: int) -> tuple[TensorType, ...]:
    x, pads, axes = given(types[0]), dims(attrs, "pads") or (), ints(attrs, "axes")
    places = axes_of(range(x.rank) if axes is None else axes, x.rank)
    if len(pads) != 2 * len(places):
        raise ValueError(f"pads has {len(pads)} entries, {2 * len(places)} are needed")
    shape = list(x.shape)
    for k, a in enumerate(places):
        shape[a] = shape[a] + pads[k] + pads[k + len(places)]
        if isinstance(d := shape[a], int) and d < 0:
            raise ValueError(f"pads {pads} cut more than axis {a} has")
    if word(attrs, "mode") not in ("constant", "reflect", "edge", "wrap"):
        raise ValueError(f"unknown mode {attrs['mode']!r}")
    if word(attrs, "mode") != "constant":
        for a in places:
            if x.shape[a] == 0 and shape[a] != 0:
                raise ValueError(f"axis {a} has no elements to fill its padding with")
    return (TensorType(x.dtype, tuple(shape)),)


declare(Op("Pad", "elements put before and after along the axes", ("x", "value?"), _pad,
           {"pads": REQUIRED, "axes": None, "mode": "constant"}, promoted={1: "pads", 3: "axes"}, samples=(
    ((f32(4, 9),), {"pads": (1, 2, 3, 0)}), ((f32(2, 3, 5, 7), scalar(0.5)), {"pads": (0, 0, 1, 1, 0, 0, 2, 1)}),
    ((f32(2, 3, 5, 7),), {"pads": (1, 2), "axes": (3,)}), ((f32(5, 7),), {"pads": (2, 1, 1, 3), "mode": "reflect"}),
    ((f32(5, 7),), {"pads": (2, 1, 1, 3), "mode": "edge"}), ((f32(5, 7),), {"pads": (2, 1, 1, 3), "mode": "wrap"}),
    ((f32(5, 7),), {"pads": (-1, 1, 0, -2)}))))


def _expand(types: Types, attrs: Attrs, outputs: int) -> tuple[TensorType, ...]:
    x = given(types[0])
    return (TensorType(x.dtype, broadcast(x.shape, dims(attrs, "shape") or ())),)


declare(Op("Expand", "broadcast to the shape", ("x",), _expand, {"shape": REQUIRED}, promoted={1: "shape"}, samples=(
    ((f32(3, 1),), {"shape": (2, 3, 5)}), ((f32(1, 1, 64),), {"shape": (4, 1, 1)}), ((f32(),), {"shape": (2, 3)}),
    ((f32(4, 5),), {"shape": (1,)}), ((i64(1),), {"shape": (7,)}))))


def _tile(types: Types, attrs: Attrs, outputs: int) -> tuple[TensorType, ...]:
    x, repeats = given(types[0]), dims(attrs, "repeats") or ()
    if len(repeats) != x.rank:
        raise ValueError(f"repeats has {len(repeats)} entries, {x.rank} are needed")
    return (TensorType(x.dtype, tuple(d * r for d, r in zip(x.shape, repeats, strict=True))),)


declare(Op("Tile", "repeated along each axis", ("x",), _tile, {"repeats": REQUIRED}, promoted={1: "repeats"}, samples=(
    ((f32(2, 3),), {"repeats": (2, 3)}), ((f32(2, 3, 5),), {"repeats": (1, 4, 1)}), ((f32(7),), {"repeats": (2,)}))))


def _blocks(inward: bool) -> object:
    def infer(types: Types, attrs: Attrs, outputs: int) -> tuple[TensorType, ...]:
        x, b = given(types[0]), integer(attrs, "blocksize")
        if x.rank != 4 or b < 1:
            raise ValueError("takes [N, C, H, W] and a positive blocksize")
        n, c, h, w = x.shape
        for d in ((h, w) if inward else (c,)):
            if isinstance(d, int) and d % (b if inward else b * b):
                raise ValueError(f"{d} does not divide into blocks of {b}")
        shape = (n, c * b * b, h // b, w // b) if inward else (n, c // (b * b), h * b, w * b)
        return (TensorType(x.dtype, shape),)
    return infer


declare(Op("DepthToSpace", "channels spread over blocks of the plane", ("x",), _blocks(False),  # type: ignore[arg-type]
           {"blocksize": REQUIRED, "mode": "DCR"}, samples=(
    ((f32(2, 12, 3, 5),), {"blocksize": 2}), ((f32(1, 18, 3, 5),), {"blocksize": 3, "mode": "CRD"}))))
declare(Op("SpaceToDepth", "blocks of the plane gathered into channels", ("x",), _blocks(True),  # type: ignore[arg-type]
           {"blocksize": REQUIRED, "mode": "DCR"}, samples=(
    ((f32(2, 3, 4, 6),), {"blocksize": 2}), ((f32(1, 2, 9, 6),), {"blocksize": 3}))))


def _trilu(types: Types, attrs: Attrs, outputs: int) -> tuple[TensorType, ...]:
    if given(types[0]).rank < 2:
        raise ValueError("takes matrices")
    return (given(types[0]),)


declare(Op("Trilu", "the upper or lower triangle from diagonal k, else 0", ("x",), _trilu, {"k": (0,), "upper": 1},
           promoted={1: "k"}, samples=(
    ((f32(5, 7),), {}), ((f32(2, 6, 6),), {"upper": 0}), ((f32(5, 7),), {"k": (1,)}),
    ((i64(5, 5),), {"k": (-1,), "upper": 0}))))


__all__ = ["clamps", "slices_of", "split_sizes"]
