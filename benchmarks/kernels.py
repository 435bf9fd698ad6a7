"""Products and attention beside the machine's peak: GFLOP/s of each point of a kernel's space, on 1 and more threads.

    PYTHONPATH=src python -m benchmarks.kernels [--isa avx2] [--threads 1,2] [--best] [NAME ...]

A name picks the shapes whose name contains it. The peak is that of a loop of multiply-adds on registers alone
(`ingot.bench.limits`), the best seen: on a shared machine it is met in quiet moments only, as any figure here. A kernel
that does with fewer multiply-adds may pass it: GFLOP/s count those of the plain product.
"""
from __future__ import annotations

import argparse
import ctypes
import time
from collections.abc import Iterator, Sequence

import numpy as np

from ingot.bench.limits import peak_gflops
from ingot.graph import evaluate, parse
from ingot.kernels import Kernel, Params, Site, Tactic, able
from ingot.lower import lower
from ingot.ops import infer
from ingot.runtime.compiler import load_kernel
from ingot.runtime.host import host_target
from ingot.runtime.pool import Pool, launch_table
from ingot.target import Target


def shapes() -> Iterator[tuple[str, str]]:
    """Name and graph text of each case."""
    for model, batch, length, width, hidden in (("bert", 1, 128, 768, 3072), ("bert", 8, 128, 768, 3072),
                                                ("vit", 1, 197, 768, 3072), ("vit", 8, 197, 768, 3072),
                                                ("minilm", 1, 128, 384, 1536), ("minilm", 8, 128, 384, 1536)):
        for part, k, n, end in (("qkv", width, 3 * width, "r = Add(y, c)"), ("out", width, width, "r = Add(y, c)"),
                                ("up", width, hidden, "t = Add(y, c)\nr = Gelu(t)"),
                                ("down", hidden, width, "r = Add(y, c)")):
            yield f"{model}-b{batch}-{part}", product(f"{batch},{length}", k, n, end)
        split = f"q, k, v = Split(x) {{'axis': 2, 'split': ({width}, {width}, {width})}}\n"
        attend = "y = Attention(q, k, v) {'q_num_heads': 12, 'kv_num_heads': 12}\nreturn y"
        yield f"{model}-b{batch}-attention", f"input x: f32[{batch},{length},{3 * width}]\n{split}{attend}"
    for rows in (1, 8):
        yield f"resnet-b{rows}-classes", product(f"{rows}", 2048, 1000, "r = Add(y, c)")
    yield "square", "input x: f32[1024,1024]\ninput w: f32[1024,1024]\ny = MatMul(x, w)\nreturn y"


def product(rows: str, depth: int, columns: int, end: str) -> str:
    """The text of a product with a constant, and of what follows it."""
    return (f"input x: f32[{rows},{depth}]\nconst w: f32[{depth},{columns}]\nconst c: f32[{columns}]\n"
            f"y = MatMul(x, w)\n{end}\nreturn r")


def aligned(nbytes: int) -> np.ndarray:
    raw = np.zeros(nbytes + 64, np.uint8)
    start = -raw.ctypes.data % 64
    return raw[start:start + nbytes]


def extent(shape: Sequence[int], steps: Sequence[int]) -> int:
    """Elements from the first to one past the last."""
    return 1 + sum((n - 1) * s for n, s in zip(shape, steps, strict=True))


class Bench:
    """One kernel, its buffers and its launch table, ready to run."""

    def __init__(self, tactic: Tactic, site: Site, params: Params, target: Target) -> None:
        rng = np.random.default_rng(0)
        begin = time.process_time()
        kernel: Kernel = tactic.emit(site, params, target)
        made = time.process_time()
        self.library = load_kernel(kernel, target)
        self.build = (made - begin, time.process_time() - made)
        self.flops = evaluate(kernel.meta["flops"], {})             # type: ignore[arg-type]
        arrays = [rng.standard_normal(extent(o.type.shape, o.steps)).astype(np.float32).reshape(
            o.type.shape if o.strides is None else -1) for o in site.inputs]
        packed = tactic.pack(site, params, target, {i: a for i, a in enumerate(arrays) if site.inputs[i].constant})
        self.buffers = [aligned(packed.get(i, a).nbytes) for i, a in enumerate(arrays)]
        for i, (buffer, array) in enumerate(zip(self.buffers, arrays, strict=True)):
            buffer[:] = packed.get(i, array).reshape(-1).view(np.uint8)
        self.buffers += [aligned(evaluate(o.type.nbytes, {})) for o in site.outputs]
        self.buffers += [aligned(evaluate(n, {})) for n in (kernel.workspace, kernel.scratch * target.threads)]
        self.slots = (ctypes.c_void_p * len(self.buffers))(*(b.ctypes.data for b in self.buffers))
        self.symbols = (ctypes.c_int64 * 1)()
        tables = ctypes.addressof(self.slots), ctypes.addressof(self.symbols)
        self.table = launch_table([(self.library.address(p), *tables) for p in kernel.phases])
        self.count = len(kernel.phases)
        self.seconds: list[float] = []

    def run(self, pool: Pool) -> None:
        clock = time.thread_time if pool.threads == 1 else time.perf_counter    # processor time leaves others' work out
        begin = clock()
        pool.run(ctypes.addressof(self.table), self.count)
        self.seconds.append(clock() - begin)


def race(site: Site, target: Target, pool: Pool, budget: float) -> list[tuple[str, Params, Bench]]:
    """All points of all tactics but the plain one, run in turns until the budget (seconds) is spent."""
    found = [(t.name, p, Bench(t, site, p, target)) for t in able(site, target)[0] if not t.name.endswith("_plain")
             for p in t.space(site, target)]
    end = time.perf_counter() + budget
    while time.perf_counter() < end:
        for *_, bench in found:
            bench.run(pool)
    return found


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])   # type: ignore[union-attr]
    parser.add_argument("names", nargs="*")
    parser.add_argument("--isa", default=None)
    parser.add_argument("--threads", default="1,2")
    parser.add_argument("--seconds", type=float, default=1.0, help="per shape and thread count")
    parser.add_argument("--best", action="store_true", help="only the best point of each tactic")
    options = parser.parse_args(arguments)
    for threads in map(int, options.threads.split(",")):
        target = host_target(threads, options.isa)
        pool, peak = Pool(target, threads), max(peak_gflops(threads) for _ in range(4))
        print(f"{threads} thread(s), {target.isa}, peak {peak:.0f} GFLOP/s", flush=True)
        for name, text in shapes():
            if options.names and not any(n in name for n in options.names):
                continue
            launches = lower(parse(text, infer), target).launches
            site = next(x.site for x in launches if x.site.op in ("MatMul", "Attention"))
            raced = race(site, target, pool, options.seconds)
            peak = max(peak, peak_gflops(threads))
            ranked = sorted(raced, key=lambda r: min(r[2].seconds))
            shown = {tactic: (tactic, params, bench) for tactic, params, bench in reversed(ranked)}
            for tactic, params, bench in (shown.values() if options.best else raced):
                best = min(bench.seconds)
                rate = bench.flops / best / 1e9
                made = f"{bench.build[0] * 1e3:3.0f} + {bench.build[1] * 1e3:3.0f} ms"
                print(f"  {name:22} {best * 1e6:9.1f} us {rate:6.1f} GFLOP/s {rate / peak:5.0%}  emit {made}  {tactic} "
                      f"{dict(params)}", flush=True)
        pool.close()


if __name__ == "__main__":
    main()
