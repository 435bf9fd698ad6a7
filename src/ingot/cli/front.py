"""`ingot front`: what each error allows in milliseconds, as a table and a plot."""
from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from ingot.cli.commands import Json, Shapes, Threads, app, tell
from ingot.compiler.build import tuned_here
from ingot.compiler.front import front
from ingot.compiler.options import BuildOptions
from ingot.compiler.precision import calibrated
from ingot.compiler.sensitivity import Judge
from ingot.frontend import load as load_graph
from ingot.frontend import parse_shapes
from ingot.passes import simplified
from ingot.quantize import quantisable
from ingot.quantize.data import as_batches
from ingot.report.front import front_plot, front_table
from ingot.runtime.host import host_target


@app.command("front")
def front_command(
    model: Annotated[Path, typer.Argument(help="an ONNX model")],
    calibrate: Annotated[Path, typer.Option("--calibrate", metavar="DATA", help="representative inputs: .npz, .npy, a "
                                            "folder, or text with --tokenizer")],
    shapes: Shapes = None,
    budgets: Annotated[list[float] | None, typer.Option(
        "--accuracy-budget", min=0, metavar="PERCENT", help="errors to plan for; default: shares of the whole")] = None,
    method: Annotated[str, typer.Option("--method", help="how ranges follow from what was seen")] = "mse",
    samples: Annotated[int, typer.Option("--samples", min=1, help="the most samples to calibrate on")] = 512,
    compared: Annotated[int, typer.Option("--compared", min=1, help="the batches each plan is judged on")] = 8,
    tokenizer: Annotated[Path | None, typer.Option("--tokenizer", help="the tokenizer.json, for text")] = None,
    plot: Annotated[Path | None, typer.Option("--plot", metavar="FILE.svg", help="write the plot there")] = None,
    budget: Annotated[float | None, typer.Option("--budget", min=0, metavar="SECONDS", help="of each race")] = None,
    threads: Threads = 0,
    as_json: Json = False,
) -> None:
    """Show which speed each loss of accuracy buys: plans from all int8 to all floats, measured beside each other.

    Example: ingot front model.onnx --calibrate data.npz --plot front.svg
    """
    target = host_target(threads or None)
    graph = load_graph(str(model), parse_shapes(shapes or []))
    data = as_batches(calibrate, graph, samples, tokenizer)
    ranges = calibrated(graph, target, data, method=method, limit=samples)
    base = simplified(graph, target)
    sites = [s for s in quantisable(base) if s.input in ranges.tensors]
    options = BuildOptions(threads=threads, budget=budget)
    found = front(base, target, Judge(base, target, ranges, data[:compared]), sites, tuned_here(target, options),
                  budgets or None)
    table = front_table(found, len(sites))
    if plot:
        plot.write_text(front_plot(found, len(sites), model.stem))
    tell({"front": table.to_json(), "floats": [list(p.floats) for p in found]} if as_json else None, table,
         *([f"plot written to {plot}"] if plot else []))
