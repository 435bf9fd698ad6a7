"""Attention with caches, lengths and windows as plain attention: keys and values joined, and one mask for all of it.

A key is seen by a query where every condition holds: its place is not past the query's own (causal), not outside the
window around it, below the number of keys in use, and not masked. That is one boolean mask, or -inf beside a mask of
numbers. What asks for the scores themselves, or for f64, is written out as products and a softmax.
"""
from __future__ import annotations

import math

import numpy as np

from ingot.graph import BOOL, F32, F64, Dim, Graph
from ingot.ops.attention import attention_heads
from ingot.passes.graph_pass import graph_pass
from ingot.passes.rewrite import Match, P, Rule, rewrite
from ingot.passes.written_out import number, wanted, write_out
from ingot.passes.written_out_integers import operand
from ingot.target import Target

_QUERY, _KEY, _VALUE, _MASK, _PAST_KEY, _PAST_VALUE, _LENGTHS = range(7)


def _window(match: Match, side: str) -> int:
    found = match.attr(match.root, f"{side}_window_size")
    return -1 if found is None else int(str(found))


def _count(match: Match, name: str) -> int:
    return int(str(match.attr(match.root, name)))


def _heads(match: Match) -> tuple[tuple[Dim, ...], tuple[Dim, ...], tuple[Dim, ...]]:
    return attention_heads(tuple(match.state.types[operand(match, i)] for i in range(3)),
                           {k: match.attr(match.root, k) for k in ("q_num_heads", "kv_num_heads")})


def _keys(match: Match) -> Dim:
    """The number of keys, those of the cache included."""
    past = operand(match, _PAST_KEY)
    return _heads(match)[1][2] + (match.type(past).shape[2] if past else 0)


def _short_mask(match: Match) -> bool:
    mask = operand(match, _MASK)
    return bool(mask) and (not match.type(mask).rank or match.type(mask).shape[-1] != _keys(match))


def _no_cache(match: Match) -> str | None:
    cached = operand(match, _PAST_KEY) or operand(match, _LENGTHS) or wanted(match, 1) or wanted(match, 2)
    if cached or _short_mask(match) or max(_window(match, "left"), _window(match, "right")) >= 0:
        return None
    return "it has neither cache nor window, and its mask is whole"


def _spread(match: Match, value: str, shape: tuple[Dim, ...]) -> str:
    """[batch, position, heads * width] as [batch, heads, position, width]; what has rank 4 already stays."""
    if match.type(value).rank == 4:
        return value
    batch, heads, length, width = shape
    return match.add("Transpose", match.add("Reshape", value, shape=(batch, length, heads, width)), perm=(0, 2, 1, 3))


def _places(match: Match, count: Dim, *, column: bool) -> str:
    """0, 1, ... as a column or a row, i64."""
    if isinstance(count, int):
        return match.constant(np.arange(count).reshape((-1, 1) if column else (1, -1)))
    row = match.add("Range", start=(0,), limit=(count,), delta=(1,), dtype="i64")
    return match.add("Unsqueeze", row, axes=(1,) if column else (0,))


def _seen(match: Match, queries: Dim, keys: Dim) -> str:
    """Which keys the place of each query lets it see: bool, [queries, keys] or [batch, 1, queries, keys]; "" all."""
    lengths, past = operand(match, _LENGTHS), operand(match, _PAST_KEY)
    key = _places(match, keys, column=False)
    terms: list[str] = []
    batched = ""
    if lengths:
        wide = lengths if match.type(lengths).dtype.name == "i64" else match.add("Cast", lengths, to="i64")
        batched = match.add("Unsqueeze", wide, axes=(1, 2, 3))
        terms.append(match.add("Less", key, batched))
    left, right = _window(match, "left"), _window(match, "right")
    causal = bool(match.attr(match.root, "is_causal"))
    if causal or left >= 0 or right >= 0:
        query, first = _places(match, queries, column=True), operand(match, _QUERY)
        if batched:
            query = match.add("Add", match.add("Sub", batched, _size(match, first, match.type(first).rank // 2)), query)
        elif past:
            query = match.add("Add", query, _size(match, past, 2))
        if causal:
            terms.append(match.add("LessOrEqual", key, query))
        if left >= 0:
            terms.append(match.add("LessOrEqual", match.add("Sub", query, key), match.constant(np.asarray(left))))
        if right >= 0:
            terms.append(match.add("LessOrEqual", match.add("Sub", key, query), match.constant(np.asarray(right))))
    found = ""
    for term in terms:
        found = match.add("And", found, term) if found else term
    return found


def _size(match: Match, value: str, axis: int) -> str:
    """A size as a number in the graph."""
    size = match.type(value).shape[axis]
    return match.constant(np.asarray([size])) if isinstance(size, int) else \
        match.add("Shape", value, start=axis, end=axis + 1)


def _lengthened(match: Match, mask: str, keys: Dim) -> str:
    """The mask, with nothing to see past its end."""
    t = match.type(mask)
    if not t.rank or t.shape[-1] == keys:
        return mask
    value = "" if t.dtype == BOOL else number(match, -math.inf, mask)
    return match.add("Pad", mask, *((value,) if value else ()), pads=(*(0,) * (2 * t.rank - 1), keys - t.shape[-1]))


def _joined(match: Match) -> str | tuple[str, ...]:
    query, key, value = _heads(match)
    keys, rank = _keys(match), match.type(operand(match, _QUERY)).rank
    joined, presents = [], []
    for index, shape in ((_KEY, key), (_VALUE, value)):
        here, past = operand(match, index), operand(match, index + 3)
        whole = here
        if past:
            whole = match.add("Concat", past, _spread(match, here, shape), axis=2)
        presents.append(_spread(match, whole, shape) if wanted(match, index) else "")
        joined.append(whole)
    mask = operand(match, _MASK)
    if mask:
        mask = _lengthened(match, mask, keys)
    if seen := _seen(match, query[2], keys):
        if not mask:
            mask = seen
        elif match.type(mask).dtype == BOOL:
            mask = match.add("And", seen, mask)
        else:
            mask = match.add("Where", seen, mask, number(match, -math.inf, mask))
    attrs: dict[str, object] = {k: v for k, v in match.root.attrs.items()
                                if k not in ("is_causal", "left_window_size", "right_window_size")}
    if mask and not match.type(mask).rank:
        mask = match.add("Expand", mask, shape=(1, keys))
    turned = rank == 3 and match.type(joined[0]).rank == 4
    first = _spread(match, operand(match, _QUERY), query) if turned else operand(match, _QUERY)
    if turned:
        attrs = {k: v for k, v in attrs.items() if k not in ("q_num_heads", "kv_num_heads")}
    outputs = ("y", "", "", "scores") if wanted(match, 3) else ("y",)
    stems = tuple(f"{match.root.outputs[0]}.{o}" if o else "" for o in outputs)
    made = match.add_many("Attention", (first, *joined, mask), attrs, stems)
    result = made[0]
    if turned:
        result = match.add("Reshape", match.add("Transpose", result, perm=(0, 2, 1, 3)), shape=match.out.shape)
    return tuple(v if o else "" for v, o in
                 zip((result, *presents, made[-1]), match.root.outputs, strict=False))


# --- scores asked for, or f64 -----------------------------------------------------------------------------------------

def _by_blocks(match: Match) -> str | None:
    if _no_cache(match) is None:
        return "its cache comes first"
    x = match.type(operand(match, _QUERY)).dtype
    if x not in (F32, F64):
        return f"it computes {x}"
    if match.attr(match.root, "softmax_precision") not in (None, 1, "f32") or x == F64 or wanted(match, 3):
        return None
    return "a kernel of its own serves it"


def _by_scores(match: Match) -> str | tuple[str, ...]:
    shapes = _heads(match)
    query, key, value = (_spread(match, operand(match, i), s) for i, s in enumerate(shapes))
    present = (key, value)
    heads, shared = shapes[0][1], shapes[1][1]
    if heads != shared:
        key, value = (_repeated(match, v, s, int(str(heads)) // int(str(shared)))
                      for v, s in ((key, shapes[1]), (value, shapes[2])))
    scale = match.attr(match.root, "scale")
    root = math.sqrt(1 / math.sqrt(int(str(shapes[0][3]))) if scale is None else float(str(scale)))
    turned = match.add("Transpose", key, perm=(0, 1, 3, 2))
    scores = match.add("MatMul", match.add("Mul", query, number(match, root, query)),
                       match.add("Mul", turned, number(match, root, query)))
    if softcap := float(str(match.attr(match.root, "softcap") or 0.0)):
        bound = number(match, softcap, query)
        scores = match.add("Mul", match.add("Tanh", match.add("Div", scores, bound)), bound)
    biased, hidden = _biased(match, scores, shapes[0][2], shapes[1][2])
    chances = _chances(match, biased, hidden)
    result = match.add("MatMul", chances, value)
    if match.type(operand(match, _QUERY)).rank == 3:
        result = match.add("Reshape", match.add("Transpose", result, perm=(0, 2, 1, 3)), shape=match.out.shape)
    mode = int(str(match.attr(match.root, "qk_matmul_output_mode") or 0))
    shown = {2: biased, 3: chances}.get(mode, scores)
    return tuple(v if o else "" for v, o in zip((result, *present, shown), match.root.outputs, strict=False))


def _repeated(match: Match, value: str, shape: tuple[Dim, ...], times: int) -> str:
    batch, heads, length, width = shape
    spread = match.add("Expand", match.add("Unsqueeze", value, axes=(2,)), shape=(batch, heads, times, length, width))
    return match.add("Reshape", spread, shape=(batch, heads * times, length, width))


def _biased(match: Match, scores: str, queries: Dim, keys: Dim) -> tuple[str, str]:
    """The scores beside the mask, and which rows see nothing at all ("" where none is masked)."""
    mask, zero = operand(match, _MASK), number(match, 0.0, scores)
    below = number(match, -math.inf, scores)
    if mask and match.type(mask).dtype == BOOL:
        mask = match.add("Where", mask, zero, below)
    elif mask and match.type(mask).dtype != match.type(scores).dtype:
        mask = match.add("Cast", mask, to=match.type(scores).dtype.name)
    if match.attr(match.root, "is_causal"):
        seen = match.add("LessOrEqual", _places(match, keys, column=False), _places(match, queries, column=True))
        mask = match.add("Where", seen, mask or zero, below)
    if not mask:
        return scores, ""
    most = match.add("ReduceMax", mask, axes=(-1,), keepdims=1) if match.type(mask).rank else mask
    return match.add("Add", scores, mask), match.add("Equal", most, below)


def _chances(match: Match, biased: str, hidden: str) -> str:
    """The softmax; 0 throughout for a row that sees nothing."""
    own = match.type(biased).dtype
    asked = match.attr(match.root, "softmax_precision")
    wide = match.add("Cast", biased, to="f64") if asked in (11, "f64") and own != F64 else biased
    made = match.add("Softmax", wide, axis=-1)
    if wide != biased:
        made = match.add("Cast", made, to=own.name)
    return match.add("Where", hidden, number(match, 0.0, made), made) if hidden else made


RULES = (
    Rule("attention-cache", P("Attention", "*"), make=_joined, decline=_no_cache),
    Rule("attention-scores", P("Attention", "*"), make=_by_scores, decline=_by_blocks),
)


@graph_pass(after=(write_out,), rules=RULES)
def join_caches(graph: Graph, target: Target) -> Graph:
    """Write attention with caches, lengths and windows as plain attention with one mask."""
    return rewrite(graph, RULES)

