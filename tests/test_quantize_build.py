"""A build with --precision int8: integers inside, close to the float model, and reproducible from the scales."""
from __future__ import annotations

import numpy as np
import pytest

import ingot
from ingot.compiler.build import build_with_report
from ingot.compiler.options import BuildOptions
from ingot.errors import InputError
from ingot.graph import Graph, parse
from ingot.ops import infer
from ingot.ops.reference import run_graph
from ingot.quantize import read_calibration, write_calibration

MODEL = """
    input x: f32[4,16,10,10]
    const w1: f32[32,16,3,3]
    const b1: f32[32]
    const w2: f32[32,32,1,1]
    const w3: f32[32,32,3,3]
    const w4: f32[32,20]
    c = Conv(x, w1, b1) {'pads': (1, 1, 1, 1)}
    r = Relu(c)
    c2 = Conv(r, w2)
    a = Add(c2, r)
    r2 = Relu(a)
    c3 = Conv(r2, w3) {'strides': (2, 2)}
    r3 = Relu(c3)
    g = GlobalAveragePool(r3)
    f = Flatten(g)
    y = MatMul(f, w4)
    return y
"""


def model() -> tuple[Graph, list[dict[str, np.ndarray]]]:
    rng = np.random.default_rng(0)
    return parse(MODEL, infer), [{"x": rng.standard_normal((4, 16, 10, 10)).astype(np.float32)} for _ in range(12)]


OPTIONS = BuildOptions(precision="int8", tune=False, threads=2)


@pytest.mark.cpu
def test_an_int8_engine_is_close_to_its_float_model() -> None:
    graph, data = model()
    made = build_with_report(graph, None, OPTIONS, calibration=data)
    assert made.plan is not None and len(made.plan.chosen) == 4
    ops = [s.op for x in made.engine.variants[0].program.launches for s in x.site.steps]
    assert ops.count("ConvInteger") == 3 and ops.count("MatMulInteger") == 1
    assert all(x.native for x in made.engine.variants[0].program.launches)
    session = ingot.Session(made.engine)
    for feeds in data[:3]:
        wanted, found = run_graph(graph, feeds)["y"], session.run(feeds)["y"]
        cosine = (wanted * found).sum() / np.linalg.norm(wanted) / np.linalg.norm(found)
        assert cosine > 0.999
    assert made.plan.accuracy["y"] > 0.999
    assert made.engine.verdict["passed"]


@pytest.mark.cpu
def test_the_scales_alone_make_the_same_engine(tmp_path) -> None:
    graph, data = model()
    first = build_with_report(graph, None, OPTIONS, calibration=data)
    write_calibration(first.plan.calibration, tmp_path / "scales.json")
    again = build_with_report(graph, None, OPTIONS, calibration=read_calibration(tmp_path / "scales.json"))
    ingot.save(first.engine, tmp_path / "a.ingot")
    ingot.save(again.engine, tmp_path / "b.ingot")
    a, b = (ingot.Session(ingot.load(tmp_path / f"{n}.ingot")).run(data[0])["y"] for n in "ab")
    assert np.array_equal(a, b)


def test_int8_without_data_says_what_to_give() -> None:
    with pytest.raises(InputError, match="needs representative data"):
        build_with_report(model()[0], None, OPTIONS)
    with pytest.raises(InputError, match="no precision is called"):
        build_with_report(model()[0], None, BuildOptions(precision="int7"))
