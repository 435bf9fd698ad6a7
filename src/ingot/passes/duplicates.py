"""Compute once what is computed twice, and keep one copy of equal constants."""
from __future__ import annotations

from collections import defaultdict
from collections.abc import Hashable, Mapping
from dataclasses import replace
from types import MappingProxyType

import numpy as np

from ingot.graph import Graph, Node
from ingot.passes.constant_folding import RANDOM
from ingot.passes.graph_pass import graph_pass
from ingot.target import Target

SAMPLE = 32     # elements that are compared before whole constants are


def frozen(value: object) -> object:
    """A hashable stand-in for an attribute's value."""
    if isinstance(value, np.ndarray):
        return str(value.dtype), value.shape, value.tobytes()
    if isinstance(value, (tuple, list)):
        return tuple(map(frozen, value))
    if isinstance(value, Mapping):
        return tuple(sorted((k, frozen(v)) for k, v in value.items()))
    return type(value), value if isinstance(value, Hashable) else id(value)


def _key(node: Node, inputs: tuple[str, ...]) -> object:
    present = tuple(bool(o) for o in node.outputs)
    return node.op, inputs, present, tuple(sorted((k, frozen(v)) for k, v in node.attrs.items()))


def _same_bits(a: np.ndarray, b: np.ndarray) -> bool:
    if a.dtype == object:
        return bool((a == b).all())
    # compare bits, not numbers: NaN equals itself, and 0.0 is not -0.0
    return np.array_equal(np.ascontiguousarray(a).reshape(-1).view(np.uint8),
                          np.ascontiguousarray(b).reshape(-1).view(np.uint8))


def _equal_constants(graph: Graph) -> dict[str, str]:
    """Constant -> the first constant equal to it, for those that have one before them."""
    groups: defaultdict[object, list[str]] = defaultdict(list)
    renamed: dict[str, str] = {}
    for name, array in graph.constants.items():
        flat = array.reshape(-1)
        some = flat[::max(1, flat.size // SAMPLE)][:SAMPLE + 1]
        key = (str(array.dtype), array.shape, some.tobytes() if array.dtype != object else tuple(some))
        first = next((o for o in groups[key] if _same_bits(graph.constants[o], array)), None)
        if first is None:
            groups[key].append(name)
        elif name not in graph.outputs:
            renamed[name] = first
    return renamed


def why_not(graph: Graph, node: Node) -> str | None:
    """None if the node repeats an earlier one, else why it stays."""
    if node.op in RANDOM:
        return f"{node.op} gives another result each time"
    for other in graph.nodes:
        if other is node:
            return "no earlier node has the same op, inputs and attributes"
        if _key(other, other.inputs) == _key(node, node.inputs):
            return ("both it and its double are outputs of the graph"
                    if set(node.outputs) & set(graph.outputs) else None)
    return "it is not in the graph"


@graph_pass(why_not=why_not)
def merge_duplicates(graph: Graph, target: Target) -> Graph:
    """Let nodes with the same op, inputs and attributes share one result; keep one copy of equal constants."""
    renamed = _equal_constants(graph)
    seen: dict[object, int] = {}
    nodes: list[Node] = []
    for node in graph.nodes:
        inputs = tuple(renamed.get(i, i) for i in node.inputs)
        key = _key(node, inputs)
        at = seen.get(key)
        if at is None or node.op in RANDOM or any(o in graph.outputs for o in node.outputs):
            seen.setdefault(key, len(nodes))
            nodes.append(node if inputs == node.inputs else replace(node, inputs=inputs))
            continue
        first = nodes[at]
        nodes[at] = replace(first, origin=tuple(dict.fromkeys(first.origin + node.origin)))
        renamed.update(zip(node.outputs, first.outputs, strict=True))
    if not renamed:
        return graph
    kept = {*graph.inputs, *graph.constants, *(o for n in nodes for o in n.outputs)} - renamed.keys()
    return replace(graph, nodes=tuple(nodes),
                   constants=MappingProxyType({k: v for k, v in graph.constants.items() if k in kept}),
                   types=MappingProxyType({k: t for k, t in graph.types.items() if k in kept}))
