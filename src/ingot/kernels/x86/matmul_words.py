"""Products of narrow elements with a constant right operand: u8 x i8 into i32, bf16 x bf16 into f32.

Register tiles as in `matmul`, over 32-bit words of adjacent depth elements (see codegen/dot.py). The right operand is
packed at build into panels: first a row of minus the sums of its columns, then [word][vector][register][lane]. The left
operand's zero point needs no pass of its own: sums start at that first row times the zero point, which is exact.
"""
from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np

from ingot.graph import BF16, I8, U8, product
from ingot.kernels.codegen import Code, Int, Isa, Value, isa_of
from ingot.kernels.codegen.dot import Dot, bf16_dot, integer_dot
from ingot.kernels.codegen.tile import Tile, fits
from ingot.kernels.tactic import Kernel, Params, Site, Tactic
from ingot.kernels.x86.matmul import Emission, Task, at_profile, tiles_for
from ingot.kernels.x86.matmul_form import Form, declines_epilogue, form_of
from ingot.target import Target

_L2 = 320 << 10         # bytes of the left operand that a task may sweep: it stays in the second-level cache
_OPS = ("MatMulInteger",)


class IntegerMatMul(Tactic):
    """u8 by constant i8, summed exactly in 32 bits; a zero point on the left may be known at run time only."""

    name = "x86.matmul_integer"

    def declines(self, site: Site, target: Target) -> str | None:
        form = form_of(site, _OPS)
        if isinstance(form, str):
            return form
        if integer_dot(target) is None:
            return f"no integer dot products for {target.isa}"
        left, right = site.inputs[form.left].type, site.inputs[form.right]
        if left.dtype != U8 or right.type.dtype != I8:
            return f"it takes u8 by i8, not {left.dtype} by {right.type.dtype}"
        if not right.constant or right.type.rank != 2 or right.strides is not None:
            return "the right operand is no constant matrix"
        zeros = (*site.step.inputs, None, None)[2:4]
        if zeros[1] is not None:
            return "the right operand has a zero point"
        if zeros[0] is not None and (zeros[0] < 0 or site.inputs[zeros[0]].type.size != 1):
            return "a zero point per row"
        if form.left_depth != 1 or form.no_row or form.no_column or not isinstance(form.depth, int):
            return "the depth is not adjacent on the left, or not known"
        return declines_epilogue(site, form, packs=True)

    def space(self, site: Site, target: Target) -> Iterator[Params]:
        form, dot = form_of(site, _OPS), integer_dot(target)
        if not isinstance(form, str) and dot:
            yield from word_points(site, form, dot, isa_of(target), target.threads)

    def pack(self, site: Site, params: Params, target: Target,
             constants: Mapping[int, np.ndarray]) -> Mapping[int, np.ndarray]:
        form, dot = form_of(site, _OPS), integer_dot(target)
        if isinstance(form, str) or dot is None or form.right not in constants:
            return {}
        return {form.right: word_panels(constants[form.right], params["vectors"], isa_of(target).lanes, dot)}

    def emit(self, site: Site, params: Params, target: Target) -> Kernel:
        form, dot = form_of(site, _OPS), integer_dot(target)
        if isinstance(form, str) or dot is None:
            raise ValueError(str(form))
        zero = (*site.step.inputs, None)[2]
        return WordEmission(site, form, params, isa_of(target), dot, zero).kernel()


class ShortMatMul(Tactic):
    """bf16 by constant bf16, summed in f32."""

    name = "x86.matmul_bf16"

    def declines(self, site: Site, target: Target) -> str | None:
        form = form_of(site, ("ShortMatMul",))
        if isinstance(form, str):
            return form
        if bf16_dot(target) is None:
            return "the processor multiplies no bf16"
        left, right = site.inputs[form.left].type, site.inputs[form.right]
        if left.dtype != BF16 or right.type.dtype != BF16:
            return f"it takes bf16, not {left.dtype} by {right.type.dtype}"
        if not right.constant or right.type.rank != 2 or right.strides is not None:
            return "the right operand is no constant matrix"
        if form.left_depth != 1 or form.no_row or form.no_column or not isinstance(form.depth, int):
            return "the depth is not adjacent on the left, or not known"
        return declines_epilogue(site, form, packs=True)

    def space(self, site: Site, target: Target) -> Iterator[Params]:
        form, dot = form_of(site, ("ShortMatMul",)), bf16_dot(target)
        if not isinstance(form, str) and dot:
            yield from word_points(site, form, dot, isa_of(target), target.threads)

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
        return WordEmission(site, form, params, isa_of(target), dot).kernel()


def word_panels(matrix: np.ndarray, vectors: int, lanes: int, dot: Dot) -> np.ndarray:
    """[depth, columns] as flat i32: per panel minus the column sums, then [word][vector][register][lane]."""
    width = vectors * lanes
    count = -(-matrix.shape[1] // width)
    whole = np.zeros((matrix.shape[0], count * width), matrix.dtype)
    whole[:, :matrix.shape[1]] = matrix
    words = dot.words(whole)                                            # [words, registers, columns]
    n, registers, _ = words.shape
    split = words.reshape(n, registers, count, vectors, lanes).transpose(2, 0, 3, 1, 4).reshape(count, -1)
    sums = -whole.astype(np.int64).sum(0) if matrix.dtype == np.int8 else np.zeros(count * width)
    head = sums.astype(np.int32).reshape(count, width)
    return np.ascontiguousarray(np.concatenate([head, split], axis=1)).reshape(-1)


def word_points(site: Site, form: Form, dot: Dot, isa: Isa, threads: int) -> Iterator[Params]:
    """Some half a dozen points, the best guess first: tiles, and tasks along rows or along panels."""
    nbytes = 4 // dot.ratio
    rows, columns = at_profile(form.rows, site, "opt"), at_profile(form.columns, site, "opt")
    depth, batch = at_profile(form.depth, site, "opt"), at_profile(product(form.batch), site, "opt")
    rows = max(rows, min(8, at_profile(form.rows, site, "max")))
    tiles = tiles_for(isa, rows, columns, isa.lanes, batch, threads, at_profile(form.left_row, site, "opt") * nbytes)
    if dot.registers > 1:
        tiles = [t for t in tiles if fits(isa, t[0], t[1] + 1)] or [(min(rows, 4), 2)]
    seen: list[Params] = []
    for place, (height, vectors) in enumerate(tiles[:4]):
        whole, panels = -(-rows // height), -(-columns // (vectors * isa.lanes))
        block = max(1, _L2 // (depth * nbytes * height))
        if batch * panels < 2 * threads:
            block = min(block, max(1, whole // (2 * threads)))
        for across in ((1, 0) if place < 2 else (1,)):
            point = {"rows": height, "vectors": vectors, "block": min(block, whole), "across": across}
            seen += [point] if point not in seen else []
    yield from seen


@dataclass
class WordEmission(Emission):
    """The emission of one kernel; `zero` is the operand that holds the left operand's zero point, if there is one."""

    dot: Dot
    zero: int | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        depth = self.form.depth
        if not isinstance(depth, int):
            raise ValueError("the depth is symbolic")
        self.left_element = "i8" if self.dot.ratio == 4 else "i16"
        self.element, self.bytes, self.align = self.dot.element, 4, self.lanes * 4
        self.cut, self.packs, self.constant = 0, False, True
        self.whole, self.rest = divmod(depth, self.dot.ratio)
        self.turn = self.width * self.dot.registers                    # 32-bit numbers per word of depth
        self.panel = self.width + (self.whole + (self.rest > 0)) * self.turn

    def kernel(self) -> Kernel:
        code, form = self.code, self.form
        with code.function("matmul_words"):
            self._main()
        return Kernel(IntegerMatMul.name, code.module(), ("matmul_words",),
                      meta={"flops": 2 * product(form.lead) * form.columns * form.depth})

    def _right(self, batch: object, panel: Int) -> Value:
        code = self.code
        return code.offset(code.buffer(self.form.right), code.mul(panel, self.panel), "i32")

    def _tile(self, task: Task, height: int, first: Int, skip: Int, slot: Int, start: Int, count: Int,
              last: Value | None) -> None:
        """One register tile: sums from the first row of the panel, then word after word."""
        code, lanes = self.code, self.lanes
        tile = Tile(code, height, self.vectors, self.element, lanes, self.dot.combine)
        begins = [self._begin(task.right, v) for v in range(self.vectors)]
        tile.fill(lambda r, v: begins[v])
        row = code.dim(self.form.left_row)
        left = code.offset(task.left, code.mul(first, row), self.left_element)
        right = code.offset(task.right, self.width, "i32")
        ratio, registers = self.dot.ratio, self.dot.registers

        def weights(k: Int, v: int) -> Value:
            at = code.offset(right, code.add(code.mul(k, self.turn), v * registers * lanes), "i32")
            return code.load(at, "i32", lanes * registers, align=lanes * 4)

        def one(k: Int) -> None:
            at = code.offset(left, code.mul(k, ratio), self.left_element)
            tile.step(lambda r: code.load(code.offset(at, code.mul(row, r), self.left_element), "i32", align=1),
                      lambda v: weights(k, v))

        tile.depth(self.whole, one, self.params.get("unroll", 2 if height * self.vectors < 16 else 1))
        if self.rest:
            at = code.offset(left, self.whole * ratio, self.left_element)
            tile.step(lambda r: last_word(code, code.offset(at, code.mul(row, r), self.left_element), self.rest,
                                          self.left_element), lambda v: weights(self.whole, v))
        tile.store(lambda r, v: code.offset(task.area, r * self.width + v * lanes, self.element), align=self.align)
        self._finish(task, task.area, height, first, skip)

    def _begin(self, panel: Value, v: int) -> Value:
        """What the sums of a vector start at: minus the column sums times the zero point."""
        code = self.code
        if self.zero is None or self.element != "i32":
            return code.zero(self.element, self.lanes)
        sums = code.load(code.offset(panel, v * self.lanes, "i32"), "i32", self.lanes, align=self.align)
        zero = code.convert("zext", code.load(code.buffer(self.zero), "i8"), "i32")
        return code.binary("mul", sums, code.splat(zero, self.lanes))


def last_word(code: Code, pointer: Value, count: int, element: str) -> Value:
    """The `count` elements that are left of the depth as one word, zeros behind them; nothing past them is read."""
    total = code.constant(0, "i32")
    bits = 8 if element == "i8" else 16
    for k in range(count):
        part = code.convert("zext", code.load(code.offset(pointer, k, element), element), "i32")
        total = code.binary("or", total, code.binary("shl", part, code.constant(bits * k, "i32")) if k else part)
    return total


__all__ = ["IntegerMatMul", "ShortMatMul", "WordEmission", "last_word", "word_panels", "word_points"]
