"""Split LSTM, GRU and RNN: the product of every input with W is one large product, the steps are another op.

    LSTM(x, W, R, B, ...)  ->  Recurrence(Add(MatMul(x, W'), Wb + Rb), R', ...)
"""
from __future__ import annotations

from ingot.graph import F32, Graph
from ingot.ops.recurrent import GATES
from ingot.passes.graph_pass import graph_pass
from ingot.passes.halves import widen_halves
from ingot.passes.rewrite import Match, P, Rule, rewrite
from ingot.passes.written_out import wanted
from ingot.passes.written_out_integers import operand
from ingot.target import Target

_KEPT = ("activations", "activation_alpha", "activation_beta", "clip", "direction", "input_forget",
         "linear_before_reset")


def _not_single(match: Match) -> str | None:
    x, w = match.type(operand(match, 0)), match.type(operand(match, 1))
    if x.dtype != F32:
        return f"it computes {x.dtype}"
    return None if all(isinstance(d, int) for d in w.shape) else "the weight has a symbolic size"


def _split(match: Match) -> tuple[str, ...]:
    kind = match.root.op
    x, w, r, b, lengths, h0, c0, peep = (operand(match, i) for i in range(8))
    walks, rows, _ = (int(str(d)) for d in match.type(w).shape)
    hidden = rows // GATES[kind]
    turned = int(str(match.attr(match.root, "layout") or 0))
    if turned:
        x = match.add("Transpose", x, perm=(1, 0, 2))
        h0, c0 = (match.add("Transpose", v, perm=(1, 0, 2)) if v else "" for v in (h0, c0))
    flat = match.add("Reshape", w, shape=(walks * rows, match.type(w).shape[2]))
    gates = match.add("MatMul", x, match.add("Transpose", flat, perm=(1, 0)))
    reset = ""
    if b:
        linear = kind == "GRU" and match.root.attrs.get("linear_before_reset")
        own = _cut(match, b, 0, rows)
        other = _cut(match, b, rows, 2 * rows)
        if linear:      # what the reset gate multiplies keeps its bias for itself
            reset = _cut(match, other, 2 * hidden, 3 * hidden)
            other = match.add("Pad", _cut(match, other, 0, 2 * hidden), pads=(0, 0, 0, hidden))
        gates = match.add("Add", gates, match.add("Reshape", match.add("Add", own, other), shape=(walks * rows,)))
    weight = match.add("Transpose", r, perm=(0, 2, 1))
    attrs = {k: v for k, v in match.root.attrs.items() if k in _KEPT}
    count = max(k + 1 for k in range(3) if wanted(match, k))
    stems = tuple(f"{next(o for o in match.root.outputs if o)}.{n}" for n in ("steps", "last", "cell")[:count])
    made = match.add_many("Recurrence", (gates, weight, reset, lengths, h0, c0, peep), {**attrs, "kind": kind}, stems)
    if turned:
        made = tuple(match.add("Transpose", v, perm=(2, 0, 1, 3) if k == 0 else (1, 0, 2)) if wanted(match, k) else ""
                     for k, v in enumerate(made))
    return tuple(v if o else "" for v, o in zip(made, match.root.outputs, strict=False))


def _cut(match: Match, value: str, start: int, end: int) -> str:
    return match.add("Slice", value, starts=(start,), ends=(end,), axes=(1,))


RULES = (Rule("recurrence", P("LSTM|GRU|RNN", "*"), make=_split, decline=_not_single),)


@graph_pass(after=(widen_halves,), rules=RULES)
def split_recurrent(graph: Graph, target: Target) -> Graph:
    """Split the products of the inputs off LSTM, GRU and RNN. CPUs only."""
    return graph if target.kind == "cuda" else rewrite(graph, RULES)
