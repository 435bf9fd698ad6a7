"""Device memory and pinned memory that are given back when nobody holds them any more."""
from __future__ import annotations

import weakref
from contextlib import suppress

from ingot.runtime.cuda.driver import DeviceError, Driver

ALIGN = 256         # bytes: what cuMemAlloc gives, and every part of a block here


def aligned(nbytes: int) -> int:
    """The bytes rounded up to a whole number of alignments."""
    return -(-nbytes // ALIGN) * ALIGN


def _give_back(driver: Driver, address: int, pinned: bool) -> None:
    with suppress(DeviceError):         # at the end of a process the context may be gone before its memory
        driver.enter()
        (driver.unpin if pinned else driver.free)(address)


class DeviceBlock:
    """Memory of the GPU; 256-byte aligned."""

    def __init__(self, driver: Driver, nbytes: int) -> None:
        self.nbytes = nbytes
        self.address = driver.alloc(nbytes)
        weakref.finalize(self, _give_back, driver, self.address, False)


class PinnedBlock:
    """Memory of the host that the GPU copies from and to without help."""

    def __init__(self, driver: Driver, nbytes: int) -> None:
        self.nbytes = nbytes
        self.address = driver.pinned(nbytes)
        weakref.finalize(self, _give_back, driver, self.address, True)


class Areas:
    """Several areas in one block, each at its own alignment: ask for all of them first, then `block` holds them."""

    def __init__(self) -> None:
        self.nbytes = 0

    def take(self, nbytes: int) -> int:
        """The offset of an area of so many bytes."""
        at = self.nbytes
        self.nbytes += aligned(nbytes)
        return at


__all__ = ["ALIGN", "Areas", "DeviceBlock", "PinnedBlock", "aligned"]
