"""What convolutions are on every target: sizes along (depth, height, width), an absent axis having size 1."""
from __future__ import annotations

from dataclasses import dataclass

from ingot.graph import Dim, DType, product
from ingot.kernels.tactic import Site
from ingot.ops import OPS
from ingot.ops.convolution import convolution_window, transposed_window

Dims3 = tuple[Dim, Dim, Dim]
Ints3 = tuple[int, int, int]


@dataclass(frozen=True)
class Extents:
    """The sizes of a convolution, forward or transposed."""

    dtype: DType
    transposed: bool
    batch: Dim
    channels: int           # of the input
    filters: int            # channels of the output
    groups: int
    size: Dims3             # of the input
    out_size: Dims3
    kernel: Ints3
    strides: Ints3
    dilations: Ints3
    begins: Dims3           # padding before (ConvTranspose: what is cut off)
    ends: Dims3

    @property
    def depth(self) -> int:
        """Input channels per group."""
        return self.channels // self.groups

    @property
    def width(self) -> int:
        """Output channels per group."""
        return self.filters // self.groups

    @property
    def taps(self) -> int:
        return self.kernel[0] * self.kernel[1] * self.kernel[2]

    @property
    def pads_zero(self) -> bool:
        """Whether no padding is asked for anywhere."""
        return all(p == 0 for p in (*self.begins, *self.ends))

    @property
    def pixels(self) -> Dim:
        """Places of the result, all samples counted."""
        return self.batch * product(self.out_size)


def operands(site: Site) -> tuple[int, int, int | None] | str:
    """The site's operands (input, weight, bias) of a convolution that stands alone before its epilogue, or why not."""
    if site.main != 0 or len(site.outputs) != 1:
        return "a prologue or several outputs"
    x, weight, bias = (*site.step.inputs, None)[:3]
    if site.op == "ConvInteger":
        bias = None         # the third input is a zero point
    if x is None or weight is None or min(x, weight, bias or 0) < 0:
        return "its operands are not the site's"
    if not 3 <= site.inputs[x].type.rank <= 5:
        return f"{site.inputs[x].type.rank - 2} spatial axes"
    return x, weight, bias


def extents(site: Site, x: int, weight: int) -> Extents | str:
    """The sizes of the convolution of operands `x` and `weight`, or why they are not known."""
    types = (site.inputs[x].type, site.inputs[weight].type)
    attrs = {**OPS[site.op].attrs, **site.attrs}
    transposed = site.op == "ConvTranspose"
    window = transposed_window(types, attrs)[0] if transposed else convolution_window(types, attrs)
    out = site.step.types[0]
    groups, channels, filters = attrs["group"], types[0].shape[1], out.shape[1]
    if not isinstance(groups, int) or not isinstance(channels, int) or not isinstance(filters, int):
        return "the number of channels is not known"
    return Extents(types[0].dtype, transposed, types[0].shape[0], channels, filters, groups,
                   _dims(types[0].shape[2:], 1), _dims(out.shape[2:], 1), _ints(window.kernel), _ints(window.strides),
                   _ints(window.dilations), _dims(window.begins, 0), _dims(window.ends, 0))


def _dims(values: tuple[Dim, ...], fill: int) -> Dims3:
    a, b, c = (fill,) * (3 - len(values)) + tuple(values)
    return a, b, c


def _ints(values: tuple[int, ...]) -> Ints3:
    a, b, c = (1,) * (3 - len(values)) + tuple(values)
    return a, b, c
