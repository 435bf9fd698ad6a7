"""`torch.compile(model, backend="ingot")`: every graph Dynamo captures becomes an engine, or runs in PyTorch as before.

What cannot be served is named in a warning, once per graph, with the reason; the call still gives the right answer.
Sizes Dynamo holds symbolic become dynamic axes of one engine; past its range a wider one is built. Weights are part of
the engine, so that their versions are looked at before each call: after a change the engine is built again, and after a
few such changes the graph is left to PyTorch. Engines have no gradients: a graph that needs them is left to PyTorch.
"""
from __future__ import annotations

import logging
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch

from ingot.compiler.build import build_with_report
from ingot.compiler.options import BuildOptions
from ingot.errors import IngotError
from ingot.frontend.torch.run import array_from, tensor_from
from ingot.graph import Symbol
from ingot.runtime.session import Session

_LOG = logging.getLogger("ingot")
REBUILDS = 3            # changes of weights, and values of loose sizes, before a graph is left to PyTorch
_ROOM = 4               # how far past the size at hand a dynamic axis may grow before another engine is built


class NotServedWarning(UserWarning):
    """A part of a compiled model runs in PyTorch, and why."""


@dataclass
class Graphs:
    """What became of the graphs of this process, for reading."""

    served: int = 0
    left: list[str] = field(default_factory=list)       # the reasons
    engines: int = 0


GRAPHS = Graphs()


@dataclass(frozen=True)
class _Place:
    """One input of the captured graph: a weight, a tensor of the call, or a size."""

    kind: str                           # "weight", "tensor", "size", "loose size"
    of: tuple[int, int] = (0, 0)        # of a size: which tensor, which axis
    shape: tuple[Any, ...] = ()         # of a tensor: numbers and symbols' names


class _Bound(torch.nn.Module):  # type: ignore[misc]
    """The captured graph with its weights in place: tensors of the call go in, tensors come out."""

    def __init__(self, graph: Any, places: Sequence[_Place], values: Sequence[Any]) -> None:
        super().__init__()
        self.graph = graph
        self._places = tuple(places)
        self._fixed = [v.detach() if p.kind == "weight" else v if p.kind == "loose size" else None
                       for p, v in zip(places, values, strict=True)]

    def forward(self, *tensors: Any) -> Any:
        given = iter(tensors)
        found: list[Any] = [next(given) if p.kind == "tensor" else f
                            for p, f in zip(self._places, self._fixed, strict=True)]
        for i, place in enumerate(self._places):
            if place.kind == "size":
                found[i] = found[place.of[0]].shape[place.of[1]]
        return self.graph(*found)


def ingot_backend(graph: Any, example_inputs: Sequence[Any], *, options: Mapping[str, Any] | None = None,
                  **more: Any) -> Callable[..., Any]:
    """The entry point Dynamo calls. `options` are fields of `BuildOptions`; by default kernels are not raced."""
    places, reason = _places(graph, example_inputs)
    reason = reason or _declines(graph, example_inputs, places)
    if reason:
        return _left(graph, reason)
    return _Compiled(graph, places, BuildOptions(**{"tune": False, **(options or {})}))


def _places(graph: Any, inputs: Sequence[Any]) -> tuple[list[_Place], str]:
    """What each input of the graph is, or why the graph cannot be served."""
    nodes = [n for n in graph.graph.nodes if n.op == "placeholder"]
    found: list[_Place] = []
    axes: dict[str, tuple[int, int]] = {}
    for i, (node, value) in enumerate(zip(nodes, inputs, strict=True)):
        kept = (node.meta.get("tensor_dict") or {}).get("_dynamo_static_input_type")
        fake = node.meta.get("example_value")
        if isinstance(value, torch.Tensor):
            shape = tuple(str(s) if isinstance(s, torch.SymInt) else int(s)
                          for s in (fake.shape if isinstance(fake, torch.Tensor) else value.shape))
            if value.ndim == 0 and node.users and all(u.target == "item" for u in node.users):
                found.append(_Place("loose size", shape=(node.name,)))      # a number of the code, made symbolic
                continue
            weight = isinstance(value, torch.nn.Parameter) or kept is not None
            found.append(_Place("weight" if weight else "tensor", shape=shape))
            if not weight:
                for axis, size in enumerate(shape):
                    if isinstance(size, str):
                        axes.setdefault(size, (i, axis))
        elif isinstance(value, (int, torch.SymInt)) and not isinstance(value, bool):
            found.append(_Place("loose size", shape=(str(value),)))
        else:
            return [], f"input '{node.name}' is a {type(value).__name__}, not a tensor"
    return [_Place("size", axes[p.shape[0]], p.shape) if p.kind == "loose size" and p.shape[0] in axes else p
            for p in found], ""


def _declines(graph: Any, inputs: Sequence[Any], places: Sequence[_Place]) -> str:
    """Why the graph is PyTorch's to run, or an empty text."""
    tensors = [v for v in inputs if isinstance(v, torch.Tensor)]
    if torch.is_grad_enabled() and any(t.requires_grad for t in tensors):
        return "gradients may be asked for, and an engine has none; call it under torch.no_grad()"
    if away := next((t.device for t in tensors if t.device.type != "cpu"), None):
        return f"a tensor is on {away}"
    if not any(p.kind == "tensor" for p in places):
        return "no tensor of the call goes in"
    (output,) = [n for n in graph.graph.nodes if n.op == "output"]
    for value in output.args[0]:
        if not isinstance(value, torch.fx.Node):
            return f"it gives {value!r}, not a tensor"
        held = value.meta.get("example_value")
        if held is not None and not isinstance(held, torch.Tensor):
            return f"it gives a {type(held).__name__}, not a tensor"
        if value.op == "placeholder":
            return "it gives an input back as it is"
    return _mutation(graph)


def _mutation(graph: Any) -> str:
    """Whether the graph writes into what it is given: an engine does not."""
    given = {n for n in graph.graph.nodes if n.op == "placeholder"}
    views = set(given)
    for node in graph.graph.nodes:
        name = getattr(node.target, "__name__", str(node.target))
        first = node.args[0] if node.args and isinstance(node.args[0], torch.fx.Node) else None
        writes = (name.endswith("_") and not name.endswith("__")) or name == "setitem" or "out" in node.kwargs
        writes |= bool(node.kwargs.get("inplace"))
        if writes and first in views:
            return f"{name} changes an input in place"
        if first in views and name in ("view", "reshape", "__getitem__", "getitem", "transpose", "t", "permute",
                                       "squeeze", "unsqueeze", "narrow", "select", "expand", "detach", "flatten"):
            views.add(node)
    return ""


def _left(graph: Any, reason: str) -> Callable[..., Any]:
    """The graph as PyTorch runs it, and a warning that says what it is and why."""
    ops = [n for n in graph.graph.nodes if n.op in ("call_function", "call_method", "call_module")]
    if ops:
        names = list(dict.fromkeys(getattr(n.target, "__name__", str(n.target)) for n in ops))
        text = (f"a graph of {len(ops)} calls ({', '.join(names[:6])}{', ...' if len(names) > 6 else ''}) runs in "
                f"PyTorch: {reason}")
        GRAPHS.left.append(text)
        warnings.warn(text, NotServedWarning, stacklevel=2)
    forward: Callable[..., Any] = graph.forward
    return forward


class _Compiled:
    """One captured graph: engines by the sizes they take, built when they are first needed."""

    def __init__(self, graph: Any, places: Sequence[_Place], options: BuildOptions) -> None:
        self._graph, self._places, self._options = graph, tuple(places), options
        self._sessions: list[tuple[Mapping[str, Symbol], tuple[Any, ...], Session]] = []
        self._versions: tuple[Any, ...] | None = None
        self._changes = 0
        self._plain: Callable[..., Any] | None = None

    def __call__(self, *inputs: Any) -> Any:
        if self._plain is not None:
            return self._plain(*inputs)
        session = self._session(inputs)
        if session is None:
            return self._graph(*inputs)
        tensors = [v for v, p in zip(inputs, self._places, strict=True) if p.kind == "tensor"]
        feeds = dict(zip(session.engine.graph.inputs, map(_array, tensors), strict=True))
        found = session.run(feeds)
        return tuple(tensor_from(found[n]) for n in session.engine.graph.outputs)

    def _session(self, inputs: Sequence[Any]) -> Session | None:
        """The engine for these weights and sizes; None where there is none to be had."""
        versions = tuple((v.data_ptr(), v._version) for v, p in zip(inputs, self._places, strict=True)
                         if p.kind == "weight")
        if versions != self._versions:
            if self._versions is not None:
                self._changes += 1
            self._sessions, self._versions = [], versions
        loose = tuple(float(v) for v, p in zip(inputs, self._places, strict=True) if p.kind == "loose size")
        sizes = self._sizes(inputs)
        for ranges, fixed, session in self._sessions:
            if fixed == loose and all(ranges[n].min <= s <= ranges[n].max for n, s in sizes.items()):
                return session
        if self._changes > REBUILDS or len({f for _, f, _ in self._sessions} | {loose}) > REBUILDS:
            what = "its weights keep" if self._changes > REBUILDS else "a size that is no tensor's keeps"
            self._plain = _left(self._graph, f"{what} changing")
            return None
        return self._built(inputs, sizes, loose)

    def _sizes(self, inputs: Sequence[Any]) -> dict[str, int]:
        """The symbols' values in this call."""
        return {name: int(v.shape[axis]) for v, p in zip(inputs, self._places, strict=True) if p.kind == "tensor"
                for axis, name in enumerate(p.shape) if isinstance(name, str) and name.isidentifier()}

    def _built(self, inputs: Sequence[Any], sizes: Mapping[str, int], loose: tuple[Any, ...]) -> Session | None:
        ranges = {n: Symbol(n, 1, s, max(_ROOM * s, 16)) for n, s in sizes.items()}
        tensors = [(v, p) for v, p in zip(inputs, self._places, strict=True) if p.kind == "tensor"]
        module = _Bound(self._graph, self._places, inputs)
        dynamic = {f"input_{i}": {a: ranges[n] for a, n in enumerate(p.shape) if n in ranges}
                   for i, (_, p) in enumerate(tensors)}
        example = tuple(v.detach() for v, _ in tensors)
        try:
            made = build_with_report(module, None, self._options, example_inputs=example, name="compiled",
                                     dynamic=dynamic if any(dynamic.values()) else None)
        except IngotError as error:
            self._plain = _left(self._graph, "; ".join([error.what, *error.why[:2]]))
            return None
        session = Session(made.engine)
        if not self._sessions and not self._changes:
            GRAPHS.served += 1
        GRAPHS.engines += 1
        self._sessions.append((ranges, loose, session))
        _LOG.info("torch.compile: an engine for %s", ", ".join(map(str, ranges.values())) or "fixed sizes")
        return session


def _array(tensor: Any) -> np.ndarray:
    if tensor.dtype is torch.float32 and tensor.is_contiguous():
        made: np.ndarray = tensor.detach().numpy()
        return made
    return array_from(tensor)


__all__ = ["GRAPHS", "NotServedWarning", "ingot_backend"]
