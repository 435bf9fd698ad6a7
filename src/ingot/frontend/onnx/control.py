"""Control flow: the subgraphs of If, Loop, Scan and SequenceMap as flows of their own, which see the values around."""
from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from types import MappingProxyType
from typing import TYPE_CHECKING

import onnx

from ingot.errors import ModelError
from ingot.graph import BOOL, I64, Call, Dim, Flow, Node, TensorType
from ingot.ops.flow import DATA_PREFIX

if TYPE_CHECKING:
    from ingot.frontend.onnx.convert import Reader

Types = list[TensorType | None]
_ROUNDS = 4     # times a loop is read until the types it carries stay as they are


def inlined_branch(reader: Reader, condition: bool, outputs: Sequence[str], attrs: Mapping[str, object], where: str,
                   scope: Mapping[str, str]) -> None:
    """The branch that an If with a known condition takes, in its place."""
    graph = _graph(attrs, "then_branch" if condition else "else_branch", where)
    inner = _names(reader, graph, scope)
    reader.initializers(graph, inner)
    reader.nodes(graph.node, inner)
    for made, out in zip(graph.output, outputs, strict=True):
        result = inner.get(made.name, reader.name(made.name))
        if result in reader.broken:
            reader.broken.add(out)
        elif result in reader.build.types:
            reader.append(Node("Identity", (result,), (out,), {}, (where,)))
        else:
            reader.call(Call(Node("Identity", (result,), (out,), {}, (where,)), "", reader.opset, why="no tensor"))


def read_control(reader: Reader, node: Node, scope: Mapping[str, str]) -> None:
    """Enter a control-flow node as a call whose subgraphs are flows. Raises ModelError."""
    before = len(reader.problems)
    try:
        types, flows, why = _READ[node.op](reader, node, scope)
    except (ValueError, TypeError, IndexError, ArithmeticError) as error:       # axes and counts that fit nothing
        raise ModelError("its operands do not fit its subgraph", why=(str(error),), mend="export the model again"
                         ) from None
    if len(reader.problems) > before:
        reader.broken.update(filter(None, node.outputs))        # told where they are
        return
    reader.enter(Call(replace(node, attrs=MappingProxyType({**node.attrs, **flows})), "", reader.opset, why=why), types)


def _graph(attrs: Mapping[str, object], name: str, where: str) -> onnx.GraphProto:
    graph = attrs.get(name)
    if not isinstance(graph, onnx.GraphProto):
        raise ModelError(f"it has no {name}", where=where)
    return graph


def _names(reader: Reader, graph: onnx.GraphProto, scope: Mapping[str, str]) -> dict[str, str]:
    """The names of a subgraph's values, made unique."""
    inner = dict(scope)
    for value in (*(t.name for t in graph.initializer), *(t.values.name for t in graph.sparse_initializer),
                  *(v.name for v in graph.input), *(o for n in graph.node for o in n.output if o)):
        inner[value] = reader.fresh()
    return inner


def subflow(reader: Reader, graph: onnx.GraphProto, inputs: Sequence[TensorType | None],
            scope: Mapping[str, str]) -> tuple[Flow, Types]:
    """A subgraph as a flow, for inputs of these types; and the types of its outputs."""
    if len(inputs) != len(graph.input):
        raise ModelError(f"its subgraph takes {len(graph.input)} inputs, it is given {len(inputs)}")
    inner = _names(reader, graph, scope)
    names = [inner[v.name] for v in graph.input]
    for name, t in zip(names, inputs, strict=True):
        reader.made.add(name)
        if t is not None:
            reader.build.types[name] = t
    outside, reader.steps = reader.steps, []
    try:
        reader.initializers(graph, inner)
        reader.nodes(graph.node, inner)
        outputs = [inner.get(o.name, reader.name(o.name)) for o in graph.output]
        if lost := [o for o in outputs if o not in reader.made and o not in reader.broken]:
            raise ModelError(f"nothing makes the output '{lost[0]}' of its subgraph")
        for k, name in enumerate(outputs):      # the same value twice, or one from around: each output its own name
            if name in outputs[:k] or name in names or name not in {w for s in reader.steps for w in _writes(s)}:
                outputs[k] = _copied(reader, name)
        return reader.flow(names, outputs), [reader.build.types.get(o) for o in outputs]
    finally:
        reader.steps = outside


def _writes(step: Node | Call) -> tuple[str, ...]:
    return step.writes if isinstance(step, Call) else tuple(filter(None, step.outputs))


def _copied(reader: Reader, name: str) -> str:
    made = reader.fresh()
    if name in reader.broken:
        return name
    t = reader.build.types.get(name)
    call = Call(Node("Identity", (name,), (made,), {}, (name,)), "", max(reader.opset, 16), why="it passes a value on")
    reader.enter(call, [t])
    return made


def _merged(reader: Reader, a: TensorType | None, b: TensorType | None) -> TensorType | None:
    """The type of a value that is one or the other: sizes that differ are the data's."""
    if a is None or b is None or a.dtype != b.dtype or a.rank != b.rank:
        return None
    return TensorType(a.dtype, tuple(x if x == y else reader.fresh_size()
                                     for x, y in zip(a.shape, b.shape, strict=True)))


Found = tuple[Types, dict[str, Flow], str]


def _if(reader: Reader, node: Node, scope: Mapping[str, str]) -> Found:
    then, first = subflow(reader, _graph(node.attrs, "then_branch", node.where), [], scope)
    other, second = subflow(reader, _graph(node.attrs, "else_branch", node.where), [], scope)
    if not len(node.outputs) == len(first) == len(second):
        raise ModelError(f"it makes {len(node.outputs)} values, its branches {len(first)} and {len(second)}")
    types = [_merged(reader, a, b) for a, b in zip(first, second, strict=True)]
    return types, {"then_branch": then, "else_branch": other}, "its condition depends on the data"


def _settled(reader: Reader, graph: onnx.GraphProto, fixed: Sequence[TensorType | None], carried: Types,
             scanned: Sequence[TensorType | None], skip: int, scope: Mapping[str, str]) -> tuple[Flow, Types, Types]:
    """A body whose carried values have types that hold for every turn: (body, those types, all its outputs' types)."""
    for _ in range(_ROUNDS):
        before = len(reader.problems)
        flow, made = subflow(reader, graph, [*fixed, *carried, *scanned], scope)
        after = [_merged(reader, a, b) for a, b in zip(carried, made[skip:], strict=False)]
        if all(a is None or a == b for a, b in zip(carried, after, strict=True)):
            return flow, carried, made
        del reader.problems[before:]
        carried = after
    flow, made = subflow(reader, graph, [*fixed, *[None] * len(carried), *scanned], scope)
    return flow, [None] * len(carried), made


def _loop(reader: Reader, node: Node, scope: Mapping[str, str]) -> Found:
    graph = _graph(node.attrs, "body", node.where)
    carried = [reader.build.types.get(v) for v in node.inputs[2:]]
    body, carried, made = _settled(reader, graph, [TensorType(I64, ()), TensorType(BOOL, ())], carried, [], 1, scope)
    turns = reader.fresh_size()
    stacked = [None if t is None else TensorType(t.dtype, (turns, *t.shape)) for t in made[1 + len(carried):]]
    types = _sized(reader, [*carried, *stacked], node)
    return types, {"body": body}, "how often it runs depends on the data"


def _sized(reader: Reader, types: Types, node: Node) -> Types:
    """Types of results in terms that hold around the subgraph: sizes of the data get symbols of their own."""
    if not len(node.outputs) <= len(types):
        raise ModelError(f"it makes {len(node.outputs)} values, its subgraph gives {len(types)}")
    around = {s for v in node.inputs if (t := reader.build.types.get(v)) is not None for s in t.symbols}
    around |= {s for s in reader.build.symbols if not s.startswith(DATA_PREFIX)}
    fresh: dict[Dim, Dim] = {}

    def dim(d: Dim) -> Dim:
        if isinstance(d, int) or d.symbols <= around:
            return d
        return fresh.setdefault(d, reader.fresh_size())

    return [None if t is None else TensorType(t.dtype, tuple(map(dim, t.shape))) for t in types[:len(node.outputs)]]


def _numbers(node: Node, name: str, count: int) -> tuple[int, ...]:
    value = node.attrs.get(name)
    return tuple(int(v) for v in value) if isinstance(value, tuple) else (0,) * count


def _scan(reader: Reader, node: Node, scope: Mapping[str, str]) -> Found:
    graph, told = _graph(node.attrs, "body", node.where), node.attrs.get("num_scan_inputs")
    if not isinstance(told, int) or not 0 < told <= len(node.inputs):
        raise ModelError("it does not say how many of its inputs it scans")
    operands = [reader.build.types.get(v) for v in node.inputs]
    batched = reader.opset < 9
    front = 1 if batched else 0
    states, scans = operands[front:len(operands) - told], operands[len(operands) - told:]
    states = [None if t is None else TensorType(t.dtype, t.shape[front:]) for t in states]
    axes = (1,) * told if batched else _numbers(node, "scan_input_axes", told)
    items: Types = []
    length: Dim | None = None
    for t, axis in zip(scans, axes, strict=True):
        if t is None:
            items.append(None)
            continue
        at = axis % t.rank
        length = t.shape[at] if length is None else length
        items.append(TensorType(t.dtype, tuple(d for k, d in enumerate(t.shape) if k != at and (k or not batched))))
    body, states, made = _settled(reader, graph, [], states, items, 0, scope)
    if batched:
        return [None] * len(node.outputs), {"body": body}, "it runs its subgraph once for every step"
    outputs = made[len(states):]
    into = _numbers(node, "scan_output_axes", len(outputs))
    count = reader.fresh_size() if length is None else length
    stacked = [None if t is None else TensorType(t.dtype, _inserted(t.shape, axis % (t.rank + 1), count))
               for t, axis in zip(outputs, into, strict=True)]
    return _sized(reader, [*states, *stacked], node), {"body": body}, "it runs its subgraph once for every step"


def _inserted(shape: tuple[Dim, ...], axis: int, dim: Dim) -> tuple[Dim, ...]:
    return (*shape[:axis], dim, *shape[axis:])


def _sequence_map(reader: Reader, node: Node, scope: Mapping[str, str]) -> Found:
    graph = _graph(node.attrs, "body", node.where)
    # further operands may be tensors or sequences: only the former have types, and stay as they are
    inputs: Types = [None, *(reader.build.types.get(v) for v in node.inputs[1:])]
    body, _ = subflow(reader, graph, inputs, scope)
    return [None] * len(node.outputs), {"body": body}, "it runs its subgraph once for every element"


_READ = {"If": _if, "Loop": _loop, "Scan": _scan, "SequenceMap": _sequence_map}
