"""What comes in: the graph of a model, who knows its right answers, and everything noticed on the way."""
from __future__ import annotations

import logging
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ingot.compiler.options import BuildOptions
from ingot.errors import UnsupportedError
from ingot.frontend import Alarm, ShapeSpec, Source, read, source_from
from ingot.frontend.preprocess import joined, prefix_from
from ingot.graph import Flow, Graph
from ingot.ops.reference import run_graph
from ingot.verify import Original, accept, graph_alarms, original_from

_LOG = logging.getLogger("ingot")
_ADVICE = frozenset({"pre-processing"})         # alarms that are told in the verdict, not as warnings
Feeds = Mapping[str, np.ndarray]


@dataclass(frozen=True)
class Extras:
    """What may come with a model. Every field but the last is for a framework's model, not for an ONNX file."""

    example_inputs: Any = None
    dynamic: Any = None
    weights: str | os.PathLike[str] | None = None
    opset: int | None = None
    preprocess: str = ""


@dataclass(frozen=True)
class Intake:
    """A model as the compiler takes it."""

    graph: Graph
    name: str
    original: object                    # as `original_from` takes it
    inputs: tuple[Feeds, ...]           # to verify on
    notes: tuple[str, ...] = ()         # which export was taken, and every alarm
    flow: Flow | None = None            # where data decides the course; `graph` is then its picture


def take_in(model: Any, shapes: Mapping[str, ShapeSpec] | None, options: BuildOptions, extras: Extras,
            inputs: Sequence[Feeds] = (), original: object = None) -> Intake:
    """Read a model, or have its framework export it and hold the export against the framework's own run.

    Raises ModelError, UnsupportedError, InputError or VerifyError.
    """
    source = source_from(model, extras.example_inputs, extras.dynamic, shapes, weights=extras.weights,
                         opset=extras.opset)
    found = _read(model, shapes, inputs, original) if source is None else \
        _exported(source, options, inputs, original, bool(extras.preprocess))
    return _preprocessed(found, extras.preprocess, model) if extras.preprocess else found


def _read(model: Any, shapes: Mapping[str, ShapeSpec] | None, inputs: Sequence[Feeds], original: object) -> Intake:
    found = read(model, shapes)
    flow, graph = (found, found.graph) if isinstance(found, Flow) else (None, found)
    alarms = graph_alarms(graph)
    _tell(alarms)
    name = Path(model).stem if isinstance(model, (str, os.PathLike)) else "model"
    return Intake(graph, name, original, tuple(inputs), tuple(f"alarm, {a}" for a in alarms), flow)


def _exported(source: Source, options: BuildOptions, inputs: Sequence[Feeds], original: object, later: bool) -> Intake:
    """`later`: something comes before the model's inputs, so that the inputs given are not those of the source."""
    taken = accept(source, inputs=() if later else inputs, seed=options.seed, check=options.verify,
                   lenient=options.allow_unverified)
    _tell(taken.alarms)
    examples = [source.examples] if source.examples and not later else []
    return Intake(taken.graph, source.name, taken.original if original is None else original, (*examples, *inputs),
                  taken.lines, taken.flow)


def _tell(alarms: Sequence[Alarm]) -> None:
    for alarm in alarms:
        _LOG.log(logging.INFO if alarm.kind in _ADVICE else logging.WARNING, "%s", alarm)


def _preprocessed(before: Intake, spec: str, model: Any) -> Intake:
    """The same with pre-processing inside the graph, and in front of the original."""
    if before.flow is not None:
        raise UnsupportedError("pre-processing goes in front of a model that is one graph",
                               why=tuple(f"{c.node.where}: {c.why}" for c in before.flow.calls),
                               mend="put the pre-processing in front of the model before it is exported")
    name, prefix = prefix_from(before.graph, spec)
    path = os.fspath(model) if isinstance(model, (str, os.PathLike)) else ""
    judge = original_from(before.original, before.graph, path)

    def run(feeds: Feeds) -> Mapping[str, np.ndarray]:
        (made,) = run_graph(prefix, {name: feeds[name]}).values()
        return judge.run({**feeds, name: made})

    notes = tuple(n for n in before.notes if not n.startswith("alarm, pre-processing"))
    return Intake(joined(prefix, name, before.graph), before.name, Original(f"{judge.name} after {spec}", run),
                  before.inputs, (*notes, f"pre-processing {spec} is inside the graph"))
