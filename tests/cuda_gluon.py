"""Gluon kernels on numpy, for which Triton has no interpreter: the kernel's text run with arrays for tensors.

What stands in for the hardware: shared memory is an array of NaN until something is put there; TMA copies boxes, tiled
or im2col as the driver's manual describes, zeros outside; a warp-group product is a product; barriers hold.
"""
from __future__ import annotations

from itertools import product as places
from types import SimpleNamespace
from typing import Any

import numpy as np

from ingot.graph import DTYPES, evaluate
from ingot.kernels import Site
from ingot.kernels.cuda import COUNTERS, WORKSPACE, Pointer, Scalar, TensorMap
from ingot.kernels.cuda.base import Drafts


class Tensor(np.ndarray):
    """An array with the methods of Gluon's tensors that kernels call."""

    def to(self, dtype: np.dtype, bitcast: bool = False) -> Tensor:
        return self.view(dtype) if bitcast else self.astype(dtype)


def tensor(x: Any) -> Tensor:
    return np.asarray(x).view(Tensor)


class Address:
    """A pointer, or a block of them."""

    def __init__(self, memory: np.ndarray, offset: Any = 0) -> None:
        self.memory, self.offset = memory, offset

    def __add__(self, more: Any) -> Address:
        return Address(self.memory, np.asarray(self.offset) + np.asarray(more))

    def load(self, mask: Any = None, other: Any = 0, cache_modifier: str = "") -> Tensor:
        at = np.asarray(self.offset)
        if mask is None:
            return tensor(self.memory[at])
        held = np.broadcast_to(mask, np.broadcast_shapes(np.shape(mask), at.shape))
        at = np.where(held, np.broadcast_to(at, held.shape), 0)
        return tensor(np.where(held, self.memory[at], np.asarray(other, self.memory.dtype)))

    def store(self, value: Any, mask: Any = None) -> None:
        at = np.asarray(self.offset)
        if mask is None:
            self.memory[at] = np.broadcast_to(value, at.shape)
            return
        held = np.broadcast_to(mask, at.shape)
        self.memory[at[held]] = np.broadcast_to(value, at.shape)[held]


class Shared:
    """Shared memory: NaN at first."""

    def __init__(self, array: np.ndarray) -> None:
        self.array = array

    def index(self, i: Any) -> Shared:
        return Shared(self.array[int(i)])

    def permute(self, order: tuple[int, ...]) -> Shared:
        return Shared(self.array.transpose(order))

    def store(self, value: np.ndarray) -> None:
        self.array[...] = value

    def load(self, layout: object) -> Tensor:
        return tensor(self.array.copy())


class Map:
    """A tensor map over memory."""

    def __init__(self, spec: TensorMap, memory: np.ndarray, sizes: dict[str, int]) -> None:
        self.spec, self.dtype, self.layout, self.block_type = spec, spec.dtype.numpy, None, None
        shape = [evaluate(d, sizes) for d in spec.shape]
        strides = [evaluate(s, sizes) * spec.dtype.nbytes for s in spec.strides]
        assert all(s % 16 == 0 for s in strides[:-1]), f"strides {strides} are no multiples of 16 bytes"
        self.array = np.lib.stride_tricks.as_strided(memory.view(self.dtype), shape, strides)

    def box(self, at: list[Any], shape: tuple[int, ...]) -> np.ndarray:
        """A tiled box, zeros outside."""
        found = np.zeros(shape, self.dtype)
        start = [int(a) for a in at]
        inside = [slice(max(0, min(n, d - a))) for a, n, d in zip(start, shape, self.array.shape, strict=True)]
        found[tuple(inside)] = self.array[tuple(slice(a, a + i.stop) for a, i in zip(start, inside, strict=True))]
        return found

    def column(self, at: list[Any], offsets: list[Any], pixels: int, channels: int) -> np.ndarray:
        """An im2col box: so many pixels of the bounding box from one on, each shifted by the offsets."""
        spec = self.spec
        n, h, w, c = (int(a) for a in at)
        batch, height, width, depth = self.array.shape
        found = np.zeros((pixels, channels), self.dtype)
        count = max(0, min(channels, depth - c))
        for k in range(pixels):
            y, x = h + int(offsets[0]), w + int(offsets[1])
            if n < batch and 0 <= y < height and 0 <= x < width:
                found[k, :count] = self.array[n, y, x, c:c + count]
            w += spec.steps[1]
            if w > width - 1 + spec.upper[1]:
                w, h = spec.lower[1], h + spec.steps[0]
                if h > height - 1 + spec.upper[0]:
                    h, n = spec.lower[0], n + 1
        return found


def _async_load(map_: Map, at: list[Any], bar: object, to: Shared, pred: Any = True,
                multicast: bool = False) -> None:
    if pred:
        to.array[...] = map_.box(at, to.array.shape)


def _async_load_im2col(map_: Map, at: list[Any], offsets: list[Any], bar: object, to: Shared, pred: Any = True) -> None:
    if pred:
        to.array[...] = map_.column(at, offsets, *to.array.shape)


def _async_store(map_: Map, at: list[Any], source: Shared) -> None:
    start = [int(a) for a in at]
    room = [max(0, min(n, d - a)) for a, n, d in zip(start, source.array.shape, map_.array.shape, strict=True)]
    map_.array[tuple(slice(a, a + r) for a, r in zip(start, room, strict=True))] = source.array[
        tuple(slice(r) for r in room)]


def _mma(a: Shared, b: Shared, sums: np.ndarray, is_async: bool = False) -> Tensor:
    wide = np.int32 if sums.dtype == np.int32 else np.float32
    return tensor(a.array.astype(wide) @ b.array.astype(wide) + sums)


def _atomic_add(address: Address, value: int, sem: str = "") -> int:
    old = int(address.memory[address.offset])
    address.memory[address.offset] = old + value
    return old


def _language(ids: list[int]) -> SimpleNamespace:
    def shared(dtype: Any, shape: list[int], layout: object) -> Shared:
        dtype = np.dtype(dtype)
        return Shared(np.full(shape, np.nan if dtype.kind == "f" else 0, dtype))
    types = {n: DTYPES[s].numpy for n, s in (("float16", "f16"), ("float32", "f32"), ("int16", "i16"), ("int32", "i32"),
                                              ("int64", "i64"), ("uint8", "u8"), ("bfloat16", "bf16"), ("int8", "i8"),
                                              ("float8e4nv", "f8e4m3"))}
    return SimpleNamespace(
        **types, constexpr=None, NVMMADistributedLayout=lambda **k: None, SliceLayout=lambda *k: None,
        program_id=lambda a: tensor(np.int32(ids[a])), minimum=lambda a, b: tensor(np.minimum(a, b)),
        maximum=lambda a, b: tensor(np.maximum(a, b)), allocate_shared_memory=shared, static_range=range,
        zeros=lambda s, d, layout=None: tensor(np.zeros(s, d)),
        arange=lambda a, b, layout=None: tensor(np.arange(a, b)),
        load=lambda p, **k: p.load(**k), store=lambda p, v, **k: p.store(v, **k), where=lambda *a: tensor(np.where(*a)),
        exp=lambda x: tensor(np.exp(x)), exp2=lambda x: tensor(np.exp2(x)), abs=lambda x: tensor(np.abs(x)),
        sqrt=lambda x: tensor(np.sqrt(x)), atomic_add=_atomic_add, barrier=lambda: None)


def run(drafts: Drafts, site: Site, memory: list[np.ndarray], sizes: dict[str, int]) -> None:
    """Run every program of every launch; `memory` holds the bytes of the operands, outputs too."""
    work = np.full(evaluate(drafts.workspace, sizes) + 64, 0xFF, np.uint8)
    counters = np.zeros(evaluate(drafts.counters, sizes) + 64, np.uint8)
    kinds = {"*fp16": np.float16, "*fp32": np.float32, "*i32": np.int32, "*u8": np.uint8, "*i64": np.int64,
             "*bf16": DTYPES["bf16"].numpy, "*i8": np.int8, "*fp8e4nv": DTYPES["f8e4m3"].numpy}
    nothing = SimpleNamespace(init=lambda *a, **k: None, expect=lambda *a, **k: None, wait=lambda *a, **k: None,
                              invalidate=lambda *a, **k: None, arrive=lambda *a, **k: None,
                              MBarrierLayout=lambda *a: None)
    tma = SimpleNamespace(async_load=_async_load, async_load_im2col=_async_load_im2col, async_store=_async_store,
                          store_wait=lambda pendings: None)
    for draft in drafts.launches:
        args: list[Any] = []
        for (_, kind), argument in zip(draft.signature, draft.arguments, strict=True):
            if isinstance(argument, Scalar):
                args.append(tensor(np.int32(evaluate(argument.value, sizes))))
            elif isinstance(argument, TensorMap):
                args.append(Map(argument, memory[argument.of], sizes))
            else:
                assert isinstance(argument, Pointer)
                whole = {WORKSPACE: work, COUNTERS: counters}.get(argument.of)
                whole = memory[argument.of] if whole is None else whole
                item = np.dtype(kinds[kind]).itemsize
                args.append(Address(whole[:len(whole) // item * item].view(kinds[kind])))
        for z, y, x in places(*(range(evaluate(g, sizes)) for g in reversed(draft.grid))):
            space = {"tl": _language([x, y, z]), "mbarrier": nothing, "tma": tma, "jit": lambda f: f,
                     "fence_async_shared": lambda **k: None, "cluster": SimpleNamespace(barrier=lambda: None),
                     "warpgroup_mma": _mma,
                     "warpgroup_mma_wait": lambda n, deps: deps if n else deps[0], "gdc_wait": lambda: None,
                     "gdc_launch_dependents": lambda: None}
            exec(compile(draft.source, "<kernel>", "exec"), space)
            with np.errstate(all="ignore"):
                space["kernel"](*args)
    assert not counters.any(), "counters are not zero again"
