"""3x3 convolutions over blocked channels by minimal filtering (codegen/winograd.py): F(m x m, 3 x 3), m = 2, 4, 6.

An output tile of m x m pixels takes n x n = (m + 2)^2 products per pair of channels instead of 9 m^2: 2.25, 4 and 5.1
times fewer. Input tiles are transformed into V [n n][tiles][channels], multiplied with transformed weights into
M [n n][tiles][filters] (n n products of matrices, register tiles as everywhere), and M is transformed into outputs.
A block of tiles at a time, so that V and M stay in the second-level cache. Either each thread takes blocks of tiles
from end to end, or, where the weights are large, all threads first transform the whole input into the shared
workspace and then take groups of filters.

Accuracy in f32, weights transformed in f64: the largest error is 0.3-0.5 (m = 2), 1-2 (m = 4) and 8-13 (m = 6) times
that of direct sums of the same products over 16-256 channels (in the root of the mean square 0.6, 1.7-2 and 8-10). A
NaN or an infinity in the input spreads over the m x m outputs of its tiles, and not all of those are what they would
be in a direct sum: hence `exact` is False.
"""
from __future__ import annotations

from collections.abc import Iterator, Mapping
from itertools import product
from math import ceil

import numpy as np

from ingot.graph import Dim, evaluate
from ingot.kernels import Kernel, Params, Site, Tactic
from ingot.kernels.codegen import Code, Int, Isa, Value, isa_of
from ingot.kernels.codegen.dot import Combine
from ingot.kernels.codegen.tile import Tile, fits
from ingot.kernels.codegen.winograd import mapped, symmetric
from ingot.kernels.x86.conv_form import Corner, Epilogue, Form, form, pack_channels
from ingot.kernels.x86.conv_grid import declines, vectors_of
from ingot.target import Target

_INLINE = 3             # epilogues of up to this many steps are emitted for every pixel of a tile
_KEEP = 512 << 10       # bytes of V and M that stay in the second-level cache beside the weights
_SIZES = (4, 2, 6)
_GAIN = 0.9             # estimated cycles of m = 6 over those of the others' best, at most
_TURNS = 12             # register tiles per block, at most
_NEAR, _FAR = 64, 24    # bytes of weights per cycle that do not hide behind products: from the second-level cache, not
_AHEAD = 1024           # floats of weights that are asked for ahead of their use


class WinogradConvolution(Tactic):
    """Blocked input and output, 3x3, stride 1, one group."""

    name = "x86.conv_winograd"
    exact = False

    def declines(self, site: Site, target: Target) -> str | None:
        f = declines(site, target)
        if isinstance(f, str):
            return f
        return "the input is plain" if not f.x.block else declines_window(f)

    def space(self, site: Site, target: Target) -> Iterator[Params]:
        yield from winograd_points(_form(site), isa_of(target), target.threads, {s.name: s.opt for s in site.symbols})

    def pack(self, site: Site, params: Params, target: Target,
             constants: Mapping[int, np.ndarray]) -> Mapping[int, np.ndarray]:
        f, lanes = _form(site), isa_of(target).lanes
        packed = pack_channels(site, f, constants)
        packed[f.weight_index] = pack_weight(f, constants[f.weight_index], params["size"],
                                             params["vectors"] * lanes, params["span"], vectors_of(f, lanes) * lanes)
        return packed

    def emit(self, site: Site, params: Params, target: Target) -> Kernel:
        return WinogradEmitter(site, _form(site), params, isa_of(target)).kernel(self.name)


def declines_window(f: Form) -> str | None:
    """Why a convolution is not of this form, or None."""
    if f.kernel != (1, 3, 3) or f.size[0] != 1 or f.strides != (1, 1, 1) or f.dilations != (1, 1, 1):
        return "no 3x3 kernel of stride and dilation 1"
    if f.groups > 1:
        return "several groups"
    if not f.static:
        return "symbolic spatial sizes"
    return None


def _form(site: Site) -> Form:
    f = form(site)
    if isinstance(f, str):
        raise ValueError(f)
    return f


def pack_weight(f: Form, weight: np.ndarray, size: int, width: int, span: int, whole: int) -> np.ndarray:
    """G g G^T in f64, rounded once: [filters / (span width)][n n][span][channels][width], flat; `whole` filters."""
    padded = transformed(f, weight, size, whole).astype(np.float32)
    split = padded.reshape(len(padded), whole // (span * width), span, width, f.channels)
    return np.ascontiguousarray(split.transpose(1, 0, 2, 4, 3)).reshape(-1)


def transformed(f: Form, weight: np.ndarray, size: int, whole: int) -> np.ndarray:
    """G g G^T in f64: [n n, whole filters, channels], those past the last filter zero."""
    g = np.array([[float(x) for x in row] for row in symmetric(size).g])
    both = np.kron(g, g)                                                        # [n n, 9]
    made = both @ weight.reshape(f.filters * f.channels, 9).astype(np.float64).T
    padded = np.zeros((len(both), whole, f.channels))
    padded[:, :f.filters] = made.reshape(len(both), f.filters, f.channels)
    return padded


# --- the space ------------------------------------------------------------------------------------------------------


def odd_lines(floats: int, lanes: int) -> int:
    """At least so many floats, an odd number of vectors: strides that do not meet in the same cache sets."""
    return (ceil(floats / lanes) | 1) * lanes


def winograd_points(f: Form, isa: Isa, threads: int, sizes: Mapping[str, int], tried_sizes: tuple[int, ...] = _SIZES,
                    ratio: int = 1) -> Iterator[Params]:
    """For each size of tile, and both ways to share the work, the point with the least estimated cycles.

    m = 6 costs accuracy: it is tried once, and only where much is to be gained. `ratio` is how many products of V and
    U lie in a 32-bit word, all of which one instruction takes.
    """
    ranked: list[tuple[float, Params]] = []
    count, unit = vectors_of(f, isa.lanes), f.out.block // isa.lanes
    for size in tried_sizes:
        tiles = _grid(f, size)[0] * _grid(f, size)[1] * evaluate(f.batch, sizes)
        found: list[tuple[float, Params]] = []
        for split in (0, 1):
            tried = [c for vectors in range(unit, 7, unit) if count % vectors == 0
                     for rows in range(2, 17) if fits(isa, rows, vectors)
                     for c in _blocks(f, isa, threads, tiles, split, size, rows, vectors, ratio)]
            found.append(min(tried, key=lambda c: c[0]))
        if size == 6:
            best = min(found, key=lambda c: c[0])
            found = [best] if best[0] < _GAIN * min(c for c, _ in ranked) else []
        ranked += found
    yield from (p for _, p in sorted(ranked, key=lambda c: c[0]))


def _grid(f: Form, size: int) -> tuple[int, int]:
    """Rows and columns of output tiles."""
    height, width = f.out_size[1], f.out_size[2]
    if not isinstance(height, int) or not isinstance(width, int):
        raise ValueError("symbolic spatial sizes")
    return -(-height // size), -(-width // size)


def _blocks(f: Form, isa: Isa, threads: int, tiles: int, split: int, size: int, rows: int, vectors: int,
            ratio: int) -> Iterator[tuple[float, Params]]:
    """Numbers of tiles per block for one register tile, each with its estimated cycles."""
    square, count = (size + 2) ** 2, vectors_of(f, isa.lanes)
    parts = count // vectors
    spans = [s for s in range(1, parts + 1) if parts % s == 0] if split == 0 else [1]
    v_row = odd_lines(f.channels // ratio, isa.lanes) * (1 - split)
    loads = 1 + 0.15 / (rows * vectors) * max(0, 8 - rows * vectors) + 0.1 / rows + 0.02 / vectors
    transforms = tiles / threads * square * 5 * (f.channels / isa.lanes + count)
    weights = square * f.channels * count * isa.lanes * 4 // ratio
    for turns in range(1, 1 + min(_TURNS, -(-tiles // rows))):
        block = turns * rows
        fitting = [s for s in spans if square * block * 4 * (v_row + s * vectors * isa.lanes) <= _KEEP]
        if turns > 1 and not fitting:
            return
        span = max(fitting, default=1)
        blocks = -(-tiles // block)
        last = -(-(tiles - (blocks - 1) * block) // rows) * rows        # rows computed of the last block
        share = _share(blocks, 1 if split == 0 else parts, block, last, threads)
        work = share * square * (f.channels // ratio) * (count if split == 0 else vectors)
        passes = -(-blocks // threads) if split == 0 else max(1, -(-blocks // threads))
        cycles = work * loads + transforms + passes * weights / (_NEAR if weights < _KEEP else _FAR)
        yield cycles, {"size": size, "split": split, "rows": rows, "vectors": vectors, "block": block, "span": span}


def _share(blocks: int, parts: int, block: int, last: int, threads: int) -> int:
    """Rows of the busiest thread: tasks are (part, block) in this order, the last block of a part being short."""
    worst = 0
    for t in range(threads):
        low, high = t * blocks * parts // threads, (t + 1) * blocks * parts // threads
        short = high // blocks - low // blocks
        worst = max(worst, (high - low - short) * block + short * last)
    return worst


# --- the kernel -----------------------------------------------------------------------------------------------------


class WinogradEmitter:
    """One module under construction. V and U are f32, or 32-bit words of `ratio` narrower numbers."""

    element = "float"           # of the input
    word = "float"              # what products read, and how many channels lie in one
    ratio = 1
    combine: Combine | None = None

    def __init__(self, site: Site, f: Form, params: Params, isa: Isa) -> None:
        self.site, self.f, self.isa, self.lanes = site, f, isa, isa.lanes
        self.size, self.rows, self.vectors = params["size"], params["rows"], params["vectors"]
        self.block, self.span, self.split = params["block"], params["span"], params["split"]
        self.filter = symmetric(self.size)
        self.n = self.size + 2
        self.grid = _grid(f, self.size)
        self.unit = f.out.block // self.lanes           # vectors per channel block
        self.group = self.vectors * self.span           # vectors of filters per group
        self.groups = vectors_of(f, self.lanes) // self.group
        self.in_blocks = -(-f.channels // f.x.block)
        self.v_row = odd_lines(self.in_blocks * f.x.block // self.ratio, self.lanes)
        self.v_plane = odd_lines(self.block * self.v_row, self.lanes)
        self.m_row = self.group * self.lanes
        self.m_plane = odd_lines(self.block * self.m_row, self.lanes)
        self.v_floats = (self.n**2 * self.v_plane + 15) // 16 * 16
        self.m_floats = (self.n**2 * self.m_plane + 15) // 16 * 16
        self.tiles: Dim = f.batch * (self.grid[0] * self.grid[1])
        self.blocks: Dim = (self.tiles + self.block - 1) // self.block
        self.code = Code(isa, site.symbols)

    def kernel(self, name: str) -> Kernel:
        code = self.code
        if not self.split:
            with code.function("conv_winograd"):
                self._begin()
                self._whole_blocks()
            return Kernel(name, code.module(), ("conv_winograd",), 0, (self.v_floats + self.m_floats) * 4)
        with code.function("conv_winograd_input"):
            self._begin()
            with code.share(code.dim(self.tiles)) as tile:
                block, place = code.div(tile, self.block), code.rem(tile, self.block)
                v = code.offset(code.buffer(self.y + 1), code.mul(block, self.v_floats))
                self._input(tile, code.offset(v, code.mul(place, self.v_row)))
        with code.function("conv_winograd_output"):
            self._begin()
            self._filter_groups()
        phases = ("conv_winograd_input", "conv_winograd_output")
        return Kernel(name, code.module(), phases, self.blocks * (self.v_floats * 4), self.m_floats * 4)

    def _begin(self) -> None:
        code, f, n = self.code, self.f, self.n
        self.x, self.w = code.buffer(f.x_index), code.buffer(f.weight_index)
        self.y = len(self.site.inputs)
        self.epilogue = Epilogue(code, self.site, f, self.lanes)
        self.edge = code.reserve("float", n * n * f.x.block)        # an input tile over the edge; an output tile

    def _scratch(self, floats: int) -> Value:
        code = self.code
        return code.offset(code.buffer(self.y + 2), code.mul(code.thread, floats))

    def _whole_blocks(self) -> None:
        """Each thread takes blocks of tiles: inputs, then group by group products and outputs."""
        code = self.code
        v = self._scratch(self.v_floats + self.m_floats)
        m = code.offset(v, self.v_floats)
        with code.share(code.dim(self.blocks)) as block:
            first = code.mul(block, self.block)
            tiles = code.min(code.sub(code.dim(self.tiles), first), self.block)
            with code.loop(0, tiles) as t:
                self._input(code.add(first, t), code.offset(v, code.mul(t, self.v_row)))
            with code.loop(0, self.groups) as group:
                self._products(group, tiles, v, m)
                self._outputs(group, first, tiles, m)

    def _filter_groups(self) -> None:
        """Each thread takes groups of filters, over all the blocks of tiles that the first phase made."""
        code = self.code
        m = self._scratch(self.m_floats)
        blocks = code.dim(self.blocks)
        with code.share(code.mul(blocks, self.groups)) as task:
            group, block = code.div(task, blocks), code.rem(task, blocks)
            first = code.mul(block, self.block)
            tiles = code.min(code.sub(code.dim(self.tiles), first), self.block)
            v = code.offset(code.buffer(self.y + 1), code.mul(block, self.v_floats))
            self._products(group, tiles, v, m)
            self._outputs(group, first, tiles, m)

    def _corner(self, tile: Int) -> tuple[Int, Int, Int]:
        """(image, first output row, first output column) of a tile."""
        n, row, column = self.code.unflatten(tile, (0, *self.grid))
        return n, self.code.mul(row, self.size), self.code.mul(column, self.size)

    # --- inputs -------------------------------------------------------------------------------------------------

    def _input(self, tile: Int, v: Value) -> None:
        """One input tile of all channels, transformed, into `v`. Tiles over the edge pass through a copy with zeros."""
        code, f, n, block = self.code, self.f, self.n, self.f.x.block
        image, row, column = self._corner(tile)
        top, left = code.sub(row, code.dim(f.begins[1])), code.sub(column, code.dim(f.begins[2]))
        low, high = self._inside(top, f.size[1])
        first, last = self._inside(left, f.size[2])
        missing = code.add(code.sub(low, high), code.sub(first, last))
        cut = code.compare("!=", code.value(missing), -2 * n)
        with code.when(cut), code.loop(0, n * n * block, self.lanes) as i:
            code.store(code.zero(self.element, self.lanes), code.offset(self.edge, i, self.element))
        line = code.dim(f.x.steps[3])
        start = code.offset(self.x, f.x.offset(code, image, 0, 0, top, left), self.element)
        with code.loop(0, self.in_blocks) as c:
            at = code.offset(start, code.mul(c, code.dim(f.x.steps[1])), self.element)
            with code.when(cut), code.loop(low, high) as r:
                source = code.offset(at, code.mul(r, line), self.element)
                target = code.offset(self.edge, code.mul(r, n * block), self.element)
                with code.loop(code.mul(first, block), code.mul(last, block), self.lanes) as i:
                    value = code.load(code.offset(source, i, self.element), self.element, self.lanes)
                    code.store(value, code.offset(target, i, self.element))
            source = code.select(cut, self.edge, at)
            step = code.select(cut, code.value(n * block), code.value(line))
            for down, across in product(range(n), range(n, n + self.size)):     # of the tile to the right
                ahead = code.offset(at, code.mul(line, down), self.element)
                code.prefetch(code.offset(ahead, across * block, self.element), 2)
            for u in range(self.unit):
                lane = code.add(code.mul(c, block // self.ratio), u * self.lanes // self.ratio)
                self._transform(code.offset(source, u * self.lanes, self.element), step, code.offset(v, lane))

    def _inside(self, start: Int, size: Dim) -> tuple[Int, Int]:
        """Which of the n rows (columns) from `start` on lie inside the input."""
        code = self.code
        high = code.min(code.sub(code.dim(size), start), self.n)
        return code.max(code.sub(0, start), 0), high

    def _transform(self, source: Value, step: Int, target: Value) -> None:
        """B^T d B of one vector of channels."""
        code, n = self.code, self.n
        lines = [code.offset(source, code.mul(step, i), self.element) for i in range(n)]
        columns = [mapped(code, self.filter.b, [self.loaded(code.offset(line, j * self.f.x.block, self.element))
                                                for line in lines]) for j in range(n)]
        for i in range(n):
            for j, value in enumerate(mapped(code, self.filter.b, [columns[k][i] for k in range(n)])):
                code.store(self.narrowed(value), code.offset(target, (i * n + j) * self.v_plane))

    def loaded(self, pointer: Value) -> Value:
        """A vector of input channels in f32."""
        return self.code.load(pointer, "float", self.lanes)

    def narrowed(self, value: Value) -> Value:
        """A vector of V as it is kept."""
        return value

    # --- products -----------------------------------------------------------------------------------------------

    def _products(self, group: Int, tiles: Int, v: Value, m: Value) -> None:
        """M = V U for a group of filters. Rows past the last tile are computed from whatever lies there, and unused."""
        code, depth = self.code, -(-self.f.channels // self.ratio)
        width = self.vectors * self.lanes
        per_group = self.n**2 * self.span * depth * width
        stream = code.offset(self.w, code.mul(group, per_group))
        with code.loop(0, self.n**2) as xi, code.loop(0, self.span) as part:
            w = code.offset(stream, code.mul(code.add(code.mul(xi, self.span), part), depth * width))
            target = code.offset(m, code.add(code.mul(xi, self.m_plane), code.mul(part, width)))
            source = code.offset(v, code.mul(xi, self.v_plane))
            with code.loop(0, tiles, self.rows) as row:
                self._tile(code.offset(source, code.mul(row, self.v_row)), w,
                           code.offset(target, code.mul(row, self.m_row)))

    def _tile(self, source: Value, w: Value, target: Value) -> None:
        code, width = self.code, self.vectors * self.lanes
        tile = Tile(code, self.rows, self.vectors, combine=self.combine)
        tile.clear()
        depth, unroll = -(-self.f.channels // self.ratio), 4

        def step(x: Value, u: Value, k: int) -> None:
            tile.step(lambda r: code.load(code.offset(x, r * self.v_row + k), self.word),
                      lambda i: code.load(code.offset(u, k * width + i * self.lanes), self.word, self.lanes))

        def turn(c: Int, count: int) -> None:
            x, u = code.offset(source, c), code.offset(w, code.mul(c, width))
            for k in range(count):
                step(x, u, k)
                for i in range(self.vectors):
                    code.prefetch(code.offset(u, k * width + i * self.lanes + _AHEAD))
            following = code.offset(source, code.add(self.rows * self.v_row, code.mul(c, self.rows)))
            for line in range(0, self.rows * count, 16):            # the next rows lie right behind these
                code.prefetch(code.offset(following, line))

        whole = depth // unroll * unroll
        if whole:
            with code.loop(0, whole, unroll) as c:
                turn(c, unroll)
        if depth > whole:
            turn(whole, depth - whole)
        tile.store(lambda r, i: code.offset(target, r * self.m_row + i * self.lanes))

    # --- outputs ------------------------------------------------------------------------------------------------

    def _outputs(self, group: Int, first: Int, tiles: Int, m: Value) -> None:
        """The output tiles of a group of filters, with the epilogue; what lies past the edge is cut off."""
        code, f, size = self.code, self.f, self.size
        with code.loop(0, tiles) as t:
            image, row, column = self._corner(code.add(first, t))
            rows = code.min(code.sub(code.dim(f.out_size[1]), row), size)
            columns = code.min(code.sub(code.dim(f.out_size[2]), column), size)
            at = code.offset(m, code.mul(t, self.m_row))
            with code.loop(0, self.group // self.unit) as b:
                block = code.add(code.mul(group, self.group // self.unit), b)
                for u in range(self.unit):
                    source = code.offset(at, code.add(code.mul(b, f.out.block), u * self.lanes))
                    self._output(source, (image, block, row, column), rows, columns, u * self.lanes)

    def _output(self, source: Value, place: tuple[Int, Int, Int, Int], rows: Int, columns: Int, lane: int) -> None:
        """A^T M A of one vector of filters, bias, epilogue, store."""
        code, f, n, size = self.code, self.f, self.n, self.size
        image, block, row, column = place
        half = [mapped(code, self.filter.a, [code.load(code.offset(source, (i * n + j) * self.m_plane), "float",
                                                       self.lanes) for i in range(n)]) for j in range(n)]
        values = [mapped(code, self.filter.a, [half[j][r] for j in range(n)]) for r in range(size)]
        bias = self.epilogue.bias(code.add(code.mul(block, f.out.block), lane))
        if bias:
            values = [[code.fadd(value, bias) for value in line] for line in values]

        def finish(value: Value, corner: Corner, r: Int, c: Int) -> None:
            value = self.epilogue.apply(value, corner, (0, r, c), lane)
            code.store(value, code.offset(corner.pointer(self.y, f.out, (0, r, c)), lane, value.element))

        whole = code.compare("==", code.value(code.add(rows, columns)), 2 * size)
        inline = len(self.site.epilogue) <= _INLINE
        ahead = self.epilogue.corner(image, block, 0, row, column)
        for r, c in product(range(size), range(size, 2 * size)):        # of the tile to the right
            code.prefetch(ahead.pointer(self.y, f.out, (0, r, c)), 2, write=True)
        if inline:
            with code.when(whole):
                corner = self.epilogue.corner(image, block, 0, row, column)
                for r, line in enumerate(values):
                    for c, value in enumerate(line):
                        finish(value, corner, r, c)
        rest = code.compare("!=", code.value(code.add(rows, columns)), 2 * size) if inline else Value("i1", "true")
        with code.when(rest):
            for r, line in enumerate(values):
                for c, value in enumerate(line):
                    code.store(value, code.offset(self.edge, (r * size + c) * self.lanes))
            corner = self.epilogue.corner(image, block, 0, row, column)
            self.epilogue.apply(code.zero("float", self.lanes), corner, (0, 0, 0), lane)    # steady vectors, once
            corner.pointer(self.y, f.out)
            with code.loop(0, rows) as down, code.loop(0, columns) as across:
                at = code.offset(self.edge, code.mul(code.add(code.mul(down, size), across), self.lanes))
                finish(code.load(at, "float", self.lanes), corner, down, across)
