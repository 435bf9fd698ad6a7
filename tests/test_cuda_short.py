"""Products and convolutions of i8 and f8e4m3 on a GPU: integers to the bit, by the interpreters, without a GPU."""
from __future__ import annotations

import multiprocessing
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor

import cuda_checks
import numpy as np
import pytest

from ingot.errors import CandidateError
from ingot.graph import F8E4M3, F16, F32, I8, I32, DType, TensorType
from ingot.kernels import TACTICS, Operand, Site, Step
from ingot.kernels.cuda import CudaKernel
from ingot.kernels.reference import run_site, run_wide
from ingot.tune.sample import difference, rounds_to_integers, widened


def _number(*shape: int) -> Operand:
    return Operand(TensorType(F32, shape), constant=True)


def _site(steps: list[Step], inputs: list[Operand], made: TensorType, *, beside: DType | None, out: DType) -> Site:
    """A sum of short numbers scaled, a bias, perhaps a tensor beside it, Relu, and the result as `out`."""
    def real(dtype: DType) -> TensorType:
        return TensorType(dtype, made.shape, made.layout)

    channels = (1, made.shape[1], 1, 1) if made.layout else (made.shape[-1],)
    if made.dtype == I32:
        steps.append(Step("Cast", (~0,), (("to", "f32"),), (real(F32),)))
    for op in ("Mul", "Add"):
        inputs.append(_number(*channels))
        steps.append(Step(op, (~(len(steps) - 1), len(inputs) - 1), (), (real(F32),)))
    if beside is not None:
        before = ~(len(steps) - 1)
        inputs += [Operand(real(beside)), *([_number()] if beside == I8 else [])]
        if beside == I8:
            steps.append(Step("Dequantize", (len(inputs) - 2, len(inputs) - 1), (("output_dtype", "f32"),),
                              (real(F32),)))
        else:
            steps.append(Step("Cast", (len(inputs) - 1,), (("to", "f32"),), (real(F32),)))
        steps.append(Step("Add", (before, ~(len(steps) - 1)), (), (real(F32),)))
    steps.append(Step("Relu", (~(len(steps) - 1),), (), (real(F32),)))
    if out in (I8, F8E4M3):
        inputs.append(_number())
        attrs = (("multiply", 1), ("output_dtype", out.name))
        steps.append(Step("Quantize", (~(len(steps) - 1), len(inputs) - 1), attrs, (real(out),)))
    elif out != F32:
        steps.append(Step("Cast", (~(len(steps) - 1),), (("to", out.name),), (real(out),)))
    return Site(tuple(steps), tuple(inputs), (Operand(real(out)),))


def conv(n: int, c: int, size: int, filters: int, kernel: int, stride: int = 1, *, beside: DType | None = None,
         out: DType = I8, group: int = 1, layout: str = "nhwc") -> Site:
    pad = kernel // 2
    window = {"strides": (stride,) * 2, "pads": (pad,) * 4, "group": group, "layout": "nhwc"}
    side = (size + 2 * pad - kernel) // stride + 1
    made = TensorType(I32, (n, filters, side, side), "nhwc")
    inputs = [Operand(TensorType(I8, (n, c, size, size), layout)),
              Operand(TensorType(I8, (filters, c // group, kernel, kernel)), constant=True)]
    return _site([Step("ConvInteger", (0, 1), tuple(sorted(window.items())), (made,))], inputs, made, beside=beside,
                 out=out)


def product(rows: int, depth: int, columns: int, dtype: DType, *, beside: DType | None = None, out: DType) -> Site:
    made = TensorType(I32 if dtype == I8 else F32, (rows, columns))
    inputs = [Operand(TensorType(dtype, (rows, depth))), Operand(TensorType(dtype, (depth, columns)), constant=True)]
    op = "MatMulInteger" if dtype == I8 else "ShortMatMul"
    return _site([Step(op, (0, 1), (), (made,))], inputs, made, beside=beside, out=out)


FORMS = {
    "i8 3x3": conv(2, 32, 7, 48, 3), "i8 3x3, stride 2, residual": conv(1, 64, 9, 32, 3, 2, beside=I8),
    "i8 1x1, residual in f16": conv(2, 48, 5, 80, 1, beside=F16), "i8 1x1 to f16": conv(2, 160, 5, 64, 1, out=F16),
    "i8 stem": conv(1, 3, 15, 32, 7, 2, out=F16, layout=""), "i8 depthwise": conv(2, 24, 7, 24, 3, group=24),
    "i8 groups": conv(1, 64, 6, 64, 3, group=2), "i8 product": product(40, 96, 64, I8, out=I8),
    "i8 product, residual": product(33, 300, 48, I8, beside=F16, out=F16),
    "f8 product": product(40, 96, 64, F8E4M3, out=F16),
    "f8 product, residual": product(33, 160, 48, F8E4M3, beside=F16, out=F16),
    "f8 product to f8": product(64, 128, 64, F8E4M3, out=F8E4M3),
}


def arrays(site: Site) -> list[np.ndarray]:
    """Operands that use their types; scales that let results use theirs."""
    rng, found = np.random.default_rng(3), []
    for i, o in enumerate(site.inputs):
        shape = tuple(int(str(d)) for d in o.type.shape)
        if o.type.dtype == I8:
            found.append(rng.integers(-127, 128, shape).astype(np.int8))
        elif o.type.dtype == F8E4M3:
            found.append((rng.standard_normal(shape) * 60).astype(F8E4M3.numpy))
        elif not shape:
            found.append(np.asarray(rng.uniform(0.5, 1.5), np.float32))
        else:
            found.append((rng.standard_normal(shape) * (3e-4 if i == 2 else 8)).astype(o.type.dtype.numpy))
    return found


def check_form(name: str, points: int) -> list[str]:
    """On every tactic that serves it: what went wrong."""
    site, wrong, served = FORMS[name], [], 0
    for tactic in TACTICS["cuda"]:
        if tactic.declines(site, cuda_checks.TARGETS["sm_90"]) is None:
            served += 1
            wrong += cuda_checks._points(tactic, site, list(arrays(site)), points, {})
    return wrong if served else ["nothing served it"]


@pytest.fixture(scope="module")
def interpreter() -> Iterator[ProcessPoolExecutor]:
    """A process in which Triton interprets: it must be told before it is imported."""
    pytest.importorskip("triton")
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(1, mp_context=context, initializer=cuda_checks.start_interpreter) as pool:
        yield pool


# f8 by Triton's own interpreter: it rounds that type otherwise than the hardware
@pytest.mark.parametrize("name", [n for n in FORMS if n.startswith("i8")])
def test_integers_are_those_of_the_reference(name: str, interpreter: ProcessPoolExecutor) -> None:
    assert interpreter.submit(check_form, name, 2).result() == []


@pytest.mark.parametrize("name", list(FORMS))
def test_they_compile(name: str) -> None:
    pytest.importorskip("triton")
    site, target, made = FORMS[name], cuda_checks.TARGETS["sm_90"], 0
    for tactic in TACTICS["cuda"]:
        if tactic.declines(site, target) is None:
            try:
                kernel = tactic.emit(site, next(iter(tactic.space(site, target))), target)
            except CandidateError:
                continue
            assert isinstance(kernel, CudaKernel)
            assert all(x.cubin[:4] == b"\x7fELF" for x in kernel.launches)
            made += 1
    assert made


@pytest.mark.parametrize("name", list(FORMS))
def test_the_judge_computes_in_f64(name: str) -> None:
    site = FORMS[name]
    given = arrays(site)
    plain, wide = run_site(site, given)[0], run_wide(widened(site), given)[0]
    assert difference(plain, wide.astype(plain.dtype), 2e-3, quantum=rounds_to_integers(site)) is None


def test_numbers_of_f8_may_be_rounded_otherwise_and_no_more() -> None:
    wanted = (np.random.default_rng(0).standard_normal(4096) * 60).astype(np.float32)

    def told(moved: np.ndarray) -> str | None:
        return difference(moved.astype(F8E4M3.numpy), wanted.astype(F8E4M3.numpy), 1e-3, quantum=True)

    assert told(wanted) is None
    assert told(wanted + 0.01) is None                  # near zero that is many steps, and no error
    assert told(wanted * 1.02) is not None              # too many fall to the neighbour
    jumped = wanted.copy()
    jumped[np.abs(jumped).argmax()] *= 0.8
    assert told(jumped) is not None
    jumped[0] = np.nan
    assert told(jumped) is not None


def test_what_has_a_zero_point_is_declined() -> None:
    site = FORMS["i8 product"]
    zero = Operand(TensorType(I8, ()), constant=True)
    first = site.steps[0]
    step = Step(first.op, (0, 1, len(site.inputs)), first.attrs, first.types)
    other = Site((step, *site.steps[1:]), (*site.inputs, zero), site.outputs)
    assert all(t.declines(other, cuda_checks.TARGETS["sm_90"]) for t in TACTICS["cuda"])
