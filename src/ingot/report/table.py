"""A table as data: the same rows are printed for people and written as JSON."""
from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

Cell = str | int | float | None


@dataclass(frozen=True)
class Table:
    """Rows under named columns; a name ends in its unit (`median ms`) where the values have one."""

    title: str
    columns: tuple[str, ...]
    rows: tuple[tuple[Cell, ...], ...]
    note: str = ""

    def to_json(self) -> list[dict[str, Cell]]:
        """One object per row, keyed by column."""
        return [dict(zip(self.columns, row, strict=True)) for row in self.rows]

    def texts(self) -> list[tuple[str, ...]]:
        """The cells as they are printed."""
        return [tuple(text_of(cell) for cell in row) for row in self.rows]

    def __str__(self) -> str:
        """Plain text, columns aligned: numbers to the right."""
        rows = [self.columns, *self.texts()]
        widths = [max(len(r[i]) for r in rows) for i in range(len(self.columns))]
        right = [self.is_numeric(i) for i in range(len(self.columns))]
        lines = ["  ".join(c.rjust(w) if r else c.ljust(w) for c, w, r in zip(row, widths, right, strict=True)).rstrip()
                 for row in rows]
        lines.insert(1, "  ".join("-" * w for w in widths))
        return "\n".join([*([self.title] if self.title else []), *lines, *([self.note] if self.note else [])])

    def is_numeric(self, column: int) -> bool:
        """Whether every cell of the column is a number or absent."""
        return bool(self.rows) and all(not isinstance(row[column], str) for row in self.rows)

    def markdown(self) -> str:
        """The table in Markdown."""
        marks = ["---:" if self.is_numeric(i) else "---" for i in range(len(self.columns))]
        lines = [self.columns, tuple(marks), *self.texts()]
        return "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in row) + " |" for row in lines)


def text_of(cell: Cell) -> str:
    """A cell in print: four significant digits for a float, nothing for None."""
    if cell is None:
        return ""
    if isinstance(cell, float):
        return f"{cell:,.0f}" if abs(cell) >= 1000 else f"{cell:.4g}"
    return f"{cell:,}" if isinstance(cell, int) and not isinstance(cell, bool) else str(cell)


def nbytes_text(nbytes: float) -> str:
    """Bytes in a unit that suits them."""
    for unit in ("B", "KiB", "MiB"):
        if nbytes < 1024:
            return f"{nbytes:.0f} {unit}" if unit == "B" else f"{nbytes:.1f} {unit}"
        nbytes /= 1024
    return f"{nbytes:.2f} GiB"


def cut(text: str, width: int = 72) -> str:
    """The text, its middle left out where it is longer than `width`."""
    if len(text) <= width:
        return text
    half = (width - 3) // 2
    return f"{text[:half]}...{text[-half:]}"


def joined(parts: Sequence[str]) -> str:
    """Parts as one comma-separated text, or a dash."""
    return ", ".join(parts) if parts else "-"
