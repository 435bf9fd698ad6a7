"""Memory that kernels work in, and where arrays lie."""
from __future__ import annotations

import ctypes
import mmap

import numpy as np

_CHAR = ctypes.c_char
_HUGE = 2 << 20


def address_of(array: np.ndarray) -> int:
    """Where the array's first element lies. (`array.ctypes.data` takes three times as long.)"""
    try:
        return ctypes.addressof(_CHAR.from_buffer(array))  # type: ignore[arg-type]
    except (TypeError, ValueError, BufferError):        # read-only, empty, or of a type without a buffer format
        address: int = array.__array_interface__["data"][0]
        return address


class Block:
    """Private anonymous memory, zero at first, in huge pages where it is worth one. `address` is 64-byte aligned."""

    def __init__(self, nbytes: int) -> None:
        align = _HUGE if nbytes >= _HUGE else 64
        self._owner = mmap.mmap(-1, max(nbytes, 1) + align, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        if nbytes >= _HUGE and hasattr(mmap, "MADV_HUGEPAGE"):
            self._owner.madvise(mmap.MADV_HUGEPAGE)
        start = ctypes.addressof(_CHAR.from_buffer(self._owner))
        self.nbytes, self.address = nbytes, start + -start % align


def array_at(address: int, shape: tuple[int, ...], strides: tuple[int, ...], dtype: np.dtype) -> np.ndarray:
    """A writable array over memory; strides in elements. The caller keeps the memory alive."""
    extent = 0 if 0 in shape else 1 + sum((n - 1) * s for n, s in zip(shape, strides, strict=True))
    raw = (ctypes.c_uint8 * (extent * dtype.itemsize)).from_address(address)
    steps = tuple(s * dtype.itemsize for s in strides)
    if 0 in shape:
        return np.empty(shape, dtype)
    return np.ndarray(shape, np.uint8 if dtype.itemsize == 1 else dtype, memoryview(raw), 0, steps).view(dtype)
