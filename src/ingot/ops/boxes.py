"""SelectBoxes: NonMaxSuppression with room for the most boxes there can be, and the number there are.

    NonMaxSuppression(boxes, scores)  =  the first `count` rows of SelectBoxes(boxes, scores)

So it has a size that is known, and a kernel; what reads the boxes waits for a number, not for an op.
"""
from __future__ import annotations

import numpy as np

from ingot.graph import F32, I64, Dim, TensorType
from ingot.ops.op import REQUIRED, Attrs, Op, Types, declare
from ingot.ops.samples import values
from ingot.ops.selection import non_max_suppression
from ingot.ops.shapes import given, integer

Arrays = list[np.ndarray | None]


def room(boxes: TensorType, scores: TensorType, most: int) -> Dim:
    """The most boxes that are selected: `most` of each class, or all there are."""
    count = boxes.shape[1]
    each: Dim = min(most, count) if isinstance(count, int) else most
    return scores.shape[0] * scores.shape[1] * each


def _selected(types: Types, attrs: Attrs, outputs: int) -> tuple[TensorType, ...]:
    boxes, scores = given(types[0]), given(types[1])
    if boxes.rank != 3 or scores.rank != 3 or boxes.shape[2] != 4 or boxes.dtype != F32 or scores.dtype != F32:
        raise ValueError(f"boxes are f32[batch, n, 4] and scores f32[batch, classes, n], not {boxes} and {scores}")
    if boxes.shape[0] != scores.shape[0] or boxes.shape[1] != scores.shape[2]:
        raise ValueError(f"{boxes} and {scores} are not of the same boxes")
    return (TensorType(I64, (room(boxes, scores, integer(attrs, "most")), 3)), TensorType(I64, (1,)))[:outputs]


def _run(arrays: Arrays, attrs: Attrs) -> list[np.ndarray]:
    boxes, scores = (np.asarray(a) for a in arrays)
    most, least = integer(attrs, "most"), attrs["least"]
    operands = [boxes, scores, np.asarray(most), np.asarray(attrs["overlap"], np.float32)]
    if least is not None:
        operands.append(np.asarray(least, np.float32))
    (found,) = non_max_suppression(operands, {"center_point_box": attrs["centred"]})
    count = scores.shape[0] * scores.shape[1] * (min(most, boxes.shape[1]))
    whole = np.zeros((count, 3), np.int64)
    whole[:len(found)] = found
    return [whole, np.asarray([len(found)], np.int64)]


def _boxes(batch: int, count: int) -> np.ndarray:
    corner = values(batch, count, 2, low=0.0, high=4.0)
    return np.concatenate((corner, corner + values(batch, count, 2, low=0.2, high=2.0)), axis=2)


def _ties(batch: int, classes: int, count: int) -> np.ndarray:
    return np.round(values(batch, classes, count, low=0.0, high=1.0), 1)


declare(Op("SelectBoxes", "NonMaxSuppression's rows, zeros after them, and how many there are", ("boxes", "scores"),
           _selected, {"most": REQUIRED, "overlap": 0.0, "least": None, "centred": 0}, outputs=2, evaluate=_run,
           samples=(
    ((_boxes(1, 33), _ties(1, 2, 33)), {"most": 5, "overlap": 0.3, "least": 0.4}),
    ((_boxes(2, 40), _ties(2, 3, 40)), {"most": 100, "overlap": 0.5}),
    ((_boxes(1, 7), _ties(1, 1, 7)), {"most": 7, "overlap": 0.0, "least": 0.2, "centred": 1}),
    ((_boxes(1, 200), _ties(1, 4, 200)), {"most": 20, "overlap": 0.45, "least": 0.25}))))
