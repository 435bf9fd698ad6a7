"""Quantised graphs on a GPU: products and convolutions of i8, and products of f8e4m3, zero being zero on both sides.

    MatMul(Dequantize(x, s), Dequantize(w, t))  ->  Mul(Cast(MatMulInteger(x, w)), s * t)            i8
    MatMul(Dequantize(x, s), Dequantize(w, t))  ->  Mul(ShortMatMul(x, w), s * t)                    f8e4m3

The same for Gemm, and in i8 for Conv. The matrix units take one signed type on both sides; what has a zero point, or
u8, stays as it is and is computed in floats.
"""
from __future__ import annotations

from ingot.graph import F8E4M3, I8
from ingot.passes.integer import LEFT, POINTWISE, QUANTIZED_AGAIN, RIGHT, scaled, with_bias
from ingot.passes.rewrite import Match, P, Rule

_ELEMENTS = (I8, F8E4M3)


def _unfit(match: Match, axis: int) -> str | None:
    """Why the operands are none to be summed as they are. `axis`: the weight's columns."""
    x, weight, scale = match.type("x"), match.type("w"), match.array("t")
    if x.dtype not in _ELEMENTS or weight.dtype != x.dtype:
        return f"its operands are {x.dtype} and {weight.dtype}"
    if any(match[n] and (match.const(n) is None or match.array(n).any()) for n in ("z", "y")):
        return "it has a zero point"
    if match.const("s") is None or match.type("s").size != 1:
        return "its input's scale is not one constant number"
    full = (1,) * (weight.rank - scale.ndim) + scale.shape
    if any(d != 1 for k, d in enumerate(full) if k != axis % weight.rank):
        return "its weight's scales lie along the depth"
    return None


def _no_product(match: Match) -> str | None:
    if match.type("w").rank != 2:
        return f"its weight has {match.type('w').rank} dimensions"
    if match.root.op == "Gemm" and (match.attr(match.root, "transA") or match.attr(match.root, "transB")
                                    or match.attr(match.root, "alpha") != 1.0
                                    or match.attr(match.root, "beta") != 1.0):
        return "it has factors, or an operand transposed"
    return _unfit(match, 1)


def _product(match: Match) -> str:
    op = "MatMulInteger" if match.type("x").dtype == I8 else "ShortMatMul"
    sums = match.add(op, match["x"], match["w"])
    real = scaled(match, sums, (match.array("w").shape[1],))
    return match.add("Add", real, match["c"]) if match["c"] else real


def _no_convolution(match: Match) -> str | None:
    if match.type("x").dtype != I8:
        return f"its input is {match.type('x').dtype}"
    return _unfit(match, 0)


def _convolution(match: Match) -> str:
    attrs = {k: v for k, v in match.root.attrs.items() if k != "layout"}
    weight = match.array("w")
    ones = (1,) * (weight.ndim - 2)
    sums = match.add("ConvInteger", match["x"], match["w"], **attrs)
    return with_bias(match, scaled(match, sums, (1, weight.shape[0], *ones)))


RULES = (
    *POINTWISE,
    QUANTIZED_AGAIN,
    Rule("signed-product", (P("MatMul", LEFT, RIGHT), P("Gemm", LEFT, RIGHT, "c?")), make=_product,
         decline=_no_product),
    Rule("signed-convolution", P("Conv", LEFT, RIGHT, "b?"), make=_convolution, decline=_no_convolution),
)


__all__ = ["RULES"]
