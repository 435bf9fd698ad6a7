"""bf16 on a CPU: the sites it makes faster read bf16, everything else stays f32.

Both forms of the graph are raced. A site keeps bf16 where its launch, the conversion of its input included, takes less
time than in f32: a convolution by minimal filtering often does not. Then whole engines are timed beside each other:
f32, bf16 wherever it can be, and bf16 where the races of the sites say so; the fastest is the result.
"""
from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from ingot.compiler.precision import side_by_side
from ingot.engine import make_variant
from ingot.errors import UnsupportedError
from ingot.graph import Graph
from ingot.kernels.codegen.dot import bf16_dot
from ingot.lower import Launch, Program, lower
from ingot.passes import Watch, finished, simplified, unwatched
from ingot.passes.short_products import ShortSite, roundings, short_sites, shortened
from ingot.target import Target
from ingot.tune import Tuning

_LOG = logging.getLogger("ingot")
Tuner = Callable[[Program], Tuning]
_MAINS = frozenset({"MatMul", "Conv", "ShortMatMul", "ShortConv"})
_ROUNDS = 3         # what goes back to f32 changes what its neighbours convert


@dataclass(frozen=True)
class Short:
    """What a build in bf16 came to: the optimized graph, its program and tuning, and which sites read bf16."""

    graph: Graph
    program: Program
    tuning: Tuning
    sites: tuple[ShortSite, ...] = ()
    kept: tuple[ShortSite, ...] = ()
    seconds: Mapping[str, float] = field(default_factory=dict)      # of one inference, "f32" and "bf16", measured

    def report(self) -> dict[str, object]:
        """What the engine keeps of it: plain data."""
        names = {s.name for s in self.kept}
        return {"precision": "bf16" if self.kept else "f32", "short": {
            "kept": sorted(names), "single": sorted(s.name for s in self.sites if s.name not in names),
            "seconds": dict(self.seconds), "rounded": roundings(self.graph)}}


def short_build(graph: Graph, target: Target, tuner: Tuner, *, race: bool = True, watch: Watch = unwatched) -> Short:
    """The graph with the sites on bf16 that this makes faster; without `race` all that can be.

    Raises UnsupportedError where the processor multiplies no bf16.
    """
    if bf16_dot(target) is None:
        raise UnsupportedError(f"{target.device or target.isa} has no instruction that multiplies bf16",
                               where="--precision bf16", mend="build in f32: leave --precision away")
    base = simplified(graph, target, watch)
    sites = short_sites(base, target)
    single = _lowered(base, target, watch, tuner)
    if not sites:
        return single
    kept = list(sites)
    plans: list[tuple[Short, tuple[ShortSite, ...]]] = []
    for _ in range(_ROUNDS):
        made = _lowered(shortened(base, kept), target, watch, tuner)
        plans.append((made, tuple(kept)))
        if not race:
            return Short(made.graph, made.program, made.tuning, sites, tuple(kept))
        before, after = _times(single, kept), _times(made, kept)
        slow = {s.name for s in kept if after[s.name] >= before[s.name] > 0}
        if not slow:
            break
        kept = [s for s in kept if s.name not in slow]
        if not kept:
            break
    # every plan as a whole: a race of one site that was disturbed, or did not see its neighbours, is put right here
    tried = [(single, ()), *([plans[0], plans[-1]] if len(plans) > 1 else plans)]
    seconds = side_by_side(base, [make_variant(x.program, target, x.tuning.choices, x.tuning.kernels)
                                  for x, _ in tried])
    best, names = tried[seconds.index(min(seconds))]
    told = {"f32": seconds[0], "bf16": min(seconds[1:])}
    if not names:
        _LOG.warning("bf16 does not pay here: %.3g ms against %.3g ms in f32; the engine is f32",
                     told["bf16"] * 1e3, told["f32"] * 1e3)
    return Short(best.graph, best.program, best.tuning, sites, names, told)


def _lowered(graph: Graph, target: Target, watch: Watch, tuner: Tuner) -> Short:
    laid = finished(graph, target, watch)
    program = lower(laid, target)
    return Short(laid, program, tuner(program))


def _times(made: Short, sites: Sequence[ShortSite]) -> dict[str, float]:
    """Seconds per site: of the launch it is in, and of a launch that does nothing but round its input."""
    readers: dict[str, int] = {}
    for s in sites:
        readers[s.input] = readers.get(s.input, 0) + 1
    seconds = [(x, made.tuning.choices[x.site.key].seconds or 0.0) for x in made.program.launches if x.native]
    found = {}
    for s in sites:
        own = sum(t for x, t in seconds if x.site.op in _MAINS and set(s.origin) & set(x.origin))
        found[s.name] = own + sum(t for x, t in seconds if _rounds(x, s.input)) / readers[s.input]
    return found


def _rounds(launch: Launch, value: str) -> bool:
    """Whether a launch does nothing but round a value (or lay it out on the way)."""
    return all(s.op in ("Cast", "Reorder") for s in launch.site.steps) and any(
        w.startswith(f"{value}.bf16") for w in launch.writes)


def told_roundings(report: Mapping[str, object]) -> Mapping[str, int] | None:
    """How many operands were rounded on the way to each output, from the report of a variant in bf16."""
    told = report.get("short")
    rounded = told.get("rounded") if isinstance(told, Mapping) else None
    return {str(k): int(v) for k, v in rounded.items()} if isinstance(rounded, Mapping) else None


__all__ = ["Short", "short_build", "told_roundings"]
