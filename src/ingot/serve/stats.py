"""Counters of one model: cheap to add to, read by the metrics, the statistics of the protocol and the status page."""
from __future__ import annotations

import time
from bisect import bisect_left
from collections import deque

STAGES = ("decode", "queue", "batch", "copy_in", "compute", "copy_out", "encode", "request")
EDGES = (0.00005, 0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.02, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 10.0)


class Histogram:
    """Counts by bucket, and the sum. `EDGES` in seconds."""

    __slots__ = ("count", "counts", "total")

    def __init__(self) -> None:
        self.counts = [0] * (len(EDGES) + 1)
        self.total, self.count = 0.0, 0

    def add(self, seconds: float) -> None:
        """One observation."""
        self.counts[bisect_left(EDGES, seconds)] += 1
        self.total += seconds
        self.count += 1


class Stats:
    """What one model version has done since it was loaded."""

    def __init__(self) -> None:
        self.stages = {name: Histogram() for name in STAGES}
        self.failed: dict[str, int] = {}            # kind of error -> requests
        self.failed_seconds = 0.0
        self.batches: dict[int, list[float]] = {}   # rows -> [batches, seconds copying in, computing, copying out]
        self.items = 0
        self.padded_rows = 0
        self.off_profile = 0                        # batches of another shape than the engine was tuned for
        self.off_profile_seconds = 0.0              # what they took beyond the tuned shape's time per item
        self.contended_seconds = 0.0                # computing beyond what the cost curve says
        self.predicted_seconds = 0.0
        self.ahead = 0                              # batches a worker had before it was done with the one before
        self.restarts = 0
        self.retries = 0
        self.last = 0.0                             # wall-clock time of the latest request
        self.recent: deque[tuple[float, float]] = deque(maxlen=2048)    # (when, seconds) of late, for the status page

    def executed(self, rows: int, copy_in: float, compute: float, copy_out: float) -> None:
        """A batch has run."""
        line = self.batches.setdefault(rows, [0, 0.0, 0.0, 0.0])
        line[0] += 1
        line[1] += copy_in
        line[2] += compute
        line[3] += copy_out
        self.stages["copy_in"].add(copy_in)
        self.stages["compute"].add(compute)
        self.stages["copy_out"].add(copy_out)

    def answered(self, rows: int, seconds: float, decode: float, encode: float) -> None:
        """A request has been answered."""
        stages = self.stages
        stages["decode"].add(decode)
        stages["encode"].add(encode)
        stages["request"].add(seconds)
        self.items += rows
        self.last = time.time()
        self.recent.append((self.last, seconds))

    def refused(self, kind: str, seconds: float = 0.0) -> None:
        """A request has failed."""
        self.failed[kind] = self.failed.get(kind, 0) + 1
        self.failed_seconds += seconds

    def quantile(self, q: float, within: float = 60.0) -> float | None:
        """A quantile of the latest requests' seconds; None where there were none within so many seconds."""
        since = time.time() - within
        values = sorted(s for when, s in self.recent if when >= since)
        return values[min(len(values) - 1, int(q * len(values)))] if values else None
