"""Write decision trees out in gathers and comparisons, where no kernel walks them.

Every (row, tree) stands at a node; a step looks up feature, threshold and children there, and goes on. Leaves lead to
themselves, so as many steps as the deepest tree has levels bring everyone to a leaf (the tree-traversal form of
Nakandala et al., "A Tensor Compiler for Unified Machine Learning Prediction Serving", OSDI 2020).
"""
from __future__ import annotations

import numpy as np

from ingot.graph import Graph
from ingot.passes.graph_pass import graph_pass
from ingot.passes.rewrite import Match, P, Rule, rewrite
from ingot.passes.written_out import write_out
from ingot.passes.written_out_integers import operand
from ingot.target import Target


def _not_constant(match: Match) -> str | None:
    return None if all(match.const(operand(match, k)) is not None for k in range(1, 7)) else "the trees vary"


def _stepwise(match: Match) -> str:
    x = operand(match, 0)
    feature, value, following, _, roots, depths = (match.const(operand(match, k)) for k in range(1, 7))
    if feature is None or value is None or following is None or roots is None or depths is None:
        return match.root.output            # never: `_not_constant` has looked
    tables = [match.constant(t) for t in (feature.astype(np.int64), value, following[:, 0].astype(np.int64),
                                          following[:, 1].astype(np.int64))]
    at = match.add("Expand", match.constant(roots.astype(np.int64)[None]), shape=(match.type(x).shape[0], len(roots)))
    missing = operand(match, 7)
    for _ in range(int(depths.max(initial=0))):
        seen = match.add("GatherElements", x, match.add("Gather", tables[0], at, axis=0), axis=1)
        goes = match.add("LessOrEqual", seen, match.add("Gather", tables[1], at, axis=0))
        if missing:
            lost = match.add("And", match.add("IsNaN", seen), match.add("Gather", missing, at, axis=0))
            goes = match.add("Or", goes, lost)
        at = match.add("Where", goes, *(match.add("Gather", t, at, axis=0) for t in (tables[3], tables[2])))
    own = np.arange(len(feature))
    rows = np.where((following == own[:, None]).all(axis=1), value, 0).astype(np.int64)
    held = match.add("Gather", operand(match, 4), match.add("Gather", match.constant(rows), at, axis=0), axis=0)
    return match.add("ReduceSum", held, axes=(1,), keepdims=0)


RULES = (Rule("trees-by-steps", P("Trees", "*"), make=_stepwise, decline=_not_constant),)


@graph_pass(after=(write_out,), rules=RULES)
def write_out_trees(graph: Graph, target: Target) -> Graph:
    """Write decision trees out in gathers and comparisons, for GPUs."""
    return rewrite(graph, RULES) if target.kind == "cuda" else graph
