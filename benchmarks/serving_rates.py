"""The highest Poisson rate whose p99 stays within a goal: real sentences of mixed length, an engine behind each server.

    python -m benchmarks.serving_rates --engine minilm.ingot --servers cost,plain-8-5,litserve-16-10,...
        --peers litserve=/venvs/litserve,... --out benchmarks/results/serving-rates.json
    python -m benchmarks.serving_rates --images --engine resnet50.ingot --servers ... --out ...

`cost` is Ingot with batching by cost, `plain-ROWS-MS` Ingot with that fixed setting, `bentoml-ROWS-MS`,
`litserve-ROWS-MS` and `mlserver-ROWS-MS` the others around the same engine with the same threads (BentoML finds its
delay itself: MS is its `max_latency_ms`, 0 its default). All are asked over HTTP: sentences in JSON; images as binary
tensors, of the others as base 64 in JSON, the quickest way into them their documentation has. Every run adds to what
the file holds. The engine takes `input_ids` and `attention_mask` [batch, length], or `pixels` u8[batch, 3, 224, 224].
"""
from __future__ import annotations

import argparse
import asyncio
import base64
import json
import os
import re
import signal
import subprocess
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.serving_faults import Http, post
from benchmarks.serving_machine import machine
from examples.minilm import Tokenizer
from ingot.serve.load import Outcome, highest_rate, poisson
from tests.serve_running import serving

HERE = Path(__file__).parent
PORTS = {"bentoml": 9210, "litserve": 9220, "mlserver": 9230}
PATHS = {"bentoml": "/infer", "litserve": "/predict", "mlserver": "/v2/models/engine/infer"}
LONGEST = 128
IMAGE = 100_000         # bytes that no request of a sentence has
PAD = "pad:\n  input_ids: 0\n  attention_mask: 0\n"
KINDS = ("cost", "plain", "bentoml", "litserve", "mlserver")


def sentences(folder: Path) -> list[str]:
    """Sentences of the project's own documentation, as they come."""
    text = " ".join(p.read_text() for p in sorted(folder.glob("*.md")))
    text = re.sub(r"```.*?```|\|[^\n]*\||[#*`>]", " ", text, flags=re.S)
    found = [" ".join(s.split()) for s in re.split(r"(?<=[.:;?!])\s", text)]
    return [s for s in found if len(s.split()) >= 3]


def rows_of(texts: list[str]) -> list[list[int]]:
    """Token ids of each sentence."""
    ids, mask = Tokenizer()(texts, LONGEST)
    return [row[:n].tolist() for row, n in zip(ids, mask.sum(1), strict=True)]


def request(kind: str, row: list[int]) -> bytes:
    """One sentence as the server wants it."""
    if kind in ("bentoml", "litserve"):
        return post(PATHS[kind], json.dumps({"x": [row]}).encode(), "Content-Type: application/json")
    if kind == "mlserver":
        row = row + [0] * (LONGEST - len(row))
    tensors = {"input_ids": row, "attention_mask": [1] * len(row)} if kind in ("cost", "plain") else {"x": row}
    body = json.dumps({"inputs": [{"name": n, "datatype": "INT64", "shape": [1, len(v)], "data": v}
                                  for n, v in tensors.items()]})
    return post(PATHS.get(kind, "/v2/models/engine/infer"), body.encode(), "Content-Type: application/json")


def image_request(kind: str, image: np.ndarray) -> bytes:
    """One image u8[3, 224, 224] as the server wants it."""
    if kind in ("cost", "plain"):
        tensor = {"name": "pixels", "datatype": "UINT8", "shape": [1, *image.shape],
                  "parameters": {"binary_data_size": image.nbytes}}
        head = json.dumps({"inputs": [tensor], "parameters": {"binary_data_output": True}}).encode()
        return post("/v2/models/engine/infer", head + image.tobytes(), f"Inference-Header-Content-Length: {len(head)}")
    text = base64.b64encode(image.tobytes()).decode()
    told: dict[str, Any] = {"x": [text]} if kind != "mlserver" else \
        {"inputs": [{"name": "x", "datatype": "BYTES", "shape": [1], "data": [text]}]}
    return post(PATHS[kind], json.dumps(told).encode(), "Content-Type: application/json")


async def offered(at: str, requests: list[bytes], rate: float, seconds: float, seed: int) -> Outcome:
    """Send at a Poisson process' moments; latency counts from when a request was due."""
    moments = poisson(rate, seconds, seed)
    found: list[float] = []
    errors: dict[str, int] = {}
    idle: list[Http] = []

    async def one(index: int, due: float) -> None:
        client = idle.pop() if idle else Http(at)
        code, _ = await client.send(requests[index % len(requests)])
        if code == 200:
            found.append(time.perf_counter() - due)
        else:
            errors[str(code)] = errors.get(str(code), 0) + 1
        idle.append(client)

    await asyncio.gather(*(one(i, time.perf_counter()) for i in range(16)))       # connections, and warm shapes
    found.clear()
    begin = time.perf_counter() + 0.05
    waiting = []
    for index, moment in enumerate(moments):
        pause = begin + moment - time.perf_counter()
        if pause > 0:
            await asyncio.sleep(pause)
        waiting.append(asyncio.ensure_future(one(index, begin + moment)))
    await asyncio.gather(*waiting)
    for client in idle:
        client.close()
    return Outcome(tuple(sorted(found)), errors, time.perf_counter() - begin)


@contextmanager
def ours(engine: Path, kind: str, rows: str, delay: str, threads: int, goal: float, pad: str) -> Iterator[str]:
    """Ingot over the engine; gives where."""
    with tempfile.TemporaryDirectory() as text:
        folder = Path(text) / "engine"
        folder.mkdir()
        os.link(engine, folder / "model.ingot") if os.stat(engine).st_dev == os.stat(text).st_dev else \
            os.symlink(engine.absolute(), folder / "model.ingot")
        how = f"batching: plain\nmax_batch: {rows}\nmax_delay: {delay}\n" if kind == "plain" else f"p99: {goal}\n"
        (folder / "config.yaml").write_text(
            f"{how}threads: {threads}\n{pad}queue: 4096\n")
        with serving(Path(text)) as server:
            yield server.http


@contextmanager
def theirs(python: Path, engine: Path, kind: str, rows: str, delay: str, threads: int, raw: bytes) -> Iterator[str]:
    """Another server over the engine; gives where."""
    port = PORTS[kind]
    source = str(HERE.parent / "src")
    process = subprocess.Popen(
        [python, HERE / "serving_peers" / "engine.py", kind, str(port), "images" if len(raw) > IMAGE else "sentences",
         engine.absolute(), str(threads), rows, delay],
        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True,
        env={"HOME": os.path.expanduser("~"), "PATH": f"{python.parent}:/usr/bin:/bin", "PYTHONPATH": source})
    try:
        head, _, body = raw.partition(b"\r\n\r\n")
        until = time.time() + 60
        while True:
            try:
                asked = urllib.request.Request(f"http://127.0.0.1:{port}{PATHS[kind]}", body,
                                               {"Content-Type": "application/json"})
                with urllib.request.urlopen(asked, timeout=5):
                    break
            except (urllib.error.URLError, OSError):
                if time.time() > until or process.poll() is not None:
                    raise SystemExit(f"{kind} does not answer; {head.decode()}") from None
                time.sleep(0.3)
        yield f"127.0.0.1:{port}"
    finally:
        os.killpg(process.pid, signal.SIGTERM)
        try:
            process.wait(10)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def main() -> None:
    """Measure the servers that are named, and add them to the file."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--engine", type=Path, required=True)
    parser.add_argument("--images", action="store_true")
    parser.add_argument("--servers", default="cost")
    parser.add_argument("--peers", default="", help="name=folder of its virtual environment, ...")
    parser.add_argument("--goal", type=float, default=100, help="milliseconds of p99")
    parser.add_argument("--seconds", type=float, default=5, help="of each trial")
    parser.add_argument("--first", type=float, default=100, help="requests per second of the first trial")
    parser.add_argument("--steps", type=int, default=7)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--out", type=Path)
    told = parser.parse_args()
    peers = dict(p.split("=") for p in told.peers.split(",") if p)
    random = np.random.default_rng(0)
    images = [random.integers(0, 256, (3, 224, 224), np.uint8) for _ in range(8)]
    rows = [] if told.images else rows_of(sentences(HERE.parent / "docs"))
    random.shuffle(rows)
    lengths = sorted(map(len, rows))
    before = json.loads(told.out.read_text()) if told.out and told.out.exists() else {"servers": {}}
    for name in told.servers.split(","):
        kind, _, rest = name.partition("-")
        size, _, delay = rest.partition("-")
        requests = [image_request(kind, i) for i in images] if told.images else [request(kind, row) for row in rows]
        at_server = theirs(Path(peers[kind]) / "bin" / "python", told.engine, kind, size, delay, told.threads,
                           requests[0]) if kind in PORTS \
            else ours(told.engine, kind, size, delay, told.threads, told.goal, "" if told.images else PAD)
        with at_server as at:
            async def trial(rate: float, at: str = at, requests: list[bytes] = requests) -> Outcome:
                return await offered(at, requests, rate, told.seconds, int(rate))

            asyncio.run(trial(told.first / 4))          # warm
            best, tried = asyncio.run(highest_rate(trial, told.goal / 1e3, told.first, told.steps))
        entry: dict[str, Any] = {"rate": round(best, 1), "tried": [(round(r, 1), round(1e3 * p, 1)) for r, p in tried]}
        before["servers"][name] = entry
        print(name, entry, flush=True)
    report = {**machine(), "engine": told.engine.name, "goal_ms": told.goal, "seconds": told.seconds,
              "engine_threads": told.threads, **({} if told.images else {"sentences": len(rows), "lengths": {
                  "least": lengths[0], "median": lengths[len(lengths) // 2], "most": lengths[-1]}}), **before}
    if told.out:
        told.out.write_text(json.dumps(report, indent=1) + "\n")


if __name__ == "__main__":
    main()
