"""Convolutions. They take their operands in any layout; the attribute `layout` says how their result lies."""
from __future__ import annotations

from dataclasses import dataclass

from ingot.graph import I32, U8, Dim, TensorType
from ingot.ops.op import Attrs, Op, Sample, Types, declare
from ingot.ops.samples import f32, i8, integers, scalar, u8, values
from ingot.ops.shapes import given, integer, ints, same_dim, same_dtype, word


@dataclass(frozen=True)
class Window:
    """What slides over the spatial axes, everything spelled out, one entry per axis."""

    kernel: tuple[int, ...]
    strides: tuple[int, ...]
    dilations: tuple[int, ...]
    begins: tuple[Dim, ...]         # padding before
    ends: tuple[Dim, ...]           # padding after

    def extent(self, axis: int) -> int:
        """Input positions the kernel spans along an axis."""
        return (self.kernel[axis] - 1) * self.dilations[axis] + 1


def window(attrs: Attrs, spatial: tuple[Dim, ...], kernel: tuple[int, ...]) -> Window:
    """The window of a convolution or pooling over `spatial`, from attributes that may lack entries.

    `auto_pad` is resolved here; padding is symbolic where the spatial size is. Raises ValueError.
    """
    rank = len(spatial)
    strides = ints(attrs, "strides") or (1,) * rank
    dilations = ints(attrs, "dilations") or (1,) * rank
    pads: tuple[Dim, ...] = ints(attrs, "pads") or (0,) * (2 * rank)
    for name, entries, wanted in (("kernel_shape", kernel, rank), ("strides", strides, rank),
                                  ("dilations", dilations, rank), ("pads", pads, 2 * rank)):
        if len(entries) != wanted:
            raise ValueError(f"{name} has {len(entries)} entries, {wanted} are needed")
    if min((*kernel, *strides, *dilations), default=1) < 1:
        raise ValueError("kernel_shape, strides and dilations must be at least 1")
    begins, ends = pads[:rank], pads[rank:]
    auto = str(attrs.get("auto_pad", "NOTSET"))
    if auto in ("SAME_UPPER", "SAME_LOWER"):
        total = []
        for k, s, d, n in zip(kernel, strides, dilations, spatial, strict=True):
            reach = (k - 1) * d + 1
            total.append(reach - 1 if s == 1 else (-(-n // s) - 1) * s + reach - n)
        if s_bad := [n for n, s in zip(spatial, strides, strict=True) if s > 1 and not isinstance(n, int)]:
            raise ValueError(f"auto_pad {auto} with strides over the symbolic size {s_bad[0]}")
        total = [max(t, 0) if isinstance(t, int) else t for t in total]
        small, large = tuple(t // 2 for t in total), tuple(t - t // 2 for t in total)
        begins, ends = (small, large) if auto == "SAME_UPPER" else (large, small)
    elif auto == "VALID":
        begins = ends = (0,) * rank
    elif auto != "NOTSET":
        raise ValueError(f"unknown auto_pad {auto!r}")
    return Window(kernel, strides, dilations, begins, ends)


def slid(w: Window, spatial: tuple[Dim, ...]) -> tuple[Dim, ...]:
    """The sizes a window leaves, rounding down. Raises ValueError where the window does not fit."""
    out = []
    for axis, n in enumerate(spatial):
        size = (n + w.begins[axis] + w.ends[axis] - w.extent(axis)) // w.strides[axis] + 1
        if isinstance(size, int) and size < 1:
            raise ValueError(f"the window of {w.extent(axis)} does not fit {n} with its padding")
        out.append(size)
    return tuple(out)


def _kernel(attrs: Attrs, weight: TensorType) -> tuple[int, ...]:
    given_ = ints(attrs, "kernel_shape")
    found = weight.shape[2:]
    if not all(isinstance(k, int) for k in found):
        raise ValueError(f"the kernel {weight} has symbolic sizes")
    if given_ is not None and given_ != found:
        raise ValueError(f"kernel_shape is {given_}, the weight has {found}")
    return tuple(k for k in found if isinstance(k, int))


def convolution_window(types: Types, attrs: Attrs) -> Window:
    """The window of a Conv or ConvInteger."""
    x, weight = given(types[0]), given(types[1])
    if x.rank < 3 or weight.rank != x.rank:
        raise ValueError(f"the input {x} and the weight {weight} need one rank of at least 3")
    return window(attrs, x.shape[2:], _kernel(attrs, weight))


def convolved(types: Types, attrs: Attrs, outputs: int) -> tuple[TensorType, ...]:
    x, weight, group = given(types[0]), given(types[1]), integer(attrs, "group")
    sizes = slid(convolution_window(types, attrs), x.shape[2:])
    if group < 1:
        raise ValueError("group must be at least 1")
    same_dim(x.shape[1], weight.shape[1] * group, "the input's channels and the weight's")
    if isinstance(weight.shape[0], int) and weight.shape[0] % group:
        raise ValueError(f"{weight.shape[0]} output channels do not divide into {group} groups")
    if types[2:] and types[2] is not None:
        same_dim(given(types[2]).shape[0], weight.shape[0], "the bias and the output channels")
    return (TensorType(same_dtype(types), (x.shape[0], weight.shape[0], *sizes), word(attrs, "layout")),)


def _c(x: tuple[int, ...], w: tuple[int, ...], bias: bool = True, layout: str = "", **attrs: object) -> Sample:
    return ((f32(*x, layout=layout), values(*w), *((values(w[0]),) if bias else ())), attrs)


WINDOW: Attrs = {"auto_pad": "NOTSET", "dilations": None, "kernel_shape": None, "pads": None, "strides": None}
declare(Op("Conv", "convolution: [N, C, ...] by [M, C/group, ...]", ("x", "weight", "bias?"), convolved,
           {**WINDOW, "group": 1, "layout": ""}, blocked=True, samples=(
    _c((1, 3, 9, 11), (5, 3, 3, 3)),
    _c((2, 16, 14, 14), (32, 16, 3, 3), pads=(1, 1, 1, 1)),
    _c((1, 3, 32, 32), (64, 3, 7, 7), False, strides=(2, 2), pads=(3, 3, 3, 3)),
    _c((2, 33, 7, 9), (17, 33, 1, 1)),
    _c((1, 64, 14, 14), (128, 64, 1, 1), strides=(2, 2)),
    _c((1, 8, 10, 13), (16, 8, 3, 3), strides=(2, 1), pads=(0, 1, 2, 1)),
    _c((1, 8, 15, 15), (12, 8, 3, 3), dilations=(2, 2), pads=(2, 2, 2, 2)),
    _c((1, 8, 12, 12), (8, 8, 3, 3), dilations=(3, 1), strides=(1, 2)),
    _c((2, 16, 9, 9), (16, 1, 3, 3), group=16, pads=(1, 1, 1, 1)),
    _c((1, 35, 13, 10), (35, 1, 3, 3), group=35, strides=(2, 2), pads=(1, 1, 1, 1)),
    _c((1, 24, 8, 8), (48, 1, 5, 5), group=24, pads=(2, 2, 2, 2)),
    _c((1, 12, 8, 8), (24, 4, 3, 3), group=3, pads=(1, 1, 1, 1)),
    _c((1, 32, 7, 7), (64, 16, 1, 1), group=2),
    _c((3, 5, 21), (7, 5, 3), pads=(1, 1)),
    _c((2, 16, 40), (32, 16, 9), strides=(3,), dilations=(2,), pads=(4, 3)),
    _c((1, 80, 50), (20, 80, 1)),
    _c((1, 3, 5, 6, 7), (4, 3, 3, 3, 3), pads=(1, 1, 1, 1, 1, 1)),
    _c((1, 16, 4, 5, 6), (8, 16, 2, 2, 2), strides=(2, 1, 2)),
    _c((1, 1, 8, 8), (1, 1, 3, 3), False),
    _c((1, 3, 12, 12), (20, 3, 4, 4), strides=(4, 4)),
    _c((1, 6, 9, 9), (10, 6, 2, 4), auto_pad="SAME_UPPER"),
    _c((1, 6, 9, 9), (10, 6, 3, 3), auto_pad="SAME_LOWER", strides=(2, 2)),
    _c((1, 6, 9, 9), (10, 6, 3, 3), auto_pad="VALID"),
    _c((1, 512, 7, 7), (64, 512, 3, 3), pads=(1, 1, 1, 1)),
    _c((1, 2, 6, 6), (3, 2, 6, 6)),
    _c((2, 16, 14, 14), (32, 16, 3, 3), layout="c16", pads=(1, 1, 1, 1)) ,
    ((f32(2, 16, 14, 14, layout="c16"), values(32, 16, 3, 3), values(32)), {"pads": (1, 1, 1, 1), "layout": "c16"}),
    ((f32(1, 19, 9, 9, layout="c16"), values(37, 19, 3, 3), values(37)), {"layout": "c16", "strides": (2, 2)}),
    ((f32(1, 3, 9, 9), values(37, 3, 3, 3), values(37)), {"layout": "c16", "pads": (1, 1, 1, 1)}),
    ((f32(2, 35, 9, 9, layout="c16"), values(35, 1, 3, 3), values(35)),
     {"layout": "c16", "group": 35, "pads": (1, 1, 1, 1)}),
    ((f32(2, 32, 6, 6, layout="c8"), values(24, 32, 1, 1), values(24)), {"layout": "c8"}),
)))


def _conv_transpose(types: Types, attrs: Attrs, outputs: int) -> tuple[TensorType, ...]:
    x, weight, group = given(types[0]), given(types[1]), integer(attrs, "group")
    w, extra = transposed_window(types, attrs)
    same_dim(x.shape[1], weight.shape[0], "the input's channels and the weight's")
    sizes = tuple((n - 1) * w.strides[i] + extra[i] + w.extent(i) - w.begins[i] - w.ends[i]
                  for i, n in enumerate(x.shape[2:]))
    return (TensorType(same_dtype(types), (x.shape[0], weight.shape[1] * group, *sizes), word(attrs, "layout")),)


def transposed_window(types: Types, attrs: Attrs) -> tuple[Window, tuple[int, ...]]:
    """The window of a ConvTranspose (its paddings are cut off the result), and its output padding."""
    x, weight = given(types[0]), given(types[1])
    if x.rank < 3 or weight.rank != x.rank:
        raise ValueError(f"the input {x} and the weight {weight} need one rank of at least 3")
    rank = x.rank - 2
    plain = {k: v for k, v in attrs.items() if k != "auto_pad"}
    w = window(plain, x.shape[2:], _kernel(attrs, weight))
    extra = ints(attrs, "output_padding") or (0,) * rank
    wanted, auto = ints(attrs, "output_shape"), word(attrs, "auto_pad")
    sizes = wanted if wanted is None else wanted[-rank:]
    if sizes is None and auto in ("SAME_UPPER", "SAME_LOWER"):
        sizes = tuple(n * s for n, s in zip(x.shape[2:], w.strides, strict=True))  # type: ignore[misc]
    if sizes is None:
        return w, extra
    total = [(n - 1) * w.strides[i] + extra[i] + w.extent(i) - sizes[i] for i, n in enumerate(x.shape[2:])]
    extra = tuple(e + max(-t, 0) if isinstance(t, int) else e for e, t in zip(extra, total, strict=True))
    total = [max(t, 0) if isinstance(t, int) else t for t in total]     # too small a result is padded, too large cut
    small, large = tuple(t // 2 for t in total), tuple(t - t // 2 for t in total)
    begins, ends = (small, large) if auto == "SAME_UPPER" else (large, small)
    return Window(w.kernel, w.strides, w.dilations, begins, ends), extra


def _t(x: tuple[int, ...], w: tuple[int, ...], group: int = 1, **attrs: object) -> Sample:
    return (f32(*x), values(*w), values(w[1] * group)), {**attrs, "group": group}


declare(Op("ConvTranspose", "the transpose of a convolution: [N, C, ...] by [C, M/group, ...]",
           ("x", "weight", "bias?"), _conv_transpose,
           {**WINDOW, "group": 1, "output_padding": None, "output_shape": None, "layout": ""}, blocked=True, samples=(
    _t((1, 3, 5, 6), (3, 4, 3, 3)), _t((2, 16, 7, 7), (16, 8, 2, 2), strides=(2, 2)),
    _t((1, 8, 6, 5), (8, 6, 3, 3), strides=(2, 2), pads=(1, 1, 1, 1), output_padding=(1, 1)),
    _t((1, 4, 6, 6), (4, 3, 4, 4), strides=(2, 2), pads=(1, 1, 1, 1)),
    _t((1, 6, 5, 5), (6, 2, 3, 3), 3, strides=(2, 1)), _t((1, 4, 9), (4, 5, 3), strides=(2,)),
    _t((1, 2, 3, 4, 5), (2, 3, 2, 2, 2), strides=(2, 2, 2)), _t((1, 4, 6, 6), (4, 3, 3, 3), dilations=(2, 2)),
    _t((1, 3, 5, 5), (3, 4, 3, 3), pads=(0, 1, 1, 0)), ((f32(1, 3, 5, 5), values(3, 4, 3, 3)), {}),
    _t((1, 8, 6, 6), (8, 1, 3, 3), 8, strides=(2, 2)),
    _t((1, 2, 3, 3), (2, 2, 3, 3), strides=(3, 2), output_shape=(10, 8)),
)))


def _conv_integer(types: Types, attrs: Attrs, outputs: int) -> tuple[TensorType, ...]:
    x, weight = given(types[0]), given(types[1])
    sizes = slid(convolution_window(types, attrs), x.shape[2:])
    same_dim(x.shape[1], weight.shape[1] * integer(attrs, "group"), "the input's channels and the weight's")
    return (TensorType(I32, (x.shape[0], weight.shape[0], *sizes), word(attrs, "layout")),)


def _n(x: tuple[int, ...], w: tuple[int, ...], zero: int | None = None, **attrs: object) -> Sample:
    given_ = (scalar(zero, "uint8"),) if zero is not None else ()
    return (TensorType(U8, x, "c16"), integers(*w), *given_), {**attrs, "layout": "c16"}


declare(Op("ConvInteger", "convolution of 8-bit integers, less their zero points, in 32 bits",
           ("x", "weight", "x_zero_point?", "w_zero_point?"), _conv_integer, {**WINDOW, "group": 1, "layout": ""},
           blocked=True, samples=(
    ((u8(1, 3, 6, 6), u8(4, 3, 3, 3)), {}), ((u8(1, 3, 6, 6), i8(4, 3, 3, 3), u8()), {"pads": (1, 1, 1, 1)}),
    _n((2, 16, 14, 14), (32, 16, 3, 3), 7, pads=(1, 1, 1, 1)), _n((1, 19, 9, 9), (37, 19, 3, 3), strides=(2, 2)),
    _n((2, 64, 7, 7), (48, 64, 1, 1), 128), _n((1, 40, 9, 9), (70, 40, 1, 1), 3, strides=(2, 2)),
    _n((2, 35, 9, 9), (35, 1, 3, 3), 9, group=35, pads=(1, 1, 1, 1)),
    _n((1, 32, 9, 9), (32, 1, 3, 3), 0, group=32, strides=(2, 2), pads=(1, 1, 1, 1)),
    _n((1, 32, 8, 8), (64, 16, 3, 3), 5, group=2, pads=(1, 1, 1, 1)),
    ((TensorType(U8, (2, 3, 23, 21), "c4"), integers(40, 3, 7, 7), scalar(5, "uint8")),
     {"layout": "c16", "strides": (2, 2), "pads": (3, 3, 3, 3)}),
    ((TensorType(U8, (2, 32, 6, 6), "c8"), integers(24, 32, 1, 1), scalar(4, "uint8")), {"layout": "c8"}))))
