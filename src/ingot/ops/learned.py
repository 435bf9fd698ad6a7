"""What is learnt by other means than gradients: decision trees, and the joining of pairwise probabilities.

ONNX has them in ai.onnx.ml with every number an attribute; here they are operands, so that they are stored as weights.
"""
from __future__ import annotations

from typing import Any

import numpy as np

from ingot.graph import F32, TensorType
from ingot.ops.op import Attrs, Op, Sample, Types, declare
from ingot.ops.samples import f32
from ingot.ops.shapes import given

Arrays = list[np.ndarray | None]

COUPLING_TURNS = 100        # the most turns of the coupling, as libsvm has it
COUPLING_ERROR = 0.005      # and the error it stops at, over the number of classes


def _trees(types: Types, attrs: Attrs, outputs: int) -> tuple[TensorType, ...]:
    x, feature, value, following, leaf, roots, depths = map(given, types[:7])
    if x.rank != 2 or x.dtype != F32 or leaf.rank != 2:
        raise ValueError(f"trees take rows and leaves of f32, not {x} and {leaf}")
    nodes = feature.shape[0]
    if value.shape != (nodes,) or following.shape != (nodes, 2) or roots.shape != depths.shape:
        raise ValueError(f"{nodes} nodes have {value} thresholds and {following} children")
    return (TensorType(F32, (x.shape[0], leaf.shape[1])),)


def _walked(arrays: Arrays, attrs: Attrs) -> list[np.ndarray]:
    """Node n sends a row to next[n][1] where x[feature[n]] <= value[n] (or it is NaN and missing[n]), else to
    next[n][0]. A leaf leads to itself in both, and its value is its row in `leaf`. `depths` are the trees' levels."""
    held: list[Any] = [np.empty(0) if a is None else a for a in (*arrays, None)[:8]]
    x, feature, value, following, leaf, roots, depths, missing = held
    at = np.repeat(roots[None].astype(np.int64), len(x), axis=0)
    with np.errstate(invalid="ignore"):
        for _ in range(int(depths.max(initial=0))):
            seen = np.take_along_axis(x, feature[at], axis=1)
            goes = seen <= value[at]
            if missing.size:
                goes |= np.isnan(seen) & missing[at]
            at = following[at, goes.astype(np.int64)].astype(np.int64)
    return [leaf[value[at].astype(np.int64)].sum(axis=1, dtype=np.float32)]


def _forest(trees: int, depth: int, features: int, outputs: int, missing: bool = False, seed: int = 0) -> Sample:
    """A sample: random trees, some of whose branches end early."""
    rng = np.random.default_rng(seed)
    feature: list[int] = []
    value: list[float] = []
    children: list[list[int]] = []
    roots, depths, leaves = [], [], 0
    for tree in range(trees):
        roots.append(len(feature))
        depths.append(depth if tree else depth // 2)
        front = [0]                     # levels of the nodes that are still to be made, in their order
        while front:
            level, here = front.pop(0), len(feature)
            if level == depths[-1] or (level and rng.random() < 0.2):
                feature.append(0)
                value.append(leaves)
                children.append([here, here])
                leaves += 1
            else:
                first = here + len(front) + 1
                feature.append(int(rng.integers(features)))
                value.append(float(rng.normal()))
                children.append([first, first + 1])
                front += [level + 1, level + 1]
    tables = (np.array(feature, np.int32), np.array(value, np.float32), np.array(children, np.int32),
              rng.standard_normal((leaves, outputs)).astype(np.float32), np.array(roots, np.int32),
              np.array(depths, np.int32))
    tracked = (rng.random(len(feature)) < 0.5,) if missing else ()
    return (f32(13, features), *tables, *tracked), {}


declare(Op("Trees", "the sum of what the leaves hold that each row reaches, over all trees",
           ("x", "feature", "value", "next", "leaf", "roots", "depths", "missing?"), _trees, evaluate=_walked, samples=(
               _forest(1, 2, 3, 1), _forest(20, 3, 6, 1), _forest(9, 5, 6, 3), _forest(11, 4, 5, 1, True),
               _forest(8, 6, 4, 17), _forest(3, 0, 2, 2))))


# --- coupling ---------------------------------------------------------------------------------------------------------

def _coupled(types: Types, attrs: Attrs, outputs: int) -> tuple[TensorType, ...]:
    r = given(types[0])
    if r.rank != 3 or r.shape[1] != r.shape[2] or not isinstance(r.shape[1], int):
        raise ValueError(f"pairwise probabilities are [rows, classes, classes], not {r}")
    return (TensorType(r.dtype, r.shape[:2]),)


def _coupling(arrays: Arrays, attrs: Attrs) -> list[np.ndarray]:
    """The second method of Wu, Lin and Weng, "Probability Estimates for Multi-class Classification by Pairwise
    Coupling" (2004), as libsvm, onnx.reference and ONNX Runtime have it, all rows at once."""
    (r,) = (np.asarray(a) for a in arrays)
    rows, k = r.shape[:2]
    q = -np.swapaxes(r, 1, 2) * r
    for t in range(k):
        q[:, t, t] = (np.delete(r[:, :, t], t, axis=1) ** 2).sum(axis=1)
    p = np.full((rows, k), 1 / k, r.dtype)
    going = np.arange(rows)
    for _ in range(max(COUPLING_TURNS, k)):
        qp = (q[going] * p[going][:, None]).sum(axis=2)
        pqp = (p[going] * qp).sum(axis=1)
        off = np.abs(qp - pqp[:, None]).max(axis=1, initial=0) >= COUPLING_ERROR / k
        going, qp, pqp = going[off], qp[off], pqp[off]
        if not len(going):
            break
        for t in range(k):
            own = q[going, t, t]
            step = (pqp - qp[:, t]) / own
            p[going, t] += step
            pqp = (pqp + step * (step * own + 2 * qp[:, t])) / (1 + step) ** 2
            p[going] /= (1 + step)[:, None]
            qp = (qp + step[:, None] * q[going, t]) / (1 + step)[:, None]
    return [p]


def _pairs(rows: int, k: int) -> Sample:
    share = np.clip(np.random.default_rng(k).random((rows, k, k)), 0.05, 0.95).astype(np.float32)
    upper = np.triu(share, 1)
    return ((upper + np.swapaxes(np.triu(1 - share, 1), 1, 2),), {})


declare(Op("PairwiseCoupling", "each row's probabilities of the classes from those of every pair of them", ("r",),
           _coupled, evaluate=_coupling, samples=(_pairs(5, 2), _pairs(7, 3), _pairs(3, 10))))
