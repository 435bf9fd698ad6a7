"""The integer weights of sites: smoothed, ranged, rounded, and what they add on the mean. Plans share them: made once.

Products can move the error of each rounded row of the depth into the rows after it, as the second moments of their
inputs say (GPTQ, Frantar et al. 2023), which loses less than rounding each to nearest.
"""
from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace

import numpy as np

from ingot.graph import Graph
from ingot.quantize.scales import Calibration, TensorRange
from ingot.quantize.sites import QuantSite
from ingot.quantize.weights import by_channel, short_by_channel


@dataclass(frozen=True)
class Manner:
    """How sites are made integer."""

    smooth: tuple[float, ...] = (0.3, 0.5, 0.7)     # SmoothQuant's alphas to try for products (Xiao et al. 2023)
    correct_bias: bool = True   # add back the mean error of rounded weights (Nagel et al. 2019)
    clip_weights: bool = True   # weights' ranges of least squared error
    residuals: bool = True      # additions in networks of images read the integers, too
    rows: float = 0.9           # products scale each row by itself where rows span less than this share of the range
    numbers: str = "u8"         # what activations become: u8 about a zero point; i8 or f8e4m3, zero being zero


# a GPU's matrix units: one signed type on both sides, sums no zero point has to be taken from
GPU_INT8 = Manner(smooth=(), rows=0.0, numbers="i8")
GPU_FP8 = Manner(smooth=(), correct_bias=False, clip_weights=False, residuals=False, rows=0.0, numbers="f8e4m3")


@dataclass(frozen=True)
class IntegerWeight:
    """One site's weight: i8 (or f8e4m3), the scale of each output channel (broadcasting to the weight), what each input
    channel is divided by (SmoothQuant), and what must be taken off each output channel (the mean of what rounding
    adds)."""

    integers: np.ndarray
    scale: np.ndarray
    smooth: np.ndarray | None = None
    correction: np.ndarray | None = None


def integer_weights(graph: Graph, sites: Collection[QuantSite], calibration: Calibration, manner: Manner = Manner(),
                    moments: Mapping[str, np.ndarray] | None = None) -> dict[str, IntegerWeight]:
    """The weights of sites as integers, by the sites' names. `moments` are the second moments of what products read, by
    site: with them errors are moved on, without them weights are rounded to nearest.

    Raises KeyError where the calibration lacks a site's input.
    """
    return {s.name: _integer_weight(graph, s, calibration, manner, (moments or {}).get(s.name)) for s in sites}


def _integer_weight(graph: Graph, site: QuantSite, calibration: Calibration, manner: Manner,
                    moments: np.ndarray | None) -> IntegerWeight:
    weight = graph.constants[site.weight]
    smooth = _smoothing(graph, site, weight, calibration, manner)
    kept = weight if smooth is None else weight * smooth[:, None]
    axis = 0 if site.op == "Conv" else 1
    if moments is not None and smooth is not None:
        moments = moments / np.outer(smooth, smooth)
    if manner.numbers == "f8e4m3":
        integers, scale = short_by_channel(kept, axis)
    else:
        integers, scale = by_channel(kept, axis, clip=manner.clip_weights, moments=moments)
    scale = scale.reshape([-1 if k == axis else 1 for k in range(weight.ndim)])
    error = integers.astype(np.float32) * scale - kept
    if smooth is not None:
        error = error / smooth[:, None]
    return IntegerWeight(integers, scale, smooth, _correction(graph, site, error, calibration, manner))


def by_rows(graph: Graph, site: QuantSite, t: TensorRange, manner: Manner) -> bool:
    """Whether each row of what a site reads gets a scale of its own, found while the engine runs: rows differ so much
    that one scale for all would be too coarse for most, or cut off some. For rows of sequences: a head that reads one
    row for each item would pay for it, and gain little."""
    whole = max(t.most, 0.0) - min(t.least, 0.0)
    return site.op == "MatMul" and graph.types[site.input].rank > 2 and 0.0 < t.span < manner.rows * whole


def _smoothing(graph: Graph, site: QuantSite, weight: np.ndarray, calibration: Calibration,
               manner: Manner) -> np.ndarray | None:
    """What each input channel is divided by, and its row of the weight multiplied with; None for nothing.

    Of several strengths the one whose rounding adds the least variance to the result, by the channels' statistics.
    """
    t = calibration.tensors[site.input]
    if not manner.smooth or site.op != "MatMul" or len(t.peaks) != len(weight) or len(t.energy) != len(weight):
        return None
    if by_rows(graph, site, t, manner) and one_sided(t):
        return None         # a row's scale does what smoothing would
    peaks, energy = np.maximum(np.asarray(t.peaks), 1e-5), np.asarray(t.energy)
    rows = np.maximum(np.abs(weight).max(1), 1e-5)
    best, found = _GAIN * _variance(weight, energy, t.range.scale, np.ones_like(peaks)), None
    for strength in manner.smooth:
        smooth = peaks ** strength / rows ** (1 - strength)
        smooth = smooth / np.exp(np.log(smooth).mean())
        added = _variance(weight, energy, smoothed(t, smooth).range.scale, smooth)
        if added < best:
            best, found = added, smooth.astype(np.float32)
    return found


def _correction(graph: Graph, site: QuantSite, error: np.ndarray, calibration: Calibration,
                manner: Manner) -> np.ndarray | None:
    """The mean of what the rounded weights add to each result channel."""
    t = calibration.tensors[site.input]
    means = np.asarray(t.means, np.float64)
    if not manner.correct_bias or len(means) != site.channels or by_rows(graph, site, t, manner):
        return None         # the mean over rows of very different size is nobody's
    if site.op == "MatMul":
        return np.asarray(means @ error)
    inner = error.shape[1]
    group = site.channels // inner
    flat = error.reshape(error.shape[0], inner, -1).sum(2)
    each = error.shape[0] // group
    return np.concatenate([flat[g * each:(g + 1) * each] @ means[g * inner:(g + 1) * inner] for g in range(group)])


def one_sided(t: TensorRange) -> bool:
    """Whether what lies below zero is little beside what lies above."""
    return -t.least < _ONE_SIDED * t.most


def smoothed(t: TensorRange, smooth: np.ndarray) -> TensorRange:
    """The range once each channel is divided by its part: from the channels' peaks, on the sides that were seen."""
    reach = float((np.asarray(t.peaks) / smooth).max())
    return replace(t, low=max(-reach, t.least / float(smooth.min())) if t.least < 0 else 0.0, high=reach)


def _variance(weight: np.ndarray, energy: np.ndarray, step: float, smooth: np.ndarray) -> float:
    """What rounding adds to the result's variance: steps of the input through the weights, steps of the weights
    through the input."""
    kept = weight * smooth[:, None]
    through = step ** 2 * float((kept ** 2).sum())
    steps = (np.abs(kept).max(0) / 127) ** 2
    return through + float((energy / smooth ** 2).sum()) * float(steps.sum())


_ONE_SIDED = 0.2    # what lies below zero is less than this share of what lies above
_GAIN = 0.8         # smoothing must take this share of the variance, or it is left out


__all__ = ["GPU_FP8", "GPU_INT8", "IntegerWeight", "Manner", "by_rows", "integer_weights", "one_sided", "smoothed"]
