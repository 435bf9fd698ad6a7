"""Older opsets: a node of then, loaded, gives what ONNX Runtime gives for it."""
from collections.abc import Sequence

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from ingot.errors import IngotError
from ingot.frontend import load
from ingot.ops.reference import run_graph

onnxruntime = pytest.importorskip("onnxruntime")
RNG = np.random.default_rng(0)


def _f(*shape: int) -> np.ndarray:
    return RNG.standard_normal(shape).astype(np.float32)


def _model(opset: int, op: str, feeds: Sequence[np.ndarray | None], constants: Sequence[np.ndarray | None],
           outputs: int, attrs: dict[str, object]) -> onnx.ModelProto:
    names = ["" if a is None else f"x{i}" for i, a in enumerate((*feeds, *constants))]
    node = helper.make_node(op, names, [f"y{i}" for i in range(outputs)], **attrs)
    inputs = [helper.make_tensor_value_info(f"x{i}", TensorProto.FLOAT, ["N", *a.shape[1:]] if a.ndim else [])
              for i, a in enumerate(feeds) if a is not None]
    held = [numpy_helper.from_array(a, f"x{i + len(feeds)}") for i, a in enumerate(constants) if a is not None]
    graph = helper.make_graph([node], "g", inputs, [helper.make_empty_tensor_value_info(f"y{i}")
                                                    for i in range(outputs)], held)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=8)


CASES: list[tuple[int, str, list[np.ndarray | None], list[np.ndarray | None], dict[str, object]]] = [
    (7, "Softmax", [_f(2, 3, 4)], [], {}),
    (9, "Softmax", [_f(2, 3, 4)], [], {"axis": 2}),
    (11, "LogSoftmax", [_f(2, 3, 4)], [], {"axis": -2}),
    (11, "Hardmax", [_f(2, 3, 4)], [], {"axis": 1}),
    (7, "Clip", [_f(2, 5)], [], {"min": -0.5, "max": 0.25}),
    (10, "Clip", [_f(2, 5)], [], {"max": 0.25}),
    (11, "Clip", [_f(2, 5)], [np.float32(-0.1).reshape(())], {}),
    (7, "Pad", [_f(2, 3, 4)], [], {"pads": [0, 1, 2, 0, 0, 1], "value": 0.5}),
    (10, "Pad", [_f(2, 3, 4)], [], {"pads": [0, 1, 2, 0, 0, 1], "mode": "reflect"}),
    (11, "Pad", [_f(2, 3, 4)], [np.array([0, 1, 2, 0, 0, 1]), np.float32(2).reshape(())], {}),
    (7, "Slice", [_f(2, 6, 8)], [], {"starts": [1, -3], "ends": [5, 99], "axes": [1, 2]}),
    (10, "Slice", [_f(2, 6, 8)], [np.array([1]), np.array([5]), np.array([2]), np.array([2])], {}),
    (8, "Squeeze", [_f(2, 1, 4)], [], {"axes": [1]}),
    (12, "Unsqueeze", [_f(2, 3)], [], {"axes": [0, 3]}),
    (13, "Unsqueeze", [_f(2, 3)], [np.array([1])], {}),
    (7, "ReduceSum", [_f(2, 3, 4)], [], {"axes": [1, 2], "keepdims": 0}),
    (13, "ReduceSum", [_f(2, 3, 4)], [np.array([-1])], {}),
    (12, "ReduceMean", [_f(2, 3, 4)], [], {"axes": [-1]}),
    (13, "ReduceMax", [_f(2, 3, 4)], [], {}),
    (18, "ReduceL2", [_f(2, 3, 4)], [np.array([1])], {"keepdims": 0}),
    (7, "TopK", [_f(2, 9)], [], {"k": 3}),
    (10, "TopK", [_f(2, 9)], [np.array([3])], {}),
    (8, "Split", [_f(2, 6)], [], {"axis": 1, "split": [2, 4]}),
    (11, "Split", [_f(2, 6)], [], {"axis": 1}),
    (13, "Split", [_f(2, 6)], [np.array([1, 5])], {"axis": 1}),
    (7, "Upsample", [_f(2, 3, 4, 5)], [], {"scales": [1.0, 1.0, 2.0, 3.0]}),
    (9, "Upsample", [_f(2, 3, 4, 5)], [np.array([1, 1, 2, 2], np.float32)], {"mode": "linear"}),
    (10, "Resize", [_f(2, 3, 4, 5)], [np.array([1, 1, 1.5, 2], np.float32)], {}),
    (11, "Resize", [_f(2, 3, 4, 5)], [np.zeros(0, np.float32), np.array([1, 1, 2, 2], np.float32)], {"mode": "linear"}),
    (13, "Resize", [_f(2, 3, 4, 5)], [None, np.array([1, 1, 2, 2], np.float32)],
     {"mode": "linear", "coordinate_transformation_mode": "align_corners"}),
    (7, "BatchNormalization", [_f(2, 3, 4)], [_f(3), _f(3), _f(3), np.abs(_f(3))], {}),
    (8, "BatchNormalization", [_f(2, 3, 4)], [_f(3), _f(3), _f(3), np.abs(_f(3))], {"spatial": 1}),
    (9, "Scatter", [_f(1, 5)], [np.array([[1, 3]]), _f(1, 2)], {"axis": 1}),
    (7, "Dropout", [_f(2, 5)], [], {"ratio": 0.3}),
    (12, "Dropout", [_f(2, 5)], [np.float32(0.3).reshape(())], {}),
    (8, "MaxPool", [_f(1, 2, 7, 7)], [], {"kernel_shape": [3, 3], "strides": [2, 2], "pads": [1, 1, 1, 1]}),
    (7, "AveragePool", [_f(1, 2, 7, 7)], [], {"kernel_shape": [3, 3], "pads": [1, 1, 1, 1]}),
    (10, "AveragePool", [_f(1, 2, 8, 8)], [], {"kernel_shape": [3, 3], "strides": [2, 2], "ceil_mode": 1}),
    (7, "Gemm", [_f(2, 5)], [_f(3, 5), _f(3)], {"transB": 1}),
    (7, "PRelu", [_f(2, 3, 4)], [_f(3, 1)], {}),
    (7, "LRN", [_f(1, 5, 4, 4)], [], {"size": 3}),
    (16, "GridSample", [_f(1, 2, 5, 6)], [_f(1, 3, 4, 2) * 0.4], {"mode": "bilinear"}),
    (18, "GroupNormalization", [_f(2, 6, 5)], [_f(3), _f(3)], {"num_groups": 3}),
    (12, "ArgMax", [_f(2, 9)], [], {"axis": 1}),
    (11, "DepthToSpace", [_f(1, 8, 2, 3)], [], {"blocksize": 2}),
    (11, "Conv", [_f(1, 3, 8, 8)], [_f(4, 3, 3, 3)], {"auto_pad": "SAME_LOWER", "strides": [2, 2]}),
    (11, "ConvTranspose", [_f(1, 3, 5, 5)], [_f(3, 2, 3, 3)], {"strides": [2, 2], "output_shape": [10, 10]}),
    (11, "ConvTranspose", [_f(1, 3, 5, 5)], [_f(3, 2, 3, 3)], {"strides": [2, 2], "auto_pad": "SAME_UPPER"}),
    (11, "ConvTranspose", [_f(1, 4, 5, 5)], [_f(4, 2, 3, 3), _f(4)], {"strides": [2, 2], "group": 2}),
]


@pytest.mark.parametrize(("opset", "op", "feeds", "constants", "attrs"), CASES,
                         ids=[f"{op}-{opset}-{i}" for i, (opset, op, *_) in enumerate(CASES)])
def test_a_node_of_then_gives_what_onnxruntime_gives(opset: int, op: str, feeds: list[np.ndarray | None],
                                                     constants: list[np.ndarray | None], attrs: dict[str, object]):
    outputs = 2 if op in ("Split", "TopK") else 1
    model = _model(opset, op, feeds, constants, outputs, attrs)
    named = {f"x{i}": a for i, a in enumerate(feeds) if a is not None}
    session = onnxruntime.InferenceSession(model.SerializeToString())
    wanted = session.run(None, named)
    # symbolic batch where the op allows it, else the size itself
    try:
        graph = load(model)
    except IngotError:
        graph = load(model, {n: a.shape for n, a in named.items() if a.ndim})
    for made, right in zip(run_graph(graph, named).values(), wanted, strict=True):
        np.testing.assert_allclose(made, right, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(("opset", "op", "constants", "attrs", "message"), [
    (7, "BatchNormalization", [_f(3), _f(3), _f(3), np.abs(_f(3))], {"spatial": 0}, "spatial=0"),
    (11, "Resize", [np.zeros(0, np.float32), np.array([1, 1, 2], np.float32)],
     {"coordinate_transformation_mode": "tf_half_pixel_for_nn"}, "tf_half_pixel_for_nn"),
    (17, "DFT", [], {}, "opset 20"),
    (13, "RandomNormalLike", [], {}, "no kernel knows it"),
])
def test_what_cannot_be_said_in_todays_terms_is_in_no_graph(opset: int, op: str, constants: list[np.ndarray | None],
                                                            attrs: dict[str, object], message: str):
    with pytest.raises(IngotError, match=message):
        load(_model(opset, op, [_f(2, 3, 4)], constants, 1, attrs))
