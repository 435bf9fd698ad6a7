"""Nodes whose operands have no elements, as where data selects nothing.

A result without elements is all said by its type. For the rest (a product over an empty axis is zeros, the greatest
of nothing is the least there is) onnx.reference is asked; what it cannot take is told as an error that names the node.
"""
from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from types import MappingProxyType

import numpy as np

from ingot.errors import ModelError, UnsupportedError
from ingot.graph import Node, type_of
from ingot.ops.op import OPS, infer

_MEND = "guard that part of the model with an If on the size, or give inputs that select something"


def evaluate_empty(node: Node, arrays: Sequence[np.ndarray | None], attrs: Mapping[str, object],
                   run: Callable[[], Sequence[np.ndarray]]) -> list[np.ndarray]:
    """What a node makes of operands some of which have no elements; `attrs` are its own with every size a number.

    `run` asks the reference. Raises ModelError where neither the type nor the reference says what the result is.
    """
    kept = MappingProxyType({k: v for k, v in attrs.items() if k in node.attrs or k in OPS[node.op].promoted.values()})
    types = tuple(None if a is None else type_of(a) for a in arrays)
    given = ", ".join(str(t) for t in types if t is not None)
    try:
        wanted = infer(replace(node, attrs=kept), types)
    except (ModelError, UnsupportedError) as error:
        raise ModelError(f"{node.op} cannot take {given}", where=node.where, why=(error.what,), mend=_MEND) from None
    shapes = [tuple(int(str(d)) for d in t.shape) for t in wanted]
    if all(0 in s for s in shapes):
        return [np.empty(s, t.dtype.numpy) for s, t in zip(shapes, wanted, strict=True)]
    if node.op in _RECURRENT and shapes[0][:1] == (0,):
        return _unmoved(arrays, [np.zeros(s, t.dtype.numpy) for s, t in zip(shapes, wanted, strict=True)])
    if node.op in _MEANS and wanted[0].dtype.kind == "float":        # of nothing: not a number, and numpy would warn
        return [np.full(shapes[0], np.nan, wanted[0].dtype.numpy)]
    try:
        with np.errstate(all="ignore"):
            made = list(run())
    # the code of onnx.reference meets sizes here that it was not written for, and lets through whatever that raises
    except (ValueError, LookupError, TypeError, ArithmeticError, RuntimeError, AssertionError) as error:
        raise ModelError(f"{node.op} has no result for {given}", where=node.where,
                         why=(f"onnx.reference: {type(error).__name__}: {error}".rstrip(": "),), mend=_MEND) from None
    for array, shape, name in zip(made, shapes, node.outputs, strict=True):
        if name and array.shape != shape:
            raise ModelError(f"{node.op} has no result for {given}", where=node.where,
                             why=(f"onnx.reference makes {list(array.shape)}, its type says {list(shape)}",),
                             mend=_MEND)
    return made


_MEANS = frozenset({"ReduceMean", "GlobalAveragePool"})
_RECURRENT = frozenset({"LSTM", "GRU", "RNN"})


def _unmoved(arrays: Sequence[np.ndarray | None], made: list[np.ndarray]) -> list[np.ndarray]:
    """A recurrent net that takes no step ends in the states that it began in."""
    for state, begun in zip(made[1:], (*arrays, *[None] * 7)[5:7], strict=False):
        if begun is not None:
            state[...] = begun
    return made
