"""From a histogram to the range that integers shall span.

minmax      all that was seen
percentile  all but one value in ten thousand, half of them on either side
mse         the range that loses the least: squared error of rounding and clipping, over the histogram
entropy     the range whose quantised distribution tells least from the original (Kullback-Leibler divergence), as
            Migacz, "8-bit inference with TensorRT", GTC 2017, describes it

A range always holds zero, so that zero is one of the integers.
"""
from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np

from ingot.quantize.observe import BINS, Observer

LEVELS = 255            # steps between the least and the largest of 256 integers
_KEPT = 0.9999
_TRIED = 96             # ranges tried by a search
_FEWEST = LEVELS + 1      # bins that a range tried for its entropy must have: one for each integer


@dataclass(frozen=True)
class Range:
    """The reals that the integers span; zero is inside."""

    low: float
    high: float

    @property
    def scale(self) -> float:
        """The reals between two neighbouring integers, for 256 of them."""
        return max((self.high - self.low) / LEVELS, 1e-12)

    @property
    def zero(self) -> int:
        """The integer that stands for zero, of 0..255."""
        return int(np.clip(round(-self.low / self.scale), 0, LEVELS))


def _held(low: float, high: float) -> Range:
    return Range(min(low, 0.0), max(high, 0.0))


def _centres(o: Observer) -> np.ndarray:
    width = (o.high - o.low) / BINS
    return np.asarray(o.low + width * (np.arange(BINS) + 0.5))


def minmax(o: Observer) -> Range:
    """All that was seen."""
    return _held(o.least, o.most)


def percentile(o: Observer, kept: float = _KEPT) -> Range:
    """All but a share of 1 - `kept` of the values, half of it on either side."""
    total = np.cumsum(o.counts) / max(1.0, o.counts.sum())
    width = (o.high - o.low) / BINS
    first = int(np.searchsorted(total, (1 - kept) / 2, side="right"))
    last = int(np.searchsorted(total, 1 - (1 - kept) / 2, side="left"))
    return _held(max(o.least, o.low + width * first), min(o.most, o.low + width * (last + 1)))


def _tried(o: Observer, least: float) -> list[Range]:
    """What was seen, cut at one magnitude after another, down to a share `least` of the largest."""
    whole = minmax(o)
    reach = max(-whole.low, whole.high)
    return [_held(max(whole.low, -reach * s), min(whole.high, reach * s)) for s in np.geomspace(1.0, least, _TRIED)]


def mse(o: Observer) -> Range:
    """The least squared error of rounding and clipping, over the histogram."""
    x = _centres(o)
    best, found = np.inf, minmax(o)
    for tried in _tried(o, 0.03):
        integers = np.clip(np.rint(x / tried.scale) + tried.zero, 0, LEVELS)
        error = float((o.counts * ((integers - tried.zero) * tried.scale - x) ** 2).sum())
        # a bin is no point: what rounding costs is at least that of values spread evenly over a step
        error += float(o.counts[(x >= tried.low) & (x <= tried.high)].sum()) * tried.scale ** 2 / 12
        if error < best:
            best, found = error, tried
    return found


def entropy(o: Observer) -> Range:
    """The least divergence between the values, clipped, and what integers make of them.

    Two things keep it from clipping all that is rare. Exact zeros, most of what follows a Relu, are counted as their
    neighbours are: every range has an integer for zero, while a histogram would charge wide ranges for spreading them
    (NVIDIA's own implementation does the same). And a range must be so wide that each integer stands for a bin at
    least, as Migacz has it: with fewer nothing is lost in rounding, by this measure.
    """
    x, counts = _centres(o), _without_zeros(o)
    best, found = np.inf, minmax(o)
    for tried in _tried(o, 0.06):
        inside = (x >= tried.low) & (x <= tried.high)
        if inside.sum() < _FEWEST:
            continue
        p = np.where(inside, counts, 0.0)
        first, last = np.flatnonzero(inside)[[0, -1]]
        q = _spread(p, inside, x, tried)
        p[first] += counts[:first].sum()
        p[last] += counts[last + 1:].sum()
        divergence = _divergence(p[inside], q[inside])
        if divergence < best:
            best, found = divergence, tried
    return found


def _without_zeros(o: Observer) -> np.ndarray:
    """The histogram; the bin that holds zero has as many as the bins beside it."""
    at = int(np.clip(-o.low / (o.high - o.low) * BINS, 0, BINS - 1))
    beside = [o.counts[k] for k in (at - 1, at + 1) if 0 <= k < BINS and o.low + (o.high - o.low) / BINS * k >= o.least]
    counts = o.counts.copy()
    counts[at] = min(counts[at], float(np.mean(beside)) if beside else counts[at])
    return counts


def _spread(counts: np.ndarray, inside: np.ndarray, x: np.ndarray, r: Range) -> np.ndarray:
    """The histogram as it looks once quantised: each integer's count spread evenly over its bins that are not empty."""
    levels = (np.rint(x / r.scale) + r.zero).astype(np.int64)
    levels = np.where(inside, levels - levels[inside].min(), 0)
    filled = inside & (counts > 0)
    totals = np.bincount(levels[filled], counts[filled], minlength=int(levels.max()) + 1)
    bins = np.bincount(levels[filled], minlength=int(levels.max()) + 1)
    return np.asarray(np.where(filled, (totals / np.maximum(bins, 1))[levels], 0.0))


def _divergence(p: np.ndarray, q: np.ndarray) -> float:
    """Kullback-Leibler, of two histograms made probabilities; empty bins get a little, so that none is infinite."""
    a, b = p / max(p.sum(), 1e-30) + 1e-9, q / max(q.sum(), 1e-30) + 1e-9
    return float((a * np.log(a / b)).sum())


METHODS: Mapping[str, Callable[[Observer], Range]] = {
    "minmax": minmax, "percentile": percentile, "mse": mse, "entropy": entropy}


def chosen(o: Observer, method: str) -> Range:
    """The range of a method. A tensor without any finite value spans nothing."""
    return METHODS[method](o) if o.seen and o.most >= o.least else Range(0.0, 0.0)


__all__ = ["LEVELS", "METHODS", "Range", "chosen", "entropy", "minmax", "mse", "percentile"]
