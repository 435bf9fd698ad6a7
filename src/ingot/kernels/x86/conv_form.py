"""What every convolution tactic needs to know of its site: sizes, strides in memory, and how the epilogue reads.

Spatial axes are always three here, (depth, height, width): a convolution of lower rank has leading axes of size 1.
"""
from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

import numpy as np

from ingot.graph import BF16, F32, F64, I8, U8, Dim, TensorType
from ingot.kernels import Operand, Site
from ingot.kernels.codegen import Code, Int, Value, element_of
from ingot.kernels.codegen.steps import declines_steps, run_steps
from ingot.kernels.convolution import Extents, extents, operands
from ingot.kernels.steps import operands_of


@dataclass(frozen=True)
class Placed:
    """A tensor in memory, seen along (batch, channel or channel block, depth, height, width).

    `steps` are element strides, 0 along an axis it is broadcast on; a blocked tensor's second step goes from block
    to block. `block` is 0 for the plain layout.
    """

    type: TensorType
    steps: tuple[Dim, Dim, Dim, Dim, Dim]
    block: int

    def offset(self, code: Code, *index: Int) -> Int:
        """The element offset of (batch, channel or block, depth, height, width)."""
        total: Int = 0
        for i, step in zip(index, self.steps, strict=True):
            total = code.add(total, code.mul(i, code.dim(step)))
        return total


@dataclass(frozen=True)
class Form(Extents):
    """A Conv or ConvTranspose, spelled out."""

    x: Placed
    out: Placed
    x_index: int
    weight_index: int
    bias_index: int | None
    constant_weight: bool
    constant_bias: bool

    @property
    def element(self) -> str:
        """The LLVM type of an element."""
        return element_of(self.dtype)

    @property
    def static(self) -> bool:
        """Whether every spatial size is known."""
        return all(isinstance(d, int) for d in (*self.size, *self.out_size, *self.begins, *self.ends))

    @property
    def filter_blocks(self) -> int:
        """Channel blocks of the (blocked) output."""
        return -(-self.filters // self.out.block)


def placed(operand: Operand) -> Placed | str:
    """Where a full [N, C, *spatial] operand lies, or why its strides are not taken."""
    t, steps = operand.type, list(operand.steps)
    if t.layout:
        if steps[-1] != 1:
            return f"the channel lanes of {operand} are strided"
        steps = steps[:-1]
    steps = steps[:2] + [0] * (5 - t.rank) + steps[2:]
    return Placed(t, (steps[0], steps[1], steps[2], steps[3], steps[4]), t.block)


def form(site: Site, *, kind: str = "") -> Form | str:
    """The convolution a site is built around, or why it is none that kernels are generated for.

    `kind` may name one of narrow elements: ConvInteger (u8 by i8) or ShortConv (bf16); else it must be a Conv or
    ConvTranspose of floats.
    """
    step = site.step
    integer, short = kind == "ConvInteger", kind == "ShortConv"
    if step.op not in ((kind,) if kind else ("Conv", "ConvTranspose")):
        return f"{step.op} is no {kind or 'convolution'}"
    found = operands(site)
    if isinstance(found, str):
        return found
    x_index, weight_index, bias_index = found
    x, weight, out = site.inputs[x_index], site.inputs[weight_index], site.outputs[0]
    if integer and (x.type.dtype, weight.type.dtype) != (U8, I8):
        return f"elements of type {x.type.dtype} by {weight.type.dtype}"
    if short and (x.type.dtype, weight.type.dtype) != (BF16, BF16):
        return f"elements of type {x.type.dtype} by {weight.type.dtype}"
    if not kind and (x.type.dtype not in (F32, F64) or {out.type.dtype, weight.type.dtype} != {x.type.dtype}):
        return f"elements of type {x.type.dtype} -> {out.type.dtype}"
    if weight.strides is not None:
        return "the weight is strided"
    words = bool(kind) and x.type.layout == "c4"    # few channels, one or two 32-bit words a pixel
    if x.type.layout and x.type.layout != (out.type.layout or x.type.layout) and not words:
        return f"the layouts {x.type.layout} -> {out.type.layout}"
    sizes = extents(site, x_index, weight_index)
    if isinstance(sizes, str):
        return sizes
    x_place, out_place = placed(x), placed(out)
    if isinstance(x_place, str):
        return x_place
    if isinstance(out_place, str):
        return out_place
    bias = None if bias_index is None else site.inputs[bias_index]
    if short:
        sizes = replace(sizes, dtype=F32)       # what narrow floats are summed in
    return Form(**vars(sizes), x=x_place, out=out_place, x_index=x_index, weight_index=weight_index,
                bias_index=bias_index, constant_weight=weight.constant,
                constant_bias=bias is not None and bias.constant)


# --- the epilogue ---------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Extra:
    """An operand of the epilogue: where it lies, and whether one vector of it is lanes in memory or one scalar."""

    index: int
    place: Placed
    vector: bool
    padded: bool            # a constant channel vector that `pack_channels` pads to whole blocks


def extra(site: Site, index: int) -> Extra | str:
    """How an epilogue operand is read beside the site's output, or why it is not."""
    operand, out = site.inputs[index], site.outputs[0].type
    t = operand.type
    if t.layout and (t.layout != out.layout or t.shape[1] != out.shape[1]):
        return f"the operand {t} beside {out}"
    if t.rank > out.rank:
        return f"the operand {t} has more axes than {out}"
    steps = list(operand.steps)
    inner = steps.pop() if t.layout else 0
    missing = out.rank - t.rank
    shape: tuple[Dim, ...] = (1,) * missing + t.shape
    steps = [*(0,) * missing, *steps]
    for axis, (size, whole) in enumerate(zip(shape, out.shape, strict=True)):
        if size == 1:
            steps[axis] = 0
        elif size != whole:
            return f"the operand {t} does not broadcast to {out}"
    lane = inner if t.layout else steps[1] if out.layout else steps[-1]
    if lane not in (0, 1):
        return f"the lanes of the operand {operand} are not contiguous"
    if out.layout and not t.layout and lane == 1:
        steps[1] = out.block            # from block to block
    elif out.layout and not t.layout and shape[1] != 1:
        return f"the operand {t} beside {out}"
    steps = steps[:2] + [0] * (5 - out.rank) + steps[2:]
    plain = Placed(t, (steps[0], steps[1], steps[2], steps[3], steps[4]), t.block)
    channel = bool(out.layout) and not t.layout and lane == 1
    return Extra(index, plain, lane == 1, channel and operand.constant and steps[0] == 0)


def declines_epilogue(site: Site) -> str | None:
    """Why the epilogue cannot ride on the accumulators, or None."""
    if why := declines_steps(site, site.epilogue):
        return why
    for step in site.epilogue:
        if any(t.shape != site.output.shape for t in step.types):
            return f"{step.op} changes the shape"
    for index in operands_of(site.epilogue):
        found = extra(site, index)
        if isinstance(found, str):
            return found
    return None


def pack_channels(site: Site, f: Form, constants: Mapping[int, np.ndarray]) -> dict[int, np.ndarray]:
    """Constant bias and per-channel operands, padded with zeros to whole channel blocks (blocked outputs only)."""
    packed: dict[int, np.ndarray] = {}
    if not f.out.block:
        return packed
    wanted = [i for i in operands_of(site.epilogue) if isinstance(e := extra(site, i), Extra) and e.padded]
    if f.bias_index is not None and f.constant_bias:
        wanted.append(f.bias_index)
    for index in wanted:
        whole = np.zeros(f.filter_blocks * f.out.block, constants[index].dtype)
        whole[:f.filters] = constants[index].reshape(-1)
        packed[index] = whole
    return packed


class Epilogue:
    """Emits what follows the sum for one vector of the output, inside a kernel function."""

    def __init__(self, code: Code, site: Site, f: Form, lanes: int,
                 reshape: Callable[[Placed], Placed] | None = None) -> None:
        self.code, self.site, self.form, self.lanes = code, site, f, lanes
        found = (extra(site, i) for i in operands_of(site.epilogue))
        self.extras = {e.index: replace(e, place=reshape(e.place)) if reshape else e
                       for e in found if isinstance(e, Extra)}

    def channel_mask(self, channel: Int) -> Value | None:
        """Lanes below the last channel, for plain channel vectors that were not padded."""
        if self.form.filters % self.lanes == 0:
            return None
        return self.code.mask(self.code.sub(self.form.filters, channel), self.lanes)

    def bias(self, channel: Int) -> Value | None:
        """A vector of the bias from `channel` on (blocked output), or the one scalar splat (plain output)."""
        f, code = self.form, self.code
        if f.bias_index is None:
            return None
        pointer = code.offset(code.buffer(f.bias_index), channel, f.element)
        if not f.out.block:
            return code.splat(code.load(pointer, f.element), self.lanes)
        mask = None if f.constant_bias else self.channel_mask(channel)
        return code.load(pointer, f.element, self.lanes, mask)

    def corner(self, *index: Int) -> Corner:
        """Where a tile starts: (batch, block or channel, depth, height, width)."""
        return Corner(self.code, (index[0], index[1], index[2], index[3], index[4]))

    def apply(self, value: Value, corner: Corner, delta: tuple[Int, Int, Int] = (0, 0, 0), lane: Int = 0,
              mask: Value | None = None) -> Value:
        """The epilogue on the vector of the output that lies `delta` = (blocks, rows, columns) past the corner.

        `lane` is the first lane inside the block (blocked output); `mask` covers loads along the width (plain
        output). Vectors that depend on batch and channel alone are loaded once per corner.
        """
        code, site = self.code, self.site
        if not site.epilogue:
            return value

        def load(operand: int) -> Value:
            e = self.extras[operand]
            steady = all(s == 0 for s in e.place.steps[2:])
            key = (operand, str(delta[0]), str(lane))
            if steady and key in corner.kept:
                return corner.kept[key]
            element = element_of(e.place.type.dtype)
            pointer, cover = corner.pointer(operand, e.place, delta), mask
            if e.vector and self.form.out.block:
                pointer = code.offset(pointer, lane, element)
                plain = not e.place.block and not e.padded
                first = code.mul(code.add(corner.index[1], delta[0]), self.form.out.block)
                cover = self.channel_mask(code.add(first, lane)) if plain else None
            found = (code.load(pointer, element, self.lanes, cover) if e.vector
                     else code.splat(code.load(pointer, element), self.lanes))
            if steady:
                corner.kept[key] = found
            return found

        return run_steps(code, site, site.main + 1, {site.main: value}, load)


class Corner:
    """The start of a tile of the output: addresses there are computed once, others lie at fixed distances."""

    def __init__(self, code: Code, index: tuple[Int, Int, Int, Int, Int]) -> None:
        self.code, self.index = code, index
        self.kept: dict[tuple[int, str, str], Value] = {}
        self._starts: dict[int, Value] = {}

    def pointer(self, buffer: int, place: Placed, delta: tuple[Int, Int, Int] = (0, 0, 0)) -> Value:
        """The address of the element `delta` = (blocks or channels, rows, columns) past the corner."""
        code, element = self.code, element_of(place.type.dtype)
        if buffer not in self._starts:
            self._starts[buffer] = code.offset(code.buffer(buffer), place.offset(code, *self.index), element)
        far: Int = 0
        for distance, step in zip(delta, (place.steps[1], place.steps[3], place.steps[4]), strict=True):
            far = code.add(far, code.mul(distance, code.dim(step)))
        return code.offset(self._starts[buffer], far, element)
