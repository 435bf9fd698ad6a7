"""Every model of the zoo: exported, built, tuned at batch 1 and verified against what it came from.

    python -m benchmarks.models --folder FOLDER [NAME...]       builds, keeps what is there
    python -m benchmarks.model_times --folder FOLDER            times the engines beside ONNX Runtime
    python scripts/docs.py                                      writes docs/models.md from both

A network is verified at two sets of sizes against PyTorch's own run, an estimator against scikit-learn's, a model that
is an ONNX file against ONNX Runtime at the sizes the file fixes. Rows go to benchmarks/results/models.json at once;
FOLDER keeps NAME.onnx, NAME.ingot and NAME.npz, the inputs to be timed on.
"""
from __future__ import annotations

import argparse
import json
import platform
import shutil
import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import onnx

import ingot
from benchmarks.architectures.model import Architecture
from benchmarks.architectures.trees import ESTIMATORS, Estimator
from benchmarks.architectures.zoo import ARCHITECTURES, light_models
from benchmarks.peers import cpu_name
from benchmarks.zoo import MODELS, MORE, ZOO, Entry
from ingot.bench import onnxruntime_peer, torch_peer
from ingot.errors import IngotError
from ingot.verify import Verdict

RESULTS = Path(__file__).parent / "results" / "models.json"
ITEMS = frozenset({"batch", "texts", "images", "rows"})     # symbols that count items: one of each is timed
Feeds = dict[str, np.ndarray]
Original = Callable[[Mapping[str, np.ndarray]], Feeds]


@dataclass(frozen=True)
class Subject:
    """One model: where it comes from, how its file is written, and who says what is right on which inputs."""

    name: str
    source: str
    write: Callable[[Path], Path]
    shapes: Mapping[str, Any] | None        # tuned at one item
    original: Callable[[Path], Original] | None
    feeds: Sequence[Feeds]                  # to be verified on, one of each set of sizes
    timed: Feeds
    given: Any = None                       # what is built, if it is not the file: its own run is the original then


def of_architecture(network: Architecture) -> Subject:
    """A small configuration of a published network, in PyTorch."""
    ranges = {s: (r[0], 1 if s in ITEMS else r[1], r[2]) for s, r in network.ranges.items()}
    return Subject(network.name, network.source, network.export, replace(network, ranges=ranges).shapes(),
                   lambda path: partial(network.run, network.module()),
                   [network.feeds(s, k) for k, s in enumerate(network.sizes)],
                   network.feeds({s: r[1] for s, r in ranges.items()}))


def of_entry(entry: Entry) -> Subject:
    """A network of its published size, in PyTorch."""
    axes = "x".join(map(str, ("batch=1..1..4", *entry.shape)))
    source = "transformers, the published size" if not entry.gmac else f"the published size, {entry.gmac:g} GMAC"
    return Subject(f"{entry.name}, full size", source, entry.export, dict.fromkeys(entry.inputs, axes),
                   lambda path: torch_peer(entry.module(), entry.inputs, entry.outputs, 2).run,
                   [entry.feeds(b, b) for b in (2, 3)], entry.feeds(1))


def of_estimator(estimator: Estimator) -> Subject:
    """An estimator of scikit-learn, or a pipeline of several, through skl2onnx."""
    fitted = estimator.fitted()
    return Subject(estimator.name, estimator.source, partial(estimator.export, fitted=fitted), {"X": "rows=1..1..64x6"},
                   None, [estimator.feeds(8), estimator.feeds(33, 2)], estimator.feeds(1), fitted)


def of_file(path: Path) -> Subject:
    """A model that comes as an ONNX file with fixed sizes."""
    graph = onnx.load(path).graph
    held = {i.name for i in graph.initializer}
    shapes = {i.name: [d.dim_value for d in i.type.tensor_type.shape.dim] for i in graph.input if i.name not in held}

    def feeds(seed: int) -> Feeds:
        rng = np.random.default_rng(seed)
        return {n: rng.standard_normal(s).astype(np.float32) for n, s in shapes.items()}
    return Subject(path.stem, f"the wheel of onnx {version('onnx')}", lambda to: Path(shutil.copy(path, to)), None,
                   lambda to: onnxruntime_peer(str(to), 2).run, [feeds(1), feeds(2)], feeds(0))


def subjects() -> dict[str, Callable[[], Subject]]:
    """All of them by name, made when they are wanted."""
    return {**{n: partial(of_architecture, a) for n, a in ARCHITECTURES.items()},
            **{e.name: partial(of_estimator, e) for e in ESTIMATORS},
            **{p.stem: partial(of_file, p) for p in light_models()},
            **{f"{n}, full size": partial(of_entry, ZOO[n]) for n in (*MODELS, *MORE)}}


def inside(engine: ingot.Engine) -> dict[str, Any]:
    """What an engine is made of: sites, those on the reference path, and what data decides."""
    session = ingot.Session(engine)
    launches = [x for v in session.variants for x in v.program.launches]
    calls = engine.report.get("calls", []) if engine.flow is not None else []
    assert isinstance(calls, list)
    return {"sites": len(launches), "parts": max(1, len(engine.parts)),
            "reference": [x.where for x in launches if not x.native]
            + [c["where"] for c in calls if c["runs"] == "on the reference"],
            "calls": [f"{c['op']}: {c['runs']}" for c in calls if c["runs"] != "on the reference"]}


def row_of(subject: Subject, folder: Path, threads: int, budget: float) -> dict[str, Any]:
    """Export, build, verify; the engine and the inputs to be timed on stay in the folder."""
    path = folder / f"{subject.name}.onnx"
    if not path.exists():
        subject.write(path)
    row: dict[str, Any] = {"name": subject.name, "source": subject.source,
                           "nodes": len(onnx.load(path, load_external_data=False).graph.node),
                           "date": datetime.now(UTC).strftime("%Y-%m-%d")}
    begun = time.perf_counter()
    try:
        engine = ingot.build(path if subject.given is None else subject.given, subject.shapes,
                             ingot.BuildOptions(threads=threads, budget=budget), inputs=subject.feeds,
                             original=subject.original(path) if subject.original else None)
    except IngotError as error:
        return {**row, "verdict": "refused", "why": f"{error.what}; {error.where}"[:300]}
    ingot.save(engine, folder / f"{subject.name}.ingot")
    np.savez(folder / f"{subject.name}.npz", **subject.timed)
    verdict = Verdict.from_json(engine.verdict)
    given = [c for c in verdict.cases if c.inputs.startswith("given")]
    worst = verdict.worst
    return {**row, **inside(engine), "verdict": "right" if verdict.passed else "wrong",
            "sizes": len({tuple(a.shape for a in f.values()) for f in subject.feeds}) if given else 0,
            "cases": len(verdict.cases), "relative": max((c.relative for c in given), default=None),
            "worst": [worst.inputs, worst.relative, worst.tolerance] if worst else [], "skipped": verdict.skipped,
            "seconds": round(time.perf_counter() - begun, 1)}


def write(rows: Sequence[Mapping[str, Any]], threads: int) -> None:
    """Put rows among those kept; a row of the same name is replaced, but keeps its times only if none are given."""
    kept = json.loads(RESULTS.read_text())["models"] if RESULTS.exists() else []
    by = {r["name"]: r for r in kept} | {r["name"]: dict(r) for r in rows}
    report = {"cpu": cpu_name(), "threads": threads, "python": platform.python_version(),
              "packages": {p: version(p) for p in ("torch", "onnx", "onnxruntime", "scikit-learn", "transformers")},
              "models": [by[n] for n in [*subjects(), *(set(by) - set(subjects()))] if n in by]}
    RESULTS.write_text(json.dumps(report, indent=1) + "\n")


def main() -> None:
    """Build what was named, or all that has no row yet."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    known = subjects()
    parser.add_argument("names", nargs="*", help="default: all without an engine in the folder")
    parser.add_argument("--folder", type=Path, required=True)
    parser.add_argument("--budget", type=float, default=15.0, help="seconds of tuning, each")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--export", action="store_true", help="only write the ONNX files")
    parser.add_argument("--for", dest="seconds", type=float, default=1e9, help="begin no further model after SECONDS")
    options = parser.parse_args()
    options.folder.mkdir(parents=True, exist_ok=True)
    warnings.simplefilter("ignore")
    begun = time.perf_counter()
    for name in options.names or known:
        path = options.folder / f"{name}.{'onnx' if options.export else 'ingot'}"
        if (path.exists() and not options.names) or time.perf_counter() - begun > options.seconds:
            continue
        if options.export:
            known[name]().write(path)
            print(path, flush=True)
            continue
        row = row_of(known[name](), options.folder, options.threads, options.budget)
        write([row], options.threads)
        print({k: v for k, v in row.items() if k not in ("source", "skipped")}, flush=True)


if __name__ == "__main__":
    main()
