"""Which products and convolutions of a graph may work on integers, and where their operands are."""
from __future__ import annotations

from dataclasses import dataclass

from ingot.graph import Graph, Node
from ingot.passes.rewrite import attribute, unweighted

DEPTH = 16          # a shorter sum does not pay for its conversions
COLUMNS = 8
WORD = 4            # channels of an image that fit one 32-bit word


@dataclass(frozen=True)
class QuantSite:
    """A product or convolution by a constant weight; named after its result."""

    name: str
    op: str
    input: str
    weight: str
    channels: int           # of the input, along `axis`
    axis: int
    origin: tuple[str, ...] = ()


def unfit(graph: Graph, node: Node) -> str | None:
    """Why a node is no site, None if it is one."""
    if why := unweighted(graph, node):
        return why
    x, weight = graph.types[node.inputs[0]], graph.constants[node.inputs[1]]
    if node.op == "MatMul":
        return None if weight.shape[0] >= DEPTH and weight.shape[1] >= COLUMNS else "it is too small"
    if x.rank != 4 or not isinstance(x.shape[1], int):
        return "it is no convolution of images"
    group = int(str(attribute(node, "group")))
    depthwise = group == x.shape[1] == weight.shape[0]
    if group > 1 and not depthwise and (weight.shape[1] % DEPTH or (weight.shape[0] // group) % DEPTH):
        return "its groups are not whole blocks of channels"
    if x.shape[1] <= WORD and weight.size >= WORD * DEPTH * COLUMNS and weight.shape[0] >= DEPTH and group == 1:
        return None             # the first layer of a network: few channels, many taps
    return None if x.shape[1] >= DEPTH and weight.shape[0] >= COLUMNS else "it is too small"


def quantisable(graph: Graph) -> tuple[QuantSite, ...]:
    """The sites of a graph, in order."""
    found = []
    for node in graph.nodes:
        if unfit(graph, node) is None:
            x, weight = graph.types[node.inputs[0]], graph.constants[node.inputs[1]]
            axis = 1 if node.op == "Conv" else x.rank - 1
            channels = int(str(x.shape[1])) if node.op == "Conv" else weight.shape[0]
            found.append(QuantSite(node.output, node.op, node.inputs[0], node.inputs[1], channels, axis, node.origin))
    return tuple(found)


__all__ = ["QuantSite", "quantisable", "unfit"]
