"""Chains of convolutions in one kernel: forms x steps between x threads, against ONNX; where they arise."""
from __future__ import annotations

from itertools import islice

import numpy as np
import pytest
from onnx import TensorProto, helper, numpy_helper

import ingot
from ingot.graph import F32, Symbol, TensorType, symbol
from ingot.kernels import Operand, Site, Step
from ingot.kernels.x86.conv_chain import ConvolutionChain, links
from ingot.lower import lower
from ingot.ops.samples import scalar, values
from ingot.passes import optimize
from tests.kernel_checks import POINTS, check, targets

TACTIC = ConvolutionChain()
Given = list[np.ndarray | None]


def chain(kinds: str, block: int, *, size: tuple[int, int] = (9, 11), narrow: int = 20, wide: int = 40, out: int = 24,
          kernel: int = 3, stride: int = 1, pads: tuple[int, ...] = (1, 1, 1, 1), between: str = "Clip",
          bias: bool = True, residual: bool = False, batch: int | str = 2) -> tuple[Site, Given]:
    """A site of convolutions "p" (1x1) and "d" (depthwise), with a step after each but the last, and its constants."""
    n = symbol(batch) if isinstance(batch, str) else batch
    layout = f"c{block}"
    steps: list[Step] = []
    inputs = [Operand(TensorType(F32, (n, narrow if kinds[0] == "p" else wide, *size), layout))]
    given: Given = [None]

    def constant(array: np.ndarray) -> int:
        given.append(array)
        inputs.append(Operand(TensorType(F32, array.shape), constant=True))
        return len(inputs) - 1

    source, types, (height, width) = 0, inputs[0].type, size
    for k, kind in enumerate(kinds):
        filters = wide if kind == "d" or k + 1 < len(kinds) else out
        attrs: dict[str, object] = {"layout": layout}
        weight = values(filters, int(str(types.shape[1])), 1, 1)
        if kind == "d":
            attrs |= {"group": wide, "pads": pads, "strides": (stride, stride)}
            weight = values(wide, 1, kernel, kernel)
            height = (height + pads[0] + pads[2] - kernel) // stride + 1
            width = (width + pads[1] + pads[3] - kernel) // stride + 1
        types = TensorType(F32, (n, filters, height, width), layout)
        slots = (source, constant(weight), *((constant(values(filters, low=-0.3)),) if bias else ()))
        steps.append(Step("Conv", slots, tuple(sorted(attrs.items())), (types,)))
        last = k + 1 == len(kinds)
        if between and not last:
            numbers = (constant(scalar(0.0)), constant(scalar(1.5))) if between == "Clip" else ()
            steps.append(Step(between, (~(len(steps) - 1), *numbers), (), (types,)))
        source = ~(len(steps) - 1)
    main = len(steps) - 1
    if residual:
        steps.append(Step("Add", (source, 0), (), (types,)))
    names = (Symbol(batch, 1, 2, 5),) if isinstance(batch, str) else ()
    return Site(tuple(steps), tuple(inputs), (Operand(types),), names, main), given


FORMS = {
    "block": {"kinds": "pdp"},
    "residual": {"kinds": "pdp", "residual": True, "out": 20},
    "stride 2": {"kinds": "pdp", "stride": 2, "size": (12, 13)},
    "5x5": {"kinds": "pdp", "kernel": 5, "pads": (2, 2, 2, 2), "size": (13, 10)},
    "5x5 stride 2, even": {"kinds": "pd", "kernel": 5, "stride": 2, "pads": (1, 2, 2, 1), "size": (14, 14)},
    "no padding": {"kinds": "pdp", "pads": (0, 0, 0, 0)},
    "Swish, no last": {"kinds": "pd", "between": "Swish"},
    "no first": {"kinds": "dp", "between": "Relu"},
    "no bias, nothing between": {"kinds": "pdp", "bias": False, "between": ""},
    "many channels": {"kinds": "pdp", "narrow": 48, "wide": 176, "out": 50, "size": (6, 30)},
    "one row": {"kinds": "pdp", "size": (1, 40), "batch": 1},
    "one channel more than a block": {"kinds": "pdp", "narrow": 17, "wide": 33, "out": 17},
}


@pytest.mark.parametrize("isa", list(targets()))
@pytest.mark.parametrize("name", list(FORMS))
def test_against_onnx(name: str, isa: str) -> None:
    target = targets()[isa]
    site, given = chain(block=16 if isa == "avx512" else 8, **FORMS[name])
    assert not isinstance(links(site), str), links(site)
    for params in islice(TACTIC.space(site, target), POINTS):
        check(TACTIC, site, params, target, given, threads=2)
    check(TACTIC, site, {**params, "band": 2, "run": 3}, target, given, threads=3)


@pytest.mark.parametrize("size", [1, 2, 5])
def test_symbolic_batch(size: int) -> None:
    isa, target = next(iter(targets().items()))
    site, given = chain("pdp", 16 if isa == "avx512" else 8, batch="n")
    check(TACTIC, site, next(iter(TACTIC.space(site, target))), target, given, {"n": size}, threads=2)


def test_nan_and_infinity_pass_through() -> None:
    isa, target = next(iter(targets().items()))
    site, given = chain("pdp", 16 if isa == "avx512" else 8, between="Relu")
    check(TACTIC, site, next(iter(TACTIC.space(site, target))), target, given, special=True)


def test_what_it_leaves_alone() -> None:
    """Small values between stay in a cache by themselves; other orders are no chain."""
    isa, target = next(iter(targets().items()))
    block = 16 if isa == "avx512" else 8
    small, _ = chain("pdp", block)
    assert "small" in str(TACTIC.declines(small, target))
    large, _ = chain("pdp", block, size=(60, 60))
    assert TACTIC.declines(large, target) is None
    for kinds in ("ddp", "pp", "dd"):
        site, _ = chain(kinds, block, size=(60, 60), out=40)
        assert TACTIC.declines(site, target) is not None, kinds


def _blocks(*, watched: bool = False) -> bytes:
    """Two of MobileNetV2's blocks as ONNX; `watched`: what lies between two convolutions is an output, too."""
    nodes, weights = [], []

    def conv(x: str, y: str, filters: int, channels: int, kernel: int) -> None:
        weight = np.random.default_rng(len(weights)).normal(0, 0.2, (filters, channels, kernel, kernel))
        weights.append(numpy_helper.from_array(weight.astype(np.float32), f"w_{y}"))
        nodes.append(helper.make_node("Conv", [x, f"w_{y}"], [y], group=filters if channels == 1 else 1,
                                      pads=[kernel // 2] * 4, kernel_shape=[kernel, kernel]))

    x = "x"
    for k in range(2):
        conv(x, f"a{k}", 96, 24, 1)
        nodes.append(helper.make_node("Relu", [f"a{k}"], [f"b{k}"]))
        conv(f"b{k}", f"c{k}", 96, 1, 3)
        nodes.append(helper.make_node("Relu", [f"c{k}"], [f"d{k}"]))
        conv(f"d{k}", f"e{k}", 24, 96, 1)
        nodes.append(helper.make_node("Add", [f"e{k}", x], [f"f{k}"]))
        x = f"f{k}"
    outputs = [x, *(["b0"] if watched else [])]
    graph = helper.make_graph(
        nodes, "blocks", [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", 24, 40, 48])],
        [helper.make_tensor_value_info(o, TensorProto.FLOAT, None) for o in outputs], weights)
    return bytes(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)]).SerializeToString())


def _steps(model: bytes, isa: str, *, chains: bool = True) -> list[str]:
    graph = ingot.build(model, {"x": "batch=1..1..4x24x40x48"},
                        ingot.BuildOptions(verify=False, tune=False)).graph
    program = lower(optimize(graph, targets()[isa]), targets()[isa], chains=chains)
    return ["+".join(s.op for s in x.site.steps) for x in program.launches if x.site.op == "Conv"]


def test_where_chains_arise() -> None:
    isa = next(iter(targets()))
    whole = "Conv+Relu+Conv+Relu+Conv+Add"
    assert _steps(_blocks(), isa) == [whole, whole]
    assert _steps(_blocks(watched=True), isa) == ["Conv+Relu", "Conv+Relu+Conv+Add", whole]
    assert _steps(_blocks(), isa, chains=False) == ["Conv+Relu", "Conv+Relu", "Conv+Add"] * 2


def test_a_whole_engine_is_verified() -> None:
    """At sizes that share out by images and by rows: `build` refuses an engine that differs from the reference."""
    for threads in (1, 2):
        options = ingot.BuildOptions(threads=threads, tune=False)
        assert ingot.build(_blocks(), {"x": "batch=1..1..4x24x40x48"}, options).verdict["passed"]
