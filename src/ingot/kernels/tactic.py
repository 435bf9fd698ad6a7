"""What a kernel serves (Site), one way to serve it (Tactic), and what comes out (Kernel)."""
from __future__ import annotations

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from importlib import import_module
from typing import cast

import numpy as np

from ingot.graph import Dim, Symbol, TensorType
from ingot.graph.types import dense_strides
from ingot.target import Target

Params = Mapping[str, int]


@dataclass(frozen=True)
class Operand:
    """A tensor a kernel reads or writes.

    `strides` are in elements over the *physical* dimensions (`type.physical`), None where the tensor is dense
    and row-major; the innermost stride is 1 unless a tactic asks otherwise. `constant` operands are known at
    build time and may be packed.
    """

    type: TensorType
    strides: tuple[Dim, ...] | None = None
    constant: bool = False
    aligned: bool = True        # its first element is known to lie at a multiple of 16 bytes; told for GPUs alone

    @property
    def steps(self) -> tuple[Dim, ...]:
        """The strides, spelled out."""
        return dense_strides(self.type.physical) if self.strides is None else self.strides

    def __str__(self) -> str:
        return f"{self.type}{'*' if self.constant else ''}" + (
            f"@{list(self.strides)}" if self.strides else "") + ("" if self.aligned else "~")


@dataclass(frozen=True)
class Step:
    """One op inside a site. Inputs: i >= 0 is the site's operand i, ~k (negative) the result of step k, None absent."""

    op: str
    inputs: tuple[int | None, ...]
    attrs: tuple[tuple[str, object], ...] = ()      # sorted, only those that are given
    types: tuple[TensorType, ...] = ()              # of the step's results, those that are there
    absent: tuple[int, ...] = ()                    # positions of results that nothing wants


@dataclass(frozen=True)
class Site:
    """A piece of the graph that one kernel computes: everything a tactic may look at, and nothing else.

    `main` is the index of the step the site is named after: steps before it are its prologue, steps after it
    its epilogue, all of them pointwise. A site that is only pointwise has main 0. A chain of convolutions is named
    after its last one; the ones before are in its prologue. The outputs are the results of the last step.
    """

    steps: tuple[Step, ...]
    inputs: tuple[Operand, ...]
    outputs: tuple[Operand, ...]
    symbols: tuple[Symbol, ...] = ()
    main: int = 0

    @property
    def op(self) -> str:
        return self.steps[self.main].op

    @property
    def step(self) -> Step:
        return self.steps[self.main]

    @property
    def attrs(self) -> dict[str, object]:
        """The given attributes of the main step."""
        return dict(self.step.attrs)

    @property
    def output(self) -> TensorType:
        return self.outputs[0].type

    @property
    def epilogue(self) -> tuple[Step, ...]:
        return self.steps[self.main + 1:]

    @cached_property
    def text(self) -> str:
        steps = "; ".join(f"{s.op}{list(s.inputs)}{ {k: _attr(v) for k, v in s.attrs} or ''}"
                          + (f"-{list(s.absent)}" if s.absent else "") for s in self.steps)
        return (f"{steps} | {', '.join(map(str, self.inputs))} -> {', '.join(map(str, self.outputs))}"
                + (f" | {', '.join(map(str, self.symbols))}" if self.symbols else ""))

    @cached_property
    def key(self) -> str:
        """Sixteen hex digits that stand for the site: the same site, the same key, on any machine."""
        return hashlib.sha256(f"{self.main} {self.text}".encode()).hexdigest()[:16]

    def __str__(self) -> str:
        ops = "+".join(s.op for s in self.steps)
        return f"{ops}({', '.join(map(str, self.inputs))}) -> {', '.join(map(str, self.outputs))}"


def _attr(value: object) -> object:
    """An attribute as text that stands for all of its content."""
    if isinstance(value, np.ndarray):
        return f"{value.dtype}{list(value.shape)}#{hashlib.sha256(value.tobytes()).hexdigest()[:16]}"
    return value


@dataclass(frozen=True)
class Kernel:
    """Code for one site at one point of a tactic's space.

    `code` is a module of LLVM IR. Each entry in `phases` is `void f(ptr buffers, ptr symbols, i64 thread,
    i64 threads)`; every thread calls every phase in order, with a barrier after each. `buffers` is a table of
    pointers: the site's inputs, its outputs, then the workspace and the scratch area. `symbols` are i64 sizes in
    the order of `site.symbols`. `workspace` (bytes) is shared by the threads; `scratch` is bytes per thread: thread
    t owns [t*scratch, (t+1)*scratch) of the scratch area. Both are 64-byte aligned and hold anything on entry.
    """

    name: str
    code: str
    phases: tuple[str, ...]
    workspace: Dim = 0
    scratch: Dim = 0
    meta: Mapping[str, object] = field(default_factory=dict)    # what a report may show


class Tactic(ABC):
    """One way to compute a kind of site. Stateless: a class is registered by being listed in its target.

    An `exact` tactic sums the very products that the op is defined by, in some order; one that is not computes the
    same from others (Winograd), with larger rounding errors, and a build may be told to leave it out.
    """

    name: str
    exact: bool = True

    @abstractmethod
    def declines(self, site: Site, target: Target) -> str | None:
        """Why this tactic cannot serve the site, or None if it can."""

    def space(self, site: Site, target: Target) -> Iterator[Params]:
        """Points to try, the best guess first (it is what an untuned build takes)."""
        yield {}

    def pack(self, site: Site, params: Params, target: Target,
             constants: Mapping[int, np.ndarray]) -> Mapping[int, np.ndarray]:
        """Constant operands the kernel wants in another form: operand index -> flat array. Others stay plain."""
        return {}

    @abstractmethod
    def emit(self, site: Site, params: Params, target: Target) -> Kernel:
        """The kernel for one point of the space. Raises CandidateError if this point cannot be built."""


class Registry(dict[str, tuple["Tactic", ...]]):
    """Target kind -> tactics, best guess first.

    A target's tactics are imported when they are first asked for: an engine that runs on a CPU from ready code needs
    none of them, and its build none of the GPU's.
    """

    MODULES = {"x86": "ingot.kernels.x86.tactics", "neon": "ingot.kernels.x86.tactics",
               "cuda": "ingot.kernels.cuda.tactics"}

    def __missing__(self, kind: str) -> tuple[Tactic, ...]:
        if kind not in self.MODULES:
            return ()
        self[kind] = found = cast("tuple[Tactic, ...]", import_module(self.MODULES[kind]).TACTICS)
        return found


TACTICS = Registry()


def able(site: Site, target: Target, *, exact: bool = False) -> tuple[list[Tactic], list[str]]:
    """The tactics that can serve a site, and for each of the others the reason it cannot.

    With `exact`, tactics that are not exact are among the others.
    """
    willing: list[Tactic] = []
    reasons: list[str] = []
    for tactic in TACTICS[target.kind]:
        why = "it is not exact" if exact and not tactic.exact else tactic.declines(site, target)
        if why:
            reasons.append(f"{tactic.name}: {why}")
        else:
            willing.append(tactic)
    return willing, reasons
