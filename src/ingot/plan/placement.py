"""Place blocks that live for a span of time in one stretch of memory, so that no two that overlap in time overlap."""
from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Block:
    """`size` bytes that are needed from step `first` to step `last`, both included."""

    size: int
    first: int
    last: int

    @property
    def life(self) -> int:
        return self.last - self.first + 1


def largest_live(blocks: Sequence[Block], steps: int) -> tuple[int, list[int]]:
    """The bytes live at each step, and the most of them: no placement can do with less."""
    change = [0] * (steps + 1)
    for b in blocks:
        change[b.first] += b.size
        change[b.last + 1] -= b.size
    live, now = [], 0
    for step in range(steps):
        now += change[step]
        live.append(now)
    return max(live, default=0), live


def _placed(blocks: Sequence[Block], order: Sequence[int], rivals: Sequence[Sequence[int]]) -> tuple[list[int], int]:
    """Each block, in order, at the lowest offset that is free during its life. Gives offsets and the total."""
    offsets = [-1] * len(blocks)
    total = 0
    for i in order:
        size, at = blocks[i].size, 0
        for start, end in sorted((offsets[j], offsets[j] + blocks[j].size) for j in rivals[i] if offsets[j] >= 0):
            if start - at >= size:
                break
            if end > at:
                at = end
        offsets[i] = at
        if at + size > total:
            total = at + size
    return offsets, total


def place(blocks: Sequence[Block], bound: int, effort: int = 3_000_000) -> tuple[list[int], int]:
    """Offsets of the blocks and the total size. The best of several orders, then a seeded search near the best.

    `bound` is the largest live set: reaching it ends the search. `effort` limits the work, roughly in comparisons.
    """
    count = len(blocks)
    rivals = [[j for j in range(count) if j != i and blocks[j].first <= b.last and b.first <= blocks[j].last]
              for i, b in enumerate(blocks)]
    keys = (lambda i: (-blocks[i].size, -blocks[i].life, i), lambda i: (-blocks[i].size * blocks[i].life, i),
            lambda i: (-blocks[i].life, -blocks[i].size, i), lambda i: (blocks[i].first, -blocks[i].size, i),
            lambda i: (-sum(blocks[j].size for j in rivals[i]) - blocks[i].size, i))
    best: tuple[int, list[int], list[int]] | None = None
    for key in keys:
        order = sorted(range(count), key=key)
        offsets, total = _placed(blocks, order, rivals)
        if best is None or total < best[0]:
            best = total, offsets, order
        if total <= bound:
            return offsets, total
    assert best is not None     # there is at least one order
    total, offsets, order = best
    rng = random.Random(0)
    per_try = sum(len(r) for r in rivals) + count + 1
    for _ in range(min(2000, effort // per_try)):
        trial = list(order)
        # what ends at the top is what should have come earlier
        tops = [i for i in range(count) if offsets[i] + blocks[i].size == total]
        moved = rng.choice(tops) if tops and rng.random() < 0.5 else rng.randrange(count)
        trial.remove(moved)
        trial.insert(rng.randrange(count), moved)
        found, size = _placed(blocks, trial, rivals)
        if size <= total:
            offsets, total, order = found, size, trial
            if total <= bound:
                break
    return offsets, total
