"""ONNX's own node tests: each is read as it stands, and right on the reference."""
import re
import warnings
from collections.abc import Iterator

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from ingot.errors import IngotError
from ingot.frontend import read
from ingot.graph import Flow
from ingot.ops import OPS
from ingot.ops.flow import reference_flow
from ingot.ops.reference import run_graph

# What is not right on the reference, and why.
KNOWN = {
    r"test_bernoulli": "the expected numbers were drawn by chance",
    r"test_gradient_of": "nobody has its derivatives, neither the reference",
}


def _array(value: object) -> np.ndarray:
    return numpy_helper.to_array(value) if isinstance(value, onnx.TensorProto) else np.asarray(value)


def _cases() -> Iterator[object]:
    from onnx.backend.test.case.node import collect_testcases
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield from collect_testcases(None)


def _shape_operands(model: onnx.ModelProto) -> set[str]:
    """Inputs that are shapes or positions, which the graph wants to know before the model runs."""
    return {name for node in model.graph.node for k, name in enumerate(node.input)
            if node.op_type in OPS and k in OPS[node.op_type].promoted}


def _specialised(model: onnx.ModelProto, feeds: dict[str, np.ndarray]) -> onnx.ModelProto:
    fixed = onnx.ModelProto()
    fixed.CopyFrom(model)
    for name in _shape_operands(model) & feeds.keys():
        fixed.graph.initializer.append(numpy_helper.from_array(feeds[name], name))
    return fixed


def _same(got: object, wanted: object) -> str:
    """"right", or what is wrong."""
    if isinstance(wanted, list):
        if not isinstance(got, list) or len(got) != len(wanted):
            return f"a sequence of {len(wanted)} was due, not {got!r:.80}"
        return next((v for v in map(_same, got, map(_array, wanted)) if v != "right"), "right")
    wanted, got = _array(wanted), np.asarray(got)
    if wanted.dtype.kind in "OU":
        return "right" if got.astype(str).tolist() == wanted.astype(str).tolist() else "wrong"
    if got.shape != wanted.shape or got.dtype != wanted.dtype:
        return f"the wrong type: {got.dtype}{got.shape}, not {wanted.dtype}{wanted.shape}"
    loose = 1e-2 if wanted.dtype.itemsize <= 2 else 1e-3
    near = np.allclose(got.astype(np.complex128), wanted.astype(np.complex128), rtol=loose, atol=loose / 100,
                       equal_nan=True)
    return "right" if near else "wrong"


def _verdict(case: object) -> str:
    inputs, outputs = case.data_sets[0]  # type: ignore[attr-defined]
    try:
        found = read(case.model)         # type: ignore[attr-defined]
        feeds = {n: v if isinstance(v, list) or v is None else _array(v) for n, v in
                 zip(found.inputs, inputs, strict=False)}
        made = reference_flow(found, feeds) if isinstance(found, Flow) else run_graph(found, feeds)
    except IngotError as error:
        return f"refused: {error}"
    for name, wanted in zip(found.outputs, outputs, strict=True):
        if (verdict := _same(made[name], wanted)) != "right":
            return f"{name}: {verdict}"
        t = found.types.get(name)
        if t is not None and any(isinstance(d, int) and d != size for d, size in
                                 zip(t.shape, np.shape(made[name]), strict=True)):
            return f"inferred as {t}, is {np.shape(made[name])}"
    return "right"


@pytest.mark.filterwarnings("ignore")
def test_every_node_test_is_right_on_the_reference():
    wrong, right = [], 0
    for case in _cases():
        if any(re.match(k, case.name) for k in KNOWN):      # type: ignore[attr-defined]
            continue
        verdict = _verdict(case)
        right += verdict == "right"
        if verdict != "right":
            wrong.append(f"{case.name}: {verdict[:200]}")   # type: ignore[attr-defined]
    assert wrong == []
    assert right > 1850
