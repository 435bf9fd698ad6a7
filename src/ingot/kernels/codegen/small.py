"""Element types of eight bits and fewer: floats of 8 and 4 bits, exponents alone, integers of 4 and 2 bits.

Each element takes a byte, its value in the low bits, in registers as in memory. Rounding is to nearest, ties to even,
as in ml_dtypes, whose treatment of NaN, infinity and overflow these functions repeat.
"""
from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from ingot.graph import DType
from ingot.kernels.codegen import math
from ingot.kernels.codegen.code import Code, Value


@dataclass(frozen=True)
class Format:
    """A float of at most eight bits: sign, exponent, `mantissa` bits.

    `greatest` is the code of the greatest finite magnitude, `over` what a larger one becomes without saturation, `nan`
    the code of NaN (None: there is none). `unsigned_zero` formats have one zero and one NaN, the code of -0.
    """

    bits: int
    mantissa: int
    bias: int
    greatest: int
    over: int
    nan: int | None
    unsigned_zero: bool = False


FLOATS: Mapping[str, Format] = {
    "f8e4m3": Format(8, 3, 7, 0x7E, 0x7F, 0x7F), "f8e5m2": Format(8, 2, 15, 0x7B, 0x7C, 0x7E),
    "f8e4m3fnuz": Format(8, 3, 8, 0x7F, 0x80, 0x80, True), "f8e5m2fnuz": Format(8, 2, 16, 0x7F, 0x80, 0x80, True),
    "f4e2m1": Format(4, 1, 1, 7, 7, None)}
INTEGERS: Mapping[str, int] = {"i4": 4, "u4": 4, "i2": 2, "u2": 2}      # bits that hold the value
SMALL = frozenset((*FLOATS, *INTEGERS, "f8e8m0"))


def decoded(code: Code, x: Value, dtype: DType) -> Value:
    """A small float as f32, exactly."""
    wide = code.convert("zext", x, "i32")
    if dtype.name == "f8e8m0":
        return _power(code, wide)
    f = FLOATS[dtype.name]
    size = code.binary("and", wide, math.like(code, wide, (1 << (f.bits - 1)) - 1))
    shift = math.like(code, wide, 23 - f.mantissa)
    normal = code.binary("add", code.binary("shl", size, shift), math.like(code, wide, (127 - f.bias) << 23))
    step = code.constant(2.0 ** (1 - f.bias - f.mantissa), "float", x.lanes)
    tiny = code.fmul(code.convert("uitofp", size, "float"), step)
    value = code.select(code.compare("<", size, math.like(code, size, 1 << f.mantissa)), tiny,
                        math.floats(code, normal))
    sign = code.binary("shl", code.binary("lshr", wide, math.like(code, wide, f.bits - 1)), math.like(code, wide, 31))
    value = math.floats(code, code.binary("or", math.bits(code, value), sign))
    if f.unsigned_zero:
        return code.select(code.compare("==", wide, math.like(code, wide, 0x80)), _nan(code, value), value)
    if f.nan is None:
        return value
    if f.over != f.nan:
        endless = math.copy_sign(code, math.like(code, value, math.INFINITY), value)
        value = code.select(code.compare("==", size, math.like(code, size, f.over)), endless, value)
        return code.select(code.compare(">", size, math.like(code, size, f.over)), _nan(code, value), value)
    return code.select(code.compare("==", size, math.like(code, size, f.nan)), _nan(code, value), value)


def _nan(code: Code, x: Value) -> Value:
    """NaN, of the sign of x."""
    return math.copy_sign(code, math.like(code, x, float("nan")), x)


def _power(code: Code, exponent: Value) -> Value:
    """2^(exponent - 127); NaN for 255."""
    normal = code.binary("shl", exponent, math.like(code, exponent, 23))
    found = code.select(code.compare("==", exponent, math.like(code, exponent, 0)),
                        math.like(code, exponent, 1 << 22), normal)
    value = math.floats(code, found)
    return code.select(code.compare("==", exponent, math.like(code, exponent, 255)), _nan(code, value), value)


def encoded(code: Code, x: Value, dtype: DType, *, saturate: bool = True) -> Value:
    """f32 rounded to a small float; what is too large becomes the greatest, or without `saturate` infinity or NaN."""
    f = FLOATS[dtype.name]
    raw = math.bits(code, x)
    size = code.binary("and", raw, math.like(code, raw, 0x7FFFFFFF))
    shift = 23 - f.mantissa
    odd = code.binary("and", code.binary("lshr", size, math.like(code, raw, shift)), math.like(code, raw, 1))
    near = code.binary("add", size, code.binary("add", odd, math.like(code, raw, (1 << (shift - 1)) - 1)))
    normal = code.binary("sub", code.binary("lshr", near, math.like(code, raw, shift)),
                         math.like(code, raw, (127 - f.bias) << f.mantissa))
    # adding a power of two rounds to the step between the smallest numbers
    magic = math.like(code, x, 2.0 ** (1 - f.bias - f.mantissa + 23))
    tiny = code.binary("sub", math.bits(code, code.fadd(math.absolute(code, x), magic)), math.bits(code, magic))
    least = math.like(code, raw, (127 + 1 - f.bias) << 23)
    found = code.select(code.compare("<", size, least), tiny, normal)
    over = code.compare(">", found, math.like(code, raw, f.greatest))
    found = code.select(over, math.like(code, raw, f.greatest if saturate else f.over), found)
    sign = code.binary("shl", code.binary("lshr", raw, math.like(code, raw, 31)), math.like(code, raw, f.bits - 1))
    signed = code.binary("or", found, sign)
    odd_one = code.fcompare("uno", x, x)
    if f.unsigned_zero:
        signed = code.select(code.compare("==", found, math.like(code, raw, 0)), found, signed)
        signed = code.select(odd_one, math.like(code, raw, 0x80), signed)
    elif f.nan is None:     # NaN becomes a zero of the other sign
        signed = code.select(odd_one, code.binary("xor", sign, math.like(code, raw, 1 << (f.bits - 1))), signed)
    else:
        signed = code.select(odd_one, code.binary("or", sign, math.like(code, raw, f.nan)), signed)
    return code.convert("trunc", signed, "i8")


def exponent_of(code: Code, x: Value, *, saturate: bool, mode: str) -> Value:
    """f32 as an exponent alone (f8e8m0), rounded "up", "down" or to the "nearest"; NaN and infinity become NaN."""
    raw = math.bits(code, x)
    exponent = code.binary("and", code.binary("lshr", raw, math.like(code, raw, 23)), math.like(code, raw, 255))
    rest = code.binary("and", raw, math.like(code, raw, 0x7FFFFF))
    if mode == "down":
        return code.convert("trunc", exponent, "i8")
    up = code.compare("!=", rest, math.like(code, raw, 0))
    if mode == "nearest":       # halfway goes up, but for the least exponent
        above = code.compare(">", rest, math.like(code, raw, 0x400000))
        half = code.compare("==", rest, math.like(code, raw, 0x400000))
        up = code.binary("or", above, code.binary("and", half, code.compare(">", exponent, math.like(code, raw, 0))))
    up = code.binary("and", up, code.compare("<", exponent, math.like(code, raw, 254 if saturate else 255)))
    return code.convert("trunc", code.binary("add", exponent, code.convert("zext", up, "i32")), "i8")


def spread(code: Code, x: Value, dtype: DType) -> Value:
    """A small integer as i8, by its sign or without one."""
    off = math.like(code, x, 8 - INTEGERS[dtype.name])
    return code.binary("ashr" if dtype.kind == "int" else "lshr", code.binary("shl", x, off), off)


def packed(code: Code, x: Value, dtype: DType) -> Value:
    """i8 as a small integer: the low bits."""
    return code.binary("and", x, math.like(code, x, (1 << INTEGERS[dtype.name]) - 1))


def to_odd(code: Code, x: Value) -> Value:
    """f64 as f32, rounded so that rounding it once more, to at most 22 bits, is as good as rounding once."""
    near = code.convert("fptrunc", x, "float")
    back = code.convert("fpext", near, "double")
    raw = math.bits(code, near)
    one = math.like(code, raw, 1)
    past = code.fcompare("ogt", math.absolute(code, back), math.absolute(code, x))
    cut = code.binary("or", code.select(past, code.binary("sub", raw, one), raw), one)
    return math.floats(code, code.select(code.fcompare("one", back, x), cut, raw))
