"""int8 and fp8 for a GPU: what the graph becomes, what crosses memory, and that its meaning stays. No GPU is needed."""
from __future__ import annotations

from collections import Counter
from textwrap import dedent

import numpy as np
import pytest

from ingot.compiler.gpu_precision import gpu_plan
from ingot.compiler.options import BuildOptions
from ingot.errors import InputError, UnsupportedError
from ingot.graph import F8E4M3, F16, I8, Graph, parse
from ingot.lower import Program, lower
from ingot.ops import infer
from ingot.ops.reference import run_graph
from ingot.passes import Precision, finished, simplified
from ingot.target import Target

GPU = Target("cuda", isa="sm_90")
CNN = """
    input x: f32[2,16,12,12]
    const a: f32[32,16,3,3]
    const b: f32[32]
    const c: f32[32,32,3,3]
    const e: f32[64,32,3,3]
    const f: f32[64,64,3,3]
    const g: f32[64,32,1,1]
    p = Conv(x, a, b) {'pads': (1, 1, 1, 1)}
    q = Relu(p)
    r = Conv(q, c) {'pads': (1, 1, 1, 1)}
    s = Add(r, q)
    t = Relu(s)
    u = Conv(t, e) {'pads': (1, 1, 1, 1), 'strides': (2, 2)}
    v = Relu(u)
    w = Conv(v, f) {'pads': (1, 1, 1, 1)}
    k = Conv(t, g) {'strides': (2, 2)}
    l = Add(w, k)
    m = Relu(l)
    y = GlobalAveragePool(m)
    return y
"""
BLOCK = """
    input x: f32[2,24,64]
    const g: f32[64]
    const h: f32[64]
    const a: f32[64,128]
    const b: f32[128]
    const c: f32[128,64]
    const d: f32[64]
    n = LayerNormalization(x, g, h)
    p = MatMul(n, a)
    q = Add(p, b)
    r = Gelu(q)
    s = MatMul(r, c)
    t = Add(s, d)
    u = Add(t, x)
    y = LayerNormalization(u, g, h)
    return y
"""


def graph_of(text: str) -> Graph:
    return parse(dedent(text), infer)


def planned(text: str, precision: str, target: Target = GPU) -> tuple[Graph, Graph]:
    """The graph, and the one with short numbers inside."""
    graph = graph_of(text)
    rng = np.random.default_rng(0)
    shape = tuple(int(str(d)) for d in graph.types["x"].shape)
    data = [{"x": rng.standard_normal(shape, np.float32)} for _ in range(16)]
    base = simplified(graph, target)
    plan = gpu_plan(base, target, BuildOptions(precision=precision), data, None)
    assert plan.chosen
    return graph, plan.graph


def lowered(graph: Graph) -> Program:
    return lower(finished(simplified(graph, GPU), GPU, precision=Precision("f16", outside=True)), GPU)


def test_images_cross_memory_as_i8_where_integers_read_them() -> None:
    program = lowered(planned(CNN, "int8")[1])
    assert all(x.native for x in program.launches)
    made = Counter((x.site.op, x.site.output.dtype) for x in program.launches)
    # of five convolutions the last before the pooling and the one that waits for its shortcut leave f16
    assert made["ConvInteger", I8] == 3 and made["ConvInteger", F16] == 2
    assert all(o.type.dtype != "f32" for x in program.launches for o in x.site.outputs)
    assert not any(x.site.op == "Dequantize" for x in program.launches)


def test_a_block_of_a_transformer_reads_f8_and_keeps_its_stream_in_f16() -> None:
    program = lowered(planned(BLOCK, "fp8")[1])
    assert all(x.native for x in program.launches)
    ops = [("+".join(s.op for s in x.site.steps), x.site.output.dtype) for x in program.launches]
    assert ("LayerNormalization+Cast+Quantize", F8E4M3) in ops
    assert ("ShortMatMul+Mul+Add+Gelu+Quantize", F8E4M3) in ops
    assert all(o.type.dtype.name != "f32" for x in program.launches for o in (*x.site.inputs[:1], *x.site.outputs))


@pytest.mark.parametrize(("text", "precision", "bar"), [
    (CNN, "int8", 0.03), (BLOCK, "int8", 0.03), (BLOCK, "fp8", 0.1)])
def test_the_folded_graph_means_what_the_inserted_one_does(text: str, precision: str, bar: float) -> None:
    graph, made = planned(text, precision)
    shape = tuple(int(str(d)) for d in graph.types["x"].shape)
    feeds = {"x": np.random.default_rng(9).standard_normal(shape, np.float32)}
    wanted, inserted = run_graph(graph, feeds)["y"], run_graph(made, feeds)["y"]
    folded = simplified(made, GPU)
    assert any(n.op in ("ConvInteger", "MatMulInteger", "ShortMatMul") for n in folded.nodes)
    found = run_graph(folded, feeds)["y"]
    scale = np.abs(wanted).max()
    assert np.abs(found - inserted).max() <= 0.01 * scale       # sums scaled once: roundings beside a tie at most
    assert np.abs(inserted - wanted).max() <= bar * scale


def test_without_data_it_is_refused() -> None:
    base = simplified(graph_of(BLOCK), GPU)
    with pytest.raises(InputError, match="representative data"):
        gpu_plan(base, GPU, BuildOptions(precision="int8"), None, None)


def test_an_older_gpu_has_no_fp8() -> None:
    old = Target("cuda", isa="sm_80")
    with pytest.raises(UnsupportedError, match="sm_90"):
        gpu_plan(simplified(graph_of(BLOCK), old), old, BuildOptions(precision="fp8"), [], None)
