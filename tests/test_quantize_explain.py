"""Where accuracy went: noisy sites by name, ranges that are cut or wasted, and the node that made the first NaN."""
from __future__ import annotations

import numpy as np
import pytest
from test_quantize_search import BROKEN, LAYERS, broken_net, data
from typer.testing import CliRunner

import ingot
from ingot.cli.commands import app
from ingot.compiler.build import build_with_report
from ingot.compiler.check import check_engine
from ingot.compiler.explain import explain, noise
from ingot.compiler.options import BuildOptions
from ingot.compiler.precision import calibrated
from ingot.frontend.onnx.write import onnx_from_graph
from ingot.graph import parse
from ingot.ops import infer
from ingot.passes import simplified
from ingot.quantize import quantisable
from ingot.quantize.insert import quantized
from ingot.quantize.rounding import Manner
from ingot.runtime.host import host_target


def test_the_first_site_whose_error_jumps_is_named() -> None:
    graph, target = broken_net(), host_target(2)
    base = simplified(graph, target)
    calibration = calibrated(graph, target, data(), method="minmax")
    found = noise(base, quantized(base, quantisable(base), calibration, Manner(smooth=())), data()[0])
    assert len(found) == LAYERS
    jumps = [s for s in found if s.jumps]
    assert len(jumps) == 1 and found.index(jumps[0]) == BROKEN[0]
    assert found[0].after > 30 > jumps[0].after
    assert all(0 <= s.clipped <= 1 and 0 <= s.unused < 1 for s in found)


def test_ranges_that_are_too_narrow_or_too_wide_are_seen() -> None:
    graph, target = parse("""
        input x: f32[8,32]
        const w: f32[32,16]
        y = MatMul(x, w)
        return y
    """, infer), host_target(2)
    rng = np.random.default_rng(0)
    base = simplified(graph, target)
    calibration = calibrated(graph, target, [{"x": rng.standard_normal((64, 32)).astype(np.float32)}], method="minmax")
    made = quantized(base, quantisable(base), calibration)
    (wide,) = noise(base, made, {"x": 10 * rng.standard_normal((8, 32)).astype(np.float32)})
    (narrow,) = noise(base, made, {"x": 0.1 * rng.standard_normal((8, 32)).astype(np.float32)})
    assert wide.clipped > 0.5 and narrow.clipped == 0.0
    assert narrow.unused > 0.8 > wide.unused


@pytest.mark.cpu
def test_the_node_that_made_the_first_nan_is_named_even_where_it_is_hidden_later(tmp_path) -> None:
    graph = parse("""
        input x: f32[4,32]
        const w: f32[32,32]
        a = MatMul(x, w)
        b = Log(a)
        c = Softmax(b)
        n = IsNaN(c)
        zero = Sub(x, x)
        y = Where(n, zero, c)
        return y
    """, infer)
    made = ingot.build(graph, options=BuildOptions(tune=False, threads=2, verify=False))
    feeds = {"x": np.random.default_rng(0).standard_normal((4, 32)).astype(np.float32)}
    assert np.isfinite(ingot.Session(made).run(feeds)["y"]).all()
    found = explain(None, made, made.variants[0], inputs=[feeds]).not_finite
    assert "NaN or infinite" in found and ("Log" in found or "MatMul" in found or "Softmax" in found)
    assert explain(None, made, made.variants[0], inputs=[{"x": feeds["x"] * np.nan}]).not_finite.startswith("the input")


@pytest.mark.cpu
def test_check_explains_an_engine_made_integer_and_does_not_call_its_choice_an_error(tmp_path) -> None:
    (tmp_path / "m.onnx").write_bytes(onnx_from_graph(broken_net()).SerializeToString())
    np.savez(tmp_path / "data.npz", x=np.concatenate([d["x"] for d in data()]))
    options = BuildOptions(precision="int8", tune=False, threads=2, method="minmax")
    made = build_with_report(str(tmp_path / "m.onnx"), None, options, calibration=str(tmp_path / "data.npz"))
    ingot.save(made.engine, tmp_path / "m.ingot")
    verdict = check_engine(str(tmp_path / "m.onnx"), made.engine)
    assert verdict.passed and any("integers by choice" in n for n in verdict.notes)
    told = CliRunner().invoke(app, ["check", str(tmp_path / "m.onnx"), str(tmp_path / "m.ingot"), "--explain"])
    assert told.exit_code == 0, told.output
    assert "makes dB" in told.output and "every value is finite" in told.output
