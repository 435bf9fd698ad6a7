"""Ingot beside its peers, alternating in blocks in one run: same model, inputs, threads and precision.

    python -m benchmarks.peers --out benchmarks/results/NAME

Peers: eager PyTorch, torch.compile (weights frozen), ONNX Runtime, OpenVINO (shapes fixed) in f32, and OpenVINO in
bf16 where the processor has it (beside the runtime "ingot bf16", if that is asked for). Writes NAME.md, NAME.json and
NAME.svg: medians, ratios with their 95 % intervals, how far the outputs lie apart, peak memory, and the machine. A
runtime whose output lies further from PyTorch's than its precision explains computes something else: its time is
shown, and no ratio counts it.
"""
from __future__ import annotations

import argparse
import gc
import json
import platform
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from datetime import UTC, datetime
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

import ingot
from benchmarks.report import plot, precision_of, table
from benchmarks.zoo import MODELS, MORE, ZOO, Entry
from ingot.bench import (
    Peer,
    alternate_blocks,
    onnxruntime_peer,
    openvino_peer,
    peak_gflops,
    ratio_interval,
    summary,
    torch_peer,
)

PEERS = ("torch", "torch.compile", "onnxruntime", "openvino", "openvino bf16")
APART = {"f32": 1e-3, "bf16": 0.1}      # of the largest value: more is another result, not rounding


def cpu_name() -> str:
    """The processor as the system names it."""
    info = Path("/proc/cpuinfo")
    names = [line.split(":", 1)[1].strip() for line in info.read_text().splitlines() if line.startswith("model name")
             ] if info.exists() else []
    return names[0] if names else platform.processor()


OURS = {"f32": "ingot", "bf16": "ingot bf16"}


def engine_file(path: Path, batch: int, arguments: argparse.Namespace, precision: str = "f32") -> Path:
    """An engine tuned at the batch and right on all of them, built once and kept."""
    short = "" if precision == "f32" else f"-{precision}"
    file = Path(arguments.engines) / f"{path.stem}-{arguments.threads}-b{batch}{short}.ingot"
    if not file.exists():
        entry = ZOO[path.stem]
        axes = "x".join(map(str, (f"batch=1..{batch}..{max(arguments.batch)}", *entry.shape)))
        options = ingot.BuildOptions(threads=arguments.threads, budget=arguments.budget, precision=precision)
        start = time.perf_counter()
        ingot.save(ingot.build(path, dict.fromkeys(entry.inputs, axes), options, original="onnxruntime"), file)
        print(f"  built {file.name} in {time.perf_counter() - start:.1f} s", flush=True)
    return file


def loaded(runtime: str, entry: Entry, path: Path, batch: int, arguments: argparse.Namespace) -> Peer:
    """One runtime with the model loaded."""
    feeds, threads = entry.feeds(batch), arguments.threads
    if runtime in OURS.values():
        file = engine_file(path, batch, arguments, precision_of(runtime))
        session = ingot.Session(ingot.load(file, threads=threads), threads)
        out = {k: v.copy() for k, v in session.run(feeds).items()}
        return Peer(runtime, "", session.run, partial(session.run, out=out), 0.0)
    if runtime in ("torch", "torch.compile"):
        return torch_peer(entry.module(), entry.inputs, entry.outputs, threads, compiled=runtime != "torch")
    if runtime == "onnxruntime":
        return onnxruntime_peer(str(path), threads)
    return openvino_peer(str(path), threads, {n: a.shape for n, a in feeds.items()}, precision_of(runtime))


def measure(entry: Entry, path: Path, batch: int, arguments: argparse.Namespace) -> list[dict[str, Any]]:
    """One row per runtime for one model at one batch."""
    feeds = entry.feeds(batch)
    calls: dict[str, Callable[[], object]] = {}
    outputs: dict[str, np.ndarray] = {}
    for name in arguments.runtimes:
        peer = loaded(name, entry, path, batch, arguments)
        outputs[name] = np.array(peer.run(feeds)[entry.outputs[0]])
        calls[name] = partial(peer.call, feeds)
    blocks = alternate_blocks(calls, arguments.seconds)
    judge = outputs.get("torch", next(iter(outputs.values())))
    rows = []
    for name, taken in blocks.items():
        told = summary(name, batch, [s for block in taken for s in block])
        apart = float(np.abs(outputs[name] - judge).max() / np.abs(judge).max())
        row: dict[str, Any] = {
            "model": entry.name, "batch": batch, "runtime": name, "median": told.median, "p90": told.p90,
            "p99": told.p99, "least": told.least, "runs": told.runs, "apart": apart,
            "counts": apart <= APART[precision_of(name)],
            "peak_share": 2 * entry.gmac * batch / told.median / arguments.peak}
        ours = OURS[precision_of(name)] if OURS[precision_of(name)] in blocks else "ingot"
        if name not in OURS.values() and ours in blocks:
            row["ratio"], row["ratio_low"], row["ratio_high"] = ratio_interval(taken, blocks[ours])
            row["over"] = ours
        if arguments.memory:
            row["memory"] = memory_of(name, entry, path, batch, arguments)
        rows.append(row)
        print(f"  {name:14} {told.median * 1e3:8.2f} ms  least {told.least * 1e3:8.2f}  p99 {told.p99 * 1e3:8.2f}  "
              + (f"{row['ratio']:.2f}x [{row['ratio_low']:.2f}, {row['ratio_high']:.2f}]  " if "ratio" in row else "")
              + f"{row['peak_share']:5.1%} of the peak  apart {apart:.1e}"
              + (f"  {row['memory'] / 1e6:.0f} MB" if arguments.memory else ""), flush=True)
    return rows


def memory_of(runtime: str, entry: Entry, path: Path, batch: int, arguments: argparse.Namespace) -> int:
    """Peak resident bytes of a fresh process that only loads the model into a runtime and runs it five times."""
    with tempfile.TemporaryDirectory() as folder:
        feeds = Path(folder) / "feeds.npz"
        np.savez(feeds, **entry.feeds(batch))
        model = engine_file(path, batch, arguments, precision_of(runtime)) if runtime in OURS.values() else path
        words = [sys.executable, "-m", "benchmarks.memory", runtime, model, feeds, arguments.threads]
        return int(subprocess.run([*map(str, words)], capture_output=True, text=True, check=True).stdout.split()[-1])


def main() -> None:
    """Measure, print, and write the report."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="*", default=[*MODELS, *MORE], choices=list(ZOO))
    parser.add_argument("--batch", nargs="*", type=int, default=[1, 8])
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--seconds", type=float, default=8.0, help="per model and batch, all runtimes together")
    parser.add_argument("--runtimes", nargs="*", default=["ingot", *PEERS],
                        choices=[*OURS.values(), *PEERS])
    parser.add_argument("--budget", type=float, default=None, help="seconds for tuning each model")
    parser.add_argument("--folder", default=str(Path(tempfile.gettempdir()) / "ingot-zoo"), help="where the models lie")
    parser.add_argument("--engines", default="", help="where engines are kept; default: beside the models")
    parser.add_argument("--memory", action="store_true", help="peak memory of each runtime, in processes of their own")
    parser.add_argument("--out", default="", help="write OUT.md, .json and .svg; rows already in OUT.json stay")
    arguments = parser.parse_args()
    folder = Path(arguments.folder)
    arguments.engines = arguments.engines or str(folder)
    Path(arguments.engines).mkdir(parents=True, exist_ok=True)
    folder.mkdir(parents=True, exist_ok=True)
    if not _has_bf16():
        arguments.runtimes = [r for r in arguments.runtimes if precision_of(r) != "bf16"]
    arguments.peak = peak_gflops(arguments.threads)
    print(f"{cpu_name()}, {arguments.threads} threads, peak {arguments.peak:.0f} GFLOP/s", flush=True)
    rows: list[dict[str, Any]] = []
    for name in arguments.models:
        path = folder / f"{name}.onnx"
        if not path.exists():
            ZOO[name].export(path)
        for batch in arguments.batch:
            print(f"{name}, batch {batch}", flush=True)
            rows += measure(ZOO[name], path, batch, arguments)
            gc.collect()
    packages = dict.fromkeys(r.split(" ")[0].split(".")[0] for r in arguments.runtimes
                             if r not in OURS.values())
    report = {"cpu": cpu_name(), "threads": arguments.threads, "peak_gflops": arguments.peak,
              "date": datetime.now(UTC).strftime("%Y-%m-%d"), "python": platform.python_version(),
              "versions": {p: version(p) for p in packages}, "rows": rows}
    if arguments.out:
        out = Path(arguments.out)
        out.parent.mkdir(parents=True, exist_ok=True)
        earlier = json.loads(out.with_suffix(".json").read_text())["rows"] if out.with_suffix(".json").exists() else []
        measured = {(r["model"], r["batch"], r["runtime"]) for r in rows}
        report["rows"] = [r for r in earlier if (r["model"], r["batch"], r["runtime"]) not in measured] + rows
        out.with_suffix(".json").write_text(json.dumps(report, indent=1) + "\n")
        out.with_suffix(".md").write_text(table(report))
        plot(report, out.with_suffix(".svg"))
    print(table(report))


def _has_bf16() -> bool:
    info = Path("/proc/cpuinfo")
    return info.exists() and ("avx512_bf16" in info.read_text() or "amx_bf16" in info.read_text())


if __name__ == "__main__":
    main()
