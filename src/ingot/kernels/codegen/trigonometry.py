"""Trigonometric and hyperbolic functions on vectors in registers: f32, computed in f64 and rounded once (0.501 ulp)."""
from __future__ import annotations

import math as numbers

from ingot.kernels.codegen import math
from ingot.kernels.codegen.code import Code, Value

_PI = numbers.pi

_SIN = tuple((-1) ** k / numbers.factorial(2 * k + 1) for k in range(6, -1, -1))
_COS = tuple((-1) ** k / numbers.factorial(2 * k) for k in range(7, -1, -1))
_TWO_OVER_PI = (0xA2F9836E4E441529, 0xFC2757D1F534DDC0, 0xDB6295993C439041, 0xFE5163ABDEBBC561)   # its first 256 bits


def _quadrant(code: Code, x: Value) -> tuple[Value, Value]:
    """x = q * pi/2 + r with |r| <= pi/4 (a little more for rounding): r in f64, q as i64."""
    d = math.widened(code, x)
    n, whole = math.rounded(code, d, 2 / _PI)
    r = code.fma(n, math.like(code, d, -1.5707963267948966), d)
    r = code.fma(n, math.like(code, d, -6.123233995736766e-17), r)
    found_r, found_q = code.variable(r), code.variable(whole)
    large = code.fcompare("oge", math.absolute(code, x), math.like(code, x, 2.0**28))
    with code.when(math.any_lane(code, large)):
        slow_r, slow_q = _quadrant_of_large(code, x)
        found_r.set(code.select(large, slow_r, r))
        found_q.set(code.select(large, slow_q, whole))
    return found_r.get(), found_q.get()


def _quadrant_of_large(code: Code, x: Value) -> tuple[Value, Value]:
    """`_quadrant` for |x| >= 2^28, by the method of Payne and Hanek: the bits of x * 2/pi that matter, in integers."""
    lanes = x.lanes

    def const(number: int) -> Value:
        return code.constant(number, "i64", lanes)
    wide = code.convert("zext", math.bits(code, math.absolute(code, x)), "i64")
    m = code.binary("or", code.binary("and", wide, const(0x7FFFFF)), const(0x800000))
    first = code.binary("sub", code.binary("lshr", wide, const(23)), const(127 + 23 + 2))   # bits of 2/pi to skip
    word = code.binary("lshr", first, const(5))
    shift = code.binary("and", first, const(31))
    everything = 0
    for part in _TWO_OVER_PI:
        everything = everything << 64 | part
    high, low = const(0), const(0)
    for i in range(4):
        pair = everything >> (256 - 128 - 32 * i) & (1 << 128) - 1
        here = code.compare("==", word, const(i))
        high = code.select(here, const(pair >> 64), high)
        low = code.select(here, const(pair & (1 << 64) - 1), low)
    w = code.intrinsic("fshl", high, low, shift)
    rest = code.binary("lshr", code.binary("shl", low, shift), const(32))
    p = code.binary("add", code.binary("mul", m, w), code.binary("lshr", code.binary("mul", m, rest), const(32)))
    q = code.binary("lshr", code.binary("add", p, const(1 << 61)), const(62))
    fraction = code.convert("sitofp", code.binary("sub", p, code.binary("shl", q, const(62))), "double")
    r = code.fmul(fraction, math.like(code, fraction, _PI / 2 * 2.0**-62))
    negative = code.fcompare("olt", x, math.like(code, x, 0.0))
    r = code.select(negative, code.fneg(r), r)
    q = code.select(negative, code.binary("sub", const(0), q), q)
    # infinities and NaN
    finite = code.fcompare("olt", math.absolute(code, x), math.like(code, x, numbers.inf))
    return code.select(finite, r, math.like(code, r, numbers.nan)), q


def _sin_and_cos(code: Code, r: Value) -> tuple[Value, Value]:
    z = code.fmul(r, r)
    return code.fmul(math.polynomial(code, z, _SIN), r), math.polynomial(code, z, _COS)


def _bit(code: Code, q: Value, bit: int) -> Value:
    found = code.binary("and", q, code.constant(bit, "i64", q.lanes))
    return code.compare("!=", found, code.constant(0, "i64", q.lanes))


def _sine(code: Code, x: Value, turn: int) -> Value:
    r, q = _quadrant(code, x)
    q = code.binary("add", q, code.constant(turn, "i64", q.lanes))
    sine, cosine = _sin_and_cos(code, r)
    result = code.select(_bit(code, q, 1), cosine, sine)
    return math.narrowed(code, code.select(_bit(code, q, 2), code.fneg(result), result), x.element)


def sin(code: Code, x: Value) -> Value:
    """The sine of any finite f32."""
    return code.select(code.fcompare("oeq", x, math.like(code, x, 0.0)), x, _sine(code, x, 0))


def cos(code: Code, x: Value) -> Value:
    """The cosine of any finite f32."""
    return _sine(code, x, 1)


def tan(code: Code, x: Value) -> Value:
    """The tangent of any finite f32."""
    r, q = _quadrant(code, x)
    sine, cosine = _sin_and_cos(code, r)
    odd = _bit(code, q, 1)
    result = code.fdiv(code.select(odd, code.fneg(cosine), sine), code.select(odd, sine, cosine))
    return code.select(code.fcompare("oeq", x, math.like(code, x, 0.0)), x, math.narrowed(code, result, x.element))


def _arc_tangent(code: Code, t: Value) -> Value:
    """atan of t >= 0 (f64, to about 1e-12)."""
    one = math.like(code, t, 1.0)
    inverse = code.fcompare("ogt", t, one)
    u = code.select(inverse, code.fdiv(one, t), t)
    upper = code.fcompare("ogt", u, math.like(code, t, numbers.tan(_PI / 8)))
    z = code.select(upper, code.fdiv(code.fsub(u, one), code.fadd(u, one)), u)
    square = code.fmul(z, z)
    series = math.polynomial(code, square, [(-1) ** k / (2 * k + 1) for k in range(14, -1, -1)])
    a = code.fmul(series, z)
    a = code.select(upper, code.fadd(a, math.like(code, t, _PI / 4)), a)
    return code.select(inverse, code.fsub(math.like(code, t, _PI / 2), a), a)


def atan(code: Code, x: Value) -> Value:
    """The arc tangent."""
    a = _arc_tangent(code, math.widened(code, math.absolute(code, x)))
    return math.copy_sign(code, math.narrowed(code, a, x.element), x)


def _leg(code: Code, t: Value) -> Value:
    """sqrt(1 - t^2), NaN past 1."""
    one = math.like(code, t, 1.0)
    return math.square_root(code, code.fmul(code.fsub(one, t), code.fadd(one, t)))


def asin(code: Code, x: Value) -> Value:
    """The arc sine; NaN outside -1..1."""
    t = math.widened(code, math.absolute(code, x))
    return math.copy_sign(code, math.narrowed(code, _arc_tangent(code, code.fdiv(t, _leg(code, t))), x.element), x)


def acos(code: Code, x: Value) -> Value:
    """The arc cosine; NaN outside -1..1."""
    t = math.widened(code, math.absolute(code, x))
    a = _arc_tangent(code, code.fdiv(_leg(code, t), t))
    negative = code.fcompare("olt", x, math.like(code, x, 0.0))
    return math.narrowed(code, code.select(negative, code.fsub(math.like(code, a, _PI), a), a), x.element)


# --- hyperbolic functions ---------------------------------------------------------------------------------------------

def _odd(code: Code, x: Value, t: Value, far: Value, cubic: float) -> Value:
    """An odd function of x from its value at t = |x|, which loses its relative accuracy only below 2^-20."""
    near = code.fma(code.fmul(code.fmul(t, t), t), math.like(code, t, cubic), t)
    tiny = code.fcompare("olt", t, math.like(code, t, 2.0**-20))
    return math.copy_sign(code, math.narrowed(code, code.select(tiny, near, far), x.element), x)


def sinh(code: Code, x: Value) -> Value:
    """The hyperbolic sine."""
    t = math.widened(code, math.absolute(code, x))
    e = math.exp(code, t)
    far = code.fmul(code.fsub(e, code.fdiv(math.like(code, t, 1.0), e)), math.like(code, t, 0.5))
    return _odd(code, x, t, far, 1 / 6)


def cosh(code: Code, x: Value) -> Value:
    """The hyperbolic cosine."""
    e = math.exp(code, math.widened(code, math.absolute(code, x)))
    twice = code.fadd(e, code.fdiv(math.like(code, e, 1.0), e))
    return math.narrowed(code, code.fmul(twice, math.like(code, e, 0.5)), x.element)


def asinh(code: Code, x: Value) -> Value:
    """The inverse hyperbolic sine."""
    t = math.widened(code, math.absolute(code, x))
    far = math.log(code, code.fadd(t, math.square_root(code, code.fma(t, t, math.like(code, t, 1.0)))))
    return _odd(code, x, t, far, -1 / 6)


def acosh(code: Code, x: Value) -> Value:
    """The inverse hyperbolic cosine; NaN below 1."""
    t = math.widened(code, x)
    one = math.like(code, t, 1.0)
    root = math.square_root(code, code.fmul(code.fsub(t, one), code.fadd(t, one)))
    result = math.log(code, code.fadd(t, root))
    inside = code.fcompare("oge", t, one)
    return math.narrowed(code, code.select(inside, result, math.like(code, t, numbers.nan)), x.element)


def atanh(code: Code, x: Value) -> Value:
    """The inverse hyperbolic tangent; NaN outside -1..1."""
    t = math.widened(code, math.absolute(code, x))
    one = math.like(code, t, 1.0)
    far = code.fmul(math.log(code, code.fdiv(code.fadd(one, t), code.fsub(one, t))), math.like(code, t, 0.5))
    return _odd(code, x, t, far, 1 / 3)
