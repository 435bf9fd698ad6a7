"""Where accuracy went: every integer site of an engine beside the float model, and where a NaN or infinity was made.

Site by site on the same inputs: the signal-to-noise ratio of what the site reads and of what it makes, the share of
values cut off at the ends of the range, and the share of the 256 integers that nothing uses (a zero point far from the
middle, or a range wider than the data). The first site whose result is much noisier than what it reads is named.
"""
from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from ingot.compiler.divergence import engine_values
from ingot.engine import Engine, Variant
from ingot.frontend import picture
from ingot.graph import Graph, Node
from ingot.ops.reference import run_graph
from ingot.passes import optimize, simplified
from ingot.runtime.session import Session
from ingot.verify import Probe, probes
from ingot.verify.bisect import windows
from ingot.verify.verify import bindings_of

Feeds = Mapping[str, np.ndarray]
JUMP = 10.0         # decibels lost in one site: more than a tenfold rise of the error's energy
CLEAN = 60.0        # decibels beyond which there is no noise to speak of
_LEVELS = 256


@dataclass(frozen=True)
class SiteNoise:
    """One site on integers."""

    site: str
    op: str
    origin: tuple[str, ...]
    before: float           # decibels: signal to noise of what it reads, before that is rounded
    after: float            # decibels: of what it makes
    clipped: float          # share of the values it reads that lie outside the range
    unused: float           # share of the 256 integers below the least or above the largest one that came up
    jumps: bool             # the first site that loses more than JUMP decibels


@dataclass(frozen=True)
class Explanation:
    """What was found on one set of inputs."""

    inputs: str
    sites: tuple[SiteNoise, ...] = ()
    not_finite: str = ""        # the node that made the first NaN or infinity, in words; empty: everything is finite

    def to_json(self) -> dict[str, object]:
        """Plain data."""
        return asdict(self)


def explain(original: Any, engine: Engine, variant: Variant, *, inputs: Sequence[Feeds] = (), seed: int = 0
            ) -> Explanation:
    """The noise of every integer site on the first inputs given, or on random ones, and the origin of a NaN.

    `original` is the float ONNX model or graph that the engine was built from, None to look for NaN only.
    """
    graph = engine.graph
    probe = Probe("given inputs 1", inputs[0], bindings_of(graph, inputs[0])) if inputs else probes(graph, seed)[0]
    sites: tuple[SiteNoise, ...] = ()
    if original is not None and any(n.op == "Quantize" for n in graph.nodes):
        ranges = {v: [d if isinstance(d, int) else graph.symbols.get(str(d), str(d)) for d in graph.types[v].shape]
                  for v in graph.inputs}
        own = original if isinstance(original, Graph) else picture(os.fspath(original), ranges)
        sites = noise(simplified(own, variant.target), graph, probe.feeds)
    return Explanation(probe.name, sites, origin_of_nan(engine, variant, probe))


def noise(base: Graph, quantised: Graph, feeds: Feeds) -> tuple[SiteNoise, ...]:
    """Every site of the quantised graph beside the float graph's value of the same name, each graph on its own values.

    Memory is that of the sites' operands and results in the float graph.
    """
    found = [s for n in quantised.nodes if (s := _site(quantised, n, base)) is not None]
    wanted = {v for s in found for v in (s[1], s[2])} & set(base.types)
    right: dict[str, np.ndarray] = {k: a for k, a in feeds.items() if k in wanted}
    quantise = {s[3].output for s in found}
    decibels: dict[str, float] = dict.fromkeys(right, np.inf)
    used: dict[str, tuple[float, float]] = {}
    inputs: dict[str, np.ndarray] = {n.inputs[0]: feeds[n.inputs[0]] for _, _, _, n in found if n.inputs[0] in feeds}
    reads = {s[3].inputs[0] for s in found}

    def keep(value: str, array: np.ndarray) -> None:
        if value in wanted:
            right[value] = array

    def look(value: str, array: np.ndarray) -> None:
        if value in right:
            decibels[value] = _ratio(right[value], array)
        if value in reads:
            inputs[value] = array
        if value in quantise:
            maker = quantised.producers[value]
            used[value] = _use(quantised, maker, inputs[maker.inputs[0]], array)

    with np.errstate(all="ignore"):
        run_graph(base, feeds, watch=keep)
        run_graph(quantised, feeds, watch=look)
    rows, jumped = [], False
    for node, x, result, quantize in found:
        before, after = decibels.get(x, np.inf), decibels.get(result, np.inf)
        jumps = not jumped and min(before, CLEAN) - after > JUMP and after < CLEAN / 2
        jumped |= jumps
        rows.append(SiteNoise(result, node.op, node.origin, float(before), float(after), *used[quantize.output], jumps))
    return tuple(rows)


def _site(graph: Graph, node: Node, base: Graph) -> tuple[Node, str, str, Node] | None:
    """A product or convolution of integers: the node, what it reads and makes by the float graph's names, and the node
    that rounds its input."""
    if node.op not in ("MatMul", "Conv"):
        return None
    back = graph.producers.get(node.inputs[0])
    quantize = graph.producers.get(back.inputs[0]) if back is not None and back.op == "Dequantize" else None
    if quantize is None or quantize.op != "Quantize":
        return None
    result = node.output
    if result not in base.types:            # its weight's mean error is taken off in one more node
        after = [n.output for n in graph.readers.get(result, ()) if n.output in base.types]
        result = after[0] if after else result
    return node, quantize.inputs[0], result, quantize


def _ratio(right: np.ndarray, found: np.ndarray) -> float:
    """Signal to noise in decibels."""
    if right.shape != found.shape:
        return float("nan")
    signal, error = float((right.astype(np.float64) ** 2).sum()), float(((right.astype(np.float64) - found) ** 2).sum())
    return 10 * float(np.log10(signal / error)) if error > 0 and signal > 0 else float("inf")


def _use(graph: Graph, node: Node, x: np.ndarray, integers: np.ndarray) -> tuple[float, float]:
    """The share of values cut off, and that of integers nothing uses."""
    factor = graph.constants[node.inputs[1]].astype(np.float64)
    zero = float(graph.constants[node.inputs[2]].reshape(-1)[0]) if len(node.inputs) > 2 and node.inputs[2] else 0.0
    scaled = np.rint(x * factor if node.attrs.get("multiply") else x / factor) + zero
    low = 0 if integers.dtype == np.uint8 else -128
    clipped = float(((scaled < low) | (scaled > low + _LEVELS - 1)).mean()) if x.size else 0.0
    span = int(integers.max(initial=low)) - int(integers.min(initial=low + _LEVELS - 1)) + 1
    return clipped, 1 - min(_LEVELS, max(span, 0)) / _LEVELS


def origin_of_nan(engine: Engine, variant: Variant, probe: Probe) -> str:
    """The first node whose result the engine wrote with a NaN or infinity in it, though all that it read was finite.

    The engine's own values are looked at, with the kernels that are shipped, a window at a time.
    """
    if odd := [k for k, a in probe.feeds.items() if a.dtype.kind == "f" and not np.isfinite(a).all()]:
        return f"the input '{odd[0]}' itself is not finite"
    outputs = Session(engine, variant=variant).run(dict(probe.feeds))
    if all(np.isfinite(a).all() for a in outputs.values() if a.dtype.kind == "f") and not any(
            n.op in ("Where", "Softmax", "Attention", "Quantize", "Max", "Min", "Clip") for n in engine.graph.nodes):
        return ""                       # nothing here could have hidden one
    optimized = optimize(engine.graph, variant.target)
    run, written = engine_values(engine, variant, optimized, probe)
    for part in windows(optimized, written, probe.bindings):
        values = run(part)
        for name in part:
            array = values[name]
            if array.dtype.kind == "f" and not np.isfinite(array).all():
                count, maker = int((~np.isfinite(array)).sum()), optimized.producers[name]
                return f"{maker.where}: {count} of {array.size} values of '{name}' are NaN or infinite"
    return ""


__all__ = ["Explanation", "SiteNoise", "explain", "noise", "origin_of_nan"]
