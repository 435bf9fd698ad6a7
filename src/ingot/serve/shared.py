"""Memory that the server and one worker process share: a nameless file that grows, mapped on both sides."""
from __future__ import annotations

import mmap
import os

ALIGN = 64


def aligned(nbytes: int) -> int:
    """The next multiple of a cache line."""
    return -(-nbytes // ALIGN) * ALIGN


class Shared:
    """A mapping of the file. Views of an older, smaller mapping stay valid: they show the same pages."""

    def __init__(self, descriptor: int | None = None) -> None:
        self.descriptor = os.memfd_create("ingot") if descriptor is None else descriptor
        self._map: mmap.mmap | None = None
        self.view = memoryview(b"")

    def upto(self, nbytes: int, grow: bool = True) -> memoryview:
        """The whole memory, at least this large. Only one side grows it at a time: the one whose turn it is.

        Raises ValueError where it is smaller and is not to grow.
        """
        if nbytes > len(self.view):
            size = os.fstat(self.descriptor).st_size
            if nbytes > size:
                if not grow:
                    raise ValueError(f"the shared memory has {size} bytes, not {nbytes}")
                size = -(-(nbytes + nbytes // 2) // mmap.PAGESIZE) * mmap.PAGESIZE
                os.ftruncate(self.descriptor, size)
            self._map = mmap.mmap(self.descriptor, size)
            self.view = memoryview(self._map)
        return self.view

    def close(self) -> None:
        """Give the file back; the pages go when the last view does."""
        self.view, self._map = memoryview(b""), None
        os.close(self.descriptor)
