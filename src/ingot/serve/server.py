"""The server: one event loop that speaks HTTP and gRPC, forms batches, and watches its workers."""
from __future__ import annotations

import asyncio
import gc
import hmac
import logging
import signal
import socket
import ssl
import time
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from importlib.metadata import PackageNotFoundError, version
from ipaddress import ip_address
from pathlib import Path
from typing import Any

import uvicorn
import uvloop
from prometheus_client import CollectorRegistry

from ingot.errors import InputError, ServeError
from ingot.runtime.host import available_cpus
from ingot.serve.calls import CallServer
from ingot.serve.http import Application
from ingot.serve.metrics import ModelMetrics, memory_of
from ingot.serve.options import ServeOptions
from ingot.serve.regions import Regions
from ingot.serve.repository import Repository
from ingot.serve.rpc import call_server
from ingot.serve.spans import Spans
from ingot.serve.tensor import Answer, Request
from ingot.serve.traffic import Recorder
from ingot.serve.tuned_grpc import grpc

_LOG = logging.getLogger("ingot.serve")
TICK = 0.05             # seconds between looks at what only time changes
LEAVING = 0.1           # seconds after which it is watched whether a waiting request's client is still there
LAST_CALL = 0.3         # seconds that connections are still answered on after SIGTERM, each for the last time
EXTENSIONS = ("binary_tensor_data", "statistics", "model_repository", "system_shared_memory", "model_configuration",
              "schedule_policy")


def _version() -> str:
    try:
        return version("ingot")
    except PackageNotFoundError:
        return "unknown"


class _Http(uvicorn.Server):
    """uvicorn, without its signal handlers: the server has its own."""

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


class Server:
    """Serves the models of a folder until it is told to stop."""

    def __init__(self, folder: Path, options: ServeOptions = ServeOptions()) -> None:
        self.options, self.version = options, _version()
        self.closing = False
        self.http_port = self.grpc_port = -1
        self.tokens = _tokens(options.token)
        allowed = options.shared_memory if options.shared_memory is not None else _loopback(options.host)
        self.regions = Regions(allowed)
        self.repository = Repository(folder, options)
        self.registry = CollectorRegistry(auto_describe=False)
        self.registry.register(ModelMetrics(self))
        self._recorder = Recorder(options.record, options.record_payload) if options.record else None
        self._spans = Spans() if options.trace else None
        self._stop = asyncio.Event()
        self._began = time.time()
        self._loading = True
        self._watchers: set[asyncio.Task[None]] = set()

    # --- a request ----------------------------------------------------------------------------------------------

    def submit(self, name: str, version: str, request: Request) -> asyncio.Future[Answer]:
        """Accept a request; the future gives its answer. Raises ServeError."""
        model = self.repository.get(name, version)
        try:
            answer = model.submit(request)
        except ServeError as error:
            model.stats.refused(error.kind)
            raise
        if self._recorder:
            self._recorder.add(model.name, model.version, request)
        return answer

    def answered(self, answer: Answer, request: Request, encode: float) -> None:
        """A request's answer is on its way to the client."""
        now = time.perf_counter()
        self.repository.get(answer.model, answer.version).stats.answered(
            request.rows, now - request.arrived, request.decode, encode)
        if self._spans:
            self._spans.request(answer, request, now, encode)

    def admit(self, header: bytes) -> None:
        """Raises ServeError where the header carries none of the tokens."""
        given = header.removeprefix(b"Bearer ").strip()
        if not sum(hmac.compare_digest(given, token) for token in self.tokens):
            raise ServeError("a bearer token is needed", kind="unauthenticated",
                             mend="send the header: Authorization: Bearer TOKEN")

    def admit_rpc(self, metadata: Sequence[tuple[str, Any]]) -> None:
        """The same for gRPC's metadata."""
        if self.tokens:
            given = dict(metadata or ()).get("authorization", "")
            self.admit(given.encode() if isinstance(given, str) else given)

    def admit_control(self) -> None:
        """Raises ServeError unless clients may load and unload models."""
        if not self.options.control:
            raise ServeError("the control API is off", kind="forbidden", mend="start the server with --control")

    # --- what it says about itself ------------------------------------------------------------------------------

    @property
    def ready(self) -> bool:
        """Whether every model that is to be loaded would answer."""
        wanted = [name for name, found in self.repository.found.items() if found.config.load]
        loaded = self.repository.loaded
        return (not self._loading and not self.closing and all(model.ready for model in loaded)
                and not any(name in self.repository.failures for name in wanted))

    def metadata(self) -> dict[str, Any]:
        """The protocol's server metadata."""
        return {"name": "ingot", "version": self.version, "extensions": list(EXTENSIONS)}

    def model_metadata(self, name: str, version: str = "") -> dict[str, Any]:
        """The protocol's model metadata. Raises ServeError."""
        model = self.repository.get(name, version)
        description = model.description
        if description is None:
            raise ServeError(f"the model '{name}' is not ready", kind="unavailable", why=(model.reason,))
        return {"name": name, "versions": list(self.repository.models[name]), "platform": "ingot",
                "inputs": [p.to_json() for p in description.inputs],
                "outputs": [p.to_json() for p in description.outputs]}

    def model_config(self, name: str, version: str = "") -> dict[str, Any]:
        """The part of Triton's model configuration that has a meaning here. Raises ServeError."""
        description = self.repository.get(name, version).description
        return {"name": name, "platform": "ingot", "backend": "ingot",
                "max_batch_size": description.max_rows if description and description.batch else 0}

    def statistics(self, name: str = "", version: str = "") -> list[dict[str, Any]]:
        """The protocol's statistics. Raises ServeError."""
        def duration(count: float, seconds: float) -> dict[str, int]:
            return {"count": int(count), "ns": int(seconds * 1e9)}

        rows = []
        for model in [self.repository.get(name, version)] if name else self.repository.loaded:
            stats = model.stats
            stage = stats.stages
            rows.append({
                "name": model.name, "version": model.version, "last_inference": int(stats.last * 1e3),
                "inference_count": stats.items, "execution_count": stage["compute"].count,
                "inference_stats": {
                    "success": duration(stage["request"].count, stage["request"].total),
                    "fail": duration(sum(stats.failed.values()), stats.failed_seconds),
                    "queue": duration(stage["queue"].count, stage["queue"].total),
                    "compute_input": duration(stage["copy_in"].count, stage["copy_in"].total),
                    "compute_infer": duration(stage["compute"].count, stage["compute"].total),
                    "compute_output": duration(stage["copy_out"].count, stage["copy_out"].total)},
                "batch_stats": [{"batch_size": n, "compute_input": duration(line[0], line[1]),
                                 "compute_infer": duration(line[0], line[2]),
                                 "compute_output": duration(line[0], line[3])}
                                for n, line in sorted(stats.batches.items())]})
        return rows

    def status(self) -> dict[str, Any]:
        """What the status page shows."""
        rows = []
        for model in self.repository.loaded:
            stats = model.stats
            batches = sum(line[0] for line in stats.batches.values())
            rows.append({
                "name": model.name, "version": model.version, "ready": model.ready, "reason": model.reason,
                "queue": model.waiting, "requests": stats.stages["request"].count, "items": stats.items,
                "failed": stats.failed, "restarts": stats.restarts, "retries": stats.retries,
                "p50": stats.quantile(0.5), "p90": stats.quantile(0.9), "p99": stats.quantile(0.99),
                "rate": sum(when > time.time() - 10 for when, _ in stats.recent) / 10,
                "batches": {n: line[0] for n, line in sorted(stats.batches.items())},
                "off_profile": stats.off_profile / batches if batches else 0.0,
                "off_profile_seconds": stats.off_profile_seconds, "ahead": stats.ahead,
                "totals": {name: h.total for name, h in stats.stages.items()},
                "predicted_seconds": stats.predicted_seconds, "curve": model.curve.to_json() if model.curve else {},
                "tuned": model.tuned,
                "stages": {name: h.total / h.count if h.count else 0.0 for name, h in stats.stages.items()},
                "facts": dict(model.description.facts) if model.description else {},
                "workers": [{"pid": i.pid, "ready": i.ready, "starts": i.starts, "spare": i.spare,
                             "memory": memory_of(i.pid)} for i in model.instances]})
        return {"server": self.metadata(), "uptime": time.time() - self._began, "ready": self.ready, "models": rows,
                "index": self.repository.index()}

    # --- its life -----------------------------------------------------------------------------------------------

    def stop(self) -> None:
        """Drain and end."""
        self._stop.set()

    async def run(self, started: Callable[[Server], None] | None = None) -> None:
        """Serve until `stop`, SIGTERM or SIGINT; then finish every accepted request. Raises InputError."""
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self.stop)
        http, http_task = self._http()
        rpc = self._grpc()
        ticking = asyncio.ensure_future(self._ticks())
        loading = asyncio.ensure_future(self._load())
        stopping = asyncio.ensure_future(self._stop.wait())
        try:
            if started:
                while http and not http.started and not http_task.done():       # type: ignore[union-attr]
                    await asyncio.sleep(0.005)
                started(self)
            await asyncio.wait([t for t in (stopping, loading) if t], return_when=asyncio.FIRST_COMPLETED)
            if loading.done():
                loading.result()
                gc.collect()
                gc.freeze()         # what is there now stays: later collections need not look at it
            await stopping
            await self._drain(http, http_task, rpc)
        finally:
            for task in (ticking, loading, stopping, *self._watchers):
                task.cancel()
            for model in self.repository.loaded:
                model.stop()
            self.regions.unregister()
            if self._recorder:
                self._recorder.close()

    async def _load(self) -> None:
        await self.repository.load_all()
        self._loading = False
        _LOG.info("ready", extra={"models": [f"{m.name}/{m.version}" for m in self.repository.loaded]})

    def _http(self) -> tuple[_Http | None, asyncio.Task[None] | None]:
        options = self.options
        if options.http_port < 0:
            return None, None
        listener = _listener(options.host, options.http_port)
        self.http_port = listener.getsockname()[1]
        if options.certificate:
            _checked_certificate(options)
        http = _Http(uvicorn.Config(
            Application(self), http="httptools", ws="none", lifespan="off", log_config=None, access_log=False,
            server_header=False, date_header=False, backlog=2048, timeout_keep_alive=120,
            limit_concurrency=options.max_connections, ssl_certfile=options.certificate, ssl_keyfile=options.key,
            timeout_graceful_shutdown=max(1, int(options.drain))))
        return http, asyncio.ensure_future(http.serve(sockets=[listener]))

    def _grpc(self) -> CallServer | None:
        options = self.options
        if options.grpc_port < 0:
            return None
        rpc = call_server(self, [
            ("grpc.max_receive_message_length", options.max_bytes), ("grpc.max_send_message_length", -1),
            ("grpc.so_reuseport", 0), ("grpc.http2.min_ping_interval_without_data_ms", 5000)],
            options.max_connections, linger=len(available_cpus()) > 1)
        address = f"[{options.host}]" if ":" in options.host else options.host
        address = f"{address}:{options.grpc_port}"
        try:
            if options.certificate and options.key:
                pair = (options.key.read_bytes(), options.certificate.read_bytes())
                self.grpc_port = rpc.listen(address, grpc.ssl_server_credentials([pair]))
            else:
                self.grpc_port = rpc.listen(address)
        except (RuntimeError, OSError) as error:
            raise InputError(f"cannot listen on {address}", why=(str(error)[:300],),
                             mend="name another port: --grpc-port") from None
        rpc.start()
        return rpc

    async def _ticks(self) -> None:
        flushed = 0.0
        while True:
            await asyncio.sleep(TICK)
            now = time.perf_counter()
            for model in self.repository.loaded:
                model.tick(now)
                for request in model.lingering(now - LEAVING):
                    self._watch(request)
            if self._recorder and now - flushed > 1.0:
                self._recorder.flush()
                flushed = now

    def _watch(self, request: Request) -> None:
        """Cancel a waiting request when its client leaves. Only the few that wait long are watched."""
        leaves, request.leaves = request.leaves, None
        task = asyncio.ensure_future(_until_gone(leaves, request))
        self._watchers.add(task)
        task.add_done_callback(self._watchers.discard)

    async def _drain(self, http: _Http | None, http_task: asyncio.Task[None] | None,
                     rpc: CallServer | None) -> None:
        """Nothing that was accepted is lost: answer what comes on open connections once more, then finish the rest."""
        _LOG.info("draining")
        self.closing = True             # readiness is off, and every answer now closes its connection
        stopping = [asyncio.ensure_future(rpc.stop(LAST_CALL, self.options.drain))] if rpc else []
        if http and http_task:
            for listening in http.servers:
                listening.close()       # who comes now is refused; who is connected is answered once more
            await asyncio.sleep(LAST_CALL)
            http.should_exit = True
            stopping.append(http_task)
        await asyncio.gather(*stopping)
        await asyncio.gather(*(model.drain(self.options.drain) for model in self.repository.loaded))
        _LOG.info("ended", extra={"calls_taken": rpc.taken, "calls_ended": rpc.answered} if rpc else {})


async def _until_gone(leaves: Callable[[], Awaitable[Any]], request: Request) -> None:
    await leaves()
    if request.answer and not request.answer.done():
        request.answer.cancel()


def _loopback(host: str) -> bool:
    if host == "localhost":
        return True
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return False


def _tokens(path: Path | None) -> tuple[bytes, ...]:
    if path is None:
        return ()
    try:
        found = tuple(line.strip().encode() for line in path.read_text().splitlines() if line.strip())
    except OSError as error:
        raise InputError(f"cannot read the tokens {path}", why=(error.strerror or str(error),)) from None
    if not found:
        raise InputError(f"{path} holds no token", mend="write one token a line")
    return found


def _listener(host: str, port: int) -> socket.socket:
    listener = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((host, port))
    except OSError as error:
        listener.close()
        raise InputError(f"cannot listen on {host}:{port}", why=(error.strerror or str(error),),
                         mend="name another address or port: --host, --http-port") from None
    return listener


def _checked_certificate(options: ServeOptions) -> None:
    try:
        ssl.create_default_context(ssl.Purpose.CLIENT_AUTH).load_cert_chain(
            str(options.certificate), str(options.key) if options.key else None)
    except OSError as error:
        raise InputError(f"cannot serve TLS with {options.certificate}", why=(str(error),),
                         mend="give PEM files: --certificate CHAIN --key KEY") from None


def serve(folder: Path, options: ServeOptions = ServeOptions(), started: Callable[[Server], None] | None = None
          ) -> None:
    """Serve a folder of models until SIGTERM or SIGINT. Raises InputError where it cannot begin."""
    async def run() -> None:
        await Server(folder, options).run(started)

    with suppress(KeyboardInterrupt), asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(run())
