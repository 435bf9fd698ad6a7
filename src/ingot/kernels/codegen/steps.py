"""Running the pointwise steps of a site on vectors in registers: what every prologue and epilogue shares."""
from __future__ import annotations

from collections.abc import Callable, Sequence

from ingot.graph import DType
from ingot.kernels.codegen.code import Code, Value
from ingot.kernels.codegen.expression import apply, declines_step
from ingot.kernels.tactic import Site, Step


def dtype_of(site: Site, reference: int | None) -> DType | None:
    """The element type of what a step's input refers to: operand i, or ~k for the result of step k."""
    if reference is None:
        return None
    return site.inputs[reference].type.dtype if reference >= 0 else site.steps[~reference].types[0].dtype


def declines_steps(site: Site, steps: Sequence[Step]) -> str | None:
    """Why one of the steps cannot be computed in registers, or None if all can."""
    for step in steps:
        if why := declines_step(step, [dtype_of(site, i) for i in step.inputs]):
            return why
    return None


def operands_of(steps: Sequence[Step]) -> tuple[int, ...]:
    """The site's operands that the steps read, each once, in order of first use."""
    return tuple(dict.fromkeys(i for step in steps for i in step.inputs if i is not None and i >= 0))


def run_steps(code: Code, site: Site, start: int, results: dict[int, Value], load: Callable[[int], Value],
              stop: int | None = None) -> Value:
    """Run steps start..stop (to the last one when None) on registers, and give the last result.

    `results` holds the values of earlier steps (by index) and receives the new ones. `load(i)` gives the lanes of
    the site's operand i in its own element type; it is called once per operand. With no step to run, the result of
    step start-1 is given.
    """
    loaded: dict[int, Value] = {}
    end = len(site.steps) if stop is None else stop
    for index in range(start, end):
        step = site.steps[index]
        args: list[Value | None] = []
        for reference in step.inputs:
            if reference is None:
                args.append(None)
            elif reference < 0:
                args.append(results[~reference])
            else:
                if reference not in loaded:
                    loaded[reference] = load(reference)
                args.append(loaded[reference])
        results[index] = apply(code, step, args, [dtype_of(site, i) for i in step.inputs])
    return results[end - 1]
