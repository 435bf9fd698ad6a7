"""Convolutions into blocked outputs as register tiles: some output pixels x some vectors of output channels.

One generator serves three tactics: kernels over blocked input, 1x1 kernels over flattened pixels (a product), and
the first layer of a network, whose plain input has few channels (input "blocks" of one channel). Weights are packed
[channel group][input block][taps][input lane][vectors x lanes], so that a tile reads them as one stream. Where there
is padding, each thread first copies the rows that a strip of output rows needs into its scratch, zeros around them.
"""
from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from math import gcd

import numpy as np

from ingot.graph import Dim
from ingot.kernels import Kernel, Params, Site, Tactic
from ingot.kernels.codegen import Code, Int, Value, isa_of
from ingot.kernels.codegen.dot import Dot
from ingot.kernels.codegen.tile import Tile
from ingot.kernels.convolution import Ints3
from ingot.kernels.x86.conv_form import Epilogue, pack_channels
from ingot.kernels.x86.conv_grid import Grid, declines, grid_of, in_rows, is_product, pack_weight, points, vectors_of
from ingot.target import Target

_INLINE = 3             # epilogues of up to this many steps are emitted for every vector of a tile


class DirectConvolution(Tactic):
    """Blocked input and output, any window."""

    name = "x86.conv_direct_blocked"

    def declines(self, site: Site, target: Target) -> str | None:
        return _declines(site, target, blocked=True, product=False)

    def space(self, site: Site, target: Target) -> Iterator[Params]:
        yield from points(site, grid_of(site), target)

    def pack(self, site: Site, params: Params, target: Target,
             constants: Mapping[int, np.ndarray]) -> Mapping[int, np.ndarray]:
        grid = grid_of(site)
        packed = pack_channels(site, grid.f, constants)
        packed[grid.f.weight_index] = pack_weight(grid, constants[grid.f.weight_index], params["vectors"],
                                                  isa_of(target).lanes)
        return packed

    def emit(self, site: Site, params: Params, target: Target) -> Kernel:
        code = Code(isa_of(target), site.symbols)
        emitter = Emitter(code, site, grid_of(site), params)
        emitter.emit("conv_direct")
        return Kernel(self.name, code.module(), ("conv_direct",), 0, emitter.scratch)


class ProductConvolution(DirectConvolution):
    """A 1x1 kernel: a product over pixels."""

    name = "x86.conv_1x1"

    def declines(self, site: Site, target: Target) -> str | None:
        return _declines(site, target, blocked=True, product=True)


class StemConvolution(DirectConvolution):
    """Plain input, blocked output: the first layer of a network."""

    name = "x86.conv_stem"

    def declines(self, site: Site, target: Target) -> str | None:
        return _declines(site, target, blocked=False, product=None)


def _declines(site: Site, target: Target, *, blocked: bool, product: bool | None) -> str | None:
    """Why a site is no forward convolution of a blocked (or plain) input with a 1x1 (or larger, or any) kernel."""
    found = declines(site, target)
    if isinstance(found, str):
        return found
    if found.transposed:
        return "a transposed convolution"
    if bool(found.x.block) != blocked:
        return "the input is plain" if blocked else "the input is blocked"
    if product is None or is_product(found) == product:
        return None
    return "no 1x1 kernel" if product else "a 1x1 kernel"


# --- the kernel -----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Phase:
    """Which pixels of the output a grid's pixels are: every so many, from here on (a transposed convolution has one
    grid for each). `weights` is where its packed weights start, in elements."""

    strides: Ints3 = (1, 1, 1)
    offsets: Ints3 = (0, 0, 0)
    weights: int = 0


class Emitter:
    """One kernel function under construction."""

    def __init__(self, code: Code, site: Site, grid: Grid, params: Params, phase: Phase = Phase(),
                 dot: Dot | None = None, zero: int | None = None) -> None:
        """With `dot`, the grid speaks of 32-bit words of narrow elements, and `zero` is the operand that holds the
        input's zero point: what lies outside the input, and what the packed first row of sums is multiplied by."""
        self.site, self.grid, self.f, self.params, self.phase = site, grid, grid.f, params, phase
        self.dot, self.zero = dot, zero
        self.word = "i32" if dot else "float"                   # what is moved
        self.element = dot.element if dot else "float"          # what is summed
        self.registers = dot.registers if dot else 1            # of weights, per depth step and register of sums
        self.per_channel = grid.steps * self.registers + (1 if dot else 0)      # packed weights, in 32-bit words
        self.code = code
        self.lanes = code.isa.lanes
        self.count = vectors_of(self.f, self.lanes)
        self.rows, self.columns = params["rows"], params["columns"]
        self.vectors, self.strip = params["vectors"], params["strip"]
        self.parts = -(-self.count // self.vectors)             # channel groups per conv group
        f = self.f
        in_rows = (self.strip - 1) * f.strides[1] + (f.kernel[1] - 1) * f.dilations[1] + 1
        width: Dim = (f.out_size[2] - 1) * f.strides[2] + (f.kernel[2] - 1) * f.dilations[2] + 1
        if grid.padded:
            row: Dim = width * grid.block
            plane = row * in_rows
            depth = plane * f.kernel[0]
            self.x_steps: tuple[Dim, Dim, Dim, Dim] = (depth, plane, row, grid.block)
            self.scratch: Dim = depth * -(-f.channels // grid.block) * 4
        else:
            self.x_steps = (f.x.steps[1], f.x.steps[2] * f.dilations[0], f.x.steps[3], f.x.steps[4])
            self.scratch = 0
        self.scratch = (self.scratch + 63) // 64 * 64
        self.in_rows, self.in_width = in_rows, width

    def emit(self, name: str) -> None:
        """Add the function `name` to the module."""
        with self.code.function(name):
            self._function()

    def _function(self) -> None:
        code, f = self.code, self.f
        self.x = code.buffer(f.x_index)
        self.w = code.offset(code.buffer(f.weight_index), self.phase.weights)
        self.y = len(self.site.inputs)
        reshape = (lambda p: in_rows(p, f.out_size[2])) if self.grid.flat else None
        self.epilogue = Epilogue(code, self.site, f, self.lanes, reshape)
        if self.grid.padded:
            area = code.buffer(self.y + 2)
            self.area = code.offset(area, code.mul(code.thread, code.dim(self.scratch)), "i8")
            held = code.variable(code.value(-1))
        batch, depth, height = (code.dim(d) for d in (f.batch, f.out_size[0], f.out_size[1]))
        strips = code.ceildiv(height, self.strip)
        groups = self.parts * f.groups
        places = code.mul(code.mul(batch, depth), strips)
        with code.share(code.mul(places, groups)) as task:
            place, group = code.div(task, groups), code.rem(task, groups)
            n, od, strip = code.unflatten(place, (batch, depth, strips))
            row = code.mul(strip, self.strip)
            rows = code.min(code.sub(height, row), self.strip)
            if isinstance(height, int) and height % self.strip == 0:
                rows = self.strip
            if self.grid.padded:
                with code.when(code.compare("!=", held.get(), place)):
                    self._copy(n, od, row, rows)
                    held.set(code.value(place))
            self._strip(n, od, row, rows, group)

    # --- padding ------------------------------------------------------------------------------------------------

    def _copy(self, n: Int, od: Int, row: Int, rows: Int) -> None:
        """The input rows under a strip, with zeros where there is padding, into this thread's scratch."""
        code, f, grid = self.code, self.f, self.grid
        blocks = -(-f.channels // grid.block)
        needed = code.add(code.mul(code.sub(rows, 1), f.strides[1]), (f.kernel[1] - 1) * f.dilations[1] + 1)
        with code.loop(0, blocks) as c, _each(code, f.kernel[0]) as kd, code.loop(0, needed) as r:
            target = code.offset(self.area, self._scratch_offset(c, kd, r))
            d = code.sub(code.add(code.mul(od, f.strides[0]), code.mul(kd, f.dilations[0])), code.dim(f.begins[0]))
            h = code.sub(code.add(code.mul(row, f.strides[1]), r), code.dim(f.begins[1]))
            inside = code.binary("and", code.compare(">=", code.value(h), 0),
                                 code.compare("<", code.value(h), code.dim(f.size[1])))
            if f.kernel[0] > 1 or f.begins[0] != 0 or f.ends[0] != 0:
                deep = code.binary("and", code.compare(">=", code.value(d), 0),
                                   code.compare("<", code.value(d), code.dim(f.size[0])))
                inside = code.binary("and", inside, deep)
            width = code.mul(code.dim(self.in_width), grid.block)
            begin = code.dim(f.begins[2])
            skipped = code.max(code.sub(0, begin), 0)       # a phase may start inside the input
            left = code.min(code.mul(code.max(begin, 0), grid.block), width)
            there = code.max(code.mul(code.sub(code.dim(f.size[2]), skipped), grid.block), 0)
            middle = code.min(there, code.sub(width, left))
            start = code.select(inside, code.value(left), code.value(0))
            taken = code.select(inside, code.value(middle), code.value(0))
            self._fill(target, start)
            source = code.offset(self.x, f.x.offset(code, n, c, d, h, skipped))
            self._move(code.offset(target, start), source, taken)
            done = code.add(start, taken)
            self._fill(code.offset(target, done), code.sub(width, done))

    def _scratch_offset(self, block: Int, kd: Int, row: Int) -> Int:
        code = self.code
        total: Int = 0
        for i, step in zip((block, kd, row), self.x_steps, strict=False):
            total = code.add(total, code.mul(i, code.dim(step)))
        return total

    def _vectors_and_rest(self, count: Int) -> Iterator[tuple[Int, Value | None]]:
        code, lanes = self.code, self.lanes
        exact = self.grid.block % lanes == 0
        whole = count if exact else code.mul(code.div(count, lanes), lanes)
        with code.loop(0, whole, lanes) as i:
            yield i, None
        if not exact:
            yield whole, code.mask(code.sub(count, whole), lanes)

    def _fill(self, target: Value, count: Int) -> None:
        nothing = self.code.zero(self.word, self.lanes)
        if self.zero is not None:
            zero = self.code.convert("zext", self.code.load(self.code.buffer(self.zero), "i8"), "i32")
            four = self.code.binary("mul", zero, self.code.constant(0x01010101, "i32"))
            nothing = self.code.splat(four, self.lanes)
        for i, mask in self._vectors_and_rest(count):
            self.code.store(nothing, self.code.offset(target, i), mask)

    def _move(self, target: Value, source: Value, count: Int) -> None:
        for i, mask in self._vectors_and_rest(count):
            value = self.code.load(self.code.offset(source, i), self.word, self.lanes, mask)
            self.code.store(value, self.code.offset(target, i), mask)

    # --- tiles --------------------------------------------------------------------------------------------------

    def _strip(self, n: Int, od: Int, row: Int, rows: Int, group: Int) -> None:
        """All the pixels of a strip, for one group of channels."""
        code, f, grid = self.code, self.f, self.grid
        outer = code.div(group, self.parts) if f.groups > 1 else 0
        part = code.rem(group, self.parts) if f.groups > 1 else group
        if grid.padded:
            source = self.area
        else:
            d, h, w = (code.sub(code.mul(at, step), code.dim(begin))
                       for at, step, begin in zip((od, row, 0), f.strides, f.begins, strict=True))
            source = code.offset(self.x, f.x.offset(code, n, 0, d, h, w))
        blocks = code.mul(outer, grid.blocks)
        source = code.offset(source, code.mul(blocks, code.dim(self.x_steps[0])))
        weight = code.mul(outer, self.per_channel * self.count * self.lanes)
        weight = code.add(weight, code.mul(part, self.per_channel * self.vectors * self.lanes))
        stream = code.offset(self.w, weight)
        first = code.add(code.mul(outer, self.count), code.mul(part, self.vectors))     # vector of output channels
        whole, rest = divmod(self.count, self.vectors)
        place = (n, od, row)
        if not rest:
            self._rows(place, rows, first, source, stream, self.vectors)
            return
        if whole:
            with code.when(code.compare("<", code.value(part), whole)):
                self._rows(place, rows, first, source, stream, self.vectors)
        with code.when(code.compare(">=", code.value(part), whole)):
            self._rows(place, rows, first, source, stream, rest)

    def _rows(self, place: tuple[Int, Int, Int], rows: Int, first: Int, source: Value, stream: Value,
              vectors: int) -> None:
        code, step = self.code, self.rows
        whole = code.mul(code.div(rows, step), step)
        with code.loop(0, whole, step) as r:
            self._columns(place, r, step, first, source, stream, vectors)
        if step > 1 and whole is not rows and whole != rows:
            with code.loop(whole, rows) as r:
                self._columns(place, r, 1, first, source, stream, vectors)

    def _columns(self, place: tuple[Int, Int, Int], r: Int, rows: int, first: Int, source: Value, stream: Value,
                 vectors: int) -> None:
        """A row of tiles: widths that differ by at most one where the width is known."""
        code, width, size = self.code, self.f.out_size[2], self.columns
        line = code.offset(source, code.mul(code.mul(r, self.f.strides[1]), code.dim(self.x_steps[2])))

        def tile(column: Int, columns: int) -> None:
            at = code.offset(line, code.mul(column, self.f.strides[2] * self.grid.block))
            self._tile(place, r, column, rows, columns, first, at, stream, vectors)

        if isinstance(width, int):
            pieces = -(-width // size)
            least, more = divmod(width, pieces)
            if more:
                with code.loop(0, more * (least + 1), least + 1) as column:
                    tile(column, least + 1)
            if least and pieces > more:
                if pieces - more == 1:
                    tile(more * (least + 1), least)
                else:
                    with code.loop(more * (least + 1), width, least) as column:
                        tile(column, least)
            return
        total = code.dim(width)
        whole = code.mul(code.div(total, size), size)
        with code.loop(0, whole, size) as column:
            tile(column, size)
        with code.loop(whole, total) as column:
            tile(column, 1)

    def _tile(self, place: tuple[Int, Int, Int], r: Int, column: Int, rows: int, columns: int, first: Int,
              source: Value, stream: Value, vectors: int) -> None:
        """One register tile: the sum over input blocks, taps and lanes, then the epilogue."""
        code, f = self.code, self.f
        unit = f.out.block // self.lanes                # vectors per block
        block = code.div(first, unit)
        tile = Tile(code, rows * columns, vectors, self.element, combine=self.dot.combine if self.dot else None)
        biases = [self._begin(stream, first, v) for v in range(vectors)]
        tile.fill(lambda p, v: biases[v])
        if self.dot:
            stream = code.offset(stream, vectors * self.lanes)
        self._sum(tile, rows, columns, source, stream)
        first_pixel = (code.add(code.mul(i, stride), offset) for i, stride, offset in
              zip((place[1], code.add(place[2], r), column), self.phase.strides, self.phase.offsets, strict=True))
        corner = self.epilogue.corner(place[0], block, *first_pixel)
        _, down, right = self.phase.strides

        def finish(value: Value, v: int, dr: Int, dc: Int) -> None:
            delta, lane = (v // unit, code.mul(dr, down), code.mul(dc, right)), v % unit * self.lanes
            value = self.epilogue.apply(value, corner, delta, lane)
            code.store(value, code.offset(corner.pointer(self.y, f.out, delta), lane, value.element))

        if len(self.site.epilogue) <= _INLINE:
            for p, row in enumerate(tile.values()):
                for v, value in enumerate(row):
                    finish(value, v, p // columns, p % columns)
            return
        kept = code.reserve(self.element, rows * columns * vectors * self.lanes)
        tile.store(lambda p, v: code.offset(kept, (p * vectors + v) * self.lanes))
        for v in range(vectors):                        # addresses and channel vectors, before the loop
            self.epilogue.apply(code.zero(self.element, self.lanes), corner, (v // unit, 0, 0), v % unit * self.lanes)
        with code.loop(0, rows * columns) as pixel:
            dr, dc = code.div(pixel, columns), code.rem(pixel, columns)
            for v in range(vectors):
                at = code.offset(kept, code.add(code.mul(pixel, vectors * self.lanes), v * self.lanes))
                finish(code.load(at, self.element, self.lanes), v, dr, dc)

    def _begin(self, stream: Value, first: Int, v: int) -> Value:
        """What the sums of a vector of channels start at."""
        code = self.code
        if self.dot is None or self.dot.element == "float":
            bias = self.epilogue.bias(code.mul(code.add(first, v), self.lanes))
            return bias or code.zero("float", self.lanes)
        if self.zero is None:
            return code.zero(self.element, self.lanes)
        sums = code.load(code.offset(stream, v * self.lanes), "i32", self.lanes)
        zero = code.convert("zext", code.load(code.buffer(self.zero), "i8"), "i32")
        return code.binary("mul", sums, code.splat(zero, self.lanes))

    def _sum(self, tile: Tile, rows: int, columns: int, source: Value, stream: Value) -> None:
        code, f, grid = self.code, self.f, self.grid
        width, each = tile.vectors * self.lanes * self.registers, self.lanes * self.registers
        kd_n, kh_n, kw_n = f.kernel
        steps = [code.dim(s) for s in self.x_steps]
        lanes_last = f.depth % grid.block
        pixel = [code.add(code.mul(r * f.strides[1], steps[2]), c * f.strides[2] * grid.block)
                 for r in range(rows) for c in range(columns)]

        def step(x: Value, w: Value, lane: int, at: int) -> None:
            """One depth step: `lane` elements past x, `at` rows of the packed weights past w."""
            tile.step(lambda p: code.load(code.offset(x, code.add(pixel[p], lane)), self.word),
                      lambda v: code.load(code.offset(w, at * width + v * each), self.word, each))

        with (_each(code, grid.blocks) as block, _each(code, kd_n) as kd, _each(code, kh_n) as kh):
            x = code.add(code.mul(block, steps[0]), code.mul(kd, steps[1]))
            x = code.add(x, code.mul(code.mul(kh, f.dilations[1]), steps[2]))
            tap = code.mul(code.add(code.mul(code.add(code.mul(block, kd_n), kd), kh_n), kh), kw_n)
            with _each(code, kw_n) as kw:
                at = code.offset(source, code.add(x, code.mul(kw, f.dilations[2] * grid.block)))
                w = code.offset(stream, code.mul(code.add(tap, kw), grid.block * width))
                if grid.block == 1:     # one tap a turn: taps beside each other would share inputs, and spill them
                    step(at, w, 0, 0)
                    return
                unroll = gcd(gcd(4, grid.block), lanes_last)
                last: Int = grid.block
                if lanes_last:
                    last = code.min(grid.block, code.sub(f.depth, code.mul(block, grid.block)))
                with code.loop(0, last, unroll) as lane:
                    x_lane, w_lane = code.offset(at, lane), code.offset(w, code.mul(lane, width))
                    for u in range(unroll):
                        step(x_lane, w_lane, u, u)


@contextmanager
def _each(code: Code, count: int) -> Iterator[Int]:
    """A loop, unless there is but one turn."""
    if count == 1:
        yield 0
        return
    with code.loop(0, count) as i:
        yield i
