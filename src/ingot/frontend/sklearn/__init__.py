"""scikit-learn in: estimators and pipelines through skl2onnx; the reader says ai.onnx.ml in ops that have kernels."""
from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ingot.frontend.shapes import ShapeSpec
from ingot.frontend.sklearn.estimator import source_from_sklearn as _source
from ingot.frontend.source import Source, imported


def source_from_sklearn(model: Any, example_inputs: Any, shapes: Mapping[str, ShapeSpec] | None = None, *,
                        opset: int | None = None) -> Source:
    """What Ingot needs of a fitted estimator or pipeline; `example_inputs` are some rows as `predict` takes them.

    Raises InputError or UnsupportedError.
    """
    imported("sklearn", "sklearn")
    return _source(model, example_inputs, shapes or {}, imported("skl2onnx", "sklearn"), opset)


__all__ = ["source_from_sklearn"]
