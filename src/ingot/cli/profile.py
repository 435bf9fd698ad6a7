"""`ingot profile`: where the time of a run goes on a CPU or a GPU, kernel by kernel, and what bounds each."""
from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from ingot.bench import limits_of, spent, trace
from ingot.cli.arguments import told_sizes
from ingot.cli.commands import Device, EnginePath, Json, Threads, Trust, app, tell
from ingot.compiler.build import load as load_engine
from ingot.compiler.gpu import short_feeds
from ingot.report import Table, roofline_table
from ingot.runtime.cuda.open import open_session
from ingot.verify import random_feeds


@app.command("profile")
def profile_command(
    engine: EnginePath,
    size: Annotated[list[str] | None, typer.Option(
        "--size", metavar="SYMBOL=N", help="size of a dynamic axis; default: the tuned one")] = None,
    runs: Annotated[int, typer.Option("--runs", min=1, help="runs to take the median of")] = 20,
    top: Annotated[int, typer.Option("--top", min=0, help="show the slowest kernels only; 0: all")] = 0,
    trace_to: Annotated[Path | None, typer.Option(
        "--trace", metavar="FILE.json", help="write a trace for chrome://tracing or ui.perfetto.dev")] = None,
    threads: Threads = 0,
    device: Device = "",
    trust: Trust = False,
    as_json: Json = False,
) -> None:
    """Show per kernel its time, arithmetic, bytes, share of this machine's measured limits, and what bounds it.

    Example: ingot profile model.ingot --size batch=8 --trace trace.json
    """
    loaded = load_engine(engine, threads=threads or None)
    session = open_session(loaded, threads or None, device=device, trust=trust)
    sizes = told_sizes(loaded.graph, size or [])
    feeds = short_feeds(session.variant, random_feeds(loaded.graph, sizes, 0))
    session.run(feeds)
    found = spent(session.variant.program, [session.profile(feeds) for _ in range(runs)], sizes)
    limits = limits_of(session)
    table = roofline_table(session.variant, found, limits)
    if trace_to:
        trace_to.write_text(json.dumps(trace(session.variant.program, found), indent=1) + "\n")
    shown = Table(table.title, table.columns, table.rows[:top or None], table.note)
    tell({"kernels": shown.to_json(), "limits": vars(limits)} if as_json else None, shown,
         *([f"trace written to {trace_to}"] if trace_to else []))
