"""A fitted estimator as a Source: skl2onnx gives the graph, the estimator's own methods the right answers."""
from __future__ import annotations

import importlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from importlib.metadata import version
from types import ModuleType
from typing import Any

import numpy as np
import onnx

from ingot.errors import InputError, UnsupportedError
from ingot.frontend.shapes import ShapeSpec
from ingot.frontend.source import Alarm, Export, Source, imported
from ingot.graph import Symbol

# What converting or running an estimator raises where it cannot.
FAILS = (RuntimeError, ValueError, TypeError, AttributeError, LookupError, NotImplementedError)
OPSET = 18          # the oldest that has every op the trees are written in
ROWS = Symbol("rows", 1, 1, 1024)
INPUT = "X"


def source_from_sklearn(model: Any, example_inputs: Any, shapes: Mapping[str, ShapeSpec], skl2onnx: ModuleType,
                        opset: int | None) -> Source:
    """The source of an estimator. Rows are a symbol `rows`, 1..1..1024 unless `shapes` says otherwise."""
    columns = columns_from(model, example_inputs)
    found = dict(shapes) or {n: (ROWS, a.shape[1]) for n, a in columns.items()}
    names = _outputs(skl2onnx, model, columns, opset)
    export = Export("skl2onnx" + (f", opset {opset}" if opset else ""),
                    partial(_exported, skl2onnx, model, columns, opset), opset)
    return Source(type(model).__name__, f"scikit-learn {version('scikit-learn')}", (export,),
                  partial(_run, model, columns, names), columns, found)


def columns_from(model: Any, example_inputs: Any) -> dict[str, np.ndarray]:
    """The example as arrays by name: one of all features, or one column each of a table. Raises InputError."""
    if example_inputs is None:
        count = getattr(model, "n_features_in_", None)
        if count is None or hasattr(model, "feature_names_in_"):
            raise InputError("an estimator needs some rows of example input", mend="ingot.build(model, X[:2])")
        return {INPUT: np.zeros((1, int(count)), np.float32)}
    if hasattr(example_inputs, "columns"):
        return {str(c): _column(np.asarray(example_inputs[c])) for c in example_inputs.columns}
    if isinstance(example_inputs, Mapping):
        return {k: _column(np.asarray(v)) for k, v in example_inputs.items()}
    array = np.asarray(example_inputs)
    if array.ndim != 2:
        raise InputError(f"the example has {array.ndim} axes, not rows and features", mend="give X[:2]")
    return {INPUT: _numbers(array)}


def _column(array: np.ndarray) -> np.ndarray:
    return _numbers(array.reshape(len(array), -1))


def _numbers(array: np.ndarray) -> np.ndarray:
    if array.dtype.kind in "OUS":
        return array.astype(object)
    return array.astype(np.int64 if array.dtype.kind in "iub" else np.float32)


def _proto(skl2onnx: ModuleType, model: Any, columns: Mapping[str, np.ndarray], opset: int | None) -> onnx.ModelProto:
    kinds = {"f": skl2onnx.common.data_types.FloatTensorType, "i": skl2onnx.common.data_types.Int64TensorType,
             "O": skl2onnx.common.data_types.StringTensorType}
    types = [(n, kinds[a.dtype.kind]([None, a.shape[1]])) for n, a in columns.items()]
    target = {"": opset or OPSET, "ai.onnx.ml": 3}
    convert = partial(skl2onnx.convert_sklearn, model, initial_types=types, target_opset=target)
    try:
        with _flags_as_integers():
            try:
                made = convert(options={id(model): {"zipmap": False}} if hasattr(model, "classes_") else None)
            except NameError:           # a classifier without probabilities does not know the option
                made = convert()
    except FAILS as error:
        raise UnsupportedError(f"skl2onnx cannot take {type(model).__name__}", why=(str(error).splitlines()[0][:300],),
                               mend="use estimators skl2onnx knows (skl2onnx.supported_converters)") from None
    proto: onnx.ModelProto = made
    return proto


@contextmanager
def _flags_as_integers() -> Iterator[None]:
    """skl2onnx 1.20 gives histogram-based trees' sides of missing values as booleans, which protobuf does not take."""
    trees: Any = importlib.import_module("skl2onnx.common.tree_ensemble")
    add_node = trees.add_node

    def with_integers(*arguments: Any, nodes_missing_value_tracks_true: Any = 0, **more: Any) -> None:
        add_node(*arguments, nodes_missing_value_tracks_true=int(nodes_missing_value_tracks_true), **more)

    trees.add_node = with_integers
    try:
        yield
    finally:
        trees.add_node = add_node


def _outputs(skl2onnx: ModuleType, model: Any, columns: Mapping[str, np.ndarray], opset: int | None) -> tuple[str, ...]:
    try:
        return tuple(o.name for o in _proto(skl2onnx, model, columns, opset).graph.output)
    except UnsupportedError:
        return ()


def _exported(skl2onnx: ModuleType, model: Any, columns: Mapping[str, np.ndarray], opset: int | None
              ) -> tuple[onnx.ModelProto, tuple[Alarm, ...]]:
    return _proto(skl2onnx, model, columns, opset), ()


def _run(model: Any, columns: Mapping[str, np.ndarray], names: tuple[str, ...], feeds: Mapping[str, np.ndarray]
         ) -> dict[str, np.ndarray]:
    """The estimator's own predict, predict_proba or transform, as the graph's outputs."""
    given = feeds[INPUT] if list(columns) == [INPUT] else _table({n: feeds[n] for n in columns})
    found: dict[str, np.ndarray] = {}
    try:
        for name in names:
            found[name] = _result(model, name, given)
    except FAILS as error:
        raise InputError(f"the estimator itself fails: {type(error).__name__}: {str(error).splitlines()[0]}",
                         mend="give rows it takes") from None
    return found


def _table(columns: Mapping[str, np.ndarray]) -> Any:
    return imported("pandas", "sklearn").DataFrame({k: a.reshape(len(a)) for k, a in columns.items()})


def _result(model: Any, name: str, given: Any) -> np.ndarray:
    classifies = hasattr(model, "classes_") or hasattr(model, "predict_proba")
    if "prob" in name and hasattr(model, "predict_proba"):
        return np.asarray(model.predict_proba(given), np.float32)
    if "label" in name:
        label = np.asarray(model.predict(given))
        return label.astype(np.int64) if label.dtype.kind in "iub" else label.astype(object)
    if "score" in name or "prob" in name:
        made = model.decision_function(given) if hasattr(model, "decision_function") else model.transform(given)
        made = np.asarray(made, np.float32)
        return np.stack((-made, made), 1) if made.ndim == 1 and classifies else made
    made = np.asarray(model.predict(given) if hasattr(model, "predict") and not classifies else model.transform(given))
    return made.astype(np.float32).reshape(len(made), -1)
