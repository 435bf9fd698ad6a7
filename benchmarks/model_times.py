"""The zoo's engines beside ONNX Runtime at batch 1: the same threads, inputs and precision, in alternating blocks.

    python -m benchmarks.model_times --folder FOLDER [NAME...]

FOLDER is what benchmarks.models left there. Times go into the rows of benchmarks/results/models.json. No framework is
loaded here: nothing but the two runtimes has threads.
"""
from __future__ import annotations

import argparse
import gc
import json
import time
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

import ingot
from ingot.bench import alternate_blocks, onnxruntime_peer, ratio_interval

RESULTS = Path(__file__).parent / "results" / "models.json"


def times(name: str, folder: Path, threads: int, seconds: float) -> dict[str, Any]:
    """Medians in seconds, their ratio with its 95 % interval, and how far the outputs lie apart."""
    with np.load(folder / f"{name}.npz") as file:
        feeds = dict(file)
    session = ingot.Session(ingot.load(folder / f"{name}.ingot", strict=True, threads=threads), threads)
    peer = onnxruntime_peer(str(folder / f"{name}.onnx"), threads)
    found = {k: np.array(v) for k, v in session.run(feeds).items()}
    other = peer.run(feeds)
    apart = max((float(np.abs(found[k].astype(np.float64) - other[k]).max() / max(1e-30, np.abs(other[k]).max()))
                 if found[k].shape == other[k].shape else float("inf")
                 for k in other if np.asarray(other[k]).dtype.kind == "f" and other[k].size), default=0.0)
    calls = {"ingot": partial(session.run, feeds), "onnxruntime": partial(peer.call, feeds)}
    blocks = alternate_blocks(calls, seconds, block=0.12, rounds=5)
    ratio = ratio_interval(blocks["onnxruntime"], blocks["ingot"])
    medians = {k: float(np.median([s for b in taken for s in b])) for k, taken in blocks.items()}
    return {"ingot_seconds": medians["ingot"], "onnxruntime_seconds": medians["onnxruntime"], "ratio": ratio[0],
            "ratio_low": ratio[1], "ratio_high": ratio[2], "apart": apart}


def main() -> None:
    """Time what was named, or every row that has no times."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", help="default: every row without times")
    parser.add_argument("--folder", type=Path, required=True)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--seconds", type=float, default=1.0, help="least seconds each; five turns in any case")
    parser.add_argument("--for", dest="limit", type=float, default=1e9, help="begin no further model after SECONDS")
    options = parser.parse_args()
    report = json.loads(RESULTS.read_text())
    begun = time.perf_counter()
    for row in report["models"]:
        wanted = row["name"] in options.names if options.names else "ratio" not in row
        if row["verdict"] != "right" or not wanted or time.perf_counter() - begun > options.limit:
            continue
        row.update(times(row["name"], options.folder, options.threads, options.seconds))
        print(f"{row['name']:32} {row['ingot_seconds'] * 1e6:10.1f} us  {row['onnxruntime_seconds'] * 1e6:10.1f} us  "
              f"{row['ratio']:.2f} [{row['ratio_low']:.2f}, {row['ratio_high']:.2f}]  apart {row['apart']:.1e}",
              flush=True)
        RESULTS.write_text(json.dumps(report, indent=1) + "\n")
        gc.collect()


if __name__ == "__main__":
    main()
