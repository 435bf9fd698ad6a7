"""One served version of a model: its queue, its batches, its workers. All of it runs on the server's event loop."""
from __future__ import annotations

import asyncio
import logging
import time
from bisect import insort
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from ingot.errors import ServeError
from ingot.runtime.host import available_cpus
from ingot.serve.batch import Batch, CostPolicy, Limits, PlainPolicy, Policy, Wait, urgency
from ingot.serve.config import ModelConfig
from ingot.serve.cost import CostCurve
from ingot.serve.instance import Instance, Running
from ingot.serve.pack import Packer
from ingot.serve.stats import Stats
from ingot.serve.tensor import Answer, Checker, Description, Request

_LOG = logging.getLogger("ingot.serve")
HANG, HANG_FACTOR = 10.0, 20.0      # seconds, and times the predicted cost, that a batch may run
TRIES = 3                           # starts that may fail before a model counts as one that cannot be loaded
BRIEF = 200e-6                      # seconds of computing that are waited for awake where clients send one by one
CROWD = 0.1                         # requests under way below which clients send one after another
AHEAD = 1.5e-3                      # seconds before a batch should be done that the next is handed to its worker
LONG = 3e-3                         # seconds of a batch from which on that is worth it


def policy_for(config: ModelConfig, limits: Limits, curve: CostCurve, goal: float) -> Policy:
    """The batching a model's configuration asks for. `goal` in seconds, 0 for none."""
    if config.batching == "none":
        return PlainPolicy(limits, 1)
    most = min(config.max_batch or limits.most, limits.most)
    if config.batching == "plain":
        return PlainPolicy(limits, most, config.max_delay / 1e3, tuple(sorted(config.preferred)))
    return CostPolicy(limits, curve, goal, max_batch=most)


class Rate:
    """Arrivals per second of late: the mean gap, the later the heavier."""

    def __init__(self) -> None:
        self._last, self._gap = 0.0, 0.0

    def arrived(self, now: float) -> None:
        """One more request."""
        if self._last:
            self._gap += 0.05 * (now - self._last - self._gap) if self._gap else now - self._last
        self._last = now

    def at(self, now: float) -> float:
        """Requests per second; falls when none come."""
        gap = max(self._gap, now - self._last)
        return 1.0 / gap if self._last and gap > 0 and self._gap else 0.0


class ServedModel:
    """Takes requests, runs them in batches on its instances, answers each exactly once."""

    def __init__(self, name: str, version: str, path: Path, config: ModelConfig, *, threads: int = 0, p99: float = 0.0,
                 max_elements: int = 1 << 26, cpus: tuple[tuple[int, ...], ...] = ()) -> None:
        self.name, self.version, self.path, self.config = name, version, path, config
        self._goal = (config.p99 or p99) / 1e3
        self._max_elements = max_elements
        self.stats = Stats()
        self.description: Description | None = None
        self.curve: CostCurve | None = None
        self.reason = "it is being loaded"
        self._rate = Rate()
        self._spare = len(available_cpus()) > 1
        self._slowness = 1.0        # times the seconds of the cost curve that batches take of late
        self._crowd = 1.0           # requests under way when another comes, of late
        self._loop = asyncio.get_running_loop()
        self._queue: list[Request] = []
        self._timer: asyncio.TimerHandle | None = None
        self._checker: Checker | None = None
        self._packer: Packer | None = None
        self._policy: Policy | None = None
        self._draining = self._pumping = False
        self._first = self._loop.create_future()
        count = config.instances
        self.instances = [Instance(f"{name}/{version}/{i}", self._told(threads, cpus[i] if i < len(cpus) else ()),
                                   self._loaded, self._done, self._lost) for i in range(count)]

    def _told(self, threads: int, cpus: tuple[int, ...]) -> dict[str, Any]:
        config = self.config
        return {"path": str(self.path), "device": config.device, "threads": config.threads or threads,
                "cpus": list(cpus),
                "memory": config.memory << 20, "shapes": dict(config.shapes), "pad": dict(config.pad),
                "buckets": list(config.buckets)}

    # --- state --------------------------------------------------------------------------------------------------

    @property
    def ready(self) -> bool:
        """Whether a request would be run now: a worker is there, and the model is not being unloaded."""
        return not self._draining and any(i.ready for i in self.instances)

    @property
    def tuned(self) -> dict[str, int]:
        """The shape the engine was tuned for: rows, and the length where one is padded."""
        description, checker = self.description, self._checker
        if description is None or checker is None:
            return {"rows": 1, "length": 0}
        return {"rows": description.symbols[description.batch][1] if description.batch else 1,
                "length": description.symbols[checker.padded][1] if checker.padded else 0}

    @property
    def waiting(self) -> int:
        """Requests in the queue."""
        return len(self._queue)

    @property
    def under_way(self) -> int:
        """Requests in the queue or with a worker."""
        return len(self._queue) + sum(len(r.batch.requests) for i in self.instances for r in i.batches)

    def start(self) -> None:
        """Start the first worker; the others follow when it is ready, so that an engine is built only once."""
        self.instances[0].start()

    async def loaded(self) -> None:
        """Wait for the first worker. Raises ServeError where the model cannot be loaded."""
        await asyncio.shield(self._first)

    def _loaded(self, instance: Instance, reply: Mapping[str, Any]) -> None:
        if self.description is None:
            description = self.description = Description.from_json(reply["ready"])
            curve = self.curve = CostCurve.from_json(reply["cost"])
            self._checker = Checker(description, tuple(self.config.pad), self._max_elements)
            padded = self._checker.padded
            self._packer = Packer(description, padded, self.config.pad)
            limits = Limits(description.min_rows, description.max_rows, curve.lengths if padded else ())
            self._policy = policy_for(self.config, limits, curve, self._goal)
            for other in self.instances[1:]:
                other.start()
        self.reason = ""
        if not self._first.done():
            self._first.set_result(None)
        self.pump()

    # --- requests -----------------------------------------------------------------------------------------------

    def submit(self, request: Request) -> asyncio.Future[Answer]:
        """Accept a request; the future gives its answer. Raises ServeError where it cannot be accepted."""
        if self._draining or self._checker is None:
            raise ServeError(f"the model '{self.name}' is not ready", kind="unavailable", why=(self.reason,),
                             mend="ask again when GET /v2/models/MODEL/ready says so")
        self._checker.settle(request)
        if len(self._queue) >= self.config.queue:
            raise ServeError(f"{len(self._queue)} requests wait for '{self.name}' already", kind="full",
                             mend="send again later, or less at once")
        now = request.arrived
        self._rate.arrived(now)
        answer = request.answer = self._loop.create_future()
        queue = self._queue
        self._crowd += 0.02 * (self.under_way - self._crowd)
        if queue and queue[-1].priority > request.priority:
            insort(queue, request, key=urgency)
        else:
            queue.append(request)
        if self._crowd < CROWD and self._spare and len(queue) == 1 and not self._pumping:
            self._at_once()
        elif not self._pumping:         # at the end of this turn of the loop: what arrives together runs together
            self._pumping = True
            self._loop.call_soon(self._pump_once)
        return answer

    def _at_once(self) -> None:
        """Run the only request there is, and where it takes but a moment, wait for it awake."""
        self.pump()
        for instance in self.instances:
            running = instance.running
            if running and (predicted := running.batch.predicted) <= BRIEF and not self._queue:
                instance.spin(2 * predicted + BRIEF)

    def _pump_once(self) -> None:
        self._pumping = False
        self.pump()

    def pump(self) -> None:
        """Hand batches to idle instances for as long as there is reason to."""
        queue = self._queue
        if not queue:
            return
        for instance in self.instances:
            if not instance.idle:
                continue
            now = time.perf_counter()
            self._drop_late(now)
            if not queue:
                return
            choice = self._policy.decide(queue, now, self._rate.at(now))       # type: ignore[union-attr]
            if isinstance(choice, Wait):
                self._later(choice.until - now)
                return
            self._dispatch(instance, choice, now)
            if not queue:
                return

    def _ahead(self, instance: Instance, running: Running) -> None:
        """The batch is about to be done: hand over the next, so that the worker finds it without asking."""
        if instance.running is not running or instance.following or not instance.ready:
            return
        soon = time.perf_counter() + AHEAD
        self._drop_late(soon)
        if not self._queue:
            return
        choice = self._policy.decide(self._queue, soon, self._rate.at(soon))        # type: ignore[union-attr]
        if isinstance(choice, Batch):
            self._dispatch(instance, choice, soon - AHEAD)

    def _watch_for_end(self, instance: Instance) -> None:
        """See to it that `_ahead` comes shortly before what runs is done, where that is long enough to be foreseen."""
        running = instance.running
        if running:
            batch = running.batch
            seconds = self._slowness * self.curve.seconds(batch.rows, batch.length)     # type: ignore[union-attr]
            if seconds > LONG:
                left = running.sent + seconds - AHEAD - time.perf_counter()
                self._loop.call_later(max(left, 0.0), self._ahead, instance, running)

    def _later(self, seconds: float) -> None:
        if self._timer:
            self._timer.cancel()
        self._timer = self._loop.call_later(max(seconds, 0.0), self.pump)

    def _drop_late(self, now: float) -> None:
        """Take out whom nobody waits for any more, and whose time is over."""
        gone = [r for r in self._queue if r.deadline < now or r.answer.done()]      # type: ignore[union-attr]
        if not gone:
            return
        self._queue[:] = [r for r in self._queue if r not in gone]
        for request in gone:
            if not request.answer.done():                                           # type: ignore[union-attr]
                self._fail(request, ServeError("the request's time is over", kind="late",
                                               why=(f"it waited {now - request.arrived:.3f} s",),
                                               mend="allow it more time, or send less at once"))
            else:
                self.stats.refused("cancelled")

    def _dispatch(self, instance: Instance, batch: Batch, now: float) -> None:
        taken = batch.requests
        if len(taken) == len(self._queue):
            self._queue.clear()
        else:
            chosen = set(map(id, taken))
            self._queue[:] = [r for r in self._queue if id(r) not in chosen]
        message = self._packer.lay(batch, instance.memory)      # type: ignore[union-attr]
        message["awake"] = self._spare and self._crowd < CROWD
        for request in taken:
            request.taken = now
        predicted = batch.predicted or self.curve.seconds(batch.rows, batch.length)     # type: ignore[union-attr]
        instance.run(batch, message, self.config.timeout or HANG + HANG_FACTOR * predicted)
        if not instance.following:
            self._watch_for_end(instance)
        self.stats.stages["batch"].add(time.perf_counter() - now)

    # --- results ------------------------------------------------------------------------------------------------

    def _done(self, instance: Instance, running: Running, reply: Mapping[str, Any]) -> None:
        batch = running.batch
        self._watch_for_end(instance)           # another may run already
        if "error" in reply:
            self.pump()
            if len(batch.requests) > 1:         # whose fault it is shows when each runs alone
                self._again(batch, "one of its batch cannot be run")
            else:
                self._fail(batch.requests[0], ServeError(reply["text"], kind=reply["error"]))
            return
        begin = time.perf_counter()
        answers = self._packer.split(batch, reply["outputs"], running.memory)       # type: ignore[union-attr]
        copied = time.perf_counter() - begin
        self.pump()                             # the instance is free: the next batch goes before the answers do
        self._count(batch, reply, copied)
        self.stats.ahead += running.ahead
        queue = self.stats.stages["queue"]
        for request, outputs in zip(batch.requests, answers, strict=True):
            queue.add((running.sent if running.ahead else request.taken) - request.arrived)
            future = request.answer
            if not future.done():                                                   # type: ignore[union-attr]
                future.set_result(Answer(self.name, self.version, outputs))         # type: ignore[union-attr]

    def _count(self, batch: Batch, reply: Mapping[str, Any], copied: float) -> None:
        stats, curve, description = self.stats, self.curve, self.description
        assert curve is not None
        assert description is not None
        seconds = reply["run"]
        self._slowness += 0.1 * (min(seconds / curve.seconds(batch.rows, batch.length), 4.0) - self._slowness)
        stats.executed(batch.rows, reply["in"], seconds, reply["out"] + copied)
        stats.padded_rows += batch.rows - batch.filled
        stats.predicted_seconds += curve.seconds(batch.rows, batch.length)
        stats.contended_seconds += max(0.0, seconds - curve.seconds(batch.rows, batch.length))
        tuned = self.tuned
        tuned_rows, tuned_length = tuned["rows"], tuned["length"] if batch.length else 0
        if batch.filled != tuned_rows or batch.length != tuned_length:
            stats.off_profile += 1
            each = curve.seconds(tuned_rows, tuned_length) / tuned_rows
            if tuned_length:
                each *= batch.length / tuned_length
            stats.off_profile_seconds += max(0.0, seconds - batch.filled * each)

    def _lost(self, instance: Instance, batches: tuple[Running, ...], why: str) -> None:
        if not any(i.ready for i in self.instances):
            self.reason = why
        self.stats.restarts += 1
        if (instance.refused or instance.failures >= TRIES) and not self._first.done():
            self._first.set_exception(ServeError(f"the model '{self.name}' cannot be loaded", kind="unavailable",
                                                 why=(why,), mend="mend the model, then load it again"))
        for waiting in batches[1:]:             # it had not begun
            for request in waiting.batch.requests:
                insort(self._queue, request, key=urgency)
        if batches:
            self._again(batches[0].batch, why)
        self.pump()

    def _again(self, batch: Batch, why: str) -> None:
        """Requests are pure: run each once more, by itself, so that one that breaks its worker breaks no other."""
        for request in batch.requests:
            if request.tries:
                self._fail(request, ServeError("the worker that ran the request was lost, twice", kind="unavailable",
                                               why=(why,), mend="send it again; if it happens again, report it"))
            elif not request.answer.done():                                         # type: ignore[union-attr]
                request.tries, request.alone = 1, True
                self.stats.retries += 1
                insort(self._queue, request, key=urgency)
        self.pump()

    def _fail(self, request: Request, error: ServeError) -> None:
        if request.answer and not request.answer.done():
            self.stats.refused(error.kind, time.perf_counter() - request.arrived)
            request.answer.set_exception(error)

    def tick(self, now: float) -> None:
        """What is to be looked at from time to time."""
        for instance in self.instances:
            instance.check(now)
        self._drop_late(now)

    def lingering(self, before: float) -> list[Request]:
        """Requests that have waited since before this moment, and whose clients nobody watches yet."""
        return [r for r in self._queue if r.arrived < before and r.leaves is not None]

    async def drain(self, seconds: float, goes_on: Callable[[], bool] = lambda: False) -> None:
        """Take no more requests, wait for those under way, end the workers."""
        self._draining, self.reason = True, "it is being unloaded"
        until = time.perf_counter() + seconds
        while (self.under_way or goes_on()) and time.perf_counter() < until:
            await asyncio.sleep(0.01)
        self.stop()

    def stop(self) -> None:
        """End the workers; whatever still waits is refused."""
        self._draining = True
        for instance in self.instances:
            batches = instance.batches
            instance.stop()
            for request in (r for running in batches for r in running.batch.requests):
                self._fail(request, ServeError("the server stops", kind="unavailable", mend="send it elsewhere"))
        for request in self._queue:
            self._fail(request, ServeError("the server stops", kind="unavailable", mend="send it elsewhere"))
        self._queue.clear()
