"""Lower precision where it pays: ranges from the float engine, sites from the race, an answer that stays right.

The float engine is built first, for three things: it runs the calibration, its race says what every site takes in
floats, and it is what ships where integers are not faster.
"""
from __future__ import annotations

import logging
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from typing import Any

import numpy as np

from ingot.bench import measure
from ingot.compiler.options import BuildOptions
from ingot.compiler.running import Feeds, watching
from ingot.compiler.sensitivity import Judge, Metric, Search, read_plan, search
from ingot.compiler.weights import BITS, ROUNDING, second_moments, weights_only
from ingot.engine import Engine, Variant, make_variant
from ingot.errors import InputError
from ingot.graph import Graph
from ingot.lower import Launch, Program, lower
from ingot.passes import finished, optimize, simplified
from ingot.quantize import Calibration, QuantSite, calibrate, quantisable
from ingot.quantize.data import as_batches, batches
from ingot.quantize.insert import quantized
from ingot.quantize.rounding import IntegerWeight, Manner, integer_weights
from ingot.runtime.session import Session
from ingot.target import Target
from ingot.tune import Tuning
from ingot.verify import random_feeds

_LOG = logging.getLogger("ingot")
Tuner = Callable[[Program], Tuning]
Run = Callable[[Feeds], Mapping[str, np.ndarray]]
FLOATS = frozenset({"f32", "f16", "bf16", "tf32"})      # what a CPU builds in floats
_CONVERSIONS = frozenset({"Quantize", "Dequantize", "Mul", "Cast", "Reorder", "ReduceMax", "Abs", "Max", "Reciprocal"})
_MAIN = frozenset({"MatMul", "Conv", "MatMulInteger", "ConvInteger", "MatMulGroups", "ShortMatMul"})
_COMPARED = 32      # batches on which the result is held against the float model
_GAIN = 1.0         # integers must take less than this share of a float site's time


@dataclass(frozen=True)
class SiteTime:
    """One site, raced both ways: seconds in floats and in integers, conversions of its input included."""

    site: QuantSite
    float_seconds: float
    integer_seconds: float
    kept: bool


@dataclass(frozen=True)
class Plan:
    """Which sites work on integers, why, and what came of it."""

    graph: Graph                            # with the integers inside; the float graph where none pays
    calibration: Calibration | None         # None: weights alone, without data
    sites: tuple[SiteTime, ...] = ()
    float_seconds: float = 0.0              # of one inference, measured
    integer_seconds: float = 0.0
    notes: tuple[str, ...] = field(default=())
    search: Search | None = None            # where a budget was given
    accuracy: Mapping[str, float] = field(default_factory=dict)     # cosine to the float model, per output
    kind: str = "int8"                      # what the chosen sites are

    @property
    def chosen(self) -> tuple[QuantSite, ...]:
        return tuple(s.site for s in self.sites if s.kept)

    def report(self) -> dict[str, object]:
        """What the engine keeps of it: plain data."""
        sites = [{"site": s.site.name, "op": s.site.op, "from": list(s.site.origin), "float": s.float_seconds,
                  "integer": s.integer_seconds, "kept": s.kept} for s in self.sites]
        return {"precision": {
            "sites": sites, "float_seconds": self.float_seconds, "integer_seconds": self.integer_seconds,
            "method": self.calibration.method if self.calibration else "",
            "samples": self.calibration.samples if self.calibration else 0, "kind": self.kind,
            "search": asdict(self.search) if self.search else {},
            "alarms": list(self.calibration.alarms) if self.calibration else [],
            "notes": list(self.notes), "accuracy": dict(self.accuracy)}}


def calibrated(graph: Graph, target: Target, data: Any, *, method: str = "mse", limit: int = 512,
               told: Callable[[int], None] | None = None) -> Calibration:
    """The ranges of every site's input, seen by Ingot's own float engine while the data streams through it."""
    base = simplified(graph, target)
    sites = quantisable(base)
    run = watching(base, target, [s.input for s in sites]) if sites else lambda feeds: {}
    return calibrate(base, sites, run, batches(data, base), method=method, limit=limit, told=told)


def product_moments(graph: Graph, target: Target, data: Any, limit: int) -> dict[str, np.ndarray]:
    """The second moments of what every product reads, by site: what `gptq` rounds weights by."""
    base = simplified(graph, target)
    return second_moments(base, target, [s for s in quantisable(base) if s.op == "MatMul"], batches(data, base), limit)


def lowered_precision(graph: Graph, target: Target, options: BuildOptions, given: Any, tuner: Tuner,
                      metric: Metric | None = None) -> Plan:
    """The plan that the options ask for. Raises InputError for an unknown precision, or without data."""
    if options.precision in BITS:
        return _weights_plan(graph, target, options, given, tuner)
    if options.precision != "int8":
        raise InputError(f"no precision is called {options.precision!r}",
                         mend=f"choose one of: {', '.join((*sorted(FLOATS), 'int8', *BITS))}")
    if options.rounding not in ROUNDING or options.rounding == "awq":
        raise InputError(f"int8 weights are not rounded by {options.rounding!r}", where="--rounding",
                         mend="take rtn, mse or gptq")
    if given is None:
        raise InputError("int8 needs representative data", where="--precision int8",
                         mend="give --calibrate DATA (.npz or .npy files), or --scales FILE of an earlier build")
    data = None
    if isinstance(given, Calibration):
        calibration = given
    else:
        data = as_batches(given, graph, options.samples, options.tokenizer)
        calibration = calibrated(graph, target, data, method=options.method, limit=options.samples)
    for alarm in calibration.alarms:
        _LOG.warning("%s", alarm)
    allowed = None
    if options.plan:
        told = read_plan(options.plan)
        names = {s.name for s in quantisable(simplified(graph, target))}
        if unknown := sorted(told.keys() - names):
            raise InputError(f"the plan names a site {unknown[0]!r} that the model has not", where=str(options.plan),
                             mend=f"its sites: {', '.join(sorted(names)[:8])}, ...")
        allowed = [n for n in names if told.get(n, "int8") == "int8"]
    moments = None
    if options.rounding == "gptq":
        if data is None:
            raise InputError("gptq needs the data itself, not its ranges", where="--rounding",
                             mend="give --calibrate DATA, or take --rounding mse")
        moments = product_moments(graph, target, data, options.samples)
    base = simplified(graph, target)
    manner = Manner(clip_weights=options.rounding != "rtn")
    able = [s for s in quantisable(base) if s.input in calibration.tensors]
    weights = integer_weights(base, able, calibration, manner, moments)
    found = None
    if options.accuracy_budget is not None:
        if data is None:
            raise InputError("a budget needs data to measure on", where="--accuracy-budget",
                             mend="give --calibrate DATA as well")
        sites = [s for s in able if allowed is None or s.name in allowed]
        judge = Judge(base, target, calibration, data[:_COMPARED], manner, metric, weights)
        found = search(judge, sites, options.accuracy_budget)
        allowed = [s.name for s in sites if s.name not in found.floats]
    plan = replace(planned(graph, target, calibration, tuner, only=allowed, manner=manner, race=options.tune,
                           weights=weights), search=found)
    if data and plan.chosen:
        plan = replace(plan, accuracy=closeness(graph, plan.graph, target, data[:_COMPARED]))
    return plan


def _weights_plan(graph: Graph, target: Target, options: BuildOptions, given: Any, tuner: Tuner) -> Plan:
    """Weights of products in groups, everywhere: chosen for memory and for few rows, so both times are told."""
    base = simplified(graph, target)
    data = None
    if given is not None and not isinstance(given, Calibration):
        data = as_batches(given, graph, options.samples, options.tokenizer)
    calibration = given if isinstance(given, Calibration) else None
    if data:
        calibration = calibrated(graph, target, data, method=options.method, limit=options.samples)
    made, sites = weights_only(base, target, options, calibration, data)
    if not sites:
        return Plan(graph, calibration, notes=("the model has no product by a constant matrix: nothing was changed",))
    if not options.tune:
        plan = Plan(made, calibration, tuple(SiteTime(s, 0.0, 0.0, True) for s in sites), kind=options.precision)
    else:
        programs = [lower(optimize(g, target), target) for g in (base, made)]
        tuned = [tuner(p) for p in programs]
        seconds = side_by_side(base, [make_variant(p, target, t.choices, t.kernels)
                                      for p, t in zip(programs, tuned, strict=True)])
        times = [site_times(p, t, sites) for p, t in zip(programs, tuned, strict=True)]
        told = f"{seconds[1] * 1e3:.3g} ms against {seconds[0] * 1e3:.3g} ms"
        slower = f"slower than floats: {told}; weights alone pay for few rows and for memory"
        notes = (slower,) if seconds[1] > seconds[0] else ()
        plan = Plan(made, calibration, tuple(SiteTime(s, times[0][s.name], times[1][s.name], True) for s in sites),
                    seconds[0], seconds[1], notes, kind=options.precision)
    return replace(plan, accuracy=closeness(graph, made, target, data[:_COMPARED])) if data else plan


def closeness(graph: Graph, other: Graph, target: Target, data: Sequence[Feeds]) -> dict[str, float]:
    """The mean cosine between the outputs of two graphs, item by item, on the data."""
    base, changed = (simplified(g, target) for g in (graph, other))
    before, after = (watching(g, target, g.outputs) for g in (base, changed))
    return mean_cosines(graph.outputs, before, after, data)


def mean_cosines(names: Sequence[str], wanted: Run, found: Run, data: Sequence[Feeds]) -> dict[str, float]:
    """The mean cosine between the outputs of two runs, item by item, on the data."""
    taken: dict[str, list[float]] = {name: [] for name in names}
    for feeds in data:
        a, b = wanted(feeds), found(feeds)
        for name in names:
            x, y = (np.atleast_1d(np.asarray(v[name], np.float64)) for v in (a, b))
            x, y = x.reshape(len(x), -1), y.reshape(len(y), -1)
            norms = np.linalg.norm(x, axis=1) * np.linalg.norm(y, axis=1)
            taken[name] += list((x * y).sum(1) / np.maximum(norms, 1e-30))
    return {name: float(np.mean(values)) for name, values in taken.items() if values}


def planned(graph: Graph, target: Target, calibration: Calibration, tuner: Tuner, *,
            only: Sequence[str] | None = None, manner: Manner = Manner(), race: bool = True,
            weights: Mapping[str, IntegerWeight] | None = None) -> Plan:
    """The plan for a graph: sites whose region is faster on integers, measured beside the float engine.

    `only` names the sites that may be integer; without `race` all of them are, and nothing is timed. `weights` are the
    sites' weights as integers, where they were made before.
    """
    base = simplified(graph, target)
    sites = [s for s in quantisable(base) if s.input in calibration.tensors and (only is None or s.name in only)]
    if weights is None:
        weights = integer_weights(base, sites, calibration, manner)
    if not race:
        made = quantized(base, sites, calibration, manner, weights)
        return Plan(made, calibration, tuple(SiteTime(s, 0.0, 0.0, True) for s in sites))
    floats = lower(finished(base, target), target, chains=False)     # a time for every convolution
    float_tuned = tuner(floats)
    float_times = site_times(floats, float_tuned, sites)
    kept = list(sites)
    found: dict[str, SiteTime] = {}
    for _ in range(3):                      # what is dropped changes what its neighbours convert
        made = quantized(base, kept, calibration, manner, weights)
        program = lower(optimize(made, target), target)
        tuned = tuner(program)
        times = site_times(program, tuned, kept)
        slow = []
        for s in kept:
            pays = times[s.name] < _GAIN * float_times[s.name]
            found[s.name] = SiteTime(s, float_times[s.name], times[s.name], pays)
            slow += [] if pays else [s]
        if not slow:
            break
        kept = [s for s in kept if s not in slow]
    results = tuple(found[s.name] for s in sites)
    engines = [make_variant(p, target, t.choices, t.kernels) for p, t in ((floats, float_tuned), (program, tuned))]
    seconds = side_by_side(base, engines)
    if not kept or seconds[1] >= seconds[0]:
        note = f"integers do not pay here: {seconds[1] * 1e3:.3g} ms against {seconds[0] * 1e3:.3g} ms in floats"
        _LOG.warning("%s; the float engine is shipped", note)
        dropped = tuple(replace(r, kept=False) for r in results)
        return Plan(graph, calibration, dropped, seconds[0], seconds[1], (note,))
    return Plan(made, calibration, results, seconds[0], seconds[1])


def side_by_side(graph: Graph, variants: Sequence[Variant], rounds: int = 6, seconds: float = 0.25) -> list[float]:
    """Median seconds of one inference of each variant, in alternating blocks: the least of their medians."""
    feeds = random_feeds(graph, {s.name: s.opt for s in graph.symbols.values()}, 0)
    sessions = [Session(Engine("timed", graph, (v,)), variant=v) for v in variants]
    found: list[list[float]] = [[] for _ in variants]
    for _ in range(rounds):
        for k, session in enumerate(sessions):
            found[k].append(statistics.median(measure(partial(session.run, feeds), seconds, warmup=0.05)))
    return [min(f) for f in found]


def site_times(program: Program, tuned: Tuning, sites: Sequence[QuantSite]) -> dict[str, float]:
    """Seconds per site: of the launch it is in, and of the conversions of its input, shared by those that read it."""
    readers: dict[str, int] = {}
    for s in sites:
        readers[s.input] = readers.get(s.input, 0) + 1
    seconds = {x.site.key: tuned.choices[x.site.key].seconds or 0.0 for x in program.launches if x.native}
    found = {}
    for s in sites:
        total = sum(seconds.get(x.site.key, 0.0) for x in program.launches if _contains(x, s))
        converting = sum(seconds.get(x.site.key, 0.0) for x in program.launches if _converts(x, s.input))
        found[s.name] = total + converting / readers[s.input]
    return found


def _contains(launch: Launch, site: QuantSite) -> bool:
    return launch.site.op in _MAIN and bool(set(site.origin) & set(launch.origin))


def _converts(launch: Launch, value: str) -> bool:
    """Whether a launch does nothing but bring a value into integers (with what smoothing or layout that needs)."""
    return f"integers of {value}" in launch.origin and all(
        s.op in _CONVERSIONS for s in launch.site.steps)


__all__ = ["FLOATS", "Plan", "SiteTime", "calibrated", "closeness", "lowered_precision", "planned", "product_moments",
           "side_by_side", "watching"]
