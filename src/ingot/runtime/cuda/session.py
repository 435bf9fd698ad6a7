"""CudaSession: an engine on a GPU, each set of sizes captured once as CUDA graphs and replayed."""
from __future__ import annotations

import threading
import weakref
from collections import OrderedDict, deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import replace

import numpy as np

from ingot.engine import Engine, Variant
from ingot.engine.variant import in_place_by
from ingot.errors import EngineError, InputError, InternalError
from ingot.graph import evaluate
from ingot.kernels.cuda import COUNTERS, DATA, WORKSPACE, CudaKernel
from ingot.plan import bytes_at, faults, largest_bytes, plan_memory
from ingot.plan.memory import largest
from ingot.runtime.cuda.arguments import Packed
from ingot.runtime.cuda.driver import DeviceError, Driver, Handle
from ingot.runtime.cuda.host import HostLaunches
from ingot.runtime.cuda.image import Image, image_of
from ingot.runtime.cuda.interop import DeviceArray, device_address, is_on_device
from ingot.runtime.cuda.memory import ALIGN, Areas, DeviceBlock, PinnedBlock
from ingot.runtime.cuda.ranges import named
from ingot.runtime.cuda.runs import Bound, Captured, HostRun, OnHost, Slot, fastest
from ingot.runtime.feeds import as_array, bind, checked_out, ordered
from ingot.runtime.memory import array_at
from ingot.runtime.table import holders

_GRAPHS = 64            # captured graphs that are kept ready
_ROUNDS = 20            # launches in a row that a profile times each kernel by


class CudaSession:
    """Runs an engine's GPU variant. Safe to call from several threads, which take turns.

    Sessions of one engine share weights and code. Arrays may lie on the host, or on the device: any object with a
    CUDA array interface is read in place. Raises EngineError for a variant whose parts do not fit, DeviceError where
    the driver refuses.
    """

    def __init__(self, engine: Engine, variant: Variant, kernels: Mapping[str, CudaKernel], driver: Driver, *,
                 dependent: Sequence[int] | None = None) -> None:
        self.engine, self.variant, self.driver = engine, variant, driver
        driver.enter()
        self._program = program = variant.program
        self._kernels = tuple(kernels[x.site.key] if x.native else None for x in program.launches)
        demands = [(k.workspace, 0) if k else (0, 0) for k in self._kernels]
        self.plan = variant.plan
        if wrong := faults(program, self.plan, demands):
            raise EngineError(f"the engine '{engine.name}' is not sound", why=tuple(wrong[:3]),
                              mend="build the engine anew")
        if any(at % ALIGN for at in self.plan.offsets.values()):
            self.plan = plan_memory(program, demands, 1, in_place_by(variant.choices), align=ALIGN)
        self._image: Image = image_of(driver, variant, kernels)
        told = variant.report.get("dependent", ()) if dependent is None else dependent
        self.dependent = frozenset(int(str(i)) for i in told)       # type: ignore[attr-defined]
        self._holders = holders(program)
        self._place()
        self.queue = driver.stream()
        self._slots: list[Slot] = []
        self._graphs: OrderedDict[tuple[object, ...], Captured] = OrderedDict()
        self._host_runs: dict[tuple[tuple[int, ...], ...], HostRun] = {}
        weakref.finalize(self, _let_go, driver, self._graphs, self._host_runs, self.queue)
        self._bounds: dict[tuple[tuple[int, ...], ...], Bound] = {}
        self._host = HostLaunches(driver, program)
        self._lock = threading.Lock()
        self._names = frozenset(program.inputs)
        values = (*program.inputs, *program.outputs)
        self._whole = all(x.native for x in program.launches) and all(
            program.types[v].dtype.name != "str" for v in values)

    def _place(self) -> None:
        """Memory beside the arena: values that outputs are copied from, and counters, zero at first."""
        program, areas = self._program, Areas()
        outside = {*self._holders, *program.inputs, *program.constants}
        side = {root: areas.take(largest_bytes(program.types[root], program.symbols))
                for root in dict.fromkeys(program.root(v)[0] for v in program.outputs)
                if root not in outside and program.types[root].dtype.name != "str"}
        counters = [areas.take(largest(k.counters, program.symbols)) if k and k.counters else 0 for k in self._kernels]
        self._arena = DeviceBlock(self.driver, self.plan.arena)
        self._beside = DeviceBlock(self.driver, areas.nbytes)
        self._side = {root: self._beside.address + at for root, at in side.items()}
        self._counters = [self._beside.address + at for at in counters]
        self.driver.fill(self._beside.address, 0, areas.nbytes, self.driver.idle)
        self.driver.finish(self.driver.idle)

    @property
    def variants(self) -> tuple[Variant, ...]:
        """What runs: one."""
        return (self.variant,)

    @property
    def arena(self) -> int:
        """Bytes of device memory for intermediate values."""
        return self.plan.arena

    @property
    def referenced(self) -> tuple[str, ...]:
        """The ops that run on the host."""
        return tuple(dict.fromkeys(s.op for x in self._program.launches if not x.native for s in x.site.steps))

    @property
    def threads(self) -> int:
        """Of the host: one."""
        return 1

    @property
    def device_memory(self) -> int:
        """Bytes on the device: arena, weights, buffers of requests, and what lies beside them."""
        slots = sum(b.nbytes for s in self._slots for b in s.kept if isinstance(b, DeviceBlock))
        return self.plan.arena + self._beside.nbytes + self._image.block.nbytes + slots

    # --- a run --------------------------------------------------------------------------------------------------

    def run(self, *feeds: object, out: Mapping[str, np.ndarray] | None = None) -> dict[str, np.ndarray]:
        """Outputs by name as numpy arrays, for inputs given as one dict by name or positionally.

        Inputs lie on the host or on the device, each as it likes. Raises InputError where something does not fit.
        """
        given = self._given(feeds)
        with self._lock:
            self.driver.enter()
            bound, addresses, arrays = self._taken(given)
            if self._whole and not any(addresses):
                return self._run_whole(self._host_run(bound, arrays), bound, arrays, out)
            slot = self._slot(0)
            self._upload(slot, bound, arrays, self.queue)
            inputs = tuple(a or s for a, s in zip(addresses, slot.inputs, strict=True))
            self._go(bound, inputs, slot.outputs, arrays)
            self._download(slot, bound, inputs, self.queue)
            self.driver.finish(self.queue)
            host = [a for a in arrays if a is not None]
            return self._results(slot, bound, out, host)

    def _run_whole(self, whole: HostRun, bound: Bound, arrays: Sequence[np.ndarray | None],
                   out: Mapping[str, np.ndarray] | None) -> dict[str, np.ndarray]:
        """Copies in, kernels and copies out as one graph."""
        for view, array in zip(whole.inputs, arrays, strict=True):
            view[...] = array
        self.driver.replay(whole.graph, self.queue)
        try:                            # while it runs
            given = {} if out is None else checked_out(out, whole.kinds, bound.results,
                                                       [a for a in arrays if a is not None])
            made = {name: given[name] if name in given else np.empty(shape, dtype)
                    for (name, dtype), shape in zip(whole.kinds, bound.results, strict=True)}
        finally:
            self.driver.finish(self.queue)
        for array, view in zip(made.values(), whole.outputs, strict=True):
            array[...] = view
        for name, array in (out or {}).items():         # whose memory could not be written at once
            if made[name] is not array:
                array[...] = made[name]
                made[name] = array
        return made

    def _host_run(self, bound: Bound, arrays: Sequence[np.ndarray | None]) -> HostRun:
        """The graph and the views for these sizes, made when they are first asked for, and raced on these inputs.

        The race is about whether kernels read and write pinned memory themselves, or the copy engine brings it: a copy
        is a step before and after the kernels, but what is read several times is better read from near.
        """
        if bound.shapes not in self._host_runs:
            if len(self._host_runs) >= _GRAPHS:
                _drop(self.driver, tuple(r.graph for r in self._host_runs.values()))
                self._host_runs.clear()
            program, slot = self._program, self._slot(0)

            def views(pinned: Sequence[int], values: Sequence[str],
                      shapes: Sequence[tuple[int, ...]]) -> tuple[np.ndarray, ...]:
                return tuple(array_at(at, shape, _dense(shape), program.types[v].dtype.numpy)
                             for at, v, shape in zip(pinned, values, shapes, strict=True))

            ins = views(slot.pinned_in, program.inputs, bound.shapes)
            for view, array in zip(ins, arrays, strict=True):
                view[...] = array
            graph = fastest(self.driver, self.queue, [
                self._host_graph(bound, slot, direct_in=i, direct_out=o)
                for i in self._may_read_pinned for o in self._may_write_pinned])
            self._host_runs[bound.shapes] = HostRun(
                graph, ins, views(slot.pinned_out, program.outputs, bound.results),
                tuple((v, program.types[v].dtype.numpy) for v in program.outputs))
        return self._host_runs[bound.shapes]

    @property
    def _may_read_pinned(self) -> tuple[bool, ...]:
        """Ways to bring inputs: by copies, or (True) read by kernels where they lie, unless one is an output, too."""
        program = self._program
        passed = any(program.root(v)[0] in program.inputs for v in program.outputs)
        return (False,) if passed else (False, True)

    @property
    def _may_write_pinned(self) -> tuple[bool, ...]:
        """Ways to bring outputs: by copies, or (True) written by kernels, unless these might add to them atomically."""
        adds = any(s.op.startswith("Scatter") for x in self._program.launches for s in x.site.steps)
        return (False, True) if any(self._holders) and not adds else (False,)

    def _host_graph(self, bound: Bound, slot: Slot, *, direct_in: bool, direct_out: bool) -> Handle | None:
        """A run from pinned memory to pinned memory; None where the driver does not let kernels reach that memory."""
        inputs = slot.pinned_in if direct_in else slot.inputs
        outputs = tuple(p if direct_out and h else o
                        for p, o, h in zip(slot.pinned_out, slot.outputs, self._holders, strict=True))
        ins = [] if direct_in else [(d, p, n) for d, p, n in zip(slot.inputs, slot.pinned_in, bound.given, strict=True)
                                    if n]
        try:
            launches = [x for i in range(len(self._program.launches))
                        for x in self._launches(i, bound, inputs, outputs)]
            return self.capture(launches, ins, lambda: self._download(replace(slot, outputs=outputs), bound, inputs,
                                                                      self.queue))
        except DeviceError:
            if direct_in or direct_out:
                return None
            raise

    def run_on_device(self, *feeds: object, out: Mapping[str, object] | None = None) -> dict[str, DeviceArray]:
        """As `run`, with outputs left on the device, without waiting for them.

        Without `out` they lie in the session's own buffers and hold until its next run. `out` names dense device
        arrays of the right type that are written in place.
        """
        given = self._given(feeds)
        with self._lock:
            self.driver.enter()
            bound, addresses, arrays = self._taken(given)
            slot = self._slot(0)
            self._upload(slot, bound, arrays, self.queue)
            inputs = tuple(a or s for a, s in zip(addresses, slot.inputs, strict=True))
            wanted = self._wanted(out or {}, bound)
            outputs = tuple(w if w and h else s for w, h, s in zip(wanted, self._holders, slot.outputs, strict=True))
            self._go(bound, inputs, outputs, arrays)
            made: dict[str, DeviceArray] = {}
            for k, name in enumerate(self._program.outputs):
                at = self._output_address(k, inputs, outputs, bound)
                if wanted[k] and wanted[k] != at:
                    self.driver.copy(wanted[k], at, bound.made[k], self.queue)
                    at = wanted[k]
                owner = out[name] if out and name in out else self
                made[name] = DeviceArray(self.driver, at, bound.results[k], self._program.types[name].dtype.numpy,
                                         self.queue, owner)
            return made

    def bind(self, *feeds: object, out: Mapping[str, object] | None = None) -> Replay:
        """A run on these very device arrays, ready to be repeated: each call replays it and costs a few microseconds.

        Raises InputError for arrays on the host, or an engine some of whose nodes run on the host.
        """
        given = self._given(feeds)
        if not all(map(is_on_device, given)):
            raise InputError("only device arrays can be bound", mend="pass arrays in GPU memory, or use run")
        made = self.run_on_device(*feeds, out=out)
        with self._lock:
            bound, addresses, _ = self._taken(given)
            outputs = tuple(made[n].address if h else s for n, h, s in zip(
                self._program.outputs, self._holders, self._slot(0).outputs, strict=True))
            host = [x.where for x in self._program.launches if not x.native]
            if host:
                raise InputError("this engine has nodes that run on the host", why=tuple(host[:3]), mend="use run")
            graphs = self._parts(bound, addresses, outputs)
        return Replay(self, graphs, made, (feeds, out))

    def stream(self, requests: Iterable[Mapping[str, np.ndarray]], depth: int = 2) -> Iterator[dict[str, np.ndarray]]:
        """Results of requests, in order, copies in and out overlapped with the kernels of other requests."""
        driver = self.driver
        driver.enter()
        if any(not x.native for x in self._program.launches):
            yield from (self.run(r) for r in requests)
            return
        into, back = driver.stream(apart=True), driver.stream(apart=True)
        waiting: deque[tuple[Slot, Bound, tuple[int, ...], Handle]] = deque()
        events = [(driver.event(), driver.event(), driver.event()) for _ in range(depth)]
        with self._lock, _closing(driver, (into, back), [e for each in events for e in each]):
            for number, request in enumerate(requests):
                if len(waiting) == depth:
                    yield self._finished(*waiting.popleft())
                slot = self._slot(1 + number % depth)
                copied, computed, done = events[number % depth]
                bound, _, arrays = self._taken(self._given((request,)))
                self._upload(slot, bound, arrays, into)
                driver.record(copied, into)
                driver.wait(self.queue, copied)
                self._go(bound, slot.inputs, slot.outputs, arrays)
                driver.record(computed, self.queue)
                driver.wait(back, computed)
                self._download(slot, bound, slot.inputs, back)
                driver.record(done, back)
                waiting.append((slot, bound, slot.inputs, done))
                if self._shared_outputs:        # written by every request: the next must not overtake the copy
                    driver.wait(self.queue, done)
            while waiting:
                yield self._finished(*waiting.popleft())

    def _finished(self, slot: Slot, bound: Bound, _: tuple[int, ...], done: Handle) -> dict[str, np.ndarray]:
        self.driver.settle(done)
        return self._results(slot, bound, None, [])

    @property
    def _shared_outputs(self) -> bool:
        return not all(self._holders)

    # --- inputs and outputs -------------------------------------------------------------------------------------

    def _given(self, feeds: tuple[object, ...]) -> list[object]:
        if len(feeds) == 1 and type(feeds[0]) is dict and feeds[0].keys() == self._names:
            return [feeds[0][n] for n in self._program.inputs]
        return ordered(feeds, self._program.inputs, self._program.types)

    def _taken(self, given: Sequence[object]) -> tuple[Bound, tuple[int, ...], list[np.ndarray | None]]:
        """The sizes; per input its device address (0: on the host) and its array on the host (None: on the device)."""
        addresses: list[int] = []
        arrays: list[np.ndarray | None] = []
        shapes: list[tuple[int, ...]] = []
        for value, name in zip(given, self._program.inputs, strict=True):
            type_ = self._program.types[name]
            if is_on_device(value):
                at, shape = device_address(value, name, type_)
                addresses.append(at)
                arrays.append(None)
            else:
                array = as_array(value, name, type_)
                addresses.append(0)
                arrays.append(array)
                shape = array.shape
            shapes.append(shape)
        return self._bound(tuple(shapes)), tuple(addresses), arrays

    def _bound(self, shapes: tuple[tuple[int, ...], ...]) -> Bound:
        if shapes not in self._bounds:
            program = self._program
            if len(self._bounds) >= _GRAPHS:
                self._bounds.clear()
            sizes = bind(program.inputs, program.types, program.symbols, shapes)
            for root, planned in self.plan.sizes.items():
                if bytes_at(program.types[root], sizes) > planned:
                    raise InternalError(f"'{root}' needs more memory than was planned", why=(f"at {dict(sizes)}",))
            results = tuple(tuple(evaluate(d, sizes) for d in program.types[v].shape) for v in program.outputs)
            self._bounds[shapes] = Bound(
                shapes, sizes, tuple(bytes_at(program.types[v], sizes) for v in program.inputs), results,
                tuple(bytes_at(program.types[v], sizes) for v in program.outputs))
        return self._bounds[shapes]

    def _slot(self, number: int) -> Slot:
        while len(self._slots) <= number:
            program, driver = self._program, self.driver
            ins = [0 if program.types[v].dtype.name == "str" else largest_bytes(program.types[v], program.symbols)
                   for v in program.inputs]
            outs = [largest_bytes(program.types[h], program.symbols) if h else 0 for h in self._holders]
            back = [0 if program.types[v].dtype.name == "str" else largest_bytes(program.types[v], program.symbols)
                    for v in program.outputs]
            areas, host = Areas(), Areas()
            at = [[areas.take(n) for n in ins], [areas.take(n) for n in outs]]
            pin = [[host.take(n) for n in ins], [host.take(n) for n in back]]
            device, pinned = DeviceBlock(driver, areas.nbytes), PinnedBlock(driver, host.nbytes)
            self._slots.append(Slot(
                tuple(device.address + a for a in at[0]),
                tuple(device.address + a if h else 0 for a, h in zip(at[1], self._holders, strict=True)),
                tuple(pinned.address + a for a in pin[0]), tuple(pinned.address + a for a in pin[1]),
                (device, pinned)))
        return self._slots[number]

    def _upload(self, slot: Slot, bound: Bound, arrays: Sequence[np.ndarray | None], stream: Handle) -> None:
        for array, pinned, device, nbytes in zip(arrays, slot.pinned_in, slot.inputs, bound.given, strict=True):
            if array is None or not array.nbytes or array.dtype.kind in "OUS":
                continue
            array_at(pinned, array.shape, _dense(array.shape), array.dtype)[...] = array
            self.driver.upload(device, pinned, nbytes, stream)

    def _download(self, slot: Slot, bound: Bound, inputs: tuple[int, ...], stream: Handle) -> None:
        for k, (pinned, nbytes) in enumerate(zip(slot.pinned_out, bound.made, strict=True)):
            if nbytes and self._program.types[self._program.outputs[k]].dtype.name != "str":
                at = self._output_address(k, inputs, slot.outputs, bound)
                if at != pinned:
                    self.driver.download(pinned, at, nbytes, stream)

    def _results(self, slot: Slot, bound: Bound, out: Mapping[str, np.ndarray] | None,
                 inputs: Sequence[np.ndarray]) -> dict[str, np.ndarray]:
        program = self._program
        kinds = tuple((v, program.types[v].dtype.numpy) for v in program.outputs)
        given = {} if out is None else checked_out(out, kinds, bound.results, inputs)
        made: dict[str, np.ndarray] = {}
        for (name, dtype), shape, pinned in zip(kinds, bound.results, slot.pinned_out, strict=True):
            if program.types[name].dtype.name == "str":
                made[name] = self._host.strings(name).reshape(shape)
                continue
            into = given[name] if name in given else np.empty(shape, dtype)
            if into.size:
                into[...] = array_at(pinned, shape, _dense(shape), dtype)
            made[name] = into
        for name, array in (out or {}).items():
            if made[name] is not array:
                array[...] = made[name]
                made[name] = array
        return made

    def _wanted(self, out: Mapping[str, object], bound: Bound) -> tuple[int, ...]:
        """Per output the address the caller wants it at, 0 for anywhere."""
        if unknown := [n for n in out if n not in self._program.outputs]:
            raise InputError(f"the engine has no output '{unknown[0]}'", where="out",
                             mend=f"name some of: {', '.join(self._program.outputs)}")
        found: list[int] = []
        for name, shape in zip(self._program.outputs, bound.results, strict=True):
            if name not in out:
                found.append(0)
                continue
            if not is_on_device(out[name]):
                raise InputError(f"out['{name}'] does not lie on the device", where="out", mend="use run")
            address, given = device_address(out[name], name, self._program.types[name])
            if given != shape:
                raise InputError(f"out['{name}'] has shape {list(given)}, the result {list(shape)}", where="out")
            found.append(address)
        return tuple(found)

    # --- addresses and graphs -----------------------------------------------------------------------------------

    def _address(self, value: str, inputs: Sequence[int], outputs: Sequence[int], sizes: Mapping[str, int]) -> int:
        root, offset = self._program.root(value)
        at = evaluate(offset, sizes)
        if root in self._program.inputs:
            return inputs[self._program.inputs.index(root)] + at
        if root in self._holders:
            return outputs[self._holders.index(root)] + at
        if root in self._image.constants:
            return self._image.constants[root] + at
        if root in self.plan.offsets:
            return self._arena.address + self.plan.offsets[root] + at
        if root in self._side:
            return self._side[root] + at
        if self._program.types[root].dtype.name == "str":
            return 0
        raise InternalError(f"the plan has no place for '{root}'")

    def _output_address(self, index: int, inputs: Sequence[int], outputs: Sequence[int], bound: Bound) -> int:
        return self._address(self._program.outputs[index], inputs, outputs, bound.sizes)

    def packed(self, index: int, bound: Bound, inputs: Sequence[int], outputs: Sequence[int]) -> list[Packed]:
        """The launches of one launch of the program, with all their parameters."""
        launch, kernel = self._program.launches[index], self._kernels[index]
        assert kernel is not None       # only native launches are packed
        values = (*launch.reads, *filter(None, launch.writes))
        operands = {k: self._image.packed.get((index, k)) or self._address(v, inputs, outputs, bound.sizes)
                    for k, v in enumerate(values)}
        operands[WORKSPACE] = self._arena.address + self.plan.workspaces[index][0]
        operands[COUNTERS] = self._counters[index]
        operands[DATA] = self._image.data.get(launch.site.key, 0)
        sizes = {s.name: bound.sizes[s.name] for s in launch.site.symbols}
        return [Packed(self.driver, x, f, operands, sizes)
                for x, f in zip(kernel.launches, self._image.functions[launch.site.key], strict=True)]

    def _captured(self, bound: Bound, inputs: tuple[int, ...], outputs: tuple[int, ...]) -> Captured:
        """The graphs for these shapes and addresses, captured when they are first asked for."""
        key = bound.shapes, inputs, outputs
        if key in self._graphs:
            self._graphs.move_to_end(key)
            return self._graphs[key]
        while len(self._graphs) >= _GRAPHS:
            _drop(self.driver, self._graphs.popitem(last=False)[1])
        self._graphs[key] = found = self._parts(bound, inputs, outputs)
        return found

    def _parts(self, bound: Bound, inputs: tuple[int, ...], outputs: tuple[int, ...]) -> Captured:
        parts: list[list[int] | OnHost] = []
        for index, launch in enumerate(self._program.launches):
            if not launch.native:
                parts.append(OnHost(index))
            elif parts and isinstance(parts[-1], list):
                parts[-1].append(index)
            else:
                parts.append([index])
        return tuple(p if isinstance(p, OnHost) else self.capture(
            [x for i in p for x in self._launches(i, bound, inputs, outputs)]) for p in parts)

    def _launches(self, index: int, bound: Bound, inputs: Sequence[int],
                  outputs: Sequence[int]) -> list[tuple[Packed, bool]]:
        """The launches of one launch of the program; the first of them may be a dependent one."""
        packed = self.packed(index, bound, inputs, outputs)
        return [(p, index in self.dependent) for p in packed]

    def capture(self, launches: Sequence[tuple[Packed, bool]], uploads: Sequence[tuple[int, int, int]] = (),
                after: Callable[[], None] | None = None) -> Handle:
        """Launches as one graph, after copies of (device, host, bytes) and before what `after` queues."""
        driver = self.driver
        driver.begin(self.queue)
        try:
            for device, host, nbytes in uploads:
                driver.upload(device, host, nbytes, self.queue)
            for number, (packed, dependent) in enumerate(launches):     # the first has no kernel to depend on
                if (told := packed.launch(dependent=dependent and number > 0)) is not None:
                    driver.launch(told, self.queue)
            if after is not None:
                after()
        except DeviceError:
            driver.drop(driver.end(self.queue))
            raise
        return driver.end(self.queue)

    def _go(self, bound: Bound, inputs: tuple[int, ...], outputs: tuple[int, ...],
            arrays: Sequence[np.ndarray | None]) -> None:
        graphs = self._captured(bound, inputs, outputs)
        if any(isinstance(g, OnHost) for g in graphs):
            self._host.begin(arrays)
        for part in graphs:
            if isinstance(part, OnHost):
                self._host.run(part.index, bound.sizes, self.queue,
                               lambda v: self._address(v, inputs, outputs, bound.sizes))
            else:
                self.driver.replay(part, self.queue)

    # --- looking at it ------------------------------------------------------------------------------------------

    def device_seconds(self, *feeds: object, rounds: int = 50, repeat: int = 1) -> list[float]:
        """Seconds of a run on the device, by events around `repeat` replays in a row; some rounds, after a warm-up."""
        driver = self.driver
        given = self._given(feeds)
        self.run(*feeds)
        begin, end = driver.event(), driver.event()
        found: list[float] = []
        with self._lock, _closing(driver, (), (begin, end)):
            bound, addresses, arrays = self._taken(given)
            slot = self._slot(0)
            inputs = tuple(a or s for a, s in zip(addresses, slot.inputs, strict=True))
            for number in range(rounds + 5):
                driver.record(begin, self.queue)
                for _ in range(repeat):
                    self._go(bound, inputs, slot.outputs, arrays)
                driver.record(end, self.queue)
                driver.settle(end)
                if number >= 5:
                    found.append(driver.elapsed(begin, end) / repeat)
        return found

    def profile(self, *feeds: object) -> list[tuple[int, float]]:
        """(launch, seconds) of every launch on the device, in order: each repeated in a graph of its own.

        Each is a named range for Nsight, where the package `nvtx` is installed.
        """
        driver, given = self.driver, self._given(feeds)
        self.run(*feeds)
        begin, end = driver.event(), driver.event()
        found: list[tuple[int, float]] = []
        with self._lock, _closing(driver, (), (begin, end)):
            bound, addresses, _ = self._taken(given)
            slot = self._slot(0)
            inputs = tuple(a or s for a, s in zip(addresses, slot.inputs, strict=True))
            for index, kernel in enumerate(self._kernels):
                if kernel is None:
                    continue
                graph = self.capture(self._launches(index, bound, inputs, slot.outputs) * _ROUNDS)
                times: list[float] = []
                with named(f"{index} {self._program.launches[index].where}"):
                    for _ in range(6):
                        driver.record(begin, self.queue)
                        driver.replay(graph, self.queue)
                        driver.record(end, self.queue)
                        driver.settle(end)
                        times.append(driver.elapsed(begin, end) / _ROUNDS)
                driver.drop(graph)
                found.append((index, sorted(times[1:])[2]))
        return found

    def wait(self) -> None:
        """Until everything queued has run."""
        self.driver.enter()
        self.driver.finish(self.queue)

    def with_dependent(self, dependent: Iterable[int]) -> None:
        """Launch these with programmatic stream serialization from now on, where their kernels allow it."""
        with self._lock:
            self.dependent = frozenset(dependent)
            for graphs in self._graphs.values():
                _drop(self.driver, graphs)
            self._graphs.clear()
            _drop(self.driver, tuple(r.graph for r in self._host_runs.values()))
            self._host_runs.clear()

    @property
    def may_depend(self) -> tuple[int, ...]:
        """The launches whose kernels may start before the one before has ended."""
        return tuple(i for i, k in enumerate(self._kernels) if k and any(x.dependent for x in k.launches))


class Replay:
    """A run on arrays that stay where they are. `outputs` are the arrays it writes."""

    def __init__(self, session: CudaSession, graphs: Captured, outputs: Mapping[str, DeviceArray],
                 kept: object) -> None:
        self.outputs = outputs
        self._session, self._kept = session, kept
        self._graph: Handle = graphs[0] if graphs else None
        self._replay, self._queue = session.driver.replay, session.queue
        weakref.finalize(self, _drop, session.driver, graphs)

    def __call__(self) -> Mapping[str, DeviceArray]:
        """Queue the run; it is not waited for."""
        if self._graph is not None:
            self._replay(self._graph, self._queue)
        return self.outputs

    def wait(self) -> None:
        """Until everything queued has run."""
        self._session.wait()


@contextmanager
def _closing(driver: Driver, streams: Sequence[Handle], events: Sequence[Handle]) -> Iterator[None]:
    """Streams and events that are given back at the end."""
    try:
        yield
    finally:
        for stream in streams:
            driver.finish(stream)
            driver.close(stream)
        for event in events:
            driver.cancel(event)


def _dense(shape: tuple[int, ...]) -> tuple[int, ...]:
    steps, step = [], 1
    for n in reversed(shape):
        steps.append(step)
        step *= n
    return tuple(reversed(steps))


def _drop(driver: Driver, graphs: Captured) -> None:
    for graph in graphs:
        if not isinstance(graph, OnHost):
            driver.drop(graph)


def _let_go(driver: Driver, graphs: OrderedDict[tuple[object, ...], Captured],
            runs: dict[tuple[tuple[int, ...], ...], HostRun], queue: Handle) -> None:
    with suppress(DeviceError):         # at the end of a process the context may be gone before its graphs
        driver.enter()
        driver.finish(queue)
        for each in graphs.values():
            _drop(driver, each)
        _drop(driver, tuple(r.graph for r in runs.values()))
        driver.close(queue)


__all__ = ["CudaSession", "Replay"]
