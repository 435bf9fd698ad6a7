"""Depthwise convolutions in tiles: each thread has a few neighbouring places of the result, so that what their windows
share is loaded and widened once."""
from __future__ import annotations

from collections.abc import Iterator

from ingot.graph import Dim
from ingot.kernels.cuda.base import Drafts
from ingot.kernels.cuda.conv import Depthwise
from ingot.kernels.cuda.conv_form import Form, ending, form_of
from ingot.kernels.cuda.ending import Ending
from ingot.kernels.cuda.source import Source, Value, ceil_div, is_wide, joined, power_of_two, times, usual
from ingot.kernels.steps import operands_of
from ingot.kernels.tactic import Params, Site
from ingot.target import Target

TILES = ((2, 2), (1, 4), (2, 4), (1, 7), (1, 2), (2, 7))        # places of the result per thread: down, across


class DepthwiseTiles(Depthwise):
    """One filter per channel: tiles of places times channels, every loaded value used by all windows it lies in."""

    name = "cuda.conv_depthwise_tiles"

    def declines(self, site: Site, target: Target) -> str | None:
        form = form_of(site)
        if isinstance(form, str):
            return form
        if why := super().declines(site, target):
            return why
        if site.op == "ConvInteger":
            return "sums of integers"
        if form.width != 1 or form.kernel[0] != 1 or form.out_size[0] != 1 or set(form.dilations) != {1}:
            return "several filters a channel, a third axis, or dilation"
        if not all(isinstance(n, int) for n in form.out_size) or not self._tiles(form):
            return "its result cannot be cut into tiles"
        return None

    @staticmethod
    def _tiles(form: Form) -> list[tuple[int, int]]:
        high, wide = (int(str(n)) for n in form.out_size[1:])
        return [(h, w) for h, w in TILES if high % h == 0 and wide % w == 0]

    def space(self, site: Site, target: Target) -> Iterator[Params]:
        form = form_of(site)
        if isinstance(form, str):
            raise ValueError(form)
        widest = power_of_two(form.filters)
        small = usual(form.pixels, site) * form.filters < 1 << 19
        # channels times tiles of a thread: weights and sums of more than eight do not fit into registers
        for each, columns, warps in ((4, 64, 4), (8, 64, 4), (4, 32, 2), (4, 128, 4)):
            columns = min(columns, widest)
            for high, wide in self._tiles(form):
                if high * wide * each <= 32:
                    warps = min(warps, 2) if small else warps
                    yield {"rows": max(1, each * 32 * warps // columns), "columns": columns, "warps": warps,
                           "high": high, "wide": wide}

    def write(self, site: Site, params: Params, target: Target) -> Drafts:
        form, source = form_of(site), Source(site, target)
        if isinstance(form, str):
            raise ValueError(form)
        rows, columns, high, wide = (params[k] for k in ("rows", "columns", "high", "wide"))
        tall, broad = (int(str(n)) for n in form.out_size[1:])
        down, along = tall // high, broad // wide
        across, tiles = -(-form.filters // columns), form.batch * (down * along)
        long = ".to(tl.int64)" if is_wide(site) else ""
        source.lines(f"""
tile = tl.program_id(0)
m = ((tile // {across}) * {rows} + tl.arange(0, {rows})){long}
n = (tile % {across}) * {columns} + tl.arange(0, {columns})
sample = m // {down * along}
top = (m // {along}) % {down} * {high}
left = m % {along} * {wide}
high = top * {form.strides[1]} - {source.dim(form.begins[1])}
wide = left * {form.strides[2]} - {source.dim(form.begins[2])}
""")
        row_mask = None if isinstance(tiles, int) and tiles % rows == 0 else f"m[:, None] < {source.dim(tiles)}"
        column_mask = f"n[None, :] < {form.filters}" if form.filters % columns else None
        inside = f", mask={column_mask}, other=0.0" if column_mask else ""
        weights = [source.let(f"tl.load({source.pointer(form.weight)} + {tap * form.filters} + n[None, :]{inside})"
                              ".to(tl.float32)", "w") for tap in range(form.taps)]
        source.line(f"base = (sample * {source.dim(form.x_steps[0])})[:, None] + "
                    f"{times('n[None, :]', source.dim(form.x_steps[1]))}")
        source.start_dependent()
        self._sums(source, form, params, weights, row_mask, column_mask)
        source.let_next_start()
        kept: dict[int, Value] = {}
        for a in range(high):
            for b in range(wide):
                y, x = source.let(f"top + {a}", "y"), source.let(f"left + {b}", "x")
                pixel = source.let(f"(sample * {tall} + {y}) * {broad} + {x}", "at")
                end = ending(source, form, f"{pixel}[:, None]",
                             ["sample[:, None]", "0", f"{y}[:, None]", f"{x}[:, None]"], "n[None, :]", row_mask,
                             column_mask)
                self._keep(end, site, form, kept)
                end.finish(f"sums_{a}_{b}", form.bias)
        grid: Dim = ceil_div(tiles, rows) * across
        return Drafts((source.draft((grid, 1, 1), warps=params["warps"], stages=1),))

    @staticmethod
    def _sums(source: Source, form: Form, params: Params, weights: list[str], row_mask: str | None,
              column_mask: str | None) -> None:
        """Every value of the tile's part of the input, times the weights of the windows it lies in."""
        high, wide = params["high"], params["wide"]
        (down, across), (tall, broad) = form.strides[1:], form.kernel[1:]
        started: set[str] = set()

        def bound(axis: int, place: str) -> str | None:
            outside = form.begins[axis] != 0 or form.ends[axis] != 0
            return f"(({place} >= 0) & ({place} < {source.dim(form.size[axis])}))[:, None]" if outside else None

        columns = []
        for j in range((wide - 1) * across + broad):
            place = source.let(f"wide + {j}", "q")
            text = source.let(f"({times(place, source.dim(form.x_steps[4]))})[:, None]", "q")
            mask = bound(2, place)
            columns.append((text, mask and source.let(mask, "k")))
        for i in range((high - 1) * down + tall):
            place = source.let(f"high + {i}", "p")
            row = source.let(f"base + ({times(place, source.dim(form.x_steps[3]))})[:, None]", "p")
            mask = bound(1, place)
            row_inside = mask and source.let(mask, "k")
            for j, (column, column_inside) in enumerate(columns):
                masks = " & ".join(f"({k})" for k in (row_mask, column_mask, row_inside, column_inside) if k)
                address = f"{source.pointer(form.x)} + {joined([row, column])}"
                value = source.let(f"tl.load({address}{f', mask={masks}, other=0.0' if masks else ''})"
                                   ".to(tl.float32)", "x")
                for a in range(high):
                    for b in range(wide):
                        u, v = i - a * down, j - b * across
                        if 0 <= u < tall and 0 <= v < broad:
                            name = f"sums_{a}_{b}"
                            product = f"{value} * {weights[u * broad + v]}"
                            source.line(f"{name} += {product}" if name in started else f"{name} = {product}")
                            started.add(name)

    @staticmethod
    def _keep(end: Ending, site: Site, form: Form, kept: dict[int, Value]) -> None:
        """Load once what does not vary from place to place: the bias, bounds, scales."""
        for i in (*operands_of(site.epilogue), *(() if form.bias is None else (form.bias,))):
            if i not in kept and end.places[i].row == "0":
                kept[i] = end.load(i)
        end.kept.update(kept)


__all__ = ["DepthwiseTiles"]
