"""Convolutions of few channels, as networks begin: the input is laid out anew so that a row of taps is one run.

First the input is copied into the workspace with its padding in place, channels last, as many as the next power of two
(zeros). The taps of one row of the window then lie next to each other, and the sum over them is a product whose left
side is read in runs: no bounds to check, no element-wise gathering.
"""
from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np

from ingot.graph import Dim
from ingot.kernels.cuda.base import CudaTactic, Drafts
from ingot.kernels.cuda.conv_form import Form, ending, form_of, pixel_parts
from ingot.kernels.cuda.ending import Split
from ingot.kernels.cuda.matmul import accumulator, block_points, dot_options
from ingot.kernels.cuda.source import Draft, Source, ceil_div, is_wide, joined, power_of_two, sums_of, times, usual
from ingot.kernels.tactic import Params, Site
from ingot.target import Target

FEW = 8             # input channels at most
PIXELS = 256        # per program of the copy


@dataclass(frozen=True)
class Runs:
    """How the copied input lies: [batch, height, width, channels], and how long the run of one row of taps is."""

    channels: int
    height: int
    width: int
    run: int            # elements summed per row of taps, a power of two
    used: int           # of them the taps' own

    @property
    def sample(self) -> int:
        return self.height * self.width * self.channels


def runs_of(form: Form) -> Runs:
    """The layout of the copy."""
    channels = power_of_two(max(form.depth, 2))
    used = form.kernel[2] * channels
    run = power_of_two(used)
    out_high, out_wide = (int(str(d)) for d in form.out_size[1:])
    height = (out_high - 1) * form.strides[1] + (form.kernel[1] - 1) * form.dilations[1] + 1
    width = (out_wide - 1) * form.strides[2] + run // channels
    even = max(1, 8 // channels)
    return Runs(channels, height, -(-width // even) * even, run, used)


class StemConvolution(CudaTactic):
    """A copy, then a product over rows of taps."""

    name = "cuda.conv_stem"

    def declines(self, site: Site, target: Target) -> str | None:
        form = form_of(site)
        if isinstance(form, str):
            return form
        if form.groups != 1 or form.transposed or not form.packed:
            return "it takes one group and a constant weight"
        if form.depth > FEW or form.kernel[2] < 2 or form.kernel[0] != 1 or form.size[0] != 1:
            return f"more than {FEW} channels, or no window"
        if form.dilations[2] != 1 or form.kernel[2] * power_of_two(form.depth) > 256:
            return "its taps are no short run"
        sizes = (*form.size[1:], *form.out_size[1:], *form.begins[1:])
        return None if all(isinstance(d, int) for d in sizes) else "its sizes are known only at run time"

    def _known(self, site: Site) -> Form:
        form = form_of(site)
        if isinstance(form, str):
            raise ValueError(form)
        return form

    def space(self, site: Site, target: Target) -> Iterator[Params]:
        form = self._known(site)
        summed = form.kernel[1] * runs_of(form).run
        for point in block_points(usual(form.pixels, site), form.filters, summed, 1, form.dtype.nbytes, target):
            if point["split"] == 1:
                yield point

    def pack(self, site: Site, params: Params, target: Target,
             constants: Mapping[int, np.ndarray]) -> Mapping[int, np.ndarray]:
        form = self._known(site)
        runs, high, wide = runs_of(form), form.kernel[1], form.kernel[2]
        taps = constants[form.weight].reshape(form.filters, form.depth, high, wide)
        rows = np.zeros((form.filters, high, runs.run), taps.dtype)
        spread = np.zeros((form.filters, high, wide, runs.channels), taps.dtype)
        spread[..., :form.depth] = taps.transpose(0, 2, 3, 1)
        rows[..., :runs.used] = spread.reshape(form.filters, high, runs.used)
        total = high * runs.run
        padded = np.zeros((form.filters, -(-total // params["depth"]) * params["depth"]), taps.dtype)
        padded[:, :total] = rows.reshape(form.filters, total)
        return {form.weight: padded.reshape(-1)}

    def write(self, site: Site, params: Params, target: Target) -> Drafts:
        form = self._known(site)
        runs = runs_of(form)
        copy, product = self._copy(site, form, runs, target), self._product(site, form, runs, params, target)
        nbytes: Dim = form.batch * (runs.sample * form.dtype.nbytes)
        return Drafts((copy, product), nbytes)

    @staticmethod
    def _copy(site: Site, form: Form, runs: Runs, target: Target) -> Draft:
        source = Source(site, target)
        wide = ".to(tl.int64)" if is_wide(site) else ""
        total = form.batch * (runs.height * runs.width)
        work = source.workspace(form.dtype)
        source.start_dependent()
        source.lines(f"""
p = (tl.program_id(0) * {PIXELS} + tl.arange(0, {PIXELS}))[:, None]{wide}
c = tl.arange(0, {runs.channels})[None, :]
column = p % {runs.width} - {form.begins[2]}
row = p // {runs.width} % {runs.height} - {form.begins[1]}
sample = p // {runs.width * runs.height}
inside = (p < {source.dim(total)}) & (row >= 0) & (row < {form.size[1]}) & (column >= 0) & (column < {form.size[2]})
inside = inside & (c < {form.depth})
""")
        steps = form.x_steps
        at = joined([times("sample", source.dim(steps[0])), times("c", source.dim(steps[1])),
                     times("row", source.dim(steps[3])), times("column", source.dim(steps[4]))])
        source.line(f"x = tl.load({source.pointer(form.x)} + {at}, mask=inside, other=0.0)")
        source.line(f"tl.store({work} + p * {runs.channels} + c, x, mask=(p < {source.dim(total)}) & (c >= 0))")
        source.let_next_start()
        return source.draft((ceil_div(total, PIXELS), 1, 1), warps=4)

    @staticmethod
    def _product(site: Site, form: Form, runs: Runs, params: Params, target: Target) -> Draft:
        source = Source(site, target)
        rows, columns, depth = params["rows"], params["columns"], params["depth"]
        across, down = -(-form.filters // columns), ceil_div(form.pixels, rows)
        total = form.kernel[1] * runs.run
        steps = -(-total // depth)
        wide = ".to(tl.int64)" if is_wide(site) else ""
        work = source.workspace(form.dtype)
        source.lines(f"""
tile = tl.program_id(0)
m = ((tile // {across}) * {rows} + tl.arange(0, {rows})){wide}
n = (tile % {across}) * {columns} + tl.arange(0, {columns})
k = tl.arange(0, {depth})
""")
        ragged = not (isinstance(form.pixels, int) and form.pixels % rows == 0)
        row_mask = f"m[:, None] < {source.dim(form.pixels)}" if ragged else None
        column_mask = f"n[None, :] < {form.filters}" if form.filters % columns else None
        places = pixel_parts(source, form, "m")
        line, sample = runs.width * runs.channels, runs.sample
        base = joined([times(places[0], str(sample)), times(places[2], str(form.strides[1] * line)),
                       times(places[3], str(form.strides[2] * runs.channels))])
        source.line(f"base = {base} + m * 0")
        source.line(f"b_at = {source.pointer(form.weight)} + n[None, :] * {steps * depth} + k[:, None]")
        source.start_dependent()
        source.line(f"sums = tl.zeros(({rows}, {columns}), {accumulator(site)})")
        with source.block(f"for step in range(0, {steps}):"):
            source.line(f"at = step * {depth} + k")
            source.line(f"place = at // {runs.run} * {line * form.dilations[1]} + at % {runs.run}")
            masks = [row_mask] if row_mask else []
            if total % depth:
                masks.append(f"at[None, :] < {total}")
            if runs.used != runs.run:       # what lies there is another window's: a NaN in it is not this one's
                masks.append(f"(at % {runs.run})[None, :] < {runs.used}")
            held = " & ".join(f"({x})" for x in masks)
            source.line(f"a = tl.load({work} + base[:, None] + place[None, :]"
                        + (f", mask={held}, other=0.0)" if masks else ")"))
            source.line(f"b = tl.load(b_at + step * {depth}" + (f", mask={column_mask}, other=0.0)" if column_mask
                                                                else ")"))
            source.line(f"sums = tl.dot(a, b, sums{dot_options(form.dtype, target)})")
        source.let_next_start()
        end = ending(source, form, "m[:, None]", [f"{p}[:, None]" if p != "0" else p for p in places], "n[None, :]",
                     row_mask, column_mask)
        Split(1, rows, columns, across * down, sums_of(site)).write(source, "sums", "tile", "0",
                                                                    lambda sums: end.finish(sums, form.bias))
        return source.draft((across * down, 1, 1), warps=params["warps"], stages=params["stages"])


__all__ = ["StemConvolution"]
