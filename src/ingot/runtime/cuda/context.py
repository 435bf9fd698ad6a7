"""What only a whole run can tell: which launches gain by beginning before the one before has ended.

Programmatic dependent launch hides a kernel's start behind the end of the one before it; where that one fills the
device it costs instead. Each site is tried in the whole network, replayed as one graph, not by itself.
"""
from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from ingot.runtime.cuda.session import CudaSession

_ROUNDS = 12            # blocks of one measurement
_REPEAT = 8             # replays of one block
_GAIN = 0.999           # a change must do better than this share of the best so far


@dataclass(frozen=True)
class Context:
    """The launches to make dependent, and the median seconds of a run with them and without any."""

    dependent: tuple[int, ...]
    seconds: float
    plain: float


def raced_in_context(session: CudaSession, feeds: Mapping[str, np.ndarray]) -> Context:
    """Try none, all, then each site turned over, keeping what makes the whole run faster."""
    able = session.may_depend
    sites: dict[str, list[int]] = {}
    for index in able:
        sites.setdefault(session.variant.program.launches[index].site.key, []).append(index)

    def seconds(chosen: frozenset[int]) -> float:
        session.with_dependent(chosen)
        found = sorted(session.device_seconds(feeds, rounds=_ROUNDS, repeat=_REPEAT))
        return found[len(found) // 4]

    plain = seconds(frozenset())
    best, best_seconds = frozenset[int](), plain
    if able and (all_ := seconds(frozenset(able))) < best_seconds * _GAIN:
        best, best_seconds = frozenset(able), all_
    for group in sites.values():
        turned = best ^ frozenset(group) if set(group) <= best or not set(group) & best else best | frozenset(group)
        if (taken := seconds(turned)) < best_seconds * _GAIN:
            best, best_seconds = turned, taken
    # the finalists once more, in turn: what is fastest now as well
    finalists = list(dict.fromkeys((best, frozenset(able), frozenset[int]())))
    times: dict[frozenset[int], list[float]] = {f: [] for f in finalists}
    for _ in range(3):
        for each in finalists:
            times[each].append(seconds(each))
    best = min(finalists, key=lambda f: min(times[f]))
    session.with_dependent(best)
    return Context(tuple(sorted(best)), min(times[best]), min(times[frozenset()]))


def plain_or_dependent(session: CudaSession, feeds: Mapping[str, np.ndarray]) -> float:
    """Seconds of a run with no launch dependent or with all that may be: the lesser, each a lower quartile."""
    found = []
    for chosen in (frozenset[int](), frozenset(session.may_depend)):
        session.with_dependent(chosen)
        times = sorted(session.device_seconds(feeds, rounds=_ROUNDS, repeat=_REPEAT))
        found.append(times[len(times) // 4])
    return min(found)


__all__ = ["Context", "plain_or_dependent", "raced_in_context"]
