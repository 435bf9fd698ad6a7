"""System shared memory that clients register: tensors are read from it and written to it instead of being sent.

Regions are read and written through their file descriptor, never mapped: a client that shrinks its region gets an
error, where a mapping would kill the server.
"""
from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from ingot.errors import ServeError
from ingot.serve.datatype import Data

FOLDER = Path("/dev/shm")
MOST = 1024             # regions at once


@dataclass(frozen=True)
class Region:
    """A registered region."""

    name: str
    key: str
    offset: int
    nbytes: int
    descriptor: int

    def to_json(self) -> dict[str, object]:
        """As the protocol tells it."""
        return {"name": self.name, "key": self.key, "offset": self.offset, "byte_size": self.nbytes}


class Regions:
    """The regions by name."""

    def __init__(self, allowed: bool) -> None:
        self._allowed = allowed
        self._regions: dict[str, Region] = {}

    def register(self, name: str, key: str, offset: int, nbytes: int) -> None:
        """Open a region of this machine's shared memory. Raises ServeError."""
        if not self._allowed:
            raise ServeError("shared memory is off", kind="forbidden",
                             mend="start the server with --shared-memory, or send the tensors")
        if name in self._regions:
            raise ServeError(f"the region '{name:.80}' is registered already", mend="unregister it first")
        file = key.removeprefix("/")
        if not file or "/" in file or "\0" in file or file in (".", "..") or len(file) > 255:
            raise ServeError(f"{key!r:.100} is no key of shared memory", mend="give the name shm_open was called with")
        if offset < 0 or nbytes <= 0:
            raise ServeError("the region's offset or size is not one", mend="give an offset of 0 or more, and a size")
        if len(self._regions) >= MOST:
            raise ServeError(f"{MOST} regions are registered", kind="full", mend="unregister some")
        try:
            descriptor = os.open(FOLDER / file, os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC)
        except OSError as error:
            raise ServeError(f"cannot open the shared memory {key!r:.100}", why=(error.strerror or str(error),),
                             mend="create it first, readable and writable for the server's user") from None
        if os.fstat(descriptor).st_size < offset + nbytes:
            os.close(descriptor)
            raise ServeError(f"the shared memory {key!r:.100} is smaller than {offset} + {nbytes} bytes",
                             mend="make it larger, or register less")
        self._regions[name] = Region(name, key, offset, nbytes, descriptor)

    def unregister(self, name: str = "") -> None:
        """Forget a region, or all of them; one that is not there is no error."""
        for found in [name] if name else list(self._regions):
            if (region := self._regions.pop(found, None)) is not None:
                os.close(region.descriptor)

    def status(self, name: str = "") -> list[Region]:
        """The regions, or the one of this name. Raises ServeError where there is none of this name."""
        return [self._get(name)] if name else list(self._regions.values())

    def _get(self, name: str) -> Region:
        if name not in self._regions:
            raise ServeError(f"no region is called '{name:.80}'", mend="register it first")
        return self._regions[name]

    def _checked(self, name: object, nbytes: object, offset: object) -> tuple[Region, int, int]:
        region = self._get(str(name))
        if type(nbytes) is not int or type(offset) is not int or nbytes < 0 or offset < 0 \
                or offset + nbytes > region.nbytes:
            raise ServeError(f"{nbytes!r:.30} bytes at {offset!r:.30} are not inside the region '{region.name}'",
                             mend=f"it has {region.nbytes} bytes")
        return region, nbytes, offset

    def read(self, name: object, nbytes: object, offset: object) -> bytes:
        """Bytes of a region. Raises ServeError."""
        region, count, at = self._checked(name, nbytes, offset)
        data = os.pread(region.descriptor, count, region.offset + at)
        if len(data) != count:
            raise ServeError(f"the region '{region.name}' has become smaller", mend="register it anew")
        return data

    def write(self, name: object, nbytes: object, offset: object, data: Data) -> None:
        """Put an output into a region. Raises ServeError where it has no room."""
        region, count, at = self._checked(name, nbytes, offset)
        if len(data) > count:
            raise ServeError(f"the output has {len(data)} bytes, the region '{region.name}' was given {count} for it",
                             mend="give it more room")
        os.pwrite(region.descriptor, data, region.offset + at)
