"""Symbolic shape arithmetic: the contents of small tensors that are computed from shapes, as dimensions.

Contents are numpy arrays of dtype object whose elements are ints, floats, truth values or symbolic dimensions.
A tensor has contents when every element is known exactly for every size its symbols can take (they are at least 1).
"""
from __future__ import annotations

import math
import operator
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from ingot.graph import Expr, Graph, Node, TensorType
from ingot.graph.dim import Floor
from ingot.ops.op import OPS, Types
from ingot.ops.reduction import reduced_axes
from ingot.ops.shape import shape_span
from ingot.ops.shapes import dims, ints

Contents = np.ndarray
LIMIT = 1024            # elements a tensor may have to be followed
_Element = Any          # int, float, bool or Expr


class _UnknownError(Exception):
    """An element is not known exactly."""


def known(array: np.ndarray) -> Contents | None:
    """The contents of a constant, where it is small and plain."""
    if array.size > LIMIT or array.dtype.kind not in "iufb":
        return None
    return _array(array.reshape(-1).tolist(), array.shape)


def array_of(contents: Contents, t: TensorType) -> np.ndarray | None:
    """The constant a tensor is, or None where an element is symbolic."""
    if any(isinstance(v, Expr) for v in contents.flat):
        return None
    return np.array(list(contents.flat)).astype(t.dtype.numpy).reshape(contents.shape)


def least(value: int | Expr) -> int | None:
    """A lower bound over all symbols being at least 1, or None. Exact for what grows with every symbol."""
    if isinstance(value, int):
        return value
    total = 0
    for monomial, factor in value.terms:
        part = factor
        for atom in monomial:
            low: int | None = 1
            if isinstance(atom, Floor):
                below = least(atom.numerator)
                low = (below // atom.denominator if below is not None and isinstance(atom.denominator, int)
                       and atom.denominator > 0 else None)
            if low is None or low < 0:
                return None
            part *= low
        if monomial and factor < 0:
            return None
        total += part
    return total


def _divided(a: _Element, b: _Element) -> _Element:
    """ONNX's integer division truncates; it is a floor where neither side is negative."""
    if isinstance(a, float) or isinstance(b, float):
        if isinstance(a, Expr) or isinstance(b, Expr) or b == 0:
            if isinstance(a, Expr) and b == 1:
                return a
            raise _UnknownError
        return a / b
    if b == 0:
        raise _UnknownError
    if isinstance(a, int) and isinstance(b, int):
        quotient = abs(a) // abs(b)
        return quotient if (a < 0) == (b < 0) else -quotient
    low, step = least(a), least(b)
    if low is None or step is None or low < 0 or step < 1:
        whole = a // b
        if whole * b == a:
            return whole        # it divides out: rounding does not matter
        raise _UnknownError
    return a // b


def _times(a: _Element, b: _Element) -> _Element:
    for x, y in ((a, b), (b, a)):
        if isinstance(x, float) and isinstance(y, Expr):
            if not x.is_integer():
                raise _UnknownError
            return y * int(x)
    return a * b


def _plus(a: _Element, b: _Element) -> _Element:
    for x, y in ((a, b), (b, a)):
        if isinstance(x, float) and isinstance(y, Expr):
            if not x.is_integer():
                raise _UnknownError
            return y + int(x)
    return a + b


def _modulo(a: _Element, b: _Element) -> _Element:
    if b == 0 or isinstance(a, float) or isinstance(b, float):
        raise _UnknownError
    return a % b if isinstance(a, int) and isinstance(b, int) else a - (a // b) * b


def _order(a: _Element, b: _Element) -> int:
    """-1, 0 or 1 as a is below, equal to or above b for every size. Raises _UnknownError."""
    if not isinstance(a, Expr) and not isinstance(b, Expr):
        return int(a > b) - int(a < b)
    if isinstance(a, float) or isinstance(b, float):
        raise _UnknownError
    gap = a - b
    if gap == 0:
        return 0
    if (low := least(gap)) is not None and low > 0:
        return 1
    if (low := least(gap * -1)) is not None and low > 0:
        return -1
    raise _UnknownError


def _equal(a: _Element, b: _Element) -> bool:
    return _order(a, b) == 0


def _extreme(sign: int) -> Callable[[_Element, _Element], _Element]:
    def pick(a: _Element, b: _Element) -> _Element:
        if isinstance(a, Expr) or isinstance(b, Expr):
            for x, y in ((a, b), (b, a)):
                low = least((x - y) * sign) if not isinstance(x, float) and not isinstance(y, float) else None
                if low is not None and low >= 0:
                    return x
            raise _UnknownError
        return (a if a >= b else b) if sign > 0 else (a if a <= b else b)
    return pick


def _whole(rounding: Callable[[float], int]) -> Callable[[_Element], _Element]:
    return lambda x: float(rounding(x)) if isinstance(x, float) else x


def _magnitude(x: _Element) -> _Element:
    if isinstance(x, Expr):
        low = least(x)
        if low is None or low < 0:
            raise _UnknownError
        return x
    return abs(x)


_BINARY: Mapping[str, Callable[[_Element, _Element], _Element]] = {
    "Add": _plus, "Sub": lambda a, b: _plus(a, _times(b, -1)), "Mul": _times, "Div": _divided, "Mod": _modulo,
    "Min": _extreme(-1), "Max": _extreme(1), "Equal": _equal, "Greater": lambda a, b: _order(a, b) > 0,
    "GreaterOrEqual": lambda a, b: _order(a, b) >= 0, "Less": lambda a, b: _order(a, b) < 0,
    "LessOrEqual": lambda a, b: _order(a, b) <= 0, "And": operator.and_, "Or": operator.or_, "Xor": operator.xor,
}
_UNARY: Mapping[str, Callable[[_Element], _Element]] = {
    "Neg": lambda x: x * -1, "Not": operator.not_, "Abs": _magnitude, "Ceil": _whole(math.ceil),
    "Floor": _whole(math.floor), "Identity": lambda x: x}
_REDUCE: Mapping[str, Callable[[_Element, _Element], _Element]] = {
    "ReduceProd": _times, "ReduceSum": _plus, "ReduceMax": _extreme(1), "ReduceMin": _extreme(-1)}


def _cast(x: _Element, kind: str) -> _Element:
    if isinstance(x, Expr):
        if kind == "bool" and ((low := least(x)) is None or low < 1):
            raise _UnknownError
        return True if kind == "bool" else x
    if isinstance(x, float) and not math.isfinite(x) and kind != "float":
        raise _UnknownError
    return {"bool": bool, "float": float}.get(kind, int)(x)


def _each(function: Callable[..., _Element], *operands: Contents) -> Contents:
    arrays = np.broadcast_arrays(*operands)
    flat = [function(*values) for values in zip(*(a.flat for a in arrays), strict=True)]
    return _array(flat, arrays[0].shape)


def _array(flat: Sequence[_Element], shape: tuple[int, ...]) -> Contents:
    out = np.empty(len(flat), dtype=object)
    for i, value in enumerate(flat):
        out[i] = value
    return out.reshape(shape)


def _static(t: TensorType) -> tuple[int, ...]:
    shape = tuple(d for d in t.shape if isinstance(d, int))
    if len(shape) != t.rank or math.prod(shape) > LIMIT:
        raise _UnknownError
    return shape


def _made(node: Node, types: Types, outputs: tuple[TensorType, ...],
          given: Sequence[Contents | None]) -> list[Contents]:
    op, attrs = node.op, {**OPS[node.op].attrs, **node.attrs}
    shapes = [_static(t) for t in outputs]
    first = types[0] if types else None
    if op == "Shape" and first is not None:
        start, end = shape_span(attrs, first.rank)
        return [_array(first.shape[start:end], shapes[0])]
    if op == "Size" and first is not None:
        return [_array([first.size], ())]
    if op == "ConstantOfShape":
        return [_array([attrs["value"]] * math.prod(shapes[0]), shapes[0])]
    if op == "Range":
        if str(attrs["dtype"]) not in ("i64", "i32"):
            raise _UnknownError
        (begin,), (step,) = dims(attrs, "start") or (0,), dims(attrs, "delta") or (1,)
        return [_array([begin + step * i for i in range(shapes[0][0])], shapes[0])]
    operands = [g for g in given if g is not None]
    if len(operands) != sum(t is not None for t in types) or not operands:
        raise _UnknownError
    x = operands[0]
    if op == "Mod" and attrs["fmod"]:
        raise _UnknownError
    if op in _BINARY:
        result = x
        for other in operands[1:]:
            result = _each(_BINARY[op], result, other)
        return [result]
    if op in _UNARY:
        return [_each(_UNARY[op], x)]
    if op in _REDUCE:
        if 0 in x.shape:
            raise _UnknownError
        axes = reduced_axes(attrs, x.ndim)
        for axis in reversed(axes):
            parts = np.split(x, x.shape[axis], axis)
            x = parts[0]
            for part in parts[1:]:
                x = _each(_REDUCE[op], x, part)
        return [x.reshape(shapes[0])]
    if op == "Cast":
        return [_each(lambda v: _cast(v, outputs[0].dtype.kind), x)]
    if op == "Where":
        return [_each(lambda c, a, b: a if c else b, *operands)]
    return _moved(node, attrs, x, operands, shapes)


def _moved(node: Node, attrs: Mapping[str, object], x: Contents, operands: list[Contents],
           shapes: list[tuple[int, ...]]) -> list[Contents]:
    op, axis = node.op, attrs.get("axis", 0)
    place = axis if isinstance(axis, int) else 0
    if op in ("Reshape", "Squeeze", "Unsqueeze", "Flatten"):
        return [x.reshape(shapes[0])]
    if op == "Expand":
        return [np.broadcast_to(x, shapes[0])]
    if op == "Concat":
        return [np.concatenate(operands, place)]
    if op == "Transpose":
        return [x.transpose(ints(attrs, "perm"))]
    if op == "Gather":
        return [np.take(x, operands[1].astype(np.int64).reshape(-1), place).reshape(shapes[0])]
    if op == "Tile":
        return [np.tile(x, ints(attrs, "repeats") or ())]
    if op == "Split":
        edges = np.cumsum([s[place] for s in shapes])[:-1]
        return list(np.split(x, edges, place))
    if op == "Slice":
        starts, ends = dims(attrs, "starts") or (), dims(attrs, "ends") or ()
        axes = ints(attrs, "axes") or tuple(range(len(starts)))
        cut = [slice(None)] * x.ndim
        for a, start, end, step in zip(axes, starts, ends, ints(attrs, "steps") or (1,) * len(starts), strict=True):
            if isinstance(start, Expr) or isinstance(end, Expr):
                raise _UnknownError
            cut[a % x.ndim] = slice(start, None if step < 0 and end < -x.shape[a] else end, step)
        return [x[tuple(cut)]]
    raise _UnknownError


_FOLLOWED = frozenset({"Shape", "Size", "ConstantOfShape", "Range", "Cast", "Where", "Reshape", "Squeeze", "Unsqueeze",
                       "Flatten", "Expand", "Concat", "Transpose", "Gather", "Tile", "Split", "Slice",
                       *_BINARY, *_UNARY, *_REDUCE})


def follow(node: Node, types: Types, outputs: tuple[TensorType, ...],
           given: Sequence[Contents | None]) -> list[Contents | None]:
    """What the node's outputs hold, given what its inputs hold; None per output where that is not known."""
    nothing: list[Contents | None] = [None] * len(outputs)
    if node.op not in _FOLLOWED:
        return nothing
    try:
        made = _made(node, types, outputs, given)
    except (_UnknownError, IndexError, OverflowError):
        return nothing
    return [c if c.shape == t.shape else None for c, t in zip(made, outputs, strict=True)]


def contents_of(graph: Graph) -> dict[str, Contents]:
    """Everything small in the graph whose contents follow from shapes and constants."""
    found = {k: c for k, a in graph.constants.items() if (c := known(a)) is not None}
    for node in graph.nodes:
        if node.op not in _FOLLOWED:
            continue
        types = tuple(graph.type(i) for i in node.inputs)
        outputs = tuple(graph.types[o] for o in node.outputs if o)
        made = follow(node, types, outputs, [found.get(i) for i in node.inputs])
        found.update({o: c for o, c in zip(filter(None, node.outputs), made, strict=True) if c is not None})
    return found
