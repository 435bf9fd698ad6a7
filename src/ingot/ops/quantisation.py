"""Ops between real numbers and their small integers."""
from __future__ import annotations

import numpy as np

from ingot.graph import F32, U8, TensorType
from ingot.ops.op import Attrs, Op, Types, declare
from ingot.ops.samples import SMALL_TYPES, f16, f32, i8, i32, scalar, tensor, u8, values
from ingot.ops.shapes import broadcast, dtype_named, given, layout_of

LARGEST_E4M3 = 448.0
FLOAT8 = ("f8e4m3", "f8e5m2", "f8e4m3fnuz", "f8e5m2fnuz")


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
    ((f32(2, 3, 5), values(3, low=0.01, high=0.1), u8(3)), {"axis": 1}), ((f32(4, 9), scalar(0.02)), {}),
    ((f16(4, 9), scalar(2**-5, "float16"), scalar(128, "uint8")), {}),
    ((f32(4, 9), scalar(0.4)), {"output_dtype": "i4"}),
    *(((f32(4, 9), scalar(0.3)), {"output_dtype": t}) for t in ("u4", "i2", "u2", "f4e2m1", "i16")),
    *(((f32(4, 9), scalar(0.003)), {"output_dtype": t, "saturate": s}) for t in FLOAT8 for s in (0, 1)),
    ((f32(3, 4), values(3, 4, low=0.01, high=0.1), u8(3, 4)), {"axis": 1, "block_size": 1}))))
declare(Op("DequantizeLinear", "(x - zero_point) * scale", ("x", "scale", "zero_point?"), _dequantize,
           {"axis": 1, "block_size": 0, "output_dtype": None}, samples=(
    ((u8(4, 9), scalar(0.02), scalar(128, "uint8")), {}), ((i8(4, 9), scalar(0.02)), {}),
    ((i8(2, 3, 5), values(3, low=0.01, high=0.1), i8(3)), {"axis": 1}), ((i32(4, 9), scalar(0.02)), {}),
    ((u8(4, 9), scalar(0.02, "float16")), {}), ((tensor("i4", 4, 9), scalar(0.02), tensor("i4")), {}),
    *(((tensor(t, 4, 9), scalar(0.02)), {}) for t in SMALL_TYPES if t != "f8e8m0"),
    ((u8(3, 4), values(3, 4, low=0.01, high=0.1), u8(3, 4)), {"axis": 1, "block_size": 1}))))
declare(Op("DynamicQuantizeLinear", "x as u8 over its own range, with the scale and zero point", ("x",), _dynamic,
           outputs=3, samples=(((f32(4, 9),), {}),)))


# --- what the compiler itself speaks: no ONNX op, pointwise by numpy's rules ------------------------------------------

def _spread(types: Types, attrs: Attrs, outputs: int) -> tuple[TensorType, ...]:
    x = given(types[0])
    shape = broadcast(*(t.shape for t in types if t is not None))
    if shape != x.shape:
        raise ValueError(f"the scale or zero point does not broadcast to {x}")
    return (TensorType(dtype_named(attrs, "output_dtype"), shape, layout_of(shape, types)),)


def _to_integers(arrays: list[np.ndarray | None], attrs: Attrs) -> list[np.ndarray]:
    """In f32, as the kernels do; NaN becomes the least integer, and stays one in f8e4m3."""
    x, factor, zero = (*arrays, None)[:3]
    if x is None or factor is None:
        raise ValueError("an operand is absent")
    dtype = dtype_named(attrs, "output_dtype").numpy
    if str(attrs["output_dtype"]) == "f8e4m3":
        with np.errstate(all="ignore"):
            real = np.asarray(x * factor if attrs["multiply"] else x / factor, np.float32)
            return [np.clip(real, -LARGEST_E4M3, LARGEST_E4M3).astype(dtype)]
    low, high = limits(str(attrs["output_dtype"]))
    with np.errstate(all="ignore"):
        found = np.rint(x * factor if attrs["multiply"] else x / factor).astype(np.float32)
        if zero is not None:
            found = found + zero.astype(np.float32)
        found = np.where(np.isnan(found), np.float32(low), np.clip(found, low, high))
    return [found.astype(dtype)]


def _to_reals(arrays: list[np.ndarray | None], attrs: Attrs) -> list[np.ndarray]:
    x, scale, zero = (*arrays, None)[:3]
    if x is None or scale is None:
        raise ValueError("an operand is absent")
    found = x.astype(np.float32)
    if zero is not None:
        found = found - zero.astype(np.float32)
    return [np.asarray(found * scale, np.float32)]


def limits(dtype: str) -> tuple[int, int]:
    """The least and the largest integer of a type named "u8", "i8", "u16", "i16"."""
    bits = int(dtype[1:])
    return (0, (1 << bits) - 1) if dtype[0] == "u" else (-(1 << bits - 1), (1 << bits - 1) - 1)


declare(Op("Quantize", "round(x / scale, or x * scale) + zero_point, saturated: pointwise, by numpy's rules; or f8e4m3",
           ("x", "scale", "zero_point?"), _spread, {"output_dtype": "u8", "multiply": 0}, pointwise=True, blocked=True,
           evaluate=_to_integers, samples=(
    ((f32(4, 33), scalar(0.02), scalar(128, "uint8")), {}),
    ((f32(2, 19, 3, 5, layout="c16"), scalar(40.0), scalar(3, "uint8")), {"multiply": 1}),
    ((f32(4, 33), scalar(0.02), scalar(-3, "int8")), {"output_dtype": "i8"}),
    ((f32(2, 3, 5), values(3, 1, low=0.01, high=0.1)), {}))))
declare(Op("Dequantize", "(x - zero_point) * scale: pointwise, by numpy's rules", ("x", "scale", "zero_point?"),
           _spread, {"output_dtype": "f32"}, pointwise=True, blocked=True, evaluate=_to_reals, samples=(
    ((u8(4, 33), scalar(0.02), scalar(128, "uint8")), {}), ((i8(4, 33), scalar(0.02)), {}),
    ((u8(2, 3, 5), values(3, 1, low=0.01, high=0.1), np.full((3, 1), 7, np.uint8)), {}))))
