"""Named ranges for NVIDIA's profilers (NVTX), where the package `nvtx` is installed; nothing elsewhere."""
from __future__ import annotations

import importlib
import importlib.util
from contextlib import AbstractContextManager, nullcontext
from functools import cache
from typing import Any


@cache
def _nvtx() -> Any:
    """The package, or None."""
    return importlib.import_module("nvtx") if importlib.util.find_spec("nvtx") else None


def named(text: str) -> AbstractContextManager[object]:
    """A range that Nsight shows under this name."""
    nvtx = _nvtx()
    return nullcontext() if nvtx is None else nvtx.annotate(text, domain="ingot")


__all__ = ["named"]
