"""Element types and tensor types."""
from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import ml_dtypes
import numpy as np

from ingot.errors import UnsupportedError
from ingot.graph.dim import Expr, evaluate, product, symbols_of


@dataclass(frozen=True, slots=True)
class DType:
    """An element type: its short name, its stored bits, and what it is."""

    name: str
    bits: int           # bits an element takes in memory (sub-byte types are stored one per byte)
    kind: str           # "float" | "int" | "uint" | "bool" | "str" | "complex"

    def __str__(self) -> str:
        return self.name

    __repr__ = __str__

    @property
    def numpy(self) -> np.dtype:
        return _NUMPY[self.name]

    @property
    def nbytes(self) -> int:
        return self.bits // 8


F64, F32, F16, BF16 = (DType(n, b, "float") for n, b in (("f64", 64), ("f32", 32), ("f16", 16), ("bf16", 16)))
F8E4M3, F8E5M2, F4E2M1, F8E8M0 = (DType(n, 8, "float") for n in ("f8e4m3", "f8e5m2", "f4e2m1", "f8e8m0"))
F8E4M3FNUZ, F8E5M2FNUZ = (DType(n, 8, "float") for n in ("f8e4m3fnuz", "f8e5m2fnuz"))
I64, I32, I16, I8, I4, I2 = (DType(n, b, "int") for n, b in
                             (("i64", 64), ("i32", 32), ("i16", 16), ("i8", 8), ("i4", 8), ("i2", 8)))
U64, U32, U16, U8, U4, U2 = (DType(n, b, "uint") for n, b in
                             (("u64", 64), ("u32", 32), ("u16", 16), ("u8", 8), ("u4", 8), ("u2", 8)))
BOOL, STR = DType("bool", 8, "bool"), DType("str", 64, "str")
C64, C128 = DType("c64", 64, "complex"), DType("c128", 128, "complex")

DTYPES: Mapping[str, DType] = {t.name: t for t in (
    F64, F32, F16, BF16, F8E4M3, F8E5M2, F8E4M3FNUZ, F8E5M2FNUZ, F8E8M0, F4E2M1, I64, I32, I16, I8, I4, I2,
    U64, U32, U16, U8, U4, U2, BOOL, STR, C64, C128)}

_NUMPY: Mapping[str, np.dtype] = {
    "f64": np.dtype("float64"), "f32": np.dtype("float32"), "f16": np.dtype("float16"),
    "bf16": np.dtype(ml_dtypes.bfloat16), "f8e4m3": np.dtype(ml_dtypes.float8_e4m3fn),
    "f8e5m2": np.dtype(ml_dtypes.float8_e5m2), "f8e4m3fnuz": np.dtype(ml_dtypes.float8_e4m3fnuz),
    "f8e5m2fnuz": np.dtype(ml_dtypes.float8_e5m2fnuz), "f8e8m0": np.dtype(ml_dtypes.float8_e8m0fnu),
    "f4e2m1": np.dtype(ml_dtypes.float4_e2m1fn),
    "i64": np.dtype("int64"), "i32": np.dtype("int32"), "i16": np.dtype("int16"), "i8": np.dtype("int8"),
    "i4": np.dtype(ml_dtypes.int4), "i2": np.dtype(ml_dtypes.int2), "u64": np.dtype("uint64"),
    "u32": np.dtype("uint32"), "u16": np.dtype("uint16"), "u8": np.dtype("uint8"),
    "u4": np.dtype(ml_dtypes.uint4), "u2": np.dtype(ml_dtypes.uint2), "bool": np.dtype("bool"),
    "str": np.dtype("object"), "c64": np.dtype("complex64"), "c128": np.dtype("complex128")}
_BY_NUMPY = {v: DTYPES[k] for k, v in _NUMPY.items()}


def dtype_from_numpy(dtype: np.dtype) -> DType:
    """The element type of a numpy dtype. Raises UnsupportedError."""
    if dtype in _BY_NUMPY:
        return _BY_NUMPY[dtype]
    if dtype.kind in "US":
        return STR
    raise UnsupportedError(f"numpy dtype {dtype} has no counterpart", mend=f"convert to one of {', '.join(DTYPES)}")


LAYOUTS = ("", "c4", "c8", "c16", "nhwc")


@dataclass(frozen=True, slots=True)
class TensorType:
    """Element type and logical shape, and how the elements lie in memory.

    `layout` is "" for plain row-major order, or "c16" / "c8": channels (axis 1) in blocks, so that a logical
    [N, C, *spatial] lies as [N, ceil(C/16), *spatial, 16]. The lanes past C hold anything, and no kernel may
    let them reach a valid lane. "nhwc" has channels last: a logical [N, C, *spatial] lies as [N, *spatial, C].
    """

    dtype: DType
    shape: tuple[int | Expr, ...]
    layout: str = ""

    @property
    def rank(self) -> int:
        return len(self.shape)

    @property
    def block(self) -> int:
        """Channels per block; 0 for a layout without blocks."""
        return int(self.layout[1:]) if self.layout.startswith("c") else 0

    @property
    def physical(self) -> tuple[int | Expr, ...]:
        """The shape as it lies in memory."""
        if not self.layout:
            return self.shape
        n, c, *spatial = self.shape
        return (n, -(-c // self.block), *spatial, self.block) if self.block else (n, *spatial, c)

    @property
    def size(self) -> int | Expr:
        """Number of logical elements."""
        return product(self.shape)

    @property
    def nbytes(self) -> int | Expr:
        """Bytes in memory, padding lanes included."""
        return product(self.physical) * self.dtype.nbytes

    @property
    def symbols(self) -> frozenset[str]:
        return frozenset().union(*(symbols_of(d) for d in self.shape)) if self.shape else frozenset()

    @property
    def static(self) -> bool:
        return all(isinstance(d, int) for d in self.shape)

    def at(self, bindings: Mapping[str, int]) -> TensorType:
        """The same type with every symbol bound to a size."""
        return replace(self, shape=tuple(evaluate(d, bindings) for d in self.shape))

    def __str__(self) -> str:
        return f"{self.dtype}[{','.join(map(str, self.shape))}]" + (f":{self.layout}" if self.layout else "")

    __repr__ = __str__


def type_of(array: np.ndarray) -> TensorType:
    """The type of a numpy array."""
    return TensorType(dtype_from_numpy(array.dtype), array.shape)


def dense_strides(shape: tuple[int | Expr, ...]) -> tuple[int | Expr, ...]:
    """Row-major strides, in elements."""
    strides: list[int | Expr] = []
    step: int | Expr = 1
    for dim in reversed(shape):
        strides.append(step)
        step = step * dim
    return tuple(reversed(strides))
