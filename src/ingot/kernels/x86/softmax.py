"""Softmax and LogSoftmax: along rows, in registers where they fit; along another axis, by vectors of columns."""
from __future__ import annotations

import math as numbers
from collections.abc import Sequence

from ingot.graph import F32, F64, product
from ingot.kernels.codegen import Code, Int, Value, element_of, isa_of, math
from ingot.kernels.tactic import Kernel, Params, Site, Tactic
from ingot.kernels.x86.rows import Row, accumulate, each_vector, rows_of, total
from ingot.target import Target

_OPS = ("Softmax", "LogSoftmax")


def _axis(site: Site) -> int:
    return int(str(site.attrs.get("axis", -1))) % site.step.types[0].rank


def _largest(code: Code, v: Value) -> Value:
    return code.splat(code.reduce("fmax", v), v.lanes)


class SoftmaxRows(Tactic):
    """Along the last axis. Rows of up to three quarters of the registers stay in them."""

    name = "x86.softmax_rows"

    def declines(self, site: Site, target: Target) -> str | None:
        if site.op not in _OPS:
            return f"{site.op} is no softmax"
        if not site.step.types[0].rank or _axis(site) != site.step.types[0].rank - 1:
            return "not along the last axis"
        rows = rows_of(site, _axis(site))
        return rows if isinstance(rows, str) else None

    def emit(self, site: Site, params: Params, target: Target) -> Kernel:
        code = Code(isa_of(target), site.symbols)
        name = f"softmax_{site.key}"
        rows = rows_of(site, _axis(site))
        assert not isinstance(rows, str)        # declined
        with code.function(name), rows.share(code) as row:
            room = code.isa.registers * 3 // 4
            if isinstance(row.length, int) and row.length <= room * row.lanes and rows.element == "float":
                _held(row, site.op == "LogSoftmax")
            else:
                _swept(row, site.op == "LogSoftmax")
        return Kernel(name, code.module(), (name,))


def _held(row: Row, logarithm: bool) -> None:
    """A row whose every vector stays in a register."""
    code, lanes = row.code, row.lanes
    places = range(0, int(str(row.length)), lanes)
    masks = [code.mask(int(str(row.length)) - at, lanes) for at in places]
    values = [row.masked(mask, row.input(at, mask), -numbers.inf) for at, mask in zip(places, masks, strict=True)]
    top = _largest(code, _tree(values, code.fmax))
    moved = [code.fsub(v, top) for v in values]
    exps = [math.exp(code, v) for v in moved]
    summed = code.splat(code.reduce("fadd", _tree(exps, code.fadd)), lanes)
    factor = math.log(code, summed) if logarithm else code.fdiv(code.constant(1.0, summed.element, lanes), summed)
    for at, mask, m, e in zip(places, masks, moved, exps, strict=True):
        row.finish(at, mask, code.fsub(m, factor) if logarithm else code.fmul(e, factor))


def _tree(values: Sequence[Value], combine: object) -> Value:
    found = list(values)
    while len(found) > 1:
        pairs = [combine(a, b) for a, b in zip(found[::2], found[1::2], strict=False)]      # type: ignore[operator]
        found = pairs + ([found[-1]] if len(found) % 2 else [])
    return found[0]


def _swept(row: Row, logarithm: bool) -> None:
    """A row of any length: its largest, its exponentials and their sum, then the division."""
    code, lanes, n = row.code, row.lanes, row.length
    keep = row.rows.prologue

    def first(at: Int, mask: Value | None) -> Value:
        value = row.input(at, mask)
        if keep:
            row.store(at, mask, value)
        return row.masked(mask, value, -numbers.inf)
    top = _largest(code, accumulate(code, n, code.constant(-numbers.inf, row.rows.element, lanes), first, code.fmax))

    def again(at: Int, mask: Value | None) -> Value:
        return code.fsub(row.kept(at, mask) if keep else row.input(at, mask), top)

    def exponential(at: Int, mask: Value | None) -> Value:
        e = math.exp(code, again(at, mask))
        if not logarithm:
            row.store(at, mask, e)
        return row.masked(mask, e, 0.0)
    summed = code.splat(code.reduce("fadd", total(code, n, row.rows.element, lanes, exponential)), lanes)
    factor = math.log(code, summed) if logarithm else code.fdiv(code.constant(1.0, summed.element, lanes), summed)

    def last(places: Sequence[Int], mask: Value | None) -> None:
        for at in places:
            value = code.fsub(again(at, mask), factor) if logarithm else code.fmul(row.kept(at, mask), factor)
            row.finish(at, mask, value)
    each_vector(code, n, lanes, last)


class SoftmaxColumns(Tactic):
    """Along an axis that is not the last: every lane a column of its own."""

    name = "x86.softmax_columns"

    def declines(self, site: Site, target: Target) -> str | None:
        if site.op not in _OPS:
            return f"{site.op} is no softmax"
        if len(site.steps) > 1:
            return "columns take no other steps"
        if site.output.dtype not in (F32, F64) or site.output.layout:
            return f"columns of {site.output}"
        if any(o.strides is not None for o in (*site.inputs, *site.outputs)):
            return "columns need dense operands"
        return "along the last axis" if _axis(site) == site.output.rank - 1 else None

    def emit(self, site: Site, params: Params, target: Target) -> Kernel:
        code = Code(isa_of(target), site.symbols)
        name = f"softmax_{site.key}"
        shape, axis, element = site.output.shape, _axis(site), element_of(site.output.dtype)
        lanes = code.isa.lanes * 4 // site.output.dtype.nbytes
        with code.function(name):
            outer, n, inner = (code.dim(d) for d in (product(shape[:axis]), shape[axis], product(shape[axis + 1:])))
            pieces = code.ceildiv(inner, lanes)
            with code.share(code.mul(outer, pieces)) as task:
                o, piece = code.unflatten(task, [outer, pieces])
                column = code.mul(piece, lanes)
                start = code.add(code.mul(code.mul(o, n), inner), column)
                x, y = (code.offset(code.buffer(i), start, element) for i in (0, 1))
                mask = code.mask(code.sub(inner, column), lanes)
                _columns(code, x, y, n, inner, element, lanes, mask, site.op == "LogSoftmax")
        return Kernel(name, code.module(), (name,))


def _columns(code: Code, x: Value, y: Value, n: Int, stride: Int, element: str, lanes: int, mask: Value | None,
             logarithm: bool) -> None:
    top = code.variable(code.constant(-numbers.inf, element, lanes))
    summed = code.variable(code.zero(element, lanes))

    def at(base: Value, i: Int) -> Value:
        return code.offset(base, code.mul(i, stride), element)
    with code.loop(0, n) as i:
        top.set(code.fmax(top.get(), code.load(at(x, i), element, lanes, mask)))
    with code.loop(0, n) as i:
        e = math.exp(code, code.fsub(code.load(at(x, i), element, lanes, mask), top.get()))
        if not logarithm:
            code.store(e, at(y, i), mask)
        summed.set(code.fadd(summed.get(), e))
    one = code.constant(1.0, element, lanes)
    factor = math.log(code, summed.get()) if logarithm else code.fdiv(one, summed.get())
    with code.loop(0, n) as i:
        if logarithm:
            value = code.fsub(code.fsub(code.load(at(x, i), element, lanes, mask), top.get()), factor)
        else:
            value = code.fmul(code.load(at(y, i), element, lanes, mask), factor)
        code.store(value, at(y, i), mask)
