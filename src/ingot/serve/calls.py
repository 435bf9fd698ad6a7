"""gRPC's own core server, driven by the event loop itself: no pool of threads, no task per call.

`grpc.aio` hands every event through a thread and a socket to the loop, the plain server through three threads. Here
the loop takes calls from the core's completion queue; only while nothing is going on a thread of its own waits at that
queue, and wakes the loop with what comes first. Measured on two cores, an echo takes 153 us instead of 360 (aio) or
281 (threads). The queue is the layer both of grpcio's own servers stand on (`grpc._cython.cygrpc`).
"""
from __future__ import annotations

import asyncio
import logging
import threading
import time
from collections import deque
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ingot.serve.tuned_grpc import cygrpc, grpc

_LOG = logging.getLogger("ingot.serve")
_ASKED, _SHUT = "asked", "shut"     # tags: a call has come; the server has ended
AT_ONCE = 64                        # events that are handled before the loop does something else
LINGER = 400e-6                     # seconds the loop looks for the next event before the thread waits for it
BRISK = 1e-3                        # seconds a call takes of late, below which it looks at all
_OK = grpc.StatusCode.OK.value[0]

Unary = Callable[["Call", bytes], None]
Stream = Callable[["Call"], AsyncIterator[bytes]]


@dataclass(frozen=True)
class Methods:
    """What is served, by the path of a method: `unary` answers or fails the call itself, `stream` yields answers."""

    unary: Mapping[bytes, Unary]
    stream: Mapping[bytes, Stream]


class RefusedError(Exception):
    """A stream ends with a status instead of its next answer."""

    def __init__(self, code: Any, text: str) -> None:
        super().__init__(text)
        self.code = code


class Call:
    """One call: answered or failed exactly once. `left` is called when its client is gone before that."""

    __slots__ = ("_asked", "_begun", "_call", "_inbox", "_server", "_waiting", "came", "done", "left", "metadata")

    def __init__(self, server: CallServer, call: Any, metadata: Sequence[tuple[str, Any]]) -> None:
        self._server, self._call, self.metadata, self.came = server, call, metadata, time.perf_counter()
        self.done = self._begun = self._asked = False
        self.left: Callable[[], object] | None = None
        self._inbox: deque[bytes | None] = deque()
        self._waiting: asyncio.Future[None] | None = None
        call.start_server_batch((cygrpc.ReceiveCloseOnServerOperation(0),), self._closed)

    def receive(self, then: Callable[[bytes | None], None]) -> None:
        """Ask for the next message; None where there is no more."""
        def got(event: Any) -> None:
            then(event.batch_operations[0].message())
        self._call.start_server_batch((cygrpc.ReceiveMessageOperation(0),), got)

    def answer(self, message: bytes) -> None:
        """The only answer of a call."""
        self._end((cygrpc.SendInitialMetadataOperation(None, 0), cygrpc.SendMessageOperation(message, 0),
                   cygrpc.SendStatusFromServerOperation(None, _OK, b"", 0)))

    def fail(self, code: Any, text: str) -> None:
        """End the call with a status and nothing more."""
        status = cygrpc.SendStatusFromServerOperation(None, code.value[0], text.encode()[:4000], 0)
        self._end((status,) if self._begun else (cygrpc.SendInitialMetadataOperation(None, 0), status))

    def _end(self, operations: tuple[Any, ...]) -> None:
        if not self.done:
            self.done = True
            self._server.ended(self)
            self._call.start_server_batch(operations, _nothing)

    def _closed(self, event: Any) -> None:
        if not self.done and event.batch_operations[0].cancelled():
            self.done = True
            self._server.ended(self)
            if self.left:
                self.left()
            self._wake()

    # --- streams ------------------------------------------------------------------------------------------------

    def _wake(self) -> None:
        if self._waiting and not self._waiting.done():
            self._waiting.set_result(None)

    def _arrived(self, message: bytes | None) -> None:
        self._inbox.append(message)
        self._asked = False
        self._wake()

    async def messages(self) -> AsyncIterator[bytes]:
        """The messages of a stream, until its client has sent all or is gone."""
        while not self.done:
            if not self._inbox:
                if not self._asked:
                    self._asked = True
                    self.receive(self._arrived)
                self._waiting = self._server.loop.create_future()
                await self._waiting
                continue
            message = self._inbox.popleft()
            if message is None:
                return
            yield message

    async def send(self, message: bytes) -> None:
        """One of several answers; returns when the transport has taken it."""
        sent: asyncio.Future[None] = self._server.loop.create_future()
        first = () if self._begun else (cygrpc.SendInitialMetadataOperation(None, 0),)
        self._begun = True
        self._call.start_server_batch((*first, cygrpc.SendMessageOperation(message, 0)),
                                      lambda event: None if sent.done() else sent.set_result(None))
        await sent

    async def run(self, stream: Stream) -> None:
        """Answer a stream."""
        try:
            async for message in stream(self):
                if self.done:
                    return
                await self.send(message)
        except RefusedError as error:
            self.fail(error.code, str(error))
            return
        self._end((cygrpc.SendStatusFromServerOperation(None, _OK, b"", 0),) if self._begun else
                  (cygrpc.SendInitialMetadataOperation(None, 0),
                   cygrpc.SendStatusFromServerOperation(None, _OK, b"", 0)))


class CallServer:
    """Listens, takes calls, and hands them to the methods, all on the running event loop.

    `most` calls at most are under way at once; more are refused. `linger`: after each call look awake for the next,
    for a moment, which is quicker where a core is to spare; while calls take longer than a moment themselves it does
    not, for then the cores belong to the models. `taken` and `answered` count the calls that came and
    those that ended with an answer, a status of ours, or because their clients left.
    """

    def __init__(self, options: Sequence[tuple[str, int]], most: int, linger: bool) -> None:
        self.loop = asyncio.get_running_loop()
        self.methods, self._most = Methods({}, {}), most
        self._linger = LINGER if linger else 0.0
        self._queue = cygrpc.CompletionQueue()
        self._server = cygrpc.Server(tuple(options), False)
        self._server.register_completion_queue(self._queue)
        self._open: set[Call] = set()
        self._tasks: set[asyncio.Task[None]] = set()
        self._turn = threading.Semaphore(0)             # released: it is the thread's turn at the queue
        self._thread = threading.Thread(target=self._watch, name="calls", daemon=True)
        self._refusing = self._over = False
        self._last = self._usual = 0.0          # when a call came or ended; seconds that calls take of late
        self.taken = self.answered = 0
        self._stopped: asyncio.Future[None] = self.loop.create_future()

    def listen(self, address: str, credentials: Any = None) -> int:
        """Listen; gives the port. Raises RuntimeError or OSError where that cannot be."""
        if credentials is None:
            return int(self._server.add_http2_port(address.encode()))
        return int(self._server.add_http2_port(address.encode(), credentials._credentials))

    def start(self) -> None:
        """Begin to take calls."""
        self._server.start()
        self._ask()
        self._thread.start()
        self._turn.release()

    async def stop(self, refuse: float, grace: float) -> None:
        """Refuse new calls for `refuse` seconds, then close; calls that were taken have `grace` seconds to end."""
        self._refusing = True
        await asyncio.sleep(refuse)
        until = time.perf_counter() + grace
        while self._open and time.perf_counter() < until:
            await asyncio.sleep(0.005)
        self._server.shutdown(self._queue, _SHUT)
        self._server.cancel_all_calls()         # what is left: calls the core holds and has handed to nobody
        await self._stopped
        await asyncio.to_thread(self._thread.join)
        self._server.destroy()

    # --- the queue ----------------------------------------------------------------------------------------------

    def _ask(self) -> None:
        self._server.request_call(self._queue, self._queue, _ASKED)

    def _watch(self) -> None:
        """The thread: waits for one event whenever it is its turn."""
        while True:
            self._turn.acquire()
            if self._over:
                return
            self.loop.call_soon_threadsafe(self._woken, self._queue.poll())

    def _woken(self, event: Any) -> None:
        self._handle(event)
        self._drain()

    def _drain(self) -> None:
        """Handle what is there; when that was all for a while, it is the thread's turn."""
        poll = self._queue.poll
        for _ in range(AT_ONCE):
            event = poll(0)
            if event.completion_type == cygrpc.CompletionType.queue_timeout:
                if self._usual > BRISK or time.perf_counter() - self._last > self._linger or self._over:
                    self._turn.release()
                    return
                break
            self._handle(event)
        self.loop.call_soon(self._drain)

    def _handle(self, event: Any) -> None:
        tag = event.tag
        if tag is _ASKED:
            if event.call is not None and event.success:
                self._ask()
                self._take(event)
        elif tag is _SHUT:
            self._over = True
            self._stopped.set_result(None)
        else:
            tag(event)

    # --- calls --------------------------------------------------------------------------------------------------

    def _take(self, event: Any) -> None:
        self.taken += 1
        call = Call(self, event.call, event.invocation_metadata)
        self._last = call.came
        self._open.add(call)
        path = event.call_details.method
        if self._refusing:
            call.fail(grpc.StatusCode.UNAVAILABLE, "the server stops: send it elsewhere")
        elif len(self._open) > self._most:
            call.fail(grpc.StatusCode.RESOURCE_EXHAUSTED, f"{self._most} calls are under way already")
        elif unary := self.methods.unary.get(path):
            def got(message: bytes | None) -> None:
                if message is not None and not call.done:
                    unary(call, message)
                else:
                    call.fail(grpc.StatusCode.INTERNAL, "the call has no message")
            call.receive(got)
        elif stream := self.methods.stream.get(path):
            self.follow(call, asyncio.ensure_future(call.run(stream)))
        else:
            call.fail(grpc.StatusCode.UNIMPLEMENTED, "there is no such method")

    def follow(self, call: Call, task: asyncio.Task[None]) -> None:
        """Cancel a task with its call, and fail the call should the task end without having ended it."""
        self._tasks.add(task)
        call.left = task.cancel

        def over(ended: asyncio.Task[None]) -> None:
            self._tasks.discard(ended)
            if not ended.cancelled() and (error := ended.exception()):
                _LOG.error("a call failed", exc_info=error)
            call.fail(grpc.StatusCode.INTERNAL, "the server could not answer: its log says why")
        task.add_done_callback(over)

    def ended(self, call: Call) -> None:
        """A call has its answer, or its client is gone."""
        now = self._last = time.perf_counter()
        self._usual += 0.1 * (now - call.came - self._usual)
        self.answered += 1
        self._open.discard(call)


def _nothing(event: object) -> None:
    del event
