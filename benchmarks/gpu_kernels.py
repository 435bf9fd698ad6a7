"""Candidates of single sites on a GPU: large products as transformers have them, depthwise convolutions of MobileNetV2.

    python -m benchmarks.gpu_kernels [--points 9] [--only bert128]

Each candidate is compiled, held against PyTorch's result over a poisoned output, and timed: the best of five rounds of
40 launches in graphs, weights read from copies in turn. Prints the fastest of each site.
"""
from __future__ import annotations

import argparse
from collections.abc import Iterator
from itertools import islice

import numpy as np
import torch

from ingot.errors import IngotError
from ingot.graph import F16, TensorType
from ingot.kernels import TACTICS, Operand, Site, Step
from ingot.runtime.cuda.bench import CudaDevice
from ingot.runtime.cuda.code import CodeStore
from ingot.runtime.cuda.driver import cuda_driver
from ingot.runtime.cuda.target import cuda_target

ROWS = {"bert128": (128, 128), "vit128": (128, 197), "bert32": (32, 128), "vit32": (32, 197)}
PRODUCTS = {"fc1": (768, 3072, "Add Gelu"), "fc2": (3072, 768, "Add Add"), "qkv": (768, 2304, "Add"),
            "out": (768, 768, "Add Add")}
DEPTHWISE = ((32, 112, 1), (96, 112, 2), (144, 56, 1), (144, 56, 2), (192, 28, 1), (384, 14, 1), (960, 7, 1))
SHOWN = 5


def product(rows: tuple[int, ...], depth: int, columns: int, after: str) -> Site:
    """A product, its bias, and what follows: an activation, or a tensor beside the result."""
    made = TensorType(F16, (*rows, columns))
    inputs = [Operand(TensorType(F16, (*rows, depth))), Operand(TensorType(F16, (depth, columns)), constant=True)]
    steps = [Step("MatMul", (0, 1), (), (made,))]
    for number, op in enumerate(after.split()):
        extra = (len(inputs),) if op == "Add" else ()
        beside = Operand(made) if number else Operand(TensorType(F16, (columns,)), constant=True)
        inputs += [beside] * len(extra)
        steps.append(Step(op, (~(len(steps) - 1), *extra), (), (made,)))
    return Site(tuple(steps), tuple(inputs), (Operand(made),))


def depthwise(batch: int, channels: int, side: int, stride: int) -> Site:
    """A depthwise 3x3 convolution with a bias and ReLU, channels last."""
    window = {"strides": (stride, stride), "pads": (1,) * 4, "dilations": (1, 1), "group": channels, "layout": "nhwc"}
    made = TensorType(F16, (batch, channels, side // stride, side // stride), "nhwc")
    inputs = (Operand(TensorType(F16, (batch, channels, side, side), "nhwc")),
              Operand(TensorType(F16, (channels, 1, 3, 3)), constant=True),
              Operand(TensorType(F16, (channels,)), constant=True))
    return Site((Step("Conv", (0, 1, 2), tuple(sorted(window.items())), (made,)), Step("Relu", (~0,), (), (made,))),
                inputs, (Operand(made),))


def sites() -> Iterator[tuple[str, Site, tuple[str, ...]]]:
    """Every site with its name and the tactics that are compared."""
    for where, rows in ROWS.items():
        for what, (depth, columns, after) in PRODUCTS.items():
            yield f"{where} {what}", product(rows, depth, columns, after), ("cuda.matmul_persistent", "cuda.matmul_tma")
    for batch in (32, 128):
        for channels, side, stride in DEPTHWISE:
            yield (f"depthwise {batch}x{channels}x{side}/{stride}", depthwise(batch, channels, side, stride),
                   ("cuda.conv_depthwise_tiles", "cuda.conv_depthwise"))


def wanted(site: Site, arrays: list[np.ndarray]) -> np.ndarray:
    """The result by PyTorch, in f32 (products in tf32)."""
    torch.backends.cuda.matmul.allow_tf32 = True
    a = [torch.from_numpy(x).cuda().float() for x in arrays]
    if site.op == "Conv":
        stride = dict(site.step.attrs)["strides"]
        made = torch.relu(torch.nn.functional.conv2d(a[0], a[1], a[2], stride, 1, 1, a[1].shape[0]))
        return made.cpu().numpy()       # type: ignore[no-any-return]
    made = a[0] @ a[1]
    for step in site.epilogue:
        made = torch.nn.functional.gelu(made) if step.op == "Gelu" else made + a[step.inputs[1] or 0]
    return made.cpu().numpy()           # type: ignore[no-any-return]


def main() -> None:
    parser = argparse.ArgumentParser(description="Candidates of single sites on a GPU.")
    parser.add_argument("--points", type=int, default=9, help="points of each tactic's space")
    parser.add_argument("--only", default="", help="sites whose name holds this")
    given = parser.parse_args()
    driver = cuda_driver()
    target, rng = cuda_target("cuda", driver), np.random.default_rng(0)
    tactics = {t.name: t for t in TACTICS["cuda"]}
    chosen = [(name, site, [(tactics[t], p) for t in names if tactics[t].declines(site, target) is None
                            for p in islice(tactics[t].space(site, target), given.points)])
              for name, site, names in sites() if given.only in name]
    with CodeStore(target, None) as store:
        store.prefetch((t, site, p) for _, site, points in chosen for t, p in points)
        for name, site, points in chosen:
            arrays = [(rng.standard_normal(o.type.shape, dtype=np.float32) * (0.05 if o.constant else 1)).astype(
                np.float16) for o in site.inputs]
            right, stand = wanted(site, arrays), CudaDevice(driver).stand(site)
            constants = {i: a for i, (a, o) in enumerate(zip(arrays, site.inputs, strict=True)) if o.constant}
            found: list[tuple[float, str]] = []
            for tactic, params in points:
                try:
                    kernel = store.emit(tactic, site, params, target)
                    packed = tactic.pack(site, params, target, constants)
                    got = stand.outputs(kernel, arrays, packed, {}, 1, 0xFF)[0].astype(np.float32)
                    off = float(np.abs(got - right).max() / np.abs(right).max())
                    once = stand.timer(kernel, arrays, packed, {})
                    once(40)
                    found.append((min(once(40) for _ in range(5)) / 40,
                                  f"{'' if off < 5e-3 else 'WRONG '}{tactic.name} {dict(params)} off {off:.1e}"))
                except IngotError as error:
                    print(f"{name}: {tactic.name} {dict(params)}: {error}")
            for seconds, text in sorted(found)[:SHOWN]:
                print(f"{name:28s} {seconds * 1e6:8.1f} us  {text}", flush=True)


if __name__ == "__main__":
    main()
