"""Products of bf16 on AMX: tiles of 16 rows x 64 bytes, multiplied by an instruction of their own into f32.

The panels of the right operand are those of `matmul_words`: 16 words of depth of one vector are a tile as it is. A
register tile is two by two tiles of sums, two of the left operand and two of the right one: all eight there are.
No machine with AMX was at hand: the code is compiled and looked at by the tests, and run there on tiles that are
played by numpy; its speed is not known. Reference: Intel 64 and IA-32 Architectures Software Developer's Manual,
volume 1, chapter 18.
"""
from __future__ import annotations

import struct
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np

from ingot.kernels.codegen import Code, Int, Value, isa_of
from ingot.kernels.codegen.dot import bf16_dot
from ingot.kernels.tactic import Kernel, Params, Site, Tactic
from ingot.kernels.x86.matmul import Task, at_profile
from ingot.kernels.x86.matmul_form import form_of
from ingot.kernels.x86.matmul_words import ShortMatMul, WordEmission, word_panels
from ingot.target import Target

FEATURES = frozenset({"amx-tile", "amx-bf16"})
ROWS = 16           # of a tile
WORDS = 16          # 32-bit words in a row of a tile
_L2 = 1 << 20       # bytes of the left operand that a task may sweep: half of the caches that come with AMX


class AmxMatMul(Tactic):
    """bf16 by constant bf16, summed in f32, on tile registers."""

    name = "x86.matmul_amx"

    def declines(self, site: Site, target: Target) -> str | None:
        if target.isa != "avx512" or not target.features >= FEATURES:
            return "the processor has no tiles of bf16"
        if why := ShortMatMul().declines(site, target):
            return why
        form = form_of(site, ("ShortMatMul",))
        if isinstance(form, str):
            return form
        if not isinstance(form.depth, int) or form.depth % (2 * WORDS):
            return "the depth is not a multiple of 32"
        return None

    def space(self, site: Site, target: Target) -> Iterator[Params]:
        form = form_of(site, ("ShortMatMul",))
        if isinstance(form, str):
            return
        rows, depth = at_profile(form.rows, site, "opt"), at_profile(form.depth, site, "opt")
        for height in (2 * ROWS, ROWS):
            whole = -(-rows // height)
            block = max(1, min(whole, _L2 // (depth * 2 * height)))
            yield from ({"rows": height, "vectors": 2, "block": block, "across": across} for across in (1, 0))

    def pack(self, site: Site, params: Params, target: Target,
             constants: Mapping[int, np.ndarray]) -> Mapping[int, np.ndarray]:
        form, dot = form_of(site, ("ShortMatMul",)), bf16_dot(target)
        if isinstance(form, str) or dot is None or form.right not in constants:
            return {}
        return {form.right: word_panels(constants[form.right], params["vectors"], isa_of(target).lanes, dot)}

    def emit(self, site: Site, params: Params, target: Target) -> Kernel:
        form, dot = form_of(site, ("ShortMatMul",)), bf16_dot(target)
        if isinstance(form, str) or dot is None:
            raise ValueError(str(form))
        return _Emission(site, form, params, isa_of(target), dot).kernel()


@dataclass
class _Emission(WordEmission):
    """The emission of one kernel: register tiles of tiles, all else as for words."""

    def kernel(self) -> Kernel:
        with self.code.function("matmul_amx"):
            self._main()
            _call(self.code, "tilerelease")
        return Kernel(AmxMatMul.name, self.code.module(), ("matmul_amx",))

    def _tile(self, task: Task, height: int, first: Int, skip: Int, slot: Int, start: Int, count: Int,
              last: Value | None) -> None:
        """Sums of `height` rows by two vectors: configure, clear, multiply along the depth, store, finish."""
        code, vectors = self.code, range(self.vectors)
        pieces = [min(ROWS, height - at) for at in range(0, height, ROWS)]
        _call(code, "ldtilecfg", str(code.table(configuration(pieces), "i8")))
        row = code.dim(self.form.left_row)
        left = code.offset(task.left, code.mul(first, row), self.left_element)
        right = code.offset(task.right, self.width, "i32")
        for i in range(len(pieces)):
            for v in vectors:
                _call(code, "tilezero", f"i8 {_sum(i, v)}")
        pitch, panel = f"i64 {code.value(code.mul(row, 2)).text}", f"i64 {self.turn * 4}"
        with code.loop(0, self.whole, WORDS) as k:
            for i in range(len(pieces)):
                at = code.add(code.mul(row, i * ROWS), code.mul(k, 2))
                _call(code, "tileloadd64", f"i8 {_left(i)}", str(code.offset(left, at, self.left_element)), pitch)
            for v in vectors:
                at = code.add(code.mul(k, self.turn), v * self.lanes)
                _call(code, "tileloadd64", f"i8 {_right(v)}", str(code.offset(right, at, "i32")), panel)
            for i in range(len(pieces)):
                for v in vectors:
                    _call(code, "tdpbf16ps", f"i8 {_sum(i, v)}", f"i8 {_left(i)}", f"i8 {_right(v)}")
        for i in range(len(pieces)):
            for v in vectors:
                at = code.offset(task.area, i * ROWS * self.width + v * self.lanes, self.element)
                _call(code, "tilestored64", f"i8 {_sum(i, v)}", str(at), f"i64 {self.width * 4}")
        self._finish(task, task.area, height, first, skip)


def _sum(piece: int, vector: int) -> int:
    return 2 * piece + vector


def _left(piece: int) -> int:
    return 4 + piece


def _right(vector: int) -> int:
    return 6 + vector


def configuration(pieces: list[int]) -> list[int]:
    """The 64 bytes that say how large each tile is; `pieces` are the rows of the left operand's one or two tiles."""
    rows = [0] * 16
    for i, count in enumerate(pieces):
        rows[_left(i)] = rows[_sum(i, 0)] = rows[_sum(i, 1)] = count
    rows[_right(0)] = rows[_right(1)] = WORDS
    columns = [WORDS * 4 if r else 0 for r in rows]
    return list(struct.pack("<BB14x16H16B", 1, 0, *columns, *rows))


def _call(code: Code, name: str, *arguments: str) -> None:
    full = code.declare(f"llvm.x86.{name}", "void", *(a.split(" ")[0] for a in arguments))
    code.line(f"call void @{full}({', '.join(arguments)})")


__all__ = ["FEATURES", "AmxMatMul", "configuration"]
