"""scikit-learn's trees and pipelines, converted: built, and run at two sizes against scikit-learn's own results."""
from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

import ingot

pytest.importorskip("skl2onnx")
from benchmarks.architectures.trees import ESTIMATORS

pytestmark = [pytest.mark.cpu, pytest.mark.filterwarnings("ignore")]


@pytest.mark.parametrize("estimator", ESTIMATORS, ids=lambda e: e.name)
def test_an_estimator_is_built_verified_and_run(estimator, tmp_path: Path) -> None:
    fitted = estimator.fitted()
    path = estimator.export(tmp_path / "e.onnx", fitted)
    engine = ingot.build(path, {"X": "rows=1..8..64x6"}, ingot.BuildOptions(tune=False))
    assert engine.verdict["passed"]
    session = ingot.Session(engine)
    for rows in (8, 33):
        feeds = estimator.feeds(rows)
        for found, wanted in zip(session.run(feeds).values(), estimator.run(fitted, feeds), strict=True):
            assert found.shape == wanted.shape
            np.testing.assert_allclose(found, wanted, rtol=1e-4, atol=1e-5)
