"""Ops that walk an axis with memory, or write where they are told: running sums, the greatest few, scatters."""
from __future__ import annotations

from collections.abc import Iterator, Sequence

from ingot.graph import F16, F32, I32, I64, Dim, product
from ingot.kernels.cuda.base import CudaTactic, Drafts
from ingot.kernels.cuda.matmul import along, unflattened
from ingot.kernels.cuda.nest import Nest, View
from ingot.kernels.cuda.rows import HELD, Atom, Plan, Rows, rows_space
from ingot.kernels.cuda.source import TYPES, Draft, Source, Value, ceil_div, is_wide, logical_strides, number
from ingot.kernels.tactic import Params, Site
from ingot.ops import OPS, dims
from ingot.ops.shapes import axis_of, integer
from ingot.target import Target

MOST = 64       # the most values TopK picks


def _plain(site: Site) -> str | None:
    """Why a site is not one op over plain tensors, or None."""
    if len(site.steps) != 1 or any(i is not None and i < 0 for i in site.step.inputs):
        return "it takes no prologue or epilogue"
    if any(o.type.layout for o in (*site.inputs, *site.outputs)):
        return "another layout than the plain one"
    bad = [o.type.dtype for o in (*site.inputs, *site.outputs) if o.type.dtype.name not in TYPES]
    return f"elements of type {bad[0]}" if bad else None


def _axis_plan(site: Site, axis: int) -> Plan:
    shape = site.inputs[0].type.shape
    return Plan(tuple(Atom(a, d) for a, d in enumerate(shape) if a != axis), (Atom(axis, shape[axis]),))


def _held(site: Site, axis: int) -> str | None:
    size = site.inputs[0].type.shape[axis]
    if not isinstance(size, int) or not 0 < size <= HELD:
        return f"an axis of {size} places is not kept in registers"
    return None


class Running(CudaTactic):
    """CumSum and CumProd: a whole axis in registers."""

    name = "cuda.running"

    def declines(self, site: Site, target: Target) -> str | None:
        if site.op not in ("CumSum", "CumProd"):
            return f"it does not compute {site.op}"
        if why := _plain(site):
            return why
        if site.attrs.get("exclusive", 0) and site.op == "CumProd":
            return "an exclusive product"
        if site.output.dtype not in (F16, F32, I32, I64):
            return f"{site.op} of {site.output.dtype}"
        return _held(site, self._axis(site))

    @staticmethod
    def _axis(site: Site) -> int:
        return axis_of(int(str((dims(site.attrs, "axis") or (0,))[0])), site.inputs[0].type.rank)

    def space(self, site: Site, target: Target) -> Iterator[Params]:
        size = int(str(site.inputs[0].type.shape[self._axis(site)]))
        yield from (p for p in rows_space(site, _axis_plan(site, self._axis(site)), 0) if p["columns"] >= size)

    def write(self, site: Site, params: Params, target: Target) -> Drafts:
        source = Source(site, target)
        rows = Rows(source, _axis_plan(site, self._axis(site)), params, 0)
        name, neutral = ("cumsum", "0") if site.op == "CumSum" else ("cumprod", "1")
        backward = bool(site.attrs.get("reverse", 0))

        def value(v: Value) -> Value:
            kept = source.let(f"tl.where({rows.column_mask}, {v}, {neutral})" if rows.column_mask else v.text)
            made = source.let(f"tl.{name}({kept}, 1, reverse={backward})")
            return Value(f"({made} - {kept})" if site.attrs.get("exclusive", 0) else made, v.dtype)
        rows.write(1, logical_strides(site.outputs[0]), value)
        source.let_next_start()
        return Drafts((source.draft(rows.grid, warps=params["warps"]),))


class TopK(CudaTactic):
    """The greatest (or least) few along an axis: the best of what is left, one after the other."""

    name = "cuda.topk"

    def declines(self, site: Site, target: Target) -> str | None:
        if site.op != "TopK":
            return f"it does not compute {site.op}"
        if why := _plain(site):
            return why
        k = (dims(site.attrs, "k") or (0,))[0]
        if not isinstance(k, int) or not 0 < k <= MOST:
            return f"{k} values: not from 1 to {MOST}"
        if site.inputs[0].type.dtype.kind != "float" or site.inputs[0].type.dtype.bits > 32:
            return f"TopK of {site.inputs[0].type.dtype}"
        return _held(site, self._axis(site))

    @staticmethod
    def _axis(site: Site) -> int:
        return axis_of(integer({**OPS["TopK"].attrs, **site.attrs}, "axis"), site.inputs[0].type.rank)

    def space(self, site: Site, target: Target) -> Iterator[Params]:
        size = int(str(site.inputs[0].type.shape[self._axis(site)]))
        yield from (p for p in rows_space(site, _axis_plan(site, self._axis(site)), 0) if p["columns"] >= size)

    def write(self, site: Site, params: Params, target: Target) -> Drafts:
        source, axis = Source(site, target), self._axis(site)
        rows = Rows(source, _axis_plan(site, axis), params, 0)
        most = bool(site.attrs.get("largest", 1))
        worst, best = (number(float("-inf")), "max") if most else (number(float("inf")), "min")
        x = rows.value()
        shape = f"({params['rows']}, {params['columns']})"
        source.line(f"left = tl.broadcast_to({rows.column_mask or 'c >= 0'}, {shape})")
        offsets = [rows.outer_offset(logical_strides(o)) for o in site.outputs]
        with source.block(f"for place in range(0, {(dims(site.attrs, 'k') or (0,))[0]}):"):
            # NaN is the greatest
            seen = f"tl.where({x} != {x}, float('inf'), {x})"
            source.line(f"top = tl.{best}(tl.where(left, {seen}, {worst}), 1)[:, None]")
            source.line(f"at = tl.min(tl.where(left & ({seen} == top), c.to(tl.int32), {1 << 30}), 1)[:, None]")
            source.line(f"found = tl.sum(tl.where(c == at, {x}, 0.0), 1)[:, None]")
            source.line("left = left & (c != at)")
            for k, (o, value) in enumerate(zip(site.outputs, (Value("found", F32), Value("at", I32)), strict=False)):
                step = source.dim(logical_strides(o)[axis])
                source.store(1 + k, f"{offsets[k]} + place * {step} + tl.zeros(({params['rows']}, 1), tl.int32)",
                             value, rows.row_mask)
        source.let_next_start()
        return Drafts((source.draft(rows.grid, warps=params["warps"]),))


class Scatter(CudaTactic):
    """ScatterElements and ScatterND: the data copied, then the updates put, added or compared in, in any order."""

    name = "cuda.scatter"

    def declines(self, site: Site, target: Target) -> str | None:
        if site.op not in ("ScatterElements", "ScatterND"):
            return f"it does not compute {site.op}"
        if why := _plain(site):
            return why
        how = str(site.attrs.get("reduction", "none"))
        if how not in ("none", "add", "max", "min") or (how != "none" and site.output.dtype not in (F32, I32)):
            return f"the reduction {how} of {site.output.dtype}"
        return None

    def space(self, site: Site, target: Target) -> Iterator[Params]:
        yield from ({"block": b, "warps": 4} for b in (256, 512, 128))

    def write(self, site: Site, params: Params, target: Target) -> Drafts:
        copy, out = Source(site, target), site.outputs[0]
        nest = Nest(copy, out.type.shape, (3, View(logical_strides(out))), {0: View(logical_strides(site.inputs[0]))},
                    params)
        nest.write(lambda load: load(0))
        return Drafts((copy.draft(nest.grid, warps=params["warps"]), self._updates(site, params, target)))

    @staticmethod
    def _updates(site: Site, params: Params, target: Target) -> Draft:
        source = Source(site, target)
        data, index, updates = (site.inputs[i or 0] for i in site.step.inputs[:3])
        positions = site.step.inputs[1] or 0
        total = product(updates.type.shape)
        wide = ".to(tl.int64)" if is_wide(site) else ""
        source.start_dependent()
        source.line(f"i = tl.program_id(0){wide} * {params['block']} + tl.arange(0, {params['block']})")
        source.line(f"mask = i < {source.dim(total)}")
        at = unflattened(source, "i", updates.type.shape)
        target_at: list[str]
        if site.op == "ScatterElements":
            axis = axis_of(integer({**OPS[site.op].attrs, **site.attrs}, "axis"), data.type.rank)
            target_at = [_position(source, positions, at, data.type.shape[a]) if a == axis else at[a]
                         for a in range(data.type.rank)]
        else:
            lead, depth = index.type.rank - 1, int(str(index.type.shape[-1]))
            target_at = [_position(source, positions, [*at[:lead], str(k)], data.type.shape[k]) for k in range(depth)]
            target_at += at[lead:]
        given = along(source, at, logical_strides(updates))
        value = source.load(site.step.inputs[2] or 0, f"({given}) + i * 0", "mask", "0")
        offset = f"({along(source, target_at, logical_strides(site.outputs[0]))}) + i * 0"
        how = str(site.attrs.get("reduction", "none"))
        if how == "none":
            source.store(3, offset, value, "mask")
        else:
            stored = source.narrowed(value, site.output.dtype)
            source.line(f"tl.atomic_{how}({source.pointer(3)} + {offset}, {stored}, mask=mask)")
        source.let_next_start()
        return source.draft((ceil_div(total, params["block"]), 1, 1), warps=params["warps"])


def _position(source: Source, operand: int, at: Sequence[str], size: Dim) -> str:
    offset = along(source, list(at), logical_strides(source.operand(operand)))
    found = source.load(operand, f"({offset}) + i * 0", "mask", "0")
    name = source.let(f"tl.where({found} < 0, {found} + {source.dim(size)}, {found})", "q")
    return source.let(f"tl.minimum(tl.maximum({name}, 0), {source.dim(size - 1)})", "q")


__all__ = ["Running", "Scatter", "TopK"]
