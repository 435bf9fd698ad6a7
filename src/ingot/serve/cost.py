"""What a run costs by its shape: t(rows, length) in seconds, measured on the device that serves, and kept.

`length` is the size of the one axis beside the batch that may be padded; 0 where there is none.
"""
from __future__ import annotations

import json
import os
import time
from bisect import bisect_left
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ingot.errors import EngineError

BUDGET = 20.0           # seconds that measuring may take
ROUNDS = 5              # runs of each shape, of which the least counts


@dataclass(frozen=True)
class CostCurve:
    """Seconds by length and rows. Between measured points it is linear; beyond them each row costs as the last did."""

    points: Mapping[int, tuple[tuple[int, float], ...]]     # length -> ((rows, seconds), ...) in rising order
    origin: str = ""                                        # on what it was measured, and when
    _known: dict[tuple[int, int], float] = field(default_factory=dict, compare=False, repr=False)

    @property
    def lengths(self) -> tuple[int, ...]:
        """The lengths that were measured, in rising order."""
        return tuple(sorted(self.points))

    @property
    def rows(self) -> tuple[int, ...]:
        """The numbers of rows that were measured at any length, in rising order."""
        return tuple(sorted({n for line in self.points.values() for n, _ in line}))

    def seconds(self, rows: int, length: int = 0) -> float:
        """What a run of this shape takes."""
        known = self._known.get((rows, length))
        if known is None:
            known = self._known[rows, length] = self._at(rows, length)
        return known

    def _at(self, rows: int, length: int) -> float:
        lengths = self.lengths
        at = bisect_left(lengths, length)
        if at < len(lengths) and lengths[at] == length:
            return _on(self.points[length], rows)
        low, high = lengths[max(0, at - 1)], lengths[min(at, len(lengths) - 1)]
        below, above = _on(self.points[low], rows), _on(self.points[high], rows)
        if low == high:             # beyond the ends: in proportion above, the least below
            return below * max(1.0, length / low) if low else below
        return below + (above - below) * (length - low) / (high - low)

    def to_json(self) -> dict[str, Any]:
        """For its file."""
        return {"origin": self.origin, "points": {str(k): [list(p) for p in v] for k, v in self.points.items()}}

    @staticmethod
    def from_json(value: Mapping[str, Any]) -> CostCurve:
        """What `to_json` wrote. Raises ValueError, KeyError or TypeError for what is not of that form."""
        points = {int(k): tuple(sorted((int(n), float(s)) for n, s in v)) for k, v in value["points"].items()}
        if not points or any(not line or min(n for n, _ in line) < 1 or min(s for _, s in line) <= 0
                             for line in points.values()):
            raise ValueError("a cost curve without points")
        return CostCurve(points, str(value.get("origin", "")))


def _on(line: tuple[tuple[int, float], ...], rows: int) -> float:
    at = bisect_left(line, (rows, 0.0))
    if at < len(line) and line[at][0] == rows:
        return line[at][1]
    if at == 0:
        return line[0][1]           # fewer rows than any measured: no cheaper than the least known
    if at == len(line):
        last, seconds = line[-1]
        if len(line) == 1:
            return seconds * rows / last
        before, earlier = line[-2]
        return seconds + max(0.0, (seconds - earlier) / (last - before)) * (rows - last)
    (low, below), (high, above) = line[at - 1], line[at]
    return below + (above - below) * (rows - low) / (high - low)


def grid(least: int, tuned: int, most: int) -> tuple[int, ...]:
    """Sizes worth measuring: powers of two and what lies between, the tuned size and its neighbours, both ends."""
    sizes = {least, tuned, most, 1, 2, 3, tuned - 1, tuned + 1}
    step = 4
    while step <= most:
        sizes |= {step, step + step // 2}
        step *= 2
    return tuple(sorted(n for n in sizes if least <= n <= most))


def measured(run: Callable[[int, int], object], rows: Iterable[int], lengths: Iterable[int], origin: str = "",
             budget: float = BUDGET) -> CostCurve:
    """The cost curve of `run(rows, length)`, which runs once at that shape.

    Small shapes come first; what the budget (seconds) does not reach is left to the line through what it did. The
    rounds go over all the shapes in turn: a machine whose speed wavers for a second does not make one shape look dear.
    """
    until = time.perf_counter() + budget
    found: dict[int, dict[int, float]] = {}
    for round_ in range(ROUNDS):
        for length in sorted(lengths):
            line = found.setdefault(length, {})
            for n in sorted(rows):
                if time.perf_counter() > until and (round_ or len(line) >= 2):
                    break
                if round_ and (n not in line or line[n] * ROUNDS > budget / 8):
                    continue
                run(n, length)                      # binds the shape, warms the memory
                start = time.perf_counter()
                run(n, length)
                line[n] = min(line.get(n, float("inf")), max(time.perf_counter() - start, 1e-9))
    return CostCurve({k: tuple(v.items()) for k, v in found.items()}, origin)


def read_curve(path: Path) -> CostCurve | None:
    """The curve kept in a file; None where there is none, or it is not one."""
    try:
        return CostCurve.from_json(json.loads(path.read_text()))
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None


def keep_curve(curve: CostCurve, path: Path) -> None:
    """Write a curve beside others, whole or not at all. Raises EngineError where the folder cannot be written."""
    beside = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        beside.write_text(json.dumps(curve.to_json(), indent=1))
        os.replace(beside, path)
    except OSError as error:
        raise EngineError(f"the cost curve {path} cannot be written", why=(error.strerror or str(error),),
                          mend="make the cache folder writable, or name another: INGOT_CACHE") from None
