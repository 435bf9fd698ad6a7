"""Ops between real numbers and their small integers."""
from __future__ import annotations

from ingot.graph import F32, U8, TensorType
from ingot.ops.op import Attrs, Op, Types, declare
from ingot.ops.samples import f32, i8, scalar, u8, values
from ingot.ops.shapes import dtype_named, given


def _quantize(types: Types, attrs: Attrs, outputs: int) -> tuple[TensorType, ...]:
    x = given(types[0])
    zero = types[2] if len(types) > 2 else None
    if attrs["output_dtype"] is not None:
        return (TensorType(dtype_named(attrs, "output_dtype"), x.shape),)
    return (TensorType(zero.dtype if zero is not None else U8, x.shape),)


def _dequantize(types: Types, attrs: Attrs, outputs: int) -> tuple[TensorType, ...]:
    dtype = given(types[1]).dtype if attrs["output_dtype"] is None else dtype_named(attrs, "output_dtype")
    return (TensorType(dtype, given(types[0]).shape),)


def _dynamic(types: Types, attrs: Attrs, outputs: int) -> tuple[TensorType, ...]:
    return (TensorType(U8, given(types[0]).shape), TensorType(F32, ()), TensorType(U8, ()))[:outputs]


declare(Op("QuantizeLinear", "round(x / scale) + zero_point, saturated", ("x", "scale", "zero_point?"), _quantize,
           {"axis": 1, "block_size": 0, "output_dtype": None, "precision": 0, "saturate": 1}, samples=(
    ((f32(4, 9), scalar(0.02), scalar(128, "uint8")), {}), ((f32(4, 9), scalar(0.02), scalar(0, "int8")), {}),
    ((f32(2, 3, 5), values(3, low=0.01, high=0.1), u8(3)), {"axis": 1}), ((f32(4, 9), scalar(0.02)), {}))))
declare(Op("DequantizeLinear", "(x - zero_point) * scale", ("x", "scale", "zero_point?"), _dequantize,
           {"axis": 1, "block_size": 0, "output_dtype": None}, samples=(
    ((u8(4, 9), scalar(0.02), scalar(128, "uint8")), {}), ((i8(4, 9), scalar(0.02)), {}),
    ((i8(2, 3, 5), values(3, low=0.01, high=0.1), i8(3)), {"axis": 1}))))
declare(Op("DynamicQuantizeLinear", "x as u8 over its own range, with the scale and zero point", ("x",), _dynamic,
           outputs=3, samples=(((f32(4, 9),), {}),)))
