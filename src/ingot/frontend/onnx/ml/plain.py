"""Scalers, features and linear models of ai.onnx.ml in standard ops."""
from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np

from ingot.frontend.onnx.contrib.maker import Maker

Found = tuple[str, ...] | None
_COMPUTED = frozenset({"f32", "i64", "i32", "i16", "i8", "u8", "bool"})     # what is computed in f32
POST: Mapping[str, str] = {"NONE": "", "LOGISTIC": "Sigmoid", "SOFTMAX": "Softmax"}


def numbers(m: Maker, name: str) -> np.ndarray:
    """A list attribute as f32; empty where it is absent."""
    held = m.attrs.get(name)
    return np.asarray(held if isinstance(held, (tuple, list)) else (), np.float32)


def words(m: Maker, name: str) -> tuple[str, ...]:
    """A list attribute of texts."""
    held = m.attrs.get(name)
    return tuple(w.decode() if isinstance(w, bytes) else str(w)
                 for w in (held if isinstance(held, (tuple, list)) else ()))


def word(m: Maker, name: str, default: str) -> str:
    """A text attribute."""
    held = m.attrs.get(name, default)
    return held.decode() if isinstance(held, bytes) else str(held)


def labels(m: Maker, integers: str) -> np.ndarray | None:
    """The labels of a classifier, None where it has none."""
    if texts := words(m, "classlabels_strings"):
        return np.asarray(texts, object)
    held = m.attrs.get(integers)
    return np.asarray(held, np.int64) if isinstance(held, (tuple, list)) and held else None


def rows_of(m: Maker) -> str | None:
    """The input as rows of f32, None where it is no matrix of numbers that f32 holds as ONNX asks."""
    t = m.type(m.input(0))
    return m.cast(m.input(0), "f32") if t.rank == 2 and t.dtype.name in _COMPUTED else None


def classified(m: Maker, scores: str, kinds: np.ndarray, post: str, best: str = "") -> tuple[str, ...]:
    """The label of the highest score (or of the highest of `best`), and the scores after their transform."""
    at = m("ArgMax", best or scores, axis=1, keepdims=0)
    label = m("Gather", m.constant(kinds), at, axis=0)
    if post == "NONE":
        return label, scores
    return label, m(POST[post], scores, **({"axis": 1} if post == "SOFTMAX" else {}))


# --- scalers, features ------------------------------------------------------------------------------------------------

def _scaler(m: Maker) -> Found:
    offset, scale, x = numbers(m, "offset"), numbers(m, "scale"), rows_of(m)
    if x is None or not offset.size or not scale.size:
        return None
    return (m("Mul", m("Sub", x, m.constant(offset)), m.constant(scale)),)


def _normalizer(m: Maker) -> Found:
    op = {"MAX": "ReduceMax", "L1": "ReduceL1", "L2": "ReduceL2"}.get(word(m, "norm", "MAX"))
    x = rows_of(m)
    if x is None or op is None:
        return None
    length = m(op, m("Abs", x) if op == "ReduceMax" else x, axes=(1,), keepdims=1)
    nothing = m("Equal", length, m.scalar(0, length))
    return (m("Div", x, m("Where", nothing, m.scalar(1, length), length)),)


def _binarizer(m: Maker) -> Found:
    t = m.type(m.input(0))
    if t.dtype.name not in ("f32", "f64"):
        return None
    x = m.input(0)
    return (m.cast(m("Greater", x, m.scalar(float(np.float32(m.number("threshold", 0.0))), x)), t.dtype.name),)


def _imputer(m: Maker) -> Found:
    filled, x = numbers(m, "imputed_value_floats"), m.input(0)
    if not filled.size or m.type(x).dtype.name != "f32":
        return None
    wanted = m.number("replaced_value_float", 0.0)
    held = m("IsNaN", x) if np.isnan(wanted) else m("Equal", x, m.scalar(wanted, x))
    return (m("Where", held, m.constant(filled), x),)


def _extractor(m: Maker) -> Found:
    table, index = m.type(m.input(0)), m.type(m.input(1))
    if table.dtype.name == "str" and m.array_of(m.input(0)) is None:
        return None
    at = m.reshape(m.input(1), index.size)
    if table.rank == 1:
        return (m.reshape(m("Gather", m.input(0), at, axis=0), 1, index.size),)
    return (m("Gather", m.input(0), at, axis=-1),)


def _vectorizer(m: Maker) -> Found:
    given = [i for i in m.inputs if i]
    if any(m.type(i).rank != 2 or m.dtype(i).name not in _COMPUTED for i in given):
        return None
    return (m("Concat", *[m.cast(i, "f32") for i in given], axis=1),)


# --- linear models ----------------------------------------------------------------------------------------------------

def _linear(m: Maker, x: str, rows: int) -> str:
    weights = numbers(m, "coefficients").reshape(rows, -1).T
    product = m("MatMul", x, m.constant(np.ascontiguousarray(weights)))
    added = numbers(m, "intercepts")
    return m("Add", product, m.constant(added)) if added.size else product


def _linear_regressor(m: Maker) -> Found:
    x = rows_of(m)
    if x is None or word(m, "post_transform", "NONE") != "NONE" or not numbers(m, "coefficients").size:
        return None
    return (_linear(m, x, m.integer("targets", 1)),)


def _linear_classifier(m: Maker) -> Found:
    kinds, post, x = labels(m, "classlabels_ints"), word(m, "post_transform", "NONE"), rows_of(m)
    rows = max(1, numbers(m, "intercepts").size)
    if x is None or kinds is None or (rows == 1 and len(kinds) != 2) or post not in POST:
        return None
    scores = _linear(m, x, rows)
    if rows == 1:
        scores = m("Concat", m("Neg", scores), scores, axis=1)
    return classified(m, scores, kinds, post)


PLAIN: Mapping[str, Callable[[Maker], Found]] = {
    "Scaler": _scaler, "Normalizer": _normalizer, "Binarizer": _binarizer, "Imputer": _imputer,
    "ArrayFeatureExtractor": _extractor, "FeatureVectorizer": _vectorizer, "LinearRegressor": _linear_regressor,
    "LinearClassifier": _linear_classifier}
