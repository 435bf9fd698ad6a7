"""How the corpus of users' failures ends: which exporter was taken how often, what was alarmed, what was refused.

    python -m benchmarks.corpus --out benchmarks/results/corpus.json

Exports only, each held against the module's own run; the engines are built by tests/corpus.
"""
from __future__ import annotations

import argparse
import json
import warnings
from collections import Counter
from pathlib import Path

import torch

from ingot.errors import IngotError
from ingot.frontend import source_from
from ingot.verify import accept
from tests.corpus.cases import CASES, Case

ROOT = f"{Path(__file__).parents[1]}/"


def ending(case: Case) -> dict[str, object]:
    """One case: the export that was taken and the alarms, or the first line of the error."""
    row: dict[str, object] = {"thread": case.thread, "what": case.what}
    try:
        source = source_from(case.make(), case.example(), case.dynamic, opset=case.opset)
        if source is None:
            return {**row, "ending": "no source"}
        taken = accept(source)
    except IngotError as error:
        return {**row, "ending": "refused", "why": error.what, "where": error.where.replace(ROOT, "")}
    alarms = sorted({a.kind for a in taken.alarms})
    return {**row, "ending": "right", "export": taken.export, "alarms": alarms,
            "not taken": [str(a)[:300] for a in taken.attempts if not a.passed]}


def main() -> None:
    parser = argparse.ArgumentParser(description="How the corpus of users' failures ends.")
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    rows = []
    for case in CASES:
        rows.append(ending(case))
        print(rows[-1]["thread"], rows[-1]["ending"], rows[-1].get("export", ""), flush=True)
        counts = {"cases": len(rows), "endings": Counter(r["ending"] for r in rows),
                  "exports": Counter(r["export"] for r in rows if "export" in r),
                  "another exporter than the first": sum(bool(r.get("not taken")) for r in rows)}
        options.out.write_text(json.dumps({"torch": torch.__version__, **counts, "rows": rows}, indent=1) + "\n")


if __name__ == "__main__":
    main()
