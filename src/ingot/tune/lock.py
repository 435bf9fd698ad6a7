"""Builds on one machine take turns at timing: a lock on a file, which its holder's death releases."""
from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path


@contextmanager
def timing_turn(folder: Path | None) -> Iterator[None]:
    """Hold the machine's turn at timing; waits for other builds. Without a usable folder nobody is waited for."""
    handle = -1
    if folder is not None:
        with suppress(OSError):         # a read-only or full disk, or a file system without locks: no turns, no failure
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            handle = os.open(folder / "timing.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
            fcntl.flock(handle, fcntl.LOCK_EX)
    try:
        yield
    finally:
        if handle >= 0:
            os.close(handle)
