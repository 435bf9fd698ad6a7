"""Two arrays side by side: how far apart, and do they agree where numbers end (NaN, infinities)."""
from __future__ import annotations

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Difference:
    """What comparing one array with another gave."""

    largest: float          # the largest absolute difference of finite elements
    relative: float         # the same, each relative to the largest finite magnitude of its item
    cosine: float           # of the finite elements; 1 where both are all zeros
    wrong_pattern: int      # elements that are NaN or infinite on one side only, or with another sign
    where: tuple[int, ...] = ()     # the index of the largest relative difference, or of the first wrong pattern
    note: str = ""          # why the arrays cannot be compared at all
    spread: int = 0         # elements of `loose` places that are NaN or infinite where the other array's are not

    def within(self, relative: float) -> bool:
        """Whether the arrays agree within a relative tolerance."""
        return not self.note and not self.wrong_pattern and self.relative <= relative


def _as_numbers(array: np.ndarray) -> np.ndarray:
    return array if array.dtype.kind in "OUSc" else array.astype(np.float64)


def compare(got: np.ndarray, wanted: np.ndarray, *, items: bool = False, loose: np.ndarray | None = None
            ) -> Difference:
    """Compare `got` with `wanted`, of any dtype.

    With `items`, axis 0 counts items, each with its own scale. `loose` marks (broadcast from the left: one bool per
    item, or one in all) where any NaN or infinity may stand for another and for a finite number, though never a
    finite number for one of them.
    """
    if got.shape != wanted.shape or got.dtype != wanted.dtype:
        note = f"{got.dtype}{list(got.shape)} where {wanted.dtype}{list(wanted.shape)} was due"
        return Difference(float("inf"), float("inf"), 0.0, 0, note=note)
    if got.dtype.kind in "OUS":
        differs = np.argwhere(got != wanted)
        return Difference(float(len(differs) > 0), float(len(differs) > 0), 1.0, len(differs),
                          tuple(map(int, differs[0])) if len(differs) else ())
    a, b = _as_numbers(got), _as_numbers(wanted)
    finite = np.isfinite(a) & np.isfinite(b)
    same = finite | (np.isnan(a) & np.isnan(b)) | (a == b)
    spread = 0
    if loose is not None:
        further = ~np.isfinite(a) & loose.reshape(loose.shape + (1,) * (a.ndim - loose.ndim))
        spread = int(np.count_nonzero(further & ~same))
        same |= further
    apart = np.where(finite, np.abs(np.where(finite, a, 0) - np.where(finite, b, 0)), 0.0)
    magnitude = np.where(finite, np.abs(np.where(finite, b, 0)), 0.0)
    axes = tuple(range(1 if items and b.ndim > 1 else 0, b.ndim))
    scale = magnitude.max(axis=axes, keepdims=True) if b.size else magnitude
    relative = np.divide(apart, scale, out=np.where(apart > 0, np.inf, 0.0), where=scale > 0)
    wrong = int(b.size - np.count_nonzero(same))
    at = np.unravel_index(int(np.argmax(~same if wrong else relative)), b.shape) if b.size else ()
    return Difference(float(apart.max(initial=0.0)), float(relative.max(initial=0.0)),
                      _cosine(np.where(finite, a, 0), np.where(finite, b, 0)), wrong, tuple(map(int, at)),
                      spread=spread)


def _cosine(a: np.ndarray, b: np.ndarray) -> float:
    lengths = float(np.linalg.norm(a.ravel()) * np.linalg.norm(b.ravel()))
    if lengths == 0.0:
        return float(not np.any(a) and not np.any(b))
    return float(np.vdot(a.ravel(), b.ravel()).real) / lengths
