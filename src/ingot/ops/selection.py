"""Ops whose results are as large as the data decides: what onnx.reference does box by box, in whole arrays.

SelectBoxes is NonMaxSuppression with room for as many boxes as there can be, and how many there are: it has a kernel,
and what reads its result waits for the number alone.
"""
from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

Value = Any
Attrs = Mapping[str, object]


def _number(given: Sequence[Value], position: int, default: float) -> float:
    if position >= len(given) or given[position] is None or not np.size(given[position]):
        return default
    return float(np.asarray(given[position]).reshape(-1)[0])


def non_max_suppression(given: Sequence[Value], attrs: Attrs) -> list[Value]:
    """i64[selected, 3] of (batch, class, box): the boxes by score, without those that a better one overlaps too far.

    Boxes f32[batch, boxes, 4], scores f32[batch, classes, boxes]. Equal scores go to the box that comes first.
    """
    boxes, scores = np.asarray(given[0]), np.asarray(given[1])
    most, overlap = int(_number(given, 2, 0)), np.float32(_number(given, 3, 0.0))
    least = _number(given, 4, -np.inf)
    chosen: list[tuple[int, int, int]] = []
    for batch in range(boxes.shape[0] if most > 0 else 0):
        corners = _corners(boxes[batch], bool(attrs.get("center_point_box")))
        for kind in range(scores.shape[1]):
            row = scores[batch, kind]
            able = np.flatnonzero(row > least) if least > -np.inf else np.arange(len(row))
            order = able[np.argsort(-row[able], kind="stable")]
            chosen += [(batch, kind, box) for box in _kept(corners, order, most, overlap)]
    return [np.asarray(chosen, np.int64).reshape(-1, 3)]


def _corners(boxes: np.ndarray, centred: bool) -> np.ndarray:
    """[boxes, 4] as (top, left, bottom, right), in the element type given."""
    a, b, c, d = boxes[:, 0], boxes[:, 1], boxes[:, 2], boxes[:, 3]
    if centred:         # x, y, width, height
        return np.stack([b - d / 2, a - c / 2, b + d / 2, a + c / 2], axis=1)
    return np.stack([np.minimum(a, c), np.minimum(b, d), np.maximum(a, c), np.maximum(b, d)], axis=1)


def _kept(corners: np.ndarray, order: np.ndarray, most: int, overlap: np.float32) -> list[int]:
    areas = (corners[:, 2] - corners[:, 0]) * (corners[:, 3] - corners[:, 1])
    kept: list[int] = []
    while len(order) and len(kept) < most:
        best, order = int(order[0]), order[1:]
        kept.append(best)
        low, high = np.maximum(corners[best, :2], corners[order, :2]), np.minimum(corners[best, 2:], corners[order, 2:])
        sides = high - low
        common = np.where((sides > 0).all(axis=1), sides[:, 0] * sides[:, 1], 0)
        union = areas[best] + areas[order] - common
        real = (common > 0) & (areas[best] > 0) & (areas[order] > 0) & (union > 0)
        share = np.divide(common, union, out=np.zeros_like(common), where=real)
        order = order[~(real & (share > overlap))]
    return kept


SELECTIONS: Mapping[str, Callable[[Sequence[Value], Attrs], list[Value]]] = {
    "NonMaxSuppression": non_max_suppression,
    "NonZero": lambda given, attrs: [np.asarray(np.nonzero(given[0]), np.int64).reshape(np.ndim(given[0]), -1)],
}
