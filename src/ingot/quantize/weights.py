"""Weights as integers: i8 per output channel, or 4 and 8 bits in groups along the depth.

Round-to-nearest takes a group's extremes as its range; `mse` tries shrunk ranges; `awq` first scales the channels of
the depth by a power of what runs through them, so that those that matter lose less (Lin et al., "AWQ", 2024: the power
is searched for); `gptq` rounds one row of the depth after another and moves the error into the rows to come, as the
inputs' second moments say (Frantar et al., "GPTQ", 2023).
"""
from __future__ import annotations

from dataclasses import dataclass

import ml_dtypes
import numpy as np

from ingot.graph import F8E4M3
from ingot.ops.quantisation import LARGEST_E4M3

_SHRUNK = np.linspace(1.0, 0.6, 21)


def by_channel(weight: np.ndarray, axis: int, *, clip: bool = False,
               moments: np.ndarray | None = None) -> tuple[np.ndarray, np.ndarray]:
    """A weight as i8 in -127..127 and the scale of each channel along `axis`, in f32.

    With `clip` each channel's range is the one of 21 that loses the least squared error. With `moments`, the matrix of
    second moments of what a product reads, the weight is [depth, columns], and errors are moved on as `gptq` does.
    """
    moved = np.moveaxis(weight, axis, 0).reshape(weight.shape[axis], -1).astype(np.float32)
    peak = np.abs(moved).max(1)
    share = np.ones_like(peak)
    if clip:
        errors = np.stack([_error(moved, peak * s) for s in _SHRUNK])
        share = _SHRUNK[errors.argmin(0)].astype(np.float32)
    scale = np.maximum(peak * share / 127, np.float32(1e-12)).astype(np.float32)
    if moments is not None:
        nothing = np.zeros_like(scale)[None]
        return _gptq(weight, scale[None], nothing, (-127, 127), len(weight), moments).astype(np.int8), scale
    shape = tuple(-1 if k == axis % weight.ndim else 1 for k in range(weight.ndim))
    integers = np.clip(np.rint(weight / scale.reshape(shape)), -127, 127).astype(np.int8)
    return integers, scale


def short_by_channel(weight: np.ndarray, axis: int) -> tuple[np.ndarray, np.ndarray]:
    """A weight as f8e4m3 and the scale of each channel along `axis`, in f32: the largest value becomes the type's."""
    moved = np.moveaxis(weight, axis, 0).reshape(weight.shape[axis], -1)
    scale = np.maximum(np.abs(moved).max(1) / LARGEST_E4M3, np.float32(1e-12)).astype(np.float32)
    shape = tuple(-1 if k == axis % weight.ndim else 1 for k in range(weight.ndim))
    scaled = np.clip(weight / scale.reshape(shape), -LARGEST_E4M3, LARGEST_E4M3)
    return scaled.astype(F8E4M3.numpy), scale


def _error(rows: np.ndarray, peak: np.ndarray) -> np.ndarray:
    scale = np.maximum(peak / 127, 1e-12)[:, None]
    return np.asarray(((np.clip(np.rint(rows / scale), -127, 127) * scale - rows) ** 2).sum(1))


@dataclass(frozen=True)
class Grouped:
    """A weight [depth, columns] in groups along the depth: integers, scales [groups, columns] and zero points."""

    integers: np.ndarray            # int4, uint4, int8 or uint8
    scale: np.ndarray
    zero: np.ndarray | None = None
    divided: np.ndarray | None = None       # what each channel of the input must be divided by (awq)

    @property
    def group(self) -> int:
        return int(self.integers.shape[0] // self.scale.shape[0])

    def reals(self) -> np.ndarray:
        """The weight these integers stand for, before `divided`."""
        wide = self.integers.astype(np.float32)
        if self.zero is not None:
            wide = wide - np.repeat(self.zero.astype(np.float32), self.group, axis=0)
        return np.asarray(wide * np.repeat(self.scale, self.group, axis=0), np.float32)


@dataclass(frozen=True)
class Groups:
    """How a weight is cut and rounded."""

    bits: int = 4                   # 4 or 8
    size: int = 128                 # rows of the depth per group; cut down to what divides the depth
    symmetric: bool = False
    method: str = "mse"             # rtn, mse, awq or gptq


def _ranged(blocks: np.ndarray, how: Groups, share: float) -> tuple[np.ndarray, np.ndarray]:
    """Scale and zero point of each group and column, of blocks [groups, size, columns]."""
    if how.symmetric:
        scale = np.abs(blocks).max(1) * share / (2 ** (how.bits - 1) - 1)
        return np.maximum(scale, 1e-12), np.zeros_like(scale)
    low, high = np.minimum(blocks.min(1), 0) * share, np.maximum(blocks.max(1), 0) * share
    scale = np.maximum((high - low) / (2 ** how.bits - 1), 1e-12)
    return scale, np.clip(np.rint(-low / scale), 0, 2 ** how.bits - 1)


def _limits(how: Groups) -> tuple[int, int]:
    half = 2 ** (how.bits - 1)
    return (-half, half - 1) if how.symmetric else (0, 2 * half - 1)


def _rounded(blocks: np.ndarray, scale: np.ndarray, zero: np.ndarray, how: Groups) -> np.ndarray:
    low, high = _limits(how)
    return np.asarray(np.clip(np.rint(blocks / scale[:, None]) + zero[:, None], low, high))


def _best(blocks: np.ndarray, how: Groups, matter: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The ranges of least squared error, each element weighed by how much its input channel matters."""
    shares = np.linspace(1.0, 0.6, 17) if how.method != "rtn" else np.ones(1)
    least, found = np.full(blocks[:, 0].shape, np.inf), _ranged(blocks, how, 1.0)
    for share in shares:
        scale, zero = _ranged(blocks, how, float(share))
        back = (_rounded(blocks, scale, zero, how) - zero[:, None]) * scale[:, None]
        error = (matter * (back - blocks) ** 2).sum(1)
        better = error < least
        least = np.where(better, error, least)
        found = np.where(better, scale, found[0]), np.where(better, zero, found[1])
    return found


def by_groups(weight: np.ndarray, how: Groups, energy: np.ndarray | None = None,
              moments: np.ndarray | None = None) -> Grouped:
    """A weight [depth, columns] in groups. `energy` is the mean square of each input channel (awq, and what errors
    weigh), `moments` the matrix of the inputs' second moments (gptq)."""
    depth = weight.shape[0]
    size = next((g for g in range(min(how.size, depth), 7, -1) if depth % g == 0 and g % 8 == 0), 0)
    if not size:
        raise ValueError(f"a depth of {depth} does not divide into groups of a multiple of eight")
    weight = weight.astype(np.float32)
    divided = _awq(weight, how, size, energy) if how.method == "awq" and energy is not None else None
    kept = weight if divided is None else weight * divided[:, None]
    weighed = np.ones(depth) if energy is None else np.maximum(energy, 1e-12)
    if divided is not None:
        weighed = weighed / divided ** 2
    blocks = kept.reshape(-1, size, kept.shape[1])
    scale, zero = _best(blocks, how, weighed.reshape(-1, size, 1))
    scale = scale.astype(np.float32)
    if how.method == "gptq" and moments is not None:
        integers = _gptq(kept, scale, zero, _limits(how), size, moments)
    else:
        integers = _rounded(blocks, scale, zero, how).reshape(kept.shape)
    name = {(4, True): ml_dtypes.int4, (4, False): ml_dtypes.uint4, (8, True): np.int8, (8, False): np.uint8}
    dtype = np.dtype(name[how.bits, how.symmetric])
    return Grouped(integers.astype(dtype), scale, None if how.symmetric else zero.astype(dtype), divided)


def _awq(weight: np.ndarray, how: Groups, size: int, energy: np.ndarray) -> np.ndarray | None:
    """The factors of the input channels that lose the least; None where none does better than ones."""
    root = np.sqrt(np.maximum(energy, 1e-12))
    best, found = np.inf, None
    for power in np.linspace(0, 0.9, 10):
        factors = (root / np.exp(np.log(root).mean())) ** power
        blocks = (weight * factors[:, None]).reshape(-1, size, weight.shape[1])
        matter = (energy / factors ** 2).reshape(-1, size, 1)
        scale, zero = _best(blocks, how, matter)
        back = (_rounded(blocks, scale, zero, how) - zero[:, None]) * scale[:, None]
        error = float((matter * (back - blocks) ** 2).sum())
        if error < 0.995 * best:
            best, found = error, factors.astype(np.float32) if power else None
    return found


def _gptq(weight: np.ndarray, scale: np.ndarray, zero: np.ndarray, limits: tuple[int, int], size: int,
          moments: np.ndarray) -> np.ndarray:
    """Row after row of the depth, the error of each moved into the rows after it by the inverse of the moments."""
    depth = len(weight)
    damped = moments.astype(np.float64) + np.eye(depth) * max(0.01 * float(np.diag(moments).mean()), 1e-9)
    upper = np.linalg.cholesky(np.linalg.inv(damped)).T
    low, high = limits
    left, found = weight.astype(np.float64).copy(), np.empty(weight.shape)
    for start in range(0, depth, _BLOCK):
        stop = min(start + _BLOCK, depth)
        errors = np.zeros((stop - start, weight.shape[1]))
        for k in range(start, stop):
            s, z = scale[k // size], zero[k // size]
            found[k] = np.clip(np.rint(left[k] / s) + z, low, high)
            errors[k - start] = (left[k] - (found[k] - z) * s) / upper[k, k]
            left[k + 1:stop] -= np.outer(upper[k, k + 1:stop], errors[k - start])
        left[stop:] -= upper[start:stop, stop:].T @ errors
    return found


_BLOCK = 128            # rows whose errors are moved on together

__all__ = ["Grouped", "Groups", "by_channel", "by_groups", "short_by_channel"]
