"""The register tile: rows x vectors of accumulators that products and convolutions are made of.

A tile holds `rows` x `vectors` vector accumulators. One depth step loads `vectors` vectors of the right-hand
side (a row of a packed panel), broadcasts `rows` scalars of the left-hand side, and makes rows * vectors fused
multiply-adds. Loops around a step are the caller's own `code.loop`s, nested as deep as he likes (depth, or input
channel block x kernel row x kernel column x lane): accumulators live across them.

    tile = Tile(code, rows=8, vectors=3)
    tile.clear()
    with code.loop(0, channels) as c, code.loop(0, taps) as t:
        tile.step(left=lambda r: <scalar Value of row r>, right=lambda v: <vector Value v>)
    for r, row in enumerate(tile.values()):             # rows of vectors, to apply an epilogue on and store
        ...
    tile.store(lambda r, v: <address of vector v of row r>)   # or as they are

What comes after (bias, activation, residual, masks) is best emitted once per row, in a loop over the tile's valid
rows: `tile.store` into a small area that stays in L1, then loop over its rows. It costs some 2 % at depth 256 and
keeps the code of a long epilogue rows times smaller; rows that lie past the edge are just not looped over.

`shapes(isa)` lists the tiles that fit the registers of an instruction set, the ones with the least traffic first.
"""
from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

from ingot.kernels.codegen.code import Code, Int, Value, Variable, vector
from ingot.kernels.codegen.dot import Combine
from ingot.kernels.codegen.isa import Isa


class Tile:
    """rows x vectors accumulators of `lanes` elements (a whole register unless given).

    The last vector may have fewer lanes, `narrow`: where 512 bits are computed as twice 256, half a vector costs half.
    """

    def __init__(self, code: Code, rows: int, vectors: int, element: str = "float", lanes: int = 0,
                 combine: Combine | None = None, narrow: int = 0) -> None:
        self.code, self.rows, self.vectors, self.element = code, rows, vectors, element
        self.combine = combine          # (code, left, right, sum) -> sum, where it is no multiply-add
        self.lanes = lanes or lanes_of(code.isa, element)
        self.type = vector(element, self.lanes)
        types = [self.type] * (vectors - 1) + [vector(element, narrow or self.lanes)]
        self._held: list[list[Variable]] = [[Variable(code, t) for t in types] for _ in range(rows)]

    @property
    def width(self) -> int:
        """Columns of the tile, in elements."""
        return self.vectors * self.lanes

    def clear(self) -> None:
        """Every accumulator becomes zero."""
        for row in self._held:
            for held in row:
                held.set(self.code.zero(self.element, self.lanes))

    def fill(self, value: Callable[[int, int], Value]) -> None:
        """Every accumulator becomes `value(row, vector)` (a bias, a partial sum)."""
        for r, row in enumerate(self._held):
            for v, held in enumerate(row):
                held.set(value(r, v))

    def step(self, left: Callable[[int], Value], right: Callable[[int], Value]) -> None:
        """One depth step: acc[r][v] += left(r) * right(v). `left` gives a scalar (broadcast here) or a vector."""
        columns = [right(v) for v in range(self.vectors)]
        for r, row in enumerate(self._held):
            scalar = left(r)
            one = scalar if scalar.lanes == self.lanes else self.code.splat(scalar, self.lanes)
            for held, column in zip(row, columns, strict=True):
                total = held.get()
                part = one if column.lanes == one.lanes or self.combine else self.code.shuffle(
                    one, None, range(column.lanes))
                held.set(self.combine(self.code, part, column, total) if self.combine
                         else self.code.fma(part, column, total))

    def depth(self, count: Int, step: Callable[[Int], None], unroll: int = 1) -> None:
        """`step(k)` for k in range(count), `unroll` of them per turn; what is left over comes after."""
        code = self.code
        whole = code.mul(code.div(count, unroll), unroll)
        if whole != 0:
            with code.loop(0, whole, unroll) as k:
                for u in range(unroll):
                    step(code.add(k, u))
        if isinstance(count, int) and isinstance(whole, int):
            for rest in range(whole, count):
                step(rest)
        elif unroll > 1:
            with code.loop(whole, count) as k:
                step(k)

    def values(self) -> list[list[Value]]:
        """The accumulators, row by row."""
        return [[held.get() for held in row] for row in self._held]

    def load(self, address: Callable[[int, int], Value], align: int = 0) -> None:
        """Every accumulator from memory."""
        self.fill(lambda r, v: self.code.load(address(r, v), self.element, self.lanes, align=align))

    def store(self, address: Callable[[int, int], Value], align: int = 0) -> None:
        """Every accumulator to memory, as it is."""
        for r, row in enumerate(self.values()):
            for v, value in enumerate(row):
                self.code.store(value, address(r, v), align=align)


def lanes_of(isa: Isa, element: str) -> int:
    """Elements of a type per register: `isa.lanes` counts those of 32 bits."""
    return isa.lanes * 32 // {"double": 64, "i64": 64}.get(element, 32)


def fits(isa: Isa, rows: int, vectors: int) -> bool:
    """Whether the accumulators, one row of right-hand vectors and a broadcast are registers all at once.

    AVX-512 folds the broadcast into the multiply-add where a row has a single use of it (one vector).
    """
    return rows * vectors + vectors + (0 if isa.name == "avx512" and vectors == 1 else 1) <= isa.registers


def shapes(isa: Isa, least: int = 8) -> list[tuple[int, int]]:
    """(rows, vectors) of the tiles worth trying: at least `least` accumulators (the latency of a multiply-add must
    be hidden) that fit the registers; those with the fewest loads per multiply-add first."""
    found = [(rows, vectors) for vectors in range(1, 9) for rows in range(1, isa.registers)
             if rows * vectors >= least and fits(isa, rows, vectors)]
    return sorted(found, key=lambda s: ((s[0] + s[1]) / (s[0] * s[1]), -s[0]))


def transposed(code: Code, rows: Sequence[Value]) -> list[Value]:
    """As many 32-bit registers as lanes (4, 8 or 16), transposed: lane r of result l is lane l of rows[r].

    Interleaved within 128-bit pieces first, then pieces are exchanged: each shuffle is one cheap instruction.
    """
    lanes = rows[0].lanes
    groups = [_interleaved(code, rows[g:g + 4]) for g in range(0, lanes, 4)]
    found = [_exchanged(code, [group[c] for group in groups]) for c in range(4)]
    return [found[i % 4][i // 4] for i in range(lanes)]


def _interleaved(code: Code, rows: Sequence[Value]) -> list[Value]:
    """Four rows: result c holds, in piece p, lane 4p + c of each of them."""
    n = rows[0].lanes

    def pick(a: Value, b: Value, one: int, other: int, step: int) -> Value:
        lanes = (0, n) if step == 1 else (0, 1, n, n + 1)
        order = [p + i + j for p in range(0, n, 4) for i in ((one, other) if step == 1 else (one,)) for j in lanes]
        return code.shuffle(a, b, order)

    a, b, c, d = rows
    low, high = (pick(a, b, 0, 1, 1), pick(c, d, 0, 1, 1)), (pick(a, b, 2, 3, 1), pick(c, d, 2, 3, 1))
    return [pick(*pair, one, 0, 2) for pair in (low, high) for one in (0, 2)]


def _exchanged(code: Code, values: Sequence[Value]) -> list[Value]:
    """As many registers as pieces of 4 lanes: result p holds piece p of each of them."""
    n = values[0].lanes

    def pick(a: Value, b: Value, pieces: Sequence[int]) -> Value:
        return code.shuffle(a, b, [base + 4 * p + i for base in (0, n) for p in pieces for i in range(4)])

    if len(values) == 1:
        return list(values)
    if len(values) == 2:
        return [pick(values[0], values[1], (p,)) for p in (0, 1)]
    a, b, c, d = values
    even, odd = (pick(a, b, (0, 2)), pick(c, d, (0, 2))), (pick(a, b, (1, 3)), pick(c, d, (1, 3)))
    return [pick(*pair, pieces) for pieces in ((0, 2), (1, 3)) for pair in (even, odd)]


@contextmanager
def blocks(code: Code, total: Int, size: int) -> Iterator[tuple[Value, Int]]:
    """Loop over pieces of `size`, the last one shorter where it does not divide: (start, how many)."""
    with code.loop(0, total, size) as start:
        whole = isinstance(total, int) and total % size == 0
        yield start, size if whole else code.min(size, code.sub(total, start))
