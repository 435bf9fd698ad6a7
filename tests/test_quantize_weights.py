"""Weights in groups of small integers, and integer kernels at the ends of their range."""
from __future__ import annotations

import numpy as np
import pytest
from kernel_checks import compiled, reference, site_of, targets

from ingot.compiler.build import build_with_report
from ingot.compiler.options import BuildOptions
from ingot.errors import InputError
from ingot.graph import TensorType, parse
from ingot.graph.types import DTYPES
from ingot.kernels import TACTICS
from ingot.ops import infer
from ingot.ops.reference import run_graph
from ingot.ops.samples import scalar
from ingot.passes import optimize
from ingot.quantize import quantisable
from ingot.quantize.insert import weights_quantized
from ingot.quantize.weights import Groups, by_channel, by_groups
from ingot.runtime.harness import run_logical
from ingot.target import Target

U8 = DTYPES["u8"]


def weight(seed: int = 0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    return (rng.standard_t(4, (128, 48)) * rng.uniform(0.5, 2, (1, 48))).astype(np.float32)


@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("bits", [4, 8])
def test_every_element_is_within_half_a_step(bits: int, symmetric: bool) -> None:
    found = by_groups(weight(), Groups(bits, 32, symmetric, "rtn"))
    step = np.repeat(found.scale, found.group, axis=0)
    assert found.group == 32 and found.scale.shape == (4, 48)
    assert (np.abs(found.reals() - weight()) <= 0.501 * step + 1e-6).all()


def test_clipping_never_loses_more_than_rounding_to_nearest() -> None:
    errors = {m: float(((by_groups(weight(), Groups(4, 64, False, m)).reals() - weight()) ** 2).sum())
              for m in ("rtn", "mse")}
    assert errors["mse"] < errors["rtn"]


def test_what_the_inputs_say_helps() -> None:
    """On inputs of uneven and correlated channels the output's error falls from rtn to awq and to gptq."""
    rng = np.random.default_rng(3)
    mix = rng.standard_normal((128, 128)) * np.geomspace(0.05, 5, 128)
    x = rng.standard_normal((2000, 128)) @ mix
    energy, moments = (x ** 2).mean(0), x.T @ x / len(x)
    losses = {}
    for method in ("rtn", "awq", "gptq"):
        found = by_groups(weight(), Groups(4, 64, False, method), energy, moments)
        inputs = x if found.divided is None else x / found.divided
        losses[method] = float(((inputs @ found.reals() - x @ weight()) ** 2).mean())
    assert losses["awq"] < losses["rtn"] and losses["gptq"] < 0.8 * losses["rtn"]


def test_channels_keep_their_own_scales() -> None:
    integers, scale = by_channel(weight(), 1)
    assert integers.dtype == np.int8 and scale.shape == (48,)
    assert np.abs(integers * scale - weight()).max() <= 0.51 * scale.max()


@pytest.mark.parametrize("method", ["rtn", "mse"])
def test_a_weight_in_groups_is_read_as_integers_and_means_the_same(method: str) -> None:
    graph = parse("""
        input x: f32[3,64]
        const w: f32[64,40]
        const b: f32[40]
        m = MatMul(x, w)
        a = Add(m, b)
        y = Relu(a)
        return y
    """, infer)
    made = weights_quantized(graph, quantisable(graph), Groups(4, 32, False, method))
    folded = optimize(made, Target("x86"))
    assert folded.nodes[0].op == "MatMulGroups"
    assert "MatMulGroups" not in [n.op for n in optimize(made, Target("cuda")).nodes]
    feeds = {"x": np.random.default_rng(0).standard_normal((3, 64)).astype(np.float32)}
    wanted, found = run_graph(made, feeds)["y"], run_graph(folded, feeds)["y"]
    assert np.allclose(wanted, found, atol=1e-5 * np.abs(wanted).max())


@pytest.mark.cpu
@pytest.mark.parametrize("isa", sorted(targets()))
def test_sums_do_not_saturate_at_the_ends_of_the_range(isa: str) -> None:
    """255 times -128 or 127, as often as a sum is long: 16 bits would not hold two of them."""
    rng = np.random.default_rng(0)
    ends = np.array([-128, 127], np.int8)
    samples = [("MatMulInteger", ((TensorType(U8, (9, 64)), rng.choice(ends, (64, 33)), scalar(255, "uint8")), {})),
               ("ConvInteger", ((TensorType(U8, (1, 32, 7, 7), "c16"), rng.choice(ends, (32, 32, 3, 3)),
                                 scalar(255, "uint8")), {"layout": "c16", "pads": (1, 1, 1, 1)})),
               ("ConvInteger", ((TensorType(U8, (1, 32, 7, 7), "c16"), rng.choice(ends, (32, 1, 3, 3)),
                                 scalar(0, "uint8")), {"layout": "c16", "group": 32, "pads": (1, 1, 1, 1)}))]
    served = 0
    for op, sample in samples:
        site, given = site_of(op, sample)
        arrays = [rng.choice(np.array([0, 255], np.uint8), o.type.shape) if a is None else a
                  for a, o in zip(given, site.inputs, strict=True)]
        constants = {i: a for i, a in enumerate(arrays) if site.inputs[i].constant}
        for tactic in TACTICS["x86"]:
            if tactic.declines(site, targets()[isa]) is None:
                served += 1
                params = next(iter(tactic.space(site, targets()[isa])))
                packed = tactic.pack(site, params, targets()[isa], constants)
                kernel = tactic.emit(site, params, targets()[isa])
                got = run_logical(kernel, site, targets()[isa], arrays, {}, 2, packed, cache=compiled())
                assert np.array_equal(got[0], reference(site, arrays, {})[0]), tactic.name
    assert served >= (3 if isa == "avx512" else 1)


@pytest.mark.cpu
@pytest.mark.parametrize(("rounding", "group"), [("rtn", 32), ("mse", 64), ("awq", 32), ("gptq", 32)])
def test_a_build_with_weights_of_four_bits(rounding: str, group: int) -> None:
    rng = np.random.default_rng(3)
    text = """
        input x: f32[16,128]
        const w: f32[128,96]
        const v: f32[96,64]
        a = MatMul(x, w)
        r = Relu(a)
        y = MatMul(r, v)
        return y
    """
    graph = parse(text, infer)
    data = [{"x": rng.standard_normal((16, 128)).astype(np.float32)} for _ in range(4)]
    options = BuildOptions(precision="int4-weights", tune=False, threads=2, group=group, rounding=rounding)
    made = build_with_report(graph, None, options, calibration=data)
    ops = [s.op for x in made.engine.variants[0].program.launches for s in x.site.steps]
    assert ops.count("MatMulGroups") == 2 and made.engine.verdict["passed"]
    assert made.plan is not None and made.plan.accuracy["y"] > 0.98
    report = made.engine.report["precision"]
    assert isinstance(report, dict) and report["kind"] == "int4-weights"


def test_weights_that_need_data_or_ask_for_nonsense_are_refused() -> None:
    graph = parse("""
        input x: f32[16,128]
        const w: f32[128,96]
        y = MatMul(x, w)
        return y
    """, infer)
    with pytest.raises(InputError, match="gptq needs representative data"):
        build_with_report(graph, None, BuildOptions(precision="int4-weights", rounding="gptq"))
    with pytest.raises(InputError, match="groups of 20"):
        build_with_report(graph, None, BuildOptions(precision="int8-weights", group=20))
    with pytest.raises(InputError, match="no way of rounding"):
        build_with_report(graph, None, BuildOptions(precision="int8-weights", rounding="floor"))
