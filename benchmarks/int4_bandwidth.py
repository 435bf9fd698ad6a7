"""Products of few rows with 4- and 8-bit weights, beside what memory can deliver.

    python -m benchmarks.int4_bandwidth --out benchmarks/results/NAME

One product whose weight is several times the last cache, so that every run reads it from memory; bytes are all that the
kernel reads of it: integers, scales and offsets. The limit is a loop that only reads, measured in the same run.
"""
from __future__ import annotations

import argparse
import json
from datetime import date
from pathlib import Path

import numpy as np

import ingot
from ingot.bench import measure
from ingot.bench.limits import read_gbs
from ingot.compiler.build import build_with_report
from ingot.graph import F32, GraphBuilder, TensorType
from ingot.graph.types import DTYPES
from ingot.ops import infer
from ingot.runtime.host import host_target

DEPTH, COLUMNS = 4096, 24576


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--out", type=Path)
    given = parser.parse_args()
    rng = np.random.default_rng(0)
    rows = []
    for bits, group, batch in ((4, 128, 1), (4, 32, 1), (4, 128, 4), (8, 128, 1)):
        build = GraphBuilder(infer)
        build.input("x", TensorType(F32, (batch, DEPTH)))
        kind = DTYPES["u4" if bits == 4 else "u8"].numpy
        build.constant("w", rng.integers(0, 2 ** bits, (DEPTH, COLUMNS)).astype(kind))
        build.constant("s", rng.uniform(0.001, 0.002, (DEPTH // group, COLUMNS)).astype(np.float32))
        build.constant("z", np.full((DEPTH // group, COLUMNS), 2 ** (bits - 1)).astype(kind))
        y = build.node("MatMulGroups", "x", "w", "s", "z", block_size=group)
        options = ingot.BuildOptions(threads=given.threads, verify=False, budget=12)
        made = build_with_report(build.finish(y), None, options)
        nbytes = sum(a.nbytes for a in made.engine.variants[0].packed.values())
        session = ingot.Session(made.engine, given.threads)
        feeds = {"x": rng.standard_normal((batch, DEPTH)).astype(np.float32)}
        before = read_gbs(given.threads, 256 << 20)
        seconds = float(np.median(measure(lambda s=session, f=feeds: s.run(f), 1.5)))
        limit = max(before, read_gbs(given.threads, 256 << 20))
        rows.append({"bits": bits, "group": group, "rows": batch, "seconds": seconds, "gbs": nbytes / seconds / 1e9,
                     "limit": limit, "share": nbytes / seconds / 1e9 / limit})
        print(rows[-1], [c.point for c in made.tuning.choices.values()], flush=True)
        del made, session
    if given.out:
        told = f"{host_target().device}, {given.threads} threads, {date.today()}; weight {DEPTH} x {COLUMNS}"
        given.out.with_suffix(".json").write_text(json.dumps({"machine": told, "rows": rows}, indent=1) + "\n")
        lines = ["# Products with short weights beside memory's speed", "", told + ".", "",
                 "| bits | group | rows | ms | GB/s | a loop that only reads, GB/s | share |", "|" + "---:|" * 7]
        lines += [f"| {r['bits']} | {r['group']} | {r['rows']} | {r['seconds'] * 1e3:.2f} | {r['gbs']:.1f} | "
                  f"{r['limit']:.1f} | {r['share']:.0%} |" for r in rows]
        given.out.with_suffix(".md").write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
