"""Replace what shape arithmetic tells: values known before the model runs, and sizes that were left open."""
from __future__ import annotations

from dataclasses import replace
from types import MappingProxyType

from ingot.graph import Dim, Graph, Node, TensorType, type_of
from ingot.ops.contents import array_of, contents_of
from ingot.ops.shapes import dims
from ingot.passes.graph_pass import graph_pass
from ingot.target import Target


def _spelled(node: Node, out: TensorType) -> Node:
    """A Reshape or Expand with its whole result shape spelled out, and nothing left to infer."""
    if node.op not in ("Reshape", "Expand"):
        return node
    full: tuple[Dim, ...] = out.shape
    if dims(node.attrs, "shape") == full and not (node.op == "Reshape" and node.attrs.get("allowzero") is not None):
        return node
    attrs: dict[str, object] = {"shape": full}
    if 0 in full and node.op == "Reshape":
        attrs["allowzero"] = 1
    return replace(node, attrs=MappingProxyType(attrs)) if attrs != dict(node.attrs) else node


def why_not(graph: Graph, node: Node) -> str | None:
    """None if the node would be replaced or spelled out, else why it stays."""
    held = contents_of(graph)
    known = [o for o in node.outputs if o in held and array_of(held[o], graph.types[o]) is not None]
    if known and len(known) == len([o for o in node.outputs if o]):
        return None
    if _spelled(node, graph.types[node.output]) is not node:
        return None
    if any(o in held for o in node.outputs):
        return "its value is known, but depends on a symbol"
    return "its value is not known before the model runs"


@graph_pass(why_not=why_not)
def resolve_shapes(graph: Graph, target: Target) -> Graph:
    """Make constants of values that follow from shapes alone; spell out the shapes of Reshape and Expand."""
    held = contents_of(graph)
    constants, types, nodes, changed = dict(graph.constants), dict(graph.types), [], False
    for node in graph.nodes:
        named = [o for o in node.outputs if o]
        arrays = {o: array_of(held[o], graph.types[o]) for o in named if o in held}
        if len(arrays) == len(named) and all(a is not None for a in arrays.values()):
            for o, a in arrays.items():
                if a is not None:
                    constants[o], types[o] = a, type_of(a)
            changed = True
            continue
        spelled = _spelled(node, graph.types[node.output])
        changed |= spelled is not node
        nodes.append(spelled)
    if not changed:
        return graph
    read = {i for n in nodes for i in n.inputs} | {*graph.outputs}
    constants = {k: v for k, v in constants.items() if k in read}
    made = {*graph.inputs, *constants, *(o for n in nodes for o in n.outputs if o)}
    return replace(graph, nodes=tuple(nodes), constants=MappingProxyType(constants),
                   types=MappingProxyType({k: t for k, t in types.items() if k in made}))
