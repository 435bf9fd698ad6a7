"""Depthwise convolutions over blocked channels: lanes along channels, a run of output pixels in registers.

Rows above and below the input are read from a row of zeros; tiles at the left and right edge leave out the taps that
lie outside, which is known when the width is. So no tap of the interior asks where it is.
"""
from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from itertools import groupby

import numpy as np

from ingot.graph import F32, evaluate
from ingot.kernels import Kernel, Params, Site, Tactic
from ingot.kernels.codegen import Code, Int, Isa, Value, Variable, isa_of, vector
from ingot.kernels.x86.conv_form import Epilogue, Form, declines_epilogue, form, pack_channels
from ingot.target import Target

_UNROLLED = 9       # kernels of up to this many taps are unrolled whole, larger ones row by row


class DepthwiseConvolution(Tactic):
    """One input channel to one output channel, one or two spatial axes."""

    name = "x86.conv_depthwise"

    def declines(self, site: Site, target: Target) -> str | None:
        f = form(site)
        if isinstance(f, str):
            return f
        isa = isa_of(target)
        if f.transposed or f.groups != f.channels or f.filters != f.channels or f.groups == 1:
            return "not depthwise"
        if f.dtype != F32 or not f.constant_weight or (f.bias_index is not None and not f.constant_bias):
            return "the weight is not constant f32"
        if f.out.block != isa.block or f.x.block != isa.block:
            return "not in this instruction set's blocked layout"
        if f.kernel[0] > 1 or f.out.steps[4] != f.out.block or f.x.steps[4] != f.x.block:
            return "three spatial axes, or strided pixels"
        if f.begins[0] != 0 or f.ends[0] != 0 or f.strides[0] != 1 or f.kernel[2] > 9:
            return "a window this tactic has no tiles for"
        if not isinstance(f.begins[2], int) or not isinstance(f.begins[1], int):
            return "symbolic padding"
        return declines_epilogue(site)

    def space(self, site: Site, target: Target) -> Iterator[Params]:
        f, isa = _form(site), isa_of(target)
        most, bound = _most(f, isa), {s.name: s.opt for s in site.symbols}
        width = f.out_size[2]
        # short runs keep the code small and left no tile slower than long ones
        runs = [min(most, n) for n in (8, most, 4)]
        found = runs if not isinstance(width, int) else [-(-width // -(-width // n)) for n in runs]
        batch, height = evaluate(f.batch, bound), evaluate(f.out_size[1], bound)
        band = -(-height // target.threads)
        if batch >= target.threads or band * target.threads > 1.1 * height:
            band = height       # images, or blocks of channels, share out more evenly than rows
        yield from ({"columns": c, "band": band} for i, c in enumerate(found) if c not in found[:i])

    def pack(self, site: Site, params: Params, target: Target,
             constants: Mapping[int, np.ndarray]) -> Mapping[int, np.ndarray]:
        """Weights as [channel block][tap][lane]."""
        f = _form(site)
        packed = pack_channels(site, f, constants)
        b = f.out.block
        whole = np.zeros((f.filter_blocks * b, f.taps), np.float32)
        whole[:f.filters] = constants[f.weight_index].reshape(f.filters, f.taps)
        packed[f.weight_index] = np.ascontiguousarray(
            whole.reshape(f.filter_blocks, b, f.taps).transpose(0, 2, 1)).reshape(-1)
        return packed

    def emit(self, site: Site, params: Params, target: Target) -> Kernel:
        return _Emitter(site, _form(site), params, isa_of(target)).kernel(self.name)


def _form(site: Site) -> Form:
    found = form(site)
    if isinstance(found, str):
        raise ValueError(found)
    return found


def _shared(f: Form) -> bool:
    """Whether neighbouring outputs share inputs, which are then kept in registers."""
    return f.strides[2] == 1 and f.kernel[2] > 1 and f.dilations[2] == 1


def _most(f: Form, isa: Isa) -> int:
    """The widest run of pixels whose sums, inputs and one weight fit the registers."""
    if _shared(f):
        return max(2, (isa.registers - 1 - (f.kernel[2] - 1)) // 2)
    return isa.registers - 4 if isa.registers > 16 else isa.registers - 3


class _Emitter:
    """One kernel function under construction."""

    def __init__(self, site: Site, f: Form, params: Params, isa: Isa) -> None:
        self.site, self.f, self.columns, self.band = site, f, params["columns"], params["band"]
        self.code = Code(isa, site.symbols)
        self.lanes = isa.lanes
        self.vertical = any(p != 0 for p in (f.begins[1], f.ends[1]))

    def kernel(self, name: str) -> Kernel:
        f, code = self.f, self.code
        scratch = (f.size[2] * f.x.block * 4 + 63) // 64 * 64 if self.vertical else 0
        with code.function("conv_depthwise"):
            self._function(code.dim(scratch))
        return Kernel(name, code.module(), ("conv_depthwise",), 0, scratch)

    def _function(self, scratch: Int) -> None:
        code, f, lanes = self.code, self.f, self.lanes
        self.x, self.w, self.y = code.buffer(f.x_index), code.buffer(f.weight_index), len(self.site.inputs)
        self.epilogue = Epilogue(code, self.site, f, lanes)
        self.sums = [Variable(code, vector("float", lanes)) for _ in range(self.columns)]
        width, height = code.dim(f.size[2]), code.dim(f.size[1])
        if self.vertical:
            self.zeros = code.offset(code.buffer(self.y + 2), code.mul(code.thread, scratch), "i8")
            with code.loop(0, code.mul(width, f.x.block), lanes) as i:
                code.store(code.zero("float", lanes), code.offset(self.zeros, i))
        per_block = f.out.block // lanes
        parts = f.filter_blocks * per_block
        batch, out_height = code.dim(f.batch), code.dim(f.out_size[1])
        # A thread keeps to a band of rows, all channels: the layers around do so too, and what they wrote or will
        # read is in the cache of the same core.
        bands = code.ceildiv(out_height, self.band)
        with (code.share(code.mul(code.mul(batch, bands), parts)) as task,
              self._rows(code.unflatten(task, (batch, bands, parts)), out_height) as (n, part, oh)):
            block = code.div(part, per_block)
            lane = code.mul(code.rem(part, per_block), lanes)
            base = code.offset(self.x, code.add(f.x.offset(code, n, block, 0, 0, 0), lane))
            self.taps = code.offset(self.w, code.add(code.mul(block, f.taps * f.out.block), lane))
            self.start = self.epilogue.bias(code.add(code.mul(block, f.out.block), lane)) or code.zero("float", lanes)
            self.place = (n, block, oh, lane)
            top = code.sub(code.mul(oh, f.strides[1]), code.dim(f.begins[1]))

            def row(kh: Int) -> Value:
                """The input row under a row of taps, or the row of zeros."""
                h = code.add(top, code.mul(kh, f.dilations[1]))
                pointer = code.offset(base, code.mul(h, code.dim(f.x.steps[3])))
                if not self.vertical:
                    return pointer
                inside = code.emit("i1", f"icmp ult i64 {code.value(h).text}, {code.value(height).text}")
                return code.select(inside, pointer, self.zeros)

            self.row = row
            self.rows = [row(kh) for kh in range(f.kernel[1])] if f.taps <= _UNROLLED else None
            if isinstance(f.out_size[2], int) and isinstance(f.size[2], int):
                self._static_row(f.out_size[2], f.size[2])
            else:
                self._dynamic_row()

    @contextmanager
    def _rows(self, place: list[Int], height: Int) -> Iterator[tuple[Int, Int, Int]]:
        """Loop over the rows of a band: (image, part of the channels, row)."""
        n, band, part = place
        first = self.code.mul(band, self.band)
        with self.code.loop(first, self.code.min(self.code.add(first, self.band), height)) as row:
            yield n, part, row

    # --- a row of output ----------------------------------------------------------------------------------------

    def _reach(self, column: int, columns: int) -> tuple[int, int]:
        """First and last input column that a run of output columns reads."""
        f = self.f
        begin = self._begin
        return (column * f.strides[2] - begin,
                (column + columns - 1) * f.strides[2] - begin + (f.kernel[2] - 1) * f.dilations[2])

    @property
    def _begin(self) -> int:
        begin = self.f.begins[2]
        return begin if isinstance(begin, int) else 0

    def _static_row(self, width: int, size: int) -> None:
        pieces = -(-width // self.columns)
        least, more = divmod(width, pieces)
        tiles, at = [], 0
        for piece in range(pieces):
            columns = least + (piece < more)
            low, high = self._reach(at, columns)
            tiles.append((at, columns, low >= 0 and high < size))
            at += columns
        for (columns, inner), run in groupby(tiles, key=lambda t: t[1:]):
            found = list(run)
            if inner and len(found) > 1:
                with self.code.loop(found[0][0], found[-1][0] + columns, columns) as column:
                    self._tile(column, columns, None)
            else:
                for first, _, _ in found:
                    self._tile(first, columns, None if inner else (first, size))

    def _dynamic_row(self) -> None:
        """Single pixels with checked taps at both edges, whole tiles between them."""
        code, f, columns = self.code, self.f, self.columns
        width, size, stride = code.dim(f.out_size[2]), code.dim(f.size[2]), f.strides[2]
        left = code.min(-(-self._begin // stride), width)
        # the last column whose taps all lie inside, plus one
        reach = (f.kernel[2] - 1) * f.dilations[2] - self._begin
        inside = code.min(code.div(code.max(code.add(code.sub(size, reach + 1), stride), 0), stride), width)
        tiles = code.div(code.max(code.sub(inside, left), 0), columns)
        right = code.add(left, code.mul(tiles, columns))
        with code.loop(0, left) as column:
            self._checked(column)
        with code.loop(left, right, columns) as column:
            self._tile(column, columns, None)
        with code.loop(right, width) as column:
            self._checked(column)

    def _checked(self, column: Int) -> None:
        """One pixel, each tap of which may lie outside."""
        code, f = self.code, self.f
        origin = code.sub(code.mul(column, f.strides[2]), self._begin)
        low = code.ceildiv(code.max(code.sub(0, origin), 0), f.dilations[2])
        rest = code.max(code.sub(code.dim(f.size[2]), origin), 0)
        high = code.min(code.ceildiv(rest, f.dilations[2]), f.kernel[2])
        self.sums[0].set(self.start)
        with code.loop(0, f.kernel[1]) as kh:
            row = self.row(kh)
            with code.loop(low, high) as kw:
                at = code.mul(code.add(origin, code.mul(kw, f.dilations[2])), f.x.block)
                x = code.load(code.offset(row, at), "float", self.lanes)
                w = self._weight(kh, kw)
                self.sums[0].set(code.fma(x, w, self.sums[0].get()))
        self._finish(column, 1)

    def _weight(self, kh: Int, kw: Int) -> Value:
        code, f = self.code, self.f
        tap = code.add(code.mul(kh, f.kernel[2]), kw)
        return code.load(code.offset(self.taps, code.mul(tap, f.out.block)), "float", self.lanes)

    # --- a run of pixels ----------------------------------------------------------------------------------------

    def _tile(self, column: Int, columns: int, edge: tuple[int, int] | None) -> None:
        """A run of output pixels; `edge` is its static first column and the input's width, where taps fall outside."""
        code, f = self.code, self.f
        for s in self.sums[:columns]:
            s.set(self.start)
        offset = code.mul(code.sub(code.mul(column, f.strides[2]), self._begin), f.x.block)
        if self.rows is not None:
            for kh, row in enumerate(self.rows):
                self._taps(code.offset(row, offset), kh, columns, edge)
        else:
            with code.loop(0, f.kernel[1]) as tap:
                self._taps(code.offset(self.row(tap), offset), tap, columns, edge)
        self._finish(column, columns)

    def _taps(self, row: Value, kh: Int, columns: int, edge: tuple[int, int] | None) -> None:
        """One row of taps on a run of pixels; `row` is under the first tap of the first pixel."""
        code, f = self.code, self.f
        kept: dict[int, Value] = {}
        for kw in range(f.kernel[2]):
            weight: Value | None = None
            for p in range(columns):
                at = p * f.strides[2] + kw * f.dilations[2]
                if edge and not 0 <= edge[0] * f.strides[2] - self._begin + at < edge[1]:
                    continue
                weight = weight or self._weight(kh, kw)
                if at not in kept or not _shared(f):
                    kept[at] = code.load(code.offset(row, at * f.x.block), "float", self.lanes)
                self.sums[p].set(code.fma(kept[at], weight, self.sums[p].get()))

    def _finish(self, column: Int, columns: int) -> None:
        code, f = self.code, self.f
        n, block, oh, lane = self.place
        corner = self.epilogue.corner(n, block, 0, oh, column)
        for p, total in enumerate(self.sums[:columns]):
            value = self.epilogue.apply(total.get(), corner, (0, 0, p), lane)
            code.store(value, code.offset(corner.pointer(self.y, f.out, (0, 0, p)), lane))
