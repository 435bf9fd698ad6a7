"""Resize and padding by reflection: each place of a result is a few places of the input, per axis, with weights.

Where they lie and what they weigh is worked out when the kernel is made, axis by axis, and kept as tables beside the
code: exactly the arithmetic of the reference, whatever the mode.
"""
from __future__ import annotations

import math as numbers
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import product as combinations

import numpy as np

from ingot.graph import F32, F64, Dim, TensorType
from ingot.kernels.codegen import Code, Int, Value, element_of, isa_of
from ingot.kernels.tactic import Kernel, Params, Site, Tactic
from ingot.kernels.x86.nest import Side, View, advance
from ingot.kernels.x86.transpose import BITS, declines_movement
from ingot.ops import OPS, dims
from ingot.ops.resize import resized
from ingot.ops.shapes import axes_of, word
from ingot.target import Target


@dataclass(frozen=True)
class Taps:
    """Per place of the result along an axis: the input's places [size, taps], and their weights (None: one, whole)."""

    places: np.ndarray
    weights: np.ndarray | None = None

    @property
    def count(self) -> int:
        return int(self.places.shape[1])


Picker = Callable[[Side], Value]
Table = dict[int, Taps]     # by axis; an axis that is not there is taken as it is


# --- Resize -----------------------------------------------------------------------------------------------------------

def resize_table(site: Site) -> Table | str:
    """The taps of a Resize, or why there are none."""
    x, attrs = site.inputs[0].type, {**OPS["Resize"].attrs, **site.attrs}
    mode = word(attrs, "coordinate_transformation_mode")
    if mode == "tf_crop_and_resize":
        return "a region of interest"
    shape, scales = resized((x,), attrs)
    found: Table = {}
    for axis, (old, new, scale) in enumerate(zip(x.shape, shape, scales, strict=True)):
        if old == new and (scale is None or scale == 1.0):
            continue
        if not isinstance(old, int) or not isinstance(new, int):
            return f"axis {axis} has a size known only at run time"
        found[axis] = _axis_taps(old, new, new / old if scale is None else scale, attrs)
    return found


def _coordinates(old: int, new: int, scale: float, mode: str) -> np.ndarray:
    y, width = np.arange(new, dtype=np.float64), scale * old
    if mode == "align_corners":
        return np.zeros(new) if width == 1 else y * (old - 1) / (width - 1)
    if mode == "asymmetric":
        return y / scale
    if mode == "pytorch_half_pixel" and width == 1:
        return np.full(new, -0.5)
    offset = old / 2 * (1 - new / width) if mode == "half_pixel_symmetric" else 0.0
    return offset + (y + 0.5) / scale - 0.5


def _axis_taps(old: int, new: int, scale: float, attrs: Mapping[str, object]) -> Taps:
    x = _coordinates(old, new, scale, word(attrs, "coordinate_transformation_mode"))
    floor = np.floor(x)
    ratio = np.where(x == floor, 1.0, x - floor)        # in (0, 1]: the left one of two neighbours is preferred
    mode, shrink = word(attrs, "mode"), min(scale, 1.0) if attrs["antialias"] else 1.0
    if mode == "nearest":
        right = {"round_prefer_floor": ratio > 0.5, "round_prefer_ceil": ratio >= 0.5, "floor": ratio == 1.0,
                 "ceil": ratio > 0.0}[word(attrs, "nearest_mode")]
        left = np.where(x == floor, floor - 1, floor)
        return Taps(np.clip(left + right, 0, old - 1).astype(np.int64)[:, None])
    reach = 1 if mode == "linear" else 2
    start = int(np.floor(-reach / shrink) + 1)
    steps = np.arange(start, 2 - start)
    distance = np.abs((steps[None, :] - ratio[:, None]) * shrink)
    if mode == "linear":
        weights = np.clip(1 - distance, 0, 1)
    else:
        a = float(str(attrs["cubic_coeff_a"]))
        near = (a + 2) * distance**3 - (a + 3) * distance**2 + 1
        far = a * distance**3 - 5 * a * distance**2 + 8 * a * distance - 4 * a
        weights = np.where(distance <= 1, near, np.where(distance < 2, far, 0.0))
    if attrs["antialias"]:
        weights = weights / weights.sum(1, keepdims=True)
    places = np.where(x == floor, floor - 1, floor)[:, None] + steps[None, :]
    if attrs["exclude_outside"]:
        weights = np.where((places < 0) | (places >= old), 0.0, weights)
        total = weights.sum(1, keepdims=True)
        weights = weights / np.where(total == 0, 1.0, total)
    return Taps(np.clip(places, 0, old - 1).astype(np.int64), weights)


# --- Pad --------------------------------------------------------------------------------------------------------------

def pad_table(site: Site) -> Table | str:
    """The taps of a Pad by reflection, by the edge or around, or why there are none."""
    x, attrs = site.inputs[0].type, {**OPS["Pad"].attrs, **site.attrs}
    pads, named = dims(attrs, "pads") or (), attrs.get("axes")
    axes = axes_of(tuple(int(str(a)) for a in named) if isinstance(named, (tuple, list)) else range(x.rank), x.rank)
    found: Table = {}
    for k, axis in enumerate(axes):
        before, after, size = pads[k], pads[k + len(axes)], x.shape[axis]
        if before == 0 and after == 0:
            continue
        if not isinstance(before, int) or not isinstance(after, int) or not isinstance(size, int):
            return f"axis {axis} has a size known only at run time"
        place = np.arange(-before, size + after)
        kind = attrs["mode"]
        if kind == "edge":
            place = np.clip(place, 0, size - 1)
        elif kind == "wrap":
            place = place % size
        else:
            period = max(1, 2 * (size - 1))
            place = place % period
            place = np.where(place >= size, period - place, place)
        found[axis] = Taps(place[:, None])
    return found


# --- the kernel -------------------------------------------------------------------------------------------------------

def table_of(site: Site) -> Table | str:
    """The taps of any op this file serves."""
    if site.op == "Resize":
        return resize_table(site)
    if site.op == "Pad" and site.attrs.get("mode", "constant") != "constant":
        return pad_table(site)
    return f"{site.op} is no resampling"


class Resampling(Tactic):
    """A row of results at a time: the input's rows it needs, then the taps along the row."""

    name = "x86.resample"

    def declines(self, site: Site, target: Target) -> str | None:
        found = table_of(site)
        if isinstance(found, str):
            return found
        x = site.inputs[0].type
        if x.layout != site.output.layout or (x.layout and any(axis < 2 for axis in found)):
            return "the layout must stay, and its channels"
        if any(t.weights is not None for t in found.values()) and x.dtype not in (F32, F64):
            return f"weights on {x.dtype}"
        if numbers.prod(t.count for t in found.values()) > 128:
            return "more than 128 taps"
        return declines_movement(site)

    def emit(self, site: Site, params: Params, target: Target) -> Kernel:
        code = Code(isa_of(target), site.symbols)
        name = f"resample_{site.key}"
        table = table_of(site)
        assert not isinstance(table, str)       # declined
        with code.function(name):
            _Resampling(code, site, table).emit()
        return Kernel(name, code.module(), (name,))


class _Resampling:
    """A resampling being emitted: over physical dimensions, the last one (or the one before it, if blocked) by row."""

    def __init__(self, code: Code, site: Site, table: Table) -> None:
        self.code, self.site, self.table = code, site, table
        x: TensorType = site.inputs[0].type
        self.blocked = bool(x.layout)
        self.weighted = any(t.weights is not None for t in table.values())
        self.element = element_of(x.dtype) if self.weighted else BITS[x.dtype.nbytes]
        self.nbytes = x.dtype.nbytes
        self.sizes: tuple[Dim, ...] = site.output.physical
        self.row = len(self.sizes) - 1 - self.blocked
        gathers = self.row in table and not self.blocked
        self.lanes = x.block if self.blocked else 1 if gathers and self.nbytes < 4 else \
            code.isa.lanes * 4 // max(4, self.nbytes)
        self.tables = {a: (code.table(t.places.ravel().tolist(), "i64" if self.nbytes == 8 else "i32"),
                           None if t.weights is None else code.table(t.weights.ravel().tolist(), self.element))
                       for a, t in table.items()}
        if gathers:     # by tap, so that a vector of places is contiguous
            t = table[self.row]
            self.tables[self.row] = (
                code.table(t.places.T.ravel().tolist(), "i64" if self.nbytes == 8 else "i32"),
                None if t.weights is None else code.table(t.weights.T.ravel().tolist(), self.element))

    def emit(self) -> None:
        code = self.code
        x = Side(code.buffer(0), self.element, View(self.site.inputs[0].steps))
        out = Side(code.buffer(len(self.site.inputs)), self.element, View(self.site.outputs[0].steps))
        lead = [code.dim(d) for d in self.sizes[:self.row]]
        tasks: Int = 1
        for d in lead:
            tasks = code.mul(tasks, d)
        with code.share(tasks) as task:
            places = code.unflatten(task, lead) if lead else []
            rows = self._rows(x, places)
            here = advance(code, out, list(zip(places, out.view.strides, strict=False)))
            width = code.dim(self.sizes[self.row])
            with code.loop(0, width, 1 if self.blocked else self.lanes) as at:
                mask = None if self.blocked or self.lanes == 1 else code.mask(code.sub(width, at), self.lanes)
                value = self._value(rows, at, mask)
                code.store(value, advance(code, here, [(at, out.view.strides[self.row])]).pointer, mask)

    def _rows(self, x: Side, places: Sequence[Int]) -> list[tuple[Side, Value | None]]:
        """The rows of the input that a row of results is made of, with their weights."""
        code = self.code
        choices: list[list[tuple[Int, Value | None]]] = []
        for axis, place in enumerate(places):
            if axis not in self.table:
                choices.append([(place, None)])
                continue
            count = self.table[axis].count
            choices.append([self._tap(axis, code.add(code.mul(place, count), t)) for t in range(count)])
        found = []
        for chosen in combinations(*choices):
            moved = advance(code, x, [(p, s) for (p, _), s in zip(chosen, x.view.strides, strict=False)])
            weight: Value | None = None
            for _, w in chosen:
                weight = w if weight is None else weight if w is None else code.fmul(weight, w)
            found.append((moved, weight))
        return found

    def _tap(self, axis: int, index: Int) -> tuple[Value, Value | None]:
        code = self.code
        places, weights = self.tables[axis]
        kind = "i64" if self.nbytes == 8 else "i32"
        place = code.load(code.offset(places, index, kind), kind)
        if kind == "i32":
            place = code.convert("zext", place, "i64")
        return place, None if weights is None else code.load(code.offset(weights, index, self.element), self.element)

    def _value(self, rows: Sequence[tuple[Side, Value | None]], at: Int, mask: Value | None) -> Value:
        code = self.code
        total: Value | None = None
        count = self.table[self.row].count if self.row in self.table else 1
        for t in range(count):
            pick, weight = self._picker(at, t, count, mask)
            column: Value | None = None
            for row, w in rows:
                value = pick(row)
                if w is not None:
                    wide = code.splat(w, self.lanes)
                    value = code.fmul(value, wide) if column is None else code.fma(value, wide, column)
                column = value
            assert column is not None       # there is at least one row
            if weight is not None:
                column = code.fmul(column, weight) if total is None else code.fma(column, weight, total)
            total = column
        assert total is not None
        return total

    def _picker(self, at: Int, t: int, count: int, mask: Value | None) -> tuple[Picker, Value | None]:
        """What reads tap t of the places from `at` on out of a row, and the tap's weight."""
        code, stride = self.code, self.site.inputs[0].steps[self.row]

        def plain(place: Int) -> Picker:
            def pick(row: Side) -> Value:
                return code.load(advance(code, row, [(place, stride)]).pointer, self.element, self.lanes, mask)
            return pick
        if self.row not in self.table:
            return plain(at), None
        if self.blocked:
            place, weight = self._tap(self.row, code.add(code.mul(at, count), t))
            return plain(place), None if weight is None else code.splat(weight, self.lanes)
        places, weights = self.tables[self.row]
        width = code.dim(self.sizes[self.row])
        index, kind = code.add(code.mul(width, t), at), "i64" if self.nbytes == 8 else "i32"
        where = code.load(code.offset(places, index, kind), kind, self.lanes, mask)
        if self.lanes == 1:
            where = where if kind == "i64" else code.convert("zext", where, "i64")
            picked = plain(where)
        else:
            def picked(row: Side) -> Value:
                return code.gather(row.pointer, where, self.element, mask)
        if weights is None:
            return picked, None
        return picked, code.load(code.offset(weights, index, self.element), self.element, self.lanes, mask)
