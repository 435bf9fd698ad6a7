"""Pooling: windows over the spatial axes. Results lie as their input does; those of global pooling are plain."""
from __future__ import annotations

from ingot.graph import I64, Dim, TensorType
from ingot.ops.convolution import Window, window
from ingot.ops.op import REQUIRED, Attrs, Op, Sample, Types, declare
from ingot.ops.samples import f32
from ingot.ops.shapes import given, ints


def pooling_window(types: Types, attrs: Attrs) -> Window:
    """The window of a pooling op over its input."""
    x = given(types[0])
    if x.rank < 3:
        raise ValueError(f"{x} has no spatial axes")
    return window(attrs, x.shape[2:], ints(attrs, "kernel_shape") or ())


def _pool(types: Types, attrs: Attrs, outputs: int) -> tuple[TensorType, ...]:
    x, w = given(types[0]), pooling_window(types, attrs)
    sizes: list[Dim] = []
    for i, n in enumerate(x.shape[2:]):
        room, step = n + w.begins[i] + w.ends[i] - w.extent(i), w.strides[i]
        if not attrs["ceil_mode"] or str(attrs["auto_pad"]) != "NOTSET":
            size = room // step + 1
        else:
            size = -(-room // step) + 1
            inside = n + w.begins[i]
            if isinstance(size, int) and isinstance(inside, int):
                size -= (size - 1) * step >= inside     # the last window must start inside
            elif step > 1:
                raise ValueError(f"ceil_mode over the symbolic size {n}")
        if isinstance(size, int) and size < 1:
            raise ValueError(f"the window of {w.extent(i)} does not fit {n} with its padding")
        sizes.append(size)
    out = TensorType(x.dtype, (*x.shape[:2], *sizes), x.layout)
    return (out,) if outputs == 1 else (out, TensorType(I64, out.shape))


def _p(*x: int, layout: str = "", **attrs: object) -> Sample:
    return (f32(*x, layout=layout),), attrs


_POOLS: tuple[Sample, ...] = (
    _p(1, 3, 8, 8, kernel_shape=(2, 2), strides=(2, 2)), _p(2, 19, 9, 11, kernel_shape=(3, 3), strides=(2, 2)),
    _p(1, 5, 7, 7, kernel_shape=(3, 3), strides=(2, 2), pads=(1, 1, 1, 1)),
    _p(1, 5, 7, 9, kernel_shape=(3, 2), strides=(1, 2), pads=(0, 1, 2, 0)),
    _p(2, 3, 17, kernel_shape=(4,), strides=(3,)), _p(1, 2, 5, 6, 7, kernel_shape=(2, 2, 2)),
    _p(1, 3, 8, 9, kernel_shape=(3, 3), strides=(2, 2), ceil_mode=1),
    _p(1, 3, 7, 7, kernel_shape=(3, 3), strides=(2, 2), auto_pad="SAME_UPPER"),
    _p(1, 3, 9, 9, kernel_shape=(3, 3), dilations=(2, 2)), _p(2, 4, 6, 6, kernel_shape=(6, 6)),
    _p(2, 19, 9, 11, layout="c16", kernel_shape=(3, 3), strides=(2, 2), pads=(1, 1, 1, 1)),
    _p(1, 16, 8, 8, layout="c8", kernel_shape=(2, 2), strides=(2, 2)),
)
_WINDOW: Attrs = {"auto_pad": "NOTSET", "ceil_mode": 0, "dilations": None, "kernel_shape": REQUIRED, "pads": None,
                  "strides": None}
declare(Op("MaxPool", "the greatest value of each window; the second output, where it lies in the flat input", ("x",),
           _pool, {**_WINDOW, "storage_order": 0}, blocked=True, outputs=2, samples=_POOLS))
declare(Op("AveragePool", "the mean of each window", ("x",), _pool, {**_WINDOW, "count_include_pad": 0}, blocked=True,
           samples=(*_POOLS, _p(1, 5, 7, 7, kernel_shape=(3, 3), strides=(2, 2), pads=(1, 1, 1, 1),
                                count_include_pad=1),
                    _p(1, 3, 8, 9, kernel_shape=(3, 3), strides=(2, 2), pads=(1, 1, 1, 1), ceil_mode=1,
                       count_include_pad=1))))
declare(Op("LpPool", "the p-norm of each window", ("x",), _pool, {**_WINDOW, "p": 2}, blocked=True, samples=(
    _p(1, 3, 8, 8, kernel_shape=(2, 2), strides=(2, 2)), _p(1, 3, 9, 9, kernel_shape=(3, 3), p=1),
    _p(1, 5, 7, 7, kernel_shape=(3, 3), strides=(2, 2), pads=(1, 1, 1, 1)))))


def _global(types: Types, attrs: Attrs, outputs: int) -> tuple[TensorType, ...]:
    x = given(types[0])
    if x.rank < 2:
        raise ValueError(f"{x} has no channels")
    # the result is as good as a vector: it is plain, whatever the input's layout
    return (TensorType(x.dtype, (*x.shape[:2], *(1,) * (x.rank - 2))),)


_GLOBAL: tuple[Sample, ...] = (
    _p(2, 19, 7, 7), _p(1, 3, 5), _p(1, 2, 3, 4, 5), _p(2, 19, 7, 7, layout="c16"), _p(1, 2048, 7, 7))
declare(Op("GlobalAveragePool", "the mean over the spatial axes", ("x",), _global, blocked=True, samples=_GLOBAL))
declare(Op("GlobalMaxPool", "the greatest over the spatial axes", ("x",), _global, blocked=True, samples=_GLOBAL))
declare(Op("GlobalLpPool", "the p-norm over the spatial axes", ("x",), _global, {"p": 2}, blocked=True,
           samples=(_p(2, 19, 7, 7), _p(2, 5, 7, 7, p=1))))
