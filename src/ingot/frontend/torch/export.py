"""The two exporters of torch.onnx: the one on torch.export (dynamo), and the one that traces (TorchScript)."""
from __future__ import annotations

import io
import logging
import re
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from pathlib import Path
from typing import Any

import onnx
import torch

from ingot.errors import UnsupportedError
from ingot.frontend.onnx.convert import ORIGIN_KEY
from ingot.frontend.source import Alarm
from ingot.frontend.torch.inputs import Arguments, stretched
from ingot.frontend.torch.run import Flat, evaluating, first_line
from ingot.graph import Symbol

Axes = Mapping[str, Mapping[int, Symbol]]
DYNAMO, TRACED = "torch.export", "TorchScript tracing"

# What an exporter raises where it cannot go on; the module's own code runs inside it, so its errors come as well.
EXPORT_FAILS = (RuntimeError, ValueError, TypeError, LookupError, AttributeError, AssertionError, NotImplementedError,
                torch.onnx.OnnxExporterError, torch._dynamo.exc.TorchDynamoException)
_CHATTY = ("torch.onnx._internal.exporter._registration", "torch.onnx._internal.exporter._schemas",
           "torch.fx.experimental.symbolic_shapes", "torch.onnx", "onnxscript",
           "torch.export", "torch._export", "torch._dynamo", "torch.fx")
_TORCH = str(Path(torch.__file__).parent)
_LINE = re.compile(r'File "([^"]+)", line (\d+)')


@contextmanager
def _quiet() -> Iterator[list[warnings.WarningMessage]]:
    """The exporters' warnings, collected, and their logging, off."""
    levels = {name: logging.getLogger(name).level for name in _CHATTY}
    for name in _CHATTY:
        logging.getLogger(name).setLevel(logging.CRITICAL)
    try:
        with (warnings.catch_warnings(record=True) as found, redirect_stdout(io.StringIO()),
              redirect_stderr(io.StringIO())):
            warnings.simplefilter("always")
            yield found
    finally:
        for name, level in levels.items():
            logging.getLogger(name).setLevel(level)


def exported(module: Any, arguments: Arguments, axes: Axes, outputs: Sequence[str], *, opset: int | None = None
             ) -> tuple[Any, tuple[Alarm, ...]]:
    """The module through torch.export and the exporter on it. Raises UnsupportedError with the exporter's reason.

    Where an axis turns out to be tied to another, or to one size, torch.export is asked to find the ties itself.
    """
    example = tuple(stretched(arguments.tensors, axes))
    dims = {s.name: torch.export.Dim(s.name, min=s.min, max=s.max) if s.max > s.min else None
            for by_axis in axes.values() for s in by_axis.values()}
    named = tuple({a: dims[s.name] for a, s in axes[n].items()} or None for n in arguments.tensors)
    free = tuple(dict.fromkeys(axes[n], torch.export.Dim.AUTO) or None for n in arguments.tensors)
    failed: BaseException | None = None
    for shapes in (named, free) if any(named) else (named,):
        try:
            with _quiet(), evaluating(module):
                program = torch.onnx.export(
                    Flat(module, arguments), example, dynamo=True, verbose=False, external_data=False,
                    input_names=list(arguments.tensors), output_names=list(outputs), opset_version=opset,
                    dynamic_shapes=(shapes,) if any(shapes) else None)
            return _labelled(program.model_proto, axes), ()
        except EXPORT_FAILS as error:
            failed = failed or error
    raise _refused(DYNAMO, failed)


def converted(program: Any, arguments: Arguments, axes: Axes, outputs: Sequence[str], *, opset: int | None = None
              ) -> tuple[Any, tuple[Alarm, ...]]:
    """An exported program through torch.onnx. Raises UnsupportedError with the exporter's reason."""
    try:
        with _quiet():
            made = torch.onnx.export(program, (), dynamo=True, verbose=False, external_data=False,
                                     input_names=list(arguments.tensors), output_names=list(outputs),
                                     opset_version=opset)
    except EXPORT_FAILS as error:
        raise _refused(DYNAMO, error) from None
    return _labelled(made.model_proto, axes), ()


def traced(module: Any, arguments: Arguments, axes: Axes, outputs: Sequence[str], *, opset: int | None = None
           ) -> tuple[Any, tuple[Alarm, ...]]:
    """The module through the exporter that traces, and what the tracer warned of. Raises UnsupportedError."""
    example = tuple(stretched(arguments.tensors, axes))
    scripted = isinstance(module, torch.jit.ScriptModule)
    by_axis = {n: {a: s.name for a, s in axes[n].items()} for n in arguments.tensors if axes[n]}
    held = io.BytesIO()
    try:
        with _quiet() as noticed, evaluating(module):
            torch.onnx.export(module if scripted else Flat(module, arguments), example, held, dynamo=False,
                              input_names=list(arguments.tensors), output_names=list(outputs), dynamic_axes=by_axis,
                              opset_version=opset)
    except EXPORT_FAILS as error:
        raise _refused(TRACED, error) from None
    proto = onnx.load_from_string(held.getvalue())
    return _labelled(proto, axes), _frozen(noticed)


def _refused(exporter: str, error: BaseException | None) -> UnsupportedError:
    """The exporter's reason: the deepest error of the chain, with the user's line where it names one."""
    deepest = error
    while deepest is not None and deepest.__cause__ is not None:
        deepest = deepest.__cause__
    text = str(deepest)
    lines = [m for m in _LINE.findall(text) if not m[0].startswith(_TORCH)]
    reason = first_line(deepest) if deepest is not None else "no reason given"
    return UnsupportedError(f"the exporter on {exporter} cannot take it", why=(f"{type(deepest).__name__}: {reason}",),
                            where=f"{lines[-1][0]}:{lines[-1][1]}" if lines else "")


def _frozen(noticed: Sequence[warnings.WarningMessage]) -> tuple[Alarm, ...]:
    """The tracer's warnings about values that became constants of the trace, one per line of code."""
    found: dict[str, Alarm] = {}
    for w in noticed:
        text = str(w.message)
        if w.category is not torch.jit.TracerWarning or w.filename.startswith(_TORCH):
            continue
        line = _source_line(w.filename, w.lineno)
        where = f"{w.filename}:{w.lineno}" + (f": {line}" if line else "")
        found[where] = Alarm("frozen value", first_sentence(text), where=where,
                             why="tracing keeps what the example gave",
                             mend="use torch.where or torch.cond, or sizes that do not depend on the data")
    return tuple(found.values())


def first_sentence(text: str) -> str:
    return text.split(". ")[0].strip()


def _source_line(name: str, number: int) -> str:
    path = Path(name)
    lines = path.read_text(errors="replace").splitlines() if path.is_file() else []
    return lines[number - 1].strip() if 0 < number <= len(lines) else ""


def _labelled(proto: onnx.ModelProto, axes: Axes) -> onnx.ModelProto:
    """Inputs' dynamic axes under the names they were given, and every node with the module and line it came from."""
    for value in proto.graph.input:
        for axis, symbol in axes.get(value.name, {}).items():
            dim = value.type.tensor_type.shape.dim[axis]
            if dim.dim_param.isidentifier() or not (dim.dim_param or dim.dim_value):
                dim.dim_param = symbol.name
    for graph in _graphs(proto.graph):
        for node in graph.node:
            if origin := _origin(node):
                node.metadata_props.add(key=ORIGIN_KEY, value=origin)
    return proto


def _graphs(graph: onnx.GraphProto) -> Iterator[onnx.GraphProto]:
    yield graph
    for node in graph.node:
        for attribute in node.attribute:
            if attribute.type == onnx.AttributeProto.GRAPH:
                yield from _graphs(attribute.g)


def _origin(node: onnx.NodeProto) -> str:
    """`head.0 (model.py:11)`: the module's path, and the innermost line that is not PyTorch's own."""
    told = {p.key: p.value for p in node.metadata_props}
    if ORIGIN_KEY in told:
        return ""
    if "pkg.torch.onnx.name_scopes" not in told:        # the tracer's names are paths: /module/head/head.0/Gemm
        parts = [p for p in node.name.split("/")[:-1] if p and p != "module"]
        return ".".join(p.rsplit(".", 1)[-1] for p in parts) or node.name
    scopes = re.findall(r"'([^']*)'", told["pkg.torch.onnx.name_scopes"])
    module = scopes[-2].removeprefix("module").lstrip(".") if len(scopes) > 1 else ""
    lines = [(f, n) for f, n in _LINE.findall(told.get("pkg.torch.onnx.stack_trace", ""))
             if not f.startswith((_TORCH, str(Path(__file__).parent)))]
    place = f" ({Path(lines[-1][0]).name}:{lines[-1][1]})" if lines else ""
    return (module or (scopes[-1] if scopes else node.name)) + place
