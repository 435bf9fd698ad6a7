"""What is particular to models that are built in parts: their report, what strict refuses, their verification."""
from __future__ import annotations

import importlib.metadata
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from ingot.compiler.options import BuildOptions
from ingot.compiler.precision import FLOATS
from ingot.engine import Engine, is_exact
from ingot.errors import InputError, ModelError, UnsupportedError
from ingot.graph import Call, Flow
from ingot.ops.flow import CONTROL, reference_flow
from ingot.ops.sequence import LISTS
from ingot.passes.constant_folding import RANDOM
from ingot.runtime.session import Session
from ingot.tune import Tuning
from ingot.verify import Original, Verdict, original_from, refuse, verify

Feeds = Mapping[str, np.ndarray]


def slow_calls(flow: Flow) -> list[Call]:
    """The calls that run on the reference whatever the data."""
    return [c for c in flow.calls if not c.late and (c.domain or c.node.op not in CONTROL | LISTS.keys())]


def flow_report(flow: Flow) -> dict[str, object]:
    """What was cut out of the graph, where and why."""
    slow = {id(c) for c in slow_calls(flow)}
    return {"parts": len(flow.parts), "calls": [
        {"where": c.node.where, "op": c.op, "why": c.why,
         "runs": "on the reference" if id(c) in slow else "compiled when its operands are known" if c.late
         else "its subgraphs, in parts of their own" if c.flows else "as a list"} for c in flow.calls]}


def together(tunings: Sequence[Tuning]) -> Tuning:
    """The tunings of several parts as one."""
    return Tuning({k: c for t in tunings for k, c in t.choices.items()},
                  {k: c for t in tunings for k, c in t.kernels.items()}, sum(t.raced for t in tunings),
                  sum(t.cached for t in tunings), sum(t.untuned for t in tunings), any(t.interrupted for t in tunings),
                  sum(t.seconds for t in tunings), sum(t.skipped for t in tunings))


def check_options(flow: Flow, options: BuildOptions) -> None:
    """Raises UnsupportedError where what was asked for is not to be had for a model in parts."""
    asked = [*([f"target {options.target}"] if options.target not in ("", "x86") else []),
             *([f"precision {options.precision}"] if options.precision not in FLOATS - {"bf16"} else [])]
    if asked:
        raise UnsupportedError(f"{' and '.join(asked)} of a model that data decides the course of",
                               why=tuple(f"{c.node.where}: {c.why}" for c in flow.calls),
                               mend="build it for x86 in f32, or export it with static shapes")
    if options.strict and (slow := slow_calls(flow)):
        raise UnsupportedError(f"{len(slow)} nodes have no kernel and would run on the slow reference path",
                               where="; ".join(c.node.where for c in slow),
                               why=tuple(dict.fromkeys(f"{c.op}: {c.why}" for c in slow)),
                               mend="build without strict, or add a tactic under ingot/kernels")


def verified_flow(engine: Engine, flow: Flow, inputs: Sequence[Feeds], original: object, path: str,
                  options: BuildOptions, notes: tuple[str, ...] = ()) -> Engine:
    """The engine with its verdict inside. Raises VerifyError where it does not pass.

    What has no right answer to compare with (random numbers), or inputs that cannot be made up (sequences, shapes),
    is told in the verdict as not tried: give inputs to verify on.
    """
    session = Session(engine)
    if original in (None, "reference"):
        judge = Original(f"onnx.reference {importlib.metadata.version('onnx')}", lambda f: reference_flow(flow, f))
    else:
        judge = original_from(original, engine.graph, path)

    def answers(feeds: Feeds) -> dict[str, np.ndarray]:
        try:
            return _plain(judge.run(feeds))
        except ModelError as error:         # inputs that were made up may make no sense: a shape of another size
            raise InputError(error.what, where=error.where, why=error.why, mend=error.mend) from None

    chance = next((c for c in flow.calls if c.node.op in RANDOM and not c.domain), None)
    made_up = all(v in flow.types for v in flow.inputs)
    if chance is not None or (not made_up and not inputs):
        reason = (f"everything: {chance.node.where} gives other numbers each time" if chance is not None else
                  "generated inputs: not every input is a tensor; give inputs to verify on")
        return replace(engine, verdict=Verdict(judge.name, engine.name, skipped=(reason,)).to_json())
    try:
        verdict = verify(lambda f: _plain(session.run(dict(f))), replace(judge, run=answers),
                         engine.graph, engine=engine.name, inputs=inputs, seed=options.seed,
                         exact=all(is_exact(v) for v in session.variants), tried=None if made_up else ())
    except InputError as error:
        if inputs:
            raise
        verdict = Verdict(judge.name, engine.name, skipped=(f"generated inputs: {error.what}",))
    verdict = replace(verdict, notes=notes)
    if verdict.cases and not verdict.passed and not options.allow_unverified:
        raise refuse(verdict)
    return replace(engine, verdict=verdict.to_json())


def _plain(values: Mapping[str, Any]) -> dict[str, np.ndarray]:
    """Outputs as arrays: the elements of a sequence one after the other, nothing as none."""
    return {k: v if isinstance(v, np.ndarray) else _joined(v) for k, v in values.items()}


def _joined(value: Any) -> np.ndarray:
    if value is None:
        return np.zeros(0, np.float32)
    if isinstance(value, list):
        return np.concatenate([np.zeros(0, np.float32), *(_joined(v).reshape(-1) for v in value)]) if value else \
            np.zeros(0, np.float32)
    return np.asarray(value)
