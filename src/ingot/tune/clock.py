"""Timing that a noisy machine does not fool: interleaved blocks, the quiet ones of each, until the order is certain."""
from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

Timer = Callable[[int], float]      # runs so many times in a row and gives the seconds it took

BLOCK = 200e-6      # seconds a block should take at least
LONG = 10           # blocks: a run that takes as long needs no repeating
NOISE = 0.01        # candidates nearer than this are taken to be equally fast


@dataclass
class Sample:
    """The blocks of one candidate: seconds per run."""

    timer: Timer
    repeats: int = 1
    blocks: list[float] = field(default_factory=list)

    def measure(self, blocks: int = 1) -> None:
        for _ in range(blocks):
            self.blocks.append(self.timer(self.repeats) / self.repeats)

    def calibrate(self, block: float, leader: float) -> None:
        """Warm up, find how many runs make a block, and measure one; of a candidate far behind the leader, a run."""
        first = self.timer(1)
        if first > LONG * block:                # a block by itself, and hardly changed by a cold start
            self.blocks.append(first)
            if first < 2 * leader:
                self.measure()
            return
        once = self.timer(1)
        if once > 4 * leader:
            self.blocks.append(once)
            return
        self.repeats = max(1, min(100_000, math.ceil(block / max(once, 1e-8))))
        if self.repeats > 8:        # a single run is mostly the cost of the call
            once = self.timer(self.repeats) / self.repeats
            self.repeats = max(1, min(100_000, math.ceil(block / max(once, 1e-8))))
        self.blocks.append(once)
        if once < 2 * leader:
            self.measure()

    @property
    def seconds(self) -> float:
        """The mean of the quietest third of the blocks: noise only ever adds."""
        low = sorted(self.blocks)[:max(1, len(self.blocks) // 3)]
        return sum(low) / len(low)

    @property
    def spread(self) -> float:
        """How far the quiet blocks lie apart, relative: what the estimate may be wrong by."""
        low = sorted(self.blocks)[:max(2, len(self.blocks) // 3)]
        return (low[-1] - low[0]) / low[0] if len(low) > 1 and low[0] > 0 else 1.0


def race(timers: Sequence[Timer], deadline: float = math.inf, *, block: float = BLOCK, rounds: int = 5,
         clock: Callable[[], float] = time.monotonic) -> tuple[list[float | None], int]:
    """Seconds of each candidate (None: not reached before the deadline) and the index of the winner.

    Blocks of the candidates alternate, so that a disturbance meets all alike. After each round the slower part
    leaves; the race ends when one is left, or when all that are left lie within the noise. Among equals the first
    in order wins. Raises ValueError when there is no candidate.
    """
    if not timers:
        raise ValueError("a race needs a candidate")
    samples: list[Sample] = []
    for timer in timers:
        if samples and clock() > deadline:
            break
        sample = Sample(timer)
        sample.calibrate(block, min((s.seconds for s in samples), default=math.inf))
        samples.append(sample)
    leader = min(s.seconds for s in samples)
    for sample in samples:
        if sample.seconds > 1.5 * leader:       # slow, or disturbed? Look again before it leaves
            if sample.seconds < LONG * block and sample.seconds < 20 * leader:
                sample.calibrate(block, math.inf)
            elif sample.seconds < 3 * leader:
                sample.measure()
    alive = _kept(range(len(samples)), samples, 1.5)
    for number in range(rounds):
        if len(alive) == 1 or clock() > deadline:
            break
        # long runs are blocks by themselves, and quieter: fewer of them
        few = 2 if min(samples[i].seconds for i in alive) > LONG * block else 3
        for _ in range(few * (number + 1)):
            for i in alive:
                samples[i].measure()
        best = min(samples[i].seconds for i in alive)
        noise = max(NOISE, min(0.1, max(samples[i].spread for i in alive if samples[i].seconds <= best * 1.02)))
        alive = _kept(alive, samples, 1 + noise)
        if len(alive) > 1 and number >= 1 and all(samples[i].seconds <= best * (1 + NOISE) for i in alive):
            break
    best = min(samples[i].seconds for i in alive)
    winner = min(i for i in alive if samples[i].seconds <= best * (1 + NOISE))
    times: list[float | None] = [s.seconds for s in samples]
    return times + [None] * (len(timers) - len(samples)), winner


def _kept(alive: Sequence[int] | range, samples: Sequence[Sample], factor: float) -> list[int]:
    """Those within a factor of the best, and of a large field at most the better half."""
    best = min(samples[i].seconds for i in alive)
    kept = [i for i in alive if samples[i].seconds <= best * factor]
    limit = max(3, len(alive) // 2)
    if len(kept) > limit:
        bar = max(sorted(samples[i].seconds for i in kept)[limit - 1], best * (1 + NOISE))
        kept = [i for i in kept if samples[i].seconds <= bar]
    return kept
