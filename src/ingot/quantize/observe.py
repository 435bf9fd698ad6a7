"""What is remembered of a tensor's values while they stream by: bounded memory, whatever their number.

A histogram whose range doubles (pairs of bins merge) when a value falls outside it, the exact extremes, and per channel
the largest magnitude and the mean. A histogram is all that the choice of a range needs; the channels serve SmoothQuant
and bias correction.
"""
from __future__ import annotations

import numpy as np

BINS = 4096


class Observer:
    """Statistics of one tensor. `axis` is its channels' axis. Not frozen: it lives inside one calibration."""

    def __init__(self, axis: int, channels: int) -> None:
        self.axis = axis
        self.counts = np.zeros(BINS, np.float64)
        self.low = self.high = 0.0                  # the histogram's range
        self.least, self.most = np.inf, -np.inf     # of the finite values
        self.seen = 0                               # values
        self.odd = 0                                # NaN or infinite
        self.peaks = np.zeros(channels)
        self._sums, self._squares = np.zeros(channels), np.zeros(channels)
        self._rows, self._spans = 0, 0.0

    def update(self, array: np.ndarray) -> None:
        """Take in one batch of the tensor."""
        moved = np.moveaxis(array, self.axis, -1).reshape(-1, array.shape[self.axis]).astype(np.float32, copy=False)
        if moved.size == 0:
            return
        least, most = float(moved.min()), float(moved.max())
        if not (np.isfinite(least) and np.isfinite(most)):
            bad = ~np.isfinite(moved)
            self.odd += int(bad.sum())
            moved = np.where(bad, np.float32(0), moved)
            least, most = float(moved.min()), float(moved.max())
        self.peaks = np.maximum(self.peaks, np.abs(moved).max(0))
        self._sums += moved.sum(0, dtype=np.float64)
        self._squares += np.einsum("ij,ij->j", moved, moved, dtype=np.float64)
        self._rows += len(moved)
        spans = np.maximum(moved.max(1), 0).astype(np.float64) - np.minimum(moved.min(1), 0)
        self._spans += float((spans ** 2).sum())
        self.seen += moved.size
        self.least, self.most = min(self.least, least), max(self.most, most)
        self._cover(least, most)
        width = (self.high - self.low) / BINS
        index = ((moved.reshape(-1) - np.float32(self.low)) * np.float32(1 / width)).astype(np.int32)
        self.counts += np.bincount(np.clip(index, 0, BINS - 1), minlength=BINS)

    @property
    def means(self) -> np.ndarray:
        """Per channel."""
        return self._sums / max(1, self._rows)

    @property
    def energy(self) -> np.ndarray:
        """The mean square per channel."""
        return self._squares / max(1, self._rows)

    @property
    def span(self) -> float:
        """The root mean square of what the rows span (all channels at one place), zero included."""
        return float(np.sqrt(self._spans / max(1, self._rows)))

    def _cover(self, least: float, most: float) -> None:
        """Widen the histogram until it holds these values."""
        if self.high == self.low:
            reach = max(abs(least), abs(most), 1e-30)
            self.low, self.high = (-reach if least < 0 else 0.0), reach
        while most > self.high:
            self._halve()
            self.high += self.high - self.low
            self.counts[BINS // 2:] = 0
        while least < self.low:
            half = self.counts.reshape(-1, 2).sum(1)
            self.low -= self.high - self.low
            self.counts = np.concatenate([np.zeros(BINS // 2), half])

    def _halve(self) -> None:
        self.counts = np.concatenate([self.counts.reshape(-1, 2).sum(1), np.zeros(BINS // 2)])


__all__ = ["BINS", "Observer"]
