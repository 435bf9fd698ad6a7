"""Pointwise ops: each element of the result depends on the same element of the (broadcast) operands alone."""
from __future__ import annotations

from ingot.graph import BOOL, TensorType
from ingot.ops.op import REQUIRED, Attrs, Op, Sample, Types, declare
from ingot.ops.samples import SMALL_TYPES, boolean, f16, f32, f64, i8, i32, i64, scalar, tensor, u8, values
from ingot.ops.shapes import (
    broadcast,
    dtype_named,
    elementwise,
    given,
    layout_of,
    predicate,
    same,
    same_dtype,
)

_UNARY: tuple[Sample, ...] = (
    ((f32(4, 33),), {}), ((f32(1),), {}), ((f32(),), {}), ((f32(2, 3, 5, 7),), {}), ((f32(1027),), {}),
    ((f64(3, 5),), {}), ((f32(2, 19, 3, 5, layout="c16"),), {}),
)
_BINARY: tuple[Sample, ...] = (
    ((f32(4, 33), f32(4, 33)), {}), ((f32(4, 33), f32(33)), {}), ((f32(4, 1), f32(1, 33)), {}),
    ((f32(2, 3, 5, 7), f32(3, 1, 1)), {}), ((f32(), f32(2, 3)), {}), ((f32(2, 3, 17), scalar(0.5)), {}),
    ((f32(2, 1, 5, 1), f32(3, 1, 7)), {}), ((f32(7, 1), f32(1)), {}), ((f32(2, 19, 3, 5), values(1, 19, 1, 1)), {}),
    ((f32(2, 19, 3, 5, layout="c16"), f32(2, 19, 3, 5, layout="c16")), {}),
    ((f32(2, 19, 3, 5, layout="c16"), values(1, 19, 1, 1)), {}),
    ((f32(2, 19, 3, 5, layout="c16"), f32(2, 19, 1, 1, layout="c16")), {}),
)
_INTEGERS: tuple[Sample, ...] = (((i64(4, 5), i64(5)), {}), ((i32(3, 1), i32(3, 7)), {}))
_LOGIC: tuple[Sample, ...] = (
    ((boolean(4, 33), boolean(4, 33)), {}), ((boolean(4, 33), boolean(33)), {}), ((boolean(4, 1), boolean(1, 5)), {}),
    ((boolean(), boolean(2, 3)), {}))
_BITS: tuple[Sample, ...] = (((i32(4, 5), i32(4, 5)), {}), ((i64(4, 5), i64(5)), {}), ((u8(4, 5), u8(1)), {}))


def _binary(types: Types, attrs: Attrs, outputs: int) -> tuple[TensorType, ...]:
    same_dtype(types)
    return elementwise(types)


def _unary(name: str, doc: str, samples: tuple[Sample, ...] = _UNARY, **attrs: object) -> Op:
    return declare(Op(name, doc, ("x",), same, attrs, pointwise=True, blocked=True, samples=samples))


def _variants(*variants: Attrs) -> tuple[Sample, ...]:
    """The unary samples as they are, then some with each set of attributes."""
    return _UNARY + tuple((inputs, v) for v in variants for inputs, _ in (_UNARY[0], _UNARY[4]))


for _name, _doc in {
    "Acos": "arc cosine", "Acosh": "inverse hyperbolic cosine", "Asin": "arc sine",
    "Asinh": "inverse hyperbolic sine", "Atan": "arc tangent", "Atanh": "inverse hyperbolic tangent",
    "Ceil": "the least integer not below x", "Cos": "cosine", "Cosh": "hyperbolic cosine", "Erf": "error function",
    "Exp": "e to the x", "Floor": "the greatest integer not above x", "HardSwish": "x * max(0, min(1, x/6 + 0.5))",
    "Log": "natural logarithm", "Mish": "x * tanh(softplus(x))", "Reciprocal": "1 / x",
    "Round": "the nearest integer, halves to even", "Sigmoid": "1 / (1 + exp(-x))", "Sin": "sine",
    "Sinh": "hyperbolic sine", "Softplus": "log(1 + exp(x))", "Softsign": "x / (1 + |x|)", "Sqrt": "square root",
    "Tan": "tangent", "Tanh": "hyperbolic tangent",
}.items():
    _unary(_name, _doc)
for _name, _doc in {"Abs": "|x|", "Neg": "-x", "Relu": "max(x, 0)", "Sign": "-1, 0 or 1"}.items():
    _unary(_name, _doc, (*_UNARY, ((i64(4, 5),), {}), ((i32(7),), {})))

_unary("Identity", "x", (*_UNARY, ((i64(4, 5),), {}), ((boolean(3),), {})))
_unary("Celu", "max(0, x) + min(0, alpha * (exp(x / alpha) - 1))", _variants({"alpha": 0.5}), alpha=1.0)
_unary("Elu", "x, below zero alpha * (exp(x) - 1)", _variants({"alpha": 0.7}), alpha=1.0)
_unary("Gelu", "x * Phi(x), exactly or by tanh", _variants({"approximate": "tanh"}), approximate="none")
_unary("HardSigmoid", "max(0, min(1, alpha * x + beta))", _variants({"alpha": 1 / 6, "beta": 0.5}), alpha=0.2, beta=0.5)
_unary("LeakyRelu", "x, below zero alpha * x", _variants({"alpha": 0.2}), alpha=0.01)
_unary("Selu", "gamma * (x, below zero alpha * (exp(x) - 1))", _variants({"alpha": 1.5, "gamma": 1.1}),
       alpha=1.67326319217681884765625, gamma=1.05070102214813232421875)
_unary("Shrink", "x - bias above lambd, x + bias below -lambd, else 0", _variants({"bias": 0.1, "lambd": 0.3}),
       bias=0.0, lambd=0.5)
_unary("Swish", "x * sigmoid(alpha * x)", _variants({"alpha": 1.702}), alpha=1.0)
_unary("ThresholdedRelu", "x above alpha, else 0", _variants({"alpha": 0.2}), alpha=1.0)
_unary("BitwiseNot", "every bit flipped", (((i32(4, 5),), {}), ((u8(7),), {}), ((i64(3, 3),), {})))
_unary("Not", "logical not", (((boolean(4, 33),), {}), ((boolean(),), {})))

for _name, _doc, _attrs in (("IsNaN", "x is not a number", {}),
                            ("IsInf", "x is infinite", {"detect_negative": 1, "detect_positive": 1})):
    declare(Op(_name, _doc, ("x",), predicate, _attrs, pointwise=True, blocked=True,
               samples=_UNARY if _name == "IsNaN" else _variants({"detect_negative": 0}, {"detect_positive": 0})))

for _name, _doc in {"Add": "a + b", "Sub": "a - b", "Mul": "a * b"}.items():
    declare(Op(_name, _doc, ("a", "b"), _binary, pointwise=True, blocked=True, samples=_BINARY + _INTEGERS))
declare(Op("Div", "a / b; integers truncate toward zero", ("a", "b"), _binary, pointwise=True, blocked=True,
           samples=(*_BINARY, ((i64(4, 5), scalar(3, "int64")), {}), ((i32(7), scalar(-2, "int32")), {}))))


def _pow(types: Types, attrs: Attrs, outputs: int) -> tuple[TensorType, ...]:
    return elementwise(types, given(types[0]).dtype)


declare(Op("Pow", "a to the b, of a's element type", ("a", "b"), _pow, pointwise=True, blocked=True, samples=(
    ((f32(4, 33), scalar(2.0)), {}), ((f32(4, 33), scalar(3.0)), {}), ((f32(4, 33), scalar(0.5)), {}),
    ((f32(4, 33), scalar(2, "int64")), {}), ((f32(4, 5), f32(5)), {}), ((values(4, 9, low=0.1, high=3), f32(4, 9)), {}),
    ((f32(2, 19, 3, 5, layout="c16"), scalar(2.0)), {}), ((i64(4, 5), scalar(2, "int64")), {}))))
declare(Op("Mod", "a modulo b: the sign of b, or with fmod of a", ("a", "b"), _binary, {"fmod": 0},
           pointwise=True, blocked=True, samples=(
    ((i64(4, 5), scalar(3, "int64")), {}), ((i32(4, 5), scalar(-3, "int32")), {}),
    ((i64(4, 5), scalar(3, "int64")), {"fmod": 1}), ((f32(4, 33), scalar(0.7)), {"fmod": 1}))))


def _prelu(types: Types, attrs: Attrs, outputs: int) -> tuple[TensorType, ...]:
    x, slope = given(types[0]), given(types[1])
    same_dtype(types)
    if broadcast(x.shape, slope.shape) != x.shape:
        raise ValueError(f"the slope {slope} does not broadcast to {x}")
    return elementwise(types)


declare(Op("PRelu", "x, below zero slope * x", ("x", "slope"), _prelu, pointwise=True, blocked=True, samples=(
    ((f32(4, 33), f32(33)), {}), ((f32(2, 19, 3, 5), values(19, 1, 1)), {}), ((f32(4, 33), scalar(0.1)), {}),
    ((f32(2, 19, 3, 5, layout="c16"), values(1, 19, 1, 1)), {}), ((f32(4, 33), f32(4, 33)), {}))))

for _name, _doc in {"And": "a and b", "Or": "a or b", "Xor": "either a or b"}.items():
    declare(Op(_name, _doc, ("a", "b"), _binary, pointwise=True, blocked=True, samples=_LOGIC))
for _name, _doc in {"Equal": "a = b", "Greater": "a > b", "GreaterOrEqual": "a >= b", "Less": "a < b",
                    "LessOrEqual": "a <= b"}.items():
    declare(Op(_name, _doc, ("a", "b"), predicate, pointwise=True, blocked=True, samples=_BINARY + _INTEGERS))
for _name, _doc in {"BitwiseAnd": "a & b", "BitwiseOr": "a | b", "BitwiseXor": "a ^ b"}.items():
    declare(Op(_name, _doc, ("a", "b"), _binary, pointwise=True, blocked=True, samples=_BITS))
declare(Op("BitShift", "a shifted by b bits to the LEFT or RIGHT", ("a", "b"), _binary, {"direction": "LEFT"},
           pointwise=True, blocked=True, samples=(
    ((u8(4, 5), scalar(1, "uint8")), {"direction": "LEFT"}), ((u8(4, 5), scalar(3, "uint8")), {"direction": "RIGHT"}))))

for _name, _doc in {"Max": "the greatest", "Min": "the least", "Sum": "the sum", "Mean": "the mean"}.items():
    declare(Op(_name, f"{_doc} of the operands", ("x*",), _binary, pointwise=True, blocked=True, samples=(
        *_BINARY, ((f32(4, 33),), {}), ((f32(4, 33), f32(33), f32(4, 1)), {}),
        *(_INTEGERS if _name in ("Max", "Min") else ()))))


def _clip(types: Types, attrs: Attrs, outputs: int) -> tuple[TensorType, ...]:
    same_dtype(types)
    if any(t is not None and t.rank for t in types[1:]):
        raise ValueError("min and max must be scalars")
    return (given(types[0]),)


declare(Op("Clip", "x kept within [min, max]", ("x", "min?", "max?"), _clip, pointwise=True, blocked=True, samples=(
    ((f32(4, 33), scalar(0.0), scalar(0.6)), {}), ((f32(4, 33), None, scalar(0.25)), {}), ((f32(4, 33),), {}),
    ((f32(1027), scalar(-0.5)), {}), ((f32(4, 5), f32(), f32()), {}), ((i64(7), scalar(0, "int64")), {}),
    ((f32(2, 19, 3, 5, layout="c16"), scalar(0.0), scalar(6.0)), {}))))


def _where(types: Types, attrs: Attrs, outputs: int) -> tuple[TensorType, ...]:
    condition, a, b = (given(t) for t in types)
    if condition.dtype != BOOL:
        raise ValueError(f"the condition is {condition.dtype}, not bool")
    dtype = same_dtype((a, b))
    shape = broadcast(condition.shape, a.shape, b.shape)
    return (TensorType(dtype, shape, layout_of(shape, types)),)


declare(Op("Where", "a where the condition holds, else b", ("condition", "a", "b"), _where, pointwise=True,
           blocked=True, samples=(
    ((boolean(4, 33), f32(4, 33), f32(4, 33)), {}), ((boolean(4, 1), f32(33), f32(1, 33)), {}),
    ((boolean(1, 1, 5, 5), f32(2, 3, 5, 5), scalar(-1e9)), {}), ((boolean(2, 3, 4), scalar(1.0), scalar(0.0)), {}),
    ((boolean(4, 5), i64(4, 5), scalar(-1, "int64")), {}), ((boolean(), f32(3), f32(3)), {}))))


def _cast(types: Types, attrs: Attrs, outputs: int) -> tuple[TensorType, ...]:
    x = given(types[0])
    return (TensorType(dtype_named(attrs, "to"), x.shape, x.layout),)


declare(Op("Cast", "x as another element type, named 'f32', 'i64', 'bool', ...", ("x",), _cast,
           {"to": "f32", "saturate": 1, "round_mode": "up"}, pointwise=True, blocked=True, samples=(
    ((f32(4, 33),), {"to": "i64"}), ((f32(4, 33),), {"to": "i32"}), ((f32(4, 33),), {"to": "bool"}),
    ((i64(4, 33),), {"to": "f32"}), ((i32(4, 33),), {"to": "f32"}), ((boolean(4, 33),), {"to": "f32"}),
    ((boolean(4, 33),), {"to": "i64"}), ((f32(4, 33),), {"to": "f64"}), ((f64(7),), {"to": "f32"}),
    ((f32(4, 33),), {"to": "f16"}), ((f16(4, 33),), {"to": "f32"}), ((i64(5),), {"to": "i32"}),
    ((i32(5),), {"to": "i64"}), ((i64(5),), {"to": "bool"}), ((u8(5),), {"to": "f32"}), ((f32(5),), {"to": "f32"}),
    ((f32(2, 19, 3, 5, layout="c16"),), {"to": "f64"}), ((f64(4, 33),), {"to": "f16"}), ((f64(7),), {"to": "bf16"}),
    *(((x(4, 33),), {"to": t, "saturate": s}) for x in (f32, f16, f64) for s in (1, 0) for t in (
        "f8e4m3", "f8e5m2", "f8e4m3fnuz", "f8e5m2fnuz", "f4e2m1")),
    *(((x(4, 33),), {"to": t}) for x in (f32, f16, i64) for t in ("i4", "u4", "i2", "u2")),
    *(((f32(4, 33),), {"to": "f8e8m0", "saturate": s, "round_mode": m}) for s in (0, 1) for m in (
        "up", "down", "nearest")),
    *(((tensor(t, 4, 33),), {"to": "f32"}) for t in SMALL_TYPES),
    *(((tensor(t, 9),), {"to": "i8"}) for t in ("i4", "u2")), ((f64(9),), {"to": "f8e8m0"}),
    ((tensor("f8e5m2", 9),), {"to": "f16"}), ((tensor("f8e4m3", 9),), {"to": "bf16"}), ((f32(9), ), {"to": "u8"}))))


def _bitcast(types: Types, attrs: Attrs, outputs: int) -> tuple[TensorType, ...]:
    x, dtype = given(types[0]), dtype_named(attrs, "to")
    if dtype.bits != x.dtype.bits:
        raise ValueError(f"the bits of {x.dtype} are not as many as those of {dtype}")
    return (TensorType(dtype, x.shape, x.layout),)


declare(Op("BitCast", "the same bits, read as another element type of the same size", ("x",), _bitcast,
           {"to": REQUIRED}, pointwise=True, blocked=True, samples=(
    ((f32(4, 9),), {"to": "i32"}), ((i32(4, 9),), {"to": "f32"}), ((f64(5),), {"to": "i64"}), ((i8(5),), {"to": "u8"}),
    ((tensor("u16", 7),), {"to": "i16"}), ((boolean(7),), {"to": "u8"}))))
