"""Two trained models become engines, are proved to be the same models, and are measured beside others.

    make demo

MiniLM (real weights) embeds real sentences; a small convolutional network, trained here, reads handwritten digits.
Every proof that fails ends the demo with a non-zero exit code.
"""
from __future__ import annotations

import argparse
import logging
import sys
import time
import warnings
from functools import partial
from pathlib import Path

import digits
import minilm
import numpy as np
import torch
from torch import nn

import ingot
from ingot.bench import alternate, onnxruntime_peer, summary, torch_peer
from ingot.report import ProgressBar, Table, latency_table, race_table, summary_lines
from ingot.verify import Verdict, compare

FOLDER = Path(__file__).parents[1] / ".demo"
BATCHES = (1, 8)
COSINE = 0.99999
SENTENCES = [
    "A man is eating pasta.",
    "Someone is having a plate of noodles.",
    "The new movie is awesome, and the soundtrack is even better!",
    "The film was great.",
    "Interest rates were raised by a quarter of a percentage point on Thursday.",
    "The central bank made borrowing more expensive.",
    "Kernels are raced on the device in front of you; the winner goes into the engine.",
    "Das Café in Zürich öffnet um 7:30 Uhr.",
]


def export(module: nn.Module, example: tuple[torch.Tensor, ...], path: Path, inputs: list[str], output: str) -> Path:
    """Write the module as ONNX with a dynamic batch N."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        program = torch.onnx.export(module, example, input_names=inputs, output_names=[output], dynamo=True,
                                    verbose=False, dynamic_shapes=tuple({0: "N"} for _ in inputs))
        program.save(str(path), external_data=False)
    return path


def built(path: Path, shapes: dict[str, str], module: nn.Module, feeds: dict[str, np.ndarray], budget: float
          ) -> ingot.Engine:
    """The model's engine, verified against the PyTorch module on the given inputs and on generated ones."""
    begin = time.perf_counter()
    with ProgressBar() as progress:
        engine = ingot.build(path, shapes, ingot.BuildOptions(budget=budget), inputs=[feeds], original=module,
                             progress=progress)
    print("\n".join(summary_lines(engine, ingot.Session(engine).variant)))
    print(Verdict.from_json(engine.verdict))
    print(f"built and verified in {time.perf_counter() - begin:.1f} s")
    file = path.with_suffix(".ingot")
    ingot.save(engine, file)
    begin = time.perf_counter()
    loaded = ingot.load(file)
    print(f"{file.name}: {file.stat().st_size / 1e6:.1f} MB, loaded in {(time.perf_counter() - begin) * 1e3:.0f} ms")
    return loaded


def measured(title: str, session: ingot.Session, path: Path, module: nn.Module, feeds: dict[str, np.ndarray],
             seconds: float) -> Table:
    """Ingot, eager PyTorch and ONNX Runtime in alternating blocks, on the first items of the inputs."""
    torch_runtime = torch_peer(module, list(feeds), ["output"], session.threads)
    onnxruntime = onnxruntime_peer(str(path), session.threads)
    rows, speed = [], []
    for batch in BATCHES:
        part = {k: np.ascontiguousarray(v[:batch]) for k, v in feeds.items()}
        out = session.run(part)
        calls = {"ingot": partial(session.run, part, out=out), "torch": partial(torch_runtime.call, part),
                 "onnxruntime": partial(onnxruntime.call, part)}
        found = [summary(name, batch, taken) for name, taken in alternate(calls, seconds).items()]
        rows += found
        medians = {f.name: f.median for f in found}
        speed.append(f"batch {batch}: {medians['torch'] / medians['ingot']:.2f} x eager PyTorch, "
                     f"{medians['onnxruntime'] / medians['ingot']:.2f} x ONNX Runtime")
    table = latency_table(rows, title)
    return Table(table.title, table.columns, table.rows, "speed of Ingot at " + "; ".join(speed))


def sentences(seconds: float, budget: float) -> list[str]:
    """MiniLM; gives what went wrong."""
    print("\n=== MiniLM: sentences to vectors ===")
    module, tokenizer = minilm.load(), minilm.Tokenizer()
    ids, mask = tokenizer(SENTENCES)
    feeds = {"input_ids": ids, "attention_mask": mask}
    example = torch.from_numpy(ids[:2]), torch.from_numpy(mask[:2])
    path = export(module, example, FOLDER / "minilm.onnx", list(feeds), "sentence")
    shape = f"N=1..1..{max(BATCHES)}x{minilm.LENGTH}"
    engine = built(path, dict.fromkeys(feeds, shape), module, feeds, budget)
    session = ingot.Session(engine)
    ours = session.run(feeds)["sentence"]
    with torch.inference_mode():
        theirs = module(*map(torch.from_numpy, feeds.values())).numpy()
    cosines = [compare(a, b).cosine for a, b in zip(ours, theirs, strict=True)]
    print(f"\ncosine to PyTorch over {len(cosines)} sentences: least {min(cosines):.9f}")
    likeness = ours @ ours.T
    print("likeness of each pair of neighbours:", *(f"{likeness[i, i + 1]:.3f}" for i in range(0, 6, 2)),
          f"(unrelated: {likeness[0, 4]:.3f})\n")
    print(race_table(session.variant))
    print(f"\n{measured('MiniLM, 128 tokens', session, path, module, feeds, seconds)}")
    return [] if min(cosines) >= COSINE else [f"MiniLM: cosine {min(cosines)} is below {COSINE}"]


def images(seconds: float, budget: float) -> list[str]:
    """The digits; gives what went wrong."""
    print("\n=== Handwritten digits: images to classes ===")
    train_images, train_labels, test_images, test_labels = digits.data()
    module = digits.train(train_images, train_labels)
    with torch.inference_mode():
        before = digits.accuracy(module(torch.from_numpy(test_images)), test_labels)
    path = export(module, (torch.from_numpy(test_images[:2]),), FOLDER / "digits.onnx", ["image"], "scores")
    most = len(test_images)
    engine = built(path, {"image": f"N=1..1..{most}x1x8x8"}, module, {"image": test_images[:16]}, budget)
    session = ingot.Session(engine)
    after = digits.accuracy(session.run({"image": test_images})["scores"], test_labels)
    print(f"\naccuracy on {most} images never trained on: {before:.2%} in PyTorch, {after:.2%} in the engine\n")
    print(race_table(session.variant))
    print(f"\n{session.variant.plan}")
    print(f"\n{measured('Digits', session, path, module, {'image': test_images}, seconds)}")
    return [] if after == before else [f"digits: accuracy went from {before:.2%} to {after:.2%}"]


def main() -> int:
    """Run both, and say what failed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=6.0, help="how long to measure each batch size")
    parser.add_argument("--budget", type=float, default=60.0, help="seconds for the race of each model")
    arguments = parser.parse_args()
    FOLDER.mkdir(exist_ok=True)
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)
    begin = time.perf_counter()
    failed = sentences(arguments.seconds, arguments.budget) + images(arguments.seconds, arguments.budget)
    print(f"\n{time.perf_counter() - begin:.0f} s in all; the engines lie in {FOLDER}")
    for line in failed:
        print(f"FAILED {line}", file=sys.stderr)
    return 1 if failed else 0


if __name__ == "__main__":
    try:
        sys.exit(main())
    except ingot.IngotError as error:
        sys.exit(f"{type(error).__name__}: {error}")
