"""int8 and fp8 beside f16 on a GPU: engines of one model in turns in one run, kernels checked one by one, accuracy.

    python -m benchmarks.gpu_numbers --out benchmarks/results/h200-int8 --cells resnet18:8:int8,vit_b16:32:fp8

Per cell two engines are built in a process of their own (with the Triton of `--triton`, as `gpu_peers` does): f16, and
the precision named, calibrated on seeded samples other than those it is measured on. There every kernel of short
numbers is run on values that use its types and held against the reference: integers in f32 arithmetic, bit by bit; fp8
against f64. Then both engines replay as CUDA graphs on device tensors in alternating blocks, beside eager PyTorch in
f32 where the cell is named in `gpu_peers.WIDE`. Accuracy is the cosine to PyTorch in f32, and the share of items with
the same largest logit, on fresh samples. Networks have random weights: what is shown is what short numbers lose.
Writes OUT.json and OUT.md after each cell.
"""
from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.gpu_peers import WIDE, apart, blocks, torch_contender
from benchmarks.zoo import ZOO, export
from ingot.compiler.build import build_with_report
from ingot.compiler.gpu import short_feeds
from ingot.compiler.options import BuildOptions
from ingot.engine import Engine, read_engine, write_engine
from ingot.kernels import Site
from ingot.kernels.cuda import CudaKernel
from ingot.kernels.reference import run_site, run_wide
from ingot.lower import lower
from ingot.passes import Precision, finished, simplified
from ingot.runtime.cuda.bench import CudaDevice
from ingot.runtime.cuda.driver import cuda_driver
from ingot.runtime.cuda.open import open_cuda
from ingot.tune import Tuning
from ingot.tune.choice import tactic_named
from ingot.tune.sample import opt_sizes, sample_inputs, wide_tolerance, widened

SUMS = frozenset({"MatMulInteger", "ConvInteger", "ShortMatMul"})
SAMPLES = 64            # to calibrate on, at least
FRESH = 1000            # the seed of the samples that accuracy is measured on


def checked(engine: Engine, tuning: Tuning) -> list[dict[str, object]]:
    """Each distinct kernel that sums short numbers, run on the GPU beside the reference."""
    device, target, told = CudaDevice(cuda_driver()), engine.variants[0].target, engine.variants[0].report
    if target is None:
        return []
    precision = Precision("f16", frozenset(map(str, told.get("kept", ()))), outside=True)      # type: ignore[call-overload]
    program = lower(finished(simplified(engine.graph, target), target, precision=precision), target)
    found: list[dict[str, object]] = []
    seen = set()
    for launch in program.launches:
        site, kernel = launch.site, tuning.kernels.get(launch.site.key)
        if site.op not in SUMS or site.key in seen or not isinstance(kernel, CudaKernel):
            continue
        seen.add(site.key)
        choice, sizes = tuning.choices[site.key], opt_sizes(site)
        constants = {i: program.constants[v] for i, v in enumerate(launch.reads) if v in program.constants}
        given = sample_inputs(site, sizes, constants)
        packed = tactic_named(choice.tactic, target).pack(site, choice.params, target, constants)
        made = device.stand(site).outputs(kernel, given, packed, sizes, 1, 0xFF)[0]
        found.append({"site": str(site), "kernel": choice.point, **compared(site, given, made, sizes)})
    return found


def compared(site: Site, given: list[np.ndarray], made: np.ndarray, sizes: Mapping[str, int]) -> dict[str, object]:
    """How a kernel's result lies to the reference: elements that differ, the largest difference over the scale."""
    whole = site.op != "ShortMatMul"
    wanted = (run_site(site, given, sizes) if whole else run_wide(widened(site), given, sizes))[0]
    a, b = made.astype(np.float64), wanted.astype(np.float64)
    told: dict[str, object] = {"elements": int(a.size), "differ": int((a != b).sum()),
                               "apart": float(np.abs(a - b).max() / max(np.abs(b).max(), 1e-30)),
                               "out": str(site.output.dtype)}
    if not whole:
        told["allowed"] = wide_tolerance(site, sizes)
    return told


def built(cell: tuple[str, int, str], arguments: argparse.Namespace, folder: Path) -> None:
    """In a process of its own: the engine in f16 and the one asked for, and what their builds tell."""
    name, batch, precision = cell
    path, entry = export(name, folder), ZOO[name]
    feeds = entry.feeds(batch)
    told: dict[str, Any] = {"triton": version("triton"), "cores": len(os.sched_getaffinity(0))}
    for kind in ("f16", precision):
        options = BuildOptions(target="cuda", outside=True, points=arguments.points, precision=kind, verify=False,
                               method=arguments.method)
        data = [entry.feeds(batch, 1 + k) for k in range(max(1, -(-SAMPLES // batch)))] if kind != "f16" else None
        begin = time.perf_counter()
        made = build_with_report(str(path), {n: tuple(a.shape) for n, a in feeds.items()}, options, calibration=data)
        told[kind] = {"seconds": time.perf_counter() - begin, "stages": dict(made.seconds), "raced": made.tuning.raced,
                      "cached": made.tuning.cached}
        print(name, batch, kind, told[kind], flush=True)
        write_engine(made.engine, folder / f"{name}-{batch}-{kind}.ingot")
    begin = time.perf_counter()
    told["plan"] = made.engine.report.get("precision", {})
    told["kernels"] = checked(made.engine, made.tuning)
    told["check_seconds"] = time.perf_counter() - begin
    (folder / f"{name}-{batch}-{precision}-build.json").write_text(json.dumps(told))


def measured(cell: tuple[str, int, str], arguments: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """One cell: times in turns, accuracy, and what the builds told."""
    name, batch, precision = cell
    first = f"sys.path.insert(0, {str(arguments.triton)!r}); " if arguments.triton else ""
    subprocess.run([sys.executable, "-c", f"import sys; {first}from benchmarks.gpu_numbers import main; main()",
                    "--build", "--cells", ":".join(map(str, cell)), "--folder", str(folder), "--points",
                    str(arguments.points), "--method", arguments.method], check=True)
    found: dict[str, Any] = {"model": name, "batch": batch, "precision": precision,
                             **json.loads((folder / f"{name}-{batch}-{precision}-build.json").read_text())}
    entry = ZOO[name]
    contenders: dict[str, Any] = {}
    fresh = entry.feeds(batch, FRESH)
    with torch.inference_mode():
        wide = entry.module().cuda()
        wanted = wide(*(torch.from_numpy(a).cuda() for a in fresh.values()))
        wanted = [w.float() for w in (wanted if isinstance(wanted, tuple) else (wanted,))]
        del wide
    for kind in ("f16", precision):
        session = open_cuda(read_engine(folder / f"{name}-{batch}-{kind}.ingot"))
        given = {k: torch.from_numpy(a).cuda() for k, a in short_feeds(session.variant, fresh).items()}
        call = session.bind(given)
        call()
        call.wait()
        made = [torch.from_dlpack(a).float() for a in call.outputs.values()]
        found.setdefault("accuracy", {})[kind] = accuracy(made, wanted)
        found.setdefault("slowest", {})[kind] = slowest(session, short_feeds(session.variant, fresh))
        contenders[kind] = call, torch.cuda.ExternalStream(int(session.queue))
    if (name, batch) in WIDE:
        replay, _ = torch_contender(entry, "f32 eager", {k: torch.from_numpy(a).cuda() for k, a in fresh.items()})
        contenders["f32 eager"] = replay, torch.cuda.Stream()
    times = blocks(contenders, arguments.blocks)
    found["median"] = {k: statistics.median(v) for k, v in times.items()}
    found["tenth"] = {k: sorted(v)[len(v) // 10] for k, v in times.items()}
    found["ninetieth"] = {k: sorted(v)[len(v) * 9 // 10] for k, v in times.items()}
    return found


def accuracy(made: list[torch.Tensor], wanted: list[torch.Tensor]) -> dict[str, float]:
    """Mean cosine and share of equal largest places, item by item over the first output; the largest difference."""
    a, b = made[0].reshape(len(made[0]), -1), wanted[0].reshape(len(wanted[0]), -1)
    cosine = torch.nn.functional.cosine_similarity(a.double(), b.double())
    same = (made[0].argmax(-1) == wanted[0].argmax(-1)).double().mean()
    return {"cosine": float(cosine.mean()), "least_cosine": float(cosine.min()), "top1": float(same),
            "apart": apart(made, wanted)}


def slowest(session: Any, feeds: dict[str, np.ndarray], count: int = 12) -> list[list[object]]:
    """The launches that take longest: what, with which kernel, seconds."""
    launches = session.variant.program.launches
    times = sorted(session.profile(feeds), key=lambda x: -x[1])[:count]
    return [[str(launches[i].site)[:200], session.variant.choices[launches[i].site.key].point, s] for i, s in times]


def row(c: dict[str, Any]) -> str:
    """One line of the table."""
    kind, t = c["precision"], c["median"]
    kernels, plan = c["kernels"], c["plan"]
    kept = sum(bool(s["kept"]) for s in plan.get("sites", ()))
    whole = [k for k in kernels if "allowed" not in k]
    exact = sum(k["differ"] == 0 for k in whole)
    floats = [k for k in kernels if "allowed" in k]
    right = sum(k["apart"] <= k["allowed"] for k in floats if k["out"] != "f8e4m3")
    rounded = [k["differ"] / k["elements"] for k in floats if k["out"] == "f8e4m3"]
    worst = [k["apart"] for k in floats if k["out"] != "f8e4m3"]
    told = f"{exact}/{len(whole)} equal to the bit" if whole else (
        f"{right}/{len(worst)} within, worst {max(worst, default=0):.1e}; to f8: {len(rounded)}, at most "
        f"{max(rounded, default=0):.2%} of elements rounded otherwise")
    eager = t.get("f32 eager")
    loss, base = c["accuracy"][kind], c["accuracy"]["f16"]
    return (f"| {c['model']} | {c['batch']} | {kind} | {t['f16'] * 1e3:.3f} | {t[kind] * 1e3:.3f} | "
            f"{t['f16'] / t[kind]:.2f} | {c['batch'] / t[kind]:,.0f} | {f'{eager / t[kind]:.1f}' if eager else '-'} | "
            f"{kept}/{len(plan.get('sites', ()))} | {loss['cosine']:.5f} | {loss['top1']:.3f} | {base['cosine']:.5f} | "
            f"{told} | {c['f16']['seconds']:.0f} + {c[kind]['seconds']:.0f} |")


def write(cells: list[dict[str, Any]], out: Path, head: dict[str, str]) -> None:
    """OUT.json and OUT.md."""
    out.parent.mkdir(parents=True, exist_ok=True)
    out.with_suffix(".json").write_text(json.dumps({**head, "cells": cells}, indent=1) + "\n")
    columns = ("model", "batch", "precision", "f16 ms", "ms", "f16 / it", "items/s", "f32 eager / it", "sites kept",
               "cosine", "same largest", "cosine of f16", "kernels against the reference", "build s")
    how = ("Engines in turns in one run, each one CUDA graph, tensors on the device, blocks of 10 replays, medians. "
           "Random weights; accuracy against PyTorch in f32 on samples that were not calibrated on.")
    made = f"Code {head['code']}, torch {head['torch']}, Triton of the builds {cells[-1]['triton'] if cells else '-'}."
    lines = [f"# Short numbers on a GPU: {head['device']}, {head['when']}", "", how, "", made, "",
             f"| {' | '.join(columns)} |", "|" + "---|" * len(columns), *map(row, cells), "", "## Slowest launches", ""]
    for c in cells:
        for site, point, seconds in c["slowest"][c["precision"]][:8]:
            lines.append(f"- {c['model']} {c['batch']} {c['precision']}: {seconds * 1e6:.1f} us {point} {site}")
    out.with_suffix(".md").write_text("\n".join(lines) + "\n")


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("h200-numbers"))
    parser.add_argument("--cells", default="resnet18:8:int8")
    parser.add_argument("--points", type=int, default=12)
    parser.add_argument("--blocks", type=int, default=50)
    parser.add_argument("--method", default="mse")
    parser.add_argument("--triton", default="")
    parser.add_argument("--code", default="")
    parser.add_argument("--build", action="store_true")
    parser.add_argument("--folder", type=Path, default=None)
    arguments = parser.parse_args()
    cells = [(n, int(b), p) for n, b, p in (c.split(":") for c in arguments.cells.split(","))]
    if arguments.build:
        built(cells[0], arguments, arguments.folder)
        return
    head = {"device": torch.cuda.get_device_name(), "when": datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
            "code": arguments.code, "torch": torch.__version__}
    found: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as folder:
        for cell in cells:
            try:
                found.append(measured(cell, arguments, arguments.folder or Path(folder)))
            except (subprocess.CalledProcessError, RuntimeError) as error:
                print("not measured:", cell, error, flush=True)
                continue
            write(found, arguments.out, head)
            print(row(found[-1]), flush=True)


if __name__ == "__main__":
    main()
