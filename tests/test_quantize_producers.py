"""Models that others quantised: the engine gives what the standard says, bit for bit where integers come out."""
from __future__ import annotations

import numpy as np
import onnx
import pytest

import ingot
from ingot.compiler.build import build_with_report
from ingot.compiler.options import BuildOptions
from ingot.frontend.onnx.write import onnx_from_graph
from ingot.graph import parse
from ingot.ops import infer
from ingot.ops.reference import run_graph

quantization = pytest.importorskip("onnxruntime.quantization")

NET = """
    input x: f32[2,16,12,12]
    const w1: f32[32,16,3,3]
    const b1: f32[32]
    const w2: f32[32,1,3,3]
    const b2: f32[32]
    const w3: f32[32,32,1,1]
    const b3: f32[32]
    c = Conv(x, w1, b1) {'pads': (1, 1, 1, 1), 'strides': (2, 2)}
    r = Relu(c)
    d = Conv(r, w2, b2) {'pads': (1, 1, 1, 1), 'group': 32}
    r2 = Relu(d)
    e = Conv(r2, w3, b3)
    a = Add(e, r)
    y = Relu(a)
    return y
"""


class Reader(quantization.CalibrationDataReader):
    """Some batches of noise."""

    def __init__(self) -> None:
        self.left = 6

    def get_next(self) -> dict[str, np.ndarray] | None:
        self.left -= 1
        return None if self.left < 0 else feeds(self.left)


def feeds(seed: int) -> dict[str, np.ndarray]:
    return {"x": np.random.default_rng(seed).standard_normal((2, 16, 12, 12)).astype(np.float32)}


@pytest.mark.cpu
@pytest.mark.parametrize("signed", [False, True])
def test_onnxruntimes_static_quantisation_keeps_its_bits(signed: bool, tmp_path) -> None:
    onnx.save(onnx_from_graph(parse(NET, infer)), tmp_path / "f32.onnx")
    kind = quantization.QuantType.QInt8 if signed else quantization.QuantType.QUInt8
    quantization.quantize_static(str(tmp_path / "f32.onnx"), str(tmp_path / "qdq.onnx"), Reader(), per_channel=True,
                                 quant_format=quantization.QuantFormat.QDQ, activation_type=kind,
                                 weight_type=quantization.QuantType.QInt8)
    made = build_with_report(str(tmp_path / "qdq.onnx"), None, BuildOptions(tune=False, threads=2, verify=False))
    launches = made.engine.variants[0].program.launches
    assert all(x.native for x in launches)
    assert sum(s.op == "ConvInteger" for x in launches for s in x.site.steps) == 3
    given = feeds(99)
    wanted, found = run_graph(made.engine.graph, given)["y"], ingot.Session(made.engine).run(given)["y"]
    apart = np.abs(wanted - found)
    quantum = np.unique(np.abs(wanted[wanted != 0])).min()
    assert apart.max() <= 1.01 * quantum and (apart > 0.01 * quantum).mean() < 0.01
