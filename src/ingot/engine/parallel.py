"""Work on large arrays, on a few threads: copies and hashes of numpy let go of the interpreter's lock."""
from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

A = TypeVar("A")
T = TypeVar("T")


def pool() -> ThreadPoolExecutor:
    """As many threads as this process may use processors, at most eight."""
    return ThreadPoolExecutor(max(1, min(8, len(os.sched_getaffinity(0)))))


def spread(work: Callable[[A], T], over: Iterable[A]) -> list[T]:
    """What `work` gives for each, in order. The first exception ends it."""
    items = tuple(over)
    if len(items) < 2:          # a thread's start costs more than most of what is done here
        return [work(item) for item in items]
    with pool() as threads:
        return list(threads.map(work, items))
