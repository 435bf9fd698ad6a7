"""Graph and Node are frozen; GraphBuilder is the only way to make another."""
from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from types import MappingProxyType

import numpy as np

from ingot.errors import ModelError
from ingot.graph.dim import Symbol
from ingot.graph.types import TensorType, type_of

Infer = Callable[["Node", "tuple[TensorType | None, ...]"], "tuple[TensorType, ...]"]


@dataclass(frozen=True, slots=True)
class Node:
    """One op applied to named values. An absent optional input or output is the empty name."""

    op: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    attrs: Mapping[str, object] = field(default_factory=dict)
    origin: tuple[str, ...] = ()        # names in the user's model, kept through every rewrite

    @property
    def output(self) -> str:
        """The first output that is there: the only one of most ops."""
        return next(filter(None, self.outputs), "")

    @property
    def where(self) -> str:
        return f"{self.op} '{self.output}'" + (f" (from {', '.join(self.origin)})" if self.origin else "")


@dataclass(frozen=True)
class Graph:
    """Nodes in topological order over named, typed values; constants by name; symbols with their profile."""

    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    nodes: tuple[Node, ...]
    constants: Mapping[str, np.ndarray]
    types: Mapping[str, TensorType]
    symbols: Mapping[str, Symbol] = field(default_factory=dict)

    @cached_property
    def producers(self) -> Mapping[str, Node]:
        """Value -> the node that makes it."""
        return {o: n for n in self.nodes for o in n.outputs if o}

    @cached_property
    def uses(self) -> Counter[str]:
        """Value -> how many times it is read, a graph output counting as one read."""
        return Counter([i for n in self.nodes for i in n.inputs if i] + list(self.outputs))

    @cached_property
    def readers(self) -> Mapping[str, tuple[Node, ...]]:
        """Value -> the nodes that read it, each once, in order."""
        found: defaultdict[str, list[Node]] = defaultdict(list)
        for node in self.nodes:
            for value in dict.fromkeys(filter(None, node.inputs)):
                found[value].append(node)
        return {k: tuple(v) for k, v in found.items()}

    def type(self, value: str) -> TensorType | None:
        """The type of a value, None for an absent one."""
        return self.types[value] if value else None

    def __post_init__(self) -> None:
        seen = {*self.inputs, *self.constants}
        for node in self.nodes:
            for value in node.inputs:
                if value and value not in seen:
                    raise ModelError(f"'{value}' is read before it is made", where=node.where,
                                     mend="order the nodes topologically, or declare the value an input")
            for value in node.outputs:
                if value in seen:
                    raise ModelError(f"'{value}' is made twice", where=node.where, mend="rename one of them")
                if value:
                    seen.add(value)
        for value in self.outputs:
            if value not in seen:
                raise ModelError(f"the output '{value}' is never made", mend="remove it, or name an existing value")
        if untyped := [v for v in seen if v not in self.types]:
            raise ModelError(f"value '{untyped[0]}' has no type")


class GraphBuilder:
    """Collects nodes in order and types each one as it arrives. Lives inside one function, never longer."""

    def __init__(self, infer: Infer, symbols: Mapping[str, Symbol] | None = None) -> None:
        self._infer = infer
        self._inputs: list[str] = []
        self._nodes: list[Node] = []
        self.constants: dict[str, np.ndarray] = {}
        self.types: dict[str, TensorType] = {}
        self.symbols: dict[str, Symbol] = dict(symbols or {})
        self._count = 0

    def fresh(self, stem: str) -> str:
        """A value name not yet taken, made of `stem`."""
        while True:
            self._count += 1
            name = f"{stem}.{self._count}"
            if name not in self.types:
                return name

    def input(self, name: str, type_: TensorType) -> str:
        self._inputs.append(name)
        self.types[name] = type_
        return name

    def constant(self, name: str, array: np.ndarray) -> str:
        self.constants[name], self.types[name] = array, type_of(array)
        return name

    def add(self, node: Node) -> tuple[str, ...]:
        """Append a node whose inputs exist; types its outputs. Raises ModelError."""
        if unknown := next((i for i in node.inputs if i and i not in self.types), None):
            raise ModelError(f"'{unknown}' is read before it is made", where=node.where,
                             mend="order the nodes topologically, or declare the value an input")
        types = self._infer(node, tuple(self.types[i] if i else None for i in node.inputs))
        self.types.update((o, t) for o, t in zip(node.outputs, types, strict=True) if o)
        self._nodes.append(node)
        return node.outputs

    def node(self, op: str, *inputs: str, name: str = "", origin: tuple[str, ...] = (), **attrs: object) -> str:
        """Append a one-output node and give its output's name."""
        return self.add(Node(op, inputs, (name or self.fresh(op.lower()),), MappingProxyType(attrs), origin))[0]

    def finish(self, *outputs: str) -> Graph:
        return Graph(tuple(self._inputs), outputs, tuple(self._nodes), MappingProxyType(self.constants),
                     MappingProxyType(self.types), MappingProxyType(self.symbols))
