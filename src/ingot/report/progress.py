"""How far the race is, while it runs: a bar on a terminal, a plain line now and then elsewhere."""
from __future__ import annotations

import sys
import time
from types import TracebackType
from typing import Self, TextIO

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn
from rich.progress import Progress as Bars

from ingot.tune import Progress

_SECONDS_BETWEEN_LINES = 5.0


class ProgressBar:
    """Called with each `Progress`; shows nothing where `quiet`. Use it as a context manager."""

    def __init__(self, *, quiet: bool = False, file: TextIO | None = None) -> None:
        self._file = sys.stderr if file is None else file
        self._quiet, self._last = quiet, 0.0
        self._bars: Bars | None = None
        if not quiet and self._file.isatty():
            self._bars = Bars(TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(),
                              TextColumn("{task.fields[note]}"), console=Console(file=self._file), transient=True)
            self._task = self._bars.add_task("racing kernels", total=None, note="")

    def __enter__(self) -> Self:
        if self._bars:
            self._bars.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None,
                 trace: TracebackType | None) -> None:
        if self._bars:
            self._bars.stop()

    def __call__(self, now: Progress) -> None:
        if self._quiet:
            return
        note = ", ".join([*([f"best so far {now.best * 1e3:.2f} ms"] if now.best else []),
                          *([f"{now.left:.0f} s left"] if now.left is not None else [])])
        if self._bars:
            self._bars.update(self._task, completed=now.done, total=now.total, note=f"{note}  {now.where}")
            return
        moment = time.monotonic()
        if now.done == now.total or moment - self._last >= _SECONDS_BETWEEN_LINES:
            self._last = moment
            print(f"racing kernels: {now.done} of {now.total} sites; {note or 'starting'}", file=self._file, flush=True)
