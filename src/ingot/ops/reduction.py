"""Reductions, running sums, and choosing by value."""
from __future__ import annotations

from ingot.graph import I64, Dim, TensorType
from ingot.ops.op import REQUIRED, Attrs, Op, Sample, Types, declare
from ingot.ops.samples import f32, f64, i32, i64, values
from ingot.ops.shapes import axes_of, axis_of, dims, given, integer, ints


def reduced_axes(attrs: Attrs, rank: int) -> tuple[int, ...]:
    """The axes a Reduce op sums over, counted from the front, sorted; none when it leaves its input as it is."""
    axes = ints(attrs, "axes")
    if not axes:
        return () if attrs.get("noop_with_empty_axes") else tuple(range(rank))
    return tuple(sorted(axes_of(axes, rank)))


def _reduce(types: Types, attrs: Attrs, outputs: int) -> tuple[TensorType, ...]:
    x = given(types[0])
    axes = reduced_axes(attrs, x.rank)
    if attrs["keepdims"]:
        shape: tuple[Dim, ...] = tuple(1 if i in axes else d for i, d in enumerate(x.shape))
    else:
        shape = tuple(d for i, d in enumerate(x.shape) if i not in axes)
    return (TensorType(x.dtype, shape),)


_REDUCE: tuple[Sample, ...] = (
    ((f32(4, 33),), {"axes": (1,)}), ((f32(4, 33),), {"axes": (0,), "keepdims": 0}), ((f32(2, 3, 5, 7),), {}),
    ((f32(2, 3, 5, 7),), {"axes": (2, 3)}), ((f32(2, 3, 5, 7),), {"axes": (-3, 0), "keepdims": 0}),
    ((f32(2, 3, 5, 7),), {"axes": (1, 3)}), ((f32(1027,),), {"keepdims": 0}), ((f32(3, 1, 5),), {"axes": (1,)}),
    ((f32(4, 33),), {"noop_with_empty_axes": 1}), ((f64(4, 5),), {"axes": (-1,)}), ((f32(2, 197, 64),), {"axes": (1,)}),
)
_POSITIVE: tuple[Sample, ...] = tuple(
    ((values(*x.shape, low=0.1, high=2.0),), a)  # type: ignore[union-attr]
    for (x,), a in _REDUCE if not a.get("noop_with_empty_axes"))
for _name, _doc in {
    "ReduceL1": "the sum of magnitudes", "ReduceL2": "the root of the sum of squares", "ReduceLogSum": "log of the sum",
    "ReduceLogSumExp": "log of the sum of exponentials", "ReduceMax": "the greatest", "ReduceMean": "the mean",
    "ReduceMin": "the least", "ReduceProd": "the product", "ReduceSum": "the sum",
    "ReduceSumSquare": "the sum of squares",
}.items():
    declare(Op(_name, f"{_doc} over the axes (all, when none are given)", ("x",), _reduce,
               {"axes": None, "keepdims": 1, "noop_with_empty_axes": 0}, promoted={1: "axes"},
               samples=(_POSITIVE if _name == "ReduceLogSum" else _REDUCE)
               + ((((i64(3, 4),), {"axes": (1,)}), ((i32(3, 4),), {}))
                  if _name in ("ReduceMax", "ReduceMin", "ReduceProd", "ReduceSum") else ())))


def _arg(types: Types, attrs: Attrs, outputs: int) -> tuple[TensorType, ...]:
    x = given(types[0])
    axis = axis_of(integer(attrs, "axis"), x.rank)
    if x.shape[axis] == 0:
        raise ValueError(f"axis {axis} has no elements, so none is the greatest or least")
    kept = (1,) if attrs["keepdims"] else ()
    return (TensorType(I64, (*x.shape[:axis], *kept, *x.shape[axis + 1:])),)


for _name, _doc in {"ArgMax": "greatest", "ArgMin": "least"}.items():
    declare(Op(_name, f"where along the axis the (first, or last) {_doc} value lies", ("x",), _arg,
               {"axis": 0, "keepdims": 1, "select_last_index": 0}, samples=(
        ((f32(4, 33),), {"axis": 1}), ((f32(4, 33),), {}), ((f32(2, 3, 5),), {"axis": -2, "keepdims": 0}),
        ((f32(19),), {"keepdims": 0}), ((f32(4, 5),), {"axis": 1, "select_last_index": 1}),
        ((i64(4, 9),), {"axis": 1}))))


def _top(types: Types, attrs: Attrs, outputs: int) -> tuple[TensorType, ...]:
    x, k = given(types[0]), dims(attrs, "k") or ()
    axis = axis_of(integer(attrs, "axis"), x.rank)
    if len(k) != 1:
        raise ValueError(f"k must be one number, got {k}")
    size = x.shape[axis]
    if isinstance(k[0], int) and isinstance(size, int) and not 0 <= k[0] <= size:
        raise ValueError(f"k is {k[0]}, the axis has {size}")
    shape = (*x.shape[:axis], k[0], *x.shape[axis + 1:])
    return (TensorType(x.dtype, shape), TensorType(I64, shape))[:outputs]


declare(Op("TopK", "the k greatest (or least) values along the axis, and where they lie", ("x",), _top,
           {"k": REQUIRED, "axis": -1, "largest": 1, "sorted": 1}, promoted={1: "k"}, outputs=2, samples=(
    ((f32(4, 33),), {"k": (5,)}), ((f32(2, 9, 3),), {"k": (2,), "axis": 1}), ((f32(4, 9),), {"k": (3,), "largest": 0}),
    ((f32(7),), {"k": (7,)}))))


def _running(types: Types, attrs: Attrs, outputs: int) -> tuple[TensorType, ...]:
    x, axis = given(types[0]), ints(attrs, "axis") or ()
    if len(axis) != 1:
        raise ValueError(f"axis must be one number, got {axis}")
    axis_of(axis[0], x.rank)
    return (x,)


for _name, _doc in {"CumSum": "running sums", "CumProd": "running products"}.items():
    declare(Op(_name, f"{_doc} along the axis", ("x",), _running, {"axis": REQUIRED, "exclusive": 0, "reverse": 0},
               promoted={1: "axis"}, samples=(
        ((f32(4, 9),), {"axis": (1,)}), ((f32(4, 9),), {"axis": (0,), "reverse": 1}),
        ((f32(2, 3, 5),), {"axis": (-1,), "exclusive": 1}), ((i64(3, 4),), {"axis": (1,)}))))
