"""Quantised engines are judged kernel by kernel; from end to end by how far right answers lie apart."""
from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from ingot.compiler.divergence import kernels_judged
from ingot.compiler.precision import calibrated, planned
from ingot.compiler.running import watching
from ingot.engine import Engine, make_variant
from ingot.graph import Graph, parse
from ingot.lower import lower
from ingot.ops import infer
from ingot.ops.reference import run_graph
from ingot.passes import optimize, simplified
from ingot.runtime.host import host_target
from ingot.verify import compare, kernel_by_kernel, moved_ties, probes, reference_original, verify

CHAIN = "\n".join(["input x: f32[1,16,12,12]"]
                  + [f"const w{k}: f32[{32},{16 if k == 0 else 32},3,3]" for k in range(4)]
                  + [f"c{k} = Conv({'x' if k == 0 else f'r{k - 1}'}, w{k}) {{'pads': (1, 1, 1, 1)}}\nr{k} = Relu(c{k})"
                     for k in range(4)] + ["y = GlobalAveragePool(r3)", "return y"])


def quantised() -> Graph:
    graph, target = parse(CHAIN, infer), host_target(2)
    rng = np.random.default_rng(0)
    data = [{"x": rng.standard_normal((1, 16, 12, 12)).astype(np.float32)} for _ in range(6)]
    return planned(graph, target, calibrated(graph, target, data), lambda p: pytest.fail("no race"), race=False).graph


@pytest.mark.cpu
def test_every_kernel_of_a_quantised_engine_is_within_a_quantum() -> None:
    graph, target = quantised(), host_target(2)
    optimized = optimize(simplified(graph, target), target)
    variant = make_variant(lower(optimized, target), target)
    cases = kernels_judged(Engine("e", graph, (variant,)), variant, optimized, probes(graph)[0])
    assert cases and all(c.passed for c in cases)
    assert any("quantum" in c.source for c in cases) and any("quantum" not in c.source for c in cases)


def test_a_kernel_that_errs_by_two_quanta_or_too_often_is_named() -> None:
    graph = quantised()
    probe = probes(graph)[0]
    values: dict[str, np.ndarray] = {}
    run_graph(graph, probe.feeds, watch=lambda n, a: values.update({n: a}))
    written = tuple(n.output for n in graph.nodes if n.op == "Quantize")
    assert all(c.passed for c in kernel_by_kernel(lambda names: values, graph, written, probe))
    for bad, word in ((2, "more than a quantum"), (1, "beside a tie")):
        odd = values[written[2]].astype(np.int64)
        changed = np.where(odd < 100, odd + bad, odd - bad)
        if bad == 2:
            changed.flat[1:] = odd.flat[1:]
        wrong = {**values, written[2]: changed.astype(np.uint8)}
        found = kernel_by_kernel(lambda names, wrong=wrong: wrong, graph, written, probe)
        assert found[0].output == written[2] and not found[0].passed and word in found[0].note


def test_moved_ties_move_the_answer_as_another_right_evaluation_does() -> None:
    graph = quantised()
    probe = probes(graph)[0]
    right = run_graph(graph, probe.feeds)
    moved = run_graph(moved_ties(graph, {}, 0), probe.feeds)
    values: dict[str, np.ndarray] = {}
    run_graph(graph, probe.feeds, watch=lambda n, a: values.update({n: a}))
    assert compare(moved["y"], right["y"]).relative < 0.02
    same = next(n for n in graph.nodes if n.op == "Quantize").output
    after: dict[str, np.ndarray] = {}
    run_graph(moved_ties(graph, {}, 0), probe.feeds, watch=lambda n, a: after.update({n: a}))
    assert (after[same] != values[same]).mean() < 1e-3      # only what lies beside a tie


def test_an_answer_beyond_what_moved_ties_explain_is_refused() -> None:
    graph, target = quantised(), host_target(2)
    run = watching(simplified(graph, target), target, graph.outputs)
    good = verify(run, reference_original(graph), graph)
    assert good.passed
    bad = verify(lambda feeds: {k: (v * np.float32(1.08)).astype(v.dtype) for k, v in run(feeds).items()},
                 reference_original(graph), graph)
    assert not bad.passed
    blind = replace(reference_original(graph), graph=None)
    assert verify(run, blind, graph).passed
