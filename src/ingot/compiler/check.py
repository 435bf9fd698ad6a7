"""Compare an engine with the model it came from, any time after the build; on demand, name the first node that differs.
"""
from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from ingot.compiler.divergence import divergence
from ingot.compiler.gpu import short_feeds, wide_results
from ingot.compiler.intake import Extras
from ingot.compiler.short import told_roundings
from ingot.engine import Engine, is_exact
from ingot.errors import InputError
from ingot.frontend import Source, picture, source_from
from ingot.frontend.preprocess import prefix_from
from ingot.graph import Graph
from ingot.ops.reference import run_graph
from ingot.passes import optimize
from ingot.runtime.cuda.session import CudaSession
from ingot.runtime.session import Session
from ingot.verify import (
    Original,
    Verdict,
    compare,
    failing_probe,
    original_from,
    probes,
    random_feeds,
    reference_original,
    verify,
)
from ingot.verify.bisect import WINDOW
from ingot.verify.export import named

Feeds = Mapping[str, np.ndarray]
PREFIX = ("pre-processing",)            # the origin of nodes that the build put in front


def check_engine(original: Any, engine: Engine, *, session: Session | CudaSession | None = None, against: str = "",
                 inputs: Sequence[Feeds] = (), seed: int = 0, extras: Extras = Extras(), name: str = "",
                 bisect: bool = False, limit: int = WINDOW) -> Verdict:
    """The verdict on an engine beside its original: an ONNX model, or a model of a framework in its own run.

    `against` names who runs an ONNX model: "reference" or "onnxruntime". `extras` is as for the build. With `bisect`
    the verdict names the first node whose value the engine computes differently, looking at no more than `limit`
    bytes of its values at a time. Raises InputError, ModelError or UnsupportedError.
    """
    session = session or Session(engine)
    before = _before(engine.graph)
    drawn = random_feeds(before, _tuned(before), seed)
    source = source_from(original, extras.example_inputs if extras.example_inputs is not None else _examples(
        original, drawn), extras.dynamic, None, weights=extras.weights, opset=extras.opset)
    graph, judge = _of_source(source, before) if source else _of_onnx(original, before, against)
    if before is not engine.graph:
        graph, judge = engine.graph, _behind(judge, before, extras.preprocess)
    told: tuple[str, ...] = ()
    if _made_integer(engine):
        told = _beside_floats(judge, session, graph, probes(graph, seed)[0].feeds)
        graph, judge = engine.graph, reference_original(engine.graph)
    short = str(session.variant.report.get("precision", "f32")).removeprefix("f32")
    tried = [p for p in probes(graph, seed) if p.name.startswith("random")] if short in ("f16", "bf16") else None
    verdict = verify(lambda feeds: wide_results(graph, session.run(short_feeds(session.variant, feeds))), judge, graph,
                     engine=name or engine.name, inputs=inputs, seed=seed, exact=is_exact(session.variant),
                     tried=tried, short=short, rounded=told_roundings(session.variant.report))
    verdict = replace(verdict, notes=(*verdict.notes, *told))
    if not bisect:
        return verdict
    if session.variant.target.kind == "cuda":
        raise InputError(f"bisection follows an engine for a CPU, and this one runs on {session.variant.target}",
                         where="--bisect", mend="build it for x86 as well, and check that")
    probe = failing_probe(verdict, graph, inputs, seed) or probes(graph, seed)[0]
    variant = session.variant
    return replace(verdict, diverged=divergence(engine, variant, optimize(engine.graph, variant.target), probe, limit))


def _made_integer(engine: Engine) -> bool:
    """Whether the build chose integers for a float model: its meaning is that of the graph with them inside."""
    found = engine.report.get("precision")
    sites = found.get("sites", ()) if isinstance(found, Mapping) else ()
    return any(s["kept"] for s in sites)


def _beside_floats(judge: Original, session: Session | CudaSession, graph: Graph, feeds: Feeds) -> tuple[str, ...]:
    """How far an engine that a build made integer lies from its float model: told, not judged."""
    wanted, found = judge.run(feeds), session.run(dict(feeds))
    return tuple(f"integers by choice: cosine of {n} to the float model {compare(found[n], wanted[n]).cosine:.6f} on "
                 "random inputs; --explain says where it went" for n in graph.outputs)


def _tuned(graph: Graph) -> dict[str, int]:
    return {s.name: s.opt for s in graph.symbols.values()}


def _examples(original: Any, feeds: Feeds) -> Any:
    """Inputs of the engine's types as an example, where the original is a framework's and brings none."""
    kept = isinstance(original, (str, os.PathLike)) and os.fspath(original).endswith((".onnx", ".pt2"))
    own = isinstance(original, (Graph, bytes)) or type(original).__name__ in ("ModelProto", "ExportedProgram")
    return None if kept or own else dict(feeds)


def _before(graph: Graph) -> Graph:
    """The graph without the pre-processing that a build put in front: its inputs are the original's."""
    front = [n for n in graph.nodes if n.origin == PREFIX]
    if not front:
        return graph
    made, own = front[-1].output, next(i for i in graph.inputs if i in front[0].inputs)
    types = {**graph.types, own: graph.types[made]}
    nodes = [replace(n, inputs=tuple(own if i == made else i for i in n.inputs)) for n in graph.nodes
             if n.origin != PREFIX]
    held = {v for n in nodes for v in (*n.inputs, *n.outputs) if v} | set(graph.inputs) | set(graph.outputs)
    return Graph(graph.inputs, tuple(own if o == made else o for o in graph.outputs), tuple(nodes),
                 {k: a for k, a in graph.constants.items() if k in held}, {k: t for k, t in types.items() if k in held},
                 graph.symbols)


def _of_source(source: Source, graph: Graph) -> tuple[Graph, Original]:
    return graph, Original(f"{source.framework} {source.name}", lambda feeds: named(source.run(feeds), graph))


def _of_onnx(original: Any, graph: Graph, against: str) -> tuple[Graph, Original]:
    ranges = {v: [d if isinstance(d, int) else graph.symbols.get(str(d), str(d)) for d in graph.types[v].shape]
              for v in graph.inputs}
    own = picture(original, ranges)
    path = os.fspath(original) if isinstance(original, (str, os.PathLike)) else ""
    return own, original_from(against or None, own, path)


def _behind(judge: Original, graph: Graph, spec: str) -> Original:
    """The original with pre-processing in front of it."""
    if not spec:
        raise InputError("the engine has pre-processing inside, the original has not", where="--preprocess",
                         mend="name it as in the build: --preprocess KIND:HEIGHTxWIDTH")
    name, prefix = prefix_from(graph, spec)

    def run(feeds: Feeds) -> Mapping[str, np.ndarray]:
        (made,) = run_graph(prefix, {name: feeds[name]}).values()
        return judge.run({**feeds, name: made})

    return Original(f"{judge.name} after {spec}", run)
