"""Sums of short dot products: what multiplies narrow elements four or two at a time into 32-bit sums.

The left operand comes as 32-bit words of adjacent depth elements (four u8, two bf16), broadcast to all lanes; the right
one as registers whose lane n holds the same depth elements of column n. Which instruction does it is data, so that one
product and one convolution serve every instruction set and element type:

    vnni    u8 x i8 -> i32   one vpdpbusd, which does not saturate
    pairs   u8 x i8 -> i32   two vpmaddwd on bytes widened to 16 bits: vpmaddubsw would saturate at 16 bits
    bf16    bf16 x bf16 -> f32   one vdpbf16ps
"""
from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from ingot.kernels.codegen.code import Code, Value, vector
from ingot.target import Target

Combine = Callable[[Code, Value, Value, Value], Value]


@dataclass(frozen=True)
class Dot:
    """One way to add the dot products of short pieces of depth.

    `ratio` depth elements lie in a 32-bit word; `registers` is how many registers of the right operand belong to one
    word and one register of sums. `combine(code, left, right, total)` gives the new sums.
    """

    name: str
    element: str            # the LLVM type of a sum
    ratio: int
    registers: int
    combine: Combine

    def words(self, matrix: np.ndarray) -> np.ndarray:
        """[depth, columns] of weights as [words, registers, columns] of 32 bits; depth past the end is zero."""
        depth, columns = matrix.shape
        count = -(-depth // self.ratio)
        padded = np.zeros((count * self.ratio, columns), matrix.dtype)
        padded[:depth] = matrix
        parts = padded.reshape(count, self.ratio, columns).transpose(0, 2, 1)       # [words, columns, elements]
        if self.registers == 1:
            return np.ascontiguousarray(parts).view(np.int32).reshape(count, 1, columns)
        wide = parts.astype(np.int16)
        halves = [np.ascontiguousarray(wide[:, :, k::2]).view(np.int32).reshape(count, columns) for k in (0, 1)]
        return np.stack(halves, axis=1)


def _vnni(code: Code, left: Value, right: Value, total: Value) -> Value:
    bits = 32 * total.lanes
    return _call(code, f"llvm.x86.avx512.vpdpbusd.{bits}", "i8", 4, total, left, right)


def _bf16(code: Code, left: Value, right: Value, total: Value) -> Value:
    bits = 32 * total.lanes
    return _call(code, f"llvm.x86.avx512bf16.dpbf16ps.{bits}", "bfloat", 2, total, left, right)


def _call(code: Code, name: str, narrow: str, ratio: int, total: Value, left: Value, right: Value) -> Value:
    type_ = vector(narrow, total.lanes * ratio)
    a, b = (code.emit(type_, f"bitcast {v} to {type_}") for v in (left, right))
    code.declare(name, total.type, total.type, type_, type_)
    return code.emit(total.type, f"call {total.type} @{name}({total}, {a}, {b})")


def _pairs(code: Code, left: Value, right: Value, total: Value) -> Value:
    """Even and odd bytes of the word, widened, each against its own register of 16-bit weights."""
    lanes = total.lanes
    type_ = vector("i16", 2 * lanes)
    wide = code.emit(type_, f"bitcast {left} to {type_}")
    even = code.binary("and", wide, code.constant(0xFF, "i16", 2 * lanes))
    odd = code.binary("lshr", wide, code.constant(8, "i16", 2 * lanes))
    name = "llvm.x86.avx512.pmaddw.d.512" if lanes == 16 else "llvm.x86.avx2.pmadd.wd"
    code.declare(name, total.type, type_, type_)
    for k, part in enumerate((even, odd)):
        weights = code.shuffle(right, None, range(k * lanes, (k + 1) * lanes))
        weights = code.emit(type_, f"bitcast {weights} to {type_}")
        total = code.binary("add", total, code.emit(total.type, f"call {total.type} @{name}({part}, {weights})"))
    return total


VNNI = Dot("vnni", "i32", 4, 1, _vnni)
PAIRS = Dot("pairs", "i32", 4, 2, _pairs)
BF16_PAIRS = Dot("bf16", "float", 2, 1, _bf16)


def integer_dot(target: Target) -> Dot | None:
    """How a target multiplies u8 by i8; None where there is no way yet."""
    if target.kind != "x86":
        return None
    return VNNI if target.isa == "avx512" and "avx512vnni" in target.features else PAIRS


def bf16_dot(target: Target) -> Dot | None:
    """How a target multiplies bf16; None where it has no instruction for it."""
    return BF16_PAIRS if target.isa == "avx512" and "avx512bf16" in target.features else None


__all__ = ["BF16_PAIRS", "PAIRS", "VNNI", "Dot", "bf16_dot", "integer_dot"]
