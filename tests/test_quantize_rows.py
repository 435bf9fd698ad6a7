"""Products whose input has a scale for each row, found while the engine runs."""
from __future__ import annotations

import numpy as np
import pytest

import ingot
from ingot.compiler.build import build_with_report
from ingot.compiler.options import BuildOptions
from ingot.compiler.precision import calibrated
from ingot.graph import parse
from ingot.ops import infer
from ingot.ops.reference import run_graph
from ingot.passes import simplified
from ingot.quantize import quantisable
from ingot.quantize.insert import quantized
from ingot.quantize.rounding import Manner
from ingot.runtime.host import host_target

TEXT = """
    input x: f32[2,24,64]
    const w: f32[64,96]
    const v: f32[96,48]
    a = MatMul(x, w)
    g = Gelu(a)
    y = MatMul(g, v)
    return y
"""


def data(seed: int) -> dict[str, np.ndarray]:
    """Rows of very different size, one of them zeros."""
    rng = np.random.default_rng(seed)
    x = rng.standard_normal((2, 24, 64)) * np.geomspace(0.5, 40, 24)[:, None]
    x[0, 3] = 0.0
    return {"x": x.astype(np.float32)}


def rowwise(wanted: np.ndarray, found: np.ndarray) -> float:
    """The largest error of a row, relative to that row."""
    size = np.linalg.norm(wanted, axis=-1)
    return float((np.linalg.norm(wanted - found, axis=-1)[size > 0] / size[size > 0]).max())


@pytest.mark.cpu
def test_small_rows_beside_large_ones_keep_their_digits() -> None:
    graph = parse(TEXT, infer)
    made = build_with_report(graph, None, BuildOptions(precision="int8", tune=False, threads=2),
                             calibration=[data(k) for k in range(4)])
    steps = [s.op for x in made.engine.variants[0].program.launches for s in x.site.steps]
    assert steps.count("MatMulInteger") == 2 and all(x.native for x in made.engine.variants[0].program.launches)
    assert made.engine.verdict["passed"]
    given = data(9)
    wanted, found = run_graph(graph, given)["y"], ingot.Session(made.engine).run(given)["y"]
    assert np.isfinite(found).all() and rowwise(wanted, found) < 0.05
    target = host_target(2)
    base = simplified(graph, target)
    calibration = calibrated(graph, target, [data(k) for k in range(4)])
    one = quantized(base, quantisable(base), calibration, Manner(rows=0.0))
    assert rowwise(wanted, run_graph(one, given)["y"]) > 0.3        # what one scale for all makes of them
