"""Ops that pick or place elements by computed positions."""
from __future__ import annotations

from ingot.graph import I32, I64, Dim, TensorType
from ingot.ops.op import REQUIRED, Attrs, Op, Types, declare
from ingot.ops.samples import f32, i64, indices, scalar, values
from ingot.ops.shapes import axis_of, dims, given, integer, same_dim, same_dtype


def _positions(t: TensorType) -> None:
    if t.dtype not in (I64, I32):
        raise ValueError(f"positions are i64 or i32, not {t.dtype}")


def _gather(types: Types, attrs: Attrs, outputs: int) -> tuple[TensorType, ...]:
    x, at = given(types[0]), given(types[1])
    axis = axis_of(integer(attrs, "axis"), x.rank)
    _positions(at)
    return (TensorType(x.dtype, (*x.shape[:axis], *at.shape, *x.shape[axis + 1:])),)


declare(Op("Gather", "slices of x along the axis, at the positions", ("x", "indices"), _gather, {"axis": 0}, samples=(
    ((f32(9, 5), indices(-9, 9, 4)), {}), ((f32(100, 64), indices(0, 100, 2, 17)), {}),
    ((f32(3, 7, 5), indices(0, 7, 4)), {"axis": 1}), ((f32(2, 7, 5), scalar(0, "int64")), {"axis": 1}),
    ((f32(4, 9), indices(0, 9, 2, 3)), {"axis": -1}), ((i64(9), indices(0, 9, 3)), {}),
    ((f32(9, 5), indices(0, 9, 4, dtype="int32")), {}), ((f32(9), scalar(-1, "int64")), {}))))


def _gather_elements(types: Types, attrs: Attrs, outputs: int) -> tuple[TensorType, ...]:
    x, at = given(types[0]), given(types[1])
    axis_of(integer(attrs, "axis"), x.rank)
    _positions(at)
    if at.rank != x.rank:
        raise ValueError("positions and data have different ranks")
    return (TensorType(x.dtype, at.shape),)


declare(Op("GatherElements", "x at each position along the axis, elsewhere in place", ("x", "indices"),
           _gather_elements, {"axis": 0}, samples=(
    ((f32(5, 7), indices(-5, 5, 3, 7)), {}), ((f32(5, 7), indices(0, 7, 5, 2)), {"axis": 1}),
    ((f32(2, 5, 3), indices(0, 5, 2, 4, 3)), {"axis": -2}))))


def _gather_nd(types: Types, attrs: Attrs, outputs: int) -> tuple[TensorType, ...]:
    x, at, batch = given(types[0]), given(types[1]), integer(attrs, "batch_dims")
    if not at.rank or not isinstance(depth := at.shape[-1], int):
        raise ValueError("positions need a known last size")
    if not 0 <= batch < min(x.rank, at.rank) or batch + depth > x.rank:
        raise ValueError(f"positions {at} do not fit {x}")
    return (TensorType(x.dtype, (*at.shape[:-1], *x.shape[batch + depth:])),)


declare(Op("GatherND", "slices of x at the positions along its first axes", ("x", "indices"), _gather_nd,
           {"batch_dims": 0}, samples=(
    ((f32(5, 7), indices(0, 5, 4, 2)), {}), ((f32(5, 7, 3), indices(0, 5, 2, 4, 1)), {}),
    ((f32(2, 5, 7), indices(0, 5, 2, 3, 1)), {"batch_dims": 1}))))


def _scatter(types: Types, attrs: Attrs, outputs: int) -> tuple[TensorType, ...]:
    x, at = given(types[0]), given(types[1])
    same_dtype((types[0], types[2]))
    _positions(at)
    if "axis" in attrs:
        axis_of(integer(attrs, "axis"), x.rank)
        if given(types[2]).rank != at.rank or at.rank != x.rank:
            raise ValueError("data, positions and updates have different ranks")
    return (x,)


_UNIQUE = indices(0, 5, 3, 1).argsort(0)
declare(Op("ScatterElements", "x with the updates put at each position along the axis", ("x", "indices", "updates"),
           _scatter, {"axis": 0, "reduction": "none"}, samples=(
    ((f32(5, 7), indices(0, 1, 1, 7), f32(1, 7)), {}), ((f32(3, 7), _UNIQUE, f32(3, 1)), {"axis": 1}),
    ((f32(5, 7), indices(0, 5, 3, 7), f32(3, 7)), {"reduction": "add"}),
    ((f32(5, 7), indices(0, 5, 3, 7), f32(3, 7)), {"reduction": "max"}))))
declare(Op("ScatterND", "x with the updates put at the positions along its first axes", ("x", "indices", "updates"),
           _scatter, {"reduction": "none"}, samples=(
    ((f32(5, 7), indices(0, 5, 1, 1), f32(1, 7)), {}),
    ((f32(5, 7), indices(0, 5, 4, 2), f32(4)), {"reduction": "add"}))))


def _one_hot(types: Types, attrs: Attrs, outputs: int) -> tuple[TensorType, ...]:
    at, choices, depth = given(types[0]), given(types[1]), dims(attrs, "depth") or ()
    if len(depth) != 1:
        raise ValueError(f"depth must be one number, got {depth}")
    axis = axis_of(integer(attrs, "axis"), at.rank + 1)
    return (TensorType(choices.dtype, (*at.shape[:axis], depth[0], *at.shape[axis:])),)


declare(Op("OneHot", "values[1] at each position, values[0] elsewhere, on a new axis", ("indices", "values"), _one_hot,
           {"axis": -1, "depth": REQUIRED}, promoted={1: "depth"}, samples=(
    ((indices(-5, 5, 7), values(2)), {"depth": (5,)}), ((indices(0, 5, 2, 3), values(2)), {"depth": (5,), "axis": 1}))))


def _reverse(types: Types, attrs: Attrs, outputs: int) -> tuple[TensorType, ...]:
    x, lengths = given(types[0]), given(types[1])
    batch, time = integer(attrs, "batch_axis"), integer(attrs, "time_axis")
    if {batch, time} != {0, 1} or x.rank < 2 or lengths.rank != 1:
        raise ValueError("batch_axis and time_axis are 0 and 1, lengths a vector")
    same_dim(x.shape[batch], lengths.shape[0], "the batch and the lengths")
    return (x,)


declare(Op("ReverseSequence", "the first `lengths` steps of each sequence in reverse", ("x", "lengths"), _reverse,
           {"batch_axis": 1, "time_axis": 0}, samples=(
    ((f32(4, 3), indices(1, 5, 3)), {}), ((f32(3, 4, 2), indices(1, 5, 3)), {"batch_axis": 0, "time_axis": 1}))))


def _grid(types: Types, attrs: Attrs, outputs: int) -> tuple[TensorType, ...]:
    x, grid = given(types[0]), given(types[1])
    if grid.rank != x.rank or x.rank < 3:
        raise ValueError("the grid and the input need one rank of at least 3")
    same_dim(grid.shape[-1], x.rank - 2, "coordinates in the grid and spatial axes")
    batch: Dim = same_dim(x.shape[0], grid.shape[0], "the batch")
    return (TensorType(x.dtype, (batch, x.shape[1], *grid.shape[1:-1])),)


declare(Op("GridSample", "x read at the grid's coordinates, interpolated", ("x", "grid"), _grid,
           {"align_corners": 0, "mode": "linear", "padding_mode": "zeros"}, samples=(
    ((f32(1, 2, 5, 6), f32(1, 3, 4, 2)), {}), ((f32(1, 2, 5, 6), f32(1, 3, 4, 2)), {"mode": "nearest"}),
    *(((f32(2, 3, 5, 6), f32(2, 3, 4, 2)), {"mode": m, "padding_mode": p, "align_corners": a}) for m, p, a in (
        ("linear", "border", 1), ("linear", "reflection", 0), ("cubic", "zeros", 0), ("cubic", "zeros", 1),
        ("nearest", "reflection", 1), ("nearest", "border", 0))),
    ((f32(1, 2, 3, 4, 5), f32(1, 2, 3, 2, 3)), {}),
    ((f32(1, 2, 3, 4, 5), f32(1, 2, 3, 2, 3)), {"mode": "nearest", "align_corners": 1}))))


def _tensor_scatter(types: Types, attrs: Attrs, outputs: int) -> tuple[TensorType, ...]:
    axis_of(integer(attrs, "axis"), given(types[0]).rank)
    return (given(types[0]),)


declare(Op("TensorScatter", "a cache with the update written at write_indices along the axis",
           ("cache", "update", "write_indices?"), _tensor_scatter, {"axis": -2, "mode": "linear"}, samples=(
    ((f32(2, 3, 8, 4), f32(2, 3, 2, 4), indices(0, 4, 2)), {}), ((f32(2, 3, 8, 4), f32(2, 3, 2, 4)), {}))))


def _roi(types: Types, attrs: Attrs, outputs: int) -> tuple[TensorType, ...]:
    x, rois = given(types[0]), given(types[1])
    return (TensorType(x.dtype, (rois.shape[0], x.shape[1], integer(attrs, "output_height"),
                                 integer(attrs, "output_width"))),)


declare(Op("RoiAlign", "regions of x pooled to one size", ("x", "rois", "batch_indices"), _roi,
           {"coordinate_transformation_mode": "half_pixel", "mode": "avg", "output_height": 1, "output_width": 1,
            "sampling_ratio": 0, "spatial_scale": 1.0}, samples=(
    ((f32(1, 2, 8, 8), values(3, 4, low=0, high=7), indices(0, 1, 3)), {"output_height": 2, "output_width": 2}),
    ((f32(2, 3, 8, 9), values(4, 4, low=-3, high=18), indices(0, 2, 4)), {
        "output_height": 3, "output_width": 2, "sampling_ratio": 2, "spatial_scale": 0.5, "mode": "max",
        "coordinate_transformation_mode": "output_half_pixel"}),
    ((f32(2, 3, 8, 9), values(4, 4, low=-3, high=9), indices(0, 2, 4)), {
        "output_height": 3, "output_width": 2, "coordinate_transformation_mode": "output_half_pixel"}))))
