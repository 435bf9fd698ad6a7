"""Random graphs through the whole compiler, against the reference: by the hundred thousand.

    python -m benchmarks.random_graphs --seconds 600

Each graph (see `graph_maker`) is optimised, lowered, compiled for one of this machine's instruction sets, planned, and
run by a session at two sets of sizes; all outputs are compared with what onnx.reference makes of the graph as it was
before any pass. Outputs known to be exact must be equal. Others may differ by a few roundings, and by as much as the
reference itself moves when every value on the way is rounded otherwise. Graphs are numbered, and
the number decides everything: a failure is repeated with --again --first NUMBER --count 1. The counts and the ranges
of numbers are added to --out, where no graph counts twice; results of other machines are added with --merge.
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
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from functools import reduce
from multiprocessing.sharedctypes import Synchronized
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.graph_maker import SYMBOLS, Made, made, misplaced
from ingot.engine import Engine, make_variant
from ingot.errors import CandidateError
from ingot.graph import Graph, show
from ingot.kernels import Kernel, Site, able
from ingot.lower import Program, lower
from ingot.ops.reference import evaluate, run_graph
from ingot.passes import optimize
from ingot.runtime.host import LEVELS, host_target
from ingot.runtime.loader import load_together
from ingot.runtime.session import Session, code_cache
from ingot.target import Target
from ingot.tune import Choice, default_choice

RESULTS = Path(__file__).parent / "results" / "random-graphs.json"
ROUNDINGS = {"f": 3e-5, "e": 3e-2, "d": 1e-9}      # of the largest number, by numpy's code of the type
NOTHING = {"f": 3e-7, "e": 1e-3, "d": 1e-13}        # what 1 plus and minus something nearly equal leaves
BLOCK = 4000                    # graphs in a row that are made for one instruction set, with the same odd choices
PER_WORKER = 200_000            # graphs after which a worker is replaced,
CODES = 60_000                  # or kernels
TOGETHER = 64                   # graphs whose kernels are compiled as one module
SAVED = 60.0                    # seconds between two savings of the counts


@dataclass
class Maker:
    """Builds engines cheaply: the kernel of a site is chosen, emitted and compiled once."""

    target: Target
    block: int | None = None        # where given, some sites get a point other than the first: which, it decides
    chosen: dict[tuple[str, int | None], tuple[Choice, Kernel]] = field(default_factory=dict)
    kept: dict[tuple[str, int | None], object] = field(default_factory=dict)

    def _name(self, site: Site) -> tuple[str, int | None]:
        odd = self.block is not None and random.Random(f"{self.block} {site.key}").random() < 0.15
        return site.key, self.block if odd else None

    def choice(self, site: Site) -> tuple[Choice, Kernel]:
        """A choice for the site, always the same."""
        name = self._name(site)
        if name not in self.chosen:
            self.chosen[name] = self._choice(site, odd=name[1] is not None)
        return self.chosen[name]

    def _choice(self, site: Site, *, odd: bool) -> tuple[Choice, Kernel]:
        if not odd:
            return default_choice(site, self.target)
        points = [(t, p) for t in able(site, self.target)[0]
                  for p, _ in zip(t.space(site, self.target), range(6), strict=False)]
        tactic, params = random.Random(f"{site.key} {self.block}").choice(points)
        return Choice(site.key, tactic.name, dict(params)), tactic.emit(site, params, self.target)

    def program(self, graph: Graph) -> Program:
        """The graph after its passes, cut into sites, each with a choice."""
        program = lower(optimize(graph, self.target), self.target)
        for launch in program.launches:
            if launch.native:
                self.choice(launch.site)
        return program

    def compile(self, programs: Iterable[Program]) -> None:
        """Load the kernels of programs, the new ones compiled as one module. Raises CandidateError."""
        new = {name: x.site for p in programs for x in p.launches if x.native
               if (name := self._name(x.site)) not in self.kept}
        codes = load_together({str(n): (site, *self.chosen[n]) for n, site in new.items()}, self.target)
        for name in new:
            self.kept[name] = codes[str(name)]
            choice, kernel = self.chosen[name]
            self.chosen[name] = choice, replace(kernel, code="")        # what it was is not asked for again

    def session(self, graph: Graph, program: Program | None = None) -> Session:
        """A session of the graph, compiled."""
        program = program or self.program(graph)
        both = {x.site.key: self.choice(x.site) for x in program.launches if x.native}
        variant = make_variant(program, self.target, {k: c for k, (c, _) in both.items()},
                               {k: n for k, (_, n) in both.items()})
        return Session(Engine("random", graph, (variant,)), self.target.threads, variant=variant, cache=code_cache())


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


def tried(case: Made, maker: Maker, number: int, program: Program | None = None) -> str:
    """What is wrong with the engine of a graph; nothing where it is right at two sets of sizes."""
    session = maker.session(case.graph, program)
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


@dataclass(frozen=True)
class Told:
    """What a worker says: a failure, or that a batch is done."""

    first: int
    count: int = 0
    ops: Mapping[str, int] = field(default_factory=dict)
    wrong: str = ""
    isa: str = ""
    text: str = ""


def levels() -> list[str]:
    """The instruction sets of this machine that are tried in turn."""
    features = host_target(1).features
    return [name for name, needs in LEVELS if needs <= features]


@dataclass
class Batch:
    """Graphs whose kernels are compiled together, in a worker."""

    makers: Sequence[Maker]             # one for each instruction set
    done: Synchronized[int]             # the graph in hand: what a process that ends leaves behind
    ops: Counter[str] = field(default_factory=Counter)
    ready: dict[int, tuple[Made, Program]] = field(default_factory=dict)
    wrong: list[Told] = field(default_factory=list)

    def _maker(self, number: int) -> Maker:
        maker = self.makers[number // BLOCK % len(self.makers)]
        maker.block = number // BLOCK
        return maker

    def attempt(self, number: int, step: Callable[[int], str]) -> None:
        """One step of one graph; whatever it ends in but silence is a failure."""
        self.done.value = number
        try:
            wrong = step(number)
        except (Exception, RecursionError):     # noqa: BLE001 - whatever comes is what is looked for
            wrong = traceback.format_exc()
        if wrong:
            self.wrong.append(Told(number, wrong=wrong, isa=self._maker(number).target.isa, text=self._text(number)))

    @staticmethod
    def _text(number: int) -> str:
        try:
            return show(made(number).graph)
        except (Exception, RecursionError):     # noqa: BLE001 - the graph's maker may be what is wrong
            return ""

    def prepare(self, number: int) -> str:
        """The graph up to its program."""
        case, maker = made(number), self._maker(number)
        self.ops.update(n.op for n in case.graph.nodes)
        self.ready[number] = case, maker.program(case.graph)
        return ""

    def compile(self) -> None:
        """The kernels of all programs that are new."""
        by_block: defaultdict[int, list[Program]] = defaultdict(list)
        for number, (_, program) in self.ready.items():
            by_block[number // BLOCK].append(program)
        for block, programs in by_block.items():
            with suppress(CandidateError):      # the graph whose kernel it is will say so
                self._maker(block * BLOCK).compile(programs)

    def check(self, number: int) -> str:
        """The graph's engine against the reference."""
        case, program = self.ready[number]
        return tried(case, self._maker(number), number, program)


def work(first: int, count: int, together: int, threads: int, done: Synchronized[int], until: float, pipe: Any) -> None:
    """A worker: graphs, some together, one batch after the other."""
    makers = [Maker(host_target(threads, isa)) for isa in levels()]
    for start in range(first, first + count, together):
        if time.monotonic() > until or sum(len(m.kept) for m in makers) > CODES:
            break
        batch = Batch(makers, done)
        numbers = range(start, min(start + together, first + count))
        for number in numbers:
            batch.attempt(number, batch.prepare)
        batch.compile()
        for number in batch.ready:
            batch.attempt(number, batch.check)
        for told in batch.wrong:
            pipe.send(told)
        pipe.send(Told(start, len(numbers), batch.ops))


@dataclass
class Count:
    """Graphs tried, how often each op was in one, the failures by number."""

    graphs: int = 0
    ops: Counter[str] = field(default_factory=Counter)
    failures: dict[int, str] = field(default_factory=dict)


def supervise(first: int, count: int, seconds: float, threads: int, keep: Path,
              saved: Callable[[Count], None] = lambda _: None) -> Count:
    """Workers, one after the other, over graphs from `first` on; `saved` sees the counts now and then."""
    context = multiprocessing.get_context("fork")
    until, at, end, together, last = time.monotonic() + seconds, first, first + count, TOGETHER, time.monotonic()
    found = Count()

    def failed(number: int, isa: str, wrong: str, text: str) -> None:
        keep.mkdir(parents=True, exist_ok=True)
        (keep / f"{number}-{isa}.txt").write_text(f"{text}\n\n{wrong}\n")
        found.failures[number] = f"{number} {isa}: {wrong.strip().splitlines()[-1][:200]}"
        print(found.failures[number], file=sys.stderr, flush=True)

    while time.monotonic() < until and at < end:
        done = context.Value("q", at)
        ours, theirs = context.Pipe(duplex=False)
        many = min(PER_WORKER if together > 1 else TOGETHER, end - at)
        process = context.Process(target=work, args=(at, many, together, threads, done, until, theirs))
        process.start()
        theirs.close()
        while True:
            try:
                told: Told = ours.recv()
            except EOFError:
                break
            if told.wrong:
                failed(told.first, told.isa, told.wrong, told.text)
                continue
            found.ops.update(told.ops)
            found.graphs += told.count
            at = told.first + told.count
            if time.monotonic() - last > SAVED:
                last = time.monotonic()
                saved(found)
        process.join()
        if process.exitcode and together == 1:
            number, isas = done.value, levels()
            failed(number, isas[number // BLOCK % len(isas)], f"the process ended with {process.exitcode}",
                   show(made(number).graph))
            found.graphs += number + 1 - at
            at = number + 1
        # a batch that ended a process is tried again one by one, to see which graph it was
        together = 1 if process.exitcode else TOGETHER
    return found


def free(done: Iterable[Iterable[int]], first: int, count: int) -> tuple[int, int]:
    """From `first` on, the first numbers in no range that is done, and how many of them there are, at most `count`."""
    for begin, end in sorted(map(tuple, done)):
        if begin <= first < end:
            first = end
        elif first < begin:
            count = min(count, begin - first)
    return first, count


def joined(ranges: Iterable[Iterable[int]]) -> list[list[int]]:
    """Ranges in order, those that touch as one. Raises ValueError where two overlap."""
    found: list[list[int]] = []
    for begin, end in sorted(map(tuple, ranges)):
        if found and begin < found[-1][1]:
            raise ValueError(f"the graphs {begin} to {min(end, found[-1][1])} would count twice")
        if found and begin == found[-1][1]:
            found[-1][1] = end
        elif end > begin:
            found.append([begin, end])
    return found


Document = dict[str, Any]
EMPTY: Document = {"graphs": 0, "failures": 0, "ranges": [], "machines": {}, "nodes": {}, "until": ""}


def merged(a: Document, b: Document) -> Document:
    """Two results as one. Raises ValueError where both count the same graphs."""
    machines = {name: dict(m) for name, m in a["machines"].items()}
    for name, m in b["machines"].items():
        had = machines.setdefault(name, {"graphs": 0, "seconds": 0.0})
        machines[name] = {"graphs": had["graphs"] + m["graphs"], "seconds": round(had["seconds"] + m["seconds"], 1)}
    return {"graphs": a["graphs"] + b["graphs"], "failures": a["failures"] + b["failures"],
            "ranges": joined((*a["ranges"], *b["ranges"])), "machines": dict(sorted(machines.items())),
            "nodes": dict(sorted((Counter(a["nodes"]) + Counter(b["nodes"])).items())),
            "until": max(a["until"], b["until"])}


def document(found: Count, first: int, seconds: float) -> Document:
    """One run as a result."""
    target = host_target()
    today = datetime.datetime.now(datetime.UTC).date().isoformat()
    return {"graphs": found.graphs, "failures": len(found.failures), "ranges": joined([[first, first + found.graphs]]),
            "machines": {target.device: {"graphs": found.graphs, "seconds": round(seconds, 1)}},
            "nodes": dict(sorted(found.ops.items())), "until": today}


def read(path: Path) -> Document:
    """The results of a file; of none where there is no such file."""
    return json.loads(path.read_text()) if path.exists() else EMPTY


def write(path: Path, result: Document) -> None:
    """Results into a file: all of it or nothing."""
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = path.with_suffix(".partial")
    beside.write_text(json.dumps(result, indent=1) + "\n")
    beside.replace(path)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=60.0)
    parser.add_argument("--first", type=int, default=0, help="number of the first graph; those in --out are left out")
    parser.add_argument("--count", type=int, default=1 << 40)
    parser.add_argument("--again", action="store_true", help="try what --out has again, and count nothing")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--out", type=Path, default=RESULTS)
    parser.add_argument("--merge", type=Path, nargs="+", help="add these results to --out, and try nothing")
    parser.add_argument("--keep", type=Path, default=Path("random-graph-failures"), help="where failures go")
    options = parser.parse_args()
    old = read(options.out)
    if options.merge:
        write(options.out, reduce(merged, map(read, options.merge), old))
        return 0
    first, count = options.first, options.count
    if not options.again:
        first, count = free(old["ranges"], first, count)
    begin = time.monotonic()

    def saved(found: Count) -> None:
        if not options.again and found.graphs:
            write(options.out, merged(old, document(found, first, time.monotonic() - begin)))

    found = supervise(first, count, options.seconds, options.threads, options.keep, saved)
    saved(found)
    print(f"{found.graphs} graphs from {first} in {time.monotonic() - begin:.0f} s, {len(found.failures)} failures")
    return 1 if found.failures else 0


if __name__ == "__main__":
    sys.exit(main())
