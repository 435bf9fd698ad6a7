"""What a CUDA tactic gives: launches of device code with their arguments, as data that a runtime binds and replays.

A `CudaKernel` is a `Kernel` whose work is a sequence of launches on one stream. Nothing in it needs a GPU, Triton or
PyTorch at run time: `code` of a launch is a cubin, its arguments are listed in the order in which the device function
takes them, and every size is a `Dim` that the runtime evaluates for the symbols of the site.
"""
from __future__ import annotations

from dataclasses import dataclass, field

from ingot.graph import Dim, DType
from ingot.kernels.tactic import Kernel

WORKSPACE = -1      # the kernel's own memory: 256-byte aligned, holds anything on entry
COUNTERS = -2       # memory that is zero on the first launch; every launch leaves it zero again
DATA = -3           # the kernel's own constant bytes, 256-byte aligned


@dataclass(frozen=True)
class Pointer:
    """A device address (u64): operand `of` (inputs, then outputs), WORKSPACE, COUNTERS or DATA, plus bytes."""

    of: int
    offset: Dim = 0


@dataclass(frozen=True)
class Scalar:
    """A number by value: kind "i32", "i64" or "f32"."""

    value: Dim | float
    kind: str = "i32"


@dataclass(frozen=True)
class TensorMap:
    """A 128-byte CUtensorMap by value, 64-byte aligned, followed by its shape (i32 each) and strides (i64 each).

    `shape`, `strides` (elements; the last is 1) and `box` are slowest axis first; the driver wants them reversed, its
    strides in bytes and without the last. Tiled: `box` has one entry per axis, its element strides are all 1. With
    `lower` it is an im2col map (cuTensorMapEncodeIm2col): `box` is (pixels per column, channels per pixel), `lower`
    and `upper` are the corners of the box of pixels along the spatial axes (slowest first) and `steps` the element
    strides along them. Interleave none, L2 promotion 128 bytes, out of bounds reads as zero. `swizzle` is 0, 32, 64
    or 128 bytes.
    """

    of: int
    dtype: DType
    shape: tuple[Dim, ...]
    strides: tuple[Dim, ...]
    box: tuple[int, ...]
    swizzle: int
    offset: Dim = 0
    lower: tuple[int, ...] = ()
    upper: tuple[int, ...] = ()
    steps: tuple[int, ...] = ()


Argument = Pointer | Scalar | TensorMap


@dataclass(frozen=True)
class CudaLaunch:
    """One launch. A grid with a zero in it is skipped.

    `dependent`: the code calls `griddepcontrol.wait` before it reads or writes anything that earlier kernels may
    touch, so it may be launched with programmatic stream serialization.
    """

    entry: str
    cubin: bytes = field(repr=False)
    grid: tuple[Dim, Dim, Dim]
    threads: int
    shared: int                         # bytes of dynamic shared memory
    arguments: tuple[Argument, ...]
    cluster: int = 1                    # blocks per cluster along x
    dependent: bool = False


@dataclass(frozen=True)
class CudaKernel(Kernel):
    """Code for one site on a GPU: launches in order on one stream, each after the one before has finished.

    `code` is the source the launches were compiled from, for reading. `workspace` (bytes) is what WORKSPACE points
    to, `counters` (bytes) what COUNTERS points to: two launches that may overlap must not share it. `data` is what DATA
    points to, uploaded once. `phases` and `scratch` are unused.
    """

    launches: tuple[CudaLaunch, ...] = ()
    counters: Dim = 0
    data: bytes = b""


__all__ = ["COUNTERS", "DATA", "WORKSPACE", "Argument", "CudaKernel", "CudaLaunch", "Pointer", "Scalar", "TensorMap"]
