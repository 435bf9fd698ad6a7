"""Products with a weight of small integers, scaled by groups along the depth: at memory's speed where rows are few.

Sums are f32, and so is the left operand: only the weight is short. A panel of columns is one stream: for each group
the scales and offsets of its columns, then the integers, eight 4-bit ones of a column to a 32-bit word. A word becomes
eight registers of floats without a conversion: shifted below the exponent of one, four bits n are the number 1 + n / 16
(a shift and one vpternlogd, which runs where look-ups and shifts do not); scales and offsets are packed for these.
Where rows are few, a group's sums are scaled once, and kept in two halves, so that no sum waits for the one before.
"""
from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np

from ingot.graph import F32, I8, U8, product
from ingot.graph.types import DTYPES
from ingot.kernels.codegen import Int, Value, isa_of, vector
from ingot.kernels.codegen.tile import Tile, fits
from ingot.kernels.tactic import Kernel, Params, Site, Tactic
from ingot.kernels.x86.matmul import Emission, Task, at_profile
from ingot.kernels.x86.matmul_form import declines_epilogue, form_of
from ingot.target import Target

I4, U4 = DTYPES["i4"], DTYPES["u4"]
_OPS = ("MatMulGroups",)
_PER_WORD = 8           # 4-bit integers in a word
_FEW = 8                # registers of sums up to which a group is scaled at its end, in registers of its own
_FEWER = 4              # and up to which these are kept twice
_AHEAD = 4096           # bytes of the stream that are fetched before they are read
_ONE = 0x3F800000       # the bits of 1.0
_PLACE = 19             # the lowest of the four bits below the exponent


class GroupedMatMul(Tactic):
    """f32 by a constant of 4 or 8 bits in groups of depth."""

    name = "x86.matmul_groups"

    def declines(self, site: Site, target: Target) -> str | None:
        form = form_of(site, _OPS)
        if isinstance(form, str):
            return form
        if site.inputs[form.left].type.dtype != F32:
            return "the left operand is not f32"
        weight = site.inputs[form.right]
        if weight.type.dtype not in (I4, U4, I8, U8) or not weight.constant or weight.strides is not None:
            return f"the weight is {weight}: no constant of 4 or 8 bits"
        if any(i is None or i < 0 or not site.inputs[i].constant for i in site.step.inputs[2:] if i is not None):
            return "the scales or zero points are not constant"
        if form.left_depth != 1 or form.no_row or form.no_column or not isinstance(form.depth, int):
            return "the depth is not adjacent on the left, or not known"
        if group_of(site) % _PER_WORD or form.depth % group_of(site):
            return "groups that are no multiple of eight"
        return declines_epilogue(site, form, packs=True)

    def space(self, site: Site, target: Target) -> Iterator[Params]:
        form, isa = form_of(site, _OPS), isa_of(target)
        if isinstance(form, str):
            return
        rows = at_profile(form.rows, site, "opt")
        columns = -(-at_profile(form.columns, site, "opt") // isa.lanes)
        tall = [(r, v) for r in range(1, 15) for v in (1, 2, 3, 4, 6, 8) if v <= columns and fits(isa, r, 3 * v)
                and r <= max(rows, min(8, at_profile(form.rows, site, "max")))]

        def cost(shape: tuple[int, int]) -> float:
            r, v = shape
            tiles, panels = -(-rows // r), -(-columns // v)
            share = -(-panels // target.threads) * target.threads / panels
            return tiles * panels * share * (max(r * v, 4) + 3 * v)

        for place, (r, v) in enumerate(sorted(tall, key=lambda s: (cost(s), -s[1]))[:6]):
            point = {"rows": r, "vectors": v, "block": max(1, -(-rows // r)), "across": 1}
            yield point
            if place < 3 and r * v <= _FEW:
                yield {**point, "ahead": _AHEAD}

    def pack(self, site: Site, params: Params, target: Target,
             constants: Mapping[int, np.ndarray]) -> Mapping[int, np.ndarray]:
        form = form_of(site, _OPS)
        if isinstance(form, str) or form.right not in constants:
            return {}
        scale, zero = (*site.step.inputs, None)[2:4]
        if scale is None:
            return {}
        return {form.right: group_panels(constants[form.right], constants[scale],
                                         None if zero is None else constants[zero], params["vectors"],
                                         isa_of(target).lanes)}

    def emit(self, site: Site, params: Params, target: Target) -> Kernel:
        form = form_of(site, _OPS)
        if isinstance(form, str):
            raise ValueError(form)
        return _Groups(site, form, params, isa_of(target)).kernel()


def group_of(site: Site) -> int:
    """Depth elements that share a scale."""
    return int(str(dict(site.step.attrs)["block_size"]))


def four_bits(dtype: np.dtype) -> bool:
    """Whether an element is an integer of four bits."""
    return dtype.name in ("int4", "uint4")


def group_panels(weight: np.ndarray, scale: np.ndarray, zero: np.ndarray | None, vectors: int,
                 lanes: int) -> np.ndarray:
    """Flat i32: per panel and group the scales and offsets (f32 bits), then words [word][vector][lane], or bytes.

    Four-bit integers are kept as 0..15, whatever their sign, and read as 1 + n / 16: the offset takes the difference
    back.
    """
    depth, columns = weight.shape
    groups, width = scale.shape[0], vectors * lanes
    count = -(-columns // width)
    short = four_bits(weight.dtype)
    wide = weight.astype(np.int32)
    moved = 8 if weight.dtype.name == "int4" else 0
    sixteenth = np.float32(16 if short else 1)
    offset = -scale * ((0 if zero is None else zero.astype(np.float32)) + np.float32(moved + 16 if short else 0))
    padded = np.zeros((depth, count * width), np.int32)
    padded[:, :columns] = wide + (moved if short else 0)
    heads = np.zeros((2, groups, count * width), np.float32)
    heads[0, :, :columns], heads[1, :, :columns] = scale * sixteenth, offset
    head = heads.reshape(2, groups, count, width).transpose(2, 1, 0, 3).view(np.int32).reshape(count, groups, 2 * width)
    parts = padded.reshape(groups, depth // groups, count, vectors, lanes).transpose(2, 0, 1, 3, 4)
    if short:
        nibbles = parts.reshape(count, groups, -1, _PER_WORD, vectors, lanes).astype(np.uint32)
        shifts = (4 * np.arange(_PER_WORD, dtype=np.uint32)).reshape(-1, 1, 1)
        body = (nibbles << shifts).sum(3, dtype=np.uint32).view(np.int32).reshape(count, groups, -1)
    else:
        body = np.ascontiguousarray(parts.astype(weight.dtype)).view(np.int32).reshape(count, groups, -1)
    return np.ascontiguousarray(np.concatenate([head, body], axis=2)).reshape(-1)


@dataclass
class _Groups(Emission):
    """The emission of one kernel; lives inside `emit`."""

    def __post_init__(self) -> None:
        super().__post_init__()
        depth = self.form.depth
        if not isinstance(depth, int):
            raise ValueError("the depth is symbolic")
        dtype = self.site.inputs[self.form.right].type.dtype
        self.short, self.signed = dtype in (I4, U4), dtype.kind == "int"
        self.group = group_of(self.site)
        self.groups = depth // self.group
        self.cut, self.packs, self.constant = 0, False, True
        self.turn = self.group * self.width // (_PER_WORD if self.short else 4)     # words of a group's integers
        self.panel = self.groups * (2 * self.width + self.turn)

    def kernel(self) -> Kernel:
        code, form = self.code, self.form
        with code.function("matmul_groups"):
            self._main()
        return Kernel(GroupedMatMul.name, code.module(), ("matmul_groups",),
                      meta={"flops": 2 * product(form.lead) * form.columns * form.depth})

    def _right(self, batch: object, panel: Int) -> Value:
        code = self.code
        return code.offset(code.buffer(self.form.right), code.mul(panel, self.panel), "i32")

    def _tile(self, task: Task, height: int, first: Int, skip: Int, slot: Int, start: Int, count: Int,
              last: Value | None) -> None:
        code, lanes, vectors = self.code, self.lanes, self.vectors
        tile = Tile(code, height, vectors, "float", lanes)
        tile.clear()
        row = code.dim(self.form.left_row)
        left = code.offset(task.left, code.mul(first, row))
        once = height * vectors <= _FEW and self.group % lanes == 0
        ahead = self.params.get("ahead", 0)
        halves = 2 if once and height * vectors <= _FEWER and code.isa.registers > 16 else 1
        parts = [Tile(code, height, vectors, "float", lanes) for _ in range(halves)] if once else [tile]
        with code.loop(0, self.groups) as g:
            here = code.offset(task.right, code.mul(g, 2 * self.width + self.turn), "i32")
            scales, offsets = ([code.load(code.offset(here, k * self.width + v * lanes), "float", lanes)
                                for v in range(vectors)] for k in (0, 1))
            body = code.offset(here, 2 * self.width, "i32")
            begin = code.offset(left, code.mul(g, self.group))

            def step(x: Value, number: int, raw: list[Value], scales: list[Value] = scales,
                     offsets: list[Value] = offsets) -> None:
                parts[number % len(parts)].step(
                          lambda r: code.load(code.offset(x, code.add(code.mul(row, r), number))),
                          lambda v: raw[v] if once else code.fma(raw[v], scales[v], offsets[v]))

            for part in parts if once else ():
                part.clear()

            if self.short:
                with code.loop(0, self.group // _PER_WORD) as w:
                    at = code.offset(body, code.mul(w, self.width), "i32")
                    for v in range(vectors if ahead else 0):
                        code.prefetch(code.offset(at, ahead // 4 + v * lanes, "i32"))
                    words = [code.load(code.offset(at, v * lanes, "i32"), "i32", lanes) for v in range(vectors)]
                    x = code.offset(begin, code.mul(w, _PER_WORD))
                    for j in range(_PER_WORD):
                        step(x, j, [self._number(word, j) for word in words])
            else:
                with code.loop(0, self.group // 4) as w:
                    at = code.offset(body, code.mul(w, self.width), "i32")
                    for v in range(vectors if ahead else 0):
                        code.prefetch(code.offset(at, ahead // 4 + v * lanes, "i32"))
                    x = code.offset(begin, code.mul(w, 4))
                    for j in range(4):
                        step(x, j, [self._byte(code.offset(at, j * self.width + v * lanes, "i8"))
                                    for v in range(vectors)])
            if once:        # the group's sums scaled, and its offsets times the sum of what they multiply
                totals = [code.splat(self._sum(code.offset(begin, code.mul(row, r))), lanes) for r in range(height)]
                sums, held = [p.values() for p in parts], tile.values()

                def whole(r: int, v: int) -> Value:
                    return sums[0][r][v] if len(sums) == 1 else code.fadd(sums[0][r][v], sums[1][r][v])

                tile.fill(lambda r, v: code.fma(whole(r, v), scales[v], code.fma(totals[r], offsets[v], held[r][v])))
        tile.store(lambda r, v: code.offset(task.area, r * self.width + v * lanes), align=self.align)
        self._finish(task, task.area, height, first, skip)

    def _sum(self, row: Value) -> Value:
        """The sum of a group of the left operand."""
        code, total = self.code, None
        for k in range(0, self.group, self.lanes):
            part = code.load(code.offset(row, k), "float", self.lanes)
            total = part if total is None else code.fadd(total, part)
        return code.reduce("fadd", total) if total is not None else code.zero("float")

    def _number(self, word: Value, place: int) -> Value:
        """The 4-bit integers n at one place of the words, as floats 1 + n / 16."""
        code, lanes = self.code, self.lanes
        up = _PLACE - 4 * place
        moved = code.binary("shl" if up > 0 else "lshr", word, code.constant(abs(up), "i32", lanes))
        low = code.binary("and", moved, code.constant(15 << _PLACE, "i32", lanes))
        bits = code.binary("or", low, code.constant(_ONE, "i32", lanes))
        type_ = vector("float", lanes)
        return code.emit(type_, f"bitcast {bits} to {type_}")

    def _byte(self, pointer: Value) -> Value:
        code = self.code
        wide = code.convert("sext" if self.signed else "zext", code.load(pointer, "i8", self.lanes), "i32")
        return code.emit(vector("float", self.lanes), f"sitofp {wide} to {vector('float', self.lanes)}")


__all__ = ["GroupedMatMul", "group_panels"]
