"""How to share the cores among runs: one run on all, or several side by side? Measured, in alternating blocks."""
from __future__ import annotations

import statistics
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from ingot.bench.peers import BLOCK_SECONDS, PAUSE_SECONDS
from ingot.engine import Engine
from ingot.runtime.group import SessionGroup

Feeds = Mapping[str, np.ndarray]


@dataclass(frozen=True)
class Arrangement:
    """So many runs at a time on so many threads each: runs per second, and how long one took (medians of blocks)."""

    instances: int
    threads: int
    runs_per_second: float
    seconds: float


def arrangements(threads: int) -> tuple[tuple[int, int], ...]:
    """(instances, threads of each) that use `threads` threads in all: from one run on all to one thread a run."""
    return tuple((n, threads // n) for n in range(1, threads + 1) if threads % n == 0)


def measure_arrangements(engine: Engine, feeds: Feeds, threads: int, seconds: float = 3.0, *,
                         block: float = BLOCK_SECONDS) -> list[Arrangement]:
    """Every arrangement of `threads` threads, kept busy by as many callers as it has instances."""
    groups = [SessionGroup(engine, n, each) for n, each in arrangements(threads)]
    found: list[list[tuple[float, float]]] = [[] for _ in groups]
    begin = time.perf_counter()
    while min(map(len, found)) < 3 or time.perf_counter() - begin < seconds:
        for group, blocks in zip(groups, found, strict=True):
            time.sleep(PAUSE_SECONDS)
            blocks.append(_block(group, feeds, block))
    return [Arrangement(g.instances, g.threads, statistics.median(r for r, _ in blocks),
                        statistics.median(s for _, s in blocks)) for g, blocks in zip(groups, found, strict=True)]


def _block(group: SessionGroup, feeds: Feeds, seconds: float) -> tuple[float, float]:
    """Runs per second of all callers, and the mean seconds of one run, over about so many seconds."""
    start = threading.Barrier(group.instances)
    taken: list[tuple[int, float]] = []

    def caller() -> None:
        group.run(feeds)                # warm, and not counted
        start.wait()
        count, begin = 0, time.perf_counter()
        while not count or time.perf_counter() - begin < seconds:
            group.run(feeds)
            count += 1
        taken.append((count, time.perf_counter() - begin))

    callers = [threading.Thread(target=caller) for _ in range(group.instances)]
    for one in callers:
        one.start()
    for one in callers:
        one.join()
    return sum(n / s for n, s in taken), sum(s for _, s in taken) / sum(n for n, _ in taken)
