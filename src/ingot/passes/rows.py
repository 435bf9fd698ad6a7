"""Move Reshapes behind, and Slices before, what works on each row by itself.

A Reshape that keeps the last axis moves behind products, normalisations and pointwise ops, where it meets the Reshape
back; a Slice of rows moves before them, so that rows nobody reads are not computed: a classifier that reads the first
token computes the last layer for that token alone. Each number left is computed as before.
"""
from __future__ import annotations

from ingot.graph import Dim, Graph
from ingot.ops import OPS
from ingot.ops.movement import slices_of
from ingot.ops.shapes import broadcast
from ingot.passes.attention import recognise_attention
from ingot.passes.broadcasts import ANY_POINTWISE
from ingot.passes.graph_pass import graph_pass
from ingot.passes.rewrite import Const, Match, P, Rule, rewrite
from ingot.passes.views import RULES as VIEWS
from ingot.passes.views import reshaped
from ingot.target import Target

BY_ROW = frozenset({"LayerNormalization", "RMSNormalization", "Softmax", "LogSoftmax"})

# --- reshapes move behind ---


def _keeps_rows(match: Match, source: str) -> str | None:
    before = match.state.types[source].shape
    after = match.state.types[match.node("Reshape").output].shape
    if not before or not after or before[-1] != after[-1] or len(before) < 2:
        return "the Reshape does not keep the last axis"
    if [d for d in before if d != 1] == [d for d in after if d != 1]:
        return "the Reshape only drops or puts in axes of size 1"
    return None


def _flat_weight(match: Match) -> str | None:
    return _keeps_rows(match, match["x"]) or (None if match.array("w").ndim == 2 else "the weight is not a matrix")


def _product_first(match: Match) -> str:
    return reshaped(match, match.add("MatMul", match["x"], match["w"]), match.out.shape)


def _not_by_row(match: Match) -> str | None:
    axis = int(str(match.attr(match.root, "axis")))
    if axis not in (-1, match.out.rank - 1):
        return "it does not work along the last axis alone"
    if any(match.state.uses[o] for o in match.root.outputs[1:] if o):
        return "its mean is read"
    for value in match.root.inputs[1:]:
        if value and len(match.state.types[value].shape) > 1:
            return f"'{value}' has more than one axis"
    return _keeps_rows(match, match["x"])


def _row_first(match: Match) -> str:
    root = match.root
    made = match.add(root.op, match["x"], *root.inputs[1:], **{**root.attrs, "axis": -1})
    return reshaped(match, made, match.out.shape)


def _reshaped_inputs(match: Match) -> tuple[str, ...] | str:
    """The root's inputs before they were all reshaped alike (constants for each column aside), or why not."""
    sources: list[tuple[Dim, ...]] = []
    inputs = []
    for value in match.root.inputs:
        node = match.state.producers.get(value)
        t = match.state.types.get(value)
        if node is not None and node.op == "Reshape" and t is not None and t.shape == match.out.shape:
            inputs.append(node.inputs[0])
            sources.append(match.state.types[node.inputs[0]].shape)
        elif t is None or (t.size == 1 and t.rank <= 1) or (value in match.state.constants and t.rank == 1):
            inputs.append(value)
        else:
            return f"'{value}' is neither reshaped nor one number for each column"
    if not sources or any(s != sources[0] for s in sources):
        return "its inputs are not reshaped from one shape"
    columns = [i for i in inputs if i and match.state.types[i].shape not in (sources[0], ())
               and match.state.types[i].size != 1]
    if columns and (not sources[0] or not match.out.shape or sources[0][-1] != match.out.shape[-1]):
        return "the Reshape does not keep the last axis"
    shapes = [match.state.types[i].shape for i in inputs if i]
    return tuple(inputs) if broadcast(*shapes) == sources[0] else "a constant widens it"


def _not_reshaped(match: Match) -> str | None:
    found = _reshaped_inputs(match)
    return found if isinstance(found, str) else None


def _pointwise_first(match: Match) -> str:
    return reshaped(match, match.add(match.root.op, *_reshaped_inputs(match), **match.root.attrs), match.out.shape)


# --- slices move before ---

def _cut(match: Match) -> tuple[tuple[Dim, Dim, int], ...]:
    node = match.node("Slice")
    return slices_of(match.state.types[node.inputs[0]], {**OPS["Slice"].attrs, **node.attrs})


def _touched(match: Match) -> set[int]:
    """The axes a Slice cuts."""
    wide = match.state.types[match.node("Slice").inputs[0]].shape
    return {i for i, (start, length, step) in enumerate(_cut(match)) if (start, length, step) != (0, wide[i], 1)}


def _same_cut(match: Match, value: str, rank: int) -> str:
    """The value cut as the bound Slice cuts a tensor of this rank that it broadcasts to."""
    t = match.state.types[value]
    lead = rank - t.rank
    cuts = [(i - lead, c) for i, c in enumerate(_cut(match))
            if i >= lead and i in _touched(match) and t.shape[i - lead] != 1]
    if not cuts:
        return value
    return match.add("Slice", value, starts=tuple(c[0] for _, c in cuts),
                     ends=tuple(c[0] + (c[1] - 1) * c[2] + 1 for _, c in cuts), axes=tuple(i for i, _ in cuts),
                     steps=tuple(c[2] for _, c in cuts))


def _forward(match: Match) -> str | None:
    if any(step < 0 or length == 0 for _, length, step in _cut(match)):
        return "it runs backwards, or leaves nothing"
    return None if _touched(match) else "it cuts nothing"


def _cuts_columns(match: Match) -> str | None:
    rank = match.out.rank
    if rank - 1 in _touched(match):
        return "it cuts the last axis"
    if len(match.bound.named) and any(match.state.uses[o] for o in match.node("inner").outputs[1:] if o):
        return "the mean of the normalisation is read"
    if match.node("inner").op in BY_ROW and int(str(match.attr("inner", "axis"))) not in (-1, rank - 1):
        return "it does not work along the last axis alone"
    if match.node("inner").op == "MatMul" and match.array("w").ndim != 2:
        return "the weight is not a matrix"
    if match.state.types[match.node("inner").inputs[0]].rank != rank:
        return "the ranks differ"
    return _forward(match)


def _cut_rows_first(match: Match) -> str:
    inner = match.node("inner")
    x = _same_cut(match, inner.inputs[0], match.out.rank)
    return match.add(inner.op, x, *inner.inputs[1:], **inner.attrs)


def _grows(match: Match) -> str | None:
    inner = match.node("inner")
    if len(inner.outputs) > 1 or any(match.state.types[v].layout for v in inner.inputs if v):
        return "it has more outputs, or a blocked layout"
    return _forward(match)


def _cut_operands_first(match: Match) -> str:
    inner = match.node("inner")
    inputs = [v and _same_cut(match, v, match.out.rank) for v in inner.inputs]
    return match.add(inner.op, *inputs, **inner.attrs)


def _cuts_queries(match: Match) -> str | None:
    if match.type("q").rank != 3 or _touched(match) != {1}:
        return "it does not cut the queries, and them alone"
    if match["mask"] and (match.type("mask").rank < 4 or match.shape("mask")[-2] != 1):
        return "the mask differs between queries"
    inner = match.node("inner")
    if len(inner.inputs) > 4 or match.attr(inner, "is_causal") or len(inner.outputs) > 1:
        return "it is causal, or has a past"
    if any(match.attr(inner, side) not in (-1, None) for side in ("left_window_size", "right_window_size")):
        return "each query has a window of its own"
    return _forward(match)


def _fewer_queries(match: Match) -> str:
    inner = match.node("inner")
    return match.add("Attention", _same_cut(match, match["q"], 3), match["k"], match["v"], match["mask"], **inner.attrs)


RULES = (
    Rule("reshape-after-product", P("MatMul", P("Reshape", "x", shared=True), Const("w")), make=_product_first,
         decline=_flat_weight),
    Rule("reshape-after-row", P("LayerNormalization|RMSNormalization|Softmax", P("Reshape", "x", shared=True), "*"),
         make=_row_first, decline=_not_by_row),
    Rule("reshape-after-pointwise", P(ANY_POINTWISE, "*"), make=_pointwise_first, decline=_not_reshaped),
    Rule("slice-before-row", (P("Slice", P("MatMul", "x", Const("w"), bind="inner")),
                              P("Slice", P("LayerNormalization|RMSNormalization|Softmax", "x", "*", bind="inner"))),
         make=_cut_rows_first, decline=_cuts_columns),
    Rule("slice-before-pointwise", P("Slice", P(ANY_POINTWISE, "*", bind="inner")), make=_cut_operands_first,
         decline=_grows),
    Rule("slice-before-attention", P("Slice", P("Attention", "q", "k", "v", "mask?", bind="inner")),
         make=_fewer_queries, decline=_cuts_queries),
)


@graph_pass(after=(recognise_attention,), rules=RULES)
def move_rows(graph: Graph, target: Target) -> Graph:
    """Move Reshapes behind, and Slices before, what works on each row by itself."""
    return rewrite(graph, (*RULES, *VIEWS))
