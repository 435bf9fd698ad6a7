"""Reductions over any axes, and pooling over the whole plane: vectors along what is contiguous, sums in two levels."""
from __future__ import annotations

import math as numbers
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

from ingot.graph import BF16, F16, F32, F64, Dim, DType, product
from ingot.kernels.codegen import Code, Int, Value, Variable, element_of, isa_of, math
from ingot.kernels.codegen.expression import maximum, minimum, narrowed, widened
from ingot.kernels.codegen.steps import declines_steps, run_steps
from ingot.kernels.tactic import Kernel, Params, Site, Tactic
from ingot.kernels.x86.nest import Side, View, advance, collapsed, load_lanes
from ingot.kernels.x86.pointwise import broadcast_view
from ingot.kernels.x86.rows import accumulate, total
from ingot.ops import reduced_axes
from ingot.target import Target

_GLOBAL = {"GlobalAveragePool": "ReduceMean", "GlobalMaxPool": "ReduceMax", "GlobalLpPool": "ReduceL2"}
_INTEGER = ("ReduceSum", "ReduceMax", "ReduceMin", "ReduceProd")
_STRETCH = 128      # steps along a strided reduction that are summed before they go into the total


@dataclass(frozen=True)
class Rule:
    """How a reduction is computed: its neutral element, what becomes of an element, how two combine, and the end."""

    neutral: float
    term: Callable[[Code, Value], Value]
    combine: Callable[[Code, Value, Value], Value]
    finish: Callable[[Code, Value, Value], Value]       # (code, result, number of elements)

    @property
    def adds(self) -> bool:
        return self.combine is _add


def _add(code: Code, a: Value, b: Value) -> Value:
    return code.fadd(a, b) if a.is_float else code.binary("add", a, b)


def _multiply(code: Code, a: Value, b: Value) -> Value:
    return code.fmul(a, b) if a.is_float else code.binary("mul", a, b)


def _itself(code: Code, x: Value) -> Value:
    return x


def _squared(code: Code, x: Value) -> Value:
    return code.fmul(x, x)


def _done(code: Code, x: Value, count: Value) -> Value:
    return x


_RULES = {
    "ReduceSum": Rule(0.0, _itself, _add, _done),
    "ReduceMean": Rule(0.0, _itself, _add, lambda code, x, count: code.fdiv(x, count)),
    "ReduceMax": Rule(-numbers.inf, _itself, maximum, _done),
    "ReduceMin": Rule(numbers.inf, _itself, minimum, _done),
    "ReduceProd": Rule(1.0, _itself, _multiply, _done),
    "ReduceL1": Rule(0.0, math.absolute, _add, _done),
    "ReduceL2": Rule(0.0, _squared, _add, lambda code, x, count: math.square_root(code, x)),
    "ReduceSumSquare": Rule(0.0, _squared, _add, _done),
    "ReduceLogSum": Rule(0.0, _itself, _add, lambda code, x, count: math.log(code, x)),
    "ReduceLogSumExp": Rule(0.0, math.exp, _add, lambda code, x, count: math.log(code, x)),
}


def _rule_name(site: Site) -> str:
    if site.op == "GlobalLpPool" and site.attrs.get("p", 2) == 1:
        return "ReduceL1"
    return _GLOBAL.get(site.op, site.op)


@dataclass(frozen=True)
class Shape:
    """A reduction's loops: the kept dimensions (x, the result, then other operands over them), the reduced ones."""

    kept: tuple[Dim, ...]
    views: tuple[View, ...]
    reduced: tuple[Dim, ...]
    strides: tuple[Dim, ...]
    count: Dim
    channels: int = 0       # where the result's last block is not full: how many channels there are


def shape_of(site: Site) -> Shape | str:
    """The loops of a reduction, or why it cannot be walked."""
    x, out = site.inputs[0], site.outputs[0]
    if site.step.inputs[0] != 0:
        return "the first operand is computed"
    axes = tuple(range(2, x.type.rank)) if site.op in _GLOBAL else reduced_axes(site.attrs, x.type.rank)
    made = site.step.types[0]
    if made.shape != out.type.shape or out.type.layout not in ("", x.type.layout):
        return "the result lies in another layout"
    sizes, steps = x.type.physical, x.steps
    others = []
    for operand in site.inputs[1:]:
        view = broadcast_view(operand, out.type)
        if isinstance(view, str):
            return view
        others.append(view)
    kept = [a for a in range(len(sizes)) if a not in axes]
    if x.type.layout and not out.type.layout:
        return _plain_from_blocks(site, tuple(others))
    keeps = out.type.rank == x.type.rank
    places = kept if keeps else list(range(len(kept)))
    aligned = [View(tuple(steps[a] for a in kept)), View(tuple(out.steps[p] for p in places)),
               *(View(tuple(v.strides[p] for p in places)) for v in others)]
    dims, views = collapsed([sizes[a] for a in kept], aligned)
    inner, inner_views = collapsed([sizes[a] for a in axes], [View(tuple(steps[a] for a in axes))])
    return Shape(tuple(dims), tuple(views), tuple(inner), inner_views[0].strides,
                 product(tuple(sizes[a] for a in axes)))


def _plain_from_blocks(site: Site, others: tuple[View, ...]) -> Shape | str:
    """Pooling over the whole plane, from blocks of channels to the plain layout."""
    x, out = site.inputs[0].type, site.output
    (n, c, *_), block = x.physical, x.block
    channels = 0
    if not isinstance(out.shape[1], int):
        return "an unknown number of channels"
    if out.shape[1] % block:
        channels = out.shape[1]
    steps = site.inputs[0].steps
    spread = [View((v[0], v[1] * block, v[1])) for v in (site.outputs[0].steps, *(o.strides for o in others))]
    views = [View((steps[0], steps[1], steps[-1])), *spread]
    sizes: list[Dim] = [n, c, block]
    if not channels:
        sizes, views = collapsed(sizes, views)
    inner, inner_views = collapsed(x.physical[2:-1], [View(steps[2:-1])])
    return Shape(tuple(sizes), tuple(views), tuple(inner), inner_views[0].strides, product(x.shape[2:]), channels)


class Reduction(Tactic):
    """One pass over the input (two for the logarithm of a sum of exponentials)."""

    name = "x86.reduction"

    def declines(self, site: Site, target: Target) -> str | None:
        if _rule_name(site) not in _RULES:
            return f"{site.op} is no reduction"
        dtype = site.inputs[0].type.dtype
        if dtype not in (F64, F32, F16, BF16) and not (dtype.name in ("i64", "i32") and site.op in _INTEGER):
            return f"{site.op} on {dtype}"
        if len(site.outputs) != 1 or site.main:
            return "takes no steps before it"
        if site.op == "GlobalLpPool" and site.attrs.get("p", 2) not in (1, 2):
            return "a norm other than the first and second"
        if why := declines_steps(site, site.epilogue):
            return why
        if any(s.types[0].shape != site.output.shape for s in site.epilogue):
            return "a step has another shape than the result"
        if any(0 in s.inputs for s in site.epilogue):
            return "a step reads what is reduced"
        found = shape_of(site)
        if isinstance(found, str):
            return found
        if found.views[0].strides[-1:] != (1,) and found.strides[-1:] not in ((1,), ()):
            return "the input has no contiguous dimension"
        return None

    def emit(self, site: Site, params: Params, target: Target) -> Kernel:
        code = Code(isa_of(target), site.symbols)
        name = f"reduction_{site.key}"
        found = shape_of(site)
        assert isinstance(found, Shape)     # declined
        with code.function(name):
            _Reducing(code, site, found).emit()
        return Kernel(name, code.module(), (name,))


class _Reducing:
    """A reduction being emitted."""

    def __init__(self, code: Code, site: Site, shape: Shape) -> None:
        self.code, self.site, self.shape = code, site, shape
        self.dtype: DType = site.inputs[0].type.dtype
        self.rule = _RULES[_rule_name(site)]
        self.element = "float" if self.dtype in (F16, BF16) else element_of(self.dtype)
        self.wide = code.isa.lanes * 4 // (8 if self.element in ("double", "i64") else 4)
        # the vectors run along the kept dimension when it is the contiguous one
        self.columns = bool(shape.kept) and shape.views[0].strides[-1] == 1 and shape.strides[-1:] != (1,)
        self.lanes = self.wide if self.columns else 1
        self.top: Value | None = None

    def sides(self) -> list[Side]:
        count = len(self.site.inputs)
        order = [0, count, *range(1, count)]
        types = [self.site.inputs[0].type, self.site.output, *(o.type for o in self.site.inputs[1:])]
        return [Side(self.code.buffer(i), element_of(t.dtype), v)
                for i, t, v in zip(order, types, self.shape.views, strict=True)]

    def emit(self) -> None:
        code, shape = self.code, self.shape
        dims = [code.dim(d) for d in shape.kept]
        last: Int = dims[-1] if self.columns else 1
        outer = dims[:-1] if self.columns else dims
        chunk = self.lanes * (self._vectors(last) if self.columns else 1)
        pieces = code.ceildiv(last, chunk) if self.columns else 1
        tasks: Int = pieces
        for d in outer:
            tasks = code.mul(tasks, d)
        with code.share(tasks) as task:
            *places, piece = code.unflatten(task, [*outer, pieces]) if outer else [task]
            start = code.mul(piece, chunk)
            moved = [advance(code, s, [*zip(places, s.view.strides, strict=False),
                                       *([(start, s.view.strides[-1])] if self.columns else [])])
                     for s in self.sides()]
            if self.columns:
                left = code.sub(last, start)
                if shape.channels:
                    left = code.min(left, code.sub(code.sub(shape.channels, code.mul(places[-1], last)), start))
                self._chunk(moved, left, chunk)
            else:
                self._finish(moved, self._along(moved[0]), None)

    def _vectors(self, last: Int) -> int:
        return max(1, min(4, -(-last // self.lanes))) if isinstance(last, int) else 4

    # --- the reduced dimension is contiguous ------------------------------------------------------------------------

    def _term(self, x: Value, mask: Value | None) -> Value:
        code = self.code
        value = widened(code, x) if self.dtype in (F16, BF16) else x
        if self.top is not None:
            top = self.top if self.top.lanes == value.lanes else code.splat(self.top, value.lanes)
            value = code.fsub(value, top)
        value = self.rule.term(code, value)
        return value if mask is None else code.select(mask, value, self._neutral(value.lanes))

    def _neutral(self, lanes: int) -> Value:
        number = self.rule.neutral
        if self.element in ("i64", "i32") and numbers.isinf(number):
            bits = 63 if self.element == "i64" else 31
            number = -(1 << bits) if number < 0 else (1 << bits) - 1
            text = str(int(number))
            return Value(f"<{lanes} x {self.element}>" if lanes > 1 else self.element,
                         f"splat ({self.element} {text})" if lanes > 1 else text)
        return self.code.constant(number, self.element, lanes)

    def _guarded(self, reduce: Callable[[], Value]) -> Value:
        """Where exponentials are summed: the greatest first, subtracted from each and added to the result."""
        if _rule_name(self.site) != "ReduceLogSumExp":
            return self._ended(reduce())
        code, rule = self.code, self.rule
        self.rule = _RULES["ReduceMax"]
        top = reduce()
        safe = code.fcompare("one", math.absolute(code, top), code.constant(numbers.inf, top.element, top.lanes))
        top = code.select(safe, top, code.zero(top.element, top.lanes))     # an infinite greatest: nothing to subtract
        self.rule, self.top = rule, top
        result = code.fadd(self._ended(reduce()), top)
        self.top = None
        return result

    def _ended(self, value: Value) -> Value:
        code, count = self.code, self.code.dim(self.shape.count)
        size = Value("", "")
        if value.is_float:
            size = (code.constant(count, value.element, value.lanes) if isinstance(count, int)
                    else code.splat(code.convert("sitofp", count, value.element), value.lanes))
        return self.rule.finish(code, value, size)

    def _along(self, x: Side) -> Value:
        """One result: the reduced dimensions in loops, the last one in vectors."""
        return self._guarded(lambda: self._along_once(x))

    def _along_once(self, x: Side) -> Value:
        code, shape, lanes = self.code, self.shape, self.wide
        if not shape.reduced:
            return self._term(load_lanes(code, x, 1, 1, None), None)
        result = code.variable(self._neutral(lanes))
        length = code.dim(shape.reduced[-1])

        def innermost(places: Sequence[Int]) -> None:
            row = advance(code, x, list(zip(places, shape.strides, strict=False)))

            def term(at: Int, mask: Value | None) -> Value:
                moved = Side(code.offset(row.pointer, at, row.element), row.element, row.view)
                return self._term(load_lanes(code, moved, 1, lanes, mask), mask)
            if self.rule.adds and self.element in ("float", "double"):
                made = total(code, length, self.element, lanes, term)
            else:
                made = accumulate(code, length, self._neutral(lanes), term, self._combined)
            result.set(self._combined(result.get(), made))
        self._loops(shape.reduced[:-1], innermost, ())
        value = result.get()
        while value.lanes > 1:
            half = value.lanes // 2
            value = self._combined(*(
                (code.shuffle(value, None, range(half)), code.shuffle(value, None, range(half, value.lanes)))
                if half > 1 else (code.extract(value, 0), code.extract(value, 1))))
        return value

    def _combined(self, a: Value, b: Value) -> Value:
        return self.rule.combine(self.code, a, b)

    def _loops(self, dims: Sequence[Dim], body: Callable[[Sequence[Int]], None], places: Sequence[Int]) -> None:
        if not dims:
            body(places)
            return
        with self.code.loop(0, self.code.dim(dims[0])) as i:
            self._loops(dims[1:], body, (*places, i))

    # --- the kept dimension is contiguous ---------------------------------------------------------------------------

    def _chunk(self, moved: list[Side], left: Int, chunk: int) -> None:
        """Up to a few vectors of results: all reduced dimensions in loops."""
        code, lanes = self.code, self.lanes
        if isinstance(left, int):
            self._vector_columns(moved, [code.mask(left - at, lanes) for at in range(0, min(left, chunk), lanes)])
            return
        full = code.compare(">=", left, chunk)
        with code.when(full):
            self._vector_columns(moved, [None] * (chunk // lanes))
        with code.when(code.binary("xor", full, Value("i1", "true"))), code.loop(0, left, lanes) as at:
            here = [advance(code, s, [(at, s.view.strides[-1])]) for s in moved]
            self._vector_columns(here, [code.mask(code.sub(left, at), lanes)])

    def _vector_columns(self, moved: list[Side], masks: Sequence[Value | None]) -> None:
        code, lanes = self.code, self.lanes
        values: list[Value] = []
        if _rule_name(self.site) == "ReduceLogSumExp":
            for k, mask in enumerate(masks):
                x = advance(code, moved[0], [(k * lanes, 1)])
                values.append(self._guarded(partial(self._column, x, mask)))
        else:
            values = [self._ended(v) for v in self._columns(moved[0], masks)]
        for k, (mask, value) in enumerate(zip(masks, values, strict=True)):
            here = [advance(code, s, [(k * lanes, s.view.strides[-1])]) for s in moved]
            self._finish(here, value, mask)

    def _column(self, x: Side, mask: Value | None) -> Value:
        return self._columns(x, [mask])[0]

    def _columns(self, x: Side, masks: Sequence[Value | None]) -> list[Value]:
        code, shape, lanes = self.code, self.shape, self.lanes
        grand = [code.variable(self._neutral(lanes)) for _ in masks]
        if not shape.reduced:
            self._add_to(grand, x, masks)
            return [g.get() for g in grand]
        length, stride = code.dim(shape.reduced[-1]), shape.strides[-1]

        def innermost(places: Sequence[Int]) -> None:
            row = advance(code, x, list(zip(places, shape.strides, strict=False)))
            with code.loop(0, length, _STRETCH) as start:
                part = [code.variable(self._neutral(lanes)) for _ in masks]
                stop = code.min(code.add(start, _STRETCH), length)
                with code.loop(start, stop) as i:
                    self._add_to(part, advance(code, row, [(i, stride)]), masks)
                for g, p in zip(grand, part, strict=True):
                    g.set(self._combined(g.get(), p.get()))
        self._loops(shape.reduced[:-1], innermost, ())
        return [g.get() for g in grand]

    def _add_to(self, sums: Sequence[Variable], x: Side, masks: Sequence[Value | None]) -> None:
        for k, (acc, mask) in enumerate(zip(sums, masks, strict=True)):
            here = advance(self.code, x, [(k * self.lanes, 1)])
            acc.set(self._combined(acc.get(), self._term(load_lanes(self.code, here, 1, self.lanes, mask), None)))

    # --- results ----------------------------------------------------------------------------------------------------

    def _finish(self, moved: list[Side], value: Value, mask: Value | None) -> None:
        code = self.code
        if self.dtype in (F16, BF16):
            value = narrowed(code, value, self.dtype)
        stride = self.shape.views[1].strides[-1] if self.columns else 1

        def load(i: int) -> Value:
            side = moved[i + 1]
            return load_lanes(code, side, side.view.strides[-1] if self.columns else 1, self.lanes, mask)
        value = run_steps(code, self.site, 1, {0: value}, load)
        if stride == 1 or self.lanes == 1:
            code.store(value, moved[1].pointer, mask)
            return
        for lane in range(self.lanes):
            inside = None if mask is None else code.extract(mask, lane)
            place = advance(code, moved[1], [(lane, stride)]).pointer
            if inside is None:
                code.store(code.extract(value, lane), place)
            else:
                with code.when(inside):
                    code.store(code.extract(value, lane), place)
