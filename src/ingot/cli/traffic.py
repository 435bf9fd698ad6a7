"""`ingot bench` under traffic: an engine behind a server, loaded as recorded, as a Poisson process, or by clients."""
from __future__ import annotations

import asyncio
import importlib
import json
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ingot.engine import Engine
from ingot.errors import InputError, UnsupportedError
from ingot.frontend import load as load_graph
from ingot.report import Table
from ingot.serve.options import milliseconds
from ingot.verify import random_feeds


def serving_module(name: str) -> Any:
    """A module of `ingot.serve`. Raises UnsupportedError where the extra is not installed."""
    try:
        return importlib.import_module(f"ingot.serve.{name}")
    except ModuleNotFoundError as error:
        raise UnsupportedError("serving needs packages that are not installed", why=(str(error),),
                               mend="pip install 'ingot[serve]'") from None


def profile_shapes(record: Path, model: str, told: Sequence[str]) -> list[str]:
    """INPUT:SHAPE of the inputs not told of, from recorded traffic. Raises InputError."""
    if Path(model).suffix != ".onnx":
        raise InputError("a profile is taken from traffic for ONNX files only", where="--profile-from",
                         mend="name the shapes: --shapes")
    graph = load_graph(model)
    named = {text.rpartition(":")[0] for text in told}
    arrivals = serving_module("traffic").read_traffic(record)
    known = [a for a in arrivals if set(graph.inputs) & set(a.shapes)]
    if not known:
        raise InputError(f"{record} holds no requests with this model's inputs", where="--profile-from",
                         why=(f"its inputs are {', '.join(graph.inputs)}",), mend="name the record of this model")
    types = graph.types
    dims = {v: tuple(d if isinstance(d, int) else str(d) for d in types[v].shape) for v in graph.inputs}
    batch = serving_module("describe").batch_symbol([types[v] for v in graph.inputs],
                                                    [types[v] for v in graph.outputs], graph.symbols)
    shapes: dict[str, str] = serving_module("recommend").profile_of(known, dims, batch)
    return [f"{name}:{shape}" for name, shape in shapes.items() if name not in named]


@contextmanager
def served(path: Path, p99: str, threads: int) -> Iterator[tuple[str, str]]:
    """(HTTP, gRPC) of a server of this one engine, in a process of its own, once it is ready. Raises InputError."""
    command = [sys.executable, "-m", "ingot", "serve", str(path), "--http-port", "0", "--grpc-port", "0", "--json",
               *(["--p99", p99] if p99 else []), *(["--threads", str(threads)] if threads else [])]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    try:
        line = process.stdout.readline() if process.stdout else ""
        if not line:
            raise InputError(f"{path} cannot be served", mend=f"see why: ingot serve {path}")
        places = json.loads(line)
        while not _ready(f"http://{places['http']}/readyz"):
            if process.poll() is not None:
                raise InputError(f"{path} cannot be served", mend=f"see why: ingot serve {path}")
            time.sleep(0.1)
        yield places["http"], places["grpc"]
    finally:
        process.terminate()
        process.wait()


def _ready(url: str) -> bool:
    try:
        with urllib.request.urlopen(url, timeout=5) as answer:
            return bool(answer.status == 200)
    except (urllib.error.URLError, OSError):
        return False


def status_of(http: str) -> dict[str, Any]:
    """What the status page shows. Raises InputError where there is no server."""
    try:
        with urllib.request.urlopen(f"http://{http}/status.json", timeout=10) as answer:
            found: dict[str, Any] = json.load(answer)
            return found
    except (urllib.error.URLError, OSError, ValueError) as error:
        raise InputError(f"no Ingot server answers at {http}", why=(str(error),),
                         mend="name host:port of its HTTP side") from None


def messages_for(engine: Engine, name: str, record: Path | None) -> tuple[list[bytes], list[float]]:
    """(requests, recorded moments): random inputs of one row, or of the shapes on record."""
    load = serving_module("load")
    describe = serving_module("describe")
    types = engine.graph.types

    def message(sizes: dict[str, int]) -> bytes:
        feeds = random_feeds(engine.graph, sizes, 0)
        made: bytes = load.request_bytes(name, {
            k: (describe.datatype_of(types[k].dtype), v) for k, v in feeds.items()})
        return made

    symbols = engine.graph.symbols
    tuned = {s.name: s.opt for s in symbols.values()}
    batch = describe.batch_symbol([types[v] for v in engine.graph.inputs], [types[v] for v in engine.graph.outputs],
                                  symbols)
    if record is None:
        return [message({**tuned, **({batch: symbols[batch].min} if batch else {})})], []
    arrivals = serving_module("traffic").read_traffic(record)
    known: dict[Any, bytes] = {}
    found = []
    for arrival in arrivals:
        sizes = dict(tuned)
        for k, shape in arrival.shapes.items():
            if k in types:
                sizes |= {str(d): n for d, n in zip(types[k].shape, shape, strict=False) if str(d) in symbols}
        key = tuple(sorted(sizes.items()))
        if key not in known:
            known[key] = message(sizes)
        found.append(known[key])
    return found, [a.at for a in arrivals]


def bench_traffic(path: Path, engine: Engine, *, record: Path | None, rate: float, clients: int, p99: str,
                  seconds: float, search: bool, threads: int) -> Table:
    """The engine behind a server under this load; with `search`, at the highest rate whose p99 is within the goal."""
    load = serving_module("load")
    messages, moments = messages_for(engine, path.stem, record)
    if search and not p99:
        raise InputError("there is no goal to search for", where="--search", mend="name it: --p99 100ms")
    rows: list[tuple[str | int | float | None, ...]] = []

    def told(kind: str, outcome: Any) -> None:
        rows.append((kind, round(outcome.rate, 2), *(round(1e3 * outcome.quantile(q), 2) for q in (0.5, 0.9, 0.99)),
                     sum(outcome.errors.values())))

    with served(path, p99, threads) as (http, grpc):
        loader = load.Loader(grpc, messages)

        async def run() -> None:
            if moments:
                told(f"recorded ({len(moments)} requests)", await loader.open_loop(moments))
            if clients:
                told(f"{clients} clients", await loader.closed_loop(clients, seconds))
            if rate and not search:
                told(f"Poisson, {rate:g}/s", await loader.open_loop(load.poisson(rate, seconds)))
            if search:
                goal = milliseconds(p99) / 1e3
                best, tried = await load.highest_rate(
                    lambda r: loader.open_loop(load.poisson(r, seconds)), goal, rate or 10.0)
                rows.extend((f"Poisson, {r:.1f}/s", None, None, None, round(1e3 * p, 2), None) for r, p in tried)
                rows.append((f"highest rate with p99 <= {p99}", round(best, 2), None, None, None, None))
        asyncio.run(run())
        model = status_of(http)["models"][0]
    batches = ", ".join(f"{n}: {c}" for n, c in model["batches"].items())
    return Table("Served", ("load", "answers/s", "p50 ms", "p90 ms", "p99 ms", "failed"), tuple(rows),
                 f"batches by rows: {batches}")
