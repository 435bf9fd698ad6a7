"""Engines on Ray Serve: replicas of a few threads each, scaled by the length of their queues, replaced one by one.

    from ray import serve
    from ingot.serve.ray import deployment
    serve.run(deployment("model.ingot", replicas=(1, 4)), name="model")

A request is a dict of arrays by input (or the protocol's JSON over HTTP); the answer is one, too. Requests that wait at
a replica are run together where the engine takes batches. `ask` sends one, again where its replica was lost.
"""
from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from ray import serve
from ray.exceptions import RayActorError

from ingot.compiler.build import load
from ingot.errors import IngotError
from ingot.runtime.session import Session
from ingot.serve.describe import describe


class EngineReplica:
    """One replica: a session, and a batch of whatever waits when it is free."""

    def __init__(self, path: str, threads: int = 1) -> None:
        engine = load(path, threads=threads)
        self._session = Session(engine, threads)
        self._description = describe(self._session, engine)
        self._waiting: list[tuple[dict[str, np.ndarray], asyncio.Future[dict[str, np.ndarray]]]] = []
        self._running = False

    async def __call__(self, request: Any) -> Any:
        """Arrays by input to arrays by output; an HTTP request of the protocol's JSON to its answer."""
        if isinstance(request, Mapping):
            return await self.infer(dict(request))
        told = await request.json()
        ports = {p.name: p for p in self._description.inputs}
        kinds = {p.name: self._session.variant.program.types[p.name].dtype.numpy for p in ports.values()}
        feeds = {t["name"]: np.asarray(t["data"], kinds[t["name"]]).reshape(t["shape"]) for t in told["inputs"]}
        outputs = await self.infer(feeds)
        return {"outputs": [{"name": p.name, "datatype": p.datatype, "shape": list(outputs[p.name].shape),
                             "data": outputs[p.name].reshape(-1).tolist()} for p in self._description.outputs]}

    async def infer(self, feeds: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Run one request, with others that wait. Raises InputError where it does not fit the engine."""
        future: asyncio.Future[dict[str, np.ndarray]] = asyncio.get_running_loop().create_future()
        self._waiting.append((feeds, future))
        if not self._running:
            self._running = True
            try:
                while self._waiting:
                    await self._step()
            finally:
                self._running = False
        return await future

    async def _step(self) -> None:
        taken = self._together()
        try:
            parts = await asyncio.to_thread(self._run, [feeds for feeds, _ in taken])
        except (IngotError, ValueError, KeyError) as error:
            for _, future in taken:
                if not future.done():
                    future.set_exception(error)
            return
        for (_, future), outputs in zip(taken, parts, strict=True):
            if not future.done():
                future.set_result(outputs)

    def _together(self) -> list[tuple[dict[str, np.ndarray], asyncio.Future[dict[str, np.ndarray]]]]:
        """The first that waits, and those of its shapes as far as a batch holds them."""
        first = self._waiting[0][0]
        most = self._description.max_rows if self._description.batch else 1
        taken: list[tuple[dict[str, np.ndarray], asyncio.Future[dict[str, np.ndarray]]]] = []
        left, rows = [], 0
        for feeds, future in self._waiting:
            more = _rows(feeds)
            if (not taken) or (rows + more <= most and _alike(first, feeds)):
                taken.append((feeds, future))
                rows += more
            else:
                left.append((feeds, future))
        self._waiting = left
        return taken

    def _run(self, requests: Sequence[dict[str, np.ndarray]]) -> list[dict[str, np.ndarray]]:
        if len(requests) == 1:
            return [self._session.run(requests[0])]
        outputs = self._session.run({k: np.concatenate([r[k] for r in requests]) for k in requests[0]})
        found, at = [], 0
        for request in requests:
            rows = _rows(request)
            found.append({k: v[at:at + rows] for k, v in outputs.items()})
            at += rows
        return found


def _rows(feeds: Mapping[str, np.ndarray]) -> int:
    shape = next(iter(feeds.values())).shape
    return int(shape[0]) if shape else 1


def _alike(a: Mapping[str, np.ndarray], b: Mapping[str, np.ndarray]) -> bool:
    return a.keys() == b.keys() and all(a[k].shape[1:] == b[k].shape[1:] for k in a)


async def ask(handle: Any, feeds: Mapping[str, np.ndarray], tries: int = 4) -> dict[str, np.ndarray]:
    """The outputs for these inputs from a deployment's handle.

    A request whose replica dies is sent again, as Ray does with those it had not handed over yet: they are pure.
    """
    while True:
        tries -= 1
        try:
            outputs: dict[str, np.ndarray] = await handle.infer.remote(dict(feeds))
            return outputs
        except RayActorError:
            if not tries:
                raise


def deployment(path: str | Path, *, name: str = "", threads: int = 1, replicas: tuple[int, int] = (1, 1),
               queue: int = 4) -> Any:
    """A Ray Serve deployment of an engine file, which every node must see under this path.

    Each replica takes `threads` CPUs. Between `replicas[0]` and `replicas[1]` of them run: so many that about `queue`
    requests are under way at each. Deploying it anew replaces the replicas one after another.
    """
    scaling: dict[str, Any] = {"num_replicas": replicas[0]} if replicas[0] == replicas[1] else {
        "autoscaling_config": {"min_replicas": replicas[0], "max_replicas": replicas[1],
                               "target_ongoing_requests": queue}}
    made = serve.deployment(EngineReplica, name=name or Path(path).stem, max_ongoing_requests=4 * queue,
                            ray_actor_options={"num_cpus": threads}, health_check_period_s=1,
                            graceful_shutdown_timeout_s=20, **scaling)
    return made.bind(str(path), threads)
