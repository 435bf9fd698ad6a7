"""bf16 on a CPU: which sites read it, what stays f32, and that the engine is held against the f32 model."""
from __future__ import annotations

import dataclasses
from dataclasses import replace
from textwrap import dedent

import numpy as np
import pytest

import ingot
from ingot.compiler.short import short_build
from ingot.errors import UnsupportedError
from ingot.graph import BF16, F32, Graph, parse
from ingot.kernels.codegen import target_for
from ingot.kernels.codegen.dot import bf16_dot
from ingot.lower import lower
from ingot.ops import infer
from ingot.ops.reference import run_graph
from ingot.passes import finished
from ingot.passes.short_products import roundings, short_sites, shortened
from ingot.runtime.host import host_target
from ingot.target import Target
from ingot.tune import Tuning
from ingot.tune.choice import default_choice

AVX512 = dataclasses.replace(target_for("avx512"), features=target_for("avx512").features | {"avx512bf16"})
here = pytest.mark.skipif(bf16_dot(host_target(2)) is None, reason="this processor multiplies no bf16")

BLOCK = """
    symbol N: 1..1..4
    input x: f32[N,32,10,10]
    const w: f32[32,32,3,3]
    const v: f32[48,32,1,1]
    const u: f32[48,1,3,3]
    const d: f32[48,24]
    a = Conv(x, w) {'pads': (1, 1, 1, 1)}
    b = Relu(a)
    c = Conv(b, w) {'pads': (1, 1, 1, 1)}
    e = Add(c, b)
    f = Conv(e, v)
    g = Conv(f, u) {'group': 48, 'pads': (1, 1, 1, 1)}
    h = GlobalAveragePool(g)
    i = Flatten(h)
    j = MatMul(i, d)
    y = Softmax(j)
    return y
"""


def block() -> Graph:
    graph, rng = parse(dedent(BLOCK), infer), np.random.default_rng(0)
    return replace(graph, constants={k: (rng.standard_normal(v.shape) / np.sqrt(v[0].size)).astype(np.float32)
                                     for k, v in graph.constants.items()})


def test_convolutions_and_products_read_bf16_and_nothing_else_does():
    graph = block()
    sites = short_sites(graph, AVX512)
    assert [s.name for s in sites] == ["a", "c", "f", "j"]      # a depthwise convolution has no sum worth it
    made = shortened(graph, sites)
    ops = [n.op for n in made.nodes]
    assert ops.count("ShortConv") == 3 and ops.count("ShortMatMul") == 1 and ops.count("Conv") == 1
    short = {v for v, t in made.types.items() if t.dtype == BF16}
    assert all(made.types[n.output].dtype == F32 for n in made.nodes if n.op not in ("Cast", "Flatten"))
    assert {n.op for n in made.nodes if short & set(n.inputs)} <= {"ShortConv", "ShortMatMul", "Cast", "Flatten"}
    assert roundings(made) == {"y": 8}
    assert made.outputs == graph.outputs and shortened(graph, []) is graph


def test_an_addition_reads_the_rounded_form_of_what_is_rounded_anyway():
    made = shortened(block(), short_sites(block(), AVX512))
    add = next(n for n in made.nodes if n.op == "Add")
    back = made.producers[add.inputs[1]]
    assert back.op == "Cast" and made.types[back.inputs[0]].dtype == BF16
    program = lower(finished(made, AVX512), AVX512)
    assert not [x for x in program.launches if not x.native]
    alone = [x for x in program.launches if all(s.op == "Cast" for s in x.site.steps)]
    assert len(alone) <= 1, "only the network's input is rounded by itself"


def test_parts_of_a_concat_are_rounded_before_they_are_joined():
    graph = parse(dedent("""
        input x: f32[1,32,8,8]
        const w: f32[32,32,3,3]
        const v: f32[32,64,1,1]
        a = Conv(x, w) {'pads': (1, 1, 1, 1)}
        b = Conv(a, w) {'pads': (1, 1, 1, 1)}
        c = Concat(a, b) {'axis': 1}
        y = Conv(c, v)
        return y
    """), infer)
    made = shortened(graph, short_sites(graph, AVX512))
    joined = next(n for n in made.nodes if n.op == "Concat")
    assert made.types[joined.output].dtype == BF16


def test_its_result_is_the_float_one_but_for_the_rounding_of_operands():
    graph = block()
    x = np.random.default_rng(1).standard_normal((1, 32, 10, 10)).astype(np.float32)
    wide, short = (run_graph(g, {"x": x})["y"] for g in (graph, shortened(graph, short_sites(graph, AVX512))))
    assert 0 < np.abs(wide - short).max() < 0.02 * np.abs(wide).max()


def test_a_processor_without_the_instruction_is_told():
    with pytest.raises(UnsupportedError, match="no instruction that multiplies bf16"):
        short_build(block(), target_for("avx2"), lambda p: Tuning({}, {}))


@here
@pytest.mark.cpu
def test_an_engine_in_bf16_is_verified_against_the_model_in_f32():
    graph = block()
    engine = ingot.build(graph, options=ingot.BuildOptions(tune=False, precision="bf16", threads=2))
    variant = engine.variants[0]
    assert variant.report["precision"] == "bf16" and len(variant.report["short"]["kept"]) == 4
    cases = engine.verdict["cases"]
    assert engine.verdict["passed"] and all(0 < c["relative"] < c["tolerance"] < 0.1 for c in cases)
    assert not variant.report["reference"]
    session = ingot.Session(engine, variant=variant)
    for batch in (1, 3, 4):
        x = np.random.default_rng(batch).standard_normal((batch, 32, 10, 10)).astype(np.float32)
        wanted, got = run_graph(graph, {"x": x})["y"], session.run({"x": x})["y"]
        assert got.dtype == np.float32
        assert np.abs(wanted - got).max() < 0.02 * np.abs(wanted).max()


@here
@pytest.mark.cpu
def test_sites_that_bf16_does_not_make_faster_are_one_plan_and_all_sites_another(monkeypatch):
    """Convolutions on bf16 are called slow here: the plans that are timed as wholes are f32, all sites, the others."""
    timed = []

    def tuner(program):
        choices, kernels = {}, {}
        for site in (x.site for x in program.launches if x.native):
            choice, kernels[site.key] = default_choice(site, target)
            seconds = {"ShortConv": 2.0, "Conv": 1.0, "MatMul": 1.0}.get(site.op, 0.1)
            choices[site.key] = replace(choice, seconds=seconds)
        return Tuning(choices, kernels)

    def side_by_side(graph, variants):
        timed.extend(sum(s.op.startswith("Short") for x in v.program.launches for s in x.site.steps) for v in variants)
        return [3.0, 2.0, 1.0]

    target: Target = host_target(2)
    monkeypatch.setattr("ingot.compiler.short.side_by_side", side_by_side)
    graph = block()
    graph = replace(graph, nodes=tuple(replace(n, origin=(n.output,)) for n in graph.nodes))
    made = short_build(graph, target, tuner)
    assert timed == [0, 4, 1]
    assert [s.name for s in made.kept] == ["j"] and len(made.sites) == 4
    assert made.report()["short"]["seconds"] == {"f32": 3.0, "bf16": 1.0}


def test_a_first_layer_of_three_channels_reads_two_words_a_pixel():
    graph = parse(dedent("""
        input x: f32[1,3,18,18]
        const w: f32[32,3,5,5]
        const v: f32[32,32,3,3]
        a = Conv(x, w) {'strides': (2, 2), 'pads': (2, 2, 2, 2)}
        b = Relu(a)
        y = Conv(b, v)
        return y
    """), infer)
    made = finished(shortened(graph, short_sites(graph, AVX512)), AVX512)
    first = next(n for n in made.nodes if n.op == "ShortConv")
    assert made.types[first.inputs[0]].shape[1] == made.types[first.inputs[1]].shape[1] == 4, "a channel of zeros"
    assert made.types[first.inputs[0]].layout == "c4" and made.types[first.inputs[0]].dtype == BF16
    assert not [x for x in lower(made, AVX512).launches if not x.native]
