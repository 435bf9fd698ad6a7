"""Candidates of a race on a GPU: guarded runs for the judge, graphs of many launches for the clock."""
from __future__ import annotations

import weakref
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress

import numpy as np

from ingot.errors import CandidateError
from ingot.graph import evaluate
from ingot.kernels import Kernel, Operand, Site
from ingot.kernels.cuda import COUNTERS, DATA, WORKSPACE, CudaKernel
from ingot.kernels.reference import from_physical, to_physical
from ingot.runtime.cuda.arguments import Packed
from ingot.runtime.cuda.driver import DeviceError, Driver, Handle
from ingot.runtime.cuda.image import Modules
from ingot.runtime.cuda.memory import DeviceBlock

GUARD = 256             # bytes kept before and past every buffer that a kernel writes
GUARD_BYTE = 0xA5
ROUNDS = 20             # launches in one graph
COLD = 64 << 20         # bytes of copies that constants are read from in turn, as other layers' come between in a run


class CudaDevice:
    """A GPU, as the tuner sees it."""

    def __init__(self, driver: Driver) -> None:
        self.driver = driver

    def stand(self, site: Site) -> CudaStand:
        """A place for one site's race."""
        return CudaStand(site, self.driver)


class _Guarded:
    """Device memory between two guard zones."""

    def __init__(self, driver: Driver, nbytes: int, fill: int, stream: Handle) -> None:
        self.nbytes = nbytes
        self._block = DeviceBlock(driver, nbytes + 2 * GUARD)
        self.address = self._block.address + GUARD
        driver.fill(self._block.address, GUARD_BYTE, nbytes + 2 * GUARD, stream)
        driver.fill(self.address, fill, nbytes, stream)
        self._driver, self._stream = driver, stream

    def read(self) -> np.ndarray:
        """The bytes. Raises CandidateError where a guard zone was written."""
        whole = np.empty(self.nbytes, np.uint8)
        if whole.nbytes:
            self._driver.download(whole.ctypes.data, self.address, whole.nbytes, self._stream)
        self.check()
        return whole

    def check(self) -> None:
        """Raises CandidateError where a guard zone was written."""
        zones = np.empty((2, GUARD), np.uint8)
        for zone, address in zip(zones, (self._block.address, self.address + self.nbytes), strict=True):
            self._driver.download(zone.ctypes.data, address, GUARD, self._stream)
        self._driver.finish(self._stream)
        for name, zone in zip(("before the buffer", "past the buffer's end"), zones, strict=True):
            if (zone != GUARD_BYTE).any():
                raise CandidateError("the kernel writes outside its memory", why=(f"it writes {name}",))


class CudaStand:
    """One site's arrays on the device, shared by its candidates, and the code of each."""

    def __init__(self, site: Site, driver: Driver) -> None:
        self._site, self._driver = site, driver
        driver.enter()
        self._modules = Modules(driver)
        self._stream = driver.idle
        self._arrays: dict[int, tuple[np.ndarray, DeviceBlock]] = {}    # by id; the array is kept, so its id is its own
        self._made: list[DeviceBlock] = []
        self._events = driver.event(), driver.event()
        weakref.finalize(self, _cancel, driver, self._events)

    def _there(self, array: np.ndarray, operand: Operand, sizes: Mapping[str, int], packed: bool) -> int:
        """Where an input lies on the device; uploaded once."""
        if id(array) not in self._arrays:
            raw = np.ascontiguousarray(array) if packed else _laid(array, operand, sizes)
            block = DeviceBlock(self._driver, raw.nbytes)
            if raw.nbytes:
                self._driver.upload(block.address, raw.ctypes.data, raw.nbytes, self._stream)
                self._driver.finish(self._stream)
            self._arrays[id(array)] = array, block
        return self._arrays[id(array)][1].address

    def _own(self, kernel: CudaKernel, sizes: Mapping[str, int], fill: int) -> tuple[dict[int, int], list[DeviceBlock]]:
        """The kernel's own areas: workspace, counters, data."""
        driver = self._driver
        work, count = evaluate(kernel.workspace, sizes), evaluate(kernel.counters, sizes)
        blocks = [DeviceBlock(driver, work), DeviceBlock(driver, count), DeviceBlock(driver, len(kernel.data))]
        driver.fill(blocks[0].address, fill, work, self._stream)
        driver.fill(blocks[1].address, 0, count, self._stream)
        if kernel.data:
            data = np.frombuffer(kernel.data, np.uint8)
            driver.upload(blocks[2].address, data.ctypes.data, data.nbytes, self._stream)
            driver.finish(self._stream)
        return {WORKSPACE: blocks[0].address, COUNTERS: blocks[1].address, DATA: blocks[2].address}, blocks

    def outputs(self, kernel: Kernel, inputs: Sequence[np.ndarray], packed: Mapping[int, np.ndarray],
                sizes: Mapping[str, int], threads: int, fill: int, over: int | None = None) -> list[np.ndarray]:
        """Logical outputs of one guarded run. Raises CandidateError.

        `over` names an input whose memory the output takes.
        """
        assert isinstance(kernel, CudaKernel)       # what tactics of this target give
        driver, site = self._driver, self._site
        driver.enter()
        addresses = {k: self._there(packed.get(k, a), o, sizes, k in packed)
                     for k, (a, o) in enumerate(zip(inputs, site.inputs, strict=True))}
        made = [_Guarded(driver, _extent(o, sizes), fill, self._stream) for o in site.outputs]
        if over is not None:
            raw = _laid(inputs[over], site.inputs[over], sizes)
            driver.upload(made[0].address, raw.ctypes.data, raw.nbytes, self._stream)
            driver.finish(self._stream)
            addresses[over] = made[0].address
        own, _ = self._own(kernel, sizes, fill)
        areas = [_Guarded(driver, evaluate(kernel.workspace, sizes), fill, self._stream),
                 _Guarded(driver, evaluate(kernel.counters, sizes), 0, self._stream)]
        own |= {WORKSPACE: areas[0].address, COUNTERS: areas[1].address}
        operands = {**addresses, **own, **{len(site.inputs) + k: g.address for k, g in enumerate(made)}}
        try:
            for packed_ in self._packed(kernel, operands, sizes):
                if (launch := packed_.launch(dependent=False)) is not None:
                    driver.launch(launch, self._stream)
            driver.finish(self._stream)
        except DeviceError as error:
            raise CandidateError(f"the GPU refuses it: {error.what}", why=error.why) from None
        found = [_logical(g.read(), o, sizes) for g, o in zip(made, site.outputs, strict=True)]
        areas[0].check()
        if areas[1].read().any():
            raise CandidateError("the kernel leaves its counters other than zero")
        return found

    def _packed(self, kernel: CudaKernel, operands: Mapping[int, int], sizes: Mapping[str, int]) -> list[Packed]:
        bound = {s.name: sizes[s.name] for s in self._site.symbols}
        return [Packed(self._driver, x, self._modules.function(x), operands, bound) for x in kernel.launches]

    def timer(self, kernel: Kernel, inputs: Sequence[np.ndarray], packed: Mapping[int, np.ndarray],
              sizes: Mapping[str, int]) -> Callable[[int], float]:
        """What runs the kernel so many times in a row, as one graph or several, and gives the seconds.

        Raises CandidateError.
        """
        assert isinstance(kernel, CudaKernel)       # what tactics of this target give
        driver, site = self._driver, self._site
        driver.enter()
        if not self._made:
            self._made = [DeviceBlock(driver, _extent(o, sizes)) for o in site.outputs]
        own, kept = self._own(kernel, sizes, 0)
        base = {k: self._there(packed.get(k, a), o, sizes, k in packed)
                for k, (a, o) in enumerate(zip(inputs, site.inputs, strict=True))}
        base |= {len(site.inputs) + k: b.address for k, b in enumerate(self._made)}
        copies = {k: self._copies(packed.get(k, inputs[k]), base[k]) for k, o in enumerate(site.inputs) if o.constant}
        try:
            driver.begin(self._stream)
            launches = []
            for number in range(ROUNDS):
                operands = {**base, **own, **{k: at[number % len(at)] for k, at in copies.items()}}
                launches += self._packed(kernel, operands, sizes)
            for each in launches:
                if (launch := each.launch(dependent=False)) is not None:
                    driver.launch(launch, self._stream)
            graph = driver.end(self._stream)
        except DeviceError as error:
            raise CandidateError(f"the GPU refuses it: {error.what}", why=error.why) from None
        held = _Graph(driver, graph, (kept, launches))
        begin, end = self._events

        def once(times: int) -> float:
            replays = -(-times // ROUNDS)
            driver.record(begin, self._stream)
            for _ in range(replays):
                driver.replay(held.graph, self._stream)
            driver.record(end, self._stream)
            driver.settle(end)
            return driver.elapsed(begin, end) * times / (replays * ROUNDS)

        return once

    def _copies(self, array: np.ndarray, first: int) -> list[int]:
        """Enough copies of a constant that its next use finds it as far away as in a whole network's run."""
        wanted = max(1, min(ROUNDS, COLD // max(1, array.nbytes)))
        key = -id(array) - 1
        if key not in self._arrays:
            block = DeviceBlock(self._driver, wanted * (-(-array.nbytes // GUARD) * GUARD))
            for number in range(wanted):
                self._driver.copy(block.address + number * (block.nbytes // wanted), first, array.nbytes, self._stream)
            self._driver.finish(self._stream)
            self._arrays[key] = array, block
        block = self._arrays[key][1]
        return [block.address + number * (block.nbytes // wanted) for number in range(wanted)]


def _cancel(driver: Driver, events: Sequence[Handle]) -> None:
    with suppress(DeviceError):
        driver.enter()
        for event in events:
            driver.cancel(event)


class _Graph:
    """A captured graph, dropped with its holder."""

    def __init__(self, driver: Driver, graph: Handle, kept: object) -> None:
        self.graph, self._driver, self._kept = graph, driver, kept

    def __del__(self) -> None:
        self._driver.drop(self.graph)


def _shape(operand: Operand, sizes: Mapping[str, int]) -> tuple[tuple[int, ...], tuple[int, ...]]:
    return (tuple(evaluate(d, sizes) for d in operand.type.physical),
            tuple(evaluate(s, sizes) for s in operand.steps))


def _extent(operand: Operand, sizes: Mapping[str, int]) -> int:
    """Bytes from the first element to the last."""
    shape, steps = _shape(operand, sizes)
    extent = 0 if 0 in shape else 1 + sum((n - 1) * s for n, s in zip(shape, steps, strict=True))
    return extent * operand.type.dtype.nbytes


def _laid(array: np.ndarray, operand: Operand, sizes: Mapping[str, int]) -> np.ndarray:
    """A logical array's bytes as the operand lies in memory."""
    physical = to_physical(array, operand.type.at(sizes))
    if operand.strides is None:
        return np.ascontiguousarray(physical)
    shape, steps = _shape(operand, sizes)
    whole = np.zeros(_extent(operand, sizes) // operand.type.dtype.nbytes, physical.dtype)
    np.lib.stride_tricks.as_strided(whole, shape, tuple(s * whole.itemsize for s in steps))[...] = physical
    return whole


def _logical(raw: np.ndarray, operand: Operand, sizes: Mapping[str, int]) -> np.ndarray:
    """The logical array that lies in bytes as the operand says; channels that lie last as a view."""
    shape, steps = _shape(operand, sizes)
    whole = raw.view(operand.type.dtype.numpy)
    view = np.lib.stride_tricks.as_strided(whole, shape, tuple(s * whole.itemsize for s in steps))
    if operand.type.layout and not operand.type.block:
        return np.moveaxis(view, -1, 1)
    return from_physical(view, operand.type.at(sizes))


__all__ = ["CudaDevice", "CudaStand"]
