"""Ops in numpy where onnx.reference is too slow to judge whole networks, lacks the op, or is wrong; each says which."""
from __future__ import annotations

import math
import os
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np

from ingot.graph import type_of
from ingot.ops.convolution import Window, convolution_window, transposed_window
from ingot.ops.op import OPS, Attrs
from ingot.ops.pooling import pooling_window
from ingot.ops.recurrent import GATES, whole
from ingot.ops.resize import resized
from ingot.ops.shapes import ints

Arrays = Sequence["np.ndarray | None"]


def conv(arrays: Arrays, attrs: Attrs) -> list[np.ndarray] | None:
    """Conv as one product per sample and group over a strided view; None where onnx.reference shall do it."""
    x, weight, bias = (*arrays, None)[:3]
    if x is None or weight is None or x.dtype not in (np.float32, np.float64):
        return None
    w = convolution_window((type_of(x), type_of(weight)), attrs)
    pads = [(int(str(b)), int(str(e))) for b, e in zip(w.begins, w.ends, strict=True)]
    group = int(str(attrs["group"]))
    padded = np.pad(x, [(0, 0), (0, 0), *pads]) if any(map(any, pads)) else x
    spatial = range(2, x.ndim)
    views = np.lib.stride_tricks.sliding_window_view(
        padded, tuple(w.extent(i - 2) for i in spatial), axis=tuple(spatial))
    views = views[(slice(None), slice(None), *(slice(None, None, s) for s in w.strides),
                   *(slice(None, None, d) for d in w.dilations))]
    batch, sizes, taps = x.shape[0], views.shape[2:x.ndim], weight.shape[2:]
    out_channels, in_group = weight.shape[:2]
    out_group, places, depth = out_channels // group, int(np.prod(sizes)), in_group * int(np.prod(taps))
    out = np.empty((batch, out_channels, places), x.dtype)
    order = (0, *range(x.ndim - 1, x.ndim - 1 + len(taps)), *range(1, x.ndim - 1))
    if in_group == 1 and out_group == 1:
        letters, inner = "abcdef"[:len(sizes)], "uvwxyz"[:len(taps)]
        whole = np.einsum(f"nq{letters}{inner},q{inner}->nq{letters}", views, weight[:, 0])
        out = whole.reshape(batch, out_channels, places)
    else:
        for n in range(batch):
            for g in range(group):
                part = views[n, g * in_group:(g + 1) * in_group].transpose(order).reshape(depth, places)
                rows = slice(g * out_group, (g + 1) * out_group)
                np.matmul(weight[rows].reshape(out_group, depth), part, out=out[n, rows])
    if bias is not None:
        out += bias[:, None]
    return [out.reshape(batch, out_channels, *sizes)]


def conv_transpose(arrays: Arrays, attrs: Attrs) -> list[np.ndarray] | None:
    """ConvTranspose with groups or an output_shape, which onnx.reference gets wrong: each input element is spread."""
    x, weight, bias = (*arrays, None)[:3]
    if x is None or weight is None:
        return None
    w, extra = transposed_window((type_of(x), type_of(weight)), attrs)
    group, rank, spatial = int(str(attrs["group"])), x.ndim - 2, x.shape[2:]
    batch, in_group, out_group = x.shape[0], x.shape[1] // group, weight.shape[1]
    full = tuple((n - 1) * w.strides[i] + extra[i] + w.extent(i) for i, n in enumerate(spatial))
    out = np.zeros((batch, group, out_group, *full), x.dtype)
    flat = x.reshape(batch, group, in_group, -1)
    for tap in np.ndindex(*w.kernel):
        taps = weight[(slice(None), slice(None), *tap)].reshape(group, in_group, out_group)
        part = np.einsum("ngip,gio->ngop", flat, taps).reshape(batch, group, out_group, *spatial)
        place = tuple(slice(t * w.dilations[i], t * w.dilations[i] + (spatial[i] - 1) * w.strides[i] + 1, w.strides[i])
                      for i, t in enumerate(tap))
        out[(slice(None), slice(None), slice(None), *place)] += part
    out = out.reshape(batch, group * out_group, *full)
    kept = tuple(slice(int(str(w.begins[i])), full[i] - int(str(w.ends[i]))) for i in range(rank))
    out = out[(slice(None), slice(None), *kept)]
    return [np.ascontiguousarray(out if bias is None else out + bias.reshape(-1, *(1,) * rank))]


def mean(arrays: Arrays, attrs: Attrs) -> list[np.ndarray] | None:
    """Mean, whose operands onnx.reference does not broadcast."""
    present = [a for a in arrays if a is not None]
    total = present[0]
    for a in present[1:]:
        total = total + a
    return [np.asarray(total / np.asarray(len(present), total.dtype))]


def softsign(arrays: Arrays, attrs: Attrs) -> list[np.ndarray] | None:
    """Softsign, which onnx.reference refuses for a scalar."""
    x, = (a for a in arrays if a is not None)
    return [np.asarray(x / (1 + np.abs(x)), dtype=x.dtype)]


def global_max_pool(arrays: Arrays, attrs: Attrs) -> list[np.ndarray] | None:
    """GlobalMaxPool, of whose result onnx.reference gives the wrong rank unless there are two spatial axes."""
    x, = (a for a in arrays if a is not None)
    return [x.max(axis=tuple(range(2, x.ndim)), keepdims=True)]


def global_lp_pool(arrays: Arrays, attrs: Attrs) -> list[np.ndarray] | None:
    """GlobalLpPool, which onnx.reference lacks."""
    x, = (a for a in arrays if a is not None)
    p = int(str(attrs["p"]))
    total = (np.abs(x) ** p).sum(axis=tuple(range(2, x.ndim)), keepdims=True)
    return [np.asarray(total ** (1 / p), dtype=x.dtype)]


def pad(arrays: Arrays, attrs: Attrs) -> list[np.ndarray] | None:
    """Pad with a negative pad, which cuts; onnx.reference does not serve it. None where no pad is negative."""
    pads, axes = ints(attrs, "pads"), ints(attrs, "axes")
    x, value = (*arrays, None)[:2]
    if x is None or pads is None or min(pads, default=0) >= 0:
        return None
    places = range(x.ndim) if axes is None else [a % x.ndim for a in axes]
    widths, cut = [(0, 0)] * x.ndim, [slice(None)] * x.ndim
    for k, a in enumerate(places):
        before, after = pads[k], pads[k + len(places)]
        widths[a] = (max(before, 0), max(after, 0))
        cut[a] = slice(max(-before, 0), x.shape[a] + max(after, 0) + max(before, 0) - max(-after, 0))
    mode = str(attrs["mode"])
    if mode == "constant":
        padded = np.pad(x, widths, constant_values=x.dtype.type(0) if value is None else value)
    else:
        padded = np.pad(x, widths, mode=mode)  # type: ignore[call-overload]
    return [np.ascontiguousarray(padded[tuple(cut)])]


def lrn(arrays: Arrays, attrs: Attrs) -> list[np.ndarray] | None:
    """LRN, of which onnx.reference serves only as many channels as there are samples."""
    x, = (a for a in arrays if a is not None)
    size = int(str(attrs["size"]))
    before, after = (size - 1) // 2, size // 2
    squares = np.pad(x * x, [(0, 0), (before, after), *[(0, 0)] * (x.ndim - 2)])
    total = sum(squares[:, k:k + x.shape[1]] for k in range(size))
    scale = float(str(attrs["bias"])) + float(str(attrs["alpha"])) / size * total
    return [np.asarray(x / scale ** float(str(attrs["beta"])), dtype=x.dtype)]


def lp_normalization(arrays: Arrays, attrs: Attrs) -> list[np.ndarray] | None:
    """LpNormalization, whose 1-norm onnx.reference sums without taking magnitudes."""
    x, = (a for a in arrays if a is not None)
    norm = np.linalg.norm(x, ord=int(str(attrs["p"])), axis=int(str(attrs["axis"])), keepdims=True)
    return [np.asarray(np.divide(x, norm, out=np.zeros_like(x), where=norm != 0), dtype=x.dtype)]


def _pooled(name: str, x: np.ndarray, attrs: Attrs, fill: float) -> tuple[np.ndarray, Window, tuple[int, ...]]:
    """Every window of a pooling op, flattened into the last axis; what lies outside holds `fill`."""
    types = (type_of(x),)
    sizes = tuple(int(str(d)) for d in OPS[name].infer(types, attrs, 1)[0].shape[2:])
    w, rank = pooling_window(types, attrs), x.ndim - 2
    begins = [int(str(b)) for b in w.begins]
    reach = [(size - 1) * w.strides[i] + w.extent(i) for i, size in enumerate(sizes)]
    widths = [(b, max(reach[i] - b - x.shape[2 + i], 0)) for i, b in enumerate(begins)]
    padded = np.pad(x, [(0, 0), (0, 0), *widths], constant_values=fill)
    views = np.lib.stride_tricks.sliding_window_view(padded, tuple(w.extent(i) for i in range(rank)),
                                                     axis=tuple(range(2, x.ndim)))
    views = views[(slice(None), slice(None), *(slice(0, sizes[i] * w.strides[i], w.strides[i]) for i in range(rank)),
                   *(slice(None, None, d) for d in w.dilations))]
    return views.reshape(*views.shape[:x.ndim], math.prod(views.shape[x.ndim:])), w, sizes


def max_pool(arrays: Arrays, attrs: Attrs) -> list[np.ndarray] | None:
    """MaxPool, whose positions onnx.reference gets wrong beyond one sample or two spatial axes."""
    x, = (a for a in arrays if a is not None)
    if attrs["storage_order"] or x.dtype.kind != "f":
        return None
    flat, w, sizes = _pooled("MaxPool", x, attrs, -np.inf)
    rank, spatial = x.ndim - 2, x.shape[2:]
    best = flat.argmax(-1)
    taps = np.unravel_index(best, w.kernel)
    place = np.arange(x.shape[0] * x.shape[1]).reshape(x.shape[0], x.shape[1], *(1,) * rank)
    for i in range(rank):
        start = np.arange(sizes[i]).reshape(-1, *(1,) * (rank - 1 - i)) * w.strides[i] - int(str(w.begins[i]))
        place = place * spatial[i] + np.clip(start + taps[i] * w.dilations[i], 0, spatial[i] - 1)
    return [np.take_along_axis(flat, best[..., None], -1)[..., 0], place]


def average_pool(arrays: Arrays, attrs: Attrs) -> list[np.ndarray] | None:
    """AveragePool, for which onnx.reference takes half a second per small image."""
    x, = (a for a in arrays if a is not None)
    if x.dtype not in (np.float32, np.float64):
        return None
    flat, w, sizes = _pooled("AveragePool", x, attrs, 0.0)
    counted = np.ones((1, 1, *x.shape[2:]), x.dtype)
    stated = [(int(str(b)), int(str(e))) for b, e in zip(w.begins, w.ends, strict=True)]
    if attrs["count_include_pad"]:      # the stated padding counts; what ceil_mode adds behind it does not
        counted = np.pad(counted, [(0, 0), (0, 0), *stated], constant_values=1)
        attrs = {**attrs, "pads": (0,) * (2 * len(stated)), "auto_pad": "NOTSET"}
    count = _pooled("AveragePool", counted, attrs, 0.0)[0].sum(-1)[(..., *(slice(n) for n in sizes))]
    return [np.asarray(flat.sum(-1) / count, dtype=x.dtype)]


def lp_pool(arrays: Arrays, attrs: Attrs) -> list[np.ndarray] | None:
    """LpPool, for which onnx.reference takes seconds per small image."""
    x, = (a for a in arrays if a is not None)
    p = int(str(attrs["p"]))
    powers = _pooled("LpPool", np.abs(x) ** p, attrs, 0.0)[0].sum(-1)
    return [np.asarray(powers ** (1 / p), dtype=x.dtype)]


def gather_elements(arrays: Arrays, attrs: Attrs) -> list[np.ndarray] | None:
    """GatherElements, which onnx.reference gives up on where the axis has more than 64 elements."""
    x, at = (a for a in arrays if a is not None)
    axis = int(str(attrs["axis"])) % x.ndim
    part = x[tuple(slice(None) if i == axis else slice(0, n) for i, n in enumerate(at.shape))]
    return [np.take_along_axis(part, at % x.shape[axis], axis)]


def flatten(arrays: Arrays, attrs: Attrs) -> list[np.ndarray] | None:
    """Flatten of no elements, which onnx.reference fails on: it asks numpy to find the size -1 beside a 0."""
    x = arrays[0]
    if x is None or x.size:
        return None
    axis = int(str(attrs["axis"]))
    axis += x.ndim if axis < 0 else 0
    return [x.reshape(math.prod(x.shape[:axis]), math.prod(x.shape[axis:]))]


_PART = 1 << 17             # elements: a few arrays of so many lie in a core's second-level cache
def global_average_pool(arrays: Arrays, attrs: Attrs) -> list[np.ndarray] | None:
    """GlobalAveragePool of a batch of none, for which onnx.reference divides by zero."""
    x = arrays[0]
    if x is None or x.shape[0]:
        return None
    return [np.zeros((*x.shape[:2], *(1,) * (x.ndim - 2)), x.dtype)]


_STEP = 1 / 1024
_GRID = np.arange(6145) * _STEP
_ERF = np.array([math.erf(v) for v in _GRID])
_SLOPE = 2 / math.sqrt(math.pi) * np.exp(-_GRID * _GRID)


def _in_parts(function: Callable[[np.ndarray], np.ndarray], x: np.ndarray) -> np.ndarray:
    """An elementwise function in f64 of a large array, in parts that fit a core's cache, on several threads."""
    flat = np.ascontiguousarray(x).reshape(-1)
    out = np.empty(flat.size, np.float64)

    def part(at: int) -> None:
        out[at:at + _PART] = function(flat[at:at + _PART])

    starts = range(0, flat.size, _PART)
    if len(starts) < 4:
        for at in starts:
            part(at)
    else:
        with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
            list(pool.map(part, starts))
    return out.reshape(x.shape)


def _erf(x: np.ndarray) -> np.ndarray:
    """The error function in f64, to 1e-13 of its value: Taylor's series about the nearest point of a grid."""
    return _in_parts(_erf_part, x)


def _erf_part(x: np.ndarray) -> np.ndarray:
    size = np.minimum(np.abs(x).astype(np.float64), 6.0)
    at = np.nan_to_num(np.rint(size / _STEP)).astype(np.int64)
    here = _GRID[at]
    d = size - here
    series = d * (1 - d * (here - d * (2 * here * here - 1) / 3))
    return np.asarray(np.copysign(_ERF[at] + _SLOPE[at] * series, x))


def erf(arrays: Arrays, attrs: Attrs) -> list[np.ndarray] | None:
    """Erf of f32 and f64, which onnx.reference takes one element at a time."""
    x, = (a for a in arrays if a is not None)
    return [_erf(x).astype(x.dtype)] if x.dtype in (np.float32, np.float64) else None


def gelu(arrays: Arrays, attrs: Attrs) -> list[np.ndarray] | None:
    """Gelu of f32 and f64 by the error function, for the same reason; in f64 within."""
    x, = (a for a in arrays if a is not None)
    if attrs["approximate"] != "none" or x.dtype not in (np.float32, np.float64):
        return None

    def part(some: np.ndarray) -> np.ndarray:
        wide = some.astype(np.float64)
        return np.asarray(0.5 * wide * (1 + _erf_part(wide * math.sqrt(0.5))))

    return [_in_parts(part, x).astype(x.dtype)]


def resize(arrays: Arrays, attrs: Attrs) -> list[np.ndarray] | None:
    """Resize by nearest, which onnx.reference makes a sum with weights 0 and 1: NaN and infinity leak past it there."""
    x = arrays[0]
    transformation = str(attrs["coordinate_transformation_mode"])
    if x is None or attrs["mode"] != "nearest" or transformation == "tf_crop_and_resize":
        return None
    shape, scales = resized((type_of(x),), attrs)
    out = x
    for axis, (size, scale) in enumerate(zip(shape, scales, strict=True)):
        old, new = x.shape[axis], int(str(size))
        factor = new / old if scale is None else scale
        if old != new or factor != 1.0:
            found = [_nearest(_source(i, old, new, factor, transformation), str(attrs["nearest_mode"]))
                     for i in range(new)]
            out = np.take(out, np.clip(found, 0, old - 1), axis=axis)
    return [np.ascontiguousarray(out)]


def _source(place: int, old: int, new: int, scale: float, transformation: str) -> float:
    """Where in the input a place of the result lies, by ONNX's formulas."""
    if transformation == "align_corners":
        return 0.0 if scale * old == 1 else place * (old - 1) / (scale * old - 1)
    if transformation == "asymmetric":
        return place / scale
    if transformation == "pytorch_half_pixel" and scale * old == 1:
        return -0.5
    shift = old / 2 * (1 - new / (scale * old)) if transformation == "half_pixel_symmetric" else 0.0
    return shift + (place + 0.5) / scale - 0.5


def _nearest(x: float, mode: str) -> int:
    return {"round_prefer_floor": math.ceil(x - 0.5), "round_prefer_ceil": math.floor(x + 0.5),
            "floor": math.floor(x), "ceil": math.ceil(x)}[mode]


def _less_zero(array: np.ndarray, zero: np.ndarray | None) -> np.ndarray | None:
    """Integers less their one zero point, in f64; None where there are several."""
    if zero is None:
        return array.astype(np.float64)
    return array.astype(np.float64) - float(zero.reshape(-1)[0]) if zero.size == 1 else None


def matmul_integer(arrays: Arrays, attrs: Attrs) -> list[np.ndarray] | None:
    """MatMulInteger in f64, which is exact here: numpy's products of integers take a hundred times as long."""
    a, b, a_zero, b_zero = (*arrays, None, None)[:4]
    if a is None or b is None:
        return None
    left, right = _less_zero(a, a_zero), _less_zero(b, b_zero)
    return None if left is None or right is None else [np.matmul(left, right).astype(np.int32)]


def conv_integer(arrays: Arrays, attrs: Attrs) -> list[np.ndarray] | None:
    """ConvInteger in f64, for the same reason."""
    x, weight, x_zero, w_zero = (*arrays, None, None)[:4]
    if x is None or weight is None:
        return None
    left, right = _less_zero(x, x_zero), _less_zero(weight, w_zero)
    made = None if left is None or right is None else conv((left, right), attrs)
    return None if made is None else [made[0].astype(np.int32)]


OWN: Mapping[str, Callable[[Arrays, Attrs], list[np.ndarray] | None]] = {
    "AveragePool": average_pool, "Conv": conv, "ConvInteger": conv_integer, "ConvTranspose": conv_transpose, "Erf": erf,
    "Flatten": flatten, "GatherElements": gather_elements, "Gelu": gelu,
    "GlobalAveragePool": global_average_pool, "GlobalLpPool": global_lp_pool, "GlobalMaxPool": global_max_pool,
    "LRN": lrn, "LpNormalization": lp_normalization, "LpPool": lp_pool, "MatMulInteger": matmul_integer,
    "MaxPool": max_pool, "Mean": mean, "Pad": pad,
    "Resize": resize, "Softsign": softsign,
    **{kind: whole(kind) for kind in GATES}}
