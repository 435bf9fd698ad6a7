"""ONNX's whole backend suite through the pipeline: build, engine file, session; per case right or not, and on what.

    python -m benchmarks.conformance            every case; writes results/conformance.json and docs/conformance.md
    python -m benchmarks.conformance --only 'nonzero|top_k' --show          some cases, printed, nothing written
    python -m benchmarks.conformance --device cuda --jobs 16    on the GPU here; conformance-gpu.json and .md
    python -m benchmarks.conformance --page     only writes the page again

The cases, their inputs and how outputs are compared are `onnx.backend.test`'s own. Cases run in processes of their own
(--jobs), each of which writes a line before and after every case: a case that ends its process, or takes longer than
--limit, is a failure with that reason, and the rest go on. A skipped case counts as a failure.
"""
from __future__ import annotations

import argparse
import json
import os
import re
import signal
import subprocess
import sys
import tempfile
import time
import traceback
import unittest
import warnings
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

REPOSITORY = Path(__file__).parents[1]
RESULT = REPOSITORY / "benchmarks" / "results" / "conformance.json"
PAGE = REPOSITORY / "docs" / "conformance.md"
GPU_RESULT, GPU_PAGE = RESULT.with_name("conformance-gpu.json"), PAGE.with_name("conformance-gpu.md")
_MOST = 5           # reasons shown per op


# Every case that does not pass on a CPU, and why. Whatever else fails is a defect; what passes does not belong here.
KNOWN = {
    r"test_bernoulli": "the expected numbers were drawn by chance, and no seed gives them",
    r"test_gradient_of": "Gradient asks for derivatives of the graph; neither Ingot nor the reference has them",
    r"test_loop16_seq_none": ("the suite's comparison takes the length of every item of a sequence, and the first is a "
                              "scalar, which has none: no answer can pass"),
}


def known(name: str) -> str:
    """Why a case is among those that do not pass; empty for any other."""
    return next((why for pattern, why in KNOWN.items() if re.match(pattern, name)), "")


@dataclass(frozen=True)
class Case:
    """What became of one case of the suite."""

    name: str
    kind: str                           # node, real, simple, pytorch-converted, pytorch-operator
    ops: tuple[str, ...] = ()           # of the model, functions and subgraphs included
    passed: bool = False
    path: str = ""                      # compiled | reference; empty where no engine could be built
    reference: tuple[str, ...] = ()     # the ops that ran on the reference
    why: str = ""                       # why it failed: the stage and the first lines of the error
    seconds: float = 0.0


def _ops(model: Any) -> tuple[str, ...]:
    """Every op of a model, subgraphs and functions included; ops of other domains as domain::name."""
    found: set[str] = set()

    def walk(nodes: Iterable[Any]) -> None:
        for node in nodes:
            found.add(f"{node.domain}::{node.op_type}" if node.domain not in ("", "ai.onnx") else node.op_type)
            for a in node.attribute:
                walk(a.g.node)
                for g in a.graphs:
                    walk(g.node)
    walk(model.graph.node)
    for function in model.functions:
        walk(function.node)
    return tuple(sorted(found))


class Suite:
    """The cases of the installed onnx, each with the function that runs it."""

    def __init__(self, device: str = "cpu") -> None:
        # the runner keeps its light models' inputs in a folder of the user's; ours is gone when we are
        self._home = tempfile.TemporaryDirectory()
        os.environ["ONNX_HOME"] = self._home.name        # noqa: TID251 - it is onnx that reads it
        from onnx.backend.test.runner import Runner

        from ingot.backend import IngotBackend, PreparedModel
        self.prepared: list[PreparedModel] = []
        self.models: list[Any] = []
        suite = self

        class Recording(IngotBackend):
            @classmethod
            def prepare(cls, model: Any, device: str = "CPU", **options: Any) -> PreparedModel:
                suite.models.append(model)
                suite.prepared.append(found := super().prepare(model, device, **options))
                return found

        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            runner = Runner(Recording, __name__)
            from onnx.backend.test.loader import load_model_tests
            kinds = {t.name: k for k in ("simple", "pytorch-converted", "pytorch-operator", "real")
                     for t in load_model_tests(kind=k)}
        self.functions = {name.removesuffix(f"_{device}"): item.func for items in runner._test_items.values()
                          for name, item in items.items() if name.endswith(f"_{device}")}
        self.kinds = {name: kinds.get(name, "node") for name in self.functions}

    def run(self, name: str, limit: int) -> Case:
        """Run one case; whatever goes wrong in it is the reason it failed."""
        self.prepared, self.models, why = [], [], ""
        begin = time.perf_counter()
        signal.signal(signal.SIGALRM, _expired)
        signal.alarm(limit)
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                self.functions[name](None)
        except unittest.SkipTest as error:
            why = f"skipped: {error}"
        except Exception as error:  # noqa: BLE001 - the very point: any failure at all is this case's result
            stage = "build" if not self.prepared else "compare" if isinstance(error, AssertionError) else "run"
            why = f"{stage}: {_told(error)}"
        finally:
            signal.alarm(0)
        slow = self.prepared[0].reference_ops() if self.prepared else ()
        path = ("reference" if slow else "compiled") if self.prepared else ""
        return Case(name, self.kinds[name], _ops(self.models[0]) if self.models else (), not why, path, slow, why,
                    round(time.perf_counter() - begin, 3))


def _expired(signal_number: int, frame: object) -> None:
    raise TimeoutError("took longer than the limit")


def _told(error: Exception) -> str:
    from ingot.errors import IngotError
    if isinstance(error, IngotError):
        return " | ".join([error.what, *error.why])[:600]
    lines = [x.strip() for x in str(error).splitlines() if x.strip()]
    place = traceback.extract_tb(error.__traceback__)[-1]
    at = "" if isinstance(error, AssertionError) else f" at {Path(place.filename).name}:{place.lineno}"
    return f"{type(error).__name__}: {' '.join(lines)[:400]}{at}"


def _worker(names: Path, log: Path, limit: int, device: str) -> None:
    """Run the named cases, a line before and after each."""
    suite = Suite(device)
    with log.open("a") as file:
        for name in names.read_text().split():
            print(json.dumps({"begin": name, "kind": suite.kinds[name]}), file=file, flush=True)
            print(json.dumps(asdict(suite.run(name, limit))), file=file, flush=True)


def _read(logs: Iterable[Path]) -> dict[str, Case]:
    """What the logs say, the last word on each case; a case begun and not ended has ended its process."""
    found: dict[str, Case] = {}
    for log in logs:
        for line in log.read_text().splitlines() if log.exists() else ():
            try:
                row = json.loads(line)
            except ValueError:
                continue                # the line that a process was ended in
            if "begin" in row:
                found[row["begin"]] = Case(row["begin"], row["kind"], why="crash: it ended its process")
            else:
                found[row["name"]] = Case(**{k: tuple(v) if isinstance(v, list) else v for k, v in row.items()})
    return found


def _missing(names: Iterable[str], folder: Path) -> list[str]:
    found = _read(folder.glob("*.jsonl"))
    return [n for n in names if n not in found]


def run_suite(names: list[str], folder: Path, jobs: int, limit: int, device: str = "cpu") -> dict[str, Case]:
    """Every named case, in `jobs` processes; goes on where an earlier call in the same folder was stopped."""
    logs = [folder / f"{k}.jsonl" for k in range(jobs)]
    begun = time.monotonic()
    while missing := _missing(names, folder):
        workers = []
        for k, log in enumerate(logs):
            if part := missing[k::jobs]:
                todo = folder / f"{k}.names"
                todo.write_text("\n".join(part))
                workers.append(subprocess.Popen([sys.executable, "-m", "benchmarks.conformance", "--worker", str(todo),
                                                 str(log), "--limit", str(limit), "--device", device],
                                                cwd=REPOSITORY))
        for w in workers:
            w.wait()
        if _missing(names, folder) == missing:
            raise SystemExit("the workers make no progress")
    print(f"{len(names)} cases in {time.monotonic() - begun:.0f} s with {jobs} processes", flush=True)
    found = _read(folder.glob("*.jsonl"))
    return {n: found[n] for n in names}


# --- the page -------------------------------------------------------------------------------------------------------

def _share(part: int, whole: int) -> str:
    return f"{part} of {whole} ({100 * part / whole:.1f} %)" if whole else "none"


def _escaped(text: str) -> str:
    return re.sub(r"\s+", " ", text).replace("|", "\\|")[:300]


def _subject(case: Mapping[str, Any]) -> str:
    """The op a node test is about: the one its name spells."""
    plain = case["name"].removeprefix("test_").replace("_", "").lower()
    named = [o for o in case["ops"] if plain.startswith(o.split("::")[-1].lower())]
    return max(named, key=len) if named else (case["ops"][0] if len(case["ops"]) == 1 else "several ops")


def page(result: Mapping[str, Any]) -> str:
    """docs/conformance.md from the result of a run."""
    cases = result["cases"]
    suite = [c for c in cases if c["kind"] != "real"]
    right, compiled = [c for c in suite if c["passed"]], [c for c in suite if c["passed"] and c["path"] == "compiled"]
    device = str(result.get("device", ""))
    words, file = (" --device cuda", GPU_RESULT.name) if device else ("", RESULT.name)
    lines = [f"# Conformance{f' on {device}, f32' if device else ''}", "",
             f"Written by `python -m benchmarks.conformance{words}` from `benchmarks/results/{file}`: every case of",
             "`onnx.backend.test` through the whole pipeline (build without a race, engine file, session), judged by",
             "the suite's own comparison. A skip would count as a failure; there is none. A case is compiled where all",
             "that computes ran on kernels: control flow walks compiled subgraphs, sequences are lists of arrays.", "",
             (f"onnx {result['onnx']}, {result['date']}: **{_share(len(right), len(suite))}** pass, "
              f"**{_share(len(compiled), len(suite))}** wholly on compiled kernels; of the light models, "
              f"{_share(sum(c['passed'] for c in cases if c['kind'] == 'real'), len(cases) - len(suite))} pass."), "",
             "| kind | cases | pass | wholly compiled |", "|---|---:|---:|---:|"]
    for kind in dict.fromkeys(c["kind"] for c in cases):
        these = [c for c in cases if c["kind"] == kind]
        lines.append(f"| {kind} | {len(these)} | {sum(c['passed'] for c in these)} | "
                     f"{sum(c['passed'] and c['path'] == 'compiled' for c in these)} |")
    failed = [c for c in cases if not c["passed"]]
    lines += ["", "## Failures", ""]
    if failed:
        lines += ["| case | cause | what was told |", "|---|---|---|",
                  *(f"| {c['name']} | {known(c['name'])} | {_escaped(c['why'])} |" for c in failed)]
    else:
        lines.append("None.")
    slow = Counter(o for c in cases if c["passed"] for o in c["reference"])
    lines += ["", f"## Ops that run on the {'host' if device else 'reference'}", "",
              "In how many of the cases that pass.", "",
              "| op | cases |", "|---|---:|", *(f"| {op} | {n} |" for op, n in slow.most_common())]
    by: dict[str, list[Mapping[str, Any]]] = defaultdict(list)
    for c in suite:
        if c["kind"] == "node":
            by[_subject(c)].append(c)
    lines += ["", "## Node tests by op", "", "| op | cases | pass | wholly compiled |", "|---|---:|---:|---:|"]
    for op in sorted(by, key=str.lower):
        these = by[op]
        lines.append(f"| {op} | {len(these)} | {sum(c['passed'] for c in these)} | "
                     f"{sum(c['passed'] and c['path'] == 'compiled' for c in these)} |")
    return "\n".join([*lines, ""])


def summary(cases: Iterable[Case]) -> Iterator[str]:
    """The counts, and the most frequent reasons."""
    cases = list(cases)
    suite = [c for c in cases if c.kind != "real"]
    right = [c for c in suite if c.passed]
    yield f"pass {_share(len(right), len(suite))}"
    yield f"wholly compiled {_share(sum(c.path == 'compiled' for c in right), len(suite))}"
    for why, n in Counter(re.sub(r"'[^']*'|\d+", "_", c.why)[:140] for c in cases if not c.passed).most_common(25):
        yield f"{n:5} {why}"


def main() -> int:
    """Run what the command line asks for."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", default="", help="a pattern that the names of the cases must hold")
    parser.add_argument("--show", action="store_true", help="print each case; write nothing")
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--limit", type=int, default=120, help="seconds a case may take")
    parser.add_argument("--resume", type=Path, help="a folder to keep progress in, and to go on from")
    parser.add_argument("--page", action="store_true", help="write the page from the kept result")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu", help="cuda: the GPU here, in f32")
    parser.add_argument("--worker", nargs=2, type=Path, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.worker:
        _worker(*given.worker, given.limit, given.device)
        return 0
    if given.page:
        PAGE.write_text(page(json.loads(RESULT.read_text())))
        if GPU_RESULT.exists():
            GPU_PAGE.write_text(page(json.loads(GPU_RESULT.read_text())))
        return 0
    suite = Suite(given.device)
    names = sorted(n for n in suite.functions if re.search(given.only, n))
    if given.show:
        cases = {}
        for name in names:
            cases[name] = case = suite.run(name, given.limit)
            print(f"{'ok  ' if case.passed else 'FAIL'} {case.path:9} {name} {' '.join(case.reference)} {case.why}",
                  flush=True)
        print(*summary(cases.values()), sep="\n")
        return 0
    with tempfile.TemporaryDirectory() as scratch:
        folder = given.resume or Path(scratch)
        folder.mkdir(parents=True, exist_ok=True)
        cases = run_suite(names, folder, given.jobs, given.limit, given.device)
    print(*summary(cases.values()), sep="\n")
    if not given.only:
        result = {"onnx": version("onnx"), "date": datetime.now(UTC).date().isoformat(),
                  "seconds": round(sum(c.seconds for c in cases.values())),
                  "cases": [asdict(c) for c in cases.values()]}
        file, words = (RESULT, PAGE) if given.device == "cpu" else (GPU_RESULT, GPU_PAGE)
        if given.device == "cuda":
            from ingot.runtime.cuda.driver import cuda_driver
            result["device"] = cuda_driver().facts.name
        rows = ",\n".join(json.dumps(asdict(c), sort_keys=True) for c in cases.values())
        head = json.dumps({k: v for k, v in result.items() if k != "cases"}, sort_keys=True)
        file.write_text(f'{head[:-1]}, "cases": [\n{rows}\n]}}\n')
        words.write_text(page(result))
    return 0


if __name__ == "__main__":
    sys.exit(main())
