"""What a short tuning costs in speed: an engine of `--budget` seconds beside one tuned to the end, in turns.

    python -m benchmarks.budget resnet50 bert_base --budget 10 --out benchmarks/results/NAME-budget

Each build begins with an empty tuning cache of its own. Batch 1. Writes NAME-budget.json and .md.
"""
from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

import ingot
from benchmarks.peers import cpu_name
from benchmarks.zoo import ZOO
from ingot.bench import alternate_blocks, ratio_interval


def build(model: Path, file: Path, threads: int, budget: float) -> float:
    """Build an engine in a fresh process whose caches are empty; gives the seconds (0 as a budget: to the end)."""
    entry = ZOO[model.stem]
    shape = "x".join(map(str, (1, *entry.shape)))
    words = ["build", str(model), "-o", str(file), "--threads", str(threads), "--against", "onnxruntime",
             *(w for name in entry.inputs for w in ("--shapes", f"{name}:{shape}")),
             *(["--budget", str(budget)] if budget else [])]
    with tempfile.TemporaryDirectory() as cache:
        start = time.perf_counter()
        subprocess.run(["env", f"INGOT_CACHE={cache}", sys.executable, "-c", "from ingot.cli import main; main()",
                        *words], check=True, capture_output=True)
        return time.perf_counter() - start


def main() -> None:
    """Build both, time them in turns, print and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="+", choices=list(ZOO))
    parser.add_argument("--budget", type=float, default=10.0)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--seconds", type=float, default=6.0)
    parser.add_argument("--folder", default=str(Path(tempfile.gettempdir()) / "ingot-zoo"), help="where the models lie")
    parser.add_argument("--out", default="")
    arguments = parser.parse_args()
    rows: list[dict[str, Any]] = []
    for name in arguments.models:
        path = Path(arguments.folder) / f"{name}.onnx"
        if not path.exists():
            ZOO[name].export(path)
        with tempfile.TemporaryDirectory() as folder:
            feeds, calls, seconds = ZOO[name].feeds(1), {}, {}
            for kind, budget in (("short", arguments.budget), ("full", 0.0)):
                file = Path(folder) / f"{kind}.ingot"
                seconds[kind] = build(path, file, arguments.threads, budget)
                session = ingot.Session(ingot.load(file, threads=arguments.threads), arguments.threads)
                calls[kind] = partial(session.run, feeds)
            blocks = alternate_blocks(calls, arguments.seconds)
        speed, low, high = ratio_interval(blocks["full"], blocks["short"])
        rows.append({"model": name, "budget": arguments.budget, "share": speed, "low": low, "high": high,
                     "build_short": seconds["short"], "build_full": seconds["full"],
                     **{f"{k}_ms": float(np.median(np.concatenate(b))) * 1e3 for k, b in blocks.items()},
                     **{f"{k}_least_ms": float(min(map(min, b))) * 1e3 for k, b in blocks.items()}})
        print(rows[-1], flush=True)
    head = (f"Batch 1, {arguments.threads} threads, {cpu_name()}. Speed after {arguments.budget:g} s of tuning, as a "
            "share of the speed after all of it (95 % interval), in turns; builds from empty caches, verified.")
    lines = [head, "", "| model | share of the speed | short ms (least) | full ms (least) | build s, short | full |",
             "|---|---|---|---|---|---|"]
    lines += [f"| {r['model']} | {r['share']:.0%} [{r['low']:.0%}, {r['high']:.0%}] | {r['short_ms']:.2f} "
              f"({r['short_least_ms']:.2f}) | {r['full_ms']:.2f} ({r['full_least_ms']:.2f}) | {r['build_short']:.1f} | "
              f"{r['build_full']:.1f} |" for r in rows]
    print("\n".join(lines))
    if arguments.out:
        Path(arguments.out).with_suffix(".md").write_text("\n".join(lines) + "\n")
        Path(arguments.out).with_suffix(".json").write_text(json.dumps({"cpu": cpu_name(), "rows": rows}, indent=1)
                                                            + "\n")


if __name__ == "__main__":
    main()
