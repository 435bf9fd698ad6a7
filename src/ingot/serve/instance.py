"""The server's side of one worker process: starts it, hands it batches, notices its death, starts it anew."""
from __future__ import annotations

import asyncio
import logging
import os
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import orjson

from ingot.serve.batch import Batch
from ingot.serve.shared import Shared

_LOG = logging.getLogger("ingot.serve")
MESSAGE = 1 << 20
LIVED = 2.0             # seconds after which a death is no longer taken for a failed start
FIRST_PAUSE, LONGEST_PAUSE = 0.1, 30.0
SPARE_AFTER = 2.0       # seconds after a worker is ready that its spare is started


@dataclass
class Running:
    """A batch that a worker has."""

    batch: Batch
    sent: float             # since when it runs
    limit: float            # seconds after which the worker counts as hung
    memory: Shared          # where its tensors lie
    ahead: bool = False     # whether it was handed over while the one before still ran


class Instance:
    """One worker process of a model version.

    `loaded(reply)` is called with its first message, `done(instance, running, reply)` with each result, and
    `lost(instance, batches it had, why)` when it died; then it starts again by itself until `stop`. It may have two
    batches, in a memory each: one runs, the other follows without a word from the server. Beside it a spare process
    waits that has imported everything and loaded nothing: a worker that dies is back as soon as the engine is loaded.
    """

    def __init__(self, name: str, told: Mapping[str, Any], loaded: Callable[[Instance, Mapping[str, Any]], None],
                 done: Callable[[Instance, Running, Mapping[str, Any]], None],
                 lost: Callable[[Instance, tuple[Running, ...], str], None]) -> None:
        self.name, self._told = name, told
        self._loaded, self._done, self._lost = loaded, done, lost
        self._loop = asyncio.get_running_loop()
        self._memories = [Shared(), Shared()]
        self.running: Running | None = None
        self.following: Running | None = None
        self.ready = False
        self._known: dict[str, Any] | None = None       # what its first start found out: later ones are quicker
        self.refused = ""               # why it cannot be loaded at all
        self.starts = 0
        self._stopped = False
        self.failures = 0
        self._began = 0.0
        self._process: subprocess.Popen[bytes] | None = None
        self._socket: socket.socket | None = None
        self._buffer = bytearray(MESSAGE)
        self._timer: asyncio.TimerHandle | None = None
        self._spare: tuple[subprocess.Popen[bytes], socket.socket] | None = None

    @property
    def pid(self) -> int:
        """The worker's process id; 0 while there is none."""
        return self._process.pid if self._process else 0

    @property
    def spare(self) -> int:
        """The process id of what waits to take the worker's place; 0 while there is none."""
        return self._spare[0].pid if self._spare else 0

    @property
    def idle(self) -> bool:
        """Whether a batch may be handed to it."""
        return self.ready and self.running is None

    @property
    def batches(self) -> tuple[Running, ...]:
        """What the worker has: the batch that runs first."""
        return tuple(r for r in (self.running, self.following) if r)

    @property
    def memory(self) -> Shared:
        """The memory for the tensors of the next batch."""
        return self._memories[self.running is not None and self.running.memory is self._memories[0]]

    def start(self) -> None:
        """Start the process, or take the spare one."""
        self._began = time.perf_counter()
        self.starts += 1
        spare, self._spare = self._spare, None
        if spare and spare[0].poll() is not None:
            spare[1].close()
            spare = None
        self._process, self._socket = spare or self._spawned()
        try:
            self._socket.send(orjson.dumps({**self._told, "known": self._known}))
        except OSError as error:        # a spare that dies this moment: the end of its socket is read below
            _LOG.warning("worker was not told", extra={"instance": self.name, "why": str(error)})
        self._loop.add_reader(self._socket.fileno(), self._readable)

    def _spawned(self) -> tuple[subprocess.Popen[bytes], socket.socket]:
        """A process that waits to be told what to load, and our end of its socket."""
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        for end in (ours, theirs):
            end.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, MESSAGE)
        ours.setblocking(False)
        places = [m.descriptor for m in self._memories]
        command = [sys.executable, "-m", "ingot.serve.worker", str(theirs.fileno()), *map(str, places)]
        process = subprocess.Popen(command, pass_fds=(theirs.fileno(), *places), stdin=subprocess.DEVNULL)
        theirs.close()
        return process, ours

    def _prepare(self) -> None:
        """Start the spare."""
        if self._spare is None and self.ready:
            self._spare = self._spawned()

    def run(self, batch: Batch, message: Mapping[str, Any], limit: float) -> None:
        """Hand over a batch whose inputs lie in `memory`: to be run at once, or when the one that runs is done."""
        memory = self.memory
        made = Running(batch, time.perf_counter(), limit, memory, self.running is not None)
        if made.ahead:
            self.following = made
        else:
            self.running = made
        try:
            self._socket.send(orjson.dumps({**message, "memory": self._memories.index(memory)}))  # type: ignore[union-attr]
        except OSError as error:
            # the reader sees the end of the socket as well; the batch is lost there
            _LOG.warning("worker took no batch", extra={"instance": self.name, "why": str(error)})

    def spin(self, seconds: float) -> None:
        """Wait awake for the result, so long at most: sooner there than sleeping and being woken, where it comes soon.

        The event loop does nothing else meanwhile. A result that comes later is read when the loop sees it.
        """
        until = time.perf_counter() + seconds
        receive, buffer = self._socket.recv_into, self._buffer              # type: ignore[union-attr]
        while True:
            try:
                count = receive(buffer)
                break
            except BlockingIOError:
                if time.perf_counter() > until:
                    return
                os.sched_yield()
            except OSError:
                count = 0
                break
        self._received(count)

    def check(self, now: float) -> None:
        """Kill the worker if its batch has run for longer than it may; its end is noticed as any other."""
        if self.running and now - self.running.sent > self.running.limit and self._process:
            _LOG.error("worker hangs", extra={"instance": self.name, "seconds": now - self.running.sent})
            self._process.kill()

    def _readable(self) -> None:
        try:
            count = self._socket.recv_into(self._buffer)        # type: ignore[union-attr]
        except BlockingIOError:
            return
        except OSError:
            count = 0
        self._received(count)

    def _received(self, count: int) -> None:
        if not count:
            self._died()
            return
        reply = orjson.loads(memoryview(self._buffer)[:count])
        if self.ready:
            running, self.running, self.following = self.running, self.following, None
            if self.running:
                self.running.sent = time.perf_counter()
            if running:
                if size := reply.get("size", 0):
                    running.memory.upto(size, grow=False)
                self._done(self, running, reply)
        elif "refused" in reply:
            self.refused = reply["refused"]
        else:
            self.ready, self.refused = True, ""
            self._known = {"digest": reply["digest"], "cost": reply["cost"],
                           "threads": reply["ready"]["facts"]["threads"]}
            _LOG.info("worker ready", extra={"instance": self.name, "pid": self.pid,
                                             "seconds": time.perf_counter() - self._began})
            self._loaded(self, reply)
            self._loop.call_later(SPARE_AFTER, self._prepare)

    def _died(self) -> None:
        code = self._end()
        batches, self.running, self.following = self.batches, None, None
        lived = time.perf_counter() - self._began
        was_ready, self.ready = self.ready, False
        if self._stopped:
            return
        self.failures = 0 if was_ready and lived > LIVED else self.failures + 1
        pause = min(LONGEST_PAUSE, FIRST_PAUSE * 2 ** (self.failures - 1)) if self.failures else 0.0
        why = self.refused or f"its process ended with {code}"
        _LOG.error("worker lost", extra={"instance": self.name, "why": why, "again_in": pause})
        self._lost(self, batches, why)
        self._timer = self._loop.call_later(pause, self.start)

    def _end(self) -> int:
        """Leave nothing of the process; gives its exit code."""
        if self._socket:
            self._loop.remove_reader(self._socket.fileno())
            self._socket.close()
            self._socket = None
        if self._process is None:
            return 0
        self._process.kill()
        code = self._process.wait()
        self._process = None
        return code

    def stop(self) -> None:
        """End the process for good."""
        if self._stopped:
            return
        self._stopped, self.ready = True, False
        if self._timer:
            self._timer.cancel()
        self._end()
        if self._spare:
            process, ours = self._spare
            ours.close()
            process.kill()
            process.wait()
        for memory in self._memories:
            memory.close()
