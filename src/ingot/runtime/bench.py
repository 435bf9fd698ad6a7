"""Candidates of a race on this machine: guarded runs for the judge, runs in a row for the clock."""
from __future__ import annotations

import ctypes
import hashlib
import resource
import time
from collections.abc import Callable, Mapping, Sequence

import numpy as np

from ingot.graph import evaluate
from ingot.kernels import Kernel, Operand, Site
from ingot.kernels.reference import from_physical, to_physical
from ingot.runtime.compiler import CodeCache, Library, compile_code, load_kernel, load_object
from ingot.runtime.harness import run_kernel
from ingot.runtime.memory import Block, address_of, array_at
from ingot.runtime.pool import Pool, launch_table, pool_for
from ingot.target import Target

COLD = 40 << 20         # bytes of copies that constants are read from in turn, as other layers' come between in a run
COPIES = 16
TRIES = 5               # measurements of one block at most, when other programs push this one off its cores
PATIENCE = 0.02         # seconds after which a disturbed block is taken as it is
ROUNDS = 16             # runs that one call from Python makes, at least
NEAR = 4 << 20          # bytes of activations that stay in the cores' own caches from one launch to the next

# Stands for the launches before and after: each thread writes its half of an input, or reads its half of an output.
# A core that takes over lines another core has used waits 20 ns for each, which a kernel run alone never meets.
_TOUCH = """
define void @touch(ptr %buffers, ptr %symbols, i64 %thread, i64 %threads) {
entry:
  %x = load ptr, ptr %buffers
  %lines = load i64, ptr %symbols
  %mode.p = getelementptr i64, ptr %symbols, i64 1
  %mode = load i64, ptr %mode.p
  %writes = icmp ne i64 %mode, 0
  %low.n = mul i64 %thread, %lines
  %low = udiv i64 %low.n, %threads
  %next = add i64 %thread, 1
  %high.n = mul i64 %next, %lines
  %high = udiv i64 %high.n, %threads
  br label %head
head:
  %i = phi i64 [%low, %entry], [%i1, %then]
  %more = icmp ult i64 %i, %high
  br i1 %more, label %body, label %done
body:
  %at = shl i64 %i, 6
  %p = getelementptr i8, ptr %x, i64 %at
  %v = load volatile i64, ptr %p
  br i1 %writes, label %write, label %then
write:
  store volatile i64 %v, ptr %p
  br label %then
then:
  %i1 = add i64 %i, 1
  br label %head
done:
  ret void
}
"""


class CpuDevice:
    """This machine's CPUs, as the tuner sees them."""

    def __init__(self, target: Target, cache: CodeCache | None = None) -> None:
        self.target, self.cache = target, cache

    def stand(self, site: Site) -> CpuStand:
        """A place for one site's race."""
        return CpuStand(site, self.target, self.cache)


class CpuStand:
    """One site's memory, shared by its candidates, and the code of each."""

    def __init__(self, site: Site, target: Target, cache: CodeCache | None) -> None:
        self._site, self._target, self._cache = site, target, cache
        self._code: dict[str, Library] = {}
        self._memory: list[Block] = []                      # of inputs and outputs, for the clock
        self._around: _Around | None = None
        self._constants: dict[tuple[int, bytes], list[Block]] = {}      # candidates often pack alike

    def _library(self, kernel: Kernel) -> Library:
        if kernel.code not in self._code:
            self._code[kernel.code] = load_kernel(kernel, self._target, self._cache)
        return self._code[kernel.code]

    def outputs(self, kernel: Kernel, inputs: Sequence[np.ndarray], packed: Mapping[int, np.ndarray],
                sizes: Mapping[str, int], threads: int, fill: int, over: int | None = None) -> list[np.ndarray]:
        """Logical outputs of one guarded run on `threads` threads. Raises CandidateError.

        `over` names an input whose memory the output takes.
        """
        physical = [packed[i] if i in packed else to_physical(a, o.type.at(sizes))
                    for i, (a, o) in enumerate(zip(inputs, self._site.inputs, strict=True))]
        pool = pool_for(self._target, threads, self._cache) if threads > 1 else None
        found = run_kernel(kernel, self._site, self._target, physical, sizes, threads, fill=fill,
                           library=self._library(kernel), pool=pool, over=over)
        return [from_physical(a, o.type.at(sizes)) for a, o in zip(found, self._site.outputs, strict=True)]

    def timer(self, kernel: Kernel, inputs: Sequence[np.ndarray], packed: Mapping[int, np.ndarray],
              sizes: Mapping[str, int]) -> Callable[[int], float]:
        """What runs the kernel so many times in a row on the pool and gives the seconds. Raises CandidateError."""
        site, threads = self._site, self._target.threads
        if not self._memory:
            self._memory = [_loaded(o, a, sizes) for o, a in zip(site.inputs, inputs, strict=True)]
            self._memory += [_room(o, sizes) for o in site.outputs]
        addresses = [[b.address] for b in self._memory]
        for k, operand in enumerate(site.inputs):
            if not operand.constant:
                continue
            array = packed[k] if k in packed else to_physical(inputs[k], operand.type.at(sizes))
            copies = self._copies(k, np.ascontiguousarray(array))
            addresses[k] = [c.address for c in copies]
        work = [Block(evaluate(kernel.workspace, sizes)), Block(evaluate(kernel.scratch, sizes) * threads)]
        addresses += [[b.address] for b in work]
        library = self._library(kernel)
        pool = pool_for(self._target, threads, self._cache)
        symbols = (ctypes.c_int64 * max(1, len(site.symbols)))(*(sizes[s.name] for s in site.symbols))
        rounds = max(ROUNDS, *(len(a) for a in addresses))
        tables = [(ctypes.c_int64 * len(addresses))(*(a[r % len(a)] for a in addresses)) for r in range(rounds)]
        phases = [library.address(p) for p in kernel.phases]
        bound = ctypes.addressof(symbols)
        around = self._around or _Around(self._target, self._cache)
        if self._around is None:
            near = [b for b, o in zip(self._memory, (*site.inputs, *site.outputs), strict=True) if not o.constant]
            if threads > 1 and sum(b.nbytes for b in near) <= NEAR:
                given = len(near) - len(site.outputs)
                around.measure(pool, near[:given], near[given:])
            self._around = around
        per = len(around.before) + len(phases) + len(around.after)
        calls = launch_table([call for t in tables for call in (
            *around.before, *((phase, ctypes.addressof(t), bound) for phase in phases), *around.after)])
        start = ctypes.addressof(calls)
        kept = (library, self._constants, work, self._memory, symbols, tables, calls, around)

        def once(times: int) -> float:
            done = 0
            begin = time.perf_counter()
            while done < times:
                part = min(rounds, times - done)
                pool.run(start, part * per)
                done += part
            spent = time.perf_counter() - begin
            return max(0.05 * spent, spent - times * around.seconds) if kept else 0.0

        return lambda times: undisturbed(once, times)

    def _copies(self, operand: int, dense: np.ndarray) -> list[Block]:
        """Enough copies of a constant that its next use finds it as far away as in a whole network's run."""
        key = operand, hashlib.sha256(dense.reshape(-1).view(np.uint8)).digest()      # type: ignore[arg-type]
        if key not in self._constants:
            found = self._constants[key] = []
            for _ in range(max(1, min(COPIES, -(-COLD // max(1, dense.nbytes))))):
                block = Block(dense.nbytes)
                ctypes.memmove(block.address, address_of(dense), dense.nbytes)
                found.append(block)
        return self._constants[key]


class _Around:
    """What stands for the launches before and after a candidate: none for activations too large to stay in caches."""

    def __init__(self, target: Target, cache: CodeCache | None) -> None:
        self._library = load_object(compile_code(_TOUCH, target, cache, "touch"), target)
        self.before: list[tuple[int, int, int]] = []
        self.after: list[tuple[int, int, int]] = []
        self.seconds = 0.0              # that they take by themselves, each core keeping its lines
        self._kept: list[object] = []

    def measure(self, pool: Pool, inputs: Sequence[Block], outputs: Sequence[Block]) -> None:
        """Make the calls for these activations, and see how long they take alone."""
        at = self._library.address("touch")
        for block, mode, calls in (*((b, 1, self.before) for b in inputs), *((b, 0, self.after) for b in outputs)):
            buffers, symbols = (ctypes.c_int64 * 1)(block.address), (ctypes.c_int64 * 2)(block.nbytes // 64, mode)
            self._kept += [buffers, symbols, block]
            calls.append((at, ctypes.addressof(buffers), ctypes.addressof(symbols)))
        one = [*self.before, *self.after]
        table = launch_table(one * ROUNDS)
        start = ctypes.addressof(table)

        def once(times: int) -> float:
            begin = time.perf_counter()
            pool.run(start, times * len(one))
            return time.perf_counter() - begin

        once(ROUNDS)
        self.seconds = min(undisturbed(once, ROUNDS) for _ in range(5)) / ROUNDS


def undisturbed(once: Callable[[int], float], times: int, patience: float = PATIENCE, tries: int = TRIES) -> float:
    """The least of a few measurements, of one alone when no thread was pushed off its core meanwhile."""
    best, spent = float("inf"), 0.0
    for _ in range(tries):
        before = resource.getrusage(resource.RUSAGE_SELF).ru_nivcsw
        seconds = once(times)
        best, spent = min(best, seconds), spent + seconds
        if resource.getrusage(resource.RUSAGE_SELF).ru_nivcsw == before or spent > patience:
            break
    return best


def _room(operand: Operand, sizes: Mapping[str, int]) -> Block:
    """Memory for an operand, gaps between its rows included."""
    shape = tuple(evaluate(d, sizes) for d in operand.type.physical)
    strides = tuple(evaluate(s, sizes) for s in operand.steps)
    extent = 0 if 0 in shape else 1 + sum((n - 1) * s for n, s in zip(shape, strides, strict=True))
    return Block(extent * operand.type.dtype.nbytes)


def _loaded(operand: Operand, array: np.ndarray, sizes: Mapping[str, int]) -> Block:
    made = _room(operand, sizes)
    shape = tuple(evaluate(d, sizes) for d in operand.type.physical)
    strides = tuple(evaluate(s, sizes) for s in operand.steps)
    into = array_at(made.address, shape, strides, operand.type.dtype.numpy)
    into[...] = to_physical(array, operand.type.at(sizes))
    return made
