"""Fused products, activations and normalisations of ONNX Runtime, in standard ops."""
from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np

from ingot.errors import ModelError, UnsupportedError
from ingot.frontend.onnx.contrib.maker import Maker

Found = tuple[str, ...]


def _turned(m: Maker, x: str, name: str) -> str:
    """An operand of a fused product with its last two axes, or its batch, where they belong."""
    rank = m.type(x).rank
    if m.attrs.get(f"transBatch{name}"):
        if rank < 3:
            raise ModelError(f"{m.op} turns the batch of an operand of rank {rank}", mend="export the model again")
        x = m.transpose(x, *range(1, rank - 1), 0, rank - 1)
    if m.attrs.get(f"trans{name}") and rank > 1:
        x = m.transpose(x, *range(rank - 2), rank - 1, rank - 2)
    return x


def _fused_matmul(m: Maker) -> Found:
    made = m("MatMul", _turned(m, m.input(0), "A"), _turned(m, m.input(1), "B"))
    alpha = m.number("alpha", 1.0)
    return (made if alpha == 1.0 else m("Mul", made, m.scalar(alpha, made)),)


def _gelu(approximate: str) -> Callable[[Maker], Found]:
    def make(m: Maker) -> Found:
        x = m("Add", m.input(0), m.input(1)) if m.has(1) else m.input(0)
        return (m("Gelu", x, approximate=approximate),)
    return make


def _quick_gelu(m: Maker) -> Found:
    x = m.input(0)
    return (m("Mul", x, m("Sigmoid", m("Mul", x, m.scalar(m.number("alpha", 1.702), x)))),)


def _bias_split_gelu(m: Maker) -> Found:
    first, second = m.several("Split", 2, m("Add", m.input(0), m.input(1)), axis=-1, num_outputs=2)
    return (m("Mul", first, m("Gelu", second)),)


def _bias_add(m: Maker) -> Found:
    return (m("Add", m("Add", m.input(0), m.input(1)), m.input(2)),)


def _skip_layer_norm(m: Maker) -> Found:
    """Outputs: the normalised sum, its mean, its inverse deviation, the sum itself."""
    total = m("Add", m.input(0), m.input(1))
    if m.has(4):
        total = m("Add", total, m.input(4))
    norm = [total, m.input(2), *([m.input(3)] if m.has(3) else [])]
    made = m.several("LayerNormalization", 3 if m.wanted > 1 else 1, *norm, axis=-1,
                     epsilon=m.number("epsilon", 1e-5))
    return m.outputs(*(*made, "", "")[:3], total)


def _skip_rms_norm(m: Maker) -> Found:
    total = m("Add", m.input(0), m.input(1))
    if m.has(3):
        total = m("Add", total, m.input(3))
    made = m("RMSNormalization", total, m.input(2), axis=-1, epsilon=m.number("epsilon", 1e-5))
    return m.outputs(made, "", "", total)


def _rms_norm(m: Maker) -> Found:
    return (m("RMSNormalization", m.input(0), m.input(1), axis=m.integer("axis", -1),
              epsilon=m.number("epsilon", 1e-5)),)


def _embed_layer_norm(m: Maker) -> Found:
    """Outputs: the normalised sum of the embeddings, the number of words that are not masked, the sum."""
    ids, words, positions = m.input(0), m.input(2), m.input(3)
    batch, length = m.shape(ids)
    total = m("Gather", words, ids)
    if m.has(8):
        total = m("Add", total, m("Gather", positions, m.input(8)))
    else:
        first = m("Slice", positions, starts=(0,), ends=(length,), axes=(0,))
        total = m("Add", total, first)
    if m.has(1) and m.has(4):
        total = m("Add", total, m("Gather", m.input(4), m.input(1)))
    made = m("LayerNormalization", total, m.input(5), m.input(6), axis=-1, epsilon=m.number("epsilon", 1e-12))
    counted = ""
    if m.wanted > 1:
        counted = m("ReduceSum", m.cast(m.input(7), "i32"), axes=(1,), keepdims=0) if m.has(7) else \
            m("ConstantOfShape", shape=(batch,), value=np.zeros(1, np.int32))
    return m.outputs(made, counted, total)


_ACTIVATIONS = {"Relu": "Relu", "Tanh": "Tanh", "Sigmoid": "Sigmoid", "LeakyRelu": "LeakyRelu", "Elu": "Elu",
                "HardSigmoid": "HardSigmoid", "Softplus": "Softplus", "Softsign": "Softsign",
                "ThresholdedRelu": "ThresholdedRelu", "ScaledTanh": ""}


def _activated(m: Maker, x: str, params: tuple[float, ...] = ()) -> str:
    name = str(m.attrs.get("activation", ""))
    if not name:
        return x
    if name == "Clip":
        low, high = (*params, -np.inf, np.inf)[:2] if len(params) != 1 else (params[0], np.inf)
        return m("Clip", x, m.scalar(low, x), m.scalar(high, x))
    if not _ACTIVATIONS.get(name):
        raise UnsupportedError(f"{m.op} with the activation {name}",
                               mend=f"served: Clip, {', '.join(k for k, v in _ACTIVATIONS.items() if v)}")
    names = {"LeakyRelu": ("alpha",), "Elu": ("alpha",), "ThresholdedRelu": ("alpha",),
             "HardSigmoid": ("alpha", "beta")}.get(name, ())
    return m(name, x, **dict(zip(names, params, strict=False)))


def _fused_conv(m: Maker) -> Found:
    attrs = {k: v for k, v in m.attrs.items() if k not in ("activation", "activation_params")}
    made = m("Conv", m.input(0), m.input(1), *([m.input(2)] if m.has(2) else []), **attrs)
    if m.has(3):
        made = m("Add", made, m.input(3))
    params = m.attrs.get("activation_params")
    return (_activated(m, made, params if isinstance(params, tuple) else ()),)


def _fused_gemm(m: Maker) -> Found:
    plain = ("alpha", "beta", "transA", "transB")
    made = m("Gemm", *(i for i in m.inputs if i), **{k: v for k, v in m.attrs.items() if k in plain})
    params = tuple(m.number(f"activation_{k}", 0.0) for k in ("alpha", "beta", "gamma") if f"activation_{k}" in m.attrs)
    return (_activated(m, made, params),)


def _standard(op: str) -> Callable[[Maker], Found]:
    """An op that means what the standard's of that name does."""
    def make(m: Maker) -> Found:
        return m.several(op, max(1, m.wanted), *m.inputs, **m.attrs)
    return make


def _expand_dims(m: Maker) -> Found:
    axis = m.array_of(m.input(1))
    if axis is None:
        raise UnsupportedError("ExpandDims along an axis that is not a constant", mend="export with a constant axis")
    return (m("Unsqueeze", m.input(0), axes=(int(axis.reshape(-1)[0]),)),)


def _bias_softmax(m: Maker) -> Found:
    x, axis = m.input(0), m.integer("axis", 1)
    if axis not in (-1, m.type(x).rank - 1) or not m.attrs.get("is_inner_broadcast", 1):
        raise UnsupportedError(f"BiasSoftmax along axis {axis}", mend="export without ONNX Runtime's fusions")
    return (m("Softmax", m("Add", x, m.input(1)), axis=-1),)


def _group_norm(m: Maker) -> Found:
    """GroupNorm, channels last unless told otherwise; its activation is x * sigmoid(x)."""
    x, last = m.input(0), bool(m.integer("channels_last", 1))
    rank = m.type(x).rank
    if last:
        x = m.transpose(x, 0, rank - 1, *range(1, rank - 1))
    made = m("GroupNormalization", x, m.cast(m.input(1), m.dtype(x).name), m.cast(m.input(2), m.dtype(x).name),
             num_groups=m.integer("groups"), epsilon=m.number("epsilon", 1e-5))
    if m.integer("activation", 0):
        made = m("Mul", made, m("Sigmoid", made))
    return (m.transpose(made, 0, *range(2, rank), 1) if last else made,)


PLAIN: Mapping[str, Callable[[Maker], Found]] = {
    "BiasAdd": _bias_add, "BiasGelu": _gelu("none"), "BiasSoftmax": _bias_softmax, "BiasSplitGelu": _bias_split_gelu,
    "EmbedLayerNormalization": _embed_layer_norm, "ExpandDims": _expand_dims, "FastGelu": _gelu("tanh"),
    "FusedConv": _fused_conv, "FusedGemm": _fused_gemm, "FusedMatMul": _fused_matmul, "Gelu": _gelu("none"),
    "GatherND": _standard("GatherND"), "GroupNorm": _group_norm, "QuickGelu": _quick_gelu,
    "SimplifiedLayerNormalization": _rms_norm, "SkipLayerNormalization": _skip_layer_norm,
    "SkipSimplifiedLayerNormalization": _skip_rms_norm, "TransposeMatMul": _fused_matmul, "Trilu": _standard("Trilu")}
