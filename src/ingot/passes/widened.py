"""Values that lie in memory in a short type and are read in f32: widened where they are read, in registers."""
from __future__ import annotations

from ingot.graph import BF16, F16, F32, Graph
from ingot.ops import OPS
from ingot.passes.duplicates import merge_duplicates
from ingot.passes.graph_pass import graph_pass
from ingot.passes.integer import sunk
from ingot.target import Target


@graph_pass(after=(merge_duplicates,))
def sink_widened(graph: Graph, target: Target) -> Graph:
    """Give every reader of a Cast from f16 or bf16 to f32 a Cast of its own, where all of them are pointwise."""
    def sinks(value: str) -> bool:
        return value not in graph.outputs and all(
            n.op in OPS and OPS[n.op].pointwise for n in graph.readers.get(value, ()))

    return sunk(graph, {n.output: n for n in graph.nodes if n.op == "Cast" and graph.types[n.output].dtype == F32
                        and graph.types[n.inputs[0]].dtype in (F16, BF16) and sinks(n.output)})


__all__ = ["sink_widened"]
