"""Eight bits against eight bits: Ingot, ONNX Runtime (static Q/DQ and dynamic) and OpenVINO (by NNCF, or on Q/DQ).

    python -m benchmarks.int8 prepare --models resnet50 --batch 1      # quantises and builds, once
    python -m benchmarks.int8 measure --models resnet50 --batch 1 --out benchmarks/results/NAME

Everybody is calibrated on the same inputs. Blocks alternate, outputs are held against Ingot's float engine in the same
run: the cosine stands beside every time. MiniLM reads real sentences, the others have random weights: their accuracy
says that nobody computes something else, not more.
"""
from __future__ import annotations

import argparse
import importlib
import importlib.util
import json
import tempfile
from collections.abc import Callable, Iterator, Mapping
from datetime import date
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import onnx

import ingot
from benchmarks.zoo import ZOO
from ingot.bench import onnxruntime_peer, openvino_peer, summary
from ingot.bench.peers import Peer, alternate_blocks
from ingot.compiler.build import build_with_report
from ingot.frontend import load as load_graph
from ingot.runtime.host import host_target
from ingot.verify import random_feeds

MODELS = ("resnet18", "resnet50", "mobilenetv2", "yolo", "bert_base", "minilm")
SAMPLES = 32
Feeds = Mapping[str, np.ndarray]


def inputs(name: str, path: Path, batch: int, count: int) -> Iterator[dict[str, np.ndarray]]:
    """Batches to calibrate on: sentences for MiniLM, else seeded random ones."""
    entry = ZOO[name]
    shapes = dict.fromkeys(entry.inputs, (batch, *entry.shape))
    graph = load_graph(str(path), shapes)
    if name == "minilm":
        text = importlib.import_module("benchmarks.int8_accuracy")
        for feeds in text.feeds(text.sentences(count * text.BATCH), graph):
            for start in range(0, text.BATCH, batch):
                yield {k: v[start:start + batch] for k, v in feeds.items()}
        return
    for seed in range(count):
        yield random_feeds(graph, {}, seed)


class Reader:
    """What ONNX Runtime's calibration asks for its data."""

    def __init__(self, batches: Iterator[dict[str, np.ndarray]]) -> None:
        self._batches = batches

    def get_next(self) -> dict[str, np.ndarray] | None:
        """The next batch, None at the end."""
        return next(self._batches, None)


def files(name: str, batch: int, folder: Path) -> dict[str, Path]:
    """Where everything of one model and batch lies."""
    return {"f32": folder / f"{name}-{batch}.f32.ingot", "int8": folder / f"{name}-{batch}.int8.ingot",
            "qdq": folder / f"{name}.qdq.onnx", "dynamic": folder / f"{name}.dynamic.onnx",
            "nncf": folder / f"{name}.nncf.xml"}


def prepare(name: str, batch: int, arguments: argparse.Namespace) -> None:
    """Build Ingot's engines, and quantise the model for the others."""
    entry, path = ZOO[name], Path(arguments.folder) / f"{name}.onnx"
    at = files(name, batch, Path(arguments.engines))
    shapes = dict.fromkeys(entry.inputs, (batch, *entry.shape))
    if "ingot" in arguments.steps:
        options = ingot.BuildOptions(threads=arguments.threads, budget=arguments.budget, verify=False)
        ingot.save(build_with_report(str(path), shapes, options).engine, at["f32"])
        data = list(inputs(name, path, batch, max(2, SAMPLES // batch)))
        lower = ingot.BuildOptions(threads=arguments.threads, budget=arguments.budget, verify=False, precision="int8",
                                   method="mse" if name == "minilm" else "percentile",
                                   accuracy_budget=arguments.accuracy_budget)
        made = build_with_report(str(path), shapes, lower, calibration=data)
        ingot.save(made.engine, at["int8"])
        if made.plan:
            gains = [f"{s.float_seconds / max(s.integer_seconds, 1e-9):.2f}" for s in made.plan.sites]
            print(f"{name} batch {batch}: {len(made.plan.chosen)} of {len(made.plan.sites)} sites, "
                  f"{made.plan.float_seconds * 1e3:.2f} -> {made.plan.integer_seconds * 1e3:.2f} ms, "
                  f"{dict(made.plan.accuracy)}, gains {' '.join(gains)}", flush=True)
    if "peers" in arguments.steps and not at["qdq"].exists():
        quantization = importlib.import_module("onnxruntime.quantization")
        bare = at["qdq"].with_suffix(".bare.onnx")      # its shape inference trips over shapes the exporter left behind
        model = onnx.load(path)
        del model.graph.value_info[:]
        onnx.save(model, bare)
        quantization.quantize_static(
            str(bare), str(at["qdq"]), Reader(inputs(name, path, 1, 8)), per_channel=True,
            quant_format=quantization.QuantFormat.QDQ, activation_type=quantization.QuantType.QUInt8,
            weight_type=quantization.QuantType.QInt8)
        quantization.quantize_dynamic(str(bare), str(at["dynamic"]), per_channel=True)
        print(f"{name}: quantised by ONNX Runtime", flush=True)
    if "nncf" in arguments.steps and not at["nncf"].exists() and importlib.util.find_spec("nncf"):
        nncf, openvino = importlib.import_module("nncf"), importlib.import_module("openvino")
        data = [dict(f) for f in inputs(name, path, 1, 32)]
        kind = nncf.ModelType.TRANSFORMER if name in ("bert_base", "minilm") else None
        made = nncf.quantize(openvino.Core().read_model(str(path)), nncf.Dataset(data), model_type=kind,
                             preset=nncf.QuantizationPreset.MIXED, subset_size=32)
        openvino.save_model(made, str(at["nncf"]), compress_to_fp16=False)
        print(f"{name}: quantised by NNCF {nncf.__version__}", flush=True)


def ingot_peer(name: str, file: Path, feeds: Feeds, threads: int) -> Peer:
    """An engine, writing into arrays it is given."""
    session = ingot.Session(ingot.load(file, threads=threads), threads)
    out = {k: v.copy() for k, v in session.run(dict(feeds)).items()}
    return Peer(name, "", session.run, partial(session.run, out=out), 0.0)


def cosine(x: np.ndarray, y: np.ndarray) -> float:
    """Mean over the items."""
    a, b = x.reshape(len(x), -1).astype(np.float64), y.reshape(len(y), -1).astype(np.float64)
    return float(((a * b).sum(1) / np.maximum(np.linalg.norm(a, axis=1) * np.linalg.norm(b, axis=1), 1e-30)).mean())


def measure(name: str, batch: int, arguments: argparse.Namespace) -> list[dict[str, Any]]:
    """One row per runtime."""
    entry, threads = ZOO[name], arguments.threads
    path = Path(arguments.folder) / f"{name}.onnx"
    at = files(name, batch, Path(arguments.engines))
    feeds = next(inputs(name, path, batch, 1)) if name == "minilm" else entry.feeds(batch)
    shapes = {n: a.shape for n, a in feeds.items()}
    peers: dict[str, Peer] = {"ingot f32": ingot_peer("ingot f32", at["f32"], feeds, threads),
                              "ingot int8": ingot_peer("ingot int8", at["int8"], feeds, threads)}
    for kind, title in (("qdq", "onnxruntime static"), ("dynamic", "onnxruntime dynamic")):
        if at[kind].exists() and not (kind == "dynamic" and "Conv" in entry_ops(path)):
            peers[title] = onnxruntime_peer(str(at[kind]), threads)
    if at["qdq"].exists():
        peers["openvino on Q/DQ"] = openvino_peer(str(at["qdq"]), threads, shapes)
    if at["nncf"].exists():
        peers["openvino NNCF"] = openvino_peer(str(at["nncf"]), threads, shapes)
    outputs = {k: np.array(p.run(feeds)[entry.outputs[0]]) for k, p in peers.items()}
    calls: dict[str, Callable[[], object]] = {k: partial(p.call, feeds) for k, p in peers.items()}
    rows = []
    mine = None
    for k, blocks in alternate_blocks(calls, arguments.seconds).items():
        told = summary(k, batch, [s for b in blocks for s in b])
        mine = told.median if k == "ingot int8" else mine
        rows.append({"model": name, "batch": batch, "runtime": k, "median": told.median, "least": told.least,
                     "p90": told.p90, "runs": told.runs, "cosine": cosine(outputs[k], outputs["ingot f32"])})
    for row in rows:
        row["ratio"] = row["median"] / mine if mine else 0.0
        print(f"{name:12} {batch} {row['runtime']:20} {row['median'] * 1e3:8.2f} ms  least {row['least'] * 1e3:8.2f}  "
              f"{row['ratio']:.2f}x  cosine {row['cosine']:.5f}", flush=True)
    return rows


def entry_ops(path: Path) -> set[str]:
    """The ops of a model: dynamic quantisation serves products, not convolutions."""
    return {n.op for n in load_graph(str(path)).nodes}


def written(rows: list[dict[str, Any]], out: Path, threads: int) -> None:
    """Merge the rows into OUT.json, and write OUT.md from it."""
    file = out.with_suffix(".json")
    old = json.loads(file.read_text())["rows"] if file.exists() else []
    fresh = {(r["model"], r["batch"]) for r in rows}
    every = [r for r in old if (r["model"], r["batch"]) not in fresh] + rows
    every.sort(key=lambda r: (MODELS.index(r["model"]), r["batch"]))
    told = f"{host_target().device}, {threads} threads, {date.today()}"
    file.write_text(json.dumps({"machine": told, "rows": every}, indent=1) + "\n")
    head = ("Medians in milliseconds, blocks alternating in one run; the ratio is to Ingot's int8; the cosine is to "
            "Ingot's f32 engine on the same input.")
    lines = ["# int8 on the CPU", "", f"{told}. {head}", "",
             "| model | batch | runtime | ms | least | ratio | cosine |", "|---|---:|---|---:|---:|---:|---:|"]
    lines += [f"| {r['model']} | {r['batch']} | {r['runtime']} | {r['median'] * 1e3:.2f} | {r['least'] * 1e3:.2f} | "
              f"{r['ratio']:.2f} | {r['cosine']:.5f} |" for r in every]
    lines += ["", *(f"Over the best of {title}, by {word}: {told}." for title, left in (
        ("the others", ""), ("the others but OpenVINO on ONNX Runtime's model", "openvino on Q/DQ"))
        for word, told in summed(every, left))]
    out.with_suffix(".md").write_text("\n".join(lines) + "\n")


def summed(rows: list[dict[str, Any]], left: str) -> Iterator[tuple[str, str]]:
    """The geometric mean over the best other runtime of each case, but for one runtime: by medians and, since this
    machine is never quite quiet, by least times."""
    cases = dict.fromkeys((r["model"], r["batch"]) for r in rows)
    for word, field in (("medians", "median"), ("least times", "least")):
        ratios = []
        for key in cases:
            mine = next(r[field] for r in rows if (r["model"], r["batch"], r["runtime"]) == (*key, "ingot int8"))
            others = [r[field] / mine for r in rows if (r["model"], r["batch"]) == key
                      and not r["runtime"].startswith("ingot") and r["runtime"] != left]
            ratios += [min(others)] if others else []
        if ratios:
            mean = float(np.exp(np.mean(np.log(ratios))))
            yield word, f"geometric mean {mean:.2f}, least {min(ratios):.2f}, {len(ratios)} cases"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["prepare", "measure"])
    parser.add_argument("--models", nargs="*", default=list(MODELS), choices=list(ZOO))
    parser.add_argument("--batch", nargs="*", type=int, default=[1, 8])
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--seconds", type=float, default=8.0)
    parser.add_argument("--budget", type=float, default=None, help="seconds for each race")
    parser.add_argument("--accuracy-budget", type=float, default=None)
    parser.add_argument("--steps", nargs="*", default=["ingot", "peers", "nncf"])
    parser.add_argument("--folder", default=str(Path(tempfile.gettempdir()) / "ingot-zoo"), help="where the models lie")
    parser.add_argument("--engines", default=tempfile.gettempdir(), help="where engines and quantised models are kept")
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    rows: list[dict[str, Any]] = []
    for name in arguments.models:
        for batch in arguments.batch:
            if arguments.what == "prepare":
                prepare(name, batch, arguments)
            else:
                rows += measure(name, batch, arguments)
    if arguments.out and rows:
        written(rows, arguments.out, arguments.threads)


if __name__ == "__main__":
    main()
