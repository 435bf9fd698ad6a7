"""Ingot beside eager PyTorch, ONNX Runtime and OpenVINO on the six models, f32, alternating in blocks in one run.

    python -m benchmarks.peers --out benchmarks/results/NAME

writes NAME.md and NAME.json: medians, ratios, how far the outputs lie apart, and the machine they were measured on.
"""
from __future__ import annotations

import argparse
import gc
import json
import platform
import tempfile
import time
from collections.abc import Callable, Iterable
from datetime import UTC, datetime
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

import ingot
from benchmarks.zoo import MODELS, ZOO, Entry
from ingot.bench import alternate, onnxruntime_peer, openvino_peer, summary, torch_peer
from ingot.bench.limits import peak_gflops

PEERS = ("torch", "onnxruntime", "openvino")


def cpu_name() -> str:
    """The processor as the system names it."""
    info = Path("/proc/cpuinfo")
    names = [line.split(":", 1)[1].strip() for line in info.read_text().splitlines() if line.startswith("model name")
             ] if info.exists() else []
    return names[0] if names else platform.processor()


def _ingot(path: Path, threads: int, batch: int, batches: Iterable[int], budget: float | None, engines: Path
           ) -> ingot.Session:
    """A session of an engine tuned at the batch and right on all of them, built once and kept beside the models."""
    file = engines / f"{path.stem}-{threads}-b{batch}.ingot"
    if not file.exists():
        entry, most = ZOO[path.stem], max(batches)
        axes = "x".join(map(str, (f"batch=1..{batch}..{most}", *entry.shape)))
        start = time.perf_counter()
        ingot.save(ingot.build(path, dict.fromkeys(entry.inputs, axes),
                               ingot.BuildOptions(threads=threads, budget=budget), original="onnxruntime"), file)
        print(f"  built {file.name} in {time.perf_counter() - start:.1f} s", flush=True)
    return ingot.Session(ingot.load(file, threads=threads), threads)


def measure(entry: Entry, path: Path, batch: int, arguments: argparse.Namespace) -> list[dict[str, Any]]:
    """One row per runtime for one model at one batch."""
    feeds = entry.feeds(batch)
    calls: dict[str, Callable[[], object]] = {}
    outputs: dict[str, np.ndarray] = {}
    kept = []
    if "ingot" in arguments.runtimes:
        session = _ingot(path, arguments.threads, batch, arguments.batch, arguments.budget, Path(arguments.engines))
        outputs["ingot"] = session.run(feeds)[entry.outputs[0]].copy()
        out = {k: v.copy() for k, v in session.run(feeds).items()}
        calls["ingot"] = partial(session.run, feeds, out=out)
        kept.append(session)
    makers = {
        "torch": lambda: torch_peer(entry.module(), entry.inputs, entry.outputs, arguments.threads),
        "onnxruntime": lambda: onnxruntime_peer(str(path), arguments.threads),
        "openvino": lambda: openvino_peer(str(path), arguments.threads, {n: a.shape for n, a in feeds.items()})}
    for name in (n for n in PEERS if n in arguments.runtimes):
        peer = makers[name]()
        outputs[name] = peer.run(feeds)[entry.outputs[0]]
        calls[name] = partial(peer.call, feeds)
        kept.append(peer)
    seconds = alternate(calls, arguments.seconds)
    judge = outputs.get("torch", next(iter(outputs.values())))
    rows = []
    for name, found in seconds.items():
        told = summary(name, batch, found)
        apart = float(np.abs(outputs[name] - judge).max() / np.abs(judge).max())
        share = 2 * entry.gmac * batch / told.median / arguments.peak
        rows.append({"model": entry.name, "batch": batch, "runtime": name, "median": told.median, "p90": told.p90,
                     "p99": told.p99, "least": told.least, "runs": told.runs, "peak_share": share, "apart": apart})
        print(f"  {name:12} {told.median * 1e3:8.2f} ms  least {told.least * 1e3:8.2f}  {share:5.1%} of the peak  "
              f"apart {apart:.1e}", flush=True)
    return rows


def table(report: dict[str, Any]) -> str:
    """The report as Markdown."""
    runtimes = list(dict.fromkeys(r["runtime"] for r in report["rows"]))
    by = {(r["model"], r["batch"], r["runtime"]): r for r in report["rows"]}
    ratios = [(f"{peer} / ingot", peer) for peer in runtimes if peer != "ingot"] if "ingot" in runtimes else []
    head = ["model", "batch", *(f"{r} ms" for r in runtimes), *(title for title, _ in ratios)]
    lines = [f"Median milliseconds, f32, {report['threads']} threads, {report['cpu']}, {report['date']}.",
             f"In parentheses: share of the {report['peak_gflops']:.0f} GFLOP/s a loop of multiply-adds alone reaches.",
             "", "Versions: " + ", ".join(f"{k} {v}" for k, v in report["versions"].items()) + ".", "",
             "| " + " | ".join(head) + " |", "|" + "---|" * len(head)]
    for model, batch in dict.fromkeys((r["model"], r["batch"]) for r in report["rows"]):
        cells = [model, str(batch)]
        for runtime in runtimes:
            row = by.get((model, batch, runtime))
            cells.append(f"{row['median'] * 1e3:.2f} ({row['peak_share']:.0%})" if row else "-")
        for _, peer in ratios:
            ours, theirs = by.get((model, batch, "ingot")), by.get((model, batch, peer))
            cells.append(f"{theirs['median'] / ours['median']:.2f}x" if ours and theirs else "-")
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def main() -> None:
    """Measure, print, and write the report."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="*", default=list(MODELS), choices=list(ZOO))
    parser.add_argument("--batch", nargs="*", type=int, default=[1, 8])
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--seconds", type=float, default=8.0, help="per model and batch, all runtimes together")
    parser.add_argument("--runtimes", nargs="*", default=["ingot", *PEERS], choices=["ingot", *PEERS])
    parser.add_argument("--budget", type=float, default=None, help="seconds for tuning each model")
    parser.add_argument("--folder", default=str(Path(tempfile.gettempdir()) / "ingot-zoo"), help="where the models lie")
    parser.add_argument("--engines", default="", help="where engines are kept; default: beside the models")
    parser.add_argument("--out", default="", help="write OUT.md and OUT.json; rows already in OUT.json stay")
    arguments = parser.parse_args()
    folder = Path(arguments.folder)
    arguments.engines = arguments.engines or str(folder)
    folder.mkdir(parents=True, exist_ok=True)
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
    report = {"cpu": cpu_name(), "threads": arguments.threads, "peak_gflops": arguments.peak,
              "date": datetime.now(UTC).strftime("%Y-%m-%d"), "python": platform.python_version(),
              "versions": {p: version(p) for p in PEERS if p in arguments.runtimes}, "rows": rows}
    if arguments.out:
        out = Path(arguments.out)
        out.parent.mkdir(parents=True, exist_ok=True)
        earlier = json.loads(out.with_suffix(".json").read_text())["rows"] if out.with_suffix(".json").exists() else []
        measured = {(r["model"], r["batch"], r["runtime"]) for r in rows}
        report["rows"] = [r for r in earlier if (r["model"], r["batch"], r["runtime"]) not in measured] + rows
        out.with_suffix(".json").write_text(json.dumps(report, indent=1) + "\n")
        out.with_suffix(".md").write_text(table(report))
    print(table(report))


if __name__ == "__main__":
    main()
