"""What a server adds to a model that does nothing, beside other servers, in alternating rounds.

    python -m benchmarks.serving_overhead --peers mlserver=/venvs/mlserver,litserve=... --out benchmarks/results/NAME

Needs `wrk` (HTTP) and `h2load` (gRPC), load generators that cost little themselves. Every server runs all the while;
one at a time is loaded. `--prefix` names a command the measuring runs under, for example one that quiets the machine.
"""
from __future__ import annotations

import argparse
import json
import os
import re
import shlex
import struct
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper

import ingot
from benchmarks.serving_machine import machine
from ingot.serve.protocol import MESSAGES
from tests.serve_running import serving

HERE = Path(__file__).parent
PORTS = {"mlserver": 9110, "litserve": 9120, "bentoml": 9130, "ray": 9140}
X = np.ones((1, 16), np.float32)
V2 = {"inputs": [{"name": "x", "shape": [1, 16], "datatype": "FP32", "data": X.reshape(-1).tolist()}]}


def noop_engine(path: Path) -> None:
    """y = x, rows of 16 numbers."""
    graph = helper.make_graph([helper.make_node("Identity", ["x"], ["y"])], "noop",
                              [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N", 16])],
                              [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["N", 16])])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
    onnx.checker.check_model(model)
    ingot.save(ingot.build(model.SerializeToString(), shapes={"x": "1..1..32x16"}), path)


def lua(folder: Path, name: str, body: bytes, headers: dict[str, str]) -> Path:
    """wrk's description of one request."""
    (folder / f"{name}.bin").write_bytes(body)
    lines = ['wrk.method = "POST"', f'local f = io.open("{folder}/{name}.bin", "rb")', 'wrk.body = f:read("*a")',
             "f:close()", *(f'wrk.headers["{k}"] = "{v}"' for k, v in headers.items())]
    path = folder / f"{name}.lua"
    path.write_text("\n".join(lines))
    return path


def wrk(url: str, script: Path, clients: int, seconds: float) -> tuple[float, float]:
    """(requests per second, median seconds)."""
    text = subprocess.run(["wrk", "-t1", f"-c{clients}", f"-d{seconds:.0f}s", "--latency", "-s", str(script), url],
                          capture_output=True, text=True, check=True).stdout
    if "Non-2xx" in text:
        raise SystemExit(f"{url} answers with errors:\n{text}")
    number, unit = re.search(r"50%\s+([\d.]+)(us|ms|s)", text).groups()         # type: ignore[union-attr]
    rate = float(re.search(r"Requests/sec:\s+([\d.]+)", text)[1])               # type: ignore[index]
    return rate, float(number) * {"us": 1e-6, "ms": 1e-3, "s": 1.0}[unit]


def h2load(at: str, body: Path, clients: int, seconds: float) -> tuple[float, float]:
    """The same over gRPC."""
    with tempfile.NamedTemporaryFile() as log:
        done = subprocess.run(
            ["h2load", "-t1", f"-c{clients}", "-m1", f"-D{seconds:.0f}", "-d", str(body), "-H",
             "content-type: application/grpc", "-H", "te: trailers", f"--log-file={log.name}",
             f"http://{at}/inference.GRPCInferenceService/ModelInfer"], capture_output=True, text=True, check=True)
        rows = [line.split() for line in Path(log.name).read_text().splitlines()]
    taken = sorted(int(r[2]) for r in rows if r[1] == "200")
    if not taken:
        print(f"{at} does not answer over gRPC:\n{done.stdout}{done.stderr}", file=sys.stderr)
        return 0.0, float("inf")
    return len(taken) / seconds, taken[len(taken) // 2] / 1e6


def bare_seconds(path: Path) -> float:
    """Median seconds of the model alone, in a loop."""
    session = ingot.Session(ingot.load(path), 1)
    taken = []
    for _ in range(5000):
        begin = time.perf_counter()
        session.run({"x": X})
        taken.append(time.perf_counter() - begin)
    return sorted(taken)[len(taken) // 2]


def measure(plan: Path) -> None:
    """Load each server in turn, several rounds; prints every figure as JSON."""
    told = json.loads(plan.read_text())
    rows = []
    for round_ in range(told["rounds"]):
        order = told["targets"] if round_ % 2 == 0 else told["targets"][::-1]
        for target in order:
            for clients in (1, 32):
                if target["kind"] == "grpc":
                    rate, median = h2load(target["url"], Path(target["script"]), clients, told["seconds"])
                else:
                    rate, median = wrk(target["url"], Path(target["script"]), clients, told["seconds"])
                rows.append({"name": target["name"], "clients": clients, "rate": rate, "median": median})
    print(json.dumps({"measured": rows, "bare": bare_seconds(Path(told["engine"]))}))


def waited(url: str, body: bytes, headers: dict[str, str], seconds: float = 180) -> None:
    """Until the server answers a request."""
    until = time.time() + seconds
    while time.time() < until:
        try:
            with urllib.request.urlopen(urllib.request.Request(url, body, headers), timeout=5):
                return
        except (urllib.error.URLError, OSError):
            time.sleep(0.5)
    raise SystemExit(f"{url} does not answer")


def targets(folder: Path, http: str, grpc: str, peers: Sequence[str]) -> list[dict[str, Any]]:
    """Whom to load, and with what."""
    as_json = {"Content-Type": "application/json"}
    head = json.dumps({"inputs": [{**V2["inputs"][0], "data": None, "parameters": {"binary_data_size": X.nbytes}}],
                       "parameters": {"binary_data_output": True}}).replace('"data": null, ', "").encode()
    message = MESSAGES["ModelInferRequest"](model_name="noop")
    message.inputs.add(name="x", datatype="FP32", shape=[1, 16])
    message.raw_input_contents.append(X.tobytes())
    raw = message.SerializeToString()
    (folder / "rpc.bin").write_bytes(b"\0" + struct.pack(">I", len(raw)) + raw)
    made = [
        {"name": "ingot, HTTP binary", "kind": "http", "url": f"http://{http}/v2/models/noop/infer",
         "script": str(lua(folder, "binary", head + X.tobytes(), {"Inference-Header-Content-Length": str(len(head))}))},
        {"name": "ingot, HTTP JSON", "kind": "http", "url": f"http://{http}/v2/models/noop/infer",
         "script": str(lua(folder, "v2", json.dumps(V2).encode(), as_json))},
        {"name": "ingot, gRPC", "kind": "grpc", "url": grpc, "script": str(folder / "rpc.bin")}]
    rows = X.tolist()
    bodies = {"mlserver": ("/v2/models/noop/infer", json.dumps(V2)),
              "litserve": ("/predict", json.dumps({"input": rows})),
              "bentoml": ("/infer", json.dumps({"x": rows})), "ray": ("/", json.dumps({"input": rows}))}
    for name in peers:
        path, body = bodies[name]
        url = f"http://127.0.0.1:{PORTS[name]}{path}"
        waited(url, body.encode(), as_json)
        script = lua(folder, name, body.encode(), as_json)
        made.append({"name": name, "kind": "http", "url": url, "script": str(script)})
        if name == "mlserver":
            made.append({"name": "mlserver, gRPC", "kind": "grpc", "url": f"127.0.0.1:{PORTS[name] + 1}",
                         "script": str(folder / "rpc.bin")})
    return made


def table(report: dict[str, Any]) -> str:
    """The report as Markdown."""
    bare = report["bare"]
    lines = [f"# What the server adds, on {report['cpu']}, {report['threads']} threads, {report['date']}", "",
             "A model that gives back its input (16 numbers), loaded by `wrk` and `h2load` on this machine; medians",
             f"over {report['rounds']} alternating rounds of {report['seconds']} s.",
             f"The model alone takes {bare * 1e6:.0f} us.", "",
             "| server | requests/s, 1 client | added p50, 1 client | requests/s, 32 clients | added p50, 32 clients |",
             "|---|---:|---:|---:|---:|"]
    for name in dict.fromkeys(r["name"] for r in report["measured"]):
        cells = []
        for clients in (1, 32):
            found = [r for r in report["measured"] if r["name"] == name and r["clients"] == clients]
            rate = float(np.median([r["rate"] for r in found]))
            added = float(np.median([r["median"] for r in found])) - bare
            told = f"{added * 1e6:.0f} us" if added < 1e-3 else f"{added * 1e3:.2f} ms"
            cells += [f"{rate:.0f}", told if rate else "no answer"]
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    return "\n".join([*lines, "", *(f"{k} {v}" for k, v in report["versions"].items())]) + "\n"


def main() -> None:
    """Start everything, measure, write."""
    if sys.argv[1:2] == ["measure"]:
        measure(Path(sys.argv[2]))
        return
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--peers", default="", help="name=folder of its virtual environment, ...")
    parser.add_argument("--prefix", default="")
    parser.add_argument("--seconds", type=float, default=2)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--out", type=Path)
    told = parser.parse_args()
    peers = dict(p.split("=") for p in told.peers.split(",") if p)
    running, versions = [], {}
    environment = {"HOME": os.path.expanduser("~")}
    with tempfile.TemporaryDirectory() as text:
        folder = Path(text)
        (folder / "models" / "noop").mkdir(parents=True)
        noop_engine(folder / "models" / "noop" / "model.ingot")
        try:
            for name, place in peers.items():
                python = Path(place) / "bin" / "python"
                running.append(subprocess.Popen(
                    [python, HERE / "serving_peers" / "noop.py", name, str(PORTS[name])], stdout=subprocess.DEVNULL,
                    stderr=subprocess.DEVNULL, start_new_session=True,
                    env=environment | {"PATH": f"{place}/bin:/usr/bin:/bin"}))
                versions[name] = subprocess.run(
                    [python, "-c", f"import importlib.metadata as m; print(m.version({name!r}))"],
                    capture_output=True, text=True, check=True).stdout.strip()
            with serving(folder / "models") as server:
                plan = {"targets": targets(folder, server.http, server.grpc, list(peers)), "rounds": told.rounds,
                        "seconds": told.seconds, "engine": str(folder / "models" / "noop" / "model.ingot")}
                (folder / "plan.json").write_text(json.dumps(plan))
                output = subprocess.run([*shlex.split(told.prefix), sys.executable, "-m", "benchmarks.serving_overhead",
                                         "measure", str(folder / "plan.json")], stdout=subprocess.PIPE, text=True,
                                        check=True).stdout
        finally:
            for process in running:
                subprocess.run(["kill", "-TERM", "--", f"-{process.pid}"], check=False)
    report = {**machine(), "rounds": told.rounds, "seconds": told.seconds, "versions": versions, **json.loads(output)}
    print(table(report))
    if told.out:
        told.out.with_suffix(".json").write_text(json.dumps(report, indent=1) + "\n")
        told.out.with_suffix(".md").write_text(table(report))


if __name__ == "__main__":
    main()
