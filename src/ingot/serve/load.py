"""Load on a server over gRPC: requests at given moments, or one after another; latency counts from when one was due."""
from __future__ import annotations

import asyncio
import random
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from ingot.serve.protocol import MESSAGES, SERVICE
from ingot.serve.tuned_grpc import grpc

INFER = f"/{SERVICE}/ModelInfer"


@dataclass(frozen=True)
class Outcome:
    """What became of an offered load. Latencies in seconds, sorted; errors by gRPC status."""

    latencies: tuple[float, ...]
    errors: dict[str, int]
    seconds: float

    def quantile(self, q: float) -> float:
        """A quantile of the latencies; infinite where nothing was answered, or that share of requests failed."""
        total = len(self.latencies) + sum(self.errors.values())
        at = int(q * total)
        return self.latencies[at] if at < len(self.latencies) else float("inf")

    @property
    def rate(self) -> float:
        """Answers per second."""
        return len(self.latencies) / self.seconds if self.seconds else 0.0


def request_bytes(model: str, arrays: dict[str, tuple[str, np.ndarray]]) -> bytes:
    """An inference request, ready to send; arrays by input with their datatypes."""
    message = MESSAGES["ModelInferRequest"](model_name=model)
    for name, (datatype, array) in arrays.items():
        message.inputs.add(name=name, datatype=datatype, shape=array.shape)
        message.raw_input_contents.append(np.ascontiguousarray(array).tobytes())
    return bytes(message.SerializeToString())


def poisson(rate: float, seconds: float, seed: int = 0) -> list[float]:
    """Moments of a Poisson process, in seconds from the start."""
    source, at, found = random.Random(seed), 0.0, []
    while (at := at + source.expovariate(rate)) < seconds:
        found.append(at)
    return found


class Loader:
    """Channels to a server, and messages to send."""

    def __init__(self, at: str, messages: Sequence[bytes]) -> None:
        self._at, self._messages = at, messages
        self._found: list[float] = []
        self._errors: Counter[str] = Counter()

    async def _one(self, call: Callable[..., object], index: int, due: float) -> None:
        try:
            await call(self._messages[index % len(self._messages)], timeout=60)     # type: ignore[misc]
            self._found.append(time.perf_counter() - due)
        except grpc.aio.AioRpcError as error:
            self._errors[error.code().name] += 1

    async def open_loop(self, moments: Sequence[float]) -> Outcome:
        """Send at these moments, whatever the server does."""
        self._found, self._errors = [], Counter()
        async with grpc.aio.insecure_channel(self._at, options=[("grpc.max_receive_message_length", -1)]) as channel:
            call = channel.unary_unary(INFER)
            await self._one(call, 0, time.perf_counter())       # connects
            self._found.clear()
            begin = time.perf_counter() + 0.05
            waiting = set()
            for index, moment in enumerate(moments):
                pause = begin + moment - time.perf_counter()
                if pause > 0:
                    await asyncio.sleep(pause)
                task = asyncio.ensure_future(self._one(call, index, begin + moment))
                waiting.add(task)
                task.add_done_callback(waiting.discard)
            if waiting:
                await asyncio.wait(waiting)
            return self._outcome(begin)

    async def closed_loop(self, clients: int, seconds: float) -> Outcome:
        """So many clients, each sending when its last was answered."""
        self._found, self._errors = [], Counter()
        async with grpc.aio.insecure_channel(self._at, options=[("grpc.max_receive_message_length", -1)]) as channel:
            call = channel.unary_unary(INFER)
            begin = time.perf_counter()

            async def client(index: int) -> None:
                while (now := time.perf_counter()) < begin + seconds:
                    await self._one(call, index, now)
                    index += clients
            await asyncio.gather(*(client(i) for i in range(clients)))
            return self._outcome(begin)

    def _outcome(self, begin: float) -> Outcome:
        return Outcome(tuple(sorted(self._found)), dict(self._errors), time.perf_counter() - begin)


async def highest_rate(trial: Callable[[float], object], goal: float, first: float, steps: int = 7
                       ) -> tuple[float, list[tuple[float, float]]]:
    """The highest rate whose p99 stays within the goal (seconds), and every (rate, p99) that was tried.

    `trial(rate)` is awaited and gives an `Outcome`. The rate is doubled until the goal is missed, then bisected.
    """
    tried: list[tuple[float, float]] = []
    low, high, rate = 0.0, 0.0, first
    for _ in range(steps):
        outcome = await trial(rate)     # type: ignore[misc]
        p99 = outcome.quantile(0.99)
        tried.append((rate, p99))
        if p99 <= goal:
            low = rate
        else:
            high = rate
        rate = (low + high) / 2 if high else 2 * rate
        if high and high - low < 0.04 * high:
            break
    return low, tried
