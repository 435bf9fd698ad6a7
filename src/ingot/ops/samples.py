"""Short names for the operands of samples."""
from __future__ import annotations

import ml_dtypes
import numpy as np

from ingot.graph import BF16, BOOL, DTYPES, F16, F32, F64, I8, I32, I64, U8, Dim, TensorType

SMALL_TYPES = ("f8e4m3", "f8e5m2", "f8e4m3fnuz", "f8e5m2fnuz", "f8e8m0", "f4e2m1", "i4", "u4", "i2", "u2")


def f32(*shape: Dim, layout: str = "") -> TensorType:
    return TensorType(F32, shape, layout)


def f16(*shape: Dim) -> TensorType:
    return TensorType(F16, shape)


def bf16(*shape: Dim) -> TensorType:
    return TensorType(BF16, shape)


def f64(*shape: Dim) -> TensorType:
    return TensorType(F64, shape)


def i64(*shape: Dim) -> TensorType:
    return TensorType(I64, shape)


def i32(*shape: Dim) -> TensorType:
    return TensorType(I32, shape)


def i8(*shape: Dim) -> TensorType:
    return TensorType(I8, shape)


def u8(*shape: Dim) -> TensorType:
    return TensorType(U8, shape)


def tensor(dtype: str, *shape: Dim) -> TensorType:
    """A tensor of any element type, by its short name."""
    return TensorType(DTYPES[dtype], shape)


def boolean(*shape: Dim) -> TensorType:
    return TensorType(BOOL, shape)


def indices(low: int, high: int, *shape: int, dtype: str = "int64") -> np.ndarray:
    """Reproducible positions in [low, high): a constant operand."""
    return np.random.default_rng(0).integers(low, high, shape).astype(dtype)


def values(*shape: int, low: float = -1.0, high: float = 1.0) -> np.ndarray:
    """Reproducible f32 numbers in [low, high): a constant operand."""
    return np.random.default_rng(1).uniform(low, high, shape).astype(np.float32)


def short_values(*shape: int) -> np.ndarray:
    """Reproducible bf16 numbers in [-1, 1): a constant operand."""
    return values(*shape).astype(ml_dtypes.bfloat16)


def integers(*shape: int, low: int = -127, high: int = 128, dtype: str = "int8") -> np.ndarray:
    """Reproducible integers in [low, high): a constant operand."""
    return np.random.default_rng(2).integers(low, high, shape).astype(np.dtype(getattr(ml_dtypes, dtype, dtype)))


def scalar(value: float, dtype: str = "float32") -> np.ndarray:
    """A constant of rank 0."""
    return np.asarray(value, dtype=dtype)
