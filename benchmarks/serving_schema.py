"""Schemathesis on the server's OpenAPI document: no answer is a 5xx, and every answer is of a kind the document names.

    python -m benchmarks.serving_schema --schemathesis /venvs/schema/bin/schemathesis --out benchmarks/results/NAME.json

Requests are made from the document: valid ones, and ones that break it in one place. The names of models are narrowed
to those that are served and one that is not: a random name would never reach a model.
"""
from __future__ import annotations

import argparse
import json
import subprocess
import tempfile
import time
import urllib.request
from collections import Counter
from pathlib import Path
from typing import Any

from benchmarks.serving_machine import machine
from tests.serve_running import Running, add_model, serving, status

CHECKS = ("not_a_server_error", "status_code_conformance", "content_type_conformance", "response_schema_conformance",
          "unsupported_method", "allow_header_conformance")
MODELS = ("double", "mirror", "nobody")
GOOD = {"inputs": [{"name": "x", "datatype": "FP32", "shape": [1, 4], "data": [1, 2, 3, 4]}]}     # for "double"


def narrowed(server: Running) -> dict[str, Any]:
    """The server's document, with the models' names and versions, and a request one of them takes."""
    with urllib.request.urlopen(server.url + "/openapi.json", timeout=10) as answer:
        document: dict[str, Any] = json.load(answer)
    for path, methods in document["paths"].items():
        for operation in methods.values():
            if path.endswith("/infer"):
                operation["requestBody"]["content"]["application/json"]["example"] = GOOD
            for parameter in operation.get("parameters", ()):
                if parameter["name"] == "model":
                    parameter["schema"]["enum"] = list(MODELS)
                elif parameter["name"] == "version":
                    parameter["schema"]["enum"] = ["1", "7"]
    return document


def run(program: Path, examples: int, seed: int) -> dict[str, Any]:
    """Everything schemathesis finds on a fresh server."""
    with tempfile.TemporaryDirectory() as text:
        folder = Path(text)
        for name in ("double", "mirror"):
            add_model(folder / "models", name)
        with serving(folder / "models", log=folder / "log") as server:
            (folder / "openapi.json").write_text(json.dumps(narrowed(server)))
            done = subprocess.run(
                [program, "run", folder / "openapi.json", "--url", server.url, "--checks", ",".join(CHECKS),
                 "--max-examples", str(examples), "--seed", str(seed), "--phases", "examples,coverage,fuzzing",
                 "--continue-on-failure", "--suppress-health-check", "all", "--report", "har",
                 "--report-har-path", folder / "told.har", "--output-truncate", "false", "--no-shrink"],
                capture_output=True, text=True, check=False, cwd=folder)
            alive = server.process.poll() is None and status(server.url + "/readyz") == 200
        entries = json.loads((folder / "told.har").read_text())["log"]["entries"]
    by_path: dict[str, Counter[str]] = {}
    for entry in entries:
        method, path = entry["request"]["method"], entry["request"]["url"].removeprefix(server.url).split("?")[0]
        kind = "infer" if path.endswith("/infer") else "other"
        by_path.setdefault(f"{method} {kind}", Counter())[str(entry["response"]["status"])] += 1
    found = Counter(str(e["response"]["status"]) for e in entries)
    return {"requests": len(entries), "statuses": dict(sorted(found.items())),
            "of them": {k: dict(sorted(v.items())) for k, v in sorted(by_path.items())},
            "server errors": sum(n for k, n in found.items() if k.startswith("5")), "ready afterwards": alive,
            "checks": list(CHECKS), "all checks passed": done.returncode == 0,
            "told": done.stdout.splitlines()[-60:] if done.returncode else []}


def main() -> None:
    """Run, write, and fail where a check failed."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--schemathesis", type=Path, required=True)
    parser.add_argument("--examples", type=int, default=300, help="random requests per operation")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--out", type=Path)
    told = parser.parse_args()
    version = subprocess.run([told.schemathesis, "--version"], capture_output=True, text=True,
                             check=True).stdout.split()[-1]
    begin = time.time()
    report = {**machine(), "schemathesis": version, "examples": told.examples,
              **run(told.schemathesis.absolute(), told.examples, told.seed)}
    report["took"] = round(time.time() - begin, 1)
    text = json.dumps(report, indent=1)
    print(text)
    if told.out:
        told.out.write_text(text + "\n")
    if not report["all checks passed"]:
        raise SystemExit(1)


if __name__ == "__main__":
    main()
