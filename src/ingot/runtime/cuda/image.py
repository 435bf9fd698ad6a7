"""What the sessions of one engine share on a GPU: weights, uploaded once, and loaded code."""
from __future__ import annotations

import hashlib
import threading
import weakref
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass

import numpy as np

from ingot.engine import Variant
from ingot.errors import InternalError
from ingot.kernels.cuda import CudaKernel, CudaLaunch
from ingot.runtime.cuda.driver import DeviceError, Driver, Handle
from ingot.runtime.cuda.memory import Areas, DeviceBlock
from ingot.runtime.memory import address_of


class Modules:
    """Loaded cubins, each content once; they are unloaded with this object."""

    def __init__(self, driver: Driver) -> None:
        self._driver = driver
        self._modules: dict[str, Handle] = {}
        self._functions: dict[tuple[str, str, int], Handle] = {}
        weakref.finalize(self, _unload, driver, self._modules)

    def function(self, launch: CudaLaunch) -> Handle:
        """The device function of a launch. Raises DeviceError where the driver refuses the code."""
        digest = hashlib.sha256(launch.cubin).hexdigest()
        key = digest, launch.entry, launch.shared
        if key not in self._functions:
            if digest not in self._modules:
                self._modules[digest] = self._driver.load(launch.cubin)
            self._functions[key] = self._driver.function(self._modules[digest], launch.entry, launch.shared)
        return self._functions[key]


def _unload(driver: Driver, modules: Mapping[str, Handle]) -> None:
    with suppress(DeviceError):         # at the end of a process the context may be gone before its code
        driver.enter()
        for module in modules.values():
            driver.unload(module)


@dataclass
class Image:
    """Addresses of constants, packed operands and kernels' data; functions by site and place."""

    variant: Variant
    block: DeviceBlock
    constants: Mapping[str, int]
    packed: Mapping[tuple[int, int], int]
    data: Mapping[str, int]                                 # site key -> the kernel's own bytes
    kernels: Mapping[str, CudaKernel]                       # by site key
    functions: Mapping[str, tuple[Handle, ...]]
    modules: Modules


def make_image(driver: Driver, variant: Variant, kernels: Mapping[str, CudaKernel]) -> Image:
    """Upload a variant's constants and load its code."""
    driver.enter()
    areas = Areas()
    parts: list[tuple[int, np.ndarray]] = []
    placed: dict[int, int] = {}

    def put(array: np.ndarray) -> int:
        if id(array) not in placed:
            placed[id(array)] = at = areas.take(array.nbytes)
            parts.append((at, array))
        return placed[id(array)]

    constants = {k: put(a) for k, a in variant.program.constants.items() if a.dtype != object}
    packed = {k: put(a) for k, a in variant.packed.items()}
    data = {key: put(np.frombuffer(kernel.data, np.uint8)) for key, kernel in kernels.items() if kernel.data}
    block = DeviceBlock(driver, areas.nbytes)
    stream = driver.idle
    for at, array in parts:
        if array.nbytes:
            dense = np.ascontiguousarray(array)
            driver.upload(block.address + at, address_of(dense), dense.nbytes, stream)
    driver.finish(stream)
    modules = Modules(driver)
    functions = {key: tuple(modules.function(x) for x in kernel.launches) for key, kernel in kernels.items()}
    base = block.address
    return Image(variant, block, {k: base + at for k, at in constants.items()},
                 {k: base + at for k, at in packed.items()}, {k: base + at for k, at in data.items()},
                 dict(kernels), functions, modules)


class _Shared:
    """Images that some session of this process holds."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.images: dict[tuple[int, int], weakref.ref[Image]] = {}


_shared = _Shared()


def image_of(driver: Driver, variant: Variant, kernels: Mapping[str, CudaKernel]) -> Image:
    """The image of a variant on a GPU: the one another session holds, or a new one.

    Raises InternalError where a launch has no kernel.
    """
    if missing := next((x for x in variant.program.launches if x.native and x.site.key not in kernels), None):
        raise InternalError(f"there is no code for {missing.where}")
    key = id(driver), id(variant)
    with _shared.lock:
        held = _shared.images[key]() if key in _shared.images else None
        if held is None or held.variant is not variant or held.kernels != kernels:
            held = make_image(driver, variant, kernels)
            _shared.images[key] = weakref.ref(held)
        return held


__all__ = ["Image", "Modules", "image_of", "make_image"]
