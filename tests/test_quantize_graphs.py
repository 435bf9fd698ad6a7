"""Quantised graphs become integer regions, and keep their meaning."""
from __future__ import annotations

import numpy as np
import pytest

from ingot.graph import Graph, parse
from ingot.lower import lower
from ingot.ops import infer
from ingot.ops.reference import run_graph
from ingot.passes import optimize
from ingot.passes.fold_quantised import fold_quantised
from ingot.runtime.host import host_target
from ingot.target import Target

PRODUCT = """
    input x: f32[5,24]
    const s: f32[] = 0.02
    const z: u8[] = 120
    const w: i8[24,10] = W
    const t: f32[10] = T
    const b: f32[10] = B
    q = QuantizeLinear(x, s, z)
    d = DequantizeLinear(q, s, z)
    v = DequantizeLinear(w, t) {'axis': 1}
    m = MatMul(d, v)
    a = Add(m, b)
    r = Relu(a)
    o = QuantizeLinear(r, s, z)
    y = DequantizeLinear(o, s, z)
    return y
"""
CONVOLUTION = """
    input x: f32[1,16,9,9]
    const s: f32[] = 0.03
    const z: i8[] = -7
    const w: i8[32,16,3,3] = W
    const t: f32[32] = T
    const b: f32[32] = B
    const w2: i8[32,32,1,1] = W
    const z2: i8[] = 0
    q = QuantizeLinear(x, s, z)
    d = DequantizeLinear(q, s, z)
    v = DequantizeLinear(w, t) {'axis': 0}
    c = Conv(d, v, b) {'pads': (1, 1, 1, 1)}
    r = Relu(c)
    q2 = QuantizeLinear(r, s, z2)
    d2 = DequantizeLinear(q2, s, z2)
    v2 = DequantizeLinear(w2, t) {'axis': 0}
    c2 = Conv(d2, v2)
    y = Add(c2, d2)
    return y
"""


def graph_of(text: str, seed: int = 0) -> Graph:
    """The graph of a text whose larger constants have contents that make sense for integers."""
    lines = [line.partition(" = ")[0] if line.rstrip().endswith((" = W", " = T", " = B")) else line
             for line in text.splitlines()]
    graph = parse("\n".join(lines), infer)
    rng = np.random.default_rng(seed)
    for name, array in graph.constants.items():
        if array.dtype in (np.int8, np.uint8) and array.ndim:
            array[...] = rng.integers(-127 if array.dtype == np.int8 else 0, 128, array.shape)
        elif name.startswith("t"):
            array[...] = rng.uniform(0.001, 0.01, array.shape)
    return graph


def ops_of(graph: Graph) -> list[str]:
    return [n.op for n in graph.nodes]


@pytest.mark.parametrize("text", [PRODUCT, CONVOLUTION], ids=["product", "convolution"])
def test_a_quantised_graph_is_summed_in_integers_and_means_the_same(text: str) -> None:
    graph = graph_of(text)
    folded = optimize(graph, Target("x86"))
    assert {"MatMulInteger", "ConvInteger"} & set(ops_of(folded))
    assert not {"MatMul", "Conv"} & set(ops_of(folded))
    rng = np.random.default_rng(1)
    feeds = {"x": rng.standard_normal([int(str(d)) for d in graph.types["x"].shape]).astype(np.float32)}
    wanted, found = run_graph(graph, feeds), run_graph(folded, feeds)
    for name, array in wanted.items():
        apart = np.abs(array - found[name])
        assert (apart > 1e-4 * np.abs(array).max()).mean() < 0.01      # a rounding at a tie moves a value by a quantum
        assert apart.max() < 0.05 * np.abs(array).max()


def test_every_launch_of_a_quantised_convolution_is_native() -> None:
    target = host_target()
    program = lower(optimize(graph_of(CONVOLUTION), target), target)
    assert [x.where for x in program.launches if not x.native] == []


def test_weights_that_do_not_fit_stay_as_they_are() -> None:
    graph = parse("""
        input x: u8[4,8]
        const s: f32[] = 0.5
        const w: u8[8,3]
        const z: u8[] = 10
        d = DequantizeLinear(x, s)
        v = DequantizeLinear(w, s, z)
        y = MatMul(d, v)
        return y
    """, infer)
    graph.constants["w"][...] = 200
    assert "MatMul" in ops_of(fold_quantised(graph, Target("x86")))


def test_other_targets_keep_their_products() -> None:
    assert "MatMulInteger" not in ops_of(optimize(graph_of(PRODUCT), Target("cuda")))
