"""TensorFlow in: a SavedModel folder, a .keras file, a Keras model or a concrete function, through tf2onnx."""
from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

from ingot.frontend.shapes import ShapeSpec
from ingot.frontend.source import Source, imported
from ingot.frontend.tensorflow.model import source_from_model


def source_from_tensorflow(model: Any, example_inputs: Any = None, shapes: Mapping[str, ShapeSpec] | None = None, *,
                           opset: int | None = None) -> Source:
    """What Ingot needs of a TensorFlow model. A SavedModel brings its signature `serving_default`.

    Raises InputError, ModelError or UnsupportedError.
    """
    library, converter = imported("tensorflow", "tensorflow"), imported("tf2onnx", "tensorflow")
    path = os.fspath(model) if isinstance(model, (str, os.PathLike)) else ""
    return source_from_model(library, converter, path or model, example_inputs, shapes or {}, opset)


__all__ = ["source_from_tensorflow"]
