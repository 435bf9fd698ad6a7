"""The Open Inference Protocol over HTTP: one thin ASGI application."""
from __future__ import annotations

import asyncio
import logging
import re
import time
import zlib
from collections.abc import Awaitable, Callable, MutableMapping
from importlib.resources import files
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote

import orjson
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest

from ingot.errors import ServeError
from ingot.serve.infer import body_from, parsed, request_from
from ingot.serve.openapi import document
from ingot.serve.status import CODES

if TYPE_CHECKING:
    from ingot.serve.server import Server

_LOG = logging.getLogger("ingot.serve")
Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]
Reply = tuple[int, list[tuple[bytes, bytes]], bytes]

_JSON = [(b"content-type", b"application/json")]
_BODY_SECONDS = 30.0            # that a client may pause within a body
_INFER = re.compile(r"/v2/models/([^/]+)(?:/versions/([^/]+))?/infer")


_OPEN_TO_ALL = frozenset({"/v2/health/live", "/v2/health/ready", "/healthz", "/readyz"})


class GoneError(Exception):
    """The client left while its request was read."""


def _json(value: object, status: int = 200) -> Reply:
    return status, _JSON, orjson.dumps(value, option=orjson.OPT_NON_STR_KEYS)


def _text(text: bytes, kind: bytes) -> Reply:
    return 200, [(b"content-type", kind)], text


class Application:
    """The ASGI application of one server."""

    def __init__(self, server: Server) -> None:
        self._server = server
        self._page = files("ingot.serve").joinpath("page.html").read_bytes()
        m, v = r"/v2/models/([^/]+)", r"(?:/versions/([^/]+))?"
        r = r"/v2/systemsharedmemory(?:/region/([^/]+))?"
        table: list[tuple[str, str, Callable[..., Any]]] = [
            ("GET", "/v2/health/live", self._live), ("GET", "/v2/health/ready", self._ready),
            ("GET", "/v2", self._metadata), ("GET", "/v2/models/stats", self._all_statistics),
            ("GET", m + v + "/ready", self._model_ready), ("GET", m + v + "/stats", self._statistics),
            ("GET", m + v + "/config", self._config), ("GET", m + v, self._model),
            ("POST", "/v2/repository/index", self._index),
            ("POST", "/v2/repository/models/([^/]+)/load", self._load),
            ("POST", "/v2/repository/models/([^/]+)/unload", self._unload),
            ("GET", r + "/status", self._regions), ("POST", r + "/register", self._register),
            ("POST", r + "/unregister", self._unregister),
            ("GET", "/metrics", self._metrics), ("GET", "/", self._home), ("GET", "/status.json", self._status),
            ("GET", "/openapi.json", self._openapi), ("GET", "/healthz", self._live), ("GET", "/readyz", self._ready)]
        self._table = [(method, re.compile(path), call) for method, path, call in table]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """One request (or the lifespan, which needs nothing)."""
        if scope["type"] != "http":
            if scope["type"] == "lifespan":
                await _lifespan(receive, send)
            return
        try:
            status, headers, body = await self._answer(scope, receive)
        except ServeError as error:
            status = CODES[error.kind][0]
            headers, body = _JSON, orjson.dumps({"error": str(error)})
            if status == 401:
                headers = [*_JSON, (b"www-authenticate", b"Bearer")]
        except GoneError:
            return
        more = [*headers, (b"content-length", b"%d" % len(body))]
        if self._server.closing:
            more.append((b"connection", b"close"))
        await send({"type": "http.response.start", "status": status, "headers": more})
        await send({"type": "http.response.body", "body": b"" if scope["method"] == "HEAD" else body})

    async def _answer(self, scope: Scope, receive: Receive) -> Reply:
        server = self._server
        path, method = scope["path"], scope["method"]
        if server.tokens and path not in _OPEN_TO_ALL:
            server.admit(_header(scope, b"authorization"))
        if method == "POST" and (found := _INFER.fullmatch(path)):
            return await self._infer(scope, receive, found[1], found[2] or "")
        known = []
        for wanted, pattern, call in self._table:
            if found := pattern.fullmatch(path):
                if method == wanted or (method == "HEAD" and wanted == "GET"):
                    body = await self._body(scope, receive) if wanted == "POST" else b""
                    reply: Reply = await call(body, *(unquote(g) if g else "" for g in found.groups()))
                    return reply
                known.append(wanted)
        if known or _INFER.fullmatch(path):
            allowed = ", ".join(known) or "POST"
            status, headers, body = _json({"error": f"{method} is not served at this path; {allowed} is"}, 405)
            return status, [*headers, (b"allow", allowed.encode())], body
        raise ServeError("there is nothing at this path", kind="unknown", mend="GET /openapi.json lists what there is")

    # --- inference ----------------------------------------------------------------------------------------------

    async def _infer(self, scope: Scope, receive: Receive, name: str, version: str) -> Reply:
        server = self._server
        options = server.options
        header: bytes | None = None
        accepts = b""
        for key, value in scope["headers"]:
            if key == b"inference-header-content-length":
                header = value
            elif key == b"accept-encoding":
                accepts = value
        body = await self._body(scope, receive)
        if header is not None and not header.isdigit():
            raise ServeError("the header's length is no number", where="Inference-Header-Content-Length",
                             mend="send the length of the JSON part in bytes")
        request = request_from(body, int(header) if header is not None else None, server.regions,
                               depth=options.max_depth, limit=options.max_elements)
        request.leaves = receive
        future = server.submit(name, version, request)
        try:
            answer = await future
        except asyncio.CancelledError:
            if (task := asyncio.current_task()) and task.cancelling():
                raise
            raise GoneError from None
        begin = time.perf_counter()
        data, json_bytes = body_from(answer, request, server.regions)
        server.answered(answer, request, time.perf_counter() - begin)
        headers = [(b"content-type", b"application/octet-stream"),
                   (b"inference-header-content-length", b"%d" % json_bytes)] if json_bytes else _JSON
        if accepts:
            data, headers = _encoded(data, headers, accepts)
        return 200, headers, data

    async def _body(self, scope: Scope, receive: Receive) -> bytes:
        """The whole body, decompressed. Raises ServeError where it is too large, GoneError where it ends early."""
        most = self._server.options.max_bytes
        length, encoding = _header(scope, b"content-length"), _header(scope, b"content-encoding")
        if length.isdigit() and int(length) > most:
            raise _large(most)
        message = await receive()
        if message["type"] == "http.disconnect":
            raise GoneError
        body: bytes = message.get("body", b"")
        if message.get("more_body"):
            parts, size = [body], len(body)
            while message.get("more_body"):
                try:
                    message = await asyncio.wait_for(receive(), _BODY_SECONDS)
                except TimeoutError:
                    raise ServeError("the body does not go on", kind="late", mend="send it without pauses") from None
                if message["type"] == "http.disconnect":
                    raise GoneError
                part = message.get("body", b"")
                size += len(part)
                if size > most:
                    raise _large(most)
                parts.append(part)
            body = b"".join(parts)
        if len(body) > most:
            raise _large(most)
        return _decoded(body, encoding, most) if encoding and encoding != b"identity" else body

    # --- the rest of the protocol -------------------------------------------------------------------------------

    async def _live(self, body: bytes) -> Reply:
        return _json({"live": True})

    async def _ready(self, body: bytes) -> Reply:
        ready = self._server.ready
        return _json({"ready": ready}, 200 if ready else 503)

    async def _metadata(self, body: bytes) -> Reply:
        return _json(self._server.metadata())

    async def _model(self, body: bytes, name: str, version: str) -> Reply:
        return _json(self._server.model_metadata(name, version))

    async def _model_ready(self, body: bytes, name: str, version: str) -> Reply:
        ready = self._server.repository.get(name, version).ready
        return _json({"name": name, "ready": ready}, 200 if ready else 503)

    async def _config(self, body: bytes, name: str, version: str) -> Reply:
        return _json(self._server.model_config(name, version))

    async def _statistics(self, body: bytes, name: str, version: str) -> Reply:
        return _json({"model_stats": self._server.statistics(name, version)})

    async def _all_statistics(self, body: bytes) -> Reply:
        return _json({"model_stats": self._server.statistics()})

    async def _index(self, body: bytes) -> Reply:
        told = parsed(body, self._server.options.max_depth) if body else {}
        return _json(self._server.repository.index(told.get("ready") is True))

    async def _load(self, body: bytes, name: str) -> Reply:
        self._server.admit_control()
        await self._server.repository.load(name)
        return _json({})

    async def _unload(self, body: bytes, name: str) -> Reply:
        self._server.admit_control()
        await self._server.repository.unload(name)
        return _json({})

    async def _regions(self, body: bytes, name: str) -> Reply:
        return _json([r.to_json() for r in self._server.regions.status(name)])

    async def _register(self, body: bytes, name: str) -> Reply:
        told = parsed(body, self._server.options.max_depth)
        key, offset, nbytes = told.get("key"), told.get("offset", 0), told.get("byte_size")
        if type(key) is not str or type(offset) is not int or type(nbytes) is not int or not name:
            raise ServeError("key, offset or byte_size is missing or not of its kind",
                             mend="send {key: text, offset: number, byte_size: number}")
        self._server.regions.register(name, key, offset, nbytes)
        return _json({})

    async def _unregister(self, body: bytes, name: str) -> Reply:
        self._server.regions.unregister(name)
        return _json({})

    async def _metrics(self, body: bytes) -> Reply:
        return _text(generate_latest(self._server.registry), CONTENT_TYPE_LATEST.encode())

    async def _home(self, body: bytes) -> Reply:
        return _text(self._page, b"text/html; charset=utf-8")

    async def _status(self, body: bytes) -> Reply:
        return _json(self._server.status())

    async def _openapi(self, body: bytes) -> Reply:
        return _json(document(self._server.version))


async def _lifespan(receive: Receive, send: Send) -> None:
    while (message := await receive())["type"] != "lifespan.shutdown":
        if message["type"] == "lifespan.startup":
            await send({"type": "lifespan.startup.complete"})
    await send({"type": "lifespan.shutdown.complete"})


def _header(scope: Scope, name: bytes) -> bytes:
    for key, value in scope["headers"]:
        if key == name:
            found: bytes = value
            return found
    return b""


def _large(most: int) -> ServeError:
    return ServeError(f"the request has more than {most} bytes", kind="large",
                      mend="send less at once, or raise the limit: --max-bytes")


def _decoded(body: bytes, encoding: bytes, most: int) -> bytes:
    """A gzip or deflate body, never more than `most` bytes of it. Raises ServeError."""
    if encoding not in (b"gzip", b"deflate"):
        raise ServeError(f"the content encoding {encoding[:40]!r} is not served", mend="send gzip, deflate or none")
    stream = zlib.decompressobj(zlib.MAX_WBITS | 32 if encoding == b"gzip" else zlib.MAX_WBITS)
    try:
        found = stream.decompress(body, most + 1)
    except zlib.error as error:
        raise ServeError(f"the body is not {encoding.decode()}", why=(str(error),), mend="compress it anew") from None
    if len(found) > most or stream.unconsumed_tail:
        raise _large(most)
    if not stream.eof:
        raise ServeError(f"the {encoding.decode()} body ends early", mend="send all of it")
    return found


def _encoded(data: bytes, headers: list[tuple[bytes, bytes]], accepts: bytes
             ) -> tuple[bytes, list[tuple[bytes, bytes]]]:
    """The body compressed where the client asked for that alone, as tritonclient does; else as it is."""
    if accepts == b"gzip":
        packer = zlib.compressobj(1, zlib.DEFLATED, zlib.MAX_WBITS | 16)
    elif accepts == b"deflate":
        packer = zlib.compressobj(1)
    else:
        return data, headers
    return packer.compress(data) + packer.flush(), [*headers, (b"content-encoding", accepts)]
