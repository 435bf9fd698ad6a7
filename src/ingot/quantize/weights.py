"""Weights as integers: per output channel, symmetric."""
from __future__ import annotations

import numpy as np

_SHRUNK = np.linspace(1.0, 0.6, 21)


def by_channel(weight: np.ndarray, axis: int, *, clip: bool = False) -> tuple[np.ndarray, np.ndarray]:
    """A weight as i8 in -127..127 and the scale of each channel along `axis`, in f32.

    With `clip` each channel's range is the one of 21 that loses the least squared error.
    """
    moved = np.moveaxis(weight, axis, 0).reshape(weight.shape[axis], -1).astype(np.float32)
    peak = np.abs(moved).max(1)
    share = np.ones_like(peak)
    if clip:
        errors = np.stack([_error(moved, peak * s) for s in _SHRUNK])
        share = _SHRUNK[errors.argmin(0)].astype(np.float32)
    scale = np.maximum(peak * share / 127, np.float32(1e-12)).astype(np.float32)
    shape = tuple(-1 if k == axis % weight.ndim else 1 for k in range(weight.ndim))
    integers = np.clip(np.rint(weight / scale.reshape(shape)), -127, 127).astype(np.int8)
    return integers, scale


def _error(rows: np.ndarray, peak: np.ndarray) -> np.ndarray:
    scale = np.maximum(peak / 127, 1e-12)[:, None]
    return np.asarray(((np.clip(np.rint(rows / scale), -127, 127) * scale - rows) ** 2).sum(1))


__all__ = ["by_channel"]
