"""Reading images at places that are computed at run time: GridSample and RoiAlign.

Every place of a result is worked out once, as a few places of the input with their weights, and then read in every
channel. The arithmetic is that of the reference, in f32.
"""
from __future__ import annotations

import math as numbers
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product as combinations

from ingot.graph import F32, product
from ingot.kernels.codegen import Code, Int, Value, isa_of
from ingot.kernels.steps import declines_order
from ingot.kernels.tactic import Kernel, Params, Site, Tactic
from ingot.ops import OPS
from ingot.ops.shapes import integer, word
from ingot.target import Target


@dataclass(frozen=True)
class Tap:
    """A place along one axis: inside the axis, whether it counts (None: it does), and its weight (None: one)."""

    place: Value
    inside: Value | None
    weight: Value | None


def _declines(site: Site, op: str) -> str | None:
    if site.op != op:
        return f"{site.op} is no {op}"
    if len(site.steps) > 1 or any(o.strides is not None or o.type.layout for o in (*site.inputs, *site.outputs)):
        return "needs dense, plain operands and takes no other steps"
    if any(o.type.dtype != F32 for o in (*site.inputs[:2], *site.outputs)):
        return "it takes f32"
    return declines_order(site)


def whole(code: Code, x: Value) -> Value:
    """f32 as i64 towards zero; what is too large, or NaN, becomes the nearest, or 0."""
    return code.intrinsic("fptosi.sat.i64", x, result="i64")


def clamped(code: Code, place: Value, size: Int) -> Value:
    """The nearest place inside an axis."""
    last = code.value(code.sub(size, 1))
    place = code.select(code.compare(">", place, last), last, place)
    return code.select(code.compare("<", place, 0), code.value(0), place)


def real(code: Code, n: Int) -> Value:
    """An integer as f32."""
    return code.constant(n) if isinstance(n, int) else code.convert("sitofp", n, "float")


class GridSample(Tactic):
    """One task per place of the result; all channels of it in turn."""

    name = "x86.grid_sample"

    def declines(self, site: Site, target: Target) -> str | None:
        if why := _declines(site, "GridSample"):
            return why
        attrs = {**OPS[site.op].attrs, **site.attrs}
        # there onnx.reference moves the place inside before it interpolates, ONNX Runtime and PyTorch each tap after
        beyond = attrs["mode"] == "cubic" and attrs["padding_mode"] != "zeros"
        return "cubic past the border: the judges differ on what that is" if beyond else None

    def emit(self, site: Site, params: Params, target: Target) -> Kernel:
        code = Code(isa_of(target), site.symbols)
        name = f"grid_sample_{site.key}"
        attrs = {**OPS[site.op].attrs, **site.attrs}
        x, grid, rank = site.inputs[0].type, site.inputs[1].type, site.inputs[0].type.rank - 2
        with code.function(name):
            batch, channels = code.dim(x.shape[0]), code.dim(x.shape[1])
            sizes = [code.dim(d) for d in x.shape[2:]]
            plane, places = code.dim(product(x.shape[2:])), code.dim(product(grid.shape[1:-1]))
            work = _Grid(code, attrs, sizes)
            with code.share(code.mul(batch, places)) as task:
                n, place = code.unflatten(task, [batch, places])
                at = code.offset(code.buffer(1), code.mul(task, rank))
                taps = [work.taps(axis, code.load(code.offset(at, rank - 1 - axis))) for axis in range(rank)]
                with code.loop(0, channels) as c:
                    image = code.add(code.mul(n, channels), c)
                    value = _read(code, code.offset(code.buffer(0), code.mul(image, plane)), taps, sizes)
                    code.store(value, code.offset(code.buffer(2), code.add(code.mul(image, places), place)))
        return Kernel(name, code.module(), (name,))


def _read(code: Code, image: Value, taps: Sequence[Sequence[Tap]], sizes: Sequence[Int]) -> Value:
    """The weighted sum of an image's elements at every combination of taps."""
    total: Value | None = None
    for chosen in combinations(*taps):
        at: Int = 0
        inside: Value | None = None
        weight: Value | None = None
        for tap, size in zip(chosen, sizes, strict=True):
            at = code.add(code.mul(at, size), tap.place)
            if tap.inside is not None:
                inside = tap.inside if inside is None else code.binary("and", inside, tap.inside)
            if tap.weight is not None:
                weight = tap.weight if weight is None else code.fmul(weight, tap.weight)
        value = code.load(code.offset(image, at))
        if inside is not None:
            value = code.select(inside, value, code.constant(0.0))
        if weight is not None:
            value = code.fmul(value, weight) if total is None else code.fma(value, weight, total)
        total = value
    assert total is not None        # there is at least one combination
    return total


class _Grid:
    """The coordinates of a GridSample being emitted."""

    def __init__(self, code: Code, attrs: dict[str, object], sizes: Sequence[Int]) -> None:
        self.code, self.sizes = code, sizes
        self.mode, self.padding = word(attrs, "mode"), word(attrs, "padding_mode")
        self.corners = bool(integer(attrs, "align_corners"))

    def taps(self, axis: int, n: Value) -> list[Tap]:
        """The places that a coordinate between -1 and 1 reads along an axis."""
        code, size = self.code, self.sizes[axis]
        one, half = code.constant(1.0), code.constant(0.5)
        if self.corners:
            x = code.fmul(code.fmul(code.fadd(n, one), half), real(code, code.sub(size, 1)))
        else:
            x = code.fmul(code.fsub(code.fmul(code.fadd(n, one), real(code, size)), one), half)
        if self.mode == "nearest":
            x = code.intrinsic("roundeven", x)
        low, high = self._border(size)
        if self.padding == "border":
            last = real(code, code.sub(size, 1))
            x = code.fmax(code.constant(0.0), code.fmin(last, x))
        elif self.padding == "reflection":
            x = self._reflected(x, low, high)
        if self.mode == "nearest":
            return [self._tap(whole(code, x), None, size)]
        floor = code.intrinsic("floor", x)
        t, first = code.fsub(x, floor), whole(code, floor)
        if self.mode == "linear":
            weights = [code.fsub(one, t), t]
        else:
            weights, first = _cubic(code, t), code.value(code.sub(first, 1))
        return [self._tap(code.value(code.add(first, k)), w, size) for k, w in enumerate(weights)]

    def _border(self, size: Int) -> tuple[Value, Value]:
        code, off = self.code, self.code.constant(0.0 if self.corners else -0.5)
        end = real(code, code.sub(size, 1))
        return off, end if self.corners else code.fadd(end, code.constant(0.5))

    def _reflected(self, x: Value, low: Value, high: Value) -> Value:
        """A coordinate mirrored at both borders until it lies between them."""
        code, zero = self.code, self.code.constant(0.0)
        span = code.fsub(high, low)
        below = code.fcompare("olt", x, low)
        past = code.select(below, code.fsub(low, x), code.fsub(x, high))
        times = code.intrinsic("trunc", code.fdiv(past, span))
        rest = code.fsub(past, code.fmul(times, span))
        half = code.fmul(times, code.constant(0.5))
        even = code.fcompare("oeq", code.intrinsic("floor", half), half)
        up, down = code.fadd(low, rest), code.fsub(high, rest)
        mirrored = code.select(code.binary("xor", below, even), down, up)
        mirrored = code.select(code.fcompare("oeq", span, zero), low, mirrored)
        outside = code.binary("or", below, code.fcompare("ogt", x, high))
        return code.select(outside, mirrored, x)

    def _tap(self, place: Value, weight: Value | None, size: Int) -> Tap:
        code = self.code
        if self.padding == "zeros":
            inside = code.binary("and", code.compare(">=", place, 0), code.compare("<", place, code.value(size)))
            return Tap(clamped(code, place, size), inside, weight)
        if self.padding == "reflection":
            place = whole(code, self._reflected(code.convert("sitofp", place, "float"), *self._border(size)))
        return Tap(clamped(code, place, size), None, weight)


def _cubic(code: Code, t: Value) -> list[Value]:
    """Keys's cubic weights with alpha = -0.75, for a place t past the second of four."""
    alpha, one = -0.75, code.constant(1.0)

    def outer(x: Value) -> Value:
        value = code.fsub(code.fmul(x, code.constant(alpha)), code.constant(5 * alpha))
        value = code.fadd(code.fmul(value, x), code.constant(8 * alpha))
        return code.fsub(code.fmul(value, x), code.constant(4 * alpha))

    def inner(x: Value) -> Value:
        value = code.fsub(code.fmul(x, code.constant(alpha + 2)), code.constant(alpha + 3))
        return code.fadd(code.fmul(code.fmul(value, x), x), one)
    return [outer(code.fadd(t, one)), inner(t), inner(code.fsub(one, t)), outer(code.fsub(code.constant(2.0), t))]


# --- RoiAlign ---------------------------------------------------------------------------------------------------------

class RoiAlign(Tactic):
    """One task per region, channel and row of the result."""

    name = "x86.roi_align"

    def declines(self, site: Site, target: Target) -> str | None:
        if why := _declines(site, "RoiAlign"):
            return why
        return None if site.inputs[2].type.dtype.name in ("i64", "i32") else "positions of another type"

    def emit(self, site: Site, params: Params, target: Target) -> Kernel:
        code = Code(isa_of(target), site.symbols)
        name = f"roi_align_{site.key}"
        with code.function(name):
            _Regions(code, site).emit()
        return Kernel(name, code.module(), (name,))


class _Regions:
    """A RoiAlign being emitted."""

    def __init__(self, code: Code, site: Site) -> None:
        self.code, self.site = code, site
        self.attrs = {**OPS[site.op].attrs, **site.attrs}
        self.batch, self.channels, self.height, self.width = (code.dim(d) for d in site.inputs[0].type.shape)
        self.greatest = word(self.attrs, "mode").lower() == "max"
        self.centred = word(self.attrs, "coordinate_transformation_mode").lower() == "half_pixel"
        self.ratio = integer(self.attrs, "sampling_ratio")

    def emit(self) -> None:
        code, out = self.code, [self.code.dim(d) for d in self.site.output.shape]
        with code.share(code.mul(code.mul(out[0], out[1]), out[2])) as task:
            region, c, row = code.unflatten(task, [out[0], out[1], out[2]])
            x0, y0, x1, y1 = self._corners(region)
            index = "i64" if self.site.inputs[2].type.dtype.name == "i64" else "i32"
            image = code.load(code.offset(code.buffer(2), region, index), index)
            image = clamped(code, image if index == "i64" else code.convert("sext", image, "i64"), self.batch)
            plane = code.mul(code.add(code.mul(image, self.channels), c), code.mul(self.height, self.width))
            source = code.offset(code.buffer(0), plane)
            high, wide = self._bin(y0, y1, out[2]), self._bin(x0, x1, out[3])
            rows, columns = self._samples(high), self._samples(wide)
            with code.loop(0, out[3]) as column:
                value = self._pooled(source, (row, y0, high, rows), (column, x0, wide, columns))
                code.store(value, code.offset(code.buffer(3), code.add(code.mul(task, out[3]), column)))

    def _corners(self, region: Int) -> list[Value]:
        code = self.code
        scale = code.constant(float(str(self.attrs["spatial_scale"])))
        found = [code.load(code.offset(code.buffer(1), code.add(code.mul(region, 4), k))) for k in range(4)]
        moved = [code.fmul(v, scale) for v in found]
        return [code.fsub(v, code.constant(0.5)) for v in moved] if self.centred else moved

    def _bin(self, start: Value, end: Value, count: Int) -> Value:
        code, size = self.code, self.code.fsub(end, start)
        if not self.centred:        # malformed regions are one wide
            size = code.fmax(code.constant(1.0), size)
        return code.fdiv(size, real(code, count))

    def _samples(self, size: Value) -> Int:
        code = self.code
        return self.ratio if self.ratio > 0 else code.max(0, whole(code, code.intrinsic("ceil", size)))

    def _pooled(self, source: Value, vertical: tuple[Int, Value, Value, Int],
                horizontal: tuple[Int, Value, Value, Int]) -> Value:
        code = self.code
        total = code.variable(code.constant(-numbers.inf if self.greatest else 0.0))
        with code.loop(0, vertical[3]) as i:
            y, y_in = self._taps(vertical, i, self.height)
            with code.loop(0, horizontal[3]) as j:
                x, x_in = self._taps(horizontal, j, self.width)
                inside = code.binary("and", y_in, x_in)
                parts = []
                for (py, wy), (px, wx) in combinations(y, x):
                    at = code.add(code.mul(py, self.width), px)
                    part = code.fmul(code.fmul(wy, wx), code.load(code.offset(source, at)))
                    parts.append(code.select(inside, part, code.constant(0.0)))
                if self.greatest:
                    for part in parts:
                        total.set(code.fmax(part, total.get()))
                else:
                    value = code.fadd(code.fadd(parts[0], parts[1]), code.fadd(parts[2], parts[3]))
                    total.set(code.fadd(total.get(), value))
        count = code.mul(vertical[3], horizontal[3])
        if self.greatest:
            some = code.compare(">", code.value(count), 0)
            return code.select(some, total.get(), code.constant(0.0))
        return code.fdiv(total.get(), real(code, code.max(count, 1)))

    def _taps(self, line: tuple[Int, Value, Value, Int], sample: Int,
              size: Int) -> tuple[list[tuple[Value, Value]], Value]:
        """The two places a sample lies between, with their weights; and whether it lies on the image at all."""
        code, (place, start, step, samples) = self.code, line
        part = code.fadd(real(code, sample), code.constant(0.5))
        x = code.fadd(start, code.fmul(real(code, place), step))
        x = code.fadd(x, code.fdiv(code.fmul(part, step), real(code, samples)))
        inside = code.binary("and", code.fcompare("oge", x, code.constant(-1.0)),
                             code.fcompare("ole", x, real(code, size)))
        x = code.fmax(code.constant(0.0), x)
        low = clamped(code, whole(code, x), size)
        end = code.compare(">=", low, code.value(code.sub(size, 1)))
        high = code.select(end, low, code.value(code.add(low, 1)))
        t = code.select(end, code.constant(0.0), code.fsub(x, code.convert("sitofp", low, "float")))
        return [(low, code.fsub(code.constant(1.0), t)), (high, t)], inside

