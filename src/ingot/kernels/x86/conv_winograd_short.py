"""3x3 convolutions of bf16 by minimal filtering: F(2 x 2, 3 x 3) alone.

As `conv_winograd`, with V and U kept as 32-bit words of two channels in bf16 and summed in f32: 2.25 times fewer
products, two of them an instruction, and half the bytes of weights. The transforms are done in f32. What is rounded to
bf16 are the transformed operands: over 256 channels the error of F(2) is 1.3-1.6 times that of rounding the operands
themselves, that of F(4) 4.9 times (root of the mean square), which is why there is no F(4) here.
"""
from __future__ import annotations

from collections.abc import Iterator, Mapping

import numpy as np

from ingot.graph import BF16
from ingot.kernels.codegen import Value, isa_of, vector
from ingot.kernels.codegen.dot import BF16_PAIRS, bf16_dot
from ingot.kernels.codegen.expression import widened
from ingot.kernels.tactic import Kernel, Params, Site, Tactic
from ingot.kernels.x86.conv_form import Form, declines_epilogue, form, pack_channels
from ingot.kernels.x86.conv_grid import vectors_of
from ingot.kernels.x86.conv_winograd import WinogradEmitter, declines_window, transformed, winograd_points
from ingot.kernels.x86.conv_words import declines_grid
from ingot.target import Target

_SIZES = (2,)


class ShortWinograd(Tactic):
    """bf16 by constant bf16, blocked input and output, 3x3, stride 1, one group."""

    name = "x86.conv_winograd_bf16"
    exact = False

    def declines(self, site: Site, target: Target) -> str | None:
        f = form(site, kind="ShortConv")
        if isinstance(f, str):
            return f
        isa = isa_of(target)
        if bf16_dot(target) is None:
            return "the processor multiplies no bf16"
        if f.out.block != isa.block or f.x.block != isa.block:
            return "not in this instruction set's blocked layout"
        if not f.constant_weight or (f.bias_index is not None and not f.constant_bias):
            return "the weight is not constant"
        if f.depth % 2:
            return f"{f.depth} channels are no whole words"
        return declines_window(f) or declines_grid(f, isa) or declines_epilogue(site)

    def space(self, site: Site, target: Target) -> Iterator[Params]:
        yield from winograd_points(_form(site), isa_of(target), target.threads, {s.name: s.opt for s in site.symbols},
                                   _SIZES, BF16_PAIRS.ratio)

    def pack(self, site: Site, params: Params, target: Target,
             constants: Mapping[int, np.ndarray]) -> Mapping[int, np.ndarray]:
        f, lanes = _form(site), isa_of(target).lanes
        packed = pack_channels(site, f, constants)
        packed[f.weight_index] = pack_words(f, constants[f.weight_index], params["size"], params["vectors"] * lanes,
                                            params["span"], vectors_of(f, lanes) * lanes)
        return packed

    def emit(self, site: Site, params: Params, target: Target) -> Kernel:
        return _ShortEmitter(site, _form(site), params, isa_of(target)).kernel(self.name)


def _form(site: Site) -> Form:
    f = form(site, kind="ShortConv")
    if isinstance(f, str):
        raise ValueError(f)
    return f


def pack_words(f: Form, weight: np.ndarray, size: int, width: int, span: int, whole: int) -> np.ndarray:
    """G g G^T in f64, rounded once: [filters / (span width)][n n][span][words][width], flat i32."""
    made = transformed(f, weight.astype(np.float32), size, whole).astype(np.float32).astype(BF16.numpy)
    split = made.reshape(len(made), whole // (span * width), span, width, f.channels // 2, 2)
    return np.ascontiguousarray(split.transpose(1, 0, 2, 4, 3, 5)).view(np.int32).reshape(-1)


class _ShortEmitter(WinogradEmitter):
    """The same with bf16 in memory."""

    element, word, ratio = "i16", "i32", BF16_PAIRS.ratio
    combine = staticmethod(BF16_PAIRS.combine)

    def loaded(self, pointer: Value) -> Value:
        return widened(self.code, self.code.load(pointer, "i16", self.lanes))

    def narrowed(self, value: Value) -> Value:
        code, lanes = self.code, value.lanes
        name, type_ = f"llvm.x86.avx512bf16.cvtneps2bf16.{32 * lanes}", vector("bfloat", lanes)
        code.declare(name, type_, value.type)
        made = code.emit(type_, f"call {type_} @{name}({value})")
        return code.emit(vector("i16", lanes), f"bitcast {made} to {vector('i16', lanes)}")


__all__ = ["ShortWinograd", "pack_words"]
