"""The whole compiler, top to bottom: a model becomes an engine that was compared with it."""
from __future__ import annotations

import logging
import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np

from ingot import env
from ingot.compiler.options import BuildOptions
from ingot.engine import Engine, Variant, graph_digest, is_exact, make_variant, read_engine, write_engine
from ingot.errors import EngineError, InternalError, UnsupportedError
from ingot.frontend import ShapeSpec, is_shapes, source_from
from ingot.frontend import load as load_model
from ingot.graph import Graph, show
from ingot.lower import Program, lower
from ingot.passes import both, optimize, unwatched
from ingot.passes.check import Checker
from ingot.runtime.bench import CpuDevice
from ingot.runtime.host import host_target
from ingot.runtime.session import Session, code_cache
from ingot.target import Target
from ingot.tune import Progress, Tuning, TuningCache, generator_version, tune
from ingot.verify import Verdict, accept, failing_probe, first_divergence, original_from, refuse, remembered, verify

_LOG = logging.getLogger("ingot")
Feeds = Mapping[str, np.ndarray]


@dataclass(frozen=True)
class Build:
    """A finished engine, and how its making went: what two equal builds may differ in stays out of the engine."""

    engine: Engine
    seconds: Mapping[str, float]        # per stage
    tuning: Tuning


def build(model: Any, example_inputs: Any = None, options: BuildOptions = BuildOptions(), *,
          shapes: Mapping[str, ShapeSpec] | None = None, **more: Any) -> Engine:
    """Build an engine for this machine's CPU, verified against the model it came from. See `build_with_report`.

    The second argument is what a PyTorch module is called with; for a model that needs no example it may be `shapes`.
    """
    if shapes is None and is_shapes(example_inputs):
        example_inputs, shapes = None, example_inputs
    return build_with_report(model, shapes, options, example_inputs=example_inputs, **more).engine


def build_with_report(model: Any, shapes: Mapping[str, ShapeSpec] | None = None,
                      options: BuildOptions = BuildOptions(), *, inputs: Sequence[Feeds] = (),
                      original: object = None, progress: Callable[[Progress], None] | None = None,
                      name: str = "", example_inputs: Any = None, dynamic: Any = None,
                      weights: str | os.PathLike[str] | None = None, opset: int | None = None) -> Build:
    """Build an engine for this machine's CPU, and compare it with the model it came from.

    `model` is the path, bytes or proto of an ONNX model, or a `Graph`. `shapes` gives sizes and profiles per input,
    for example `{"input": "1..8..32x3x224x224"}`: right on the whole range, tuned at the middle number, planned for
    the last. `inputs` are sets of arrays by name to verify on; by default they are generated. `original` is who
    gives the right answers: None (the reference evaluator), "onnxruntime", a PyTorch module, or a callable.

    A PyTorch module, an exported program or a file of one is exported first, and every export is held against the
    module's own run; `example_inputs` is what it is called with, `dynamic` which axes may vary (True: the batch),
    `weights` a checkpoint to load into it, `opset` the ONNX version to export to.

    Raises ModelError, UnsupportedError, InputError or VerifyError.
    """
    settings = env.read()
    target = host_target(options.threads or settings.threads or None, options.isa or None)
    dump = _Dump(options.dump or (Path(settings.dump) if settings.dump else None))
    clock = _Clock()

    with clock("load"):
        source = source_from(model, example_inputs, dynamic, shapes, weights=weights, opset=opset)
        taken = accept(source, inputs=inputs, seed=options.seed, check=options.verify,
                       lenient=options.allow_unverified) if source else None
        graph = taken.graph if taken else load_model(model, shapes)
        for alarm in taken.alarms if taken else ():
            _LOG.log(logging.INFO if alarm.kind == "pre-processing" else logging.WARNING, "%s", alarm)
    with clock("optimize"):
        optimized = _optimize(graph, target, options, dump)
    with clock("lower"):
        program = lower(optimized, target)
        dump("program", lambda: str(program))
        _refuse_reference(program, options)
    with clock("tune"):
        tuned = _tune(program, target, options, progress)
        dump("tune", lambda: race_text(program, tuned))
    with clock("plan"):
        variant = make_variant(program, target, tuned.choices, tuned.kernels, _report(graph, optimized, program))
        dump("plan", lambda: str(variant.plan))
    engine = Engine(name or (source.name if source else _name(model)), graph, (variant,))
    if taken and original is None:
        original, inputs = taken.original, (*([source.examples] if source else []), *inputs)
    if options.verify:
        with clock("verify"):
            engine = _verified(engine, variant, optimized, model, options, inputs, original,
                               taken.lines if taken else ())
    return Build(engine, dict(clock.seconds), tuned)


def load(path: str | os.PathLike[str], *, strict: bool = False, threads: int | None = None) -> Engine:
    """An engine from its file. One that was made on another device gets a variant for this one, untuned, at once.

    With `strict` that is refused instead. Raises EngineError for a damaged, foreign or newer file.
    """
    engine = read_engine(path)
    target = host_target(threads or env.read().threads or None)
    if (reason := engine.declines(target)) is None:
        return engine
    if strict:
        raise EngineError(f"{path} was not built for this device", why=(reason,),
                          mend=f"build it here: ingot build MODEL -o {path}; or load it without strict")
    graph = engine.graph
    program = lower(optimize(graph, target), target)
    return replace(engine, variants=(*engine.variants, make_variant(program, target)))


def save(engine: Engine, path: str | os.PathLike[str]) -> None:
    """Write an engine to a file: beside it first, then renamed. The same engine gives the same bytes."""
    write_engine(engine, path)


def _verified(engine: Engine, variant: Variant, optimized: Graph, model: Any, options: BuildOptions,
              inputs: Sequence[Feeds], original: object, notes: tuple[str, ...] = ()) -> Engine:
    """The engine with its verdict inside. Raises VerifyError, naming the first diverging node, if it does not pass."""
    path = os.fspath(model) if isinstance(model, (str, os.PathLike)) else ""
    judge = original_from(original, engine.graph, path)
    if original in (None, "reference"):
        judge = remembered(judge, lambda: graph_digest(engine.graph), env.cache_folder() / "answers")
    session = Session(engine, variant=variant)
    verdict = verify(session.run, judge, engine.graph, engine=engine.name, inputs=inputs, seed=options.seed,
                     exact=is_exact(variant))
    verdict = replace(verdict, notes=notes)
    if not verdict.passed:
        verdict = replace(verdict, diverged=_divergence(engine, variant, optimized, verdict, inputs, options.seed))
        if not options.allow_unverified:
            raise refuse(verdict)
    return replace(engine, verdict=verdict.to_json())


def _divergence(engine: Engine, variant: Variant, optimized: Graph, verdict: Verdict, inputs: Sequence[Feeds],
                seed: int) -> str:
    """Which launch goes wrong first: the same kernels once more, with every launch's result kept."""
    probe = failing_probe(verdict, engine.graph, inputs, seed)
    if probe is None:
        return ""
    written = [w for x in variant.program.launches for w in x.writes if w in optimized.types]
    kept = tuple(dict.fromkeys((*variant.program.outputs, *written)))
    watched = make_variant(replace(lower(optimized, variant.target), outputs=kept), variant.target, variant.choices)
    values = Session(engine, variant=watched).run(probe.feeds)
    return first_divergence(values, optimized, probe)


def _optimize(graph: Graph, target: Target, options: BuildOptions, dump: _Dump) -> Graph:
    """Run the passes; under `check_passes` each is proven against the reference. Raises InternalError naming a pass."""
    dump("load", lambda: show(graph))
    checker = Checker() if options.check_passes else None
    optimized = optimize(graph, target, both(dump.watch, checker or unwatched))
    if checker and checker.wrong:
        raise InternalError(f"the pass {checker.wrong[0].step} changed the model's meaning",
                            why=tuple(map(str, checker.wrong)), mend="please report it with the model")
    return optimized


def _refuse_reference(program: Program, options: BuildOptions) -> None:
    slow = [x for x in program.launches if not x.native]
    if options.strict and slow:
        raise UnsupportedError(f"{len(slow)} nodes have no kernel and would run on the slow reference path",
                               where="; ".join(x.where for x in slow),
                               why=tuple(dict.fromkeys(r for x in slow for r in x.reasons)),
                               mend="build without strict, or add a tactic under ingot/kernels")


def _tune(program: Program, target: Target, options: BuildOptions,
          progress: Callable[[Progress], None] | None) -> Tuning:
    folder = env.cache_folder()
    # races without the tactics that are not exact have winners of their own
    cache = TuningCache(folder / "tuning", target, generator_version() + ("-exact" if options.exact else ""))
    device = CpuDevice(target, code_cache()) if options.tune else None
    return tune(program, target, device, cache, budget=options.budget, progress=progress, turn=folder,
                exact=options.exact)


def race_text(program: Program, tuned: Tuning) -> str:
    """Every site with its candidates: the time of each, or the reason it has none."""
    lines = []
    sites = {x.site.key: x.site for x in program.launches if x.native}
    for key, choice in tuned.choices.items():
        lines += [f"{key} {sites[key]}", f"  -> {choice.point}", *(f"     {t}" for t in choice.trials)]
    return "\n".join(lines)


def _report(graph: Graph, optimized: Graph, program: Program) -> dict[str, object]:
    return {
        "nodes": len(graph.nodes), "optimized": len(optimized.nodes), "launches": len(program.launches),
        "reference": [{"where": x.where, "reasons": list(x.reasons)} for x in program.launches if not x.native],
    }


def _name(model: Any) -> str:
    return Path(model).stem if isinstance(model, (str, os.PathLike)) else "model"


class _Clock:
    """Seconds per stage."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}

    @contextmanager
    def __call__(self, stage: str) -> Iterator[None]:
        begin = time.perf_counter()
        yield
        self.seconds[stage] = time.perf_counter() - begin
        _LOG.info("%s: %.2f s", stage, self.seconds[stage])


class _Dump:
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
