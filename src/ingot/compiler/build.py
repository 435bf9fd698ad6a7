"""The whole compiler, top to bottom: a model becomes an engine that was compared with it."""
from __future__ import annotations

import logging
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from ingot import env
from ingot.compiler.divergence import divergence, kernels_judged
from ingot.compiler.gpu import build_gpu
from ingot.compiler.intake import Extras, Intake, take_in
from ingot.compiler.options import BuildOptions
from ingot.compiler.parts import check_options, flow_report, together, verified_flow
from ingot.compiler.precision import FLOATS, Plan, lowered_precision
from ingot.compiler.profiles import all_of, fitting, one_only, profiles_of
from ingot.compiler.sensitivity import Metric
from ingot.compiler.short import short_build, told_roundings
from ingot.compiler.stages import Clock, Dump, race_text, refuse_reference, report
from ingot.engine import Engine, Variant, graph_digest, is_exact, make_variant, read_engine, write_engine
from ingot.errors import EngineError, InternalError, UnsupportedError
from ingot.frontend import ShapeSpec, is_shapes
from ingot.graph import Flow, Graph, show
from ingot.lower import Program, lower
from ingot.passes import both, optimize, unwatched
from ingot.passes.check import Checker
from ingot.runtime.bench import CpuDevice
from ingot.runtime.cuda.target import found_driver, has_cuda
from ingot.runtime.host import host_target
from ingot.runtime.session import Session, code_cache
from ingot.target import Target
from ingot.tune import Progress, Tuning, TuningCache, generator_version, tune
from ingot.verify import (
    Verdict,
    failing_probe,
    original_from,
    probes,
    refuse,
    remembered,
    rounds_to_integers,
    verify,
)

_LOG = logging.getLogger("ingot")
Feeds = Mapping[str, np.ndarray]


@dataclass(frozen=True)
class Build:
    """A finished engine, and how its making went: what two equal builds may differ in stays out of the engine."""

    engine: Engine
    seconds: Mapping[str, float]        # per stage
    tuning: Tuning
    plan: Plan | None = None            # which sites work on integers, where that was asked for


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
                      weights: str | os.PathLike[str] | None = None, opset: int | None = None,
                      preprocess: str = "", calibration: Any = None, metric: Metric | None = None) -> Build:
    """Build an engine for this machine's CPU, and compare it with the model it came from.

    `model` is the path, bytes or proto of an ONNX model, or a `Graph`. `shapes` gives sizes and profiles per input,
    for example `{"input": "1..8..32x3x224x224"}`: right on the whole range, tuned at the middle number, planned for
    the last. Several profiles, parted by "|" (`"1x8 | 2..16..64x8"`), are each tuned and planned for; a run takes the
    one tuned nearest to its sizes. `inputs` are sets of arrays by name to verify on; by default they are generated.
    `original` is who gives the right answers: None (the reference evaluator), "onnxruntime", a PyTorch module, or a
    callable.

    A PyTorch module, an exported program or a file of one is exported first, and every export is held against the
    module's own run; `example_inputs` is what it is called with, `dynamic` which axes may vary (True: the batch),
    `weights` a checkpoint to load into it, `opset` the ONNX version to export to. `preprocess` puts a
    recipe of `frontend.preprocess` in front of the input of images, for example "imagenet:480x640".

    With the option `precision` int8 (or int4-weights, int8-weights), `calibration` is representative data (a path of
    .npz or .npy files, or an iterable of feeds) or a `Calibration`. The engine's meaning then is that of the graph with
    the integers inside, and that is what it is verified against; how far it lies from the float model is in its report.
    `metric(feeds, outputs)` is what an `accuracy_budget` is counted in, 1 for all right; by default outputs are held
    against the float model's.

    Raises ModelError, UnsupportedError, InputError or VerifyError.
    """
    settings = env.read()
    target = host_target(options.threads or settings.threads or None, options.isa or None)
    dump = Dump(options.dump or (Path(settings.dump) if settings.dump else None))
    clock = Clock()

    with clock("load"):
        taken = take_in(model, shapes, options, Extras(example_inputs, dynamic, weights, opset, preprocess), inputs,
                        original)
        graph = taken.graph
    if taken.flow is not None or options.target not in ("", "x86") or options.precision not in FLOATS:
        one_only(shapes, "a build in parts, for a GPU or of integers")
    if taken.flow is not None and options.target not in ("", "x86"):
        raise UnsupportedError("a model in which data decides shapes or the course is not built for a GPU",
                               where=options.target, mend="build it for the CPU: --target x86")
    if taken.flow is not None:
        return _in_parts(taken.flow, target, options, dump, clock, progress, name or taken.name, model, taken)
    if options.target not in ("", "x86"):
        made = build_gpu(graph, options, clock, dump, inputs=taken.inputs, original=taken.original, progress=progress,
                         name=name or taken.name, path=_path(model), notes=taken.notes, calibration=calibration)
        return Build(made.engine, dict(clock.seconds), made.tuning, made.plan)
    plan = None
    if options.precision not in FLOATS:
        with clock("precision"):
            plan = lowered_precision(graph, target, options, calibration,
                                     lambda p: _tune(p, target, options, progress), metric)
        graph = plan.graph
        if plan.chosen:                 # what the float model answers is in the plan's accuracy
            taken = replace(taken, graph=graph, original=None)
    profiles = profiles_of(graph, shapes)
    each = [_compiled(p, target, options, dump, clock, progress) for p in profiles]
    variants = tuple(variant for _, variant, _ in each)
    engine = Engine(name or taken.name, graph, variants, report=plan.report() if plan else {})
    if options.verify:
        with clock("verify"):
            parts = [_verified(Engine(engine.name, p, (variant,)), variant, optimized, model, options,
                               taken if len(profiles) == 1 else replace(taken, inputs=fitting(p, taken.inputs)))
                     for p, (optimized, variant, _) in zip(profiles, each, strict=True)]
            engine = replace(engine, verdict=all_of([Verdict.from_json(e.verdict) for e in parts]).to_json())
    tuned = each[0][2] if len(each) == 1 else together([t for _, _, t in each])
    return Build(engine, dict(clock.seconds), tuned, plan)


def _compiled(graph: Graph, target: Target, options: BuildOptions, dump: Dump, clock: Clock,
              progress: Callable[[Progress], None] | None) -> tuple[Graph, Variant, Tuning]:
    """One graph, from the passes to the plan."""
    if options.precision == "bf16":
        with clock("tune"):
            short = short_build(graph, target, lambda p: _tune(p, target, options, progress), race=options.tune,
                                watch=dump.watch)
        refuse_reference(short.program, options)
        dump("program", lambda: str(short.program))
        dump("tune", lambda: race_text(short.program, short.tuning))
        with clock("plan"):
            told = {**report(graph, short.graph, short.program), **short.report()}
            variant = make_variant(short.program, target, short.tuning.choices, short.tuning.kernels, told)
        return short.graph, variant, short.tuning
    with clock("optimize"):
        optimized = _optimize(graph, target, options, dump)
    with clock("lower"):
        program = lower(optimized, target)
        dump("program", lambda: str(program))
        refuse_reference(program, options)
    with clock("tune"):
        tuned = _tune(program, target, options, progress)
        dump("tune", lambda: race_text(program, tuned))
    with clock("plan"):
        variant = make_variant(program, target, tuned.choices, tuned.kernels, report(graph, optimized, program))
        dump("plan", lambda: str(variant.plan))
    return optimized, variant, tuned


def _in_parts(flow: Flow, target: Target, options: BuildOptions, dump: Dump, clock: Clock,
              progress: Callable[[Progress], None] | None, name: str, model: Any, taken: Intake) -> Build:
    """A model that data decides the course of: each part is compiled as a model of its own would be."""
    check_options(flow, options)
    made = [_compiled(p.graph, target, options, dump, clock, progress) for p in flow.parts]
    parts = tuple(Engine(f"{name}.{k}", p.graph, (variant,))
                  for k, (p, (_, variant, _)) in enumerate(zip(flow.parts, made, strict=True)))
    engine = Engine(name, flow.graph, report=flow_report(flow), flow=flow, parts=parts)
    if options.verify:
        with clock("verify"):
            engine = verified_flow(engine, flow, taken.inputs, taken.original, _path(model), options, taken.notes)
    return Build(engine, dict(clock.seconds), together([t for _, _, t in made]))


def load(path: str | os.PathLike[str], *, strict: bool = False, threads: int | None = None) -> Engine:
    """An engine from its file. One that was made on another device gets a variant for this one, untuned, at once.

    With `strict` that is refused instead. Raises EngineError for a damaged, foreign or newer file.
    """
    engine = read_engine(path)
    target = host_target(threads or env.read().threads or None)
    if has_cuda(engine) and found_driver() is not None:
        return engine
    if (reason := engine.declines(target)) is None:
        return engine
    if strict:
        raise EngineError(f"{path} was not built for this device", why=(reason,),
                          mend=f"build it here: ingot build MODEL -o {path}; or load it without strict")
    if engine.flow is not None:
        return replace(engine, parts=tuple(_with_variant(p, target) for p in engine.parts))
    return _with_variant(engine, target)


def _with_variant(engine: Engine, target: Target) -> Engine:
    """The engine with one more variant: of default choices, for this target."""
    program = lower(optimize(engine.graph, target), target)
    return replace(engine, variants=(*engine.variants, make_variant(program, target)))


def save(engine: Engine, path: str | os.PathLike[str]) -> None:
    """Write an engine to a file: beside it first, then renamed. The same engine gives the same bytes."""
    write_engine(engine, path)


def _verified(engine: Engine, variant: Variant, optimized: Graph, model: Any, options: BuildOptions,
              taken: Intake) -> Engine:
    """The engine with its verdict inside. Raises VerifyError, naming the first diverging node, if it does not pass."""
    judge = original_from(taken.original, engine.graph, _path(model))
    inputs = taken.inputs
    if taken.original in (None, "reference"):
        judge = remembered(judge, lambda: graph_digest(engine.graph), env.cache_folder() / "answers")
    session = Session(engine, variant=variant)
    short = "bf16" if variant.report.get("precision") == "bf16" else ""
    tried = [p for p in probes(engine.graph, options.seed) if p.name.startswith("random")] if short else None
    verdict = verify(session.run, judge, engine.graph, engine=engine.name + (f" in {short}" if short else ""),
                     inputs=inputs, seed=options.seed, exact=is_exact(variant), tried=tried, short=short,
                     rounded=told_roundings(variant.report))
    verdict = replace(verdict, notes=taken.notes)
    if rounds_to_integers(engine.graph):
        judged = kernels_judged(engine, variant, optimized, probes(engine.graph, options.seed)[0])
        verdict = replace(verdict, cases=(*verdict.cases, *judged))
    if not verdict.passed:
        probe = failing_probe(verdict, engine.graph, inputs, options.seed)
        verdict = replace(verdict, diverged=divergence(engine, variant, optimized, probe) if probe else "")
        if not options.allow_unverified:
            raise refuse(verdict)
    return replace(engine, verdict=verdict.to_json())


def _optimize(graph: Graph, target: Target, options: BuildOptions, dump: Dump) -> Graph:
    """Run the passes; under `check_passes` each is proven against the reference. Raises InternalError naming a pass."""
    dump("load", lambda: show(graph))
    checker = Checker() if options.check_passes else None
    optimized = optimize(graph, target, both(dump.watch, checker or unwatched))
    if checker and checker.wrong:
        raise InternalError(f"the pass {checker.wrong[0].step} changed the model's meaning",
                            why=tuple(map(str, checker.wrong)), mend="please report it with the model")
    return optimized


def _tune(program: Program, target: Target, options: BuildOptions,
          progress: Callable[[Progress], None] | None) -> Tuning:
    folder = env.cache_folder()
    # races without the tactics that are not exact have winners of their own
    cache = TuningCache(folder / "tuning", target, generator_version(target) + ("-exact" if options.exact else ""))
    device = CpuDevice(target, code_cache()) if options.tune else None
    return tune(program, target, device, cache, budget=options.budget, progress=progress, turn=folder,
                exact=options.exact)


def tuned_here(target: Target, options: BuildOptions) -> Callable[[Program], Tuning]:
    """The race of programs on this machine, with its cache, as a build has it."""
    return lambda program: _tune(program, target, options, None)


def _path(model: Any) -> str:
    return os.fspath(model) if isinstance(model, (str, os.PathLike)) else ""


