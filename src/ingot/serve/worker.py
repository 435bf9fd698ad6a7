"""The process of one model instance: takes batches out of shared memory, runs them, leaves the outputs there.

    python -m ingot.serve.worker SOCKET MEMORY MEMORY       numbers of inherited descriptors

The first message says what to load. Each later one is a batch; whatever goes wrong in it is said in the reply, and what
cannot be said (a crash, no memory left) shows as the end of the socket.
"""
from __future__ import annotations

import ctypes
import os
import resource
import signal
import socket
import sys
import time
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import orjson

from ingot.env import cache_folder
from ingot.errors import IngotError, InputError
from ingot.runtime.cuda.open import open_session
from ingot.runtime.cuda.session import CudaSession
from ingot.runtime.session import Session
from ingot.serve.cost import CostCurve
from ingot.serve.datatype import array_of, bytes_of, numpy_of
from ingot.serve.describe import check_padding, cost_of, describe, engine_at, fitting_session
from ingot.serve.shared import Shared, aligned

SMALL = 1 << 16         # bytes of outputs that are rather copied: to write them in place takes the session longer
SPIN = 1e-3             # seconds a worker waits awake at most
DIE_WITH_PARENT = 1     # PR_SET_PDEATHSIG
MESSAGE = 1 << 20       # bytes of a message at most


class Worker:
    """A session and the memories it shares with the server: one holds the batch that runs, the other the next."""

    def __init__(self, channel: socket.socket, memories: tuple[Shared, ...]) -> None:
        self._channel, self._memories, self._memory = channel, memories, memories[0]
        self._session: Session | CudaSession | None = None
        self._awake = False         # whether the next batch is waited for awake
        self._outputs: tuple[tuple[str, str], ...] = ()
        self._inputs: tuple[tuple[str, str], ...] = ()
        self._shapes: dict[tuple[tuple[int, ...], ...], list[tuple[str, tuple[int, ...]]]] = {}

    def load(self, told: dict[str, Any]) -> dict[str, Any]:
        """Load what the first message names; gives the description and the cost curve."""
        threads = int(told["threads"])
        known = told.get("known")       # after a restart: what the first worker found out
        engine, digest = engine_at(Path(told["path"]), told["shapes"], threads, known["digest"] if known else "")
        device = told["device"]
        session = open_session(engine, known["threads"], device=device) if known else \
            fitting_session(engine, threads, device)
        description = describe(session, engine)
        check_padding(description, told["pad"])
        others = {d for p in description.inputs for d in p.dims if isinstance(d, str) and d != description.batch}
        padded = next(iter(others)) if told["pad"] and len(others) == 1 and others <= set(description.symbols) else ""
        curve = CostCurve.from_json(known["cost"]) if known else \
            cost_of(session, engine, description, digest, padded, tuple(told["buckets"]))
        self._session = session
        self._inputs = tuple((p.name, p.datatype) for p in description.inputs)
        self._outputs = tuple((p.name, p.datatype) for p in description.outputs)
        return {"ready": description.to_json(), "cost": curve.to_json(), "digest": digest}

    def run(self, batch: dict[str, Any]) -> dict[str, Any]:
        """One batch: {"memory": index, "size", "awake", "inputs": [[offset, bytes, shape], ...], "out": offset}.

        The reply says likewise where the outputs are.
        """
        begin = time.perf_counter()
        self._awake = batch["awake"]
        self._memory = self._memories[batch["memory"]]
        view = self._memory.upto(batch["size"], grow=False)
        feeds: dict[str, np.ndarray] = {}
        shapes = []
        for (name, datatype), (offset, nbytes, shape) in zip(self._inputs, batch["inputs"], strict=True):
            feeds[name] = array_of(view[offset:offset + nbytes], datatype, shape, name)
            shapes.append(tuple(shape))
        key = tuple(shapes)
        known = self._shapes.get(key)
        out: dict[str, np.ndarray] = {}
        if known is not None:
            out = self._places(known, batch["out"])
        start = time.perf_counter()
        results = self._session.run(feeds, out=out) if out else self._session.run(feeds)    # type: ignore[union-attr]
        stop = time.perf_counter()
        told = self._left(results, out, batch["out"])
        if known is None:
            if len(self._shapes) > 256:
                self._shapes.clear()
            self._shapes[key] = [(name, results[name].shape) for name, _ in self._outputs]
        end = time.perf_counter()
        return {"outputs": told, "in": start - begin, "run": stop - start, "out": end - stop,
                "size": len(self._memory.view)}

    def _places(self, known: list[tuple[str, tuple[int, ...]]], at: int) -> dict[str, np.ndarray]:
        """Where outputs of known shapes are written straight into the shared memory; {} where they are copied."""
        if any(datatype == "BYTES" for _, datatype in self._outputs):
            return {}
        sizes = [int(np.prod(shape, dtype=np.int64)) * numpy_of(datatype).itemsize
                 for (_, shape), (_, datatype) in zip(known, self._outputs, strict=True)]
        if sum(sizes) <= SMALL:
            return {}
        view = self._memory.upto(at + sum(map(aligned, sizes)))
        out = {}
        for (name, shape), (_, datatype), nbytes in zip(known, self._outputs, sizes, strict=True):
            out[name] = array_of(view[at:at + nbytes], datatype, shape)
            at += aligned(nbytes)
        return out

    def _left(self, results: dict[str, np.ndarray], out: dict[str, np.ndarray], at: int) -> list[Any]:
        """The outputs' places in the shared memory; those that are not there yet are copied."""
        told = []
        for name, datatype in self._outputs:
            array = results[name]
            if name in out:
                nbytes = array.nbytes
            else:
                data = bytes_of(array, datatype)
                nbytes = len(data)
                self._memory.upto(at + nbytes)[at:at + nbytes] = data
            told.append((at, nbytes, array.shape))
            at += aligned(nbytes)
        return told

    def _next(self, room: memoryview) -> int:
        """Wait for a message: awake for a moment where one client sends one request after another, which is quicker.

        Only then: where several requests are under way, the core is better left to whoever brings the next.
        """
        if self._awake:
            until = time.perf_counter() + SPIN
            receive = partial(self._channel.recv_into, room, 0, socket.MSG_DONTWAIT)
            while time.perf_counter() < until:
                try:
                    return receive()
                except BlockingIOError:
                    os.sched_yield()
        return self._channel.recv_into(room)

    def serve(self) -> None:
        """Batches until the server closes its end."""
        send, dumps, loads = self._channel.send, orjson.dumps, orjson.loads
        room = memoryview(bytearray(MESSAGE))       # `recv` would make a buffer this large each time
        while count := self._next(room):
            try:
                reply = self.run(loads(room[:count]))
            except InputError as error:
                reply = {"error": "invalid", "text": str(error)}
            except IngotError as error:
                reply = {"error": "failed", "text": str(error)}
            except MemoryError:         # told, and then the process ends: nobody knows what is left half done
                send(dumps({"error": "failed", "text": "the worker's memory did not suffice"}))
                return
            send(dumps(reply))


def _settle(told: dict[str, Any]) -> None:
    """Bounds and places of this process, before anything large is made."""
    if told["memory"]:
        resource.setrlimit(resource.RLIMIT_AS, (told["memory"], told["memory"]))
    if told["cpus"]:
        os.sched_setaffinity(0, told["cpus"])


def main() -> int:
    """The whole life of the process."""
    ctypes.CDLL(None).prctl(DIE_WITH_PARENT, signal.SIGKILL)
    for ignored in (signal.SIGINT, signal.SIGTERM):         # the server decides when its workers end
        signal.signal(ignored, signal.SIG_IGN)
    channel = socket.socket(fileno=int(sys.argv[1]))
    memories = tuple(Shared(int(place)) for place in sys.argv[2:])
    first = channel.recv(MESSAGE)       # a spare waits here
    if not first:
        return 0
    told = orjson.loads(first)
    worker = Worker(channel, memories)
    try:
        _settle(told)
        cache_folder()
        reply = worker.load(told)
    except IngotError as error:
        reply = {"refused": str(error)}
    except (OSError, ValueError) as error:
        reply = {"refused": f"{type(error).__name__}: {error}"}
    except MemoryError:
        reply = {"refused": "its memory does not suffice to load it"}
    channel.send(orjson.dumps(reply))
    if "refused" in reply:
        return 1
    worker.serve()
    return 0


if __name__ == "__main__":
    sys.exit(main())
