"""ONNX's own node tests: each is loaded and right on the reference, or refused with a reason."""
import re
import warnings
from collections import Counter
from collections.abc import Iterator

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from ingot.errors import IngotError, UnsupportedError
from ingot.frontend import load
from ingot.ops import OPS
from ingot.ops.reference import run_graph

# Why a test may be refused; anything else is a defect.
REASONS = re.compile(
    r"needs (a size that depends on the data|control flow|random numbers|images in files)"      # no place in the graph
    r"|is not known before the model runs|onnx cannot tell the (shape|sizes) of"                # sizes from the data
    r"|is no tensor|op (Optional|Sequence|SplitToSequence)\w* is unknown|condition depends on the data"
    r"|training|is not of ONNX's standard set|mask of a Dropout|was an attribute before opset")


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


def _verdict(case: object) -> str:
    model = case.model  # type: ignore[attr-defined]
    inputs, outputs = case.data_sets[0]  # type: ignore[attr-defined]
    if any(isinstance(v, list) or v is None for v in (*inputs, *outputs)):
        return "refused"        # sequences and optionals
    feeds = {v.name: _array(a) for v, a in zip(model.graph.input, inputs, strict=False)}
    try:
        graph = load(_specialised(model, feeds))
    except IngotError as error:
        return "refused" if REASONS.search(str(error)) else f"refused without a known reason: {error}"
    try:
        made = run_graph(graph, {n: feeds[n] for n in graph.inputs})
    except UnsupportedError as error:
        return f"refused late: {error}"
    for name, wanted in zip(graph.outputs, map(_array, outputs), strict=True):
        got, t = made[name], graph.types[name]
        if wanted.dtype.kind in "OU":
            if got.astype(str).tolist() != wanted.astype(str).tolist():
                return "wrong"
            continue
        if got.shape != wanted.shape or got.dtype != wanted.dtype or t.dtype.numpy != wanted.dtype:
            return f"the wrong type: {got.dtype}{got.shape}, not {wanted.dtype}{wanted.shape}"
        loose = 1e-2 if wanted.dtype.itemsize <= 2 else 1e-3
        if not np.allclose(got.astype(np.complex128), wanted.astype(np.complex128), rtol=loose, atol=loose / 100,
                           equal_nan=True):
            return "wrong"
        if any(isinstance(d, int) and d != size for d, size in zip(t.shape, wanted.shape, strict=True)):
            return f"inferred as {t}, is {wanted.shape}"
    return "right"


@pytest.mark.filterwarnings("ignore")
def test_every_node_test_is_right_or_refused_with_a_reason():
    found, wrong = Counter[str](), []
    for case in _cases():
        verdict = _verdict(case)
        found[verdict if verdict in ("right", "refused") else "wrong"] += 1
        if verdict not in ("right", "refused"):
            wrong.append(f"{case.name}: {verdict[:200]}")  # type: ignore[attr-defined]
    assert wrong == []
    assert found["right"] > 1500, found
