"""Ingot: from a trained model to a verified engine as fast as the very device allows."""
from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

from ingot.compiler.options import BuildOptions
from ingot.errors import IngotError
from ingot.target import Target

if TYPE_CHECKING:
    from ingot.compiler.build import build, load, save
    from ingot.engine import Engine
    from ingot.graph import Symbol
    from ingot.runtime.group import SessionGroup
    from ingot.runtime.session import Session

_WHERE = {"Engine": "ingot.engine", "Session": "ingot.runtime.session",
          "SessionGroup": "ingot.runtime.group", "Symbol": "ingot.graph",
          "build": "ingot.compiler.build", "load": "ingot.compiler.build", "save": "ingot.compiler.build"}

__all__ = ["BuildOptions", "Engine", "IngotError", "Session", "SessionGroup", "Symbol", "Target", "build", "load",
           "save"]


def __getattr__(name: str) -> object:
    """The compiler is imported when it is first asked for: `import ingot` alone must not take its quarter second."""
    if name not in _WHERE:
        raise AttributeError(f"module 'ingot' has no attribute {name!r}")
    found = getattr(import_module(_WHERE[name]), name)
    globals()[name] = found         # so that `ingot.build` is the function, also where the module was imported
    return found
