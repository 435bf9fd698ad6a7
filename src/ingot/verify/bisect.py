"""Which node goes wrong first, in bounded memory and with the very kernels that are shipped.

Marking every intermediate value as an output breaks fusions and fills memory. Here the engine's program stays as it is,
launch for launch; only what it writes anyway is looked at, a window of values at a time: the engine runs once per
window, while the reference walks through the graph once and drops what it no longer needs.
"""
from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np

from ingot.graph import Graph, Node, evaluate
from ingot.ops.reference import run_graph
from ingot.verify.parity import compare
from ingot.verify.probe import Probe
from ingot.verify.tolerance import tolerances
from ingot.verify.verify import loosened, noted

WINDOW = 256 << 20      # bytes of intermediate values kept at a time
NONE = ("none: every kernel gives what the optimised graph says, so a pass changed the model's meaning; "
        "build with --check-passes to name it")
Values = Mapping[str, np.ndarray]


def windows(graph: Graph, written: Sequence[str], bindings: Mapping[str, int], limit: int = WINDOW
            ) -> list[tuple[str, ...]]:
    """What the engine writes, in the order of the graph's nodes, in parts of at most `limit` bytes (or one value)."""
    wanted = set(written)
    found: list[tuple[str, ...]] = []
    part: list[str] = []
    held = 0
    for node in graph.nodes:
        for value in node.outputs:
            if value not in wanted:
                continue
            nbytes = int(evaluate(graph.types[value].nbytes, bindings))
            if part and held + nbytes > limit:
                found.append(tuple(part))
                part, held = [], 0
            part.append(value)
            held += nbytes
    return [*found, tuple(part)] if part else found


def bisect(run: Callable[[tuple[str, ...]], Values], graph: Graph, written: Sequence[str], probe: Probe,
           limit: int = WINDOW) -> str:
    """The first node of the optimised graph whose value the engine computed differently, in words; else `NONE`.

    `run` gives the engine's values for these names, in plain layout, for the inputs of `probe`; it is called once per
    window. The tolerance of each value is that of its own path through the graph.
    """
    parts = windows(graph, written, probe.bindings, limit)
    part_of = {v: i for i, part in enumerate(parts) for v in part}
    allowed = tolerances(graph, probe.bindings)
    held: dict[int, Values] = {}
    told: list[str] = []

    def watch(value: str, right: np.ndarray) -> None:
        if value not in part_of or told:
            return
        number = part_of[value]
        if number not in held:
            held.clear()
            held[number] = run(parts[number])
        got = np.asarray(held[number][value])
        difference = compare(got, right, loose=loosened(graph, probe, right))
        if not difference.within(allowed[value].relative):
            node = graph.producers[value]
            inside = [f"{n.op} '{n.output}'" for n in unseen(graph, node, part_of)]
            with_ = f", in one kernel with {', '.join(inside)}" if inside else ""
            told.append(f"{node.where}{with_}: {difference.relative:.2g} relative, {noted(difference, allowed[value])}")

    with np.errstate(all="ignore"):
        run_graph(graph, probe.feeds, watch=watch)
    return told[0] if told else NONE


def first_overflow(graph: Graph, probe: Probe) -> str:
    """Where the model's own arithmetic leaves the range of 16-bit floats though its inputs do not, in words; or ""."""
    endless = {k for k, a in (*probe.feeds.items(), *graph.constants.items()) if _endless(a)}
    told: list[str] = []

    def watch(value: str, right: np.ndarray) -> None:
        node = graph.producers[value]
        if not _endless(right):
            return
        endless.add(value)
        if not told and right.dtype == np.float16 and not endless.intersection(node.inputs):
            told.append(f"{node.where}: its values go beyond 65504 and overflow in half precision in the original, "
                        "while kernels compute in f32 and do not; write it as one op (LayerNormalization), or keep "
                        "it in f32")

    with np.errstate(all="ignore"):
        run_graph(graph, probe.feeds, watch=watch)
    return told[0] if told else ""


def _endless(array: np.ndarray) -> bool:
    return array.dtype.kind == "f" and not bool(np.isfinite(array).all())


def first_divergence(values: Values, graph: Graph, probe: Probe) -> str:
    """`bisect` where every value of the engine is at hand."""
    return bisect(lambda names: values, graph, tuple(values), probe)


def unseen(graph: Graph, node: Node, written: Mapping[str, object]) -> list[Node]:
    """The nodes before this one whose results were never written out: they were fused with it."""
    found: list[Node] = []
    pending = list(node.inputs)
    while pending:
        value = pending.pop()
        maker = graph.producers.get(value)
        if maker is not None and value not in written and maker not in found:
            found.append(maker)
            pending += maker.inputs
    return found[::-1]
