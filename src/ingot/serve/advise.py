"""The measuring part of a recommendation: an engine's cost by shape, for every way to divide the machine's threads."""
from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np

from ingot.engine import Engine
from ingot.errors import InputError
from ingot.graph import Expr
from ingot.runtime.host import thread_count
from ingot.runtime.session import Session
from ingot.serve.cost import CostCurve, grid, measured
from ingot.serve.describe import batch_symbol, lengths_of
from ingot.serve.recommend import Recommendation, offered, profile_of, recommend
from ingot.serve.traffic import Arrival
from ingot.verify import random_feeds


def curve_with(engine: Engine, threads: int, instances: int, batch: str, padded: str, budget: float) -> CostCurve:
    """What a run takes with so many threads, while as many instances as there are all run."""
    sessions = [Session(engine, threads) for _ in range(instances)]
    symbols = {s.name: (s.min, s.opt, s.max) for s in engine.graph.symbols.values()}
    tuned = {name: opt for name, (_, opt, _) in symbols.items()}
    feeds: dict[tuple[int, int], dict[str, np.ndarray]] = {}
    with ThreadPoolExecutor(instances) as pool:
        def run(rows: int, length: int) -> object:
            if (rows, length) not in feeds:
                feeds.clear()
                feeds[rows, length] = random_feeds(engine.graph, {
                    **tuned, **({batch: rows} if batch else {}), **({padded: length} if padded else {})}, 0)
            given = feeds[rows, length]
            return list(pool.map(lambda s: s.run(given), sessions)) if instances > 1 else sessions[0].run(given)

        return measured(run, grid(*symbols[batch]) if batch else (1,),
                        lengths_of(symbols[padded], ()) if padded else (0,), budget=budget)


def advised(engine: Engine, arrivals: Sequence[Arrival], goal: float, pad: str, points: int, threads: int
            ) -> tuple[Recommendation, list[str]]:
    """The recommendation, and the shapes to build for as INPUT:SHAPE. `goal` in seconds. Raises InputError."""
    graph = engine.graph
    types, symbols = graph.types, graph.symbols
    if pad and pad not in symbols:
        raise InputError(f"the engine has no axis '{pad}'", where="--pad",
                         mend=f"axes that vary: {', '.join(symbols) or 'none'}")
    known = [a for a in arrivals if set(a.shapes) & set(graph.inputs)]
    if not known:
        raise InputError("no request on record has this engine's inputs", why=(f"they are {', '.join(graph.inputs)}",),
                         mend="name the model on record: --model")
    batch = batch_symbol([types[v] for v in graph.inputs], [types[v] for v in graph.outputs], symbols)
    axis = {v: i for v in graph.inputs for i, d in enumerate(types[v].shape) if pad and str(d) == pad}
    total = threads or thread_count()
    curves = {n: curve_with(engine, n, total // n, batch, pad, 15.0) for n in range(1, total + 1) if total % n == 0}
    least, most = (symbols[batch].min, symbols[batch].max) if batch else (1, 1)
    found = recommend(offered(known, axis), curves, most, least, goal, points)
    dims = {v: tuple(str(d) if isinstance(d, Expr) else d for d in types[v].shape) for v in graph.inputs}
    shapes = profile_of(known, dims, batch, most)
    if batch:           # requests may run together: tune for the batches that will be served
        rows = found.points[0]
        shapes = {v: _with_opt(text, rows) if str(types[v].shape[0]) == batch else text for v, text in shapes.items()}
    return found, [f"{v}:{text}" for v, text in shapes.items()]


def _with_opt(shape: str, rows: int) -> str:
    first, _, rest = shape.partition("x")
    least, _, most = first.split("..")
    return f"{least}..{rows}..{most}" + (f"x{rest}" if rest else "")
