"""Sum products and convolutions of dequantised operands in the short numbers they are made of, as the target can."""
from __future__ import annotations

from collections.abc import Mapping

from ingot.graph import Graph
from ingot.passes.graph_pass import graph_pass
from ingot.passes.integer import POINTWISE
from ingot.passes.integer import RULES as UNSIGNED
from ingot.passes.integer_gpu import RULES as SIGNED
from ingot.passes.resolve_shapes import resolve_shapes
from ingot.passes.rewrite import Rule, rewrite
from ingot.target import Target

# by kind of target; elsewhere Quantize and Dequantize become pointwise, and weights f32 again
_RULES: Mapping[str, tuple[Rule, ...]] = {"x86": UNSIGNED, "cuda": SIGNED}


@graph_pass(after=(resolve_shapes,), rules=(*UNSIGNED, *(r for r in SIGNED if r not in UNSIGNED)))
def fold_quantised(graph: Graph, target: Target) -> Graph:
    """Sum products and convolutions of dequantised operands as they are; Quantize and Dequantize become pointwise."""
    return rewrite(graph, _RULES.get(target.kind, POINTWISE))


__all__ = ["fold_quantised"]
