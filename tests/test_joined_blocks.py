"""Concat and Split between blocked convolutions: nothing is laid plain for them."""
from dataclasses import replace

import numpy as np
import pytest

import ingot
from ingot.graph import parse
from ingot.ops import infer
from ingot.ops.reference import run_graph
from ingot.runtime.host import host_target

C2F = """
    symbol N: 1..1..4
    input x: f32[N,3,12,12]
    const s: f32[64,3,3,3]
    const w: f32[32,32,3,3]
    const v: f32[48,96,1,1]
    a = Conv(x, s) {'pads': (1, 1, 1, 1)}
    p, q = Split(a) {'axis': 1, 'split': (32, 32)}
    b = Conv(q, w) {'pads': (1, 1, 1, 1)}
    c = Relu(b)
    d = Conv(c, w) {'pads': (1, 1, 1, 1)}
    e = Add(d, q)
    f = Conv(e, w) {'pads': (1, 1, 1, 1)}
    g = Add(f, e)
    h = Concat(p, e, g) {'axis': 1}
    y = Conv(h, v)
    return y
"""


@pytest.mark.cpu
@pytest.mark.parametrize("isa", ["avx2", "avx512"])
def test_branches_that_are_joined_are_written_where_they_belong(isa):
    """A part that is read by what writes the next one; parts of a Split joined again: all in blocks, at any batch."""
    graph = parse(C2F, infer)
    rng = np.random.default_rng(0)
    graph = replace(graph, constants={k: rng.standard_normal(v.shape).astype(np.float32) / 9
                                      for k, v in graph.constants.items()})
    if isa not in (host_target(2).isa, "avx2"):
        pytest.skip("this machine has no AVX-512")
    engine = ingot.build(graph, options=ingot.BuildOptions(tune=False, isa=isa))
    assert engine.verdict["passed"]
    session = ingot.Session(engine, variant=engine.variants[0])
    launches = session.variant.program.launches
    assert not [x for x in launches if x.site.op in ("Concat", "Reorder", "Slice")][1:], "only the result is laid plain"
    written = [o.strides for x in launches for o in x.site.outputs if o.strides]
    assert len(written) == 3        # p by a copy, e and g by the convolutions themselves
    for batch in (1, 3, 4):
        x = rng.standard_normal((batch, 3, 12, 12)).astype(np.float32)
        wanted = run_graph(graph, {"x": x})["y"]
        np.testing.assert_allclose(session.run({"x": x})["y"], wanted, rtol=0, atol=2e-5 * np.abs(wanted).max())
