"""Write rare ops out in ops that have kernels: losses, statistics beside a normalisation, quantising by blocks.

Each rule states an op by its definition. Numbers of 16 bits are computed in f32 and rounded once at the end, which is
never less exact than the op's own rounding after every step.
"""
from __future__ import annotations

import numpy as np

from ingot.graph import BF16, F16, Dim, Graph
from ingot.ops.shapes import dims
from ingot.passes.constant_folding import fold_constants
from ingot.passes.graph_pass import graph_pass
from ingot.passes.rewrite import Match, P, Rule, rewrite
from ingot.passes.written_out_integers import RULES as INTEGERS
from ingot.passes.written_out_integers import for_gpu, operand
from ingot.target import Target

HALVES = (F16, BF16)


def wanted(match: Match, index: int) -> bool:
    """Whether an output of the root is read."""
    return index < len(match.root.outputs) and match.state.uses[match.root.outputs[index]] > 0


def number(match: Match, value: float, like: str) -> str:
    """A scalar constant of the element type of a value."""
    return match.constant(np.asarray(value, match.type(like).dtype.numpy))


def single(match: Match, value: str) -> str:
    """The value in f32, where it is of 16 bits."""
    return match.add("Cast", value, to="f32") if value and match.type(value).dtype in HALVES else value


def back(match: Match, value: str, to: str) -> str:
    """The value in the element type of another."""
    dtype = match.type(to).dtype
    return value if match.type(value).dtype == dtype else match.add("Cast", value, to=dtype.name)


# --- losses -----------------------------------------------------------------------------------------------------------

def _loss(match: Match, scores: str, target: str, weight: str) -> str:
    """The negative of each target's score, weighted, and reduced."""
    ignored, reduction = match.attr(match.root, "ignore_index"), str(match.attr(match.root, "reduction"))
    off, at = "", target
    if ignored is not None:
        off = match.add("Equal", target, number(match, int(str(ignored)), target))
        at = match.add("Where", off, number(match, 0, target), target)
    picked = match.add("GatherElements", scores, match.add("Unsqueeze", at, axes=(1,)), axis=1)
    loss = match.add("Neg", match.add("Squeeze", picked, axes=(1,)))
    zero, each = number(match, 0.0, scores), ""
    if weight:
        each = match.add("Gather", weight, at, axis=0)
        loss = match.add("Mul", loss, each)
    if off:
        loss = match.add("Where", off, zero, loss)
        each = match.add("Where", off, zero, each or number(match, 1.0, scores))
    if reduction == "none":
        return loss
    if reduction == "mean" and each:
        return match.add("Div", match.add("ReduceSum", loss, keepdims=0), match.add("ReduceSum", each, keepdims=0))
    return match.add("ReduceMean" if reduction == "mean" else "ReduceSum", loss, keepdims=0)


def _likelihood(match: Match) -> str:
    x, target, weight = (operand(match, i) for i in range(3))
    return back(match, _loss(match, single(match, x), target, single(match, weight)), x)


def _cross_entropy(match: Match) -> str | tuple[str, ...]:
    x, target, weight = (operand(match, i) for i in range(3))
    scores = match.add("LogSoftmax", single(match, x), axis=1)
    loss = back(match, _loss(match, scores, target, single(match, weight)), x)
    return (loss, back(match, scores, x)) if wanted(match, 1) else loss


# --- normalisations ---------------------------------------------------------------------------------------------------

def _no_statistics(match: Match) -> str | None:
    if not (wanted(match, 1) or wanted(match, 2)):
        return "only its result is read"
    return None if match.attr(match.root, "stash_type") == 1 else "its statistics are not in f32"


def _statistics(match: Match) -> tuple[str, ...]:
    """The result by the op itself; mean and inverse deviation beside it."""
    x, rank = operand(match, 0), match.type(operand(match, 0)).rank
    attrs = dict(match.root.attrs)
    result = match.add("LayerNormalization", *match.root.inputs, **attrs)
    wide = match.add("Cast", x, to="f32") if match.type(x).dtype.name != "f32" else x
    axis = int(str(match.attr(match.root, "axis"))) % rank
    axes = tuple(range(axis, rank))
    mean = match.add("ReduceMean", wide, axes=axes, keepdims=1)
    spread = match.add("Sub", wide, mean)
    variance = match.add("ReduceMean", match.add("Mul", spread, spread), axes=axes, keepdims=1)
    epsilon = number(match, float(str(match.attr(match.root, "epsilon"))), variance)
    inverse = match.add("Reciprocal", match.add("Sqrt", match.add("Add", variance, epsilon)))
    return tuple(v if o else "" for v, o in zip((result, mean, inverse), match.root.outputs, strict=False))


def _mean_variance(match: Match) -> str:
    x = single(match, operand(match, 0))
    axes = tuple(int(str(a)) for a in dims(dict(match.root.attrs), "axes") or (0, 2, 3))
    spread = match.add("Sub", x, match.add("ReduceMean", x, axes=axes, keepdims=1))
    variance = match.add("ReduceMean", match.add("Mul", spread, spread), axes=axes, keepdims=1)
    deviation = match.add("Add", match.add("Sqrt", variance), number(match, 1e-9, variance))
    return back(match, match.add("Div", spread, deviation), operand(match, 0))


# --- quantising -------------------------------------------------------------------------------------------------------

def _own_range(match: Match) -> tuple[str, ...]:
    """DynamicQuantizeLinear: u8 over the range of the values, widened to hold 0."""
    x = operand(match, 0)
    zero, one, most = (number(match, v, x) for v in (0.0, 1.0, 255.0))
    high = match.add("Max", match.add("ReduceMax", x, keepdims=0), zero)
    low = match.add("Min", match.add("ReduceMin", x, keepdims=0), zero)
    reach = match.add("Where", match.add("Equal", high, low), one, match.add("Sub", high, low))
    scale = match.add("Div", reach, most)
    start = match.add("Clip", match.add("Sub", zero, match.add("Div", low, scale)), zero, most)
    point = match.add("Cast", match.add("Round", start), to="u8")
    made = match.add("QuantizeLinear", x, scale, point)
    return tuple(v if o else "" for v, o in zip((made, scale, point), match.root.outputs, strict=False))


def _block(match: Match) -> int:
    return int(str(match.attr(match.root, "block_size") or 0))


def _not_by_blocks(match: Match) -> str | None:
    if _block(match) < 2:
        return "it has no blocks"
    axis, x = int(str(match.attr(match.root, "axis"))), match.type(operand(match, 0))
    sizes = (x.shape[axis], match.type(operand(match, 1)).shape[axis])
    return None if all(isinstance(n, int) for n in sizes) else "its axis has a size known only at run time"


def _by_elements(match: Match) -> str:
    """Scale and zero point repeated, so that every element has its own."""
    block, x = _block(match), match.type(operand(match, 0))
    axis = int(str(match.attr(match.root, "axis"))) % x.rank

    def repeated(value: str) -> str:
        shape = match.type(value).shape
        spread = match.add("Expand", match.add("Unsqueeze", value, axes=(axis + 1,)),
                           shape=(*shape[:axis + 1], block, *shape[axis + 1:]))
        whole: tuple[Dim, ...] = (*shape[:axis], shape[axis] * block, *shape[axis + 1:])
        flat = match.add("Reshape", spread, shape=whole)
        return flat if whole[axis] == x.shape[axis] else match.add(
            "Slice", flat, starts=(0,), ends=(x.shape[axis],), axes=(axis,))
    rest = [repeated(v) if v else "" for v in match.root.inputs[1:]]
    return match.add(match.root.op, operand(match, 0), *rest, **{**match.root.attrs, "block_size": 1})


# --- the rest ---------------------------------------------------------------------------------------------------------

def _gated(match: Match) -> str:
    alpha = match.attr(match.root, "alpha")
    return match.add("Mul", match.add("Swish", operand(match, 0), alpha=1.0 if alpha is None else float(str(alpha))),
                     operand(match, 1))


def _not_static(match: Match) -> str | None:
    x, made = match.type(operand(match, 0)).shape, match.out.shape
    return None if all(a == b or (isinstance(a, int) and isinstance(b, int)) for a, b in zip(x, made, strict=True)) \
        else "whether it crops or pads is known only at run time"


def _centred(match: Match) -> str:
    x, made = match.type(operand(match, 0)).shape, match.out.shape
    sizes = [(a, int(str(old)), int(str(new))) for a, (old, new) in enumerate(zip(x, made, strict=True)) if old != new]
    value = operand(match, 0)
    if cut := [(a, (old - new) // 2, new) for a, old, new in sizes if new < old]:
        value = match.add("Slice", value, axes=tuple(a for a, _, _ in cut), starts=tuple(s for _, s, _ in cut),
                          ends=tuple(s + n for _, s, n in cut))
    if more := [(a, (new - old) // 2, new - old - (new - old) // 2) for a, old, new in sizes if new > old]:
        value = match.add("Pad", value, pads=(*(b for _, b, _ in more), *(e for _, _, e in more)),
                          axes=tuple(a for a, _, _ in more))
    return value


def _not_depthwise(match: Match) -> str | None:
    weight = match.type(operand(match, 1)).shape
    return None if isinstance(weight[0], int) and isinstance(weight[2], int) else "the weight has a symbolic size"


def _causal(match: Match) -> tuple[str, ...]:
    """CausalConvWithState: a depthwise convolution over what came before and the input."""
    x, weight, bias, past = (operand(match, i) for i in range(4))
    channels, _, taps = (int(str(d)) for d in match.type(weight).shape)
    whole, length = x, match.type(x).shape[2]
    if past:
        whole = match.add("Concat", past, x, axis=2)
    elif taps > 1:
        whole = match.add("Pad", x, pads=(0, 0, taps - 1, 0, 0, 0))
    made = match.add("Conv", single(match, whole), single(match, weight), single(match, bias), group=channels,
                     kernel_shape=(taps,), strides=(1,), dilations=(1,), pads=(0, 0))
    if match.attr(match.root, "activation") in ("silu", "swish"):
        made = match.add("Swish", made)
    present = ""
    if wanted(match, 1):
        present = match.add("Slice", whole, starts=(length,), ends=(length + taps - 1,), axes=(2,))
    return tuple(v if o else "" for v, o in zip((back(match, made, x), present), match.root.outputs, strict=False))


RULES = (
    Rule("negative-log-likelihood", P("NegativeLogLikelihoodLoss", "*"), make=_likelihood),
    Rule("cross-entropy", P("SoftmaxCrossEntropyLoss", "*"), make=_cross_entropy),
    Rule("statistics-of-a-normalization", P("LayerNormalization", "*"), make=_statistics, decline=_no_statistics),
    Rule("mean-variance", P("MeanVarianceNormalization", "*"), make=_mean_variance),
    Rule("own-range", P("DynamicQuantizeLinear", "*"), make=_own_range),
    Rule("blocks-to-elements", P("QuantizeLinear|DequantizeLinear", "*"), make=_by_elements, decline=_not_by_blocks),
    Rule("swiglu", P("SwiGLU", "*"), make=_gated),
    Rule("centre", P("CenterCropPad", "*"), make=_centred, decline=_not_static),
    Rule("causal-convolution", P("CausalConvWithState", "*"), make=_causal, decline=_not_depthwise),
    *INTEGERS,
)


GPU_RULES = tuple(map(for_gpu, RULES))


@graph_pass(after=(fold_constants,), rules=RULES)
def write_out(graph: Graph, target: Target) -> Graph:
    """Write rare ops out in ops that have kernels."""
    return rewrite(graph, GPU_RULES if target.kind == "cuda" else RULES)
