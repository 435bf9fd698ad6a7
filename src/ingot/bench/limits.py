"""What this machine can do at most, measured in a second: multiply-adds on registers, bytes from memory and cache."""
from __future__ import annotations

import ctypes
import os
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import llvmlite.binding as llvm

from ingot.runtime.memory import Block

ACCUMULATORS = 12


@dataclass(frozen=True)
class Limits:
    """Measured peaks of `threads` threads: f32 GFLOP/s on registers, GB/s read from memory and from the caches.

    `near` is the bytes that count as lying in a cache: a quarter of the last level (others share it).
    """

    threads: int
    gflops: float
    memory_gbs: float
    cache_gbs: float
    near: int

    def __str__(self) -> str:
        return (f"{self.gflops:.0f} GFLOP/s f32, {self.memory_gbs:.0f} GB/s from memory, {self.cache_gbs:.0f} GB/s "
                f"from a cache, on {self.threads} threads")


def machine_limits(threads: int) -> Limits:
    """Measure this machine; takes about a second."""
    last = _last_level()
    near = last // 4
    return Limits(threads, peak_gflops(threads, repeats=4), read_gbs(threads, max(64 << 20, 4 * last)),
                  read_gbs(threads, max(1 << 20, near)), near)


def _last_level() -> int:
    """Bytes of the last cache level, 8 MiB where the system does not tell."""
    sizes = []
    for path in Path("/sys/devices/system/cpu/cpu0/cache").glob("index*/size"):
        text = path.read_text().strip()
        sizes.append(int(text[:-1]) << {"K": 10, "M": 20}.get(text[-1], 0))
    return max(sizes, default=8 << 20)


def _multiply_adds(lanes: int) -> str:
    vector = f"<{lanes} x float>"
    phis = "\n".join(f"  %a{i} = phi {vector} [ zeroinitializer, %entry ], [ %b{i}, %loop ]"
                     for i in range(ACCUMULATORS))
    fmas = "\n".join(f"  %b{i} = call {vector} @llvm.fma.v{lanes}f32({vector} %a{i}, {vector} %y, {vector} %x)"
                     for i in range(ACCUMULATORS))
    stores = "\n".join(f"  %p{i} = getelementptr {vector}, ptr %out, i64 {i}\n"
                       f"  store {vector} %b{i}, ptr %p{i}, align 4" for i in range(ACCUMULATORS))
    return f"""
declare {vector} @llvm.fma.v{lanes}f32({vector}, {vector}, {vector})
define void @probe(ptr %out, i64 %n) {{
entry:
  %x = load volatile {vector}, ptr %out, align 4
  %y = load volatile {vector}, ptr %out, align 4
  br label %loop
loop:
  %i = phi i64 [ 0, %entry ], [ %j, %loop ]
{phis}
{fmas}
  %j = add i64 %i, 1
  %more = icmp ult i64 %j, %n
  br i1 %more, label %loop, label %done
done:
{stores}
  ret void
}}"""


def _reads(lanes: int) -> str:
    """Reads n blocks of 8 vectors each, one after the other, and keeps their exclusive or."""
    vector = f"<{lanes} x i32>"
    phis = "\n".join(f"  %a{i} = phi {vector} [ zeroinitializer, %entry ], [ %b{i}, %loop ]" for i in range(8))
    loads = "\n".join(f"  %p{i} = getelementptr {vector}, ptr %q, i64 {i}\n"
                      f"  %v{i} = load {vector}, ptr %p{i}, align 64\n"
                      f"  %b{i} = xor {vector} %a{i}, %v{i}" for i in range(8))
    sums = "\n".join(f"  %c{i} = xor {vector} %{'b0' if i == 1 else f'c{i - 1}'}, %b{i}" for i in range(1, 8))
    return f"""
define void @probe(ptr %in, i64 %n) {{
entry:
  br label %loop
loop:
  %i = phi i64 [ 0, %entry ], [ %j, %loop ]
{phis}
  %at = mul i64 %i, 8
  %q = getelementptr {vector}, ptr %in, i64 %at
{loads}
  %j = add i64 %i, 1
  %more = icmp ult i64 %j, %n
  br i1 %more, label %loop, label %done
done:
{sums}
  store volatile {vector} %c7, ptr %in, align 4
  ret void
}}"""


def _compiled(code: str) -> tuple[Callable[[int, int], None], object]:
    llvm.initialize_native_target()
    llvm.initialize_native_asmprinter()
    machine = llvm.Target.from_default_triple().create_target_machine(
        cpu=llvm.get_host_cpu_name(), features=llvm.get_host_cpu_features().flatten() + ",-prefer-256-bit", opt=2)
    engine = llvm.create_mcjit_compiler(llvm.parse_assembly(code), machine)
    engine.finalize_object()
    return ctypes.CFUNCTYPE(None, ctypes.c_void_p, ctypes.c_int64)(engine.get_function_address("probe")), engine


def _lanes() -> int:
    return 16 if llvm.get_host_cpu_features().get("avx512f") else 8


def _together(work: list[Callable[[], None]]) -> float:
    """Seconds until all of them, on a thread each, are done."""
    workers = [threading.Thread(target=w) for w in work]
    start = time.perf_counter()
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    return time.perf_counter() - start


def peak_gflops(threads: int, lanes: int | None = None, repeats: int = 7) -> float:
    """The best of several runs of about 30 ms of a loop of multiply-adds on registers alone, in GFLOP/s."""
    lanes = lanes or _lanes()
    function, engine = _compiled(_multiply_adds(lanes))
    count = 10_000_000
    blocks = [Block(ACCUMULATORS * lanes * 4) for _ in range(threads)]
    best = min(_together([lambda b=b: function(b.address, count) for b in blocks])  # type: ignore[misc]
               for _ in range(repeats))
    assert engine is not None           # it holds the code
    return 2 * ACCUMULATORS * lanes * count * threads / best / 1e9


def read_gbs(threads: int, nbytes: int, repeats: int = 5) -> float:
    """The best of several runs that read `nbytes`, shared out among the threads, in GB/s."""
    lanes = _lanes()
    function, engine = _compiled(_reads(lanes))
    step = 8 * lanes * 4
    each = max(1, nbytes // threads // step)
    blocks = [Block(each * step) for _ in range(threads)]
    for block in blocks:
        ctypes.memset(block.address, 1, each * step)
    rounds = max(1, (32 << 20) // (each * step))        # small ones many times, so that a run takes milliseconds

    def read(block: Block) -> None:
        for _ in range(rounds):
            function(block.address, each)

    best = min(_together([lambda b=b: read(b) for b in blocks]) for _ in range(repeats))  # type: ignore[misc]
    assert engine is not None
    return each * step * rounds * threads / best / 1e9


if __name__ == "__main__":
    print(machine_limits(len(os.sched_getaffinity(0))))
