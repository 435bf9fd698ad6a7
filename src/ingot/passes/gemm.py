"""Write Gemm as MatMul and Add, so that one form of product is left.

    alpha * A' B' + beta * C   ->   Add(MatMul(A', alpha * B'), beta * C)

Constant operands are transposed and scaled here, once. With alpha other than 1 the product is scaled before its
sum instead of after it: it may round differently, and overflow at another size.
"""
from __future__ import annotations

import numpy as np

from ingot.graph import Graph
from ingot.passes.constant_folding import fold_constants
from ingot.passes.graph_pass import graph_pass
from ingot.passes.rewrite import Const, Match, P, Rule, rewrite
from ingot.target import Target


def _factor(match: Match, name: str) -> float:
    return float(str(match.attr(match.root, name)))


def _scaled(match: Match, name: str, value: str, factor: float) -> str:
    """The operand times a number, in its constant where it is one."""
    if factor == 1.0:
        return value
    dtype = match.out.dtype.numpy
    array = match.state.constants.get(value)
    if array is not None:
        return match.constant((array * factor).astype(dtype), f"{match[name]}.scaled")
    return match.add("Mul", value, match.constant(np.asarray(factor, dtype)))


def _turned(match: Match, name: str, flag: str) -> str:
    if not match.attr(match.root, flag):
        return match[name]
    array = match.const(name)
    if array is not None:
        return match.constant(np.ascontiguousarray(array.T), f"{match[name]}.transposed")
    return match.add("Transpose", match[name], perm=(1, 0))


def _product(match: Match) -> str:
    alpha, beta = _factor(match, "alpha"), _factor(match, "beta")
    a, b = _turned(match, "a", "transA"), _turned(match, "b", "transB")
    if b in match.state.constants or a not in match.state.constants:
        b = _scaled(match, "b", b, alpha)
    else:
        a = _scaled(match, "a", a, alpha)
    product = match.add("MatMul", a, b)
    if not match["c"] or beta == 0.0:
        return product
    return match.add("Add", product, _scaled(match, "c", match["c"], beta))


def _not_flat(match: Match) -> str | None:
    w, x = match.array("w"), match.type("x")
    if w.ndim < 3 or any(d != 1 for d in w.shape[:-2]):
        return f"the weight is {match.type('w')}"
    return None if x.rank >= w.ndim else "the weight gives the result its rank"


def _flat(match: Match) -> str:
    w = match.array("w")
    return match.add("MatMul", match["x"], match.constant(w.reshape(w.shape[-2:]), f"{match['w']}.matrix"))


RULES = (
    Rule("gemm", P("Gemm", "a", "b", "c?"), make=_product),
    Rule("flat-weight", P("MatMul", "x", Const("w")), make=_flat, decline=_not_flat),
)


@graph_pass(after=(fold_constants,), rules=RULES)
def split_gemm(graph: Graph, target: Target) -> Graph:
    """Write Gemm as MatMul and Add; transposes and factors go into constant operands."""
    return rewrite(graph, RULES)
