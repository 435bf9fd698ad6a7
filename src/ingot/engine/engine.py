"""Engine and Variant: a portable graph, and for each device what was chosen, packed and planned for it."""
from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np

from ingot.graph import Graph
from ingot.lower import Program
from ingot.plan import MemoryPlan
from ingot.target import Target
from ingot.tune import Choice


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


@dataclass(frozen=True)
class Engine:
    """A built model: data only. `ingot.runtime.Session` runs it."""

    name: str
    graph: Graph                                        # portable: as loaded, before any target was known
    variants: tuple[Variant, ...] = ()
    verdict: Mapping[str, object] = field(default_factory=dict)     # what verification found
    report: Mapping[str, object] = field(default_factory=dict)      # how it was built

    def variant_for(self, target: Target) -> Variant | None:
        """The variant made for this very kind of device, or None."""
        return next((v for v in self.variants if v.target.fingerprint == target.fingerprint), None)
