"""Logical arrays to and from the form in which they lie in memory."""
from __future__ import annotations

import numpy as np

from ingot.graph import TensorType


def poison(dtype: np.dtype, byte: int = 0xFF) -> np.ndarray:
    """A one-element array of repeated bytes: NaN in every floating type for 0xFF."""
    return np.full(dtype.itemsize, byte, np.uint8).view(dtype)


def to_physical(array: np.ndarray, type_: TensorType, fill: int = 0xFF) -> np.ndarray:
    """A logical array laid out as its type says, e.g. [N,C,H,W] -> [N,ceil(C/16),H,W,16] for c16.

    Lanes past the last channel are filled with bytes `fill` (NaN for floats), so that a kernel that lets them
    reach a valid lane is found out.
    """
    if not type_.layout:
        return np.ascontiguousarray(array).reshape(array.shape)
    if not type_.block:
        return np.ascontiguousarray(np.moveaxis(array, 1, -1))
    block, channels = type_.block, array.shape[1]
    blocks = -(-channels // block)
    padded = np.empty((array.shape[0], blocks * block, *array.shape[2:]), array.dtype)
    padded[:, :channels] = array
    padded[:, channels:] = poison(array.dtype, fill)
    split = padded.reshape(array.shape[0], blocks, block, *array.shape[2:])
    return np.ascontiguousarray(np.moveaxis(split, 2, -1))


def from_physical(array: np.ndarray, type_: TensorType) -> np.ndarray:
    """The logical array, dense, of one that lies in memory as its type says; the inverse of `to_physical`."""
    if not type_.layout:
        return np.ascontiguousarray(array).reshape(array.shape)     # ascontiguousarray makes a scalar a vector
    if not type_.block:
        return np.ascontiguousarray(np.moveaxis(array, -1, 1))
    merged = np.moveaxis(array, -1, 2)
    merged = merged.reshape(merged.shape[0], merged.shape[1] * merged.shape[2], *merged.shape[3:])
    return np.ascontiguousarray(merged[:, :type_.shape[1]])
