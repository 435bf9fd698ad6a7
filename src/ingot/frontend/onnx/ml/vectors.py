"""Support vector machines of ai.onnx.ml: products, exponentials and sums; pairs of classes are joined by one op.

Every score of a pair is a product of the kernel's values with one column, zero where a vector is of neither class.
"""
from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np

from ingot.frontend.onnx.contrib.maker import Maker
from ingot.frontend.onnx.ml.plain import classified, labels, numbers, rows_of, word

Found = tuple[str, ...] | None
_KERNELS = ("LINEAR", "POLY", "RBF", "SIGMOID")
_LEAST = 1e-7           # no pair's probability is nearer than this to 0 or 1


def _kernel(m: Maker, x: str, vectors: np.ndarray, kind: str) -> str:
    """[rows, vectors]: the kernel's values between the rows and the support vectors [vectors, features]."""
    gamma, coef, degree = (float(v) for v in (*numbers(m, "kernel_params"), 0.0, 0.0, 0.0)[:3])
    if kind == "RBF":       # |x - v|^2 = |x|^2 - 2xv + |v|^2, all seen from the middle, where little cancels
        middle = vectors.mean(axis=0, dtype=np.float64).astype(np.float32)
        x, vectors = m("Sub", x, m.constant(middle)), vectors - middle
        length = m("ReduceSumSquare", x, axes=(1,), keepdims=1)
        double = m("MatMul", x, m.constant(np.ascontiguousarray(2 * vectors.T)))
        apart = m("Add", m("Sub", length, double), m.constant((vectors.astype(np.float64) ** 2).sum(1).astype("f")))
        return m("Exp", m("Mul", m("Max", apart, m.scalar(0, apart)), m.scalar(-gamma, apart)))
    product = m("MatMul", x, m.constant(np.ascontiguousarray(vectors.T)))
    if kind == "LINEAR":
        return product
    moved = m("Add", m("Mul", product, m.scalar(gamma, product)), m.scalar(coef, product))
    return m("Tanh", moved) if kind == "SIGMOID" else m("Pow", moved, m.scalar(int(degree), moved))


def _regressor(m: Maker) -> Found:
    x, kind, supports = rows_of(m), word(m, "kernel_type", "LINEAR").upper(), m.integer("n_supports", 0)
    weights, rho = numbers(m, "coefficients"), numbers(m, "rho")
    if x is None or kind not in _KERNELS or word(m, "post_transform", "NONE") != "NONE" or rho.size != 1:
        return None
    if supports:
        x = _kernel(m, x, numbers(m, "support_vectors").reshape(supports, -1), kind)
    score = m("Add", m("MatMul", x, m.constant(weights.reshape(-1, 1))), m.constant(rho))
    if m.integer("one_class", 0):
        inside = m("Greater", score, m.scalar(0, score))
        return (m("Where", inside, m.scalar(1, score), m.scalar(-1, score)),)
    return (score,)


def _classifier(m: Maker) -> Found:
    x, kinds, kind = rows_of(m), labels(m, "classlabels_ints"), word(m, "kernel_type", "LINEAR").upper()
    held, weights, rho = m.attrs.get("vectors_per_class"), numbers(m, "coefficients"), numbers(m, "rho")
    if x is None or kinds is None or len(kinds) < 2 or kind not in _KERNELS or not weights.size:
        return None
    if word(m, "post_transform", "NONE") != "NONE" or (weights.min() >= 0 and len(kinds) == 2):
        return None             # of two classes without a negative weight, labels are the second whatever the score
    counts = tuple(int(v) for v in held) if isinstance(held, (tuple, list)) else ()
    if not sum(counts):
        if rho.size == 1 and len(kinds) > 2:
            return None
        product = m("MatMul", x, m.constant(np.ascontiguousarray(weights.reshape(len(kinds), -1).T)))
        return classified(m, m("Add", product, m.constant(rho[:1])), kinds, "NONE")
    if rho.size != len(kinds) * (len(kinds) - 1) // 2 or len(counts) != len(kinds):
        return None
    vectors = numbers(m, "support_vectors").reshape(sum(counts), -1)
    columns, votes, base = _pairs(weights.reshape(-1, sum(counts)), counts)
    scores = m("Add", m("MatMul", _kernel(m, x, vectors, kind), m.constant(columns)), m.constant(rho))
    won = m.cast(m("Greater", scores, m.scalar(0, scores)), "f32")
    found = m("Add", m("MatMul", won, m.constant(votes)), m.constant(base))
    slope, offset = numbers(m, "prob_a"), numbers(m, "prob_b")
    if slope.size:
        shown = _probabilities(m, scores, slope, offset, len(kinds))
    else:
        shown = m("Concat", m("Neg", scores), scores, axis=1) if rho.size == 1 else scores
    return classified(m, shown, kinds, "NONE", best=found)


def _pairs(weights: np.ndarray, counts: tuple[int, ...]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Each pair's column over all vectors [vectors, pairs], and the votes [pairs, classes] for a positive score, to be
    added to those for none."""
    starts = np.concatenate(([0], np.cumsum(counts)))
    pairs = [(i, j) for i in range(len(counts)) for j in range(i + 1, len(counts))]
    columns = np.zeros((int(starts[-1]), len(pairs)), np.float32)
    votes, base = np.zeros((len(pairs), len(counts)), np.float32), np.zeros(len(counts), np.float32)
    for k, (i, j) in enumerate(pairs):
        columns[starts[i]:starts[i + 1], k] = weights[j - 1, starts[i]:starts[i + 1]]
        columns[starts[j]:starts[j + 1], k] = weights[i, starts[j]:starts[j + 1]]
        votes[k, i], votes[k, j] = 1, -1
        base[j] += 1
    return columns, votes, base


def _probabilities(m: Maker, scores: str, slope: np.ndarray, offset: np.ndarray, classes: int) -> str:
    """Platt's sigmoid of every pair's score, then all pairs joined."""
    fitted = m("Add", m("Mul", scores, m.constant(slope)), m.constant(offset))
    share = m("Sigmoid", m("Neg", fitted))
    share = m("Clip", share, m.scalar(_LEAST, share), m.scalar(1 - _LEAST, share))
    both = m("Concat", share, m("Sub", m.scalar(1, share), share), axis=1)
    pairs, place = len(slope), np.zeros((classes, classes), np.int64)       # the diagonal is not looked at
    place[np.triu_indices(classes, 1)] = np.arange(pairs)
    place.T[np.triu_indices(classes, 1)] = pairs + np.arange(pairs)
    rows = m.shape(both)[0]
    square = m.reshape(m("Gather", both, m.constant(place.reshape(-1)), axis=1), rows, classes, classes)
    return m("PairwiseCoupling", square)


VECTORS: Mapping[str, Callable[[Maker], Found]] = {"SVMRegressor": _regressor, "SVMClassifier": _classifier}
