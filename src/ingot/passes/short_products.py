"""Products and convolutions on bf16 operands, summed in f32: everything else stays as it is.

    Conv(x, w, b)  ->  ShortConv(Cast(x), bf16 of w, b)          MatMul(x, w)  ->  ShortMatMul(Cast(x), bf16 of w)

What is rounded are the operands of the chosen nodes, once each; normalisations, softmax, reductions and the model's
outputs see f32. The Cast rides in the epilogue of whatever makes the value; so that it needs no second copy in f32, an
addition that reads the value too (a residual) reads the rounded one.
"""
from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, replace
from types import MappingProxyType

import numpy as np

from ingot.graph import BF16, F32, Graph, GraphBuilder, Node
from ingot.ops import infer
from ingot.passes.dead_code import remove_dead_code
from ingot.passes.layout import WORD, block_of, unfit
from ingot.passes.rewrite import attribute, unweighted
from ingot.target import Target

SHORT_OPS = {"MatMul": "ShortMatMul", "Conv": "ShortConv"}
_RENAMES = frozenset({"Reshape", "Flatten", "Squeeze", "Unsqueeze"})
DEPTH, COLUMNS = 32, 16     # a shorter sum, or fewer results of one, does not pay for the conversion


@dataclass(frozen=True)
class ShortSite:
    """A product or convolution that may read bf16; named after its result."""

    name: str
    op: str
    input: str
    origin: tuple[str, ...] = ()


def why_long(graph: Graph, node: Node, target: Target) -> str | None:
    """Why a node cannot read bf16, None if it can."""
    if why := unweighted(graph, node):
        return why
    weight = graph.constants[node.inputs[1]]
    if node.op == "MatMul":
        return None if weight.shape[0] >= DEPTH and weight.shape[1] >= COLUMNS else "it is too small"
    if why := unfit(graph, node, block_of(target)):
        return why
    group = int(str(attribute(node, "group")))
    few = group == 1 and 2 < weight.shape[1] <= WORD
    if weight.shape[1] == 1 or (weight.shape[1] % 2 and not few) or (group > 1 and weight.shape[1] < COLUMNS):
        return "its channels are no whole words"
    bias = node.inputs[2] if len(node.inputs) > 2 else ""
    if bias and bias not in graph.constants:
        return "its bias is not a constant"
    return None if weight[0].size >= DEPTH else "it is too small"


def short_sites(graph: Graph, target: Target) -> tuple[ShortSite, ...]:
    """The nodes that may read bf16, in order."""
    return tuple(ShortSite(n.output, n.op, n.inputs[0], n.origin) for n in graph.nodes
                 if why_long(graph, n, target) is None)


def shortened(graph: Graph, sites: Collection[ShortSite]) -> Graph:
    """The graph with the given nodes on bf16; the very same graph without any."""
    return remove_dead_code(_Shortening(graph, sites).graph()) if sites else graph


def roundings(graph: Graph) -> dict[str, int]:
    """For each output, how many operands were rounded to bf16 on the way to it that has the most."""
    count: dict[str, int] = {}
    for node in graph.nodes:
        own = sum(graph.types[v].dtype == BF16 for v in node.inputs if v) if (
            node.op in SHORT_OPS.values() or graph.types[node.output].dtype == F32) else 0
        before = max((count.get(v, 0) for v in node.inputs if v), default=0)
        count.update((o, before + own) for o in node.outputs if o)
    return {v: count.get(v, 0) for v in graph.outputs}


class _Shortening:
    """The state of one rewriting; lives inside `shortened`."""

    def __init__(self, graph: Graph, sites: Collection[ShortSite]) -> None:
        self.source = graph
        self.sites = {s.name for s in sites}
        self.read = {s.input for s in sites}
        self.build = GraphBuilder(infer, graph.symbols)
        self.short: dict[str, str] = {}
        self.joined = {n.output for n in graph.nodes if n.op == "Concat" and n.output in self.read
                       and n.output not in graph.outputs
                       and all(r.output in self.sites for r in graph.readers[n.output])}

    def graph(self) -> Graph:
        g, build = self.source, self.build
        for name in g.inputs:
            build.input(name, g.types[name])
        chosen = [n for n in g.nodes if n.output in self.sites]
        dropped = {n.inputs[1] for n in chosen if g.uses[n.inputs[1]] == 1}
        for name, array in g.constants.items():
            if name not in dropped:
                build.constant(name, array)
        for node in g.nodes:
            if node.output in self.sites:
                self._site(node)
            elif node.output in self.joined:
                parts = tuple(self._shorten(v) for v in node.inputs)
                self.short[node.output] = build.node("Concat", *parts, name=build.fresh(f"{node.output}.bf16"),
                                                     origin=node.origin, **node.attrs)
            elif node.op == "Add" and any(self._rounded(v) for v in node.inputs):
                build.add(replace(node, inputs=tuple(self._back(v) if self._rounded(v) else v for v in node.inputs)))
            else:
                build.add(node)
        return build.finish(*g.outputs)

    def _site(self, node: Node) -> None:
        build, weight = self.build, self.source.constants[node.inputs[1]]
        x = node.inputs[0]
        if node.op == "Conv" and weight.shape[1] % 2:       # the three channels of an image: two words a pixel
            none = (0,) * (weight.ndim - 2)
            whole = build.node("Pad", x, name=build.fresh(f"{x}.whole"), pads=(0, 0, *none, 0, 1, *none))
            weight = np.pad(weight, [(0, 0), (0, 1), *((0, 0) for _ in none)])
            x = build.node("Cast", whole, name=build.fresh(f"{node.inputs[0]}.bf16"), to="bf16")
        else:
            x = self._shorten(x)
        name = build.constant(build.fresh(f"{node.output}.weight.bf16"), weight.astype(BF16.numpy))
        build.add(replace(node, op=SHORT_OPS[node.op], inputs=(x, name, *node.inputs[2:]),
                          attrs=MappingProxyType(dict(node.attrs))))

    def _rounded(self, value: str) -> bool:
        """Whether an addition shall read the rounded form of a value, which is there anyway."""
        g = self.source
        return value in self.read and value in g.producers and value not in g.outputs and (
            value not in self.joined) and g.types[value].dtype == F32

    def _shorten(self, value: str) -> str:
        """The value in bf16, made once; what only renames elements reads bf16, so that the Cast rides with a kernel."""
        if value not in self.short:
            name, maker = self.build.fresh(f"{value}.bf16"), self.source.producers.get(value)
            if maker is not None and maker.op in _RENAMES:
                self.build.add(replace(maker, inputs=(self._shorten(maker.inputs[0]), *maker.inputs[1:]),
                                       outputs=(name,)))
                self.short[value] = name
            else:
                self.short[value] = self.build.node("Cast", value, name=name, to="bf16")
        return self.short[value]

    def _back(self, value: str) -> str:
        return self.build.node("Cast", self._shorten(value), name=self.build.fresh(f"{value}.back"), to="f32")


__all__ = ["SHORT_OPS", "ShortSite", "roundings", "short_sites", "shortened", "why_long"]
