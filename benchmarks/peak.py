"""The most f32 GFLOP/s this machine's cores can do: a loop of fused multiply-adds on registers alone."""
from __future__ import annotations

import ctypes
import threading
import time

import llvmlite.binding as llvm

ACCUMULATORS = 12


def _module(lanes: int) -> str:
    vector = f"<{lanes} x float>"
    phis = "\n".join(f"  %a{i} = phi {vector} [ zeroinitializer, %entry ], [ %b{i}, %loop ]"
                     for i in range(ACCUMULATORS))
    fmas = "\n".join(f"  %b{i} = call {vector} @llvm.fma.v{lanes}f32({vector} %a{i}, {vector} %y, {vector} %x)"
                     for i in range(ACCUMULATORS))
    stores = "\n".join(f"  %p{i} = getelementptr {vector}, ptr %out, i64 {i}\n"
                       f"  store {vector} %b{i}, ptr %p{i}, align 4" for i in range(ACCUMULATORS))
    return f"""
declare {vector} @llvm.fma.v{lanes}f32({vector}, {vector}, {vector})
define void @peak(ptr %out, i64 %n) {{
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


def peak_gflops(threads: int, lanes: int | None = None, repeats: int = 7) -> float:
    """The best of several runs of about 30 ms on `threads` threads, in GFLOP/s."""
    llvm.initialize_native_target()
    llvm.initialize_native_asmprinter()
    features = llvm.get_host_cpu_features()
    lanes = lanes or (16 if features.get("avx512f") else 8)
    machine = llvm.Target.from_default_triple().create_target_machine(
        cpu=llvm.get_host_cpu_name(), features=features.flatten() + ",-prefer-256-bit", opt=2)
    module = llvm.parse_assembly(_module(lanes))
    engine = llvm.create_mcjit_compiler(module, machine)
    engine.finalize_object()
    function = ctypes.CFUNCTYPE(None, ctypes.c_void_p, ctypes.c_int64)(engine.get_function_address("peak"))
    count, best = 10_000_000, 0.0
    buffers = [ctypes.create_string_buffer(ACCUMULATORS * lanes * 4 + 64) for _ in range(threads)]
    for _ in range(repeats):
        workers = [threading.Thread(target=function, args=(ctypes.addressof(b), count)) for b in buffers]
        start = time.perf_counter()
        for worker in workers:
            worker.start()
        for worker in workers:
            worker.join()
        seconds = time.perf_counter() - start
        best = max(best, 2 * ACCUMULATORS * lanes * count * threads / seconds / 1e9)
    return best


if __name__ == "__main__":
    for width in (8, 16):
        print(f"{width} lanes:", *(f"{t} thread(s) {peak_gflops(t, width):.0f} GFLOP/s" for t in (1, 2)))
