"""Random graphs through the whole compiler, against the reference: by the hundred thousand.

    python -m benchmarks.random_graphs --seconds 600

Each graph (see `graph_maker`) is optimised, lowered, compiled for one of this machine's instruction sets, planned, and
run by a session at two sets of sizes; all outputs are compared with what onnx.reference makes of the graph as it was
before any pass. Outputs known to be exact must be equal. Others may differ by a few roundings, and by as much as the
reference itself moves when every value on the way is rounded otherwise. Graphs are numbered: a failure is repeated
with --first NUMBER --count 1. The counts are added to --out.
"""
from __future__ import annotations

import argparse
import datetime
import json
import multiprocessing
import random
import sys
import time
import traceback
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from multiprocessing.sharedctypes import Synchronized
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.graph_maker import SYMBOLS, Made, made, misplaced
from ingot.engine import Engine, make_variant
from ingot.graph import Graph, show
from ingot.kernels import Kernel, Site, able
from ingot.lower import Program, lower
from ingot.ops.reference import evaluate, run_graph
from ingot.passes import optimize
from ingot.runtime.host import LEVELS, host_target
from ingot.runtime.session import Session, code_cache
from ingot.target import Target
from ingot.tune import Choice, default_choice

RESULTS = Path(__file__).parent / "results" / "random-graphs.json"
ROUNDINGS = {"f": 3e-5, "e": 3e-2, "d": 1e-9}      # of the largest number, by numpy's code of the type
NOTHING = {"f": 3e-7, "e": 1e-3, "d": 1e-13}        # what 1 plus and minus something nearly equal leaves
PER_WORKER = 4000               # graphs after which a worker is replaced
CODES = 20_000                  # kernels a worker keeps in memory


@dataclass
class Maker:
    """Builds engines cheaply: the kernel of a site is chosen and emitted once."""

    target: Target
    odd: random.Random | None = None        # where given, some sites get a point other than the first
    chosen: dict[str, tuple[Choice, Kernel]] = field(default_factory=dict)
    kept: list[object] = field(default_factory=list)

    def choice(self, site: Site) -> tuple[Choice, Kernel]:
        """A choice for the site, always the same."""
        if site.key not in self.chosen:
            self.chosen[site.key] = self._choice(site)
        return self.chosen[site.key]

    def _choice(self, site: Site) -> tuple[Choice, Kernel]:
        if self.odd is not None and self.odd.random() < 0.15:
            points = [(t, p) for t in able(site, self.target)[0]
                      for p, _ in zip(t.space(site, self.target), range(6), strict=False)]
            tactic, params = self.odd.choice(points)
            return Choice(site.key, tactic.name, dict(params)), tactic.emit(site, params, self.target)
        return default_choice(site, self.target)

    def session(self, graph: Graph) -> Session:
        """A session of the graph, compiled."""
        program: Program = lower(optimize(graph, self.target), self.target)
        both = {x.site.key: self.choice(x.site) for x in program.launches if x.native}
        variant = make_variant(program, self.target, {k: c for k, (c, _) in both.items()},
                               {k: n for k, (_, n) in both.items()})
        session = Session(Engine("random", graph, (variant,)), self.target.threads, variant=variant, cache=code_cache())
        if len(self.kept) < CODES:
            self.kept += [c for c in session._codes if c is not None]
        return session


def moved(graph: Graph, feeds: Mapping[str, np.ndarray], sizes: Mapping[str, int],
          wanted: Mapping[str, np.ndarray]) -> dict[str, float]:
    """How far the reference's outputs move when every rounded value on the way is rounded otherwise."""
    rng = np.random.default_rng(0)
    worst = dict.fromkeys(wanted, 0.0)
    for _ in range(4):
        values = {**feeds, **graph.constants}
        for node in graph.nodes:
            results = evaluate(node, [values[i] if i else None for i in node.inputs], sizes)
            for name, result in zip(node.outputs, results, strict=True):
                if result.dtype.kind == "f" and result.size:
                    unit = float(np.finfo(result.dtype).eps) * 4
                    scale = np.abs(result).max() if result.dtype != np.float16 else 0
                    shaken = result * (1 + unit * rng.uniform(-1, 1, result.shape)) + 0.25 * unit * scale * rng.uniform(
                        -1, 1, result.shape)
                    result = np.asarray(shaken).astype(result.dtype)
                values[name] = result
        for name, right in wanted.items():
            if right.size:
                worst[name] = max(worst[name], float(np.abs(values[name].astype(float) - right.astype(float)).max()))
    return worst


def difference(case: Made, feeds: Mapping[str, np.ndarray], sizes: Mapping[str, int],
               found: Mapping[str, np.ndarray]) -> str:
    """What is wrong with the outputs; nothing where they are right."""
    with np.errstate(all="ignore"):
        wanted = run_graph(case.graph, feeds, sizes)
    shaken: dict[str, float] = {}
    for name, right in wanted.items():
        got = found[name]
        if got.shape != right.shape or got.dtype != right.dtype:
            return f"'{name}' is {got.dtype}{list(got.shape)}, not {right.dtype}{list(right.shape)}"
        if np.array_equal(got, right, equal_nan=right.dtype.kind == "f"):
            continue
        if right.dtype.kind != "f" or (case.outputs[name].digit is not None):
            return f"'{name}' differs at {dict(sizes)}, and must be equal"
        a, b = got.astype(float), right.astype(float)
        if not np.array_equal(np.isfinite(a), np.isfinite(b)):
            return f"'{name}' at {dict(sizes)}: other numbers are finite"
        whole = np.isfinite(b)
        far = float(np.abs(a - b)[whole].max(initial=0.0))
        if far <= NOTHING[right.dtype.char] + ROUNDINGS[right.dtype.char] * float(np.abs(b)[whole].max(initial=0.0)):
            continue
        with np.errstate(all="ignore"):
            shaken = shaken or moved(case.graph, feeds, sizes, wanted)
        if far > 32 * shaken[name]:
            return f"'{name}' at {dict(sizes)} is off by {far:.3g}, where rounding moves it by {shaken[name]:.3g}"
    return ""


def tried(case: Made, maker: Maker, number: int) -> str:
    """What is wrong with the engine of a graph; nothing where it is right at two sets of sizes."""
    session = maker.session(case.graph)
    rng = random.Random(number)
    opt = {s.name: s.opt for s in SYMBOLS}
    other = {s.name: rng.randint(s.min, s.max) for s in SYMBOLS}
    for sizes in (opt, other):
        used = {k: v for k, v in sizes.items() if any(k in case.graph.types[i].symbols for i in case.graph.inputs)}
        feeds = case.feeds(sizes, number)
        if sizes is other:
            feeds = {k: misplaced(a) for k, a in feeds.items()}
        if wrong := difference(case, feeds, {**opt, **used}, session.run(feeds)):
            return wrong
    return ""


def work(first: int, count: int, isa: str, threads: int, done: Synchronized[int], until: float, pipe: Any) -> None:
    """A worker: graphs one after the other."""
    maker = Maker(host_target(threads, isa), random.Random(first))
    ops: Counter[str] = Counter()
    reference = 0
    for number in range(first, first + count):
        if time.monotonic() > until:
            break
        done.value = number
        case = None
        try:
            case = made(number)
            wrong = tried(case, maker, number)
        except (Exception, RecursionError):     # noqa: BLE001 - whatever else comes is what is looked for
            wrong = traceback.format_exc()
        if wrong:
            pipe.send((number, isa, wrong, show(case.graph) if case else ""))
        if case:
            ops.update(n.op for n in case.graph.nodes)
    pipe.send((None, dict(ops), reference, number + 1 - first if wrong is not None else 0))


def supervise(first: int, count: int, seconds: float, threads: int, keep: Path) -> tuple[int, Counter[str], list[str]]:
    """Workers, one after the other: graphs tried, how often each op was in one, the failures."""
    context = multiprocessing.get_context("fork")
    features = host_target(1).features
    levels = [name for name, needs in LEVELS if needs <= features]
    until, at, total = time.monotonic() + seconds, first, 0
    ops: Counter[str] = Counter()
    failures: list[str] = []

    def failed(number: int, isa: str, wrong: str, text: str) -> None:
        keep.mkdir(parents=True, exist_ok=True)
        (keep / f"{number}-{isa}.txt").write_text(f"{text}\n\n{wrong}\n")
        failures.append(f"{number} {isa}: {wrong.strip().splitlines()[-1][:200]}")
        print(failures[-1], file=sys.stderr, flush=True)

    while time.monotonic() < until and at < first + count:
        isa = levels[(at // PER_WORKER) % len(levels)]
        done = context.Value("q", at)
        ours, theirs = context.Pipe(duplex=False)
        process = context.Process(target=work, args=(at, min(PER_WORKER, first + count - at), isa, threads, done, until,
                                                     theirs))
        process.start()
        theirs.close()
        ended = False
        while True:
            try:
                number, *rest = ours.recv()
            except EOFError:
                break
            if number is None:
                ops.update(rest[0])
                total += rest[2]
                at += rest[2]
                ended = True
            else:
                failed(number, *rest)
        process.join()
        if not ended:
            failed(done.value, isa, f"the process ended with {process.exitcode}", show(made(done.value).graph))
            total += done.value + 1 - at
            at = done.value + 1
    return total, ops, failures


def record(out: Path, graphs: int, failures: list[str], ops: Counter[str], seconds: float, upto: int) -> None:
    """Add one run to the results."""
    old = json.loads(out.read_text()) if out.exists() else {}
    document = {"graphs": old.get("graphs", 0) + graphs, "failures": old.get("failures", 0) + len(failures),
                "seconds": round(old.get("seconds", 0.0) + seconds, 1), "next": max(old.get("next", 0), upto),
                "nodes": dict(sorted((Counter(old.get("nodes", {})) + ops).items())),
                "until": datetime.datetime.now(datetime.UTC).date().isoformat()}
    out.parent.mkdir(parents=True, exist_ok=True)
    beside = out.with_suffix(".partial")
    beside.write_text(json.dumps(document, indent=1) + "\n")
    beside.replace(out)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=60.0)
    parser.add_argument("--first", type=int, default=None, help="number of the first graph; else where --out ends")
    parser.add_argument("--count", type=int, default=1 << 40)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--out", type=Path, default=RESULTS)
    parser.add_argument("--keep", type=Path, default=Path("random-graph-failures"), help="where failures go")
    options = parser.parse_args()
    begin = time.monotonic()
    known = json.loads(options.out.read_text())["next"] if options.out.exists() else 0
    first = known if options.first is None else options.first
    graphs, ops, failures = supervise(first, options.count, options.seconds, options.threads, options.keep)
    seconds = time.monotonic() - begin
    if options.first is None:
        record(options.out, graphs, failures, ops, seconds, first + graphs)
    print(f"{graphs} graphs in {seconds:.0f} s, {len(failures)} failures")
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
