"""Engine and Variant: a portable graph, and for each device what was chosen, packed and planned for it."""
from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Generic, TypeVar

import numpy as np

from ingot.engine.code import Bundle
from ingot.graph import Flow, Graph
from ingot.lower import Program
from ingot.plan import MemoryPlan
from ingot.target import Target
from ingot.tune import Choice, generator_version

T = TypeVar("T")
Check = Callable[[], None]


@dataclass(frozen=True)
class Variant:
    """What runs on one kind of device.

    `program.constants` are those a launch reads in plain form; the others are in `packed`, by launch and operand.
    """

    target: Target
    generator: str                                      # version of the kernel generator the choices were made with
    program: Program
    choices: Mapping[str, Choice]                       # site key -> choice, for every native launch
    packed: Mapping[tuple[int, int], np.ndarray]        # (launch, operand) -> flat array
    plan: MemoryPlan
    report: Mapping[str, object] = field(default_factory=dict)      # the race and the build, for reading
    code: Bundle = field(default_factory=Bundle)                           # of a GPU: kernels that travel with it


@dataclass(frozen=True)
class Sealed(Generic[T]):
    """A part of an engine file that is read, and its hashes checked, when it is first wanted.

    `read` gives the part, and what waits for the check of its arrays, which runs on threads of its own meanwhile.
    """

    read: Callable[[], tuple[T, Check]]
    target: Target | None = None        # of a variant, as its generator
    generator: str = ""

    @cached_property
    def begun(self) -> tuple[T, Check]:
        """The part, whose arrays are not to be read before the check has returned. Raises EngineError."""
        return self.read()

    @property
    def opened(self) -> T:
        """The part. Raises EngineError where it is damaged."""
        part, check = self.begun
        check()
        return part


@dataclass(frozen=True)
class Engine:
    """A built model: data only. `ingot.runtime.Session` runs it."""

    name: str
    portable: Graph | Sealed[Graph]                     # as loaded, before any target was known
    variants: tuple[Variant | Sealed[Variant], ...] = ()
    verdict: Mapping[str, object] = field(default_factory=dict)     # what verification found
    report: Mapping[str, object] = field(default_factory=dict)      # how it was built
    flow: Flow | None = None            # where data decides the course; `portable` is then its picture as one graph
    parts: tuple[Engine, ...] = ()      # of the flow, in its order; it has no variants of its own

    @property
    def graph(self) -> Graph:
        """The portable graph. Raises EngineError where that part of the file is damaged."""
        return self.portable.opened if isinstance(self.portable, Sealed) else self.portable

    @property
    def targets(self) -> tuple[Target, ...]:
        """The devices there is a variant for."""
        if self.parts:
            return self.parts[0].targets
        return tuple(v.target for v in self.variants if v.target is not None)

    def variant_for(self, target: Target) -> Variant | None:
        """The variant made for this very kind of device by this very kernel generator, or None.

        One for another number of threads will do where there is none for this one. Another generator's will not: it
        may want constants packed otherwise. Raises EngineError where the variant is damaged.
        """
        variant, check = self.begin(target)
        check()
        return variant

    def begin(self, target: Target) -> tuple[Variant | None, Check]:
        """As `variant_for`, while the check of its arrays still runs: read none before it has returned."""
        for wanted in (target.fingerprint, None):
            for variant in self.variants:
                if variant.target is None or variant.generator != generator_version(variant.target):
                    continue
                if _same_device(variant.target, target) and wanted in (variant.target.fingerprint, None):
                    return variant.begun if isinstance(variant, Sealed) else (variant, _checked)
        return None, _checked

    def profiles(self, first: Variant) -> tuple[Variant, ...]:
        """The variants made with this one, for the same device: each has ranges of its own for the sizes of inputs.

        Raises EngineError where one is damaged.
        """
        others = [v for v in self.variants if v.target == first.target and v.generator == first.generator]
        return (first, *(o for v in others if (o := opened(v)) is not first))

    def declines(self, target: Target) -> str | None:
        """Why the engine has nothing tuned for this device, or None if it has."""
        if self.flow is not None:
            return next((why for p in self.parts if (why := p.declines(target)) is not None), None)
        here = [v for v in self.variants if v.target is not None and _same_device(v.target, target)]
        if any(v.generator == generator_version(target) for v in here):
            return None
        if here:
            made = ", ".join(v.generator for v in here)
            return f"it was built by kernel generator {made}; the installed one is {generator_version(target)}"
        if any(t.fingerprint == target.fingerprint for t in self.targets):
            return "it was built for this kind of device with other features of the instruction set"
        held = ", ".join(t.fingerprint for t in self.targets) or "no device"
        return f"it was built for {held}; this device is {target.fingerprint}"


def opened(variant: Variant | Sealed[Variant]) -> Variant:
    """The variant itself. Raises EngineError where it is damaged."""
    return variant.opened if isinstance(variant, Sealed) else variant


def _checked() -> None:
    """What was not read from a file needs no check."""


def _same_device(a: Target, b: Target) -> bool:
    """Whether two targets differ in the number of threads at most; a device may be lent with fewer features."""
    return replace(a, threads=1) == replace(b, threads=1)
