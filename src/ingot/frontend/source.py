"""What every framework gives: the ways to ONNX, and a run of its own to hold each of them against."""
from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from types import ModuleType
from typing import Any

import numpy as np

from ingot.errors import UnsupportedError
from ingot.frontend.shapes import ShapeSpec

Feeds = Mapping[str, np.ndarray]


@dataclass(frozen=True)
class Alarm:
    """Something about a model that makes an engine of it wrong, or might: what, where, why, and the mend."""

    kind: str               # "training mode", "frozen branch", "random", "old opset", "pre-processing", "export"
    what: str
    where: str = ""
    why: str = ""
    mend: str = ""
    grave: bool = False     # the engine would be wrong for some input; without it: it may be

    def __str__(self) -> str:
        parts = [f"{self.kind}: {self.what}", f"at {self.where}" if self.where else "", self.why, self.mend]
        return "; ".join(p for p in parts if p)


@dataclass(frozen=True)
class Export:
    """One way from the framework to ONNX. `model` gives what `frontend.load` reads, and what it noticed on the way.

    It raises UnsupportedError with the exporter's own reason.
    """

    name: str
    model: Callable[[], tuple[Any, tuple[Alarm, ...]]]
    opset: int | None = None            # where one was asked for


@dataclass(frozen=True)
class Source:
    """A model of another framework: how it may become ONNX, and how it runs itself."""

    name: str                               # the model's
    framework: str                          # with its version
    exports: tuple[Export, ...]             # the most trusted first
    run: Callable[[Feeds], Mapping[str, np.ndarray]]        # raises InputError where the model refuses the inputs
    examples: Feeds = field(default_factory=dict)           # one set of inputs; empty where none were given
    shapes: Mapping[str, ShapeSpec] = field(default_factory=dict)
    alarms: tuple[Alarm, ...] = ()
    branches: Callable[[Feeds], tuple[tuple[str, object], ...]] | None = None
    """What the model's own code decides by the data: (source line, outcome) in order, for these inputs."""


def imported(name: str, extra: str) -> ModuleType:
    """An optional library. Raises UnsupportedError with the one line that installs it."""
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise UnsupportedError(f"{name} is not installed", where=f"a model that needs ingot[{extra}]",
                               why=(str(error),), mend=f"pip install 'ingot[{extra}]'") from None
