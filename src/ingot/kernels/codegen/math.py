"""Math functions on vectors in registers.

Stated error, over every f32: `exp`, `exp2`, `log`, `log1p`, `expm1`, `erf`, `tanh`, `sigmoid`, `power`, `softplus`, and
all of trigonometry.py: at most 2 ulp, with NaN, infinities and denormal numbers as IEEE has them. The frequent ones
stay in f32; the others are computed in f64 and rounded once. On f64 only `exp`, `log`, `sigmoid` and `softplus` work.
"""
from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import cache

import numpy as np

from ingot.kernels.codegen.code import Code, Value, float_literal

INFINITY = math.inf
_LN2 = math.log(2.0)
_PI = math.pi
# (mantissa bits, exponent bias, integer type, 1.5 * 2^mantissa: adding it rounds to an integer in the low bits)
_FORMAT = {"float": (23, 127, "i32", 12582912.0), "double": (52, 1023, "i64", 6755399441055744.0)}


# --- helpers ----------------------------------------------------------------------------------------------------------

def like(code: Code, x: Value, number: float) -> Value:
    """The constant with the type of `x`."""
    return code.constant(number, x.element, x.lanes)


def polynomial(code: Code, x: Value, factors: Sequence[float]) -> Value:
    """Horner's scheme; the factor of the highest power comes first."""
    total = like(code, x, factors[0])
    for factor in factors[1:]:
        total = code.fma(total, x, like(code, x, factor))
    return total


def bits(code: Code, x: Value) -> Value:
    """The bits of floats as integers of the same width."""
    return code.convert("bitcast", x, _FORMAT[x.element][2])


def floats(code: Code, i: Value) -> Value:
    """Integers read as the bits of floats."""
    return code.convert("bitcast", i, "float" if i.element == "i32" else "double")


def absolute(code: Code, x: Value) -> Value:
    return code.intrinsic("fabs", x)


def square_root(code: Code, x: Value) -> Value:
    return code.intrinsic("sqrt", x)


def copy_sign(code: Code, size: Value, sign: Value) -> Value:
    return code.intrinsic("copysign", size, sign)


def widened(code: Code, x: Value) -> Value:
    """f32 as f64."""
    return code.convert("fpext", x, "double")


def narrowed(code: Code, x: Value, to: str) -> Value:
    """f64 rounded to the element type `to`, or as it is."""
    return x if x.element == to else code.convert("fptrunc", x, to)


def _double(code: Code, x: Value) -> Value:
    return x if x.element == "double" else widened(code, x)


def rounded(code: Code, x: Value, factor: float) -> tuple[Value, Value]:
    """x * factor rounded to an integer: as a float, and as an integer."""
    magic = like(code, x, _FORMAT[x.element][3])
    shifted = code.fma(x, like(code, x, factor), magic)
    whole = code.binary("sub", bits(code, shifted), bits(code, magic))
    return code.fsub(shifted, magic), whole


def _scaled(code: Code, x: Value, n: Value, whole: Value) -> Value:
    """x * 2^n, rounded once, for n in -1100..1100 (f64) or -160..160 (f32)."""
    if code.isa.name == "avx512" and x.type == "<16 x float>":
        name = "llvm.x86.avx512.mask.scalef.ps.512"
        code.declare(name, x.type, x.type, x.type, x.type, "i16", "i32")
        return code.emit(x.type, f"call {x.type} @{name}({x}, {n}, {x.type} zeroinitializer, i16 -1, i32 4)")
    mantissa, bias, integer, _ = _FORMAT[x.element]
    half = code.binary("ashr", whole, code.constant(1, integer, x.lanes))
    for part in (half, code.binary("sub", whole, half)):
        exponent = code.binary("add", part, code.constant(bias, integer, x.lanes))
        x = code.fmul(x, floats(code, code.binary("shl", exponent, code.constant(mantissa, integer, x.lanes))))
    return x


def _clamped(code: Code, x: Value, low: float, high: float) -> Value:
    """x within the bounds; NaN stays NaN."""
    return code.fmin(like(code, x, high), code.fmax(like(code, x, low), x))


def any_lane(code: Code, mask: Value) -> Value:
    """Whether any lane of a mask is set, as i1."""
    if mask.lanes == 1:
        return mask
    integer = code.emit(f"i{mask.lanes}", f"bitcast {mask} to i{mask.lanes}")
    return code.compare("!=", integer, 0)


# --- exponentials -----------------------------------------------------------------------------------------------------

_EXP_F32 = (0.000198527617612853646278381, 0.00139304355252534151077271, 0.00833336077630519866943359,
            0.0416664853692054748535156, 0.166666671633720397949219, 0.5, 1.0, 1.0)
_EXP_F64 = tuple(1 / math.factorial(n) for n in range(13, -1, -1))
_EXP = {"float": _EXP_F32, "double": _EXP_F64}
_LN2_HIGH = {"float": 0.693145751953125, "double": 0.6931471803691238}
_LN2_LOW = {"float": 1.428606765330187e-06, "double": 1.9082149292705877e-10}


def exp(code: Code, x: Value) -> Value:
    """e^x."""
    x = _clamped(code, x, *((-104.0, 89.0) if x.element == "float" else (-746.0, 710.0)))
    n, whole = rounded(code, x, 1 / _LN2)
    r = code.fma(n, like(code, x, -_LN2_HIGH[x.element]), x)
    r = code.fma(n, like(code, x, -_LN2_LOW[x.element]), r)
    return _scaled(code, polynomial(code, r, _EXP[x.element]), n, whole)


def exp2(code: Code, x: Value) -> Value:
    """2^x."""
    x = _clamped(code, x, *((-151.0, 129.0) if x.element == "float" else (-1076.0, 1025.0)))
    n, whole = rounded(code, x, 1.0)
    r = code.fmul(code.fsub(x, n), like(code, x, _LN2))
    return _scaled(code, polynomial(code, r, _EXP[x.element]), n, whole)


def expm1(code: Code, x: Value) -> Value:
    """e^x - 1."""
    d = _double(code, x)
    near = code.fma(code.fmul(d, d), like(code, d, 0.5), d)
    far = code.fsub(exp(code, d), like(code, d, 1.0))
    tiny = code.fcompare("olt", absolute(code, d), like(code, d, 2.0**-20))
    return _signed_zero(code, x, narrowed(code, code.select(tiny, near, far), x.element))


def _signed_zero(code: Code, x: Value, result: Value) -> Value:
    """The result with the sign of x: for odd functions, where a zero must keep its sign."""
    return copy_sign(code, result, x)


def sigmoid(code: Code, x: Value) -> Value:
    """1 / (1 + e^-x)."""
    one = like(code, x, 1.0)
    e = exp(code, code.fneg(absolute(code, x)))
    top = code.select(code.fcompare("olt", x, like(code, x, 0.0)), e, one)
    s = code.fadd(one, e)
    q = code.fdiv(top, s)
    # one step of Newton's with the exact remainder, which knows what 1 + e lost; 1 - e/2 is near enough to 1/s
    lost = code.fsub(e, code.fsub(s, one))
    minus = code.fneg(q)
    rest = code.fma(minus, lost, code.fma(minus, s, top))
    return code.fma(rest, code.fma(e, like(code, x, -0.5), one), q)


def gated(code: Code, x: Value, y: Value) -> Value:
    """x * sigmoid(y), to a few ulp."""
    return code.fdiv(x, code.fadd(like(code, x, 1.0), exp(code, code.fneg(y))))


# --- logarithms -------------------------------------------------------------------------------------------------------

_LOG_F32 = (7.0376836292e-2, -1.1514610310e-1, 1.1676998740e-1, -1.2420140846e-1, 1.4249322787e-1, -1.6668057665e-1,
            2.0000714765e-1, -2.4999993993e-1, 3.3333331174e-1)


def _split(code: Code, x: Value) -> tuple[Value, Value, Value]:
    """m, e and e as an integer, with x = m * 2^e and m in [sqrt(1/2), sqrt(2)), for normal x > 0."""
    mantissa, _, integer, _ = _FORMAT[x.element]
    root = code.constant(0x3F3504F3 if x.element == "float" else 0x3FE6A09E667F3BCD, integer, x.lanes)
    i = code.binary("sub", bits(code, x), root)
    whole = code.binary("ashr", i, code.constant(mantissa, integer, x.lanes))
    rest = code.binary("and", i, code.constant((1 << mantissa) - 1, integer, x.lanes))
    return floats(code, code.binary("add", rest, root)), code.convert("sitofp", whole, x.element), whole


def _log_near_one(code: Code, f: Value, e: Value) -> Value:
    """log(1 + f) + e * log(2), for f in [sqrt(1/2) - 1, sqrt(2) - 1)."""
    if f.element == "float":
        z = code.fmul(f, f)
        y = code.fmul(code.fmul(polynomial(code, f, _LOG_F32), f), z)
        y = code.fma(e, like(code, f, -2.12194440e-4), y)
        y = code.fma(z, like(code, f, -0.5), y)
        return code.fma(e, like(code, f, 0.693359375), code.fadd(f, y))
    s = code.fdiv(f, code.fadd(f, like(code, f, 2.0)))
    z = code.fmul(s, s)
    series = polynomial(code, z, [2 / (2 * k + 1) for k in range(11, 0, -1)])
    # log(1+f) = 2s + s*z*series, and 2s = f - s*f keeps the leading bits exact
    tail = code.fma(e, like(code, f, _LN2_LOW["double"]), code.fmul(s, code.fsub(code.fmul(z, series), f)))
    return code.fma(e, like(code, f, _LN2_HIGH["double"]), code.fadd(f, tail))


def _log_ends(code: Code, x: Value, result: Value) -> Value:
    """log's result with log(0) = -inf, log(x < 0) = NaN, log(inf) = inf and NaN for NaN."""
    result = code.select(code.fcompare("oeq", x, like(code, x, 0.0)), like(code, x, -INFINITY), result)
    result = code.select(code.fcompare("olt", x, like(code, x, 0.0)), like(code, x, math.nan), result)
    odd = code.fcompare("ueq", x, like(code, x, INFINITY))          # infinite, or NaN
    return code.select(odd, x, result)


def log(code: Code, x: Value) -> Value:
    """The natural logarithm."""
    single = x.element == "float"
    small = code.fcompare("olt", x, like(code, x, 2.0**-126 if single else 2.0**-1022))
    lift = 23.0 if single else 52.0
    scaled = code.select(small, code.fmul(x, like(code, x, 2.0**lift)), x)
    m, e, _ = _split(code, scaled)
    e = code.fadd(e, code.select(small, like(code, x, -lift), like(code, x, 0.0)))
    return _log_ends(code, x, _log_near_one(code, code.fsub(m, like(code, x, 1.0)), e))


def log1p(code: Code, x: Value) -> Value:
    """log(1 + x)."""
    one = like(code, x, 1.0)
    u = code.fadd(one, x)
    mantissa, bias, integer, _ = _FORMAT[x.element]
    m, e, whole = _split(code, u)
    # what 1 + x lost in rounding, brought to the scale of m; x is huge where 2^-e would be denormal
    lost = code.select(code.fcompare("ogt", absolute(code, x), one), code.fsub(one, code.fsub(u, x)),
                       code.fsub(x, code.fsub(u, one)))
    exponent = code.binary("sub", code.constant(bias, integer, x.lanes), whole)
    back = floats(code, code.binary("shl", exponent, code.constant(mantissa, integer, x.lanes)))
    huge = code.fcompare("ogt", x, like(code, x, 2.0**60))
    lost = code.select(huge, like(code, x, 0.0), code.fmul(lost, back))
    f = code.fadd(code.fsub(m, one), lost)
    result = _log_ends(code, u, _log_near_one(code, f, e))
    tiny = code.fcompare("olt", absolute(code, x), like(code, x, 2.0**-26 if x.element == "float" else 2.0**-54))
    return code.select(tiny, x, result)


def softplus(code: Code, x: Value) -> Value:
    """log(1 + e^x)."""
    e = exp(code, code.fneg(absolute(code, x)))
    return code.fadd(code.fmax(like(code, x, 0.0), x), log1p(code, e))


# --- error function, hyperbolic tangent -------------------------------------------------------------------------------

_ERF_NEAR = (-5.96761703e-4, 4.99119423e-3, -2.67681349e-2, 1.12819925e-1, -3.76125336e-1, 1.28379166e-1)


def erf(code: Code, x: Value) -> Value:
    """The error function (f32)."""
    t, s = absolute(code, x), code.fmul(x, x)
    r = code.fma(like(code, x, -1.72853470e-5), t, like(code, x, 3.83197126e-4))
    u = code.fma(like(code, x, -3.88396438e-3), t, like(code, x, 2.42546219e-2))
    r = code.fma(r, s, u)
    for factor in (-1.06777877e-1, -6.34846687e-1, -1.28717512e-1):
        r = code.fma(r, t, like(code, x, factor))
    r = code.fma(r, t, code.fneg(t))
    one = like(code, x, 1.0)
    # at t beyond 10 the polynomial turns upwards, and it is inf - inf at infinity
    r = code.select(code.fcompare("ogt", t, like(code, x, 10.0)), like(code, x, -100.0), r)
    far = copy_sign(code, code.fsub(one, exp(code, r)), x)
    near = code.fma(polynomial(code, s, _ERF_NEAR), x, x)
    return code.select(code.fcompare("ogt", t, like(code, x, 0.927734375)), far, near)


def tanh(code: Code, x: Value) -> Value:
    """The hyperbolic tangent (f32)."""
    t, one = absolute(code, x), like(code, x, 1.0)
    e = exp(code, code.fadd(t, t))
    far = copy_sign(code, code.fsub(one, code.fdiv(like(code, x, 2.0), code.fadd(e, one))), x)
    z = code.fmul(x, x)
    p = polynomial(code, z, (-5.70498872745e-3, 2.06390887954e-2, -5.37397155531e-2, 1.33314422036e-1,
                             -3.33332819422e-1))
    near = code.fma(code.fmul(p, z), x, x)
    return code.select(code.fcompare("olt", t, like(code, x, 0.625)), near, far)


# --- composite activations --------------------------------------------------------------------------------------------

# 2^f for |f| <= 1/2, and log2(erfcx(a / sqrt(2)) / 2) for a in 0..5: minimax fits, highest power first
_POWER_OF_TWO = (1.534580223960802e-4, 1.3399932067841291e-3, 9.618489071726799e-3, 5.550328642129898e-2,
                 2.4022646248340607e-1, 6.931471824645996e-1, 1.0)
_TAIL = (-2.994902459363402e-08, 8.578019219385169e-07, -1.0667974493117072e-05, 7.318752614082769e-05,
         -2.636470308061689e-4, -4.212514613755047e-05, 7.008189335465431e-3, -5.24887852370739e-2,
         2.621442377567291e-1, -1.151106595993042, -0.9999999403953552)


def gelu(code: Code, x: Value) -> Value:
    """x * Phi(x), with Phi(a) = 1 - Phi(-a): one function of |x| in the place of erf and a cancellation.

    The error is below 4e-7 everywhere, and below 5e-7 of |x|.
    """
    if x.element != "float":
        half = code.fmul(x, like(code, x, 0.5))
        return code.fma(half, erf(code, code.fmul(x, like(code, x, math.sqrt(0.5)))), half)
    tail = _tail_by_table(code, x) if code.isa.name == "avx512" and x.lanes == 16 else _tail_by_power(code, x)
    negative = code.fcompare("olt", x, like(code, x, 0.0))
    return code.fmul(x, code.select(negative, tail, code.fsub(like(code, x, 1.0), tail)))


_WIDTH = 0.375      # of an interval of the table; the last of the sixteen, from 5.4375 on, is 0


@cache
def _tail_table() -> tuple[tuple[float, ...], ...]:
    """Phi(-a) on 16 intervals around multiples of the width: polynomials of degree 4 through Chebyshev's nodes.

    Five rows of sixteen factors, highest power first; the variable is a / width less the interval's number. They are
    within 1.1e-7 of Phi, most of it where Phi(-a) is above 0.1.
    """
    rows = []
    for k in range(15):
        low, high = (0.0 if k == 0 else -0.5), 0.5
        nodes = [(low + high) / 2 + (high - low) / 2 * math.cos((2 * j + 1) * _PI / 10) for j in range(5)]
        values = [math.erfc((k + r) * _WIDTH / math.sqrt(2)) / 2 for r in nodes]
        rows.append(np.linalg.solve(np.vander(nodes, 5), values).tolist())
    rows.append([0.0] * 5)
    return tuple(zip(*rows, strict=True))


def _tail_by_table(code: Code, x: Value) -> Value:
    """Phi(-|x|) by sixteen polynomials, their factors looked up in registers."""
    a = code.fmin(like(code, x, 15 * _WIDTH), absolute(code, x))
    magic = like(code, x, _FORMAT["float"][3])
    shifted = code.fma(a, like(code, x, 1 / _WIDTH), magic)         # the interval's number in the low bits
    r = code.fma(a, like(code, x, 1 / _WIDTH), code.fneg(code.fsub(shifted, magic)))
    index = bits(code, shifted)
    name = "llvm.x86.avx512.permvar.sf.512"
    code.declare(name, x.type, x.type, index.type)
    total: Value | None = None
    for row in _tail_table():
        table = Value(x.type, "<" + ", ".join(f"float {float_literal('float', v)}" for v in row) + ">")
        factor = code.emit(x.type, f"call {x.type} @{name}({table}, {index})")
        total = factor if total is None else code.fma(total, r, factor)
    assert total is not None        # there are five rows
    return total


def _tail_by_power(code: Code, x: Value) -> Value:
    """Phi(-|x|) as a power of two."""
    a = absolute(code, x)
    # past 5 the tail keeps falling by its square alone: it is below 1e-6 of x there
    g = polynomial(code, code.fmin(like(code, x, 5.0), a), _TAIL)
    p = code.fma(code.fmul(a, a), like(code, x, -0.5 / _LN2), g)
    p = code.fmax(like(code, x, -151.0), p)
    n, whole = rounded(code, p, 1.0)
    return _scaled(code, polynomial(code, code.fsub(p, n), _POWER_OF_TWO), n, whole)


def gelu_tanh(code: Code, x: Value) -> Value:
    """x/2 * (1 + tanh(sqrt(2/pi) * (x + 0.044715 x^3))), written as x * sigmoid of twice the argument."""
    factor = code.fma(code.fmul(x, x), like(code, x, 2 * 0.044715 * math.sqrt(2 / _PI)),
                      like(code, x, 2 * math.sqrt(2 / _PI)))
    return gated(code, x, code.fmul(x, factor))


def mish(code: Code, x: Value) -> Value:
    """x * tanh(softplus(x)) = x * w / (w + 2) with w = e^x (e^x + 2)."""
    n = exp(code, code.fmin(like(code, x, 30.0), x))
    two = like(code, x, 2.0)
    w = code.fmul(n, code.fadd(n, two))
    return code.fmul(x, code.fdiv(w, code.fadd(w, two)))


# --- powers -----------------------------------------------------------------------------------------------------------

def power(code: Code, x: Value, y: Value) -> Value:
    """x^y (f32), with C's rules for zeros, infinities, negative bases and NaN.

    Where every lane has the exponent 2, 3, 0.5 or -1, nothing slower than that is computed.
    """
    found = code.variable(code.fmul(x, x))
    done = code.variable(Value("i1", "false"))
    cheap: tuple[tuple[float, Callable[[], Value]], ...] = (
        (3.0, lambda: code.fmul(code.fmul(x, x), x)), (0.5, lambda: square_root(code, x)),
        (-1.0, lambda: code.fdiv(like(code, x, 1.0), x)))
    done.set(_all_lanes(code, code.fcompare("oeq", y, like(code, y, 2.0))))
    for exponent, make in cheap:
        same = _all_lanes(code, code.fcompare("oeq", y, like(code, y, exponent)))
        if exponent == 0.5:     # pow(-inf, 0.5) is inf, and pow(-0.0, 0.5) is 0
            same = code.binary("and", same, _all_lanes(code, code.fcompare("ogt", x, like(code, x, 0.0))))
        with code.when(same):
            found.set(make())
            done.set(Value("i1", "true"))
    with code.when(code.binary("xor", done.get(), Value("i1", "true"))):
        found.set(_any_power(code, x, y))
    return found.get()


def _all_lanes(code: Code, mask: Value) -> Value:
    every = Value(mask.type, "true" if mask.lanes == 1 else "splat (i1 true)")
    return code.binary("xor", any_lane(code, code.binary("xor", mask, every)), Value("i1", "true"))


def _any_power(code: Code, x: Value, y: Value) -> Value:
    one, zero = like(code, x, 1.0), like(code, x, 0.0)
    d = widened(code, y)
    size = absolute(code, x)
    result = narrowed(code, exp(code, code.fmul(d, log(code, widened(code, size)))), x.element)
    whole = code.fcompare("oeq", code.intrinsic("trunc", y), y)         # infinities count as (even) whole numbers
    half = code.fmul(y, like(code, y, 0.5))
    odd = code.binary("and", whole, code.fcompare("une", code.intrinsic("trunc", half), half))
    below = code.compare("<", bits(code, x), code.constant(0, "i32", x.lanes))      # the sign bit, of -0.0 too
    result = code.select(code.binary("and", odd, below), code.fneg(result), result)
    finite = code.fcompare("ogt", x, like(code, x, -INFINITY))
    bad = code.binary("and", code.binary("and", finite, code.fcompare("olt", x, zero)),
                      code.binary("and", code.fcompare("ord", y, y), _not(code, whole)))
    result = code.select(bad, like(code, x, math.nan), result)
    # 1^y and x^0 are 1 even for NaN; so is (-1)^inf
    endless = code.fcompare("oeq", absolute(code, y), like(code, y, INFINITY))
    unit = code.binary("and", code.fcompare("oeq", size, one), endless)
    unit = code.binary("or", unit, code.fcompare("oeq", x, one))
    unit = code.binary("or", unit, code.fcompare("oeq", y, zero))
    return code.select(unit, one, result)


def _not(code: Code, mask: Value) -> Value:
    return code.binary("xor", mask, Value(mask.type, "true" if mask.lanes == 1 else "splat (i1 true)"))
