"""What a server takes from an engine's throughput: one mix of batches, in a bare loop and through the server.

    python -m benchmarks.serving_loss --engine minilm.ingot --out benchmarks/results/serving-loss.json

Each request is one batch of the mix, which the server passes on as it is, so that both run the very same shapes with
the same threads; `--clients` requests are under way over gRPC, from this machine. Rounds alternate.
"""
from __future__ import annotations

import argparse
import asyncio
import json
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

import ingot
from benchmarks.serving_machine import machine
from benchmarks.serving_rates import LONGEST, rows_of, sentences
from ingot.serve.load import Loader, request_bytes
from tests.serve_running import serving

HERE = Path(__file__).parent
ROWS = (1, 2, 4, 8, 16)


def mix(rows: list[list[int]], batches: int) -> list[dict[str, np.ndarray]]:
    """Batches of sentences as they come, each padded to its longest; their sizes take turns."""
    found, at = [], 0
    for i in range(batches):
        count = ROWS[i % len(ROWS)]
        taken = [rows[(at + k) % len(rows)] for k in range(count)]
        at += count
        length = min(LONGEST, max(8, *(-(-len(r) // 16) * 16 for r in taken)))
        ids = np.zeros((count, length), np.int64)
        mask = np.zeros_like(ids)
        for k, row in enumerate(taken):
            ids[k, :len(row)], mask[k, :len(row)] = row[:length], 1
        found.append({"input_ids": ids, "attention_mask": mask})
    return found


def main() -> None:
    """Measure, and write."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--engine", type=Path, required=True)
    parser.add_argument("--clients", type=int, default=3)
    parser.add_argument("--batches", type=int, default=100)
    parser.add_argument("--rounds", type=int, default=4)
    parser.add_argument("--seconds", type=float, default=5)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--out", type=Path)
    told = parser.parse_args()
    batches = mix(rows_of(sentences(HERE.parent / "docs")), told.batches)
    each = sum(len(b["input_ids"]) for b in batches) / len(batches)
    messages = [request_bytes("engine", {k: ("INT64", v) for k, v in b.items()}) for b in batches]
    session = ingot.Session(ingot.load(told.engine, threads=told.threads), told.threads)
    bare: list[float] = []
    served: list[float] = []
    with tempfile.TemporaryDirectory() as text:
        folder = Path(text) / "engine"
        folder.mkdir()
        (folder / "model.ingot").symlink_to(told.engine.absolute())
        (folder / "config.yaml").write_text(f"batching: none\nthreads: {told.threads}\n")
        with serving(Path(text)) as server:
            asyncio.run(Loader(server.grpc, messages).closed_loop(told.clients, 2))     # every shape is bound
            for feeds in batches:
                session.run(feeds)
            for _ in range(told.rounds):
                count, begin = 0, time.perf_counter()
                while time.perf_counter() < begin + told.seconds:
                    session.run(batches[count % len(batches)])
                    count += 1
                bare.append(count / (time.perf_counter() - begin))
                outcome = asyncio.run(Loader(server.grpc, messages).closed_loop(told.clients, told.seconds))
                if outcome.errors:
                    raise SystemExit(f"requests were refused: {outcome.errors}")
                served.append(outcome.rate)
    report: dict[str, Any] = {
        **machine(), "engine": told.engine.name, "engine_threads": told.threads, "clients": told.clients,
        "batches": len(batches), "rows_of_a_batch": list(ROWS), "seconds": told.seconds,
        "bare_sentences_per_second": [round(r * each, 1) for r in bare],
        "served_sentences_per_second": [round(r * each, 1) for r in served],
        "served over bare": round(float(np.median(served) / np.median(bare)), 4)}
    text = json.dumps(report, indent=1)
    print(text)
    if told.out:
        told.out.write_text(text + "\n")


if __name__ == "__main__":
    main()
