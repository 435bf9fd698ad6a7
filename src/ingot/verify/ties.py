"""How far right answers of a quantised model lie apart.

Two right evaluations drift apart: what lies beside a tie is rounded to either side, by a whole quantum, and every layer
makes new ties (see `verify.tolerance`). `moved_ties` gives the model as another right evaluation might have rounded it:
how far its answer lies from the original's is how far right answers lie apart on these inputs.
"""
from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import numpy as np

from ingot.graph import Graph, GraphBuilder
from ingot.ops import infer
from ingot.verify.tolerance import TO_INTEGERS, UNIT_ROUNDOFF, rounding_length


def rounds_to_integers(graph: Graph) -> bool:
    """Whether reals become integers somewhere in the graph."""
    return any(n.op in TO_INTEGERS for n in graph.nodes)


def moved_ties(graph: Graph, bindings: Mapping[str, int], seed: int) -> Graph:
    """The graph with each value moved, up or down, by its last roundings right before it becomes an integer.

    By 2 u sqrt(k), k the roundings since integers were there last: no more than what two right sums differ by.
    """
    rng, build = np.random.default_rng(seed), GraphBuilder(infer, graph.symbols)
    length: dict[str, float] = {}
    for name in graph.inputs:
        build.input(name, graph.types[name])
    for name, array in graph.constants.items():
        build.constant(name, array)
    for node in graph.nodes:
        types = tuple(graph.type(i) for i in node.inputs)
        own = max((length.get(i, 0.0) for i in node.inputs if i), default=0.0) + rounding_length(node, types, bindings)
        x = types[0] if types else None
        if node.op in TO_INTEGERS and x is not None and x.dtype.name in UNIT_ROUNDOFF:
            part = 2 * UNIT_ROUNDOFF[x.dtype.name] * np.sqrt(length.get(node.inputs[0], 0.0) + 1)
            factor = np.asarray(1 + part * rng.choice([-1.0, 1.0]), x.dtype.numpy)
            moved = build.node("Mul", node.inputs[0], build.constant(build.fresh("last bits"), factor),
                               name=build.fresh(f"{node.inputs[0]}.moved"))
            node, own = replace(node, inputs=(moved, *node.inputs[1:])), 0.0
        build.add(node)
        length.update(dict.fromkeys(filter(None, node.outputs), own))
    return build.finish(*graph.outputs)
