"""Products and convolutions of bf16, summed and left in f32: what a CPU's dot products of 16-bit floats compute; and
products of f8e4m3, as a GPU's matrix units do them.

ONNX has no such ops: its own round the sums to bf16, too.
"""
from __future__ import annotations

from dataclasses import replace

import numpy as np

from ingot.graph import BF16, F8E4M3, F32, TensorType
from ingot.ops.convolution import WINDOW, convolved
from ingot.ops.evaluation import conv
from ingot.ops.linear import product_shape
from ingot.ops.op import Attrs, Op, Sample, Types, declare
from ingot.ops.samples import bf16, short_values, values
from ingot.ops.shapes import given

Arrays = list[np.ndarray | None]


def _short_matmul(types: Types, attrs: Attrs, outputs: int) -> tuple[TensorType, ...]:
    for t in map(given, types):
        if t.dtype not in (BF16, F8E4M3) or t.dtype != given(types[0]).dtype:
            raise ValueError(f"it takes bf16, or f8e4m3, not {t.dtype}")
    return (TensorType(F32, product_shape(given(types[0]).shape, given(types[1]).shape)),)


def _product(arrays: Arrays, attrs: Attrs) -> list[np.ndarray]:
    first = arrays[0]
    wide = np.float64 if first is not None and first.dtype == F8E4M3.numpy else np.float32
    a, b = (np.asarray(x, wide) for x in arrays)
    return [np.matmul(a, b).astype(np.float32)]


declare(Op("ShortMatMul", "product of bf16 or of f8e4m3, summed and left in f32", ("a", "b"), _short_matmul,
           evaluate=_product, samples=(
    ((bf16(5, 33), short_values(33, 17)), {}), ((bf16(7, 40), short_values(40, 24)), {}),
    ((bf16(3, 5, 33), short_values(33, 131)), {}), ((bf16(61, 300), short_values(300, 70)), {}),
    ((bf16(1, 64), short_values(64, 100)), {}), ((bf16(128, 256), short_values(256, 192)), {}),
    ((bf16(4, 8), bf16(8, 6)), {}))))


def _convolution(arrays: Arrays, attrs: Attrs) -> list[np.ndarray]:
    made = conv(tuple(None if a is None else np.asarray(a, np.float32) for a in arrays), attrs)
    if made is None:
        raise ValueError("an operand is absent")
    return made


def _short_conv(types: Types, attrs: Attrs, outputs: int) -> tuple[TensorType, ...]:
    x, weight = given(types[0]), given(types[1])
    if x.dtype != BF16 or weight.dtype != BF16:
        raise ValueError(f"it takes bf16, not {x.dtype} by {weight.dtype}")
    (made,) = convolved((replace(x, dtype=F32), replace(weight, dtype=F32), *types[2:]), attrs, outputs)
    return (made,)


def _s(x: tuple[int, ...], w: tuple[int, ...], bias: bool = True, layout: str = "c16", **attrs: object) -> Sample:
    return ((TensorType(BF16, x, layout), short_values(*w), *((values(w[0]),) if bias else ())),
            {**attrs, "layout": layout})


declare(Op("ShortConv", "convolution of bf16, summed and left in f32; the bias is f32", ("x", "weight", "bias?"),
           _short_conv, {**WINDOW, "group": 1, "layout": ""}, blocked=True, evaluate=_convolution,
           samples=(
    ((bf16(1, 3, 6, 6), short_values(4, 3, 3, 3), values(4)), {"pads": (1, 1, 1, 1)}),
    _s((2, 16, 14, 14), (32, 16, 3, 3), pads=(1, 1, 1, 1)), _s((1, 22, 9, 9), (37, 22, 3, 3), strides=(2, 2)),
    _s((2, 64, 7, 7), (48, 64, 1, 1), False), _s((1, 40, 9, 9), (70, 40, 1, 1), strides=(2, 2)),
    _s((1, 32, 8, 8), (64, 16, 3, 3), group=2, pads=(1, 1, 1, 1)),
    _s((2, 32, 6, 6), (24, 32, 1, 1), layout="c8"),
    ((TensorType(BF16, (2, 4, 23, 21), "c4"), short_values(40, 4, 7, 7), values(40)),
     {"layout": "c16", "strides": (2, 2), "pads": (3, 3, 3, 3)}))))
