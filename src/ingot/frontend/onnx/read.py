"""From bytes to arrays, trusting nothing: damaged files, false sizes, and external data outside the model's folder."""
from __future__ import annotations

import math
import os
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
from google.protobuf.message import DecodeError  # type: ignore[import-untyped]
from onnx import numpy_helper

from ingot.errors import InputError, ModelError, UnsupportedError
from ingot.graph import DTYPES
from ingot.ops.onnx_form import ENUM

_PACKED = frozenset({"u4", "i4", "u2", "i2", "f4e2m1"})       # several elements per byte in the file
_LARGEST_SPARSE = 1 << 32        # bytes a sparse tensor may take once it is dense
_MEND = "export the model again, or fetch the file again and compare its checksum"


@dataclass(frozen=True)
class Source:
    """A parsed model, and the folder its external data may lie in (None: it came without one)."""

    model: onnx.ModelProto
    folder: Path | None
    name: str


def read_model(model: str | os.PathLike[str] | bytes | onnx.ModelProto) -> Source:
    """Parse an ONNX model. Raises InputError (no such file) or ModelError (not a whole ONNX model)."""
    if isinstance(model, onnx.ModelProto):
        source = Source(model, None, "the model")
    elif isinstance(model, bytes):
        source = Source(_parsed(model, "the given bytes"), None, "the given bytes")
    else:
        path = Path(model)
        if not path.is_file():
            raise InputError(f"there is no file {path}", mend="give the path of an .onnx file")
        source = Source(_parsed(path.read_bytes(), str(path)), path.resolve().parent, str(path))
    proto = source.model
    if not proto.HasField("graph") or not proto.graph.output:
        raise ModelError(f"{source.name} holds no graph", why=("it parses as an ONNX model without outputs",),
                         mend=_MEND)
    return source


def _parsed(data: bytes, name: str) -> onnx.ModelProto:
    proto = onnx.ModelProto()
    try:
        proto.ParseFromString(data)
    except DecodeError:
        raise ModelError(f"{name} is no ONNX model, or only a part of one", mend=_MEND) from None
    return proto


def array_from(tensor: onnx.TensorProto, source: Source) -> np.ndarray:
    """The array of a tensor; large ones are views of the model's bytes or of the mapped file. Raises ModelError."""
    where, shape = f"tensor '{tensor.name}'", tuple(tensor.dims)
    if tensor.data_type not in ENUM:
        raise UnsupportedError(f"element type {tensor.data_type} is unknown", where=where)
    if any(d < 0 for d in shape):
        raise ModelError(f"the shape {list(shape)} has a negative size", where=where, mend=_MEND)
    kind, count = DTYPES[ENUM[tensor.data_type]], math.prod(shape)
    if tensor.HasField("segment"):
        raise UnsupportedError("segmented tensors are not served", where=where)
    if kind.name in _PACKED:
        needed = -(-count * int(kind.name[1]) // 8)
    elif kind.kind == "str":
        needed = 0
    else:
        needed = count * kind.nbytes
    if tensor.data_location == onnx.TensorProto.EXTERNAL:
        return _external(tensor, source, kind.numpy, shape, needed, where)
    if tensor.HasField("raw_data"):
        if kind.kind == "str":
            raise ModelError("texts cannot lie in raw bytes", where=where, mend=_MEND)
        raw = tensor.raw_data           # protobuf makes a copy each time it is asked
        if len(raw) != needed:
            raise ModelError(f"{kind}{list(shape)} needs {needed} bytes, the model holds {len(raw)}",
                             where=where, mend=_MEND)
        if kind.name not in _PACKED:
            return np.frombuffer(raw, kind.numpy).reshape(shape)
        return np.asarray(numpy_helper.to_array(tensor))
    held = max(len(getattr(tensor, f)) for f in
               ("float_data", "int32_data", "string_data", "int64_data", "double_data", "uint64_data"))
    wanted = {"c64": count * 2, "c128": count * 2}.get(kind.name, count)
    if kind.name in _PACKED:
        wanted = needed
    if held != wanted:
        raise ModelError(f"{kind}{list(shape)} has {count} elements, the model holds {held}", where=where, mend=_MEND)
    try:
        return np.asarray(numpy_helper.to_array(tensor)).reshape(shape)
    except (ValueError, OverflowError) as error:
        raise ModelError("its numbers cannot be read", where=where, why=(str(error),), mend=_MEND) from None


def dense_from(sparse: onnx.SparseTensorProto, source: Source) -> np.ndarray:
    """The dense array of a sparse tensor. Raises ModelError."""
    values, at = array_from(sparse.values, source).reshape(-1), array_from(sparse.indices, source)
    where, shape = f"tensor '{sparse.values.name}'", tuple(int(d) for d in sparse.dims)
    if any(d < 0 for d in shape) or math.prod(shape) * values.itemsize > _LARGEST_SPARSE:
        raise ModelError(f"the sparse shape {list(shape)} is not one to make dense", where=where, mend=_MEND)
    made = np.zeros(shape, values.dtype)
    flat = at.reshape(-1) if at.ndim == 1 else None
    try:
        if flat is None:
            flat = np.ravel_multi_index(tuple(at.T), shape) if at.size else np.zeros(0, np.int64)
        if len(flat) != len(values) or (flat.size and (flat.min() < 0 or flat.max() >= made.size)):
            raise ValueError(f"{len(values)} values at {len(flat)} places")
    except ValueError as error:
        raise ModelError("its places lie outside its shape", where=where, why=(str(error),), mend=_MEND) from None
    made.reshape(-1)[flat] = values
    return made


def _external(tensor: onnx.TensorProto, source: Source, dtype: np.dtype, shape: tuple[int, ...], needed: int,
              where: str) -> np.ndarray:
    entries = {e.key: e.value for e in tensor.external_data}
    location = entries.get("location", "")
    if source.folder is None:
        raise ModelError(f"its numbers lie in the file '{location}', and the model came without a folder", where=where,
                         mend="give the model's path, or save it with its weights inside")
    if not location or Path(location).is_absolute() or os.path.splitdrive(location)[0] or "\0" in location:
        raise ModelError(f"external data at '{location}' is not a relative path", where=where,
                         mend="save the model with its data file beside it")
    path = (source.folder / location).resolve()
    if not path.is_relative_to(source.folder):
        raise ModelError(f"external data at '{location}' lies outside the model's folder", where=where,
                         why=(f"it leads to {path}",), mend="put the data file into the model's folder, without links")
    if not path.is_file():
        raise ModelError(f"there is no file '{location}' beside the model", where=where,
                         mend="copy the model's data file along with it")
    if path.stat().st_nlink > 1:        # as onnx's own reader: the other name may lie anywhere (CVE-2026-34446)
        raise ModelError(f"external data at '{location}' has other names besides (hard links)", where=where,
                         why=("a name elsewhere may be of a file that this model has no business with",),
                         mend=f"make it a file of its own: cp '{location}' copy && mv copy '{location}'")
    try:
        offset, length = int(entries.get("offset", "0") or 0), int(entries.get("length", "") or needed)
    except ValueError:
        raise ModelError(f"external data has the offset {entries.get('offset')!r} and length {entries.get('length')!r}",
                         where=where, mend=_MEND) from None
    size = path.stat().st_size
    if offset < 0 or length != needed or offset + length > size:
        raise ModelError(f"it needs {needed} bytes; the model says {length} at {offset} of '{location}', "
                         f"which has {size}", where=where, mend=_MEND)
    if dtype == np.dtype(object) or needed * 8 < math.prod(shape) * 8 * dtype.itemsize:
        raise UnsupportedError("text and packed elements are not served as external data", where=where,
                               mend="save the model with its weights inside")
    if not needed:
        return np.empty(shape, dtype)
    return np.memmap(path, dtype=dtype, mode="r", offset=offset, shape=shape)
