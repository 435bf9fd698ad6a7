"""ONNX Runtime's own ops, read as standard ones: what the graph means is what ONNX Runtime computes for the node."""
from __future__ import annotations

import zlib
from dataclasses import dataclass, field

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from ingot.backend import IngotBackend
from ingot.errors import UnsupportedError
from ingot.frontend import load
from ingot.frontend.onnx.contrib import CONTRIB
from ingot.ops.reference import run_graph

onnxruntime = pytest.importorskip("onnxruntime")


@dataclass(frozen=True)
class Node:
    """One node: operands that are fed, operands that are constants, attributes."""

    op: str
    feeds: tuple[np.ndarray | None, ...]
    attrs: dict[str, object] = field(default_factory=dict)
    outputs: int = 1
    constants: tuple[int, ...] = ()         # positions of operands that are constants
    note: str = ""
    loose: float = 1e-5
    domain: str = "com.microsoft"

    @property
    def name(self) -> str:
        return f"{self.op}{'-' if self.note else ''}{self.note}"


def f(*shape: int, low: float = -1.0, high: float = 1.0) -> np.ndarray:
    return np.random.default_rng(zlib.crc32(repr(shape).encode())).uniform(low, high, shape).astype(np.float32)


def u8(*shape: int, low: int = 0, high: int = 256) -> np.ndarray:
    return np.random.default_rng(zlib.crc32(repr(shape).encode())).integers(low, high, shape).astype(np.uint8)


def i32(*values: int) -> np.ndarray:
    return np.asarray(values, np.int32)


def s(value: float) -> np.ndarray:
    return np.asarray(value, np.float32)


def z(value: int) -> np.ndarray:
    return np.asarray(value, np.uint8)


_COS, _SIN = np.cos(f(16, 4, low=0, high=3)), np.sin(f(16, 4, low=0, high=3))
_WIDE_COS, _WIDE_SIN = np.cos(f(16, 8, low=0, high=3)), np.sin(f(16, 8, low=0, high=3))
_IDS = np.array([[1, 2, 3], [4, 0, 2]], np.int32)
_MASK = np.array([[1, 1, 1, 0, 0], [1, 1, 1, 1, 1]], np.int32)

NODES = [
    Node("FusedMatMul", (f(2, 3, 4), f(2, 5, 4)), {"transB": 1, "alpha": 0.5}),
    Node("FusedMatMul", (f(2, 4, 3), f(2, 4, 5)), {"transA": 1}, note="first"),
    Node("FusedMatMul", (f(3, 2, 4), f(2, 4, 5)), {"transBatchA": 1}, note="batch"),
    Node("TransposeMatMul", (f(2, 4, 3), f(2, 4, 5)), {"transA": 1}),
    Node("Gelu", (f(2, 7),)), Node("FastGelu", (f(2, 7), f(7))), Node("FastGelu", (f(2, 7),), note="no bias"),
    Node("BiasGelu", (f(2, 7), f(7))), Node("QuickGelu", (f(2, 7),), {"alpha": 1.5}),
    Node("SkipLayerNormalization", (f(2, 3, 8), f(2, 3, 8), f(8), f(8)), {"epsilon": 1e-5}),
    Node("SkipLayerNormalization", (f(2, 3, 8), f(2, 3, 8), f(8), f(8), f(8)), {"epsilon": 1e-3}, 1, note="bias"),
    Node("SimplifiedLayerNormalization", (f(2, 3, 8), f(8)), {"axis": -1, "epsilon": 1e-5}, domain=""),
    Node("SkipSimplifiedLayerNormalization", (f(2, 3, 8), f(2, 3, 8), f(8)), {"epsilon": 1e-5}),
    Node("EmbedLayerNormalization", (_IDS, _MASK[:, :3] * 0, f(6, 8), f(5, 8), f(2, 8), f(8), f(8)),
         {"epsilon": 1e-12}, 2),
    Node("EmbedLayerNormalization", (_IDS, None, f(6, 8), f(5, 8), None, f(8), f(8), _MASK[:, 1:4]),
         {"epsilon": 1e-12}, 2, note="mask"),
    Node("FusedConv", (f(1, 3, 6, 6), f(4, 3, 3, 3), f(4)), {"activation": "Relu", "pads": [1, 1, 1, 1]}),
    Node("FusedConv", (f(1, 3, 6, 6), f(4, 3, 3, 3)), {"activation": "LeakyRelu", "activation_params": [0.1]},
         note="leaky"),
    Node("FusedGemm", (f(3, 4), f(4, 5), f(5)), {"activation": "Relu", "alpha": 0.5}),
    Node("ExpandDims", (f(2, 3), i32(1).reshape(())), constants=(1,)),
    Node("Trilu", (f(4, 4),), {"upper": 1}),
    Node("QLinearAdd", (u8(2, 5), s(0.1), z(3), u8(5), s(0.2), z(9), s(0.15), z(10))),
    Node("QLinearMul", (u8(2, 5), s(0.1), z(3), u8(5), s(0.2), z(9), s(1.5), z(10))),
    Node("QLinearSigmoid", (u8(2, 5), s(0.05), z(100), s(0.004), z(0)), constants=(1, 2, 3, 4)),
    Node("QLinearLeakyRelu", (u8(2, 5), s(0.05), z(100), s(0.04), z(90)), {"alpha": 0.1}, constants=(1, 2, 3, 4)),
    Node("QLinearGlobalAveragePool", (u8(1, 3, 4, 4), s(0.1), z(3), s(0.05), z(5)), {"channels_last": 0}),
    Node("QLinearConcat", (s(0.1), z(3), u8(2, 3), s(0.2), z(1), u8(2, 4), s(0.1), z(0)), {"axis": 1},
         constants=(0, 1, 3, 4, 6, 7)),
    Node("QLinearSoftmax", (u8(2, 5), s(0.05), z(100), s(0.004), z(0)), {"axis": -1, "opset": 13},
         constants=(1, 2, 3, 4)),
    Node("QGemm", (u8(3, 4), s(0.1), z(3), u8(4, 5), s(0.2), z(9), i32(1, 2, 3, 4, 5), s(2.0), z(10))),
    Node("DynamicQuantizeMatMul", (f(3, 4), u8(4, 5), s(0.02), z(100), f(5)), loose=1e-4),
    Node("MatMulIntegerToFloat", (u8(3, 4), u8(4, 5), s(0.1), s(0.2), z(3), z(9), f(5))),
    Node("MatMulNBits", (f(3, 32), u8(5, 2, 8), f(10)), {"K": 32, "N": 5, "bits": 4, "block_size": 16},
         constants=(1, 2), loose=1e-4),
    Node("MatMulNBits", (f(3, 32), u8(5, 2, 8), f(10), u8(5)), {"K": 32, "N": 5, "bits": 4, "block_size": 16},
         constants=(1, 2, 3), note="zero points", loose=1e-4),
    Node("Attention", (f(2, 5, 8), f(8, 24), f(24)), {"num_heads": 2}),
    Node("Attention", (f(2, 5, 8), f(8, 24), f(24)), {"num_heads": 2, "unidirectional": 1}, note="causal"),
    Node("Attention", (f(2, 5, 8), f(8, 24), f(24), _MASK), {"num_heads": 2}, note="mask"),
    Node("Attention", (f(2, 5, 8), f(8, 24), f(24), i32(3, 5)), {"num_heads": 2}, note="lengths"),
    Node("Attention", (f(2, 5, 8), f(8, 24), f(24), None, f(2, 2, 2, 3, 4)), {"num_heads": 2, "unidirectional": 1}, 2,
         note="past"),
    Node("MultiHeadAttention", (f(2, 5, 8), f(2, 7, 8), f(2, 7, 8)), {"num_heads": 2}),
    Node("MultiHeadAttention", (f(2, 5, 8), f(2, 7, 8), f(2, 7, 8), f(24)), {"num_heads": 2}, note="bias"),
    Node("MultiHeadAttention", (f(2, 5, 8), f(2, 5, 8), f(2, 5, 8), None, _MASK), {"num_heads": 2}, note="mask"),
    Node("MultiHeadAttention", (f(2, 5, 8), f(2, 5, 8), f(2, 5, 8), None, None, f(2, 2, 5, 8), f(2, 2, 3, 4),
                                f(2, 2, 3, 4)), {"num_heads": 2}, 3, note="past and bias"),
    Node("GroupQueryAttention", (f(2, 5, 32), f(2, 5, 16), f(2, 5, 16), None, None, i32(4, 4), i32(5).reshape(())),
         {"num_heads": 4, "kv_num_heads": 2}, 3, note="prompt"),
    Node("GroupQueryAttention", (f(2, 1, 64), f(2, 1, 32), f(2, 1, 32), f(2, 2, 6, 16), f(2, 2, 6, 16), i32(6, 6),
                                 i32(7).reshape(()), _WIDE_COS, _WIDE_SIN),
         {"num_heads": 4, "kv_num_heads": 2, "do_rotary": 1}, 3, note="step"),
    Node("GroupQueryAttention", (f(1, 6, 128), None, None, None, None, i32(5), i32(6).reshape(()), _WIDE_COS,
                                 _WIDE_SIN),
         {"num_heads": 4, "kv_num_heads": 2, "do_rotary": 1, "local_window_size": 3}, 3, note="packed, window"),
    Node("RotaryEmbedding", (f(2, 3, 16), np.array([[0, 1, 2], [4, 5, 6]]), _COS, _SIN), {}, note="positions"),
    Node("RotaryEmbedding", (f(2, 2, 3, 8), np.array([3]), _COS, _SIN), {"interleaved": 1}, note="offset"),
    Node("QAttention", (u8(2, 5, 8), u8(8, 24), f(24), s(0.01), s(0.02), None, z(128), z(120)), {"num_heads": 2},
         loose=1e-4),
]


def _model(node: Node) -> tuple[onnx.ModelProto, dict[str, np.ndarray]]:
    names = ["" if a is None else f"x{k}" for k, a in enumerate(node.feeds)]
    while names and not names[-1]:
        names.pop()
    outputs = [f"y{k}" for k in range(node.outputs)]
    feeds = {n: a for k, (n, a) in enumerate(zip(names, node.feeds, strict=False)) if n and k not in node.constants}
    infos = [helper.make_tensor_value_info(n, helper.np_dtype_to_tensor_dtype(a.dtype), a.shape)
             for n, a in feeds.items()]
    held = [numpy_helper.from_array(node.feeds[k], f"x{k}") for k in node.constants]
    made = helper.make_node(node.op, names, outputs, domain=node.domain, **node.attrs)
    graph = helper.make_graph([made], "g", infos, [helper.make_empty_tensor_value_info(o) for o in outputs], held)
    imports = [helper.make_opsetid("", 18), helper.make_opsetid("com.microsoft", 1)]
    return helper.make_model(graph, opset_imports=imports, ir_version=9), feeds


def _by_onnxruntime(model: onnx.ModelProto, feeds: dict[str, np.ndarray]) -> list[np.ndarray]:
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return session.run(None, feeds)


def _near(got: np.ndarray, wanted: np.ndarray, loose: float) -> None:
    assert got.shape == wanted.shape and got.dtype == wanted.dtype
    if wanted.dtype.kind in "iu":       # a tie of rounding may fall either way
        assert np.abs(got.astype(int) - wanted.astype(int)).max(initial=0) <= 1
    else:
        np.testing.assert_allclose(got, wanted, rtol=loose * 10, atol=loose)


@pytest.mark.parametrize("node", NODES, ids=lambda n: n.name)
def test_a_node_means_what_onnxruntime_computes(node: Node):
    model, feeds = _model(node)
    wanted = _by_onnxruntime(model, feeds)
    graph = load(model)
    for got, right in zip(run_graph(graph, feeds).values(), wanted, strict=True):
        _near(got, right, node.loose)


@pytest.mark.cpu
@pytest.mark.parametrize("node", NODES, ids=lambda n: n.name)
def test_a_node_is_compiled(node: Node):
    model, feeds = _model(node)
    wanted = run_graph(load(model), feeds)
    prepared = IngotBackend.prepare(model)
    for got, right in zip(prepared.run(list(feeds.values())), wanted.values(), strict=True):
        _near(got, right, max(node.loose, 1e-5))


def test_every_decomposition_is_tried():
    tried = {n.op for n in NODES}
    # the same functions under further names, and ops that only ONNX Runtime's GPU provider has
    same = {"BiasAdd", "BiasSplitGelu", "BiasSoftmax", "GatherND", "GroupNorm", "QLinearAveragePool", "QLinearWhere",
            "QuantizeLinear", "DequantizeLinear"}
    assert set(CONTRIB) - tried - same == set()


def test_an_op_that_is_not_served_names_the_nearest():
    node = helper.make_node("SkipLayerNormalisation", ["x"], ["y"], domain="com.microsoft")
    graph = helper.make_graph([node], "g", [helper.make_tensor_value_info("x", TensorProto.FLOAT, [2, 3])],
                              [helper.make_empty_tensor_value_info("y")])
    with pytest.raises(UnsupportedError, match="the nearest that is: SkipLayerNormalization"):
        load(helper.make_model(graph))
