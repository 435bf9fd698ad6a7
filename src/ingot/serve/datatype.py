"""The protocol's element types: their names, numpy counterparts, and how strings lie in bytes.

On its way through the server a tensor is its bytes: row-major, little-endian; BYTES elements each behind a length of
four bytes. Arrays are made only where numbers are needed: for JSON, and for padding.
"""
from __future__ import annotations

import struct
from collections.abc import Mapping, Sequence

import ml_dtypes
import numpy as np

from ingot.errors import ServeError
from ingot.graph import DTYPES, DType

NUMPY: Mapping[str, np.dtype] = {
    "BOOL": np.dtype("bool"), "UINT8": np.dtype("uint8"), "UINT16": np.dtype("uint16"), "UINT32": np.dtype("uint32"),
    "UINT64": np.dtype("uint64"), "INT8": np.dtype("int8"), "INT16": np.dtype("int16"), "INT32": np.dtype("int32"),
    "INT64": np.dtype("int64"), "FP16": np.dtype("float16"), "FP32": np.dtype("float32"), "FP64": np.dtype("float64"),
    "BF16": np.dtype(ml_dtypes.bfloat16), "BYTES": np.dtype("object")}
SIZES: Mapping[str, int] = {name: dtype.itemsize for name, dtype in NUMPY.items() if name != "BYTES"}
_INGOT = {"bool": "BOOL", "u8": "UINT8", "u16": "UINT16", "u32": "UINT32", "u64": "UINT64", "i8": "INT8",
          "i16": "INT16", "i32": "INT32", "i64": "INT64", "f16": "FP16", "f32": "FP32", "f64": "FP64", "bf16": "BF16",
          "str": "BYTES"}
_LENGTH = struct.Struct("<I")

Data = bytes | bytearray | memoryview


def datatype_of(dtype: DType) -> str:
    """The protocol's name of an element type; one it has no name for keeps Ingot's."""
    return _INGOT.get(dtype.name, dtype.name)


def numpy_of(datatype: str) -> np.dtype:
    """The numpy dtype of a protocol name."""
    return NUMPY[datatype] if datatype in NUMPY else DTYPES[datatype].numpy


def size_of(datatype: str) -> int:
    """Bytes per element; 0 for BYTES, whose elements differ."""
    return 0 if datatype == "BYTES" else SIZES.get(datatype) or numpy_of(datatype).itemsize


def packed_strings(values: Sequence[bytes | str]) -> bytes:
    """Strings in the protocol's form: each behind its length."""
    parts: list[bytes] = []
    for value in values:
        text = value.encode() if isinstance(value, str) else value
        parts += (_LENGTH.pack(len(text)), text)
    return b"".join(parts)


def string_ends(data: Data, count: int, name: str) -> list[int]:
    """Where each of `count` strings ends in their packed form. Raises ServeError where they do not fill it exactly."""
    ends: list[int] = []
    at, total = 0, len(data)
    for _ in range(count):
        if at + 4 > total:
            break
        at += 4 + _LENGTH.unpack_from(data, at)[0]
        ends.append(at)
    if len(ends) != count or at != total:
        raise ServeError(f"the bytes of '{name}' are not {count} strings, each behind a length of four bytes",
                         where=f"tensor '{name}'", mend="pack every element as a little-endian length and its bytes")
    return ends


def unpacked_strings(data: Data, count: int, name: str) -> list[bytes]:
    """The strings of a packed form. Raises ServeError."""
    found, begin = [], 0
    for end in string_ends(data, count, name):
        found.append(bytes(data[begin + 4:end]))
        begin = end
    return found


def array_of(data: Data, datatype: str, shape: Sequence[int], name: str = "") -> np.ndarray:
    """The tensor as an array; a view of its bytes, but for strings (an object array of bytes)."""
    if datatype == "BYTES":
        count = 1
        for size in shape:
            count *= size
        made = np.empty(count, object)
        made[:] = unpacked_strings(data, count, name)
        return made.reshape(shape)
    return np.frombuffer(data, numpy_of(datatype)).reshape(shape)


def bytes_of(array: np.ndarray, datatype: str) -> bytes:
    """An array as the protocol's bytes."""
    if datatype == "BYTES":
        return packed_strings([v if isinstance(v, (bytes, str)) else str(v) for v in array.reshape(-1).tolist()])
    return np.ascontiguousarray(array, numpy_of(datatype)).tobytes()
