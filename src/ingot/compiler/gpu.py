"""A build for a GPU, top to bottom: precision, regions, kernels compiled ahead and raced where there is a GPU."""
from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from ingot import env
from ingot.compiler.gpu_precision import NUMBERS, Race, cosines, gpu_plan, usual_feeds
from ingot.compiler.options import BuildOptions
from ingot.compiler.precision import Plan
from ingot.compiler.stages import Clock, Dump, race_text, refuse_reference, report
from ingot.engine import Engine, Variant, graph_digest, make_variant
from ingot.engine.code import Carried
from ingot.engine.signing import require_trust, signed
from ingot.errors import CandidateError, EngineError, InputError
from ingot.graph import Graph, show
from ingot.kernels import Params, Site, Tactic, able
from ingot.kernels.cuda import CudaKernel
from ingot.lower import Program, lower
from ingot.passes import Precision, finished, kept_for, overflows, simplified
from ingot.quantize import Calibration
from ingot.quantize.data import as_batches
from ingot.runtime.compiler import CodeCache
from ingot.runtime.cuda.bench import CudaDevice
from ingot.runtime.cuda.code import CodeStore, bundle_of
from ingot.runtime.cuda.context import plain_or_dependent, raced_in_context
from ingot.runtime.cuda.driver import Driver
from ingot.runtime.cuda.session import CudaSession
from ingot.runtime.cuda.target import cuda_target, found_driver, variant_on
from ingot.target import Target
from ingot.tune import Progress, Tuning, TuningCache, generator_version, tune
from ingot.verify import original_from, probes, random_feeds, refuse, remembered, verify

_LOG = logging.getLogger("ingot")
Feeds = Mapping[str, np.ndarray]
_COMPARED = 8       # batches on which the result is held against the float model


@dataclass(frozen=True)
class GpuBuild:
    """An engine for a GPU, and how its races went."""

    engine: Engine
    tuning: Tuning
    plan: Plan | None = None        # which sites work in short numbers, where that was asked for


def kernel_cache() -> CodeCache:
    """The cache of kernels for GPUs in the user's cache folder."""
    return CodeCache(env.cache_folder() / "cuda")


def build_gpu(graph: Graph, options: BuildOptions, clock: Clock, dump: Dump, *, inputs: Sequence[Feeds] = (),
              original: object = None, progress: Callable[[Progress], None] | None = None, name: str = "model",
              path: str = "", notes: tuple[str, ...] = (), driver: Driver | None = None,
              calibration: Any = None) -> GpuBuild:
    """Build an engine for a GPU: the one here, or any of an architecture.

    Without a GPU of that architecture here it is cross-compiled: each site takes its best guess, marked untuned, and
    nothing is verified. Raises what `build_with_report` does.
    """
    driver = driver or found_driver()
    target = cuda_target(options.target, driver, tf32=options.precision == "tf32")
    here = driver if target.device else None
    with clock("optimize"):
        dump("load", lambda: show(graph))
        whole = base = simplified(graph, target, dump.watch)
        precision, watched = _precision(whole, graph, options, inputs)
    plan, data = None, list[Feeds]()
    if options.precision in NUMBERS:
        with clock("precision"):
            if calibration is not None and not isinstance(calibration, Calibration):
                data = as_batches(calibration, graph, options.samples, options.tokenizer)
            plan = _plan(base, target, here, options, data or calibration, precision, progress)
        if plan.chosen:             # the engine means the graph with short numbers in it
            graph, original = plan.graph, None
            whole = simplified(graph, target, dump.watch)
    with clock("optimize"):
        optimized = finished(whole, target, dump.watch, precision)
    with clock("lower"):
        program = lower(optimized, target)
        dump("program", lambda: str(program))
        refuse_reference(program, options)
    with CodeStore(target, kernel_cache()) as store:
        with clock("tune"):
            store.prefetch(_points(program, target, options.points if here or options.candidates else 1))
            tuned = _tuned(program, target, here, store, options, progress)
            dump("tune", lambda: race_text(program, tuned))
        more = list(_candidates(program, target, store, options.points)) if options.candidates else []
    with clock("plan"):
        told = {**report(graph, optimized, program), "precision": precision.name, "kept": sorted(precision.keep),
                "outside": precision.outside, "overflow": watched, "tuned": here is not None and options.tune,
                "points": options.points}
        variant = _finished(program, target, tuned, told, more)
        dump("plan", lambda: str(variant.plan))
    engine = Engine(name, graph, (variant,), report=plan.report() if plan else {})
    if here is not None:
        engine, variant = _in_context(engine, variant, tuned, here, options, clock)
        if options.verify:
            with clock("verify"):
                engine = _verified(engine, variant, tuned, here, options, inputs, original, path, notes)
        if plan and plan.chosen and data:
            with clock("accuracy"):
                session = CudaSession(engine, variant, _kernels(tuned), here)
                found = cosines(base, lambda feeds: session.run(short_feeds(variant, feeds)), data[:_COMPARED])
                plan = replace(plan, accuracy=found)
                engine = replace(engine, report=plan.report())
    return GpuBuild(engine, tuned, plan)


def tune_engine(engine: Engine, *, trust: bool = False, driver: Driver | None = None, budget: float | None = None,
                progress: Callable[[Progress], None] | None = None, check: bool = True) -> GpuBuild:
    """Race the candidates an engine carries on the GPU here; no compiler, no network.

    Raises EngineError where the engine carries none, its code is not trusted, or another generator made it.
    """
    driver = driver or found_driver()
    old = variant_on(engine, driver)
    assert driver is not None       # variant_on refuses what has no GPU
    if not old.code.kernels:
        raise EngineError("the engine carries no code to race", mend="build it with --candidates, or here")
    require_trust(old.code, env.keys_folder(), trust=trust)
    if old.generator != (here := generator_version(Target("cuda"))):
        raise EngineError("the engine's candidates are of another kernel generator",
                          why=(f"theirs is {old.generator}, the installed one {here}",),
                          mend="tune it with the Ingot it was built with, or build it anew")
    told = old.report
    target = cuda_target("cuda", driver, tf32=told.get("precision") == "tf32")
    precision = Precision(str(told.get("precision", "f32")), frozenset(map(str, told.get("kept", ()))),  # type: ignore
                          bool(told.get("outside")))
    options = BuildOptions(budget=budget, precision=precision.name, points=int(str(told.get("points", 16))))
    clock, dump = Clock(), Dump(None)
    optimized = finished(simplified(engine.graph, target), target, precision=precision)
    program = lower(optimized, target)
    store = CodeStore(target, None, old.code.kernels, closed=True)
    with clock("tune"):
        tuned = _tuned(program, target, driver, store, options, progress)
        dump("tune", lambda: race_text(program, tuned))
    variant = _finished(program, target, tuned, {**told, "tuned": True}, ())
    made = replace(engine, variants=(variant, *(v for v in engine.variants if v.target is None
                                                or v.target.fingerprint != target.fingerprint)))
    made, variant = _in_context(made, variant, tuned, driver, options, clock)
    if check:
        made = _verified(made, variant, tuned, driver, options, (), None, "", ())
    return GpuBuild(made, tuned)


# --- precision ----------------------------------------------------------------------------------------------------

def _precision(whole: Graph, graph: Graph, options: BuildOptions,
               inputs: Sequence[Feeds]) -> tuple[Precision, list[dict[str, object]]]:
    """The precision asked for, with the nodes that overflow f16 on the inputs kept in f32, and what was measured."""
    if options.precision not in ("f16", *NUMBERS):
        return Precision(options.precision, outside=options.outside), []
    tried = list(inputs) or [random_feeds(graph, {s.name: s.min for s in graph.symbols.values()}, options.seed)]
    found = overflows(whole, tried)
    for each in found:
        _LOG.warning("kept in f32: %s", each)
    return Precision("f16", kept_for(whole, found), options.outside), [vars(o) for o in found]


def _plan(base: Graph, target: Target, here: Driver | None, options: BuildOptions,
          given: Calibration | Sequence[Feeds] | None, precision: Precision,
          progress: Callable[[Progress], None] | None) -> Plan:
    """Which sites work in short numbers, by races on the GPU here; every one that may, without one."""
    def lowered(graph: Graph) -> Program:
        whole = graph if graph is base else simplified(graph, target)
        return lower(finished(whole, target, precision=precision), target)

    if here is None or not options.tune:
        return gpu_plan(base, target, options, given, None)
    with CodeStore(target, kernel_cache()) as store:
        def tuned(program: Program) -> Tuning:
            store.prefetch(_points(program, target, options.points))
            return _tuned(program, target, here, store, options, progress)

        def seconds(graph: Graph, program: Program, found: Tuning) -> float:
            if any(not x.native for x in program.launches):
                return sum(found.choices[x.site.key].seconds or 0.0 for x in program.launches if x.native)
            variant = make_variant(program, target, found.choices, found.kernels)
            session = CudaSession(Engine("timed", graph, (variant,)), variant, _kernels(found), here)
            return plain_or_dependent(session, short_feeds(variant, usual_feeds(graph, options.seed)))

        return gpu_plan(base, target, options, given, Race(lowered, tuned, seconds))


# --- kernels ------------------------------------------------------------------------------------------------------

def _points(program: Program, target: Target, points: int) -> Iterator[tuple[Tactic, Site, Params]]:
    """What may be raced: the first point of the first tactic of every site, then the others."""
    sites = {x.site.key: x.site for x in program.launches if x.native}
    rest: list[tuple[Tactic, Site, Params]] = []
    for site in sites.values():
        for place, tactic in enumerate(able(site, target)[0]):
            for number, params in enumerate(tactic.space(site, target)):
                if number >= points:
                    break
                if place == 0 and number == 0:
                    yield tactic, site, params
                elif points > 1:
                    rest.append((tactic, site, params))
    yield from rest


def _candidates(program: Program, target: Target, store: CodeStore, points: int) -> Iterator[Carried]:
    """Every candidate that could be built."""
    for tactic, site, params in _points(program, target, points):
        try:
            kernel = store.emit(tactic, site, params, target)
        except CandidateError:
            continue
        assert isinstance(kernel, CudaKernel)       # what a store gives
        yield Carried(site.key, tactic.name, params, kernel)


def _tuned(program: Program, target: Target, driver: Driver | None, store: CodeStore, options: BuildOptions,
           progress: Callable[[Progress], None] | None) -> Tuning:
    folder = env.cache_folder()
    cache = TuningCache(folder / "tuning", target, generator_version(target) + f"-{options.points}"
                        + ("-exact" if options.exact else ""))
    device = CudaDevice(driver) if driver and options.tune else None
    return tune(program, target, device, cache, budget=options.budget, progress=progress, turn=folder,
                exact=options.exact, emit=store.emit, points=options.points)


def _kernels(tuned: Tuning) -> dict[str, CudaKernel]:
    return {k: v for k, v in tuned.kernels.items() if isinstance(v, CudaKernel)}


def _finished(program: Program, target: Target, tuned: Tuning, told: Mapping[str, object],
              more: Sequence[Carried]) -> Variant:
    """The variant with its code, signed where this user has a key."""
    variant = make_variant(program, target, tuned.choices, tuned.kernels, told)
    return replace(variant, code=signed(bundle_of(variant, _kernels(tuned), more), env.keys_folder()))


def _in_context(engine: Engine, variant: Variant, tuned: Tuning, driver: Driver, options: BuildOptions,
                clock: Clock) -> tuple[Engine, Variant]:
    """The engine with what only a whole run can tell: which launches may begin before the one before has ended."""
    if not options.tune or any(not x.native for x in variant.program.launches):
        return engine, variant
    with clock("context"):
        session = CudaSession(engine, variant, _kernels(tuned), driver)
        sizes = {s.name: s.opt for s in variant.program.symbols.values()}
        feeds = short_feeds(variant, random_feeds(engine.graph, sizes, options.seed))
        found = raced_in_context(session, feeds)
    told = {**variant.report, "dependent": list(found.dependent), "seconds": found.seconds,
            "seconds_plain": found.plain}
    made = replace(variant, report=told)
    return replace(engine, variants=tuple(made if v is variant else v for v in engine.variants)), made


# --- verification -------------------------------------------------------------------------------------------------

def short_feeds(variant: Variant, feeds: Feeds) -> dict[str, np.ndarray]:
    """Inputs of the model in the types that the engine takes."""
    return {k: a if a.dtype.kind in "OUS" else a.astype(variant.program.types[k].dtype.numpy, copy=False)
            for k, a in feeds.items()}


def wide_results(graph: Graph, results: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Results of an engine in the types that the model gives."""
    return {k: a if a.dtype.kind in "OUS" else a.astype(graph.types[k].dtype.numpy, copy=False)
            for k, a in results.items()}


def _verified(engine: Engine, variant: Variant, tuned: Tuning, driver: Driver, options: BuildOptions,
              inputs: Sequence[Feeds], original: object, path: str, notes: tuple[str, ...]) -> Engine:
    """The engine with its verdict inside. Raises VerifyError if it does not pass."""
    graph = engine.graph
    judge = original_from(original, graph, path)
    if original in (None, "reference"):
        judge = remembered(judge, lambda: graph_digest(graph), env.cache_folder() / "answers")
    session = CudaSession(engine, variant, _kernels(tuned), driver)
    short = "f16" if options.precision in NUMBERS else options.precision if options.precision != "f32" else ""
    tried = probes(graph, options.seed)
    if short in ("f16", "bf16"):        # what does not fit the short type is not the engine's to get right
        tried = [p for p in tried if p.name.startswith("random")]
    verdict = verify(lambda feeds: wide_results(graph, session.run(short_feeds(variant, feeds))), judge, graph,
                     engine=f"{engine.name} on {driver.facts.name} in {options.precision}", inputs=inputs,
                     seed=options.seed, tried=tried, short=short)
    verdict = replace(verdict, notes=notes)
    if not verdict.passed and not options.allow_unverified:
        raise refuse(verdict)
    return replace(engine, verdict=verdict.to_json())


def merged(old: Engine, new: Engine) -> Engine:
    """One engine with the variants of both; of two for one device the new one. Raises InputError for two models."""
    if graph_digest(old.graph) != graph_digest(new.graph):
        raise InputError("the two engines are of different models", mend="write to another file")
    fresh = {t.fingerprint for t in new.targets}
    kept = tuple(v for v in old.variants if v.target is None or v.target.fingerprint not in fresh)
    return replace(new, variants=(*new.variants, *kept), verdict=new.verdict or old.verdict)


__all__ = ["GpuBuild", "build_gpu", "kernel_cache", "merged", "short_feeds", "tune_engine", "wide_results"]
