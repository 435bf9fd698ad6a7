"""The CUDA driver, as far as a session needs it: addresses and handles in, handles out, one error for all that fails.

`Driver` is what the rest of the runtime speaks to; `CudaDriver` is the real one, over `cuda-bindings`; tests have one
that records. Addresses and sizes are plain integers, handles are whatever the driver gives.
"""
from __future__ import annotations

import ctypes
import importlib
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any, Protocol

from ingot.errors import UnsupportedError

Handle = Any


class DeviceError(UnsupportedError):
    """The CUDA driver refused a call, or is not there."""


@dataclass(frozen=True)
class Facts:
    """What a GPU says of itself."""

    name: str
    architecture: str           # "sm_90"
    driver: str                 # "13.0", the highest CUDA version the driver serves
    multiprocessors: int
    shared: int                 # bytes of shared memory one block may have
    cache: int                  # bytes of L2
    memory: int                 # bytes

    @property
    def features(self) -> frozenset[str]:
        """The facts in the form of a target's features."""
        return frozenset({f"driver={self.driver}", f"multiprocessors={self.multiprocessors}", f"shared={self.shared}",
                          f"cache={self.cache}"})


@dataclass(frozen=True)
class Launch:
    """One kernel launch, its parameters packed: `parameters` is the address of an array of pointers to them."""

    function: Handle
    grid: tuple[int, int, int]
    threads: int
    shared: int
    cluster: int
    dependent: bool
    parameters: int


@dataclass(frozen=True)
class MapSpec:
    """A tensor map to encode: everything in the driver's own order (fastest axis first), strides in bytes."""

    dtype: int
    address: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]            # without the fastest axis
    box: tuple[int, ...]                # tiled; of an im2col map (channels per pixel, pixels per column)
    steps: tuple[int, ...]
    swizzle: int
    lower: tuple[int, ...] = ()         # with these an im2col map
    upper: tuple[int, ...] = ()


class Driver(Protocol):
    """One GPU. Every method raises DeviceError where the driver refuses."""

    facts: Facts
    idle: Handle                # a stream for what is waited for at once: uploads, fills

    def enter(self) -> None: ...
    def alloc(self, nbytes: int) -> int: ...
    def free(self, address: int) -> None: ...
    def pinned(self, nbytes: int) -> int: ...
    def unpin(self, address: int) -> None: ...
    def upload(self, device: int, host: int, nbytes: int, stream: Handle) -> None: ...
    def download(self, host: int, device: int, nbytes: int, stream: Handle) -> None: ...
    def copy(self, to: int, source: int, nbytes: int, stream: Handle) -> None: ...
    def fill(self, address: int, byte: int, nbytes: int, stream: Handle) -> None: ...
    def stream(self, *, apart: bool = False) -> Handle: ...
    def close(self, stream: Handle) -> None: ...
    def finish(self, stream: Handle) -> None: ...
    def event(self) -> Handle: ...
    def cancel(self, event: Handle) -> None: ...
    def record(self, event: Handle, stream: Handle) -> None: ...
    def wait(self, stream: Handle, event: Handle) -> None: ...
    def settle(self, event: Handle) -> None: ...
    def elapsed(self, begin: Handle, end: Handle) -> float: ...
    def load(self, cubin: bytes) -> Handle: ...
    def unload(self, module: Handle) -> None: ...
    def function(self, module: Handle, entry: str, shared: int) -> Handle: ...
    def launch(self, launch: Launch, stream: Handle) -> None: ...
    def begin(self, stream: Handle) -> None: ...
    def end(self, stream: Handle) -> Handle: ...
    def replay(self, graph: Handle, stream: Handle) -> None: ...
    def drop(self, graph: Handle) -> None: ...
    def encode(self, spec: MapSpec, into: int) -> None: ...


def _bindings() -> Any:
    try:
        return importlib.import_module("cuda.bindings.driver")
    except ImportError as error:
        raise DeviceError("the CUDA target needs cuda-bindings", where="this Python", why=(str(error),),
                          mend="pip install 'ingot[cuda]'") from None


def _array(kind: Any, values: Sequence[int]) -> Any:
    return (kind * len(values))(*values)


class CudaDriver:
    """A GPU through `cuda-bindings`, in the device's primary context, which PyTorch and others share."""

    def __init__(self, index: int = 0) -> None:
        self.cu = cu = _bindings()
        try:
            self._check(cu.cuInit(0), "cuInit")
        except RuntimeError as error:                   # what cuda-bindings says where there is no libcuda
            raise DeviceError("there is no CUDA driver here", where="libcuda.so.1", why=(str(error),),
                              mend="run on a machine with an NVIDIA GPU and its driver") from None
        count = self._check(cu.cuDeviceGetCount(), "cuDeviceGetCount")
        if index >= count:
            raise DeviceError(f"there is no GPU number {index}", why=(f"the driver shows {count}",),
                              mend="choose another, or look at CUDA_VISIBLE_DEVICES")
        self._device = self._check(cu.cuDeviceGet(index), "cuDeviceGet")
        self._context = self._check(cu.cuDevicePrimaryCtxRetain(self._device), "cuDevicePrimaryCtxRetain")
        self._entered = threading.local()
        self.enter()
        self.facts = self._facts()
        self.idle = self.stream()
        self._lib = ctypes.CDLL("libcuda.so.1")
        self._none = cu.CUstreamCaptureMode.CU_STREAM_CAPTURE_MODE_RELAXED

    def _check(self, result: Any, what: str) -> Any:
        if int(result[0]):
            text = self.cu.cuGetErrorString(result[0])[1]
            why = text.decode() if isinstance(text, bytes) else str(result[0])
            raise DeviceError(f"the CUDA driver refused {what}", where=f"error {int(result[0])}", why=(why,))
        return None if len(result) == 1 else result[1] if len(result) == 2 else result[1:]

    def _attribute(self, name: str) -> int:
        attribute = getattr(self.cu.CUdevice_attribute, f"CU_DEVICE_ATTRIBUTE_{name}")
        return int(self._check(self.cu.cuDeviceGetAttribute(attribute, self._device), "cuDeviceGetAttribute"))

    def _facts(self) -> Facts:
        cu = self.cu
        name = self._check(cu.cuDeviceGetName(128, self._device), "cuDeviceGetName").split(b"\0")[0].decode()
        version = int(self._check(cu.cuDriverGetVersion(), "cuDriverGetVersion"))
        major, minor = self._attribute("COMPUTE_CAPABILITY_MAJOR"), self._attribute("COMPUTE_CAPABILITY_MINOR")
        return Facts(name, f"sm_{major}{minor}", f"{version // 1000}.{version % 1000 // 10}",
                     self._attribute("MULTIPROCESSOR_COUNT"), self._attribute("MAX_SHARED_MEMORY_PER_BLOCK_OPTIN"),
                     self._attribute("L2_CACHE_SIZE"), int(self._check(cu.cuDeviceTotalMem(self._device), "memory")))

    def enter(self) -> None:
        """Make the device's context this thread's."""
        if not getattr(self._entered, "done", False):
            self._check(self.cu.cuCtxSetCurrent(self._context), "cuCtxSetCurrent")
            self._entered.done = True

    def alloc(self, nbytes: int) -> int:
        return int(self._check(self.cu.cuMemAlloc(max(nbytes, 1)), f"{nbytes} bytes of device memory"))

    def free(self, address: int) -> None:
        self._check(self.cu.cuMemFree(address), "cuMemFree")

    def pinned(self, nbytes: int) -> int:
        return int(self._check(self.cu.cuMemHostAlloc(max(nbytes, 1), 0), f"{nbytes} bytes of pinned memory"))

    def unpin(self, address: int) -> None:
        self._check(self.cu.cuMemFreeHost(address), "cuMemFreeHost")

    def upload(self, device: int, host: int, nbytes: int, stream: Handle) -> None:
        self._check(self.cu.cuMemcpyHtoDAsync(device, host, nbytes, stream), "a copy to the device")

    def download(self, host: int, device: int, nbytes: int, stream: Handle) -> None:
        self._check(self.cu.cuMemcpyDtoHAsync(host, device, nbytes, stream), "a copy from the device")

    def copy(self, to: int, source: int, nbytes: int, stream: Handle) -> None:
        self._check(self.cu.cuMemcpyDtoDAsync(to, source, nbytes, stream), "a copy on the device")

    def fill(self, address: int, byte: int, nbytes: int, stream: Handle) -> None:
        if nbytes:
            self._check(self.cu.cuMemsetD8Async(address, byte, nbytes, stream), "cuMemsetD8Async")

    def stream(self, *, apart: bool = False) -> Handle:
        """A stream; one that is not `apart` keeps the order of what is done on the device's default stream."""
        flags = self.cu.CUstream_flags.CU_STREAM_NON_BLOCKING if apart else 0
        return self._check(self.cu.cuStreamCreate(int(flags)), "cuStreamCreate")

    def close(self, stream: Handle) -> None:
        self._check(self.cu.cuStreamDestroy(stream), "cuStreamDestroy")

    def cancel(self, event: Handle) -> None:
        self._check(self.cu.cuEventDestroy(event), "cuEventDestroy")

    def finish(self, stream: Handle) -> None:
        self._check(self.cu.cuStreamSynchronize(stream), "the work on the stream")

    def event(self) -> Handle:
        return self._check(self.cu.cuEventCreate(0), "cuEventCreate")

    def record(self, event: Handle, stream: Handle) -> None:
        self._check(self.cu.cuEventRecord(event, stream), "cuEventRecord")

    def wait(self, stream: Handle, event: Handle) -> None:
        self._check(self.cu.cuStreamWaitEvent(stream, event, 0), "cuStreamWaitEvent")

    def settle(self, event: Handle) -> None:
        self._check(self.cu.cuEventSynchronize(event), "the work before the event")

    def elapsed(self, begin: Handle, end: Handle) -> float:
        """Seconds from one event to another, both of them past."""
        return float(self._check(self.cu.cuEventElapsedTime(begin, end), "cuEventElapsedTime")) * 1e-3

    def load(self, cubin: bytes) -> Handle:
        return self._check(self.cu.cuModuleLoadData(cubin), "the device code")

    def unload(self, module: Handle) -> None:
        self._check(self.cu.cuModuleUnload(module), "cuModuleUnload")

    def function(self, module: Handle, entry: str, shared: int) -> Handle:
        function = self._check(self.cu.cuModuleGetFunction(module, entry.encode()), f"the entry {entry}")
        if shared > 48 << 10:
            name = self.cu.CUfunction_attribute.CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES
            self._check(self.cu.cuFuncSetAttribute(function, name, shared), f"{shared} bytes of shared memory")
        return function

    def launch(self, launch: Launch, stream: Handle) -> None:
        cu = self.cu
        if not launch.dependent and launch.cluster == 1:
            self._check(cu.cuLaunchKernel(launch.function, *launch.grid, launch.threads, 1, 1, launch.shared, stream,
                                          launch.parameters, 0), "a launch")
            return
        config, attributes = cu.CUlaunchConfig(), []
        if launch.dependent:
            attribute = cu.CUlaunchAttribute()
            attribute.id = cu.CUlaunchAttributeID.CU_LAUNCH_ATTRIBUTE_PROGRAMMATIC_STREAM_SERIALIZATION
            attribute.value.programmaticStreamSerializationAllowed = 1
            attributes.append(attribute)
        if launch.cluster > 1:
            attribute = cu.CUlaunchAttribute()
            attribute.id = cu.CUlaunchAttributeID.CU_LAUNCH_ATTRIBUTE_CLUSTER_DIMENSION
            attribute.value.clusterDim.x = launch.cluster
            attribute.value.clusterDim.y = attribute.value.clusterDim.z = 1
            attributes.append(attribute)
        config.gridDimX, config.gridDimY, config.gridDimZ = launch.grid
        config.blockDimX, config.blockDimY, config.blockDimZ = launch.threads, 1, 1
        config.sharedMemBytes, config.hStream = launch.shared, stream
        config.attrs, config.numAttrs = attributes, len(attributes)
        self._check(cu.cuLaunchKernelEx(config, launch.function, launch.parameters, 0), "a launch")

    def begin(self, stream: Handle) -> None:
        self._check(self.cu.cuStreamBeginCapture(stream, self._none), "the capture of a graph")

    def end(self, stream: Handle) -> Handle:
        graph = self._check(self.cu.cuStreamEndCapture(stream), "the captured graph")
        made = self._check(self.cu.cuGraphInstantiate(graph, 0), "the instance of a graph")
        self._check(self.cu.cuGraphDestroy(graph), "cuGraphDestroy")
        return made

    def replay(self, graph: Handle, stream: Handle) -> None:
        if int(self.cu.cuGraphLaunch(graph, stream)[0]):
            raise DeviceError("the CUDA driver refused to replay a graph")

    def drop(self, graph: Handle) -> None:
        self._check(self.cu.cuGraphExecDestroy(graph), "cuGraphExecDestroy")

    def encode(self, spec: MapSpec, into: int) -> None:
        """Write the 128 bytes of a tensor map to a 64-byte aligned address of this process."""
        rank = len(spec.shape)
        shape, strides = _array(ctypes.c_uint64, spec.shape), _array(ctypes.c_uint64, spec.strides or (0,))
        steps, swizzle = _array(ctypes.c_uint32, spec.steps), ctypes.c_int({0: 0, 32: 1, 64: 2, 128: 3}[spec.swizzle])
        none, promotion = ctypes.c_int(0), ctypes.c_int(2)      # L2 promotion of 128 bytes
        head = (ctypes.c_void_p(into), ctypes.c_int(spec.dtype), ctypes.c_uint32(rank), ctypes.c_void_p(spec.address),
                shape, strides)
        if spec.lower:
            corners = (_array(ctypes.c_int, spec.lower), _array(ctypes.c_int, spec.upper))
            channels, pixels = (ctypes.c_uint32(n) for n in spec.box)
            code = self._lib.cuTensorMapEncodeIm2col(*head, *corners, channels, pixels, steps, none, swizzle, promotion,
                                                     none)
        else:
            code = self._lib.cuTensorMapEncodeTiled(*head, _array(ctypes.c_uint32, spec.box), steps, none, swizzle,
                                                    promotion, none)
        if code:
            raise DeviceError("the CUDA driver refused a tensor map", where=f"error {code}", why=(str(spec),))


@cache
def cuda_driver(index: int = 0) -> CudaDriver:
    """The driver of a GPU, one per process. Raises DeviceError where there is none."""
    return CudaDriver(index)
