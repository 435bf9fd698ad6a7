"""What every build shares, whatever device it is for: its clock, its dumps, its report."""
from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import count
from pathlib import Path

from ingot.compiler.options import BuildOptions
from ingot.errors import UnsupportedError
from ingot.graph import Graph, show
from ingot.lower import Program
from ingot.tune import Tuning

_LOG = logging.getLogger("ingot")


def refuse_reference(program: Program, options: BuildOptions) -> None:
    slow = [x for x in program.launches if not x.native]
    if options.strict and slow:
        raise UnsupportedError(f"{len(slow)} nodes have no kernel and would run on the slow reference path",
                               where="; ".join(x.where for x in slow),
                               why=tuple(dict.fromkeys(r for x in slow for r in x.reasons)),
                               mend="build without strict, or add a tactic under ingot/kernels")


def race_text(program: Program, tuned: Tuning) -> str:
    """Every site with its candidates: the time of each, or the reason it has none."""
    lines = []
    sites = {x.site.key: x.site for x in program.launches if x.native}
    for key, choice in tuned.choices.items():
        lines += [f"{key} {sites[key]}", f"  -> {choice.point}", *(f"     {t}" for t in choice.trials)]
    return "\n".join(lines)


def report(graph: Graph, optimized: Graph, program: Program) -> dict[str, object]:
    return {
        "nodes": len(graph.nodes), "optimized": len(optimized.nodes), "launches": len(program.launches),
        "reference": [{"where": x.where, "reasons": list(x.reasons)} for x in program.launches if not x.native],
    }


class Clock:
    """Seconds per stage."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}

    @contextmanager
    def __call__(self, stage: str) -> Iterator[None]:
        begin = time.perf_counter()
        yield
        self.seconds[stage] = self.seconds.get(stage, 0.0) + time.perf_counter() - begin
        _LOG.info("%s: %.2f s", stage, self.seconds[stage])


class Dump:
    """Writes each stage's text form into a folder, numbered; without a folder it does nothing."""

    def __init__(self, folder: Path | None) -> None:
        self._folder, self._count = folder, count()
        if folder:
            folder.mkdir(parents=True, exist_ok=True)

    def __call__(self, stage: str, text: Callable[[], str]) -> None:
        number = next(self._count)
        if self._folder:
            (self._folder / f"{number:02}-{stage}.txt").write_text(text() + "\n")

    def watch(self, name: str, before: Graph, after: Graph) -> None:
        """After a pass: an unchanged graph leaves no file."""
        if after is before:
            next(self._count)
        else:
            self(name, lambda: show(after))
