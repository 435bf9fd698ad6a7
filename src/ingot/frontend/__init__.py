"""Any source, one graph. `load` is the only place that asks what a model is."""
from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ingot.errors import InputError, UnsupportedError
from ingot.frontend.shapes import DEFAULT_PROFILE, ShapeSpec, is_shapes, parse_shapes
from ingot.frontend.source import Alarm, Export, Source
from ingot.graph import Flow, Graph, Picture

_TORCH_SUFFIXES = frozenset({".pt2", ".pt", ".pth", ".ts", ".torchscript", ".ckpt"})


def source_from(model: Any, example_inputs: Any = None, dynamic: Any = None,
                shapes: Mapping[str, ShapeSpec] | None = None, *, weights: str | os.PathLike[str] | None = None,
                opset: int | None = None) -> Source | None:
    """The model as its framework has it, with the ways to ONNX; None for what `load` reads as it is.

    `example_inputs`, `dynamic` and `weights` (a checkpoint) are as `frontend.torch.source_from_torch` has them.
    Raises InputError, ModelError or UnsupportedError.
    """
    suffix = Path(model).suffix.lower() if isinstance(model, (str, os.PathLike)) else ""
    if suffix in _TORCH_SUFFIXES or _is_from("torch", model):
        from ingot.frontend.torch import source_from_torch
        return source_from_torch(model, example_inputs, dynamic, shapes, checkpoint=weights, opset=opset)
    saved = isinstance(model, (str, os.PathLike)) and (suffix == ".keras" or (Path(model) / "saved_model.pb").is_file())
    if saved or _is_from("tensorflow", model) or _is_from("keras", model):
        from ingot.frontend.tensorflow import source_from_tensorflow
        return source_from_tensorflow(model, example_inputs, shapes, opset=opset)
    if _is_from("sklearn", model):
        from ingot.frontend.sklearn import source_from_sklearn
        return source_from_sklearn(model, example_inputs, shapes, opset=opset)
    if example_inputs is not None or dynamic is not None or weights is not None:
        raise InputError("example inputs, dynamic axes and weights go with a model of a framework",
                         mend="leave them out")
    return None


def _is_from(library: str, model: Any) -> bool:
    """Whether a class of the model comes from a library, without importing it."""
    return any(c.__module__.partition(".")[0] == library for c in type(model).__mro__)


def load(model: Any, shapes: Mapping[str, ShapeSpec] | None = None) -> Graph:
    """The graph of a model: the path, bytes or proto of an ONNX model, or a graph as it is.

    `shapes` gives sizes and ranges per input, for example `{"input": "1..8..32x3x224x224"}`. Raises InputError,
    ModelError or UnsupportedError.
    """
    found = read(model, shapes)
    if isinstance(found, Flow):
        raise UnsupportedError("data decides the course or a shape of the model: it is no single graph",
                               why=tuple(f"{c.node.where}: {c.why}" for c in found.calls),
                               mend="build it with ingot.build, which cuts it into parts")
    return found


def picture(model: Any, shapes: Mapping[str, ShapeSpec] | None = None) -> Graph:
    """As `load`, and of a model that data decides the course of its picture as one graph: to look at, not to run."""
    found = read(model, shapes)
    return found.graph if isinstance(found, Flow) else found


def read(model: Any, shapes: Mapping[str, ShapeSpec] | None = None) -> Graph | Flow:
    """As `load`; a model in which data decides a shape or the course comes as a flow of graphs and calls."""
    if isinstance(model, (Graph, Flow)):
        if shapes:
            raise InputError("shapes are given with a graph, which has its shapes already", mend="leave them out")
        return model.flow if isinstance(model, Picture) and model.flow is not None else model
    # onnx takes a while to import, and not every run needs it
    from ingot.frontend.onnx import flow_from_onnx
    if isinstance(model, (str, os.PathLike, bytes)) or type(model).__name__ == "ModelProto":
        return flow_from_onnx(model, shapes)
    raise InputError(f"a {type(model).__module__}.{type(model).__qualname__} is no model Ingot can read",
                     mend="give an .onnx file or a PyTorch module (ingot.build(module, example_inputs))")


__all__ = ["DEFAULT_PROFILE", "Alarm", "Export", "ShapeSpec", "Source", "is_shapes", "load", "parse_shapes",
           "picture", "read", "source_from"]
