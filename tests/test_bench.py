"""Measuring: percentiles, blocks that alternate, peers that compute what the model says."""
import time

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from benchmarks.report import best_ratios, table
from ingot.bench import alternate, measure, onnxruntime_peer, openvino_peer, peak_memory, ratio_interval, summary
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


def test_the_interval_of_a_ratio_holds_it_and_narrows_with_steadier_blocks():
    rng = np.random.default_rng(1)

    def blocks(center: float, spread: float) -> list[list[float]]:
        return [(center * (1 + spread * rng.standard_normal(20))).tolist() for _ in range(12)]

    ratio, low, high = ratio_interval(blocks(2.0, 0.01), blocks(1.0, 0.01))
    assert low <= ratio <= high
    assert ratio == pytest.approx(2.0, rel=0.02)
    _, wide_low, wide_high = ratio_interval(blocks(2.0, 0.3), blocks(1.0, 0.3))
    assert wide_high - wide_low > 3 * (high - low)


def test_what_disturbs_a_whole_turn_does_not_move_the_ratio():
    ours = [[1.0 + turn % 2] * 5 for turn in range(11)]
    assert ratio_interval([[3 * s for s in block] for block in ours], ours, draws=200)[0] == 3.0


def test_who_computes_something_else_wins_no_row():
    rows = [{"model": "m", "batch": 1, "runtime": name, "median": t, "p90": t, "p99": t, "peak_share": 0.5,
             "counts": counts, **(
        {"ratio": t, "ratio_low": t, "ratio_high": t} if name != "ingot" else {})}
        for name, t, counts in (("ingot", 1.0, True), ("a", 0.5, False), ("b", 1.5, True), ("c bf16", 0.2, True))]
    assert best_ratios(rows, "f32") == {("m", 1): ("b", 1.5)}
    assert best_ratios(rows, "bf16") == {("m", 1): ("c bf16", 0.2)}
    text = table({"rows": rows, "threads": 2, "cpu": "x", "date": "d", "peak_gflops": 1.0, "versions": {}})
    assert "†" in text and "least 1.50x" in text
