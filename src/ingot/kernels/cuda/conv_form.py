"""What every convolution tactic for GPUs needs to know of its site; spatial axes are always (depth, height, width)."""
from __future__ import annotations

from dataclasses import dataclass

from ingot.graph import BF16, F16, F32, I8, Dim
from ingot.kernels.convolution import Extents, extents, operands
from ingot.kernels.cuda.ending import Ending, Place
from ingot.kernels.cuda.matmul import along
from ingot.kernels.cuda.pointwise import declines_epilogue, spread
from ingot.kernels.cuda.source import Source, joined, logical_strides, times
from ingot.kernels.steps import operands_of
from ingot.kernels.tactic import Operand, Site
from ingot.kernels.x86.matmul_form import collapsed


@dataclass(frozen=True)
class Form(Extents):
    """A Conv or ConvTranspose, spelled out. Strides are in elements over (batch, channel, depth, height, width)."""

    x_steps: tuple[Dim, ...]
    out_steps: tuple[Dim, ...]
    x: int
    weight: int
    bias: int | None
    packed: bool            # the weight is constant, so it may be packed

    @property
    def plain_pixels(self) -> bool:
        """Whether place p of the result reads place p of the input alone."""
        return self.taps == 1 and all(s == 1 for s in self.strides) and not self.transposed and self.pads_zero


def five(steps: tuple[Dim, ...]) -> tuple[Dim, ...]:
    """Strides over (batch, channel, depth, height, width) of a tensor that may have fewer spatial axes."""
    return (*steps[:2], *(0,) * (5 - len(steps)), *steps[2:])


def form_of(site: Site, *, gluon: bool = False) -> Form | str:
    """The convolution a site is built around, or why it is none that kernels are generated for."""
    step = site.step
    if step.op not in ("Conv", "ConvTranspose", "ConvInteger"):
        return f"{step.op} is no convolution"
    if step.op == "ConvInteger" and any(i is not None for i in step.inputs[2:]):
        return "a zero point"
    found = operands(site)
    if isinstance(found, str):
        return found
    x_index, weight_index, bias_index = found
    x, weight, out = site.inputs[x_index], site.inputs[weight_index], site.outputs[0]
    served = (I8,) if step.op == "ConvInteger" else (F16, BF16, F32)
    if x.type.dtype not in served or weight.type.dtype != x.type.dtype:
        return f"elements of type {x.type.dtype} and {weight.type.dtype}"
    if weight.strides is not None or weight.type.layout:
        return "the weight is strided"
    if x.type.block or out.type.block:
        return "a layout of blocks of channels"
    sizes = extents(site, x_index, weight_index)
    if isinstance(sizes, str):
        return sizes
    if why := declines_epilogue(site, gluon=gluon):
        return why
    reads = operands_of(site.epilogue)
    if weight.constant and weight_index in reads:
        return "the weight is packed, the epilogue wants it plain"
    return Form(**vars(sizes), x_steps=five(logical_strides(x)), out_steps=five(logical_strides(out)), x=x_index,
                weight=weight_index, bias=bias_index, packed=weight.constant)


def place_of(source: Source, operand: Operand, steps: tuple[Dim, ...], form: Form, pixel: str, parts: list[str],
             channel: str) -> Place:
    """Where an operand lies beside a block of the result: `pixel` counts places row-major over (batch, spatial),
    `parts` are that place's (batch, depth, height, width); `channel` is the channel."""
    over = (steps[0], *steps[2:])
    one = collapsed(over, (form.batch, *form.out_size))
    row = times(pixel, source.dim(one)) if one is not None else along(source, parts, over)
    return Place("0", row if row == "0" else f"({row})", times(channel, source.dim(steps[1])))


def ending(source: Source, form: Form, pixel: str, parts: list[str], channel: str, row_mask: str | None,
           column_mask: str | None) -> Ending:
    """The end of a convolution's kernel. Texts are [rows, 1] for pixels and [1, columns] for channels."""
    site = source.site
    places: dict[int, Place] = {}
    for i in operands_of(site.epilogue):
        steps = five(spread(site, i, site.output.shape) or ())
        places[i] = place_of(source, site.inputs[i], steps, form, pixel, parts, channel)
    out = len(site.inputs)
    found = place_of(source, site.outputs[0], form.out_steps, form, pixel, parts, channel)
    places[out] = Place(found.base, f"{pixel} * 0" if found.row == "0" else found.row,
                        f"{channel} * 0" if found.column == "0" else found.column)
    if form.bias is not None:
        places[form.bias] = Place("0", "0", channel)
    return Ending(source, places, row_mask, column_mask)


def pixel_parts(source: Source, form: Form, pixel: str) -> list[str]:
    """(batch, depth, height, width) of a place of the result counted row-major."""
    found: list[str] = []
    rest = pixel
    for size in reversed(form.out_size):
        if size == 1:
            found.insert(0, "0")
            continue
        found.insert(0, source.let(f"{rest} % {source.dim(size)}", "o"))
        rest = source.let(f"{rest} // {source.dim(size)}", "r")
    return [rest, *found]


__all__ = ["Form", "ending", "form_of", "joined", "pixel_parts"]
