"""MatMul with fewer multiplications than rows * depth * columns: Strassen's scheme, once or twice over.

Rows, depth and columns are cut in halves (quarters for two levels); 7 (49) products of sums of the parts stand for 8
(64): seven eighths of the work per level. The sums of the left operand's parts are made in a first phase; those of the
packed right operand a panel at a time, just before they are used; the products are added to where they belong while
they are in registers. It pays from some dozens of rows on: a level saves 12.5 % of the multiply-adds and costs some
3 to 5 % of sums.

Rounding: the error relative to the largest result grows by about 2 per level (a test measures it); it stays well
inside the bound that the number of rounded terms gives. Rows are cut within one item (the last dimension before the
depth), so items of a batch never meet. A row that holds a NaN or an infinity would spread it over its partners: the
first phase looks for those, and blocks that hold one are computed row by row the plain way.
"""
from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import product as pairs

import numpy as np

from ingot.graph import F32, Dim, product
from ingot.kernels.codegen import Code, Int, Value, isa_of
from ingot.kernels.codegen.tile import Tile
from ingot.kernels.tactic import Kernel, Params, Site, Tactic
from ingot.kernels.x86.matmul import at_profile, panels_of, tiles_for
from ingot.kernels.x86.matmul_form import Ending, Form, declines_epilogue, form_of
from ingot.target import Target

Terms = tuple[tuple[int, int], ...]     # (part, sign), parts numbered row by row: 11, 12, 21, 22

# product r is (sum of LEFT[r]) * (sum of RIGHT[r]), and goes into the parts TARGETS[r] of the result
LEFT: tuple[Terms, ...] = (((0, 1), (3, 1)), ((2, 1), (3, 1)), ((0, 1),), ((3, 1),), ((0, 1), (1, 1)),
                           ((2, 1), (0, -1)), ((1, 1), (3, -1)))
RIGHT: tuple[Terms, ...] = (((0, 1), (3, 1)), ((0, 1),), ((1, 1), (3, -1)), ((2, 1), (0, -1)), ((3, 1),),
                            ((0, 1), (1, 1)), ((2, 1), (3, 1)))
TARGETS: tuple[Terms, ...] = (((0, 1), (3, 1)), ((2, 1), (3, -1)), ((1, 1), (3, 1)), ((0, 1), (2, 1)),
                              ((0, -1), (1, 1)), ((3, 1),), ((0, 1),))


def nested(table: tuple[Terms, ...], levels: int) -> tuple[Terms, ...]:
    """The table of the scheme applied `levels` times over; parts are numbered row by row over 2^levels x 2^levels."""
    if levels == 1:
        return table
    inner = nested(table, levels - 1)
    half = 2 ** (levels - 1)
    found = []
    for outer, within in pairs(table, inner):
        terms = []
        for (a, sign), (b, other) in pairs(outer, within):
            row, column = (a >> 1) * half + b // half, (a & 1) * half + b % half
            terms.append((row * 2 * half + column, sign * other))
        found.append(tuple(terms))
    return tuple(found)


class StrassenMatMul(Tactic):
    """Strassen's scheme `levels` times over: products from `rows` x `vectors` tiles, `block` tiles of rows at once."""

    name = "x86.matmul_strassen"
    exact = False

    def declines(self, site: Site, target: Target) -> str | None:
        form = form_of(site)
        if isinstance(form, str):
            return form
        left, right = site.inputs[form.left], site.inputs[form.right]
        if left.type.dtype != F32 or right.type.dtype != F32:
            return "it takes f32"
        if not right.constant or right.type.rank != 2 or form.left == form.right:
            return "the right operand is not one constant matrix"
        if form.batch or len(form.row_dims) < 2 or form.left_depth != 1:
            return "the rows are not those of items that lie evenly"
        if not _levels(site, form, target):
            return "rows, depth or columns are too few, or do not divide into halves"
        return declines_epilogue(site, form, packs=True)

    def space(self, site: Site, target: Target) -> Iterator[Params]:
        form = form_of(site)
        if isinstance(form, str):
            return
        for levels in _levels(site, form, target):
            yield from _points(site, form, target, levels)

    def pack(self, site: Site, params: Params, target: Target,
             constants: Mapping[int, np.ndarray]) -> Mapping[int, np.ndarray]:
        form = form_of(site)
        if isinstance(form, str) or form.right not in constants:
            return {}
        array = constants[form.right].T if form.right_swapped else constants[form.right]
        return {form.right: panels_of(array, params["vectors"] * isa_of(target).lanes)}

    def emit(self, site: Site, params: Params, target: Target) -> Kernel:
        form = form_of(site)
        if isinstance(form, str):
            raise ValueError(form)
        return _Emission(site, form, params, target).kernel()


def _levels(site: Site, form: Form, target: Target) -> list[int]:
    """How many times over the scheme may pay, the best guess first."""
    length, depth, columns = form.row_dims[-1], form.depth, form.columns
    if not (isinstance(length, int) and isinstance(depth, int) and isinstance(columns, int)):
        return []
    lanes = isa_of(target).lanes
    found: list[int] = []
    for levels, rows, sides in ((1, 96, 256), (2, 512, 384)):
        cut = 2 ** levels
        fits = length >= 24 * cut and depth % (cut * lanes) == 0 and columns % (cut * lanes) == 0
        if fits and at_profile(form.rows, site, "opt") >= rows and min(depth, columns) >= sides:
            found.insert(0, levels)
    return found


def _points(site: Site, form: Form, target: Target, levels: int) -> Iterator[Params]:
    isa, cut = isa_of(target), 2 ** levels
    depth, columns, length = form.depth, form.columns, form.row_dims[-1]
    if not (isinstance(depth, int) and isinstance(columns, int) and isinstance(length, int)):
        return
    items = at_profile(product(form.row_dims[:-1]), site, "opt")
    rows = items * -(-length // cut)
    shapes = tiles_for(isa, rows, columns // cut, isa.lanes, 1, target.threads, depth // cut * 4)
    even = [(h, v) for h, v in shapes if columns % (cut * v * isa.lanes) == 0] or [(6, 1)]
    for height, vectors in even[:2]:
        room = (448 << 10) // (cut * cut * vectors * isa.lanes * 4)         # rows whose results stay in L2
        whole = -(-rows // height)
        blocks = max(1, -(-rows // room))
        yield {"levels": levels, "rows": height, "vectors": vectors, "block": -(-whole // blocks)}


@dataclass
class _Emission:
    """The emission of one kernel; lives inside `emit`."""

    site: Site
    form: Form
    params: Params
    target: Target

    def __post_init__(self) -> None:
        form = self.form
        self.code = Code(isa_of(self.target), self.site.symbols)
        self.lanes = self.code.isa.lanes
        self.levels = self.params["levels"]
        self.cut = 2 ** self.levels
        self.products = 7 ** self.levels
        self.height, self.vectors = self.params["rows"], self.params["vectors"]
        self.width = self.vectors * self.lanes
        length, depth, columns = form.row_dims[-1], form.depth, form.columns
        if not (isinstance(length, int) and isinstance(depth, int) and isinstance(columns, int)):
            raise ValueError("sizes that were to be declined")
        self.length, self.depth = length, depth
        self.part = -(-length // self.cut)                  # rows of an item's part
        self.piece = depth // self.cut                      # depth of a part
        self.groups = columns // (self.cut * self.width)    # panels of a part
        self.rows: Dim = product(form.row_dims[:-1]) * self.part        # of each product
        self.held = self.params["block"] * self.height      # rows of a block
        self.align = 4 * self.lanes
        # the workspace: sums of the left operand's parts, and a mark per row
        self.padded: Dim = self.rows + self.height
        self.marks: Dim = self.padded * self.products * self.piece

    def kernel(self) -> Kernel:
        code = self.code
        with code.function("strassen_sums"):
            self._left_sums()
        with code.function("strassen_main"):
            self._main()
        workspace = 4 * (self.marks + self.padded) + 64
        scratch = 4 * (self.cut ** 2 * self.held * self.width + self.piece * self.width)
        form = self.form
        flops = 2 * product(form.lead) * form.columns * form.depth
        return Kernel(StrassenMatMul.name, code.module(), ("strassen_sums", "strassen_main"), workspace, scratch,
                      {"flops": flops, "done": self.products / 8 ** self.levels})

    @property
    def _workspace(self) -> Value:
        return self.code.buffer(len(self.site.inputs) + len(self.site.outputs))

    def _row(self, p: Int, part: Int) -> tuple[Int, Value]:
        """The row of the operand that is row p of a product's part, and whether it exists."""
        code = self.code
        item, i = code.div(p, self.part), code.rem(p, self.part)
        inside = code.add(code.mul(part, self.part), i)
        return code.add(code.mul(item, self.length), inside), code.compare("<", code.value(inside), self.length)

    # --- the first phase ----------------------------------------------------------------------------------------

    def _left_sums(self) -> None:
        """Sums of the left operand's parts, [product][row][piece]; a mark per row: 0, or NaN where it is not finite."""
        code, lanes, cut = self.code, self.lanes, self.cut
        left, step = code.buffer(self.form.left), code.dim(self.form.left_row)
        zero = code.zero(lanes=lanes)
        size = code.mul(code.dim(self.padded), self.piece)
        with code.share(code.dim(self.rows)) as p:
            rows = [self._row(p, t) for t in range(cut)]
            # a row past the item's end is read as some row that exists, and counts as zero
            sources = [code.offset(left, code.mul(code.select(ok, code.value(row), code.value(rows[0][0])), step))
                       for row, ok in rows]
            mark = code.variable(zero)
            with code.loop(0, self.piece, lanes) as k:
                grid = []
                for source, (_, ok) in zip(sources, rows, strict=True):
                    line = [code.load(code.offset(source, code.add(k, u * self.piece)), lanes=lanes)
                            for u in range(cut)]
                    for value in line:
                        mark.set(code.fma(value, zero, mark.get()))
                    whole = self.length % cut == 0
                    grid.append(line if whole else [code.select(ok, value, zero) for value in line])
                at = code.offset(self._workspace, code.add(code.mul(p, self.piece), k))
                for r, value in enumerate(self._sums(grid)):
                    code.store(value, code.offset(at, code.mul(size, r)), align=self.align)
            code.store(code.reduce("fadd", mark.get()), code.offset(self._workspace, code.add(code.dim(self.marks), p)))

    def _sums(self, grid: Sequence[Sequence[Value]]) -> list[Value]:
        """One value per product, from one value per part."""
        if len(grid) == 1:
            return [grid[0][0]]
        half, code = len(grid) // 2, self.code
        quarters = [[row[c:c + half] for row in grid[r:r + half]] for r in (0, half) for c in (0, half)]
        found = []
        for terms in LEFT:
            total = quarters[terms[0][0]]
            for part, sign in terms[1:]:
                combine = code.fadd if sign > 0 else code.fsub
                total = [[combine(a, b) for a, b in zip(x, y, strict=True)]
                         for x, y in zip(total, quarters[part], strict=True)]
            found += self._sums(total)
        return found

    # --- the second phase ---------------------------------------------------------------------------------------

    def _main(self) -> None:
        code = self.code
        rows = code.dim(self.rows)
        tiles = code.ceildiv(rows, self.height)
        blocks = code.ceildiv(tiles, self.params["block"])
        slots = len(self.site.inputs) + len(self.site.outputs)
        results = code.offset(code.buffer(slots + 1), code.mul(
            code.thread, self.cut ** 2 * self.held * self.width + self.piece * self.width))
        panel = code.offset(results, self.cut ** 2 * self.held * self.width)
        tables = _Tables(self)
        with code.share(code.mul(blocks, self.groups)) as task:
            group, block = code.div(task, blocks), code.rem(task, blocks)
            low = code.mul(code.div(code.mul(block, tiles), blocks), self.height)
            high = code.min(rows, code.mul(code.div(code.mul(code.add(block, 1), tiles), blocks), self.height))
            sound = self._finite(low, high)
            with code.when(sound):
                with code.loop(0, self.cut ** 2 * self.held * self.width, self.lanes) as e:
                    code.store(code.zero(lanes=self.lanes), code.offset(results, e), align=self.align)
                with code.loop(0, self.products) as r:
                    self._product(tables, r, group, panel, low, high, results)
                self._finish(low, high, group, results)
            with code.when(code.binary("xor", sound, Value("i1", "true"))):
                self._plainly(low, high, group)

    def _finite(self, low: Int, high: Int) -> Value:
        code = self.code
        marks = code.offset(self._workspace, code.dim(self.marks))
        total = code.variable(code.zero())
        with code.loop(low, high) as p:
            total.set(code.fadd(total.get(), code.load(code.offset(marks, p))))
        return code.fcompare("oeq", total.get(), code.zero())

    def _product(self, tables: _Tables, r: Int, group: Int, panel: Value, low: Int, high: Int, results: Value) -> None:
        """One product of the block's rows and a panel, added to the parts of the result it belongs to.

        The first tile of rows makes the sum of right-hand parts as it goes, and keeps it in `panel` for the others:
        beside its multiply-adds that costs next to nothing.
        """
        code, lanes = self.code, self.lanes
        sums = code.offset(self._workspace, code.mul(r, code.mul(code.dim(self.padded), self.piece)))
        base = code.offset(code.buffer(self.form.right), code.mul(group, self.depth * self.width))
        count, first_term = tables.number(tables.right_count, r), code.mul(r, tables.most)
        parts = [code.offset(base, tables.number(tables.right, code.add(first_term, s))) for s in range(tables.most)]
        signs = [code.splat(tables.sign(tables.right_sign, code.add(first_term, s)), lanes) for s in range(tables.most)]
        right = code.select(code.compare("==", count, 1), parts[0], panel)
        with code.loop(low, high, self.height) as i:
            tile = Tile(code, self.height, self.vectors)
            tile.clear()
            left = code.offset(sums, code.mul(i, self.piece))

            ahead, stride = self._ahead(tables, r, group, code.div(code.sub(i, low), self.height))

            def depth(terms: int) -> None:
                sources = parts[:terms] or [right]

                def step(k: Int) -> None:
                    a, at = code.offset(left, k), code.mul(k, self.width)
                    if not terms:
                        code.prefetch(code.offset(ahead, code.mul(k, stride)), 2)

                    def column(v: int) -> Value:
                        places = [code.offset(x, code.add(at, v * lanes)) for x in sources]
                        found = code.load(places[0], lanes=lanes, align=self.align)
                        for place, sign in zip(places[1:], signs[1:], strict=False):
                            found = code.fma(code.load(place, lanes=lanes, align=self.align), sign, found)
                        if terms:
                            code.store(found, code.offset(panel, code.add(at, v * lanes)), align=self.align)
                        return found

                    tile.step(lambda row: code.load(code.offset(a, row * self.piece)), column)

                tile.depth(self.piece, step)

            later = code.compare("!=", code.value(i), low)
            with code.when(code.binary("or", later, code.compare("==", count, 1))):
                depth(0)
            for terms in (2, 4)[:self.levels]:
                now = code.compare("==", code.select(later, code.value(0), count), terms)
                with code.when(now):
                    depth(terms)
            with code.when(code.compare("==", r, self.products - 1)):
                self._foretell(i, group)
            self._add(tables, r, tile, code.mul(code.sub(i, low), self.width), results)

    def _ahead(self, tables: _Tables, r: Int, group: Int, tile: Int) -> tuple[Value, Value]:
        """Where the lines start that a tile asks for, and how far apart they are, one per step of the depth: the
        first tiles of a product walk over the right-hand parts of the next one, which would wait for L3 otherwise.
        Later tiles have nothing to ask for: they stay at one line."""
        code = self.code
        after = code.rem(code.add(r, 1), self.products)
        following = code.add(group, code.select(code.compare("==", after, 0), code.value(1), code.value(0)))
        turns = -(-self.width // 16)            # tiles it takes to walk over one part
        turn = code.max(code.sub(tile, 1), 0)
        part = code.min(code.div(turn, turns), tables.most - 1)
        place = code.add(tables.number(tables.right, code.add(code.mul(after, tables.most), part)),
                         code.mul(code.rem(turn, turns), self.piece * 16))
        base = code.mul(following, self.depth * self.width)
        asks = code.compare("<", turn, code.mul(tables.number(tables.right_count, after), turns))
        return (code.offset(code.buffer(self.form.right), code.add(base, place)),
                code.select(asks, code.value(16), code.value(0)))

    def _add(self, tables: _Tables, r: Int, tile: Tile, first: Int, results: Value) -> None:
        """A tile, added to the parts of the result."""
        code, lanes, values = self.code, self.lanes, tile.values()
        with code.loop(0, tables.number(tables.target_count, r)) as s:
            at = code.add(code.mul(r, tables.most), s)
            into = code.offset(results, code.add(tables.number(tables.target, at), first))
            sign = code.splat(tables.sign(tables.target_sign, at), lanes)
            for row, line in enumerate(values):
                for v, value in enumerate(line):
                    spot = code.offset(into, row * self.width + v * lanes)
                    old = code.load(spot, lanes=lanes, align=self.align)
                    code.store(code.fma(value, sign, old), spot, align=self.align)

    def _foretell(self, i: Int, group: Int) -> None:
        """Ask for the lines of the output that the tile's rows will be stored to, before all are stored at once."""
        code = self.code
        out, line = code.buffer(len(self.site.inputs)), code.dim(self.form.out_row)
        with code.loop(0, self.cut) as t, code.loop(0, self.height) as r, code.loop(0, self.cut) as c:
            row, _ = self._row(code.add(i, r), t)
            column = code.mul(code.add(code.mul(c, self.groups), group), self.width)
            at = code.offset(out, code.add(code.mul(row, line), column))
            for d in range(0, self.width, 16):
                code.prefetch(code.offset(at, d), 2)

    def _finish(self, low: Int, high: Int, group: Int, results: Value) -> None:
        code, lanes = self.code, self.lanes
        ending = Ending(code, self.site, self.form)
        with code.loop(0, self.cut) as t, code.loop(low, high) as p:
            row, there = self._row(p, t)
            with code.when(there):
                finish = ending.row((), row)
                with code.loop(0, self.cut) as c:
                    part = code.mul(code.add(code.mul(t, self.cut), c), self.held * self.width)
                    held = code.offset(results, code.add(part, code.mul(code.sub(p, low), self.width)))
                    column = code.mul(code.add(code.mul(c, self.groups), group), self.width)
                    for v in range(self.vectors):
                        value = code.load(code.offset(held, v * lanes), lanes=lanes, align=self.align)
                        finish(value, code.add(column, v * lanes), None)

    def _plainly(self, low: Int, high: Int, group: Int) -> None:
        """The block row by row from the operands themselves: a NaN stays in its row."""
        code, lanes = self.code, self.lanes
        ending = Ending(code, self.site, self.form)
        with code.loop(0, self.cut) as t, code.loop(low, high) as p:
            row, there = self._row(p, t)
            with code.when(there), code.loop(0, self.cut) as c:
                panel = code.add(code.mul(c, self.groups), group)
                left = code.offset(code.buffer(self.form.left), code.mul(row, code.dim(self.form.left_row)))
                right = code.offset(code.buffer(self.form.right), code.mul(panel, self.depth * self.width))
                tile = Tile(code, 1, self.vectors)
                tile.clear()

                def step(k: Int) -> None:
                    b = code.offset(right, code.mul(k, self.width))
                    tile.step(lambda _: code.load(code.offset(left, k)),
                              lambda v: code.load(code.offset(b, v * lanes), lanes=lanes, align=self.align))

                tile.depth(self.depth, step)
                finish = ending.row((), row)
                for v, value in enumerate(tile.values()[0]):
                    finish(value, code.add(code.mul(panel, self.width), v * lanes), None)


class _Tables:
    """The scheme as constants beside the code: where each product's parts are, with their signs."""

    def __init__(self, e: _Emission) -> None:
        self.code, cut = e.code, e.cut
        self.most = 2 ** e.levels
        right, target = nested(RIGHT, e.levels), nested(TARGETS, e.levels)
        # part (u, v) of the right operand: piece u of the depth of the panels of column part v
        panels, piece = e.groups * e.depth * e.width, e.piece * e.width
        self.right = self._offsets(right, [(b % cut) * panels + b // cut * piece for b in range(cut * cut)])
        self.target = self._offsets(target, [b * e.held * e.width for b in range(cut * cut)])
        self.right_sign, self.target_sign = self._signs(right), self._signs(target)
        self.right_count = self.code.table([len(t) for t in right], "i64")
        self.target_count = self.code.table([len(t) for t in target], "i64")

    def _offsets(self, table: tuple[Terms, ...], places: Sequence[int]) -> Value:
        found = [places[t[s][0]] if s < len(t) else 0 for t in table for s in range(self.most)]
        return self.code.table(found, "i64")

    def _signs(self, table: tuple[Terms, ...]) -> Value:
        return self.code.table([t[s][1] if s < len(t) else 0 for t in table for s in range(self.most)], "float")

    def number(self, table: Value, index: Int) -> Value:
        return self.code.load(self.code.offset(table, index, "i64"), "i64")

    def sign(self, table: Value, index: Int) -> Value:
        return self.code.load(self.code.offset(table, index))
