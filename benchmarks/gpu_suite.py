"""The tests that need a GPU, and a report of them: device, date, versions, what passed.

    python -m benchmarks.gpu_suite [--out benchmarks/results/gpu-tests]

Writes OUT.md and OUT.json; exits with 1 where a test failed, or where there is no GPU.
"""
from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import xml.etree.ElementTree as Xml
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from ingot.errors import IngotError
from ingot.runtime.cuda.driver import cuda_driver

REPOSITORY = Path(__file__).parents[1]
PACKAGES = ("cuda-bindings", "triton", "numpy", "onnx", "torch")


def versions() -> dict[str, str]:
    """Of what takes part, as far as it is installed."""
    found = {"python": sys.version.split()[0]}
    for name in PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = "not installed"
    return found


def run(words: list[str]) -> list[dict[str, Any]]:
    """Every test marked gpu: its name, its outcome, its seconds, and the first line of what went wrong."""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "result.xml"
        subprocess.run([sys.executable, "-m", "pytest", "-m", "gpu", "-q", f"--junitxml={file}", *words],
                       cwd=REPOSITORY, check=False)
        cases = list(Xml.parse(file).iter("testcase"))
    found = []
    for case in cases:
        wrong = case.find("failure") if case.find("failure") is not None else case.find("error")
        skipped = case.find("skipped")
        note = wrong if wrong is not None else skipped
        found.append({"name": f"{case.get('classname')}::{case.get('name')}", "seconds": float(case.get("time") or 0),
                      "outcome": "failed" if wrong is not None else "skipped" if skipped is not None else "passed",
                      "note": (note.get("message") or "").splitlines()[0][:200] if note is not None else ""})
    return found


def table(report: dict[str, Any]) -> str:
    """The report as Markdown."""
    counts = {k: sum(t["outcome"] == k for t in report["tests"]) for k in ("passed", "failed", "skipped")}
    lines = [f"# Tests on {report['device']}", "", f"{report['date']}; driver of CUDA {report['driver']}; "
             + ", ".join(f"{k} {v}" for k, v in report["versions"].items()) + ".", "",
             ", ".join(f"{n} {k}" for k, n in counts.items()) + ".", "", "| test | outcome | s |", "|---|---|---:|"]
    lines += [f"| {t['name']} | {t['outcome']}{': ' + t['note'] if t['note'] else ''} | {t['seconds']:.1f} |"
              for t in report["tests"]]
    return "\n".join(lines) + "\n"


def main() -> int:
    """Run them, write the report."""
    parser = argparse.ArgumentParser(description="The tests that need a GPU, and a report of them.")
    parser.add_argument("--out", type=Path, default=REPOSITORY / "benchmarks" / "results" / "gpu-tests")
    parser.add_argument("words", nargs="*", help="passed on to pytest")
    given = parser.parse_args()
    try:
        facts = cuda_driver().facts
    except IngotError as error:
        print(error, file=sys.stderr)
        return 1
    report = {"device": facts.name, "architecture": facts.architecture, "driver": facts.driver,
              "date": datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"), "versions": versions(),
              "tests": run(given.words)}
    given.out.parent.mkdir(parents=True, exist_ok=True)
    given.out.with_suffix(".json").write_text(json.dumps(report, indent=1) + "\n")
    given.out.with_suffix(".md").write_text(table(report))
    print(table(report))
    return int(any(t["outcome"] == "failed" for t in report["tests"]))


if __name__ == "__main__":
    sys.exit(main())
