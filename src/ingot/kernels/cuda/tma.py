"""Products and convolutions for Hopper in Gluon: operands by TMA into shared memory, warp-group products, TMA stores.

A ring of stages is filled ahead by the copy engine; a convolution's windows come as im2col boxes, so that no address is
computed. Weights are asked for before the kernel waits for the one before it, activations after.
"""
from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np

from ingot.graph import BF16, F8E4M3, F16, I8, Dim, DType, product
from ingot.kernels.cuda.base import CudaTactic, Drafts
from ingot.kernels.cuda.conv_form import Form as ConvForm
from ingot.kernels.cuda.conv_form import ending as conv_ending
from ingot.kernels.cuda.conv_form import five, pixel_parts
from ingot.kernels.cuda.conv_form import form_of as conv_form_of
from ingot.kernels.cuda.ending import Ending, Split
from ingot.kernels.cuda.kernel import TensorMap
from ingot.kernels.cuda.matmul import (
    accumulator,
    block_clocks,
    declines_product,
    ending,
    multiprocessors,
    packed_right,
    splits_for,
    spread_out,
)
from ingot.kernels.cuda.pointwise import spread
from ingot.kernels.cuda.source import (
    SHARED,
    TYPES,
    Source,
    Value,
    capability,
    ceil_div,
    power_of_two,
    registers_of,
    sums_of,
    usual,
)
from ingot.kernels.steps import operands_of
from ingot.kernels.tactic import Params, Site
from ingot.kernels.x86.matmul_form import Form, collapsed
from ingot.kernels.x86.matmul_form import spread as product_spread
from ingot.target import Target

SERVED = (F16, BF16, I8, F8E4M3)
DEPTH = 64          # elements of the depth per step, of halves: 128 bytes, the widest swizzle
SHAPES = ((64, 32, 4), (64, 64, 4), (64, 128, 4), (64, 256, 4), (128, 64, 4), (128, 64, 8), (128, 128, 4),
          (128, 128, 8), (128, 256, 8), (256, 64, 8), (256, 128, 8))    # rows, columns, warps


@dataclass(frozen=True)
class Matrix:
    """A matrix in memory for TMA: an operand, rows and columns, elements from row to row."""

    of: int
    rows: Dim
    columns: Dim
    step: Dim

    def map(self, dtype: DType) -> TensorMap:
        return TensorMap(self.of, dtype, (self.rows, self.columns), (self.step, 1), (), 0)


def fits_tma(step: Dim, dtype: DType) -> bool:
    """Whether rows so many elements apart start at multiples of 16 bytes."""
    return isinstance(step, int) and step > 0 and step * dtype.nbytes % 16 == 0


def declines_target(target: Target) -> str | None:
    """Why warp-group products cannot be used on a target."""
    return None if capability(target) == 90 else "warp-group products are Hopper's (sm_90)"


def shared_layout(columns: int, nbytes: int = 2) -> str:
    """The swizzled layout of a tile so many elements of so many bytes wide."""
    return (f"NVMMASharedLayout(swizzle_byte_width={min(128, columns * nbytes)}, element_bitwidth={8 * nbytes}, "
            "rank=2, transposed=False, fp4_padded=False, cga_layout=[])")


def depth_of(dtype: DType, channels: int) -> int:
    """Elements of the depth per step, where so many lie next to each other."""
    return DEPTH if dtype.nbytes > 1 else max(32, min(2 * DEPTH, power_of_two(channels)))


def tma_points(rows: int, columns: int, steps: int, extra: int, target: Target, depth: int, size: int) -> list[Params]:
    """Block shapes, stages and splits worth a race, the shortest by the model first. `extra`: bytes of an element of
    what is brought beside the result; `depth` elements of `size` bytes a step."""
    multi, room = multiprocessors(target), SHARED["sm_90"] * 1024
    found: list[tuple[float, dict[str, int]]] = []
    for r, c, w in SHAPES:
        if (c > 32 and c >= 2 * columns) or (r > 64 and r >= 2 * rows):
            continue
        tiles = -(-rows // r) * -(-columns // c)
        held = r * c * extra
        for parts in splits_for(tiles, steps, multi):
            per = -(-steps // parts)
            for blocks in (1, 2, 3, 4):
                stages = min(8, (room // blocks - 1536 - held) // ((r + c) * depth * size), per + 1)
                if stages < 2:
                    continue
                # its loads are asynchronous throughout, its addresses free: a little less than pointers cost
                clocks = block_clocks(r, c, depth, size, stages, w, tiles, steps, parts, multi, room) * 0.9
                found.append((clocks, {"rows": r, "columns": c, "depth": depth, "warps": w, "stages": stages,
                                       "split": parts}))
    found.sort(key=lambda pair: pair[0])
    return spread_out([p for _, p in found], "stages")


class TmaTactic(CudaTactic):
    """What the two tactics share: the ring of stages, the products, the end."""

    def kernel(self, source: Source, params: Params, left: TensorMap, weight: Matrix, out: Matrix | None,
               beside: Matrix | None, steps: int, *, batch_kind: str, start: str, load: str) -> None:
        """The text up to where `sums` holds a block's sums (or a part of them). `load` is the call that asks for step
        `at` of the left operand, without its last arguments; `start` defines what it needs."""
        rows, columns, depth, stages = params["rows"], params["columns"], params["depth"], params["stages"]
        parts = params["split"]
        dtype = source.operand(weight.of).type.dtype
        kind, wide = TYPES[dtype.name], shared_layout(depth, dtype.nbytes)
        source.tensor_map("left", f"{batch_kind}{wide}>", left)
        source.tensor_map("right", f"tensordesc<{kind}[{columns},{depth}],{wide}>",
                          weight.map(dtype))
        for name, matrix in (("result", out), ("beside", beside)):
            if matrix is not None:
                own = source.operand(matrix.of).type.dtype
                source.tensor_map(name, f"tensordesc<{TYPES[own.name]}[{rows},{columns}],"
                                        f"{shared_layout(columns, own.nbytes)}>", matrix.map(own))
        per = -(-steps // parts)
        count = f"tl.minimum({per}, {steps} - first)" if parts > 1 and steps % parts else str(per)
        # Triton knows no instruction on integers that is 256 columns wide
        instruction = f"instr_shape=[16, {min(columns, 128) if dtype == I8 else columns}, {32 // dtype.nbytes}]"
        layout = f"tl.NVMMADistributedLayout(version=[3, 0], warps_per_cta=[{params['warps']}, 1], {instruction})"
        size = (rows + columns) * depth * dtype.nbytes
        source.lines(f"""
layout: tl.constexpr = {layout}
{start}
first = tl.program_id(1) * {per}
count = {count}
lefts = tl.allocate_shared_memory(left.dtype, [{stages}, {rows}, {depth}], left.layout)
rights = tl.allocate_shared_memory(right.dtype, [{stages}, {columns}, {depth}], right.layout)
bars = tl.allocate_shared_memory(tl.int64, [{stages}, 1], mbarrier.MBarrierLayout())
for i in tl.static_range({stages}):
    mbarrier.init(bars.index(i), count=1)
""")
        if beside is not None:
            source.lines(f"""
held = tl.allocate_shared_memory(beside.dtype, [{rows}, {columns}], beside.layout)
held_bar = tl.allocate_shared_memory(tl.int64, [1, 1], mbarrier.MBarrierLayout())
mbarrier.init(held_bar.index(0), count=1)
""")
        source.line("fence_async_shared()")
        with source.block(f"for i in tl.static_range({stages - 1}):"):
            self._weights(source, "i", size, columns, depth, stages)
        source.line("gdc_wait()")
        with source.block(f"for i in tl.static_range({stages - 1}):"):
            self._lefts(source, "i", load, stages)
        if beside is not None:
            source.line(f"mbarrier.expect(held_bar.index(0), "
                        f"{rows * columns * source.operand(beside.of).type.dtype.nbytes})")
            source.line(f"tma.async_load(beside, [tile_m * {rows}, tile_n * {columns}], held_bar.index(0), held)")
        source.line("gdc_launch_dependents()")
        source.line(f"sums = tl.zeros(({rows}, {columns}), {accumulator(source.site)}, layout)")
        with source.block("for i in range(0, count):"):
            source.lines(f"""
stage = i % {stages}
mbarrier.wait(bars.index(stage), (i // {stages}) & 1)
sums = warpgroup_mma(lefts.index(stage), rights.index(stage).permute((1, 0)), sums, is_async=True)
sums = warpgroup_mma_wait(1, deps=(sums, lefts, rights))[0]
ahead = i + {stages - 1}
""")
            self._weights(source, "ahead", size, columns, depth, stages)
            self._lefts(source, "ahead", load, stages)
        source.lines(f"""
sums = warpgroup_mma_wait(0, deps=(sums,))
for i in tl.static_range({stages}):
    mbarrier.invalidate(bars.index(i))
m = tile_m * {rows} + tl.arange(0, {rows}, layout=tl.SliceLayout(1, layout))
n = tile_n * {columns} + tl.arange(0, {columns}, layout=tl.SliceLayout(0, layout))
""")
        if beside is not None:
            source.line("mbarrier.wait(held_bar.index(0), 0)")
            source.line(f"beside_sums = {source.widened('held.load(layout)', source.operand(beside.of).type.dtype)}")
            source.line("mbarrier.invalidate(held_bar.index(0))")

    @staticmethod
    def _weights(source: Source, at: str, size: int, columns: int, depth: int, stages: int) -> None:
        source.line(f"mbarrier.expect(bars.index({at} % {stages}), {size}, pred={at} < count)")
        source.line(f"tma.async_load(right, [tile_n * {columns}, (first + {at}) * {depth}], "
                    f"bars.index({at} % {stages}), rights.index({at} % {stages}), pred={at} < count)")

    @staticmethod
    def _lefts(source: Source, at: str, load: str, stages: int) -> None:
        source.line(f"at = first + {at}")
        source.line(f"{load}, bars.index({at} % {stages}), lefts.index({at} % {stages}), pred={at} < count)")

    def finish(self, source: Source, params: Params, end: Ending, split: Split, bias: int | None, *, by_tma: bool,
               beside: int | None, factors: tuple[float, float] = (1.0, 1.0)) -> None:
        """Bias, epilogue and store of the sums, by the last part where the depth is split."""
        rows, columns, site = params["rows"], params["columns"], source.site
        dtype = site.output.dtype
        if beside is not None:
            end.kept[beside] = Value("beside_sums", registers_of(site.inputs[beside].type.dtype))

        def keep(value: Value) -> None:
            source.lines(f"""
made = tl.allocate_shared_memory(result.dtype, [{rows}, {columns}], result.layout)
made.store(({source.narrowed(value, dtype)}))
fence_async_shared()
tma.async_store(result, [tile_m * {rows}, tile_n * {columns}], made)
tma.store_wait(pendings=0)
""")
        end.keep = keep if by_tma else None
        split.write(source, "sums", "tile", "tl.program_id(1)",
                    lambda sums: end.finish(sums, bias, alpha=factors[0], beta=factors[1]))

    @abstractmethod
    def declines(self, site: Site, target: Target) -> str | None:
        """Why this tactic cannot serve the site."""


def bounds(source: Source, rows: Dim, columns: Dim, params: Params) -> tuple[str | None, str | None]:
    """Masks for places past the end of rows and columns."""
    r, c = params["rows"], params["columns"]
    whole = isinstance(rows, int) and rows % r == 0
    return (None if whole else f"m[:, None] < {source.dim(rows)}",
            None if isinstance(columns, int) and columns % c == 0 else f"n[None, :] < {source.dim(columns)}")


class TmaMatMul(TmaTactic):
    """A product with a constant right operand: both sides by TMA."""

    name = "cuda.matmul_tma"

    def _form(self, site: Site, target: Target) -> Form | str:
        if why := declines_target(target):
            return why
        form = declines_product(site, target, gluon=True)
        if isinstance(form, str):
            return form
        left, right = site.inputs[form.left], site.inputs[form.right]
        if left.type.dtype not in SERVED:
            return f"elements of type {left.type.dtype}"
        if not right.constant or product(form.batch) != 1 or product(form.right_own) != 1:
            return "the right operand is no constant matrix"
        if form.left_depth != 1 or not fits_tma(form.left_row, left.type.dtype) or not left.aligned:
            return "the left operand's rows do not start at multiples of 16 bytes"
        if not isinstance(form.columns, int):
            return "the columns are known only at run time"
        return form

    def declines(self, site: Site, target: Target) -> str | None:
        form = self._form(site, target)
        return form if isinstance(form, str) else None

    def _known(self, site: Site, target: Target) -> Form:
        form = self._form(site, target)
        if isinstance(form, str):
            raise ValueError(form)
        return form

    def space(self, site: Site, target: Target) -> Iterator[Params]:
        form = self._known(site, target)
        dtype, long, beside = site.inputs[form.left].type.dtype, int(str(form.depth)), self._beside(site, form)
        depth = depth_of(dtype, long)
        yield from tma_points(usual(form.rows, site), usual(form.columns, site), -(-long // depth),
                              0 if beside is None else site.inputs[beside].type.dtype.nbytes, target, depth,
                              dtype.nbytes)

    def pack(self, site: Site, params: Params, target: Target,
             constants: Mapping[int, np.ndarray]) -> Mapping[int, np.ndarray]:
        form = self._known(site, target)
        return {form.right: packed_right(constants[form.right], form, params["depth"])}

    @staticmethod
    def _beside(site: Site, form: Form) -> int | None:
        """An operand of the epilogue that is a whole matrix beside the result, to be brought by TMA."""
        shape = site.step.types[0].shape
        for i in operands_of(site.epilogue):
            operand = site.inputs[i]
            steps = product_spread(operand, form, shape)
            if operand.type.dtype not in SERVED or steps is None or not operand.aligned:
                continue
            row = collapsed(steps[len(form.batch):-1], form.row_dims)
            if steps[-1] == 1 and row is not None and fits_tma(row, operand.type.dtype):
                return i
        return None

    def write(self, site: Site, params: Params, target: Target) -> Drafts:
        form, source = self._known(site, target), Source(site, target, gluon=True)
        rows, columns, depth = params["rows"], params["columns"], params["depth"]
        long = int(str(form.depth))
        whole = -(-long // depth) * depth
        dtype = site.inputs[form.left].type.dtype
        out = len(site.inputs)
        by_tma = (site.output.dtype in SERVED and fits_tma(form.out_row, site.output.dtype) and site.outputs[0].aligned
                  and not form.no_column)
        result = Matrix(out, form.rows, form.columns, form.out_row) if by_tma else None
        index = self._beside(site, form)
        beside = None
        if index is not None:
            steps = product_spread(site.inputs[index], form, site.step.types[0].shape) or ()
            row = collapsed(steps[len(form.batch):-1], form.row_dims)
            beside = Matrix(index, form.rows, form.columns, 0 if row is None else row)
        across, down = ceil_div(form.columns, columns), ceil_div(form.rows, rows)
        self.kernel(source, params, Matrix(form.left, form.rows, long, form.left_row).map(dtype),
                    Matrix(form.right, form.columns, whole, whole), result, beside, whole // depth,
                    batch_kind=f"tensordesc<{TYPES[dtype.name]}[{rows},{depth}],",
                    start=f"tile = tl.program_id(0)\ntile_n = tile % {across}\ntile_m = tile // {across}",
                    load=f"tma.async_load(left, [tile_m * {rows}, at * {depth}]")
        row_mask, column_mask = bounds(source, form.rows, form.columns, params)
        end = ending(source, form, ["0"] * len(form.batch), "m[:, None]", "n[None, :]", row_mask, column_mask)
        split = Split(params["split"], rows, columns, across * down, sums_of(site))
        self.finish(source, params, end, split, form.bias, by_tma=by_tma, beside=index,
                    factors=(form.alpha, form.beta))
        draft = source.draft((across * down, params["split"], 1), warps=params["warps"])
        return Drafts((draft,), split.workspace, split.counters)


class TmaConvolution(TmaTactic):
    """A convolution over channels-last input in one group: windows as im2col boxes; without a window, as a matrix."""

    name = "cuda.conv_tma"

    def _form(self, site: Site, target: Target) -> ConvForm | str:
        if why := declines_target(target):
            return why
        form = conv_form_of(site, gluon=True)
        if isinstance(form, str):
            return form
        x = site.inputs[form.x]
        if form.dtype not in SERVED or form.transposed or form.groups != 1 or not form.packed:
            return "it takes short types, one group and a constant weight"
        steps = form.x_steps
        if form.kernel[0] != 1 or form.size[0] != 1 or x.type.rank > 4:
            return "more than two spatial axes"
        if steps[1] != 1 or not x.aligned or not all(fits_tma(s, form.dtype) for s in (steps[0], *steps[3:])):
            return "its input's channels are not last, or pixels do not start at multiples of 16 bytes"
        numbers = (*form.begins, *form.ends, *form.size)
        if not all(isinstance(n, int) for n in numbers):
            return "its sizes are known only at run time"
        lower, upper = self._corners(form)
        if any(not -128 <= c <= 127 for c in (*lower, *upper)) or any(
                (k - 1) * d > 255 for k, d in zip(form.kernel, form.dilations, strict=True)) or max(form.strides) > 8:
            return "a window too large for im2col boxes"
        if form.plain_pixels and collapsed((steps[0], *steps[2:]), (form.batch, *form.size)) is None:
            return "its pixels are not evenly spaced"
        return form

    @staticmethod
    def _corners(form: ConvForm) -> tuple[tuple[int, ...], tuple[int, ...]]:
        lower = tuple(-int(str(b)) for b in form.begins[1:])
        upper = tuple(int(str(e)) - (k - 1) * d
                      for e, k, d in zip(form.ends[1:], form.kernel[1:], form.dilations[1:], strict=True))
        return lower, upper

    def declines(self, site: Site, target: Target) -> str | None:
        form = self._form(site, target)
        return form if isinstance(form, str) else None

    def _known(self, site: Site, target: Target) -> ConvForm:
        form = self._form(site, target)
        if isinstance(form, str):
            raise ValueError(form)
        return form

    @staticmethod
    def _beside(site: Site, form: ConvForm) -> Matrix | None:
        for i in operands_of(site.epilogue):
            operand = site.inputs[i]
            steps = five(spread(site, i, site.output.shape) or (0, 0, 0))
            step = collapsed((steps[0], *steps[2:]), (form.batch, *form.out_size))
            if (operand.type.dtype in SERVED and operand.aligned and steps[1] == 1 and step is not None
                    and fits_tma(step, operand.type.dtype)):
                return Matrix(i, form.pixels, form.filters, step)
        return None

    def space(self, site: Site, target: Target) -> Iterator[Params]:
        form = self._known(site, target)
        depth, beside = depth_of(form.dtype, form.depth), self._beside(site, form)
        yield from tma_points(usual(form.pixels, site), form.filters, -(-form.depth // depth) * form.taps,
                              0 if beside is None else site.inputs[beside.of].type.dtype.nbytes, target, depth,
                              form.dtype.nbytes)

    def pack(self, site: Site, params: Params, target: Target,
             constants: Mapping[int, np.ndarray]) -> Mapping[int, np.ndarray]:
        form, depth = self._known(site, target), params["depth"]
        whole = constants[form.weight].reshape(form.filters, form.depth, form.taps).swapaxes(1, 2)
        padded = np.zeros((form.filters, form.taps, -(-form.depth // depth) * depth), whole.dtype)
        padded[..., :form.depth] = whole
        return {form.weight: padded.reshape(-1)}

    def write(self, site: Site, params: Params, target: Target) -> Drafts:
        form, source = self._known(site, target), Source(site, target, gluon=True)
        rows, columns, depth = params["rows"], params["columns"], params["depth"]
        blocks, kind = -(-form.depth // depth), TYPES[form.dtype.name]
        steps, out = form.taps * blocks, len(site.inputs)
        step = collapsed((form.out_steps[0], *form.out_steps[2:]), (form.batch, *form.out_size))
        by_tma = (site.output.dtype in SERVED and form.out_steps[1] == 1 and site.outputs[0].aligned
                  and step is not None and fits_tma(step, site.output.dtype))
        result = Matrix(out, form.pixels, form.filters, step or 0) if by_tma else None
        beside = self._beside(site, form)
        across, down = -(-form.filters // columns), ceil_div(form.pixels, rows)
        start = [f"tile = tl.program_id(0)\ntile_n = tile % {across}\ntile_m = tile // {across}"]
        if form.plain_pixels:
            even = collapsed((form.x_steps[0], *form.x_steps[2:]), (form.batch, *form.size)) or form.channels
            left = Matrix(form.x, form.pixels, form.channels, even).map(form.dtype)
            batch_kind = f"tensordesc<{kind}[{rows},{depth}],"
            load = f"tma.async_load(left, [tile_m * {rows}, at * {depth}]"
        else:
            height, width = form.out_size[1:]
            start += [f"pixel = tile_m * {rows}", f"sample = pixel // {height * width}",
                      f"row = (pixel % {height * width}) // {width} * {form.strides[1]} - {form.begins[1]}",
                      f"column = pixel % {width} * {form.strides[2]} - {form.begins[2]}"]
            lower, upper = self._corners(form)
            n, _, _, high, wide = (form.batch, 0, 0, *form.size[1:])
            left = TensorMap(form.x, form.dtype, (n, high, wide, form.channels),
                             (form.x_steps[0], form.x_steps[3], form.x_steps[4], 1), (), 0,
                             lower=lower, upper=upper, steps=form.strides[1:])
            batch_kind = f"tensordesc_im2col<{kind}[{rows},{depth}],input_rank=4,"
            taps_wide = form.kernel[2]
            tap = f"(at // {blocks})"
            load = (f"tma.async_load_im2col(left, [sample, row, column, (at % {blocks}) * {depth}], "
                    f"[({tap} // {taps_wide} * {form.dilations[1]}).to(tl.int16), "
                    f"({tap} % {taps_wide} * {form.dilations[2]}).to(tl.int16)]")
        self.kernel(source, params, left, Matrix(form.weight, form.filters, steps * depth, steps * depth), result,
                    beside, steps, batch_kind=batch_kind, start="\n".join(start), load=load)
        row_mask, column_mask = bounds(source, form.pixels, form.filters, params)
        parts = pixel_parts(source, form, "m")
        end = conv_ending(source, form, "m[:, None]", [f"{p}[:, None]" if p != "0" else p for p in parts],
                          "n[None, :]", row_mask, column_mask)
        split = Split(params["split"], rows, columns, across * down, sums_of(site))
        self.finish(source, params, end, split, form.bias, by_tma=by_tma, beside=None if beside is None else beside.of)
        draft = source.draft((split.tiles, params["split"], 1), warps=params["warps"])
        return Drafts((draft,), split.workspace, split.counters)


__all__ = ["TmaConvolution", "TmaMatMul"]
