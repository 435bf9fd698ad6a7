"""Compute ops that have no kernel on 16-bit floats in f32, between casts.

A result is rounded once, where the op by itself rounds after every step. Constants are folded into f32: they take
twice the bytes.
"""
from __future__ import annotations

from ingot.graph import BF16, F16, Graph
from ingot.ops.op import OPS
from ingot.passes.caches import join_caches
from ingot.passes.graph_pass import graph_pass
from ingot.passes.rewrite import Match, P, Rule, rewrite
from ingot.target import Target

_WITHOUT = ("Attention", "AveragePool", "Conv", "ConvTranspose", "CumProd", "CumSum", "DFT", "DeformConv", "Det",
            "Einsum", "GRU", "Gemm", "GlobalLpPool", "GridSample", "GroupNormalization", "Hardmax",
            "InstanceNormalization", "LRN", "LSTM", "LayerNormalization", "LinearAttention", "LogSoftmax",
            "LpNormalization", "LpPool", "MaxPool", "MaxRoiPool", "RMSNormalization", "RNN", "RoiAlign",
            "RotaryEmbedding", "Softmax", "TopK", "ArgMax", "ArgMin", "Col2Im", "AffineGrid", "STFT")
_HALVES = (F16, BF16)


def _no_halves(match: Match) -> str | None:
    values = [v for v in match.root.inputs if v]
    return None if any(match.type(v).dtype in _HALVES for v in values) else "it takes no 16-bit floats"


def _by_reduction(match: Match) -> str | None:
    return "it only moves elements" if match.attr(match.root, "reduction") == "none" else _no_halves(match)


def _interpolates(match: Match) -> str | None:
    return "it only moves elements" if match.attr(match.root, "mode") == "nearest" else _no_halves(match)


def in_single(match: Match) -> tuple[str, ...]:
    """The root on f32, its results in their own types."""
    root = match.root
    wide = tuple(match.add("Cast", v, to="f32") if v and match.type(v).dtype in _HALVES else v for v in root.inputs)
    read = tuple(o if match.state.uses[o] > 0 else "" for o in root.outputs)
    least = max(k + 1 for k, o in enumerate(read) if o) if OPS[root.op].outputs >= 1 else len(read)
    stems = tuple(f"{o}.single" if o else "" for o in read[:least])
    made = match.add_many(root.op, wide, dict(root.attrs), stems)
    found = []
    for old, new in zip(read, made, strict=False):
        dtype = match.state.types[old].dtype if old else None
        same = dtype is None or match.state.types[new].dtype == dtype
        found.append(new if same or dtype is None else match.add("Cast", new, to=dtype.name))
    return tuple(found)


RULES = (
    Rule("half-in-single", P("|".join(_WITHOUT), "*"), make=in_single, decline=_no_halves),
    Rule("half-reduced-in-single", P("ScatterElements|ScatterND", "*"), make=in_single, decline=_by_reduction),
    Rule("half-interpolated-in-single", P("Resize", "*"), make=in_single, decline=_interpolates),
)


@graph_pass(after=(join_caches,), rules=RULES)
def widen_halves(graph: Graph, target: Target) -> Graph:
    """Compute ops that have no kernel on 16-bit floats in f32, between casts. CPUs only."""
    return graph if target.kind == "cuda" else rewrite(graph, RULES)
