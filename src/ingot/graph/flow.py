"""Flow: graphs, and between them the nodes for which data decides what is computed, or how large it becomes.

A model whose shapes follow from its inputs' is one graph. Where data decides a size (NonZero, TopK with a computed k)
or the way (If, Loop), or a value is no tensor (sequences, optionals), the model is cut: what lies between such nodes
stays a graph that is compiled ahead, with a symbol for every size it does not know before it runs. The nodes that
cut it are calls. Pieces run in order over named values; a call's subgraphs are flows, which see the values around them.

A data-decided size is written `s-1` with a symbol s >= 1, for it may be 0, and symbols are at least 1.
"""
from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType

import numpy as np

from ingot.graph.dim import Expr, Symbol
from ingot.graph.graph import Graph, Node
from ingot.graph.types import F32, TensorType


@dataclass(frozen=True)
class Part:
    """A piece that is compiled ahead: it reads its graph's inputs and makes its graph's outputs."""

    graph: Graph

    @property
    def reads(self) -> tuple[str, ...]:
        return self.graph.inputs

    @property
    def writes(self) -> tuple[str, ...]:
        return self.graph.outputs


@dataclass(frozen=True)
class Call:
    """One node that runs between the parts, with ONNX's operands and attributes as of `opset` of its domain.

    A `late` call is an op that is compiled once its operands are known; any other runs on the reference, but for
    control flow, which runs the flows among its attributes. `why` says what kept it out of the parts.
    """

    node: Node
    domain: str = ""
    opset: int = 0
    late: bool = False
    why: str = ""

    @property
    def flows(self) -> tuple[Flow, ...]:
        """The subgraphs, in the order of their names."""
        return tuple(v for _, v in sorted(self.node.attrs.items()) if isinstance(v, Flow))

    @property
    def op(self) -> str:
        """The op's name, with its domain unless that is ONNX's own."""
        return f"{self.domain}::{self.node.op}" if self.domain else self.node.op

    @property
    def reads(self) -> tuple[str, ...]:
        """The values it needs, those its flows take from around them included."""
        inner = (v for f in self.flows for v in f.captures)
        return tuple(dict.fromkeys(v for v in (*self.node.inputs, *inner) if v))

    @property
    def writes(self) -> tuple[str, ...]:
        return tuple(filter(None, self.node.outputs))


Piece = Part | Call


@dataclass(frozen=True)
class Flow:
    """Pieces in order over named values. A value without a type is no tensor, or one of unknown rank."""

    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    pieces: tuple[Piece, ...]
    constants: Mapping[str, np.ndarray]                 # that calls read, or that are outputs
    types: Mapping[str, TensorType]
    symbols: Mapping[str, Symbol] = field(default_factory=dict)
    captures: tuple[str, ...] = ()                      # values it takes from the flow around it

    @property
    def parts(self) -> tuple[Part, ...]:
        """Every part, those of subgraphs included, in the order that numbers them."""
        return tuple(p for p in self.walk() if isinstance(p, Part))

    @property
    def calls(self) -> tuple[Call, ...]:
        """Every call, those of subgraphs included."""
        return tuple(p for p in self.walk() if isinstance(p, Call))

    def walk(self) -> Iterator[Piece]:
        """Every piece, subgraphs included, each call before what is inside it."""
        for piece in self.pieces:
            yield piece
            if isinstance(piece, Call):
                for flow in piece.flows:
                    yield from flow.walk()

    @property
    def graph(self) -> Picture:
        """The outermost pieces as one graph to read and to ask about; what has no type is shown as a number."""
        nodes: list[Node] = []
        constants = dict(self.constants)
        types: dict[str, TensorType] = dict(self.types)
        for piece in self.pieces:
            if isinstance(piece, Part):
                nodes += piece.graph.nodes
                constants.update(piece.graph.constants)
                types.update(piece.graph.types)
            else:
                plain = {k: v for k, v in piece.node.attrs.items() if not isinstance(v, Flow)}
                nodes.append(Node(piece.op, piece.reads, piece.node.outputs, MappingProxyType(plain),
                                  piece.node.origin))
        for value in (*self.inputs, *self.outputs, *(o for n in nodes for o in n.outputs if o)):
            types.setdefault(value, TensorType(F32, ()))
        return Picture(self.inputs, self.outputs, tuple(nodes), MappingProxyType(constants), MappingProxyType(types),
                       self.symbols, self)


@dataclass(frozen=True)
class Picture(Graph):
    """A flow as one graph: for reading. What it computes, the flow says."""

    flow: Flow | None = None


def data_symbol(dim: int | Expr) -> str | None:
    """The symbol of a size that data decides (`s-1`), None for any other dimension."""
    if isinstance(dim, Expr) and len(dim.terms) == 2:
        (names, factor), (rest, less) = dim.terms
        if len(names) == 1 and isinstance(names[0], str) and factor == 1 and not rest and less == -1:
            return names[0]
    return None
