"""Writes what the documents derive: docs/cli.md from the command line itself, README's figures and docs/models.md from
the measurements.

    python scripts/docs.py            writes them
    python scripts/docs.py --check    says which are out of date; exit code 1 if any is
"""
from __future__ import annotations

import inspect
import json
import math
import sys
from pathlib import Path
from typing import get_type_hints

import typer

from ingot.cli import app

REPOSITORY = Path(__file__).parents[1]
# Every kind of model that must be served, and the zoo's entries of that kind; "name, full size" is the published size.
KINDS = {
    "ResNet": ("resnet", "resnet_any_size", "resnet18, full size", "resnet50, full size"),
    "MobileNetV2": ("mobilenet_v2", "mobilenetv2, full size"), "MobileNetV3": ("mobilenet_v3",),
    "EfficientNet": ("efficientnet", "efficientnet_b0, full size"), "ConvNeXt": ("convnext", "convnext_t, full size"),
    "DenseNet": ("densenet",), "Inception": ("inception",), "SqueezeNet": ("squeezenet",),
    "ShuffleNet": ("shufflenet",), "U-Net": ("unet", "unet, full size"),
    "YOLO-style detector, NMS inside": ("yolo",), "YOLO-style detector, NMS outside": ("yolo, full size",),
    "Faster-R-CNN-like head, RoiAlign": ("roi_head",),
    "DETR": ("detr",), "YOLOS": ("yolos",), "SegFormer": ("segformer",), "Swin": ("swin", "swin_t, full size"),
    "ViT": ("vit", "vit_b16, full size"), "CLIP": ("clip",), "BERT": ("bert", "bert_base, full size"),
    "MiniLM, its real weights": ("minilm", "minilm, full size"), "DistilBERT": ("distilbert",), "ALBERT": ("albert",),
    "DeBERTa": ("deberta",), "GPT-2": ("gpt2",), "Llama-style: prefill": ("llama_prefill",),
    "Llama-style: a decode step with its cache": ("llama_step",), "T5: encoder": ("t5_encoder",),
    "T5: decoder": ("t5_decoder",), "Whisper-tiny": ("whisper",), "Whisper-tiny: encoder": ("whisper_tiny, full size",),
    "Wav2Vec2": ("wav2vec2",), "Conformer": ("conformer",), "TCN": ("tcn",),
    "LSTM tagger": ("lstm_tagger",), "GRU tagger": ("gru_tagger",),
    "Mamba-style scan": ("mamba",), "Autoencoder": ("autoencoder",), "Diffusion U-Net block": ("diffusion_unet",),
    "Graph net with scatter": ("graph_net",),
    "Gradient-boosted trees, forests": ("boosted_trees_regressor", "boosted_trees_classifier", "forest"),
    "Pipelines of scikit-learn": ("pipeline_logistic", "pipeline_pca_svc"),
    "Light models of the onnx wheel": tuple(f"light_{n}" for n in (
        "bvlc_alexnet", "densenet121", "inception_v1", "inception_v2", "resnet50", "shufflenet", "squeezenet", "vgg19",
        "zfnet512"))}
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
    """README's table: each model at each batch, from the measurements of whole machines in benchmarks/results."""
    lines = []
    for file in sorted((REPOSITORY / "benchmarks" / "results").glob("*-cores.json")):
        report = json.loads(file.read_text())
        if "rows" not in report or "versions" not in report:
            continue
        runtimes = list(dict.fromkeys(r["runtime"] for r in report["rows"]))
        if "ingot" not in runtimes:     # a measurement of something else than f32
            continue
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


def models_page() -> str:
    """docs/models.md: every model of the zoo, from benchmarks/results/models.json."""
    report = json.loads((REPOSITORY / "benchmarks" / "results" / "models.json").read_text())
    rows = {r["name"]: r for r in report["models"]}
    kept = [rows[n] for names in KINDS.values() for n in names if n in rows]
    timed = [r for r in kept if "ratio" in r]
    right = sum(r["verdict"] == "right" for r in kept)
    whole = sum(r["verdict"] == "right" and not r["reference"] for r in kept)
    dates = sorted({r["date"] for r in kept})
    packages = ", ".join(f"{k} {v}" for k, v in report["packages"].items())
    lines = [
        "# Models", "", "Written by `scripts/docs.py` from `benchmarks/results/models.json`, which",
        "`python -m benchmarks.models` (build, race, verify) and `python -m benchmarks.model_times` write.", "",
        f"{report['cpu']}, {report['threads']} threads, {' to '.join(dict.fromkeys((dates[0], dates[-1])))};",
        f"{packages}.",
        "", f"{len(kept)} models: {right} right, {whole} of these without a node on the reference path"
        + (f"; geometric mean over ONNX Runtime of {len(timed)}: "
           f"{math.exp(sum(math.log(r['ratio']) for r in timed) / len(timed)):.2f}x, "
           f"{sum(r['ratio'] >= 1 for r in timed)} of them at least as fast." if timed else "."), "",
        "- *nodes*: of the ONNX file; *sites*: the kernels a run calls, over all parts where data decides a size.",
        "- *verdict*: against PyTorch's, scikit-learn's or (an ONNX file) ONNX Runtime's own run; at how many sets of",
        "  sizes, and the largest difference there relative to the largest value. Light models fix their sizes.",
        "- *reference*: nodes that no kernel serves. They run, one by one, on the reference evaluator.",
        "- *ratio*: ONNX Runtime's median over Ingot's for one item, same threads, alternating blocks in one process,",
        "  with its 95 % interval; engines raced for at most a quarter of a minute. Small models take microseconds:",
        "  there the ratio is of what a call costs.", "",
        "| kind | model | source | nodes | sites | verdict | reference | Ingot ms | ratio |",
        "|---|---|---|---:|---:|---|---:|---:|---:|"]
    lines += [_model_row(kind, name, rows.get(name)) for kind, names in KINDS.items() for name in names]
    if missing := [n for names in KINDS.values() for n in names if n not in rows]:
        lines += ["", f"Not measured yet: {', '.join(missing)}."]
    slow = [r for r in kept if r.get("reference")]
    if slow:
        lines += ["", "## On the reference", "", *(f"- {r['name']}: {_short(r['reference'])}" for r in slow)]
    if decided := [r for r in kept if r.get("calls")]:
        lines += ["", "## Where data decides", "", *(f"- {r['name']}: {_short(r['calls'])}" for r in decided)]
    return "\n".join(lines) + "\n"


def _model_row(kind: str, name: str, row: dict | None) -> str:
    if row is None:
        return f"| {kind} | {name} | | | | not measured yet | | | |"
    if row["verdict"] == "refused":
        return f"| {kind} | {name} | {row['source']} | {row['nodes']} | | refused: {row['why']} | | | |"
    sizes = f"{row['sizes']} size{'s' if row['sizes'] > 1 else ''}"
    verdict = f"{row['verdict']} at {sizes}, {row['relative']:.1e}"
    times = (f"{row['ingot_seconds'] * 1e3:.3g} | {row['ratio']:.2f} [{row['ratio_low']:.2f}, {row['ratio_high']:.2f}]"
             if "ratio" in row else " | ")
    return (f"| {kind} | {name} | {row['source']} | {row['nodes']} | {row['sites']} | {verdict} | "
            f"{len(row['reference'])} | {times} |")


def _short(texts: list[str]) -> str:
    """Each once, with its count where there are several."""
    return "; ".join(f"{t} ({n} times)" if (n := texts.count(t)) > 1 else t for t in dict.fromkeys(texts))


def main() -> int:
    """Write or check the pages."""
    pages = {REPOSITORY / "docs" / "cli.md": cli_page(), REPOSITORY / "README.md": readme_page(),
             REPOSITORY / "docs" / "models.md": models_page()}
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
