"""Ops written out in others: the same numbers before and after, and nothing of the op left."""
from __future__ import annotations

from types import MappingProxyType

import numpy as np
import pytest

from ingot.graph import Graph, GraphBuilder, Node, TensorType, type_of
from ingot.lower import lower
from ingot.ops import infer
from ingot.ops.reference import run_graph
from ingot.ops.samples import bf16, f16, f32, tensor
from ingot.passes import optimize
from ingot.passes.written_out import write_out
from ingot.target import Target

CLASSES = np.array([[0, 2, 4], [1, 3, 3]])
Case = tuple[str, tuple[TensorType | np.ndarray | None, ...], dict[str, object], int]


def losses() -> list[Case]:
    found: list[Case] = [(op, (f32(2, 5, 3), CLASSES, weight), {"reduction": reduction, **attrs}, 1)
                         for op in ("NegativeLogLikelihoodLoss", "SoftmaxCrossEntropyLoss")
                         for reduction in ("none", "mean", "sum") for weight in (None, f32(5))
                         for attrs in ({}, {"ignore_index": 3}, {"ignore_index": -1})]
    found.append(("SoftmaxCrossEntropyLoss", (f32(2, 5, 3), CLASSES.astype(np.int32)), {}, 2))
    found.append(("NegativeLogLikelihoodLoss", (f16(2, 5, 3), CLASSES, f16(5)), {}, 1))
    return found


CASES: list[Case] = [
    *losses(),
    *(("LayerNormalization", (f32(2, 3, 4), f32(4), f32(4)), {"axis": -1}, n) for n in (2, 3)),
    ("LayerNormalization", (f32(2, 3, 4), f32(3, 4)), {"axis": 1}, 3),
    ("MeanVarianceNormalization", (f32(2, 3, 4, 5),), {}, 1),
    ("MeanVarianceNormalization", (f32(4, 9),), {"axes": (1,)}, 1),
    *(("DynamicQuantizeLinear", (x,), {}, 3) for x in (f32(4, 9), np.ones((3,), np.float32), np.zeros(2, np.float32),
                                                       -np.ones((3, 2), np.float32) - np.eye(3, 2, dtype=np.float32))),
    ("QuantizeLinear", (f32(3, 4), np.full((3, 2), 0.1, np.float32), tensor("u8", 3, 2)),
     {"axis": 1, "block_size": 2}, 1),
    ("QuantizeLinear", (f32(3, 5), np.full((3, 2), 0.1, np.float32)), {"axis": -1, "block_size": 3,
                                                                       "output_dtype": "i4"}, 1),
    ("DequantizeLinear", (tensor("i8", 4, 3), f32(2, 3), tensor("i8", 2, 3)), {"axis": 0, "block_size": 2}, 1),
    ("SwiGLU", (f32(2, 4), f32(2, 4)), {"alpha": 0.5}, 1), ("SwiGLU", (f16(2, 4), f16(2, 4)), {}, 1),
    *(("CenterCropPad", (f32(6, 9),), {"shape": s}, 1) for s in ((4, 11), (6, 9), (7, 4), (5, 2))),
    ("CausalConvWithState", (f32(2, 3, 7), f32(3, 1, 4)), {}, 2),
    ("CausalConvWithState", (f32(2, 3, 7), f32(3, 1, 4), f32(3), f32(2, 3, 3)), {"activation": "silu"}, 2),
    ("CausalConvWithState", (f32(2, 3, 7), f32(3, 1, 1)), {}, 1),
    ("CausalConvWithState", (bf16(2, 3, 2), bf16(3, 1, 5)), {"activation": "swish"}, 2),
]


def whole(low: int, high: int, dtype: str, *shape: int) -> np.ndarray:
    return np.random.default_rng(3).integers(low, high, shape).astype(dtype)


ONE = {t: np.asarray(v, t) for t, v in (("float32", 0.02), ("uint8", 120), ("int8", -3))}
U, I8 = whole(0, 256, "uint8", 2, 4, 6), whole(-128, 128, "int8", 6, 5)
IMAGE, TAPS = whole(0, 256, "uint8", 1, 2, 6, 7), whole(-128, 128, "int8", 3, 2, 2, 3)
CASES += [
    ("MatMulInteger", (U, whole(0, 256, "uint8", 6, 5), ONE["uint8"], ONE["uint8"]), {}, 1),
    ("MatMulInteger", (whole(-128, 128, "int8", 4, 6), I8, None, whole(-9, 9, "int8", 5)), {}, 1),
    ("QLinearMatMul", (U, ONE["float32"], ONE["uint8"], I8, ONE["float32"], ONE["int8"], ONE["float32"], ONE["uint8"]),
     {}, 1),
    ("ConvInteger", (IMAGE, TAPS, ONE["uint8"]), {"pads": (1, 1, 0, 1)}, 1),
    ("ConvInteger", (IMAGE, TAPS, ONE["uint8"], whole(-9, 9, "int8", 3)), {"strides": (2, 1)}, 1),
    ("QLinearConv", (IMAGE, ONE["float32"], ONE["uint8"], TAPS, np.full(3, 0.01, np.float32), np.zeros(3, np.int8),
                     np.asarray(0.5, np.float32), ONE["uint8"], whole(-900, 900, "int32", 3)),
     {"pads": (1, 1, 1, 1)}, 1),
    *((op, (whole(0, 100, t, 3, 7),), {"axes": (1,)}, 1) for op in ("ReduceMax", "ReduceMin")
      for t in ("bool", "int8", "uint8", "int16")),
    ("ReduceMax", (np.zeros((2, 0, 3), bool),), {"axes": (1,)}, 1),
    ("ArgMax", (whole(-9, 9, "int8", 3, 7),), {"axis": 1}, 1),
    ("TopK", (whole(0, 200, "uint8", 3, 7),), {"k": (2,)}, 2),
    ("MaxPool", (IMAGE,), {"kernel_shape": (2, 2), "pads": (1, 0, 0, 1)}, 1),
    ("OneHot", (np.array([1.0, 3.0, -1.0, 7.0], np.float32), f32(2)), {"depth": (5,)}, 1),
    ("ReverseSequence", (f32(4, 3, 2), np.array([4, 1, 2])), {"time_axis": 0, "batch_axis": 1}, 1),
    ("ReverseSequence", (f32(3, 4), np.array([0, 1, 4])), {"time_axis": 1, "batch_axis": 0}, 1),
    ("TensorScatter", (f32(2, 3, 8, 4), f32(2, 3, 2, 4), np.array([3, 6])), {}, 1),
    ("TensorScatter", (f32(2, 8, 4), f32(2, 3, 4), np.array([3, 6])), {"mode": "circular", "axis": 1}, 1),
    ("MaxUnpool", (f32(1, 1, 2, 2), np.array([[[[1, 6], [8, 15]]]])), {"kernel_shape": (2, 2), "strides": (2, 2)}, 1),
    ("LpPool", (f32(1, 2, 6, 7),), {"kernel_shape": (3, 2), "p": 3}, 1),
    *(("RotaryEmbedding", (f32(2, 3, 5, 8), f32(11, h), f32(11, h), whole(0, 11, "int64", 2, 5)),
       {"interleaved": i, "rotary_embedding_dim": 2 * h}, 1) for i in (0, 1) for h in (4, 2)),
    ("RotaryEmbedding", (f32(2, 5, 24), f32(2, 5, 4), f32(2, 5, 4)), {"num_heads": 3}, 1),
]
SAME_OP = ("LayerNormalization", "QuantizeLinear", "DequantizeLinear", "ReduceMax", "ReduceMin", "ArgMax", "TopK",
           "MaxPool", "OneHot", "LpPool", "MatMulInteger", "ConvInteger")


def graph_of(case: Case) -> tuple[Graph, dict[str, np.ndarray]]:
    op, operands, attrs, outputs = case
    build, feeds, rng = GraphBuilder(infer), {}, np.random.default_rng(0)
    names = []
    for k, x in enumerate(operands):
        if x is None:
            names.append("")
            continue
        t = type_of(x) if isinstance(x, np.ndarray) else x
        names.append(build.input(f"x{k}", t))
        given = rng.standard_normal(t.shape) * 2
        feeds[f"x{k}"] = x if isinstance(x, np.ndarray) else (given if t.dtype.kind == "float"
                                                              else abs(given * 9)).astype(t.dtype.numpy)
    while names and not names[-1]:
        names.pop()
    build.add(Node(op, tuple(names), tuple(f"y{k}" for k in range(outputs)), MappingProxyType(attrs)))
    return build.finish(*(f"y{k}" for k in range(outputs))), feeds


@pytest.mark.parametrize("case", CASES, ids=lambda c: f"{c[0]}-{c[1][0]}-{c[2]}".replace(" ", ""))
def test_an_op_written_out_means_the_same(case: Case) -> None:
    graph, feeds = graph_of(case)
    after = write_out(graph, Target("x86", "avx2"))
    assert case[0] in SAME_OP or all(n.op != case[0] for n in after.nodes)
    assert after is not graph
    with np.errstate(all="ignore"):
        want, got = run_graph(graph, feeds), run_graph(after, feeds)
    for name in graph.outputs:
        close = 2e-6 if want[name].dtype == np.float32 else 2e-2
        assert got[name].dtype == want[name].dtype
        assert np.allclose(got[name].astype(np.float64), want[name].astype(np.float64), close, close, equal_nan=True)
        if want[name].dtype.kind not in "fV":
            assert np.array_equal(got[name], want[name])


@pytest.mark.parametrize("case", [c for c in CASES if c[1][0].dtype not in (f16().dtype, bf16().dtype)],
                         ids=lambda c: f"{c[0]}-{c[2]}-{c[3]}".replace(" ", ""))
def test_what_is_written_out_has_kernels(case: Case) -> None:
    graph, _ = graph_of(case)
    target = Target("x86", "avx2", threads=2)
    program = lower(optimize(graph, target), target)
    assert [x.where for x in program.launches if not x.native] == []
