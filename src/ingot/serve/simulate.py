"""A queue, a batching policy and a cost curve on paper: what latency a recorded traffic would have met."""
from __future__ import annotations

import heapq
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from ingot.serve.batch import Policy, Wait
from ingot.serve.cost import CostCurve
from ingot.serve.tensor import Request


@dataclass(frozen=True)
class Offered:
    """A request of the traffic: seconds since its start, rows, length (0 where nothing is padded)."""

    at: float
    rows: int = 1
    length: int = 0


@dataclass(frozen=True)
class Simulated:
    """Latencies in seconds, sorted; batches by rows; the share of the time that instances computed."""

    latencies: tuple[float, ...]
    batches: dict[int, int]
    busy: float

    def quantile(self, q: float) -> float:
        """A quantile of the latencies."""
        return self.latencies[min(len(self.latencies) - 1, int(q * len(self.latencies)))] if self.latencies else 0.0


def simulate(traffic: Sequence[Offered], policy: Policy, curve: CostCurve, instances: int = 1,
             overhead: float = 0.0003, speed: float = 1.0) -> Simulated:
    """Run the traffic, `speed` times as fast, through the very policy that serves. Times are seconds of the model's."""
    free = [0.0] * instances
    heapq.heapify(free)
    queue: list[Request] = []
    latencies: list[float] = []
    batches: Counter[int] = Counter()
    working = 0.0
    index, now, gap, last = 0, 0.0, 0.0, None

    def arrive(moment: float) -> None:
        nonlocal index, gap, last
        while index < len(traffic) and traffic[index].at / speed <= moment:
            offered = traffic[index]
            request = Request("", [], None)
            request.arrived, request.rows, request.length = offered.at / speed, offered.rows, offered.length
            if last is not None:
                step = request.arrived - last
                gap = step if not gap else gap + 0.05 * (step - gap)
            last = request.arrived
            queue.append(request)
            index += 1

    while index < len(traffic) or queue:
        if not queue:
            now = max(now, traffic[index].at / speed)
        now = max(now, free[0])
        arrive(now)
        rate = 1.0 / max(gap, now - (last or now), 1e-9) if gap else 0.0
        choice = policy.decide(queue, now, rate)
        if isinstance(choice, Wait):
            following = traffic[index].at / speed if index < len(traffic) else float("inf")
            now = max(min(choice.until, following), now + 1e-6)
            arrive(now)
            continue
        chosen = set(map(id, choice.requests))
        queue = [r for r in queue if id(r) not in chosen]
        seconds = curve.seconds(choice.rows, choice.length) + overhead
        heapq.heapreplace(free, now + seconds)
        working += seconds
        batches[choice.rows] += 1
        latencies += [now + seconds - r.arrived for r in choice.requests]
    span = max(max(free), 1e-9)
    return Simulated(tuple(sorted(latencies)), dict(sorted(batches.items())), working / span / instances)


def highest_speed(traffic: Sequence[Offered], policy: Policy, curve: CostCurve, goal: float, instances: int = 1,
                  overhead: float = 0.0003) -> float:
    """How many times as fast the traffic may come with p99 still within the goal (seconds)."""
    low, high, speed = 0.0, 0.0, 1.0
    for _ in range(12):
        if simulate(traffic, policy, curve, instances, overhead, speed).quantile(0.99) <= goal:
            low = speed
        else:
            high = speed
        speed = (low + high) / 2 if high else 2 * speed
        if high and high - low < 0.02 * high:
            break
    return low
