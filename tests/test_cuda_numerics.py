"""CUDA tactics against the reference, without a GPU: Triton by its interpreter, Gluon by arrays for tensors."""
from __future__ import annotations

import multiprocessing
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor

import cuda_checks
import pytest

from ingot.ops import OPS

pytest.importorskip("triton")

POINTWISE = sorted(n for n, op in OPS.items() if op.pointwise)
MOVING = ["Concat", "DepthToSpace", "Expand", "Gather", "GatherElements", "GatherND", "OneHot", "Pad",
          "Reshape", "Resize", "Slice", "SpaceToDepth", "Split", "Tile", "Transpose", "Trilu", "ConstantOfShape",
          "EyeLike", "Range", "CumSum", "CumProd", "TopK", "ScatterElements", "ScatterND", "QuantizeLinear",
          "DequantizeLinear"]
ROWS = ["ArgMax", "ArgMin", "GlobalAveragePool", "GlobalLpPool", "GlobalMaxPool", "GroupNormalization", "Hardmax",
        "InstanceNormalization", "LayerNormalization", "LogSoftmax", "LpNormalization", "MeanVarianceNormalization",
        "RMSNormalization", "ReduceL1", "ReduceL2", "ReduceLogSum", "ReduceLogSumExp", "ReduceMax", "ReduceMean",
        "ReduceMin", "ReduceProd", "ReduceSum", "ReduceSumSquare", "Softmax", "BatchNormalization"]
HEAVY = ["Attention", "AveragePool", "Conv", "ConvTranspose", "Gemm", "LpPool", "MatMul", "MatMulInteger",
         "MaxPool"]


@pytest.fixture(scope="module")
def interpreter() -> Iterator[ProcessPoolExecutor]:
    """A process in which Triton interprets: it must be told before it is imported."""
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(1, mp_context=context, initializer=cuda_checks.start_interpreter) as pool:
        yield pool


@pytest.mark.parametrize("op", [*POINTWISE, *MOVING, *ROWS, *HEAVY])
def test_kernels_agree_with_the_reference(op: str, interpreter: ProcessPoolExecutor) -> None:
    assert interpreter.submit(cuda_checks.check_op, op, 1, "", 4).result() == []


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


@pytest.mark.parametrize("name", sorted(cuda_checks.LARGE))
def test_large_products_on_blocks_that_stay(name: str, interpreter: ProcessPoolExecutor) -> None:
    assert interpreter.submit(cuda_checks.check_form, name, 1, "cuda.matmul_persistent").result() == []


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(cuda_checks.LARGE))
def test_every_kind_of_blocks_that_stay(name: str, interpreter: ProcessPoolExecutor) -> None:
    assert interpreter.submit(cuda_checks.check_form, name, 9, "cuda.matmul_persistent").result() == []
