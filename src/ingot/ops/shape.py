"""Ops on shapes, ops that make tensors from shapes, and Reorder, which changes how a tensor lies in memory."""
from __future__ import annotations

from dataclasses import replace

from ingot.graph import I64, LAYOUTS, Dim, TensorType
from ingot.ops.op import REQUIRED, Attrs, Op, Types, declare
from ingot.ops.samples import f32
from ingot.ops.shapes import dims, dtype_named, given, integer, word


def shape_span(attrs: Attrs, rank: int) -> tuple[int, int]:
    """The axes [start, end) a Shape op lists, clamped as ONNX says."""
    start, end = integer(attrs, "start"), attrs.get("end")
    places = range(rank)[slice(start, end if end is None else integer(attrs, "end"))]
    return places.start, max(places.stop, places.start)


def _shape(types: Types, attrs: Attrs, outputs: int) -> tuple[TensorType, ...]:
    start, end = shape_span(attrs, given(types[0]).rank)
    return (TensorType(I64, (end - start,)),)


def _size(types: Types, attrs: Attrs, outputs: int) -> tuple[TensorType, ...]:
    return (TensorType(I64, ()),)


def _constant_of_shape(types: Types, attrs: Attrs, outputs: int) -> tuple[TensorType, ...]:
    return (TensorType(dtype_named(attrs, "dtype"), dims(attrs, "shape") or ()),)


def range_length(attrs: Attrs) -> Dim:
    """How many numbers a Range makes. Raises ValueError."""
    found = []
    for name in ("start", "limit", "delta"):
        value = attrs[name]
        if not isinstance(value, (tuple, list)) or len(value) != 1:
            raise ValueError(f"{name} must be one number, got {value!r}")
        found.append(value[0])
    if any(isinstance(v, float) for v in found):
        start, limit, delta = (float(v) for v in found)
        if delta == 0:
            raise ValueError("delta is 0")
        return max(int(-(-(limit - start) // delta)), 0)
    first, last, step = (d for name in ("start", "limit", "delta") for d in (dims(attrs, name) or ()))
    if step == 0:
        raise ValueError("delta is 0")
    length = -((first - last) // step)
    return max(length, 0) if isinstance(length, int) else length


def _range(types: Types, attrs: Attrs, outputs: int) -> tuple[TensorType, ...]:
    return (TensorType(dtype_named(attrs, "dtype"), (range_length(attrs),)),)


def _reorder(types: Types, attrs: Attrs, outputs: int) -> tuple[TensorType, ...]:
    x, layout = given(types[0]), word(attrs, "layout")
    if layout not in LAYOUTS:
        raise ValueError(f"unknown layout {layout!r}")
    if layout and x.rank < 3:
        raise ValueError(f"{x} has no spatial axes, so no layout of channels")
    return (replace(x, layout=layout),)


def _eye(types: Types, attrs: Attrs, outputs: int) -> tuple[TensorType, ...]:
    x = given(types[0])
    if x.rank != 2:
        raise ValueError("takes a matrix")
    return (TensorType(x.dtype if attrs["dtype"] is None else dtype_named(attrs, "dtype"), x.shape),)


declare(Op("Shape", "the sizes of axes start to end, as i64", ("x",), _shape, {"start": 0, "end": None}, samples=(
    ((f32(2, 3, 5),), {}), ((f32(2, 3, 5),), {"start": 1}), ((f32(2, 3, 5),), {"start": -2, "end": -1}),
    ((f32(),), {}))))
declare(Op("Size", "the number of elements, as i64", ("x",), _size, samples=(((f32(2, 3),), {}), ((f32(),), {}))))
declare(Op("ConstantOfShape", "`value` everywhere, of element type `dtype`", (), _constant_of_shape,
           {"shape": REQUIRED, "value": 0.0, "dtype": "f32"}, promoted={0: "shape"}, samples=(
    ((), {"shape": (2, 3)}), ((), {"shape": (4,), "value": 7, "dtype": "i64"}), ((), {"shape": (), "value": 1.5}),
    ((), {"shape": (1, 1, 5, 5), "value": True, "dtype": "bool"}))))
declare(Op("Range", "start, start + delta, ... up to before limit, of element type `dtype`", (), _range,
           {"start": REQUIRED, "limit": REQUIRED, "delta": REQUIRED, "dtype": "i64", "stash_type": 1},
           promoted={0: "start", 1: "limit", 2: "delta"}, samples=(
    ((), {"start": (0,), "limit": (7,), "delta": (1,)}), ((), {"start": (9,), "limit": (1,), "delta": (-3,)}),
    ((), {"start": (0.0,), "limit": (1.0,), "delta": (0.3,), "dtype": "f32"}),
    ((), {"start": (5,), "limit": (2,), "delta": (1,), "dtype": "i32"}))))
declare(Op("EyeLike", "ones on diagonal k, of x's shape", ("x",), _eye, {"dtype": None, "k": 0}, samples=(
    ((f32(4, 4),), {}), ((f32(3, 5),), {"k": 1, "dtype": "i64"}))))
declare(Op("Reorder", "x itself, lying in memory in `layout`", ("x",), _reorder, {"layout": REQUIRED}, blocked=True,
           evaluate=lambda arrays, attrs: [a for a in arrays if a is not None], samples=(
    ((f32(2, 19, 5, 7),), {"layout": "c16"}), ((f32(2, 19, 5, 7, layout="c16"),), {"layout": ""}),
    ((f32(2, 32, 3, 3, layout="c16"),), {"layout": "c8"}), ((f32(1, 3, 9),), {"layout": "c16"}),
    ((f32(1, 16, 2, 3, 4),), {"layout": "c8"}))))


def _center(types: Types, attrs: Attrs, outputs: int) -> tuple[TensorType, ...]:
    x, wanted = given(types[0]), dims(attrs, "shape") or ()
    named = dims(attrs, "axes")
    axes = tuple(range(x.rank)) if named is None else tuple(int(str(a)) % x.rank for a in named)
    if len(axes) != len(wanted):
        raise ValueError(f"shape has {len(wanted)} entries, {len(axes)} are needed")
    shape = list(x.shape)
    for a, d in zip(axes, wanted, strict=True):
        shape[a] = d
    return (TensorType(x.dtype, tuple(shape)),)


declare(Op("CenterCropPad", "cropped or padded about the centre to the shape", ("x",), _center,
           {"shape": REQUIRED, "axes": None}, promoted={1: "shape"}, samples=(
    ((f32(6, 9),), {"shape": (4, 11)}), ((f32(2, 5, 7),), {"shape": (4, 4), "axes": (1, 2)}))))
