"""Picking and placing elements by computed positions.

A position below 0 counts from the end, as ONNX says. One that lies outside the axis is clamped to it: such a model is
in error, and no kernel reads or writes outside its buffers for it.
"""
from __future__ import annotations

from collections.abc import Sequence

from ingot.graph import Dim, dense_strides, product
from ingot.kernels.codegen import Code, Int, Value, isa_of
from ingot.kernels.codegen.expression import maximum, minimum
from ingot.kernels.steps import declines_order
from ingot.kernels.tactic import Kernel, Params, Site, Tactic
from ingot.kernels.x86.nest import power_of_two
from ingot.kernels.x86.rows import each_vector
from ingot.kernels.x86.transpose import declines_movement, moved_as
from ingot.ops import OPS
from ingot.ops.shapes import axis_of, integer
from ingot.target import Target

_SLICE = 4096       # elements of a slice that are copied as one task


def _attrs(site: Site) -> dict[str, object]:
    return {**OPS[site.op].attrs, **site.attrs}


def position(code: Code, site: Site, operand: int, at: Int, size: Int) -> Value:
    """The position stored at an index of an operand of positions, from the front and inside the axis."""
    element = moved_as(site.inputs[operand])
    found = code.load(code.offset(code.buffer(operand), at, element), element)
    if element == "i32":
        found = code.convert("sext", found, "i64")
    limit = code.value(size)
    found = code.select(code.compare("<", found, 0), code.value(code.add(found, limit)), found)
    found = code.select(code.compare("<", found, 0), code.value(0), found)
    last = code.value(code.sub(limit, 1))
    return code.select(code.compare(">", found, last), last, found)


def copied(code: Code, source: Value, result: Value, length: Int, element: str, nbytes: int) -> None:
    """`length` consecutive elements from one place to another."""
    lanes = code.isa.lanes * 4 // nbytes
    if isinstance(length, int):
        lanes = min(lanes, power_of_two(length))

    def body(places: Sequence[Int], mask: Value | None) -> None:
        values = [code.load(code.offset(source, at, element), element, lanes, mask) for at in places]
        for at, value in zip(places, values, strict=True):
            code.store(value, code.offset(result, at, element), mask)
    each_vector(code, length, lanes, body)


def _needs_dense(site: Site) -> str | None:
    if any(o.strides is not None or o.type.layout for o in (*site.inputs, *site.outputs)):
        return "needs dense, plain operands"
    if why := declines_order(site) or declines_movement(site):
        return why
    positions = site.inputs[1].type.dtype.name if len(site.inputs) > 1 else ""
    return None if positions in ("i64", "i32") else f"positions of type {positions}"


class Gather(Tactic):
    """Slices copied whole; where a slice is one element, element by element."""

    name = "x86.gather"

    def declines(self, site: Site, target: Target) -> str | None:
        return _needs_dense(site) if site.op == "Gather" else f"{site.op} is no Gather"

    def emit(self, site: Site, params: Params, target: Target) -> Kernel:
        code = Code(isa_of(target), site.symbols)
        name = f"gather_{site.key}"
        x, at, nbytes = site.inputs[0].type, site.inputs[1].type, site.output.dtype.nbytes
        axis, element = axis_of(integer(_attrs(site), "axis"), x.rank), moved_as(site.inputs[0])
        with code.function(name):
            outer, size, inner, count = (code.dim(d) for d in (product(x.shape[:axis]), x.shape[axis],
                                                               product(x.shape[axis + 1:]), product(at.shape)))
            pieces = code.ceildiv(inner, _SLICE)
            with code.share(code.mul(outer, code.mul(count, pieces))) as task:
                o, i, piece = code.unflatten(task, [outer, count, pieces])
                picked = position(code, site, 1, i, size)
                start = code.mul(piece, _SLICE)
                source = code.add(code.mul(code.add(code.mul(o, size), picked), inner), start)
                result = code.add(code.mul(code.add(code.mul(o, count), i), inner), start)
                length = inner if isinstance(inner, int) and inner <= _SLICE else \
                    code.min(_SLICE, code.sub(inner, start))
                copied(code, code.offset(code.buffer(0), source, element),
                       code.offset(code.buffer(2), result, element), length, element, nbytes)
        return Kernel(name, code.module(), (name,))


class GatherElements(Tactic):
    """One element at a time."""

    name = "x86.gather_elements"

    def declines(self, site: Site, target: Target) -> str | None:
        return _needs_dense(site) if site.op == "GatherElements" else f"{site.op} is no GatherElements"

    def emit(self, site: Site, params: Params, target: Target) -> Kernel:
        code = Code(isa_of(target), site.symbols)
        name = f"gather_elements_{site.key}"
        x, at, element = site.inputs[0].type, site.inputs[1].type, moved_as(site.inputs[0])
        axis = axis_of(integer(_attrs(site), "axis"), x.rank)
        with code.function(name), code.share(code.dim(product(at.shape))) as i:
            places = code.unflatten(i, [code.dim(d) for d in at.shape])
            places[axis] = position(code, site, 1, i, code.dim(x.shape[axis]))
            value = code.load(code.offset(code.buffer(0), flat(code, places, x.shape), element), element)
            code.store(value, code.offset(code.buffer(2), i, element))
        return Kernel(name, code.module(), (name,))


def flat(code: Code, places: Sequence[Int], shape: Sequence[Dim]) -> Int:
    """The row-major index of coordinates."""
    at: Int = 0
    for place, stride in zip(places, dense_strides(tuple(shape)), strict=True):
        at = code.add(at, code.mul(place, code.dim(stride)))
    return at


class GatherND(Tactic):
    """Slices at positions along several axes, copied whole."""

    name = "x86.gather_nd"

    def declines(self, site: Site, target: Target) -> str | None:
        return _needs_dense(site) if site.op == "GatherND" else f"{site.op} is no GatherND"

    def emit(self, site: Site, params: Params, target: Target) -> Kernel:
        code = Code(isa_of(target), site.symbols)
        name = f"gather_nd_{site.key}"
        x, at, element = site.inputs[0].type, site.inputs[1].type, moved_as(site.inputs[0])
        batch, depth = integer(_attrs(site), "batch_dims"), int(str(at.shape[-1]))
        inner = x.shape[batch + depth:]
        with code.function(name):
            batches, each = code.dim(product(at.shape[:batch])), code.dim(product(at.shape[batch:-1]))
            length = code.dim(product(inner))
            with code.share(code.mul(batches, each)) as task:
                b = code.div(task, each)
                start = code.mul(b, code.dim(product(x.shape[batch:])))
                start = code.add(start, _slice_at(code, site, task, x.shape[batch:], depth))
                copied(code, code.offset(code.buffer(0), start, element),
                       code.offset(code.buffer(2), code.mul(task, length), element), length, element,
                       x.dtype.nbytes)
        return Kernel(name, code.module(), (name,))


def _slice_at(code: Code, site: Site, index: Int, shape: Sequence[Dim], depth: int) -> Int:
    """Where the slice named by the index-th tuple of positions begins, within `shape`."""
    at: Int = 0
    strides = dense_strides(tuple(shape))
    for k in range(depth):
        picked = position(code, site, 1, code.add(code.mul(index, depth), k), code.dim(shape[k]))
        at = code.add(at, code.mul(picked, code.dim(strides[k])))
    return at


def _combined(code: Code, site: Site, old: Value, new: Value) -> Value:
    """An update put on what is there, by the op's reduction."""
    kind, dtype = str(_attrs(site)["reduction"]), site.output.dtype
    if kind == "none":
        return new
    if dtype.kind == "float":
        name = {4: "float", 8: "double"}[dtype.nbytes]
        a, b = (code.convert("bitcast", v, name) for v in (old, new))
        made = {"add": code.fadd, "mul": code.fmul}[kind](a, b) if kind in ("add", "mul") else \
            (maximum if kind == "max" else minimum)(code, a, b)
        return code.convert("bitcast", made, old.element)
    if kind in ("add", "mul"):
        return code.binary(kind, old, new)
    return (maximum if kind == "max" else minimum)(code, old, new, signed=dtype.kind == "int")


class Scatter(Tactic):
    """A copy, then, after a barrier, the updates one after another on one thread, in their order."""

    name = "x86.scatter"

    def declines(self, site: Site, target: Target) -> str | None:
        if site.op not in ("ScatterElements", "ScatterND"):
            return f"{site.op} is no scatter"
        dtype, kind = site.output.dtype, str(_attrs(site)["reduction"])
        if kind != "none" and not (dtype.name in ("f32", "f64") or dtype.kind in ("int", "uint")):
            return f"reduction {kind} on {dtype}"
        return _needs_dense(site)

    def emit(self, site: Site, params: Params, target: Target) -> Kernel:
        code = Code(isa_of(target), site.symbols)
        names = (f"scatter_copy_{site.key}", f"scatter_{site.key}")
        x, element = site.inputs[0].type, moved_as(site.inputs[0])
        with code.function(names[0]):
            size = code.dim(x.size)
            with code.share(code.ceildiv(size, _SLICE)) as task:
                start = code.mul(task, _SLICE)
                copied(code, code.offset(code.buffer(0), start, element), code.offset(code.buffer(3), start, element),
                       code.min(_SLICE, code.sub(size, start)), element, x.dtype.nbytes)
        with code.function(names[1]), code.when(code.compare("==", code.thread, 0)):
            if site.op == "ScatterElements":
                self._elements(code, site, element)
            else:
                self._slices(code, site, element)
        return Kernel(names[1], code.module(), names)

    def _elements(self, code: Code, site: Site, element: str) -> None:
        x, at = site.inputs[0].type, site.inputs[1].type
        axis = axis_of(integer(_attrs(site), "axis"), x.rank)
        with code.loop(0, code.dim(at.size)) as i:
            places = code.unflatten(i, [code.dim(d) for d in at.shape])
            places[axis] = position(code, site, 1, i, code.dim(x.shape[axis]))
            self._put(code, site, element, i, flat(code, places, x.shape))

    def _slices(self, code: Code, site: Site, element: str) -> None:
        x, at = site.inputs[0].type, site.inputs[1].type
        depth = int(str(at.shape[-1]))
        length = code.dim(product(x.shape[depth:]))
        with code.loop(0, code.dim(product(at.shape[:-1]))) as i:
            start = _slice_at(code, site, i, x.shape, depth)
            with code.loop(0, length) as k:
                self._put(code, site, element, code.add(code.mul(i, length), k), code.add(start, k))

    def _put(self, code: Code, site: Site, element: str, update: Int, place: Int) -> None:
        new = code.load(code.offset(code.buffer(2), update, element), element)
        there = code.offset(code.buffer(3), place, element)
        code.store(_combined(code, site, code.load(there, element), new), there)


class OneHot(Tactic):
    """Every place filled from its position."""

    name = "x86.one_hot"

    def declines(self, site: Site, target: Target) -> str | None:
        if site.op != "OneHot":
            return f"{site.op} is no OneHot"
        if any(o.strides is not None or o.type.layout for o in (*site.inputs, *site.outputs)):
            return "needs dense, plain operands"
        if site.inputs[0].type.dtype.name not in ("i64", "i32"):
            return f"positions of type {site.inputs[0].type.dtype}"
        return declines_order(site) or declines_movement(site)

    def emit(self, site: Site, params: Params, target: Target) -> Kernel:
        code = Code(isa_of(target), site.symbols)
        name = f"one_hot_{site.key}"
        element, positions = moved_as(site.outputs[0]), moved_as(site.inputs[0])
        at, out = site.inputs[0].type, site.output
        axis = axis_of(integer(_attrs(site), "axis"), out.rank)
        with code.function(name):
            outer, depth, inner = (code.dim(d) for d in (product(at.shape[:axis]), out.shape[axis],
                                                         product(at.shape[axis:])))
            off, on = (code.load(code.offset(code.buffer(1), k, element), element) for k in (0, 1))
            with code.share(code.mul(outer, code.mul(depth, inner))) as task:
                o, d, i = code.unflatten(task, [outer, depth, inner])
                picked = code.load(code.offset(code.buffer(0), code.add(code.mul(o, inner), i), positions), positions)
                if positions == "i32":
                    picked = code.convert("sext", picked, "i64")
                low = code.select(code.compare("<", picked, 0), code.value(code.add(picked, depth)), picked)
                hit = code.compare("==", low, code.value(d))
                code.store(code.select(hit, on, off), code.offset(code.buffer(2), task, element))
        return Kernel(name, code.module(), (name,))
