"""Convolutions of narrow elements over blocked channels: u8 by constant i8 in i32, bf16 by constant bf16 in f32.

The register tiles of `conv_direct`, over 32-bit words: a block of 16 (or 8) u8 channels is four (or two) words, one of
bf16 twice as many, each broadcast and multiplied into a register of output channels (see codegen/dot.py). Weights are
packed as there, each group of channels after a row of minus its sums: sums of integers start at that row times the
input's zero point, and what lies outside the input is that zero point, so that padding adds nothing. Sums of bf16 start
at the bias.
"""
from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace

import numpy as np

from ingot.graph import Dim
from ingot.graph.dim import symbols_of
from ingot.kernels.codegen import Code, Isa, isa_of
from ingot.kernels.codegen.dot import Dot, bf16_dot, integer_dot
from ingot.kernels.codegen.tile import fits
from ingot.kernels.tactic import Kernel, Params, Site, Tactic
from ingot.kernels.x86.conv_direct import Emitter
from ingot.kernels.x86.conv_form import Form, declines_epilogue, form, pack_channels
from ingot.kernels.x86.conv_grid import Grid, grid_of, points, vectors_of
from ingot.target import Target


class IntegerConvolution(Tactic):
    """u8 by i8, blocked input and output, any window of up to three axes, groups of whole blocks."""

    name = "x86.conv_integer"

    def declines(self, site: Site, target: Target) -> str | None:
        f = form(site, kind="ConvInteger")
        if isinstance(f, str):
            return f
        isa = isa_of(target)
        if integer_dot(target) is None:
            return f"no integer dot products for {target.isa}"
        if f.out.block != isa.block or f.x.block not in (isa.block, 4) or (f.x.block == 4 and f.groups > 1):
            return "not in this instruction set's blocked layout"
        if why := declines_operands(site, f):
            return why
        return declines_grid(f, isa) or declines_epilogue(site)

    def space(self, site: Site, target: Target) -> Iterator[Params]:
        dot, isa = integer_dot(target), isa_of(target)
        if dot is None:
            return
        for point in points(site, word_grid(site, dot), target):
            if dot.registers == 1 or fits(isa, point["rows"] * point["columns"], point["vectors"] + 1):
                yield point
            elif point["rows"] == 1:
                yield {**point, "columns": max(1, point["columns"] - 2)}

    def pack(self, site: Site, params: Params, target: Target,
             constants: Mapping[int, np.ndarray]) -> Mapping[int, np.ndarray]:
        dot = integer_dot(target)
        if dot is None:
            return {}
        grid = word_grid(site, dot)
        packed = pack_channels(site, grid.f, constants)
        packed[grid.f.weight_index] = pack_words(grid, constants[grid.f.weight_index], params["vectors"],
                                                 isa_of(target).lanes, dot)
        return packed

    def emit(self, site: Site, params: Params, target: Target) -> Kernel:
        dot = integer_dot(target)
        if dot is None:
            raise ValueError("no integer dot products")
        code = Code(isa_of(target), site.symbols)
        zero = (*site.step.inputs, None)[2]
        emitter = Emitter(code, site, word_grid(site, dot), params, dot=dot, zero=zero)
        emitter.emit("conv_words")
        return Kernel(self.name, code.module(), ("conv_words",), 0, emitter.scratch)


class ShortConvolution(Tactic):
    """bf16 by bf16, blocked input and output, any window of up to three axes, groups of whole blocks."""

    name = "x86.conv_bf16"

    def declines(self, site: Site, target: Target) -> str | None:
        f = form(site, kind="ShortConv")
        if isinstance(f, str):
            return f
        isa = isa_of(target)
        if bf16_dot(target) is None:
            return "the processor multiplies no bf16"
        if f.out.block != isa.block or f.x.block not in (isa.block, 4) or (f.x.block == 4 and f.groups > 1):
            return "not in this instruction set's blocked layout"
        if not f.constant_weight or (f.bias_index is not None and not f.constant_bias):
            return "the weight is not constant"
        if f.depth % 2:
            return f"{f.depth} channels are no whole words"
        return declines_grid(f, isa) or declines_epilogue(site)

    def space(self, site: Site, target: Target) -> Iterator[Params]:
        if (dot := bf16_dot(target)) is not None:
            yield from points(site, word_grid(site, dot, "ShortConv"), target)

    def pack(self, site: Site, params: Params, target: Target,
             constants: Mapping[int, np.ndarray]) -> Mapping[int, np.ndarray]:
        if (dot := bf16_dot(target)) is None:
            return {}
        grid = word_grid(site, dot, "ShortConv")
        packed = pack_channels(site, grid.f, constants)
        packed[grid.f.weight_index] = pack_words(grid, constants[grid.f.weight_index], params["vectors"],
                                                 isa_of(target).lanes, dot)
        return packed

    def emit(self, site: Site, params: Params, target: Target) -> Kernel:
        if (dot := bf16_dot(target)) is None:
            raise ValueError("no dot products of bf16")
        code = Code(isa_of(target), site.symbols)
        emitter = Emitter(code, site, word_grid(site, dot, "ShortConv"), params, dot=dot)
        emitter.emit("conv_bf16")
        return Kernel(self.name, code.module(), ("conv_bf16",), 0, emitter.scratch)


def declines_grid(f: Form, isa: Isa) -> str | None:
    """Why the window or the groups of a convolution of words are not taken, or None."""
    if f.groups > 1 and (f.width % isa.block or f.depth % isa.block):
        return "groups that are not whole channel blocks"
    if any(isinstance(p, int) and p < 0 for p in (*f.begins, *f.ends)):
        return "negative padding"
    if f.out.steps[4] != f.out.block or f.x.steps[4] != f.x.block:
        return "strided pixels"
    if not f.static and (f.kernel[0] > 1 or symbols_of(f.begins[1]) | symbols_of(f.begins[2])):
        return "symbolic spatial sizes with symbolic padding or three axes"
    return None


def declines_operands(site: Site, f: Form) -> str | None:
    """Why the weight and the zero points of a ConvInteger are not taken, or None."""
    if not f.constant_weight:
        return "the weight is not constant"
    x_zero, w_zero = (*site.step.inputs, None, None)[2:4]
    if w_zero is not None:
        return "the weight has a zero point"
    if x_zero is not None and (x_zero < 0 or site.inputs[x_zero].type.size != 1):
        return "a zero point per channel"
    return None


def word_grid(site: Site, dot: Dot, kind: str = "ConvInteger") -> Grid:
    """The grid of a site, its input seen as 32-bit words of `dot.ratio` channels."""
    grid = grid_of(site, kind=kind)
    f, ratio = grid.f, dot.ratio
    blocks = -(-f.depth // f.x.block)

    def words(step: Dim) -> Dim:
        return step // ratio

    a, b, c, d, e = f.x.steps
    place = replace(f.x, steps=(words(a), words(b), words(c), words(d), words(e)))
    # integers times no weight are nothing, whatever lies past the last channel; a NaN there is something
    each = blocks * f.x.block // ratio if kind == "ConvInteger" else -(-f.depth // ratio)
    channels = each * f.groups
    return Grid(replace(f, x=place, channels=channels), f.x.block // ratio, grid.padded, grid.flat)


def pack_words(grid: Grid, weight: np.ndarray, vectors: int, lanes: int, dot: Dot) -> np.ndarray:
    """Per group of channels: minus the sums, then [input block][tap][word][vector][register][lane], flat i32."""
    f, ratio = grid.f, dot.ratio
    count = vectors_of(f, lanes)
    deep = grid.blocks * grid.block * ratio                     # input channels per group, whole blocks
    whole = np.zeros((f.groups, count * lanes, deep, f.taps), weight.dtype)
    inner = weight.shape[1]
    whole[:, :f.width, :inner] = weight.reshape(f.groups, f.width, inner, f.taps)
    split = whole.reshape(f.groups, count, lanes, grid.blocks, grid.block * ratio, f.taps)
    parts = []
    for g in range(f.groups):
        for start in range(0, count, vectors):
            part = split[g, start:start + vectors]
            n = len(part)
            flat = part.reshape(n * lanes, grid.blocks, grid.block * ratio, f.taps).transpose(1, 3, 2, 0)
            words = dot.words(np.ascontiguousarray(flat).reshape(-1, n * lanes))      # [words, registers, channels]
            words = words.reshape(-1, dot.registers, n, lanes).transpose(0, 2, 1, 3)
            sums = -part.astype(np.int64).sum((2, 3, 4)) if weight.dtype == np.int8 else np.zeros((n, lanes))
            parts += [sums.astype(np.int32).reshape(-1), np.ascontiguousarray(words).reshape(-1)]
    return np.concatenate(parts)


__all__ = ["IntegerConvolution", "ShortConvolution", "declines_operands", "pack_words", "word_grid"]
