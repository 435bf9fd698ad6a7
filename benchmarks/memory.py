"""Prints the peak resident bytes of this process, which only loads a model into one runtime and runs it five times.

    python -m benchmarks.memory RUNTIME MODEL FEEDS.npz THREADS

MODEL is an engine file for ingot, an ONNX file for the others. PyTorch needs the zoo's module, named as the file is.
"""
from __future__ import annotations

import sys
from pathlib import Path

import numpy as np

import ingot
from ingot.bench import onnxruntime_peer, openvino_peer, peak_memory, torch_peer


def main(runtime: str, model: str, feeds_file: str, threads: int) -> None:
    """Load, run, print."""
    with np.load(feeds_file) as file:
        feeds = {name: file[name] for name in file.files}
    if runtime.startswith("ingot"):
        session = ingot.Session(ingot.load(model, threads=threads), threads)
        call = session.run
    elif runtime == "onnxruntime":
        call = onnxruntime_peer(model, threads).call
    elif runtime.startswith("openvino"):
        call = openvino_peer(model, threads, {n: a.shape for n, a in feeds.items()},
                             "bf16" if runtime.endswith("bf16") else "f32").call
    else:
        from benchmarks.zoo import ZOO  # brings PyTorch, which the others must not carry
        entry = ZOO[Path(model).stem]
        call = torch_peer(entry.module(), entry.inputs, entry.outputs, threads, compiled=runtime != "torch").call
    for _ in range(5):
        call(feeds)
    print(peak_memory())


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], sys.argv[3], int(sys.argv[4]))
