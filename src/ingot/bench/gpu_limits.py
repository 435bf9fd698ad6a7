"""What the GPU here can do at most, measured: products on the matrix units, bytes copied in memory and in its cache."""
from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from itertools import islice

import numpy as np

from ingot import env
from ingot.bench.limits import Limits, machine_limits
from ingot.errors import CandidateError
from ingot.graph import BF16, F16, F32, DType, TensorType
from ingot.kernels import Operand, Site, Step, able
from ingot.runtime.compiler import CodeCache
from ingot.runtime.cuda.bench import CudaStand
from ingot.runtime.cuda.code import CodeStore
from ingot.runtime.cuda.driver import Driver
from ingot.runtime.cuda.memory import DeviceBlock
from ingot.runtime.cuda.session import CudaSession
from ingot.runtime.session import Session
from ingot.target import Target

_POINTS = 3         # of each of the two best tactics, when the product's rate is measured


@dataclass(frozen=True)
class GpuLimits(Limits):
    """Measured peaks of a GPU: GFLOP/s of a large product of elements `kind`, GB/s read and written by copies.

    `gflops` is infinite where products cannot be compiled here, so that no kernel counts as bound by arithmetic.
    """

    kind: str = "f16"
    device: str = ""

    def __str__(self) -> str:
        rate = (f"{self.gflops / 1e3:,.0f} TFLOP/s in products of {self.kind}" if math.isfinite(self.gflops)
                else "the rate of products was not measured (Triton is not installed)")
        return (f"{rate}, {self.memory_gbs:,.0f} GB/s copied in memory, {self.cache_gbs:,.0f} GB/s in the cache, "
                f"on {self.device}")


def gpu_limits(driver: Driver, target: Target, dtype: DType = F16, *, side: int = 8192,
               large: int = 1 << 30) -> GpuLimits:
    """Measure the GPU; takes a second, and some more where the product is compiled for the first time.

    `side` is that of the product's square matrices, `large` the bytes that are copied in memory.
    """
    near = driver.facts.cache // 4
    return GpuLimits(1, product_gflops(driver, target, dtype, side), copy_gbs(driver, large), copy_gbs(driver, near),
                     near, dtype.name, driver.facts.name)


def limits_of(session: Session | CudaSession) -> Limits:
    """The measured limits of what a session runs on: of a GPU, in the precision most of its kernels compute in."""
    if not isinstance(session, CudaSession):
        return machine_limits(session.threads)
    precision = session.variant.report.get("precision")
    assert session.variant.target is not None       # a session on a GPU has one
    return gpu_limits(session.driver, session.variant.target,
                      BF16 if precision == "bf16" else F16 if precision == "f16" else F32)


def copy_gbs(driver: Driver, nbytes: int, repeats: int = 5) -> float:
    """The best of several rounds of copies on the device, in GB/s: bytes read plus bytes written."""
    source, to = DeviceBlock(driver, nbytes), DeviceBlock(driver, nbytes)
    times = max(4, (1 << 28) // max(1, nbytes))

    def once() -> float:
        begin, end = driver.event(), driver.event()
        driver.record(begin, driver.idle)
        for _ in range(times):
            driver.copy(to.address, source.address, nbytes, driver.idle)
        driver.record(end, driver.idle)
        driver.settle(end)
        found = driver.elapsed(begin, end)
        for event in (begin, end):
            driver.cancel(event)
        return found

    return 2 * nbytes * times / min(once() for _ in range(repeats)) / 1e9


def product_gflops(driver: Driver, target: Target, dtype: DType, side: int) -> float:
    """The rate of the fastest of a few generated kernels for a product of square matrices; infinite where none is."""
    square = TensorType(dtype, (side, side))
    site = Site((Step("MatMul", (0, 1), (), (square,)),), (Operand(square), Operand(square, constant=True)),
                (Operand(square),))
    rng = np.random.default_rng(0)
    arrays = [rng.standard_normal((side, side), dtype=np.float32).astype(dtype.numpy) for _ in range(2)]
    stand, best = CudaStand(site, driver), math.inf
    store = CodeStore(target, CodeCache(env.cache_folder() / "cuda"))
    for tactic in able(site, target)[0][:2]:
        for params in islice(tactic.space(site, target), _POINTS):
            try:
                kernel = store.emit(tactic, site, params, target)
                once = stand.timer(kernel, arrays, tactic.pack(site, params, target, {1: arrays[1]}), {})
            except CandidateError:
                continue
            best = min(best, _least(once))
    return 2.0 * side ** 3 / best / 1e9 if math.isfinite(best) else math.inf


def _least(once: Callable[[int], float], times: int = 20) -> float:
    once(times)
    return min(once(times) for _ in range(3)) / times


__all__ = ["GpuLimits", "copy_gbs", "gpu_limits", "limits_of", "product_gflops"]
