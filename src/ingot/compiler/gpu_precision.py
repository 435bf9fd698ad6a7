"""int8 and fp8 on a GPU: ranges from the float engine on the CPU, sites from the race on the GPU.

The model without its precision is built in f16 first; then every product and convolution that may be (fp8: products)
is raced in short numbers, conversions included, and stays there where it is faster. The engine's meaning is that of the
graph with Quantize and Dequantize inside.
"""
from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from ingot.compiler.options import BuildOptions
from ingot.compiler.precision import Plan, SiteTime, mean_cosines, site_times
from ingot.compiler.running import Feeds, watching
from ingot.compiler.sensitivity import read_plan
from ingot.errors import InputError, UnsupportedError
from ingot.graph import Graph
from ingot.kernels.cuda.source import capability
from ingot.lower import Program
from ingot.quantize import Calibration, QuantSite, calibrate, quantisable
from ingot.quantize.insert import quantized
from ingot.quantize.rounding import GPU_FP8, GPU_INT8, Manner
from ingot.runtime.host import host_target
from ingot.target import Target
from ingot.tune import Tuning
from ingot.verify import random_feeds

_LOG = logging.getLogger("ingot")
NUMBERS: Mapping[str, Manner] = {"int8": GPU_INT8, "fp8": GPU_FP8}
_ROUNDS = 3         # what is dropped changes what its neighbours convert


@dataclass(frozen=True)
class Race:
    """How a graph is brought to kernels on the GPU: its program, its race, and the seconds of a whole run."""

    lowered: Callable[[Graph], Program]
    tuned: Callable[[Program], Tuning]
    seconds: Callable[[Graph, Program, Tuning], float]


def gpu_plan(base: Graph, target: Target, options: BuildOptions, given: Calibration | Sequence[Feeds] | None,
             race: Race | None) -> Plan:
    """Which sites of a graph (as `simplified` left it) work in short numbers, and the graph with them inside.

    `given` are ranges, or batches to find them on. Without a `race` (no GPU here) all sites take part. Raises
    InputError without data, UnsupportedError for a GPU that has no fp8.
    """
    manner = NUMBERS[options.precision]
    if options.precision == "fp8" and capability(target) < 90:
        raise UnsupportedError("fp8 needs an NVIDIA GPU of architecture sm_90 or later", where=target.isa,
                               mend="build with --precision int8 or f16")
    if given is None:
        raise InputError(f"{options.precision} needs representative data", where=f"--precision {options.precision}",
                         mend="give --calibrate DATA (.npz or .npy files), or --scales FILE of an earlier build")
    sites = [s for s in quantisable(base) if options.precision == "int8" or s.op == "MatMul"]
    if isinstance(given, Calibration):
        calibration = given
    else:
        run = watching(base, host_target(), [s.input for s in sites]) if sites else lambda feeds: {}
        calibration = calibrate(base, sites, run, given, method=options.method, limit=options.samples)
    for alarm in calibration.alarms:
        _LOG.warning("%s", alarm)
    sites = _allowed([s for s in sites if s.input in calibration.tensors], options)
    if race is None or not sites:
        made = quantized(base, sites, calibration, manner) if sites else base
        return Plan(made, calibration, tuple(SiteTime(s, 0.0, 0.0, True) for s in sites), kind=options.precision)
    return _raced(base, sites, calibration, manner, race, options.precision)


def _allowed(sites: Sequence[QuantSite], options: BuildOptions) -> list[QuantSite]:
    if not options.plan:
        return list(sites)
    told = read_plan(options.plan)
    return [s for s in sites if told.get(s.name, options.precision) == options.precision]


def _raced(base: Graph, sites: Sequence[QuantSite], calibration: Calibration, manner: Manner, race: Race,
           kind: str) -> Plan:
    """Sites whose region is faster in short numbers, by the kernels' races; then the two engines side by side."""
    floats = race.lowered(base)
    float_tuned = race.tuned(floats)
    float_times = site_times(floats, float_tuned, sites)
    kept, found = list(sites), dict[str, SiteTime]()
    for _ in range(_ROUNDS):
        made = quantized(base, kept, calibration, manner)
        program = race.lowered(made)
        tuned = race.tuned(program)
        times = site_times(program, tuned, kept)
        for s in kept:
            found[s.name] = SiteTime(s, float_times[s.name], times[s.name], times[s.name] < float_times[s.name])
        if all(found[s.name].kept for s in kept):
            break
        kept = [s for s in kept if found[s.name].kept]
    results = tuple(found[s.name] for s in sites)
    seconds = race.seconds(base, floats, float_tuned), race.seconds(made, program, tuned)
    if not kept or seconds[1] >= seconds[0]:
        note = f"{kind} does not pay here: {seconds[1] * 1e3:.3g} ms against {seconds[0] * 1e3:.3g} ms in f16"
        _LOG.warning("%s; the f16 engine is shipped", note)
        dropped = tuple(SiteTime(r.site, r.float_seconds, r.integer_seconds, False) for r in results)
        return Plan(base, calibration, dropped, *seconds, (note,), kind=kind)
    return Plan(made, calibration, results, *seconds, kind=kind)


def cosines(base: Graph, run: Callable[[Feeds], Mapping[str, np.ndarray]], data: Sequence[Feeds]) -> dict[str, float]:
    """The mean cosine of an engine's outputs to those of the model in f32, item by item; on the CPU."""
    return mean_cosines(base.outputs, watching(base, host_target(), base.outputs), run, data)


def usual_feeds(graph: Graph, seed: int) -> Feeds:
    """Random inputs at the sizes that are tuned for."""
    return random_feeds(graph, {s.name: s.opt for s in graph.symbols.values()}, seed)


__all__ = ["NUMBERS", "Race", "cosines", "gpu_plan", "usual_feeds"]
