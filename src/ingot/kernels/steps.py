"""The walk over a site's steps, which every target's kernels take with registers of their own kind."""
from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeVar

from ingot.graph import DType
from ingot.kernels.tactic import Site, Step

T = TypeVar("T")


def dtype_of(site: Site, reference: int | None) -> DType | None:
    """The stored type of what a step's input refers to: operand i, or ~k for the result of step k."""
    if reference is None:
        return None
    return site.inputs[reference].type.dtype if reference >= 0 else site.steps[~reference].types[0].dtype


def operands_of(steps: Sequence[Step]) -> tuple[int, ...]:
    """The site's operands that the steps read, each once, in order of first use."""
    return tuple(dict.fromkeys(i for step in steps for i in step.inputs if i is not None and i >= 0))


def declines_order(site: Site) -> str | None:
    """Why a tactic that takes the site's operands for the op's, in order, cannot serve it: one may be given twice."""
    return None if site.step.inputs == tuple(range(len(site.inputs))) else "needs every operand once, in the op's order"


def walk_steps(site: Site, start: int, results: dict[int, T], load: Callable[[int], T],
               apply: Callable[[Step, list[T | None]], T], stop: int | None = None) -> T:
    """Apply steps start..stop (to the last one when None), and give the last result.

    `results` holds the values of earlier steps (by index) and receives the new ones. `load(i)` gives the site's
    operand i in its own element type; it is called once per operand. With no step to run, the result of step start-1
    is given.
    """
    loaded: dict[int, T] = {}
    end = len(site.steps) if stop is None else stop
    for index in range(start, end):
        step = site.steps[index]
        args: list[T | None] = []
        for reference in step.inputs:
            if reference is None:
                args.append(None)
            elif reference < 0:
                args.append(results[~reference])
            else:
                if reference not in loaded:
                    loaded[reference] = load(reference)
                args.append(loaded[reference])
        results[index] = apply(step, args)
    return results[end - 1]
