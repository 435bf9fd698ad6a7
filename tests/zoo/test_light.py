"""The networks that come with the onnx package: built, and run against ONNX Runtime. Their batch is fixed."""
from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

import ingot

pytest.importorskip("transformers")
from benchmarks.architectures.zoo import light_models

onnxruntime = pytest.importorskip("onnxruntime")

pytestmark = [pytest.mark.cpu, pytest.mark.filterwarnings("ignore")]


@pytest.mark.parametrize("path", [
    p if "squeezenet" in p.name else pytest.param(p, marks=pytest.mark.slow) for p in light_models()],
    ids=lambda p: p.stem)
def test_a_light_model_is_built_and_run(path: Path) -> None:
    engine = ingot.build(path, None, ingot.BuildOptions(tune=False, verify=False))
    session = ingot.Session(engine)
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    peer = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    needed = [i.name for i in peer.get_inputs()]
    for seed in range(2):
        rng = np.random.default_rng(seed)
        feeds = {n: rng.standard_normal(engine.graph.types[n].at({}).shape).astype(np.float32)
                 for n in engine.graph.inputs}
        found = session.run(feeds)
        for name, right in zip(found, peer.run(list(found), {k: v for k, v in feeds.items() if k in needed}),
                               strict=True):
            assert not [x.where for x in session.variant.program.launches if not x.native]
            np.testing.assert_allclose(found[name], right, rtol=1e-3, atol=1e-4 * np.abs(right).max())
