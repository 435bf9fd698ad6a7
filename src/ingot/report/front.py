"""The front between speed and accuracy, as a table and as a plot (SVG, written by hand: no package is needed)."""
from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from ingot.report.table import Table

_WIDTH, _HEIGHT, _LEFT, _BOTTOM, _TOP, _RIGHT = 640, 380, 70, 50, 40, 24


@dataclass(frozen=True)
class FrontPoint:
    """One plan: the sites left in floats, its error, seconds of one inference, and whether some other plan is at least
    as good in both."""

    floats: tuple[str, ...]
    error: float
    seconds: float
    beaten: bool = False


def front_table(points: Sequence[FrontPoint], sites: int, unit: str = "%") -> Table:
    """A row per plan: how many sites are integer, the error, milliseconds, and whether another plan beats it."""
    rows = tuple((sites - len(p.floats), len(p.floats), p.error, p.seconds * 1e3, "beaten" if p.beaten else "")
                 for p in points)
    return Table("Speed against accuracy", ("int8 sites", "f32 sites", f"error {unit}", "ms", "front"), rows,
                 "The error is measured with the kernels each plan ships; times are medians of blocks in turns.")


def front_plot(points: Sequence[FrontPoint], sites: int, title: str, unit: str = "% of 1 - cosine") -> str:
    """The plans as an SVG: milliseconds to the right, the error upwards, the front as a line."""
    most, worst = max(p.seconds for p in points) * 1.08, max(max(p.error for p in points) * 1.12, 1e-12)

    def place(p: FrontPoint) -> tuple[float, float]:
        across, up = p.seconds / most if most else 0.0, p.error / worst
        return (_LEFT + across * (_WIDTH - _LEFT - _RIGHT), _HEIGHT - _BOTTOM - up * (_HEIGHT - _BOTTOM - _TOP))

    held = [place(p) for p in points if not p.beaten]
    marks = []
    for k in range(6):
        x = _LEFT + k / 5 * (_WIDTH - _LEFT - _RIGHT)
        y = _HEIGHT - _BOTTOM - k / 5 * (_HEIGHT - _BOTTOM - _TOP)
        marks += [f'<text x="{x:.0f}" y="{_HEIGHT - _BOTTOM + 18}" text-anchor="middle">{most * 200 * k:.3g}</text>',
                  f'<text x="{_LEFT - 8}" y="{y + 4:.0f}" text-anchor="end">{worst * k / 5:.2g}</text>',
                  f'<line x1="{_LEFT}" y1="{y:.0f}" x2="{_WIDTH - _RIGHT}" y2="{y:.0f}" stroke="#ddd"/>']
    dots = []
    for p in points:
        x, y = place(p)
        colour = "#999" if p.beaten else "#0b62a4"
        dots += [f'<circle cx="{x:.1f}" cy="{y:.1f}" r="4" fill="{colour}"/>',
                 f'<text x="{x + 7:.1f}" y="{y - 5:.1f}" fill="{colour}">{sites - len(p.floats)}</text>']
    line = " ".join(f"{x:.1f},{y:.1f}" for x, y in held)
    return "\n".join([
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{_WIDTH}" height="{_HEIGHT}" font-size="12">',
        f'<rect width="{_WIDTH}" height="{_HEIGHT}" fill="white"/>',
        f'<text x="{_LEFT}" y="22" font-size="14">{title}: int8 sites beside each plan</text>', *marks,
        f'<polyline points="{line}" fill="none" stroke="#0b62a4"/>', *dots,
        f'<text x="{_WIDTH / 2:.0f}" y="{_HEIGHT - 12}" text-anchor="middle">milliseconds</text>',
        f'<text transform="translate(16 {_HEIGHT / 2:.0f}) rotate(-90)" text-anchor="middle">error, {unit}</text>',
        "</svg>"]) + "\n"


__all__ = ["FrontPoint", "front_plot", "front_table"]
