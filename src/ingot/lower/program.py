"""The lowered program: launches in order, over named buffers and views of them."""
from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np

from ingot.graph import Dim, Symbol, TensorType
from ingot.kernels import Site


@dataclass(frozen=True)
class Launch:
    """One site at work: the values it reads and writes, in the order of the site's operands."""

    site: Site
    reads: tuple[str, ...]
    writes: tuple[str, ...]
    origin: tuple[str, ...] = ()
    native: bool = True                     # False: no tactic serves it; it runs on the reference evaluator
    reasons: tuple[str, ...] = ()           # why not, per tactic

    @property
    def where(self) -> str:
        ops = "+".join(s.op for s in self.site.steps)
        return f"{ops} '{next(iter(self.writes), '')}'" + (f" (from {', '.join(self.origin)})" if self.origin else "")


@dataclass(frozen=True)
class View:
    """A value that lies inside another value's buffer, `offset` bytes from its start."""

    base: str
    offset: Dim = 0


@dataclass(frozen=True)
class Program:
    """Everything a run needs but the kernels: what is launched, on what, and which values share storage."""

    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    launches: tuple[Launch, ...]
    views: Mapping[str, View]
    constants: Mapping[str, np.ndarray]
    types: Mapping[str, TensorType]
    symbols: Mapping[str, Symbol] = field(default_factory=dict)

    def root(self, value: str) -> tuple[str, Dim]:
        """The value whose buffer holds `value`, and the byte offset inside it."""
        offset: Dim = 0
        while value in self.views:
            view = self.views[value]
            value, offset = view.base, offset + view.offset
        return value, offset

    def __str__(self) -> str:
        lines = [f"symbol {s}" for s in self.symbols.values()]
        lines += [f"input {v}: {self.types[v]}" for v in self.inputs]
        for x in self.launches:
            mark = "" if x.native else "   # reference"
            lines.append(f"{', '.join(x.writes)} = {x.site.text} <- {', '.join(x.reads)}{mark}")
        lines += [f"view {v}: {self.types[v]} = {w.base}+{w.offset}" for v, w in self.views.items()]
        return "\n".join([*lines, f"return {', '.join(self.outputs)}"])
