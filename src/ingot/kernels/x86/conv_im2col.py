"""Convolutions into plain outputs, of any rank, groups and dilation, transposed ones too: im2col by tiles.

A thread gathers what one tile of output pixels reads, [taps x input channels][pixels], into its scratch, and
multiplies the weights with it: register tiles of output channels x vectors of pixels.
"""
from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import reduce

import numpy as np

from ingot.graph import Dim, evaluate, product
from ingot.kernels import Kernel, Params, Site, Tactic
from ingot.kernels.codegen import Code, Int, Isa, Value, isa_of, vector
from ingot.kernels.codegen.tile import Tile, fits, lanes_of
from ingot.kernels.steps import operands_of
from ingot.kernels.x86.conv_form import Epilogue, Form, declines_epilogue, extra, form
from ingot.target import Target

_LEAST = 4              # output channels per group below which gathering costs more than it brings
_MOST = 8 << 20         # bytes a thread's gathered pixels may take


class Im2colConvolution(Tactic):
    """Gathered tiles of pixels times weights."""

    name = "x86.conv_im2col"

    def declines(self, site: Site, target: Target) -> str | None:
        f = form(site)
        if isinstance(f, str):
            return f
        if f.out.block:
            return "the output is blocked"
        if not f.constant_weight:
            return "the weight is not constant"
        if f.width < _LEAST:
            return f"{f.width} output channels per group"
        dense = (f.out_size[1] * f.out_size[2], f.out_size[2], 1)
        if f.out.steps[4] != 1 or any(size != 1 and step != want for size, step, want in
                                      zip(f.out_size, f.out.steps[2:], dense, strict=True)):
            return "the output's pixels are strided"
        if f.depth * f.taps * lanes_of(isa_of(target), f.element) * 32 > _MOST:
            return f"sums over {f.depth * f.taps} products"
        if why := declines_epilogue(site):
            return why
        for index in operands_of(site.epilogue):
            t = site.inputs[index].type
            spatial = ((1,) * (site.output.rank - t.rank) + t.shape)[2:]
            if any(d != 1 for d in spatial) and (spatial != site.output.shape[2:] or _strided(site, index, f)):
                return "an operand is broadcast over some of the pixels"
        return None

    def space(self, site: Site, target: Target) -> Iterator[Params]:
        """Tiles with the fewest idle lanes and the most even shares first."""
        f, isa = _form(site), isa_of(target)
        bound = {s.name: s.opt for s in site.symbols}
        pixels = evaluate(product(f.out_size), bound)
        lanes, groups = lanes_of(isa, f.element), evaluate(f.batch, bound) * f.groups
        found: list[tuple[float, Params]] = []
        for vectors in (2, 3, 4, 1):
            rows = max(r for r in range(1, 29) if fits(isa, r, vectors))
            pieces = -(-f.width // rows)
            tiles = -(-pixels // (lanes * vectors))
            for parts in {1, min(target.threads, pieces)}:
                tasks = max(1, tiles * groups * parts)          # none for a batch of none
                uneven = -(-tasks // target.threads) * target.threads / tasks
                gathered = 1 + 8 * parts / f.width          # a vector gathered costs as much as some multiply-adds
                cost = uneven * gathered * tiles * vectors * (1 + 0.3 / vectors)
                found.append((cost, {"rows": -(-f.width // pieces), "vectors": vectors, "parts": parts}))
        yield from (p for _, p in sorted(found, key=lambda c: c[0])[:6])

    def pack(self, site: Site, params: Params, target: Target,
             constants: Mapping[int, np.ndarray]) -> Mapping[int, np.ndarray]:
        """Weights as [group][tile of output channels][tap][input channel][output channel of the tile]."""
        f, rows = _form(site), params["rows"]
        weight = constants[f.weight_index]
        tiles = -(-f.width // rows)
        if f.transposed:
            weight = weight.reshape(f.groups, f.depth, f.width, f.taps).transpose(0, 2, 3, 1)
        else:
            weight = weight.reshape(f.groups, f.width, f.depth, f.taps).transpose(0, 1, 3, 2)
        whole = np.zeros((f.groups, tiles * rows, f.taps, f.depth), weight.dtype)
        whole[:, :f.width] = weight
        split = whole.reshape(f.groups, tiles, rows, f.taps * f.depth).transpose(0, 1, 3, 2)
        return {f.weight_index: np.ascontiguousarray(split).reshape(-1)}

    def emit(self, site: Site, params: Params, target: Target) -> Kernel:
        return _Emitter(site, _form(site), params, isa_of(target)).kernel(self.name)


def _form(site: Site) -> Form:
    found = form(site)
    if isinstance(found, str):
        raise ValueError(found)
    return found


def _strided(site: Site, index: int, f: Form) -> bool:
    """Whether an operand's pixels do not follow each other as the output's do."""
    found = extra(site, index)
    if isinstance(found, str) or not found.vector or found.place.steps[4] != 1:
        return True
    return any(size != 1 and mine != its for size, mine, its in zip(f.out_size, f.out.steps[2:], found.place.steps[2:],
                                                                    strict=True))


class _Emitter:
    """One kernel function under construction."""

    def __init__(self, site: Site, f: Form, params: Params, isa: Isa) -> None:
        self.site, self.f = site, f
        self.rows, self.vectors, self.parts = params["rows"], params["vectors"], params["parts"]
        self.code = Code(isa, site.symbols)
        self.lanes = lanes_of(isa, f.element)
        self.width = self.vectors * self.lanes          # pixels of a tile
        self.depth = f.taps * f.depth                   # products of a sum

    def kernel(self, name: str) -> Kernel:
        scratch = (self.depth * self.width * self.f.dtype.nbytes + 63) // 64 * 64
        with self.code.function("conv_im2col"):
            self._function(scratch)
        return Kernel(name, self.code.module(), ("conv_im2col",), 0, scratch)

    def _function(self, scratch: int) -> None:
        code, f = self.code, self.f
        self.x, self.w, self.y = code.buffer(f.x_index), code.buffer(f.weight_index), len(self.site.inputs)
        self.epilogue = Epilogue(code, self.site, f, self.lanes)
        self.panel = code.offset(code.buffer(self.y + 2), code.mul(code.thread, scratch), "i8")
        self.kept = code.reserve(f.element, self.rows * self.width)
        self.pixels = code.dim(product(f.out_size))
        batch = code.dim(f.batch)
        tiles = code.ceildiv(self.pixels, self.width)
        channel_tiles = -(-f.width // self.rows)
        total = code.mul(code.mul(code.mul(batch, f.groups), tiles), self.parts)
        with code.share(total) as task:
            n, group, tile, part = code.unflatten(task, (batch, f.groups, tiles, self.parts))
            first = code.mul(tile, self.width)
            self._gather(n, group, first)
            low = code.div(code.mul(part, channel_tiles), self.parts)
            high = code.div(code.mul(code.add(part, 1), channel_tiles), self.parts)
            with code.loop(low, high) as rows:
                self._tile(n, group, first, rows)

    # --- gathering ----------------------------------------------------------------------------------------------

    def _wide(self, number: Int) -> Value:
        code = self.code
        if isinstance(number, int):
            return code.constant(number, "i32", self.lanes)
        return code.splat(code.emit("i32", f"trunc i64 {number.text} to i32"), self.lanes)

    def _gather(self, n: Int, group: Int, first: Int) -> None:
        """What the pixels from `first` on read, as rows of the panel: for each tap, each input channel."""
        code, f, lanes = self.code, self.f, self.lanes
        iota = Value(vector("i32", lanes), "<" + ", ".join(f"i32 {i}" for i in range(lanes)) + ">")
        last = code.sub(self.pixels, 1)
        where: list[tuple[list[Value], Value]] = []
        for v in range(self.vectors):
            p = code.value(code.add(iota, self._wide(code.add(first, v * lanes))))
            there = code.compare("<=", p, self._wide(last))
            p = code.select(there, p, self._wide(last))     # past the end: the last pixel again
            w = self._wide(code.dim(f.out_size[2]))
            rest, column = (code.value(code.div(p, w)), code.value(code.rem(p, w)))
            h = self._wide(code.dim(f.out_size[1]))
            where.append(([code.value(code.div(rest, h)), code.value(code.rem(rest, h)), column], there))
        base = code.offset(self.x, f.x.offset(code, n, 0, 0, 0, 0), f.element)
        kd_n, kh_n, kw_n = f.kernel
        with code.loop(0, kd_n) as kd, code.loop(0, kh_n) as kh, code.loop(0, kw_n) as kw:
            tap = code.add(code.mul(code.add(code.mul(kd, kh_n), kh), kw_n), kw)
            row = code.offset(self.panel, code.mul(tap, f.depth * self.width), f.element)
            for v, (position, _) in enumerate(where):
                index, mask = self._reads(position, (kd, kh, kw))
                self._channels(code.offset(row, v * lanes, f.element), base, group, index, mask)

    def _reads(self, position: list[Value], taps: tuple[Int, Int, Int]) -> tuple[Value, Value]:
        """Offsets inside a channel plane of the input under one tap, and the lanes where they lie inside."""
        code, f = self.code, self.f
        masks: list[Value] = []
        offset = self._wide(0)
        for axis in range(3):
            size, begin = self._wide(code.dim(f.size[axis])), code.dim(f.begins[axis])
            s, d = f.strides[axis], f.dilations[axis]
            if f.transposed:
                t = code.value(code.add(position[axis], self._wide(code.sub(begin, code.mul(taps[axis], d)))))
                masks.append(code.compare(">=", t, self._wide(0)))
                at = code.value(code.div(t, self._wide(s)))
                if s > 1:
                    masks.append(code.compare("==", code.rem(t, self._wide(s)), self._wide(0)))
            else:
                at = code.value(code.mul(position[axis], self._wide(s)))
                at = code.value(code.add(at, self._wide(code.sub(code.mul(taps[axis], d), begin))))
                masks.append(code.compare(">=", at, self._wide(0)))
            masks.append(code.compare("<", at, size))
            part = code.value(code.mul(at, self._wide(code.dim(f.x.steps[2 + axis]))))
            offset = code.value(code.add(offset, part))
        return offset, reduce(lambda a, b: code.binary("and", a, b), masks)

    def _channels(self, row: Value, base: Value, group: Int, index: Value, mask: Value) -> None:
        """One tap of one vector of pixels, for every input channel of the group."""
        code, f, lanes = self.code, self.f, self.lanes

        def plane(ic: Int) -> Value:
            c = code.add(code.mul(group, f.depth), ic)
            if f.x.block:
                at = code.add(code.mul(code.div(c, f.x.block), code.dim(f.x.steps[1])), code.rem(c, f.x.block))
            else:
                at = code.mul(c, code.dim(f.x.steps[1]))
            return code.offset(base, at, f.element)

        def each(load: Value | None) -> None:
            with code.loop(0, f.depth) as ic:
                if load is None:
                    value = code.gather(plane(ic), index, f.element, mask)
                else:
                    value = code.load(code.offset(plane(ic), load, f.element), f.element, lanes)
                code.store(value, code.offset(row, code.mul(ic, self.width), f.element))

        if lanes == 1:
            each(None)
            return
        # neighbours in memory, all inside: a plain load
        low, high = code.extract(index, 0), code.extract(index, lanes - 1)
        apart = code.compare("==", code.sub(high, low), lanes - 1)
        name = code.declare(f"llvm.vector.reduce.and.v{lanes}i1", "i1", mask.type)
        every = code.emit("i1", f"call i1 @{name}({mask})")
        together = code.binary("and", apart, every)
        with code.when(together):
            each(code.convert("sext", low, "i64"))
        with code.when(code.binary("xor", together, Value("i1", "true"))):
            each(None)

    # --- multiplying --------------------------------------------------------------------------------------------

    def _tile(self, n: Int, group: Int, first: Int, rows: Int) -> None:
        code, f, lanes = self.code, self.f, self.lanes
        tile = Tile(code, self.rows, self.vectors, f.element)
        tile.clear()
        start = code.mul(code.add(code.mul(group, -(-f.width // self.rows)), rows), self.depth * self.rows)
        weights = code.offset(self.w, start, f.element)

        def step(k: Int) -> None:
            w = code.offset(weights, code.mul(k, self.rows), f.element)
            x = code.offset(self.panel, code.mul(k, self.width), f.element)
            tile.step(lambda r: code.load(code.offset(w, r, f.element), f.element),
                      lambda v: code.load(code.offset(x, v * lanes, f.element), f.element, lanes))

        tile.depth(self.depth, step, 2)
        tile.store(lambda r, v: code.offset(self.kept, r * self.width + v * lanes, f.element))
        done = code.mul(rows, self.rows)
        width: Dim = product(f.out_size)
        exact = isinstance(width, int) and width % lanes == 0
        with code.loop(0, code.min(self.rows, code.sub(f.width, done))) as r:
            channel = code.add(code.add(code.mul(group, f.width), done), r)
            bias = self.epilogue.bias(channel)
            for v in range(self.vectors):
                at = code.add(first, v * lanes)
                if exact and isinstance(width, int) and width % self.width == 0:
                    mask = None
                else:
                    mask = code.mask(code.sub(self.pixels, at), lanes)
                place = code.offset(self.kept, code.add(code.mul(r, self.width), v * lanes), f.element)
                value = code.load(place, f.element, lanes)
                if bias is not None:
                    value = code.fadd(value, bias)
                # pixels follow each other: a flat index stands for (depth, height, width)
                corner = self.epilogue.corner(n, channel, 0, 0, at)
                value = self.epilogue.apply(value, corner, mask=mask)
                code.store(value, corner.pointer(self.y, f.out), mask)
