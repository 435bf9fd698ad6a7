"""Ops that reduce along axes: reductions, global pooling, softmax, and the normalisations.

The axes of the input are split into outer ones, along which results differ, and inner ones, which are reduced; each
program takes a block of outer places and walks the inner ones, all at once where they fit in registers.
"""
from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

from ingot.graph import F64, I32, I64, Dim, product
from ingot.kernels.cuda.base import CudaTactic, Drafts
from ingot.kernels.cuda.expression import declines_steps, run_steps
from ingot.kernels.cuda.matmul import along, unflattened
from ingot.kernels.cuda.pointwise import declines_spread, spread
from ingot.kernels.cuda.source import (
    NAMES,
    TYPES,
    Source,
    Value,
    ceil_div,
    is_wide,
    joined,
    logical_strides,
    most,
    number,
    power_of_two,
    registers_of,
    usual,
)
from ingot.kernels.steps import operands_of
from ingot.kernels.tactic import Params, Site
from ingot.ops import OPS
from ingot.ops.reduction import reduced_axes
from ingot.ops.shapes import axis_of, integer
from ingot.target import Target

REDUCTIONS = frozenset({"ReduceSum", "ReduceMean", "ReduceMax", "ReduceMin", "ReduceProd", "ReduceL1", "ReduceL2",
                        "ReduceSumSquare", "ReduceLogSum", "ReduceLogSumExp", "GlobalAveragePool", "GlobalMaxPool",
                        "GlobalLpPool", "ArgMax", "ArgMin"})
NORMS = frozenset({"Softmax", "LogSoftmax", "LayerNormalization", "RMSNormalization", "InstanceNormalization",
                   "GroupNormalization", "MeanVarianceNormalization", "LpNormalization", "Hardmax"})
_INTEGER = frozenset({"ReduceSum", "ReduceMax", "ReduceMin", "ReduceProd", "ArgMax", "ArgMin"})
HELD = 16384        # inner places a program keeps in registers at most


@dataclass(frozen=True)
class Atom:
    """A logical axis of the input, or one factor of it: its size, and how far a step along it goes on the axis."""

    axis: int
    size: Dim
    factor: int = 1


@dataclass(frozen=True)
class Plan:
    """The axes of a site's input, outer and inner, slowest in memory first."""

    outer: tuple[Atom, ...]
    inner: tuple[Atom, ...]

    @property
    def rows(self) -> Dim:
        return product(tuple(a.size for a in self.outer))

    @property
    def count(self) -> Dim:
        return product(tuple(a.size for a in self.inner))


def plan_of(site: Site) -> Plan:
    """Which axes are reduced."""
    x, attrs = site.inputs[site.step.inputs[0] or 0].type, {**OPS[site.op].attrs, **site.attrs}
    rank, op = x.rank, site.op
    axes: Sequence[int]
    if op == "GroupNormalization":
        groups = integer(attrs, "num_groups")
        per = int(str(x.shape[1])) // groups
        return Plan((Atom(0, x.shape[0]), Atom(1, groups, per)),
                    (Atom(1, per), *(Atom(a, x.shape[a]) for a in range(2, rank))))
    if op in ("GlobalAveragePool", "GlobalMaxPool", "GlobalLpPool", "InstanceNormalization"):
        axes = range(2, rank)
    elif op in ("LayerNormalization", "RMSNormalization"):
        axes = range(axis_of(integer(attrs, "axis"), rank), rank)
    elif op == "MeanVarianceNormalization":
        given = attrs["axes"]
        axes = [axis_of(int(str(a)), rank) for a in given] if isinstance(given, (tuple, list)) else [0, 2, 3]
    elif op in REDUCTIONS and op not in ("ArgMax", "ArgMin"):
        axes = reduced_axes(attrs, rank)
    else:
        axes = [axis_of(integer(attrs, "axis"), rank)]
    return Plan(tuple(Atom(a, x.shape[a]) for a in range(rank) if a not in axes),
                tuple(Atom(a, x.shape[a]) for a in axes))


def _in_memory_order(site: Site, atoms: tuple[Atom, ...], steps: tuple[Dim, ...]) -> tuple[Atom, ...]:
    return tuple(sorted(atoms, key=lambda a: -usual(steps[a.axis] * a.factor, site)))


@dataclass
class Rows:
    """A kernel over outer and inner places while it is written."""

    source: Source
    plan: Plan
    params: Params
    x: int
    _kept: dict[int, Value] = field(default_factory=dict)
    _outer: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        source, site, params = self.source, self.source.site, self.params
        self.x_steps = logical_strides(site.inputs[self.x])
        self.plan = Plan(_in_memory_order(site, self.plan.outer, self.x_steps),
                         _in_memory_order(site, self.plan.inner, self.x_steps))
        rows, count = self.plan.rows, self.plan.count
        self.held = isinstance(count, int) and params["columns"] >= count
        self.dtype = registers_of(site.inputs[self.x].type.dtype)
        wide = ".to(tl.int64)" if is_wide(site) else ""
        source.start_dependent()
        source.line(f"r = (tl.program_id(0) * {params['rows']} + tl.arange(0, {params['rows']}))[:, None]{wide}")
        self.row_mask = None if isinstance(rows, int) and rows % params["rows"] == 0 else f"(r < {source.dim(rows)})"
        self._outer = unflattened(source, "r", tuple(a.size for a in self.plan.outer))
        self.grid = (ceil_div(rows, params["rows"]), 1, 1)
        self.column_mask: str | None = None
        self._inner: list[str] = []
        if self.held:
            self._columns("0")

    def _columns(self, start: str) -> None:
        source, count, columns = self.source, self.plan.count, self.params["columns"]
        wide = ".to(tl.int64)" if is_wide(source.site) else ""
        source.line(f"c = ({start} + tl.arange(0, {columns}))[None, :]{wide}")
        full = isinstance(count, int) and count % columns == 0
        self.column_mask = None if full else f"(c < {source.dim(count)})"
        self._inner = unflattened(source, "c", tuple(a.size for a in self.plan.inner))

    @property
    def mask(self) -> str | None:
        return " & ".join(m for m in (self.row_mask, self.column_mask) if m) or None

    def outer_offset(self, steps: Sequence[Dim]) -> str:
        """The offset of the outer place for strides over the input's axes."""
        return along(self.source, self._outer, tuple(steps[a.axis] * a.factor for a in self.plan.outer))

    def inner_offset(self, steps: Sequence[Dim]) -> str:
        return along(self.source, self._inner, tuple(steps[a.axis] * a.factor for a in self.plan.inner))

    def operand(self, index: int, steps: Sequence[Dim], inner: bool = True) -> Value:
        """An operand beside the block, for its strides over the input's axes."""
        outer, within = self.outer_offset(steps), self.inner_offset(steps) if inner else "0"
        masks = [m for m, text in ((self.row_mask, outer), (self.column_mask if inner else None, within))
                 if m and text != "0"]
        if outer == "0" and within == "0":
            stored = NAMES[self.source.operand(index).type.dtype.name]
            one = self.source.let(f"tl.load({self.source.pointer(index)})")
            dtype = self.source.operand(index).type.dtype
            whole = self.source.let(f"tl.full((1, 1), {one}, {stored if dtype.name != 'bool' else 'tl.uint8'})")
            return Value(self.source.let(self.source.widened(whole, dtype)), registers_of(dtype))
        return self.source.load(index, joined([f"({t})" for t in (outer, within) if t != "0"]),
                                " & ".join(masks) or None, "0" if masks else None)

    def value(self) -> Value:
        """The block of the input at the current columns; kept where the whole row is in registers."""
        if self.held and self.x in self._kept:
            return self._kept[self.x]
        found = self.operand(self.x, self.x_steps)
        if self.held:
            self._kept[self.x] = found
        return found

    def sweep(self, body: Callable[[], None]) -> None:
        """Write `body` for every block of columns."""
        if self.held:
            body()
            return
        columns = self.params["columns"]
        with self.source.block(f"for start in range(0, {self.source.dim(self.plan.count)}, {columns}):"):
            self._columns("start")
            body()

    def reduce(self, how: str, start: str, term: Callable[[Value], str]) -> str:
        """The terms of every column brought together ("sum", "max", "min" or "prod") from a neutral `start`."""
        source, params = self.source, self.params
        combined = {"sum": "{} + {}", "prod": "{} * {}", "max": "tl.maximum({}, {})", "min": "tl.minimum({}, {})"}[how]
        total = source.fresh("total")
        if not self.held:
            shape = f"({params['rows']}, {params['columns']})"
            source.line(f"{total} = tl.full({shape}, {start}, {NAMES[self.dtype.name]})")

        def body() -> None:
            text = term(self.value())
            if self.column_mask:
                text = f"tl.where({self.column_mask}, {text}, {start})"
            one = source.let(text if self.dtype.kind == "float" else f"({text}).to({NAMES[self.dtype.name]})")
            source.line(f"{total} = {one}" if self.held else f"{total} = {combined.format(total, one)}")
        self.sweep(body)
        if how == "prod":       # one column at a time: nothing is left to bring together
            return total
        return source.let(f"tl.{how}({total}, 1)[:, None]")

    def write(self, out: int, steps: Sequence[Dim], value: Callable[[Value], Value]) -> None:
        """Store a value for every column."""
        def body() -> None:
            made = value(self.value())
            offset = joined([f"({t})" for t in (self.outer_offset(steps), self.inner_offset(steps)) if t != "0"])
            rows, columns = self.params["rows"], self.params["columns"]
            self.source.store(out, f"{offset} + tl.zeros(({rows}, {columns}), tl.int32)",
                              Value(f"tl.broadcast_to({made}, ({rows}, {columns}))", made.dtype), self.mask)
        self.sweep(body)


def rows_space(site: Site, plan: Plan, x: int) -> Iterator[Params]:
    """Blocks of outer and inner places, best guess first."""
    steps = logical_strides(site.inputs[x])
    rows, count = usual(plan.rows, site), usual(plan.count, site)
    if site.op == "ReduceProd":
        yield from ({"rows": r, "columns": 1, "warps": 4} for r in (128, 256))
        return
    fits = isinstance(plan.count, int) and plan.count <= HELD
    across = any(usual(steps[a.axis] * a.factor, site) == 1 and a.size != 1 for a in plan.outer)
    found: list[tuple[int, int, int]] = []
    if across:
        for r in (32, 64, 16, 128):
            if r <= 2 * max(rows, 16):
                whole = power_of_two(count)
                if fits and r * whole <= 16384:
                    found.append((r, whole, 8 if r * whole > 4096 else 4))
                found += [(r, c, w) for c, w in ((64, 4), (32, 4), (128, 8)) if c < count]
    else:
        whole = power_of_two(max(count, 1))
        if fits:
            for size in (2048, 4096, 1024, 8192, 512):
                r = max(1, min(size // whole, power_of_two(rows), 64))
                for w in (4, 8, 2, 1) if r * whole <= 2048 else (8, 4, 16):
                    if r * whole >= 32 * w:
                        found.append((r, whole, w))
        if not fits or count > 4096:
            found += [(1, 2048, 8), (1, 4096, 16), (1, 1024, 4), (2, 1024, 8)]
    if not found:
        found = [(16, power_of_two(count), 4)] if fits else [(4, 1024, 4)]
    yield from ({"rows": r, "columns": c, "warps": w} for r, c, w in dict.fromkeys(found))


class Reduction(CudaTactic):
    """Sums, means, extremes and the like over some axes, global pooling and ArgMax among them."""

    name = "cuda.reduce"

    def declines(self, site: Site, target: Target) -> str | None:
        if site.op not in REDUCTIONS:
            return f"{site.op} is no reduction"
        if why := declines_rows(site):
            return why
        x = site.inputs[site.step.inputs[0] or 0].type.dtype
        if x.kind != "float" and (site.op not in _INTEGER or x not in (I32, I64)):
            return f"{site.op} of {x}"
        if most(plan_of(site).count, site) < 1:
            return "nothing to reduce"
        return declines_spread(site, operands_of(site.epilogue), site.output.shape)

    def space(self, site: Site, target: Target) -> Iterator[Params]:
        yield from rows_space(site, plan_of(site), site.step.inputs[0] or 0)

    def write(self, site: Site, params: Params, target: Target) -> Drafts:
        source = Source(site, target)
        rows = Rows(source, plan_of(site), params, site.step.inputs[0] or 0)
        value = _reduced(rows, site)
        axes = self._out_axes(site)

        def steps_of(strides: Sequence[Dim]) -> list[Dim]:
            return [0 if axes[a] is None else strides[axes[a]] for a in range(len(axes))]   # type: ignore[index]

        def load(i: int) -> Value:
            return rows.operand(i, steps_of(spread(site, i, site.output.shape) or ()), inner=False)
        made = run_steps(source, 1, {0: value}, load)
        out = len(site.inputs)
        offset = rows.outer_offset(steps_of(logical_strides(site.outputs[0])))
        shape = f"({params['rows']}, 1)"
        source.store(out, f"{offset} + tl.zeros({shape}, tl.int32)",
                     Value(f"tl.broadcast_to({made}, {shape})", made.dtype), rows.row_mask)
        source.let_next_start()
        return Drafts((source.draft(rows.grid, warps=params["warps"]),))

    @staticmethod
    def _out_axes(site: Site) -> list[int | None]:
        """For each axis of the input, the axis of the result that goes on along it, None where it is reduced."""
        x = site.inputs[site.step.inputs[0] or 0].type
        inner = {a.axis for a in plan_of(site).inner}
        if site.step.types[0].rank == x.rank:
            return [None if a in inner else a for a in range(x.rank)]
        kept = iter(range(x.rank))
        return [None if a in inner else next(kept) for a in range(x.rank)]


def declines_rows(site: Site) -> str | None:
    """What every tactic on rows asks of its site."""
    if site.main != 0 or len(site.outputs) != 1 or any(i is not None and i < 0 for i in site.step.inputs):
        return "a prologue or several outputs"
    if any(o.type.block for o in (*site.inputs, *site.outputs)):
        return "a layout of blocks of channels"
    if any(o.type.dtype.name not in TYPES for o in (*site.inputs, *site.outputs)):
        return f"elements of type {site.output.dtype}"
    if why := declines_steps(site, site.epilogue):
        return why
    for step in site.epilogue:
        if step.types[0].shape != site.step.types[0].shape:
            return f"{step.op} changes the shape"
    return None


def _extreme(rows: Rows, how: str) -> str:
    dtype = rows.dtype
    if dtype.kind == "float":
        start = number(float("-inf" if how == "max" else "inf"))
    else:
        edge = 1 << (dtype.bits - 1)
        start = str(-edge if how == "max" else edge - 1)
    return rows.reduce(how, start, lambda v: v.text)


def _reduced(rows: Rows, site: Site) -> Value:
    """The result of a reduction for the outer places: [rows, 1]."""
    source, op, dtype = rows.source, site.op, rows.dtype
    zero = "0.0" if dtype.kind == "float" else "0"
    count = source.dim(rows.plan.count)
    if op in ("ReduceMax", "GlobalMaxPool", "ReduceMin"):
        return Value(_extreme(rows, "min" if op == "ReduceMin" else "max"), dtype)
    if op in ("ArgMax", "ArgMin"):
        best = _extreme(rows, op[3:].lower())
        last = bool(site.attrs.get("select_last_index", 0))
        rows.dtype = I64
        at = rows.reduce("max" if last else "min", "-1" if last else str(1 << 40),
                         lambda v: f"tl.where({v} == {best}, c.to(tl.int64), {-1 if last else 1 << 40})")
        return Value(at, I64)
    if op == "ReduceProd":
        return Value(rows.reduce("prod", "1.0" if dtype.kind == "float" else "1", lambda v: v.text), dtype)
    if op == "ReduceLogSumExp":
        top = source.let(f"tl.where(tl.abs({(best := _extreme(rows, 'max'))}) == float('inf'), 0.0, {best})")
        total = rows.reduce("sum", zero, lambda v: f"tl.exp({v} - {top})")
        return Value(source.let(f"tl.log({total}) + {top}"), dtype)
    power = float(site.attrs.get("p", 2)) if op == "GlobalLpPool" else 2.0      # type: ignore[arg-type]
    term: Callable[[Value], str] = lambda v: v.text     # noqa: E731 - replaced below where the op asks for it
    if op == "ReduceL1" or (op == "GlobalLpPool" and power == 1):
        term = lambda v: f"tl.abs({v})"     # noqa: E731
    elif op in ("ReduceL2", "ReduceSumSquare", "GlobalLpPool"):
        term = lambda v: f"{v} * {v}"       # noqa: E731
    total = rows.reduce("sum", zero, term)
    if op in ("ReduceMean", "GlobalAveragePool"):
        total = source.let(f"{total} / {count}")
    elif op == "ReduceL2" or (op == "GlobalLpPool" and power == 2):
        total = source.let(f"tl.sqrt({total})")
    elif op == "ReduceLogSum":
        total = source.let(f"tl.log({total})")
    return Value(total, dtype)


class Normalization(CudaTactic):
    """Softmax and the normalisations: statistics of the inner places, then every element with them."""

    name = "cuda.normalize"

    def declines(self, site: Site, target: Target) -> str | None:
        if site.op not in NORMS:
            return f"{site.op} is no normalisation"
        if why := declines_rows(site):
            return why
        x = site.inputs[site.step.inputs[0] or 0].type
        if x.dtype.kind != "float" or (x.dtype == F64 and "oftmax" not in site.op):
            return f"{site.op} of {x.dtype}"
        if site.op == "LpNormalization" and site.attrs.get("p", 2) not in (1, 2):
            return "a norm of another power"
        weights = site.step.inputs[1:] if site.op in ("LayerNormalization", "RMSNormalization") else ()
        return (declines_spread(site, weights, x.shape)
                or declines_spread(site, operands_of(site.epilogue), site.output.shape))

    def space(self, site: Site, target: Target) -> Iterator[Params]:
        yield from rows_space(site, plan_of(site), site.step.inputs[0] or 0)

    def write(self, site: Site, params: Params, target: Target) -> Drafts:
        source = Source(site, target)
        rows = Rows(source, plan_of(site), params, site.step.inputs[0] or 0)
        main = _normalised(rows, site)

        def load(i: int) -> Value:
            return rows.operand(i, spread(site, i, site.output.shape) or ())
        rows.write(len(site.inputs), logical_strides(site.outputs[0]),
                   lambda v: run_steps(source, 1, {0: Value(source.let(main(v)), rows.dtype)}, load))
        source.let_next_start()
        return Drafts((source.draft(rows.grid, warps=params["warps"]),))


def _normalised(rows: Rows, site: Site) -> Callable[[Value], str]:
    """Writes the statistics; gives the text of one element's result."""
    source, op = rows.source, site.op
    attrs = {**OPS[op].attrs, **site.attrs}
    count = source.dim(rows.plan.count)
    if op in ("Softmax", "LogSoftmax"):
        top = _extreme(rows, "max")
        if op == "Softmax" and rows.held:
            total = rows.reduce("sum", "0.0", lambda v: f"tl.exp({v} - {top})")
            scale = source.let(f"1.0 / {total}")
            return lambda v: f"tl.exp({v} - {top}) * {scale}"
        total = rows.reduce("sum", "0.0", lambda v: f"tl.exp({v} - {top})")
        if op == "Softmax":
            return lambda v: f"tl.exp({v} - {top}) / {total}"
        shift = source.let(f"tl.log({total}) + {top}")
        return lambda v: f"{v} - {shift}"
    if op == "Hardmax":
        top = _extreme(rows, "max")
        kept, rows.dtype = rows.dtype, I32
        first = rows.reduce("min", str(1 << 30), lambda v: f"tl.where({v} == {top}, c, {1 << 30})")
        rows.dtype = kept
        return lambda v: f"tl.where((c == {first}) & ({v} == {v}), 1.0, 0.0)"
    if op == "LpNormalization":
        one = attrs["p"] == 1
        total = rows.reduce("sum", "0.0", lambda v: f"tl.abs({v})" if one else f"{v} * {v}")
        norm = total if one else source.let(f"tl.sqrt({total})")
        return lambda v: f"tl.where({norm} == 0.0, 0.0, {v} / {norm})"
    if op == "RMSNormalization":
        square = rows.reduce("sum", "0.0", lambda v: f"{v} * {v}")
        factor = source.let(f"tl.rsqrt({square} / {count} + {number(float(str(attrs['epsilon'])))})")
        return lambda v: _scaled(rows, site, f"{v} * {factor}")
    mean = source.let(f"{rows.reduce('sum', '0.0', lambda v: v.text)} / {count}")
    square = rows.reduce("sum", "0.0", lambda v: f"({v} - {mean}) * ({v} - {mean})")
    if op == "MeanVarianceNormalization":
        factor = source.let(f"1.0 / (tl.sqrt({square} / {count}) + 1e-9)")
        return lambda v: f"({v} - {mean}) * {factor}"
    factor = source.let(f"tl.rsqrt({square} / {count} + {number(float(str(attrs['epsilon'])))})")
    return lambda v: _scaled(rows, site, f"({v} - {mean}) * {factor}")


def _scaled(rows: Rows, site: Site, text: str) -> str:
    """Times the scale, plus the bias, where they are given."""
    x = site.inputs[rows.x].type
    for i, sign in zip(site.step.inputs[1:3], ("*", "+"), strict=False):
        if i is None:
            continue
        if site.op in ("InstanceNormalization", "GroupNormalization"):
            steps: Sequence[Dim] = [logical_strides(site.inputs[i])[0] if a == 1 else 0 for a in range(x.rank)]
        else:
            steps = spread(site, i, x.shape) or ()
        text = f"({text}) {sign} {rows.operand(i, steps)}"
    return text


__all__ = ["Atom", "Normalization", "Plan", "Reduction", "Rows", "declines_rows", "rows_space"]
