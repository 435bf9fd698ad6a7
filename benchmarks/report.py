"""A measurement beside peers, as Markdown and as a plot."""
from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any


def precision_of(runtime: str) -> str:
    """The precision a runtime's name tells."""
    return "bf16" if runtime.endswith("bf16") else "f32"


def geometric_mean(values: Sequence[float]) -> float:
    """Of at least one positive number."""
    return math.exp(sum(map(math.log, values)) / len(values))


def best_ratios(rows: Sequence[dict[str, Any]], precision: str) -> dict[tuple[str, int], tuple[str, float]]:
    """Per model and batch, the fastest counted peer of a precision, and its median over ours."""
    found: dict[tuple[str, int], tuple[str, float]] = {}
    for row in rows:
        key = row["model"], row["batch"]
        counts = "ratio" in row and row.get("counts", True) and precision_of(row["runtime"]) == precision
        if counts and (key not in found or row["ratio"] < found[key][1]):
            found[key] = row["runtime"], row["ratio"]
    return found


def table(report: dict[str, Any]) -> str:
    """The report as Markdown."""
    rows = report["rows"]
    runtimes = list(dict.fromkeys(r["runtime"] for r in rows))
    by = {(r["model"], r["batch"], r["runtime"]): r for r in rows}
    ratios = [r for r in runtimes if any(x["runtime"] == r and "ratio" in x for x in rows)]
    over = {r: next((x["over"] for x in rows if x["runtime"] == r and "over" in x), "ingot") for r in ratios}
    memory = any("memory" in r for r in rows)
    best = best_ratios(rows, "f32")
    head = ["model", "batch", *(f"{r} ms" for r in runtimes), *(f"{r} / {over[r]}" for r in ratios), "best f32 peer",
            *(["peak memory MB, in that order"] if memory else [])]
    lines = [f"Median milliseconds, {report['threads']} threads, {report['cpu']}, {report['date']}; f32 if not said.",
             f"In parentheses: share of the {report['peak_gflops']:.0f} GFLOP/s a loop of multiply-adds alone reaches.",
             "In brackets: the 95 % interval of the ratio. A dagger: output too far from PyTorch's, not counted.",
             "", "Versions: " + ", ".join(f"{k} {v}" for k, v in report["versions"].items()) + ".", "",
             "| " + " | ".join(head) + " |", "|" + "---|" * len(head)]
    for model, batch in dict.fromkeys((r["model"], r["batch"]) for r in rows):
        cells = [model, str(batch)]
        for runtime in runtimes:
            row = by.get((model, batch, runtime))
            cells.append(f"{row['median'] * 1e3:.2f} ({row['peak_share']:.0%}){'' if row.get('counts', True) else '†'}"
                         if row else "-")
        for runtime in ratios:
            row = by.get((model, batch, runtime))
            cells.append(f"{row['ratio']:.2f} [{row['ratio_low']:.2f}, {row['ratio_high']:.2f}]"
                         if row and "ratio" in row else "-")
        name, ratio = best.get((model, batch), ("-", float("nan")))
        cells.append(f"{name} {ratio:.2f}x" if name != "-" else "-")
        if memory:
            cells.append(" / ".join(f"{by[k]['memory'] / 1e6:.0f}" if (k := (model, batch, r)) in by and
                                    "memory" in by[k] else "-" for r in runtimes))
        lines.append("| " + " | ".join(cells) + " |")
    lines += ["", "Tails, p90 / p99 over the median:", "", "| model | batch | " + " | ".join(runtimes) + " |",
              "|" + "---|" * (2 + len(runtimes))]
    for model, batch in dict.fromkeys((r["model"], r["batch"]) for r in rows):
        mine = (by.get((model, batch, r)) for r in runtimes)
        cells = [f"{x['p90'] / x['median']:.2f} / {x['p99'] / x['median']:.2f}" if x else "-" for x in mine]
        lines.append("| " + " | ".join([model, str(batch), *cells]) + " |")
    short = [x for x in rows if x.get("over") == "ingot bf16"]
    for precision, found in (("f32", best), ("bf16", best_ratios(short, "bf16"))):
        every = [r for _, r in found.values()]
        if every:
            mean = f"Geometric mean over the best {precision} peer of each row: {geometric_mean(every):.2f}x"
            lines += ["", f"{mean}; least {min(every):.2f}x."]
    return "\n".join(lines) + "\n"


def plot(report: dict[str, Any], path: Path) -> None:
    """Bars of each runtime's median over ours, one group per model and batch."""
    try:
        import matplotlib.pyplot as plt
    except ImportError:
        print("no plot: pip install matplotlib")
        return
    rows = [r for r in report["rows"] if "ratio" in r]
    groups = list(dict.fromkeys((r["model"], r["batch"]) for r in rows))
    runtimes = list(dict.fromkeys(r["runtime"] for r in rows))
    if not rows:
        return
    figure, axes = plt.subplots(figsize=(max(7, 1.1 * len(groups)), 4), layout="constrained")
    width = 0.8 / len(runtimes)
    for k, runtime in enumerate(runtimes):
        mine = [(groups.index((r["model"], r["batch"])), r) for r in rows if r["runtime"] == runtime]
        heights = [r["ratio"] for _, r in mine]
        errors = [[max(0.0, r["ratio"] - r["ratio_low"]) for _, r in mine],
                  [max(0.0, r["ratio_high"] - r["ratio"]) for _, r in mine]]
        axes.bar([g + (k - (len(runtimes) - 1) / 2) * width for g, _ in mine], heights, width, yerr=errors,
                 label=runtime, error_kw={"lw": 0.8})
    axes.axhline(1.0, color="black", lw=0.8)
    axes.set_xticks(range(len(groups)), [f"{m}\nbatch {b}" for m, b in groups], fontsize=8)
    axes.set_ylabel("their median time / Ingot's")
    axes.set_title(f"{report['cpu']}, {report['threads']} threads, {report['date']}", fontsize=9)
    axes.legend(fontsize=8, frameon=False)
    figure.savefig(path, metadata={"Date": None})
    plt.close(figure)
