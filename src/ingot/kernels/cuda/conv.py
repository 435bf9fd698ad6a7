"""Convolutions through the matrix units as implicit products, blocks read by pointers: any form, any layout."""
from __future__ import annotations

from collections.abc import Iterator, Mapping

import numpy as np

from ingot.graph import I8, Dim
from ingot.kernels.cuda.base import CudaTactic, Drafts
from ingot.kernels.cuda.conv_form import Form, ending, form_of, pixel_parts
from ingot.kernels.cuda.ending import Split
from ingot.kernels.cuda.matmul import accumulator, block_points, dot_options
from ingot.kernels.cuda.source import Source, ceil_div, is_wide, joined, power_of_two, sums_of, times, usual
from ingot.kernels.tactic import Params, Site
from ingot.target import Target


def known(site: Site) -> Form:
    """The form of a site that was not declined."""
    form = form_of(site)
    if isinstance(form, str):
        raise ValueError(form)
    return form


def by_taps(form: Form, depth: int) -> bool:
    """Whether the sum walks tap by tap through blocks of channels; else over taps and channels as one axis."""
    return form.taps == 1 or form.depth >= depth or form.transposed


def packed_weight(array: np.ndarray, form: Form, depth: int, channels_last: bool) -> np.ndarray:
    """[groups, filters per group, K], K being what the kernel sums over, zeros up to whole steps."""
    if form.transposed:
        # [C, M/group, taps] -> [group, M/group, taps, C/group]
        whole = array.reshape(form.groups, form.depth, form.width, form.taps).transpose(0, 2, 3, 1)
    else:
        whole = array.reshape(form.groups, form.width, form.depth, form.taps).transpose(0, 1, 3, 2)
    if by_taps(form, depth):
        length = -(-form.depth // depth) * depth
        padded = np.zeros((form.groups, form.width, form.taps, length), array.dtype)
        padded[..., :form.depth] = whole
        return padded.reshape(-1)
    flat = whole if channels_last else whole.swapaxes(2, 3)
    total = form.taps * form.depth
    padded = np.zeros((form.groups, form.width, -(-total // depth) * depth), array.dtype)
    padded[..., :total] = flat.reshape(form.groups, form.width, total)
    return padded.reshape(-1)


class Convolution(CudaTactic):
    """Rows are places of the result, columns filters of one group; the sum runs over taps and channels."""

    name = "cuda.conv"

    def declines(self, site: Site, target: Target) -> str | None:
        form = form_of(site)
        if isinstance(form, str):
            return form
        return None if form.packed else "the weight is not constant"

    def space(self, site: Site, target: Target) -> Iterator[Params]:
        form = known(site)
        summed = form.depth * form.taps if form.depth < 32 else -(-form.depth // 64) * 64 * form.taps
        yield from block_points(usual(form.pixels, site), form.width, summed, form.groups, form.dtype.nbytes, target)

    def pack(self, site: Site, params: Params, target: Target,
             constants: Mapping[int, np.ndarray]) -> Mapping[int, np.ndarray]:
        form = known(site)
        return {form.weight: packed_weight(constants[form.weight], form, params["depth"], form.x_steps[1] == 1)}

    def write(self, site: Site, params: Params, target: Target) -> Drafts:
        form, source = known(site), Source(site, target)
        rows, columns, depth, parts = params["rows"], params["columns"], params["depth"], params["split"]
        across, down = -(-form.width // columns), ceil_div(form.pixels, rows)
        taps = by_taps(form, depth)
        blocks = -(-form.depth // depth)
        steps = form.taps * blocks if taps else -(-form.taps * form.depth // depth)
        wide = ".to(tl.int64)" if is_wide(site) else ""
        source.lines(f"""
tile = tl.program_id(0)
part = tl.program_id(1)
tile_n = tile % {across}
tile_m = (tile // {across}) % {source.dim(down)}
group = tile // {source.dim(across * down)}
m = (tile_m * {rows} + tl.arange(0, {rows})){wide}
n = tile_n * {columns} + tl.arange(0, {columns})
k = tl.arange(0, {depth})
""")
        ragged = not (isinstance(form.pixels, int) and form.pixels % rows == 0)
        row_mask = f"m[:, None] < {source.dim(form.pixels)}" if ragged else None
        column_mask = f"n[None, :] < {form.width}" if form.width % columns else None
        places = pixel_parts(source, form, "m")
        starts = [_start(source, form, axis, places[axis + 1]) for axis in range(3)]
        base = joined([times(places[0], source.dim(form.x_steps[0])),
                       times(f"(group * {form.depth})", source.dim(form.x_steps[1])) if form.groups > 1 else "0"])
        source.line(f"base = {base}" + (" + m * 0" if places[0] == "0" else ""))
        length = (form.taps * blocks if taps else steps) * depth
        source.line(f"b_at = {source.pointer(form.weight)} + (group * {form.width} + n[None, :]) * {length}"
                    " + k[:, None]")
        source.start_dependent()
        source.line(f"sums = tl.zeros(({rows}, {columns}), {accumulator(site)})")
        per = -(-steps // parts)
        if parts > 1:
            source.line(f"first = part * {per}")
            source.line(f"last = tl.minimum(first + {per}, {steps})")
        with source.block(f"for step in range({'first, last' if parts > 1 else f'0, {steps}'}):"):
            a = self._by_taps(source, form, starts, depth, blocks, row_mask) if taps else self._flat(
                source, form, starts, depth, row_mask)
            source.line(f"a = {a}")
            source.line(f"b = tl.load(b_at + step * {depth}" + (f", mask={column_mask}, other=0.0)" if column_mask
                                                                else ")"))
            source.line(f"sums = tl.dot(a, b, sums{dot_options(form.dtype, target)})")
        source.let_next_start()
        split = Split(parts, rows, columns, across * down * form.groups, sums_of(site))
        columns_at = f"(group * {form.width} + n)[None, :]" if form.groups > 1 else "n[None, :]"
        end = ending(source, form, "m[:, None]", [f"{p}[:, None]" if p != "0" else p for p in places], columns_at,
                     row_mask, column_mask)
        split.write(source, "sums", "tile", "part", lambda sums: end.finish(sums, form.bias))
        draft = source.draft((split.tiles, parts, 1), warps=params["warps"], stages=params["stages"])
        return Drafts((draft,), split.workspace, split.counters)

    @staticmethod
    def _by_taps(source: Source, form: Form, starts: list[str], depth: int, blocks: int, row_mask: str | None) -> str:
        """The load of one step: one tap, one block of channels."""
        if form.taps > 1:
            source.line(f"tap = step // {blocks}" if blocks > 1 else "tap = step")
        source.line((f"channel = (step % {blocks}) * {depth} + k" if form.taps > 1 else f"channel = step * {depth} + k")
                    if blocks > 1 else "channel = k")
        masks = [row_mask] if row_mask else []
        offset = ["base"]
        rest = "tap"
        for axis in (2, 1, 0):
            size = form.kernel[axis]
            at = "0"
            if size > 1:
                last = all(form.kernel[a] == 1 for a in range(axis))
                at = rest if last else source.let(f"{rest} % {size}", "t")
                rest = rest if last else source.let(f"{rest} // {size}", "t")
            place, mask = _tap_place(source, form, axis, starts[axis], at)
            if place != "0":
                offset.append(times(place, source.dim(form.x_steps[axis + 2])))
            if mask:
                masks.append(f"({mask})[:, None]")
        if form.depth % depth:
            masks.append(f"channel[None, :] < {form.depth}")
        address = (f"{source.pointer(form.x)} + ({joined(offset)})[:, None] + "
                   f"{times('channel[None, :]', source.dim(form.x_steps[1]))}")
        held = " & ".join(f"({m})" for m in masks)
        return f"tl.load({address}, mask={held}, other=0.0)" if masks else f"tl.load({address})"

    @staticmethod
    def _flat(source: Source, form: Form, starts: list[str], depth: int, row_mask: str | None) -> str:
        """The load of one step: consecutive places along the axis of taps and channels."""
        total = form.taps * form.depth
        source.line(f"at = step * {depth} + k")
        if form.x_steps[1] == 1:
            source.line(f"channel = at % {form.depth}")
            source.line(f"tap = at // {form.depth}")
        else:
            source.line(f"tap = at % {form.taps}")
            source.line(f"channel = at // {form.taps}")
        masks = [row_mask] if row_mask else []
        offset = [f"base[:, None] + {times('channel[None, :]', source.dim(form.x_steps[1]))}"]
        rest = "tap"
        for axis in (2, 1, 0):
            size, at = form.kernel[axis], "0"
            if size > 1:
                last = all(form.kernel[a] == 1 for a in range(axis))
                at = rest if last else source.let(f"{rest} % {size}", "t")
                rest = rest if last else source.let(f"{rest} // {size}", "t")
            start = starts[axis] if starts[axis] == "0" else f"{starts[axis]}[:, None]"
            place, mask = _tap_place(source, form, axis, start, at if at == "0" else f"{at}[None, :]")
            if place != "0":
                offset.append(times(place, source.dim(form.x_steps[axis + 2])))
            if mask:
                masks.append(mask)
        if total % depth:
            masks.append(f"at[None, :] < {total}")
        held = " & ".join(f"({m})" for m in masks)
        address = f"{source.pointer(form.x)} + {joined(offset)}"
        return f"tl.load({address}, mask={held}, other=0.0)" if masks else f"tl.load({address})"


def _start(source: Source, form: Form, axis: int, place: str) -> str:
    """Where the window of a place of the result starts along an axis of the input; transposed: its place, shifted."""
    if form.transposed:
        begin = form.begins[axis]
        return place if begin == 0 else source.let(f"{place} + {source.dim(begin)}", "h")
    text = times(place, str(form.strides[axis]))
    begin = form.begins[axis]
    if begin != 0:
        text = f"{text} - {source.dim(begin)}"
    return text if text in ("0", place) else source.let(text, "h")


def _tap_place(source: Source, form: Form, axis: int, start: str, tap: str) -> tuple[str, str | None]:
    """Where a tap reads along an axis, and the mask under which that lies inside (None: always)."""
    size = source.dim(form.size[axis])
    reach = times(tap, str(form.dilations[axis]))
    if form.transposed:
        place = start if reach == "0" else source.let(f"{start} - {reach}", "q")
        if place == "0":
            return "0", None
        stride = form.strides[axis]
        if stride == 1:
            return place, f"({place} >= 0) & ({place} < {size})"
        inner = source.let(f"{place} // {stride}", "q")
        return inner, f"({place} >= 0) & ({place} % {stride} == 0) & ({inner} < {size})"
    place = joined([start, reach])
    if place == "0":
        return "0", None
    if place not in (start, reach):
        place = source.let(place, "q")
    outside = form.begins[axis] != 0 or form.ends[axis] != 0
    return place, f"({place} >= 0) & ({place} < {size})" if outside else None


class Depthwise(CudaTactic):
    """One filter (or a few) per channel: places of the result times channels, tap after tap in registers."""

    name = "cuda.conv_depthwise"

    def declines(self, site: Site, target: Target) -> str | None:
        form = form_of(site)
        if isinstance(form, str):
            return form
        if form.depth != 1 or form.groups == 1:
            return "its groups have several input channels"
        if form.transposed:
            return "a transposed one"
        if form.dtype == I8 and form.taps > 1024:
            return "a window whose sum f32 does not hold exactly"
        return None if form.packed else "the weight is not constant"

    def space(self, site: Site, target: Target) -> Iterator[Params]:
        form = known(site)
        wide = min(power_of_two(form.filters), 64)
        total = usual(form.pixels, site) * form.filters
        best = 2048 if total >= 1 << 20 else 1024 if total >= 1 << 18 else 512
        for size, warps in ((best, 4), (best * 2, 4), (best // 2, 4), (best // 2, 2), (best * 2, 8), (best, 8)):
            for columns in dict.fromkeys((wide, min(wide * 2, power_of_two(form.filters)), max(wide // 2, 8))):
                if 1 <= size // columns <= 256:
                    yield {"rows": size // columns, "columns": columns, "warps": warps}

    def pack(self, site: Site, params: Params, target: Target,
             constants: Mapping[int, np.ndarray]) -> Mapping[int, np.ndarray]:
        form = known(site)
        return {form.weight: constants[form.weight].reshape(form.filters, form.taps).T.flatten()}

    def write(self, site: Site, params: Params, target: Target) -> Drafts:
        form, source = known(site), Source(site, target)
        rows, columns = params["rows"], params["columns"]
        across, down = -(-form.filters // columns), ceil_div(form.pixels, rows)
        wide = ".to(tl.int64)" if is_wide(site) else ""
        source.lines(f"""
tile = tl.program_id(0)
m = ((tile // {across}) * {rows} + tl.arange(0, {rows})){wide}
n = (tile % {across}) * {columns} + tl.arange(0, {columns})
""")
        ragged = not (isinstance(form.pixels, int) and form.pixels % rows == 0)
        row_mask = f"m[:, None] < {source.dim(form.pixels)}" if ragged else None
        column_mask = f"n[None, :] < {form.filters}" if form.filters % columns else None
        places = pixel_parts(source, form, "m")
        starts = [_start(source, form, axis, places[axis + 1]) for axis in range(3)]
        channel = "n" if form.width == 1 else source.let(f"n // {form.width}", "c")
        base = f"{places[0]} * {source.dim(form.x_steps[0])}"
        source.line(f"base = ({base})[:, None] + {times(f'{channel}[None, :]', source.dim(form.x_steps[1]))}"
                    if places[0] != "0" else f"base = (m * 0)[:, None] + {channel}[None, :]")
        source.line(f"sums = tl.zeros(({rows}, {columns}), tl.float32)")
        weights = []
        for tap in range(form.taps):
            inside = f", mask={column_mask}, other=0.0" if column_mask else ""
            one = f"tl.load({source.pointer(form.weight)} + {tap * form.filters} + n[None, :]{inside})"
            weights.append(source.let(f"{one}.to(tl.float32)", "w"))
        source.start_dependent()
        for tap in range(form.taps):
            offset = ["base"]
            masks = [x for x in (row_mask, column_mask) if x]
            left = tap
            for axis in (2, 1, 0):
                here, left = left % form.kernel[axis], left // form.kernel[axis]
                place, mask = _tap_place(source, form, axis, starts[axis], str(here))
                if place != "0":
                    text = times(f"({place})", source.dim(form.x_steps[axis + 2]))
                    offset.append(text if place.isdigit() else f"({text})[:, None]")
                if mask:
                    masks.append(f"({mask})[:, None]")
            held = " & ".join(f"({x})" for x in masks)
            extra = f", mask={held}, other=0.0" if masks else ""
            address = f"{source.pointer(form.x)} + {joined(offset)}"
            source.line(f"sums += tl.load({address}{extra}).to(tl.float32) * {weights[tap]}")
        source.let_next_start()
        end = ending(source, form, "m[:, None]", [f"{p}[:, None]" if p != "0" else p for p in places], "n[None, :]",
                     row_mask, column_mask)
        if form.dtype == I8:        # so few taps that their sum is exact in f32
            source.line("sums = sums.to(tl.int32)")
        end.finish("sums", form.bias)
        tiles: Dim = across * down
        return Drafts((source.draft((tiles, 1, 1), warps=params["warps"], stages=1),))


__all__ = ["Convolution", "Depthwise", "packed_weight"]
