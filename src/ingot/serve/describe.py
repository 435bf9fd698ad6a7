"""From an engine file (or an ONNX file) to what serves it: a session, its description, its measured cost."""
from __future__ import annotations

import hashlib
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from ingot.compiler.build import build, load, save
from ingot.engine import Engine
from ingot.env import cache_folder
from ingot.errors import ModelError
from ingot.graph import Expr, TensorType, symbols_of
from ingot.runtime.cuda.open import open_session
from ingot.runtime.cuda.session import CudaSession
from ingot.runtime.session import Session
from ingot.serve.cost import CostCurve, grid, keep_curve, measured, read_curve
from ingot.serve.datatype import datatype_of
from ingot.serve.tensor import Description, Port
from ingot.verify import random_feeds

WAKING = 100e-6         # seconds it takes to wake a sleeping thread, on a bad day


def digest_of(path: Path) -> str:
    """A short hash of a file's bytes."""
    found = hashlib.sha256()
    with open(path, "rb") as file:
        while part := file.read(1 << 22):
            found.update(part)
    return found.hexdigest()[:24]


def engine_at(path: Path, shapes: Mapping[str, str], threads: int, known: str = "") -> tuple[Engine, str]:
    """The engine of a file, and a hash that stands for it. An ONNX file is built on its first load, and kept.

    `known` is the hash where it was found before: to hash a large file takes longer than to load it.
    """
    if known:
        kept = cache_folder() / "serve" / f"{known}.ingot"
        return load(kept if path.suffix == ".onnx" else path, threads=threads or None), known
    digest = digest_of(path)
    if path.suffix != ".onnx":
        return load(path, threads=threads or None), digest
    told = hashlib.sha256(repr(sorted(shapes.items())).encode()).hexdigest()[:8]
    kept = cache_folder() / "serve" / f"{digest}-{told}.ingot"
    if not kept.exists():
        kept.parent.mkdir(parents=True, exist_ok=True)
        save(build(str(path), shapes=dict(shapes)), kept)
    return load(kept, threads=threads or None), f"{digest}-{told}"


def fitting_session(engine: Engine, threads: int, device: str = "") -> Session | CudaSession:
    """A session with these threads (0: what the machine grants); with one, where a run is over before others wake.

    On the GPU where the engine has code for one and there is one, unless `device` says cpu; its stream and its graphs
    are the process's own.
    """
    session = open_session(engine, threads or None, device=device)
    if session.threads == 1:
        return session
    feeds = random_feeds(engine.graph, {s.name: s.opt for s in engine.graph.symbols.values()}, 0)
    for _ in range(3):
        session.run(feeds)
    begin = time.perf_counter()
    session.run(feeds)
    if time.perf_counter() - begin > 20 * WAKING:
        return session
    alone = Session(engine, 1)
    each = []
    for one in (session, alone):
        taken = []
        for _ in range(20):
            time.sleep(0.0005)          # as between requests: the threads have gone to sleep
            begin = time.perf_counter()
            one.run(feeds)
            taken.append(time.perf_counter() - begin)
        each.append(sorted(taken)[10])
    return alone if each[1] < each[0] else session


def batch_symbol(inputs: list[TensorType], outputs: list[TensorType], symbols: Mapping[str, Any]) -> str:
    """The symbol that is the batch: the first axis of every input and output, and nowhere else; else ""."""
    types = [*inputs, *outputs]
    if not types or any(t.rank == 0 for t in types):
        return ""
    first = {str(t.shape[0]) for t in types}
    name = next(iter(first))
    if len(first) != 1 or name not in symbols:
        return ""
    return "" if any(name in symbols_of(d) for t in types for d in t.shape[1:]) else name


def describe(session: Session | CudaSession, engine: Engine) -> Description:
    """What the engine takes and gives."""
    program = session.variant.program

    def port(name: str) -> Port:
        type_ = program.types[name]
        return Port(name, datatype_of(type_.dtype),
                    tuple(str(d) if isinstance(d, Expr) else int(d) for d in type_.shape))

    symbols = {s.name: (s.min, s.opt, s.max) for s in program.symbols.values()}
    batch = batch_symbol([program.types[v] for v in program.inputs], [program.types[v] for v in program.outputs],
                         symbols)
    native = sum(x.native for x in program.launches)
    facts = {"name": engine.name, "threads": session.threads, "arena": session.plan.arena,
             "weights": sum(a.nbytes for a in session.variant.packed.values()),
             "target": session.variant.target.fingerprint, "launches": len(program.launches), "native": native,
             "precision": precision_shares(session), "verified": bool(engine.verdict.get("passed", False))}
    return Description(tuple(map(port, program.inputs)), tuple(map(port, program.outputs)), symbols, batch, facts)


def precision_shares(session: Session | CudaSession) -> dict[str, float]:
    """The share of the launches that compute in each element type: what really runs, not what was asked for."""
    found: dict[str, int] = {}
    for launch in session.variant.program.launches:
        name = launch.site.outputs[0].type.dtype.name
        found[name] = found.get(name, 0) + 1
    total = sum(found.values()) or 1
    return {name: count / total for name, count in sorted(found.items())}


def lengths_of(symbol: tuple[int, int, int], buckets: tuple[int, ...]) -> tuple[int, ...]:
    """The lengths requests are padded to: what is told, else powers of two and what lies between, up to the largest."""
    least, tuned, most = symbol
    if buckets:
        return tuple(sorted({min(max(b, least), most) for b in buckets} | {most}))
    steps = {least, tuned, most}
    step = 8
    while step < most:
        steps |= {step, step + step // 2}
        step *= 2
    return tuple(sorted(n for n in steps if least <= n <= most))


def cost_of(session: Session | CudaSession, engine: Engine, description: Description, digest: str, padded: str,
            buckets: tuple[int, ...]) -> CostCurve:
    """The engine's cost curve on this machine with the session's threads: kept from before, or measured now."""
    target = hashlib.sha256(session.variant.target.fingerprint.encode()).hexdigest()[:8]
    generator = session.variant.generator[:12]
    words = [digest, target, generator, f"t{session.threads}", *([padded, *map(str, buckets)] if padded else [])]
    path = cache_folder() / "cost" / ("-".join(words)[:200] + ".json")
    if (kept := read_curve(path)) is not None:
        return kept
    symbols = description.symbols
    sizes = {name: opt for name, (_, opt, _) in symbols.items()}
    rows = grid(*symbols[description.batch]) if description.batch else (1,)
    lengths = lengths_of(symbols[padded], buckets) if padded else (0,)
    feeds: dict[tuple[int, int], dict[str, np.ndarray]] = {}

    def run(n: int, length: int) -> object:
        at = (n, length)
        if at not in feeds:
            told = {**sizes, **({description.batch: n} if description.batch else {}),
                    **({padded: length} if padded else {})}
            feeds[at] = random_feeds(engine.graph, told, 0)
        return session.run(feeds[at])

    origin = f"{session.variant.target.fingerprint}, {session.threads} threads, {time.strftime('%Y-%m-%d')}"
    curve = measured(run, rows, lengths, origin)
    keep_curve(curve, path)
    return curve


def check_padding(description: Description, pad: Mapping[str, float]) -> None:
    """Raises ModelError where padding is told for an input there is not."""
    names = [p.name for p in description.inputs]
    if unknown := [n for n in pad if n not in names]:
        raise ModelError(f"'pad' names '{unknown[0]}', which is no input", why=(f"the inputs are {', '.join(names)}",),
                         mend="correct the model's YAML file")
