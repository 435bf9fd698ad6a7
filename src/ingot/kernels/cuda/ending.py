"""What happens to a block of sums: bias, epilogue, store; and how partial sums of a split are brought together."""
from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from ingot.graph import F32, Dim, DType
from ingot.kernels.cuda.expression import run_steps
from ingot.kernels.cuda.source import NAMES, Source, Value, joined, registers_of


@dataclass(frozen=True)
class Place:
    """Where an operand's elements are beside a block of sums: the sum of three texts; "0" where it does not vary."""

    base: str
    row: str        # varies with the row alone: [rows, 1]
    column: str     # varies with the column alone: [1, columns]


@dataclass
class Ending:
    """The last part of a kernel that has a block of sums [rows, columns] in registers."""

    source: Source
    places: Mapping[int, Place]         # by operand, the output's included
    row_mask: str | None
    column_mask: str | None
    kept: dict[int, Value] = field(default_factory=dict)        # operands that are in registers already
    keep: Callable[[Value], None] | None = None                 # how the result is stored, where not by addresses

    def mask(self, place: Place) -> str | None:
        """The mask of the block that an operand's elements form."""
        parts = [m for m, varies in ((self.row_mask, place.row != "0"), (self.column_mask, place.column != "0"))
                 if m and varies]
        return " & ".join(f"({p})" for p in parts) or None

    def load(self, index: int) -> Value:
        """Operand `index` beside the block."""
        if index in self.kept:
            return self.kept[index]
        place = self.places[index]
        offset = joined([place.base, place.row, place.column])
        if place.row == "0" and place.column == "0":
            dtype = self.source.operand(index).type.dtype
            one = self.source.let(f"tl.load({self.source.pointer(index)} + {offset})")
            if self.source.gluon:
                return Value(self.source.let(self.source.widened(one, dtype)), registers_of(dtype))
            stored = NAMES[dtype.name] if dtype.name != "bool" else "tl.uint8"
            whole = self.source.let(f"tl.full((1, 1), {one}, {stored})")
            return Value(self.source.let(self.source.widened(whole, dtype)), registers_of(dtype))
        mask = self.mask(place)
        return self.source.load(index, offset, mask, "0" if mask else None)

    def finish(self, sums: str, bias: int | None, *, alpha: float = 1.0, beta: float = 1.0) -> None:
        """Bias, the steps after the main one, and the store."""
        source, site = self.source, self.source.site
        if alpha != 1.0:
            sums = source.let(f"{sums} * {alpha!r}")
        if bias is not None and beta != 0.0:
            found = self.load(bias)
            sums = source.let(f"{sums} + {found}" + ("" if beta == 1.0 else f" * {beta!r}"))
        result = registers_of(site.step.types[0].dtype)
        value = run_steps(source, site.main + 1, {site.main: Value(sums, result)}, self.load)
        out = len(site.inputs)
        if self.keep is not None:
            self.keep(value)
            return
        place = self.places[out]
        source.store(out, joined([place.base, place.row, place.column]), value, self.mask(place))


@dataclass(frozen=True)
class Split:
    """The depth of a product shared by `parts` programs: each leaves its sums, the last to come adds them in order.

    The order of the additions is fixed, so equal inputs give equal results.
    """

    parts: int
    rows: int
    columns: int
    tiles: Dim          # blocks of the result
    dtype: DType = F32  # of the sums: four bytes

    @property
    def workspace(self) -> Dim:
        return self.tiles * (self.parts * self.rows * self.columns * 4) if self.parts > 1 else 0

    @property
    def counters(self) -> Dim:
        return self.tiles * 4 if self.parts > 1 else 0

    def write(self, source: Source, sums: str, tile: str, part: str, finish: Callable[[str], None]) -> None:
        """Finish the sums, by the last program of the tile where the depth is split."""
        if self.parts == 1:
            finish(sums)
            return
        work, counters = source.workspace(self.dtype), source.counters()
        size = self.rows * self.columns
        along, across = ("tl.arange(0, {})" if not source.gluon else "tl.arange(0, {}, layout=tl.SliceLayout("
                         f"{axis}, layout))" for axis in (1, 0))
        source.line(f"inside = {along.format(self.rows)}[:, None] * {self.columns} + "
                    f"{across.format(self.columns)}[None, :]")
        source.line(f"mine = {work} + ({tile}).to(tl.int64) * {self.parts * size}")
        source.line(f"tl.store(mine + {part} * {size} + inside, {sums})")
        source.line("tl.barrier()" if source.gluon else "tl.debug_barrier()")
        source.line(f"arrived = tl.atomic_add({counters} + {tile}, 1, sem='acq_rel')")
        with source.block(f"if arrived == {self.parts - 1}:"):
            source.line("total = tl.load(mine + inside, cache_modifier='.cg')")
            with source.block(f"for other in range(1, {self.parts}):"):
                source.line(f"total += tl.load(mine + other * {size} + inside, cache_modifier='.cg')")
            finish("total")
            source.line(f"tl.store({counters} + {tile}, 0)")


__all__ = ["Ending", "Place", "Split"]
