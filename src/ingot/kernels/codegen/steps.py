"""Running the pointwise steps of a site on vectors in registers: what every prologue and epilogue shares."""
from __future__ import annotations

from collections.abc import Callable, Sequence

from ingot.kernels.codegen.code import Code, Value
from ingot.kernels.codegen.expression import apply, declines_step
from ingot.kernels.steps import dtype_of, walk_steps
from ingot.kernels.tactic import Site, Step


def declines_steps(site: Site, steps: Sequence[Step]) -> str | None:
    """Why one of the steps cannot be computed in registers, or None if all can."""
    for step in steps:
        if why := declines_step(step, [dtype_of(site, i) for i in step.inputs]):
            return why
    return None


def run_steps(code: Code, site: Site, start: int, results: dict[int, Value], load: Callable[[int], Value],
              stop: int | None = None) -> Value:
    """Run steps start..stop on registers, and give the last result: see `walk_steps`."""
    return walk_steps(site, start, results, load,
                      lambda step, args: apply(code, step, args, [dtype_of(site, i) for i in step.inputs]), stop)
