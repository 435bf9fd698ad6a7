"""Rules on Expand: a value is widened as late as possible, and not at all where the reader widens it itself."""
from __future__ import annotations

from ingot.graph import Dim, Node
from ingot.ops import OPS
from ingot.ops.movement import slices_of
from ingot.ops.shapes import broadcast
from ingot.passes.algebra import spread
from ingot.passes.rewrite import Const, Match, P, Rule, uniform
from ingot.passes.views import perm_of, reshaped, transposed

POINTWISE = "|".join(sorted(name for name, op in OPS.items() if op.pointwise and (
    len(op.inputs) > 1 or op.inputs[-1].endswith("*"))))
ANY_POINTWISE = "|".join(sorted(name for name, op in OPS.items() if op.pointwise))


# --- pointwise readers ---

def _unexpanded(match: Match) -> tuple[str, ...]:
    """The root's inputs, each Expand replaced by what it expands where the result keeps its shape without it."""
    inputs = list(match.root.inputs)
    for i, value in enumerate(inputs):
        node = match.state.producers.get(value)
        if node is None or node.op != "Expand" or inputs.count(value) > 1:
            continue
        source = match.state.types[node.inputs[0]]
        others = [match.state.types[v].shape for j, v in enumerate(inputs) if v and j != i]
        if broadcast(source.shape, *others) == match.out.shape:
            inputs[i] = node.inputs[0]
    return tuple(inputs)


def _expand_matters(match: Match) -> str | None:
    if match.out.layout or len(match.root.inputs) < 2:
        return "it has one input, or a blocked layout"
    if _unexpanded(match) != match.root.inputs:
        return None
    return "no input is an Expand whose shape the other inputs have"


def _sources(match: Match) -> tuple[str, ...]:
    """The root's inputs, each Expand replaced by what it expands."""
    made = [(v, match.state.producers.get(v)) for v in match.root.inputs]
    return tuple(n.inputs[0] if n is not None and n.op == "Expand" else v for v, n in made)


def _fills_out(match: Match) -> str | None:
    inputs = _sources(match)
    if inputs == match.root.inputs or match.out.layout:
        return "no input is an Expand"
    small = broadcast(*(match.state.types[v].shape for v in inputs if v))
    return "the result is no smaller without the Expand" if small == match.out.shape else None


def _expanded_late(match: Match) -> str:
    return spread(match, match.add(match.root.op, *_sources(match), **match.root.attrs), match.out.shape)


# --- other readers ---

def _widened(match: Match, name: str = "Expand") -> frozenset[int]:
    """The axes of an Expand's result along which it repeats."""
    node = match.node(name)
    return widened_axes(match, node)


def widened_axes(match: Match, node: Node) -> frozenset[int]:
    """The axes of an Expand's result along which it repeats."""
    before, after = match.state.types[node.inputs[0]].shape, match.state.types[node.output].shape
    lead = len(after) - len(before)
    return frozenset(i for i, d in enumerate(after) if i < lead or before[i - lead] != d)


def _levelled(match: Match, value: str, rank: int) -> str:
    """The value with axes of size 1 put before its own, up to a rank."""
    shape = match.state.types[value].shape
    return reshaped(match, value, (1,) * (rank - len(shape)) + shape)


def _cuts_widened(match: Match) -> str | None:
    node = match.node("Slice")
    cut = slices_of(match.state.types[node.inputs[0]], {**OPS["Slice"].attrs, **node.attrs})
    wide = match.state.types[node.inputs[0]].shape
    touched = {i for i, (start, length, step) in enumerate(cut) if (start, length, step) != (0, wide[i], 1)}
    return "it cuts a widened axis" if touched & _widened(match) else None


def _cut_first(match: Match) -> str:
    source = _levelled(match, match["x"], match.out.rank)
    return spread(match, match.add("Slice", source, **match.node("Slice").attrs), match.out.shape)


def _turn_first(match: Match) -> str:
    source = _levelled(match, match["x"], match.out.rank)
    return spread(match, transposed(match, source, perm_of(match, "Transpose")), match.out.shape)


def _kept_axes(match: Match) -> tuple[Dim, ...] | None:
    """The shape to give the source of a reshaped Expand, where its axes larger than 1 keep their order."""
    source = match.shape("x")
    wide, out = match.state.types[match.node("Expand").output].shape, match.out.shape
    lead = len(wide) - len(source)
    before = [(d, 1 if i < lead else source[i - lead]) for i, d in enumerate(wide) if d != 1]
    if [d for d, _ in before] != [d for d in out if d != 1]:
        return None
    sizes = iter(s for _, s in before)
    return tuple(1 if d == 1 else next(sizes) for d in out)


def _along_widened(match: Match) -> str | None:
    axis = match.attr("CumSum", "axis")
    at = axis[0] if isinstance(axis, tuple) else axis
    if not isinstance(at, int):
        return "its axis is not known"
    return "it sums along a widened axis" if at % match.out.rank in _widened(match) else None


def _sum_first(match: Match) -> str:
    source = _levelled(match, match["x"], match.out.rank)
    return spread(match, match.add("CumSum", source, **match.node("CumSum").attrs), match.out.shape)


def _joined(match: Match) -> tuple[Node, ...] | str:
    """The Expands that widen the parts of a Concat alike, or why there are none."""
    rank, axis = match.out.rank, int(str(match.attr(match.root, "axis"))) % match.out.rank
    nodes = tuple(n for n in map(match.state.producers.get, match.root.inputs) if n is not None and n.op == "Expand")
    if len(nodes) < len(match.root.inputs) or len(nodes) < 2:
        return "not every part is an Expand"
    axes = [widened_axes(match, n) for n in nodes]
    if any(a != axes[0] for a in axes) or axis in axes[0] or rank == 0:
        return "its parts are not widened along the same axes, all of them others than the one it joins"
    return nodes


def _join_first(match: Match) -> str:
    rank, nodes = match.out.rank, _joined(match)
    parts = [_levelled(match, n.inputs[0], rank) for n in nodes if isinstance(n, Node)]
    return spread(match, match.add("Concat", *parts, axis=int(str(match.attr(match.root, "axis"))) % rank),
                  match.out.shape)


def _unalike(match: Match) -> str | None:
    found = _joined(match)
    return found if isinstance(found, str) else None


def _index_widened(match: Match) -> str | None:
    return None if _widened(match) else "nothing is widened"


def _gather_first(match: Match) -> str:
    axis = int(str(match.attr("Gather", "axis"))) % match.type("x").rank
    index = _levelled(match, match["at"], match.state.types[match.node("Expand").output].rank)
    return spread(match, match.add("Gather", match["x"], index, axis=axis), match.out.shape)


def _same_throughout(match: Match) -> str | None:
    if uniform(match.const("x")) is None:
        return "its data are not the same throughout"
    return None


def _one_of(match: Match) -> str:
    value = match.constant(match.array("x").reshape(-1)[:1].reshape((1,) * match.out.rank), f"{match['x']}.one")
    return spread(match, value, match.out.shape)


_WIDE = P("Expand", "x", shared=True)
RULES = (
    Rule("expand-into-pointwise", P(POINTWISE, "*"), make=lambda m: m.add(m.root.op, *_unexpanded(m), **m.root.attrs),
         decline=_expand_matters),
    Rule("expand-after-pointwise", P(ANY_POINTWISE, "*"), make=_expanded_late, decline=_fills_out),
    Rule("expand-after-slice", P("Slice", _WIDE), make=_cut_first, decline=_cuts_widened),
    Rule("expand-after-transpose", P("Transpose", _WIDE), make=_turn_first),
    Rule("expand-after-reshape", P("Reshape", _WIDE),
         make=lambda m: spread(m, reshaped(m, m["x"], _kept_axes(m) or ()), m.out.shape),
         decline=lambda m: None if _kept_axes(m) else "its axes do not keep their order"),
    Rule("expand-after-running-sum", P("CumSum", _WIDE), make=_sum_first, decline=_along_widened),
    Rule("expand-after-concat", P("Concat", "*"), make=_join_first, decline=_unalike),
    Rule("expand-after-gather", P("Gather", "x", P("Expand", "at", shared=True)), make=_gather_first,
         decline=_index_widened),
    Rule("gather-of-equals", (P("GatherElements|Gather", Const("x"), "at"),
                              P("GatherElements|Gather", P("Expand", Const("x"), shared=True), "at")),
         make=_one_of, decline=_same_throughout),
)
