"""Verification: what passes, what does not, what the verdict says, and that a wrong value is found and named."""
import json
from dataclasses import replace

import numpy as np
import pytest

import ingot
from ingot.engine import is_exact
from ingot.errors import InputError
from ingot.graph import Graph, parse
from ingot.kernels import TACTICS
from ingot.ops import infer
from ingot.ops.reference import run_graph
from ingot.verify import (
    Verdict,
    compare,
    first_divergence,
    index_limit,
    original_from,
    probes,
    random_feeds,
    reference_original,
    refuse,
    tolerances,
    verify,
)
from ingot.verify.verify import failing_probe

MLP = """
    symbol N: 1..4..8
    input x: f32[N,64]
    const w: f32[64,32]
    const v: f32[32,20]
    h = MatMul(x, w)
    r = Relu(h)
    y = MatMul(r, v)
    return y
"""
LOOKUP = """
    symbol N: 1..2..8
    input input_ids: i64[N,6]
    input attention_mask: i64[N,6]
    const words: f32[50,8]
    c = Cast(input_ids) {'to': 'i32'}
    e = Gather(words, c) {'axis': 0}
    m = Cast(attention_mask) {'to': 'f32'}
    u = Unsqueeze(m) {'axes': (2,)}
    y = Mul(e, u)
    return y
"""


def mlp() -> Graph:
    return parse(MLP, infer)


def test_a_right_engine_passes_on_random_resized_and_special_inputs():
    graph = mlp()
    verdict = verify(lambda feeds: run_graph(graph, feeds), reference_original(graph), graph)
    assert verdict.passed
    assert [c.inputs for c in verdict.cases] == [
        "random at N=4", "random at N=2", "special values (zeros, large, tiny, NaN, +inf, -inf)"]
    assert "onnx.reference" in verdict.original
    assert str(verdict).startswith("verified: ")


def test_an_engine_in_another_order_of_sums_passes():
    graph = mlp()
    c = graph.constants

    def run(feeds):
        wide = [a.astype(np.float64) for a in (feeds["x"], c["w"], c["v"])]
        return {"y": (np.maximum(wide[0] @ wide[1], 0) @ wide[2]).astype(np.float32)}
    assert verify(run, reference_original(graph), graph).passed


@pytest.mark.parametrize("spoil", [
    lambda y: y * np.float32(1.001),
    lambda y: np.where(np.arange(y.size).reshape(y.shape) == y.size - 1, y + np.float32(0.01), y),
    lambda y: np.nan_to_num(y, nan=0.0),
    lambda y: y[:, :-1],
    lambda y: y.astype(np.float64)], ids=["scaled", "one element", "NaN lost", "shape", "dtype"])
def test_a_wrong_engine_does_not_pass(spoil):
    graph = mlp()
    verdict = verify(lambda feeds: {"y": spoil(run_graph(graph, feeds)["y"])}, reference_original(graph), graph)
    assert not verdict.passed
    error = refuse(verdict)
    assert "--allow-unverified" in str(error)
    assert "why:" in str(error)


def test_an_engine_that_is_wrong_only_off_the_tuned_batch_does_not_pass():
    graph = mlp()

    def run(feeds):
        y = run_graph(graph, feeds)["y"]
        return {"y": y if len(y) == 4 else y * 0}
    verdict = verify(run, reference_original(graph), graph)
    assert {c.inputs: c.passed for c in verdict.cases}["random at N=4"]
    assert not {c.inputs: c.passed for c in verdict.cases}["random at N=2"]


def test_the_first_diverging_node_is_named():
    graph = mlp()
    everything = replace(graph, outputs=("h", "r", "y"))

    def watched(feeds):
        values = dict(run_graph(everything, feeds))
        values["r"] = values["r"] + np.float32(0.1)
        values["y"] = values["r"] @ graph.constants["v"]
        return values
    verdict = verify(lambda feeds: {"y": watched(feeds)["y"]}, reference_original(graph), graph)
    probe = failing_probe(verdict, graph)
    assert first_divergence(watched(probe.feeds), graph, probe).startswith("Relu 'r'")
    assert first_divergence(run_graph(everything, probe.feeds), graph, probe).startswith("none: every kernel")


def test_a_verdict_survives_json():
    graph = mlp()
    verdict = verify(lambda feeds: run_graph(graph, feeds), reference_original(graph), graph)
    assert Verdict.from_json(json.loads(json.dumps(verdict.to_json()))) == verdict


def test_no_comparison_is_no_pass():
    assert not Verdict("nobody", "engine").passed
    assert "nothing could be compared" in str(refuse(Verdict("nobody", "engine")))


def test_time_that_is_used_up_is_told():
    graph = mlp()
    verdict = verify(lambda feeds: run_graph(graph, feeds), reference_original(graph), graph, seconds=0.0)
    assert len(verdict.cases) == 2
    assert "used up" in verdict.skipped[0]


def test_given_inputs_come_first():
    graph = mlp()
    feeds = {"x": np.ones((3, 64), np.float32)}
    verdict = verify(lambda f: run_graph(graph, f), reference_original(graph), graph, inputs=[feeds])
    assert verdict.cases[0].inputs == "given inputs 1"
    assert verdict.passed


def test_tolerance_grows_with_the_square_root_of_the_sum():
    short, long = (tolerances(parse(f"input x: f32[4,{k}]\nconst w: f32[{k},8]\ny = MatMul(x, w)\nreturn y", infer),
                              {})["y"].relative for k in (99, 9999))
    assert long == pytest.approx(10 * short)
    assert short == pytest.approx(8 * 2 * 2**-24 * 10)


def test_integers_must_be_equal():
    graph = parse("input x: i64[4]\ny = Add(x, x)\nreturn y", infer)
    assert tolerances(graph, {})["y"].relative == 0.0
    assert not verify(lambda f: {"y": f["x"] * 2 + 1}, reference_original(graph), graph).passed


def test_indices_stay_inside_the_table_and_masks_are_prefixes():
    graph = parse(LOOKUP, infer)
    assert index_limit(graph, "input_ids") == 50
    for probe in probes(graph):
        assert probe.feeds["input_ids"].min() >= 0
        assert probe.feeds["input_ids"].max() < 50
        mask = probe.feeds["attention_mask"]
        assert set(np.unique(mask)) <= {0, 1}
        assert (np.diff(mask, axis=1) <= 0).all()
        assert (mask[:, 0] == 1).all()
    assert np.array_equal(random_feeds(graph, {"N": 2}, 5)["input_ids"], random_feeds(graph, {"N": 2}, 5)["input_ids"])


def test_an_original_may_be_a_callable_and_must_be_something():
    graph = mlp()
    assert original_from(lambda feeds: run_graph(graph, feeds), graph).run(random_feeds(graph, {"N": 1}, 0))
    with pytest.raises(InputError, match="is no original"):
        original_from(7, graph)
    with pytest.raises(InputError, match="needs the model's file"):
        original_from("onnxruntime", graph)


def test_a_pytorch_module_is_an_original():
    torch = pytest.importorskip("torch")
    graph = mlp()
    module = torch.nn.Sequential(torch.nn.Linear(64, 32, bias=False), torch.nn.ReLU(),
                                 torch.nn.Linear(32, 20, bias=False))
    with torch.no_grad():
        module[0].weight.copy_(torch.from_numpy(graph.constants["w"].T))
        module[2].weight.copy_(torch.from_numpy(graph.constants["v"].T))
    original = original_from(module, graph)
    assert original.name.startswith("PyTorch")
    assert verify(lambda feeds: run_graph(graph, feeds), original, graph).passed


@pytest.mark.cpu
def test_a_nan_may_spread_over_the_tiles_of_minimal_filtering(monkeypatch):
    """The engine of stacked 3x3 convolutions passes, whichever of its kernels wins."""
    graph = parse("""
        symbol N: 1..2..8
        input x: f32[N,32,12,12]
        const w: f32[32,32,3,3]
        const v: f32[32,32,3,3]
        a = Conv(x, w) {'pads': (1, 1, 1, 1)}
        b = Relu(a)
        m = MaxPool(b) {'kernel_shape': (2, 2), 'strides': (2, 2)}
        y = Conv(m, v) {'pads': (1, 1, 1, 1)}
        return y
    """, infer)
    tactics = TACTICS["x86"]
    first = sorted(tactics, key=lambda t: "winograd" not in t.name)
    monkeypatch.setitem(TACTICS, "x86", tuple(first))
    engine = ingot.build(graph, options=ingot.BuildOptions(tune=False))
    assert any("winograd" in c.tactic for c in ingot.Session(engine).variant.choices.values())
    assert engine.verdict["passed"]


def test_comparing_counts_patterns_and_scales():
    a = np.array([[1.0, np.nan, np.inf, 2.0]], np.float32)
    assert compare(a, a).within(0.0)
    b = np.array([[1.0, 3.0, np.inf, 2.0]], np.float32)
    assert compare(a, b).wrong_pattern == 1
    assert compare(a, b).where == (0, 1)
    assert compare(np.array([-np.inf]), np.array([np.inf])).wrong_pattern == 1
    items = np.array([[1e6, 1e6], [1e-3, 1e-3]])
    off = items + np.array([[0, 0], [0, 1e-4]])
    assert compare(off, items).relative == pytest.approx(1e-10)
    assert compare(off, items, items=True).relative == pytest.approx(0.1)
    loose = np.array([True])
    assert compare(a, b, loose=loose).within(0.0)
    assert compare(b, a, loose=loose).wrong_pattern == 1
    assert compare(np.zeros((0, 3)), np.zeros((0, 3))).within(0.0)
    assert not compare(np.array(["a"], object), np.array(["b"], object)).within(0.0)


CONV = """
    symbol N: 1..2..8
    input x: f32[N,2,6,6]
    const w: f32[3,2,3,3]
    y = Conv(x, w) {'pads': (1, 1, 1, 1)}
    return y
"""


def test_an_exact_engine_may_not_spread_a_nan_and_another_tells_how_far_it_went():
    graph = parse(CONV, infer)

    def spreading(feeds):
        """A NaN of an image in all of its results."""
        y = run_graph(graph, feeds)["y"].copy()
        y[~np.isfinite(feeds["x"]).all((1, 2, 3))] = np.nan
        return {"y": y}

    lenient = verify(spreading, reference_original(graph), graph)
    assert lenient.passed
    assert any("elements of its item further" in c.note for c in lenient.cases)
    assert not verify(spreading, reference_original(graph), graph, exact=True).passed


def test_a_nan_may_not_reach_another_item_nor_vanish():
    graph = parse(CONV, infer)

    def everywhere(feeds):
        y = run_graph(graph, feeds)["y"]
        return {"y": y if all(np.isfinite(a).all() for a in feeds.values()) else np.full_like(y, np.nan)}

    def vanishing(feeds):
        return {"y": np.nan_to_num(run_graph(graph, feeds)["y"])}

    for wrong in (everywhere, vanishing):
        assert not verify(wrong, reference_original(graph), graph).passed


@pytest.mark.parametrize(("scale", "told"), [(1.0, False), (2.0**40, True)])
def test_what_no_answer_is_right_for_is_told_and_not_passed(scale, told):
    """The sine of large numbers moves wholly with the last bit of its input."""
    graph = parse("input x: f32[4,16]\nconst s: f32[1]\nm = Mul(x, s)\ny = Sin(m)\nreturn y", infer)
    graph = replace(graph, constants={"s": np.array([scale], np.float32)})

    def rounded_otherwise(feeds):
        return {"y": np.sin(np.float32(scale) * feeds["x"] * np.float32(1 + 2**-22))}

    verdict = verify(rounded_otherwise, reference_original(graph), graph)
    assert any("to even one digit" in s for s in verdict.skipped) == told
    assert verdict.passed == (scale == 1.0)


def test_an_exact_build_has_exact_kernels():
    graph = parse(CONV, infer)
    engine = ingot.build(graph, options=ingot.BuildOptions(tune=False, exact=True))
    assert is_exact(ingot.Session(engine).variant)


def test_an_original_that_loses_a_nan_in_a_comparison_is_told_apart_from_the_reference():
    """Some runtimes' max drops a NaN that ours keeps; the reference's does not."""
    graph = parse("symbol N: 1..2..8\ninput x: f32[N,2,8,8]\n"
                  "y = MaxPool(x) {'kernel_shape': (2, 2), 'strides': (2, 2)}\nreturn y", infer)

    def losing(feeds):
        x = np.where(np.isnan(feeds["x"]), np.float32(-np.inf), feeds["x"])
        return run_graph(graph, {"x": x})

    def ours(feeds):
        return run_graph(graph, feeds)

    assert verify(ours, original_from(losing, graph), graph).passed
    assert not verify(losing, reference_original(graph), graph).passed
