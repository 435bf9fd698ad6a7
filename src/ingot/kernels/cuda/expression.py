"""One Triton expression per pointwise op.

Half types are computed in f32 and rounded when they are stored (or cast), not after each op; booleans are i1 in
registers. Comparisons are written so that NaN comes out as numpy has it.
"""
from __future__ import annotations

import struct
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import reduce

from ingot.graph import BOOL, F8E4M3, F32, F64, I32, DType
from ingot.kernels.cuda.source import HALVES, NAMES, SHORTS, Source, Value, number, registers_of
from ingot.kernels.steps import dtype_of, walk_steps
from ingot.kernels.tactic import Site, Step

SUPPORTED = frozenset(("f64", "f32", "f16", "bf16", "bool", "i64", "i32", "i16", "i8", "u64", "u32", "u16", "u8"))


@dataclass(frozen=True)
class Call:
    """One op at work: its attributes, its operands as text (None: absent), their type, the type of the result in
    registers and as it is stored."""

    source: Source
    attrs: Mapping[str, object]
    args: tuple[Value | None, ...]
    result: DType       # in registers
    stored: DType

    @property
    def x(self) -> str:
        return self.arg(0)

    @property
    def y(self) -> str:
        return self.arg(1)

    @property
    def dtype(self) -> DType:
        found = self.args[0]
        return found.dtype if found is not None else self.result

    @property
    def is_float(self) -> bool:
        return self.dtype.kind == "float"

    def arg(self, i: int) -> str:
        found = self.args[i]
        if found is None:
            raise ValueError(f"operand {i} is absent")
        return found.text

    def let(self, text: str) -> str:
        return self.source.let(text)

    def number(self, name: str, default: float) -> str:
        """A number given as an attribute, as ONNX keeps it: in f32."""
        return number(struct.unpack("<f", struct.pack("<f", self.attrs.get(name, default)))[0])


Rule = Callable[[Call], str]

_TEXTS: Mapping[str, str] = {      # float only
    "Sigmoid": "1.0 / (1.0 + tl.exp(-({x})))", "Exp": "tl.exp({x})", "Log": "tl.log({x})", "Sqrt": "tl.sqrt({x})",
    "Reciprocal": "1.0 / {x}", "Floor": "tl.floor({x})", "Ceil": "tl.ceil({x})", "Round": "libdevice.rint({x})",
    "Sin": "tl.sin({x})", "Cos": "tl.cos({x})", "Tan": "libdevice.tan({x})", "Asin": "libdevice.asin({x})",
    "Acos": "libdevice.acos({x})", "Atan": "libdevice.atan({x})", "Sinh": "libdevice.sinh({x})",
    "Cosh": "libdevice.cosh({x})", "Asinh": "libdevice.asinh({x})", "Acosh": "libdevice.acosh({x})",
    "Atanh": "libdevice.atanh({x})", "Tanh": "libdevice.tanh({x})", "Erf": "tl.erf({x})",
    "Softsign": "{x} / (1.0 + tl.abs({x}))", "HardSwish": "{x} * tl.minimum(tl.maximum({x} / 6.0 + 0.5, 0.0), 1.0)",
    "Softplus": "tl.where({x} > 20.0, {x}, libdevice.log1p(tl.exp({x})))",
    "Mish": "{x} * libdevice.tanh(tl.where({x} > 20.0, {x}, libdevice.log1p(tl.exp({x}))))",
    "LeakyRelu": "tl.where({x} < 0, {x} * {alpha=0.01}, {x})",
    "ThresholdedRelu": "tl.where({x} > {alpha=1.0}, {x}, 0.0)",
    "Elu": "tl.where({x} > 0, {x}, {alpha=1.0} * libdevice.expm1({x}))",
    "Celu": "tl.where({x} > 0, {x}, {alpha=1.0} * libdevice.expm1({x} / {alpha=1.0}))",
    "Selu": ("{gamma=1.05070102214813232421875} * tl.where({x} > 0, {x}, "
             "{alpha=1.67326319217681884765625} * libdevice.expm1({x}))"),
    "Shrink": ("tl.where({x} > {lambd=0.5}, {x} - {bias=0.0}, "
               "tl.where({x} < -{lambd=0.5}, {x} + {bias=0.0}, 0.0))"),
    "Swish": "{x} / (1.0 + tl.exp(-{alpha=1.0} * {x}))",
    "IsNaN": "{x} != {x}", "Dropout": "{x}",
}


def _filled(text: str) -> Rule:
    """A rule from a text with {x}, {y} and {attribute=default} in it."""
    def rule(c: Call) -> str:
        out, rest = "", text
        while "{" in rest:
            before, _, after = rest.partition("{")
            inner, _, rest = after.partition("}")
            name, _, default = inner.partition("=")
            out += before + (c.x if inner == "x" else c.y if inner == "y" else c.number(name, float(default)))
        return out + rest
    return rule


_HALF_PHI = (0.3987616002559662, -0.06607642769813538, 0.009643027558922768, -0.0010549924336373806,
             8.42930021462962e-05, -4.724866812466644e-06, 1.7408464714208094e-07, -3.754046407067335e-09,
             3.569425657823366e-11)


def _horner(coefficients: Sequence[float], x: str) -> str:
    """A polynomial, its constant first."""
    text = repr(coefficients[-1])
    for k in coefficients[-2::-1]:
        text = f"({text}) * {x} + {k!r}"
    return text


def _gelu(c: Call) -> str:
    if str(c.attrs.get("approximate", "none")) == "tanh":
        inner = c.let(f"{c.x} * (1.5957691216057308 + 0.07135481283247183 * {c.x} * {c.x})")
        return f"{c.x} / (1.0 + tl.exp(-{inner}))"
    if c.dtype == F64:
        return f"0.5 * {c.x} * (1.0 + tl.erf({c.x} * 0.7071067811865476))"
    if c.stored in HALVES:
        # x * Phi(x), Phi - 1/2 as an odd polynomial on [-4.4, 4.4] that is 1/2 at the end: least squares with weights
        # raised where it errs (Lawson); absolute error below 5e-5, less than halves round by above 1/8, no division
        near = c.let(f"tl.minimum(tl.maximum({c.x}, -4.4), 4.4)")
        square = c.let(f"{near} * {near}")
        p = _horner(_HALF_PHI, square)
        return f"{c.x} * ({near} * ({p}) + 0.5)"
    # erf by Abramowitz and Stegun 7.1.26, absolute error below 1.5e-7: a few products and one exponential
    x = c.let(f"tl.abs({c.x}) * 0.7071067811865476")
    t = c.let(f"1.0 / (1.0 + 0.3275911 * {x})")
    p = c.let(f"((((1.061405429 * {t} - 1.453152027) * {t} + 1.421413741) * {t} - 0.284496736) * {t} + 0.254829592)"
              f" * {t}")
    e = c.let(f"1.0 - {p} * tl.exp2({x} * {x} * -1.4426950408889634)")
    return f"0.5 * {c.x} * (1.0 + tl.where({c.x} < 0, -{e}, {e}))"


def _hard_sigmoid(c: Call) -> str:
    line = c.let(f"{c.x} * {c.number('alpha', 0.2)} + {c.number('beta', 0.5)}")
    return f"tl.where({line} < 0.0, 0.0, tl.where({line} > 1.0, 1.0, {line}))"


def _sign(c: Call) -> str:
    one, zero = ("1.0", "0.0") if c.is_float else ("1", "0")
    low = "0" if c.dtype.kind in ("uint", "bool") else f"({zero} - {one})"
    rest = c.x if c.is_float else f"({c.x} * 0)"
    return f"tl.where({c.x} > 0, {one}, tl.where({c.x} < 0, {low}, {rest})).to({NAMES[c.dtype.name]})"


def _relu(c: Call) -> str:
    return f"tl.where({c.x} < 0, {'0.0' if c.is_float else c.x + ' * 0'}, {c.x})"


def _clip(c: Call) -> str:
    value = c.x
    for index, sign in ((1, "<"), (2, ">")):
        if len(c.args) > index and c.args[index] is not None:
            bound = c.arg(index)
            value = c.let(f"tl.where({value} {sign} {bound}, {bound}, {value})")
    return value


def _present(c: Call) -> list[str]:
    return [a.text for a in c.args if a is not None]


def _extreme(sign: str) -> Rule:
    def rule(c: Call) -> str:
        def two(a: str, b: str) -> str:
            nan = f" | ({a} != {a})" if c.is_float else ""
            return c.let(f"tl.where(({a} {sign} {b}){nan}, {a}, {b})")
        return reduce(two, _present(c))
    return rule


def _sum(c: Call) -> str:
    return " + ".join(_present(c))


def _mean(c: Call) -> str:
    return f"({_sum(c)}) * {number(1 / len(_present(c)))}"


def _divide(c: Call) -> str:
    if c.dtype == F32:
        return f"tl.div_rn({c.x}, {c.y})"       # `/` is off by up to two units in the last place
    if c.is_float:
        return f"{c.x} / {c.y}"
    safe = c.let(f"tl.where({c.y} == 0, 1, {c.y}).to({NAMES[c.dtype.name]})")
    return f"tl.where({c.y} == 0, 0, {c.x} // {safe}).to({NAMES[c.dtype.name]})"


def _modulo(c: Call) -> str:
    if c.is_float:
        rest = c.let(f"libdevice.fmod({c.x}, {c.y})")
        if c.attrs.get("fmod"):
            return rest
        return f"tl.where(({rest} != 0) & (({rest} < 0) != ({c.y} < 0)), {rest} + {c.y}, {rest})"
    name = NAMES[c.dtype.name]
    safe = c.let(f"tl.where({c.y} == 0, 1, {c.y}).to({name})")
    rest = c.let(f"{c.x} - ({c.x} // {safe}) * {safe}")
    if c.attrs.get("fmod") or c.dtype.kind == "uint":
        return rest
    return f"tl.where(({rest} != 0) & (({rest} < 0) != ({safe} < 0)), {rest} + {safe}, {rest})"


def _power(c: Call) -> str:
    real = F64 if c.dtype == F64 else F32
    base, power = (f"{t}.to({NAMES[real.name]})" for t in (c.x, c.y))
    made = c.let(f"libdevice.pow({base}, {power})")
    return made if c.is_float else f"libdevice.rint({made})"


def _shift(c: Call) -> str:
    bits, name = c.dtype.bits, NAMES[c.dtype.name]
    if c.dtype.kind == "int" and str(c.attrs.get("direction")) != "LEFT":       # past its width: what its sign leaves
        return f"{c.x} >> tl.where(({c.y} >= {bits}) | ({c.y} < 0), {bits - 1}, {c.y}).to({name})"
    amount = c.let(f"tl.where({c.y} >= {bits}, 0, {c.y}).to({name})")
    sign = "<<" if str(c.attrs.get("direction")) == "LEFT" else ">>"
    return f"tl.where({c.y} >= {bits}, 0, {c.x} {sign} {amount}).to({name})"


def _is_inf(c: Call) -> str:
    kept = [f"({c.x} == float('{s}inf'))" for s, name in (("", "detect_positive"), ("-", "detect_negative"))
            if c.attrs.get(name, 1)]
    return " | ".join(kept) or f"({c.x} != {c.x}) & ({c.x} == {c.x})"


def _batch_normalization(c: Call) -> str:
    scale, bias, mean, variance = (c.arg(i) for i in range(1, 5))
    factor = c.let(f"{scale} / tl.sqrt({variance} + {c.number('epsilon', 1e-5)})")
    return f"({c.x} - {mean}) * {factor} + {bias}"



def _pair(sign: str) -> Rule:
    return lambda c: f"{c.x} {sign} {c.y}"


_FLOAT_ONLY: dict[str, Rule] = {
    **{op: _filled(text) for op, text in _TEXTS.items()}, "Gelu": _gelu, "HardSigmoid": _hard_sigmoid,
    "IsInf": _is_inf, "Mean": _mean, "BatchNormalization": _batch_normalization}
_ANY: dict[str, Rule] = {
    "Add": _pair("+"), "Sub": _pair("-"), "Mul": _pair("*"), "Div": _divide, "Mod": _modulo, "Max": _extreme(">"),
    "Min": _extreme("<"), "Sum": _sum, "Clip": _clip, "Relu": _relu, "Sign": _sign, "Pow": _power,
    "Abs": lambda c: f"tl.abs({c.x})", "Neg": lambda c: f"-{c.x}",
    "PRelu": lambda c: f"tl.where({c.x} < 0, {c.x} * {c.y}, {c.x})",
    "Equal": _pair("=="), "Less": _pair("<"), "LessOrEqual": _pair("<="), "Greater": _pair(">"),
    "GreaterOrEqual": _pair(">="), "And": _pair("&"), "Or": _pair("|"), "Xor": _pair("^"),
    "Not": lambda c: f"{c.x} == 0", "BitwiseAnd": _pair("&"), "BitwiseOr": _pair("|"), "BitwiseXor": _pair("^"),
    "BitwiseNot": lambda c: f"~{c.x}", "BitShift": _shift, "Identity": lambda c: c.x,
    "Where": lambda c: f"tl.where({c.x}, {c.y}, {c.arg(2)})"}
_RULES: Mapping[str, Rule] = {**_FLOAT_ONLY, **_ANY}
_F64 = frozenset(("Sigmoid", "Exp", "Log", "Sqrt", "Reciprocal", "Floor", "Ceil", "Round", "IsNaN", "IsInf", "Dropout",
                  "Softsign", "Sin", "Cos", "Tan", "Asin", "Acos", "Atan", "Sinh", "Cosh", "Asinh", "Acosh", "Atanh",
                  "Tanh"))
_BY_NUMPY = ("Quantize", "Dequantize")
_LIBRARY = frozenset(op for op, text in _TEXTS.items() if "libdevice" in text) | {"Pow", "Mod", "Erf"}


def declines_step(step: Step, dtypes: Sequence[DType | None] = (), *, gluon: bool = False) -> str | None:
    """Why a step cannot be computed in registers, or None. `gluon`: without calls of the device library."""
    if step.op not in ("BitCast", "Cast", "QuantizeLinear", "DequantizeLinear", *_BY_NUMPY) and (
            step.op not in _RULES):
        return f"{step.op} is not a pointwise expression"
    if len(step.types) != 1:
        return f"{step.op} makes {len(step.types)} results here"
    if gluon and step.op in _LIBRARY:
        return f"{step.op} calls the device library"
    known = [d for d in dtypes if d is not None]
    for dtype in (step.types[0].dtype, *known):
        if dtype.name not in SUPPORTED and (dtype != F8E4M3 or step.op not in _BY_NUMPY):
            return f"no expressions on {dtype}"
    first = known[0] if known else step.types[0].dtype
    if step.op in _FLOAT_ONLY and first.kind != "float":
        return f"{step.op} on {first}"
    if step.op in _FLOAT_ONLY and first == F64 and step.op not in _F64:
        return f"{step.op} on f64"
    attrs = dict(step.attrs)
    if step.op in ("QuantizeLinear", "DequantizeLinear") and (
            attrs.get("block_size") or attrs.get("precision") or not attrs.get("saturate", 1)):
        return f"{step.op} by blocks, or without saturation"
    if step.op == "Quantize" and step.types[0].dtype.name not in ("i8", "u8", "f8e4m3"):
        return f"Quantize to {step.types[0].dtype}"
    if step.op in _BY_NUMPY and len(known) > 1 and known[1] != F32:
        return f"scales of type {known[1]}"
    if step.op == "BitCast" and first.nbytes != step.types[0].dtype.nbytes:
        return f"BitCast of {first} to {step.types[0].dtype}"
    if step.op == "Clip" and first.kind in ("uint", "bool"):
        return f"Clip on {first}"
    if step.op == "Abs" and first.kind == "uint":
        return f"Abs on {first}"
    return None


def cast(value: Value, stored: DType, text: str | None = None) -> str:
    """A value converted to a stored type, as it then is in registers."""
    x, source = text or value.text, value.dtype
    if stored == BOOL:
        return x if source == BOOL else f"({x} != 0)"
    if stored in SHORTS:
        return f"{x}.to({NAMES[stored.name]}).to(tl.float32)"
    if source.kind == "float" and stored.kind in ("int", "uint") and stored.bits < 32:
        return f"{x}.to({NAMES[I32.name]}).to({NAMES[stored.name]})"
    return f"{x}.to({NAMES[stored.name]})"


def _bits_as(value: Value, given: DType, stored: DType) -> str:
    """A value of a stored type `given`, its bits taken for another type of the same width."""
    x = value.text
    if BOOL in (given, stored):
        return f"({x} != 0)" if stored == BOOL else f"{x}.to({NAMES[stored.name]})"
    if given in SHORTS:
        x = f"{x}.to({NAMES[given.name]})"
    return f"{x}.to({NAMES[stored.name]}, bitcast=True)" + (".to(tl.float32)" if stored in SHORTS else "")


def apply(source: Source, step: Step, args: Sequence[Value | None], source_dtype: DType | None = None) -> Value:
    """A pointwise step on values in registers; gives the result, named. `source_dtype` is its first operand's."""
    stored = step.types[0].dtype
    result = registers_of(stored)
    first = next(a for a in args if a is not None)
    attrs = dict(step.attrs)
    if step.op == "Cast":
        return Value(source.let(cast(first, stored)), result)
    if step.op == "BitCast":
        return Value(source.let(_bits_as(first, source_dtype or first.dtype, stored)), result)
    given = tuple(args)
    if step.op == "DequantizeLinear":
        shifted = f"{first}.to(tl.float32)" + (f" - {given[2]}.to(tl.float32)" if len(given) > 2 and given[2] else "")
        return Value(source.let(f"({shifted}) * {given[1]}"), result)
    if step.op == "QuantizeLinear":
        scaled = source.let(f"libdevice.rint(tl.div_rn({first}, {given[1]}))"
                            + (f" + {given[2]}.to(tl.float32)" if len(given) > 2 and given[2] else ""))
        low = 0 if stored.kind == "uint" else -(1 << (stored.bits - 1))
        high = low + (1 << stored.bits) - 1
        kept = source.let(f"tl.where({scaled} < {low}.0, {low}.0, tl.where({scaled} > {high}.0, {high}.0, {scaled}))")
        return Value(source.let(cast(Value(kept, F32), stored)), result)
    if step.op == "Dequantize":
        zero = f" - {given[2]}.to(tl.float32)" if len(given) > 2 and given[2] else ""
        return Value(source.let(f"({first}.to(tl.float32){zero}) * {given[1]}"), result)
    if step.op == "Quantize":
        return Value(source.let(_quantized(source, stored, bool(attrs.get("multiply")), given)), result)
    text = _RULES[step.op](Call(source, attrs, given, result, stored))
    name = source.let(text)
    if step.op == "Pow" and stored.kind != "float":
        name = source.let(f"{name}.to({NAMES[stored.name]})")
    return Value(name, result)


def _quantized(source: Source, stored: DType, multiply: bool, given: Sequence[Value | None]) -> str:
    """A real as an integer, to nearest, ties to even, saturated, NaN the least one; or as f8e4m3.

    Past 1.5 * 2^23 the neighbours of a float are one apart: that sum is rounded to a whole number, which is what its
    last bits say. No call of the device library, no conversion.
    """
    x, factor, zero = (*given, None)[:3]
    scaled = source.let(f"{x} * {factor}" if multiply else f"tl.div_rn({x}, {factor})")
    if stored == F8E4M3:            # the conversion saturates
        return f"{scaled}.to(tl.float8e4nv).to(tl.float32)"
    low = 0 if stored.kind == "uint" else -(1 << (stored.bits - 1))
    high = low + (1 << stored.bits) - 1
    ends = (f"{low}.0", f"{high}.0")
    if zero is not None:
        real = source.let(f"{zero}.to(tl.float32)")
        ends = (source.let(f"{low}.0 - {real}"), source.let(f"{high}.0 - {real}"))
    kept = source.let(f"tl.minimum(tl.maximum({scaled}, {ends[0]}), {ends[1]})")
    whole = source.let(f"({kept} + 12582912.0).to(tl.int32, bitcast=True)")
    return f"({whole}{f' + {zero}.to(tl.int32)' if zero is not None else ''}).to({NAMES[stored.name]})"


def declines_steps(site: Site, steps: Sequence[Step], *, gluon: bool = False) -> str | None:
    """Why one of the steps cannot be computed in registers, or None if all can."""
    for step in steps:
        if why := declines_step(step, [dtype_of(site, i) for i in step.inputs], gluon=gluon):
            return why
    return None


def run_steps(source: Source, start: int, results: dict[int, Value], load: Callable[[int], Value],
              stop: int | None = None) -> Value:
    """Write the site's steps start..stop on registers, and give the last result: see `walk_steps`."""
    def made(step: Step, args: list[Value | None]) -> Value:
        first = next((i for i in step.inputs if i is not None), None)
        return apply(source, step, args, dtype_of(source.site, first))
    return walk_steps(source.site, start, results, load, made, stop)


__all__ = ["apply", "cast", "declines_step", "declines_steps", "run_steps"]
