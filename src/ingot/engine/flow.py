"""A flow as JSON: its pieces in order, parts by their number, subgraphs as flows inside."""
from __future__ import annotations

from collections.abc import Iterator, Sequence
from types import MappingProxyType
from typing import Any

from ingot.engine.engine import Variant
from ingot.engine.serial import (
    Json,
    Reader,
    Writer,
    names_from_json,
    symbol_from_json,
    symbol_to_json,
    type_from_json,
    type_to_json,
    value_from_json,
    value_to_json,
)
from ingot.graph import Call, Flow, Graph, Node, Part, Piece
from ingot.kernels import Site, Step
from ingot.lower import Launch, Program
from ingot.plan import MemoryPlan
from ingot.target import Target
from ingot.tune import generator_version


def joint(flow: Flow, variants: Sequence[Variant]) -> Variant:
    """The variants of a flow's parts as one, to read: their launches in order, and the calls on the reference."""
    launches = [x for v in variants for x in v.program.launches]
    for call in flow.calls:
        if not call.late and not call.flows:
            site = Site((Step(call.op, ()),), (), ())
            launches.append(Launch(site, call.reads, call.writes, call.node.origin, False, (call.why,)))
    picture = flow.graph
    program = Program(flow.inputs, flow.outputs, tuple(launches), {}, {}, picture.types, flow.symbols)
    plan = MemoryPlan(sum(v.plan.arena for v in variants), sum(v.plan.lower_bound for v in variants), {}, {},
                      tuple(w for v in variants for w in v.plan.workspaces),
                      tuple(n for v in variants for n in v.plan.live),
                      max((v.plan.threads for v in variants), default=1))
    choices = {k: c for v in variants for k, c in v.choices.items()}
    packed = {(k, i): a for k, (i, a) in enumerate((i, a) for v in variants for (_, i), a in v.packed.items())}
    target = variants[0].target if variants else Target("x86", "")
    return Variant(target, generator_version(target), program, choices, packed, plan)


def flows_in(flow: Flow) -> Iterator[Flow]:
    """The flow and every one inside it."""
    yield flow
    for piece in flow.pieces:
        if isinstance(piece, Call):
            for inner in piece.flows:
                yield from flows_in(inner)


def flow_to_json(flow: Flow, out: Writer) -> Json:
    """A flow; the graphs of its parts are kept elsewhere, in the order of `flow.parts`."""
    numbers = {id(p): k for k, p in enumerate(flow.parts)}
    return _flow_to_json(flow, numbers, out)


def _flow_to_json(flow: Flow, numbers: dict[int, int], out: Writer) -> Json:
    return {"inputs": list(flow.inputs), "outputs": list(flow.outputs), "captures": list(flow.captures),
            "pieces": [numbers[id(p)] if isinstance(p, Part) else _call_to_json(p, numbers, out) for p in flow.pieces],
            "constants": [[k, out.put(a)] for k, a in flow.constants.items()],
            "types": [[k, type_to_json(t)] for k, t in flow.types.items()],
            "symbols": [symbol_to_json(s) for s in flow.symbols.values()]}


def _call_to_json(call: Call, numbers: dict[int, int], out: Writer) -> Json:
    node = call.node
    attrs = {k: {"flow": _flow_to_json(v, numbers, out)} if isinstance(v, Flow) else value_to_json(v, out)
             for k, v in sorted(node.attrs.items())}
    return [node.op, list(node.inputs), list(node.outputs), attrs, list(node.origin), call.domain, call.opset,
            call.late, call.why]


def flow_from_json(value: Json, graphs: Sequence[Graph], source: Reader) -> Flow:
    """The flow that was written. Raises ValueError, KeyError, TypeError or IndexError for another form."""
    return _flow_from_json(value, [Part(g) for g in graphs], source)


def _flow_from_json(value: Json, parts: Sequence[Part], source: Reader) -> Flow:
    pieces: list[Piece] = []
    for piece in value["pieces"]:
        if isinstance(piece, int):
            if piece < 0:
                raise ValueError("a part has a negative number")
            pieces.append(parts[piece])
        else:
            pieces.append(_call_from_json(piece, parts, source))
    return Flow(names_from_json(value["inputs"]), names_from_json(value["outputs"]), tuple(pieces),
                MappingProxyType({str(k): source.get(a) for k, a in value["constants"]}),
                MappingProxyType({str(k): type_from_json(t) for k, t in value["types"]}),
                MappingProxyType({s.name: s for s in map(symbol_from_json, value["symbols"])}),
                names_from_json(value["captures"]))


def _call_from_json(value: Any, parts: Sequence[Part], source: Reader) -> Call:
    op, inputs, outputs, attrs, origin, domain, opset, late, why = value
    held = {str(k): _flow_from_json(v["flow"], parts, source) if isinstance(v, dict) and v.keys() == {"flow"}
            else value_from_json(v, source) for k, v in attrs.items()}
    node = Node(str(op), names_from_json(inputs), names_from_json(outputs), MappingProxyType(held),
                names_from_json(origin))
    return Call(node, str(domain), int(opset), bool(late), str(why))
