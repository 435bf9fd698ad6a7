"""The first node whose value the engine computes differently: the same program, what it writes kept for a while."""
from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace

import numpy as np

from ingot.engine import Engine, Variant, make_variant
from ingot.graph import Graph
from ingot.lower import lower
from ingot.runtime.session import Session
from ingot.verify import Case, Probe, bisect, first_overflow, kernel_by_kernel
from ingot.verify.bisect import WINDOW


def divergence(engine: Engine, variant: Variant, optimized: Graph, probe: Probe, limit: int = WINDOW) -> str:
    """Which node goes wrong first on a probe, in words, keeping at most `limit` bytes of the engine's values at a time.

    `optimized` is the graph the variant's program was lowered from. Where the original itself overflows, that is told.
    """
    if overflow := first_overflow(engine.graph, probe):
        return overflow
    run, written = engine_values(engine, variant, optimized, probe)
    return bisect(run, optimized, written, probe, limit)


def kernels_judged(engine: Engine, variant: Variant, optimized: Graph, probe: Probe, limit: int = WINDOW
                   ) -> tuple[Case, ...]:
    """Each kernel of a quantised engine beside the reference on the engine's own values; see `kernel_by_kernel`."""
    run, written = engine_values(engine, variant, optimized, probe)
    return kernel_by_kernel(run, optimized, written, probe, limit)


def engine_values(engine: Engine, variant: Variant, optimized: Graph, probe: Probe
                   ) -> tuple[Callable[[tuple[str, ...]], Mapping[str, np.ndarray]], tuple[str, ...]]:
    """How to get values that the engine writes on a probe, in plain layout, and which ones there are."""
    program = lower(optimized, variant.target)
    # what was written between the elements of something else cannot be told from it afterwards
    written = tuple(dict.fromkeys(w for x in program.launches
                                  for w, o in zip(filter(None, x.writes), x.site.outputs, strict=True)
                                  if w in optimized.types and o.strides is None))

    def run(names: tuple[str, ...]) -> Mapping[str, np.ndarray]:
        kept = tuple(dict.fromkeys((*program.outputs, *names)))
        watched = make_variant(replace(program, outputs=kept), variant.target, variant.choices)
        return Session(engine, variant=watched).run(dict(probe.feeds))

    return run, written
