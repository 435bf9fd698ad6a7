"""Ingot on a GPU beside PyTorch: eager and compiled, each replayed as one CUDA graph, interleaved in one run.

    python -m benchmarks.gpu_peers --out benchmarks/results/h200 [--quick] [--models resnet50,bert_base] [--batch 1,8]

Every contender runs in fp16 on tensors that stay on the device, and is captured as one CUDA graph: Ingot's engine,
eager PyTorch (channels last, BatchNorm folded for convolutional networks), and torch.compile in max-autotune without
and with freezing. A block is ten replays in a row between two events; blocks of the contenders alternate; a figure is
the median of at least 50 blocks. Outputs are held against PyTorch in f32. Where a baseline that was told is faster than
all that were measured, the column "faster of both" takes it. Writes OUT.md and OUT.json, rewritten after every cell, so
that a run that is cut short leaves what it measured.

`--quick` leaves torch.compile out, which takes minutes per model, and puts the figures that the project was given for
it beside the measured ones, marked as not measured in this run; `--compile` names which of its two kinds are measured.
Engines are built in a process of their own, with the Triton in the folder `--triton` where one is named: PyTorch keeps
the one it came with. `--merge` puts reports of several runs together.
"""
from __future__ import annotations

import argparse
import gc
import json
import os
import re
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from benchmarks.report import geometric_mean
from benchmarks.zoo import ZOO, Bert, Entry, Residual, Vit, export
from ingot.compiler.build import build_with_report
from ingot.compiler.gpu import short_feeds
from ingot.compiler.options import BuildOptions
from ingot.engine import read_engine, write_engine
from ingot.runtime.cuda.driver import cuda_driver
from ingot.runtime.cuda.open import open_cuda

MODELS = ("resnet18", "resnet50", "mobilenetv2", "vit_b16", "bert_base")
BATCHES = (1, 8, 32, 128)
WANTED = {1: 1.5, 8: 1.4, 32: 1.25, 128: 1.15}      # geometric mean of the ratio over the best baseline
REPLAYS = 10
# the best baseline as it was told for one H200, in ms, by batch; not measured here
TOLD = {"resnet50": (0.383, 0.537, 1.26, 4.04), "bert_base": (0.394, 0.726, 1.78, 6.50),
        "vit_b16": (0.552, 1.03, 3.13, 12.5), "mobilenetv2": (0.246, 0.424, 1.25, 4.2),
        "resnet18": (0.179, 0.269, 0.558, 1.62)}
KINDS = {"both": ("compile", "compile freezing"), "plain": ("compile",), "freezing": ("compile freezing",), "none": (),
         "trees": ("compile trees",)}
WIDE = {("resnet18", 8)}        # cells that are also measured against PyTorch as it comes: f32, no graph
Replay = Callable[[], object]


class LeanBert(nn.Module):
    """BERT's encoder with the mask as it enters attention: Hugging Face's own builds it on the host while capturing."""

    def __init__(self, whole: Bert) -> None:
        super().__init__()
        self.model = whole.model

    def forward(self, input_ids: Tensor, attention_mask: Tensor, token_type_ids: Tensor) -> tuple[Tensor, Tensor]:
        hidden = self.model.embeddings(input_ids=input_ids, token_type_ids=token_type_ids)
        low = torch.finfo(hidden.dtype).min
        mask = (1 - attention_mask[:, None, None, :].to(hidden.dtype)) * low
        for layer in self.model.encoder.layer:
            made = layer(hidden, mask)
            hidden = made[0] if isinstance(made, tuple) else made
        return hidden, self.model.pooler(hidden)


class Patches(nn.Module):
    """ViT's first layer as the product that it is: cuDNN's convolution of 16 x 16 patches in f16 takes far longer."""

    def __init__(self, convolution: nn.Conv2d) -> None:
        super().__init__()
        self.side = convolution.kernel_size[0]
        self.projection = convolution

    def forward(self, pixels: Tensor, *_: object, **__: object) -> Tensor:
        n, c, h, w = pixels.shape
        side = self.side
        cut = pixels.reshape(n, c, h // side, side, w // side, side).permute(0, 2, 4, 1, 3, 5)
        rows = cut.reshape(n, h // side * (w // side), c * side * side)
        return nn.functional.linear(rows, self.projection.weight.flatten(1), self.projection.bias)


class Captured:
    """A callable without arguments as one CUDA graph."""

    def __init__(self, call: Callable[[], Any], stream: torch.cuda.Stream) -> None:
        self.call = call            # the graph reads its weights where they lie
        with torch.cuda.stream(stream), torch.inference_mode():
            for _ in range(3):
                call()
            stream.synchronize()
            self.graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(self.graph, stream=stream):
                self.output = call()
            self.graph.replay()
            stream.synchronize()

    def __call__(self) -> None:
        self.graph.replay()


class Plain:
    """A callable without arguments, launch by launch."""

    def __init__(self, call: Callable[[], Any]) -> None:
        self.call = call

    def __call__(self) -> None:
        with torch.inference_mode():
            self.call()


def folded(module: nn.Module) -> nn.Module:
    """BatchNorm folded into the convolutions before it."""
    for name, child in list(module.named_children()):
        layers = list(child.children()) if isinstance(child, nn.Sequential) else []
        if len(layers) == 2 and isinstance(layers[0], nn.Conv2d) and isinstance(layers[1], nn.BatchNorm2d):
            made = nn.utils.fusion.fuse_conv_bn_eval(layers[0].eval(), layers[1].eval())
            setattr(module, name, made)
        else:
            folded(child)
    return module


class CudnnBlock(nn.Module):
    """A residual block of `zoo.Residual` in cuDNN's fused convolutions: bias, ReLU and the sum inside."""

    def __init__(self, block: Residual) -> None:
        super().__init__()
        self.convolutions = nn.ModuleList(m for m in block.branch if isinstance(m, nn.Conv2d))
        self.shortcut = block.shortcut

    def forward(self, x: Tensor) -> Tensor:
        inner = x
        for c in self.convolutions[:-1]:
            inner = torch.cudnn_convolution_relu(inner, c.weight, c.bias, c.stride, c.padding, c.dilation, c.groups)
        c = self.convolutions[-1]
        return torch.cudnn_convolution_add_relu(inner, c.weight, self.shortcut(x), 1.0, c.bias, c.stride, c.padding,
                                                c.dilation, c.groups)


class CudnnStem(nn.Module):
    """A convolution and its ReLU in one."""

    def __init__(self, convolution: nn.Conv2d) -> None:
        super().__init__()
        self.c = convolution

    def forward(self, x: Tensor) -> Tensor:
        c = self.c
        return torch.cudnn_convolution_relu(x, c.weight, c.bias, c.stride, c.padding, c.dilation, c.groups)


def fused(module: nn.Module) -> nn.Module:
    """A ResNet of the zoo in cuDNN's fused convolutions."""
    whole = folded(module)
    layers = list(whole.features)                       # type: ignore[arg-type]
    made: list[nn.Module] = [CudnnStem(layers[0]), *layers[2:]]     # type: ignore[arg-type]
    whole.features = nn.Sequential(*(CudnnBlock(x) if isinstance(x, Residual) else x for x in made))
    return whole


def torch_contender(entry: Entry, kind: str, feeds: dict[str, Tensor]) -> tuple[Replay, tuple[Tensor, ...]]:
    """A PyTorch contender as a graph, and its outputs."""
    module = entry.module()
    if isinstance(module, Bert):
        module = LeanBert(module)
    elif isinstance(module, Vit):
        embeddings = module.model.vit.embeddings
        embeddings.patch_embeddings = Patches(embeddings.patch_embeddings.projection)
    elif kind == "cudnn fused":
        module = fused(module)
    elif entry.inputs == ("input",) and kind == "eager":
        module = folded(module)
    if kind.startswith("f32"):      # as PyTorch comes: f32, its layout, its own switches
        module, given = entry.module().cuda().eval(), [g.float() for g in feeds.values()]
        with torch.inference_mode():
            made = module(*given)
            torch.cuda.synchronize()
        return (Captured(lambda: module(*given), torch.cuda.Stream()) if kind == "f32 eager graph"
                else Plain(lambda: module(*given))), (made,)
    module = module.half().cuda().eval()
    given = list(feeds.values())
    if given[0].dim() == 4 and not entry.name.startswith("vit"):
        module = module.to(memory_format=torch.channels_last)
        given = [g.to(memory_format=torch.channels_last) for g in given]
    call: Callable[..., Any] = module
    torch.cuda.synchronize()        # what is captured runs on another stream than what was uploaded
    if kind.startswith("compile"):
        torch._dynamo.reset()
        torch._inductor.config.freezing = kind.endswith("freezing")
        if kind.endswith("trees"):      # with torch.compile's own CUDA graphs, which copy the inputs
            call = torch.compile(module, mode="max-autotune")
            with torch.inference_mode():
                for _ in range(5):
                    made = call(*given)
                torch.cuda.synchronize()
                return Plain(lambda: call(*given)), tuple(o.clone() for o in (
                    made if isinstance(made, tuple) else (made,)))
        call = torch.compile(module, mode="max-autotune-no-cudagraphs")
    made = Captured(lambda: call(*given), torch.cuda.Stream())
    out = made.output if isinstance(made.output, tuple) else (made.output,)
    return made, out


def blocks(contenders: dict[str, tuple[Replay, Any]], count: int) -> dict[str, list[float]]:
    """Seconds per replay of every block, contenders alternating."""
    found: dict[str, list[float]] = {name: [] for name in contenders}
    for number in range(count + 3):
        for name, (replay, stream) in contenders.items():
            begin, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
            with torch.cuda.stream(stream):
                begin.record()
                for _ in range(REPLAYS):
                    replay()
                end.record()
            end.synchronize()
            if number >= 3:
                found[name].append(begin.elapsed_time(end) / 1e3 / REPLAYS)
    return found


def built(name: str, batch: int, arguments: argparse.Namespace, folder: Path) -> None:
    """In a process of its own: the engine and how its build went, as two files in the folder."""
    path, feeds = export(name, folder), ZOO[name].feeds(batch)
    options = BuildOptions(target="cuda", outside=True, points=arguments.points, budget=arguments.budget,
                           verify=arguments.verify)
    told: dict[str, Any] = {}
    begin = time.perf_counter()
    made = build_with_report(str(path), {n: tuple(a.shape) for n, a in feeds.items()}, options)
    told["build_seconds"] = time.perf_counter() - begin
    told["stages"], told["verdict"] = dict(made.seconds), str(made.engine.verdict.get("passed", "not verified"))
    told["raced"], told["cached"] = made.tuning.raced, made.tuning.cached
    told["triton"], told["cores"] = version("triton"), len(os.sched_getaffinity(0))
    write_engine(made.engine, folder / f"{name}-{batch}.ingot")
    (folder / f"{name}-{batch}-build.json").write_text(json.dumps(told))


def build_apart(name: str, batch: int, arguments: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """The engine built in a process with the Triton that was named; what that process says of it."""
    first = f"sys.path.insert(0, {str(arguments.triton)!r}); " if arguments.triton else ""
    words = [sys.executable, "-c", f"import sys; {first}from benchmarks.gpu_peers import main; main()",
             "--build", "--models", name, "--batch", str(batch), "--folder", str(folder), "--points",
             str(arguments.points), *(["--verify"] if arguments.verify else []),
             *(["--budget", str(arguments.budget)] if arguments.budget is not None else [])]
    subprocess.run(words, check=True)
    told: dict[str, Any] = json.loads((folder / f"{name}-{batch}-build.json").read_text())
    return told


def measured(name: str, batch: int, arguments: argparse.Namespace, folder: Path,
             keep: Callable[[dict[str, Any]], None]) -> dict[str, Any]:
    """One cell of the table: every contender's median and spread, errors, memory, times of build and load.

    `keep` is given the cell whenever another contender was measured, so that what takes too long loses no more than
    itself; all contenders there are run interleaved each time.
    """
    entry = ZOO[name]
    feeds = entry.feeds(batch)
    cell: dict[str, Any] = {"model": name, "batch": batch, **build_apart(name, batch, arguments, folder)}
    engine = read_engine(folder / f"{name}-{batch}.ingot")
    begin = time.perf_counter()
    cuda_driver()                       # the driver and its context, which every program on a GPU has to wait for
    cell["context_seconds"] = time.perf_counter() - begin
    begin = time.perf_counter()
    session = open_cuda(engine)
    cell["load_seconds"] = time.perf_counter() - begin
    cell["device_memory"] = session.device_memory
    cell["plain_seconds"] = session.variant.report.get("seconds_plain")
    cell["dependent"] = len(session.dependent)
    cell["launches"] = len(session.variant.program.launches)
    cell["host"] = [x.where for x in session.variant.program.launches if not x.native]
    given = {k: torch.from_numpy(a).cuda() for k, a in short_feeds(session.variant, feeds).items()}
    with torch.inference_mode():
        wide = entry.module().cuda()
        wanted = wide(*(torch.from_numpy(a).cuda() for a in feeds.values()))
        wanted = wanted if isinstance(wanted, tuple) else (wanted,)
        del wide
    call = session.bind(given)
    call()
    call.wait()
    ours = [torch.from_dlpack(a).float() for a in call.outputs.values()]
    cell["apart"] = {"ingot": apart(ours, wanted)}
    stream = torch.cuda.ExternalStream(int(session.queue))
    contenders: dict[str, tuple[Replay, Any]] = {"ingot": (call, stream)}
    cell["host_seconds"] = host_cost(call)
    cell["end_to_end_seconds"] = end_to_end(session, short_feeds(session.variant, feeds))
    cell["slowest"] = slowest(session, short_feeds(session.variant, feeds))
    kinds = ["eager", *(["cudnn fused"] if name.startswith("resnet") else []),
             *(["f32 eager", "f32 eager graph"] if (name, batch) in WIDE else [])]
    later = KINDS["none" if arguments.quick else arguments.compile]
    cell["peaks"], cell["peers_failed"] = {}, {}
    for number, kind in enumerate((*kinds, *later)):
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        begin = time.perf_counter()
        try:
            replay, out = torch_contender(entry, kind, given)
        except (RuntimeError, ValueError, TypeError, AttributeError) as error:
            cell["peers_failed"][kind] = f"{type(error).__name__}: {str(error)[:400]}"
            continue
        cell.setdefault("ready_seconds", {})[kind] = time.perf_counter() - begin
        cell["peaks"][kind] = torch.cuda.max_memory_allocated() - before
        cell["apart"][kind] = apart([o.float() for o in out], wanted)
        contenders[kind] = replay, torch.cuda.Stream()
        if number >= len(kinds) - 1:
            times = blocks(contenders, arguments.blocks)
            cell["median"] = {k: statistics.median(v) for k, v in times.items()}
            cell["tenth"] = {k: sorted(v)[len(v) // 10] for k, v in times.items()}
            cell["ninetieth"] = {k: sorted(v)[len(v) * 9 // 10] for k, v in times.items()}
            keep(cell)
    return cell


def apart(found: Sequence[Tensor], wanted: Sequence[Tensor]) -> float:
    """The largest difference relative to the largest value, over all outputs."""
    return max(float((a.float() - b.float()).abs().max() / b.float().abs().max())
               for a, b in zip(found, wanted, strict=True))


def host_cost(call: Any) -> float:
    """Seconds the host spends on one call with device tensors: median over calls while the device is idle."""
    found = []
    for _ in range(200):
        begin = time.perf_counter()
        call()
        found.append(time.perf_counter() - begin)
        call.wait()
    return statistics.median(found)


def end_to_end(session: Any, feeds: dict[str, np.ndarray]) -> float:
    """Seconds of one run from arrays on the host to arrays on the host."""
    out = session.run(feeds)
    found = []
    for _ in range(100):
        begin = time.perf_counter()
        session.run(feeds, out=out)
        found.append(time.perf_counter() - begin)
    return statistics.median(found)


def slowest(session: Any, feeds: dict[str, np.ndarray], count: int = 6) -> list[list[object]]:
    """The launches that take longest: where, tactic and point, seconds."""
    launches = session.variant.program.launches
    times = sorted(session.profile(feeds), key=lambda x: -x[1])[:count]
    return [[str(launches[i].site)[:120], session.variant.choices[launches[i].site.key].point, s] for i, s in times]


def baselines(cell: dict[str, Any]) -> dict[str, float]:
    """The measured times that count as peers'."""
    return {k: v for k, v in cell["median"].items() if k != "ingot" and not k.startswith("f32")}


def told(cell: dict[str, Any]) -> float | None:
    """The best baseline as it was told, in seconds."""
    row = TOLD.get(cell["model"])
    return row[BATCHES.index(cell["batch"])] / 1e3 if row and cell["batch"] in BATCHES else None


def reference(cell: dict[str, Any]) -> float:
    """The faster of the best measured peer and the best baseline as it was told, in seconds."""
    return min([*baselines(cell).values(), *([told(cell) or 0.0] if told(cell) else [])], default=float("nan"))


def table(report: dict[str, Any]) -> str:
    """The report as Markdown."""
    cells = [c for c in report["cells"] if "median" in c]
    kinds = list(dict.fromkeys(k for c in cells for k in c["median"]))
    head = ["model", "batch", *(f"{k} ms" for k in kinds), "best measured peer / ingot", "told best ms (not measured)",
            "told / ingot", "faster of both / ingot", "off f32", "host us", "end to end ms", "build s", "load ms",
            "memory MB (eager's peak)"]
    without = [c for c in cells if not any(k.startswith("compile") for k in c["median"])]
    compiled = ("torch.compile was not measured in this run. " if len(without) == len(cells) else
                f"torch.compile was not measured on {len(without)} of {len(cells)} cells. " if without else "")
    told_text = "The column *told* holds the best baseline figures the project was given; they were not measured here."
    lines = [f"# {report['device']}, {report['date']}", "", (
        f"fp16, one CUDA graph each, device tensors, blocks of {REPLAYS} replays, medians of {report['blocks']} "
        f"blocks, interleaved. {compiled}{told_text}")]
    lines += [f"Code: {report['code']}." if report.get("code") else ""]
    lines += ["", ", ".join(f"{k} {v}" for k, v in report["versions"].items()), "",
              "| " + " | ".join(head) + " |", "|" + "---|" * len(head)]
    for c in cells:
        ours, given = c["median"]["ingot"], told(c)
        best = min(baselines(c).values(), default=float("nan"))
        times = [f"{c['median'][k] * 1e3:.3f}" if k in c["median"] else "-" for k in kinds]
        row = [c["model"], str(c["batch"]), *times,
               f"{best / ours:.2f}", f"{given * 1e3:.3f}" if given else "-", f"{given / ours:.2f}" if given else "-",
               f"{reference(c) / ours:.2f}", f"{c['apart']['ingot']:.1e}", f"{c['host_seconds'] * 1e6:.1f}",
               f"{c['end_to_end_seconds'] * 1e3:.3f}", f"{c['build_seconds']:.0f}", f"{c['load_seconds'] * 1e3:.0f}",
               f"{c['device_memory'] / 1e6:.0f} ({c['peaks'].get('eager', 0) / 1e6:.0f})"]
        lines.append("| " + " | ".join(row) + " |")
    means = ("geometric mean, best measured peer / ingot", "told / ingot", "faster of both / ingot", "least of these",
             "wanted", "models")
    lines += ["", f"| batch | {' | '.join(means)} |", "|---|---|---|---|---|---|---|"]
    for batch in dict.fromkeys(c["batch"] for c in cells):
        here = [c for c in cells if c["batch"] == batch and baselines(c)]
        ratios = [min(baselines(c).values()) / c["median"]["ingot"] for c in here]
        given = [(told(c) or 0) / c["median"]["ingot"] for c in here if told(c)]
        both = [reference(c) / c["median"]["ingot"] for c in here]
        if ratios and given:
            lines.append(f"| {batch} | {geometric_mean(ratios):.2f} | {geometric_mean(given):.2f} | "
                         f"{geometric_mean(both):.2f} | {min(both):.2f} | {WANTED.get(batch, 0):.2f} | {len(here)} |")
    lines += ["", "## Slowest launches", ""]
    for c in cells:
        lines += [f"- {c['model']} batch {c['batch']} ({c['launches']} launches, {c['dependent']} dependent, "
                  f"{(c['plain_seconds'] or 0) * 1e3:.3f} ms without dependent launches): "
                  + "; ".join(f"{s * 1e6:.1f} us {point} {site}" for site, point, s in c["slowest"])]
    lines += [f"- failed: {f}" for f in report["failed"]]
    return "\n".join(lines) + "\n"


def merged(parts: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Reports of several runs as one: of a cell measured twice the later one that has more contenders."""
    cells: dict[tuple[str, int], dict[str, Any]] = {}
    for cell in (c for p in parts for c in p["cells"]):
        key = cell["model"], cell["batch"]
        if key not in cells or len(cell["median"]) >= len(cells[key]["median"]):
            cells[key] = cell
    order = sorted(cells, key=lambda k: (k[1], MODELS.index(k[0]) if k[0] in MODELS else len(MODELS)))
    dates = sorted({d for p in parts for d in re.findall(r"\d{4}-\d\d-\d\d \d\d:\d\d UTC", p["date"])})
    dates = dates or [parts[0]["date"]]
    date = dates[0] if len(dates) == 1 else f"{len(parts)} runs, {dates[0]} to {dates[-1]}"
    return {**parts[0], "date": date, "cells": [cells[k] for k in order],
            "code": ", ".join(dict.fromkeys(p["code"] for p in parts if p.get("code"))),
            "failed": [f for p in parts for f in p["failed"]]}


def written(report: dict[str, Any], out: Path) -> None:
    """OUT.json and OUT.md."""
    out.with_suffix(".json").write_text(json.dumps(report, indent=1, default=str) + "\n")
    out.with_suffix(".md").write_text(table(report))


def together(arguments: argparse.Namespace, folder: Path) -> None:
    """Each batch of each model in a process of its own, so that what one breaks the others keep; then one report."""
    begin, parts = time.perf_counter(), []
    cells = [tuple(c.split(":")) for c in arguments.cells.split(",")] if arguments.cells else [
        (name, batch, arguments.compile)
        for batch in arguments.batch.split(",") for name in arguments.models.split(",")]
    for name, batch, compiled in cells:
        left = arguments.seconds - (time.perf_counter() - begin)
        part = folder / f"{name}-{batch}"
        words = [sys.executable, "-m", "benchmarks.gpu_peers", "--alone", "--models", name, "--batch", batch,
                 "--out", str(part), "--folder", str(folder), "--blocks", str(arguments.blocks), "--points",
                 str(arguments.points), "--compile", compiled, "--code", arguments.code,
                 *(["--quick"] if arguments.quick else []), *(["--verify"] if arguments.verify else []),
                 *(["--triton", str(arguments.triton)] if arguments.triton else []),
                 *(["--budget", str(arguments.budget)] if arguments.budget is not None else [])]
        try:
            if left > 0:
                subprocess.run(words, timeout=left + 20, check=False)
        except subprocess.TimeoutExpired:
            print(f"{name} batch {batch}: no time was left", flush=True)
        if part.with_suffix(".json").exists():
            parts.append(json.loads(part.with_suffix(".json").read_text()))
            written(merged(parts), arguments.out)
        print(f"{time.perf_counter() - begin:.0f} s: {name} batch {batch}", flush=True)
    if parts:
        print(arguments.out.with_suffix(".md").read_text())


def main() -> None:
    parser = argparse.ArgumentParser(description="Ingot on a GPU beside PyTorch, interleaved in one run.")
    parser.add_argument("--models", default=",".join(MODELS))
    parser.add_argument("--batch", default=",".join(map(str, BATCHES)))
    parser.add_argument("--cells", default="", help="instead of these: MODEL:BATCH:KIND,... with a KIND of --compile")
    parser.add_argument("--alone", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--build", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--quick", action="store_true", help="without torch.compile")
    parser.add_argument("--compile", choices=tuple(KINDS), default="both", help="which torch.compile is measured")
    parser.add_argument("--triton", type=Path, default=None, help="the folder of the Triton that builds engines")
    parser.add_argument("--blocks", type=int, default=50)
    parser.add_argument("--points", type=int, default=16, help="points of each tactic's space that are raced")
    parser.add_argument("--budget", type=float, default=None, help="seconds of tuning per engine")
    parser.add_argument("--seconds", type=float, default=1e9, help="start no new cell after so many seconds")
    parser.add_argument("--verify", action="store_true", help="also verify every engine against the reference")
    parser.add_argument("--folder", type=Path, default=None, help="where models and engines are kept")
    parser.add_argument("--code", default="", help="the commit that is measured, for the report")
    parser.add_argument("--merge", nargs="*", type=Path, default=None, help="put these together, measure none")
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/gpu"))
    arguments = parser.parse_args()
    folder = arguments.folder or Path(tempfile.mkdtemp())
    folder.mkdir(parents=True, exist_ok=True)
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    if arguments.merge:
        written(merged([json.loads(f.read_text()) for f in arguments.merge]), arguments.out)
    elif arguments.build:
        built(arguments.models, int(arguments.batch), arguments, folder)
    elif arguments.alone:
        alone(arguments, folder)
    else:
        together(arguments, folder)


def alone(arguments: argparse.Namespace, folder: Path) -> None:
    """The cells asked for, in this process."""
    begin = time.perf_counter()
    report: dict[str, Any] = {
        "device": torch.cuda.get_device_name(), "date": datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
        "quick": arguments.quick, "blocks": arguments.blocks, "points": arguments.points, "code": arguments.code,
        "cells": [], "failed": [],
        "versions": {"torch": torch.__version__, "cuda": torch.version.cuda, "triton of PyTorch": version("triton"),
                     "cudnn": torch.backends.cudnn.version()}}
    torch.backends.cudnn.benchmark = True
    for batch in map(int, arguments.batch.split(",")):
        for name in arguments.models.split(","):
            done = tuple(report["cells"])

            def keep(cell: dict[str, Any], done: tuple[dict[str, Any], ...] = done) -> None:
                report["cells"] = [*done, cell]
                report["versions"]["triton of the builds"] = cell["triton"]
                written(report, arguments.out)

            if time.perf_counter() - begin > arguments.seconds:
                report["failed"].append(f"{name} batch {batch}: no time was left")
                continue
            try:
                keep(measured(name, batch, arguments, folder, keep))
            except (RuntimeError, ValueError, TypeError, AttributeError, ArithmeticError,
                    subprocess.CalledProcessError) as error:
                report["failed"].append(f"{name} batch {batch}: {type(error).__name__}: {str(error)[:600]}")
                print(report["failed"][-1], flush=True)
                written(report, arguments.out)
            gc.collect()
            torch.cuda.empty_cache()
            print(f"{time.perf_counter() - begin:.0f} s: {name} batch {batch} done", flush=True)


if __name__ == "__main__":
    main()
