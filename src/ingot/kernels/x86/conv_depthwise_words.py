"""Depthwise convolutions of u8 by constant i8 over blocked channels, summed exactly in 32 bits.

A register holds 16 (or 8) channels of one output pixel. Each tap widens that many bytes to 32 bits and adds their
products by the instruction that sums dot products, three of whose four bytes are zero. The rows a strip of output rows
needs are first copied into the thread's scratch, the input's zero point around them, so that no tap asks where it is.
"""
from __future__ import annotations

from collections.abc import Iterator, Mapping

import numpy as np

from ingot.graph import evaluate
from ingot.kernels.codegen import Code, Int, Value, isa_of, vector
from ingot.kernels.codegen.code import Variable
from ingot.kernels.codegen.dot import Dot, integer_dot
from ingot.kernels.tactic import Kernel, Params, Site, Tactic
from ingot.kernels.x86.conv_form import Corner, Epilogue, Form, declines_epilogue, form, pack_channels
from ingot.kernels.x86.conv_words import declines_operands
from ingot.target import Target

_SCRATCH = 96 << 10         # bytes of input rows a strip may take


class IntegerDepthwise(Tactic):
    """One u8 channel to one output channel; two spatial axes of known size."""

    name = "x86.conv_depthwise_integer"

    def declines(self, site: Site, target: Target) -> str | None:
        f = form(site, kind="ConvInteger")
        if isinstance(f, str):
            return f
        isa = isa_of(target)
        if integer_dot(target) is None:
            return f"no integer dot products for {target.isa}"
        if f.groups != f.channels or f.filters != f.channels or f.groups == 1:
            return "not depthwise"
        if f.out.block != isa.block or f.x.block != isa.block:
            return "not in this instruction set's blocked layout"
        if f.kernel[0] > 1 or f.size[0] != 1 or not f.static or any(int(str(p)) < 0 for p in (*f.begins, *f.ends)):
            return "three spatial axes, sizes that are not known, or negative padding"
        if f.out.steps[4] != f.out.block or f.x.steps[4] != f.x.block:
            return "strided pixels"
        return declines_operands(site, f) or declines_epilogue(site)

    def space(self, site: Site, target: Target) -> Iterator[Params]:
        f = _form(site)
        width, height = int(str(f.out_size[2])), int(str(f.out_size[1]))
        batch = evaluate(f.batch, {s.name: s.opt for s in site.symbols})
        most = 14 if isa_of(target).registers > 16 else 6
        runs = dict.fromkeys(-(-width // -(-width // n)) for n in (most, 8, 4))
        tasks = batch * f.filter_blocks
        strips = dict.fromkeys(s for s in (height, -(-height // 2), 8, 4) if s <= height and _rows(f, s) * _row(f)
                               <= _SCRATCH and (tasks >= target.threads or s < height or height < 4))
        for strip in [*strips][:2] or [1]:
            for run in [*runs][:2]:
                yield {"columns": run, "strip": strip}

    def pack(self, site: Site, params: Params, target: Target,
             constants: Mapping[int, np.ndarray]) -> Mapping[int, np.ndarray]:
        """Per block of channels: minus the sums of the taps, then [tap][register][lane], flat i32."""
        f, dot = _form(site), integer_dot(target)
        if dot is None:
            return {}
        packed = pack_channels(site, f, constants)
        b = f.out.block
        whole = np.zeros((f.filter_blocks * b, f.taps), np.int8)
        whole[:f.filters] = constants[f.weight_index].reshape(f.filters, f.taps)
        sums = -whole.sum(1, dtype=np.int32).reshape(f.filter_blocks, 1, b)
        taps = [dot.words(whole[None, :, t])[0] for t in range(f.taps)]                 # each [registers, channels]
        words = np.concatenate(taps).reshape(-1, f.filter_blocks, b).transpose(1, 0, 2)
        packed[f.weight_index] = np.ascontiguousarray(np.concatenate([sums, words], axis=1)).reshape(-1)
        return packed

    def emit(self, site: Site, params: Params, target: Target) -> Kernel:
        dot = integer_dot(target)
        if dot is None:
            raise ValueError("no integer dot products")
        return _Emitter(site, _form(site), params, target, dot).kernel(self.name)


def _form(site: Site) -> Form:
    found = form(site, kind="ConvInteger")
    if isinstance(found, str):
        raise ValueError(found)
    return found


def _rows(f: Form, strip: int) -> int:
    """Input rows that so many output rows need."""
    return (strip - 1) * f.strides[1] + (f.kernel[1] - 1) * f.dilations[1] + 1


def _row(f: Form) -> int:
    """Bytes of one padded input row."""
    return ((int(str(f.out_size[2])) - 1) * f.strides[2] + (f.kernel[2] - 1) * f.dilations[2] + 1) * f.x.block


class _Emitter:
    """One kernel function under construction."""

    def __init__(self, site: Site, f: Form, params: Params, target: Target, dot: Dot) -> None:
        self.site, self.f, self.dot = site, f, dot
        self.columns, self.strip = params["columns"], params["strip"]
        self.code = Code(isa_of(target), site.symbols)
        self.lanes = self.code.isa.lanes
        self.row, self.rows = _row(f), _rows(f, self.strip)
        self.scratch = (self.row * self.rows + 63) // 64 * 64

    def kernel(self, name: str) -> Kernel:
        with self.code.function("conv_depthwise_words"):
            self._function()
        return Kernel(name, self.code.module(), ("conv_depthwise_words",), 0, self.scratch)

    def _function(self) -> None:
        code, f = self.code, self.f
        self.y = len(self.site.inputs)
        self.epilogue = Epilogue(code, self.site, f, self.lanes)
        self.area = code.offset(code.buffer(self.y + 2), code.mul(code.thread, self.scratch), "i8")
        self.zero = self._zero()
        height = int(str(f.out_size[1]))
        strips = -(-height // self.strip)
        sums = [Variable(code, vector("i32", self.lanes)) for _ in range(self.columns)]
        total = code.mul(code.dim(f.batch), f.filter_blocks * strips)
        with code.share(total) as task:
            n, block, strip = code.unflatten(task, [code.dim(f.batch), f.filter_blocks, strips])
            first = code.mul(strip, self.strip)
            count = code.min(self.strip, code.sub(height, first)) if height % self.strip else self.strip
            self._copy(n, block, first, count)
            weights = code.offset(code.buffer(f.weight_index),
                                  code.mul(block, (1 + f.taps * self.dot.registers) * self.lanes), "i32")
            with code.loop(0, count) as r:
                self._pixels(n, block, first, r, weights, sums)

    def _zero(self) -> Value:
        """The zero point in every 32-bit lane."""
        code, operand = self.code, (*self.site.step.inputs, None)[2]
        if operand is None:
            return code.zero("i32", self.lanes)
        return code.splat(code.convert("zext", code.load(code.buffer(operand), "i8"), "i32"), self.lanes)

    def _copy(self, n: Int, block: Int, first: Int, count: Int) -> None:
        """The rows a strip needs, one block of channels, the zero point where they lie outside."""
        code, f, b = self.code, self.f, self.f.x.block
        width, height = int(str(f.size[2])), int(str(f.size[1]))
        left = min(int(str(f.begins[2])) * b, self.row)
        middle = max(0, min(width * b, self.row - left))
        nothing = code.convert("trunc", self.zero, "i8")
        needed = code.add(code.mul(code.sub(count, 1), f.strides[1]), (f.kernel[1] - 1) * f.dilations[1] + 1)
        with code.loop(0, needed) as r:
            target = code.offset(self.area, code.mul(r, self.row), "i8")
            h = code.value(code.sub(code.add(code.mul(first, f.strides[1]), r), int(str(f.begins[1]))))
            inside = code.binary("and", code.compare(">=", h, 0), code.compare("<", h, height))
            taken = code.select(inside, code.value(middle), code.value(0))
            source = code.offset(code.buffer(f.x_index), f.x.offset(code, n, block, 0, h, 0), "i8")
            with code.loop(0, left, b) as i:
                code.store(nothing, code.offset(target, i, "i8"), align=1)
            start = code.offset(target, left, "i8")
            with code.loop(0, taken, b) as i:
                given = code.load(code.offset(source, i, "i8"), "i8", b, align=1)
                code.store(given, code.offset(start, i, "i8"), align=1)
            with code.loop(taken, self.row - left, b) as i:
                code.store(nothing, code.offset(start, i, "i8"), align=1)

    def _pixels(self, n: Int, block: Int, first: Int, r: Int, weights: Value, sums: list[Variable]) -> None:
        """One row of output pixels, in runs."""
        code, f = self.code, self.f
        width = int(str(f.out_size[2]))
        line = code.offset(self.area, code.mul(code.mul(r, f.strides[1]), self.row), "i8")
        row = code.add(first, r)
        whole = width // self.columns * self.columns
        with code.loop(0, whole, self.columns) as column:
            self._run(line, weights, self.epilogue.corner(n, block, 0, row, column), column, sums)
        if width > whole:
            self._run(line, weights, self.epilogue.corner(n, block, 0, row, whole), whole, sums[:width - whole])

    def _run(self, line: Value, weights: Value, corner: Corner, column: Int, sums: list[Variable]) -> None:
        code, f, lanes, registers = self.code, self.f, self.lanes, self.dot.registers
        begin = code.binary("mul", code.load(weights, "i32", lanes), self.zero)
        for held in sums:
            held.set(begin)
        start = code.offset(line, code.mul(column, f.strides[2] * f.x.block), "i8")
        for kh in range(f.kernel[1]):
            for kw in range(f.kernel[2]):
                tap = kh * f.kernel[2] + kw
                w = code.load(code.offset(weights, (1 + tap * registers) * lanes, "i32"), "i32", lanes * registers)
                at = code.offset(start, kh * f.dilations[1] * self.row + kw * f.dilations[2] * f.x.block, "i8")
                for t, held in enumerate(sums):
                    place = code.offset(at, t * f.strides[2] * f.x.block, "i8")
                    x = code.convert("zext", code.load(place, "i8", lanes, align=1), "i32")
                    held.set(self.dot.combine(code, x, w, held.get()))
        for t, held in enumerate(sums):
            value = self.epilogue.apply(held.get(), corner, (0, 0, t))
            code.store(value, corner.pointer(self.y, f.out, (0, 0, t)))


__all__ = ["IntegerDepthwise"]
