"""Blocked convolutions as grids of pixels: which sites qualify, how their weights are packed, which tiles to try."""
from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np

from ingot.graph import F32, Dim, evaluate
from ingot.graph.dim import symbols_of
from ingot.kernels import Params, Site
from ingot.kernels.codegen import Isa, isa_of
from ingot.kernels.codegen.tile import fits
from ingot.kernels.steps import operands_of
from ingot.kernels.x86.conv_form import Form, Placed, declines_epilogue, form
from ingot.target import Target

_FLAT_LEAST = 6         # narrowest row of a flattened grid of pixels
_POINTS = 6             # points to try at most
_KEEP = 256 << 10       # bytes of input a strip may take: it stays in the second-level cache beside the weights


@dataclass(frozen=True)
class Grid:
    """The form as tiles see it: a kernel of 1x1 over dense pixels is a grid of any convenient shape."""

    f: Form
    block: int              # input channels per block of the input (1: plain)
    padded: bool            # rows are copied between zeros
    flat: bool              # pixels are in rows of another width than the tensor's

    @property
    def blocks(self) -> int:
        """Input blocks per group."""
        return -(-self.f.depth // self.block)

    @property
    def steps(self) -> int:
        """Depth steps of one sum, padding lanes included."""
        return self.blocks * self.f.taps * self.block


def is_product(f: Form) -> bool:
    return f.taps == 1 and f.pads_zero


def declines(site: Site, target: Target) -> Form | str:
    f = form(site)
    if isinstance(f, str):
        return f
    isa = isa_of(target)
    if f.dtype != F32:
        return f"elements of type {f.dtype}"
    if f.out.block != isa.block or f.x.block not in (0, isa.block):
        return "the output is not in this instruction set's blocked layout"
    if not f.constant_weight or (f.bias_index is not None and not f.constant_bias):
        return "the weight is not constant"
    if f.groups > 1 and (f.width % isa.block or (f.x.block and f.depth % isa.block)):
        return "groups that are not whole channel blocks"
    if any(isinstance(p, int) and p < 0 for p in (*f.begins, *f.ends)):
        return "negative padding"
    if f.out.steps[4] != f.out.block or f.x.steps[4] != max(1, f.x.block):
        return "strided pixels"
    if not f.static and (f.kernel[0] > 1 or symbols_of(f.begins[1]) | symbols_of(f.begins[2])):
        return "symbolic spatial sizes with symbolic padding or three axes"
    return declines_epilogue(site) or f


def grid_of(site: Site, *, kind: str = "") -> Grid:
    f = form(site, kind=kind)
    if isinstance(f, str):
        raise ValueError(f)
    whole = all(p.type.layout and p.steps[3] == p.steps[4] * p.type.shape[-1] for p in (f.x, f.out))
    if is_product(f) and f.strides == (1, 1, 1) and f.size[0] == 1 and whole and not _spatial_extras(site, f):
        return Grid(_flattened(f), f.x.block, False, True)
    return Grid(f, max(1, f.x.block), not f.pads_zero, False)


def _spatial_extras(site: Site, f: Form) -> bool:
    """Whether an epilogue operand lies over the pixels otherwise than as a dense tensor like the output."""
    for index in operands_of(site.epilogue):
        t = site.inputs[index].type
        spatial = (1,) * (f.out.type.rank - t.rank) + t.shape
        if any(d != 1 for d in spatial[2:]) and (
                t.layout != f.out.type.layout or t.shape != f.out.type.shape or site.inputs[index].strides is not None):
            return True
    return False


def _flattened(f: Form) -> Form:
    """The pixels of a dense 1x1 convolution as rows of a width that tiles well."""
    pixels = f.size[1] * f.size[2]
    rows, columns = f.size[1], f.size[2]
    if isinstance(pixels, int):
        widths = [w for w in range(_FLAT_LEAST, 29) if pixels % w == 0]
        if widths:
            best = next((w for w in (14, 28, 7) if w in widths), max(widths))
            rows, columns = pixels // best, best
    else:
        rows, columns = 1, pixels

    return replace(f, size=(1, rows, columns), out_size=(1, rows, columns), x=in_rows(f.x, columns),
                   out=in_rows(f.out, columns))


def in_rows(p: Placed, columns: Dim) -> Placed:
    """A dense tensor seen in rows of another width (one that is broadcast over pixels stays as it is)."""
    a, b, c, _, pixel = p.steps
    return replace(p, steps=(a, b, c, pixel * columns, pixel))


def pack_weight(grid: Grid, weight: np.ndarray, vectors: int, lanes: int) -> np.ndarray:
    """[group][channel group][input block][taps][input lane][vectors x lanes], flat; what is past the end is zero."""
    f = grid.f
    count = vectors_of(f, lanes)
    whole = np.zeros((f.groups, count * lanes, grid.blocks * grid.block, f.taps), np.float32)
    whole[:, :f.width, :f.depth] = weight.reshape(f.groups, f.width, f.depth, f.taps)
    split = whole.reshape(f.groups, count, lanes, grid.blocks, grid.block, f.taps)
    parts = []
    for g in range(f.groups):
        for start in range(0, count, vectors):
            part = split[g, start:start + vectors]
            part = part.reshape(len(part) * lanes, grid.blocks, grid.block, f.taps).transpose(1, 3, 2, 0)
            parts.append(np.ascontiguousarray(part).reshape(-1))
    return np.concatenate(parts)


def vectors_of(f: Form, lanes: int) -> int:
    """Vectors of output channels per group, whole blocks."""
    return -(-f.width // f.out.block) * (f.out.block // lanes)


# --- the space ------------------------------------------------------------------------------------------------------


def _most(isa: Isa, vectors: int) -> int:
    """The most pixels a tile of so many vectors may have."""
    return max(p for p in range(1, 29) if fits(isa, p, vectors))


def _tile(f: Form, isa: Isa, vectors: int) -> tuple[int, int]:
    """(rows, columns) of the tile that fills the registers best."""
    most, width, height = _most(isa, vectors), f.out_size[2], f.out_size[1]
    if not isinstance(width, int) or not isinstance(height, int):
        return 1, min(most, 14)
    if width <= most:
        return max(1, min(most // width, height)), width
    pieces = -(-width // most)
    return 1, -(-width // pieces)


def _load(height: int, strip: int, parts: int, batch: int, threads: int) -> float:
    """Rows the busiest thread computes, over an even share: tasks are (image, strip, channel group), in this order."""
    strips = -(-height // strip)
    tasks = batch * strips * parts
    last = height - (strips - 1) * strip

    def shorter(end: int) -> int:
        """How many of the tasks before this one are of a last, shorter strip."""
        images, rest = divmod(end, parts * strips)
        return images * parts + max(0, rest - parts * (strips - 1))

    worst = 0
    for t in range(threads):
        low, high = t * tasks // threads, (t + 1) * tasks // threads
        short = shorter(high) - shorter(low)
        worst = max(worst, (high - low - short) * strip + short * last)
    return worst * threads / (batch * height * parts)


def _afar(f: Form, places: int, threads: int) -> float:
    """What a split costs in data from the other cores' caches, as a share of the time to compute.

    Threads that split the pixels read all the weights each; threads that split the channels read all the input, half
    of which another core wrote, and leave a result that the next layer, split by pixels, finds half elsewhere.
    """
    inner, outer = (math.prod(d for d in dims if isinstance(d, int)) for dims in (f.size, f.out_size))
    sums = outer * f.filters * f.depth * f.taps / threads / 16          # cycles, about
    if threads == 1:
        return 0.0
    if places >= threads:
        return f.filters * f.depth * f.taps * 4 / 2 / 8 / sums
    return (inner * f.channels * 4 / 2 + outer * f.filters * 4 / 4) / 4 / sums


def _strips(grid: Grid, rows: int, parts: int, threads: int, batch: int) -> list[int]:
    """Output rows per task, the best first: even shares, input that stays in cache, few copies and weight streams."""
    f = grid.f
    height, width, out_width = f.out_size[1], f.size[2], f.out_size[2]
    if not isinstance(height, int) or not isinstance(width, int) or not isinstance(out_width, int):
        return [8]
    found = {}
    for pieces in range(1, -(-height // rows) + 1):
        strip = (height + pieces * rows - 1) // (pieces * rows) * rows
        if strip in found:
            continue
        in_rows = (strip - 1) * f.strides[1] + (f.kernel[1] - 1) * f.dilations[1] + 1
        cost = _load(height, strip, parts * f.groups, min(batch, 2 * threads), threads)
        if grid.padded:                                     # about three cycles a vector copied
            cost *= 1 + 3 * in_rows * width / (strip * out_width * f.width * f.taps)
        nbytes = in_rows * width * f.channels * 4
        cost *= 1 + 0.02 * max(0.0, nbytes / _KEEP - 1)     # strips beyond the second-level cache
        if f.filters * f.depth * f.taps * 4 > _KEEP:        # weights that come from afar for each strip
            cost *= 1 + 1.5 / (strip * out_width)
        found[strip] = (cost + _afar(f, -(-height // strip) * batch, threads)) * (1 + 0.003 / strip)
    best = min(found, key=lambda s: found[s])

    def splits_pixels(strip: int) -> bool:
        return -(-height // strip) * batch >= threads

    # a race of one kernel alone does not see where its neighbours leave their data: it must not undo that choice
    alike = [s for s in found if splits_pixels(s) == splits_pixels(best)]
    return sorted(alike, key=lambda s: found[s])


def points(site: Site, grid: Grid, target: Target) -> Iterator[Params]:
    """Register tiles by the loads they need per multiply-add, each with two sizes of strips."""
    f, isa = grid.f, isa_of(target)
    count = vectors_of(f, isa.lanes)
    unit = f.out.block // isa.lanes
    batch = evaluate(f.batch, {s.name: s.opt for s in site.symbols})
    height = f.out_size[1]
    ranked: list[tuple[float, Params]] = []
    for vectors in range(unit, 7, unit):
        if vectors > count:
            break
        rows, columns = _tile(f, isa, vectors)
        pixels = rows * columns
        rest = count % vectors
        waste = 1.3 if rest else 1.0
        if pixels * vectors < 6 and vectors < count:
            continue
        ragged = 0.0 if not isinstance(height, int) else (height % rows) / height
        busy = max(1.0, 10 / (pixels * vectors))        # too few accumulators to hide the latency
        # loads per multiply-add: broadcasts come from the first-level cache, weights often from much farther
        crowded = 1.25 if vectors == 1 else 1.0         # a load for every multiply-add
        cost = waste * (1 + 0.5 * ragged) * busy * crowded * (1 + 0.5 / vectors + 2 / pixels)
        ranked.append((cost, {"rows": rows, "columns": columns, "vectors": vectors}))
    ranked.sort(key=lambda r: r[0])
    plans: list[tuple[int, Params]] = []
    for place, (_, point) in enumerate(ranked[:4]):
        strips = _strips(grid, point["rows"], -(-count // point["vectors"]), target.threads, batch)
        plans += ((place + 2 * rank, {**point, "strip": strip}) for rank, strip in enumerate(strips[:2]))
    yield from (p for _, p in sorted(plans, key=lambda c: c[0])[:_POINTS])
