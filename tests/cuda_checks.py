"""CUDA tactics without a GPU: their source run by Triton's interpreter on numpy arrays, in a process of its own."""
from __future__ import annotations

import dataclasses
import os
from itertools import islice
from types import SimpleNamespace
from typing import Any

import cuda_gluon
import numpy as np
from kernel_checks import numbers, reference, site_of
from test_tactics import symbolic

from ingot.graph import BF16, F16, F32, TensorType, evaluate
from ingot.kernels import TACTICS, Operand, Site, Step
from ingot.kernels.cuda import DATA, WORKSPACE, Pointer, Scalar
from ingot.kernels.cuda.base import CudaTactic, Drafts
from ingot.kernels.reference import from_physical, to_physical
from ingot.ops import OPS
from ingot.target import Target

# products of bf16: the interpreter takes their bits for integers
DOTS = frozenset({"MatMul", "Gemm", "Conv", "ConvTranspose", "Attention", "Einsum"})
TARGETS = {isa: Target("cuda", isa=isa) for isa in ("sm_80", "sm_90", "sm_100")}


def start_interpreter() -> None:
    """What the process that interprets does first: before Triton is imported."""
    os.environ["TRITON_INTERPRET"] = "1"


class _Storage:
    def __init__(self, array: np.ndarray) -> None:
        self.array = array

    def data_ptr(self) -> int:
        return self.array.ctypes.data

    def cpu(self) -> _Storage:
        return self

    def copy_(self, other: object) -> None:
        """It is host memory already."""


class _Tensor:
    """A numpy array in the form in which the interpreter takes tensors."""

    def __init__(self, array: np.ndarray) -> None:
        self.array, self.dtype = array, array.dtype

    def data_ptr(self) -> int:
        return self.array.ctypes.data

    def untyped_storage(self) -> _Storage:
        return _Storage(self.array)

    def storage_offset(self) -> int:
        return 0

    def size(self) -> tuple[int, ...]:
        return self.array.shape

    def stride(self) -> tuple[int, ...]:
        return (1,)

    def new_empty(self, n: object, device: object = None) -> _Tensor:
        return _Tensor(np.empty_like(self.array))

    def set_(self, storage: _Storage, offset: int, size: object, stride: object) -> None:
        self.array = storage.array


def _library() -> Any:
    """The device library's functions, by numpy."""
    import triton.language as tl
    from triton.runtime.interpreter import TensorHandle

    def wrapped(function: Any) -> Any:
        def call(*args: Any) -> Any:
            with np.errstate(all="ignore"):
                made = function(*(a.handle.data for a in args)).astype(args[0].handle.data.dtype)
            return tl.core.tensor(TensorHandle(made, args[0].handle.dtype), args[0].type)
        return call
    names = {"rint": np.rint, "tanh": np.tanh, "tan": np.tan, "asin": np.arcsin, "acos": np.arccos, "atan": np.arctan,
             "sinh": np.sinh, "cosh": np.cosh, "asinh": np.arcsinh, "acosh": np.arccosh, "atanh": np.arctanh,
             "log1p": np.log1p, "expm1": np.expm1, "pow": np.power, "fmod": np.fmod}
    return SimpleNamespace(**{k: wrapped(v) for k, v in names.items()})


def _strided(array: np.ndarray, operand: Operand, sizes: dict[str, int], fill: int) -> np.ndarray:
    """The operand's memory as bytes: its elements where its strides say."""
    dense = to_physical(array, operand.type.at(sizes))
    steps = [evaluate(s, sizes) for s in operand.steps]
    length = 1 + sum((n - 1) * s for n, s in zip(dense.shape, steps, strict=True)) if dense.size else 0
    memory = np.full(length * dense.itemsize + 64, fill, np.uint8)
    view = memory[:length * dense.itemsize].view(dense.dtype)
    np.lib.stride_tricks.as_strided(view, dense.shape, [s * dense.itemsize for s in steps])[...] = dense
    return memory


def run(drafts: Drafts, site: Site, arrays: list[np.ndarray], sizes: dict[str, int],
        packed: dict[int, np.ndarray]) -> list[np.ndarray]:
    """The site's logical outputs by the interpreter; outputs and workspace are poisoned before."""
    memory = [packed[i].reshape(-1).view(np.uint8).copy() if i in packed else _strided(a, o, sizes, 0xFF)
              for i, (a, o) in enumerate(zip(arrays, site.inputs, strict=True))]
    outs = [np.full(o.type.at(sizes).physical, 0, o.type.dtype.numpy) for o in site.outputs]
    memory += [np.full_like(_strided(from_physical(a, o.type.at(sizes)), o, sizes, 0), 0xFF)
               for a, o in zip(outs, site.outputs, strict=True)]
    work = np.full(evaluate(drafts.workspace, sizes) + 64, 0xFF, np.uint8)
    counters = np.zeros(evaluate(drafts.counters, sizes) + 64, np.uint8)
    data = np.frombuffer(drafts.data + bytes(64), np.uint8).copy()
    kinds = {"*fp16": np.float16, "*fp32": np.float32, "*fp64": np.float64, "*u8": np.uint8, "*i8": np.int8,
             "*i16": np.int16, "*i32": np.int32, "*i64": np.int64, "*u16": np.uint16, "*u32": np.uint32,
             "*u64": np.uint64, "*bf16": BF16.numpy}
    if any(d.gluon for d in drafts.launches):
        cuda_gluon.run(drafts, site, memory, sizes)
        return _read(site, memory, sizes)
    import triton.language as tl
    from triton.runtime.interpreter import InterpretedFunction

    from ingot.kernels.cuda.compiler import function
    known = {"tl": tl, "libdevice": _library(), "gdc_wait": lambda: None, "gdc_launch_dependents": lambda: None,
             "jit": InterpretedFunction}
    for draft in drafts.launches:
        args: list[Any] = []
        for (_, kind), argument in zip(draft.signature, draft.arguments, strict=True):
            if isinstance(argument, Scalar):
                value = argument.value
                args.append(value if isinstance(value, float) else evaluate(value, sizes))
                continue
            assert isinstance(argument, Pointer)
            whole = (memory[argument.of] if argument.of >= 0 else work if argument.of == WORKSPACE
                     else data if argument.of == DATA else counters)
            part = whole[evaluate(argument.offset, sizes):]
            item = np.dtype(kinds[kind]).itemsize
            args.append(_Tensor(part[:len(part) // item * item].view(kinds[kind])))
        grid = tuple(evaluate(g, sizes) for g in draft.grid)
        if 0 in grid:
            continue
        with np.errstate(all="ignore"):
            function(draft.source, known)[grid](*args)
    assert not counters.any(), "counters are not zero again"
    return _read(site, memory, sizes)


def _read(site: Site, memory: list[np.ndarray], sizes: dict[str, int]) -> list[np.ndarray]:
    """The site's outputs as they lie in memory, as logical arrays."""
    results = []
    for o, m in zip(site.outputs, memory[len(site.inputs):], strict=True):
        shape = o.type.at(sizes).physical
        item = o.type.dtype.numpy.itemsize
        view = np.lib.stride_tricks.as_strided(m.view(np.uint8)[:len(m) // item * item].view(o.type.dtype.numpy), shape,
                                               [evaluate(s, sizes) * item for s in o.steps])
        results.append(from_physical(view, o.type.at(sizes)))
    return results


def as_dtype(site: Site, given: list[np.ndarray | None], to: Any) -> tuple[Site, list[np.ndarray | None]]:
    """The same site with f32 as another element type throughout."""
    def swap(t: TensorType) -> TensorType:
        return dataclasses.replace(t, dtype=to) if t.dtype == F32 else t
    operands = [dataclasses.replace(o, type=swap(o.type)) for o in site.inputs]
    steps = tuple(dataclasses.replace(s, types=tuple(map(swap, s.types))) for s in site.steps)
    outs = tuple(dataclasses.replace(o, type=swap(o.type)) for o in site.outputs)
    arrays = [None if a is None else a.astype(to.numpy) if a.dtype == np.float32 else a for a in given]
    return dataclasses.replace(site, steps=steps, inputs=tuple(operands), outputs=outs), arrays


def check(tactic: CudaTactic, site: Site, params: dict[str, int], given: list[np.ndarray | None],
          sizes: dict[str, int] | None = None, isa: str = "sm_90", seed: int = 0) -> None:
    """One point of a tactic against the reference in f64 or f32. Raises AssertionError."""
    sizes, rng = sizes or {}, np.random.default_rng(seed)
    arrays = [x if x is not None else numbers(o.type.at(sizes), rng, False)
              for x, o in zip(given, site.inputs, strict=True)]
    constants = {i: a for i, (a, o) in enumerate(zip(arrays, site.inputs, strict=True)) if o.constant}
    target = TARGETS[isa]
    packed = dict(tactic.pack(site, params, target, constants))
    drafts = tactic.write(site, params, target)
    with np.errstate(all="ignore"):
        got = run(drafts, site, arrays, sizes, packed)
    # halves: the right answer is that of f32 arithmetic on the very inputs
    wide = [a.astype(np.float32) if a.dtype in (np.float16, BF16.numpy) else a for a in arrays]
    half = any(o.type.dtype in (F16, BF16) for o in (*site.inputs, *site.outputs))
    want = reference(as_wide(site) if half else site, wide, sizes)
    for g, w, o in zip(got, want, site.outputs, strict=True):
        assert g.shape == w.shape
        where = f"{tactic.name} {dict(params)} on {site} {sizes}"
        if o.type.dtype.kind != "float":
            assert np.array_equal(g, w.astype(g.dtype)), where
            continue
        a, b = g.astype(np.float64), w.astype(np.float64)
        bar = {"f64": 1e-9, "f32": 3e-5, "f16": 4e-3, "bf16": 3e-2}[o.type.dtype.name]
        scale = np.abs(b[np.isfinite(b)]).max(initial=1e-3)
        with np.errstate(all="ignore"):
            right = (a == b) | (np.isnan(a) & np.isnan(b)) | (np.abs(a - b) <= bar * (np.abs(b) + 0.1 * scale))
        assert right.all(), f"{where}\n got {a[~right][:5]}\nwant {b[~right][:5]} at {np.argwhere(~right)[:5].tolist()}"


def as_wide(site: Site) -> Site:
    """The same site with half types as f32, casts included."""
    def swap(t: TensorType) -> TensorType:
        return dataclasses.replace(t, dtype=F32) if t.dtype in (F16, BF16) else t
    steps = tuple(dataclasses.replace(s, types=tuple(map(swap, s.types)), attrs=tuple(
        (k, "f32" if s.op == "Cast" and v in ("f16", "bf16") else v) for k, v in s.attrs)) for s in site.steps)
    return dataclasses.replace(site, steps=steps,
                               inputs=tuple(dataclasses.replace(o, type=swap(o.type)) for o in site.inputs),
                               outputs=tuple(dataclasses.replace(o, type=swap(o.type)) for o in site.outputs))


def check_op(op: str, points: int = 2, only: str = "", samples: int = 99) -> list[str]:
    """Samples of an op (so many, spread over all), on every tactic that serves it: what went wrong, as texts."""
    wrong, served = [], 0

    def willing(sample: object) -> bool:
        site, _ = site_of(op, sample)
        return not any(o.type.layout[:1] == "c" for o in (*site.inputs, *site.outputs)) and any(
            t.declines(site, TARGETS["sm_90"]) is None for t in TACTICS["cuda"])

    served_samples = [s for s in OPS[op].samples if willing(s)]
    step = max(1, len(served_samples) // samples)
    for number, sample in enumerate(served_samples):
        if number % step:
            continue
        site, given = site_of(op, sample)
        variants = [(site, given)]
        if number % 3 == 0 and any(o.type.dtype == F32 for o in site.inputs) and op != "Cast":
            variants.append(as_dtype(site, given, F16 if number % 2 or op in DOTS else BF16))
        for made, known in variants:
            for tactic in TACTICS["cuda"]:
                if (only and tactic.name != only) or tactic.declines(made, TARGETS["sm_90"]) is not None:
                    continue
                served += 1
                wrong += _points(tactic, made, known, points, {})
    return wrong if served else ["nothing served it"]


def _points(tactic: Any, site: Site, given: list[np.ndarray | None], points: int, sizes: dict[str, int]) -> list[str]:
    wrong = []
    for params in islice(tactic.space(site, TARGETS["sm_90"]), points):
        try:
            check(tactic, site, dict(params), given, sizes)
        except AssertionError as error:
            wrong.append(str(error))
        except Exception as error:  # noqa: BLE001 - the report names the tactic, whatever went wrong
            wrong.append(f"{tactic.name} {dict(params)} on {site}: {error!r}"[:1500])
    return wrong


def check_symbolic(op: str, batches: tuple[int, ...]) -> list[str]:
    """The samples of an op with the first dimension a symbol, at several sizes of it."""
    wrong, served = [], 0
    for sample in OPS[op].samples[:6]:
        made, given = site_of(op, sample)
        site = None if any(o.type.block for o in (*made.inputs, *made.outputs)) else symbolic(made)
        if site is None:
            continue
        for tactic in TACTICS["cuda"]:
            if tactic.declines(site, TARGETS["sm_90"]) is None:
                for n in batches:
                    served += 1
                    wrong += _points(tactic, site, given, 1, {"N": n})
    return wrong if served else ["nothing served it"]


def _conv(n: int, c: int, size: tuple[int, int], filters: int, kernel: int, stride: int = 1, pad: int = 0,
          dilation: int = 1, group: int = 1, after: str = "Relu", layout: str = "nhwc", dtype: Any = F16) -> Site:
    """A convolution as networks have it: channels last, an epilogue, with "Add" a tensor beside the result."""
    window = {"strides": (stride, stride), "pads": (pad,) * 4, "dilations": (dilation, dilation), "group": group,
              "layout": "nhwc"}
    out = tuple((d + 2 * pad - (kernel - 1) * dilation - 1) // stride + 1 for d in size)
    x, y = TensorType(dtype, (n, c, *size), layout), TensorType(dtype, (n, filters, *out), "nhwc")
    inputs = [Operand(x), Operand(TensorType(dtype, (filters, c // group, kernel, kernel)), constant=True),
              Operand(TensorType(dtype, (filters,)), constant=True)]
    steps = [Step("Conv", (0, 1, 2), tuple(sorted(window.items())), (y,))]
    for op in after.split():
        extra = (len(inputs),) if op == "Add" else ()
        inputs += [Operand(y)] * len(extra)
        steps.append(Step(op, (~(len(steps) - 1), *extra), (), (y,)))
    return Site(tuple(steps), tuple(inputs), (Operand(y),))


def _product(rows: tuple[int, ...], depth: int, columns: int, after: str = "Add Gelu") -> Site:
    """A product as networks have it: f16, a bias, an activation, a tensor beside the result."""
    x, y = TensorType(F16, (*rows, depth)), TensorType(F16, (*rows, columns))
    inputs = [Operand(x), Operand(TensorType(F16, (depth, columns)), constant=True)]
    steps = [Step("MatMul", (0, 1), (), (y,))]
    for k, op in enumerate(after.split()):
        extra = (len(inputs),) if op == "Add" else ()
        inputs += [Operand(TensorType(F16, (columns,)), constant=True) if k == 0 else Operand(y)] * len(extra)
        steps.append(Step(op, (~(len(steps) - 1), *extra), (), (y,)))
    return Site(tuple(steps), tuple(inputs), (Operand(y),))


FORMS = {
    "3x3": _conv(2, 16, (9, 7), 24, 3, 1, 1),
    "3x3, stride 2, residual": _conv(2, 64, (9, 9), 40, 3, 2, 1, after="Add Relu"),
    "3x3, dilated": _conv(1, 72, (8, 8), 32, 3, 1, 2, 2),
    "1x1, residual": _conv(3, 24, (5, 5), 136, 1, after="Add"),
    "1x1, stride 2": _conv(2, 128, (6, 6), 64, 1, 2),
    "stem from a plain input": _conv(1, 3, (17, 17), 32, 7, 2, 3, layout=""),
    "depthwise": _conv(2, 40, (9, 9), 40, 3, 1, 1, group=40, after="Sigmoid"),
    "depthwise, stride 2": _conv(1, 24, (16, 16), 24, 5, 2, 2, group=24),
    "depthwise, residual": _conv(2, 48, (8, 14), 48, 3, 1, 1, group=48, after="Add Relu"),
    "groups": _conv(1, 32, (6, 6), 64, 3, 1, 1, group=2),
    "product and Gelu": _product((2, 37), 64, 96),
    "product and residual": _product((70,), 136, 40, "Add Add"),
    "few rows": _product((1,), 256, 72, "Add Relu"),
}


# sites for what serves none but large ones; run on that tactic alone
LARGE = {"large product and Gelu": _product((2, 1030), 200, 1024),
         "large product and residual": _product((2050,), 136, 1056, "Add Add")}


def check_form(name: str, points: int, only: str = "") -> list[str]:
    """A site as networks have it, on every tactic that serves it, or on one."""
    site, rng, wrong, served = {**FORMS, **LARGE}[name], np.random.default_rng(2), [], 0
    given = [(rng.standard_normal(o.type.shape) * 0.1).astype(np.float16) if o.constant else None for o in site.inputs]
    for tactic in TACTICS["cuda"]:
        if only in ("", tactic.name) and tactic.declines(site, TARGETS["sm_90"]) is None:
            served += 1
            wrong += _points(tactic, site, given, points, {})
    return wrong if served else ["nothing served it"]
