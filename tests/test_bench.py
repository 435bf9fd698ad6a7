"""Measuring: percentiles, blocks that alternate, peers that compute what the model says."""
import time

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from ingot.bench import alternate, measure, onnxruntime_peer, openvino_peer, peak_memory, summary
from ingot.errors import UnsupportedError


def test_percentiles_are_values_that_were_measured():
    found = summary("x", 4, [i / 100 for i in range(1, 101)])
    assert (found.median, found.p90, found.p99, found.least) == (0.505, 0.90, 0.99, 0.01)
    assert found.per_item == pytest.approx(0.505 / 4)


def test_percentiles_of_one_run_are_that_run():
    found = summary("x", 1, [0.5])
    assert (found.median, found.p90, found.p99, found.least, found.runs) == (0.5, 0.5, 0.5, 0.5, 1)


def test_blocks_alternate_and_each_opens_with_a_call_that_is_not_timed():
    order = []
    found = alternate({"a": lambda: order.append("a"), "b": lambda: order.append("b")}, 0.0,
                      block=0.0, pause=0.0, rounds=2)
    assert "".join(order) == "aabbaabb"
    assert {k: len(v) for k, v in found.items()} == {"a": 2, "b": 2}


def test_measure_makes_at_least_the_calls_it_promises():
    assert len(measure(lambda: time.sleep(0.001), 0.0, warmup=0.0, least=7)) == 7


def test_the_peak_is_no_less_than_what_a_large_array_takes():
    array = np.ones(8 << 20)
    assert peak_memory() >= array.nbytes


@pytest.fixture
def doubling(tmp_path):
    value = helper.make_tensor_value_info
    graph = helper.make_graph([helper.make_node("Add", ["x", "x"], ["y"])], "g",
                              [value("x", TensorProto.FLOAT, ["N", 3])], [value("y", TensorProto.FLOAT, ["N", 3])])
    path = tmp_path / "double.onnx"
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9), path)
    return str(path)


@pytest.mark.parametrize("library", ["onnxruntime", "openvino"])
def test_peers_give_the_models_outputs_by_name(doubling, library):
    pytest.importorskip(library)
    x = np.arange(6, dtype=np.float32).reshape(2, 3)
    peer = onnxruntime_peer(doubling, 1) if library == "onnxruntime" else openvino_peer(doubling, 1, {"x": (2, 3)})
    np.testing.assert_array_equal(peer.run({"x": x})["y"], x * 2)


def test_a_peer_that_is_not_installed_says_how_to_install_it(monkeypatch, doubling):
    monkeypatch.setattr("importlib.import_module", lambda name: (_ for _ in ()).throw(ImportError(name)))
    with pytest.raises(UnsupportedError, match="pip install onnxruntime"):
        onnxruntime_peer(doubling, 1)
