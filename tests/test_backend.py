"""Ingot as an ONNX backend: nodes of very old opsets and absent outputs give what their definition says."""
from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from ingot.backend import IngotBackend

pytestmark = pytest.mark.cpu
RNG = np.random.default_rng(0)


def _run(opset: int, op: str, feeds: Sequence[np.ndarray], outputs: Sequence[str] = ("y",), **attrs: object
         ) -> list[np.ndarray]:
    names = [f"x{i}" for i in range(len(feeds))]
    inputs = [helper.make_tensor_value_info(n, TensorProto.FLOAT, a.shape) for n, a in zip(names, feeds, strict=True)]
    graph = helper.make_graph([helper.make_node(op, names, outputs, **attrs)], "g", inputs,
                              [helper.make_empty_tensor_value_info(o) for o in outputs if o])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=8)
    return list(IngotBackend.prepare(model).run(feeds))


def _f(*shape: int) -> np.ndarray:
    return RNG.standard_normal(shape).astype(np.float32)


def test_an_operand_of_opset_6_is_aligned_at_its_axis():
    x, y = _f(2, 3, 4), _f(3)
    np.testing.assert_allclose(_run(6, "Add", [x, y], broadcast=1, axis=1)[0], x + y[:, None], rtol=1e-6)
    np.testing.assert_allclose(_run(6, "Sub", [x, _f(4) * 0], broadcast=1)[0], x, rtol=1e-6)


def test_a_slope_of_opset_6_is_per_channel():
    x, slope = _f(2, 3, 4, 4), _f(3)
    np.testing.assert_allclose(_run(6, "PRelu", [x, slope])[0], np.where(x < 0, x * slope[:, None, None], x),
                               rtol=1e-6)


def test_attributes_of_the_first_opsets_are_understood():
    x = _f(2, 3)
    assert _run(1, "Cast", [x], to="INT32")[0].dtype == np.int32
    np.testing.assert_array_equal(_run(1, "Pad", [x], paddings=[0, 1, 0, 1])[0], np.pad(x, ((0, 0), (1, 1))))
    np.testing.assert_allclose(_run(1, "Relu", [x], consumed_inputs=[0])[0], np.maximum(x, 0))
    np.testing.assert_array_equal(_run(1, "Concat", [x, x])[0], np.concatenate([x, x], 1))
    np.testing.assert_allclose(_run(1, "Upsample", [_f(1, 1, 2, 2)], height_scale=2.0, width_scale=3.0)[0].shape,
                               (1, 1, 4, 6))


def test_a_recurrence_may_leave_its_first_output_out():
    x, w, r = _f(5, 1, 3), _f(1, 8, 3), _f(1, 8, 2)
    whole = _run(14, "LSTM", [x, w, r], ["y", "h", "c"], hidden_size=2)
    last, = _run(14, "LSTM", [x, w, r], ["", "h"], hidden_size=2)
    cell, = _run(14, "LSTM", [x, w, r], ["", "", "c"], hidden_size=2)
    np.testing.assert_allclose(last, whole[1], rtol=1e-6)
    np.testing.assert_allclose(cell, whole[2], rtol=1e-6)


def test_a_device_that_is_not_there_is_not_supported():
    assert IngotBackend.supports_device("CPU") and not IngotBackend.supports_device("CUDA:0")
    assert onnx.backend.base.Device("CPU").device_id == 0
