"""Graphs, programs, choices and plans as JSON, exactly: what is read equals what was written.

Arrays are kept aside, in sections; JSON holds their places. In values that may be of any kind, all but ints, strings,
bools and None are tagged: {"f": hex} a float, {"d": text} a dimension, {"t": [...]} a tuple, {"a": place} an array,
{"b": hex} bytes, {"g": graph} a graph, {"y": name} a dtype, {"m": [[key, value], ...]} a mapping; a list is a list.
Readers raise ValueError, KeyError, TypeError, IndexError, AttributeError or ModelError for what is not of this form.
"""
from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import lru_cache
from types import MappingProxyType
from typing import Any, Protocol

import numpy as np

from ingot.engine.code import Bundle, bundle_from_json, bundle_to_json
from ingot.engine.engine import Variant
from ingot.errors import InternalError
from ingot.graph import DTYPES, DType, Expr, Graph, Node, Symbol, TensorType, parse_dim, parse_type
from ingot.kernels import Operand, Site, Step
from ingot.lower import Launch, Program, View
from ingot.plan import MemoryPlan
from ingot.target import Target
from ingot.tune import Choice, Trial

Json = Any


class Writer(Protocol):
    """Takes arrays, gives their places."""

    def put(self, array: np.ndarray) -> Json: ...


class Reader(Protocol):
    """Gives arrays for their places."""

    def get(self, place: Json) -> np.ndarray: ...


# --- dimensions, types, values ------------------------------------------------------------------------------------

@lru_cache(maxsize=4096)
def _expr_to_json(dim: Expr) -> str:
    text = str(dim)
    if parse_dim(text) != dim:
        raise InternalError(f"the dimension {text} does not read back as itself")
    return text


def _dim_to_json(dim: int | Expr) -> Json:
    return _expr_to_json(dim) if isinstance(dim, Expr) else int(dim)


@lru_cache(maxsize=4096)
def _expr_from_json(text: str) -> int | Expr:
    return parse_dim(text)


def _dim_from_json(value: Json) -> int | Expr:
    if isinstance(value, str):
        return _expr_from_json(value)
    if isinstance(value, int):
        return value
    raise ValueError(f"{value!r} is not a dimension")


@lru_cache(maxsize=8192)
def type_to_json(type_: TensorType) -> str:
    """A tensor type."""
    text = str(type_)
    if parse_type(text) != type_:
        raise InternalError(f"the type {text} does not read back as itself")
    return text


@lru_cache(maxsize=8192)
def type_from_json(text: str) -> TensorType:
    """The type that was written."""
    return parse_type(text)


def symbol_to_json(symbol: Symbol) -> Json:
    """A symbol with its profile."""
    return [symbol.name, symbol.min, symbol.opt, symbol.max]


def symbol_from_json(value: Json) -> Symbol:
    """The symbol that was written."""
    name, *sizes = value
    return Symbol(str(name), *(int(s) for s in sizes))


def value_to_json(value: object, out: Writer) -> Json:
    """Any attribute's value. Raises InternalError for a kind that has no form here."""
    if value is None or isinstance(value, (bool, str)):
        return value
    if isinstance(value, (int, np.integer)):
        return int(value)
    if isinstance(value, (float, np.floating)):
        return {"f": float(value).hex()}
    if isinstance(value, Expr):
        return {"d": _expr_to_json(value)}
    if isinstance(value, tuple):
        return {"t": [value_to_json(v, out) for v in value]}
    if isinstance(value, list):
        return [value_to_json(v, out) for v in value]
    if isinstance(value, bytes):
        return {"b": value.hex()}
    if isinstance(value, np.ndarray):
        return {"a": out.put(value)}
    if isinstance(value, Graph):
        return {"g": graph_to_json(value, out)}
    if isinstance(value, DType):
        return {"y": value.name}
    if isinstance(value, Mapping):
        return {"m": [[k, value_to_json(v, out)] for k, v in value.items()]}
    raise InternalError(f"an attribute is a {type(value).__name__}, which has no form in an engine file")


def value_from_json(value: Json, source: Reader) -> Any:
    """The value `value_to_json` wrote."""
    if isinstance(value, list):
        return [value_from_json(v, source) for v in value]
    if not isinstance(value, dict):
        return value
    (tag, held), = value.items()
    match tag:
        case "f":
            return float.fromhex(held)
        case "d":
            return _dim_from_json(held)
        case "t":
            return tuple(value_from_json(v, source) for v in held)
        case "b":
            return bytes.fromhex(held)
        case "a":
            return source.get(held)
        case "g":
            return graph_from_json(held, source)
        case "y":
            return DTYPES[held]
        case "m":
            return {str(k): value_from_json(v, source) for k, v in held}
    raise ValueError(f"unknown tag {tag!r}")


def names_from_json(value: Json) -> tuple[str, ...]:
    """A list of names. Raises ValueError."""
    if not isinstance(value, list) or not all(isinstance(v, str) for v in value):
        raise ValueError("a list of names is wanted")
    return tuple(value)


# --- graph --------------------------------------------------------------------------------------------------------

def graph_to_json(graph: Graph, out: Writer) -> Json:
    """A graph, its constants in sections."""
    return {"inputs": list(graph.inputs), "outputs": list(graph.outputs),
            "nodes": [[n.op, list(n.inputs), list(n.outputs),
                       {k: value_to_json(n.attrs[k], out) for k in sorted(n.attrs)}, list(n.origin)]
                      for n in graph.nodes],
            "constants": [[k, out.put(a)] for k, a in graph.constants.items()],
            "types": [[k, type_to_json(t)] for k, t in graph.types.items()],
            "symbols": [symbol_to_json(s) for s in graph.symbols.values()]}


def graph_from_json(value: Json, source: Reader) -> Graph:
    """The graph that was written; its own rules are checked again."""
    nodes = tuple(Node(str(op), names_from_json(inputs), names_from_json(outputs),
                       MappingProxyType({k: value_from_json(v, source) for k, v in attrs.items()}),
                       names_from_json(origin))
                  for op, inputs, outputs, attrs, origin in value["nodes"])
    symbols = [symbol_from_json(s) for s in value["symbols"]]
    return Graph(names_from_json(value["inputs"]), names_from_json(value["outputs"]), nodes,
                 MappingProxyType({k: source.get(a) for k, a in value["constants"]}),
                 MappingProxyType({k: type_from_json(t) for k, t in value["types"]}),
                 MappingProxyType({s.name: s for s in symbols}))


# --- sites and programs -------------------------------------------------------------------------------------------

def _operand_to_json(operand: Operand) -> Json:
    strides = None if operand.strides is None else [_dim_to_json(s) for s in operand.strides]
    return [type_to_json(operand.type), strides, operand.constant, *([] if operand.aligned else [False])]


def _operand_from_json(value: Json) -> Operand:
    type_, strides, constant, *rest = value
    return Operand(type_from_json(type_), None if strides is None else tuple(_dim_from_json(s) for s in strides),
                   bool(constant), not rest)


def site_to_json(site: Site, out: Writer) -> Json:
    """A site."""
    return {"steps": [[s.op, list(s.inputs), [[k, value_to_json(v, out)] for k, v in s.attrs],
                       [type_to_json(t) for t in s.types], list(s.absent)] for s in site.steps],
            "inputs": [_operand_to_json(o) for o in site.inputs],
            "outputs": [_operand_to_json(o) for o in site.outputs],
            "symbols": [symbol_to_json(s) for s in site.symbols], "main": site.main}


def site_from_json(value: Json, source: Reader) -> Site:
    """The site that was written. Raises ValueError where its steps read what is not there."""
    inputs = tuple(_operand_from_json(o) for o in value["inputs"])
    steps: list[Step] = []
    for op, reads, attrs, types, absent in value["steps"]:
        for i in reads:
            if i is not None and not -len(steps) <= i < len(inputs):
                raise ValueError("a step reads what is not there")
        steps.append(Step(str(op), tuple(reads), tuple((str(k), value_from_json(v, source)) for k, v in attrs),
                          tuple(type_from_json(t) for t in types), tuple(int(k) for k in absent)))
    return Site(tuple(steps), inputs, tuple(_operand_from_json(o) for o in value["outputs"]),
                tuple(symbol_from_json(s) for s in value["symbols"]), int(value["main"]))


def program_to_json(program: Program, out: Writer) -> Json:
    """A program: its sites once each."""
    sites = {x.site.key: x.site for x in program.launches}
    place = {key: i for i, key in enumerate(sites)}
    return {"inputs": list(program.inputs), "outputs": list(program.outputs),
            "sites": [site_to_json(s, out) for s in sites.values()],
            "launches": [[place[x.site.key], list(x.reads), list(x.writes), list(x.origin), x.native, list(x.reasons)]
                         for x in program.launches],
            "views": [[k, v.base, _dim_to_json(v.offset)] for k, v in program.views.items()],
            "constants": [[k, out.put(a)] for k, a in program.constants.items()],
            "types": [[k, type_to_json(t)] for k, t in program.types.items()],
            "symbols": [symbol_to_json(s) for s in program.symbols.values()]}


def program_from_json(value: Json, source: Reader) -> Program:
    """The program that was written."""
    sites = [site_from_json(s, source) for s in value["sites"]]
    launches = tuple(Launch(sites[site], names_from_json(reads), names_from_json(writes), names_from_json(origin),
                            bool(native), names_from_json(reasons))
                     for site, reads, writes, origin, native, reasons in value["launches"])
    symbols = [symbol_from_json(s) for s in value["symbols"]]
    return Program(names_from_json(value["inputs"]), names_from_json(value["outputs"]), launches,
                   MappingProxyType({k: View(str(base), _dim_from_json(offset)) for k, base, offset in value["views"]}),
                   MappingProxyType({k: source.get(a) for k, a in value["constants"]}),
                   MappingProxyType({k: type_from_json(t) for k, t in value["types"]}),
                   MappingProxyType({s.name: s for s in symbols}))


# --- choices, plans, variants -------------------------------------------------------------------------------------

def _time_to_json(seconds: float | None) -> Json:
    return None if seconds is None else float(seconds).hex()


def _time_from_json(value: Json) -> float | None:
    return None if value is None else float.fromhex(value)


def _params(value: Json) -> dict[str, int]:
    return {str(k): int(v) for k, v in value}


def choice_to_json(choice: Choice) -> Json:
    """A choice with its trials."""
    return [choice.site, choice.tactic, [[k, int(v)] for k, v in choice.params.items()], _time_to_json(choice.seconds),
            choice.tuned, [[t.tactic, [[k, int(v)] for k, v in t.params.items()], _time_to_json(t.seconds), t.note]
                           for t in choice.trials], list(choice.in_place)]


def choice_from_json(value: Json) -> Choice:
    """The choice that was written."""
    site, tactic, params, seconds, tuned, trials, in_place = value
    return Choice(str(site), str(tactic), _params(params), _time_from_json(seconds), bool(tuned),
                  tuple(Trial(str(t), _params(p), _time_from_json(s), str(n)) for t, p, s, n in trials),
                  tuple(int(i) for i in in_place))


def plan_to_json(plan: MemoryPlan) -> Json:
    """A memory plan."""
    return {"arena": plan.arena, "lower_bound": plan.lower_bound, "threads": plan.threads, "live": list(plan.live),
            "values": [[v, plan.offsets[v], plan.sizes[v]] for v in plan.offsets],
            "workspaces": [list(w) for w in plan.workspaces], "reused": [list(r) for r in plan.reused.items()]}


def plan_from_json(value: Json) -> MemoryPlan:
    """The plan that was written."""
    rows: Sequence[Sequence[Any]] = value["values"]
    return MemoryPlan(int(value["arena"]), int(value["lower_bound"]),
                      MappingProxyType({str(v): int(at) for v, at, _ in rows}),
                      MappingProxyType({str(v): int(size) for v, _, size in rows}),
                      tuple((int(a), int(b)) for a, b in value["workspaces"]), tuple(int(n) for n in value["live"]),
                      int(value["threads"]), MappingProxyType({str(k): str(v) for k, v in value["reused"]}))


def target_to_json(target: Target) -> Json:
    """A target."""
    return [target.kind, target.isa, sorted(target.features), target.cpu, target.device, target.threads]


def target_from_json(value: Json) -> Target:
    """The target that was written."""
    kind, isa, features, cpu, device, threads = value
    if not isinstance(threads, int) or threads < 1:
        raise ValueError(f"a device with {threads!r} threads")
    return Target(str(kind), str(isa), frozenset(names_from_json(features)), str(cpu), str(device), int(threads))


def variant_to_json(variant: Variant, out: Writer) -> Json:
    """A variant."""
    return {"target": target_to_json(variant.target), "generator": variant.generator,
            "program": program_to_json(variant.program, out),
            "choices": [choice_to_json(c) for c in variant.choices.values()],
            "packed": [[i, k, out.put(a)] for (i, k), a in sorted(variant.packed.items(), key=lambda item: item[0])],
            "plan": plan_to_json(variant.plan), "report": variant.report,
            **({"code": bundle_to_json(variant.code, out)} if variant.code.kernels else {})}


def variant_from_json(value: Json, source: Reader) -> Variant:
    """The variant that was written. Raises ValueError where its parts do not belong together."""
    program = program_from_json(value["program"], source)
    choices = {c.site: c for c in map(choice_from_json, value["choices"])}
    packed: dict[tuple[int, int], np.ndarray] = {}
    for launch, operand, place in value["packed"]:
        if not (0 <= launch < len(program.launches) and 0 <= operand < len(program.launches[launch].reads)):
            raise ValueError("a packed constant belongs to no operand")
        packed[launch, operand] = source.get(place)
    return Variant(target_from_json(value["target"]), str(value["generator"]), program, choices, packed,
                   plan_from_json(value["plan"]), dict(value["report"]),
                   bundle_from_json(value["code"], source) if "code" in value else Bundle())
