"""Cut a sequence of nodes and calls into a flow: as few parts as the calls between them allow."""
from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from types import MappingProxyType

import numpy as np

from ingot.graph import Call, Expr, Flow, Graph, Node, Part, Piece, Symbol, TensorType
from ingot.graph.dim import symbols_of

Step = Node | Call


def cut(steps: Sequence[Step], inputs: Sequence[str], outputs: Sequence[str], types: Mapping[str, TensorType],
        constants: Mapping[str, np.ndarray], symbols: Mapping[str, Symbol]) -> Flow:
    """The flow of these steps. Part 0 holds what no call comes before, then come the calls that need nothing but it
    and what was given, then part 1, and so on; what nothing reads is left out."""
    kept = _live(steps, outputs)
    stage = _stages(kept, types)
    parts: defaultdict[int, list[Node]] = defaultdict(list)
    calls: defaultdict[int, list[Call]] = defaultdict(list)
    for step, at in zip(kept, stage, strict=True):
        if isinstance(step, Node):
            parts[at].append(step)
        else:
            calls[at].append(step)
    read_by: defaultdict[str, set[object]] = defaultdict(set)
    for step, at in zip(kept, stage, strict=True):
        for value in _reads(step):
            read_by[value].add(at if isinstance(step, Node) else "call")
    for value in outputs:
        read_by[value].add("output")
    pieces: list[Piece] = []
    for at in range(max(stage, default=0) + 1):
        if parts[at]:
            pieces.append(Part(_graph(parts[at], lambda v, at=at: bool(read_by[v] - {at}), types, constants, symbols)))
        pieces += calls[at]
    made = {v for p in pieces for v in p.writes}
    asked = {v for p in pieces for v in p.reads} | set(outputs)
    held = {v for p in pieces if isinstance(p, Call) for v in p.reads} | set(outputs)
    outside = tuple(sorted(asked - made - set(inputs) - constants.keys()))
    shown = {*inputs, *outputs, *made, *held}
    used = {s for v in shown if v in types for s in types[v].symbols}
    return Flow(tuple(inputs), tuple(outputs), tuple(pieces),
                MappingProxyType({k: constants[k] for k in sorted(held) if k in constants}),
                MappingProxyType({k: types[k] for k in sorted(shown) if k in types}),
                MappingProxyType({k: s for k, s in symbols.items() if k in used}), outside)


def _reads(step: Step) -> tuple[str, ...]:
    return step.reads if isinstance(step, Call) else tuple(filter(None, step.inputs))


def _writes(step: Step) -> tuple[str, ...]:
    return step.writes if isinstance(step, Call) else tuple(filter(None, step.outputs))


def _live(steps: Sequence[Step], outputs: Iterable[str]) -> list[Step]:
    live, kept = set(outputs), []
    for step in reversed(steps):
        if live.intersection(_writes(step)):
            live.update(_reads(step))
            kept.append(step)
    return kept[::-1]


def _stages(steps: Sequence[Step], types: Mapping[str, TensorType]) -> list[int]:
    """Per step: the number of the part it belongs to, or of the part it comes after."""
    made: dict[str, int] = {}           # value -> the first part that can read it
    sized: dict[str, int] = {}          # symbol -> the first part that knows its size
    found = []
    for step in steps:
        at = max((made.get(v, 0) for v in _reads(step)), default=0)
        if isinstance(step, Node):
            own = _symbols(step, types)
            at = max(at, max((sized.get(s, 0) for s in own), default=0))
        after = at if isinstance(step, Node) else at + 1
        for value in _writes(step):
            made[value] = after
            if isinstance(step, Call) and value in types:
                for s in types[value].symbols:
                    sized.setdefault(s, after)
        found.append(at)
    return found


def _symbols(node: Node, types: Mapping[str, TensorType]) -> set[str]:
    """The symbols that a node's results and attributes speak of."""
    found = {s for v in node.outputs if v in types for s in types[v].symbols}
    for value in node.attrs.values():
        for entry in value if isinstance(value, (tuple, list)) else (value,):
            if isinstance(entry, Expr):
                found |= symbols_of(entry)
    return found


def _graph(nodes: Sequence[Node], leaves: object, types: Mapping[str, TensorType],
           constants: Mapping[str, np.ndarray], symbols: Mapping[str, Symbol]) -> Graph:
    made = [o for n in nodes for o in n.outputs if o]
    inside = set(made)
    read = dict.fromkeys(i for n in nodes for i in n.inputs if i and i not in inside)
    inputs = tuple(v for v in read if v not in constants)
    outputs = tuple(v for v in made if leaves(v))           # type: ignore[operator]
    named = {*read, *made}
    used = {s for v in named for s in types[v].symbols}.union(*(_symbols(n, types) for n in nodes))
    return Graph(inputs, outputs, tuple(nodes), MappingProxyType({v: constants[v] for v in read if v in constants}),
                 MappingProxyType({v: types[v] for v in types if v in named}),
                 MappingProxyType({k: s for k, s in symbols.items() if k in used}))
