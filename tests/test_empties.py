"""Operands without elements, as where data selects nothing: what ONNX says, or an error that names the node."""
from __future__ import annotations

from collections.abc import Iterator, Sequence
from types import MappingProxyType

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

import ingot
from ingot import BuildOptions
from ingot.errors import IngotError, ModelError
from ingot.graph import Node, type_of
from ingot.ops import OPS, infer
from ingot.ops.op import Sample
from ingot.ops.reference import evaluate

F, I64, B = TensorProto.FLOAT, TensorProto.INT64, TensorProto.BOOL


def _emptied(sample: Sample) -> Iterator[list[np.ndarray | None]]:
    """The sample's operands with one axis of one of them at size 0, and with every axis of that size so."""
    operands = sample[0]
    for k, chosen in enumerate(operands):
        for axis, size in enumerate(() if chosen is None else chosen.shape):
            for every in (False, True):
                arrays: list[np.ndarray | None] = []
                for j, x in enumerate(operands):
                    if x is None:
                        arrays.append(None)
                        continue
                    shape = [0 if (every and d == size) or (j == k and a == axis) else int(str(d))
                             for a, d in enumerate(x.shape)]
                    arrays.append(x[tuple(slice(n) for n in shape)] if isinstance(x, np.ndarray)
                                  else np.zeros(shape, x.dtype.numpy))
                yield arrays


@pytest.mark.parametrize("name", sorted(n for n, op in OPS.items() if op.samples))
def test_an_op_of_nothing_has_the_result_its_type_says_or_an_error_of_ours(name: str):
    op = OPS[name]
    for sample in op.samples:
        if any(x is not None and not isinstance(x, np.ndarray) and x.layout for x in sample[0]):
            continue
        for arrays in _emptied(sample):
            node = Node(name, tuple("" if a is None else f"i{k}" for k, a in enumerate(arrays)),
                        tuple(f"o{k}" for k in range(max(1, op.outputs))), MappingProxyType(dict(sample[1])), ("n",))
            try:
                wanted = infer(node, tuple(None if a is None else type_of(a) for a in arrays))
                made = evaluate(node, arrays, {})
            except IngotError as error:
                assert error.where
                continue
            assert [m.shape for m in made] == [t.shape for t in wanted]


def _node(op: str, inputs: str, outputs: str, **attrs: object) -> onnx.NodeProto:
    return helper.make_node(op, [i if i != "-" else "" for i in inputs.split()], outputs.split(), **attrs)


RNG = np.random.default_rng(0)
CONSTANTS = {
    "zero": np.array([0]), "one": np.array([1]), "two": np.array([2]), "along": np.array(0), "none": np.float32(0),
    "w": RNG.standard_normal((8, 5)).astype("f"), "taps": RNG.standard_normal((4, 8, 3)).astype("f"),
    "eight": np.ones(8, "f"), "wx": RNG.standard_normal((1, 12, 8)).astype("f"),
    "wr": RNG.standard_normal((1, 12, 3)).astype("f"), "pads": np.array([1, 0, 1, 0]), "split": np.array([0, 4, 2])}


def _flow(nodes: Sequence[onnx.NodeProto]) -> ingot.Session:
    """A session of the rows of x that are positive throughout, `rows`, and what the nodes make of them."""
    used = {i for n in nodes for i in n.input} | {"none", "one"}
    graph = helper.make_graph(
        [_node("Greater", "x none", "above"), _node("Cast", "above", "count", to=I64),
         _node("ReduceMin", "count one", "all", keepdims=0), _node("Cast", "all", "chosen", to=B),
         _node("Compress", "x chosen", "rows", axis=0), *nodes],
        "g", [helper.make_tensor_value_info("x", F, ["N", 8])], [helper.make_empty_tensor_value_info("y")],
        [numpy_helper.from_array(a, n) for n, a in CONSTANTS.items() if n in used])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 23)], ir_version=10)
    return ingot.Session(ingot.build(model, options=BuildOptions(tune=False, verify=False)))


def _laid(op: onnx.NodeProto) -> list[onnx.NodeProto]:
    """The rows as the places of an image [1, 8, rows], to the node as 'u'."""
    return [_node("Transpose", "rows", "t", perm=[1, 0]), _node("Unsqueeze", "t zero", "u"), op]


# What becomes of no rows: the result's shape and its only value (None: it has no elements)
RESULTS: dict[str, tuple[list[onnx.NodeProto], tuple[int, ...], float | None]] = {
    "product": ([_node("MatMul", "rows w", "y")], (0, 5), None),
    "product over them": ([_node("Transpose", "rows", "t", perm=[1, 0]), _node("MatMul", "t rows", "y")], (8, 8), 0),
    "sum": ([_node("ReduceSum", "rows zero", "y", keepdims=0)], (8,), 0),
    "product of all": ([_node("ReduceProd", "rows", "y", keepdims=0)], (), 1),
    "greatest": ([_node("ReduceMax", "rows zero", "y")], (1, 8), -np.inf),
    "least": ([_node("ReduceMin", "rows zero", "y")], (1, 8), np.inf),
    "mean": ([_node("ReduceMean", "rows zero", "y")], (1, 8), np.nan),
    "length": ([_node("ReduceL2", "rows zero", "y")], (1, 8), 0),
    "log of the sum": ([_node("ReduceLogSumExp", "rows zero", "y")], (1, 8), -np.inf),
    "greatest of each": ([_node("ArgMax", "rows", "y", axis=1)], (0, 1), None),
    "softmax": ([_node("Softmax", "rows", "y", axis=0)], (0, 8), None),
    "softmax of each": ([_node("Softmax", "rows", "y", axis=1)], (0, 8), None),
    "best of each": ([_node("TopK", "rows two", "y i", axis=1)], (0, 2), None),
    "sorted": ([_node("Shape", "rows", "s", end=1), _node("TopK", "rows s", "y i", axis=0)], (0, 8), None),
    "running sums": ([_node("CumSum", "rows along", "y")], (0, 8), None),
    "joined": ([_node("Concat", "rows rows", "y", axis=0)], (0, 8), None),
    "padded": ([_node("Pad", "rows pads", "y")], (2, 8), 0),
    "in parts": ([_node("Reshape", "rows split", "y", allowzero=0)], (0, 4, 2), None),
    "normalised": ([_node("LayerNormalization", "rows eight", "y")], (0, 8), None),
    "normalised in channels": ([_node("Unsqueeze", "rows two", "u"),
                                _node("InstanceNormalization", "u eight eight", "y")], (0, 8, 1), None),
    "convolved": ([_node("Unsqueeze", "rows two", "u"), _node("Conv", "u taps", "y", pads=[1, 1])], (0, 4, 1), None),
    "a net's states": ([_node("Unsqueeze", "rows one", "u"), _node("LSTM", "u wx wr", "v y", hidden_size=3)],
                       (1, 1, 3), 0),
    "attended to": ([_node("Transpose", "rows", "t", perm=[1, 0]), _node("MatMul", "x t", "s"),
                     _node("Softmax", "s", "p"), _node("MatMul", "p rows", "y")], (5, 8), 0),
    "attending": ([_node("Unsqueeze", "rows zero", "u"),
                   _node("Attention", "u u u", "y", q_num_heads=2, kv_num_heads=2)], (1, 0, 8), None),
    "places": ([_node("NonZero", "rows", "y")], (2, 0), None),
    "different values": ([_node("Unique", "rows", "y")], (0,), None),
    "how many": ([_node("Size", "rows", "y")], (), 0),
}


@pytest.mark.parametrize("name", RESULTS)
def test_no_rows_give_what_onnx_says(name: str):
    nodes, shape, value = RESULTS[name]
    session = _flow(nodes)
    some = session.run({"x": np.ones((5, 8), np.float32)})["y"]
    assert some.size and np.isfinite(some).all()
    made = session.run({"x": np.full((5, 8), -1, np.float32)})["y"]
    assert made.shape == shape
    if value is not None:
        np.testing.assert_array_equal(made, np.full(shape, value, made.dtype))


@pytest.mark.parametrize("nodes", [
    [_node("ArgMax", "rows", "y", axis=0)], [_node("TopK", "rows one", "y i", axis=0)],
    [_node("Gather", "rows zero", "y", axis=0)], _laid(_node("GlobalMaxPool", "u", "y")),
    _laid(_node("MaxPool", "u", "y", kernel_shape=[2])), _laid(_node("Conv", "u taps", "y", pads=[1, 1])),
], ids=["ArgMax", "TopK", "Gather", "GlobalMaxPool", "MaxPool", "Conv"])
def test_what_has_no_result_says_which_node_and_why(nodes: list[onnx.NodeProto]):
    session = _flow(nodes)
    session.run({"x": np.ones((5, 8), np.float32)})
    with pytest.raises(ModelError) as caught:
        session.run({"x": np.full((5, 8), -1, np.float32)})
    error = caught.value
    assert nodes[-1].op_type in error.what and "[" in error.what        # the op and the types it met
    assert "y" in error.where and error.why and error.mend


def test_a_size_that_follows_from_the_datas_may_be_none_too():
    """One row leaves nothing of a stride past the first: the data selected something, and yet an axis is empty."""
    far = _node("MaxPool", "u", "v", kernel_shape=[1], strides=[2])
    session = _flow([*_laid(far), _node("Shape", "v", "s"), _node("Gather", "s two", "n"),
                     _node("Sub", "n one", "less"), _node("Slice", "v zero less two", "cut"),
                     _node("ReduceMax", "cut two", "y", keepdims=0)])
    x = np.full((5, 8), -1, np.float32)
    for count, greatest in ((4, 1), (3, 1), (2, -np.inf), (1, -np.inf)):
        x[:count] = 1
        x[count:] = -1
        np.testing.assert_array_equal(session.run({"x": x})["y"], np.full((1, 8), greatest, np.float32))
