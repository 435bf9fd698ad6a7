"""Convolutions one after another in one kernel, row by row: a 1x1 one that widens, a depthwise one, a 1x1 one that
narrows (the blocks of MobileNetV2), or two of them side by side.

A thread takes a band of output rows. It keeps as many rows of the wide value as the depthwise window is high, in a
ring in its scratch, with the zeros of the padding around them: each row is widened once (at the edge of a band once
more) and never leaves the core's own cache. Without the first convolution rows of the input are copied there.
"""
from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from math import gcd

import numpy as np

from ingot.graph import F32, evaluate
from ingot.kernels import Kernel, Operand, Params, Site, Step, Tactic
from ingot.kernels.codegen import Code, Int, Isa, Value, Variable, isa_of, vector
from ingot.kernels.codegen.steps import declines_steps, run_steps
from ingot.kernels.codegen.tile import Tile, fits
from ingot.kernels.steps import operands_of
from ingot.kernels.x86.conv_form import Epilogue, Form, declines_epilogue, form, pack_channels
from ingot.kernels.x86.conv_grid import Grid, is_product, pack_weight, vectors_of
from ingot.target import Target

_LEAST = 512 << 10      # bytes of the wide value per sample: smaller ones stay in the second-level cache by themselves
_RUN = 8                # pixels of a depthwise run


@dataclass(frozen=True)
class Link:
    """One convolution of a chain: step `index` of the site, and the same as a site of its own.

    That one has the operands of the whole site, and behind them the result of the link before.
    """

    index: int
    site: Site
    form: Form

    @property
    def depthwise(self) -> bool:
        return self.form.groups > 1


def links(site: Site) -> tuple[Link, ...] | str:
    """The convolutions a site is made of, each reading what the steps before gave, or why it is no such chain."""
    at = [i for i, s in enumerate(site.steps) if s.op == "Conv"]
    if len(at) < 2 or at[0] != 0 or site.main != at[-1] or len(site.outputs) != 1:
        return "no chain of convolutions"
    found: list[Link] = []
    for index, end in zip(at, [*at[1:], len(site.steps)], strict=True):
        step, last = site.steps[index], end == len(site.steps)
        inputs, x = site.inputs, step.inputs[0]
        if index:
            if x != ~(index - 1):
                return "a convolution that does not read the one before"
            inputs = (*inputs, Operand(site.steps[index - 1].types[0]))
            step = replace(step, inputs=(len(site.inputs), *step.inputs[1:]))
        steps = [step]
        if last:
            rest = [_moved(s, index) for s in site.steps[index + 1:]]
            steps += [s for s in rest if s is not None]
            if len(steps) != len(rest) + 1:
                return "a step that reads what only the chain knows"
        elif why := _declines_between(site, index, end):
            return why
        outputs = site.outputs if last else (Operand(site.steps[index].types[0]),)
        alone = Site(tuple(steps), inputs, outputs, site.symbols)
        f = form(alone)
        if isinstance(f, str):
            return f
        found.append(Link(index, alone, f))
    return tuple(found)


def _moved(step: Step, by: int) -> Step | None:
    """A step of the epilogue as one of the last link's own site; None if it reads results of earlier links."""
    if any(i is not None and i < 0 and ~i < by for i in step.inputs):
        return None
    return replace(step, inputs=tuple(i if i is None or i >= 0 else ~(~i - by) for i in step.inputs))


def _declines_between(site: Site, index: int, end: int) -> str | None:
    """Why the steps between two convolutions cannot be computed on a vector alone."""
    steps = site.steps[index + 1:end]
    if any(s.types[0].shape != site.steps[index].types[0].shape for s in steps):
        return "a step between that changes the shape"
    if any(i is not None and i < 0 and ~i < index for s in steps for i in s.inputs):
        return "a step between that reads an earlier convolution"
    if any(site.inputs[i].type.size != 1 for i in operands_of(steps)):
        return "a step between that reads more than single numbers"
    return declines_steps(site, steps)


@dataclass(frozen=True)
class Chain:
    """A site's convolutions by their part in it."""

    first: Link | None
    depth: Link
    last: Link | None

    @property
    def all(self) -> tuple[Link, ...]:
        return tuple(x for x in (self.first, self.depth, self.last) if x is not None)


def _chain(site: Site, isa: Isa) -> Chain | str:
    found = links(site)
    if isinstance(found, str):
        return found
    kinds = "".join("d" if x.depthwise else "p" for x in found)
    if kinds not in ("pdp", "pd", "dp"):
        return "not a depthwise convolution between two of 1x1, or beside one"
    for x in found:
        if why := _declines_link(x, isa):
            return why
    if len({x.form.weight_index for x in found}) != len(found):
        return "two of its weights are one"
    at = kinds.index("d")
    return Chain(found[0] if at else None, found[at], found[at + 1] if at + 1 < len(found) else None)


def _declines_link(link: Link, isa: Isa) -> str | None:
    f = link.form
    if f.dtype != F32 or not f.constant_weight or (f.bias_index is not None and not f.constant_bias):
        return "the weight is not constant f32"
    if isa.block != isa.lanes or f.out.block != isa.block or f.x.block != isa.block:
        return "not in this instruction set's blocked layout"
    if not f.static or f.transposed or f.kernel[0] != 1 or f.size[0] != 1:
        return "symbolic sizes, three axes, or transposed"
    if f.out.steps[4] != f.out.block or f.x.steps[4] != f.x.block:
        return "strided pixels"
    if not link.depthwise:
        return None if is_product(f) and f.strides == (1, 1, 1) else "neither 1x1 nor depthwise"
    if f.groups != f.channels or f.filters != f.channels or f.dilations != (1, 1, 1) or f.kernel[2] > 9:
        return "not depthwise, or its window is spread"
    if any(isinstance(p, int) and p < 0 for p in (*f.begins, *f.ends)) or f.kernel[1] < f.strides[1]:
        return "negative padding, or rows that no window reads"
    return None


class ConvolutionChain(Tactic):
    """1x1, depthwise, 1x1 over blocked channels; the first or the last may be absent."""

    name = "x86.conv_chain"

    def declines(self, site: Site, target: Target) -> str | None:
        chain = _chain(site, isa_of(target))
        if isinstance(chain, str):
            return chain
        f = chain.depth.form
        height, width = _int(f.size[1]), _int(f.size[2])
        if f.channels * height * width * 4 < _LEAST:
            return "what lies between the convolutions is small"
        return declines_epilogue(chain.all[-1].site)

    def space(self, site: Site, target: Target) -> Iterator[Params]:
        chain, isa = _of(site, isa_of(target)), isa_of(target)
        f = chain.depth.form
        batch = evaluate(f.batch, {s.name: s.opt for s in site.symbols})
        height = _int(f.out_size[1])
        band = height if batch >= target.threads else -(-height // target.threads)
        for wide in _tiles(chain.first, isa):
            for narrow in _tiles(chain.last, isa):
                yield {"band": band, "run": _RUN, "columns": wide[0], "vectors": wide[1], "last_columns": narrow[0],
                       "last_vectors": narrow[1]}

    def pack(self, site: Site, params: Params, target: Target,
             constants: Mapping[int, np.ndarray]) -> Mapping[int, np.ndarray]:
        """1x1 weights as the tiles of a product read them, depthwise ones as [channel block][tap][lane]."""
        isa = isa_of(target)
        chain = _of(site, isa)
        packed: dict[int, np.ndarray] = {}
        for link in chain.all:
            f = link.form
            packed.update(pack_channels(link.site, f, constants))
            weight = constants[f.weight_index]
            if not link.depthwise:
                vectors = params["vectors" if link is chain.first else "last_vectors"]
                packed[f.weight_index] = pack_weight(Grid(f, f.x.block, False, False), weight, vectors, isa.lanes)
                continue
            whole = np.zeros((f.filter_blocks * f.out.block, f.taps), np.float32)
            whole[:f.filters] = weight.reshape(f.filters, f.taps)
            taps = whole.reshape(f.filter_blocks, f.out.block, f.taps).transpose(0, 2, 1)
            packed[f.weight_index] = np.ascontiguousarray(taps).reshape(-1)
        return packed

    def emit(self, site: Site, params: Params, target: Target) -> Kernel:
        return _Emitter(site, _of(site, isa_of(target)), params, isa_of(target)).kernel(self.name)


def _int(size: object) -> int:
    if not isinstance(size, int):
        raise ValueError(f"the size {size} is not known")
    return size


def _of(site: Site, isa: Isa) -> Chain:
    found = _chain(site, isa)
    if isinstance(found, str):
        raise ValueError(found)
    return found


def _tiles(link: Link | None, isa: Isa) -> list[tuple[int, int]]:
    """(pixels, vectors) of the two tiles with the fewest loads per multiply-add, padding counted."""
    if link is None:
        return [(1, 1)]
    count, width = vectors_of(link.form, isa.lanes), _int(link.form.out_size[2])
    found: list[tuple[float, int, int]] = []
    for vectors in range(1, min(count, 6) + 1):
        most = max(p for p in range(1, 29) if fits(isa, p, vectors))
        columns = -(-width // -(-width // most))
        rest = -(-count // vectors) * vectors / count       # a last, narrower group runs less well
        found.append(((columns + vectors) / (columns * vectors) * rest, columns, vectors))
    return [(columns, vectors) for _, columns, vectors in sorted(found)[:2]]


class _Emitter:
    """One kernel function under construction."""

    def __init__(self, site: Site, chain: Chain, params: Params, isa: Isa) -> None:
        self.site, self.chain, self.params = site, chain, params
        self.code, self.lanes = Code(isa, site.symbols), isa.lanes
        f = self.f = chain.depth.form
        self.height, self.width = _int(f.size[1]), _int(f.size[2])
        self.out_height, self.out_width = _int(f.out_size[1]), _int(f.out_size[2])
        self.top, self.left = _int(f.begins[1]), _int(f.begins[2])
        self.padded = max(self.left + self.width, (self.out_width - 1) * f.strides[2] + f.kernel[2])
        self.plane = self.padded * self.lanes               # a row of one channel block, in elements
        self.row = self.plane * f.filter_blocks
        self.zeros = self.row * f.kernel[1]                 # where a row of zeros lies in the scratch
        self.narrow = self.zeros + self.plane               # and the row that the last convolution reads
        between = f.filter_blocks * self.out_width * self.lanes if chain.last else 0
        self.scratch = ((self.narrow + between) * 4 + 63) // 64 * 64

    def kernel(self, name: str) -> Kernel:
        with self.code.function("conv_chain"):
            self._function()
        return Kernel(name, self.code.module(), ("conv_chain",), 0, self.scratch)

    def _function(self) -> None:
        code, f, chain = self.code, self.f, self.chain
        self.y = len(self.site.inputs)
        self.area = code.offset(code.buffer(self.y + 2), code.mul(code.thread, self.scratch), "i8")
        between = range(1, chain.all[-1].index)
        self.numbers = {i: code.splat(code.load(code.buffer(i)), self.lanes)
                        for i in operands_of([self.site.steps[k] for k in between if self.site.steps[k].op != "Conv"])}
        end = chain.all[-1]
        self.epilogues = {lanes: Epilogue(code, end.site, end.form, lanes) for lanes in {self.lanes, self.lanes // 2}}
        self.sums = [Variable(code, vector("float", self.lanes)) for _ in range(self.params["run"])]
        self._clear()
        batch, band = code.dim(f.batch), self.params["band"]
        bands = -(-self.out_height // band)
        with code.share(code.mul(batch, bands)) as task:
            n, first = code.div(task, bands), code.mul(code.rem(task, bands), band)
            start = code.max(code.sub(code.mul(first, f.strides[1]), self.top), 0)
            held = code.variable(code.value(start))         # rows below this one are in the ring
            with code.loop(first, code.min(code.add(first, band), self.out_height)) as oh:
                self._output_row(n, oh, held)

    def _clear(self) -> None:
        """Zeros: the row of them, and beside every row of the ring."""
        code, lanes = self.code, self.lanes
        nothing = code.zero("float", lanes)
        with code.loop(self.zeros, self.zeros + self.plane, lanes) as i:
            code.store(nothing, code.offset(self.area, i))
        beside = [*range(self.left), *range(self.left + self.width, self.padded)]
        if beside:
            with code.loop(0, self.zeros, self.plane) as i:
                for pixel in beside:
                    code.store(nothing, code.offset(self.area, code.add(i, pixel * lanes)))

    def _output_row(self, n: Int, oh: Int, held: Variable) -> None:
        code, f = self.code, self.f
        top = code.sub(code.mul(oh, f.strides[1]), self.top)
        need = code.min(code.add(top, f.kernel[1]), self.height)
        with code.loop(held.get(), need) as ih:
            slot = code.offset(self.area, code.mul(code.rem(ih, f.kernel[1]), self.row))
            self._input_row(n, ih, code.offset(slot, self.left * self.lanes))
        held.set(code.value(code.max(held.get(), need)))
        rows: list[tuple[Value, Int]] = []                  # (whether it lies inside, its offset in the ring)
        for kh in range(f.kernel[1]):
            ih = code.value(code.add(top, kh))
            inside = code.emit("i1", f"icmp ult i64 {ih.text}, {self.height}")
            rows.append((inside, code.mul(code.rem(ih, f.kernel[1]), self.row)))
        with code.loop(0, f.filter_blocks) as block:
            self._depthwise(n, oh, block, rows)
        if link := self.chain.last:
            self._product(link, "last_", code.offset(self.area, self.narrow), self.out_width * self.lanes,
                          self._out(n, oh))

    def _input_row(self, n: Int, ih: Int, to: Value) -> None:
        """A row of what the depthwise convolution reads, into the ring."""
        code, link = self.code, self.chain.first
        x = (link or self.chain.depth).form
        source = code.offset(code.buffer(x.x_index), x.x.offset(code, n, 0, 0, ih, 0))
        if link is None:
            with code.loop(0, self.f.filter_blocks) as block:
                out = code.offset(to, code.mul(block, self.plane))
                line = code.offset(source, code.mul(block, code.dim(x.x.steps[1])))
                with code.loop(0, self.width * self.lanes, self.lanes) as i:
                    code.store(code.load(code.offset(line, i), "float", self.lanes), code.offset(out, i))
            return

        def begin(first: Int, column: Int) -> Callable[[Value, int, int], None]:
            base = code.offset(to, code.add(code.mul(first, self.plane), code.mul(column, self.lanes)))

            def finish(value: Value, v: int, c: int) -> None:
                value = self._between(link, value)
                code.store(value, code.offset(base, v * self.plane + c * self.lanes))
            return finish

        self._product(link, "", source, code.dim(x.x.steps[1]), begin)

    def _between(self, link: Link, value: Value) -> Value:
        """The steps between this convolution and the next one."""
        following = [x.index for x in self.chain.all if x.index > link.index]
        return run_steps(self.code, self.site, link.index + 1, {link.index: value}, self.numbers.__getitem__,
                         following[0])

    def _out(self, n: Int, oh: Int) -> Callable[[Int, Int], Callable[[Value, int, int], None]]:
        """What finishes a tile of the result: its epilogue, and the store."""
        f = self.chain.all[-1].form

        def begin(first: Int, column: Int) -> Callable[[Value, int, int], None]:
            corners = {lanes: e.corner(n, first, 0, oh, column) for lanes, e in self.epilogues.items()}

            def finish(value: Value, v: int, c: int) -> None:
                corner = corners[value.lanes]
                value = self.epilogues[value.lanes].apply(value, corner, (v, 0, c))
                self.code.store(value, corner.pointer(self.y, f.out, (v, 0, c)))
            return finish
        return begin

    # --- the depthwise convolution ------------------------------------------------------------------------------

    def _depthwise(self, n: Int, oh: Int, block: Int, rows: list[tuple[Value, Int]]) -> None:
        """One row of one channel block, from the ring."""
        code, f, lanes = self.code, self.f, self.lanes
        taps = code.offset(code.buffer(f.weight_index), code.mul(block, f.taps * lanes))
        bias = code.zero("float", lanes) if f.bias_index is None else code.load(
            code.offset(code.buffer(f.bias_index), code.mul(block, lanes)), "float", lanes)
        plane, zeros = code.mul(block, self.plane), code.offset(self.area, self.zeros)
        lines = [code.select(inside, code.offset(self.area, code.add(row, plane)), zeros) for inside, row in rows]
        narrow = code.offset(self.area, code.add(self.narrow, code.mul(block, self.out_width * lanes)))
        shared = f.strides[2] == 1 and f.kernel[2] > 1
        for column, columns in _runs(code, self.out_width, self.params["run"]):
            for total in self.sums[:columns]:
                total.set(bias)
            for kh, line in enumerate(lines):
                at = code.offset(line, code.mul(column, f.strides[2] * lanes))
                kept: dict[int, Value] = {}
                for kw in range(f.kernel[2]):
                    weight = code.load(code.offset(taps, (kh * f.kernel[2] + kw) * lanes), "float", lanes)
                    for p in range(columns):
                        pixel = p * f.strides[2] + kw
                        if pixel not in kept or not shared:
                            kept[pixel] = code.load(code.offset(at, pixel * lanes), "float", lanes)
                        self.sums[p].set(code.fma(kept[pixel], weight, self.sums[p].get()))
            if self.chain.last is None:
                finish = self._out(n, oh)(block, column)
                for p, total in enumerate(self.sums[:columns]):
                    finish(total.get(), 0, p)
                continue
            to = code.offset(narrow, code.mul(column, lanes))
            for p, total in enumerate(self.sums[:columns]):
                code.store(self._between(self.chain.depth, total.get()), code.offset(to, p * lanes))

    # --- a row of a 1x1 convolution -----------------------------------------------------------------------------

    def _product(self, link: Link, prefix: str, source: Value, step: Int,
                 begin: Callable[[Int, Int], Callable[[Value, int, int], None]]) -> None:
        """All pixels of a row by all output channels; input blocks lie `step` elements apart."""
        code, f, lanes = self.code, link.form, self.lanes
        columns, vectors = self.params[f"{prefix}columns"], self.params[f"{prefix}vectors"]
        depth = -(-f.channels // lanes) * lanes             # packed rows of weights per group of vectors
        weights = code.buffer(f.weight_index)
        half = lanes // 2 if link is self.chain.last and 0 < f.filters % lanes <= lanes // 2 else 0
        count = vectors_of(f, lanes)
        # the last group is emitted apart where it is narrower, by a vector or by half of one
        whole = (count - bool(half)) // vectors
        rest = count - whole * vectors

        def group(first: Int, wide: int, narrow: int = 0) -> None:
            stream = code.offset(weights, code.mul(first, depth * lanes))
            each = [lanes] * (wide - 1) + [narrow or lanes]
            biases = [code.zero("float", each[v]) if f.bias_index is None else code.load(
                code.offset(code.buffer(f.bias_index), code.mul(code.add(first, v), lanes)), "float", each[v])
                for v in range(wide)]
            for column, pixels in _runs(code, _int(f.out_size[2]), columns):
                tile = Tile(code, pixels, wide, narrow=narrow)
                tile.fill(lambda p, v: biases[v])
                self._sum(tile, f, code.offset(source, code.mul(column, lanes)), step, stream, each)
                finish = begin(first, column)
                for c, row in enumerate(tile.values()):
                    for v, value in enumerate(row):
                        finish(value, v, c)

        if whole:
            with _each(code, whole) as part:
                group(code.mul(part, vectors), vectors)
        if rest:
            group(whole * vectors, rest, half)

    def _sum(self, tile: Tile, f: Form, source: Value, step: Int, stream: Value, each: list[int]) -> None:
        code, lanes, width = self.code, self.lanes, tile.width
        blocks, left = -(-f.channels // lanes), f.channels % lanes
        unroll = gcd(gcd(4, lanes), left) if left else 4
        with _each(code, blocks) as block:
            x = code.offset(source, code.mul(block, step))
            w = code.offset(stream, code.mul(block, lanes * width))
            last: Int = code.min(lanes, code.sub(f.channels, code.mul(block, lanes))) if left else lanes
            with code.loop(0, last, unroll) as lane:
                x_lane, w_lane = code.offset(x, lane), code.offset(w, code.mul(lane, width))
                for u in range(unroll):
                    tile.step(lambda p, u=u: code.load(code.offset(x_lane, p * lanes + u)),     # type: ignore[misc]
                              lambda v, u=u: code.load(code.offset(w_lane, u * width + v * lanes),  # type: ignore[misc]
                                                       "float", each[v]))


def _runs(code: Code, width: int, most: int) -> Iterator[tuple[Int, int]]:
    """(first pixel, pixels) of runs over a row whose lengths differ by at most one; code for each length once."""
    pieces = -(-width // most)
    least, more = divmod(width, pieces)
    if more:
        with code.loop(0, more * (least + 1), least + 1) as column:
            yield column, least + 1
    with code.loop(more * (least + 1), width, least) as column:
        yield column, least


@contextmanager
def _each(code: Code, count: int) -> Iterator[Int]:
    """A loop, unless there is but one turn."""
    if count == 1:
        yield 0
        return
    with code.loop(0, count) as i:
        yield i
