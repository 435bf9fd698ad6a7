"""Any source, one graph. `load` is the only place that asks what a model is."""
from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

from ingot.errors import InputError
from ingot.frontend.shapes import DEFAULT_PROFILE, ShapeSpec, parse_shapes
from ingot.graph import Graph


def load(model: Any, shapes: Mapping[str, ShapeSpec] | None = None) -> Graph:
    """The graph of a model: the path, bytes or proto of an ONNX model, or a graph as it is.

    `shapes` gives sizes and ranges per input, for example `{"input": "1..8..32x3x224x224"}`. Raises InputError,
    ModelError or UnsupportedError.
    """
    if isinstance(model, Graph):
        if shapes:
            raise InputError("shapes are given with a graph, which has its shapes already", mend="leave them out")
        return model
    # onnx takes a while to import, and not every run needs it
    from ingot.frontend.onnx import graph_from_onnx
    if isinstance(model, (str, os.PathLike, bytes)) or type(model).__name__ == "ModelProto":
        return graph_from_onnx(model, shapes)
    raise InputError(f"a {type(model).__module__}.{type(model).__qualname__} is no model Ingot can read",
                     mend="give the path of an .onnx file; a PyTorch module: torch.onnx.export it first")


__all__ = ["DEFAULT_PROFILE", "ShapeSpec", "load", "parse_shapes"]
