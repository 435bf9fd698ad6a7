"""Large products for Hopper in Gluon: blocks that stay, tile after tile, where two may share the weights they read.

One block, or two, hold a multiprocessor for the whole product; while a tile is ended, the ring of stages already fills
with the next one's operands. Tiles of up to 256 columns read less per product, blocks of a cluster read their weights
once for both (multicast), two blocks on a multiprocessor let one multiply while the other ends its tile. Which of these
wins depends on the depth and on what follows the product, so it is raced.
"""
from __future__ import annotations

from collections.abc import Iterator

from ingot.kernels.cuda.base import Drafts
from ingot.kernels.cuda.matmul import ending, multiprocessors
from ingot.kernels.cuda.source import HALVES, SHARED, TYPES, Source, Value, ceil_div, registers_of, usual
from ingot.kernels.cuda.tma import DEPTH, Matrix, TmaMatMul, bounds, fits_tma
from ingot.kernels.tactic import Params, Site
from ingot.kernels.x86.matmul_form import Form, collapsed
from ingot.kernels.x86.matmul_form import spread as product_spread
from ingot.target import Target

LEAST = 1 << 21     # elements of the result from which tiles this large fill a device
# rows and columns of a tile, blocks that share it (rows split), blocks on a multiprocessor, warps
SHAPES = ((256, 256, 2, 1, 8), (128, 256, 1, 1, 8), (128, 128, 1, 2, 4), (128, 128, 1, 1, 8), (64, 256, 1, 2, 4),
          (128, 128, 1, 2, 8), (256, 128, 1, 1, 8), (256, 128, 2, 1, 8))


def stages_for(rows: int, columns: int, cluster: int, room: int) -> int:
    """How many steps of the depth fit into shared memory beside the tile of the result; rows are of the cluster."""
    own = rows // cluster
    return min(6, (room - 1024 - own * columns * 2) // ((own + columns) * DEPTH * 2))


def clocks(rows: int, columns: int, cluster: int, blocks: int, steps: int, tiles: int, programs: int) -> float:
    """About how many clocks a product takes: waves of tiles, each some steps and an end, which another block hides."""
    own = rows // cluster
    step, end = own * columns / 26, own * columns / 8
    return -(-tiles // programs) * (blocks * steps * step + end)


class PersistentMatMul(TmaMatMul):
    """A large product with a constant right operand: a fixed number of blocks, each with several tiles."""

    name = "cuda.matmul_persistent"

    def _form(self, site: Site, target: Target) -> Form | str:
        form = super()._form(site, target)
        if isinstance(form, str):
            return form
        dtype = site.inputs[form.left].type.dtype
        if dtype not in HALVES or site.op not in ("MatMul", "Gemm"):
            return f"{site.op} of elements of type {dtype}"
        if site.output.dtype != dtype or not fits_tma(form.out_row, dtype) or not site.outputs[0].aligned or (
                form.no_column):
            return "its result cannot be stored by TMA"
        if usual(form.rows, site) * usual(form.columns, site) < LEAST:
            return "the result is too small for tiles this large"
        return form

    def space(self, site: Site, target: Target) -> Iterator[Params]:
        form = self._known(site, target)
        multi, room = multiprocessors(target), SHARED["sm_90"] * 1024
        rows, columns, steps = usual(form.rows, site), usual(form.columns, site), -(-int(str(form.depth)) // DEPTH)
        found: list[tuple[float, dict[str, int]]] = []
        for r, c, cluster, blocks, warps in SHAPES:
            tiles = -(-rows // r) * -(-columns // c)
            point = {"rows": r, "columns": c, "depth": DEPTH, "warps": warps, "cluster": cluster, "blocks": blocks,
                     "stages": stages_for(r, c, cluster, room // blocks)}
            found.append((clocks(r, c, cluster, blocks, steps, tiles, multi * blocks // cluster), point))
        yield from (p for _, p in sorted(found, key=lambda pair: pair[0]))

    def write(self, site: Site, params: Params, target: Target) -> Drafts:
        form, source = self._known(site, target), Source(site, target, gluon=True)
        rows, columns, stages, cluster = (params[k] for k in ("rows", "columns", "stages", "cluster"))
        long = int(str(form.depth))
        steps = -(-long // DEPTH)
        dtype = site.inputs[form.left].type.dtype
        across, down = ceil_div(form.columns, columns), ceil_div(form.rows, rows)
        index = self._beside(site, form)
        if index is not None and site.inputs[index].type.dtype != dtype:
            index = None
        self._maps(source, form, index, rows, columns, cluster)
        tiles = source.dim(across * down)
        programs = max(1, multiprocessors(target) * params["blocks"] // cluster)
        if isinstance(across * down, int):
            programs = min(programs, int(str(across * down)))
        shared = "[[1]]" if cluster > 1 else "[]"
        split = f", cga_layout={'[[1, 0]]' if cluster > 1 else '[]'}"
        size = (rows // cluster + columns) * DEPTH * 2
        source.lines(f"""
layout: tl.constexpr = tl.NVMMADistributedLayout(version=[3, 0], warps_per_cta=[{params['warps']}, 1], \
instr_shape=[16, {columns}, 16]{split})
lefts = tl.allocate_shared_memory(left.dtype, [{stages}, {rows}, {DEPTH}], left.layout)
rights = tl.allocate_shared_memory(right.dtype, [{stages}, {columns}, {DEPTH}], right.layout)
made = tl.allocate_shared_memory(result.dtype, [{rows}, {columns}], result.layout)
bars = tl.allocate_shared_memory(tl.int64, [{stages}, {cluster}], mbarrier.MBarrierLayout({shared}))
for i in tl.static_range({stages}):
    mbarrier.init(bars.index(i), count=1)
""")
        if index is not None:
            source.line(f"held_bar = tl.allocate_shared_memory(tl.int64, [1, {cluster}], "
                        f"mbarrier.MBarrierLayout({shared}))")
            source.line("mbarrier.init(held_bar.index(0), count=1)")
        if cluster > 1:     # the weights' half of a stage is free when both blocks have read it
            source.lines(f"""
free = tl.allocate_shared_memory(tl.int64, [{stages}, 1], mbarrier.MBarrierLayout([[0]]))
for i in tl.static_range({stages}):
    mbarrier.init(free.index(i), count=1)
fence_async_shared(cluster=True)
cluster.barrier()
""")
        else:
            source.line("fence_async_shared()")
        source.lines(f"""
begin = tl.program_id(0)
count = ({tiles} - begin + {programs - 1}) // {programs}
total = count * {steps}
""")
        with source.block(f"for i in tl.static_range({stages - 1}):"):
            self._ask(source, "i", size, stages, steps, programs, across, columns, cluster, "right")
        source.line("gdc_wait()")
        with source.block(f"for i in tl.static_range({stages - 1}):"):
            self._ask(source, "i", size, stages, steps, programs, across, rows, cluster, "left")
        source.line("gdc_launch_dependents()")
        with source.block("for number in range(0, count):"):
            source.lines(f"""
tile = begin + number * {programs}
tile_n = tile % {source.dim(across)}
tile_m = tile // {source.dim(across)}
sums = tl.zeros(({rows}, {columns}), tl.float32, layout)
""")
            with source.block(f"for k in range(0, {steps}):"):
                source.lines(f"""
step = number * {steps} + k
stage = step % {stages}
mbarrier.wait(bars.index(stage), (step // {stages}) & 1)
sums = warpgroup_mma(lefts.index(stage), rights.index(stage).permute((1, 0)), sums, is_async=True)
sums = warpgroup_mma_wait(1, deps=(sums, lefts, rights))[0]
ahead = step + {stages - 1}
""")
                if cluster > 1:
                    source.lines(f"""
mbarrier.arrive(free.index(ahead % {stages}), count=1, pred=step > 0)
mbarrier.wait(free.index(ahead % {stages}), (ahead // {stages} + 1) & 1, pred=(step > 0) & (ahead < total))
""")
                self._ask(source, "ahead", size, stages, steps, programs, across, columns, cluster, "right")
                self._ask(source, "ahead", size, stages, steps, programs, across, rows, cluster, "left")
                if index is not None:       # once the last tile's result has left its place
                    with source.block(f"if k == {min(1, steps - 1)}:"):
                        source.lines(f"""
tma.store_wait(pendings=0)
mbarrier.expect(held_bar.index(0), {rows // cluster * columns * 2})
tma.async_load(beside, [tile_m * {rows}, tile_n * {columns}], held_bar.index(0), made)
""")
            source.lines(f"""
sums = warpgroup_mma_wait(0, deps=(sums,))
m = tile_m * {rows} + tl.arange(0, {rows}, layout=tl.SliceLayout(1, layout))
n = tile_n * {columns} + tl.arange(0, {columns}, layout=tl.SliceLayout(0, layout))
""")
            row_mask, column_mask = bounds(source, form.rows, form.columns, params)
            end = ending(source, form, ["0"] * len(form.batch), "m[:, None]", "n[None, :]", row_mask, column_mask)
            if index is not None:
                source.line("mbarrier.wait(held_bar.index(0), number & 1)")
                source.line("beside_sums = made.load(layout).to(tl.float32)")
                end.kept[index] = Value("beside_sums", registers_of(dtype))
            else:
                source.line("tma.store_wait(pendings=0)")

            def keep(value: Value) -> None:
                source.lines(f"""
made.store(({source.narrowed(value, dtype)}))
fence_async_shared()
tma.async_store(result, [tile_m * {rows}, tile_n * {columns}], made)
""")
            end.keep = keep
            end.finish("sums", form.bias, alpha=form.alpha, beta=form.beta)
        source.line("tma.store_wait(pendings=0)")
        return Drafts((source.draft((programs, 1, 1), warps=params["warps"], cluster=cluster),))

    def _maps(self, source: Source, form: Form, index: int | None, rows: int, columns: int, cluster: int) -> None:
        """The descriptors: of a cluster's blocks each has its rows, and all have the weights."""
        site, long = source.site, int(str(form.depth))
        dtype = site.inputs[form.left].type.dtype
        whole = -(-long // DEPTH) * DEPTH
        kind = TYPES[dtype.name]

        def named(name: str, matrix: Matrix, tall: int, wide: int, bases: str) -> None:
            layout = (f"NVMMASharedLayout(swizzle_byte_width={min(128, wide * 2)}, element_bitwidth=16, rank=2, "
                      f"transposed=False, fp4_padded=False, cga_layout={bases if cluster > 1 else '[]'})")
            source.tensor_map(name, f"tensordesc<{kind}[{tall},{wide}],{layout}>", matrix.map(dtype))

        named("left", Matrix(form.left, form.rows, long, form.left_row), rows, DEPTH, "[[1, 0]]")
        named("right", Matrix(form.right, form.columns, whole, whole), columns, DEPTH, "[[0, 0]]")
        named("result", Matrix(len(site.inputs), form.rows, form.columns, form.out_row), rows, columns, "[[1, 0]]")
        if index is not None:
            steps = product_spread(site.inputs[index], form, site.step.types[0].shape) or ()
            row = collapsed(steps[len(form.batch):-1], form.row_dims)
            named("beside", Matrix(index, form.rows, form.columns, 0 if row is None else row), rows, columns,
                  "[[1, 0]]")

    @staticmethod
    def _ask(source: Source, at: str, size: int, stages: int, steps: int, programs: int, across: object, length: int,
             cluster: int, side: str) -> None:
        """Ask for one operand's part of step `at` of all of a program's steps."""
        wide = source.dim(across)       # type: ignore[arg-type]
        where = f"(begin + {at} // {steps} * {programs})"
        if side == "right":
            shared = ", multicast=True" if cluster > 1 else ""
            source.line(f"mbarrier.expect(bars.index({at} % {stages}), {size}, pred={at} < total)")
            source.line(f"tma.async_load(right, [{where} % {wide} * {length}, {at} % {steps} * {DEPTH}], "
                        f"bars.index({at} % {stages}), rights.index({at} % {stages}), pred={at} < total{shared})")
        else:
            source.line(f"tma.async_load(left, [{where} // {wide} * {length}, {at} % {steps} * {DEPTH}], "
                        f"bars.index({at} % {stages}), lefts.index({at} % {stages}), pred={at} < total)")


__all__ = ["PersistentMatMul"]
