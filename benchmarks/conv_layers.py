"""GFLOP/s of every convolution of a model, layer by layer, for each tactic's points: the table kernels are tuned by.

    python -m benchmarks.conv_layers resnet50 --batch 1 --threads 2 [--points 3] [--only 3x3] [--all]
    python -m benchmarks.conv_layers resnet50 --table       # Markdown: one and two threads, batch 1 and 8
"""
from __future__ import annotations

import argparse
import ctypes
import itertools
import time
from collections import Counter
from dataclasses import dataclass

import numpy as np

from ingot.graph import F32, TensorType
from ingot.kernels import Kernel, Operand, Params, Site, Step, able
from ingot.ops import OPS
from ingot.runtime.compiler import load_kernel
from ingot.runtime.harness import Guarded
from ingot.runtime.host import host_target
from ingot.runtime.pool import launch_table, pool_for
from ingot.target import Target


@dataclass(frozen=True)
class Layer:
    channels: int
    filters: int
    size: int           # input height and width
    kernel: int
    stride: int = 1
    groups: int = 1
    add: bool = False   # a residual is added
    clip: bool = False  # ReLU6 rather than ReLU

    @property
    def out(self) -> int:
        return -(-self.size // self.stride)

    @property
    def flops(self) -> int:
        return 2 * self.out ** 2 * self.filters * self.channels // self.groups * self.kernel ** 2

    def __str__(self) -> str:
        kind = "dw" if self.groups > 1 else ""
        return (f"{kind}{self.kernel}x{self.kernel}/{self.stride} {self.channels}->{self.filters} @{self.size}"
                + ("+add" if self.add else ""))


def resnet(blocks: tuple[int, ...], bottleneck: bool) -> list[Layer]:
    layers, channels, size = [Layer(3, 64, 224, 7, 2)], 64, 56
    for stage, count in enumerate(blocks):
        width = 64 << stage
        out = width * 4 if bottleneck else width
        for block in range(count):
            stride = 2 if stage and not block else 1
            if bottleneck:
                layers += [Layer(channels, width, size, 1), Layer(width, width, size, 3, stride),
                           Layer(width, out, size // stride, 1, add=True)]
            else:
                layers += [Layer(channels, width, size, 3, stride), Layer(width, width, size // stride, 3, add=True)]
            if channels != out:
                layers.append(Layer(channels, out, size, 1, stride))
            channels, size = out, size // stride
    return layers


def mobilenet() -> list[Layer]:
    layers = [Layer(3, 32, 224, 3, 2, clip=True)]
    channels, size = 32, 112
    for expand, out, count, stride in ((1, 16, 1, 1), (6, 24, 2, 2), (6, 32, 3, 2), (6, 64, 4, 2), (6, 96, 3, 1),
                                       (6, 160, 3, 2), (6, 320, 1, 1)):
        for i in range(count):
            step, hidden = stride if i == 0 else 1, channels * expand
            if expand > 1:
                layers.append(Layer(channels, hidden, size, 1, clip=True))
            layers.append(Layer(hidden, hidden, size, 3, step, hidden, clip=True))
            size //= step
            layers.append(Layer(hidden, out, size, 1, add=step == 1 and channels == out))
            channels = out
    return [*layers, Layer(320, 1280, 7, 1, clip=True)]


MODELS = {"resnet18": resnet((2, 2, 2, 2), False), "resnet50": resnet((3, 4, 6, 3), True), "mobilenet": mobilenet()}


def site_of(layer: Layer, batch: int, block: int) -> Site:
    layout, pad = f"c{block}", layer.kernel // 2
    x = TensorType(F32, (batch, layer.channels, layer.size, layer.size), "" if layer.channels == 3 else layout)
    w = TensorType(F32, (layer.filters, layer.channels // layer.groups, layer.kernel, layer.kernel))
    bias, scalar = TensorType(F32, (layer.filters,)), TensorType(F32, ())
    attrs = {"pads": (pad,) * 4, "strides": (layer.stride,) * 2, "group": layer.groups, "layout": layout}
    out, = OPS["Conv"].infer((x, w, bias), {**OPS["Conv"].attrs, **attrs}, 1)
    operands = [Operand(x), Operand(w, None, True), Operand(bias, None, True)]
    steps = [Step("Conv", (0, 1, 2), tuple(sorted(attrs.items())), (out,))]
    if layer.add:
        operands.append(Operand(out))
        steps.append(Step("Add", (-1, 3), (), (out,)))
    if layer.clip and not layer.add:
        operands += [Operand(scalar, None, True)] * 2
        steps.append(Step("Clip", (~0, 3, 4), (), (out,)))
    elif not layer.clip:
        steps.append(Step("Relu", (~(len(steps) - 1),), (), (out,)))
    return Site(tuple(steps), tuple(operands), (Operand(out),))


def time_kernel(kernel: Kernel, site: Site, target: Target, packed: dict[int, np.ndarray], threads: int,
                budget: float = 0.15, copies: int = 1) -> float:
    """Best seconds of one run of several, over `copies` sets of operands in turn."""
    pool, library = pool_for(target, threads), load_kernel(kernel, target)
    held, calls = [], []
    for _ in range(copies):
        buffers = []
        for i, operand in enumerate((*site.inputs, *site.outputs)):
            physical = tuple(int(d) for d in operand.type.physical)
            nbytes = packed[i].nbytes if i in packed else int(np.prod(physical)) * 4
            memory = Guarded(nbytes, 0)
            memory.body.view(np.float32)[:] = (packed[i].reshape(-1) if i in packed else
                                               np.random.default_rng(i).random(nbytes // 4, np.float32) - 0.5)
            buffers.append(memory)
        buffers += [Guarded(int(kernel.workspace), 0), Guarded(int(kernel.scratch) * threads, 0)]
        table = (ctypes.c_void_p * len(buffers))(*(b.address for b in buffers))
        held.append((buffers, table))
        calls += [(library.address(p), ctypes.addressof(table), 0) for p in kernel.phases]
    launches, count = launch_table(calls), len(calls)
    address = ctypes.addressof(launches)
    pool.run(address, count)
    best, end = 1e9, time.perf_counter() + budget
    while time.perf_counter() < end:
        start = time.perf_counter()
        pool.run(address, count)
        best = min(best, (time.perf_counter() - start) / copies)
    return best


def tried(site: Site, target: Target, threads: int, points: int, copies: int) -> list[tuple[float, str, Params, float]]:
    """(seconds, tactic, point, seconds to compile) of the first points of every willing tactic."""
    found = []
    rng = np.random.default_rng(0)
    constants = {i: rng.standard_normal([int(d) for d in o.type.shape]).astype(np.float32)
                 for i, o in enumerate(site.inputs) if o.constant}
    for tactic in able(site, target, exact=True)[0]:
        for params in itertools.islice(tactic.space(site, target), points):
            start = time.perf_counter()
            kernel = tactic.emit(site, params, target)
            load_kernel(kernel, target)
            compiled = time.perf_counter() - start
            packed = {**constants, **tactic.pack(site, params, target, constants)}
            seconds = time_kernel(kernel, site, target, packed, threads, copies=copies)
            found.append((seconds, tactic.name, params, compiled))
    return found


def table(model: str, isa: str | None, points: int, peak: float) -> None:
    """Markdown: GFLOP/s and share of the peak of every layer, by batch and threads."""
    forms = [(batch, threads) for batch in (1, 8) for threads in (1, 2)]
    print("| layer | times | tactic | " + " | ".join(f"b{b}, {t}t" for b, t in forms) + " |")
    print("|---" * (3 + len(forms)) + "|")
    seconds, flops = [0.0] * len(forms), [0.0] * len(forms)
    for layer, count in Counter(MODELS[model]).items():
        cells, name = [], ""
        for k, (batch, threads) in enumerate(forms):
            target = host_target(threads, isa)
            site = site_of(layer, batch, 16 if target.isa == "avx512" else 8)
            least, name, *_ = min(tried(site, target, threads, points, 1), key=lambda f: f[0])
            rate = layer.flops * batch / least / 1e9
            cells.append(f"{rate:.0f} ({100 * rate / peak / threads:.0f} %)")
            seconds[k] += count * least
            flops[k] += count * batch * layer.flops
        print(f"| {layer} | {count} | {name[4:]} | {' | '.join(cells)} |", flush=True)
    total = [f"{1e3 * s:.1f} ms ({100 * f / s / 1e9 / peak / t:.0f} %)"
             for s, f, (_, t) in zip(seconds, flops, forms, strict=True)]
    print(f"| all | {len(MODELS[model])} | | {' | '.join(total)} |")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model", choices=MODELS)
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--points", type=int, default=1)
    parser.add_argument("--only", default="")
    parser.add_argument("--all", action="store_true", help="every point, not the best alone")
    parser.add_argument("--isa", default=None)
    parser.add_argument("--copies", type=int, default=1, help="sets of operands in turn (cold caches)")
    parser.add_argument("--peak", type=float, default=115.0, help="GFLOP/s of one core (src/ingot/bench/limits.py)")
    parser.add_argument("--table", action="store_true", help="a Markdown table of batch 1 and 8, one and two threads")
    args = parser.parse_args()
    if args.table:
        table(args.model, args.isa, args.points, args.peak)
        return
    target = host_target(args.threads, args.isa)
    block = 16 if target.isa == "avx512" else 8
    total = first_total = flops = 0.0
    for layer, count in Counter(MODELS[args.model]).items():
        if args.only not in str(layer):
            continue
        site = site_of(layer, args.batch, block)
        found = tried(site, target, args.threads, args.points, args.copies)
        if not found:
            print(f"{layer!s:28} nothing serves it")
            continue
        work = layer.flops * args.batch
        for seconds, name, params, compiled in (found if args.all else [min(found, key=lambda f: f[0])]):
            rate = work / seconds / 1e9
            print(f"{layer!s:28} x{count} {seconds * 1e6:8.0f} us {rate:6.1f} GFLOP/s "
                  f"{100 * rate / args.peak / args.threads:5.1f} %  {name[4:]:20} {dict(params)} "
                  f"compile {compiled * 1e3:.0f} ms", flush=True)
        total += count * min(f[0] for f in found)
        first_total += count * found[0][0]
        flops += count * work
    rate = flops / total / 1e9
    print(f"{args.model} batch {args.batch}, {args.threads} threads: {total * 1e3:.2f} ms best, "
          f"{first_total * 1e3:.2f} ms first points; {rate:.1f} GFLOP/s, {100 * rate / args.peak / args.threads:.1f} %")


if __name__ == "__main__":
    main()
