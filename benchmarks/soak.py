"""Two processes, eight threads each, running sessions of one engine for minutes: every result right, memory flat.

    python -m benchmarks.soak model.ingot --seconds 300

Each thread draws one of a few prepared inputs (of several batch sizes where an axis is dynamic), runs it on one of
the process's sessions, and compares the result with the one a session alone gave at the start: to the bit when a run
takes as many threads, else within a few roundings. Memory is each process's resident set after a warm-up and at the
end. Prints a table, and JSON with --json; ends with 1 when a result was wrong or memory grew.
"""
from __future__ import annotations

import argparse
import json
import multiprocessing
import sys
import threading
import time
from multiprocessing.connection import Connection

import numpy as np

import ingot
from ingot.engine import Engine
from ingot.runtime.session import Session

GROWTH = 0.02       # of the resident set that may come and go


def resident() -> int:
    """Bytes of this process in memory."""
    with open("/proc/self/statm", encoding="ascii") as file:
        return int(file.read().split()[1]) * 4096


def sample_feeds(engine: Engine, seed: int) -> dict[str, np.ndarray]:
    """Inputs for one set of sizes within the engine's profile."""
    rng = np.random.default_rng(seed)
    graph = engine.graph
    sizes = {s.name: int(rng.integers(s.min, min(s.max, s.opt * 2) + 1)) for s in graph.symbols.values()}
    feeds: dict[str, np.ndarray] = {}
    for name in graph.inputs:
        type_ = graph.types[name].at(sizes)
        if type_.dtype.kind == "float":
            feeds[name] = rng.standard_normal(type_.shape).astype(type_.dtype.numpy)
        elif "mask" in name or type_.dtype.kind == "bool":
            feeds[name] = np.ones(type_.shape, type_.dtype.numpy)
        else:
            feeds[name] = rng.integers(0, 2, type_.shape).astype(type_.dtype.numpy)
    return feeds


def same(found: dict[str, np.ndarray], wanted: dict[str, np.ndarray]) -> bool:
    """Equal to the bit, or as near as another number of threads may bring it."""
    return all(np.array_equal(found[k], wanted[k])
               or np.allclose(found[k], wanted[k], 1e-4, 1e-4 * float(np.abs(wanted[k]).max(initial=1e-30)))
               for k in wanted)


def soak(path: str, seconds: float, threads: int, sessions: int, number: int, pipe: Connection) -> None:
    """One process of the soak: sends its counts through the pipe."""
    engine = ingot.load(path)
    shared = [Session(engine) for _ in range(sessions)]
    cases = [sample_feeds(engine, 100 * number + k) for k in range(4)]
    wanted = [shared[0].run(feeds) for feeds in cases]
    counts, wrong, exact = [0] * threads, [0] * threads, [0] * threads
    until = time.monotonic() + seconds

    def call(who: int) -> None:
        rng = np.random.default_rng(1000 * number + who)
        while time.monotonic() < until:
            k = int(rng.integers(len(cases)))
            found = shared[who % sessions].run(cases[k])
            counts[who] += 1
            wrong[who] += not same(found, wanted[k])
            exact[who] += all(np.array_equal(found[name], wanted[k][name]) for name in found)

    callers = [threading.Thread(target=call, args=(who,)) for who in range(threads)]
    for caller in callers:
        caller.start()
    time.sleep(min(10.0, seconds / 4))
    before = resident()
    samples = [before]
    while any(c.is_alive() for c in callers):
        time.sleep(min(5.0, seconds / 20))
        samples.append(resident())
    for caller in callers:
        caller.join()
    pipe.send({"process": number, "runs": sum(counts), "wrong": sum(wrong), "to the bit": sum(exact),
               "least runs of a thread": min(counts), "resident before": before, "resident after": samples[-1],
               "resident most": max(samples)})


def main() -> int:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("engine")
    parser.add_argument("--seconds", type=float, default=300)
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--threads", type=int, default=8)
    parser.add_argument("--sessions", type=int, default=8, help="sessions of each process; threads share them")
    parser.add_argument("--json", action="store_true")
    asked = parser.parse_args()
    context = multiprocessing.get_context("spawn")
    workers = []
    for number in range(asked.processes):
        here, there = context.Pipe(duplex=False)
        worker = context.Process(target=soak, args=(asked.engine, asked.seconds, asked.threads, asked.sessions, number,
                                                    there))
        worker.start()
        there.close()
        workers.append((worker, here))
    rows = []
    for worker, pipe in workers:
        try:
            rows.append(pipe.recv())
        except EOFError:
            rows.append({"process": len(rows), "runs": 0, "wrong": 1})
        worker.join()
    flat = all(r.get("resident after", 0) <= r.get("resident before", 0) * (1 + GROWTH) + (8 << 20) for r in rows)
    right = all(r["runs"] and not r["wrong"] for r in rows) and all(w.exitcode == 0 for w, _ in workers)
    if asked.json:
        print(json.dumps({"engine": asked.engine, "seconds": asked.seconds, "threads": asked.threads, "right": right,
                          "flat": flat, "processes": rows}, indent=1))
    else:
        names = list(rows[0])
        print("  ".join(names))
        for row in rows:
            print("  ".join(f"{row.get(n, ''):>{len(n)}}" for n in names))
        print(f"every result right: {right}; memory flat: {flat}")
    return 0 if right and flat else 1


if __name__ == "__main__":
    sys.exit(main())
