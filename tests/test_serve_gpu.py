"""GPU instances behind the server: a process, a stream and graphs each. Skipped where there is no GPU."""
import json
import os
import signal
import time
import urllib.request
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

for needed in ("yaml", "grpc", "uvicorn", "orjson", "prometheus_client"):
    pytest.importorskip(needed)
import ingot  # noqa: E402
from ingot.runtime.cuda.target import found_driver  # noqa: E402
from tests.serve_running import serving  # noqa: E402

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(found_driver() is None, reason="there is no GPU here")]

WEIGHTS = np.random.default_rng(0).standard_normal((64, 32)).astype(np.float32) / 8


def engine(path):
    """y = relu(x w), rows of 64 numbers, for the GPU."""
    graph = helper.make_graph(
        [helper.make_node("MatMul", ["x", "w"], ["p"]), helper.make_node("Relu", ["p"], ["y"])], "small",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N", 64])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["N", 32])],
        [onnx.numpy_helper.from_array(WEIGHTS, "w")])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
    ingot.save(ingot.build(model.SerializeToString(), shapes={"x": "1..4..16x64"},
                           options=ingot.BuildOptions(target="cuda", points=2)), path)


def asked(url, x):
    body = json.dumps({"inputs": [{"name": "x", "datatype": "FP32", "shape": list(x.shape),
                                   "data": x.reshape(-1).tolist()}]}).encode()
    with urllib.request.urlopen(urllib.request.Request(url + "/v2/models/small/infer", body), timeout=60) as answer:
        found = json.load(answer)["outputs"][0]
    return np.array(found["data"], np.float32).reshape(found["shape"])


def told(server):
    with urllib.request.urlopen(server.url + "/status.json", timeout=30) as answer:
        return json.load(answer)["models"][0]


def test_two_instances_on_the_gpu_answer_and_one_that_dies_is_started_again(tmp_path, monkeypatch):
    monkeypatch.setenv("INGOT_CACHE", str(tmp_path / "cache"))      # it keeps code that is this user's own
    folder = tmp_path / "models" / "small"
    folder.mkdir(parents=True)
    engine(folder / "model.ingot")
    (folder / "config.yaml").write_text("instances: 2\ndevice: cuda\n")
    rows = np.random.default_rng(1).standard_normal((40, 3, 64)).astype(np.float32)
    with serving(tmp_path / "models", log=tmp_path / "log") as server:
        until = time.time() + 120
        while sum(w["ready"] for w in told(server)["workers"]) < 2 and time.time() < until:
            time.sleep(0.2)
        before = told(server)
        assert before["facts"]["target"].startswith("cuda/")
        assert len({w["pid"] for w in before["workers"]}) == 2
        with ThreadPoolExecutor(8) as pool:
            answers = list(pool.map(lambda x: asked(server.url, x), rows))
        for x, y in zip(rows, answers, strict=True):
            np.testing.assert_allclose(y, np.maximum(x @ WEIGHTS, 0), atol=2e-2, rtol=2e-2)
        os.kill(before["workers"][0]["pid"], signal.SIGKILL)
        assert asked(server.url, rows[0]).shape == (3, 32)
        until = time.time() + 60
        while told(server)["restarts"] < 1 and time.time() < until:
            time.sleep(0.1)
        assert told(server)["restarts"] == 1
