"""Where the time of a run goes, and what bounds each kernel: the roofline model (Williams, Waterman and Patterson,
"Roofline: an insightful visual performance model", CACM 52(4), 2009) with peaks measured on this machine."""
from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from ingot.bench.limits import Limits
from ingot.graph import TensorType, evaluate
from ingot.kernels import Operand, Site, Step
from ingot.lower import Program

NEAR = 0.7              # of a peak: a kernel that reaches this share is bound by it
SHORT = 5e-6            # seconds: below this, starting the kernel and meeting at the barrier is what takes the time


@dataclass(frozen=True)
class Spent:
    """One launch: its time in a run (seconds), its arithmetic (operations), and the bytes it cannot but move."""

    launch: int
    seconds: float
    flops: float
    nbytes: float

    def least(self, limits: Limits) -> tuple[float, str]:
        """The seconds this launch needs at least on such a machine, and which limit says so."""
        near = self.nbytes <= limits.near
        arithmetic = self.flops / (limits.gflops * 1e9)
        moving = self.nbytes / ((limits.cache_gbs if near else limits.memory_gbs) * 1e9)
        return max((arithmetic, "arithmetic"), (moving, "cache" if near else "memory"))

    def bound(self, limits: Limits) -> str:
        """What bounds it: the limit it comes near to, the cost of a launch, or its own code."""
        seconds, limit = self.least(limits)
        if seconds >= NEAR * self.seconds:
            return limit
        return "launch" if self.seconds < SHORT else "its code"


def spent(program: Program, profiles: Sequence[Sequence[tuple[int, float]]], sizes: Mapping[str, int]) -> list[Spent]:
    """Per launch, the median over several profiles of a session; launches on the reference path are left out."""
    runs: dict[int, list[float]] = {}
    for profile in profiles:
        for index in dict(profile):
            runs.setdefault(index, []).append(sum(s for i, s in profile if i == index))
    return [Spent(i, sorted(taken)[len(taken) // 2], *work(program.launches[i].site, sizes))
            for i, taken in sorted(runs.items())]


def work(site: Site, sizes: Mapping[str, int]) -> tuple[float, float]:
    """Operations by the definition of the site's ops (a multiply-add counts two), and bytes of its operands."""
    types = [o.type for o in site.inputs]
    flops = 0.0
    for step in site.steps:
        given = [None if i is None else types[i] if i >= 0 else site.steps[~i].types[0] for i in step.inputs]
        flops += _operations(step, given, sizes)
    return flops, float(sum(_bytes(o, sizes) for o in (*site.inputs, *site.outputs)))


def _bytes(operand: Operand, sizes: Mapping[str, int]) -> float:
    return _count(operand.type, sizes) * operand.type.dtype.nbytes


def _count(type_: TensorType, sizes: Mapping[str, int]) -> int:
    return math.prod(evaluate(d, sizes) for d in type_.shape)


def _operations(step: Step, given: Sequence[TensorType | None], sizes: Mapping[str, int]) -> float:
    """The arithmetic of one step: twice the products of a contraction, else one operation per element."""
    first = given[0] if given else None
    made = float(sum(_count(t, sizes) for t in step.types))
    if first is None:
        return made
    attrs = dict(step.attrs)
    if step.op in ("MatMul", "Gemm", "ShortMatMul", "MatMulInteger", "MatMulGroups"):
        inner = first.shape[-2 if attrs.get("transA") and step.op == "Gemm" else -1]
        return 2 * made * evaluate(inner, sizes)
    if step.op in ("Conv", "ConvTranspose", "ShortConv", "ConvInteger") and given[1] is not None:
        taps = math.prod(evaluate(d, sizes) for d in given[1].shape[1:])
        # a transposed convolution multiplies each *input* element with every tap
        return 2 * taps * float(_count(first, sizes) if step.op == "ConvTranspose" else made)
    if step.op == "Attention" and len(given) > 2 and given[1] is not None:
        return 4 * made * evaluate(given[1].shape[-2], sizes)
    if step.op.startswith(("Reduce", "Global", "Softmax", "LogSoftmax", "ArgM")) or step.op.endswith("Normalization"):
        return float(_count(first, sizes)) * (4 if "Norm" in step.op or "oftmax" in step.op else 1)
    if step.op in ("MaxPool", "AveragePool"):
        window = attrs.get("kernel_shape")
        return made * math.prod(map(int, window)) if isinstance(window, (tuple, list)) else made
    return made


def trace(program: Program, found: Sequence[Spent]) -> dict[str, object]:
    """The launches one after another as a Chrome trace, which Perfetto opens too (times in microseconds)."""
    events: list[dict[str, object]] = []
    at = 0.0
    for one in found:
        launch = program.launches[one.launch]
        events.append({"name": "+".join(s.op for s in launch.site.steps), "cat": "kernel", "ph": "X", "pid": 1,
                       "tid": 1, "ts": at, "dur": one.seconds * 1e6,
                       "args": {"writes": list(launch.writes), "origin": list(launch.origin),
                                "GFLOP/s": one.flops / one.seconds / 1e9 if one.seconds else 0.0,
                                "GB/s": one.nbytes / one.seconds / 1e9 if one.seconds else 0.0}})
        at += one.seconds * 1e6
    return {"traceEvents": events, "displayTimeUnit": "ms"}
