"""Engines on Ray Serve: a local cluster of two nodes; two replicas beside one; a replica killed under load.

    python -m benchmarks.serving_ray --engine model.ingot --out benchmarks/results/serving-ray.json

Requests come through the deployment's handle, at the largest shape the engine takes (`--smallest`: the smallest), so
that the work is in the replicas. Beside it: what one and two processes of one thread come to without Ray.
"""
from __future__ import annotations

import argparse
import asyncio
import json
import multiprocessing
import os
import signal
import time
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import ray
from ray import serve
from ray.cluster_utils import Cluster

from benchmarks.serving_machine import machine
from ingot.compiler.build import load
from ingot.runtime.session import Session
from ingot.serve.ray import ask, deployment
from ingot.verify import random_feeds


async def answered(handle: Any, feeds: dict[str, np.ndarray], wanted: dict[str, np.ndarray], seconds: float,
                   clients: int = 6) -> dict[str, int]:
    """So many clients, each asking when its last was answered; what became of the requests."""
    found = {"right": 0, "wrong": 0, "failed": 0}
    until = time.perf_counter() + seconds

    async def client() -> None:
        while time.perf_counter() < until:
            try:
                outputs = await ask(handle, feeds)
                good = all(np.allclose(outputs[k], v, atol=1e-4, rtol=1e-4) for k, v in wanted.items())
                found["right" if good else "wrong"] += 1
            except ray.exceptions.RayError:
                found["failed"] += 1
    await asyncio.gather(*(client() for _ in range(clients)))
    return found


def bare(path: Path, feeds: dict[str, np.ndarray], seconds: float) -> float:
    """Runs per second of one process with one thread."""
    session = Session(load(path, threads=1), 1)
    session.run(dict(feeds))
    count, begin = 0, time.perf_counter()
    while time.perf_counter() < begin + seconds:
        session.run(dict(feeds))
        count += 1
    return count / (time.perf_counter() - begin)


def bare_rates(path: Path, feeds: dict[str, np.ndarray], seconds: float) -> list[float]:
    """Runs per second of one such process, and of two at once."""
    found = []
    for count in (1, 2):
        with ProcessPoolExecutor(count, multiprocessing.get_context("spawn")) as pool:
            found.append(sum(pool.map(bare, [path] * count, [feeds] * count, [seconds] * count)))
    return found


def replicas() -> list[int]:
    """Process ids of the replicas."""
    return [int(p.name) for p in Path("/proc").iterdir() if p.name.isdigit() and b"ray::ServeReplica" in _command(p)]


def _command(process: Path) -> bytes:
    try:
        return (process / "cmdline").read_bytes()
    except OSError:
        return b""


def main() -> None:
    """Measure, and write."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--engine", type=Path, required=True)
    parser.add_argument("--seconds", type=float, default=6)
    parser.add_argument("--smallest", action="store_true")
    parser.add_argument("--out", type=Path)
    told = parser.parse_args()
    engine = load(told.engine, threads=1)
    sizes = {s.name: s.min if told.smallest else s.max for s in engine.graph.symbols.values()}
    feeds = random_feeds(engine.graph, sizes, 0)
    one, two = bare_rates(told.engine, feeds, told.seconds / 2)
    wanted = {k: v.copy() for k, v in Session(engine, 1).run(dict(feeds)).items()}
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1})
    cluster.add_node(num_cpus=1)
    ray.init(address=cluster.address, logging_level="error")
    report: dict[str, Any] = {"engine": told.engine.name, "nodes": len(ray.nodes()), "sizes": sizes,
                              "threads of a replica": 1, "without Ray, per second": [round(one, 3), round(two, 3)],
                              "without Ray, two over one": two / one}
    for count in (1, 2):
        handle = serve.run(deployment(told.engine.resolve(), name="engine", threads=1, replicas=(count, count)),
                           name="engine", route_prefix="/engine")
        asyncio.run(answered(handle, feeds, wanted, 1))
        found = asyncio.run(answered(handle, feeds, wanted, told.seconds))
        report[f"{count} replicas"] = {**found, "per_second": found["right"] / told.seconds}
    report["two over one"] = report["2 replicas"]["per_second"] / report["1 replicas"]["per_second"]

    async def killed() -> dict[str, int]:
        load_ = asyncio.ensure_future(answered(handle, feeds, wanted, 12))
        await asyncio.sleep(2)
        os.kill(replicas()[0], signal.SIGKILL)
        return await load_

    report["a replica killed under load"] = asyncio.run(killed())
    text = json.dumps({**machine(), "ray": ray.__version__, **report}, indent=1)
    print(text)
    if told.out:
        told.out.write_text(text + "\n")
    serve.shutdown()
    ray.shutdown()
    cluster.shutdown()


if __name__ == "__main__":
    main()
