"""ONNX Runtime's attention ops, as the standard's Attention and RotaryEmbedding.

Queries, keys and values are brought to [batch, heads, length, width]; whatever says which positions may be looked at
(lengths, padding masks, causal order, windows) becomes one bias that is added to the scores.
"""
from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence

import numpy as np

from ingot.errors import UnsupportedError
from ingot.frontend.onnx.contrib.maker import Maker
from ingot.graph import Dim

Found = tuple[str, ...]


def _heads(m: Maker, x: str, heads: int) -> str:
    """[batch, length, heads * width] as [batch, heads, length, width]."""
    batch, length, hidden = m.shape(x)
    return m.transpose(m.reshape(x, batch, length, heads, hidden // heads), 0, 2, 1, 3)


def _merged(m: Maker, x: str) -> str:
    batch, heads, length, width = m.shape(x)
    return m.reshape(m.transpose(x, 0, 2, 1, 3), batch, length, heads * width)


def _positions(m: Maker, begin: Dim, end: Dim) -> str:
    """The whole numbers of [begin, end), as i64."""
    return m("Range", start=(begin,), limit=(end,), delta=(1,), dtype="i64")


def _chosen(m: Maker, keep: str, low: float, like: str) -> str:
    """0 where positions may be looked at, `low` elsewhere."""
    return m("Where", keep, m.scalar(0.0, like), m.scalar(low, like))


def _causal(m: Maker, query: Dim, past: Dim, total: Dim) -> str:
    """[query, total]: which keys come no later than each query, which stand behind `past` others."""
    rows = m("Unsqueeze", _positions(m, past, past + query), axes=(1,))
    return m("LessOrEqual", m("Unsqueeze", _positions(m, 0, total), axes=(0,)), rows)


def _sum(m: Maker, terms: Sequence[str]) -> str:
    made = ""
    for term in terms:
        made = term if not made else m("Add", made, term)
    return made


def _mask(m: Maker, mask: str, like: str, query: Dim, total: Dim, low: float) -> str:
    """A mask in one of ONNX Runtime's forms, as a bias: [batch] lengths, [batch, keys], [batch, queries, keys]."""
    t = m.type(mask)
    if t.rank == 1:
        batch = m.shape(like)[0]
        if t.shape[0] != batch:
            raise UnsupportedError(f"a mask index of {t.shape[0]} entries for a batch of {batch}",
                                   mend="export with a mask of [batch, keys]")
        ends = m("Unsqueeze", m.cast(mask, "i64"), axes=(1,))
        keep = m("Unsqueeze", m("Less", m("Unsqueeze", _positions(m, 0, total), axes=(0,)), ends), axes=(1, 2))
    elif t.rank in (2, 3):
        keep = m("Unsqueeze", m.cast(mask, "bool"), axes=(1, 2) if t.rank == 2 else (1,))
    else:
        raise UnsupportedError(f"a mask of shape {t}", mend="export with a mask of [batch, keys]")
    return _chosen(m, keep, low, like)


def _attend(m: Maker, q: str, k: str, v: str, bias: Sequence[str], scale: float, softcap: float = 0.0) -> str:
    given = [q, k, v, *([_sum(m, bias)] if bias else [])]
    more: dict[str, object] = {"softcap": softcap} if softcap else {}
    if scale:
        more["scale"] = scale
    return _merged(m, m("Attention", *given, **more))


def _with_past(m: Maker, past: str, now: str) -> str:
    return m("Concat", past, now, axis=2) if past else now


def _lowest(m: Maker, default: float = -10000.0) -> float:
    return m.number("mask_filter_value", default)


def _attention(m: Maker) -> Found:
    """Attention(input, weights, bias, mask?, past?, bias of the scores?): the projections are part of it."""
    m.refuse("do_rotary", "past_present_share_buffer")
    x, heads = m.input(0), m.integer("num_heads")
    product = m("MatMul", x, m.input(1))
    if m.has(2):
        product = m("Add", product, m.input(2))
    sizes = m.attrs.get("qkv_hidden_sizes")
    hidden = m.shape(product)[-1]
    if not isinstance(sizes, tuple) or not sizes:
        sizes = (hidden // 3,) * 3
    q, k, v = (_heads(m, part, heads) for part in m.several("Split", 3, product, axis=-1, split=sizes))
    present = ""
    past: Dim = 0
    if m.has(4):
        old_k, old_v = (m("Squeeze", p, axes=(0,)) for p in m.several("Split", 2, m.input(4), axis=0, num_outputs=2))
        past = m.shape(old_k)[2]
        k, v = _with_past(m, old_k, k), _with_past(m, old_v, v)
    if m.wanted > 1:
        present = m("Concat", m("Unsqueeze", k, axes=(0,)), m("Unsqueeze", v, axes=(0,)), axis=0)
    query, total = m.shape(q)[2], m.shape(k)[2]
    bias = [_mask(m, m.input(3), q, query, total, _lowest(m))] if m.has(3) else []
    if m.has(5):
        bias.append(m.input(5))
    if m.integer("unidirectional", 0):
        bias.append(_chosen(m, _causal(m, query, past, total), float(np.finfo(np.float32).min), q))
    return m.outputs(_attend(m, q, k, v, bias, m.number("scale", 0.0)), present)


def _multi_head(m: Maker) -> Found:
    """MultiHeadAttention(query, key?, value?, bias?, padding mask?, bias of the scores?, past key?, past value?)."""
    heads, q = m.integer("num_heads"), m.input(0)
    rank = m.type(q).rank
    if rank == 5:           # [batch, length, heads, 3, width]
        q, k, v = (m.transpose(m("Squeeze", p, axes=(3,)), 0, 2, 1, 3)
                   for p in m.several("Split", 3, q, axis=3, num_outputs=3))
        if m.has(3):
            raise UnsupportedError("MultiHeadAttention of packed operands with a bias", mend="add the bias before")
    else:
        k, v = (m.input(1), m.input(2)) if m.has(2) else ("", "")
        ready = bool(k) and m.type(k).rank == 4     # keys of an encoder, in heads already
        if not k:           # [batch, length, heads, 2, width]
            k, v = (m.transpose(m("Squeeze", p, axes=(3,)), 0, 2, 1, 3)
                    for p in m.several("Split", 2, m.input(1), axis=3, num_outputs=2))
            ready = True
        if m.has(3):
            wide = m.shape(q)[-1]
            last = m.shape(m.input(3))[0] - 2 * wide
            parts = m.several("Split", 3, m.input(3), axis=0, split=(wide, wide, last))
            q = m("Add", q, parts[0])
            if not ready:
                k, v = m("Add", k, parts[1]), m("Add", v, parts[2])
        q = _heads(m, q, heads)
        if not ready:
            k, v = _heads(m, k, heads), _heads(m, v, heads)
    past: Dim = 0
    if m.has(6) and m.has(7):
        past = m.shape(m.input(6))[2]
        k, v = _with_past(m, m.input(6), k), _with_past(m, m.input(7), v)
    query, total = m.shape(q)[2], m.shape(k)[2]
    bias = [_mask(m, m.input(4), q, query, total, _lowest(m))] if m.has(4) else []
    if m.has(5):
        bias.append(m.input(5))
    if m.integer("unidirectional", 0):
        bias.append(_chosen(m, _causal(m, query, past, total), float(np.finfo(np.float32).min), q))
    return m.outputs(_attend(m, q, k, v, bias, m.number("scale", 0.0)), k, v)


def _rotated(m: Maker, x: str, positions: str, cos: str, sin: str) -> str:
    """A [batch, heads, length, width] turned by its positions; only as many features as the tables have."""
    cached, width = m.shape(cos)[-1], m.shape(x)[-1]
    part = 0 if cached * 2 == width or not isinstance(cached, int) else 2 * cached
    return m("RotaryEmbedding", x, cos, sin, positions, interleaved=m.integer("rotary_interleaved", 0),
             rotary_embedding_dim=part)


def _grouped(m: Maker) -> Found:
    """GroupQueryAttention(query, key?, value?, past key, past value, lengths - 1, longest, cos?, sin?).

    The past is as long as its tensor; keys beyond an item's own length are padding.
    """
    m.refuse("smooth_softmax", "k_quant_type", "v_quant_type", "qk_output")
    heads, shared = m.integer("num_heads"), m.integer("kv_num_heads")
    if m.has(1):
        q, k, v = m.input(0), m.input(1), m.input(2)
    else:
        hidden = m.shape(m.input(0))[-1] // (heads + 2 * shared)
        q, k, v = m.several("Split", 3, m.input(0), axis=-1, split=(heads * hidden, shared * hidden, shared * hidden))
    q, k, v = _heads(m, q, heads), _heads(m, k, shared), _heads(m, v, shared)
    batch, _, query, width = m.shape(q)
    past: Dim = m.shape(m.input(3))[2] if m.has(3) else 0
    if m.integer("do_rotary", 0):
        at = m.input(9) if m.has(9) else m("Expand", m("Unsqueeze", _positions(m, past, past + query), axes=(0,)),
                                           shape=(batch, query))
        q, k = (_rotated(m, x, at, m.input(7), m.input(8)) for x in (q, k))
    if m.has(3) and past != 0:
        k, v = _with_past(m, m.input(3), k), _with_past(m, m.input(4), v)
    total = m.shape(k)[2]
    low = float(np.finfo(np.float16).min if m.dtype(q).name == "f16" else np.finfo(np.float32).min)
    keep = m("Unsqueeze", _causal(m, query, past, total), axes=(0, 1))
    window = m.integer("local_window_size", -1)
    keys = _positions(m, 0, total)
    if window > 0:
        rows = m("Unsqueeze", _positions(m, past, past + query), axes=(1,))
        near = m("Greater", m("Unsqueeze", keys, axes=(0,)), m("Sub", rows, m.constant(np.asarray(window, np.int64))))
        keep = m("And", keep, near)
    ends = m("Unsqueeze", m("Reshape", m.cast(m.input(5), "i64"), shape=(batch,)), axes=(1, 2, 3))
    there = m("LessOrEqual", m("Unsqueeze", keys, axes=(0, 1, 2)), ends)
    bias = [_chosen(m, m("And", keep, there), low, q), *([m.input(10)] if m.has(10) else [])]
    scale = m.number("scale", 0.0) or (1 / math.sqrt(width) if isinstance(width, int) else 0.0)
    return m.outputs(_attend(m, q, k, v, bias, scale, m.number("softcap", 0.0)), k, v)


def _rotary(m: Maker) -> Found:
    """RotaryEmbedding(input, positions, cos, sin): a single position is where the first one stands."""
    m.refuse("is_packed_batching")
    x, at = m.input(0), m.input(1)
    t = m.type(x)
    heads, part = m.integer("num_heads", 0), m.integer("rotary_embedding_dim", 0)
    cached = m.shape(m.input(2))[-1]
    if t.rank == 3 and not heads:
        heads = int(t.shape[2] // (part or 2 * cached))     # type: ignore[arg-type]
    length, batch = (t.shape[1], t.shape[0]) if t.rank == 3 else (t.shape[2], t.shape[0])
    if m.type(at).rank == 1:
        whole = m("Add", m("Unsqueeze", _positions(m, 0, length), axes=(0,)), m("Unsqueeze", at, axes=(1,)))
        at = m("Expand", whole, shape=(batch, length))
    more = {"num_heads": heads} if t.rank == 3 else {}
    made = m("RotaryEmbedding", x, m.input(2), m.input(3), at, interleaved=m.integer("interleaved", 0),
             rotary_embedding_dim=part, **more)
    scale = m.number("scale", 1.0)
    return (made if scale == 1.0 else m("Mul", made, m.scalar(scale, made)),)


def _quantised_attention(m: Maker) -> Found:
    """QAttention(input, weights, bias, input's scale, weights' scale, mask?, zero points?, past?)."""
    x = m("DequantizeLinear", m.input(0), m.input(3), *([m.input(6)] if m.has(6) else []))
    per_column = {"axis": 1} if m.type(m.input(4)).rank else {}
    weights = m("DequantizeLinear", m.input(1), m.input(4), *([m.input(7)] if m.has(7) else []), **per_column)
    plain = Maker(m.op, (x, weights, m.input(2), m.input(5) if m.has(5) else "", m.input(8) if m.has(8) else ""),
                  m.attrs, m.wanted, m.add, m.type_of, m.array_of, m.constant)
    return _attention(plain)


ATTENTION: Mapping[str, Callable[[Maker], Found]] = {
    "Attention": _attention, "GroupQueryAttention": _grouped, "MultiHeadAttention": _multi_head,
    "QAttention": _quantised_attention, "RotaryEmbedding": _rotary}
