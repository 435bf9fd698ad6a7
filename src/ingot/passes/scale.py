"""Fold a constant factor or offset beside a convolution or product into its weight and bias.

The factors are multiplied in f64. As with BatchNormalization, an intermediate that overflows may no longer do so.
"""
from __future__ import annotations

import numpy as np

from ingot.graph import Graph
from ingot.passes.batchnorm import fold_batchnorm, rescaled_convolution
from ingot.passes.graph_pass import graph_pass
from ingot.passes.rewrite import Const, Match, P, Rule, rewrite
from ingot.target import Target


def _per_channel(match: Match) -> np.ndarray | None:
    """The constant as one number for each channel of the convolution, f64; None if it is not that."""
    array, shape = match.array("c"), match.out.shape
    channels, rank = shape[1], len(shape)
    full = (1,) * (rank - array.ndim) + array.shape
    if array.ndim > rank or not isinstance(channels, int) or not np.isfinite(array).all():
        return None
    if full[1] not in (1, channels) or any(d != 1 for i, d in enumerate(full) if i != 1):
        return None
    return np.broadcast_to(array.astype(np.float64).reshape(-1), (channels,))


def _not_per_channel(match: Match) -> str | None:
    if match["b"] and match.const("b") is None:
        return "the convolution's bias is not a constant"
    if match.state.types[match.node("Conv").output].shape != match.out.shape:
        return "the constant widens the result"
    return None if _per_channel(match) is not None else f"{match.type('c')} is not one finite number for each channel"


def _scaled(match: Match) -> str:
    factor = _per_channel(match)
    assert factor is not None    # _not_per_channel declined otherwise
    return rescaled_convolution(match, factor, np.zeros_like(factor))


def _shifted(match: Match) -> str:
    offset = _per_channel(match)
    assert offset is not None    # _not_per_channel declined otherwise
    return rescaled_convolution(match, np.ones_like(offset), offset)


def _last_axis(match: Match, name: str, size: int) -> np.ndarray | None:
    """The constant as one number for each place on the last axis, f64; None if it is not that."""
    array = match.array(name)
    if array.size not in (1, size) or (array.ndim and array.shape[-1] != array.size) or not np.isfinite(array).all():
        return None
    return np.broadcast_to(array.astype(np.float64).reshape(-1), (size,))


def _columns(match: Match) -> str | None:
    weight = match.array("w")
    if weight.ndim != 2:
        return "the weight is not a matrix"
    for name in ("c", "b"):
        if match[name] and _last_axis(match, name, weight.shape[1]) is None:
            return f"{match.type(name)} is not one finite number for each column"
    if match.state.types[match.node("MatMul").output].shape != match.out.shape:
        return "the constant widens the result"
    return None


def _scaled_columns(match: Match) -> str:
    weight = match.array("w")
    factor = _last_axis(match, "c", weight.shape[1])
    w = match.constant((weight * factor).astype(weight.dtype), f"{match['w']}.scaled")
    product = match.add("MatMul", match["x"], w)
    if not match["b"]:
        return product
    bias = _last_axis(match, "b", weight.shape[1])
    assert factor is not None   # _columns declined otherwise
    assert bias is not None
    return match.add("Add", product, match.constant((bias * factor).astype(weight.dtype), f"{match['b']}.scaled"))


def _rows(match: Match) -> str | None:
    weight = match.array("w")
    if weight.ndim != 2:
        return "the weight is not a matrix"
    if _last_axis(match, "c", weight.shape[0]) is None:
        return f"{match.type('c')} is not one finite number for each row of the weight"
    return None if match.type("x").shape == match.state.types[match.node("Mul").output].shape else \
        "the constant widens the operand"


def _scaled_rows(match: Match) -> str:
    weight = match.array("w")
    factor = _last_axis(match, "c", weight.shape[0])
    assert factor is not None     # _rows declined otherwise
    w = match.constant((weight * factor[:, None]).astype(weight.dtype), f"{match['w']}.scaled")
    return match.add("MatMul", match["x"], w)


_CONV = P("Conv|ConvTranspose", "x", Const("w"), "b?")
RULES = (
    Rule("factor-into-convolution", P("Mul", _CONV, Const("c")), make=_scaled, decline=_not_per_channel),
    Rule("offset-into-convolution", P("Add", _CONV, Const("c")), make=_shifted, decline=_not_per_channel),
    Rule("factor-into-product",
         (P("Mul", P("MatMul", "x", Const("w")), Const("c")),
          P("Mul", P("Add", P("MatMul", "x", Const("w")), Const("b")), Const("c"))),
         make=_scaled_columns, decline=_columns),
    Rule("factor-before-product", P("MatMul", P("Mul", "x", Const("c")), Const("w")), make=_scaled_rows, decline=_rows),
)


@graph_pass(after=(fold_batchnorm,), rules=RULES)
def fold_scale(graph: Graph, target: Target) -> Graph:
    """Fold a constant factor or offset beside a convolution or product into its weight and bias."""
    return rewrite(graph, RULES)
