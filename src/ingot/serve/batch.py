"""Which requests to run together, and when: pure decisions over a queue, a cost curve and a clock.

By cost: the queue is cut into batches of the least total time (dynamic programming over lengths in rising order),
padding counted, so that no batch is slower per item than the two it could be cut into. It waits for one more request
only while the time that takes lowers the expected time per item, and only inside the latency goal. With a goal, a
request that has missed it already does not make those behind it late, too: it runs when nobody who can still be
answered in time is there, or when it has waited for many times the goal. First come, first served would turn one burst
into a whole queue of late answers; this way only as many are late as the burst had too many (jobs of one length, those
that cannot be in time put last: Moore, 1968).
Plainly: up to `max_batch` rows, or a preferred number of them, or whatever there is after `max_delay`.
"""
from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Protocol

from ingot.serve.cost import CostCurve
from ingot.serve.tensor import Request

WINDOW = 64             # requests of the queue that are looked at
NOISE = 20e-6           # seconds below which two measured times are the same
WORTH = 1.03            # a batch must save this much, for all of it is answered only when its last is done
HEADROOM = 0.8          # part of the latency goal that planning may use up
REACH = 0.95            # part of it within which a request must be done to count as one that can be in time
PATIENCE = 10.0         # times the goal after which a request is first again, however late it is


@dataclass(frozen=True)
class Batch:
    """Requests to run together, as this many rows of this length (padding included)."""

    requests: tuple[Request, ...]
    rows: int
    length: int
    predicted: float = 0.0          # seconds

    @property
    def filled(self) -> int:
        """Rows that are requests', not padding."""
        return sum(r.rows for r in self.requests)


@dataclass(frozen=True)
class Wait:
    """Nothing yet: ask again when a request arrives, or at this time."""

    until: float


class Policy(Protocol):
    """Decides what an idle instance does."""

    def decide(self, queue: Sequence[Request], now: float, rate: float) -> Batch | Wait:
        """For a queue that is not empty, in order of urgency; `rate` is arrivals per second of late."""
        ...


@dataclass(frozen=True)
class Limits:
    """What holds for every batch of a model."""

    least: int = 1                  # rows the engine runs at least: fewer are padded
    most: int = 1                   # rows it runs at most
    lengths: tuple[int, ...] = ()   # lengths that requests are padded to; empty: no axis is padded

    def bucket(self, length: int) -> int:
        """The length a request of this length is padded to."""
        if not self.lengths:
            return length
        return self.lengths[min(bisect_left(self.lengths, length), len(self.lengths) - 1)]


def urgency(request: Request) -> tuple[int, float]:
    """What a queue is ordered by."""
    return request.priority, request.arrived


def fellows(queue: Sequence[Request], first: Request) -> list[Request]:
    """The requests that may run together with the first, itself included, in order of urgency."""
    if first.alone:
        return [first]
    key = first.key
    return [r for r in queue[:WINDOW] if r.key == key and not r.alone]


@dataclass(frozen=True)
class PlainPolicy:
    """Fixed rules, as other servers have them."""

    limits: Limits
    max_batch: int
    max_delay: float = 0.0                  # seconds
    preferred: tuple[int, ...] = ()         # rows, in rising order

    def decide(self, queue: Sequence[Request], now: float, rate: float) -> Batch | Wait:
        """The most urgent and its fellows, once they are enough or the delay is over."""
        del rate
        first = queue[0]
        most = max(min(self.max_batch, self.limits.most), first.rows)
        taken: list[Request] = []
        rows = 0
        for request in fellows(queue, first):
            if rows + request.rows > most:
                break
            taken.append(request)
            rows += request.rows
        late = now - first.arrived >= self.max_delay
        full = rows >= most or first.alone
        if not full and not late:
            fit = [p for p in self.preferred if p <= rows]
            if not fit:
                return Wait(first.arrived + self.max_delay)
            while sum(r.rows for r in taken) > fit[-1] and len(taken) > 1:
                taken.pop()
        return _batch(taken, self.limits)


def _batch(taken: Sequence[Request], limits: Limits, predicted: float = 0.0, rows: int = 0) -> Batch:
    filled = sum(r.rows for r in taken)
    length = limits.bucket(max(r.length for r in taken)) if limits.lengths else 0
    return Batch(tuple(taken), max(rows, filled, limits.least), length, predicted)


@dataclass
class CostPolicy:
    """Batches of the least total cost; waits only while that pays."""

    limits: Limits
    curve: CostCurve
    goal: float = 0.0               # seconds an answer may take (the p99 wanted); 0: none told, so never wait
    overhead: float = 0.0002        # seconds a run costs beside its computation
    max_batch: int = 0              # rows at most; 0: what the engine takes
    _padded: dict[tuple[int, int], tuple[float, int]] = field(default_factory=dict, repr=False)
    _cuts: dict[tuple[int, int], int] = field(default_factory=dict, repr=False)

    @property
    def most(self) -> int:
        """Rows of a batch at most."""
        return min(self.limits.most, self.max_batch or self.limits.most)

    def cost(self, rows: int, length: int) -> tuple[float, int]:
        """(seconds, rows with padding) of the cheapest run that holds so many rows."""
        found = self._padded.get((rows, length))
        if found is None:
            least = max(rows, self.limits.least)
            near = [n for n in self.curve.rows if least < n <= min(self.limits.most, 2 * least)]
            found = min((self.curve.seconds(n, length), n) for n in (least, *near))
            plain = self.curve.seconds(least, length)
            if found[0] > min(0.97 * plain, plain - NOISE):         # padding must gain more than noise
                found = plain, least
            self._padded[rows, length] = found
        return found

    def _weighed(self, rows: int, length: int, several: bool) -> float:
        return (self.cost(rows, length)[0] + self.overhead) * (WORTH if several else 1.0)

    def decide(self, queue: Sequence[Request], now: float, rate: float) -> Batch | Wait:
        """The batch that holds the most urgent request in the cheapest cut of the queue, or a wait that pays."""
        if self.goal:
            queue = self._in_time(queue, now)
        first = queue[0]
        group = fellows(queue, first)
        budget = self._budget(first, now)
        if not self.limits.lengths and all(r.rows == 1 for r in group):
            rows = self._first_cut(len(group), budget)
            taken = group[:rows]
        else:
            taken = self._cut(group, first, budget)
            rows = sum(r.rows for r in taken)
        length = self.limits.bucket(max(r.length for r in taken)) if self.limits.lengths else 0
        seconds, padded = self.cost(rows, length)
        if len(taken) == len(group) and (until := self._worth_waiting(first, rows, length, now, rate)):
            return Wait(until)
        return Batch(tuple(taken), padded, length, seconds)

    def _in_time(self, queue: Sequence[Request], now: float) -> Sequence[Request]:
        """Of the most urgent priority those that can still be answered within the goal; all, where none can."""
        first = queue[0]
        if now - first.arrived > PATIENCE * self.goal:
            return queue
        reach = REACH * self.goal - now
        at = bisect_left(queue, (first.priority, -reach), key=urgency)
        found = [r for r in queue[at:at + WINDOW]
                 if r.priority == first.priority and self._alone(r) <= r.arrived + reach]
        return found or queue

    def _alone(self, request: Request) -> float:
        """Seconds of a run of this request alone."""
        return self.cost(request.rows, self.limits.bucket(request.length) if self.limits.lengths else 0)[0]

    def _budget(self, first: Request, now: float) -> float:
        """Seconds the batch of this request may take."""
        left = first.deadline - now
        return min(left, self.goal * HEADROOM - (now - first.arrived)) if self.goal else left

    def _worth_waiting(self, first: Request, rows: int, length: int, now: float, rate: float) -> float:
        """Until when to wait for one more row; 0 where that does not pay or could miss the goal."""
        if not self.goal or rows >= self.most or rate <= 0 or first.alone:
            return 0.0
        gap = 1.0 / rate
        here = (self.cost(rows, length)[0] + self.overhead) / rows
        then_seconds = self.cost(rows + 1, length)[0] + self.overhead
        if (gap + then_seconds) / (rows + 1) >= here:
            return 0.0
        latest = min(first.deadline, first.arrived + self.goal * HEADROOM) - then_seconds
        until = min(now + 2 * gap, latest)
        return until if until > now else 0.0

    def _first_cut(self, count: int, budget: float) -> int:
        """Rows of the first batch when `count` equal rows are cut at the least total cost."""
        at = min(count, 2 * self.most)
        rows = self._cuts.get((at, 0))
        if rows is None:
            total = [0.0]
            choice = [0]
            for k in range(1, at + 1):
                cost, rows = min((self._weighed(n, 0, n > 1) + total[k - n], n)
                                 for n in range(1, min(k, self.most) + 1))
                total.append(cost)
                choice.append(rows)
            # of the cut's batches, which may come in any order, the largest goes first: it frees the most
            rows, k = choice[at], at
            while k:
                rows = max(rows, choice[k])
                k -= choice[k]
            self._cuts[at, 0] = rows
        while rows > 1 and self.cost(rows, 0)[0] > budget:
            rows -= 1
        return rows

    def _cut(self, group: Sequence[Request], first: Request, budget: float) -> list[Request]:
        """The segment with `first` in the cheapest cut of the group, ordered by length, into segments."""
        order = sorted(group, key=lambda r: r.length)
        buckets = [self.limits.bucket(r.length) if self.limits.lengths else 0 for r in order]
        total: list[float] = [0.0]
        begin: list[int] = [0]
        for end in range(1, len(order) + 1):
            best, start, rows = float("inf"), end - 1, 0
            for at in range(end - 1, -1, -1):
                rows += order[at].rows
                if rows > self.most and at < end - 1:
                    break
                cost = total[at] + self._weighed(rows, buckets[end - 1], at < end - 1)
                if cost < best:
                    best, start = cost, at
            total.append(best)
            begin.append(start)
        end = len(order)
        while end:
            if any(r is first for r in order[begin[end]:end]):
                break
            end = begin[end]
        taken = order[begin[end]:end]
        # what would take longer than the most urgent request has left is cut down, the longest others first
        while len(taken) > 1:
            longest = self.limits.bucket(max(r.length for r in taken)) if self.limits.lengths else 0
            if self.cost(sum(r.rows for r in taken), longest)[0] <= budget:
                break
            taken = _without_longest(taken, first)
        return taken


def _without_longest(taken: list[Request], first: Request) -> list[Request]:
    drop = next(i for i in range(len(taken) - 1, -1, -1) if taken[i] is not first)
    return taken[:drop] + taken[drop + 1:]
