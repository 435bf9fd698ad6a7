"""Where integers went, what they gained, and what they cost."""
from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from ingot.engine import Engine
from ingot.report.table import Table


def _precision(engine: Engine) -> Mapping[str, object]:
    found = engine.report.get("precision")
    return found if isinstance(found, Mapping) else {}


def _items(value: object) -> Sequence[Mapping[str, object]]:
    return value if isinstance(value, (list, tuple)) else ()


def precision_table(engine: Engine) -> Table:
    """Each site's time in floats and in integers, and which it got."""
    rows = []
    for s in _items(_precision(engine).get("sites")):
        floating, integer = float(str(s["float"])), float(str(s["integer"]))
        gain = floating / integer if integer else 0.0
        kind = str(_precision(engine).get("kind", "int8")) if s["kept"] else "f32"
        rows.append((str(s["op"]), str(s["site"]), floating * 1e6, integer * 1e6, gain, kind))
    return Table("Sites, raced in floats and in integers (conversions included)",
                 ("op", "site", "f32 us", "int8 us", "gain", "chosen"), tuple(rows))


def precision_lines(engine: Engine) -> list[str]:
    """What came of it: whole inferences side by side, accuracy, alarms. Bad news first."""
    found = _precision(engine)
    if not found:
        return []
    lines = [str(n) for n in found.get("notes", ())]  # type: ignore[attr-defined]
    lines += [f"data: {a}" for a in found.get("alarms", ())]  # type: ignore[attr-defined]
    sites = _items(found.get("sites"))
    kept = sum(bool(s["kept"]) for s in sites)
    floating, integer = float(str(found["float_seconds"])), float(str(found["integer_seconds"]))
    timed = (f"; {floating * 1e3:.3g} ms in floats, {integer * 1e3:.3g} ms so: {floating / integer:.2f}x"
             if integer else "")
    lines.append(f"{found.get('kind', 'int8')} at {kept} of {len(sites)} sites{timed}")
    accuracy = found.get("accuracy")
    if isinstance(accuracy, Mapping):
        lines += [f"output {name}: mean cosine to the float model {value:.5f}" for name, value in accuracy.items()]
    return lines


def noise_table(rows: Sequence[Mapping[str, object]]) -> Table:
    """Signal to noise of every integer site, beside the float model; see `ingot.compiler.explain`."""
    told = tuple((str(r["op"]), str(r["site"]), _decibels(r["before"]), _decibels(r["after"]),
                  100 * float(str(r["clipped"])), 100 * float(str(r["unused"])), "jumps" if r["jumps"] else "")
                 for r in rows)
    return Table("Sites on integers beside the float model", ("op", "site", "reads dB", "makes dB", "clipped %",
                                                              "integers unused %", "error"), told)


def _decibels(value: object) -> float | None:
    number = float(str(value))
    return round(number, 1) if math.isfinite(number) else None


__all__ = ["noise_table", "precision_lines", "precision_table"]
