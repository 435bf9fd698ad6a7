"""Does anything leak on a GPU: many runs of one session, and many sessions of one engine, opened and closed.

    python -m benchmarks.gpu_soak ENGINE.ingot... --out benchmarks/results/h200-soak [--runs 10000] [--cycles 100]

Half of the runs take arrays on the host, half replay a bound run on device arrays. Device memory is what the driver
says is free, the process's own its resident size, both after a warm-up and again at the end. Each result of a host run
is held against the first, to the bit. Writes OUT.md and OUT.json.
"""
from __future__ import annotations

import argparse
import gc
import json
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np

from ingot.bench import memory_now
from ingot.compiler.gpu import short_feeds
from ingot.engine import read_engine
from ingot.runtime.cuda.driver import cuda_driver
from ingot.runtime.cuda.interop import DeviceArray
from ingot.runtime.cuda.memory import DeviceBlock
from ingot.runtime.cuda.open import open_cuda
from ingot.verify import random_feeds

WARM_RUNS, WARM_CYCLES = 200, 10


def used() -> int:
    """Bytes of device memory that are not free, of all processes."""
    free, total = cuda_driver()._check(cuda_driver().cu.cuMemGetInfo(), "the free memory")
    return int(total) - int(free)


def soaked(path: Path, runs: int, cycles: int) -> dict[str, Any]:
    """What an engine holds before and after."""
    driver, engine = cuda_driver(), read_engine(path)
    session = open_cuda(engine, trust=True)
    sizes = {s.name: s.opt for s in engine.graph.symbols.values()}
    feeds = short_feeds(session.variant, random_feeds(engine.graph, sizes, 0))
    first = {k: v.copy() for k, v in session.run(feeds).items()}
    blocks = {k: DeviceBlock(driver, a.nbytes) for k, a in feeds.items()}
    there = {}
    for name, array in feeds.items():
        dense = np.ascontiguousarray(array)
        driver.upload(blocks[name].address, dense.ctypes.data, dense.nbytes, driver.idle)
        driver.finish(driver.idle)
        there[name] = DeviceArray(driver, blocks[name].address, dense.shape, dense.dtype, driver.idle, blocks[name])
    call = session.bind(there)
    apart, begin = 0, time.perf_counter()
    held: list[tuple[int, int]] = []
    for number in range(WARM_RUNS + runs):
        if number in (WARM_RUNS, WARM_RUNS + runs - 1):
            gc.collect()
            held.append((used(), memory_now()))
        if number % 2:
            call()
            call.wait()
        else:
            found = session.run(feeds)
            apart += any(not np.array_equal(found[k], first[k], equal_nan=True) for k in first)
    told: dict[str, Any] = {"engine": path.name, "runs": runs, "apart": apart,
                            "run_seconds": time.perf_counter() - begin,
                            "device_growth": held[1][0] - held[0][0], "host_growth": held[1][1] - held[0][1],
                            "device_memory": session.device_memory}
    del call, session, there, blocks
    gc.collect()
    held, begin = [], time.perf_counter()
    for number in range(WARM_CYCLES + cycles):
        if number == WARM_CYCLES:
            held.append((used(), memory_now()))
        again = open_cuda(engine, trust=True)
        found = again.run(feeds)
        told["apart"] += any(not np.array_equal(found[k], first[k], equal_nan=True) for k in first)
        del again
        gc.collect()
    held.append((used(), memory_now()))
    return {**told, "cycles": cycles, "cycle_seconds": time.perf_counter() - begin,
            "cycles_device_growth": held[1][0] - held[0][0], "cycles_host_growth": held[1][1] - held[0][1]}


def table(report: dict[str, Any]) -> str:
    """The report as Markdown."""
    head = ("engine", "runs", "device growth", "host growth", "load, run, unload", "device growth", "host growth",
            "results that differ")
    lines = [f"# Leaks on {report['device']}", "", (
        f"{report['date']}; code {report['code'] or 'unknown'}. Growth after {WARM_RUNS} runs and {WARM_CYCLES} cycles "
        "of warm-up; results compared to the bit."), "", f"| {' | '.join(head)} |", "|---" + "|---:" * 7 + "|"]
    lines += [f"| {r['engine']} | {r['runs']:,} | {r['device_growth']:,} B | {r['host_growth'] / 1e6:.2f} MB | "
              f"{r['cycles']} | {r['cycles_device_growth']:,} B | {r['cycles_host_growth'] / 1e6:.2f} MB | "
              f"{r['apart']} |"
              for r in report["results"]]
    return "\n".join(lines) + "\n"


def main() -> None:
    """Soak the engines named."""
    parser = argparse.ArgumentParser(description="Does anything leak on a GPU?")
    parser.add_argument("engines", type=Path, nargs="+")
    parser.add_argument("--runs", type=int, default=10_000)
    parser.add_argument("--cycles", type=int, default=100)
    parser.add_argument("--code", default="", help="the commit that is measured, for the report")
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/gpu-soak"))
    given = parser.parse_args()
    report = {"device": cuda_driver().facts.name, "date": datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
              "code": given.code, "results": [soaked(e, given.runs, given.cycles) for e in given.engines]}
    given.out.with_suffix(".json").write_text(json.dumps(report, indent=1) + "\n")
    given.out.with_suffix(".md").write_text(table(report))
    print(table(report))


if __name__ == "__main__":
    main()
