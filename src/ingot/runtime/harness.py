"""Call one kernel on arrays, with guards around everything it may write. For tests and for the tuner's judge."""
from __future__ import annotations

import ctypes
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from ingot.errors import CandidateError
from ingot.graph import evaluate
from ingot.kernels import Kernel, Operand, Site
from ingot.kernels.reference import from_physical, to_physical
from ingot.runtime.compiler import CodeCache, Library, load_kernel
from ingot.runtime.pool import Pool, launch_table
from ingot.target import Target

GUARD = 256         # bytes kept around every buffer
GUARD_BYTE = 0xA5
PHASE = ctypes.CFUNCTYPE(None, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_int64, ctypes.c_int64)


@dataclass
class Guarded:
    """`nbytes` of memory between two guard zones, `skew` bytes past a 64-byte boundary; `touched` tells whether the
    guard zones still stand."""

    nbytes: int
    fill: int = 0xFF
    skew: int = 0

    def __post_init__(self) -> None:
        self.raw = np.full(self.nbytes + 2 * GUARD + 64 + self.skew, GUARD_BYTE, np.uint8)
        self.start = GUARD + (-(self.raw.ctypes.data + GUARD)) % 64 + self.skew
        self.body = self.raw[self.start:self.start + self.nbytes]
        self.body[:] = self.fill
        self.address = self.raw.ctypes.data + self.start

    def touched(self) -> str | None:
        """Where the guard zones were written, or None."""
        for name, zone in (("before", self.raw[:self.start]), ("past", self.raw[self.start + self.nbytes:])):
            if (zone != GUARD_BYTE).any():
                return f"it writes {name} the buffer's end" if name == "past" else "it writes before the buffer"
        return None


def _extent(shape: tuple[int, ...], strides: tuple[int, ...]) -> int:
    """Elements from the first to one past the last."""
    return 0 if 0 in shape else 1 + sum((n - 1) * s for n, s in zip(shape, strides, strict=True))


def _placed(operand: Operand, bindings: Mapping[str, int], fill: int, skew: int = 0) -> tuple[Guarded, np.ndarray]:
    """Guarded memory for an operand, and its array over that memory in physical form."""
    shape = tuple(evaluate(d, bindings) for d in operand.type.physical)
    strides = tuple(evaluate(s, bindings) for s in operand.steps)
    dtype = operand.type.dtype.numpy
    memory = Guarded(_extent(shape, strides) * dtype.itemsize, fill, skew * dtype.itemsize)
    # not as_strided: it asks for the dtype by its name, and the eight-bit floats have none that numpy knows
    view: np.ndarray = np.ndarray(shape, dtype, memory.body, 0, tuple(s * dtype.itemsize for s in strides))
    return memory, view


def _gaps(operand: Operand, memory: Guarded, view: np.ndarray, fill: int) -> bool:
    """Whether bytes between the rows of a strided output were written."""
    if operand.strides is None:
        return False
    kept = view.copy()
    view.view(view.dtype)[...] = np.frombuffer(bytes([fill]) * view.dtype.itemsize, view.dtype)[0]
    written = bool((memory.body != fill).any())
    view[...] = kept
    return written


def run_kernel(kernel: Kernel, site: Site, target: Target, arrays: Sequence[np.ndarray] | Mapping[int, np.ndarray],
               bindings: Mapping[str, int] | None = None, threads: int = 1, *, fill: int = 0xFF,
               library: Library | None = None, cache: CodeCache | None = None, pool: Pool | None = None,
               over: int | None = None, skew: int = 0) -> list[np.ndarray]:
    """Run a kernel once and give its outputs, in physical form (dense copies).

    `arrays` are the site's inputs in physical form (`to_physical`), a packed array in the place of an operand that
    the tactic packs. The threads' parts run one after the other, phase by phase, which is one of the orders that
    the pool may take; with `pool` they run on its threads. Outputs, workspace and scratch hold bytes `fill` on entry
    (NaN for 0xFF); `over` names an input whose memory the (only) output takes; `skew` puts all that is not constant so
    many elements past a 64-byte boundary, where a caller's arrays may well lie.
    Raises CandidateError for code that LLVM refuses or that writes where it must not.
    """
    bound = dict(bindings or {})
    threads = pool.threads if pool else threads
    held: list[tuple[str, Guarded]] = []
    for position, operand in enumerate(site.inputs):
        given = np.ascontiguousarray(arrays[position])
        shape = tuple(evaluate(d, bound) for d in operand.type.physical)
        if operand.strides is not None and given.shape == shape:
            memory, view = _placed(operand, bound, fill, 0 if operand.constant else skew)
            view[...] = given
        else:                                           # dense, or packed
            memory = Guarded(given.nbytes, fill, 0 if operand.constant else skew * given.itemsize)
            memory.body[:] = given.reshape(-1).view(np.uint8)
        held.append((f"input {position}", memory))
    before = [memory.body.copy() for _, memory in held]
    if over is None:
        outputs = [_placed(operand, bound, fill, skew) for operand in site.outputs]
    else:
        outputs = [(held[over][1], held[over][1].body.view(site.output.dtype.numpy).reshape(
            tuple(evaluate(d, bound) for d in site.output.physical)))]
    held += [(f"output {i}", memory) for i, (memory, _) in enumerate(outputs)]
    scratch = evaluate(kernel.scratch, bound)
    held.append(("the workspace", Guarded(evaluate(kernel.workspace, bound), fill)))
    held.append(("the scratch area", Guarded(scratch * threads, fill)))
    table = (ctypes.c_void_p * len(held))(*(memory.address for _, memory in held))
    symbols = (ctypes.c_int64 * max(1, len(site.symbols)))(*(bound[s.name] for s in site.symbols))
    code = library or load_kernel(kernel, target, cache)
    buffers, sizes = ctypes.addressof(table), ctypes.addressof(symbols)
    if pool:
        calls = launch_table([(code.address(phase), buffers, sizes) for phase in kernel.phases])
        pool.run(ctypes.addressof(calls), len(kernel.phases))
    else:
        for phase in kernel.phases:
            call = PHASE(code.address(phase))
            for thread in range(threads):
                call(buffers, sizes, thread, threads)
    for name, memory in held:
        if why := memory.touched():
            raise CandidateError(f"the kernel writes outside {name}", where=kernel.name, why=(why,))
    for k, ((name, memory), old) in enumerate(zip(held, before, strict=False)):
        if k != over and (memory.body != old).any():
            raise CandidateError(f"the kernel writes to {name}", where=kernel.name)
    for operand, (memory, view) in zip(site.outputs, outputs, strict=True):
        if _gaps(operand, memory, view, fill):
            raise CandidateError("the kernel writes between the rows of a strided output", where=kernel.name)
    return [view.copy() for _, view in outputs]


def run_logical(kernel: Kernel, site: Site, target: Target, arrays: Sequence[np.ndarray],
                bindings: Mapping[str, int] | None = None, threads: int = 1,
                packed: Mapping[int, np.ndarray] | None = None, **options: object) -> list[np.ndarray]:
    """As `run_kernel`, with logical (plain) arrays in and out; `packed` replaces constant operands."""
    physical = [packed[i] if packed and i in packed else to_physical(a, o.type)
                for i, (a, o) in enumerate(zip(arrays, site.inputs, strict=True))]
    outputs = run_kernel(kernel, site, target, physical, bindings, threads, **options)    # type: ignore[arg-type]
    return [from_physical(a, o.type.at(bindings or {})) for a, o in zip(outputs, site.outputs, strict=True)]
