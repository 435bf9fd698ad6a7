"""Products of matrices through the matrix units: blocks read by pointers, any form, any epilogue."""
from __future__ import annotations

from collections.abc import Iterator, Mapping

import numpy as np

from ingot.graph import BF16, F8E4M3, F16, F32, I8, Dim, DType, product
from ingot.kernels.cuda.base import CudaTactic, Drafts
from ingot.kernels.cuda.ending import Ending, Place, Split
from ingot.kernels.cuda.expression import declines_steps
from ingot.kernels.cuda.source import (
    MULTIPROCESSORS,
    NAMES,
    SHARED,
    Source,
    ceil_div,
    is_wide,
    joined,
    sums_of,
    times,
    usual,
)
from ingot.kernels.steps import operands_of
from ingot.kernels.tactic import Params, Site
from ingot.kernels.x86.matmul_form import Form, collapsed, form_of, spread
from ingot.target import Target

FLOATS = (F16, BF16, F32)
ELEMENTS: Mapping[str, tuple[DType, ...]] = {       # products, and the element types they take
    "MatMul": FLOATS, "Gemm": FLOATS, "MatMulInteger": (I8,), "ShortMatMul": (BF16, F8E4M3)}
# rows, columns, depth, warps of the blocks that are tried
SHAPES = ((128, 128, 64, 8), (128, 64, 64, 4), (64, 128, 64, 4), (64, 64, 64, 4), (128, 256, 64, 8), (256, 128, 64, 8),
          (64, 32, 64, 4), (32, 64, 64, 4), (32, 32, 64, 4), (16, 64, 128, 4), (16, 32, 128, 4), (16, 128, 64, 4),
          (64, 256, 64, 4), (128, 32, 64, 4))


def precision_of(target: Target) -> str:
    """How products of f32 are computed: on the matrix units in tf32 where the target allows it, else in three parts."""
    return "tf32" if "tf32" in target.features else "tf32x3"


def multiprocessors(target: Target) -> int:
    return target.fact("multiprocessors", MULTIPROCESSORS.get(target.isa.rstrip("a"), 132))


def declines_ending(site: Site, form: Form, *, gluon: bool = False) -> str | None:
    """Why what follows the product cannot be applied to a block of sums, or None."""
    shape = site.step.types[0].shape
    if why := declines_steps(site, site.epilogue, gluon=gluon):
        return why
    for step in site.epilogue:
        if step.types[0].shape != shape:
            return f"{step.op} in the epilogue changes the shape"
    for i in (*operands_of(site.epilogue), *(() if form.bias is None else (form.bias,))):
        if i == form.right and site.inputs[i].constant:
            return "the right operand is packed, the epilogue wants it plain"
        if spread(site.inputs[i], form, shape) is None:
            return f"operand {i} is broadcast in a way only known at run time"
    return None


def product_of(site: Site) -> Form | str:
    """The form of any of the products that kernels here serve."""
    return form_of(site, tuple(ELEMENTS))


def accumulator(site: Site) -> str:
    """The name of the type in which a site's product is summed."""
    return NAMES[sums_of(site).name]


def declines_product(site: Site, target: Target, *, gluon: bool = False) -> Form | str:
    """The form of a product that kernels are generated for, or why it has none."""
    form = product_of(site)
    if isinstance(form, str):
        return form
    left, right = site.inputs[form.left].type.dtype, site.inputs[form.right].type.dtype
    if left not in ELEMENTS[site.op] or right != left:
        return f"elements of type {left} and {right}"
    if site.op == "MatMulInteger" and any(i is not None for i in site.step.inputs[2:]):
        return "a zero point"
    if not isinstance(form.depth, int):
        return "the depth is known only at run time"
    return declines_ending(site, form, gluon=gluon) or form


def out_place(source: Source, form: Form, batch: str, row: str, column: str) -> Place:
    """Where the output's elements are."""
    across = times(row, source.dim(form.out_row))
    # even where the output does not vary along an axis its addresses form a whole block, of which masks leave the first
    return Place(batch, f"{row} * 0" if across == "0" else across, f"{column} * 0" if form.no_column else column)


def unflattened(source: Source, index: str, dims: tuple[Dim, ...]) -> list[str]:
    """The places along `dims` of a row-major position."""
    found: list[str] = []
    for d in reversed(dims[1:]):
        found.insert(0, source.let(f"{index} % {source.dim(d)}", "i"))
        index = source.let(f"{index} // {source.dim(d)}", "r")
    return [index, *found] if dims else []


def along(source: Source, places: list[str], strides: tuple[Dim, ...]) -> str:
    """The offset of places along strides."""
    return joined([t for p, s in zip(places, strides, strict=True) if (t := times(p, source.dim(s))) != "0"])


def ending(source: Source, form: Form, batch: list[str], row: str, column: str, row_mask: str | None,
           column_mask: str | None) -> Ending:
    """The end of a product's kernel: where bias, epilogue operands and the output lie."""
    site = source.site
    shape = site.step.types[0].shape
    count = len(form.batch)
    places: dict[int, Place] = {}
    split_rows: list[str] = []
    for i in dict.fromkeys((*operands_of(site.epilogue), *(() if form.bias is None else (form.bias,)))):
        steps = spread(site.inputs[i], form, shape) or ()
        over = collapsed(steps[count:-1], form.row_dims)
        if over is None and not split_rows:
            split_rows = unflattened(source, row, form.row_dims)
        text = times(row, source.dim(over)) if over is not None else along(source, split_rows, steps[count:-1])
        places[i] = Place(along(source, batch, steps[:count]), text, times(column, source.dim(steps[-1])))
    places[len(site.inputs)] = out_place(source, form, along(source, batch, form.out_batch), row, column)
    return Ending(source, places, row_mask, column_mask)


class MatMul(CudaTactic):
    """Blocks of the result, each summed over the depth in steps; a constant right operand is packed depth first."""

    name = "cuda.matmul"

    def declines(self, site: Site, target: Target) -> str | None:
        form = declines_product(site, target)
        return form if isinstance(form, str) else None

    def _form(self, site: Site) -> Form:
        form = product_of(site)
        if isinstance(form, str):
            raise ValueError(form)
        return form

    def space(self, site: Site, target: Target) -> Iterator[Params]:
        form = self._form(site)
        size = site.inputs[form.left].type.dtype.nbytes
        points = block_points(usual(form.rows, site), usual(form.columns, site), int(str(form.depth)),
                              usual(product(form.batch), site), size, target)
        yield from points

    def pack(self, site: Site, params: Params, target: Target,
             constants: Mapping[int, np.ndarray]) -> Mapping[int, np.ndarray]:
        form = self._form(site)
        if form.right not in constants:
            return {}
        return {form.right: packed_right(constants[form.right], form, params["depth"])}

    def write(self, site: Site, params: Params, target: Target) -> Drafts:
        form, source = self._form(site), Source(site, target)
        rows, columns, depth, parts = params["rows"], params["columns"], params["depth"], params["split"]
        long, packed = int(str(form.depth)), site.inputs[form.right].constant
        across, down = ceil_div(form.columns, columns), ceil_div(form.rows, rows)
        steps = -(-long // depth)
        source.lines(f"""
tile = tl.program_id(0)
part = tl.program_id(1)
tile_n = tile % {source.dim(across)}
tile_m = (tile // {source.dim(across)}) % {source.dim(down)}
batch = tile // {source.dim(across * down)}
m = (tile_m * {rows} + tl.arange(0, {rows})){'.to(tl.int64)' if is_wide(site) else ''}
n = tile_n * {columns} + tl.arange(0, {columns})
k = tl.arange(0, {depth})
""")
        row_mask = _bound(source, "m", form.rows, rows, "[:, None]")
        column_mask = _bound(source, "n", form.columns, columns, "[None, :]")
        batch = unflattened(source, "batch", form.batch)
        left = along(source, batch, form.left_batch)
        if packed:
            whole = -(-long // depth) * depth
            matrix = along(source, batch, form.right_packed)
            right = times(f"({matrix})", source.dim(form.columns * whole)) if matrix != "0" else "0"
            right_column, right_depth = str(whole), "1"
        else:
            right = along(source, batch, form.right_batch)
            right_column, right_depth = source.dim(form.right_column), source.dim(form.right_depth)
        wide = ".to(tl.int64)" if is_wide(site) else ""
        left = joined([left, times("m[:, None]", source.dim(form.left_row)),
                       times("k[None, :]", source.dim(form.left_depth)), "m[:, None] * 0 + k[None, :] * 0"])
        right = joined([right, times(f"n[None, :]{wide}", right_column), times("k[:, None]", right_depth),
                        "n[None, :] * 0 + k[:, None] * 0"])
        source.line(f"a_at = {source.pointer(form.left)} + {left}")
        source.line(f"b_at = {source.pointer(form.right)} + {right}")
        source.start_dependent()
        source.line(f"sums = tl.zeros(({rows}, {columns}), {accumulator(site)})")
        per = -(-steps // parts)
        if parts > 1:
            source.line(f"first = part * {per}")
            source.line(f"last = tl.minimum(first + {per}, {steps})")
        bounds = "first, last" if parts > 1 else f"0, {steps}"
        ragged = long % depth != 0
        with source.block(f"for step in range({bounds}):"):
            source.line(f"at = step * {depth}")
            inside = f"k[None, :] + at < {long}" if ragged else None
            a = _masked(f"a_at + {times('at', source.dim(form.left_depth))}", row_mask, inside)
            inside = f"k[:, None] + at < {long}" if ragged and not packed else None
            b = _masked(f"b_at + {times('at', right_depth)}", column_mask, inside)
            source.line(f"a = {a}")
            source.line(f"b = {b}")
            source.line(f"sums = tl.dot(a, b, sums{_precision(site, form, target)})")
        source.let_next_start()
        split = Split(parts, rows, columns, across * down * product(form.batch), sums_of(site))
        end = ending(source, form, batch, "m[:, None]", "n[None, :]", row_mask, column_mask)
        split.write(source, "sums", "tile", "part",
                    lambda sums: end.finish(sums, form.bias, alpha=form.alpha, beta=form.beta))
        draft = source.draft((split.tiles, parts, 1), warps=params["warps"], stages=params["stages"])
        return Drafts((draft,), split.workspace, split.counters)


def _precision(site: Site, form: Form, target: Target) -> str:
    return dot_options(site.inputs[form.left].type.dtype, target)


def dot_options(dtype: DType, target: Target) -> str:
    """What `tl.dot` has to be told beside its operands."""
    if dtype == I8:
        return ", out_dtype=tl.int32"
    return f", input_precision='{precision_of(target)}'" if dtype == F32 else ""


def _bound(source: Source, name: str, size: Dim, block: int, shape: str) -> str | None:
    """A mask for positions past the end, where there may be such."""
    if isinstance(size, int) and size % block == 0:
        return None
    return f"{name}{shape} < {source.dim(size)}"


def _masked(address: str, *masks: str | None) -> str:
    """A load that reads zeros where a mask does not hold."""
    given = " & ".join(f"({m})" for m in masks if m)
    return f"tl.load({address}, mask={given}, other=0.0)" if given else f"tl.load({address})"


def packed_right(array: np.ndarray, form: Form, depth: int) -> np.ndarray:
    """The right operand as [..., columns, depth], zeros up to whole steps of the depth."""
    whole = array[None, :] if array.ndim == 1 else array if form.right_swapped else np.swapaxes(array, -1, -2)
    length = whole.shape[-1]
    padded = np.zeros((*whole.shape[:-1], -(-length // depth) * depth), array.dtype)
    padded[..., :length] = whole
    return padded.reshape(-1)


def splits_for(tiles: int, steps: int, multi: int) -> list[int]:
    """Into how many parts a depth of so many steps may be shared, so that so few tiles fill the device."""
    found = [1]
    for aim in (multi // 2, multi, 2 * multi):
        best = max((d for d in range(1, min(steps, 36) + 1) if -(-steps // -(-steps // d)) == d and d * tiles <= aim),
                   default=1)
        if best not in found:
            found.append(best)
    return found


def block_clocks(rows: int, columns: int, depth: int, size: int, stages: int, warps: int, tiles: int, steps: int,
                 parts: int, multi: int, room: int) -> float:
    """About how many clocks a product takes: blocks in waves, each step bound by the matrix units, by the second-level
    cache or by the latency its stages leave, and the price of bringing a split together.

    The constants are fitted to 6,042 candidates on an H200 (benchmarks/results/h200-kernels.md): the first point is
    3.4 % slower than the best that was tried, on the geometric mean.
    """
    rate = {1: 8192.0, 2: 4096.0, 4: 1365.0}[size] * (0.69 if rows >= 64 else 0.34) * min(1.0, columns / 67)
    mma = 2.0 * max(rows, 16) * columns * depth / rate
    load = (rows + columns) * depth * size / 64
    by_registers = max(1, 65536 // (warps * 32 * min(255, rows * columns // (warps * 32) + 28)))
    held = max(1, min(by_registers, room // max(1, (rows + columns) * depth * size * stages), 8))
    held = min(held, -(-tiles * parts // multi))
    waves = -(-tiles * parts // (multi * held))
    per = -(-steps // parts)
    step = max(held * mma, held * load, 1100 / max(1, stages - 1))
    clocks = waves * (8200 + per * step + held * rows * columns / 12)
    return clocks + (1700 + parts * rows * columns * 4 / 20 if parts > 1 else 0)


def block_points(rows: int, columns: int, depth: int, batch: int, size: int, target: Target,
                 stage_choices: tuple[int, ...] = (3, 4, 5, 2)) -> list[Params]:
    """Block shapes, stages and splits worth a race, the shortest by `block_clocks` first."""
    multi, room = multiprocessors(target), SHARED[target.isa.rstrip("a")] * 1024
    found: list[tuple[float, dict[str, int]]] = []
    for r, c, d, w in SHAPES:
        if size == 4:
            d = min(d, 32)
        if size == 1 and d == 64:
            d = 128
        if (r > 16 and r >= 2 * max(rows, 16)) or (c > 32 and c >= 2 * max(columns, 16)):
            continue
        if d >= 2 * max(depth, 16):
            d = max(32 if size == 1 else 16, 1 << (depth - 1).bit_length())
        tiles, steps = -(-rows // r) * -(-columns // c) * batch, -(-depth // d)
        for parts in splits_for(tiles, steps, multi):
            for stages in stage_choices:
                if (r + c) * d * size * stages > room or (stages > 2 and stages > -(-steps // parts) + 1):
                    continue
                clocks = block_clocks(r, c, d, size, stages, w, tiles, steps, parts, multi, room)
                found.append((clocks, {"rows": r, "columns": c, "depth": d, "warps": w, "stages": stages,
                                       "split": parts}))
    found.sort(key=lambda pair: pair[0])
    return spread_out([p for _, p in found], "stages")


def spread_out(points: list[dict[str, int]], name: str) -> list[Params]:
    """Points reordered so that those that differ in one parameter alone come in rounds: the best of each kind first."""
    rounds: dict[tuple[tuple[str, int], ...], list[dict[str, int]]] = {}
    for point in points:
        kind = tuple((k, v) for k, v in point.items() if k != name)
        if point not in rounds.setdefault(kind, []):
            rounds[kind].append(point)
    longest = max(map(len, rounds.values()), default=0)
    return [kind[i] for i in range(longest) for kind in rounds.values() if i < len(kind)]


__all__ = ["MatMul", "accumulator", "along", "block_clocks", "block_points", "declines_product", "dot_options",
           "ending", "multiprocessors", "packed_right", "precision_of", "product_of", "splits_for", "spread_out",
           "unflattened"]
