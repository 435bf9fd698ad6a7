"""Program and the memory its kernels ask for -> one arena, with an offset for every value by its lifetime."""
from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType

import numpy as np

from ingot.errors import InternalError
from ingot.graph import Dim, Symbol, TensorType, evaluate
from ingot.graph.dim import interval, rises
from ingot.lower import Launch, Program
from ingot.ops import OPS
from ingot.plan.placement import Block, largest_live, place

ALIGN = 64
_MOST_POINTS = 1 << 14                          # sets of sizes that are tried one by one
Demand = tuple[Dim, Dim]                        # bytes of workspace, and of scratch per thread, of one launch
InPlace = Callable[[Launch], Sequence[int]]     # the reads a launch may write its (only) result over


@dataclass(frozen=True)
class MemoryPlan:
    """Offsets into the arena, at the largest sizes of the symbols.

    Graph inputs, constants and graph outputs lie outside the arena (the caller's arrays, the engine file), and so do
    the values that share their storage. `lower_bound` is the largest sum of bytes that must live at one time.
    """

    arena: int
    lower_bound: int
    offsets: Mapping[str, int]                  # root value -> offset
    sizes: Mapping[str, int]                    # root value -> bytes
    workspaces: tuple[tuple[int, int], ...]     # per launch: offsets of its workspace and its scratch area
    live: tuple[int, ...]                       # per launch: bytes that must live while it runs
    threads: int = 1                            # what the scratch areas are large enough for
    reused: Mapping[str, str] = field(default_factory=dict)     # result -> the dying value it is written over

    def __str__(self) -> str:
        over = f" ({self.arena / self.lower_bound:.3f} x the largest live set)" if self.lower_bound else ""
        lines = [f"arena {self.arena} bytes, lower bound {self.lower_bound}{over}, {self.threads} threads"]
        lines += [f"{self.offsets[v]:>12} +{self.sizes[v]:<10} {v}"
                  + (f"  (in place of {self.reused[v]})" if v in self.reused else "")
                  for v in sorted(self.offsets, key=lambda v: (self.offsets[v], v))]
        return "\n".join(lines)


def largest(dim: Dim, symbols: Mapping[str, Symbol]) -> int:
    """The largest value of a dimension on the whole profile, or a bound of it where that has too many points."""
    if isinstance(dim, int):
        return dim
    if rises(dim):
        return dim.evaluate(_top(symbols))
    points = _points(dim.symbols, symbols)
    return int(np.max(dim.evaluate(points))) if points is not None else interval(dim, symbols)[1]  # type: ignore[arg-type]


def _top(symbols: Mapping[str, Symbol]) -> dict[str, int]:
    return {k: s.max for k, s in symbols.items()}


def _points(names: frozenset[str], symbols: Mapping[str, Symbol]) -> dict[str, np.ndarray] | None:
    """Every set of sizes of these symbols; None where there are too many."""
    ranges = [np.arange(symbols[n].min, symbols[n].max + 1) for n in sorted(names)]
    if math.prod(len(r) for r in ranges) > _MOST_POINTS:
        return None
    return dict(zip(sorted(names), (m.ravel() for m in np.meshgrid(*ranges, indexing="ij")), strict=True))


def bytes_at(type_: TensorType, sizes: Mapping[str, int]) -> int:
    """Bytes of a value at sizes of the symbols. (`type_.nbytes` builds an expression first, which takes far longer.)"""
    block, shape = type_.block, type_.shape
    total = type_.dtype.nbytes
    for axis, dim in enumerate(shape):
        size = evaluate(dim, sizes)
        total *= -(-size // block) * block if block and axis == 1 else size
    return total


def corners(symbols: Mapping[str, Symbol]) -> list[dict[str, int]]:
    """The sizes at the largest, the tuned and the least corner of the profile, each once."""
    found = [{k: getattr(s, corner) for k, s in symbols.items()} for corner in ("max", "opt", "min")]
    return [c for i, c in enumerate(found) if c not in found[:i]]


def _aligned(nbytes: int, align: int) -> int:
    return -(-nbytes // align) * align


def pointwise_in_place(launch: Launch) -> Sequence[int]:
    """A launch of pointwise steps alone reads each element just before it writes the same one.

    That holds for the operands of the result's very type and order in memory; broadcast ones are read by others.
    """
    site = launch.site
    if not launch.native or len(site.outputs) != 1 or site.outputs[0].strides is not None:
        return ()
    if not all(s.op in OPS and OPS[s.op].pointwise for s in site.steps):
        return ()
    return [i for i, o in enumerate(site.inputs) if o.type == site.output and o.strides is None and not o.constant]


def external_values(program: Program) -> frozenset[str]:
    """Root values that lie outside the arena."""
    outside = {*program.inputs, *program.constants}
    return frozenset(outside | {program.root(v)[0] for v in program.outputs})


def plan_memory(program: Program, demands: Sequence[Demand], threads: int = 1,
                in_place: InPlace = pointwise_in_place, align: int = ALIGN) -> MemoryPlan:
    """Plan the arena of a program. `demands` gives each launch's workspace and scratch, in order.

    Every offset is a multiple of `align` bytes (a multiple of 64).
    """
    if len(demands) != len(program.launches):
        raise InternalError("a plan needs the demand of every launch")
    outside, symbols = external_values(program), program.symbols
    first: dict[str, int] = {}
    last: dict[str, int] = {}
    for step, launch in enumerate(program.launches):
        for value in (*launch.reads, *launch.writes):
            root = program.root(value)[0]
            if value and root not in outside:
                first.setdefault(root, step)
                last[root] = step
    sizes = {v: _aligned(largest_bytes(program.types[v], symbols), align) for v in first}
    reused = _reused(program, sizes, last, in_place)
    owner = {v: v for v in first}
    for value, old in reused.items():               # in the order of launches: chains end at their first value
        owner[value] = owner[old]
    spans: dict[str, Block] = {}
    for value in first:
        root, span = owner[value], Block(sizes[value], first[value], last[value])
        if old_span := spans.get(root):
            span = Block(max(span.size, old_span.size), min(span.first, old_span.first), max(span.last, old_span.last))
        spans[root] = span
    blocks = list(spans.values())
    for step, (workspace, scratch) in enumerate(demands):
        blocks += [Block(_aligned(largest(workspace, symbols), align), step, step),
                   Block(_aligned(largest(scratch, symbols) * threads, align), step, step)]
    bound, live = largest_live(blocks, len(program.launches))
    kept = [i for i, b in enumerate(blocks) if b.size]
    offsets = [0] * len(blocks)
    arena = 0
    if kept:
        found, arena = place([blocks[i] for i in kept], bound)
        for i, offset in zip(kept, found, strict=True):
            offsets[i] = offset
    at = dict(zip(spans, offsets, strict=False))
    work = offsets[len(spans):]
    return MemoryPlan(arena, bound, MappingProxyType({v: at[owner[v]] for v in first}), MappingProxyType(sizes),
                      tuple(zip(work[::2], work[1::2], strict=True)), tuple(live), threads, MappingProxyType(reused))


def largest_bytes(type_: TensorType, symbols: Mapping[str, Symbol]) -> int:
    """The most bytes a value takes on the whole profile, or a bound of them where that has too many points."""
    if all(map(rises, type_.shape)):
        return bytes_at(type_, _top(symbols))
    points = _points(type_.symbols, symbols)
    if points is not None:
        return int(np.max(bytes_at(type_, points)))     # type: ignore[arg-type]
    bounds = [max(0, largest(d, symbols)) for d in type_.shape]
    return bytes_at(TensorType(type_.dtype, tuple(bounds), type_.layout), {})


def _reused(program: Program, sizes: Mapping[str, int], last: Mapping[str, int], in_place: InPlace) -> dict[str, str]:
    """Result -> dying value of the same bytes that it may be written over."""
    found: dict[str, str] = {}
    writes: dict[str, int] = {}
    for launch in program.launches:
        for value in launch.writes:
            root = program.root(value)[0]
            writes[root] = writes.get(root, 0) + 1
    taken: set[str] = set()
    for step, launch in enumerate(program.launches):
        if len(launch.writes) != 1:
            continue
        result = launch.writes[0]
        if result not in sizes or writes[result] > 1 or result in program.views:
            continue
        roots = [program.root(v) for v in launch.reads]
        for index in in_place(launch):
            old, offset = roots[index]
            alone = all(i == index or r != old for i, (r, _) in enumerate(roots))
            whole = offset == 0 and program.types[old].nbytes == program.types[result].nbytes
            if old in sizes and last[old] == step and alone and whole and old not in taken and old != result:
                found[result] = old
                taken.add(old)
                break
    return found
