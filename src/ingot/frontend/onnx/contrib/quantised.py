"""ONNX Runtime's quantised ops: dequantised, computed, quantised again; products of integers stay integers."""
from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np

from ingot.errors import UnsupportedError
from ingot.frontend.onnx.contrib.maker import Maker

Found = tuple[str, ...]


def _real(m: Maker, x: int, scale: int, zero: int, **attrs: object) -> str:
    """An operand as numbers."""
    zeros = [m.input(zero)] if m.has(zero) else []
    return m("DequantizeLinear", m.input(x), m.input(scale), *zeros, **attrs)


def _quantised(m: Maker, x: str, scale: int, zero: int, like: int = 0) -> str:
    """Numbers in a result's own scale; without a zero point, in the element type of an operand."""
    if m.has(zero):
        return m("QuantizeLinear", x, m.input(scale), m.input(zero))
    none = m.constant(np.zeros((), m.dtype(m.input(like)).numpy))
    return m("QuantizeLinear", x, m.input(scale), none)


def _binary(op: str) -> Callable[[Maker], Found]:
    def make(m: Maker) -> Found:
        return (_quantised(m, m(op, _real(m, 0, 1, 2), _real(m, 3, 4, 5)), 6, 7),)
    return make


def _unary(op: str, *names: str) -> Callable[[Maker], Found]:
    def make(m: Maker) -> Found:
        attrs = {k: v for k, v in m.attrs.items() if k in names}
        return (_quantised(m, m(op, _real(m, 0, 1, 2), **attrs), 3, 4),)
    return make


def _pooled(op: str) -> Callable[[Maker], Found]:
    def make(m: Maker) -> Found:
        x, last = _real(m, 0, 1, 2), bool(m.integer("channels_last", 0))
        rank = m.type(x).rank
        if last:
            x = m.transpose(x, 0, rank - 1, *range(1, rank - 1))
        made = m(op, x, **{k: v for k, v in m.attrs.items() if k != "channels_last"})
        if last:
            made = m.transpose(made, 0, *range(2, rank), 1)
        return (_quantised(m, made, 3, 4),)
    return make


def _softmax(m: Maker) -> Found:
    x, axis = _real(m, 0, 1, 2), m.integer("axis", -1)
    if m.integer("opset", 13) < 13 and axis % m.type(x).rank != m.type(x).rank - 1:
        raise UnsupportedError("QLinearSoftmax of an old opset over several axes", mend="quantise a newer opset")
    return (_quantised(m, m("Softmax", x, axis=axis), 3, 4),)


def _concat(m: Maker) -> Found:
    parts = [_real(m, k, k + 1, k + 2) for k in range(2, len(m.inputs), 3)]
    return (_quantised(m, m("Concat", *parts, axis=m.integer("axis")), 0, 1, like=2),)


def _where(m: Maker) -> Found:
    return (_quantised(m, m("Where", m.input(0), _real(m, 1, 2, 3), _real(m, 4, 5, 6)), 7, 8, like=1),)


def _gemm(m: Maker) -> Found:
    """QGemm: its bias is in the product's scale; without a scale for the result it gives numbers."""
    per_column = {"axis": 0 if m.integer("transB", 0) else 1} if m.type(m.input(4)).rank else {}
    made = m("Gemm", _real(m, 0, 1, 2), _real(m, 3, 4, 5, **per_column),
             **{k: v for k, v in m.attrs.items() if k in ("alpha", "transA", "transB")})
    if m.has(6):
        scale = m("Mul", m.input(1), m.input(4))
        made = m("Add", made, m("Mul", m.cast(m.input(6), "f32"), scale))
    return (_quantised(m, made, 7, 8),) if m.has(7) else (made,)


def _scaled(m: Maker, product: str, scale: str, bias: int) -> str:
    made = m("Mul", m.cast(product, "f32"), scale)
    return m("Add", made, m.input(bias)) if m.has(bias) else made


def _dynamic_matmul(m: Maker) -> Found:
    """A is quantised by its own range; the product is one of integers."""
    x, scale, zero = m.several("DynamicQuantizeLinear", 3, m.input(0))
    zeros = [m.input(3)] if m.has(3) else []
    product = m("MatMulInteger", x, m.input(1), zero, *zeros)
    return (_scaled(m, product, m("Mul", scale, m.input(2)), 4),)


def _integer_to_float(m: Maker) -> Found:
    zeros = [m.input(4) if m.has(4) else "", *([m.input(5)] if m.has(5) else [])]
    product = m("MatMulInteger", m.input(0), m.input(1), *(zeros if any(zeros) else []))
    return (_scaled(m, product, m("Mul", m.input(2), m.input(3)), 6),)


def _bits(packed: np.ndarray, bits: int, count: int) -> np.ndarray:
    """The numbers that lie packed in the last axis's bytes, the lowest bits first."""
    each = 8 // bits
    shifts = np.arange(each, dtype=np.uint8) * bits
    flat = (packed[..., None] >> shifts) & ((1 << bits) - 1)
    return flat.reshape(*packed.shape[:-1], -1)[..., :count].astype(np.float32)


def _matmul_by_bits(m: Maker) -> Found:
    """MatMulNBits: weights [N, K] in blocks along K, each with a scale and a zero point. They become numbers here."""
    depth, columns = m.integer("K"), m.integer("N")
    bits, block = m.integer("bits", 4), m.integer("block_size")
    packed, scales = m.array_of(m.input(1)), m.array_of(m.input(2))
    if packed is None or scales is None or bits not in (2, 4, 8) or packed.dtype != np.uint8:
        raise UnsupportedError(f"MatMulNBits with {bits} bits, or weights that are no constant bytes",
                               mend="export with constant weights of 2, 4 or 8 bits")
    blocks = -(-depth // block)
    codes = _bits(packed.reshape(columns, blocks, -1), bits, block)
    zeros: np.ndarray = np.full((columns, blocks), 1 << (bits - 1), np.float32)
    if m.has(3):
        told = m.array_of(m.input(3))
        if told is None:
            raise UnsupportedError("MatMulNBits with zero points that are no constant", mend="export them as constants")
        zeros = (_bits(told.reshape(columns, -1), bits, blocks) if told.dtype == np.uint8
                 else told.reshape(columns, blocks).astype(np.float32))
    scale = scales.reshape(columns, blocks).astype(np.float32)
    if m.has(4):
        order = m.array_of(m.input(4))
        if order is None:
            raise UnsupportedError("MatMulNBits with a g_idx that is no constant", mend="export it as a constant")
        flat = codes.reshape(columns, -1)[:, :depth]
        weights = (flat - zeros[:, order[:depth]]) * scale[:, order[:depth]]
    else:
        weights = ((codes - zeros[..., None]) * scale[..., None]).reshape(columns, -1)[:, :depth]
    kind = m.dtype(m.input(0)).numpy
    made = m("MatMul", m.input(0), m.constant(np.ascontiguousarray(weights.T).astype(kind)))
    return (m("Add", made, m.input(5)) if m.has(5) else made,)


def _same_name(op: str) -> Callable[[Maker], Found]:
    def make(m: Maker) -> Found:
        return (m(op, *(i for i in m.inputs if i), **m.attrs),)
    return make


QUANTISED: Mapping[str, Callable[[Maker], Found]] = {
    "DequantizeLinear": _same_name("DequantizeLinear"), "DynamicQuantizeMatMul": _dynamic_matmul,
    "MatMulIntegerToFloat": _integer_to_float, "MatMulNBits": _matmul_by_bits, "QGemm": _gemm,
    "QLinearAdd": _binary("Add"), "QLinearAveragePool": _pooled("AveragePool"), "QLinearConcat": _concat,
    "QLinearGlobalAveragePool": _pooled("GlobalAveragePool"), "QLinearLeakyRelu": _unary("LeakyRelu", "alpha"),
    "QLinearMul": _binary("Mul"), "QLinearSigmoid": _unary("Sigmoid"), "QLinearSoftmax": _softmax,
    "QLinearWhere": _where, "QuantizeLinear": _same_name("QuantizeLinear")}
