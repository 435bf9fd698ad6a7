"""PyTorch in: modules, exported programs, TorchScript, Lightning. `source_from_torch` is the only way in."""
from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ingot.frontend.shapes import ShapeSpec
from ingot.frontend.source import Source, imported

SUFFIXES = frozenset({".pt2", ".pt", ".pth", ".ts", ".torchscript", ".ckpt"})


def source_from_torch(model: Any, example_inputs: Any = None, dynamic: Any = None,
                      shapes: Mapping[str, ShapeSpec] | None = None, *,
                      checkpoint: str | os.PathLike[str] | None = None, opset: int | None = None) -> Source:
    """What Ingot needs of a module, an exported program, or a file of either (.pt2, TorchScript's .pt).

    `example_inputs` is a tensor, a tuple of positional arguments, or a mapping of arguments by name; a Lightning
    module brings its own `example_input_array`. `dynamic` says which axes may vary (see `frontend.torch.inputs`).
    `checkpoint` is loaded into the module first, weights only. Raises InputError, ModelError or UnsupportedError.
    """
    imported("torch", "torch")
    imported("onnxscript", "torch")
    # torch takes seconds to import, and only its own models need it
    from ingot.frontend.torch.files import program_from_file, with_weights
    from ingot.frontend.torch.module import source_from_module
    name = ""
    if isinstance(model, (str, os.PathLike)):
        name = Path(model).stem
        model = program_from_file(Path(model))
    if checkpoint is not None:
        model = with_weights(model, Path(checkpoint))
    return source_from_module(model, example_inputs, dynamic, shapes or {}, opset=opset, name=name)


__all__ = ["SUFFIXES", "source_from_torch"]
