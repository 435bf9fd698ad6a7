"""From recorded traffic and measured cost to a recommendation: profile points, batching, instances, and the gain."""
from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache

from ingot.serve.batch import CostPolicy, Limits, PlainPolicy, Policy
from ingot.serve.cost import CostCurve
from ingot.serve.simulate import Offered, Simulated, highest_speed, simulate
from ingot.serve.traffic import Arrival

MOST = 4000             # requests that are simulated
DELAYS = (0.0, 0.002, 0.005, 0.010)


@dataclass(frozen=True)
class Candidate:
    """A way to serve, and what it would come to. `speed` is how many times the recorded rate it bears."""

    batching: str           # as in the model's YAML
    max_batch: int
    max_delay: float        # seconds
    instances: int
    threads: int
    result: Simulated
    speed: float

    @property
    def label(self) -> str:
        """Its batching in words."""
        return f"{self.batching}, up to {self.max_batch}" + (f", {self.max_delay * 1e3:g} ms" if self.max_delay else "")

    def to_yaml(self, lengths: Sequence[int] = ()) -> str:
        """The model's configuration."""
        lines = [f"batching: {self.batching}", f"max_batch: {self.max_batch}"]
        lines += [f"max_delay: {self.max_delay * 1e3:g}"] if self.batching == "plain" else []
        lines += [f"instances: {self.instances}", f"threads: {self.threads}"]
        lines += [f"buckets: [{', '.join(map(str, lengths))}]"] if lengths else []
        return "\n".join(lines) + "\n"


@dataclass(frozen=True)
class Recommendation:
    """What is proposed, beside what is there."""

    points: tuple[int, ...]             # rows to tune for, the most worthwhile first
    lengths: tuple[int, ...]            # lengths to pad to
    best: Candidate
    now: Candidate                      # as it is served by default today
    candidates: tuple[Candidate, ...]
    goal: float                         # seconds


def offered(arrivals: Sequence[Arrival], axis: Mapping[str, int]) -> list[Offered]:
    """Recorded requests as the simulation takes them. `axis` says which axis of which input is padded, if any."""
    found = []
    for arrival in arrivals[:MOST]:
        length = max((arrival.shapes[name][at] for name, at in axis.items()
                      if name in arrival.shapes and at < len(arrival.shapes[name])), default=0)
        found.append(Offered(arrival.at, arrival.rows, length))
    return found


def best_points(counts: Mapping[int, float], cost: CostCurve, length: int, points: int, lengths: bool
                ) -> tuple[int, ...]:
    """At most so many sizes to pad to, such that the whole histogram costs least; the largest is always one.

    Dynamic programming over the sizes in rising order: every size is padded to the next point above it. `lengths` says
    whether sizes are lengths (of one row) or rows (of this length).
    """
    sizes = sorted(counts)

    def seconds(size: int) -> float:
        return cost.seconds(1, size) if lengths else cost.seconds(size, length)

    @cache
    def least(first: int, left: int) -> tuple[float, tuple[int, ...]]:
        if first == len(sizes):
            return 0.0, ()
        if left == 0:
            return float("inf"), ()
        found = (float("inf"), ())
        weight = 0.0
        for last in range(first, len(sizes)):
            weight += counts[sizes[last]]
            rest, more = least(last + 1, left - 1)
            total = weight * seconds(sizes[last]) + rest
            if total < found[0]:
                found = (total, (sizes[last], *more))       # type: ignore[assignment]
        return found

    return least(0, points)[1]


def recommend(traffic: Sequence[Offered], curves: Mapping[int, CostCurve], most: int, least: int, goal: float,
              points: int = 3) -> Recommendation:
    """The best way to serve the traffic within a p99 goal (seconds).

    `curves` gives the measured cost by the number of threads of an instance; a machine of T threads bears T // threads
    instances of it, whose curves were measured while that many ran.
    """
    total = max(curves)
    histogram = Counter(o.length for o in traffic)
    padded = set(histogram) != {0}
    lengths = best_points(histogram, curves[total], 0, max(points, 4), True) if padded else ()
    candidates = []
    for threads, curve in sorted(curves.items(), reverse=True):
        instances = max(1, total // threads)
        limits = Limits(least, most, lengths)
        for batching, max_batch, delay, policy in _policies(limits, curve, goal, most):
            result = simulate(traffic, policy, curve, instances)
            if batching != "cost" and result.quantile(0.99) > 20 * goal:
                speed = 0.0
            else:
                speed = highest_speed(traffic, policy, curve, goal, instances)
            candidates.append(Candidate(batching, max_batch, delay, instances, threads, result, speed))
    # the highest rate inside the goal; where several come close, the shortest p99
    top = max(c.speed for c in candidates)
    best = min((c for c in candidates if c.speed >= 0.97 * top), key=lambda c: c.result.quantile(0.99))
    now = next(c for c in candidates if c.threads == total and c.batching == "cost")
    served = {rows: count * curves[best.threads].seconds(rows, lengths[-1] if lengths else 0)
              for rows, count in best.result.batches.items()}
    worth = tuple(sorted(served, key=lambda rows: -served[rows])[:points])
    return Recommendation(worth, lengths, best, now, tuple(sorted(candidates, key=lambda c: -c.speed)), goal)


def _policies(limits: Limits, curve: CostCurve, goal: float, most: int) -> list[tuple[str, int, float, Policy]]:
    found: list[tuple[str, int, float, Policy]] = [
        ("cost", most, 0.0, CostPolicy(limits, curve, goal)), ("none", 1, 0.0, PlainPolicy(limits, 1))]
    size = 2
    while size <= most:
        found += [("plain", size, delay, PlainPolicy(limits, size, delay)) for delay in DELAYS if delay < goal]
        size *= 2
    return found


def profile_of(arrivals: Sequence[Arrival], dims: Mapping[str, Sequence[int | str]], batch: str, most: int = 32
               ) -> dict[str, str]:
    """Shapes to build for, per input, as `ingot build --shapes` takes them: min..opt..max of what the traffic sent.

    `opt` is the size that holds the largest share of the work (requests times size). `batch` names the symbol of the
    first axis, whose largest size is at least `most`: the server may run requests together.
    """
    sizes: dict[str, Counter[int]] = {}
    for arrival in arrivals:
        for name, wanted in dims.items():
            for dim, size in zip(wanted, arrival.shapes.get(name, ()), strict=False):
                if isinstance(dim, str):
                    sizes.setdefault(dim, Counter())[size] += 1
    told: dict[str, str] = {}
    for dim, seen in sizes.items():
        opt = max(seen, key=lambda n: (seen[n] * n, -n))
        least, highest = (1, max(most, *seen)) if dim == batch else (min(seen), max(seen))
        told[dim] = f"{least}..{opt}..{highest}"
    return {name: "x".join(told.get(d, d) if isinstance(d, str) else str(d) for d in wanted)
            for name, wanted in dims.items()}
