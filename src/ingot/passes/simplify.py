"""Make the graph smaller by rules that hold for every input; see `algebra` and `views` for what each one needs.

Powers, sums of constants and clips are rewritten into forms that round differently in the last place, and the
sum or product of two constants is refused where it would overflow, so NaN and infinities come out as before.
"""
from __future__ import annotations

from ingot.graph import Graph
from ingot.passes import algebra, broadcasts, masks, views, windows
from ingot.passes.constant_folding import fold_constants
from ingot.passes.graph_pass import graph_pass
from ingot.passes.rewrite import rewrite
from ingot.target import Target

RULES = (*views.RULES, *algebra.RULES, *broadcasts.RULES, *windows.RULES, *masks.RULES)


@graph_pass(after=(fold_constants,), rules=RULES)
def simplify(graph: Graph, target: Target) -> Graph:
    """Remove what does nothing, do once what is done twice, and write reshapes and constant operands in one form."""
    return rewrite(graph, RULES)
