"""What a server survives, measured: workers killed, a soak, and a million malformed inputs.

    python -m benchmarks.serving_faults kill --seconds 300 --out benchmarks/results/serving-kill.json
    python -m benchmarks.serving_faults soak --seconds 1800 --out ...
    python -m benchmarks.serving_faults fuzz --count 1000000 --out ...

Each starts a server of its own over small models whose right answers are known, and writes what it saw.
"""
from __future__ import annotations

import argparse
import asyncio
import calendar
import json
import os
import random
import signal
import tempfile
import time
import urllib.request
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import grpc
import numpy as np

from benchmarks.serving_machine import machine
from ingot.serve.protocol import MESSAGES
from tests.serve_running import Running, add_model, serving

ROW = np.arange(512, dtype=np.float32)[None] / 512
FROZEN = 2.0            # seconds without a turn of the event loop after which it counts as stopped from outside
CHUNKED = b"POST /v2 HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\nffffffffffffffff\r\n"
INFER = "/inference.GRPCInferenceService/ModelInfer"


def status_of(server: Running) -> dict[str, Any]:
    """The status document by model."""
    with urllib.request.urlopen(server.url + "/status.json", timeout=30) as answer:
        return {m["name"]: m for m in json.load(answer)["models"]}


class Http:
    """One keep-alive connection; opened anew when the server closes it."""

    def __init__(self, at: str) -> None:
        self._host, _, port = at.partition(":")
        self._port = int(port)
        self._writer: asyncio.StreamWriter | None = None

    async def send(self, raw: bytes) -> tuple[int, bytes]:
        """(status, body) of the answer to raw bytes; 0 where the connection ended without one."""
        return (await self.send_all([raw]))[0]

    async def send_all(self, raws: list[bytes]) -> list[tuple[int, bytes]]:
        """The same for several requests that are sent at once, as far as they are answered."""
        if self._writer is None or self._writer.is_closing():
            self._reader, self._writer = await asyncio.open_connection(self._host, self._port)
        found: list[tuple[int, bytes]] = []
        try:
            self._writer.write(b"".join(raws))
            for _ in raws:
                head = await self._reader.readuntil(b"\r\n\r\n")
                low = head.lower()
                length = int(low.partition(b"\r\ncontent-length:")[2].partition(b"\r")[0] or 0)
                found.append((int(head[9:12]), await self._reader.readexactly(length)))
                if b"connection: close" in low or length == 0:
                    self.close()
                    break
        except (OSError, asyncio.IncompleteReadError, ValueError):
            self.close()
        return found or [(0, b"")]

    def close(self) -> None:
        """End the connection."""
        if self._writer:
            self._writer.close()
        self._writer = None


def post(path: str, body: bytes, *headers: str) -> bytes:
    """A whole HTTP request."""
    more = "".join(f"{h}\r\n" for h in headers)
    return f"POST {path} HTTP/1.1\r\nHost: x\r\n{more}Content-Length: {len(body)}\r\n\r\n".encode() + body


def json_body(name: str, values: np.ndarray) -> bytes:
    """An inference request in JSON."""
    return json.dumps({"inputs": [{"name": name, "datatype": "FP32", "shape": list(values.shape),
                                   "data": values.reshape(-1).tolist()}]}).encode()


def binary(name: str, values: np.ndarray) -> tuple[bytes, str]:
    """An inference request with a binary tensor: body, header."""
    head = json.dumps({"inputs": [{"name": name, "datatype": "FP32", "shape": list(values.shape),
                                   "parameters": {"binary_data_size": values.nbytes}}],
                       "parameters": {"binary_data_output": True}}).encode()
    return head + values.tobytes(), f"Inference-Header-Content-Length: {len(head)}"


def rpc(model: str, name: str, values: np.ndarray) -> bytes:
    """An inference request of gRPC."""
    message = MESSAGES["ModelInferRequest"](model_name=model)
    message.inputs.add(name=name, datatype="FP32", shape=values.shape)
    message.raw_input_contents.append(values.tobytes())
    return bytes(message.SerializeToString())


async def ask_double(client: Http, seen: Counter[str], i: int, as_json: bool) -> None:
    """One request to `double`, checked."""
    x = np.full((1 + i % 3, 4), i % 1000, np.float32)
    if as_json:
        code, body = await client.send(post("/v2/models/double/infer", json_body("x", x)))
        good = code == 200 and json.loads(body)["outputs"][0]["data"] == [2.0 * (i % 1000)] * x.size
    else:
        raw, header = binary("x", x)
        code, body = await client.send(post("/v2/models/double/infer", raw, header))
        good = code == 200 and body.endswith((2 * x).tobytes())
    seen[f"double {code}" + ("" if good or code != 200 else " wrong")] += 1


async def ask_slow(client: Http, seen: Counter[str], i: int) -> None:
    """One request to `slow`, checked."""
    x = ROW * (i % 13)
    raw, header = binary("v0", x)
    code, body = await client.send(post("/v2/models/slow/infer", raw, header))
    good = code == 200 and np.allclose(np.frombuffer(body[-x.nbytes:], np.float32), x[0], atol=1e-4)
    seen[f"slow {code}" + ("" if good or code != 200 else " wrong")] += 1


async def ask_rpc(channel: Any, seen: Counter[str], i: int) -> None:
    """One request to `double` over gRPC, checked."""
    x = np.full((1 + i % 3, 4), i % 1000, np.float32)
    try:
        answer = await channel.unary_unary(INFER)(rpc("double", "x", x), timeout=60)
        good = MESSAGES["ModelInferResponse"].FromString(answer).raw_output_contents[0] == (2 * x).tobytes()
        seen["gRPC OK" + ("" if good else " wrong")] += 1
    except grpc.aio.AioRpcError as error:
        seen[f"gRPC {error.code().name}"] += 1


def _server(folder: Path, log: Path) -> Any:
    add_model(folder, "double")
    add_model(folder, "slow", "max_batch: 4\n")
    return serving(folder, log=log)


async def _kill(server: Running, seconds: float, every: float) -> dict[str, Any]:
    seen: Counter[str] = Counter()
    until = time.time() + seconds
    kills = 0
    frozen: list[tuple[float, float]] = []      # when nothing here ran: somebody had stopped all of it

    async def watch() -> None:
        last = time.time()
        while time.time() < until:
            await asyncio.sleep(0.05)
            if time.time() - last > FROZEN:
                frozen.append((last, time.time()))
            last = time.time()

    async def slow(k: int) -> None:
        client = Http(server.http)
        i = k
        while time.time() < until:
            i += 1
            await ask_slow(client, seen, i)

    async def double(k: int) -> None:
        client = Http(server.http)
        i = k
        while time.time() < until:
            i += 1
            await ask_double(client, seen, i, k % 2 == 0)
            await asyncio.sleep(0.002)

    async def killer() -> None:
        nonlocal kills
        while time.time() < until - every:
            await asyncio.sleep(every)
            told = await asyncio.to_thread(status_of, server)
            if pid := told["slow"]["workers"][0]["pid"]:
                os.kill(pid, signal.SIGKILL)
                kills += 1

    await asyncio.gather(*(slow(k) for k in range(4)), *(double(k) for k in range(4)), killer(), watch())
    told = status_of(server)
    return {"kills": kills, "frozen": frozen, "answers": dict(sorted(seen.items())),
            "restarts": {name: m["restarts"] for name, m in told.items()},
            "retries": {name: m["retries"] for name, m in told.items()}}


def restart_seconds(log: Path, frozen: Sequence[tuple[float, float]]) -> list[float]:
    """From the log: seconds between the loss of a worker and the next one's being ready, those not counted in which
    every process of this measurement was stopped."""
    lost: dict[str, float] = {}
    found = []
    for line in log.read_text().splitlines():
        if not line.startswith("{"):
            continue
        told = json.loads(line)
        clock, _, rest = told["time"].partition(".")
        at = calendar.timegm(time.strptime(clock, "%Y-%m-%dT%H:%M:%S")) + int(rest[:3]) / 1e3
        if told["what"] == "worker lost":
            lost[told["instance"]] = at
        elif told["what"] == "worker ready" and told["instance"] in lost:
            begin = lost.pop(told["instance"])
            found.append(at - begin - sum(max(0.0, min(at, b) - max(begin, a)) for a, b in frozen))
    return found


def kill(seconds: float, every: float = 5.0) -> dict[str, Any]:
    """`kill -9` of a model's worker again and again, under load on it and on another model."""
    with tempfile.TemporaryDirectory() as folder:
        log = Path(folder) / ".log"
        with _server(Path(folder), log) as server:
            report = asyncio.run(_kill(server, seconds, every))
        took = sorted(restart_seconds(log, report["frozen"]))
    stops = [b - a for a, b in report.pop("frozen")]
    return {**report, "seconds": seconds, "times stopped from outside": len(stops),
            "seconds stopped": sum(stops), "restart_seconds": {
        "median": took[len(took) // 2], "most": took[-1], "least": took[0], "count": len(took)} if took else {}}


async def _soak(server: Running, seconds: float) -> dict[str, Any]:
    seen: Counter[str] = Counter()
    until = time.time() + seconds
    samples: list[dict[str, Any]] = []
    begin = time.time()

    async def http(k: int) -> None:
        i = k
        client = Http(server.http)
        while time.time() < until:
            i += 1
            await ask_double(client, seen, i, i % 2 == 0)
            if i % 50 == 0:
                code, _ = await client.send(post("/v2/models/double/infer", b'{"inputs":[]}'))
                seen[f"refused {code}"] += 1
            if i % 211 == 0:
                client.close()
            await asyncio.sleep(0.003)

    async def slow(k: int) -> None:
        client = Http(server.http)
        i = k
        while time.time() < until:
            i += 1
            await ask_slow(client, seen, i)
            await asyncio.sleep(0.05)

    async def remote() -> None:
        async with grpc.aio.insecure_channel(server.grpc) as channel:
            i = 0
            while time.time() < until:
                i += 1
                await ask_rpc(channel, seen, i)
                await asyncio.sleep(0.003)

    async def leaving() -> None:
        host, _, port = server.http.partition(":")
        while time.time() < until:
            _, writer = await asyncio.open_connection(host, int(port))
            writer.write(post("/v2/models/slow/infer", json_body("v0", ROW)))
            await asyncio.sleep(0.2)
            writer.close()
            seen["left"] += 1
            await asyncio.sleep(1)

    async def sample() -> None:
        pages = os.sysconf("SC_PAGESIZE")
        while time.time() < until:
            told = await asyncio.to_thread(status_of, server)
            server_bytes = int(Path(f"/proc/{server.process.pid}/statm").read_text().split()[1]) * pages
            samples.append({"at": time.time() - begin, "server": server_bytes,
                            **{name: m["workers"][0]["memory"] for name, m in told.items()}})
            await asyncio.sleep(10)

    await asyncio.gather(http(0), http(1), slow(0), slow(1), remote(), leaving(), sample())
    settled = [s for s in samples if s["at"] > min(300, seconds / 4)]
    half = len(settled) // 4 or 1
    # medians: a worker that somebody stopped for long is started again, and has no memory or little for a moment
    grown = {name: (np.median([s[name] for s in settled[-half:]]) - np.median([s[name] for s in settled[:half]]))
             / 2**20 for name in ("server", "double", "slow")}
    return {"answers": dict(sorted(seen.items())), "restarts": sum(m["restarts"] for m in status_of(server).values()),
            "mebibytes": {n: [round(s[n] / 2**20, 1) for s in samples[::max(1, len(samples) // 30)]] for n in grown},
            "grown_mebibytes_after_settling": {k: round(float(v), 2) for k, v in grown.items()}}


def soak(seconds: float) -> dict[str, Any]:
    """Mixed load: JSON, binary, gRPC, errors, clients that leave. Memory is to stay as it is."""
    with tempfile.TemporaryDirectory() as folder, _server(Path(folder), Path(folder) / ".log") as server:
        return {"seconds": seconds, **asyncio.run(_soak(server, seconds))}


class Fuzzer:
    """Malformed requests out of well-formed ones."""

    def __init__(self, seed: int) -> None:
        self.random = random.Random(seed)
        x = np.arange(8, dtype=np.float32).reshape(2, 4)
        self.json = json_body("x", x)
        self.binary, self.header = binary("x", x)
        self.rpc = rpc("double", "x", x)
        self.values = [b"null", b"true", b"-1", b"1e999", b"NaN", b"1.5", b"9" * 400, b'""', b'"\\u0000"', b"[]", b"{}",
                       b"[[[[]]]]", b'"FP64"', b'"BYTES"', b'"\\ud800"', b"18446744073709551616",
                       b'"' + b"a" * 3000 + b'"']

    def mutated(self, data: bytes) -> bytes:
        """A few random edits."""
        found = bytearray(data)
        for _ in range(self.random.randint(1, 4)):
            at = self.random.randrange(len(found) + 1) if found else 0
            kind = self.random.randrange(6)
            if kind == 0 and found:
                found[at % len(found)] = self.random.randrange(256)
            elif kind == 1:
                found[at:at] = self.random.randbytes(self.random.randint(1, 9))
            elif kind == 2:
                del found[at:at + self.random.randint(1, 20)]
            elif kind == 3:
                found[at:at + self.random.randint(0, 6)] = self.random.choice(self.values)
            elif kind == 4:
                found = found[:at]
            else:
                found[at:at] = bytes([self.random.choice(b'\0[]{}",:\xff')]) * self.random.randint(1, 40)
        return bytes(found)

    def http(self) -> bytes:
        """A whole HTTP request, malformed somewhere."""
        kind = self.random.randrange(10)
        path = "/v2/models/double/infer"
        if kind < 4:
            return post(path, self.mutated(self.json))
        if kind < 7:
            return post(path, self.mutated(self.binary), self.header)
        if kind == 7:
            size = self.random.choice([-1, 0, 3, 10**9, 2**63, len(self.binary), len(self.binary) + 1])
            return post(path, self.binary, f"Inference-Header-Content-Length: {size}")
        if kind == 8:
            odd = "".join(self.random.choice("/%.\\aé0:?&v2models") for _ in range(self.random.randint(1, 40)))
            return post("/" + odd.replace("é", "%C3%A9").replace(" ", ""), self.mutated(self.json))
        other = self.random.choice(["/v2/repository/index", "/v2/systemsharedmemory/region/r/register",
                                    "/v2/repository/models/double/load", "/v2/systemsharedmemory/unregister"])
        return post(other, self.mutated(self.json))


async def _fuzz(server: Running, count: int) -> dict[str, Any]:
    seen: Counter[str] = Counter()
    left = {"http": int(count * 0.85), "rpc": count - int(count * 0.85)}

    async def http(k: int) -> None:
        fuzzer, client = Fuzzer(k), Http(server.http)
        while left["http"] > 0:
            answers = await client.send_all([fuzzer.http() for _ in range(16)])
            left["http"] -= len(answers)
            for code, _ in answers:
                seen[f"HTTP {code}"] += 1

    async def remote(k: int) -> None:
        fuzzer = Fuzzer(1000 + k)
        async with grpc.aio.insecure_channel(server.grpc) as channel:
            call = channel.unary_unary(INFER)
            while left["rpc"] > 0:
                left["rpc"] -= 1
                try:
                    await call(fuzzer.mutated(fuzzer.rpc))
                    seen["gRPC OK"] += 1
                except grpc.aio.AioRpcError as error:
                    seen[f"gRPC {error.code().name}"] += 1

    async def raw() -> None:
        """No HTTP at all, half requests, slow ones, oversized ones."""
        host, _, port = server.http.partition(":")
        fuzzer = Fuzzer(5000)
        slow = []
        while left["http"] > 0:
            for at in (int(port), int(server.grpc.partition(":")[2])):
                _, writer = await asyncio.open_connection(host, at)
                writer.write(fuzzer.random.choice([
                    fuzzer.random.randbytes(200), b"POST / HTTP/1.1\r\nContent-Length: 99999999999\r\n\r\n",
                    b"GET / HTTP/9.9\r\n\r\n", b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + fuzzer.random.randbytes(60),
                    b"GET /" + b"a" * 100000 + b" HTTP/1.1\r\n\r\n", CHUNKED, b"\r\n" * 50,
                    b"GET / HTTP/1.1\r\n" + b"A: b\r\n" * 5000]))
                seen["raw"] += 1
                slow.append(writer)
            if len(slow) > 200:
                for writer in slow[:100]:
                    writer.close()
                del slow[:100]
            await asyncio.sleep(0.02)

    await asyncio.gather(*(http(k) for k in range(6)), *(remote(k) for k in range(6)), raw())
    good: Counter[str] = Counter()
    client = Http(server.http)
    for i in range(100):
        await ask_double(client, good, i, i % 2 == 0)
    told = status_of(server)
    return {"answers": dict(sorted(seen.items())), "malformed": sum(
        n for k, n in seen.items() if k not in ("HTTP 200", "gRPC OK")), "afterwards": dict(good),
        "restarts": sum(m["restarts"] for m in told.values()), "server_ended": server.process.poll() is not None}


def fuzz(count: int) -> dict[str, Any]:
    """Malformed inputs over HTTP and gRPC."""
    with tempfile.TemporaryDirectory() as folder, _server(Path(folder), Path(folder) / ".log") as server:
        return {"count": count, **asyncio.run(_fuzz(server, count))}


def main() -> None:
    """Run one of them, and write what it saw."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("what", choices=("kill", "soak", "fuzz"))
    parser.add_argument("--seconds", type=float, default=300)
    parser.add_argument("--count", type=int, default=1_000_000)
    parser.add_argument("--out", type=Path)
    told = parser.parse_args()
    begin = time.time()
    report = {"kill": lambda: kill(told.seconds), "soak": lambda: soak(told.seconds),
              "fuzz": lambda: fuzz(told.count)}[told.what]()
    report = {"what": told.what, **machine(), "took": time.time() - begin, **report}
    text = json.dumps(report, indent=1)
    print(text)
    if told.out:
        told.out.write_text(text + "\n")


if __name__ == "__main__":
    main()
