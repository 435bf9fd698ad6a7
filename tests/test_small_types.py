"""Floats of eight and four bits: every code and every rounding, against ml_dtypes."""
from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from kernel_checks import compiled, targets

from ingot.graph import DTYPES, F16, F32, F64, Node, TensorType
from ingot.kernels import Operand, Site, Step
from ingot.kernels.codegen.small import FLOATS
from ingot.kernels.x86.pointwise import Pointwise
from ingot.ops.reference import evaluate
from ingot.runtime.harness import run_logical


def cast(x: np.ndarray, source: str, to: str, **attrs: object) -> tuple[np.ndarray, np.ndarray]:
    """x cast by the kernel, and by the reference."""
    a, b = (TensorType(DTYPES[t], x.shape) for t in (source, to))
    given = {"to": to, **attrs}
    site = Site((Step("Cast", (0,), tuple(sorted(given.items())), (b,)),), (Operand(a),), (Operand(b),))
    target = dataclasses.replace(targets()["avx2"], threads=1)
    kernel = Pointwise().emit(site, {"unroll": 1}, target)
    got, = run_logical(kernel, site, target, [x], threads=1, cache=compiled())
    with np.errstate(all="ignore"):
        want, = evaluate(Node("Cast", ("x",), ("y",), given), [x])
    return got, want


@pytest.mark.cpu
@pytest.mark.parametrize("name", [*FLOATS, "f8e8m0"])
def test_every_code_is_decoded_as_ml_dtypes_does(name: str) -> None:
    codes = np.arange(16 if name == "f4e2m1" else 256, dtype=np.uint8).view(DTYPES[name].numpy)
    for to in ("f32", "f16", "f64"):
        got, want = cast(codes, name, to)
        assert np.array_equal(got, want, equal_nan=True), f"{name} to {to}"
        number = ~np.isnan(want)
        assert np.array_equal(np.signbit(got[number]), np.signbit(want[number]))


@pytest.mark.cpu
@pytest.mark.parametrize("name", [*FLOATS, "f8e8m0"])
@pytest.mark.parametrize("saturate", [0, 1])
def test_every_half_and_many_floats_are_encoded_as_ml_dtypes_does(name: str, saturate: int) -> None:
    halves = np.arange(1 << 16, dtype=np.uint16).view(np.float16)
    rng = np.random.default_rng(5)
    singles = rng.integers(0, 1 << 32, 100_000, dtype=np.uint32).view(np.float32)
    near = (rng.standard_normal(100_000) * 10.0 ** rng.integers(-7, 6, 100_000))
    ties = np.concatenate([halves[np.isfinite(halves)].astype(np.float64) * (1 + k * 2.0**-40) for k in (-1, 0, 1)])
    cases = [(halves, F16), (singles, F32), (near.astype(np.float32), F32), (near, F64), (ties, F64)]
    for x, dtype in cases:
        got, want = cast(x, dtype.name, name, saturate=saturate)
        a, b = got.view(np.uint8), want.view(np.uint8)
        nan = np.isnan(x) if name == "f8e4m3" else np.zeros(x.shape, bool)
        assert np.array_equal(a[~nan], b[~nan]), (x[a != b][:5], a[a != b][:5], b[a != b][:5])
        assert np.array_equal(a[nan] & 0x7F, b[nan] & 0x7F)


@pytest.mark.cpu
def test_f64_becomes_f16_in_one_rounding() -> None:
    halves = np.arange(1 << 16, dtype=np.uint16).view(np.float16)
    middle = (halves[:-1].astype(np.float64) + halves[1:].astype(np.float64)) / 2
    x = np.concatenate([middle * (1 + k * 2.0**-50) for k in (-1, 0, 1)])
    got, want = cast(x, "f64", "f16")
    assert np.array_equal(got, want, equal_nan=True)
