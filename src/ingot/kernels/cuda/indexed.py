"""Ops in which each element of the result is a few elements of the operands, at places computed from its own."""
from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from ingot.graph import BOOL, Dim, DType, product
from ingot.kernels.cuda.base import CudaTactic, Drafts
from ingot.kernels.cuda.expression import run_steps
from ingot.kernels.cuda.matmul import along, unflattened
from ingot.kernels.cuda.pointwise import declines_epilogue, spread
from ingot.kernels.cuda.source import (
    NAMES,
    TYPES,
    Source,
    Value,
    ceil_div,
    is_wide,
    joined,
    logical_strides,
    number,
    physical_order,
    registers_of,
    times,
    usual,
)
from ingot.kernels.tactic import Params, Site
from ingot.kernels.x86.resample import table_of
from ingot.ops import OPS, dims
from ingot.ops.pooling import pooling_window
from ingot.ops.shapes import axes_of, axis_of, integer
from ingot.target import Target

MOST_TAPS = 128     # elements that one element of a result may come from, written out one after the other


@dataclass
class Places:
    """Where a block of consecutive elements of an output lies: its coordinates along the logical axes."""

    source: Source
    block: int
    output: int = 0

    def __post_init__(self) -> None:
        source, site = self.source, self.source.site
        out = site.outputs[self.output]
        order = physical_order(out)
        total = product(out.type.shape)
        wide = ".to(tl.int64)" if is_wide(site) else ""
        source.line(f"i = tl.program_id(0){wide} * {self.block} + tl.arange(0, {self.block})")
        self.mask = None if isinstance(total, int) and total % self.block == 0 else f"(i < {source.dim(total)})"
        found = unflattened(source, "i", tuple(out.type.shape[a] for a in order))
        self.at = [found[order.index(a)] for a in range(out.type.rank)]
        self.grid: tuple[Dim, Dim, Dim] = (ceil_div(total, self.block), 1, 1)
        self.shape = f"({self.block},)"

    def full(self, text: str, name: str) -> str:
        """One number in every place of the block."""
        return self.source.let(f"tl.full({self.shape}, {text}, {name})")

    def load(self, index: int, places: Sequence[str], mask: str | None = None, other: str = "0") -> Value:
        """An operand's elements at places along its logical axes."""
        offset = along(self.source, list(places), logical_strides(self.source.operand(index)))
        masks = " & ".join(f"({m})" for m in (self.mask, mask) if m) or None
        return self.source.load(index, f"({offset}) + i * 0", masks, other if masks else None)

    def beside(self, index: int) -> Value:
        """An operand of the epilogue at the block's own places."""
        site = self.source.site
        steps = spread(site, index, site.output.shape) or ()
        masks = self.mask
        return self.source.load(index, f"({along(self.source, self.at, steps)}) + i * 0", masks, "0" if masks else None)

    def finish(self, value: Value) -> None:
        """The epilogue and the store."""
        source, site = self.source, self.source.site
        if self.output == 0:
            value = run_steps(source, site.main + 1, {site.main: value}, self.beside)
        out = len(site.inputs) + self.output
        offset = along(source, self.at, logical_strides(site.outputs[self.output]))
        source.store(out, f"({offset}) + i * 0", value, self.mask)


class Indexed(CudaTactic):
    """What these tactics share: blocks of consecutive elements of the result."""

    def refuses(self, site: Site) -> str | None:
        """Why this op's form is not served, or None."""
        return None

    ops: frozenset[str] = frozenset()
    layouts = False         # whether it takes channels last

    def declines(self, site: Site, target: Target) -> str | None:
        if site.op not in self.ops:
            return f"it does not compute {site.op}"
        if site.main != 0 or len(site.outputs) != 1 or any(i is not None and i < 0 for i in site.step.inputs):
            return "a prologue or several outputs"
        operands = (*site.inputs, *site.outputs)
        if any(o.type.block for o in operands) or (not self.layouts and any(o.type.layout for o in operands)):
            return "another layout than the plain one"
        if bad := [o for o in operands if o.type.dtype.name not in TYPES]:
            return f"elements of type {bad[0].type.dtype}"
        return declines_epilogue(site) or self.refuses(site)

    def space(self, site: Site, target: Target) -> Iterator[Params]:
        total = usual(product(site.output.shape), site)
        best = 512 if total >= 1 << 18 else 256 if total >= 1 << 15 else 128
        yield from ({"block": b, "warps": 4 if b >= 256 else 2} for b in (
            best, *(b for b in (256, 512, 1024, 128) if b != best)))

    def write(self, site: Site, params: Params, target: Target) -> Drafts:
        source = Source(site, target)
        source.start_dependent()
        places = Places(source, params["block"])
        places.finish(self.value(source, places, site))
        source.let_next_start()
        return Drafts((source.draft(places.grid, warps=params["warps"]),), data=self.data(site))

    def data(self, site: Site) -> bytes:
        """Constant bytes the kernel reads."""
        return b""

    @abstractmethod
    def value(self, source: Source, places: Places, site: Site) -> Value:
        """Write what computes the op's result at the block's places."""


def _attrs(site: Site) -> Mapping[str, object]:
    return {**OPS[site.op].attrs, **site.attrs}


class Pooling(Indexed):
    """MaxPool, AveragePool and LpPool: the taps of each window one after the other."""

    name = "cuda.pool"
    ops = frozenset({"MaxPool", "AveragePool", "LpPool"})
    layouts = True

    def refuses(self, site: Site) -> str | None:
        x = site.inputs[0].type
        window = pooling_window((x,), _attrs(site))
        if int(np.prod(window.kernel)) > MOST_TAPS:
            return f"a window of more than {MOST_TAPS} taps"
        if site.op == "LpPool" and _attrs(site)["p"] not in (1, 2):
            return "a norm of another power"
        if site.op != "MaxPool" and x.dtype.kind != "float":
            return f"{site.op} of {x.dtype}"
        return None

    def value(self, source: Source, places: Places, site: Site) -> Value:
        x, attrs = site.inputs[0].type, _attrs(site)
        window = pooling_window((x,), attrs)
        dtype = registers_of(x.dtype)
        rank = x.rank - 2
        starts = []
        for a in range(rank):
            begin = window.begins[a]
            text = times(places.at[a + 2], str(window.strides[a]))
            starts.append(source.let(text if begin == 0 else f"{text} - {source.dim(begin)}", "h"))
        most = site.op == "MaxPool"
        lowest = number(float("-inf")) if dtype.kind == "float" else str(
            0 if dtype.kind in ("uint", "bool") else -(1 << (dtype.bits - 1)))
        total = places.full(lowest if most else "0.0", NAMES[dtype.name])
        inside_count: list[str] = []
        for tap in np.ndindex(*window.kernel):
            at, masks = [], []
            for a in range(rank):
                at.append(joined([starts[a], str(tap[a] * window.dilations[a])]))
                size = source.dim(x.shape[a + 2])
                reach = (window.kernel[a] - 1) * window.dilations[a]
                last = (site.step.types[0].shape[a + 2] - 1) * window.strides[a] - window.begins[a] + reach
                extent = x.shape[a + 2]
                ends = isinstance(last, int) and isinstance(extent, int) and last < extent
                if window.begins[a] != 0 or not ends:
                    masks.append(f"({at[-1]} >= 0) & ({at[-1]} < {size})")
            mask = source.let(" & ".join(masks), "m") if masks else None
            one = places.load(0, [*places.at[:2], *at], mask, lowest if most else "0.0")
            if most:
                nan = f" | ({one} != {one})" if dtype.kind == "float" else ""
                source.line(f"{total} = tl.where(({one} > {total}){nan}, {one}, {total})")
            else:
                power = f"tl.abs({one})" if attrs.get("p") == 1 else f"{one} * {one}"
                source.line(f"{total} += {one if site.op == 'AveragePool' else power}")
            if mask:
                inside_count.append(mask)
        if most:
            return Value(total, dtype)
        if site.op == "LpPool":
            return Value(total if attrs["p"] == 1 else source.let(f"tl.sqrt({total})"), dtype)
        return Value(source.let(f"{total} / {self._divisor(source, places, site, starts)}"), dtype)

    @staticmethod
    def _divisor(source: Source, places: Places, site: Site, starts: list[str]) -> str:
        """How many taps of each window count: those inside, or with `count_include_pad` those in the padding, too."""
        x, attrs = site.inputs[0].type, _attrs(site)
        window = pooling_window((x,), attrs)
        padded = bool(attrs["count_include_pad"])
        factors = []
        for a, start in enumerate(starts):
            size, d = x.shape[a + 2], window.dilations[a]
            low = f"-{source.dim(window.begins[a])}" if padded and window.begins[a] != 0 else "0"
            high = source.dim(size + window.ends[a] if padded else size)
            taps = [f"(({start} + {t * d} >= {low}) & ({start} + {t * d} < {high})).to(tl.float32)"
                    for t in range(window.kernel[a])]
            factors.append(source.let(" + ".join(taps), "f"))
        return source.let(" * ".join(f"tl.maximum({f}, 1.0)" for f in factors))


class Resampling(Indexed):
    """Resize, and Pad by reflection and the like: places and weights of the taps are tables beside the code."""

    name = "cuda.resample"
    ops = frozenset({"Resize", "Pad"})
    layouts = True

    def refuses(self, site: Site) -> str | None:
        table = table_of(site)
        if isinstance(table, str):
            return table
        if site.inputs[0].type.layout != site.output.layout:
            return "the layout must stay"
        if any(t.weights is not None for t in table.values()) and site.output.dtype.kind != "float":
            return f"weights on {site.output.dtype}"
        if int(np.prod([t.count for t in table.values()])) > MOST_TAPS:
            return f"more than {MOST_TAPS} taps"
        return None

    def data(self, site: Site) -> bytes:
        table = table_of(site)
        parts: list[bytes] = []
        for taps in () if isinstance(table, str) else table.values():
            parts.append(taps.places.astype(np.int32).tobytes())
            if taps.weights is not None:
                parts.append(taps.weights.astype(np.float32).tobytes())
        return b"".join(parts)

    def value(self, source: Source, places: Places, site: Site) -> Value:
        table = table_of(site)
        if isinstance(table, str):
            raise ValueError(table)
        offset = 0
        at: dict[int, list[tuple[str, str | None]]] = {}
        for axis, taps in table.items():
            names: list[tuple[str, str | None]] = []
            where = source.data(f"places{axis}", "*i32", offset)
            offset += taps.places.size * 4
            heavy = source.data(f"weights{axis}", "*fp32", offset) if taps.weights is not None else None
            offset += taps.places.size * 4 if heavy else 0
            for k in range(taps.count):
                inner = f"{places.at[axis]} * {taps.count} + {k}"
                mask = f", mask={places.mask}, other=0" if places.mask else ""
                names.append((source.let(f"tl.load({where} + {inner}{mask})", "q"),
                              source.let(f"tl.load({heavy} + {inner}{mask})", "w") if heavy else None))
            at[axis] = names
        dtype = registers_of(site.inputs[0].type.dtype)
        weighted = any(t.weights is not None for t in table.values())
        total = places.full("0.0", NAMES[dtype.name]) if weighted else ""
        for picks in np.ndindex(*(len(v) for v in at.values())):
            chosen = {axis: at[axis][k] for axis, k in zip(at, picks, strict=True)}
            one = places.load(0, [chosen[a][0] if a in chosen else places.at[a] for a in range(len(places.at))])
            if not weighted:
                return one
            weights = " * ".join(w for _, w in chosen.values() if w)
            source.line(f"{total} += {one} * ({weights})")
        return Value(total, dtype)


class ConstantPad(Indexed):
    """Pad by a constant."""

    name = "cuda.pad"
    ops = frozenset({"Pad"})

    def refuses(self, site: Site) -> str | None:
        return None if _attrs(site)["mode"] == "constant" else "another mode"

    def value(self, source: Source, places: Places, site: Site) -> Value:
        x, attrs = site.inputs[0].type, _attrs(site)
        pads, named = dims(attrs, "pads") or (), attrs.get("axes")
        axes = axes_of([int(str(a)) for a in named] if isinstance(named, (tuple, list)) else range(x.rank), x.rank)
        at, masks = list(places.at), []
        for k, a in enumerate(axes):
            if pads[k] == 0 and pads[k + len(axes)] == 0:
                continue
            at[a] = source.let(f"{at[a]} - ({source.dim(pads[k])})", "h")
            masks.append(f"({at[a]} >= 0) & ({at[a]} < {source.dim(x.shape[a])})")
        if not masks:
            return places.load(0, at)
        inside = source.let(" & ".join(masks), "m")
        found = places.load(0, at, inside)
        given = site.step.inputs[1] if len(site.step.inputs) > 1 else None
        if given is None:
            return found
        dtype = site.inputs[given].type.dtype
        one = source.let(f"tl.load({source.pointer(given)})")
        fill = source.let(source.widened(places.full(one, NAMES[dtype.name] if dtype != BOOL else "tl.uint8"), dtype))
        return Value(source.let(f"tl.where({inside}, {found}, {fill})"), found.dtype)


def _index(source: Source, places: Places, operand: int, at: Sequence[str], size: Dim) -> str:
    """A position read from an operand, counted from the end where it is negative, kept inside."""
    found = places.load(operand, at)
    name = source.let(f"tl.where({found} < 0, {found} + {source.dim(size)}, {found})", "q")
    return source.let(f"tl.minimum(tl.maximum({name}, 0), {source.dim(size - 1)})", "q")


class Gather(Indexed):
    """Gather, GatherElements and GatherND: elements at positions that an operand gives."""

    name = "cuda.gather"
    ops = frozenset({"Gather", "GatherElements", "GatherND"})

    def value(self, source: Source, places: Places, site: Site) -> Value:
        data, index = site.step.inputs[:2]
        if data is None or index is None:
            raise ValueError("an operand is absent")
        x, positions, attrs = site.inputs[data].type, site.inputs[index].type, _attrs(site)
        at = places.at
        if site.op == "GatherElements":
            axis = axis_of(integer(attrs, "axis"), x.rank)
            return places.load(data, [_index(source, places, index, at, x.shape[a]) if a == axis else at[a]
                                      for a in range(x.rank)])
        if site.op == "Gather":
            axis, many = axis_of(integer(attrs, "axis"), x.rank), positions.rank
            picked = _index(source, places, index, at[axis:axis + many], x.shape[axis])
            return places.load(data, [*at[:axis], picked, *at[axis + many:]])
        batch, depth = integer(attrs, "batch_dims"), int(str(positions.shape[-1]))
        lead = positions.rank - 1
        picked_all = [_index(source, places, index, [*at[:lead], str(k)], x.shape[batch + k]) for k in range(depth)]
        return places.load(data, [*at[:batch], *picked_all, *at[lead:]])


class OneHot(Indexed):
    """values[1] at each position, values[0] elsewhere."""

    name = "cuda.one_hot"
    ops = frozenset({"OneHot"})

    def value(self, source: Source, places: Places, site: Site) -> Value:
        index, values = site.step.inputs[:2]
        if index is None or values is None:
            raise ValueError("an operand is absent")
        axis = axis_of(integer(_attrs(site), "axis"), site.output.rank)
        found = places.load(index, [p for a, p in enumerate(places.at) if a != axis])
        size = source.dim(site.step.types[0].shape[axis])
        at = source.let(f"tl.where({found} < 0, {found} + {size}, {found})", "q")
        return places.load(values, [source.let(f"({at} == {places.at[axis]}).to(tl.int32)", "q")])


class Generated(Indexed):
    """Results that depend on the place alone: ConstantOfShape, Range, EyeLike; and Trilu, a mask by place."""

    name = "cuda.fill"
    ops = frozenset({"ConstantOfShape", "Range", "EyeLike", "Trilu"})

    def refuses(self, site: Site) -> str | None:
        attrs = _attrs(site)
        if site.op == "Range":
            whole = [dims(attrs, n) if site.output.dtype.kind != "float" else attrs[n] for n in ("start", "delta")]
            if any(not isinstance(v, (tuple, list)) or len(v) != 1 for v in whole):
                return "its start or step is not one number"
        k = attrs.get("k", 0)
        if site.op == "Trilu" and not (isinstance(k, (tuple, list)) and len(k) == 1 and isinstance(k[0], int)):
            return "its diagonal is not known"
        return None

    def value(self, source: Source, places: Places, site: Site) -> Value:
        attrs, dtype = _attrs(site), site.step.types[0].dtype
        kept = registers_of(dtype)
        if site.op == "ConstantOfShape":
            return Value(self._constant(places, attrs["value"], kept), kept)
        if site.op == "Range":
            if dtype.kind == "float":
                start, delta = (float(attrs[n][0]) for n in ("start", "delta"))     # type: ignore[index]
                return Value(source.let(f"i.to({NAMES[kept.name]}) * {number(delta)} + {number(start)}"), kept)
            low, step = (source.dim((dims(attrs, n) or (0,))[0]) for n in ("start", "delta"))
            return Value(source.let(f"(i.to(tl.int64) * {step} + {low}).to({NAMES[kept.name]})"), kept)
        row, column = places.at[-2:]
        if site.op == "EyeLike":
            hit = source.let(f"({row} + ({integer(attrs, 'k')}) == {column})")
            return Value(source.let(hit if kept == BOOL else f"{hit}.to({NAMES[kept.name]})"), kept)
        k = int(str(attrs["k"][0]))     # type: ignore[index]
        found = places.load(0, places.at)
        sign = ">=" if attrs["upper"] else "<="
        zero = self._constant(places, 0, kept)
        return Value(source.let(f"tl.where({column} - {row} {sign} {k}, {found}, {zero})"), kept)

    @staticmethod
    def _constant(places: Places, value: object, dtype: DType) -> str:
        if dtype == BOOL:
            return places.source.let(f"i * 0 == {0 if value else 1}")
        text = number(float(str(value))) if dtype.kind == "float" else str(int(str(int(value))))    # type: ignore[call-overload]
        return places.full(text, NAMES[dtype.name])


__all__ = ["ConstantPad", "Gather", "Generated", "OneHot", "Pooling", "Resampling"]
