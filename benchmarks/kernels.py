"""Products and attention beside the machine's peak: GFLOP/s of each point of a kernel's space, on 1 and more threads.

    PYTHONPATH=src python benchmarks/kernels.py [--isa avx2] [--threads 1,2] [--best] [NAME ...]

A name picks the shapes whose name contains it. The peak is that of a loop of multiply-adds on registers alone
(benchmarks/peak.py), taken before and after: on a shared machine it tells how much of the machine was there.
"""
from __future__ import annotations

import argparse
import ctypes
import time
from collections.abc import Iterator, Sequence

import numpy as np
from peak import peak_gflops

from ingot.graph import evaluate, parse
from ingot.kernels import Kernel, Params, Site, Tactic
from ingot.kernels.x86.attention import BlockedAttention
from ingot.kernels.x86.matmul import TiledMatMul
from ingot.lower import lower
from ingot.ops import infer
from ingot.runtime.compiler import load_kernel
from ingot.runtime.host import host_target
from ingot.runtime.pool import Pool, launch_table
from ingot.target import Target


def shapes() -> Iterator[tuple[str, str, Tactic]]:
    """Name, graph text and tactic of each case."""
    for model, batch, length, width, hidden in (("bert", 1, 128, 768, 3072), ("bert", 8, 128, 768, 3072),
                                                ("vit", 1, 197, 768, 3072), ("vit", 8, 197, 768, 3072),
                                                ("minilm", 1, 128, 384, 1536), ("minilm", 8, 128, 384, 1536)):
        for part, k, n, end in (("qkv", width, 3 * width, "r = Add(y, c)"), ("out", width, width, "r = Add(y, c)"),
                                ("up", width, hidden, "t = Add(y, c)\nr = Gelu(t)"),
                                ("down", hidden, width, "r = Add(y, c)")):
            yield (f"{model}-b{batch}-{part}", f"input x: f32[{batch * length},{k}]\nconst w: f32[{k},{n}]\n"
                   f"const c: f32[{n}]\ny = MatMul(x, w)\n{end}\nreturn r", TiledMatMul())
        heads, size = width // 64, width
        if model == "minilm":
            heads = 12
        yield (f"{model}-b{batch}-attention", f"input x: f32[{batch},{length},{3 * size}]\n"
               f"q, k, v = Split(x) {{'axis': 2, 'split': ({size}, {size}, {size})}}\n"
               f"y = Attention(q, k, v) {{'q_num_heads': {heads}, 'kv_num_heads': {heads}}}\nreturn y",
               BlockedAttention())
    for rows in (1, 8):
        yield (f"resnet-b{rows}-classes", f"input x: f32[{rows},2048]\nconst w: f32[2048,1000]\nconst c: f32[1000]\n"
               "y = MatMul(x, w)\nr = Add(y, c)\nreturn r", TiledMatMul())
    yield ("square", "input x: f32[1024,1024]\ninput w: f32[1024,1024]\ny = MatMul(x, w)\nreturn y", TiledMatMul())


def aligned(nbytes: int) -> np.ndarray:
    raw = np.zeros(nbytes + 64, np.uint8)
    start = -raw.ctypes.data % 64
    return raw[start:start + nbytes]


class Bench:
    """One kernel, its buffers and its launch table, ready to run."""

    def __init__(self, tactic: Tactic, site: Site, params: Params, target: Target) -> None:
        rng = np.random.default_rng(0)
        begin = time.perf_counter()
        kernel: Kernel = tactic.emit(site, params, target)
        made = time.perf_counter()
        self.library = load_kernel(kernel, target)
        self.build = (made - begin, time.perf_counter() - made)
        self.flops = evaluate(kernel.meta["flops"], {})             # type: ignore[arg-type]
        steps = [o.type.shape if o.strides is None else (1 + sum((n - 1) * s for n, s in zip(o.type.shape, o.strides)),)
                 for o in site.inputs]
        arrays = [rng.standard_normal(s).astype(np.float32) for s in steps]
        packed = tactic.pack(site, params, target, {i: a for i, a in enumerate(arrays) if site.inputs[i].constant})
        self.buffers = [aligned(packed.get(i, a).nbytes) for i, a in enumerate(arrays)]
        for i, (buffer, array) in enumerate(zip(self.buffers, arrays, strict=True)):
            buffer[:] = packed.get(i, array).reshape(-1).view(np.uint8)
        self.buffers += [aligned(evaluate(o.type.nbytes, {})) for o in site.outputs]
        self.buffers += [aligned(evaluate(kernel.workspace, {})), aligned(evaluate(kernel.scratch, {}) * target.threads)]
        self.slots = (ctypes.c_void_p * len(self.buffers))(*(b.ctypes.data for b in self.buffers))
        self.symbols = (ctypes.c_int64 * 1)()
        self.table = launch_table([(self.library.address(p), ctypes.addressof(self.slots), ctypes.addressof(self.symbols))
                                   for p in kernel.phases])
        self.count = len(kernel.phases)
        self.seconds: list[float] = []

    def run(self, pool: Pool) -> None:
        begin = time.perf_counter()
        pool.run(ctypes.addressof(self.table), self.count)
        self.seconds.append(time.perf_counter() - begin)


def race(tactic: Tactic, site: Site, target: Target, pool: Pool, budget: float) -> list[tuple[Params, Bench]]:
    """All points of the space, run in turns until the budget (seconds) is spent."""
    found = [(p, Bench(tactic, site, p, target)) for p in tactic.space(site, target)]
    end = time.perf_counter() + budget
    while time.perf_counter() < end:
        for _, bench in found:
            bench.run(pool)
    return found


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])   # type: ignore[union-attr]
    parser.add_argument("names", nargs="*")
    parser.add_argument("--isa", default=None)
    parser.add_argument("--threads", default="1,2")
    parser.add_argument("--seconds", type=float, default=1.0, help="per shape and thread count")
    parser.add_argument("--best", action="store_true", help="only the best and the first point of each shape")
    options = parser.parse_args(arguments)
    for threads in map(int, options.threads.split(",")):
        target = host_target(threads, options.isa)
        pool, peak = Pool(target, threads), peak_gflops(threads)
        print(f"{threads} thread(s), {target.isa}, peak {peak:.0f} GFLOP/s", flush=True)
        for name, text, tactic in shapes():
            if options.names and not any(n in name for n in options.names):
                continue
            site = next(x.site for x in lower(parse(text, infer), target).launches if x.site.op in ("MatMul", "Attention"))
            raced = race(tactic, site, target, pool, options.seconds)
            ranked = sorted(raced, key=lambda r: min(r[1].seconds))
            for params, bench in ([ranked[0], raced[0]] if options.best else raced):
                best = min(bench.seconds)
                rate = bench.flops / best / 1e9
                print(f"  {name:22} {best * 1e6:9.1f} us {rate:6.1f} GFLOP/s {rate / peak:5.0%}  emit "
                      f"{bench.build[0] * 1e3:3.0f} + {bench.build[1] * 1e3:3.0f} ms  {dict(params)}", flush=True)
        pool.close()
        print(f"  peak after: {peak_gflops(threads):.0f} GFLOP/s", flush=True)


if __name__ == "__main__":
    main()
