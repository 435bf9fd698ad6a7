"""Recognise normalisations and activations that exporters write out in smaller ops.

Special values: the written-out Gelu, Mish and HardSwish give NaN at an infinity where a factor 0 meets it
(0 * inf); the ops give the same, being defined by the same products. The order of sums inside a normalisation is
the op's own, so results agree to rounding.
"""
from __future__ import annotations

import math

import numpy as np

from ingot.graph import Graph
from ingot.passes.algebra import Decline, Make
from ingot.passes.gemm import split_gemm
from ingot.passes.graph_pass import graph_pass
from ingot.passes.rewrite import Const, Match, Nodes, P, Pattern, Rule, either, rewrite
from ingot.passes.simplify import simplify
from ingot.passes.views import reshaped
from ingot.target import Target

# --- normalisations -------------------------------------------------------------------------------------------------


def _mean(x: Pattern, bind: str) -> Nodes:
    return P("ReduceMean", x, bind=bind)


def _square(x: Pattern, bind: str) -> Pattern:
    return either(P("Mul", x, x, bind=bind), P("Pow", x, Const(value=2.0), bind=bind))


def _over_root(x: Pattern, variance: Pattern) -> tuple[Nodes, ...]:
    """x over the square root of (variance + epsilon), in the ways it is written."""
    summed = P("Add", variance, Const("epsilon"), bind="guarded")
    root = either(P("Sqrt", summed), P("Pow", summed, Const(value=0.5), bind="Sqrt"))
    inverse = either(P("Reciprocal", root), P("Div", Const(value=1.0), root, bind="Reciprocal"),
                     P("Pow", summed, Const(value=-0.5), bind="Reciprocal"))
    return P("Div", x, root, bind="out"), P("Mul", x, inverse, bind="out")


def _axes(match: Match, name: str) -> tuple[int, ...]:
    node = match.node(name)
    rank = match.state.types[node.inputs[0]].rank
    axes = match.attr(node, "axes")
    return tuple(sorted(int(a) % rank for a in axes)) if isinstance(axes, tuple) else tuple(range(rank))


def _not_trailing(match: Match) -> str | None:
    rank = match.out.rank
    for name in ("mean", "variance"):
        if not match.has(name):
            continue
        if not match.attr(name, "keepdims"):
            return "a mean drops its axes"
        axes = _axes(match, name)
        if axes != tuple(range(rank - len(axes), rank)) or not axes:
            return f"the mean runs over axes {axes}, not over the last ones"
    if match.has("mean") and _axes(match, "mean") != _axes(match, "variance"):
        return "the two means run over different axes"
    if match.scalar("epsilon") is None:
        return "epsilon is not one number"
    if match.type("x") != match.out:
        return f"it turns {match.type('x')} into {match.out}"
    if not all(isinstance(d, int) for d in match.out.shape[rank - len(_axes(match, "variance")):]):
        return "the normalised axes have symbolic sizes"
    return None


def _normalised(op: str) -> Make:
    def make(match: Match) -> str:
        count = len(_axes(match, "variance"))
        shape = tuple(int(str(d)) for d in match.out.shape[-count:])
        ones = match.constant(np.ones(shape, match.out.dtype.numpy))
        return match.add(op, match["x"], ones, axis=-count, epsilon=match.scalar("epsilon") or 0.0)
    return make


def _span(match: Match) -> int:
    """How many trailing axes the bound normalisation runs over."""
    axis = int(str(match.attr("norm", "axis")))
    return -axis if axis < 0 else match.out.rank - axis


def _not_an_operand(name: str) -> Decline:
    """Why the bound value cannot be the normalisation's scale or bias."""
    def decline(match: Match) -> str | None:
        count, rank = _span(match), match.out.rank
        shape = match.shape(name)
        if match.state.types[match.node("norm").output] != match.out:
            return "it widens the result"
        if len(shape) > rank or any(d != 1 for d in shape[:max(0, len(shape) - count)]):
            return f"{match.type(name)} reaches beyond the normalised axes"
        if shape[-count:] != match.out.shape[-count:]:
            return f"{match.type(name)} is broadcast over the normalised axes"
        if len(shape) > count and match.const(name) is None:
            return f"{match.type(name)} has axes of size 1 before the normalised ones"
        if any(match.state.uses[o] for o in match.node("norm").outputs[1:] if o):
            return "its mean is read"
        if name == "g" and match.scalar("ones") != 1.0:
            return "it has a scale already"
        return None
    return decline


def _operand(match: Match, name: str) -> str:
    shape = match.out.shape[-_span(match):]
    array = match.const(name)
    if array is None or array.shape == shape:
        return match[name]
    return match.constant(np.ascontiguousarray(array).reshape(tuple(int(str(d)) for d in shape)), f"{match[name]}.flat")


def _with_scale(match: Match) -> str:
    node = match.node("norm")
    return match.add(node.op, match["x"], _operand(match, "g"), **node.attrs)


def _with_bias(match: Match) -> str:
    node = match.node("norm")
    return match.add(node.op, match["x"], match["scale"], _operand(match, "b"), **node.attrs)


_CENTRED = P("Sub", "x", _mean("x", "mean"), bind="centred")
_VARIANCE = _mean(_square(_CENTRED, "square"), "variance")
NORMALISATIONS = (
    Rule("layer-normalisation", _over_root(_CENTRED, _VARIANCE), make=_normalised("LayerNormalization"),
         decline=_not_trailing),
    Rule("rms-normalisation", _over_root("x", _mean(_square("x", "square"), "variance")),
         make=_normalised("RMSNormalization"), decline=_not_trailing),
    Rule("normalisation-scale", make=_with_scale, decline=_not_an_operand("g"), pattern=P(
        "Mul", P("LayerNormalization|RMSNormalization", "x", Const("ones"), bind="norm"), "g")),
    Rule("normalisation-bias", P("Add", P("LayerNormalization", "x", "scale", bind="norm"), "b"),
         make=_with_bias, decline=_not_an_operand("b")),
)

# --- activations ----------------------------------------------------------------------------------------------------


def _halved(x: Pattern, rest: Pattern) -> tuple[Nodes, ...]:
    """0.5 * x * rest, in the orders it is written."""
    return (P("Mul", P("Mul", x, Const(value=0.5), bind="half"), rest),
            P("Mul", P("Mul", x, rest, bind="half"), Const(value=0.5)),
            P("Mul", x, P("Mul", rest, Const(value=0.5), bind="half")),
            P("Div", P("Mul", x, rest, bind="half"), Const(value=2.0)))


_ERF = P("Add", P("Erf", either(P("Div", "x", Const(value=math.sqrt(2.0))), P("Mul", "x", Const(value=math.sqrt(0.5)),
                                                                             bind="Div"))), Const(value=1.0))
_CUBE = either(P("Mul", P("Mul", "x", "x", bind="squared"), "x", bind="cubed"),
               P("Pow", "x", Const(value=3.0), bind="cubed"))
_INSIDE = either(
    P("Mul", P("Add", "x", P("Mul", _CUBE, Const(value=0.044715), bind="small")), Const(value=math.sqrt(2 / math.pi)),
      bind="inside"),
    P("Mul", P("Mul", "x", Const(value=math.sqrt(2 / math.pi)), bind="small"),
      P("Add", P("Mul", P("Mul", "x", "x", bind="squared"), Const(value=0.044715), bind="curve"), Const(value=1.0)),
      bind="inside"))
_TANH = P("Add", P("Tanh", _INSIDE), Const(value=1.0), bind="risen")
_HARD = P("Clip", P("Add", "x", Const(value=3.0), bind="lifted"), Const(value=0.0), Const(value=6.0))


def _not_real(match: Match) -> str | None:
    if match.type("x") != match.out:
        return f"it turns {match.type('x')} into {match.out}"
    return None if match.out.dtype.kind == "float" else f"it works on {match.out.dtype}"


def _not_swish(match: Match) -> str | None:
    return _not_real(match) or ("alpha is not one number" if match["a"] and match.scalar("a") is None else None)


def _swish(match: Match) -> str:
    alpha = match.scalar("a") if match["a"] else 1.0
    return match.add("Swish", match["x"]) if alpha == 1.0 else match.add("Swish", match["x"], alpha=alpha)


def _not_hard_swish(match: Match) -> str | None:
    node = match.node("HardSigmoid")
    alpha, beta = float(str(match.attr(node, "alpha"))), float(str(match.attr(node, "beta")))
    if abs(alpha - 1 / 6) > 1e-6 or abs(beta - 0.5) > 1e-6:
        return f"alpha is {alpha:g} and beta {beta:g}, not 1/6 and 1/2"
    return _not_real(match)


def _not_softmax(match: Match) -> str | None:
    largest, total = match.node("ReduceMax"), match.node("ReduceSum")
    if _axes(match, "ReduceMax") != _axes(match, "ReduceSum") or len(_axes(match, "ReduceSum")) != 1:
        return "the maximum and the sum run over different axes, or over several"
    if not match.attr(largest, "keepdims") or not match.attr(total, "keepdims"):
        return "a reduction drops its axis"
    return _not_real(match)


_EXPONENTIAL = P("Exp", P("Sub", "x", P("ReduceMax", "x")))
ACTIVATIONS = (
    Rule("gelu", _halved("x", _ERF), make=lambda m: m.add("Gelu", m["x"]), decline=_not_real),
    Rule("gelu-tanh", _halved("x", _TANH), make=lambda m: m.add("Gelu", m["x"], approximate="tanh"), decline=_not_real),
    Rule("sigmoid", (P("Div", Const(value=1.0), P("Add", P("Exp", P("Neg", "x")), Const(value=1.0))),
                     P("Reciprocal", P("Add", P("Exp", P("Neg", "x")), Const(value=1.0)))),
         make=lambda m: m.add("Sigmoid", m["x"]), decline=_not_real),
    Rule("swish", make=_swish, decline=_not_swish, pattern=(
        P("Mul", "x", P("Sigmoid", "x")), P("Mul", "x", P("Sigmoid", P("Mul", "x", Const("a"), bind="slope"))))),
    Rule("hard-sigmoid", (P("Div", _HARD, Const(value=6.0)), P("Mul", _HARD, Const(value=1 / 6))),
         make=lambda m: m.add("HardSigmoid", m["x"], alpha=1 / 6, beta=0.5), decline=_not_real),
    Rule("hard-swish-written-out", (P("Div", P("Mul", "x", _HARD, bind="product"), Const(value=6.0)),
                                    P("Mul", P("Mul", "x", _HARD, bind="product"), Const(value=1 / 6))),
         make=lambda m: m.add("HardSwish", m["x"]), decline=_not_real),
    Rule("hard-swish", P("Mul", "x", P("HardSigmoid", "x")), make=lambda m: m.add("HardSwish", m["x"]),
         decline=_not_hard_swish),
    Rule("mish", P("Mul", "x", P("Tanh", P("Softplus", "x"))), make=lambda m: m.add("Mish", m["x"]), decline=_not_real),
    Rule("softmax", P("Div", _EXPONENTIAL, P("ReduceSum", _EXPONENTIAL)), decline=_not_softmax,
         make=lambda m: m.add("Softmax", m["x"], axis=_axes(m, "ReduceSum")[0])),
)

# --- means over the plane -------------------------------------------------------------------------------------------


def _not_the_plane(match: Match) -> str | None:
    rank = match.type("x").rank
    if rank < 4 or match.type("x").dtype.kind != "float":
        return f"{match.type('x')} is no plane of real numbers"
    if _axes(match, match.root.op) != tuple(range(2, rank)):
        return f"it runs over axes {_axes(match, match.root.op)}, not over all spatial ones"
    return None


def _window_covers(match: Match) -> str | None:
    shape, kernel = match.shape("x")[2:], match.attr(match.root, "kernel_shape")
    if kernel != shape:
        return f"the window {kernel} is not the plane {shape}"
    pads = match.attr(match.root, "pads")
    padded = isinstance(pads, tuple) and any(pads)
    return "it pads" if padded or str(match.attr(match.root, "auto_pad")).startswith("SAME") else None


def _over_the_plane(match: Match) -> str:
    return reshaped(match, match.add("GlobalAveragePool", match["x"]), match.out.shape)


PLANES = (
    Rule("mean-over-the-plane", P("ReduceMean", "x"), make=_over_the_plane, decline=_not_the_plane),
    Rule("pool-over-the-plane", P("AveragePool", "x"), make=_over_the_plane, decline=_window_covers),
)

RULES = (*NORMALISATIONS, *ACTIVATIONS, *PLANES)


@graph_pass(after=(simplify, split_gemm), rules=RULES)
def recognise(graph: Graph, target: Target) -> Graph:
    """Give normalisations, activations and means over the plane that are written out their one op."""
    # a mean over the plane inside a normalisation must still be a ReduceMean when the normalisation is looked for
    return rewrite(rewrite(graph, (*NORMALISATIONS, *ACTIVATIONS)), PLANES)
