"""The meaning of every op, run: onnx.reference, one node or a whole graph at a time."""
from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np
import onnx
from onnx import helper
from onnx.reference import ReferenceEvaluator

from ingot.errors import InputError, ModelError, UnsupportedError
from ingot.graph import Expr, Graph, Node, dtype_from_numpy, type_of
from ingot.graph import evaluate as size_at
from ingot.ops import OPS, OPSET
from ingot.ops.empties import evaluate_empty
from ingot.ops.evaluation import OWN
from ingot.ops.fallback import attribute_protos
from ingot.ops.onnx_form import ENUM_OF, Promoted, onnx_attributes, onnx_inputs
from ingot.ops.shapes import dim_from

Bindings = Mapping[str, int]
Watch = Callable[[str, np.ndarray], np.ndarray | None]

_LIMIT = 4096                               # evaluators kept; a network has some hundreds of distinct nodes
_evaluators: dict[object, Any] = {}
_lock = threading.Lock()


def _frozen(value: object) -> object:
    if isinstance(value, np.ndarray):
        return value.dtype.str, value.shape, value.tobytes()
    if isinstance(value, (tuple, list)):
        return tuple(_frozen(v) for v in value)
    return type(value).__name__, value


def onnx_node(node: Node, inputs: Sequence[str], outputs: Sequence[str]) -> onnx.NodeProto:
    """The node as ONNX writes it, over the given value names."""
    return onnx.NodeProto(op_type=node.op, input=list(inputs), output=list(outputs),
                          attribute=attribute_protos(onnx_attributes(node)))


def _built(node: Node, arrays: Sequence[np.ndarray | None]) -> Any:
    """An evaluator of the node alone, its inputs named by position. Raises UnsupportedError."""
    key = (node.op, tuple((k, _frozen(v)) for k, v in sorted(onnx_attributes(node).items())),
           tuple(None if a is None else a.dtype.str for a in arrays), tuple(bool(o) for o in node.outputs))
    with _lock:
        found = _evaluators.get(key)
    if found is not None:
        return found
    inputs = ["" if a is None else f"i{k}" for k, a in enumerate(arrays)]
    outputs = [f"o{k}" if o else "" for k, o in enumerate(node.outputs)]
    infos = [helper.make_tensor_value_info(f"i{k}", ENUM_OF[dtype_from_numpy(a.dtype).name], [None] * a.ndim)
             for k, a in enumerate(arrays) if a is not None]
    graph = helper.make_graph([onnx_node(node, inputs, outputs)], "node", infos,
                              [helper.make_empty_tensor_value_info(o) for o in outputs if o])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", OPSET)])
    try:
        found = ReferenceEvaluator(model)
    except (NotImplementedError, onnx.defs.SchemaError) as error:
        raise UnsupportedError(f"onnx.reference has no {node.op}", where=node.where, why=(str(error),)) from None
    with _lock:
        if len(_evaluators) >= _LIMIT:
            _evaluators.clear()
        _evaluators[key] = found
    return found


def evaluate(node: Node, arrays: Sequence[np.ndarray | None], bindings: Bindings | None = None) -> list[np.ndarray]:
    """What the node makes of its inputs (None: absent), as plain arrays in the logical shape.

    `bindings` are the sizes of the symbols its attributes speak of. Raises KeyError when one is unbound, ModelError
    where operands without elements have no result.
    """
    sizes = bindings or {}
    if any(a is not None and a.size == 0 for a in arrays):
        return evaluate_empty(node, arrays, _bound(node, sizes), lambda: _evaluated(node, arrays, sizes))
    return _evaluated(node, arrays, sizes)


def _evaluated(node: Node, arrays: Sequence[np.ndarray | None], sizes: Bindings) -> list[np.ndarray]:
    op = OPS[node.op]
    if op.evaluate is not None:
        return op.evaluate(list(arrays), _bound(node, sizes))[:len(node.outputs)]
    if (own := OWN.get(node.op)) is not None:
        made = own(arrays, _bound(node, sizes))
        if made is not None:
            return made[:len(node.outputs)]
    first = arrays[0] if arrays else None
    if node.op in _STASHED and node.attrs.get("stash_type", 1) == 1 and first is not None and first.dtype.itemsize == 2:
        wide = evaluate(node, [a if a is None else a.astype(np.float32) for a in arrays], sizes)
        return [wide[0].astype(first.dtype), *wide[1:]]
    named = {name: array for name, array in zip(node.inputs, arrays, strict=True) if name}
    operands = [v.array(sizes) if isinstance(v, Promoted) else named.get(v) for v in onnx_inputs(node)]
    if node.op == "Attention" and node.attrs.get("is_causal"):
        operands = _with_whole_mask(operands)
    feeds = {f"i{k}": a for k, a in enumerate(operands) if a is not None}
    with np.errstate(all="ignore"):
        results = iter(_built(node, operands).run(None, feeds))
    found = [np.asarray(next(results)) if o else np.empty(0) for o in node.outputs]
    if node.op in _OF_ITS_INPUT and operands[0] is not None:        # numpy sums narrow integers in wide ones
        found = [m.astype(operands[0].dtype, copy=False) for m in found]
    return found


# Their statistics are computed in f32 (stash_type 1), which onnx.reference does in the type of the input.
_STASHED = frozenset({"LayerNormalization", "RMSNormalization", "GroupNormalization"})
_OF_ITS_INPUT = frozenset({"ReduceL1", "ReduceProd", "ReduceSum", "ReduceSumSquare", "CumSum"})


def _with_whole_mask(operands: list[np.ndarray | None]) -> list[np.ndarray | None]:
    """Attention's operands, a mask of one row repeated for every query: onnx.reference makes as many causal rows as
    the mask has, so all queries would see what the first one sees."""
    query, mask = operands[0], operands[3] if len(operands) > 3 else None
    if query is None or mask is None or mask.ndim == 0 or (mask.ndim > 1 and mask.shape[-2] != 1):
        return operands
    whole = np.broadcast_to(mask, (*mask.shape[:-2], query.shape[-2], mask.shape[-1])).copy()
    return [*operands[:3], whole, *operands[4:]]


def _bound(node: Node, sizes: Bindings) -> dict[str, object]:
    """The node's attributes with defaults, the symbolic ones evaluated."""
    op = OPS[node.op]
    attrs = {**op.attrs, **node.attrs}
    for name in op.promoted.values():
        value = attrs[name]
        if isinstance(value, (tuple, list)):
            attrs[name] = tuple(v if isinstance(v, float) else size_at(dim_from(v), sizes) for v in value)
    return attrs


def bindings_from(graph: Graph, feeds: Mapping[str, np.ndarray]) -> dict[str, int]:
    """The size of every symbol, read off the inputs' shapes. Raises InputError where they contradict."""
    sizes: dict[str, int] = {}
    source: dict[str, str] = {}
    later: list[tuple[str, int, Expr, int]] = []
    for name in graph.inputs:
        wanted = graph.types[name]
        if name not in feeds:
            raise InputError(f"input '{name}' is missing", mend=f"give {name}: {wanted}")
        shape = np.shape(feeds[name])
        if len(shape) != wanted.rank:
            raise InputError(f"input '{name}' has shape {list(shape)}", mend=f"give {name}: {wanted}")
        for axis, (dim, size) in enumerate(zip(wanted.shape, shape, strict=True)):
            if isinstance(dim, int):
                if dim != size:
                    raise InputError(f"axis {axis} of input '{name}' is {size}, not {dim}",
                                     mend=f"give {name}: {wanted}")
            elif (symbol := str(dim)) in graph.symbols or dim.symbols == {symbol}:
                if sizes.setdefault(symbol, size) != size:
                    raise InputError(f"{symbol} is {sizes[symbol]} in input '{source[symbol]}' and {size} in input "
                                     f"'{name}'", mend=f"give inputs that agree on {symbol}")
                source.setdefault(symbol, name)
            else:
                later.append((name, axis, dim, size))
    for name, axis, dim, size in later:
        if len(free := dim.symbols - sizes.keys()) == 1:
            symbol, = free
            sizes[symbol] = _solved(dim, symbol, size, sizes)
        if dim.symbols <= sizes.keys() and dim.evaluate(sizes) != size:
            raise InputError(f"axis {axis} of input '{name}' is {size}; {dim} is {dim.evaluate(sizes)}",
                             mend=f"give {name}: {graph.types[name]}")
    return sizes


def _solved(dim: Expr, symbol: str, size: int, sizes: Bindings) -> int:
    """The size of the symbol that makes an expression linear in it come nearest to `size`, at least 1."""
    at = [dim.evaluate({**sizes, symbol: n}) for n in (1, 2)]
    return max(1, 1 + (size - at[0]) // (at[1] - at[0])) if at[1] != at[0] else 1


def told(op: str, where: str, arrays: Sequence[np.ndarray | None], run: Callable[[], list[np.ndarray]]
         ) -> list[np.ndarray]:
    """What `run` makes of the operands. Raises ModelError where the reference cannot take what the data has become."""
    try:
        return run()
    # sizes that data decides may fit no op: whatever the reference's own code raises then is the model's error
    except (ValueError, IndexError, TypeError, ArithmeticError, AssertionError) as error:
        given = ", ".join(str(type_of(a)) for a in arrays if a is not None)
        raise ModelError(f"{op} cannot take {given}", where=where, why=(str(error) or type(error).__name__,),
                         mend="check the model and its inputs") from None


def run_graph(graph: Graph, feeds: Mapping[str, np.ndarray], bindings: Bindings | None = None,
              watch: Watch | None = None) -> dict[str, np.ndarray]:
    """The graph's outputs by name. `watch` sees every value made, with its array; an array it returns takes the value's
    place. Raises InputError.

    A value is dropped as soon as its last reader has run, so memory stays near the largest live set.
    """
    sizes = dict(bindings_from(graph, feeds) if bindings is None else bindings)
    values: dict[str, np.ndarray] = {}
    left: Counter[str] = Counter(i for n in graph.nodes for i in set(n.inputs) if i)
    left.update(graph.outputs)
    for name in graph.inputs:
        values[name] = np.asarray(feeds[name])
    for node in graph.nodes:
        arrays = [None if not i else values[i] if i in values else graph.constants[i] for i in node.inputs]
        made = told(node.op, node.where, arrays, partial(evaluate, node, arrays, sizes))
        for name, array in zip(node.outputs, made, strict=True):
            if name:
                if watch is not None and (given := watch(name, array)) is not None:
                    array = given
                if left[name]:
                    values[name] = array
        for name in set(node.inputs):
            if name:
                left[name] -= 1
                if not left[name]:
                    values.pop(name, None)
    return {o: values[o] if o in values else graph.constants[o] for o in graph.outputs}


__all__ = ["bindings_from", "evaluate", "onnx_node", "run_graph", "told"]
