"""Ingot as an `onnx.backend.base.Backend`: what ONNX's own test suite, and tools written against it, can drive."""
from __future__ import annotations

import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx.backend.base import Backend, BackendRep

from ingot.compiler.build import build, load, save
from ingot.compiler.options import BuildOptions
from ingot.engine import Engine, Variant
from ingot.runtime.session import Session

UNTUNED = BuildOptions(tune=False, verify=False)


class PreparedModel(BackendRep):  # type: ignore[misc]
    """A model that has become an engine, gone through an engine file, and waits for inputs."""

    def __init__(self, engine: Engine) -> None:
        self.engine = engine
        self.session = Session(engine)

    @property
    def variants(self) -> tuple[Variant, ...]:
        """What runs here: one, or as many as the model has parts."""
        return self.session.variants

    def reference_ops(self) -> tuple[str, ...]:
        """The ops that have run, or will, on the reference; none where all is compiled."""
        return self.session.referenced

    def run(self, inputs: Sequence[Any], **options: Any) -> tuple[Any, ...]:
        """The outputs in the model's order, for inputs in the model's order."""
        made = self.session.run(dict(zip(self.engine.graph.inputs, map(_given, inputs), strict=False)))
        return tuple(made.values())


def _given(value: object) -> object:
    return np.asarray(value) if isinstance(value, (np.generic, float, int, bool)) else value


class IngotBackend(Backend):  # type: ignore[misc]
    """Builds with the kernels' best guesses, without a race; the caller judges the outputs."""

    @classmethod
    def prepare(cls, model: onnx.ModelProto, device: str = "CPU", **options: Any) -> PreparedModel:
        """Build an engine of the model, write it, read it back. Raises IngotError."""
        engine = build(model, options=options.get("build", UNTUNED))
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "model.ingot"
            save(engine, path)
            return PreparedModel(load(path))

    @classmethod
    def supports_device(cls, device: str) -> bool:
        """The CPU."""
        return str(device).split(":")[0] == "CPU"


prepare = IngotBackend.prepare
supports_device = IngotBackend.supports_device

__all__ = ["IngotBackend", "PreparedModel", "prepare", "supports_device"]
