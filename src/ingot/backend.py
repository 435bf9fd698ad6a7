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
from ingot.errors import UnsupportedError
from ingot.runtime.cuda.open import open_cuda
from ingot.runtime.cuda.session import CudaSession
from ingot.runtime.cuda.target import found_driver, has_cuda
from ingot.runtime.session import Session

UNTUNED = BuildOptions(tune=False, verify=False)
UNTUNED_GPU = BuildOptions(tune=False, verify=False, target="cuda", precision="f32", points=1)


class PreparedModel(BackendRep):  # type: ignore[misc]
    """A model that has become an engine, gone through an engine file, and waits for inputs.

    `host` says why it runs on the host although a GPU was asked for.
    """

    def __init__(self, engine: Engine, session: Session | CudaSession | None = None, host: str = "") -> None:
        self.engine, self.host = engine, host
        self.session = session or Session(engine)

    @property
    def variants(self) -> tuple[Variant, ...]:
        """What runs here: one, or as many as the model has parts."""
        return self.session.variants

    def reference_ops(self) -> tuple[str, ...]:
        """The ops that have run, or will, on the reference; none where all is compiled."""
        return (self.host,) if self.host else self.session.referenced

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
        """Build an engine of the model, write it, read it back. Raises IngotError.

        On "CUDA" in f32; a model that is not built for a GPU runs on the host, and says so.
        """
        host = ""
        if device.split(":")[0] == "CUDA":
            try:
                engine = build(model, options=options.get("build", UNTUNED_GPU))
            except UnsupportedError as error:
                host, engine = f"on the host: {error.what}", build(model, options=UNTUNED)
        else:
            engine = build(model, options=options.get("build", UNTUNED))
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "model.ingot"
            save(engine, path)
            loaded = load(path)
        return PreparedModel(loaded, open_cuda(loaded, trust=True) if has_cuda(loaded) else None, host)

    @classmethod
    def supports_device(cls, device: str) -> bool:
        """The CPU, and a GPU where there is one."""
        kind = str(device).split(":")[0]
        return kind == "CPU" or (kind == "CUDA" and found_driver() is not None)


prepare = IngotBackend.prepare
supports_device = IngotBackend.supports_device

__all__ = ["IngotBackend", "PreparedModel", "prepare", "supports_device"]
