"""Winograd beside direct convolution, in alternation, on the 3x3 layers of a model; rates count direct operations.

    python -m benchmarks.winograd_layers resnet18 --batch 1 --threads 2 [--all] [--points 6] [--only 56]
"""
from __future__ import annotations

import argparse
import itertools
import time
from collections import Counter

import numpy as np

from benchmarks.conv_layers import MODELS, site_of, time_kernel
from ingot.kernels import Params, Site
from ingot.kernels.x86.conv_direct import DirectConvolution
from ingot.kernels.x86.conv_winograd import WinogradConvolution
from ingot.runtime.compiler import load_kernel
from ingot.runtime.host import host_target
from ingot.target import Target


def raced(site: Site, target: Target, threads: int, points: int, rounds: int) -> list[tuple[float, str, Params, float]]:
    """(seconds, tactic, point, seconds to compile) of the first points of both tactics, the best of some rounds."""
    rng = np.random.default_rng(0)
    constants = {i: rng.standard_normal([int(d) for d in o.type.shape]).astype(np.float32)
                 for i, o in enumerate(site.inputs) if o.constant}
    entrants = []
    for tactic, count in ((DirectConvolution(), 3), (WinogradConvolution(), points)):
        for params in itertools.islice(tactic.space(site, target), count):
            start = time.perf_counter()
            kernel = tactic.emit(site, params, target)
            load_kernel(kernel, target)
            compiled = time.perf_counter() - start
            packed = {**constants, **tactic.pack(site, params, target, constants)}
            entrants.append((tactic.name, params, kernel, packed, compiled))
    best = [1e9] * len(entrants)
    for _ in range(rounds):
        for i, (_, _, kernel, packed, _) in enumerate(entrants):
            best[i] = min(best[i], time_kernel(kernel, site, target, packed, threads, 0.02))
    return [(b, name, params, compiled) for b, (name, params, _, _, compiled) in zip(best, entrants, strict=True)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model", choices=MODELS)
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--points", type=int, default=6)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--only", default="")
    parser.add_argument("--all", action="store_true", help="every point, not the best alone")
    parser.add_argument("--isa", default=None)
    args = parser.parse_args()
    target = host_target(args.threads, args.isa)
    block = 16 if target.isa == "avx512" else 8
    total = {"direct": 0.0, "winograd": 0.0}
    for layer, count in Counter(MODELS[args.model]).items():
        if layer.kernel != 3 or layer.stride != 1 or layer.groups > 1 or args.only not in str(layer):
            continue
        found = raced(site_of(layer, args.batch, block), target, args.threads, args.points, args.rounds)
        direct = min(f for f in found if "direct" in f[1])
        winograd = sorted((f for f in found if "winograd" in f[1]), key=lambda f: f[0])
        work = layer.flops * args.batch / 1e9
        fast = winograd[0][0]
        print(f"{layer!s:22} x{count} batch {args.batch}: direct {direct[0] * 1e6:7.0f} us "
              f"{work / direct[0]:5.0f} GFLOP/s, Winograd {fast * 1e6:7.0f} us {work / fast:5.0f} GFLOP/s, "
              f"{direct[0] / fast:4.2f}x  {dict(winograd[0][2])}", flush=True)
        if args.all:
            for place, (seconds, name, params, compiled) in enumerate(found):
                print(f"    {place} {name[4:]:20} {seconds * 1e6:7.0f} us {work / seconds:5.0f} GFLOP/s "
                      f"compile {compiled * 1e3:.0f} ms {dict(params)}")
        total["direct"] += count * direct[0]
        total["winograd"] += count * min(direct[0], fast)
    print(f"{args.model} batch {args.batch}, {args.threads} threads, 3x3 layers: "
          f"{total['direct'] * 1e3:.2f} ms direct, {total['winograd'] * 1e3:.2f} ms with Winograd in the race: "
          f"{total['direct'] / total['winograd']:.2f}x")


if __name__ == "__main__":
    main()
