"""Remove nodes and constants that no output needs."""
from __future__ import annotations

from dataclasses import replace
from types import MappingProxyType

from ingot.graph import Graph, Node
from ingot.passes.graph_pass import graph_pass
from ingot.target import Target


def _needed(graph: Graph) -> set[str]:
    live = set(graph.outputs)
    for node in reversed(graph.nodes):
        if any(o in live for o in node.outputs if o):
            live.update(node.inputs)
    return live


def why_not(graph: Graph, node: Node) -> str | None:
    """None if the node would be removed, else who needs it."""
    live = _needed(graph)
    needed = next((o for o in node.outputs if o and o in live), None)
    if needed is None:
        return None
    if needed in graph.outputs:
        return f"'{needed}' is an output of the graph"
    return f"'{needed}' is read by {graph.readers[needed][0].where}"


@graph_pass(why_not=why_not)
def remove_dead_code(graph: Graph, target: Target) -> Graph:
    """Remove nodes and constants that no output needs."""
    live = _needed(graph)
    nodes = tuple(n for n in graph.nodes if any(o in live for o in n.outputs if o))
    constants = {k: v for k, v in graph.constants.items() if k in live}
    if len(nodes) == len(graph.nodes) and len(constants) == len(graph.constants):
        return graph
    kept = {*graph.inputs, *constants, *(o for n in nodes for o in n.outputs)}
    return replace(graph, nodes=nodes, constants=MappingProxyType(constants),
                   types=MappingProxyType({k: t for k, t in graph.types.items() if k in kept}))
