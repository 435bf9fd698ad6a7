"""A GPU that is none: device memory is the host's, cubins name sites, and a launch runs the reference on them.

It records every call, so that tests see what a session asks of a driver, and it refuses what a driver refuses:
addresses it did not give, launches of unloaded code, handles that were dropped.
"""
from __future__ import annotations

import ctypes
import itertools
from collections.abc import Callable, Iterator, Mapping

import numpy as np

from ingot.graph import evaluate
from ingot.kernels import Kernel, Operand, Params, Site, Tactic
from ingot.kernels.cuda import COUNTERS, CudaKernel, CudaLaunch, Pointer, Scalar
from ingot.kernels.reference import from_physical, run_site, to_physical
from ingot.runtime.cuda.driver import DeviceError, Facts, Handle, Launch, MapSpec
from ingot.runtime.memory import array_at
from ingot.target import Target

H200 = Facts("NVIDIA H200", "sm_90", "13.0", 132, 232448, 60 << 20, 141 << 30)
SITES: dict[bytes, Site] = {}       # what the cubins of this process stand for


class SiteTactic(Tactic):
    """Serves every site but those of the ops it is told to leave."""

    name = "fake.site"

    def __init__(self, leaves: frozenset[str] = frozenset()) -> None:
        self.leaves = leaves

    def declines(self, site: Site, target: Target) -> str | None:
        left = [s.op for s in site.steps if s.op in self.leaves]
        return f"it leaves {left[0]}" if left else None

    def space(self, site: Site, target: Target) -> Iterator[Params]:
        yield {"rows": 1}
        yield {"rows": 2}

    def emit(self, site: Site, params: Params, target: Target) -> Kernel:
        cubin = f"{site.key}:{params['rows']}".encode()
        SITES[cubin] = site
        operands = len(site.inputs) + len(site.outputs)
        arguments = (*(Pointer(k) for k in range(operands)), Pointer(COUNTERS),
                     *(Scalar(evaluate_later(s.name), "i64") for s in site.symbols))
        launch = CudaLaunch("kernel", cubin, (1, 1, 1), 128, 0, arguments, dependent=True)
        return CudaKernel(self.name, site.text, (), 64, launches=(launch,), counters=8)


def evaluate_later(name: str) -> object:
    """The dimension that is one symbol."""
    from ingot.graph import parse_dim
    return parse_dim(name)


class FakeDriver:
    """One such GPU."""

    def __init__(self, facts: Facts = H200) -> None:
        self.facts = facts
        self.calls: list[tuple[object, ...]] = []
        self.memory: dict[int, ctypes.Array[ctypes.c_char]] = {}
        self.modules: dict[int, bytes] = {}
        self.graphs: dict[int, list[Callable[[], object]]] = {}
        self.count = itertools.count(1)
        self.recording: list[Callable[[], object]] | None = None
        self.clock = 0.0
        self.streams: set[int] = set()
        self.idle = ("stream", 0, False)

    def names(self) -> list[object]:
        """What was called, in order."""
        return [c[0] for c in self.calls]

    def _new(self, nbytes: int) -> int:
        raw = ctypes.create_string_buffer(nbytes + 512)
        at = -(-ctypes.addressof(raw) // 256) * 256
        ctypes.memset(at, 0xA5, nbytes)
        self.memory[at] = raw
        return at

    def enter(self) -> None:
        pass

    def alloc(self, nbytes: int) -> int:
        self.calls.append(("alloc", nbytes))
        return self._new(nbytes)

    def free(self, address: int) -> None:
        self.calls.append(("free", address))
        del self.memory[address]

    pinned, unpin = alloc, free

    def upload(self, device: int, host: int, nbytes: int, stream: Handle) -> None:
        self._do(lambda: (self.calls.append(("upload", nbytes)), ctypes.memmove(device, host, nbytes)))

    def download(self, host: int, device: int, nbytes: int, stream: Handle) -> None:
        self._do(lambda: (self.calls.append(("download", nbytes)), ctypes.memmove(host, device, nbytes)))

    def copy(self, to: int, source: int, nbytes: int, stream: Handle) -> None:
        self.calls.append(("copy", nbytes))
        self.clock += 1e-6
        ctypes.memmove(to, source, nbytes)

    def fill(self, address: int, byte: int, nbytes: int, stream: Handle) -> None:
        ctypes.memset(address, byte, nbytes)

    def stream(self, *, apart: bool = False) -> Handle:
        made = next(self.count)
        self.streams.add(made)
        return ("stream", made, apart)

    def close(self, stream: Handle) -> None:
        self.streams.remove(stream[1])

    def cancel(self, event: Handle) -> None:
        pass

    def finish(self, stream: Handle) -> None:
        self.calls.append(("finish", stream))

    def event(self) -> Handle:
        return [0.0]

    def record(self, event: Handle, stream: Handle) -> None:
        event[0] = self.clock

    def wait(self, stream: Handle, event: Handle) -> None:
        self.calls.append(("wait", stream))

    def settle(self, event: Handle) -> None:
        pass

    def elapsed(self, begin: Handle, end: Handle) -> float:
        return float(end[0] - begin[0])

    def load(self, cubin: bytes) -> Handle:
        if cubin not in SITES:
            raise DeviceError("no kernel image is available")
        self.calls.append(("load", cubin))
        handle = next(self.count)
        self.modules[handle] = cubin
        return handle

    def unload(self, module: Handle) -> None:
        del self.modules[module]

    def function(self, module: Handle, entry: str, shared: int) -> Handle:
        return module

    def launch(self, launch: Launch, stream: Handle) -> None:
        cubin = self.modules[launch.function]
        site = SITES[cubin]
        count = len(site.inputs) + len(site.outputs) + 1 + len(site.symbols)
        cells = (ctypes.c_void_p * count).from_address(launch.parameters)
        values = tuple(ctypes.c_int64.from_address(cells[k]).value for k in range(count))
        self._do(lambda: self._run(launch, values))

    def _do(self, work: Callable[[], object]) -> None:
        """Now, or whenever the graph that is being captured is replayed."""
        if self.recording is None:
            work()
        else:
            self.recording.append(work)

    def _run(self, launch: Launch, values: tuple[int, ...]) -> None:
        site = SITES[self.modules[launch.function]]
        inputs, outputs = len(site.inputs), len(site.outputs)
        sizes = dict(zip((s.name for s in site.symbols), values[inputs + outputs + 1:], strict=True))
        counter = ctypes.c_int64.from_address(values[inputs + outputs])
        if counter.value:
            raise DeviceError("the counters are not zero")
        arrays = [from_physical(_view(o, at, sizes), o.type.at(sizes))
                  for o, at in zip(site.inputs, values, strict=False)]
        results = run_site(site, [a.copy() for a in arrays], sizes)
        for operand, at, result in zip(site.outputs, values[inputs:], results, strict=False):
            type_ = operand.type.at(sizes)
            _view(operand, at, sizes)[...] = to_physical(result.astype(type_.dtype.numpy), type_)
        self.clock += 1e-6
        self.calls.append(("run", site.op, launch.dependent))

    def begin(self, stream: Handle) -> None:
        self.recording = []

    def end(self, stream: Handle) -> Handle:
        handle = next(self.count)
        self.graphs[handle], self.recording = self.recording or [], None
        self.calls.append(("graph", len(self.graphs[handle])))
        return handle

    def replay(self, graph: Handle, stream: Handle) -> None:
        self.calls.append(("replay", len(self.graphs[graph])))
        for work in self.graphs[graph]:
            work()

    def drop(self, graph: Handle) -> None:
        del self.graphs[graph]

    def encode(self, spec: MapSpec, into: int) -> None:
        self.calls.append(("encode", spec))


def _view(operand: Operand, at: int, sizes: Mapping[str, int]) -> np.ndarray:
    shape = tuple(evaluate(d, sizes) for d in operand.type.physical)
    steps = tuple(evaluate(s, sizes) for s in operand.steps)
    return array_at(at, shape, steps, operand.type.dtype.numpy)
