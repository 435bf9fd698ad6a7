"""compute-sanitizer over one engine per GPU tactic: memcheck (out of bounds, misaligned) and racecheck (shared memory).

    python -m benchmarks.gpu_sanitize --build FOLDER        a small engine per tactic; needs no GPU
    python -m benchmarks.gpu_sanitize FOLDER [--out benchmarks/results/h200-sanitizer]      on a machine with a GPU

Each engine is the first sample of an op that its tactic serves (products and convolutions have networks of their own,
in f16), with that tactic first. It is run three times under each tool, and its results are held against the reference.
"""
from __future__ import annotations

import argparse
import json
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from textwrap import dedent
from typing import Any

import numpy as np

from ingot.compiler.gpu import build_gpu, short_feeds, wide_results
from ingot.compiler.options import BuildOptions
from ingot.compiler.stages import Clock, Dump
from ingot.engine import read_engine, write_engine
from ingot.errors import IngotError
from ingot.graph import Graph, GraphBuilder, Node, TensorType, dtype_from_numpy, parse
from ingot.kernels import TACTICS, Tactic
from ingot.ops import OPS, infer
from ingot.ops.reference import run_graph
from ingot.runtime.cuda.driver import cuda_driver
from ingot.runtime.cuda.open import open_cuda
from ingot.verify import random_feeds

TOOLS = ("memcheck", "racecheck")
_CONV = """
    input x: f32[2,3,32,32]
    const a: f32[64,3,7,7]
    const b: f32[64,64,3,3]
    const c: f32[64,16,3,3]
    const d: f32[64,1,3,3]
    const e: f32[96,64,1,1]
    p = Conv(x, a) {'pads': (3, 3, 3, 3), 'strides': (2, 2)}
    q = Relu(p)
    r = Conv(q, b) {'pads': (1, 1, 1, 1)}
    s = Add(r, q)
    t = Conv(s, c) {'pads': (1, 1, 1, 1), 'group': 4}
    u = Conv(t, d) {'pads': (1, 1, 1, 1), 'group': 64}
    y = Conv(u, e)
    return y
"""
_PRODUCT = """
    input x: f32[3,67,192]
    const a: f32[192,256]
    const b: f32[256]
    const c: f32[256,192]
    p = MatMul(x, a)
    q = Add(p, b)
    r = Gelu(q)
    s = MatMul(r, c)
    y = Add(s, x)
    return y
"""
_LARGE = """
    input x: f32[2112,192]
    const a: f32[192,1024]
    const b: f32[1024]
    const c: f32[1024,1024]
    p = MatMul(x, a)
    q = Add(p, b)
    r = Gelu(q)
    s = MatMul(r, c)
    y = Add(s, r)
    return y
"""
_ATTENTION = """
    input q: f32[2,70,128]
    input k: f32[2,70,128]
    input v: f32[2,70,128]
    y = Attention(q, k, v) {'q_num_heads': 4, 'kv_num_heads': 4, 'is_causal': 1}
    return y
"""
NETWORKS = {"cuda.conv_depthwise": _CONV, "cuda.conv_depthwise_tiles": _CONV, "cuda.matmul_persistent": _LARGE,
            "cuda.conv_tma": _CONV, "cuda.conv_stem": _CONV, "cuda.conv": _CONV,
            "cuda.matmul_tma": _PRODUCT, "cuda.matmul": _PRODUCT, "cuda.attention": _ATTENTION}
SAMPLED = {"cuda.normalize": ("Softmax", "LayerNormalization"), "cuda.reduce": ("ReduceMean",),
           "cuda.pointwise": ("Tanh",), "cuda.copy": ("Transpose",), "cuda.pool": ("AveragePool", "MaxPool"),
           "cuda.resample": ("Resize",), "cuda.pad": ("Pad",), "cuda.gather": ("Gather",), "cuda.one_hot": ("OneHot",),
           "cuda.fill": ("EyeLike", "Range"), "cuda.running": ("CumSum",), "cuda.topk": ("TopK",),
           "cuda.scatter": ("ScatterElements", "ScatterND")}
_MOST = 16          # samples of an op that are tried


def samples(tactic: str) -> Iterator[tuple[str, Graph]]:
    """Graphs in which a tactic may serve a node."""
    if tactic in NETWORKS:
        graph = parse(dedent(NETWORKS[tactic]), infer)
        small = {k: (a * 0.1).astype(a.dtype) for k, a in graph.constants.items()}
        yield "network", replace(graph, constants=small)
        return
    for op in SAMPLED.get(tactic, ()):
        for operands, attrs in OPS[op].samples[:_MOST]:
            builder = GraphBuilder(infer)
            names = []
            for i, x in enumerate(operands):
                if x is None:
                    names.append("")
                elif isinstance(x, np.ndarray) and op == "OneHot" and i == 0:     # else it is folded away
                    names.append(builder.input(f"x{i}", TensorType(dtype_from_numpy(x.dtype), x.shape)))
                elif isinstance(x, np.ndarray):
                    names.append(builder.constant(f"x{i}", x))
                else:
                    names.append(builder.input(f"x{i}", x))
            try:
                outputs = tuple(f"y{k}" for k in range(max(1, OPS[op].outputs)))
                yield op, builder.finish(*builder.add(Node(op, tuple(names), outputs, dict(attrs))))
            except IngotError:
                continue


def built(tactic: Tactic, folder: Path) -> str:
    """An engine in which the tactic serves a node, written; or why there is none."""
    order = TACTICS["cuda"]
    TACTICS["cuda"] = (tactic, *(t for t in order if t is not tactic))
    options = BuildOptions(target="cuda:sm_90", tune=False, verify=False, points=1)
    try:
        for op, graph in samples(tactic.name):
            try:
                made = build_gpu(graph, options, Clock(), Dump(None), name=f"{tactic.name} {op}").engine
            except (IngotError, ValueError, KeyError, TypeError):
                continue
            if any(c.tactic == tactic.name for v in made.variants for c in v.choices.values()):
                write_engine(made, folder / f"{tactic.name}.ingot")
                return op
    finally:
        TACTICS["cuda"] = order
    return "no sample"


def run_one(file: Path) -> int:
    """Three runs of an engine, held against the reference; 1 where they are apart."""
    engine = read_engine(file)
    session = open_cuda(engine, trust=True)
    feeds = random_feeds(engine.graph, {s.name: s.opt for s in engine.graph.symbols.values()}, 0)
    wanted = run_graph(engine.graph, feeds)
    for _ in range(3):
        found = wide_results(engine.graph, session.run(short_feeds(session.variant, feeds)))
        for name, array in wanted.items():
            a, b = found[name].astype(np.float64), array.astype(np.float64)
            both = np.isfinite(a) & np.isfinite(b)
            if both.any() and np.abs(a - b)[both].max() > 0.03 * max(1e-6, np.abs(b[both]).max()):
                print(f"'{name}' is wrong by {np.abs(a - b)[both].max():.2g}")
                return 1
    return 0


def checked(file: Path, tool: str, limit: int) -> dict[str, Any]:
    """One engine under one tool: errors, hazards, what its last line says."""
    begin = time.perf_counter()
    words = ["compute-sanitizer", "--tool", tool, "--target-processes", "all", "--error-exitcode", "9", sys.executable,
             "-m", "benchmarks.gpu_sanitize", "--run", str(file)]
    try:
        done = subprocess.run(words, capture_output=True, text=True, timeout=limit, check=False)
    except subprocess.TimeoutExpired:
        return {"tactic": file.stem, "tool": tool, "outcome": f"longer than {limit} s", "seconds": limit, "log": ""}
    log = done.stdout + done.stderr
    summary = re.findall(r"ERROR SUMMARY: (.*)|RACECHECK SUMMARY: (.*)", log)
    told = " ".join(filter(None, summary[-1])) if summary else log.strip()[-300:]
    clean = done.returncode == 0 and bool(re.match(r"0 (errors|hazards)", told))
    return {"tactic": file.stem, "tool": tool, "outcome": "clean" if clean else f"exit {done.returncode}: {told}",
            "seconds": round(time.perf_counter() - begin, 1), "log": "" if clean else log[-3000:]}


def table(report: dict[str, Any]) -> str:
    """The report as Markdown."""
    lines = [f"# compute-sanitizer on {report['device']}", "",
             (f"{report['date']}; {report['version']}; code {report['code'] or 'unknown'}. One engine per tactic, "
              "three runs each, results held against the reference."), "",
             "| tactic | " + " | ".join(TOOLS) + " | s |", "|---|---|---|---:|"]
    for tactic in dict.fromkeys(r["tactic"] for r in report["results"]):
        rows = {r["tool"]: r for r in report["results"] if r["tactic"] == tactic}
        lines.append(f"| {tactic} | " + " | ".join(rows[t]["outcome"].replace("\n", " ") if t in rows else "-"
                                                    for t in TOOLS)
                     + f" | {sum(r['seconds'] for r in rows.values()):.0f} |")
    return "\n".join(lines) + "\n"


def main() -> int:
    """Build the engines, or check them."""
    parser = argparse.ArgumentParser(description="compute-sanitizer over one engine per GPU tactic.")
    parser.add_argument("folder", type=Path, nargs="?")
    parser.add_argument("--build", type=Path, default=None)
    parser.add_argument("--only", default="", help="build for these tactics alone")
    parser.add_argument("--run", type=Path, default=None, help=argparse.SUPPRESS)
    parser.add_argument("--jobs", type=int, default=6)
    parser.add_argument("--limit", type=int, default=120, help="seconds for one engine under one tool")
    parser.add_argument("--code", default="", help="the commit that is measured, for the report")
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/gpu-sanitizer"))
    given = parser.parse_args()
    if given.run:
        return run_one(given.run)
    if given.build:
        given.build.mkdir(parents=True, exist_ok=True)
        for tactic in (t for t in TACTICS["cuda"] if not given.only or t.name in given.only.split(",")):
            print(tactic.name, built(tactic, given.build), flush=True)
        return 0
    files = sorted(given.folder.glob("*.ingot"))
    with ThreadPoolExecutor(given.jobs) as pool:
        results = list(pool.map(lambda job: checked(*job, given.limit), [(f, t) for f in files for t in TOOLS]))
    tool = subprocess.run(["compute-sanitizer", "--version"], capture_output=True, text=True, check=False).stdout
    report = {"device": cuda_driver().facts.name, "date": datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
              "version": (re.findall(r"Version (\S+)", tool) or ["unknown version"])[0], "code": given.code,
              "numpy": version("numpy"), "results": results}
    given.out.parent.mkdir(parents=True, exist_ok=True)
    given.out.with_suffix(".json").write_text(json.dumps(report, indent=1) + "\n")
    given.out.with_suffix(".md").write_text(table(report))
    print(table(report))
    return int(any(r["outcome"] != "clean" for r in results))


if __name__ == "__main__":
    sys.exit(main())
