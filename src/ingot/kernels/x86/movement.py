"""Ops that copy elements from place to place: every one is a few strided copies, each a loop nest."""
from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

from ingot.graph import Dim, TensorType, dense_strides
from ingot.kernels.codegen import Code, Value, isa_of
from ingot.kernels.tactic import Kernel, Operand, Params, Site, Tactic
from ingot.kernels.x86.nest import Nest, Side, View
from ingot.kernels.x86.transpose import BITS, declines_movement, moved_as
from ingot.ops import OPS, dims, slices_of, split_sizes
from ingot.ops.shapes import GROUP, axes_of, axis_of, integer
from ingot.target import Target


@dataclass(frozen=True)
class Copy:
    """Elements moved: from an input, over dimensions, to an output (which input and output, by position)."""

    dims: tuple[Dim, ...]
    source: View
    result: View
    input: int = 0
    output: int = 0


Planner = Callable[[Site, Mapping[str, object]], "list[Copy]"]


def _along(strides: Sequence[Dim], places: Sequence[Dim]) -> Dim:
    at: Dim = 0
    for stride, place in zip(strides, places, strict=True):
        at = at + place * stride
    return at


def _same(site: Site, attrs: Mapping[str, object]) -> list[Copy]:
    """The same elements in the same order."""
    shape = site.output.shape
    x = site.inputs[0]
    if x.type.shape == shape:
        return [Copy(shape, View(x.steps), View(site.outputs[0].steps))]
    return [Copy(shape, View(dense_strides(shape)), View(site.outputs[0].steps))]


def _expand(site: Site, attrs: Mapping[str, object]) -> list[Copy]:
    shape, x = site.output.shape, site.inputs[0]
    more = len(shape) - x.type.rank
    steps = tuple(0 if d == 1 else s for d, s in zip(x.type.shape, x.steps, strict=True))
    return [Copy(shape, View((*(0,) * more, *steps)), View(site.outputs[0].steps))]


def _slice(site: Site, attrs: Mapping[str, object]) -> list[Copy]:
    cuts, steps = slices_of(site.inputs[0].type, attrs), site.inputs[0].steps
    view = View(tuple(s * step for s, (_, _, step) in zip(steps, cuts, strict=True)),
                _along(steps, [first for first, _, _ in cuts]))
    return [Copy(site.output.shape, view, View(site.outputs[0].steps))]


def _split(site: Site, attrs: Mapping[str, object]) -> list[Copy]:
    x = site.inputs[0]
    axis = axis_of(integer(attrs, "axis"), x.type.rank)
    found: list[Copy] = []
    at: Dim = 0
    for k, size in enumerate(split_sizes(x.type, attrs, len(site.outputs))):
        found.append(Copy(site.outputs[k].type.shape, View(x.steps, at * x.steps[axis]), View(site.outputs[k].steps),
                          output=k))
        at = at + size
    return found


def _concat(site: Site, attrs: Mapping[str, object]) -> list[Copy]:
    axis = axis_of(integer(attrs, "axis"), site.output.rank)
    steps = site.outputs[0].steps
    found: list[Copy] = []
    at: Dim = 0
    for reference in site.step.inputs:
        if reference is None:
            continue
        x = site.inputs[reference]
        found.append(Copy(x.type.shape, View(x.steps), View(steps, at * steps[axis]), input=reference))
        at = at + x.type.shape[axis]
    return found


def _tile(site: Site, attrs: Mapping[str, object]) -> list[Copy]:
    x, repeats = site.inputs[0], dims(attrs, "repeats") or ()
    sizes: list[Dim] = []
    source: list[Dim] = []
    result: list[Dim] = []
    for d, r, s, o in zip(x.type.shape, repeats, x.steps, site.outputs[0].steps, strict=True):
        sizes += [r, d]
        source += [0, s]
        result += [o * d, o]
    return [Copy(tuple(sizes), View(tuple(source)), View(tuple(result)))]


def _blocks(site: Site, attrs: Mapping[str, object]) -> list[Copy]:
    """DepthToSpace and SpaceToDepth: six dimensions, [n, c, h, i, w, j] in the plane, i and j within a block."""
    b = integer(attrs, "blocksize")
    deep, wide = (site.inputs[0], site.outputs[0]) if site.op == "DepthToSpace" else (site.outputs[0], site.inputs[0])
    n, c, height, width = wide.type.shape
    plane = wide.steps
    spread = View((plane[0], plane[1], plane[2] * b, plane[2], plane[3] * b, plane[3]))
    d = deep.steps
    # strides of c, i and j within the channels
    inner = (d[1] * b * b, d[1] * b, d[1]) if attrs["mode"] == "CRD" else (d[1], d[1] * b * c, d[1] * c)
    packed = View((d[0], inner[0], d[2], inner[1], d[3], inner[2]))
    sizes = (n, c, height // b, b, width // b, b)
    # walked in the order of the result, so that its last dimension is the contiguous one
    order = (0, 1, 2, 3, 4, 5) if site.op == "DepthToSpace" else (0, 3, 5, 1, 2, 4)
    source, result = (packed, spread) if site.op == "DepthToSpace" else (spread, packed)
    return [Copy(tuple(sizes[a] for a in order), View(tuple(source.strides[a] for a in order)),
                 View(tuple(result.strides[a] for a in order)))]


PLANS: Mapping[str, Planner] = {
    "Expand": _expand, "Slice": _slice, "Split": _split, "Concat": _concat, "Tile": _tile, "DepthToSpace": _blocks,
    "SpaceToDepth": _blocks, "Reshape": _same, "Flatten": _same, "Squeeze": _same, "Unsqueeze": _same,
    "Identity": _same,
}


def _by_groups(site: Site) -> list[Copy]:
    """The parts of a blocked Concat or Split by channels that end inside a block, in groups of 8; none for others.

    Every other group of a part begins a block there, and begins one or half of one in the whole.
    """
    attrs = {**OPS[site.op].attrs, **site.attrs}
    concat = site.op == "Concat"
    if site.op not in ("Concat", "Split"):
        return []
    whole, given = (site.outputs[0], site.step.inputs) if concat else (site.inputs[0], range(len(site.outputs)))
    if not whole.type.block or axis_of(integer(attrs, "axis"), whole.type.rank) != 1:
        return []
    parts = [(k, (site.inputs if concat else site.outputs)[k]) for k in given if k is not None]
    channels = [int(str(part.type.shape[1])) for _, part in parts]
    if all(c % whole.type.block == 0 for c in channels[:-1]):
        return []
    found: list[Copy] = []
    start = 0
    for (k, part), count in zip(parts, channels, strict=True):
        groups = -(-count // GROUP)
        for first in range(min(2, groups)):
            shape = (part.type.shape[0], (groups - first + 1) // 2, *part.type.shape[2:], GROUP)
            here, there = (View(o.steps, group // 2 * o.steps[1] + group % 2 * GROUP)
                           for o, group in ((part, first), (whole, start // GROUP + first)))
            found.append(Copy(shape, here, there, input=k) if concat else Copy(shape, there, here, output=k))
        start += count
    return found


def _physical(site: Site) -> Site | str:
    """The same copy between plain tensors of the operands' physical shapes, or why there is none."""
    types = [o.type for o in (*site.inputs, *site.outputs)]
    layout = types[0].layout
    if all(not t.layout for t in types):
        return site
    if any(t.layout != layout for t in types) or not types[0].block:
        return "copies need one layout, plain or blocked"
    attrs, block = site.attrs, types[0].block
    if site.op in ("Concat", "Split"):
        axis = axis_of(integer({**OPS[site.op].attrs, **attrs}, "axis"), types[0].rank)
        attrs = {"axis": axis}
        if site.op == "Split":
            attrs["split"] = tuple(o.type.physical[axis] for o in site.outputs)
    elif site.op == "Slice":
        axes, starts, steps = (dims(attrs, k) for k in ("axes", "starts", "steps"))
        if axes is None or starts is None or len(axes) != 1 or any(s != 1 for s in steps or ()):
            return "a blocked slice of several axes, or with steps"
        axis, start = int(str(axes[0])), starts[0]
        if axis == 1 and (not isinstance(start, int) or start % block):
            return "a slice that begins inside a block"
        start = start // block if axis == 1 else start
        attrs = {"axes": axes, "starts": (start,), "ends": (start + site.output.physical[axis],)}
    elif site.op != "Identity":
        return f"{site.op} takes the plain layout"

    def plain(operand: Operand) -> Operand:
        return replace(operand, type=TensorType(operand.type.dtype, operand.type.physical))

    step = replace(site.step, attrs=tuple(sorted(attrs.items())), types=tuple(plain(o).type for o in site.outputs))
    return replace(site, steps=(step,), inputs=tuple(map(plain, site.inputs)), outputs=tuple(map(plain, site.outputs)))


class Copies(Tactic):
    """One loop nest per piece."""

    name = "x86.copy"

    def declines(self, site: Site, target: Target) -> str | None:
        if site.op not in PLANS:
            return f"{site.op} is no copy"
        if _by_groups(site):
            return declines_movement(site)
        if isinstance(found := _physical(site), str):
            return found
        if site.op in ("Reshape", "Flatten", "Squeeze", "Unsqueeze") and site.inputs[0].strides is not None:
            return "needs a dense input"
        return declines_movement(site)

    def emit(self, site: Site, params: Params, target: Target) -> Kernel:
        code = Code(isa_of(target), site.symbols)
        name = f"copy_{site.key}"
        copies = _by_groups(site)
        if not copies:
            plain = _physical(site)
            assert not isinstance(plain, str)       # declined
            copies = PLANS[site.op](plain, {**OPS[site.op].attrs, **plain.attrs})
        with code.function(name):
            for copy in copies:
                element = moved_as(site.outputs[copy.output])
                source = Side(code.buffer(copy.input), element, copy.source)
                result = Side(code.buffer(len(site.inputs) + copy.output), element, copy.result)
                Nest(code, copy.dims, result, {0: source})(lambda load: load(0))
        return Kernel(name, code.module(), (name,))


def fill(code: Code, pointer: Value, type_: TensorType, strides: tuple[Dim, ...], value: Value) -> None:
    """The same value everywhere."""
    side = Side(pointer, BITS[type_.dtype.nbytes], View(strides))
    nest = Nest(code, type_.shape, side, {})
    nest(lambda load: code.splat(value, nest.width))


class ConstantPad(Tactic):
    """Everything is filled; then, after a barrier, the input is copied to its place. Negative pads cut."""

    name = "x86.pad_constant"

    def declines(self, site: Site, target: Target) -> str | None:
        if site.op != "Pad" or site.attrs.get("mode", "constant") != "constant":
            return "no Pad by a constant"
        if any(o.type.layout for o in (*site.inputs, *site.outputs)):
            return "needs the plain layout"
        pads = dims(site.attrs, "pads") or ()
        if not all(isinstance(p, int) for p in pads):
            return "pads are known only at run time"
        return declines_movement(site)

    def emit(self, site: Site, params: Params, target: Target) -> Kernel:
        code = Code(isa_of(target), site.symbols)
        names = (f"pad_fill_{site.key}", f"pad_copy_{site.key}")
        x, out, attrs = site.inputs[0], site.outputs[0], {**OPS["Pad"].attrs, **site.attrs}
        element, slot = moved_as(x), len(site.inputs)
        before, after = _pads(x.type, attrs)
        with code.function(names[0]):
            given = site.step.inputs[1] if len(site.step.inputs) > 1 else None
            value = code.zero(element) if given is None else code.load(code.buffer(given), element)
            if any(p > 0 for p in (*before, *after)):
                fill(code, code.buffer(slot), out.type, out.steps, value)
        with code.function(names[1]):
            shape = tuple(d + min(b, 0) + min(a, 0) for d, b, a in zip(x.type.shape, before, after, strict=True))
            source = View(x.steps, _along(x.steps, [max(-b, 0) for b in before]))
            result = View(out.steps, _along(out.steps, [max(b, 0) for b in before]))
            Nest(code, shape, Side(code.buffer(slot), element, result),
                 {0: Side(code.buffer(0), element, source)})(lambda load: load(0))
        return Kernel(names[1], code.module(), names)


def _pads(x: TensorType, attrs: Mapping[str, object]) -> tuple[list[int], list[int]]:
    """Elements put before and after each axis."""
    pads = [int(str(p)) for p in dims(attrs, "pads") or ()]
    named = attrs.get("axes")
    axes = axes_of(tuple(int(str(a)) for a in named) if isinstance(named, (tuple, list)) else range(x.rank), x.rank)
    before, after = [0] * x.rank, [0] * x.rank
    for k, a in enumerate(axes):
        before[a], after[a] = pads[k], pads[k + len(axes)]
    return before, after
