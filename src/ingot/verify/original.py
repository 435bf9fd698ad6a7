"""What an engine is compared with: the reference evaluator, ONNX Runtime, a PyTorch module or any callable."""
from __future__ import annotations

import importlib
import importlib.metadata
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from ingot.errors import InputError, ModelError, UnsupportedError, in_one_line
from ingot.graph import Graph
from ingot.ops.flow import meaning

Outputs = Mapping[str, np.ndarray]


@dataclass(frozen=True)
class Original:
    """Someone who knows the right answer: a name that says who, and a run from arrays by name to arrays by name."""

    name: str
    run: Callable[[Mapping[str, np.ndarray]], Outputs]
    graph: Graph | None = None          # what it computes, where it is the reference: it can be asked otherwise, too


def reference_original(graph: Graph) -> Original:
    """ONNX's own reference evaluator over the graph as it was loaded, before any pass."""
    def run(feeds: Mapping[str, np.ndarray]) -> Outputs:
        try:
            return meaning(graph, feeds)
        except (ModelError, ValueError, ArithmeticError, LookupError) as error:
            raise InputError(f"the reference evaluator cannot compute it: {in_one_line(error)}",
                             where="the original to verify against",
                             mend="give inputs the ops are defined for") from None

    name = f"onnx.reference {importlib.metadata.version('onnx')}"
    return Original(name, run, graph if isinstance(graph, Graph) else None)


def onnxruntime_original(path: str) -> Original:
    """ONNX Runtime on the model file. Raises UnsupportedError where it is not installed."""
    try:
        library = importlib.import_module("onnxruntime")
    except ImportError:
        raise UnsupportedError("onnxruntime is not installed", where="the original to verify against",
                               mend="pip install onnxruntime, or leave the choice to the reference evaluator") from None
    options = library.SessionOptions()
    options.log_severity_level = 3
    session = library.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    names = [o.name for o in session.get_outputs()]

    def run(feeds: Mapping[str, np.ndarray]) -> Outputs:
        known = {i.name for i in session.get_inputs()}
        return dict(zip(names, session.run(None, {k: v for k, v in feeds.items() if k in known}), strict=True))

    return Original(f"onnxruntime {library.__version__}", run)


def _torch_original(torch: Any, module: Any, graph: Graph) -> Original:
    def run(feeds: Mapping[str, np.ndarray]) -> Outputs:
        with torch.inference_mode():
            found = module(*[torch.from_numpy(np.ascontiguousarray(feeds[n])) for n in graph.inputs])
        found = [found] if isinstance(found, torch.Tensor) else found
        found = list(found.values()) if isinstance(found, Mapping) else list(found)
        if len(found) != len(graph.outputs):
            raise InputError(f"the module gives {len(found)} tensors, the model {len(graph.outputs)}",
                             where="the original to verify against", mend="wrap it so that both give the same")
        return {n: t.detach().numpy() for n, t in zip(graph.outputs, found, strict=True)}

    return Original(f"PyTorch {torch.__version__} {type(module).__name__}", run)


def original_from(source: object, graph: Graph, path: str = "") -> Original:
    """The original for what a caller names: None or "reference", "onnxruntime", a module, a callable, an Original.

    A PyTorch module gets tensors in the order of the model's inputs; any other callable gets and gives arrays by
    name. Raises InputError or UnsupportedError.
    """
    torch = sys.modules.get("torch")
    if source is None or source == "reference":
        return reference_original(graph)
    if source == "onnxruntime":
        if not path:
            raise InputError("ONNX Runtime needs the model's file", where="the original to verify against",
                             mend="build from a path, or verify against the reference")
        return onnxruntime_original(path)
    if isinstance(source, Original):
        return source
    if torch is not None and isinstance(source, torch.nn.Module):
        return _torch_original(torch, source, graph)
    if callable(source):
        return Original(getattr(source, "__name__", type(source).__name__), source)
    raise InputError(f"{source!r} is no original to verify against", where="the argument 'original'",
                     mend='give None, "reference", "onnxruntime", a PyTorch module, or a callable of arrays by name')
