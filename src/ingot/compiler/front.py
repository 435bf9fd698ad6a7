"""The front between speed and accuracy: what each error allows in milliseconds, measured plan by plan."""
from __future__ import annotations

from collections.abc import Sequence

from ingot.compiler.precision import Tuner, side_by_side
from ingot.compiler.sensitivity import Judge, search
from ingot.engine import make_variant
from ingot.graph import Graph
from ingot.lower import lower
from ingot.passes import finished, optimize
from ingot.quantize import QuantSite
from ingot.report.front import FrontPoint
from ingot.target import Target

SHARES = (1.0, 0.7, 0.5, 0.35, 0.25, 0.15, 0.08)    # of the error with every site integer: the budgets that are tried


def front(base: Graph, target: Target, judge: Judge, sites: Sequence[QuantSite], tuner: Tuner | None,
          budgets: Sequence[float] | None = None) -> tuple[FrontPoint, ...]:
    """A plan for each budget, the float engine among them, timed in turns in one run; the fastest first.

    Without budgets, shares of what the whole plan loses. Without a tuner nothing is timed: seconds are 0.
    """
    whole = judge.error(sites)
    told = tuple(budgets) if budgets is not None else tuple(s * whole for s in SHARES)
    plans: dict[tuple[str, ...], float] = {}
    for budget in sorted(told, reverse=True):
        found = search(judge, sites, budget)
        plans.setdefault(found.floats, found.error)
    plans.setdefault(tuple(s.name for s in sites), 0.0)
    seconds = [0.0] * len(plans)
    if tuner is not None:
        variants = []
        for floats in plans:
            kept = [s for s in sites if s.name not in floats]
            made = optimize(judge.plan(kept), target) if kept else finished(base, target)
            program = lower(made, target)
            tuned = tuner(program)
            variants.append(make_variant(program, target, tuned.choices, tuned.kernels))
        seconds = side_by_side(base, variants)
    points = [FrontPoint(f, e, s) for (f, e), s in zip(plans.items(), seconds, strict=True)]
    return tuple(sorted((FrontPoint(p.floats, p.error, p.seconds, _beaten(p, points)) for p in points),
                        key=lambda p: (p.seconds, p.error)))


def _beaten(point: FrontPoint, points: Sequence[FrontPoint]) -> bool:
    return any(p.seconds <= point.seconds and p.error <= point.error
               and (p.seconds < point.seconds or p.error < point.error) for p in points)


__all__ = ["SHARES", "front"]
