"""MatMul from register tiles: packed right-hand panels, any pointwise epilogue, any batch form.

The right operand lies in panels of `vectors` registers' width, [panel][depth][width], zero padded: packed at build
where it is constant, in a first phase where it is not (or read in place). A task is a block of rows times one panel
for one batch; threads take even, contiguous shares of all tasks. Each register tile is summed over the depth, put
into a small area in L1, and finished row by row: epilogue, mask, store.
"""
from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from math import gcd

import numpy as np

from ingot.graph import F32, F64, Dim, evaluate, product
from ingot.kernels.codegen import Code, Int, Isa, Value, element_of, isa_of
from ingot.kernels.codegen.tile import Tile, fits, lanes_of
from ingot.kernels.tactic import Kernel, Params, Site, Tactic
from ingot.kernels.x86.matmul_form import Ending, Form, advance, declines_epilogue, form_of
from ingot.target import Target


class TiledMatMul(Tactic):
    """Register tiles over packed panels; `rows` x `vectors` per tile, `block` tiles of rows per task, `depth` summed
    at a time, `across` 1 where consecutive tasks walk over rows first, `pack` 0 where the right operand is read as
    it lies."""

    name = "x86.matmul_tiles"

    def declines(self, site: Site, target: Target) -> str | None:
        form = form_of(site)
        if isinstance(form, str):
            return form
        types = {site.inputs[form.left].type.dtype, site.inputs[form.right].type.dtype}
        if types not in ({F32}, {F64}):
            return "it takes f32 or f64"
        if form.right_column != 1 and form.columns != 1 and not site.inputs[form.right].constant:
            return "the right operand's columns are not adjacent in memory"
        if form.left == form.right and site.inputs[form.right].constant:
            return "both operands are one constant"
        if form.columns == 1:
            return "one column: a tile would idle"
        return declines_epilogue(site, form, packs=True)

    def space(self, site: Site, target: Target) -> Iterator[Params]:
        form = form_of(site)
        if isinstance(form, str):
            return
        yield from points(site, form, isa_of(target), target.threads)

    def pack(self, site: Site, params: Params, target: Target,
             constants: Mapping[int, np.ndarray]) -> Mapping[int, np.ndarray]:
        form = form_of(site)
        if isinstance(form, str) or form.right not in constants or not site.inputs[form.right].constant:
            return {}
        array = constants[form.right].T if form.right_swapped else constants[form.right]
        element = element_of(site.inputs[form.right].type.dtype)
        return {form.right: panels_of(array, params["vectors"] * lanes_of(isa_of(target), element))}

    def emit(self, site: Site, params: Params, target: Target) -> Kernel:
        form = form_of(site)
        if isinstance(form, str):
            raise ValueError(form)
        return Emission(site, form, params, isa_of(target)).kernel()


def panels_of(array: np.ndarray, width: int) -> np.ndarray:
    """[..., K, N] -> flat [..., ceil(N/width), K, width], the columns past N zero."""
    matrix = array if array.ndim > 1 else array[:, None]
    *batch, depth, columns = matrix.shape
    count = -(-columns // width)
    padded = np.zeros((*batch, depth, count * width), array.dtype)
    padded[..., :columns] = matrix
    split = padded.reshape(*batch, depth, count, width)
    return np.ascontiguousarray(np.moveaxis(split, -2, -3)).reshape(-1)


def at_profile(dim: Dim, site: Site, which: str) -> int:
    """A dimension at the profile's min, opt or max."""
    return evaluate(dim, {s.name: getattr(s, which) for s in site.symbols})


def points(site: Site, form: Form, isa: Isa, threads: int) -> Iterator[Params]:
    """Some half a dozen points, the best guess first."""
    element = element_of(site.inputs[form.left].type.dtype)
    lanes, nbytes = lanes_of(isa, element), site.inputs[form.left].type.dtype.nbytes
    rows, columns, depth, batch = (max(1, at_profile(d, site, "opt")) for d in (
        form.rows, form.columns, form.depth, product(form.batch)))
    # few rows at the size tuned for, more at others: a tall tile with smaller ones for what it leaves serves both
    rows = max(rows, min(8, at_profile(form.rows, site, "max")))
    tiles = tiles_for(isa, rows, columns, lanes, batch, threads, at_profile(form.left_row, site, "opt") * nbytes)

    def point(tile: tuple[int, int], across: int, *, cut: bool = True) -> Params:
        height, vectors = tile
        whole, panels = -(-rows // height), -(-columns // (vectors * lanes))
        pieces = -(-depth * vectors * lanes * nbytes // (320 << 10)) if cut and whole > 1 else 1
        piece = 0 if pieces == 1 else -(-depth // (8 * pieces)) * 8         # a piece of a panel stays in L2
        block = max(1, (320 << 10) // ((piece or depth) * nbytes * height))     # and so does a block of rows
        if batch * panels < 2 * threads:            # too few panels to share: cut the rows as well
            block = min(block, max(1, whole // (2 * threads)))
        return {"rows": height, "vectors": vectors, "block": min(block, whole), "depth": piece, "across": across}

    found = [point(tiles[0], 1), point(tiles[0], 0), *(point(t, 1) for t in tiles[1:4]), point(tiles[0], 0, cut=False)]
    seen: list[Params] = []
    for p in found:
        even = isinstance(form.columns, int) and form.columns % (p["vectors"] * lanes) == 0
        if site.inputs[form.right].constant:
            ways = [p]
        else:                                       # read the right operand as it lies, or pack it first
            ways = [{**p, "pack": n} for n in ((0, 1) if even and rows <= 64 else (1, 0) if even else (1,))]
        seen += [w for w in ways if w not in seen]
    yield from seen[:8]


def tiles_for(isa: Isa, rows: int, columns: int, lanes: int, batch: int, threads: int,
           apart: int) -> list[tuple[int, int]]:
    """Shapes of register tiles, the least predicted time first. `apart`: bytes from a row on the left to the next."""
    sets = 64 // gcd(max(1, apart // 64), 64)       # of L1, 64 sets of 8 ways, that a column of rows falls into

    candidates = [(r, v) for v in range(1, 9) for r in range(1, 25) if fits(isa, r, v) and r <= rows]

    def cost(shape: tuple[int, int]) -> float:
        height, vectors = shape
        tiles = -(-rows // height)
        panels = batch * -(-columns // (vectors * lanes))
        share = -(-panels // threads) * threads / panels if tiles == 1 else 1.0
        work = max(height * vectors, 8, height + vectors)       # latency and the load ports bound small tiles
        # the right operand comes from L2, the left one from L1
        crowded = 1.25 if height > 8 * sets else 1.0
        return tiles * panels * share * work * (1 + 0.35 / height + 0.1 / vectors) * crowded

    ranked = sorted(candidates, key=lambda s: (cost(s), -s[0] * s[1]))
    best = cost(ranked[0])
    kept: list[tuple[int, int]] = []
    for shape in ranked:        # neighbours of a taken shape teach the tuner little
        if cost(shape) < 1.3 * best and all(abs(shape[0] - k[0]) + 3 * abs(shape[1] - k[1]) > 2 for k in kept):
            kept.append(shape)
    return kept[:4]


@dataclass
class Emission:
    """The emission of one kernel; lives inside `emit`."""

    site: Site
    form: Form
    params: Params
    isa: Isa

    def __post_init__(self) -> None:
        form, site, params = self.form, self.site, self.params
        self.element = self.left_element = element_of(site.inputs[form.left].type.dtype)
        self.lanes = lanes_of(self.isa, self.element)
        self.bytes = site.inputs[form.left].type.dtype.nbytes
        self.least = at_profile(form.rows, site, "min")
        self.height = min(params["rows"], form.rows) if isinstance(form.rows, int) else params["rows"]
        self.vectors = params["vectors"]
        self.width = self.vectors * self.lanes
        self.align = self.lanes * self.bytes
        self.block = params.get("block", 0)
        self.cut = params.get("depth", 0)
        if isinstance(form.depth, int) and self.cut >= form.depth:
            self.cut = 0
        self.constant = site.inputs[form.right].constant
        self.packs = not self.constant and (params.get("pack", 1) == 1 or not self._even)
        self.code = Code(self.isa, site.symbols)
        self.panels: Dim = -(-form.columns // self.width)

    def kernel(self) -> Kernel:
        code, form = self.code, self.form
        stem = "matmul"
        phases = [f"{stem}_main"]
        workspace: Dim = 0
        if self.packs:
            with code.function(f"{stem}_pack"):
                self._pack()
            phases.insert(0, f"{stem}_pack")
            workspace = product(form.right_own) * self.panels * form.depth * self.width * self.bytes
        with code.function(phases[-1]):
            self._main()
        scratch = (self.block + 1) * self.height * self.width * self.bytes if self.cut else 0
        return Kernel(TiledMatMul.name, code.module(), tuple(phases), workspace, -(-scratch // 64) * 64,
                      {"flops": 2 * product(form.lead) * form.columns * form.depth})

    # --- the first phase: panels of a right operand that is not constant ------------------------------------------

    def _pack(self) -> None:
        code, form = self.code, self.form
        own = [code.dim(d) for d in form.right_own]
        panels, depth, columns = code.dim(self.panels), code.dim(form.depth), code.dim(form.columns)
        source, goal = code.buffer(form.right), code.buffer(len(self.site.inputs) + len(self.site.outputs))
        steps = self.site.inputs[form.right].steps[:len(form.right_own)]
        total = code.mul(code.dim(product(form.right_own)), panels)
        with code.share(total) as task:
            *batch, panel = code.unflatten(task, [*own, panels])
            first = code.mul(panel, self.width)
            start = code.add(advance(code, batch, steps), first)
            into = code.offset(goal, code.mul(task, code.mul(depth, self.width)), self.element)
            masks = [code.mask(code.sub(code.sub(columns, first), v * self.lanes), self.lanes)
                     if not self._even else None for v in range(self.vectors)]
            with code.loop(0, depth) as k:
                here = code.offset(source, code.add(start, code.mul(k, code.dim(form.right_depth))), self.element)
                there = code.offset(into, code.mul(k, self.width), self.element)
                for v, mask in enumerate(masks):
                    value = code.load(code.offset(here, v * self.lanes, self.element), self.element, self.lanes, mask)
                    code.store(value, code.offset(there, v * self.lanes, self.element), align=self.align)

    @property
    def _even(self) -> bool:
        """Whether every panel is full."""
        return isinstance(self.form.columns, int) and self.form.columns % self.width == 0

    # --- the product --------------------------------------------------------------------------------------------

    def _main(self) -> None:
        code, form = self.code, self.form
        dims = [code.dim(d) for d in form.batch]
        rows, panels = code.dim(form.rows), code.dim(self.panels)
        tiles = code.ceildiv(rows, self.height)
        blocks = code.ceildiv(tiles, self.block) if self.block else 1
        inner = [panels, blocks] if self.params.get("across") else [blocks, panels]
        total = code.mul(code.dim(product(form.batch)), code.mul(blocks, panels))
        slots = len(self.site.inputs) + len(self.site.outputs)
        if self.cut:
            area = code.offset(code.buffer(slots + 1), code.mul(code.thread, (self.block + 1) * self.height
                                                                 * self.width * self.bytes // 64 * 64), "i8")
        else:
            area = code.reserve(self.element, self.height * self.width)
        with code.share(total) as task:
            *batch, one, two = code.unflatten(task, [*dims, *inner])
            panel, block = (one, two) if self.params.get("across") else (two, one)
            low = code.mul(code.div(code.mul(block, tiles), blocks), self.height)
            high = code.min(rows, code.mul(code.div(code.mul(code.add(block, 1), tiles), blocks), self.height))
            left = code.offset(code.buffer(form.left), advance(code, batch, form.left_batch), self.left_element)
            self._task(Task(batch, panel, low, high, left, self._right(batch, panel), area))

    def _right(self, batch: Sequence[Int], panel: Int) -> Value:
        """Where a panel starts."""
        code, form = self.code, self.form
        if not self.constant and not self.packs:
            offset = code.add(advance(code, batch, form.right_batch), code.mul(panel, self.width))
            return code.offset(code.buffer(form.right), offset, self.element)
        slot = form.right if self.constant else len(self.site.inputs) + len(self.site.outputs)
        index = code.add(code.mul(advance(code, batch, form.right_packed), code.dim(self.panels)), panel)
        return code.offset(code.buffer(slot), code.mul(index, code.mul(code.dim(form.depth), self.width)), self.element)

    def _task(self, task: Task) -> None:
        code, depth = self.code, self.code.dim(self.form.depth)
        if not self.cut:
            self._sweep(task, 0, depth, None)
            return
        # the depth in pieces: sums wait in the scratch area, the last piece finishes them
        with code.loop(task.low, task.high, self.height) as i:
            at = code.offset(task.area, code.mul(code.sub(i, task.low), self.width), self.element)
            with code.loop(0, self.height * self.width, self.lanes) as e:
                code.store(code.zero(self.element, self.lanes), code.offset(at, e, self.element), align=self.align)
        with code.loop(0, depth, self.cut) as start:
            count = code.min(self.cut, code.sub(depth, start))
            last = code.compare(">=", code.add(start, self.cut), depth)
            self._sweep(task, start, count, last)

    def _sweep(self, task: Task, start: Int, count: Int, last: Value | None) -> None:
        """All row tiles of a task over one piece of the depth."""
        code, height = self.code, self.height
        rows = code.dim(self.form.rows)
        exact = isinstance(rows, int) and rows % height == 0
        if exact or self.least >= height:       # the last tile moves up, its first rows are not stored again
            with code.loop(task.low, task.high, height) as i:
                first = i if exact else code.min(i, code.sub(rows, height))
                self._tile(task, height, first, code.sub(i, first), code.sub(i, task.low), start, count, last)
            return
        with code.loop(task.low, code.sub(task.high, height - 1), height) as i:
            self._tile(task, height, i, 0, code.sub(i, task.low), start, count, last)
        rest = code.rem(code.sub(task.high, task.low), height)
        at = code.sub(task.high, rest)
        small = 1 << (height - 1).bit_length() >> 1
        while small:
            if small < height:
                some = code.compare("!=", code.binary("and", code.value(rest), code.value(small)), 0)
                with code.when(some):
                    self._tile(task, small, at, 0, code.sub(at, task.low), start, count, last)
                at = code.add(at, code.select(some, code.value(small), code.value(0)))
            small >>= 1

    def _tile(self, task: Task, height: int, first: Int, skip: Int, slot: Int, start: Int, count: Int,
              last: Value | None) -> None:
        """One register tile: rows `first`.., of which the first `skip` are already stored."""
        code, form, element = self.code, self.form, self.element
        tile = Tile(code, height, self.vectors, element, self.lanes)
        area = task.area if last is None else code.offset(task.area, code.mul(slot, self.width), element)

        def spot(r: int, v: int) -> Value:
            return code.offset(area, r * self.width + v * self.lanes, element)

        if last is None:
            tile.clear()
        else:
            tile.load(spot, align=self.align)
        row = code.dim(form.left_row)
        step = code.dim(form.left_depth)
        left = code.offset(task.left, code.add(code.mul(first, row), code.mul(start, step)), element)
        own = self.constant or self.packs           # else it lies as it was given, anywhere
        stride = self.width if own else code.dim(form.right_depth)
        align = self.align if own else 0
        right = code.offset(task.right, code.mul(start, stride), element)

        def one(k: Int) -> None:
            a = code.offset(left, code.mul(k, step), element)
            b = code.offset(right, code.mul(k, stride), element)
            tile.step(lambda r: code.load(code.offset(a, code.mul(row, r), element), element),
                      lambda v: code.load(code.offset(b, v * self.lanes, element), element, self.lanes, align=align))

        tile.depth(count, one, self.params.get("unroll", 2 if height * self.vectors < 16 else 1))
        tile.store(spot, align=self.align)
        if last is None:
            self._finish(task, area, height, first, skip)
        else:
            with code.when(last):
                self._finish(task, area, height, first, skip)

    # --- the end: epilogue and store ------------------------------------------------------------------------------

    def _finish(self, task: Task, area: Value, height: int, first: Int, skip: Int) -> None:
        code = self.code
        left = code.sub(code.dim(self.form.columns), code.mul(task.panel, self.width))
        if self._even:
            self._rows(task, area, height, first, skip, [None] * self.vectors)
        elif self.isa.name == "avx512" or len(self.site.epilogue) > 6:
            self._rows(task, area, height, first, skip, self._masks(left))
        else:                               # masks cost registers and time here: only where they are needed
            with code.when(code.compare(">=", left, self.width)):
                self._rows(task, area, height, first, skip, [None] * self.vectors)
            with code.when(code.compare("<", left, self.width)):
                self._rows(task, area, height, first, skip, self._masks(left))

    def _masks(self, left: Int) -> list[Value | None]:
        return [self.code.mask(self.code.sub(left, v * self.lanes), self.lanes) for v in range(self.vectors)]

    def _rows(self, task: Task, area: Value, height: int, first: Int, skip: Int,
              masks: Sequence[Value | None]) -> None:
        code = self.code
        column = code.mul(task.panel, self.width)
        ending = Ending(code, self.site, self.form)
        with code.loop(skip, height) as r:
            held = code.offset(area, code.mul(r, self.width), self.element)
            finish = ending.row(task.batch, code.add(first, r))
            for v, mask in enumerate(masks):
                value = code.load(code.offset(held, v * self.lanes, self.element), self.element, self.lanes,
                                  align=self.align)
                finish(value, code.add(column, v * self.lanes), mask)


@dataclass(frozen=True)
class Task:
    """A block of rows times a panel, for one batch."""

    batch: Sequence[Int]
    panel: Int
    low: Int
    high: Int
    left: Value
    right: Value
    area: Value
