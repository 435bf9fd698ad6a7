"""Q/DQ models of four producers, as `benchmarks/quantised_models.py` makes them: the standard, within a quantum."""
from __future__ import annotations

from functools import cache
from pathlib import Path

import numpy as np
import pytest

import ingot
from ingot.compiler.build import Build, build_with_report
from ingot.compiler.divergence import kernels_judged
from ingot.compiler.options import BuildOptions
from ingot.ops.reference import run_graph
from ingot.passes import optimize
from ingot.verify import probes

FILES = sorted((Path(__file__).parent / "quantised").glob("*.onnx"))
INTEGER = {"ConvInteger", "MatMulInteger"}
# products and convolutions summed by kernels of integers; NNCF's depthwise reads a scale for each channel, and is not
SUMS = {"hand-image": 2, "hand-rows": 2, "nncf-image": 4, "nncf-rows": 3, "onnxruntime-image": 5,
        "onnxruntime-rows": 3, "pytorch-image": 5, "pytorch-rows": 3}
SHAPES = {"image": (2, 3, 16, 16), "rows": (2, 12, 32)}


@cache
def made(path: Path, isa: str = "") -> Build:
    return build_with_report(str(path), None, BuildOptions(tune=False, threads=2, verify=False, isa=isa))


def feeds(path: Path, seed: int) -> dict[str, np.ndarray]:
    shape = SHAPES[path.stem.partition("-")[2]]
    return {"x": np.random.default_rng(seed).standard_normal(shape).astype(np.float32)}


def test_every_producer_is_there() -> None:
    assert {p.stem for p in FILES} == SUMS.keys()


@pytest.mark.cpu
@pytest.mark.parametrize("path", FILES, ids=lambda p: p.stem)
def test_products_and_convolutions_are_summed_in_integers(path: Path) -> None:
    launches = made(path).engine.variants[0].program.launches
    assert all(x.native for x in launches), [str(x.site) for x in launches if not x.native]
    assert sum(s.op in INTEGER for x in launches for s in x.site.steps) == SUMS[path.stem]


@pytest.mark.cpu
@pytest.mark.parametrize("path", FILES, ids=lambda p: p.stem)
def test_outputs_are_the_references_within_a_quantum(path: Path) -> None:
    engine = made(path).engine
    session = ingot.Session(engine)
    for seed in range(20):
        given = feeds(path, seed)
        wanted, found = run_graph(engine.graph, given)["y"], session.run(given)["y"]
        assert found.dtype == wanted.dtype
        quantum = steps(wanted)
        apart = np.abs(wanted.astype(np.float64) - found.astype(np.float64))
        assert apart.max() <= 1.01 * quantum, seed
        assert (apart > 0.01 * quantum).mean() < 0.01, seed


def steps(values: np.ndarray) -> float:
    """One quantum: of integers 1, of dequantised values what parts neighbours; of reals the share int8 gives one."""
    if values.dtype.kind in "iu":
        return 1.0
    return float(np.abs(values).max()) / 127


@pytest.mark.cpu
@pytest.mark.parametrize("path", FILES, ids=lambda p: p.stem)
def test_each_kernels_integers_are_those_of_the_standard_but_beside_ties(path: Path) -> None:
    built = made(path)
    variant = built.engine.variants[0]
    optimized = optimize(built.engine.graph, variant.target)
    cases = kernels_judged(built.engine, variant, optimized, probes(built.engine.graph, 0)[0])
    assert cases and all(c.passed for c in cases), [str(c) for c in cases]
