"""Which sites may be integer: the effect of each on the output, and the largest set that stays inside a budget.

The error of a set of sites is measured, not estimated: the graph with exactly those sites on integers runs with the
kernels it would ship, and its outputs are held against the float engine's. Groups of sites whose error is small are
never looked into; the others are halved until the sites that break the model stand alone. Then sites leave the plan,
the worst first, until it is inside the budget, and each of them is tried once more on the plan that was found.
Memory is that of one engine and of the float outputs of the data.
"""
from __future__ import annotations

import json
import os
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from ingot.compiler.running import Feeds, watching
from ingot.errors import InputError
from ingot.graph import Graph
from ingot.quantize import Calibration, QuantSite, quantisable
from ingot.quantize.insert import quantized
from ingot.quantize.rounding import IntegerWeight, Manner, integer_weights
from ingot.target import Target

Outputs = Mapping[str, np.ndarray]
Metric = Callable[[Feeds, Outputs], float]          # higher is better, for example the share of right answers
_SHARE = 0.25           # a group whose error is this share of the budget is not looked into


@dataclass(frozen=True)
class Search:
    """What a search found: the sites that stay in floats, the plan's error, and every error measured on the way."""

    floats: tuple[str, ...]             # names of sites
    error: float                        # of the plan, in the budget's unit
    whole: float                        # with every site integer
    alone: Mapping[str, float] = field(default_factory=dict)    # of sites measured by themselves
    measured: int = 0                   # plans that were run


def dissimilarity(wanted: Outputs, found: Outputs) -> float:
    """One minus the mean cosine, item by item, in percent: the worst output counts."""
    worst = 0.0
    for name, array in wanted.items():
        x, y = (np.atleast_1d(np.asarray(a, np.float64)) for a in (array, found[name]))
        x, y = x.reshape(len(x), -1), y.reshape(len(y), -1)
        lengths = np.linalg.norm(x, axis=1), np.linalg.norm(y, axis=1)
        norms = lengths[0] * lengths[1]
        alike = ((lengths[0] == 0) & (lengths[1] == 0)).astype(np.float64)      # two zeros agree, one does not
        cosines = np.where(norms == 0, alike, (x * y).sum(1) / np.maximum(norms, 1e-300))
        worst = max(worst, float(1 - np.nan_to_num(cosines, nan=-1.0).mean()))
    return 100 * worst


class Judge:
    """Measures sets of sites on data. `metric` judges outputs (points lost count); by default they are compared."""

    def __init__(self, base: Graph, target: Target, calibration: Calibration, data: Sequence[Feeds],
                 manner: Manner = Manner(), metric: Metric | None = None,
                 weights: Mapping[str, IntegerWeight] | None = None) -> None:
        self._base, self._target, self._calibration, self._manner = base, target, calibration, manner
        self._data, self._metric = data, metric
        if weights is None:
            weights = integer_weights(base, [s for s in quantisable(base) if s.input in calibration.tensors],
                                      calibration, manner)
        self._weights = weights
        run = watching(base, target, base.outputs)
        self._wanted = [dict(run(f)) for f in data]
        self._known: dict[frozenset[str], float] = {}

    @property
    def measured(self) -> int:
        return len(self._known)

    def plan(self, sites: Collection[QuantSite]) -> Graph:
        """The graph with exactly these sites on integers."""
        return quantized(self._base, sites, self._calibration, self._manner, self._weights)

    def error(self, sites: Collection[QuantSite]) -> float:
        """Of the graph with exactly these sites on integers: percent of dissimilarity, or points of the metric."""
        key = frozenset(s.name for s in sites)
        if not sites:
            return 0.0
        if key not in self._known:
            made = self.plan(sites)
            run = watching(made, self._target, made.outputs)
            losses = [self._loss(f, w, run(f)) for f, w in zip(self._data, self._wanted, strict=True)]
            self._known[key] = float(np.mean(losses))
        return self._known[key]

    def _loss(self, feeds: Feeds, wanted: Outputs, found: Outputs) -> float:
        if self._metric is None:
            return dissimilarity(wanted, found)
        return 100 * (self._metric(feeds, wanted) - self._metric(feeds, found))


def search(judge: Judge, sites: Sequence[QuantSite], budget: float,
           gains: Mapping[str, float] | None = None) -> Search:
    """The plan of most integer sites inside the budget. `gains` are seconds won by each: ties favour larger ones."""
    whole = judge.error(sites)
    if whole <= budget:
        return Search((), whole, whole, measured=judge.measured)
    alone: dict[str, float] = {}
    _split(judge, list(sites), budget, alone)
    kept, dropped = list(sites), []
    for name in sorted(alone, key=lambda n: -alone[n] / max(1e-12, (gains or {}).get(n, 1.0))):
        if judge.error(kept) <= budget:
            break
        site = next(s for s in kept if s.name == name)
        kept.remove(site)
        dropped.append(site)
    while kept and judge.error(kept) > budget:      # many small errors: those not looked into go from the front
        dropped.append(kept.pop(0))
    for site in sorted(dropped, key=lambda s: alone.get(s.name, 0.0)):
        tried = [s for s in sites if s in kept or s is site]
        if judge.error(tried) <= budget:
            kept = tried
    left = {s.name for s in kept}
    return Search(tuple(s.name for s in sites if s.name not in left), judge.error(kept), whole, alone, judge.measured)


def _split(judge: Judge, group: list[QuantSite], budget: float, alone: dict[str, float]) -> None:
    """Halve a group that loses too much until its sites stand alone."""
    error = judge.error(group)
    if len(group) == 1:
        alone[group[0].name] = error
    elif error > _SHARE * budget:
        middle = len(group) // 2
        _split(judge, group[:middle], budget, alone)
        _split(judge, group[middle:], budget, alone)


def write_plan(plan: Mapping[str, str], path: str | os.PathLike[str]) -> None:
    """Write which site has which precision: a file to edit and build from again."""
    Path(path).write_text(json.dumps({"ingot_plan": 1, "sites": dict(plan)}, indent=1) + "\n")


def read_plan(path: str | os.PathLike[str]) -> dict[str, str]:
    """The precisions of sites by name. Raises InputError for a file that holds none."""
    try:
        found = json.loads(Path(path).read_text())
        sites = {str(k): str(v) for k, v in found["sites"].items()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise InputError(f"cannot read the plan {path}", why=(str(error),),
                         mend='write {"ingot_plan": 1, "sites": {"NAME": "int8"}}, or let a build write one') from None
    if unknown := next((v for v in sites.values() if v not in ("int8", "f32")), None):
        raise InputError(f"the plan {path} asks for {unknown!r}", mend="write int8 or f32 for each site")
    return sites


__all__ = ["Judge", "Search", "dissimilarity", "read_plan", "search", "write_plan"]
