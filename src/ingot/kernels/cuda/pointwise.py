"""Regions of pointwise ops, and ops that copy elements, as strided nests."""
from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping

from ingot.graph import Dim, DType
from ingot.kernels.cuda.base import CudaTactic, Drafts
from ingot.kernels.cuda.expression import declines_steps, run_steps
from ingot.kernels.cuda.nest import Nest, View, nest_space
from ingot.kernels.cuda.source import TYPES, Source, Value, logical_strides, physical_order
from ingot.kernels.steps import operands_of
from ingot.kernels.tactic import Operand, Params, Site
from ingot.kernels.x86.movement import PLANS, Copy
from ingot.ops import OPS
from ingot.target import Target

QUANTISED = ("QuantizeLinear", "DequantizeLinear")


def channel_vector(site: Site, index: int) -> bool:
    """Whether an operand is one value per channel of an op that names channels so (BatchNormalization)."""
    readers = [s for s in site.steps if index in s.inputs]
    return bool(readers) and all(s.op == "BatchNormalization" and s.inputs[0] != index for s in readers)


def _quantised_axis(site: Site, index: int) -> int | None:
    """The axis along which an operand gives scales or zero points, None for any other operand."""
    readers = [s for s in site.steps if index in s.inputs]
    if readers and all(s.op in QUANTISED and s.inputs[0] != index for s in readers):
        return int(str(dict(readers[0].attrs).get("axis", 1)))
    return None


def spread(site: Site, index: int, shape: tuple[Dim, ...]) -> tuple[Dim, ...] | None:
    """An operand's strides over a logical shape it is broadcast onto; None where only run time could tell."""
    operand = site.inputs[index]
    t, steps = operand.type, logical_strides(operand)
    sizes = t.shape
    axis = 1 if channel_vector(site, index) else _quantised_axis(site, index)
    if axis is not None and t.rank == 1 and len(shape) > 1:
        behind = len(shape) - 1 - axis % len(shape)
        sizes, steps = (*sizes, *(1,) * behind), (*steps, *(0,) * behind)
    missing = len(shape) - len(sizes)
    if missing < 0:
        return None
    found: list[Dim] = [0] * missing
    for size, step, target in zip(sizes, steps, shape[missing:], strict=True):
        if size != target and size != 1:
            return None
        found.append(0 if size == 1 else step)
    return tuple(found)


def declines_spread(site: Site, operands: Iterable[int | None], shape: tuple[Dim, ...]) -> str | None:
    """Why one of the operands cannot be read beside a result of this shape, or None if all can."""
    for i in operands:
        if i is not None and spread(site, i, shape) is None:
            return f"operand {i} is broadcast in a way only known at run time"
    return None


def declines_epilogue(site: Site, *, gluon: bool = False) -> str | None:
    """Why the steps after the main one cannot be applied to its result element by element, or None if they can."""
    if why := declines_steps(site, site.epilogue, gluon=gluon):
        return why
    for step in site.epilogue:
        if step.types[0].shape != site.step.types[0].shape:
            return f"{step.op} changes the shape"
    return declines_spread(site, operands_of(site.epilogue), site.output.shape)


class Pointwise(CudaTactic):
    """A region of pointwise ops over one result."""

    name = "cuda.pointwise"

    def declines(self, site: Site, target: Target) -> str | None:
        shape = site.output.shape
        if any(o.type.block for o in (*site.inputs, *site.outputs)):
            return "a layout of blocks of channels"
        for step in site.steps:
            op = OPS.get(step.op)
            if step.op not in ("BatchNormalization", *QUANTISED) and (op is None or not op.pointwise):
                return f"{step.op} is not pointwise"
            if step.types[0].shape != shape:
                return f"{step.op} changes the shape"
        if len(site.outputs) != 1:
            return "several outputs"
        if why := declines_steps(site, site.steps):
            return why
        return declines_spread(site, operands_of(site.steps), shape)

    def _nest(self, site: Site) -> tuple[tuple[Dim, ...], View, dict[int, View]]:
        order, out = physical_order(site.outputs[0]), site.outputs[0]
        steps = logical_strides(out)
        views = {}
        for i in operands_of(site.steps):
            strides = spread(site, i, out.type.shape)
            views[i] = View(tuple(strides[a] for a in order)) if strides is not None else View(())
        return tuple(out.type.shape[a] for a in order), View(tuple(steps[a] for a in order)), views

    def space(self, site: Site, target: Target) -> Iterator[Params]:
        dims, out, views = self._nest(site)
        yield from nest_space(site, dims, out, list(views.values()))

    def write(self, site: Site, params: Params, target: Target) -> Drafts:
        source = Source(site, target)
        dims, out, views = self._nest(site)
        nest = Nest(source, dims, (len(site.inputs), out), views, params)
        nest.write(lambda load: run_steps(source, 0, {}, load))
        return Drafts((source.draft(nest.grid, warps=params["warps"]),))


def _transpose(site: Site, attrs: Mapping[str, object]) -> list[Copy]:
    x, out = site.inputs[0], site.outputs[0]
    perm = attrs.get("perm")
    order = tuple(int(str(a)) for a in perm) if isinstance(perm, (tuple, list)) else tuple(reversed(range(x.type.rank)))
    steps = x.steps
    return [Copy(out.type.shape, View(tuple(steps[a] for a in order)), View(out.steps))]


def _reorder(site: Site, attrs: Mapping[str, object]) -> list[Copy]:
    x, out = site.inputs[0], site.outputs[0]
    order = physical_order(out)
    source, result = logical_strides(x), logical_strides(out)
    return [Copy(tuple(out.type.shape[a] for a in order), View(tuple(source[a] for a in order)),
                 View(tuple(result[a] for a in order)))]


_MORE = {"Transpose": _transpose, "Reorder": _reorder}


class Copies(CudaTactic):
    """Ops that move elements and change none; pointwise ops that follow ride along where there is one piece."""

    name = "cuda.copy"

    def declines(self, site: Site, target: Target) -> str | None:
        if site.op not in PLANS and site.op not in _MORE:
            return f"{site.op} is no copy"
        if site.main != 0 or any(i is not None and i < 0 for i in site.step.inputs):
            return "a prologue"
        operands = (*site.inputs, *site.outputs)
        if site.op != "Reorder" and any(o.type.layout for o in operands):
            return "copies need the plain layout"
        if any(o.type.block for o in operands):
            return "a layout of blocks of channels"
        if site.op in ("Reshape", "Flatten", "Squeeze", "Unsqueeze") and (
                site.inputs[0].strides is not None or site.outputs[0].strides is not None):
            return "needs dense operands"
        if any(o.type.dtype.name not in TYPES for o in operands):
            return f"elements of type {site.output.dtype}"
        if site.epilogue:
            if site.op in ("Concat", "Split", "Tile", "DepthToSpace", "SpaceToDepth", "Reshape", "Flatten", "Squeeze",
                           "Unsqueeze", "Identity"):
                return "it takes no epilogue"
            if 0 in operands_of(site.epilogue):
                return "what is moved is read again in place"
            return declines_epilogue(site)
        return None

    def _copies(self, site: Site) -> list[Copy]:
        planner = _MORE.get(site.op) or PLANS[site.op]
        return planner(site, {**OPS[site.op].attrs, **site.attrs})

    def _extras(self, site: Site) -> dict[int, View]:
        order = physical_order(site.outputs[0])
        found = {}
        for i in operands_of(site.epilogue):
            strides = spread(site, i, site.output.shape)
            found[i] = View(tuple(strides[a] for a in order)) if strides is not None else View(())
        return found

    def space(self, site: Site, target: Target) -> Iterator[Params]:
        copies = self._copies(site)
        first = max(copies, key=lambda c: len(c.dims))
        yield from nest_space(site, first.dims, first.result, [first.source, *self._extras(site).values()])

    def write(self, site: Site, params: Params, target: Target) -> Drafts:
        drafts = []
        for copy in self._copies(site):
            source, out = Source(site, target), len(site.inputs) + copy.output
            views = {copy.input: copy.source, **{i: v for i, v in self._extras(site).items() if i != copy.input}}
            nest = Nest(source, copy.dims, (out, copy.result), views, params)
            raw = _raw(site.inputs[copy.input], site.outputs[copy.output])

            def compute(load: object, source: Source = source, copy: Copy = copy, raw: DType = raw) -> Value:
                moved = load(copy.input)        # type: ignore[operator]
                if not site.epilogue:
                    return Value(moved.text, raw)
                return run_steps(source, 1, {0: moved}, load)    # type: ignore[arg-type]
            nest.write(compute)
            drafts.append(source.draft(nest.grid, warps=params["warps"]))
        return Drafts(tuple(drafts))


def _raw(x: Operand, out: Operand) -> DType:
    return out.type.dtype


__all__ = ["Copies", "Pointwise", "channel_vector", "spread"]
