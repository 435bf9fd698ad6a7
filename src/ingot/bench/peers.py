"""Other runtimes on the same model and the same inputs, measured beside each other in one run.

Peers are measured in alternating blocks, not call by call: a peer's idle threads spin for a while after its run
and slow down whoever comes next. One warm-up call opens each block, and a pause lets the last peer's threads sleep.
"""
from __future__ import annotations

import importlib
import importlib.metadata
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ingot.errors import UnsupportedError

Feeds = Mapping[str, np.ndarray]
Outputs = dict[str, np.ndarray]

BLOCK_SECONDS, PAUSE_SECONDS = 0.4, 0.05
PACKAGES = {"torch": "torch", "onnxruntime": "onnxruntime", "openvino": "openvino"}


@dataclass(frozen=True)
class Peer:
    """One runtime with a model loaded: `run` takes and gives arrays by name, `call` only runs (it is timed)."""

    name: str
    version: str
    run: Callable[[Feeds], Outputs]
    call: Callable[[Feeds], object]
    load_seconds: float


def _library(name: str) -> tuple[Any, str]:
    try:
        return importlib.import_module(name), importlib.metadata.version(PACKAGES[name])
    except ImportError:
        raise UnsupportedError(f"{name} is not installed", where="--against",
                               mend=f"pip install {PACKAGES[name]}") from None


def onnxruntime_peer(model: str, threads: int) -> Peer:
    """ONNX Runtime on its CPU provider. `model` is a path."""
    library, version = _library("onnxruntime")
    start = time.perf_counter()
    options = library.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.log_severity_level = 3
    session = library.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    seconds = time.perf_counter() - start
    names = [o.name for o in session.get_outputs()]

    def run(feeds: Feeds) -> Outputs:
        return dict(zip(names, session.run(None, dict(feeds)), strict=True))

    return Peer("onnxruntime", version, run, lambda feeds: session.run(None, feeds), seconds)


def openvino_peer(model: str, threads: int, shapes: Mapping[str, Sequence[int]], precision: str = "f32") -> Peer:
    """OpenVINO on the CPU in f32 or bf16 (its default where the processor has it), shapes fixed as its users do."""
    library, version = _library("openvino")
    start = time.perf_counter()
    core = library.Core()
    network = core.read_model(model)
    network.reshape({name: list(shape) for name, shape in shapes.items()})
    compiled = core.compile_model(network, "CPU", {
        "INFERENCE_PRECISION_HINT": precision, "INFERENCE_NUM_THREADS": threads, "PERFORMANCE_HINT": "LATENCY",
        "NUM_STREAMS": 1})
    seconds = time.perf_counter() - start
    request = compiled.create_infer_request()
    names = [o.get_any_name() for o in compiled.outputs]

    def run(feeds: Feeds) -> Outputs:
        request.infer(dict(feeds))
        return {n: request.get_tensor(o).data.copy() for n, o in zip(names, compiled.outputs, strict=True)}

    name = "openvino" + ("" if precision == "f32" else f" {precision}")
    return Peer(name, version, run, lambda feeds: request.infer(feeds, share_inputs=True), seconds)


def torch_peer(module: Callable[..., Any], inputs: Sequence[str], outputs: Sequence[str], threads: int, *,
               compiled: bool = False) -> Peer:
    """PyTorch: `module` takes tensors in the order of `inputs` and gives one tensor or a sequence of them.

    Eager, or `compiled` by torch.compile with its weights frozen, as its documentation advises for inference; the
    compiler runs at the first call, for that call's shapes.
    """
    library, version = _library("torch")
    library.set_num_threads(threads)
    if compiled:
        importlib.import_module("torch._inductor.config").freezing = True       # type: ignore[attr-defined]
        module = library.compile(module)

    def call(feeds: Feeds) -> Any:
        with library.inference_mode():
            return module(*[library.from_numpy(feeds[n]) for n in inputs])

    def run(feeds: Feeds) -> Outputs:
        result = call(feeds)
        results = [result] if isinstance(result, library.Tensor) else list(result)
        return {n: r.detach().numpy() for n, r in zip(outputs, results, strict=True)}

    return Peer("torch.compile" if compiled else "torch", version, run, call, 0.0)


def alternate(calls: Mapping[str, Callable[[], object]], seconds: float, *, block: float = BLOCK_SECONDS,
              pause: float = PAUSE_SECONDS, rounds: int = 3) -> dict[str, list[float]]:
    """Seconds of each call, by name: blocks of `block` seconds in turn, `rounds` or more, for about `seconds`."""
    found = alternate_blocks(calls, seconds, block=block, pause=pause, rounds=rounds)
    return {name: [s for one in blocks for s in one] for name, blocks in found.items()}


def alternate_blocks(calls: Mapping[str, Callable[[], object]], seconds: float, *, block: float = BLOCK_SECONDS,
                     pause: float = PAUSE_SECONDS, rounds: int = 3) -> dict[str, list[list[float]]]:
    """The same, block by block: the k-th blocks of all were measured side by side."""
    found: dict[str, list[list[float]]] = {name: [] for name in calls}
    begin, turn = time.perf_counter(), 0
    while turn < rounds or time.perf_counter() - begin < seconds:
        for name, call in calls.items():
            time.sleep(pause)
            call()
            taken: list[float] = []
            until = time.perf_counter() + block
            while not taken or time.perf_counter() < until:
                start = time.perf_counter()
                call()
                taken.append(time.perf_counter() - start)
            found[name].append(taken)
        turn += 1
    return found


def ratio_interval(theirs: Sequence[Sequence[float]], ours: Sequence[Sequence[float]], *, draws: int = 2000,
                   seed: int = 0) -> tuple[float, float, float]:
    """Their median over ours, and the bounds of its 95 % interval: a bootstrap over the turns of `alternate_blocks`.

    Whole turns are drawn, both blocks of each, because what disturbs one run disturbs its neighbours (the paired
    block bootstrap: Efron and Tibshirani, "An Introduction to the Bootstrap", sections 8.6 and 13.3).
    """
    def ratio(turns: Sequence[int]) -> float:
        return float(np.median(np.concatenate([theirs[t] for t in turns])) /
                     np.median(np.concatenate([ours[t] for t in turns])))

    rng = np.random.default_rng(seed)
    count = len(ours)
    found = [ratio(rng.integers(0, count, count).tolist()) for _ in range(draws)]
    low, high = np.quantile(found, (0.025, 0.975))
    return ratio(range(count)), float(low), float(high)
