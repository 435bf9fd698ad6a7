"""Tensors on the device, in and out without a copy: DLPack and the CUDA array interface."""
from __future__ import annotations

import ctypes
from typing import Any

import numpy as np

from ingot.errors import InputError
from ingot.graph import TensorType
from ingot.runtime.cuda.driver import Driver, Handle

# DLDataTypeCode
_CODES = {"i": 0, "u": 1, "f": 2, "b": 6}
_BFLOAT = 4
_CUDA = 2           # DLDeviceType


class _DLTensor(ctypes.Structure):
    _fields_ = [("data", ctypes.c_void_p), ("device_type", ctypes.c_int32), ("device_id", ctypes.c_int32),
                ("ndim", ctypes.c_int32), ("code", ctypes.c_uint8), ("bits", ctypes.c_uint8),
                ("lanes", ctypes.c_uint16), ("shape", ctypes.POINTER(ctypes.c_int64)),
                ("strides", ctypes.POINTER(ctypes.c_int64)), ("byte_offset", ctypes.c_uint64)]


class _Managed(ctypes.Structure):
    pass


_Deleter = ctypes.CFUNCTYPE(None, ctypes.POINTER(_Managed))
_Managed._fields_ = [("tensor", _DLTensor), ("context", ctypes.c_void_p), ("deleter", _Deleter)]
_NAME = ctypes.create_string_buffer(b"dltensor")
_alive: dict[int, tuple[object, ...]] = {}      # what a consumer of a capsule still holds


def _delete(managed: Any) -> None:
    _alive.pop(ctypes.addressof(managed.contents), None)


_DELETE = _Deleter(_delete)


def _capsule(array: DeviceArray) -> object:
    managed = _Managed()
    shape = (ctypes.c_int64 * max(1, len(array.shape)))(*array.shape)
    code = _BFLOAT if array.dtype.name == "bfloat16" else _CODES[array.dtype.kind]
    managed.tensor = _DLTensor(array.address, _CUDA, 0, len(array.shape), code, 8 * array.dtype.itemsize, 1, shape,
                               None, 0)
    managed.deleter = _DELETE
    _alive[ctypes.addressof(managed)] = managed, shape, array
    make = ctypes.pythonapi.PyCapsule_New
    make.restype, make.argtypes = ctypes.py_object, [ctypes.c_void_p, ctypes.c_char_p, ctypes.c_void_p]
    made: object = make(ctypes.addressof(managed), ctypes.cast(_NAME, ctypes.c_char_p), None)
    return made


class DeviceArray:
    """A dense array in device memory. It keeps alive what owns the memory.

    What was queued on the stream it was made on may still be under way: `numpy` waits for it, and so does whoever
    takes the array through DLPack on the device's default stream.
    """

    def __init__(self, driver: Driver, address: int, shape: tuple[int, ...], dtype: np.dtype, stream: Handle,
                 owner: object = None) -> None:
        self.address, self.shape, self.dtype = address, shape, dtype
        self._driver, self._stream, self._owner = driver, stream, owner

    @property
    def nbytes(self) -> int:
        return int(np.prod(self.shape, dtype=np.int64)) * self.dtype.itemsize

    @property
    def __cuda_array_interface__(self) -> dict[str, object]:
        return {"shape": self.shape, "typestr": self.dtype.str, "data": (self.address, False), "version": 3,
                "strides": None, "stream": None}

    def __dlpack_device__(self) -> tuple[int, int]:
        return _CUDA, 0

    def __dlpack__(self, *, stream: object = None, **_: object) -> object:
        return _capsule(self)

    def data_ptr(self) -> int:
        """The address, under the name PyTorch's tensors have for it."""
        return self.address

    def numpy(self) -> np.ndarray:
        """A copy on the host, once what makes the array has run."""
        made = np.empty(self.shape, self.dtype)
        if made.nbytes:
            self._driver.enter()
            self._driver.download(made.ctypes.data, self.address, made.nbytes, self._stream)
            self._driver.finish(self._stream)
        return made

    def __repr__(self) -> str:
        return f"DeviceArray({self.dtype}{list(self.shape)} at {self.address:#x})"


def is_on_device(value: object) -> bool:
    """Whether a value is an array in GPU memory."""
    if isinstance(value, (np.ndarray, np.generic)):
        return False
    return isinstance(value, DeviceArray) or hasattr(value, "__cuda_array_interface__")


def device_address(value: Any, name: str, type_: TensorType) -> tuple[int, tuple[int, ...]]:
    """Address and shape of an array in GPU memory. Raises InputError where it is not dense or of another dtype."""
    if isinstance(value, DeviceArray):
        address, shape, text, strides = value.address, value.shape, value.dtype.str, None
    else:
        told = value.__cuda_array_interface__
        address, shape, text, strides = told["data"][0], tuple(told["shape"]), told["typestr"], told.get("strides")
    wanted = type_.dtype.numpy
    if text != wanted.str and not (wanted.name == "bfloat16" and text in ("<V2", "<f2", "|V2", "<u2")):
        raise InputError(f"the input '{name}' is {text}, not {wanted.str}", where=f"input '{name}'",
                         why=(f"the engine takes {type_}",), mend="convert it on the device")
    if strides is not None and 0 not in shape:
        step = wanted.itemsize
        for size, stride in zip(shape[::-1], tuple(strides)[::-1], strict=True):
            if size > 1 and stride != step:
                raise InputError(f"the input '{name}' is not dense", where=f"input '{name}'",
                                 mend="pass it contiguous")
            step *= size
    return int(address), shape


__all__ = ["DeviceArray", "device_address", "is_on_device"]
