"""CUDA tactics against the reference, without a GPU: Triton by its interpreter, Gluon by arrays for tensors."""
from __future__ import annotations

import multiprocessing
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor

import cuda_checks
import pytest

from ingot.kernels import TACTICS
from ingot.ops import OPS

pytest.importorskip("triton")

HOST = ("Dequantize", "Quantize")        # no kernel on a GPU yet
POINTWISE = sorted(n for n, op in OPS.items() if op.pointwise and n not in HOST)
MOVING = ["Concat", "DepthToSpace", "Expand", "Gather", "GatherElements", "GatherND", "OneHot", "Pad",
          "Reshape", "Resize", "Slice", "SpaceToDepth", "Split", "Tile", "Transpose", "Trilu", "ConstantOfShape",
          "EyeLike", "Range", "CumSum", "CumProd", "TopK", "ScatterElements", "ScatterND", "QuantizeLinear",
          "DequantizeLinear"]
ROWS = ["ArgMax", "ArgMin", "GlobalAveragePool", "GlobalLpPool", "GlobalMaxPool", "GroupNormalization", "Hardmax",
        "InstanceNormalization", "LayerNormalization", "LogSoftmax", "LpNormalization", "MeanVarianceNormalization",
        "RMSNormalization", "ReduceL1", "ReduceL2", "ReduceLogSum", "ReduceLogSumExp", "ReduceMax", "ReduceMean",
        "ReduceMin", "ReduceProd", "ReduceSum", "ReduceSumSquare", "Softmax", "BatchNormalization"]
HEAVY = ["Attention", "AveragePool", "Conv", "ConvTranspose", "Gemm", "LpPool", "MatMul", "MaxPool"]


@pytest.fixture(scope="module")
def interpreter() -> Iterator[ProcessPoolExecutor]:
    """A process in which Triton interprets: it must be told before it is imported."""
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(1, mp_context=context, initializer=cuda_checks.start_interpreter) as pool:
        yield pool


@pytest.mark.parametrize("op", [*POINTWISE, *MOVING, *ROWS, *HEAVY])
def test_kernels_agree_with_the_reference(op: str, interpreter: ProcessPoolExecutor) -> None:
    assert interpreter.submit(cuda_checks.check_op, op, 1, "", 4).result() == []


@pytest.mark.parametrize("op", HOST)
def test_what_has_no_kernel_is_declined(op: str) -> None:
    """Whoever writes one takes the op off the list."""
    sites = [cuda_checks.site_of(op, sample)[0] for sample in OPS[op].samples]
    assert all(t.declines(site, cuda_checks.TARGETS["sm_90"]) for site in sites for t in TACTICS["cuda"])


@pytest.mark.slow
@pytest.mark.parametrize("op", [*POINTWISE, *MOVING, *ROWS, *HEAVY])
def test_more_points_agree_with_the_reference(op: str, interpreter: ProcessPoolExecutor) -> None:
    assert interpreter.submit(cuda_checks.check_op, op, 4).result() == []


@pytest.mark.parametrize("name", sorted(cuda_checks.FORMS))
def test_forms_of_networks(name: str, interpreter: ProcessPoolExecutor) -> None:
    assert interpreter.submit(cuda_checks.check_form, name, 3).result() == []


@pytest.mark.parametrize("op", ["Add", "Conv", "GlobalAveragePool", "LayerNormalization", "MatMul", "MaxPool",
                                "Softmax", "Transpose", "Gather"])
def test_a_symbolic_batch(op: str, interpreter: ProcessPoolExecutor) -> None:
    assert interpreter.submit(cuda_checks.check_symbolic, op, (1, 3)).result() == []
