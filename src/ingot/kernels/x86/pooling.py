"""Max, average and p-norm pooling over windows: lanes are channels in the blocked layout, columns in the plain one.

Each row of results is cut in three: at both edges the window's columns are clamped to the input; in between every tap
lies inside, so that the columns of the window are unrolled and several results are made at once.
"""
from __future__ import annotations

import math as numbers
from collections.abc import Callable, Sequence

from ingot.graph import F32, F64
from ingot.kernels.codegen import Code, Int, Value, Variable, element_of, isa_of, math
from ingot.kernels.codegen.expression import maximum
from ingot.kernels.codegen.steps import declines_steps, run_steps
from ingot.kernels.tactic import Kernel, Operand, Params, Site, Tactic
from ingot.kernels.x86.nest import Side, View, advance, load_lanes
from ingot.kernels.x86.pointwise import broadcast_view
from ingot.ops import OPS, pooling_window
from ingot.ops.convolution import Window
from ingot.target import Target

_TOGETHER = 4       # results made at once where no tap can be outside


def _attrs(site: Site) -> dict[str, object]:
    return {**OPS[site.op].attrs, **site.attrs}


def _beside(site: Site) -> list[tuple[int, Operand]]:
    """What the steps after the pooling read beside its result; that may be what it was made of, too."""
    read = {i for s in site.epilogue for i in s.inputs}
    return [(i, o) for i, o in enumerate(site.inputs) if i or i in read]


class Pooling(Tactic):
    """Every result is made in registers from its window."""

    name = "x86.pooling"

    def declines(self, site: Site, target: Target) -> str | None:
        if site.op not in ("MaxPool", "AveragePool", "LpPool"):
            return f"{site.op} is no pooling"
        x = site.inputs[0].type
        if site.main or site.step.inputs[0] != 0 or len(site.outputs) != 1 or len(site.step.types) != 1:
            return "takes one input and makes one result"
        if x.dtype not in (F32, F64) or site.step.types[0].dtype != x.dtype:
            return f"{site.op} on {x.dtype}"
        if x.rank > 5:
            return "more than three spatial axes"
        if site.op == "LpPool" and site.attrs.get("p", 2) not in (1, 2):
            return "a norm other than the first and second"
        if x.layout != site.output.layout:
            return "the result lies in another layout"
        if why := declines_steps(site, site.epilogue):
            return why
        if any(s.types[0].shape != site.output.shape for s in site.epilogue):
            return "a step has another shape than the result"
        for _, operand in _beside(site):
            view = broadcast_view(operand, site.output)
            if isinstance(view, str):
                return view
        return None

    def emit(self, site: Site, params: Params, target: Target) -> Kernel:
        code = Code(isa_of(target), site.symbols)
        name = f"pooling_{site.key}"
        with code.function(name):
            _Pooling(code, site).emit()
        return Kernel(name, code.module(), (name,))


class _Pooling:
    """A pooling being emitted."""

    def __init__(self, code: Code, site: Site) -> None:
        self.code, self.site = code, site
        x = site.inputs[0].type
        self.window: Window = pooling_window((x,), _attrs(site))
        self.element = element_of(x.dtype)
        self.blocked = bool(x.layout)
        self.lanes = x.block if self.blocked else code.isa.lanes * 4 // x.dtype.nbytes
        self.sizes = [code.dim(d) for d in x.shape[2:]]
        self.begins = [code.dim(d) for d in self.window.begins]
        self.ends = [code.dim(d) for d in self.window.ends]
        self.rank = len(self.sizes)
        self.x = Side(code.buffer(0), self.element, View(site.inputs[0].steps))
        self.out = Side(code.buffer(len(site.inputs)), element_of(site.output.dtype), View(site.outputs[0].steps))
        self.others: dict[int, Side] = {}
        for i, operand in _beside(site):
            view = broadcast_view(operand, site.output)
            if isinstance(view, View):
                self.others[i] = Side(code.buffer(i), element_of(operand.type.dtype), view)

    def emit(self) -> None:
        code = self.code
        physical = [code.dim(d) for d in self.site.output.physical]
        lead, width = physical[:2 + self.rank - 1], physical[2 + self.rank - 1]
        tasks: Int = 1
        for d in lead:
            tasks = code.mul(tasks, d)
        with code.share(tasks) as task:
            # rows before channels: a thread keeps to a band of rows, as convolutions do, in its own core's cache
            n, *rest, c = code.unflatten(task, [lead[0], *lead[2:], lead[1]])
            places = [n, c, *rest]
            x = advance(code, self.x, list(zip(places[:2], self.x.view.strides, strict=False)))
            outs = {i: advance(code, s, list(zip(places, s.view.strides, strict=False)))
                    for i, s in {-1: self.out, **self.others}.items()}
            bounds = [self._bounds(a, place) for a, place in enumerate(places[2:])]
            self._line(x, outs, bounds, width)

    def _bounds(self, axis: int, place: Int) -> tuple[Int, Int, Int]:
        """Where the window of a place begins, and the first and last+1 of its taps that lie inside."""
        code, w = self.code, self.window
        begin = code.sub(code.mul(place, w.strides[axis]), self.begins[axis])
        d, kernel = w.dilations[axis], w.kernel[axis]
        low = code.div(code.add(code.max(0, code.sub(0, begin)), d - 1), d)
        room = code.max(0, code.add(code.sub(self.sizes[axis], begin), d - 1))
        return begin, low, code.max(low, code.min(kernel, code.div(room, d)))

    def _line(self, x: Side, outs: dict[int, Side], bounds: Sequence[tuple[Int, Int, Int]], width: Int) -> None:
        """One row of results."""
        code, w, axis = self.code, self.window, self.rank - 1
        s, reach = w.strides[axis], (w.kernel[axis] - 1) * w.dilations[axis]
        begin, size = self.begins[axis], self.sizes[axis]
        first = code.min(code.ceildiv(begin, s), width)
        span = code.sub(code.add(size, begin), 1 + reach)           # the last start that lies inside, plus the padding
        inside = code.div(code.add(code.max(-1, span), s), s)       # places up to there, none for a span below 0
        after = code.max(first, code.min(inside, width))
        with code.loop(0, first) as o:
            self._edge(x, outs, bounds, o)
        step = 1 if self.blocked else self.lanes
        together = 1 if not self.blocked else _TOGETHER
        whole = code.add(first, code.mul(code.div(code.sub(after, first), together * step), together * step))
        if not (isinstance(whole, int) and whole == first):
            with code.loop(first, whole, together * step) as o:
                self._inside(x, outs, bounds, [code.add(o, u * step) for u in range(together)], None)
        if not (isinstance(whole, int) and whole == after):
            with code.loop(whole, after, step) as o:
                self._inside(x, outs, bounds, [o], None if self.blocked else code.mask(code.sub(after, o), self.lanes))
        with code.loop(after, width) as o:
            self._edge(x, outs, bounds, o)

    def _edge(self, x: Side, outs: dict[int, Side], bounds: Sequence[tuple[Int, Int, Int]], o: Int) -> None:
        """One place whose columns are clamped."""
        code, axis = self.code, self.rank - 1
        lanes = self.lanes if self.blocked else 1
        begin, low, high = self._bounds(axis, o)
        acc = self._accumulators(1, lanes)

        def row(line: Side) -> None:
            with code.loop(low, high) as t:
                column = code.add(begin, code.mul(t, self.window.dilations[axis]))
                self._take(acc[0], self._pixel(line, column), lanes, 1, None)
        self._rows(x, bounds, row)
        self._finish(outs, o, acc[0].get(), lanes, None, self._count([*bounds, (begin, low, high)]))

    def _inside(self, x: Side, outs: dict[int, Side], bounds: Sequence[tuple[Int, Int, Int]], places: Sequence[Int],
                mask: Value | None) -> None:
        """Places (each a vector of columns in the plain layout) whose every tap lies inside."""
        code, w, axis = self.code, self.window, self.rank - 1
        acc = self._accumulators(len(places), self.lanes)

        def row(line: Side) -> None:
            for t in range(w.kernel[axis]):
                for a, o in zip(acc, places, strict=True):
                    column = code.add(code.sub(code.mul(o, w.strides[axis]), self.begins[axis]), t * w.dilations[axis])
                    self._take(a, self._pixel(line, column), self.lanes, 1 if self.blocked else w.strides[axis], mask)
        self._rows(x, bounds, row)
        count = self._count([*bounds, (0, 0, w.kernel[axis])])
        for a, o in zip(acc, places, strict=True):
            self._finish(outs, o, a.get(), self.lanes, mask, count)

    def _rows(self, x: Side, bounds: Sequence[tuple[Int, Int, Int]], row: Callable[[Side], None],
              axis: int = 0) -> None:
        """Loop over the window's taps along all spatial axes but the last."""
        if axis == self.rank - 1:
            row(x)
            return
        code = self.code
        begin, low, high = bounds[axis]
        with code.loop(low, high) as t:
            place = code.add(begin, code.mul(t, self.window.dilations[axis]))
            self._rows(advance(code, x, [(place, x.view.strides[2 + axis])]), bounds, row, axis + 1)

    def _pixel(self, line: Side, column: Int) -> Side:
        return advance(self.code, line, [(column, line.view.strides[2 + self.rank - 1])])

    def _accumulators(self, count: int, lanes: int) -> list[Variable]:
        start = -numbers.inf if self.site.op == "MaxPool" else 0.0
        return [self.code.variable(self.code.constant(start, self.element, lanes)) for _ in range(count)]

    def _take(self, acc: Variable, pixel: Side, lanes: int, stride: int, mask: Value | None) -> None:
        code = self.code
        value = load_lanes(code, pixel, stride, lanes, mask)
        if self.site.op == "MaxPool":
            acc.set(maximum(code, acc.get(), value))
            return
        if self.site.op == "LpPool":
            value = math.absolute(code, value) if self.site.attrs.get("p", 2) == 1 else code.fmul(value, value)
        acc.set(code.fadd(acc.get(), value))

    def _count(self, bounds: Sequence[tuple[Int, Int, Int]]) -> Int:
        """How many elements an average is over."""
        code, count = self.code, 1
        if self.site.op != "AveragePool":
            return 1
        total: Int = count
        for axis, (begin, low, high) in enumerate(bounds):
            if not _attrs(self.site)["count_include_pad"]:
                total = code.mul(total, code.sub(high, low))
                continue
            # padding counts, but not what ceil_mode puts past it
            d = self.window.dilations[axis]
            room = code.sub(code.add(self.sizes[axis], self.ends[axis]), begin)
            inside = code.div(code.add(code.max(0, room), d - 1), d)
            total = code.mul(total, code.min(self.window.kernel[axis], inside))
        return total

    def _finish(self, outs: dict[int, Side], o: Int, value: Value, lanes: int, mask: Value | None, count: Int) -> None:
        code, axis = self.code, 2 + self.rank - 1
        if self.site.op == "AveragePool":
            size = code.constant(count, value.element) if isinstance(count, int) else \
                code.convert("sitofp", count, value.element)
            value = code.fdiv(value, code.splat(size, lanes))
        elif self.site.op == "LpPool" and self.site.attrs.get("p", 2) == 2:
            value = math.square_root(code, value)
        here = {i: advance(code, s, [(o, s.view.strides[axis])]) for i, s in outs.items()}

        def load(i: int) -> Value:
            return load_lanes(code, here[i], here[i].view.strides[-1], lanes, mask)
        done = run_steps(code, self.site, 1, {0: value}, load)
        code.store(done, here[-1].pointer, mask)
