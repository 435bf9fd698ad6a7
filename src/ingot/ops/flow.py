"""Running a flow: control flow, the sizes data decides, and who computes the pieces, which is an argument.

The reference (`reference_flow`) and the runtime walk a flow by this same code; they differ in what a part and a call
are run with.
"""
from __future__ import annotations

from collections.abc import Callable, Mapping, MutableMapping, Sequence
from dataclasses import dataclass, field, replace
from types import MappingProxyType
from typing import Any

import numpy as np
import onnx
from onnx import helper
from onnx.reference import ReferenceEvaluator

from ingot.errors import IngotError, InputError, ModelError, UnsupportedError
from ingot.graph import Call, Expr, Flow, Graph, Node, Part, Picture, TensorType, data_symbol, dtype_from_numpy
from ingot.ops.fallback import attribute_protos
from ingot.ops.op import OPS
from ingot.ops.reference import bindings_from, evaluate, run_graph, told
from ingot.ops.selection import SELECTIONS
from ingot.ops.sequence import LISTS

Value = Any             # an array, a list of values (a sequence), or None (an empty optional)
Values = MutableMapping[str, Value]
Sizes = Mapping[str, int]
RunPart = Callable[[Part, Sequence[np.ndarray], Sizes], Sequence[np.ndarray]]
RunCall = Callable[[Call, Sequence[Value]], Sequence[Value]]
CONTROL = frozenset({"If", "Loop", "Scan", "SequenceMap"})
_LARGEST_LOOP = 1 << 62


@dataclass
class Scope:
    """The values and sizes of one flow at work; what is not found here is looked for around it. Lives in one run."""

    values: dict[str, Value] = field(default_factory=dict)
    sizes: dict[str, int] = field(default_factory=dict)
    around: Scope | None = None

    def __getitem__(self, name: str) -> Value:
        scope: Scope | None = self
        while scope is not None:
            if name in scope.values:
                return scope.values[name]
            scope = scope.around
        raise ModelError(f"'{name}' is read before it is made", mend="please report it with the model")

    def all_sizes(self) -> dict[str, int]:
        """Every size known here."""
        return {**(self.around.all_sizes() if self.around else {}), **self.sizes}

    def put(self, name: str, value: Value, type_: TensorType | None) -> None:
        """Keep a value; the sizes that its type leaves to the data are what they are now. Raises ModelError."""
        self.values[name] = value
        if type_ is None or not isinstance(value, np.ndarray):
            return
        if value.ndim != type_.rank:
            raise ModelError(f"'{name}' is {value.dtype}{list(value.shape)} where {type_} was expected",
                             mend="please report it with the model")
        for dim, size in zip(type_.shape, value.shape, strict=True):
            if (symbol := data_symbol(dim)) is not None:
                self.sizes[symbol] = size + 1


def run_flow(flow: Flow, scope: Scope, run_part: RunPart, run_call: RunCall) -> list[Value]:
    """The outputs of a flow, whose inputs are in the scope already."""
    for name, array in flow.constants.items():
        scope.values.setdefault(name, array)
    for piece in flow.pieces:
        if isinstance(piece, Part):
            made: Sequence[Value] = run_part(piece, [scope[v] for v in piece.reads], scope.all_sizes())
            scope.values.update(zip(piece.writes, made, strict=True))
            continue
        made = _called(piece, scope, run_part, run_call)
        for name, value in zip(piece.node.outputs, made, strict=False):
            if name:
                scope.put(name, value, flow.types.get(name))
    return [scope[v] for v in flow.outputs]


def _called(call: Call, scope: Scope, run_part: RunPart, run_call: RunCall) -> Sequence[Value]:
    given = [scope[v] if v else None for v in call.node.inputs]
    control = _CONTROL.get(call.node.op) if call.flows and not call.domain else None
    try:
        if control is None:
            kept = None if call.domain else LISTS.get(call.node.op)
            return run_call(call, given) if kept is None else kept(given, call.node.attrs)

        def inside(flow: Flow, *values: Value) -> list[Value]:
            inner = Scope(around=scope)
            for name, value in zip(flow.inputs, values, strict=True):
                inner.put(name, value, flow.types.get(name))
            return run_flow(flow, inner, run_part, run_call)
        return control(call, given, inside)
    except IngotError as error:
        if error.where:
            raise
        raise type(error)(error.what, where=call.node.where, why=error.why, mend=error.mend) from None


# --- control flow ---------------------------------------------------------------------------------------------------

Inside = Callable[..., list[Value]]


def _flow(call: Call, name: str) -> Flow:
    found = call.node.attrs.get(name)
    if not isinstance(found, Flow):
        raise ModelError(f"it has no {name}", where=call.node.where)
    return found


def _if(call: Call, given: Sequence[Value], inside: Inside) -> list[Value]:
    return inside(_flow(call, "then_branch" if np.asarray(given[0]).reshape(-1)[0] else "else_branch"))


def _loop(call: Call, given: Sequence[Value], inside: Inside) -> list[Value]:
    body = _flow(call, "body")
    most = _LARGEST_LOOP if not given or given[0] is None else int(np.asarray(given[0]).reshape(-1)[0])
    on = np.asarray(True if len(given) < 2 or given[1] is None else bool(np.asarray(given[1]).reshape(-1)[0]))
    carried = list(given[2:])
    collected: list[list[Value]] = [[] for _ in range(len(body.outputs) - 1 - len(carried))]
    turn = 0
    while turn < most and bool(on):
        made = inside(body, np.asarray(turn, np.int64), on, *carried)
        on, carried = np.asarray(made[0]).reshape(()), made[1:1 + len(carried)]
        for kept, value in zip(collected, made[1 + len(carried):], strict=True):
            kept.append(value)
        turn += 1
    scanned = body.outputs[1 + len(carried):]
    return [*carried, *(_stacked(kept, body.types.get(name)) for name, kept in zip(scanned, collected, strict=True))]


def _stacked(kept: Sequence[Value], type_: TensorType | None, axis: int = 0) -> np.ndarray:
    if kept:
        return np.stack(kept, axis)
    if type_ is None:
        return np.zeros((0,), np.float32)
    return np.zeros((0, *(d if isinstance(d, int) else 0 for d in type_.shape)), type_.dtype.numpy)


def _listed(call: Call, name: str, count: int) -> tuple[int, ...]:
    value = call.node.attrs.get(name)
    return tuple(int(v) for v in value) if isinstance(value, (tuple, list)) else (0,) * count


def _scan(call: Call, given: Sequence[Value], inside: Inside) -> list[Value]:
    body, count = _flow(call, "body"), call.node.attrs.get("num_scan_inputs")
    scans = int(count) if isinstance(count, int) else 0
    if call.opset < 9:
        return _scan_of_batches(call, given, inside, scans)
    states = list(given[:len(given) - scans])
    return _scanned(call, body, states, given[len(given) - scans:], inside,
                    _listed(call, "scan_input_axes", scans), _listed(call, "scan_input_directions", scans))


def _scanned(call: Call, body: Flow, states: list[Value], scanned: Sequence[np.ndarray], inside: Inside,
             axes: Sequence[int], directions: Sequence[int]) -> list[Value]:
    moved = [np.moveaxis(x, a, 0)[::-1 if d else 1] for x, a, d in zip(scanned, axes, directions, strict=True)]
    outputs = body.outputs[len(states):]
    into = _listed(call, "scan_output_axes", len(outputs))
    backwards = _listed(call, "scan_output_directions", len(outputs))
    collected: list[list[Value]] = [[] for _ in outputs]
    for turn in range(len(moved[0])):
        made = inside(body, *states, *(np.ascontiguousarray(m[turn]).reshape(m.shape[1:]) for m in moved))
        states = made[:len(states)]
        for kept, value in zip(collected, made[len(states):], strict=True):
            kept.append(value)
    return [*states, *(_stacked(kept[::-1] if back else kept, body.types.get(name), axis)
                       for name, kept, axis, back in zip(outputs, collected, into, backwards, strict=True))]


def _scan_of_batches(call: Call, given: Sequence[Value], inside: Inside, scans: int) -> list[Value]:
    """Scan at opset 8: every operand has a batch in front, and each item its own length."""
    body, lengths, operands = _flow(call, "body"), given[0], list(given[1:])
    states, scanned = operands[:len(operands) - scans], operands[len(operands) - scans:]
    directions = _listed(call, "directions", scans)
    items: list[list[Value]] = []
    for item in range(len(scanned[0])):
        length = scanned[0].shape[1] if lengths is None else int(lengths[item])
        items.append(_scanned(call, body, [s[item] for s in states], [s[item][:length] for s in scanned], inside,
                              (0,) * scans, directions))
    made: list[Value] = []
    for k, rows in enumerate(zip(*items, strict=True)):
        longest = max(len(r) for r in rows) if k >= len(states) else 0
        made.append(np.stack([r if k < len(states) or len(r) == longest else
                              np.concatenate([r, np.zeros((longest - len(r), *r.shape[1:]), r.dtype)]) for r in rows]))
    return made


def _sequence_map(call: Call, given: Sequence[Value], inside: Inside) -> list[Value]:
    body = _flow(call, "body")
    rows = [inside(body, *(v[k] if isinstance(v, list) else v for v in given)) for k in range(len(given[0]))]
    return [list(column) for column in zip(*rows, strict=True)] if rows else [[] for _ in body.outputs]


_CONTROL: Mapping[str, Callable[[Call, Sequence[Value], Inside], list[Value]]] = {
    "If": _if, "Loop": _loop, "Scan": _scan, "SequenceMap": _sequence_map}


# --- calls on the reference -----------------------------------------------------------------------------------------

def evaluator(call: Call, there: Sequence[bool]) -> Any:
    """onnx.reference for the node of a call; `there` says which inputs are given. Raises UnsupportedError."""
    try:
        return ReferenceEvaluator(_alone(call, there))
    # its constructor runs the op's own code on what the file says, and lets through whatever that raises
    except (NotImplementedError, onnx.defs.SchemaError, TypeError, RuntimeError, ValueError, LookupError,
            AttributeError) as error:
        raise UnsupportedError(f"onnx.reference has no {call.op}", where=call.node.where,
                               why=tuple(str(error).splitlines()[:1])) from None


def _alone(call: Call, there: Sequence[bool]) -> onnx.ModelProto:
    """A model of one node."""
    node = call.node
    proto = onnx.NodeProto(op_type=node.op, domain=call.domain, attribute=attribute_protos(node.attrs),
                           input=[f"i{k}" if t else "" for k, t in enumerate(there)],
                           output=[f"o{k}" if o else "" for k, o in enumerate(node.outputs)])
    inputs = [helper.make_empty_tensor_value_info(f"i{k}") for k, t in enumerate(there) if t]
    outputs = [helper.make_empty_tensor_value_info(f"o{k}") for k, o in enumerate(node.outputs) if o]
    imports = [helper.make_opsetid(call.domain, call.opset)]
    if call.domain:
        imports.append(helper.make_opsetid("", onnx.defs.onnx_opset_version()))
    return helper.make_model(helper.make_graph([proto], "call", inputs, outputs), opset_imports=imports)


def reference_call(call: Call, given: Sequence[Value]) -> list[Value]:
    """What onnx.reference makes of a call's operands (None: absent, or an empty optional)."""
    if not call.domain and (own := SELECTIONS.get(call.node.op)) is not None:
        return own(given, call.node.attrs)
    if call.late:
        return late_on_reference(*specialised(call, [None if v is None else np.asarray(v) for v in given]))
    return with_evaluator(evaluator(call, [bool(n) for n in call.node.inputs]), call, given)


def with_evaluator(found: Any, call: Call, given: Sequence[Value]) -> list[Value]:
    """As `reference_call`, with an evaluator that was made before. Raises ModelError where it does not fit."""
    feeds = {f"i{k}": v for k, (name, v) in enumerate(zip(call.node.inputs, given, strict=True)) if name}
    try:
        with np.errstate(all="ignore"):
            made = iter(found.run(None, feeds))
    except (ValueError, TypeError, IndexError, KeyError, AttributeError, RuntimeError) as error:
        raise ModelError(f"{call.op} cannot take these operands", where=call.node.where,
                         why=(f"{type(error).__name__}: {error}",), mend="check the model and its inputs") from None
    return [_plain(next(made)) if o else None for o in call.node.outputs]


def _plain(value: Value) -> Value:
    if value is None or isinstance(value, np.ndarray):
        return value
    if isinstance(value, (list, tuple)):
        return [_plain(v) for v in value]
    return np.asarray(value)


def late_on_reference(node: Node, arrays: Sequence[np.ndarray | None]) -> list[Value]:
    """What the reference makes of a late call that was made a plain node. Raises ModelError where it does not fit."""
    return list(told(node.op, node.where, arrays, lambda: evaluate(node, arrays, {})))


def specialised(call: Call, given: Sequence[np.ndarray | None]) -> tuple[Node, list[np.ndarray | None]]:
    """A late call as a node of a graph: shape-like operands have become attributes; and the operands that are left."""
    if call.node.op == "CastLike" and given[1] is not None:
        to = MappingProxyType({**call.node.attrs, "to": dtype_from_numpy(given[1].dtype).name})
        return replace(call.node, op="Cast", inputs=call.node.inputs[:1], attrs=to), [given[0]]
    promoted, attrs = OPS[call.node.op].promoted, dict(call.node.attrs)
    names, arrays = [], []
    for k, (name, array) in enumerate(zip(call.node.inputs, given, strict=True)):
        if k not in promoted:
            names.append(name)
            arrays.append(array)
        elif array is not None and not (call.node.op == "Resize" and array.size == 0):
            attrs[promoted[k]] = tuple(array.reshape(-1).tolist())
    while names and not names[-1]:
        names.pop()
        arrays.pop()
    return replace(call.node, inputs=tuple(names), attrs=MappingProxyType(attrs)), arrays


# --- the whole flow on the reference --------------------------------------------------------------------------------

def begun(flow: Flow, feeds: Mapping[str, Value]) -> Scope:
    """A scope that holds a flow's inputs, and the sizes they fix. Raises InputError."""
    scope = Scope()
    for name in flow.inputs:
        if name not in feeds:
            raise InputError(f"input '{name}' is missing", mend=f"give {name}")
        scope.values[name] = feeds[name]
    typed = {v: t for v in flow.inputs if (t := flow.types.get(v)) is not None}
    scope.sizes.update(bindings_from(Graph(tuple(typed), (), (), {}, typed, flow.symbols), feeds))
    return scope


def reference_part(part: Part, arrays: Sequence[np.ndarray], sizes: Sizes) -> list[np.ndarray]:
    """A part on the reference."""
    made = run_graph(part.graph, dict(zip(part.reads, arrays, strict=True)), sizes)
    return [made[v] for v in part.writes]


def reference_flow(flow: Flow, feeds: Mapping[str, Value]) -> dict[str, Value]:
    """The outputs by name, of a flow that runs on the reference alone."""
    made = run_flow(flow, begun(flow, feeds), reference_part, reference_call)
    return dict(zip(flow.outputs, made, strict=True))


def meaning(graph: Graph, feeds: Mapping[str, Value]) -> dict[str, Value]:
    """The outputs of a graph by name, on the reference; of a picture, those of its flow."""
    if isinstance(graph, Picture) and graph.flow is not None:
        return reference_flow(graph.flow, feeds)
    return run_graph(graph, feeds)


def symbolic_sizes(graph: Graph) -> tuple[Expr, ...]:
    """The sizes of a graph's values that are not known before it runs, each once."""
    return tuple(dict.fromkeys(d for t in graph.types.values() for d in t.shape if isinstance(d, Expr)))


def empty(part: Part, sizes: Sizes) -> bool:
    """Whether a value of a part has no elements at these sizes: kernels are made for sizes of at least 1."""
    return any(d.evaluate(sizes) <= 0 for d in symbolic_sizes(part.graph))


DATA_PREFIX = "data_"       # what the symbols of data-decided sizes are called

__all__ = ["CONTROL", "DATA_PREFIX", "Scope", "Sizes", "Value", "begun", "empty", "evaluator",
           "late_on_reference", "meaning",
           "reference_call", "reference_flow", "run_flow", "specialised", "symbolic_sizes",
           "with_evaluator"]
