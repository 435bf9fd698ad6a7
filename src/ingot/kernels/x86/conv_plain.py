"""Any convolution or transposed convolution, in any layout: simple loops, one vector of the output at a time.

Plain outputs: lanes along the width, several output channels beside each other. Blocked outputs: lanes along the
channels of a block.
"""
from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace

import numpy as np

from ingot.kernels import Kernel, Operand, Params, Site, Tactic
from ingot.kernels.codegen import Code, Int, Value, Variable, isa_of, vector
from ingot.kernels.codegen.tile import lanes_of
from ingot.kernels.x86.conv_form import Epilogue, Form, declines_epilogue, form, pack_channels
from ingot.target import Target


class PlainConvolution(Tactic):
    """Serves every form, and leaves those to `faster` tactics that they take.

    It would only lengthen the race there. Nor does it take a longer epilogue or a strided result than they do: what
    that saves is less than what the slow kernel costs.
    """

    name = "x86.conv_plain"

    def __init__(self, *faster: Tactic) -> None:
        self._faster = faster

    def declines(self, site: Site, target: Target) -> str | None:
        found = form(site)
        if isinstance(found, str):
            return found
        bare = replace(site, steps=site.steps[:1], outputs=(Operand(site.steps[0].types[0]),))
        better = next((t.name for t in self._faster if t.declines(bare, target) is None), None)
        return declines_epilogue(site) or (better and f"{better} takes the convolution")

    def pack(self, site: Site, params: Params, target: Target,
             constants: Mapping[int, np.ndarray]) -> Mapping[int, np.ndarray]:
        f = _form(site)
        packed = pack_channels(site, f, constants)
        if f.out.block and f.constant_weight:
            packed[f.weight_index] = _packed_weight(f, constants[f.weight_index])
        return packed

    def emit(self, site: Site, params: Params, target: Target) -> Kernel:
        f, code = _form(site), Code(isa_of(target), site.symbols)
        with code.function("conv_plain"):
            (_Blocked if f.out.block else _Plain)(code, site, f).emit()
        return Kernel(self.name, code.module(), ("conv_plain",))


def _form(site: Site) -> Form:
    found = form(site)
    if isinstance(found, str):
        raise ValueError(found)
    return found


def _packed_weight(f: Form, weight: np.ndarray) -> np.ndarray:
    """[blocks of output channels, input channels of a group, taps, lanes], zeros in the lanes past the last channel."""
    b = f.out.block
    if f.transposed:                    # [C, M/g, taps] -> [M, C/g, taps]
        w = weight.reshape(f.groups, f.depth, f.width, f.taps).transpose(0, 2, 1, 3)
    else:
        w = weight.reshape(f.groups, f.width, f.depth, f.taps)
    whole = np.zeros((f.filter_blocks * b, f.depth, f.taps), weight.dtype)
    whole[:f.filters] = w.reshape(f.filters, f.depth, f.taps)
    return np.ascontiguousarray(whole.reshape(f.filter_blocks, b, f.depth, f.taps).transpose(0, 2, 3, 1)).reshape(-1)


class _Loops:
    """What both forms share: which input position a tap reads."""

    def __init__(self, code: Code, site: Site, f: Form) -> None:
        self.code, self.site, self.f = code, site, f
        self.x = code.buffer(f.x_index)
        self.w = code.buffer(f.weight_index)
        self.y = len(site.inputs)

    @contextmanager
    def tap(self, axis: int, at: Int) -> Iterator[tuple[Int, Int]]:
        """Loop over the taps of an axis that reach inside the input from output position `at`: (tap, position)."""
        code, f = self.code, self.f
        k, s, d = f.kernel[axis], f.strides[axis], f.dilations[axis]
        begin, size = code.dim(f.begins[axis]), code.dim(f.size[axis])
        if k == 1 and s == 1 and begin == 0 and f.size[axis] == f.out_size[axis]:
            yield 0, at
            return
        if f.transposed:
            with code.loop(0, k) as tap:
                t = code.sub(code.add(at, begin), code.mul(tap, d))
                position = code.div(t, s)
                inside = code.binary("and", code.compare(">=", t, 0), code.compare("<", position, size))
                if s > 1:
                    inside = code.binary("and", inside, code.compare("==", code.rem(t, s), 0))
                with code.when(inside):
                    yield tap, position
            return
        origin = code.sub(code.mul(at, s), begin)
        low = code.ceildiv(code.max(code.sub(0, origin), 0), d)
        high = code.min(code.ceildiv(code.max(code.sub(size, origin), 0), d), k)
        with code.loop(low, high) as tap:
            yield tap, code.add(origin, code.mul(tap, d))

    def tap_index(self, taps: tuple[Int, Int, Int]) -> Int:
        code, k = self.code, self.f.kernel
        return code.add(code.mul(code.add(code.mul(taps[0], k[1]), taps[1]), k[2]), taps[2])


class _Plain(_Loops):
    """Lanes along the width."""

    def emit(self) -> None:
        code, f = self.code, self.f
        lanes = lanes_of(code.isa, f.element)
        width = f.out_size[2]
        if isinstance(width, int):
            while lanes > 1 and lanes // 2 >= width:
                lanes //= 2
        self.lanes = lanes
        self.epilogue = Epilogue(code, self.site, f, lanes)
        rows = next(r for r in (4, 3, 2, 1) if f.width % r == 0)
        sums = [Variable(code, vector(f.element, lanes)) for _ in range(rows)]
        batch, depth, height = (code.dim(d) for d in (f.batch, f.out_size[0], f.out_size[1]))
        total: Int = f.filters // rows
        for n in (batch, depth, height):
            total = code.mul(total, n)
        with code.share(total) as task:
            n, tile, od, oh = code.unflatten(task, (batch, f.filters // rows, depth, height))
            first = code.mul(tile, rows)
            group = code.div(first, f.width)
            with code.loop(0, code.dim(width), lanes) as ow:
                whole = lanes == 1 or (isinstance(width, int) and width % lanes == 0)
                mask = None if whole else code.mask(code.sub(code.dim(width), ow), lanes)
                for s in sums:
                    s.set(code.zero(f.element, lanes))
                with code.loop(0, f.depth) as ic, self.tap(0, od) as (kd, d), self.tap(1, oh) as (kh, h):
                    self._row(sums, n, group, first, ic, (kd, kh), (d, h), ow, mask)
                for r, s in enumerate(sums):
                    channel = code.add(first, r)
                    value = s.get()
                    bias = self.epilogue.bias(channel)
                    if bias is not None:
                        value = code.fadd(value, bias)
                    corner = self.epilogue.corner(n, channel, od, oh, ow)
                    value = self.epilogue.apply(value, corner, mask=mask)
                    code.store(value, corner.pointer(self.y, f.out), mask)

    def _row(self, sums: list[Variable], n: Int, group: Int, first: Int, ic: Int, taps: tuple[Int, Int],
             position: tuple[Int, Int], ow: Int, mask: Value | None) -> None:
        """Every tap along the width of one input row."""
        code, f = self.code, self.f
        whole = channel = code.add(code.mul(group, f.depth), ic)
        lane: Int = 0
        if f.x.block:
            channel, lane = code.div(whole, f.x.block), code.rem(whole, f.x.block)
        row = code.offset(self.x, code.add(f.x.offset(code, n, channel, *position, 0), lane), f.element)
        with code.loop(0, f.kernel[2]) as kw:
            value = self._columns(row, ow, kw, mask)
            tap = self.tap_index((*taps, kw))
            for r, s in enumerate(sums):
                oc = code.add(first, r)
                if f.transposed:
                    plane = code.add(code.mul(whole, f.width), code.sub(oc, code.mul(group, f.width)))
                else:
                    plane = code.add(code.mul(oc, f.depth), ic)
                weight = code.load(code.offset(self.w, code.add(code.mul(plane, f.taps), tap), f.element), f.element)
                s.set(code.fma(value, code.splat(weight, self.lanes), s.get()))

    def _columns(self, row: Value, ow: Int, kw: Int, mask: Value | None) -> Value:
        """The input under tap `kw` for each lane; zero outside the input."""
        code, f, lanes = self.code, self.f, self.lanes
        s, d, begin, size = (code.dim(v[2]) for v in (f.strides, f.dilations, f.begins, f.size))
        step = code.dim(f.x.steps[4])

        def wide(number: Int) -> Value:
            return code.splat(code.value(number), lanes) if isinstance(number, Value) else code.constant(
                number, "i64", lanes)

        iota = (Value(vector("i64", lanes), "<" + ", ".join(f"i64 {i}" for i in range(lanes)) + ">") if lanes > 1
                else code.value(0))
        if f.transposed:
            t = code.add(iota, wide(code.sub(code.add(ow, begin), code.mul(kw, d))))
            where = code.div(t, wide(s))
            inside = code.binary("and", code.compare(">=", t, wide(0)), code.compare("<", where, wide(size)))
            if s != 1:
                inside = code.binary("and", inside, code.compare("==", code.rem(t, wide(s)), wide(0)))
        else:
            start = code.sub(code.add(code.mul(ow, s), code.mul(kw, d)), begin)
            where = code.add(code.mul(iota, wide(s)), wide(start))
            inside = code.binary("and", code.compare(">=", where, wide(0)), code.compare("<", where, wide(size)))
        if mask is not None:
            inside = code.binary("and", inside, mask)
        if not f.transposed and s == 1 and step == 1:
            pointer = code.offset(row, start, f.element)
            if lanes > 1:
                return code.load(pointer, f.element, lanes, inside)
        if lanes == 1:
            safe = code.select(inside, code.value(where), code.value(0))
            return code.select(inside, code.load(code.offset(row, code.mul(safe, step), f.element), f.element),
                               code.zero(f.element))
        return code.gather(row, code.value(where if step == 1 else code.mul(where, wide(step))), f.element, inside)


class _Blocked(_Loops):
    """Lanes along the channels of a block."""

    def emit(self) -> None:
        code, f = self.code, self.f
        b = f.out.block
        self.lanes = lanes = min(b, lanes_of(code.isa, f.element))
        self.epilogue = Epilogue(code, self.site, f, lanes)
        total_sum = Variable(code, vector(f.element, lanes))
        batch, depth, height = (code.dim(d) for d in (f.batch, f.out_size[0], f.out_size[1]))
        parts = f.filter_blocks * (b // lanes)
        total: Int = parts
        for n in (batch, depth, height):
            total = code.mul(total, n)
        with code.share(total) as task:
            n, part, od, oh = code.unflatten(task, (batch, parts, depth, height))
            block = code.div(part, b // lanes)
            lane = code.mul(code.rem(part, b // lanes), lanes)
            channel = code.add(code.mul(block, b), lane)
            reads = self._inputs(n, channel)
            weights = self._weights(block, lane, channel)
            with code.loop(0, code.dim(f.out_size[2])) as ow:
                total_sum.set(self.epilogue.bias(channel) or code.zero(f.element, lanes))
                with (self.tap(0, od) as (kd, d), self.tap(1, oh) as (kh, h), self.tap(2, ow) as (kw, w),
                      code.loop(0, f.depth) as ic):
                    tap = self.tap_index((kd, kh, kw))
                    total_sum.set(code.fma(reads(ic, f.x.offset(code, 0, 0, d, h, w)), weights(ic, tap),
                                           total_sum.get()))
                corner = self.epilogue.corner(n, block, od, oh, ow)
                value = self.epilogue.apply(total_sum.get(), corner, lane=lane)
                code.store(value, code.offset(corner.pointer(self.y, f.out), lane, f.element))

    def _channels(self, channel: Int) -> Value:
        """The output channel of each lane, the last one in the lanes past it."""
        code, lanes = self.code, self.lanes
        iota = Value(vector("i64", lanes), "<" + ", ".join(f"i64 {i}" for i in range(lanes)) + ">")
        found = code.value(code.add(iota, code.splat(code.value(channel), lanes)))
        last = code.constant(self.f.filters - 1, "i64", lanes)
        return code.select(code.compare("<", found, last), found, last)

    def _inputs(self, n: Int, channel: Int) -> Callable[[Int, Int], Value]:
        """(input channel of the group, spatial offset) -> the input each lane multiplies."""
        code, f, lanes = self.code, self.f, self.lanes
        base = f.x.offset(code, n, 0, 0, 0, 0)
        step = code.dim(f.x.steps[1])
        alone = f.groups == 1 or f.width % lanes == 0

        def wide(number: Int) -> Value:
            return code.splat(code.value(number), lanes)

        if alone:
            group = code.div(channel, f.width) if f.groups > 1 else 0
            first: Int = code.mul(group, f.depth)
        else:
            first = code.mul(code.div(self._channels(channel), wide(f.width)), wide(f.depth))

        def read(ic: Int, spatial: Int) -> Value:
            offset = code.add(base, spatial)
            if alone:
                c = code.add(first, ic)
                at = (code.add(code.mul(code.div(c, f.x.block), step), code.rem(c, f.x.block)) if f.x.block
                      else code.mul(c, step))
                pointer = code.offset(self.x, code.add(offset, at), f.element)
                return code.splat(code.load(pointer, f.element), lanes)
            c = code.add(first, wide(ic))
            if f.x.block:
                b = wide(f.x.block)
                at = code.add(code.mul(code.div(c, b), wide(step)), code.rem(c, b))
            else:
                at = code.mul(c, wide(step))
            return code.gather(code.offset(self.x, offset, f.element), code.value(at), f.element)

        return read

    def _weights(self, block: Int, lane: Int, channel: Int) -> Callable[[Int, Int], Value]:
        """(input channel of the group, tap) -> a vector of weights."""
        code, f, lanes = self.code, self.f, self.lanes
        if f.constant_weight:
            def packed(ic: Int, tap: Int) -> Value:
                row = code.add(code.mul(code.add(code.mul(block, f.depth), ic), f.taps), tap)
                pointer = code.offset(self.w, code.add(code.mul(row, f.out.block), lane), f.element)
                return code.load(pointer, f.element, lanes)
            return packed

        def wide(number: Int) -> Value:
            return code.splat(code.value(number), lanes)

        oc = self._channels(channel)
        if f.transposed:                # [C, M/g, taps]
            group, inside = code.div(oc, wide(f.width)), code.rem(oc, wide(f.width))
            first = code.add(code.mul(code.mul(group, wide(f.depth)), wide(f.width)), inside)
            step = f.width
        else:
            first, step = code.mul(oc, wide(f.depth)), 1
        scaled = code.value(code.mul(first, wide(f.taps)))

        def plain(ic: Int, tap: Int) -> Value:
            offset = code.add(code.mul(ic, step * f.taps), tap)
            return code.gather(code.offset(self.w, offset, f.element), scaled, f.element)

        return plain
