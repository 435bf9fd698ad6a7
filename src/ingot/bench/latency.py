"""How long one run takes, told honestly: median, p90, p99, least; per batch and per item; and what a session costs."""
from __future__ import annotations

import math
import resource
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Latency:
    """Seconds of single runs, summed up."""

    name: str
    batch: int
    runs: int
    median: float
    p90: float
    p99: float
    least: float

    @property
    def per_item(self) -> float:
        """Median seconds per item of the batch."""
        return self.median / self.batch


def summary(name: str, batch: int, seconds: Sequence[float]) -> Latency:
    """Sum up the seconds of single runs; the percentiles are of the runs themselves, nothing is left out."""
    ordered = sorted(seconds)
    return Latency(name, batch, len(ordered), statistics.median(ordered), _at(ordered, 0.90), _at(ordered, 0.99),
                   ordered[0])


def _at(ordered: Sequence[float], fraction: float) -> float:
    """The smallest value that at least this fraction of the values do not exceed."""
    return ordered[max(0, math.ceil(fraction * len(ordered)) - 1)]


def measure(call: Callable[[], object], seconds: float = 2.0, *, warmup: float = 0.2, least: int = 5) -> list[float]:
    """Seconds of one call after another, for about `seconds`, at least `least` of them, after a warm-up."""
    begin = time.perf_counter()
    call()
    while time.perf_counter() - begin < warmup:
        call()
    found: list[float] = []
    begin = time.perf_counter()
    while len(found) < least or time.perf_counter() - begin < seconds:
        start = time.perf_counter()
        call()
        found.append(time.perf_counter() - start)
    return found


def peak_memory() -> int:
    """The most bytes of memory this process has held at once."""
    status = Path("/proc/self/status")
    if status.exists():
        for line in status.read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def memory_now() -> int:
    """The bytes of memory this process holds now; the peak where the system does not tell."""
    statm = Path("/proc/self/statm")
    return int(statm.read_text().split()[1]) * resource.getpagesize() if statm.exists() else peak_memory()
