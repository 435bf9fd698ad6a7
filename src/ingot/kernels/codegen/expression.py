"""One expression per pointwise op, on vectors in registers.

Booleans are bytes 0 and 1 in registers as in memory. f16 and bf16 are computed in f32 and rounded after each op, as
the reference does. Integers wrap; an integer division by zero gives 0.
"""
from __future__ import annotations

import math as numbers
import struct
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import reduce

from ingot.graph import BF16, BOOL, F16, F32, F64, I8, U8, DType
from ingot.kernels.codegen import math, small, trigonometry
from ingot.kernels.codegen.code import Code, Value, element_of, llvm_type, vector
from ingot.kernels.tactic import Step

SUPPORTED = frozenset(("f64", "f32", "f16", "bf16", "bool", "i64", "i32", "i16", "i8", "u64", "u32", "u16", "u8"))
_HALVES = (F16, BF16)


@dataclass(frozen=True)
class Call:
    """One op at work: its operands (None: absent) with their element types, and the element type of the result."""

    code: Code
    attrs: Mapping[str, object]
    args: tuple[Value | None, ...]
    dtypes: tuple[DType | None, ...]
    result: DType

    @property
    def x(self) -> Value:
        return self.arg(0)

    @property
    def y(self) -> Value:
        return self.arg(1)

    @property
    def dtype(self) -> DType:
        """The element type of the first operand."""
        found = self.dtypes[0]
        return found if found is not None else self.result

    def arg(self, i: int) -> Value:
        found = self.args[i]
        if found is None:
            raise ValueError(f"operand {i} is absent")
        return found

    def number(self, name: str, default: float) -> Value:
        """A number given as an attribute, in every lane."""
        return self.like(_single(self.attrs.get(name, default)))

    def like(self, number: float) -> Value:
        return math.like(self.code, self.x, number)

    @property
    def signed(self) -> bool:
        return self.dtype.kind not in ("uint", "bool")


Rule = Callable[[Call], Value]


def _single(number: object) -> float:
    """A number as ONNX keeps it in an attribute: in f32."""
    return float(struct.unpack("<f", struct.pack("<f", number))[0])


# --- booleans ---------------------------------------------------------------------------------------------------------

def to_mask(code: Code, flag: Value) -> Value:
    """Bytes 0 and 1 as i1."""
    return code.compare("!=", flag, math.like(code, flag, 0))


def from_mask(code: Code, mask: Value) -> Value:
    """i1 as bytes 0 and 1."""
    return code.convert("zext", mask, "i8")


def _logical(op: str) -> Rule:
    return lambda c: c.code.binary(op, c.x, c.y)


def _not(c: Call) -> Value:
    return c.code.binary("xor", c.x, c.like(1))


def _compared(floating: str, integer: str) -> Rule:
    def rule(c: Call) -> Value:
        if c.x.is_float:
            return from_mask(c.code, c.code.fcompare(floating, c.x, c.y))
        name = integer if integer in ("eq", "ne") else ("s" if c.signed else "u") + integer
        return from_mask(c.code, c.code.emit(vector("i1", c.x.lanes), f"icmp {name} {c.x}, {c.y.text}"))
    return rule


def _where(c: Call) -> Value:
    return c.code.select(to_mask(c.code, c.x), c.arg(1), c.arg(2))


# --- arithmetic -------------------------------------------------------------------------------------------------------

def _arithmetic(floating: str, integer: str) -> Rule:
    return lambda c: c.code.binary(floating if c.x.is_float else integer, c.x, c.y)


def _divide(c: Call) -> Value:
    return c.code.fdiv(c.x, c.y) if c.x.is_float else quotient(c)


def quotient(c: Call) -> Value:
    """Integer division, truncated as in C; 0 for a zero divisor, and wrapped for the one that overflows."""
    code, lanes, bits = c.code, c.x.lanes, c.dtype.bits
    if bits <= 32:
        # exact: a quotient of 32-bit integers is further from the next integer than f64's rounding
        into, back = ("sitofp", "fptosi") if c.signed else ("uitofp", "fptoui")
        zero = code.compare("==", c.y, c.like(0))
        safe = code.select(zero, c.like(1), c.y)
        ratio = code.fdiv(code.convert(into, c.x, "double"), code.convert(into, safe, "double"))
        whole = code.convert("trunc", code.convert(back, ratio, "i64"), c.x.element) if bits == 32 else \
            code.convert("trunc", code.convert(back, ratio, "i32"), c.x.element)
        return code.select(zero, c.like(0), whole)
    zero = code.compare("==", c.y, c.like(0))
    safe = code.select(zero, c.like(1), c.y)
    if not c.signed:
        return code.select(zero, c.like(0), code.binary("udiv", c.x, safe))
    minus = code.compare("==", c.y, c.like(-1))
    safe = code.select(minus, c.like(1), safe)
    whole = code.binary("sdiv", c.x, safe)
    whole = code.select(minus, code.binary("sub", math.like(code, c.x, 0), c.x), whole)
    return code.select(zero, Value(vector(c.x.element, lanes), "zeroinitializer" if lanes > 1 else "0"), whole)


def _modulo(c: Call) -> Value:
    code, truncated = c.code, bool(c.attrs.get("fmod", 0))
    if c.x.is_float:
        rest = code.binary("frem", c.x, c.y)
        if truncated:
            return rest
        zero = c.like(0)
        opposite = code.binary("xor", code.fcompare("olt", rest, zero), code.fcompare("olt", c.y, zero))
        off = code.binary("and", code.fcompare("one", rest, zero), opposite)
        return code.select(off, code.fadd(rest, c.y), rest)
    rest = code.binary("sub", c.x, code.binary("mul", quotient(c), c.y))
    rest = code.select(code.compare("==", c.y, c.like(0)), c.like(0), rest)
    if truncated or not c.signed:
        return rest
    opposite = code.compare("<", code.binary("xor", rest, c.y), c.like(0))
    off = code.binary("and", opposite, code.compare("!=", rest, c.like(0)))
    return code.select(off, code.binary("add", rest, c.y), rest)


def maximum(code: Code, a: Value, b: Value, *, signed: bool = True) -> Value:
    """The larger; NaN if either is."""
    if a.is_float:
        return code.select(code.fcompare("uno", a, a), a, code.fmax(a, b))
    return code.intrinsic("smax" if signed else "umax", a, b)


def minimum(code: Code, a: Value, b: Value, *, signed: bool = True) -> Value:
    """The smaller; NaN if either is."""
    if a.is_float:
        return code.select(code.fcompare("uno", a, a), a, code.fmin(a, b))
    return code.intrinsic("smin" if signed else "umin", a, b)


def _extreme(pick: Callable[..., Value]) -> Rule:
    return lambda c: reduce(lambda a, b: pick(c.code, a, b, signed=c.signed), [a for a in c.args if a is not None])


def _sum(c: Call) -> Value:
    return reduce(c.code.fadd, [a for a in c.args if a is not None])


def _mean(c: Call) -> Value:
    return c.code.fdiv(_sum(c), c.like(len(c.args)))


def _clip(c: Call) -> Value:
    found = c.x
    if len(c.args) > 1 and c.args[1] is not None:
        found = maximum(c.code, c.args[1], found, signed=c.signed)
    if len(c.args) > 2 and c.args[2] is not None:
        found = minimum(c.code, c.args[2], found, signed=c.signed)
    return found


def _negate(c: Call) -> Value:
    return c.code.fneg(c.x) if c.x.is_float else c.code.binary("sub", c.like(0), c.x)


def _absolute(c: Call) -> Value:
    if c.x.is_float:
        return math.absolute(c.code, c.x)
    return c.code.intrinsic("abs", c.x, extra=("i1 false",)) if c.signed else c.x


def _sign(c: Call) -> Value:
    code = c.code
    if c.x.is_float:
        up = code.select(code.fcompare("ogt", c.x, c.like(0)), c.like(1), c.x)
        down = code.select(code.fcompare("olt", c.x, c.like(0)), c.like(-1), up)
        return down
    if not c.signed:
        return code.select(code.compare("!=", c.x, c.like(0)), c.like(1), c.like(0))
    up = code.select(code.compare(">", c.x, c.like(0)), c.like(1), c.like(0))
    return code.select(code.compare("<", c.x, c.like(0)), c.like(-1), up)


def _rounding(intrinsic: str) -> Rule:
    return lambda c: c.code.intrinsic(intrinsic, c.x)


def _shift(c: Call) -> Value:
    code, left = c.code, c.attrs.get("direction") in ("LEFT", b"LEFT")
    width = math.like(code, c.y, c.dtype.bits)
    outside = code.emit(vector("i1", c.x.lanes), f"icmp uge {c.y}, {width.text}")
    amount = code.select(outside, math.like(code, c.y, 0), c.y)
    if left:
        return code.select(outside, c.like(0), code.binary("shl", c.x, amount))
    if not c.signed:
        return code.select(outside, c.like(0), code.binary("lshr", c.x, amount))
    return code.binary("ashr", c.x, code.select(outside, math.like(code, c.y, c.dtype.bits - 1), c.y))


# --- activations ------------------------------------------------------------------------------------------------------

def _positive(c: Call) -> Value:
    return c.code.fcompare("ogt", c.x, c.like(0))


def _relu(c: Call) -> Value:
    return c.code.fmax(c.like(0), c.x) if c.x.is_float else c.code.intrinsic("smax", c.x, c.like(0))


def _leaky_relu(c: Call) -> Value:
    return c.code.select(c.code.fcompare("olt", c.x, c.like(0)), c.code.fmul(c.x, c.number("alpha", 0.01)), c.x)


def _prelu(c: Call) -> Value:
    if not c.x.is_float:
        return c.code.select(c.code.compare(">", c.x, c.like(0)), c.x, c.code.binary("mul", c.x, c.y))
    return c.code.select(_positive(c), c.x, c.code.fmul(c.x, c.y))


def _exponential(c: Call, scale: float, x: Value) -> Value:
    """scale * (e^x - 1) for x < 0."""
    return c.code.fmul(math.expm1(c.code, x), c.like(scale))


def _elu(c: Call) -> Value:
    return c.code.select(_positive(c), c.x, _exponential(c, _single(c.attrs.get("alpha", 1.0)), c.x))


def _celu(c: Call) -> Value:
    alpha = _single(c.attrs.get("alpha", 1.0))
    return c.code.select(_positive(c), c.x, _exponential(c, alpha, c.code.fdiv(c.x, c.like(alpha))))


def _selu(c: Call) -> Value:
    alpha = _single(c.attrs.get("alpha", 1.67326319217681884765625))
    gamma = _single(c.attrs.get("gamma", 1.05070102214813232421875))
    return c.code.select(_positive(c), c.code.fmul(c.x, c.like(gamma)), _exponential(c, alpha * gamma, c.x))


def _thresholded(c: Call) -> Value:
    above = c.code.fcompare("ogt", c.x, c.number("alpha", 1.0))
    return c.code.select(above, c.x, c.like(0))


def _hard_sigmoid(c: Call, alpha: float | None = None, beta: float | None = None) -> Value:
    a = c.number("alpha", 0.2) if alpha is None else c.like(alpha)
    b = c.number("beta", 0.5) if beta is None else c.like(beta)
    line = c.code.fadd(c.code.fmul(c.x, a), b)
    return c.code.fmin(c.like(1), c.code.fmax(c.like(0), line))


def _hard_swish(c: Call) -> Value:
    return c.code.fmul(c.x, _hard_sigmoid(c, _single(1 / 6), 0.5))


def _swish(c: Call) -> Value:
    alpha = _single(c.attrs.get("alpha", 1.0))
    scaled = c.x if alpha == 1.0 else c.code.fmul(c.x, c.like(alpha))
    return math.gated(c.code, c.x, scaled)


def _gelu(c: Call) -> Value:
    tanh = c.attrs.get("approximate", "none") in ("tanh", b"tanh")
    return (math.gelu_tanh if tanh else math.gelu)(c.code, c.x)


def _softsign(c: Call) -> Value:
    return c.code.fdiv(c.x, c.code.fadd(c.like(1), math.absolute(c.code, c.x)))


def _shrink(c: Call) -> Value:
    code, bias = c.code, c.number("bias", 0.0)
    bound = _single(c.attrs.get("lambd", 0.5))
    low = code.select(code.fcompare("olt", c.x, c.like(-bound)), code.fadd(c.x, bias), c.like(0))
    return code.select(code.fcompare("ogt", c.x, c.like(bound)), code.fsub(c.x, bias), low)


def _batch_normalization(c: Call) -> Value:
    """(x - mean) / sqrt(variance + epsilon) * scale + bias."""
    code, scale, bias, mean, variance = c.code, *(c.arg(i) for i in range(1, 5))
    factor = code.fdiv(scale, math.square_root(code, code.fadd(variance, c.number("epsilon", 1e-5))))
    return code.fma(code.fsub(c.x, mean), factor, bias)


def _dequantize(c: Call) -> Value:
    """(x - zero point) * scale; floats have no zero point."""
    code, scale = c.code, _cast(c.code, c.y, c.dtypes[1] or F32, F32)
    value = _cast(code, c.x, c.dtype, F32)
    if len(c.args) > 2 and c.args[2] is not None and c.dtype.kind != "float":
        value = code.fsub(value, _cast(code, c.args[2], c.dtypes[2] or c.dtype, F32))
    return _cast(code, code.fmul(value, scale), F32, c.result)


def _quantize(c: Call) -> Value:
    """round(x / scale) + zero point, within the range of the result."""
    code, kinds = c.code, (c.dtype, c.dtypes[1] or F32)
    x, factor = _cast(code, c.x, c.dtype, F32), _cast(code, c.y, kinds[1], F32)
    value = code.fmul(x, factor) if c.attrs.get("multiply") else code.fdiv(x, factor)
    if kinds[0] == kinds[1] and kinds[0] in _HALVES and not c.attrs.get("precision"):
        value = widened(code, narrowed(code, value, kinds[0]))      # the quotient is one of the operands' type
    zero = c.args[2] if len(c.args) > 2 else None
    if c.result.name in small.FLOATS:
        if zero is not None and c.result.name == "f4e2m1":
            value = code.fadd(value, _cast(code, zero, c.dtypes[2] or c.result, F32))
        return small.encoded(code, value, c.result, saturate=bool(c.attrs.get("saturate", 1)))
    value = code.intrinsic("roundeven", value)
    if zero is not None:
        value = code.fadd(value, _cast(code, zero, c.dtypes[2] or c.result, F32))
    width = small.INTEGERS.get(c.result.name, c.result.bits)
    low = 0 if c.result.kind == "uint" else -(1 << (width - 1))
    value = code.fmin(math.like(code, value, low + (1 << width) - 1), code.fmax(value, math.like(code, value, low)))
    whole = code.convert("trunc", code.convert("fptosi", value, "i32"), element_of(c.result))
    return small.packed(code, whole, c.result) if c.result.name in small.INTEGERS else whole


def _power(c: Call) -> Value:
    exponent = c.y if c.y.element == "float" else _cast(c.code, c.y, c.dtypes[1] or F32, F32)
    return math.power(c.code, c.x, exponent)


def _is_inf(c: Call) -> Value:
    code = c.code
    up, down = c.attrs.get("detect_positive", 1), c.attrs.get("detect_negative", 1)
    found = Value(vector("i1", c.x.lanes), "zeroinitializer" if c.x.lanes > 1 else "false")
    if up:
        found = code.fcompare("oeq", c.x, c.like(numbers.inf))
    if down:
        below = code.fcompare("oeq", c.x, c.like(-numbers.inf))
        found = code.binary("or", found, below) if up else below
    return from_mask(code, found)


def _unary(function: Callable[[Code, Value], Value]) -> Rule:
    return lambda c: function(c.code, c.x)


# --- conversions ------------------------------------------------------------------------------------------------------

def widened(code: Code, x: Value) -> Value:
    """f16 (half) or bf16 (i16, its bits) as f32."""
    if x.element == "half":
        return code.convert("fpext", x, "float")
    wide = code.convert("zext", code.convert("bitcast", x, "i16") if x.element == "bfloat" else x, "i32")
    return code.convert("bitcast", code.binary("shl", wide, code.constant(16, "i32", x.lanes)), "float")


def narrowed(code: Code, x: Value, dtype: DType) -> Value:
    """f32 rounded to f16 or bf16 (to nearest, ties to even)."""
    if dtype == F16:
        return code.convert("fptrunc", x, "half")
    i = code.convert("bitcast", x, "i32")
    odd = code.binary("and", code.binary("lshr", i, math.like(code, i, 16)), math.like(code, i, 1))
    near = code.binary("add", i, code.binary("add", odd, math.like(code, i, 0x7FFF)))
    quiet = code.binary("or", i, math.like(code, i, 0x400000))
    picked = code.select(code.fcompare("uno", x, x), quiet, near)
    return code.convert("trunc", code.binary("lshr", picked, math.like(code, i, 16)), "i16")


def _cast(code: Code, x: Value, source: DType, to: DType, attrs: Mapping[str, object] | None = None) -> Value:
    """x in another element type: floats to integers towards zero, anything to bool by x != 0.

    `attrs` are those of a Cast: what becomes of numbers too large for a small float, and how exponents are rounded.
    """
    if source == to:
        return x
    if source in _HALVES:
        return _cast(code, widened(code, x), F32, to, attrs)
    if source.name in small.INTEGERS:
        return _cast(code, small.spread(code, x, source), I8 if source.kind == "int" else U8, to, attrs)
    if source.name in small.SMALL:
        return _cast(code, small.decoded(code, x, source), F32, to, attrs)
    if to == BOOL:
        return from_mask(code, code.fcompare("une", x, math.like(code, x, 0)) if x.is_float else to_mask(code, x))
    if to.name in small.INTEGERS:
        return small.packed(code, _cast(code, x, source, I8), to)
    if to in _HALVES or to.name in small.SMALL:
        # from f64 by way of f32, rounded twice, as ml_dtypes does; only f16 is numpy's own, which rounds once
        single = small.to_odd(code, x) if source == F64 and to == F16 else _cast(code, x, source, F32)
        return _rounded_to(code, single, to, attrs or {})
    element = element_of(to)
    if x.is_float and to.kind == "float":
        return code.convert("fpext" if to.bits > source.bits else "fptrunc", x, element)
    if x.is_float:
        # by way of a wider signed type, so that what lies outside a narrow one wraps
        if to.bits < 32:
            return code.convert("trunc", code.convert("fptosi", x, "i32"), element)
        if to.name == "u32":
            return code.convert("trunc", code.convert("fptosi", x, "i64"), element)
        return code.convert("fptoui" if to.name == "u64" else "fptosi", x, element)
    unsigned = source.kind in ("uint", "bool")
    if to.kind == "float":
        return code.convert("uitofp" if unsigned else "sitofp", x, element)
    if to.bits == source.bits:
        return x
    if to.bits < source.bits:
        return code.convert("trunc", x, element)
    return code.convert("zext" if unsigned else "sext", x, element)


def _rounded_to(code: Code, x: Value, to: DType, attrs: Mapping[str, object]) -> Value:
    """f32 as a shorter float."""
    if to in _HALVES:
        return narrowed(code, x, to)
    saturate = bool(attrs.get("saturate", 1))
    if to.name == "f8e8m0":
        return small.exponent_of(code, x, saturate=saturate, mode=str(attrs.get("round_mode", "up")))
    return small.encoded(code, x, to, saturate=saturate)


def _bits_as(c: Call) -> Value:
    """The same bits under another element type of the same size."""
    element = element_of(c.result)
    return c.x if c.x.element == element else c.code.convert("bitcast", c.x, element)


# --- the table --------------------------------------------------------------------------------------------------------

_FLOAT_ONLY: dict[str, Rule] = {
    "LeakyRelu": _leaky_relu, "Elu": _elu, "Selu": _selu, "Celu": _celu, "ThresholdedRelu": _thresholded,
    "Sigmoid": _unary(math.sigmoid), "HardSigmoid": _hard_sigmoid, "HardSwish": _hard_swish, "Swish": _swish,
    "Mish": _unary(math.mish), "Gelu": _gelu, "Softplus": _unary(math.softplus), "Softsign": _softsign,
    "Shrink": _shrink, "Tanh": _unary(math.tanh), "Erf": _unary(math.erf), "Exp": _unary(math.exp),
    "Log": _unary(math.log), "Sqrt": _unary(math.square_root),
    "Reciprocal": lambda c: c.code.fdiv(c.like(1), c.x), "Pow": _power,
    **{name: _unary(getattr(trigonometry, name.lower())) for name in (
        "Sin", "Cos", "Tan", "Asin", "Acos", "Atan", "Sinh", "Cosh", "Asinh", "Acosh", "Atanh")},
    "Floor": _rounding("floor"), "Ceil": _rounding("ceil"), "Round": _rounding("roundeven"),
    "IsNaN": lambda c: from_mask(c.code, c.code.fcompare("uno", c.x, c.x)), "IsInf": _is_inf,
    "Sum": _sum, "Mean": _mean, "BatchNormalization": _batch_normalization,
}
_ANY: dict[str, Rule] = {
    "Add": _arithmetic("fadd", "add"), "Sub": _arithmetic("fsub", "sub"), "Mul": _arithmetic("fmul", "mul"),
    "Div": _divide, "Mod": _modulo, "Max": _extreme(maximum), "Min": _extreme(minimum), "Clip": _clip, "Relu": _relu,
    "PRelu": _prelu, "Abs": _absolute, "Neg": _negate, "Sign": _sign,
    "Equal": _compared("oeq", "eq"), "Less": _compared("olt", "lt"), "LessOrEqual": _compared("ole", "le"),
    "Greater": _compared("ogt", "gt"), "GreaterOrEqual": _compared("oge", "ge"),
    "And": _logical("and"), "Or": _logical("or"), "Xor": _logical("xor"), "Not": _not, "BitShift": _shift,
    "BitwiseAnd": _logical("and"), "BitwiseOr": _logical("or"), "BitwiseXor": _logical("xor"),
    "BitwiseNot": lambda c: c.code.binary("xor", c.x, c.like(-1)),
}
_MIXED: dict[str, Rule] = {"QuantizeLinear": _quantize, "DequantizeLinear": _dequantize,
                           "Quantize": _quantize, "Dequantize": _dequantize}
_TO_INTEGERS = ("QuantizeLinear", "Quantize")
_MOVES: dict[str, Rule] = {"Identity": lambda c: c.x, "Dropout": lambda c: c.x, "Where": _where, "BitCast": _bits_as}
_RULES: Mapping[str, Rule] = {**_FLOAT_ONLY, **_ANY, **_MOVES, **_MIXED}
_CHEAP_F64 = frozenset(("LeakyRelu", "ThresholdedRelu", "HardSigmoid", "HardSwish", "Softsign", "Shrink", "Sqrt",
                        "Reciprocal", "Floor", "Ceil", "Round", "IsNaN", "IsInf", "Sum", "Mean", "BatchNormalization",
                        "Exp", "Log", "Sigmoid", "Swish", "Softplus"))


def declines_step(step: Step, dtypes: Sequence[DType | None] = ()) -> str | None:
    """Why a step cannot be computed in registers, or None if it can.

    `dtypes` are the element types of its operands where known; the result's stands for them otherwise.
    """
    if step.op != "Cast" and step.op not in _RULES:
        return f"{step.op} is not a pointwise expression"
    if len(step.types) != 1:
        return f"{step.op} makes {len(step.types)} results here"
    result = step.types[0].dtype
    known = [d for d in dtypes if d is not None]
    whole = step.op == "Cast" or step.op in _MIXED or step.op in _MOVES
    for dtype in (result, *known):
        if dtype.name not in SUPPORTED and not (whole and dtype.name in small.SMALL):
            return f"no expressions on {dtype}"
    first = known[0] if known else result
    if step.op == "Cast":
        return None
    if step.op in _MIXED:
        return _declines_mixed(step, known)
    if step.op == "Pow" and (first not in (F32, *_HALVES) or any(d == F64 for d in known[1:])):
        return f"Pow on {first}"
    if step.op in _FLOAT_ONLY and known and first.kind != "float":
        return f"{step.op} on {first}"
    if step.op in _FLOAT_ONLY and first == F64 and step.op not in _CHEAP_F64:
        return f"{step.op} on f64"
    return None


def _declines_mixed(step: Step, known: Sequence[DType]) -> str | None:
    attrs, result = dict(step.attrs), step.types[0].dtype
    if int(str(attrs.get("block_size") or 0)) > 1:
        return f"{step.op} by blocks"
    quantizes = step.op in _TO_INTEGERS
    if quantizes and attrs.get("precision") not in (None, 0, 1, "f32"):
        return f"{step.op} with a precision of its own"
    held = result if quantizes else known[0] if known else result
    real = known[:2] if quantizes else [*known[1:2], result]
    whole = held.kind in ("int", "uint") and (held.bits <= 16 or (held.name == "i32" and not quantizes
                                                                  and len(known) < 3))
    if not (whole or held.name in small.FLOATS) or any(d not in (F32, *_HALVES) for d in real):
        return f"{step.op} of {held} and {', '.join(map(str, real))}"
    return None


def apply(code: Code, step: Step, args: Sequence[Value | None], dtypes: Sequence[DType | None] = ()) -> Value:
    """A pointwise step on vectors (or scalars) of equal lanes.

    `args` are the step's operands in the order of its inputs (None: absent); `dtypes` their element types, needed
    where integers are unsigned. Gives the result, in the element type of the step's result.
    """
    result = step.types[0].dtype
    kinds = tuple(dtypes) if dtypes else tuple(None if a is None else _guessed(a) for a in args)
    if step.op == "Cast":
        return _cast(code, _present(args), kinds[0] or result, result, dict(step.attrs))
    call = Call(code, dict(step.attrs), tuple(args), kinds, result)
    if step.op in _MOVES or step.op in _MIXED or not any(k in _HALVES for k in kinds):
        return _RULES[step.op](call)
    wide = tuple(widened(code, a) if a is not None and k in _HALVES else a for a, k in zip(args, kinds, strict=True))
    call = replace(call, args=wide, dtypes=tuple(F32 if k in _HALVES else k for k in kinds))
    made = _RULES[step.op](call)
    return narrowed(code, made, result) if result in _HALVES else made


def _present(args: Sequence[Value | None]) -> Value:
    found = args[0]
    if found is None:
        raise ValueError("the first operand is absent")
    return found


_GUESSES = {"double": F64, "float": F32, "half": F16}


def _guessed(value: Value) -> DType | None:
    """The element type of a value whose type is not given: integers count as signed."""
    if value.element in _GUESSES:
        return _GUESSES[value.element]
    return DType(value.element, int(value.element[1:]), "int")


__all__ = ["apply", "declines_step", "from_mask", "llvm_type", "maximum", "minimum", "narrowed", "to_mask", "widened"]
