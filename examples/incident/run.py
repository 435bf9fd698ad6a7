"""The incident: an engine tuned at batch 32, cameras that send frames one by one; found, mended, served as promised.

    python examples/incident/run.py [--seconds 10] [--out FOLDER]

Builds a small convolutional network at batch 32, promises what a benchmark at that shape says, serves it to cameras
that send single frames over HTTP, and records them. Then `ingot diagnose` says why it is slow, the engine is built for
the recorded traffic, batched as `ingot recommend` says, and served again. Writes incident.md and incident.svg.
"""
from __future__ import annotations

import argparse
import asyncio
import json
import re
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import uvloop
from onnx import TensorProto, helper, numpy_helper

import ingot
from ingot.bench import measure
from ingot.runtime.host import host_target

SIDE, CHANNELS, LAYERS = 112, 64, 8
ENGINE = "models/camera/model.ingot"
ROUNDS = 3


def network() -> bytes:
    """Frames of bytes [N, 3, 112, 112] to ten scores: eight 3x3 convolutions, then the mean."""
    random = np.random.default_rng(0)
    nodes = [helper.make_node("Cast", ["frame"], ["v0"], to=TensorProto.FLOAT)]
    weights = []
    for i in range(LAYERS):
        into = 3 if i == 0 else CHANNELS
        w = (random.standard_normal((CHANNELS, into, 3, 3)) / np.sqrt(9 * into)).astype(np.float32)
        weights.append(numpy_helper.from_array(w, f"w{i}"))
        nodes += [helper.make_node("Conv", [f"v{i}", f"w{i}"], [f"c{i}"], pads=[1, 1, 1, 1]),
                  helper.make_node("Relu", [f"c{i}"], [f"v{i + 1}"])]
    weights.append(numpy_helper.from_array(random.standard_normal((CHANNELS, 10)).astype(np.float32), "head"))
    nodes += [helper.make_node("GlobalAveragePool", [f"v{LAYERS}"], ["mean"]),
              helper.make_node("Flatten", ["mean"], ["flat"]), helper.make_node("MatMul", ["flat", "head"], ["scores"])]
    graph = helper.make_graph(
        nodes, "camera", [helper.make_tensor_value_info("frame", TensorProto.UINT8, ["N", 3, SIDE, SIDE])],
        [helper.make_tensor_value_info("scores", TensorProto.FLOAT, ["N", 10])], weights)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
    onnx.checker.check_model(model)
    return bytes(model.SerializeToString())


def ingot_says(*words: str) -> Any:
    """What a command of Ingot prints as JSON."""
    command = [sys.executable, "-m", "ingot", *words, "--json"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"ingot {' '.join(words)} failed:\n{done.stdout}\n{done.stderr}")
    return json.loads(done.stdout)


def promised(path: Path, rows: int, seconds: float) -> float:
    """Milliseconds per frame in a bare loop at this batch."""
    session = ingot.Session(ingot.load(path))
    frames = np.random.default_rng(0).integers(0, 256, (rows, 3, SIDE, SIDE)).astype(np.uint8)
    taken = measure(lambda: session.run({"frame": frames}), seconds)
    return 1e3 * float(np.median(taken)) / rows


@contextmanager
def server(models: Path, *options: str) -> Iterator[dict[str, str]]:
    """A server of the folder, ready."""
    process = subprocess.Popen([sys.executable, "-m", "ingot", "serve", str(models), "--http-port", "0", "--grpc-port",
                                "0", "--json", *options], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    try:
        places: dict[str, str] = json.loads(process.stdout.readline())      # type: ignore[union-attr]
        while True:
            try:
                with urllib.request.urlopen(f"http://{places['http']}/readyz", timeout=5):
                    break
            except urllib.error.HTTPError:
                time.sleep(0.1)
        yield places
    finally:
        process.terminate()
        process.wait()


def served(at: str, cameras: int, seconds: float) -> tuple[float, float]:
    """(milliseconds per frame, median milliseconds a camera waits), each camera sending frame by frame."""
    random = np.random.default_rng(1)
    frames = [posted(random.integers(0, 256, (1, 3, SIDE, SIDE), np.uint8)) for _ in range(8)]
    host, _, port = at.partition(":")
    waits: list[float] = []

    async def camera(index: int, until: float) -> None:
        reader, writer = await asyncio.open_connection(host, int(port))
        while (begin := time.perf_counter()) < until:
            writer.write(frames[index % len(frames)])
            head = await reader.readuntil(b"\r\n\r\n")
            found = re.search(rb"\r\ncontent-length: (\d+)", head, re.IGNORECASE)
            body = await reader.readexactly(int(found[1]) if found else 0)
            if not head.startswith(b"HTTP/1.1 200"):
                raise SystemExit(f"a frame was refused: {body.decode()}")
            waits.append(time.perf_counter() - begin)
            index += cameras
        writer.close()

    async def all_of_them() -> float:
        begin = time.perf_counter()
        await asyncio.gather(*(camera(i, begin + seconds) for i in range(cameras)))
        return time.perf_counter() - begin

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        took = runner.run(all_of_them())
    return 1e3 * took / len(waits), 1e3 * float(np.median(waits))


def posted(frame: np.ndarray) -> bytes:
    """The HTTP request that sends a frame as a binary tensor."""
    described = {"name": "frame", "datatype": "UINT8", "shape": frame.shape,
                 "parameters": {"binary_data_size": frame.nbytes}}
    told = json.dumps({"inputs": [described], "parameters": {"binary_data_output": True}}).encode()
    return (f"POST /v2/models/camera/infer HTTP/1.1\r\nHost: camera\r\nInference-Header-Content-Length: {len(told)}\r\n"
            f"Content-Length: {len(told) + frame.nbytes}\r\n\r\n").encode() + told + frame.tobytes()


def in_turns(path: Path, rows: int, at: str, cameras: int, seconds: float) -> tuple[float, tuple[float, float]]:
    """(milliseconds per frame promised, what `served` gives): medians over rounds in turns, the speed wavers.

    The server idles while the bare loop runs.
    """
    promises, answers = [], []
    for _ in range(ROUNDS):
        promises.append(promised(path, rows, seconds / 2 / ROUNDS))
        answers.append(served(at, cameras, seconds / ROUNDS))
    each, waits = zip(*answers, strict=True)
    return float(np.median(promises)), (float(np.median(each)), float(np.median(waits)))


def plot(rows: list[dict[str, Any]]) -> str:
    """Promised and served, before and after, as SVG."""
    most = max(max(r["promised_fps"], r["served_fps"]) for r in rows)
    size = 'width="560" height="210" font-family="sans-serif" font-size="13"'
    parts = [f'<svg xmlns="http://www.w3.org/2000/svg" {size}>',
             '<text x="10" y="20">frames per second: promised by the benchmark, and served</text>']
    y = 36
    for row in rows:
        for kind, colour in (("promised", "#9aa5b1"), ("served", "#3b82c4")):
            value = row[f"{kind}_fps"]
            parts += [f'<text x="150" y="{y + 14}" text-anchor="end">{row["name"]}, {kind}</text>',
                      f'<rect x="160" y="{y}" width="{330 * value / most:.1f}" height="18" fill="{colour}"/>',
                      f'<text x="{166 + 330 * value / most:.1f}" y="{y + 14}">{value:.1f}</text>']
            y += 22
        parts.append(f'<text x="160" y="{y + 13}">served / promised: {row["ratio"]:.2f}</text>')
        y += 34
    return "\n".join([*parts, "</svg>"]) + "\n"


@dataclass(frozen=True)
class Row:
    """One line of the table."""

    name: str
    tuned: str
    promised_ms: float
    served_ms: float
    waits_ms: float

    @property
    def ratio(self) -> float:
        """Served over promised, in frames per second."""
        return self.promised_ms / self.served_ms

    def to_json(self) -> dict[str, Any]:
        """Everything, also as frames per second."""
        return {**asdict(self), "promised_fps": 1e3 / self.promised_ms, "served_fps": 1e3 / self.served_ms,
                "ratio": self.ratio}


def measured(name: str, work: Path, rows: int, told: argparse.Namespace, *options: str, ask: bool = False
             ) -> tuple[Row, list[dict[str, str]]]:
    """Promised and served with the folder's engine, and what `ingot diagnose` says of it where it is asked."""
    with server(work / "models", *options) as places:
        promise, found = in_turns(work / ENGINE, rows, places["http"], told.cameras, told.seconds)
        findings = ingot_says("diagnose", "camera", "--at", places["http"])["findings"] if ask else []
    row = Row(name, f"batch {rows}", promise, *found)
    print(f"{name}: {promise:.2f} ms per frame promised at {row.tuned}, {row.served_ms:.2f} ms served "
          f"({row.ratio:.2f} of the promise)", flush=True)
    return row, findings


def before(work: Path, told: argparse.Namespace) -> dict[str, Any]:
    """The engine of batch 32 under single frames: what became of the promise, and why."""
    engine, record = work / ENGINE, work / "traffic.jsonl"
    engine.parent.mkdir(parents=True, exist_ok=True)
    (work / "camera.onnx").write_bytes(network())
    shape = f"32..32..32x3x{SIDE}x{SIDE}"
    ingot_says("build", str(work / "camera.onnx"), "-o", str(engine), "--shapes", f"frame:{shape}",
               "--budget", told.budget, "--no-verify")
    (engine.parent / "config.yaml").write_text("batching: none\n")
    record.unlink(missing_ok=True)
    row, findings = measured("the incident", work, 32, told, "--record", str(record), ask=True)
    for finding in findings:
        print(f"  {finding['suspect']}: {finding['verdict']}. {finding['measured']}")
    return {"row": row.to_json(), "findings": findings}


def after(work: Path, told: argparse.Namespace) -> dict[str, Any]:
    """Built for the recorded traffic, batched as recommended, served again."""
    engine, record = work / ENGINE, work / "traffic.jsonl"
    ingot_says("build", str(work / "camera.onnx"), "-o", str(engine), "--profile-from", str(record),
               "--budget", told.budget)
    advice = ingot_says("recommend", str(record), str(engine), "--p99", "200ms", "-o",
                        str(engine.parent / "config.yaml"))
    print(f"  recommended with the engine built for the traffic: {advice['config'].split()}")
    return {"row": measured("mended", work, int(advice["points"][0]), told)[0].to_json()}


def main() -> None:
    """The whole story, or one half of it over a folder that is kept."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=10, help="of each measurement under load")
    parser.add_argument("--cameras", type=int, default=4)
    parser.add_argument("--out", type=Path, default=Path("."))
    parser.add_argument("--budget", default="60", help="seconds of tuning per build")
    parser.add_argument("--work", type=Path, help="where to keep the engines and the record, for --half")
    parser.add_argument("--half", choices=("before", "after", "both"), default="both")
    told = parser.parse_args()
    with tempfile.TemporaryDirectory() as text:
        work = told.work or Path(text)
        work.mkdir(parents=True, exist_ok=True)
        kept = work / "before.json"
        if told.half != "after":
            kept.write_text(json.dumps(before(work, told)))
        if told.half == "before":
            return
        first = json.loads(kept.read_text())
        rows, findings = [first["row"], after(work, told)["row"]], first["findings"]
    target = host_target()
    head = ("", "tuned for", "promised ms per frame", "served ms per frame", "frames/s promised", "frames/s served",
            "served / promised")
    lines = ["# The incident: promised and served", "",
             f"{target.device}, {target.threads} threads, {time.strftime('%Y-%m-%d')};",
             f"{told.cameras} cameras, each sending single frames one after another.", "",
             f"| {' | '.join(head)} |", "|---|---|---:|---:|---:|---:|---:|"]
    lines += [f"| {r['name']} | {r['tuned']} | {r['promised_ms']:.2f} | {r['served_ms']:.2f} | {r['promised_fps']:.1f} "
              f"| {r['served_fps']:.1f} | {r['ratio']:.2f} |" for r in rows]
    lines += ["", "What `ingot diagnose` said before:", "",
              *(f"- {f['suspect']}: {f['verdict']}. {f['measured']}." for f in findings)]
    told.out.mkdir(parents=True, exist_ok=True)
    (told.out / "incident.md").write_text("\n".join(lines) + "\n")
    (told.out / "incident.svg").write_text(plot(rows))
    (told.out / "incident.json").write_text(json.dumps(rows, indent=1) + "\n")


if __name__ == "__main__":
    main()
