"""The stated error of the math functions: at most 2 ulp in f32, over all exponents, zeros, denormals, infinities."""
from __future__ import annotations

import ctypes
from collections.abc import Callable
from functools import cache

import numpy as np
import pytest
import torch
from kernel_checks import targets

from ingot.kernels import Kernel
from ingot.kernels.codegen import Code, Value, isa_of, math, trigonometry
from ingot.runtime.compiler import Library, load_kernel
from ingot.target import Target

pytestmark = pytest.mark.cpu
_CALL = ctypes.CFUNCTYPE(None, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_int64, ctypes.c_int64)
Reference = Callable[[torch.Tensor], torch.Tensor]

REFERENCES: dict[str, Reference] = {name: getattr(torch, name) for name in (
    "exp", "exp2", "expm1", "log", "log1p", "erf", "tanh", "sigmoid", "sin", "cos", "tan", "asin", "acos", "atan",
    "sinh", "cosh", "asinh", "acosh", "atanh")}
REFERENCES["softplus"] = lambda x: torch.logaddexp(x, torch.zeros_like(x))


@cache
def library(name: str, target: Target, operands: int) -> Library:
    """A function y = name(x, ...) over n elements, n a multiple of the lanes."""
    isa = isa_of(target)
    code = Code(isa)
    with code.function("run"):
        n = code.emit("i64", "load i64, ptr %symbols")
        with code.loop(0, n, isa.lanes) as i:
            args = [code.load(code.offset(code.buffer(k), i), "float", isa.lanes) for k in range(operands)]
            made: Value = getattr(math if hasattr(math, name) else trigonometry, name)(code, *args)
            code.store(made, code.offset(code.buffer(operands), i))
    return load_kernel(Kernel(name, code.module(), ("run",)), target)


def computed(name: str, target: Target, *arrays: np.ndarray) -> np.ndarray:
    y = np.empty_like(arrays[0])
    table = np.array([*(a.ctypes.data for a in arrays), y.ctypes.data], np.int64)
    size = np.array([y.size], np.int64)
    _CALL(library(name, target, len(arrays)).address("run"))(table.ctypes.data, size.ctypes.data, 0, 1)
    return y


def ulps(got: np.ndarray, want: np.ndarray) -> np.ndarray:
    """The distance of f32 results from f64 references, in units of the last place of the reference."""
    with np.errstate(all="ignore"):
        near = want.astype(np.float32)
        size = np.exp2(np.maximum(np.frexp(want)[1] - 24.0, -149.0))
        distance = np.abs(got.astype(np.float64) - want) / size
    distance[(got == near) | (np.isnan(got) & np.isnan(want))] = 0
    return np.where(np.isnan(distance), np.inf, distance)


def bit_patterns(start: int, step: int, count: int) -> np.ndarray:
    """f32 numbers by their bits, evenly spread."""
    return (np.arange(count, dtype=np.uint64) * step + start).astype(np.uint32).view(np.float32)


@cache
def sample() -> np.ndarray:
    rng = np.random.default_rng(0)
    special = np.array([0.0, -0.0, np.inf, -np.inf, np.nan, 1, -1, 1e-45, -1e-45, 3.4e38, -3.4e38, 2**-126, -(2**-126),
                        88.72284, -103.97, -104, 128, -149, 0.5, -0.5, 2.5], np.float32)
    random = [bit_patterns(0, 4096, 1 << 20), rng.uniform(-2, 2, 1 << 18), rng.uniform(-110, 110, 1 << 18),
              1 + rng.integers(-9999, 9999, 1 << 16) * 2.0**-24, rng.uniform(-1e6, 1e6, 1 << 16)]
    x = np.concatenate([special, *(r.astype(np.float32) for r in random)])
    return np.ascontiguousarray(x[:x.size // 16 * 16])


@pytest.mark.parametrize("isa", list(targets()))
@pytest.mark.parametrize("name", sorted(REFERENCES))
def test_the_error_is_at_most_two_ulp(name: str, isa: str) -> None:
    x = sample()
    want = REFERENCES[name](torch.from_numpy(x).double()).numpy()
    found = ulps(computed(name, targets()[isa], x), want)
    assert found.max() <= 2, f"{found.max()} ulp at {x[found.argmax()]!r}"


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(REFERENCES))
def test_every_number_there_is(name: str) -> None:
    chunk = 1 << 24
    for start in range(0, 1 << 32, chunk):
        x = bit_patterns(start, 1, chunk)
        want = REFERENCES[name](torch.from_numpy(x).double()).numpy()
        found = ulps(computed(name, next(reversed(targets().values())), x), want)
        assert found.max() <= 2, f"{found.max()} ulp at {x[found.argmax()]!r}"


@pytest.mark.parametrize("isa", list(targets()))
def test_powers(isa: str) -> None:
    rng = np.random.default_rng(0)
    special = np.array([0.0, -0.0, 1, -1, 2, -2, 3, 0.5, -0.5, np.inf, -np.inf, np.nan, 1e-45, 1e38, -7, 2.5])
    grid = np.stack(np.meshgrid(special, special)).reshape(2, -1)
    bases = (grid[0], np.abs(bit_patterns(0, 8192, 1 << 19)), rng.uniform(0, 4, 1 << 18))
    x = np.concatenate([b.astype(np.float32) for b in bases])
    y = np.concatenate([grid[1], rng.uniform(-4, 4, 1 << 19), rng.uniform(-60, 60, 1 << 18)]).astype(np.float32)
    want = torch.pow(torch.from_numpy(x).double(), torch.from_numpy(y).double()).numpy()
    found = ulps(computed("power", targets()[isa], x, y), want)
    assert found.max() <= 2, f"{found.max()} ulp at {x[found.argmax()]!r} ** {y[found.argmax()]!r}"


@pytest.mark.parametrize("isa", list(targets()))
@pytest.mark.parametrize("exponent", [2.0, 3.0, 0.5, -1.0])
def test_powers_of_one_exponent(isa: str, exponent: float) -> None:
    x = sample()
    y = np.full_like(x, exponent)
    want = torch.pow(torch.from_numpy(x).double(), torch.from_numpy(y).double()).numpy()
    assert ulps(computed("power", targets()[isa], x, y), want).max() <= 2


@pytest.mark.parametrize("isa", list(targets()))
def test_gelu_is_near_enough(isa: str) -> None:
    """Not a basic function: its error is stated absolutely, as the reference itself cancels below 0."""
    x = np.linspace(-14, 14, 1 << 18).astype(np.float32)
    d = torch.from_numpy(x).double()
    want = (d * 0.5 * torch.special.erfc(-d / 2**0.5)).numpy()
    got = computed("gelu", targets()[isa], x)
    assert np.abs(got - want).max() < 4e-7
    assert (np.abs(got - want) <= 5e-7 * np.abs(x)).all()
    assert ulps(got, want)[x > 0].max() < 6
