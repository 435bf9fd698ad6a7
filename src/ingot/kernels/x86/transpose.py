"""Transpose and Reorder: square tiles turned in registers."""
from __future__ import annotations

from collections.abc import Callable, Sequence

from ingot.graph import Dim, product
from ingot.kernels.codegen import Code, Int, Value, isa_of
from ingot.kernels.tactic import Kernel, Operand, Params, Site, Tactic
from ingot.kernels.x86.nest import Nest, Side, View, advance, collapsed
from ingot.target import Target

BITS = {1: "i8", 2: "i16", 4: "i32", 8: "i64"}     # elements are moved as integers of their size


def moved_as(operand: Operand) -> str:
    """The LLVM type under which an operand's elements are moved."""
    return BITS[operand.type.dtype.nbytes]


def declines_movement(site: Site) -> str | None:
    """What every mover asks: one step, elements of a size that can be moved."""
    if len(site.steps) > 1:
        return "takes no other steps"
    for operand in (*site.inputs, *site.outputs):
        if operand.type.dtype.kind in ("str", "complex") or operand.type.dtype.nbytes not in BITS:
            return f"moves no {operand.type.dtype}"
    return None


def turned(code: Code, rows: Sequence[Value]) -> list[Value]:
    """The transpose of a square tile: as many vectors as each has lanes."""
    n, found = len(rows), list(rows)
    first = 1
    if rows[0].element in ("i32", "float") and n >= 4:
        # two steps within 128-bit lanes, in the form of x86's unpack instructions
        low = [p for q in range(0, n, 4) for p in (q, n + q, q + 1, n + q + 1)]
        high = [p for q in range(0, n, 4) for p in (q + 2, n + q + 2, q + 3, n + q + 3)]
        pair = [p for q in range(0, n, 4) for p in (q, q + 1, n + q, n + q + 1)]
        other = [p for q in range(0, n, 4) for p in (q + 2, q + 3, n + q + 2, n + q + 3)]
        for q in range(0, n, 4):
            a, b, c, d = found[q:q + 4]
            t = [code.shuffle(a, b, low), code.shuffle(a, b, high), code.shuffle(c, d, low), code.shuffle(c, d, high)]
            found[q:q + 4] = [code.shuffle(t[0], t[2], pair), code.shuffle(t[0], t[2], other),
                              code.shuffle(t[1], t[3], pair), code.shuffle(t[1], t[3], other)]
        first = 4
    step = first
    while step < n:
        low = [lane if not lane & step else n + lane - step for lane in range(n)]
        high = [lane + step if not lane & step else n + lane for lane in range(n)]
        for i in range(n):
            if not i & step:
                a, b = found[i], found[i + step]
                found[i], found[i + step] = code.shuffle(a, b, low), code.shuffle(a, b, high)
        step *= 2
    return found


def tile_of(code: Code, nbytes: int) -> int:
    """Rows and columns of a tile of elements of that size."""
    return {8: max(2, code.isa.lanes // 2), 4: code.isa.lanes}.get(nbytes, 16)


def _order(site: Site) -> tuple[int, ...]:
    perm = site.attrs.get("perm")
    rank = site.inputs[0].type.rank
    return tuple(int(a) for a in perm) if isinstance(perm, (tuple, list)) else tuple(reversed(range(rank)))


def transpose_views(site: Site) -> tuple[list[Dim], View, View]:
    """The nest of a Transpose: dimensions of the result, the input and the result over them; collapsed."""
    steps = site.inputs[0].steps
    dims, (x, out) = collapsed(site.output.shape, [View(tuple(steps[a] for a in _order(site))),
                                                   View(site.outputs[0].steps)])
    return dims, x, out


class Transpose(Tactic):
    """Rows copied where the last axis stays last; else tiles of the two contiguous axes, turned in registers."""

    name = "x86.transpose"

    def declines(self, site: Site, target: Target) -> str | None:
        if site.op != "Transpose":
            return f"{site.op} is no Transpose"
        return declines_movement(site)

    def emit(self, site: Site, params: Params, target: Target) -> Kernel:
        code = Code(isa_of(target), site.symbols)
        name = f"transpose_{site.key}"
        element = moved_as(site.inputs[0])
        dims, x, out = transpose_views(site)
        with code.function(name):
            source, result = Side(code.buffer(0), element, x), Side(code.buffer(1), element, out)
            size = tile_of(code, site.output.dtype.nbytes)
            pair = _contiguous(dims, x, out)
            if pair is None or any(isinstance(dims[a], int) and dims[a] * 2 < size for a in pair):  # type: ignore[operator]
                Nest(code, dims, result, {0: source})(lambda load: load(0))
            else:
                _tiles(code, dims, source, result, pair[0], size)
        return Kernel(name, code.module(), (name,))


def _contiguous(dims: Sequence[Dim], x: View, out: View) -> tuple[int, int] | None:
    """The dimension along which the input is contiguous, and the last; None where that is one and the same."""
    if len(dims) < 2 or out.strides[-1] != 1 or x.strides[-1] == 1 or 1 not in x.strides:
        return None
    return x.strides.index(1), len(dims) - 1


def _tiles(code: Code, dims: Sequence[Dim], x: Side, out: Side, axis: int, size: int) -> None:
    last = len(dims) - 1
    outer = [a for a in range(last) if a != axis]
    sizes = {a: code.dim(d) for a, d in enumerate(dims)}
    across, along = code.ceildiv(sizes[axis], size), code.ceildiv(sizes[last], size)
    counts = [*(sizes[a] for a in outer), across, along]
    total: Int = 1
    for c in counts:
        total = code.mul(total, c)
    with code.share(total) as task:
        *places, j, k = code.unflatten(task, counts)
        j, k = code.mul(j, size), code.mul(k, size)
        steps = {**dict(zip(outer, places, strict=True)), axis: j, last: k}
        here = [advance(code, s, [(i, s.view.strides[a]) for a, i in steps.items()]) for s in (x, out)]
        rows, columns = code.sub(sizes[last], k), code.sub(sizes[axis], j)
        whole = all(isinstance(dims[a], int) and dims[a] % size == 0 for a in (axis, last))

        def tile(edge: bool) -> None:
            mask = code.mask(columns, size) if edge else None
            loaded = []
            for r in range(size):
                row = code.min(r, code.sub(rows, 1)) if edge else r
                place = advance(code, here[0], [(row, x.view.strides[last])])
                loaded.append(code.load(place.pointer, x.element, size, mask))
            keep = code.mask(rows, size) if edge else None
            for c, value in enumerate(turned(code, loaded)):
                place = advance(code, here[1], [(c, out.view.strides[axis])])
                if edge:
                    with code.when(code.compare("<", c, columns)):
                        code.store(value, place.pointer, keep)
                else:
                    code.store(value, place.pointer)
        if whole:
            tile(False)
            return
        inside = code.binary("and", code.compare(">=", code.value(rows), size),
                             code.compare(">=", code.value(columns), size))
        with code.when(inside):
            tile(False)
        with code.when(code.binary("xor", inside, Value("i1", "true"))):
            tile(True)


class Reorder(Tactic):
    """Between the plain layout and blocks of channels, or between two sizes of blocks."""

    name = "x86.reorder"

    def declines(self, site: Site, target: Target) -> str | None:
        if site.op != "Reorder":
            return f"{site.op} is no Reorder"
        if any(o.strides is not None for o in (*site.inputs, *site.outputs)):
            return "needs dense operands"
        return declines_movement(site)

    def emit(self, site: Site, params: Params, target: Target) -> Kernel:
        code = Code(isa_of(target), site.symbols)
        name = f"reorder_{site.key}"
        source, result = site.inputs[0].type, site.output
        with code.function(name):
            x, y = code.buffer(0), code.buffer(1)
            element = moved_as(site.inputs[0])
            n, c, s = (code.dim(d) for d in (source.shape[0], source.shape[1], product(source.shape[2:])))
            if source.layout == result.layout:
                Nest(code, [source.nbytes // source.dtype.nbytes], Side(y, element, View((1,))),
                     {0: Side(x, element, View((1,)))})(lambda load: load(0))
            elif source.layout and result.layout:
                _regrouped(code, x, y, element, (n, c, s), source.block, result.block)
            else:
                block = source.block or result.block
                _blocks(code, x, y, element, (n, c, s), block, bool(result.layout))
        return Kernel(name, code.module(), (name,))


def _blocks(code: Code, x: Value, y: Value, element: str, sizes: tuple[Int, Int, Int], block: int, into: bool) -> None:
    """[n, c, s] to [n, ceil(c/block), s, block] (into) or back, a tile of block positions at a time."""
    n, c, s = sizes
    groups, tiles = code.ceildiv(c, block), code.ceildiv(s, block)
    whole = isinstance(c, int) and c % block == 0
    with code.share(code.mul(n, code.mul(groups, tiles))) as task:
        i, g, t = code.unflatten(task, [n, groups, tiles])
        channel, position = code.mul(g, block), code.mul(t, block)
        plain = code.mul(code.add(code.mul(i, c), channel), s)                      # where the group begins in [n,c,s]
        blocked = code.mul(code.add(code.mul(code.add(code.mul(i, groups), g), s), position), block)
        plain = code.add(plain, position)
        valid = code.sub(c, channel)
        left = code.sub(s, position)

        def row(r: int) -> Int:
            """The channel of row r, the last valid one where the group has fewer."""
            return r if whole else code.min(r, code.sub(valid, 1))

        def here(r: Int, lane: Int) -> tuple[Value, Value]:
            """The addresses of channel r of the group at a position: plain, and blocked."""
            return (code.offset(x if into else y, code.add(code.add(plain, code.mul(r, s)), lane), element),
                    code.offset(y if into else x, code.add(blocked, code.add(code.mul(lane, block), r)), element))

        def each_valid(body: Callable[[int], None]) -> None:
            for r in range(block):
                if whole or r == 0:
                    body(r)
                else:
                    with code.when(code.compare("<", r, valid)):
                        body(r)

        def tile() -> None:
            if into:
                made = turned(code, [code.load(here(row(r), 0)[0], element, block) for r in range(block)])
                for lane, value in enumerate(made):
                    code.store(value, here(0, lane)[1])
            else:
                made = turned(code, [code.load(here(0, lane)[1], element, block) for lane in range(block)])
                each_valid(lambda r: code.store(made[r], here(r, 0)[0]))

        def rest() -> None:
            with code.loop(0, left) as lane:
                if into:
                    made = Value(f"<{block} x {element}>", "zeroinitializer")
                    for r in range(block):
                        made = code.insert(made, code.load(here(row(r), lane)[0], element), r)
                    code.store(made, here(0, lane)[1])
                else:
                    each_valid(lambda r: code.store(code.load(here(r, lane)[1], element), here(r, lane)[0]))
        if isinstance(s, int) and s % block == 0:
            tile()
        elif isinstance(s, int) and s < block:
            rest()
        else:
            full = code.compare(">=", left, block)
            with code.when(full):
                tile()
            with code.when(code.binary("xor", full, Value("i1", "true"))):
                rest()


def _regrouped(code: Code, x: Value, y: Value, element: str, sizes: tuple[Int, Int, Int], a: int, b: int) -> None:
    """Blocks of a channels to blocks of b: the common part of both is moved at once."""
    n, c, s = sizes
    small = min(a, b)
    sources, results = code.ceildiv(c, a), code.ceildiv(c, b)
    with code.share(code.mul(n, results)) as task:
        i, g = code.unflatten(task, [n, results])
        with code.loop(0, s) as p:
            for part in range(b // small):
                channel = code.add(code.mul(g, b), part * small)
                # a part past the last block is padding: any block will do
                group = code.min(code.div(channel, a), code.sub(sources, 1))
                lane = code.rem(channel, a)
                source = code.add(code.mul(code.add(code.mul(code.add(code.mul(i, sources), group), s), p), a), lane)
                place = code.add(code.mul(code.add(code.mul(task, s), p), b), part * small)
                value = code.load(code.offset(x, source, element), element, small)
                code.store(value, code.offset(y, place, element))
