"""MatMul with fewer multiplications: Strassen's products in Winograd's form, one or two levels deep.

A level cuts rows, depth and columns into halves and makes 7 products of sums of the four parts of each operand stand
for 8 (Strassen, Gaussian elimination is not optimal, 1969; with 15 additions: Winograd, On multiplication of 2 x 2
matrices, 1971); two levels make 49 products stand for 64. The sums of the constant right operand are made at build,
in f64, rounded once: they take 7/4 (49/16) of its memory. A task is a block of rows times a panel of columns, of all
products: a thread makes the sums of its block of rows once, for all the panels it takes, multiplies them by register
tiles, adds the products up while they are in its second-level cache, and finishes and stores the rows of all parts of
the result. There is no temporary of the size of an operand.

Accuracy: the largest error against f64 is 1.1-2.1 times that of plain sums for one level, 2.2-4.5 times for two, over
depths of 384 to 3072 (in the root of the mean square 1.6-2.2 and 2.7-4.5). It is relative to the largest number of an
item, not of a row: hence `exact` is False; the tuner's judge and the verification of the engine hold the results to the
same tolerance as any other's. Rows are cut within an item (the
last dimension before the depth), so that items of a batch never meet. A block of rows that holds a NaN or an infinity
is computed part by part, all other parts zero: its other rows are what they would be without, its own are NaN.
"""
from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np

from ingot.graph import F32, Dim, product
from ingot.kernels.codegen import Code, Int, Isa, Value, element_of, isa_of
from ingot.kernels.codegen.tile import Tile
from ingot.kernels.tactic import Kernel, Params, Site, Tactic
from ingot.kernels.x86.matmul import at_profile, tiles_for
from ingot.kernels.x86.matmul_form import Ending, Form, declines_epilogue, form_of
from ingot.target import Target

T = TypeVar("T")
Two = Callable[[T, T], T]
Sums = Callable[[Sequence[T], Two[T], Two[T]], Sequence[T]]


# --- the scheme: parts are 11, 12, 21, 22; `add` and `sub` of whatever they are ---------------------------------------


def left_sums(x: Sequence[T], add: Two[T], sub: Two[T]) -> tuple[T, ...]:
    """The left factors of the seven products."""
    s1 = add(x[2], x[3])
    s2 = sub(s1, x[0])
    return x[0], x[1], sub(x[1], s2), x[3], s1, s2, sub(x[0], x[2])


def right_sums(x: Sequence[T], add: Two[T], sub: Two[T]) -> tuple[T, ...]:
    """The right factors of the seven products."""
    t1 = sub(x[1], x[0])
    t2 = sub(x[3], t1)
    return x[0], x[2], x[3], sub(t2, x[2]), t1, t2, sub(x[3], x[1])


def results(p: Sequence[T], add: Two[T], sub: Two[T]) -> tuple[T, ...]:
    """The parts of the result from the seven products."""
    u2 = add(p[0], p[5])
    u3, u4 = add(u2, p[6]), add(u2, p[4])
    return add(p[0], p[1]), add(u4, p[2]), sub(u3, p[3]), add(u3, p[4])


def nested(sums: Sums[T], x: Sequence[T], levels: int, add: Two[T], sub: Two[T]) -> list[T]:
    """`sums` of sums: 4^levels parts, those of the coarsest cut outermost, to 7^levels factors (or back)."""
    if levels == 0:
        return list(x)
    count = 7 if sums is results else 4
    inner = len(x) // count
    outer = [sums([x[g * inner + i] for g in range(count)], add, sub) for i in range(inner)]
    return [y for p in range(len(outer[0])) for y in nested(sums, [o[p] for o in outer], levels - 1, add, sub)]


def places(levels: int) -> list[tuple[int, int]]:
    """(row, column) of each of the 4^levels parts, as `nested` orders them."""
    if levels == 0:
        return [(0, 0)]
    half = 2 ** (levels - 1)
    return [(i * half + r, j * half + c) for i in (0, 1) for j in (0, 1) for r, c in places(levels - 1)]


class StrassenMatMul(Tactic):
    """f32 by a constant matrix: `levels` cuts, tiles of `rows` x `vectors`, `block` tiles of rows per task."""

    name = "x86.matmul_strassen"
    exact = False

    def declines(self, site: Site, target: Target) -> str | None:
        form = form_of(site)
        if isinstance(form, str):
            return form
        left, right = site.inputs[form.left], site.inputs[form.right]
        if left.type.dtype != F32 or right.type.dtype != F32:
            return "it takes f32"
        if not right.constant or right.type.rank != 2 or form.left == form.right or form.batch:
            return "the right operand is not one constant matrix"
        if form.left_depth != 1:
            return "the left operand's rows are not adjacent in memory"
        if len(form.row_dims) < 2:
            return "the rows are not those of items that lie evenly"
        if not _levels(site, form, isa_of(target)):
            return "rows, depth or columns are too few, or do not divide into halves"
        return declines_epilogue(site, form, packs=True)

    def space(self, site: Site, target: Target) -> Iterator[Params]:
        form = form_of(site)
        if isinstance(form, str):
            return
        yield from _points(site, form, isa_of(target), target.threads)

    def pack(self, site: Site, params: Params, target: Target,
             constants: Mapping[int, np.ndarray]) -> Mapping[int, np.ndarray]:
        form = form_of(site)
        if isinstance(form, str) or form.right not in constants:
            return {}
        array = constants[form.right].T if form.right_swapped else constants[form.right]
        return {form.right: pack_right(array, params["levels"], params["vectors"] * isa_of(target).lanes)}

    def emit(self, site: Site, params: Params, target: Target) -> Kernel:
        form = form_of(site)
        if isinstance(form, str):
            raise ValueError(form)
        return _Emission(site, form, params, isa_of(target)).kernel()


def pack_right(matrix: np.ndarray, levels: int, width: int) -> np.ndarray:
    """[K, N] -> flat [ceil(N / cut / width)][7^levels][K / cut][width], cut = 2^levels."""
    cut, (depth, columns) = 2 ** levels, matrix.shape
    parts = matrix.reshape(cut, depth // cut, cut, columns // cut)
    packed = np.zeros((-(-columns // cut // width), 7 ** levels, depth // cut, width), np.float32)
    for panel, sums in enumerate(packed):           # one at a time: what it takes stays in the cache
        some = slice(panel * width, (panel + 1) * width)
        wide = [parts[r, :, c, some].astype(np.float64) for r, c in places(levels)]
        for goal, made in zip(sums, nested(right_sums, wide, levels, np.add, np.subtract), strict=True):
            goal[:, :made.shape[1]] = made
    return packed.reshape(-1)


# --- the space ------------------------------------------------------------------------------------------------------


def _levels(site: Site, form: Form, isa: Isa) -> list[int]:
    """How many levels may pay."""
    depth, columns = form.depth, form.columns
    if not isinstance(depth, int) or not isinstance(columns, int):
        return []
    length = at_profile(form.row_dims[-1], site, "opt")
    return [n for n in (1, 2) if depth % 2**n == 0 and columns % 2**n == 0 and columns >> n >= 2 * isa.lanes
            and depth >> n >= 64 and length >> n >= 24]


def _points(site: Site, form: Form, isa: Isa, threads: int) -> Iterator[Params]:
    """Some half a dozen points, the best guess first."""
    seen: list[Params] = []
    items, length = (at_profile(d, site, "opt") for d in (product(form.row_dims[:-1]), form.row_dims[-1]))
    columns = at_profile(form.columns, site, "opt")
    for levels in reversed(_levels(site, form, isa)):
        rows = items * -(-length // 2**levels)
        shapes = tiles_for(isa, rows, columns >> levels, isa.lanes, 1, threads, 64)[:2]
        for (height, vectors), most in ((shapes[0], 32), (shapes[0], 64), (shapes[-1], 32)):
            whole, blocks = -(-rows // height), max(1, -(-rows // most))
            point = {"levels": levels, "rows": height, "vectors": vectors, "block": -(-whole // blocks)}
            if point not in seen:
                seen.append(point)
    yield from seen


def _odd_lines(floats: int) -> int:
    """At least so many floats, an odd number of cache lines: strides that do not meet in the same sets."""
    return (-(-floats // 16) | 1) * 16


# --- the kernel -----------------------------------------------------------------------------------------------------


@dataclass
class _Emission:
    """The emission of one kernel; lives inside `emit`."""

    site: Site
    form: Form
    params: Params
    isa: Isa

    def __post_init__(self) -> None:
        form, params = self.form, self.params
        if not isinstance(form.depth, int) or not isinstance(form.columns, int):
            raise ValueError("sizes that were to be declined")
        self.code = Code(self.isa, self.site.symbols)
        self.lanes, self.levels = self.isa.lanes, params["levels"]
        self.cut, self.products = 2 ** self.levels, 7 ** self.levels
        self.height, self.vectors, self.block = params["rows"], params["vectors"], params["block"]
        self.width, self.align = self.vectors * self.lanes, 4 * self.lanes
        self.depth, self.columns = form.depth // self.cut, form.columns // self.cut     # of a product
        self.panels = -(-self.columns // self.width)
        self.length = form.row_dims[-1]
        self.part: Dim = -(-self.length // self.cut)                                    # rows of an item's part
        self.rows: Dim = product(form.row_dims[:-1]) * self.part                        # of a product
        # scratch, in floats: sums of a block of rows, seven products, those of the outer level, sums of one row, zeros
        held = self.block * self.height
        self.line = _odd_lines(self.depth)
        self.plane = _odd_lines(held * self.line)
        self.area = _odd_lines(held * self.width)
        self.made_at = self.products * self.plane
        self.outer_at = self.made_at + 7 * self.area
        self.between_at = self.outer_at + (28 * self.area if self.levels == 2 else 0)
        self.zeros_at = self.between_at + (28 * self.line if self.levels == 2 else 0)
        self.scratch = self.zeros_at + self.line

    def kernel(self) -> Kernel:
        code, form = self.code, self.form
        with code.function("strassen"):
            self._main()
        return Kernel(StrassenMatMul.name, code.module(), ("strassen",), 0, 4 * self.scratch,
                      {"flops": 2 * product(form.lead) * form.columns * form.depth,
                       "done": self.products / 8 ** self.levels})

    def _main(self) -> None:
        code, panels = self.code, self.panels
        rows = code.dim(self.rows)
        tiles = code.ceildiv(rows, self.height)
        blocks = code.ceildiv(tiles, self.block)
        slots = len(self.site.inputs) + len(self.site.outputs)
        self.own = code.offset(code.buffer(slots + 1), code.mul(code.thread, self.scratch))
        with code.loop(0, self.line, self.lanes) as e:
            code.store(code.zero(lanes=self.lanes), code.offset(self.own, code.add(e, self.zeros_at)), align=self.align)
        self.ending = Ending(code, self.site, self.form)
        self.row = code.reserve("float", self.cut ** 2 * self.width)
        turns = code.variable(code.value(1))
        start, end = code.share_bounds(code.mul(blocks, panels))
        with code.loop(start, end) as task:
            block, panel = code.div(task, panels), code.rem(task, panels)
            low = code.mul(code.div(code.mul(block, tiles), blocks), self.height)
            high = code.mul(code.div(code.mul(code.add(block, 1), tiles), blocks), self.height)
            fresh = code.binary("or", code.compare("==", task, start), code.compare("==", panel, 0))
            with code.when(fresh):
                turns.set(code.select(self._finite(low, code.min(high, rows)), code.value(1), code.value(self.cut)))
            alone = code.compare("!=", turns.get(), 1)
            with code.loop(0, turns.get()) as turn:
                only = code.select(alone, turn, code.value(-1))
                with code.when(code.binary("or", fresh, alone)):
                    self._left(low, high, only)
                count = code.sub(high, low)
                if self.levels == 1:
                    self._products(panel, 0, low, count)
                else:
                    with code.loop(0, 7) as outer:
                        self._products(panel, outer, low, count)
                        self._inner(outer, count)
                self._finish(panel, low, code.min(high, rows), only)

    def _spot(self, p: Int, part: Int, only: Int = -1) -> tuple[Int, Value]:
        """The row of the operand that is row p of a part, and whether it exists and counts (-1: any part does)."""
        code = self.code
        length, size = code.dim(self.length), code.dim(self.part)
        item, i = code.div(p, size), code.rem(p, size)
        inside = code.add(code.mul(part, size), i)
        there = code.binary("and", code.compare("<", code.value(inside), length),
                            code.compare("<", code.value(p), code.dim(self.rows)))
        if only != -1:
            counts = code.binary("or", code.compare("==", only, -1), code.compare("==", only, part))
            there = code.binary("and", there, counts)
        return code.add(code.mul(item, length), inside), there

    # --- sums of the left operand's parts -----------------------------------------------------------------------------

    def _each(self, some: Callable[[Int, Value | None], None]) -> None:
        """`some(k, mask)` for each vector of the depth."""
        whole = self.depth // self.lanes * self.lanes
        with self.code.loop(0, whole, self.lanes) as k:
            some(k, None)
        if whole < self.depth:
            some(whole, self.code.mask(self.depth - whole, self.lanes))

    def _sources(self, p: Int, only: Int) -> list[Value]:
        """Where row p of each part starts, in the scheme's order; zeros where there is none."""
        code = self.code
        starts = []
        for part in range(self.cut):
            row, there = self._spot(p, part, only)
            start = code.offset(code.buffer(self.form.left), code.mul(row, code.dim(self.form.left_row)))
            starts.append((start, there))
        zeros = code.offset(self.own, self.zeros_at)
        return [code.select(starts[r][1], code.offset(starts[r][0], c * self.depth), zeros)
                for r, c in places(self.levels)]

    def _finite(self, low: Int, high: Int) -> Value:
        """Whether all of a block's rows are."""
        code, zero = self.code, self.code.zero(lanes=self.lanes)
        mark = code.variable(zero)
        with code.loop(low, high) as p:
            sources = self._sources(p, -1)

            def some(k: Int, mask: Value | None) -> None:
                for source in sources:
                    value = code.load(code.offset(source, k), lanes=self.lanes, mask=mask)
                    mark.set(code.fma(value, zero, mark.get()))

            self._each(some)
        return code.fcompare("oeq", code.reduce("fadd", mark.get()), code.zero())

    def _left(self, low: Int, high: Int, only: Int) -> None:
        """The sums of a block of rows, [product][row][depth]; rows past the end are zero."""
        code = self.code
        with code.loop(low, high) as p:
            sources = self._sources(p, only)
            to = code.offset(self.own, code.mul(code.sub(p, low), self.line))
            if self.levels == 1:
                self._sum_left(sources, [code.offset(to, q * self.plane) for q in range(7)])
            else:
                between = code.offset(self.own, self.between_at)
                for i in range(4):
                    self._sum_left(sources[i::4], [code.offset(between, (4 * q + i) * self.line) for q in range(7)])
                with code.loop(0, 7) as outer:
                    source = code.offset(between, code.mul(outer, 4 * self.line))
                    goal = code.offset(to, code.mul(outer, 7 * self.plane))
                    self._sum_left([code.offset(source, i * self.line) for i in range(4)],
                                   [code.offset(goal, q * self.plane) for q in range(7)])

    def _sum_left(self, sources: Sequence[Value], goals: Sequence[Value]) -> None:
        """Lines of the depth: from four to seven."""
        code = self.code

        def some(k: Int, mask: Value | None) -> None:
            parts = [code.load(code.offset(source, k), lanes=self.lanes, mask=mask) for source in sources]
            for goal, value in zip(goals, left_sums(parts, code.fadd, code.fsub), strict=True):
                code.store(value, code.offset(goal, k), align=self.align)

        self._each(some)

    # --- products -------------------------------------------------------------------------------------------------

    def _products(self, panel: Int, outer: Int, low: Int, rows: Int) -> None:
        """Seven products of the block's rows and a panel; the next one's right factor is asked for into L2."""
        code, width, lanes = self.code, self.width, self.lanes
        with code.loop(0, 7) as q:
            index = code.add(code.mul(outer, 7), q)
            left = code.offset(self.own, code.mul(index, self.plane))
            right = code.offset(code.buffer(self.form.right), code.mul(
                code.add(code.mul(panel, self.products), index), self.depth * width))
            to = code.offset(self.own, code.add(self.made_at, code.mul(q, self.area)))
            with code.loop(0, rows, self.height) as i:
                tile = Tile(code, self.height, self.vectors)
                tile.clear()
                self._ask(panel, index, code.add(low, i))
                a = code.offset(left, code.mul(i, self.line))
                turn = code.min(code.div(i, self.height), max(0, width // 16 - 1))
                ahead = code.offset(right, code.add(code.mul(turn, self.depth * 16), self.depth * width))

                def step(k: Int) -> None:
                    code.prefetch(code.offset(ahead, code.mul(k, 16)), 2)
                    at, b = code.offset(a, k), code.offset(right, code.mul(k, width))
                    tile.step(lambda r: code.load(code.offset(at, r * self.line)),
                              lambda v: code.load(code.offset(b, v * lanes), lanes=lanes, align=self.align))

                tile.depth(self.depth, step)
                out = code.offset(to, code.mul(i, width))
                tile.store(lambda r, v: code.offset(out, r * width + v * lanes), align=self.align)

    def _ask(self, panel: Int, index: Int, low: Int) -> None:
        """Ask for the lines that the end of the task reads and writes: one part in each of its last products."""
        code = self.code
        part = code.sub(index, self.products - self.cut ** 2)
        with code.when(code.compare(">=", part, 0)):
            column = code.add(code.mul(code.rem(part, self.cut), self.columns), code.mul(panel, self.width))
            with code.loop(0, self.height) as r:
                row, _ = self._spot(code.add(low, r), code.div(part, self.cut))
                starts = [(len(self.site.inputs), code.mul(row, code.dim(self.form.out_row)))]
                starts += [(i, place.offset((), row)) for i, place in self.ending.places.items()
                           if place.column and self.site.inputs[i].type.rank > 1]
                for i, start in starts:
                    kind = element_of((*self.site.inputs, *self.site.outputs)[i].type.dtype)
                    for d in range(0, self.width, 16):
                        code.prefetch(code.offset(code.buffer(i), code.add(start, code.add(column, d)), kind), 2)

    # --- results --------------------------------------------------------------------------------------------------

    def _sum(self, source: Value, goal: Callable[[int], Value]) -> None:
        """A vector of each of the four parts, `goal(part)`, from seven products."""
        code = self.code
        made = [code.load(code.offset(source, q * self.area), lanes=self.lanes, align=self.align) for q in range(7)]
        for part, value in enumerate(results(made, code.fadd, code.fsub)):
            code.store(value, goal(part), align=self.align)

    def _inner(self, outer: Int, rows: Int) -> None:
        """Seven products into the four parts of an outer product."""
        code = self.code
        to = code.offset(self.own, code.add(self.outer_at, code.mul(outer, self.area)))
        with code.loop(0, code.mul(rows, self.width), self.lanes) as e:
            self._sum(code.offset(self.own, code.add(e, self.made_at)),
                      lambda part: code.offset(to, code.add(e, part * 7 * self.area)))

    def _finish(self, panel: Int, low: Int, high: Int, only: Int) -> None:
        """The parts of the result row by row: sums, epilogue, store."""
        code, lanes, width = self.code, self.lanes, self.width
        first = code.mul(panel, width)
        masks = [None if self.columns % width == 0 else code.mask(code.sub(self.columns, code.add(first, v * lanes)),
                                                                  lanes) for v in range(self.vectors)]
        spots = [(r * self.cut + c) * width for r, c in places(self.levels)]
        quarter = len(spots) // 4
        with code.loop(low, high) as p:
            start = code.add(code.mul(code.sub(p, low), width), self.made_at if self.levels == 1 else self.outer_at)
            with code.loop(0, width, lanes) as e:
                for inner in range(quarter):
                    source = code.offset(self.own, code.add(code.add(start, inner * 7 * self.area), e))
                    self._sum(source, lambda part, inner=inner: code.offset(  # type: ignore[misc]
                        self.row, code.add(spots[part * quarter + inner], e)))
            with code.loop(0, self.cut) as part:
                row, there = self._spot(p, part, only)
                with code.when(there):
                    finish = self.ending.row((), row)
                    with code.loop(0, self.cut) as c:
                        held = code.offset(self.row, code.mul(code.add(code.mul(part, self.cut), c), width))
                        column = code.add(code.mul(c, self.columns), first)
                        for v, mask in enumerate(masks):
                            value = code.load(code.offset(held, v * lanes), lanes=lanes, align=self.align)
                            finish(value, code.add(column, v * lanes), mask)
