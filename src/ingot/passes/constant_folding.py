"""Compute, once and at build time, every node whose inputs are all constant."""
from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from types import MappingProxyType

import numpy as np

from ingot.errors import UnsupportedError
from ingot.graph import Expr, Graph, Node, type_of
from ingot.ops import OPS
from ingot.ops.reference import evaluate
from ingot.passes.graph_pass import graph_pass
from ingot.target import Target

GROWTH = 256 << 10      # bytes a result may have beyond its inputs: an Expand or Tile is cheaper to redo than to keep
WEIGHTS = 1 << 30       # bytes of weights that may be made so: a product or convolution packs them at build time
_PRODUCTS = frozenset({"Conv", "ConvTranspose", "Gemm", "MatMul"})
RANDOM = frozenset({"RandomNormal", "RandomNormalLike", "RandomUniform", "RandomUniformLike", "Bernoulli",
                    "Multinomial", "Dropout"})


def _symbolic(value: object) -> bool:
    return isinstance(value, (Expr, Graph)) or (isinstance(value, (tuple, list)) and any(map(_symbolic, value)))


def _keeps(node: Node, graph: Graph, constants: Mapping[str, np.ndarray]) -> str | None:
    """Why a node is not folded, None if it is."""
    if free := next((i for i in node.inputs if i and i not in constants), None):
        return f"'{free}' is not a constant"
    if node.op in RANDOM:
        return f"{node.op} gives another result each time"
    if node.op not in OPS:
        return f"{node.op} is not declared"
    if any(map(_symbolic, node.attrs.values())):
        return "an attribute is symbolic"
    types = [graph.types[o] for o in node.outputs if o]
    if unknown := next((t for t in types if not t.static), None):
        return f"its result {unknown} has a symbolic shape"
    given = sum(constants[i].nbytes for i in node.inputs if i)
    made = sum(t.nbytes for t in types if isinstance(t.nbytes, int))
    if made <= given + GROWTH:
        return None
    if _weighs(graph, node) and made + sum(a.nbytes for a in constants.values()) <= WEIGHTS:
        return None
    return f"its result takes {made - given} bytes more than its inputs"


def _weighs(graph: Graph, node: Node) -> bool:
    """Whether the result is the weight of a product or convolution, straight or through views and transposes."""
    readers = [(r, o) for o in node.outputs for r in graph.readers.get(o, ())]
    return any((r.op in _PRODUCTS and o in r.inputs[1:2]) or
               (r.op in ("Reshape", "Transpose") and _weighs(graph, r)) for r, o in readers)


def why_not(graph: Graph, node: Node) -> str | None:
    """None if the node would be folded, else what keeps it."""
    return _keeps(node, graph, graph.constants)


@graph_pass(why_not=why_not)
def fold_constants(graph: Graph, target: Target) -> Graph:
    """Compute nodes whose inputs are all constant, unless the result is much larger than they are and no weight."""
    constants, types, nodes = dict(graph.constants), dict(graph.types), []
    for node in graph.nodes:
        if _keeps(node, graph, constants):
            nodes.append(node)
            continue
        try:
            results = evaluate(node, [constants[i] if i else None for i in node.inputs], {})
        except UnsupportedError:        # the reference does not know the op: another reason to leave it
            nodes.append(node)
            continue
        for name, array in zip(node.outputs, results, strict=False):
            if name:
                constants[name] = np.ascontiguousarray(array).reshape(np.shape(array))
                types[name] = type_of(constants[name])
    if len(nodes) == len(graph.nodes):
        return graph
    read = {i for n in nodes for i in n.inputs} | {*graph.outputs}
    constants = {k: v for k, v in constants.items() if k in read}
    made = {*graph.inputs, *constants, *(o for n in nodes for o in n.outputs)}
    return replace(graph, nodes=tuple(nodes), constants=MappingProxyType(constants),
                   types=MappingProxyType({k: t for k, t in types.items() if k in made}))
