"""Sequences and optionals: a sequence is a list of arrays, an optional its value or None. Nothing here computes."""
from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from ingot.errors import ModelError

Value = Any
Attrs = Mapping[str, object]


def _place(values: Sequence[Value], position: Value, room: int) -> int:
    at = int(np.asarray(position).reshape(-1)[0])
    if not -room <= at < room:
        raise ModelError(f"position {at} lies outside a sequence of {len(values)}", mend="check the model's inputs")
    return at % room


def _at(given: Sequence[Value], attrs: Attrs) -> list[Value]:
    return [given[0][_place(given[0], given[1], len(given[0]))]]


def _inserted(given: Sequence[Value], attrs: Attrs) -> list[Value]:
    values = list(given[0])
    absent = len(given) < 3 or given[2] is None
    at = len(values) if absent else int(np.asarray(given[2]).reshape(-1)[0])
    if not -len(values) <= at <= len(values):
        raise ModelError(f"position {at} lies outside a sequence of {len(values)}", mend="check the model's inputs")
    values.insert(at, given[1])
    return [values]


def _erased(given: Sequence[Value], attrs: Attrs) -> list[Value]:
    values = list(given[0])
    absent = len(given) < 2 or given[1] is None
    del values[-1 if absent else _place(values, given[1], len(values))]
    return [values]


def _element(given: Sequence[Value], attrs: Attrs) -> list[Value]:
    if not given or given[0] is None:
        raise ModelError("the optional is empty", mend="check the model's inputs")
    return [given[0]]


def _split(given: Sequence[Value], attrs: Attrs) -> list[Value]:
    x, axis = given[0], int(attrs.get("axis") or 0)         # type: ignore[call-overload]
    size = x.shape[axis]
    if len(given) < 2 or given[1] is None:
        parts = np.split(x, size, axis) if size else []
        keep = attrs.get("keepdims")
        return [[p if keep is None or keep else p.squeeze(axis) for p in parts]]
    told = np.asarray(given[1])
    edges = np.cumsum(told)[:-1] if told.ndim else np.arange(int(told), size, int(told))
    return [[np.ascontiguousarray(p) for p in np.split(x, edges, axis)]]


def _joined(given: Sequence[Value], attrs: Attrs) -> list[Value]:
    axis = int(attrs.get("axis") or 0)                      # type: ignore[call-overload]
    try:
        return [np.stack(given[0], axis) if attrs.get("new_axis") else np.concatenate(given[0], axis)]
    except ValueError as error:
        raise ModelError("the sequence cannot be joined", why=(str(error),), mend="check the model's inputs") from None


LISTS: Mapping[str, Callable[[Sequence[Value], Attrs], list[Value]]] = {
    "ConcatFromSequence": _joined,
    "FirstRows": lambda given, attrs: [np.array(given[0][:int(given[1][0])])],      # of SelectBoxes
    "Identity": lambda given, attrs: list(given),
    "Optional": lambda given, attrs: [given[0] if given else None],
    "OptionalGetElement": _element,
    "OptionalHasElement": lambda given, attrs: [np.asarray(bool(given) and given[0] is not None)],
    "SequenceAt": _at,
    "SequenceConstruct": lambda given, attrs: [list(given)],
    "SequenceEmpty": lambda given, attrs: [[]],
    "SequenceErase": _erased,
    "SequenceInsert": _inserted,
    "SequenceLength": lambda given, attrs: [np.asarray(len(given[0]), np.int64)],
    "SplitToSequence": _split,
}
