"""Fold BatchNormalization at inference into the convolution or product before it.

    BN(x) = x * f + (bias - mean * f)   with   f = scale / sqrt(var + epsilon)

The factors are computed in f64. A weight that is infinite or NaN stays so; an activation that overflows between
the convolution and the normalisation no longer does, and the reverse.
"""
from __future__ import annotations

import numpy as np

from ingot.graph import Graph
from ingot.passes.constant_folding import fold_constants
from ingot.passes.graph_pass import graph_pass
from ingot.passes.rewrite import Const, Match, P, Pattern, Rule, rewrite
from ingot.target import Target


def _bn(x: Pattern) -> tuple[Pattern, ...]:
    return x, Const("scale"), Const("shift"), Const("mean"), Const("var")


def _affine(match: Match) -> tuple[np.ndarray, np.ndarray]:
    """Factor and offset per channel, f64."""
    scale, shift, mean, var = (match.array(n).astype(np.float64) for n in ("scale", "shift", "mean", "var"))
    factor = scale / np.sqrt(var + float(str(match.attr("BatchNormalization", "epsilon"))))
    return factor, shift - mean * factor


def _at_inference(match: Match) -> str | None:
    if match.attr("BatchNormalization", "training_mode"):
        return "it is in training mode"
    if any(match.state.uses[o] for o in match.root.outputs[1:] if o):
        return "its running statistics are read"
    with np.errstate(all="ignore"):
        factor, offset = _affine(match)
    return None if np.isfinite(factor).all() and np.isfinite(offset).all() else "a factor is not finite"


def scaled_channels(weight: np.ndarray, factor: np.ndarray, op: str, group: int) -> np.ndarray:
    """The weight of a Conv [M, C/g, ...] or ConvTranspose [C, M/g, ...] with its M output channels scaled."""
    if op == "Conv":
        return np.asarray(weight * factor.reshape(-1, *(1,) * (weight.ndim - 1)))
    parts = weight.reshape(group, weight.shape[0] // group, *weight.shape[1:])
    return np.asarray(parts * factor.reshape(group, 1, -1, *(1,) * (weight.ndim - 2))).reshape(weight.shape)


def rescaled_convolution(match: Match, factor: np.ndarray, offset: np.ndarray) -> str:
    """The bound convolution with its result scaled and shifted per channel, in its weight and bias."""
    node = match.node("Conv")
    weight = match.array("w")
    group = int(str(match.attr(node, "group")))
    bias = match.array("b").astype(np.float64) if match["b"] else np.zeros(len(factor))
    w = scaled_channels(weight.astype(np.float64), factor, node.op, group).astype(weight.dtype)
    b = (bias * factor + offset).astype(weight.dtype)
    return match.add(node.op, match["x"], match.constant(w, f"{match['w']}.scaled"),
                     match.constant(b, f"{match['b'] or match['w']}.bias"), **node.attrs)


def _bias_known(match: Match) -> str | None:
    return "the convolution's bias is not a constant" if match["b"] and match.const("b") is None else None


def _into_product(match: Match) -> str:
    factor, offset = _affine(match)
    weight = match.array("w")
    bias = match.array("b").astype(np.float64) if match["b"] else 0.0
    w = match.constant((weight * factor).astype(weight.dtype), f"{match['w']}.scaled")
    b = match.constant((bias * factor + offset).astype(weight.dtype), f"{match['w']}.bias")
    return match.add("Add", match.add("MatMul", match["x"], w), b)


def _product_of_rows(match: Match) -> str | None:
    if len(match.out.shape) != 2:
        return f"the channels of {match.out} are not its last axis"
    if match.array("w").ndim != 2:
        return "the weight is not a matrix"
    if match["b"] and match.array("b").shape not in ((), (1,), match.out.shape[1:], (1, *match.out.shape[1:])):
        return "the bias differs between rows"
    return _at_inference(match)


def _alone(match: Match) -> str:
    factor, offset = _affine(match)
    shape = (len(factor), *(1,) * (match.out.rank - 2))
    dtype = match.out.dtype.numpy
    f = match.constant(factor.astype(dtype).reshape(shape), f"{match['scale']}.factor")
    o = match.constant(offset.astype(dtype).reshape(shape), f"{match['scale']}.offset")
    return match.add("Add", match.add("Mul", match["x"], f), o)


RULES = (
    Rule("batchnorm-into-convolution",
         P("BatchNormalization", *_bn(P("Conv|ConvTranspose", "x", Const("w"), "b?"))),
         make=lambda m: rescaled_convolution(m, *_affine(m)), decline=lambda m: _bias_known(m) or _at_inference(m)),
    Rule("batchnorm-into-product",
         (P("BatchNormalization", *_bn(P("Add", P("MatMul", "x", Const("w")), Const("b")))),
          P("BatchNormalization", *_bn(P("MatMul", "x", Const("w"))))),
         make=_into_product, decline=_product_of_rows),
    Rule("batchnorm-alone", P("BatchNormalization", *_bn("x")), make=_alone, decline=_at_inference),
)


@graph_pass(after=(fold_constants,), rules=RULES)
def fold_batchnorm(graph: Graph, target: Target) -> Graph:
    """Fold BatchNormalization into the convolution or product before it, else write it as Mul and Add."""
    return rewrite(graph, RULES)
