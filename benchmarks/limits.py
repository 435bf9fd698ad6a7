"""The promises that are numbers, measured: call overhead, build and rebuild, load, import, memory against its bound.

    python -m benchmarks.limits --out benchmarks/results/NAME-limits

Builds run in processes of their own with a tuning and code cache of their own, so that "cold" is cold and "warm" is
what the same cache gives a second time.
"""
from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

import ingot
from benchmarks.peers import cpu_name
from benchmarks.zoo import MODELS, ZOO
from ingot.bench import measure, summary
from ingot.graph import parse
from ingot.ops import infer
from ingot.report import Table

BUILD = """
import sys, time
import ingot
model, axes, inputs, out, threads, verify = sys.argv[1:7]
begin = time.perf_counter()
options = ingot.BuildOptions(threads=int(threads), verify=verify == "1", strict=True)
engine = ingot.build(model, dict.fromkeys(inputs.split(","), axes), options)
ingot.save(engine, out)
print(time.perf_counter() - begin)
"""
LOAD = """
import sys, time
import ingot
ingot.load
import ingot.runtime.session
begin = time.perf_counter()
session = ingot.Session(ingot.load(sys.argv[1]))
print(time.perf_counter() - begin)
"""
IMPORT = "import time; s = time.perf_counter(); import ingot; print(time.perf_counter() - s)"


def seconds_of(code: str, *words: object, cache: Path | None = None) -> float:
    """The number a fresh Python prints for the code.

    It may keep and use bytecode, as an installed package does: a setting that forbids it would have every process
    compile Ingot's source anew, and that is no part of a build.
    """
    environ = {**os.environ, **({"INGOT_CACHE": str(cache)} if cache else {})}   # noqa: TID251 - handed on whole
    environ.pop("PYTHONDONTWRITEBYTECODE", None)
    found = subprocess.run([sys.executable, "-c", code, *map(str, words)], capture_output=True, text=True, check=True,
                           env=environ)
    return float(found.stdout.split()[-1])


def call_overhead(threads: int) -> dict[str, float]:
    """Microseconds of one run of an engine that has one small op, called from Python."""
    graph = parse("input x: f32[1,16]\ny = Relu(x)\nreturn y", infer)
    session = ingot.Session(ingot.build(graph, options=ingot.BuildOptions(tune=False, threads=threads)), threads)
    feeds = {"x": np.ones((1, 16), np.float32)}
    out = session.run(feeds)
    told = {}
    for name, call in (("dict", partial(session.run, feeds)), ("out=", partial(session.run, feeds, out=out))):
        taken = measure(call, 1.0)
        told[f"one-op run, {name}, us"] = summary(name, 1, taken).median * 1e6
    return told


def build_and_load(name: str, path: Path, folder: Path, threads: int, verify: bool) -> dict[str, Any]:
    """A cold build, a warm rebuild, whether their bytes are the same, and loading with a warm code cache."""
    entry, cache = ZOO[name], folder / f"cache-{name}"
    axes = "x".join(map(str, ("batch=1..1..8", *entry.shape)))
    files = [folder / f"{name}-{k}.ingot" for k in (0, 1)]
    cold, warm = (seconds_of(BUILD, path, axes, ",".join(entry.inputs), f, threads, int(verify), cache=cache)
                  for f in files)
    loads = [seconds_of(LOAD, files[1], cache=cache) for _ in range(5)]
    plan = ingot.Session(ingot.load(files[1], threads=threads), threads).plan
    return {"model": name, "build_seconds": cold, "rebuild_seconds": warm, "ratio": cold / warm,
            "same_bytes": files[0].read_bytes() == files[1].read_bytes(), "load_ms": min(loads) * 1e3,
            "arena": plan.arena, "lower_bound": plan.lower_bound, "arena_ratio": plan.arena / plan.lower_bound,
            "file_mb": files[0].stat().st_size / 1e6}


def main() -> None:
    """Measure, print and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="*", default=list(MODELS), choices=list(ZOO))
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--verify", action="store_true", help="count verification in the build times")
    parser.add_argument("--folder", default=str(Path(tempfile.gettempdir()) / "ingot-zoo"), help="where the models lie")
    parser.add_argument("--out", default="", help="write OUT.md and OUT.json")
    arguments = parser.parse_args()
    folder = Path(arguments.folder)
    begin = time.perf_counter()
    small = {"import ingot, s": min(seconds_of(IMPORT) for _ in range(5)), **call_overhead(arguments.threads)}
    for name, value in small.items():
        print(f"{name}: {value:.3f}", flush=True)
    rows = []
    with tempfile.TemporaryDirectory() as scratch:
        for name in arguments.models:
            path = folder / f"{name}.onnx"
            if not path.exists():
                ZOO[name].export(path)
            rows.append(build_and_load(name, path, Path(scratch), arguments.threads, arguments.verify))
            print(rows[-1], flush=True)
    columns = ("model", "build s", "rebuild s", "times", "same bytes", "load ms", "arena MB", "arena / bound")
    table = Table("", columns, tuple(
        (r["model"], r["build_seconds"], r["rebuild_seconds"], r["ratio"], "yes" if r["same_bytes"] else "NO",
         r["load_ms"], r["arena"] / 1e6, round(r["arena_ratio"], 4)) for r in rows))
    lines = [(f"{cpu_name()}, {arguments.threads} threads, {datetime.now(UTC):%Y-%m-%d}; verification "
             f"{'counted' if arguments.verify else 'left out'}."), "",
             *(f"- {name}: {value:.3f}" for name, value in small.items()), "", table.markdown()]
    print("\n".join(lines), f"\n{time.perf_counter() - begin:.0f} s")
    if arguments.out:
        out = Path(arguments.out)
        out.parent.mkdir(parents=True, exist_ok=True)
        out.with_suffix(".md").write_text("\n".join(lines) + "\n")
        report = {"cpu": cpu_name(), "small": small, "limits": rows}
        out.with_suffix(".json").write_text(json.dumps(report, indent=1) + "\n")


if __name__ == "__main__":
    main()
