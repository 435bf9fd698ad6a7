"""Recognise scaled-dot-product attention, and give it its operands without head-splitting transposes.

    MatMul(Softmax(scale * MatMul(q, k') + mask), v)   ->   Attention(q, k, v, mask) {'scale': ...}

Special values: a query that may attend no key (every score -inf) gives a zero row in Attention, where a plain
Softmax gives NaN; and where the exporter guards the Softmax with `Where(IsNaN(p), 0, p)`, a NaN in an operand
reaches the result in Attention, where the guard hides it. Factors on q and k are joined into one scale.
"""
from __future__ import annotations

import math

import numpy as np

from ingot.graph import Dim, Graph
from ingot.passes.graph_pass import graph_pass
from ingot.passes.recognition import recognise
from ingot.passes.rewrite import Const, Match, P, Pattern, Rule, State, either, rewrite, uniform
from ingot.passes.simplify import simplify
from ingot.passes.views import RULES as VIEWS
from ingot.passes.views import perm_of, reshaped
from ingot.target import Target


def _guarded(p: Pattern) -> Pattern:
    """The probabilities, with or without the NaN guard that torch writes for fully masked rows."""
    return either(P("Where", P("IsNaN", p), Const(value=0.0), p), p)


_SCORES = P("MatMul", "q", "kt", bind="scores")
_SCALED = either(P("Mul", _SCORES, Const("factor"), bind="scaled"), P("Div", _SCORES, Const("divisor"), bind="scaled"),
                 _SCORES)
_MASKED = either(P("Add", _SCALED, "mask", bind="masked"),
                 P("Where", "keep", _SCALED, Const("low"), bind="masked"),
                 P("Where", "drop", Const("low"), _SCALED, bind="masked"), _SCALED)
_PATTERN = P("MatMul", _guarded(P("Softmax", _MASKED)), "v")
_LOWEST = -1e30     # at and below this a masked score gives exactly 0 beside any finite one


def _peeled(state: State, value: str) -> tuple[str, float]:
    """An operand without the constant factor on it, and that factor."""
    node = state.producers.get(value)
    if node is None or node.op not in ("Mul", "Div") or len(node.inputs) != 2:
        return value, 1.0
    for x, c in ((node.inputs[0], node.inputs[1]), (node.inputs[1], node.inputs[0])):
        factor = uniform(state.constants.get(c))
        same = x in state.types and state.types[x] == state.types[value]
        if factor is not None and same and (node.op == "Mul" or (c == node.inputs[1] and factor != 0.0)):
            return x, factor if node.op == "Mul" else 1.0 / factor
    return value, 1.0


def _scale(match: Match) -> float | None:
    total = _peeled(match.state, match["q"])[1] * _peeled(match.state, match["kt"])[1]
    for name, inverse in (("factor", False), ("divisor", True)):
        if match[name]:
            number = match.scalar(name)
            if number is None or number == 0.0:
                return None
            total = total / number if inverse else total * number
    # exporters round the factor, often its root: what they mean is nearly always one over the root of the width
    width = match.shape("q")[-1]
    usual = 1.0 / math.sqrt(width) if isinstance(width, int) else total
    return usual if abs(total - usual) < 1e-6 * usual else total


def _prefix_ok(shape: tuple[Dim, ...], full: tuple[Dim, ...]) -> bool:
    """Whether a shape broadcasts to the scores' without widening them."""
    return len(shape) <= len(full) and all(d in (1, f) for d, f in zip(reversed(shape), reversed(full), strict=False))


def _not_attention(match: Match) -> str | None:
    q, kt, v = match.type("q"), match.type("kt"), match.type("v")
    if q.rank not in (3, 4) or kt.rank != q.rank or v.rank != q.rank:
        return f"its operands are {q}, {kt} and {v}, not of rank 3 or 4"
    if q.shape[:-2] != kt.shape[:-2] or q.shape[:-2] != v.shape[:-2]:
        return "its operands have different batches or heads"
    if q.dtype.kind != "float":
        return f"it works on {q.dtype}"
    if int(str(match.attr("Softmax", "axis"))) % q.rank != q.rank - 1:
        return "the Softmax does not run over the keys"
    scale = _scale(match)
    if scale is None or not math.isfinite(scale) or scale <= 0.0:
        return "the scale is not one positive number"
    scores = match.state.types[match.node("scores").output].shape
    for name in ("mask", "keep", "drop"):
        if match[name] and not _prefix_ok(match.shape(name), scores):
            return f"the mask {match.type(name)} does not broadcast to the scores {list(scores)}"
    low = match.scalar("low") if match["low"] else None
    if match["low"] and (low is None or low > _LOWEST):
        return "masked scores are not set to a number low enough to vanish"
    if low is not None and not math.isinf(low):
        return "fully masked rows would change: the masked scores are finite"
    return None


def _mask(match: Match, rank: int) -> str:
    """The mask operand: additive as it is, or true where a key is attended."""
    value = match.add("Not", match["drop"]) if match["drop"] else match["mask"] or match["keep"]
    shape = match.state.types[value].shape if value else ()
    if rank == 3 and value and len(shape) == 3:
        return reshaped(match, value, (1, *shape))      # the batch has become the heads
    return value


def _attend(match: Match) -> str:
    state = match.state
    (q, _), (kt, _) = _peeled(state, match["q"]), _peeled(state, match["kt"])
    rank = match.out.rank
    k = match.add("Transpose", kt, perm=(*range(rank - 2), rank - 1, rank - 2))
    v, scale = match["v"], _scale(match)
    mask = _mask(match, rank)
    if rank == 4:
        return match.add("Attention", q, k, v, mask, scale=scale)
    q, k, v = (reshaped(match, x, (1, *state.types[x].shape)) for x in (q, k, v))
    return reshaped(match, match.add("Attention", q, k, v, mask, scale=scale), match.out.shape)


# --- masks ----------------------------------------------------------------------------------------------------------

def _is_causal(match: Match) -> str | None:
    array = match.array("mask")
    if array.ndim < 2 or any(d != 1 for d in array.shape[:-2]):
        return f"the mask is {match.type('mask')}"
    rows, columns = array.shape[-2:]
    if match.attr("Attention", "is_causal") or rows != match.shape("q")[-2] or columns != match.shape("k")[-2]:
        return "the mask is not square, or it is causal already"
    square = array.reshape(rows, columns)
    lower = np.tri(rows, columns, dtype=bool)
    if square.dtype == bool:
        return None if (square == lower).all() else "the mask is not a lower triangle"
    good = (square[lower] == 0).all() and (square[~lower] <= _LOWEST).all()
    return None if good else "the mask is not a lower triangle"


def _without_mask(match: Match) -> dict[str, object]:
    return {k: v for k, v in match.node("Attention").attrs.items() if k != "mask"}


def _keeps_all(match: Match) -> str | None:
    wanted = 1.0 if match.type("mask").dtype.kind == "bool" else 0.0
    return None if match.scalar("mask") == wanted else "the mask is not without effect"


# --- heads ----------------------------------------------------------------------------------------------------------

_SPLIT = (0, 2, 1, 3)


def _heads(name: str) -> Pattern:
    """[N, S, H * D] as [N, H, S, D]."""
    return P("Transpose", P("Reshape", name, bind=f"{name}-heads", shared=True), bind=f"{name}-turned", shared=True)


def _not_in_rows(match: Match) -> str | None:
    if match["mask"] and match.type("mask").rank == 3:
        return "the mask has three axes"
    for name in ("q", "k", "v"):
        if perm_of(match, f"{name}-turned") != _SPLIT:
            return f"'{name}' is not [N, S, H, D] turned to [N, H, S, D]"
    if perm_of(match, "Transpose") != _SPLIT:
        return "the result is not turned back to [N, S, H, D]"
    if not all(isinstance(match.state.types[match.node(f"{n}-turned").output].shape[1], int) for n in "qk"):
        return "the number of heads is symbolic"
    return None


def _in_rows(match: Match) -> str:
    rows = []
    for name in ("q", "k", "v"):
        batch, heads, length, width = match.state.types[match.node(f"{name}-turned").output].shape
        rows.append(reshaped(match, match[name], (batch, length, heads * width)))
    counts: dict[str, object] = {
        "q_num_heads": match.state.types[match.node("q-turned").output].shape[1],
        "kv_num_heads": match.state.types[match.node("k-turned").output].shape[1]}
    made = match.add("Attention", *rows, match["mask"], **{**match.node("Attention").attrs, **counts})
    return reshaped(match, made, match.out.shape)


def _not_repeated(match: Match) -> str | None:
    """Why keys and values are not each copied for a group of query heads, [N, G, S, D] as [N, G, R, S, D]."""
    for name in ("k", "v"):
        narrow, wide = match.shape(name), match.state.types[match.node(f"{name}-wide").output].shape
        one = match.state.types[match.node(f"{name}-wide").inputs[0]].shape
        end = match.state.types[match.node(f"{name}-heads").output].shape
        if len(narrow) != 4 or len(wide) != 5 or one != (*narrow[:2], 1, *narrow[2:]):
            return f"'{name}' is not repeated head by head"
        if (wide[0], wide[1], *wide[3:]) != narrow or end != (narrow[0], narrow[1] * wide[2], *narrow[2:]):
            return f"'{name}' is not repeated head by head"
    return None


def _repeated(name: str) -> Pattern:
    return P("Reshape", P("Expand", P("Reshape", name, bind=f"{name}-one", shared=True), bind=f"{name}-wide",
                          shared=True), bind=f"{name}-heads", shared=True)


RULES = (
    Rule("attention", _PATTERN, make=_attend, decline=_not_attention),
    Rule("attention-causal", P("Attention", "q", "k", "v", Const("mask")), decline=_is_causal,
         make=lambda m: m.add("Attention", m["q"], m["k"], m["v"], **{**_without_mask(m), "is_causal": 1})),
    Rule("attention-without-mask", P("Attention", "q", "k", "v", Const("mask")), decline=_keeps_all,
         make=lambda m: m.add("Attention", m["q"], m["k"], m["v"], **_without_mask(m))),
    Rule("attention-shared-keys", P("Attention", "q", _repeated("k"), _repeated("v"), "mask?"), decline=_not_repeated,
         make=lambda m: m.add("Attention", m["q"], m["k"], m["v"], m["mask"], **m.node("Attention").attrs)),
    Rule("attention-in-rows", make=_in_rows, decline=_not_in_rows, pattern=P("Transpose", P(
        "Attention", _heads("q"), _heads("k"), _heads("v"), "mask?"))),
)


@graph_pass(after=(simplify, recognise), rules=RULES)
def recognise_attention(graph: Graph, target: Target) -> Graph:
    """Give scaled-dot-product attention its one op, on [N, S, heads * width] operands where the heads allow it."""
    return rewrite(graph, (*RULES, *VIEWS))
