"""Strided loop nests as Triton source: what pointwise kernels and copies are made of.

Two ways to cut a nest into blocks: flat, where a block is consecutive elements of the result; and tiles, for nests in
which some operand runs along another dimension than the result: a tile spans both, so that each is read in runs.
"""
from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from ingot.graph import Dim, product
from ingot.kernels.cuda.source import NAMES, Source, Value, ceil_div, is_wide, joined, registers_of, times, usual
from ingot.kernels.tactic import Params, Site
from ingot.kernels.x86.nest import View, collapsed

Compute = Callable[[Callable[[int], Value]], Value]


def turned(dims: Sequence[Dim], out: View, views: Sequence[View]) -> int | None:
    """The dimension (not the last) along which some operand is contiguous while the result is along the last."""
    if len(dims) < 2 or out.strides[-1] != 1:
        return None
    for view in views:
        if view.strides[-1] not in (0, 1):
            ones = [k for k, s in enumerate(view.strides[:-1]) if s == 1]
            if ones:
                return ones[0]
    return None


def nest_space(site: Site, dims: Sequence[Dim], out: View, views: Sequence[View]) -> Iterator[Params]:
    """Ways to cut a nest into blocks, best guess first."""
    sizes, all_views = collapsed(dims, [out, *views])
    if turned(sizes, all_views[0], all_views[1:]) is not None:
        yield from ({"rows": r, "columns": c, "warps": w} for r, c, w in (
            (64, 64, 4), (32, 64, 4), (64, 32, 4), (32, 32, 4), (128, 32, 8), (32, 128, 8), (64, 64, 8)))
    total = usual(product(tuple(sizes)), site)
    best = 1024 if total >= 1 << 18 else 512 if total >= 1 << 15 else 256
    yield from ({"block": b, "warps": 4} for b in (best, *(b for b in (1024, 2048, 512, 256) if b != best)))


@dataclass
class Nest:
    """A nest being written: `dims`, the view of the result and of each operand (by the site's index)."""

    source: Source
    dims: Sequence[Dim]
    out: tuple[int, View]
    ins: Mapping[int, View]
    params: Params
    mask: str | None = None
    _offsets: dict[int, str] = field(default_factory=dict)
    grid: tuple[Dim, Dim, Dim] = (1, 1, 1)

    def __post_init__(self) -> None:
        keys = list(self.ins)
        sizes, views = collapsed(self.dims, [self.out[1], *(self.ins[k] for k in keys)])
        self.dims = sizes or [1]
        views = views if sizes else [View((0,), v.offset) for v in views]
        self.out, self.ins = (self.out[0], views[0]), dict(zip(keys, views[1:], strict=True))

    def write(self, compute: Compute) -> None:
        """The whole kernel: result = compute(load), where load(k) gives operand k's elements."""
        source = self.source
        source.start_dependent()
        if "rows" in self.params:
            index, whole = self._tile()
        else:
            index, whole = self._flat()

        def place(view: View) -> str:
            if whole is not None and view.offset == 0 and self._dense(view):
                return whole
            terms = [times(i, source.dim(s)) for i, s in zip(index(), view.strides, strict=True) if s != 0]
            return joined([*(f"({t})" for t in terms), source.dim(view.offset)])

        def load(k: int) -> Value:
            offset = place(self.ins[k])
            if offset == "block" or any(s != 0 for s in self.ins[k].strides):
                return source.load(k, offset, self.mask)
            dtype = source.operand(k).type.dtype
            one = source.let(f"tl.load({source.pointer(k)} + {offset})")
            stored = NAMES[dtype.name] if dtype.name != "bool" else "tl.uint8"
            whole = source.let(f"tl.full({self._shape()}, {one}, {stored})")
            return Value(source.let(source.widened(whole, dtype)), registers_of(dtype))

        value = compute(load)
        target = place(self.out[1])
        moves = target == "block" or any(s != 0 for s in self.out[1].strides)
        source.store(self.out[0], target if moves else f"block * 0 + {target}", value, self.mask)
        source.let_next_start()

    def _shape(self) -> str:
        params = self.params
        return f"({params['rows']}, {params['columns']})" if "rows" in params else f"({params['block']},)"

    def _dense(self, view: View) -> bool:
        step: Dim = 1
        for size, stride in zip(reversed(self.dims), reversed(view.strides), strict=True):
            if stride != step and size != 1:
                return False
            step = step * size
        return True

    def _flat(self) -> tuple[Callable[[], list[str]], str]:
        source, size = self.source, self.params["block"]
        total = product(tuple(self.dims))
        pid = "tl.program_id(0)" + (".to(tl.int64)" if is_wide(source.site) else "")
        source.line(f"block = {pid} * {size} + tl.arange(0, {size})")
        if not (isinstance(total, int) and total % size == 0):
            source.line(f"mask = block < {source.dim(total)}")
            self.mask = "mask"
        self.grid = (ceil_div(total, size), 1, 1)
        found: list[str] = []

        def index() -> list[str]:
            if not found:
                rest = "block"
                for k in range(len(self.dims) - 1, 0, -1):
                    d = source.dim(self.dims[k])
                    found.insert(0, source.let(f"{rest} % {d}", "i"))
                    rest = source.let(f"{rest} // {d}", "r")
                found.insert(0, rest)
            return found
        return index, "block"

    def _tile(self) -> tuple[Callable[[], list[str]], None]:
        source, rows, columns = self.source, self.params["rows"], self.params["columns"]
        axis = turned(self.dims, self.out[1], list(self.ins.values()))
        axis = len(self.dims) - 2 if axis is None else axis
        high, wide = self.dims[axis], self.dims[-1]
        across = ceil_div(wide, columns)
        rest = [d for k, d in enumerate(self.dims) if k not in (axis, len(self.dims) - 1)]
        # consecutive blocks walk along the result's rows
        source.line("pid = tl.program_id(0)" + (".to(tl.int64)" if is_wide(source.site) else ""))
        source.line(f"column = (pid % {source.dim(across)}) * {columns} + tl.arange(0, {columns})[None, :]")
        source.line(f"pid = pid // {source.dim(across)}")
        tall = ceil_div(high, rows)
        source.line(f"row = (pid % {source.dim(tall)}) * {rows} + tl.arange(0, {rows})[:, None]")
        source.line(f"pid = pid // {source.dim(tall)}")
        source.line("block = row * 0 + column * 0")
        source.line(f"mask = (row < {source.dim(high)}) & (column < {source.dim(wide)})")
        self.mask = "mask"
        self.grid = (across * tall * product(tuple(rest)), 1, 1)
        names: list[str] = []
        last = "pid"
        for d in reversed(rest):
            names.insert(0, source.let(f"{last} % {source.dim(d)}", "i"))
            last = source.let(f"{last} // {source.dim(d)}", "r")
        names.insert(axis, "row")
        return (lambda: [*names, "column"]), None


__all__ = ["Nest", "View", "nest_space", "turned"]
