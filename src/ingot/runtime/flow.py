"""Running a flow: its parts are sessions of their own, its calls are compiled when their operands are known.

A part is planned for sizes that data decides up to a bound; a larger one has the part lowered and planned anew for
twice as much, once. A size of 0 sends the part to the reference for that run, for kernels are made for sizes of at
least 1. Whatever runs on the reference is remembered by name: `Driver.referenced`.
"""
from __future__ import annotations

import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

import numpy as np

from ingot.engine import Engine, Variant, make_variant
from ingot.errors import CandidateError, InputError, ModelError, UnsupportedError
from ingot.graph import Call, Flow, Graph, GraphBuilder, Part, Symbol, type_of
from ingot.lower import lower
from ingot.ops import infer
from ingot.ops.flow import (
    DATA_PREFIX,
    Scope,
    Sizes,
    Value,
    empty,
    evaluator,
    late_on_reference,
    reference_call,
    reference_part,
    run_flow,
    specialised,
    with_evaluator,
)
from ingot.ops.selection import SELECTIONS
from ingot.passes import optimize
from ingot.runtime.feeds import as_array, bind, ordered
from ingot.target import Target

LARGEST = 1 << 36       # bytes of arena that a part may grow to
_SIZES = 1024           # sets of sizes that are remembered
_COMPILED = 32          # forms of one call that stay compiled; the one unused longest goes
_AT_ONCE = 8            # forms of one call that are compiled when first met; later ones when they come again
_MET = 1024             # forms met once that are remembered
_RENAMES = frozenset({"Reshape", "Squeeze", "Unsqueeze", "Flatten", "Identity"})    # they leave every byte in place


class Runner(Protocol):
    """A session, as far as a flow needs it."""

    @property
    def variant(self) -> Variant: ...

    def run_at(self, arrays: Sequence[np.ndarray], sizes: Sizes) -> list[np.ndarray]:
        """The outputs in order, for inputs in order and sizes of symbols that no input has."""


Open = Callable[[Engine], Runner]


@dataclass
class _Late:
    """What one call has been compiled to so far, by its operands' types and attributes."""

    forms: dict[object, Runner | None] = field(default_factory=dict)        # the one used last comes last
    met: set[object] = field(default_factory=set)                           # forms that came once, and ran elsewhere
    reference: Any = None       # its evaluator


class Driver:
    """A flow at work. Safe to call from several threads: runs share nothing but what is compiled."""

    def __init__(self, engine: Engine, flow: Flow, target: Target, opened: Open) -> None:
        self._flow, self._target, self._open = flow, target, opened
        self._parts: dict[int, Runner] = {id(p): opened(e) for p, e in zip(flow.parts, engine.parts, strict=True)}
        self._symbols: dict[int, dict[str, Symbol]] = {id(p): dict(p.graph.symbols) for p in flow.parts}
        self._spoken = {k for p in flow.parts for k in p.graph.symbols}
        self._late: dict[int, _Late] = {id(c): _Late() for c in flow.calls}
        self._typed = {v: t for v in flow.inputs if (t := flow.types.get(v)) is not None}
        self._names = dict.fromkeys(flow.inputs)
        self._sizes: dict[tuple[tuple[int, ...], ...], dict[str, int]] = {}     # what inputs of these shapes fix
        self._without: dict[tuple[int, ...], bool] = {}     # (part, sizes) -> whether a value has no elements there
        self._lock = threading.RLock()
        self.referenced: set[str] = set()       # ops that have run on the reference

    def begin_again(self) -> None:
        """A new lock, after a fork."""
        self._lock = threading.RLock()

    @property
    def variants(self) -> tuple[Variant, ...]:
        """What the parts run, in order."""
        return tuple(self._parts[id(p)].variant for p in self._flow.parts)

    def run(self, feeds: tuple[object, ...]) -> dict[str, Value]:
        """Outputs by name. Raises InputError."""
        made = run_flow(self._flow, self._begun(feeds), self._part, self._call)
        return dict(zip(self._flow.outputs, made, strict=True))

    def _begun(self, feeds: tuple[object, ...]) -> Scope:
        flow, scope, typed = self._flow, Scope(), self._typed
        for name, value in zip(flow.inputs, ordered(feeds, flow.inputs, self._names), strict=True):
            scope.values[name] = as_array(value, name, typed[name]) if name in typed else value
        shapes = tuple([np.shape(scope.values[v]) for v in typed])
        if (found := self._sizes.get(shapes)) is None:
            if len(self._sizes) >= _SIZES:
                self._sizes.clear()
            found = self._sizes[shapes] = self._bound(shapes)
        scope.sizes.update(found)
        return scope

    def _bound(self, shapes: Sequence[tuple[int, ...]]) -> dict[str, int]:
        """The sizes that inputs of these shapes fix. Raises InputError."""
        flow, typed = self._flow, self._typed
        symbols = {k: s for k, s in flow.symbols.items() if any(k in t.symbols for t in typed.values())}
        # a size that no part speaks of may be any, 0 as well
        free = {str(d): n for t, shape in zip(typed.values(), shapes, strict=True)
                for d, n in zip(t.shape, shape, strict=False) if str(d) in symbols.keys() - self._spoken}
        return {**bind(tuple(typed), typed, {k: s for k, s in symbols.items() if k not in free}, shapes, free)}

    # --- parts --------------------------------------------------------------------------------------------------

    def _part(self, part: Part, arrays: Sequence[np.ndarray], sizes: Sizes) -> Sequence[np.ndarray]:
        if self._empty(part, sizes):
            self.referenced.update(n.op for n in part.graph.nodes)
            return reference_part(part, arrays, sizes)
        runner = self._fitting(part, sizes)
        self.referenced.update(s.op for x in runner.variant.program.launches if not x.native for s in x.site.steps)
        return runner.run_at(arrays, sizes)

    def _empty(self, part: Part, sizes: Sizes) -> bool:
        """As `empty`, worked out once for each set of sizes."""
        key = id(part), *(sizes[k] for k in part.graph.symbols)
        if (found := self._without.get(key)) is None:
            if len(self._without) >= _SIZES:
                self._without.clear()
            found = self._without[key] = empty(part, sizes)
        return found

    def _fitting(self, part: Part, sizes: Sizes) -> Runner:
        """The part's session, made anew where a size is beyond what it was planned for."""
        with self._lock:
            symbols = self._symbols[id(part)]
            wide = {k: replace(s, max=_grown(s, sizes[k])) for k, s in symbols.items()
                    if k in sizes and sizes[k] > s.max and part.graph.symbols[k].name.startswith(DATA_PREFIX)}
            if wide:
                symbols.update(wide)
                graph = replace(part.graph, symbols=dict(symbols))
                variant = make_variant(lower(optimize(graph, self._target), self._target), self._target)
                if variant.plan.arena > LARGEST:
                    raise InputError(f"the data makes a part of the model need {variant.plan.arena} bytes",
                                     why=tuple(f"{k} is {sizes[k]}" for k in wide),
                                     mend="give inputs that select less")
                self._parts[id(part)] = self._open(Engine("part", graph, (variant,)))
            return self._parts[id(part)]

    # --- calls --------------------------------------------------------------------------------------------------

    def _call(self, call: Call, given: Sequence[Value]) -> Sequence[Value]:
        late = self._late[id(call)]
        if call.late and all(v is None or isinstance(v, (np.ndarray, np.generic)) for v in given):
            return self._compiled(call, late, [None if v is None else np.asarray(v) for v in given])
        self.referenced.add(call.op)
        if not call.domain and call.node.op in SELECTIONS:
            return reference_call(call, given)
        with self._lock:
            if late.reference is None:
                late.reference = evaluator(call, [bool(n) for n in call.node.inputs])
        return with_evaluator(late.reference, call, given)

    def _compiled(self, call: Call, late: _Late, given: Sequence[np.ndarray | None]) -> Sequence[Value]:
        """A late call: compiled for these attributes and types, unless it has been already.

        Compiling takes tens of milliseconds: a call that always comes in new forms is compiled in its first few, and
        then left to the reference, but for forms that come again.
        """
        node, arrays = specialised(call, given)
        if node.op in _RENAMES and (x := arrays[0]) is not None and x.size:
            try:
                (t,) = infer(node, tuple(None if a is None else type_of(a) for a in arrays))
                return [np.array(x).reshape([int(str(d)) for d in t.shape])]
            except (ModelError, UnsupportedError):
                pass            # the reference says what is wrong
        key = tuple(sorted((k, repr(v)) for k, v in node.attrs.items())), tuple(
            None if a is None else (a.dtype.str, a.dtype.name, a.shape) for a in arrays)
        with self._lock:
            if key in late.forms:
                late.forms[key] = late.forms.pop(key)
            elif len(late.forms) < _AT_ONCE or key in late.met:
                late.met.discard(key)
                if len(late.forms) >= _COMPILED:
                    del late.forms[next(iter(late.forms))]
                late.forms[key] = self._form(replace(call, node=node), arrays)
            else:
                if len(late.met) >= _MET:
                    late.met.clear()
                late.met.add(key)
            runner = late.forms.get(key)
        if runner is None:
            self.referenced.add(call.op)
            return late_on_reference(node, arrays)
        made = iter(runner.run_at([a for a in arrays if a is not None], {}))
        return [next(made) if o else None for o in node.outputs]

    def _form(self, call: Call, arrays: Sequence[np.ndarray | None]) -> Runner | None:
        """A session of one node, or None where it would not be all kernels."""
        if any(a is not None and (a.size == 0 or a.dtype.kind in "OUS") for a in arrays):
            return None
        try:
            graph = node_graph(call, arrays)
            if any(0 in graph.types[o].shape for o in graph.outputs):
                return None
            program = lower(optimize(graph, self._target), self._target)
            if not all(x.native for x in program.launches):
                return None
            return self._open(Engine(call.op, graph, (make_variant(program, self._target),)))
        except (ModelError, UnsupportedError, CandidateError):
            return None         # the reference says what is wrong, if anything is


def node_graph(call: Call, arrays: Sequence[np.ndarray | None]) -> Graph:
    """The graph of one node alone, for inputs like these. Raises ModelError or UnsupportedError."""
    build = GraphBuilder(infer)
    names = []
    for k, array in enumerate(arrays):
        names.append("" if array is None else f"i{k}")
        if array is not None:
            build.constant(names[-1], array)            # types it; it becomes an input
            build.input(names[-1], build.types[names[-1]])
            del build.constants[names[-1]]
    outputs = tuple(f"o{k}" if o else "" for k, o in enumerate(call.node.outputs))
    build.add(replace(call.node, inputs=tuple(names), outputs=outputs))
    return build.finish(*filter(None, outputs))


def _grown(symbol: Symbol, size: int) -> int:
    """Twice as much as before, until it is enough (+1: these symbols stand for a size less one)."""
    most = symbol.max
    while most < size:
        most = 2 * (most - 1) + 1
    return most


def arena_of(variants: Mapping[object, Variant] | Sequence[Variant]) -> int:
    """Bytes of arena that some variants take together."""
    return sum(v.plan.arena for v in (variants.values() if isinstance(variants, Mapping) else variants))
