"""Attention and what surrounds it."""
from __future__ import annotations

import numpy as np

from ingot.graph import Dim, TensorType
from ingot.ops.op import Attrs, Op, Types, declare
from ingot.ops.samples import f32, indices, values
from ingot.ops.shapes import broadcast, given, integer, same, same_dim, same_dtype


def attention_heads(types: Types, attrs: Attrs) -> tuple[tuple[Dim, ...], tuple[Dim, ...], tuple[Dim, ...]]:
    """(batch, heads, length, width) of the query, the key and the value, whichever form they come in."""
    found: list[tuple[Dim, ...]] = []
    for t, heads in zip(types[:3], ("q_num_heads", "kv_num_heads", "kv_num_heads"), strict=True):
        t = given(t)
        if t.rank == 3:
            count = integer(attrs, heads)
            batch, length, hidden = t.shape
            if isinstance(hidden, int) and hidden % count:
                raise ValueError(f"{hidden} does not divide into {count} heads")
            found.append((batch, count, length, hidden // count))
        elif t.rank == 4:
            found.append(t.shape)
        else:
            raise ValueError(f"{t} is neither [batch, heads, length, width] nor [batch, length, heads * width]")
    return found[0], found[1], found[2]


def _attention(types: Types, attrs: Attrs, outputs: int) -> tuple[TensorType, ...]:
    query, key, value = attention_heads(types, attrs)
    dtype = given(types[0]).dtype
    same_dtype(types[:3])
    rest = (*types[3:], None, None, None, None)
    mask, past = rest[0], rest[1]
    same_dim(query[3], key[3], "the widths of query and key")
    same_dim(key[2], value[2], "the lengths of key and value")
    if isinstance(query[1], int) and isinstance(key[1], int) and query[1] % key[1]:
        raise ValueError(f"{query[1]} query heads do not share {key[1]} key heads evenly")
    total = key[2] if past is None else past.shape[2] + key[2]
    scores = (*query[:3], total)
    if mask is not None and mask.rank and isinstance(mask.shape[-1], int) and mask.shape[-1] == total:
        broadcast(mask.shape, scores)
    result = ((*query[:3], value[3]) if given(types[0]).rank == 4
              else (query[0], query[2], query[1] * value[3]))
    return (TensorType(dtype, result), TensorType(dtype, (*key[:2], total, key[3])),
            TensorType(dtype, (*value[:2], total, value[3])), TensorType(dtype, scores))[:outputs]


_MASK = (indices(0, 2, 2, 1, 9, 9) + np.eye(9, dtype=np.int64)).astype(bool)      # each row keeps something
declare(Op("Attention", "softmax(scale * Q K' + mask) V, per head", (
    "q", "k", "v", "mask?", "past_key?", "past_value?", "nonpad_kv_seqlen?"), _attention,
    {"is_causal": 0, "kv_num_heads": None, "left_window_size": -1, "q_num_heads": None, "qk_matmul_output_mode": 0,
     "right_window_size": -1, "scale": None, "softcap": 0.0, "softmax_precision": None}, outputs=4, samples=(
    ((f32(2, 3, 17, 16), f32(2, 3, 17, 16), f32(2, 3, 17, 16)), {}),
    ((f32(1, 12, 128, 64), f32(1, 12, 128, 64), f32(1, 12, 128, 64)), {"scale": 0.125}),
    ((f32(2, 3, 5, 16), f32(2, 3, 9, 16), f32(2, 3, 9, 24)), {}),
    ((f32(2, 3, 9, 16), f32(2, 3, 9, 16), f32(2, 3, 9, 16)), {"is_causal": 1}),
    ((f32(2, 3, 9, 16), f32(2, 3, 9, 16), f32(2, 3, 9, 16), f32(2, 1, 9, 9)), {"scale": 0.25}),
    ((f32(2, 3, 9, 16), f32(2, 3, 9, 16), f32(2, 3, 9, 16), f32(9, 9)), {}),
    ((f32(2, 3, 9, 16), f32(2, 3, 9, 16), f32(2, 3, 9, 16), values(2, 1, 1, 9, low=-3, high=3)), {}),
    ((f32(2, 3, 9, 16), f32(2, 3, 9, 16), f32(2, 3, 9, 16), _MASK), {}),
    ((f32(2, 6, 5, 8), f32(2, 2, 5, 8), f32(2, 2, 5, 8)), {}),
    ((f32(2, 7, 48), f32(2, 7, 48), f32(2, 7, 48)), {"q_num_heads": 3, "kv_num_heads": 3}),
    ((f32(1, 2, 1, 32), f32(1, 2, 33, 32), f32(1, 2, 33, 32)), {}),
    ((f32(1, 2, 3, 8), f32(1, 2, 3, 8), f32(1, 2, 3, 8), None, f32(1, 2, 4, 8), f32(1, 2, 4, 8)), {}),
)))


declare(Op("RotaryEmbedding", "pairs of features rotated by an angle that grows with the position",
           ("x", "cos", "sin", "positions?"), same,
           {"interleaved": 0, "num_heads": None, "rotary_embedding_dim": 0}, samples=(
    ((f32(2, 3, 5, 8), values(11, 4), values(11, 4), indices(0, 11, 2, 5)), {}),
    ((f32(2, 3, 5, 8), values(2, 5, 4), values(2, 5, 4)), {}),
    ((f32(2, 3, 5, 8), values(11, 4), values(11, 4), indices(0, 11, 2, 5)), {"interleaved": 1}),
    ((f32(2, 5, 24), values(11, 4), values(11, 4), indices(0, 11, 2, 5)), {"num_heads": 3}),
)))
