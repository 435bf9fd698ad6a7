"""Writes what the documents derive: docs/cli.md from the command line itself, README's figures from the measurements.

    python scripts/docs.py            writes them
    python scripts/docs.py --check    says which are out of date; exit code 1 if any is
"""
from __future__ import annotations

import inspect
import json
import sys
from pathlib import Path
from typing import get_type_hints

import typer

from ingot.cli import app

REPOSITORY = Path(__file__).parents[1]
BEGIN, END = "<!-- figures: written by scripts/docs.py -->", "<!-- end of figures -->"


def _row(name: str, annotation: object, default: object) -> str:
    """One parameter of a command, as a row of its table."""
    kind, info = annotation.__origin__, annotation.__metadata__[0]
    if isinstance(info, typer.models.ArgumentInfo):
        return f"| `{info.metavar or name.upper()}` | {info.help} |"
    first = [info.default] if isinstance(info.default, str) else []       # where typer keeps the first of the names
    names = ", ".join(f"`{n}`" for part in [*first, *info.param_decls] for n in part.split("/"))
    flag = kind is bool
    value = "" if flag else f" {info.metavar or 'VALUE'}".replace("|", "\\|")
    told = "" if flag or default in (None, "", 0) else f" (default {default})"
    return f"| {names}{value} | {info.help}{told} |"


def cli_page() -> str:
    """docs/cli.md: every command, its options and its example, as the command line declares them."""
    lines = ["# The command line", "", "Written by `scripts/docs.py` from the commands themselves.", "",
             "Every command takes `--json` and then prints one JSON document. Exit codes: 0 done; 1 something in the",
             "model, the inputs or the engine is not as it must be; 2 the command line itself is wrong; 3 verification",
             "failed; 4 a bug of Ingot's own; 130 stopped by Ctrl-C. An error says what, where, why and the mend.", ""]
    for command in app.registered_commands:
        call = command.callback
        hints = get_type_hints(call, include_extras=True)
        text, _, example = call.__doc__.partition("Example:")
        rows = [_row(n, hints[n], p.default) for n, p in inspect.signature(call).parameters.items()]
        lines += [f"## ingot {command.name or call.__name__}", "", " ".join(text.split()), "",
                  f"    {example.strip()}", "", "| option | what it does |", "|---|---|", *rows, ""]
    return "\n".join(lines)


def figures() -> str:
    """README's table: each model at each batch, from every measurement kept in benchmarks/results."""
    lines = []
    for file in sorted((REPOSITORY / "benchmarks" / "results").glob("*.json")):
        report = json.loads(file.read_text())
        if "rows" not in report or "versions" not in report:
            continue
        runtimes = list(dict.fromkeys(r["runtime"] for r in report["rows"]))
        by = {(r["model"], r["batch"], r["runtime"]): r["median"] for r in report["rows"]}
        peers = [r for r in runtimes if r != "ingot"]
        versions = ", ".join(f"{k} {v}" for k, v in report["versions"].items() if k != "ingot")
        lines += [f"{report['cpu']}, {report['threads']} threads, {report['date']}; {versions}.",
                  "Medians in milliseconds, f32, in alternating blocks; in parentheses how much faster Ingot is.", "",
                  "| model | batch | Ingot | " + " | ".join(peers) + " |", "|---|---:|" + "---:|" * (1 + len(peers))]
        for model, batch in dict.fromkeys((r["model"], r["batch"]) for r in report["rows"]):
            ours = by.get((model, batch, "ingot"))
            if ours is None:
                continue
            cells = [f"{by[model, batch, p] * 1e3:.2f} ({by[model, batch, p] / ours:.2f}x)"
                     if (model, batch, p) in by else "" for p in peers]
            lines.append(f"| {model} | {batch} | {ours * 1e3:.2f} | " + " | ".join(cells) + " |")
        lines.append("")
    return "\n".join(lines).strip() or "Nothing has been measured yet: `python -m benchmarks.peers`."


def readme_page() -> str:
    """README.md with its figures written anew."""
    text = (REPOSITORY / "README.md").read_text()
    head, _, rest = text.partition(BEGIN)
    _, _, tail = rest.partition(END)
    return f"{head}{BEGIN}\n{figures()}\n{END}{tail}"


def main() -> int:
    """Write or check the pages."""
    pages = {REPOSITORY / "docs" / "cli.md": cli_page(), REPOSITORY / "README.md": readme_page()}
    old = [path for path, text in pages.items() if not path.exists() or path.read_text() != text]
    if "--check" in sys.argv[1:]:
        for path in old:
            print(f"{path.relative_to(REPOSITORY)} is out of date: python scripts/docs.py")
        return 1 if old else 0
    for path in old:
        path.write_text(pages[path])
        print(path.relative_to(REPOSITORY))
    return 0


if __name__ == "__main__":
    sys.exit(main())
