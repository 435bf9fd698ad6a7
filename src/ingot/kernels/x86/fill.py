"""Ops that make their result from its own coordinates: ConstantOfShape, Range, EyeLike, Trilu."""
from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from ingot.graph import product
from ingot.kernels.codegen import Code, Int, Value, element_of, isa_of, vector
from ingot.kernels.tactic import Kernel, Params, Site, Tactic
from ingot.kernels.x86.nest import CHUNK
from ingot.kernels.x86.rows import each_vector
from ingot.kernels.x86.transpose import BITS, declines_movement, moved_as
from ingot.ops import OPS, dims
from ingot.ops.shape import shape_span
from ingot.ops.shapes import ints
from ingot.target import Target

_RANGES = ("f32", "f64", "i64", "i32")


def _attrs(site: Site) -> dict[str, object]:
    return {**OPS[site.op].attrs, **site.attrs}


def _iota(code: Code, start: Int, lanes: int) -> Value:
    """start, start + 1, ... as i64."""
    type_ = vector("i64", lanes)
    first = code.splat(code.value(start), lanes)
    if lanes == 1:
        return first
    return code.binary("add", first, Value(type_, "<" + ", ".join(f"i64 {i}" for i in range(lanes)) + ">"))


def _chunks(code: Code, size: Int, lanes: int, body: Callable[[Int, Value | None], None]) -> None:
    """body(place, mask) over `size` places, shared by the threads."""
    with code.share(code.ceildiv(size, CHUNK)) as task:
        start = code.mul(task, CHUNK)
        length = code.min(CHUNK, code.sub(size, start))

        def vectors(places: Sequence[Int], mask: Value | None) -> None:
            for at in places:
                body(code.add(start, at), mask)
        each_vector(code, length, lanes, vectors)


class Fill(Tactic):
    """One value everywhere, or numbers at even distances."""

    name = "x86.fill"

    def declines(self, site: Site, target: Target) -> str | None:
        if site.op not in ("ConstantOfShape", "Range"):
            return f"{site.op} is no fill"
        if site.outputs[0].strides is not None:
            return "needs a dense result"
        if site.op == "Range":
            if site.output.dtype.name not in _RANGES:
                return f"a Range of {site.output.dtype}"
            if site.output.dtype.kind == "int" and any(isinstance(v, float) for v in _range(site)):
                return "integers from fractions"
        return declines_movement(site)

    def emit(self, site: Site, params: Params, target: Target) -> Kernel:
        code = Code(isa_of(target), site.symbols)
        name = f"fill_{site.key}"
        dtype = site.output.dtype
        element = BITS[dtype.nbytes] if site.op == "ConstantOfShape" else element_of(dtype)
        lanes = code.isa.lanes * 4 // dtype.nbytes
        with code.function(name):
            out, size = code.buffer(0), code.dim(product(site.output.shape))
            make = self._constant(code, site, element, lanes) if site.op == "ConstantOfShape" else \
                self._numbers(code, site, element, lanes)

            def body(at: Int, mask: Value | None) -> None:
                code.store(make(at), code.offset(out, at, element), mask)
            _chunks(code, size, lanes, body)
        return Kernel(name, code.module(), (name,))

    def _constant(self, code: Code, site: Site, element: str, lanes: int) -> Callable[[Int], Value]:
        dtype = site.output.dtype
        raw = np.asarray(_attrs(site)["value"]).astype(dtype.numpy).reshape(-1)[:1]
        bits = int(raw.view(f"i{dtype.nbytes}")[0])
        value = Value(vector(element, lanes), f"splat ({element} {bits})" if lanes > 1 else str(bits))
        return lambda at: value

    def _numbers(self, code: Code, site: Site, element: str, lanes: int) -> Callable[[Int], Value]:
        start, _, delta = _range(site)

        def number(value: object) -> Value:
            if isinstance(value, float):
                return code.constant(value, element, lanes)
            known = code.value(code.dim(value))     # type: ignore[arg-type]
            if site.output.dtype.kind == "float":
                return code.splat(code.emit(element, f"sitofp {known} to {element}"), lanes)
            return code.splat(known if element == "i64" else code.emit(element, f"trunc {known} to {element}"), lanes)
        first, step = number(start), number(delta)

        def make(at: Int) -> Value:
            index = _iota(code, at, lanes)
            if site.output.dtype.kind == "float":
                return code.fadd(first, code.fmul(code.convert("sitofp", index, element), step))
            index = index if element == "i64" else code.convert("trunc", index, element)
            return code.binary("add", first, code.binary("mul", index, step))
        return make


def _range(site: Site) -> tuple[object, object, object]:
    """start, limit and delta of a Range: floats, or ints and symbolic dimensions."""
    attrs = _attrs(site)
    found = []
    for name in ("start", "limit", "delta"):
        value = attrs[name]
        first = value[0] if isinstance(value, (tuple, list)) else value
        found.append(float(first) if isinstance(first, float) else (dims({name: (first,)}, name) or (0,))[0])
    if any(isinstance(v, float) for v in found) and all(isinstance(v, (int, float)) for v in found):
        found = [float(str(v)) for v in found]
    return found[0], found[1], found[2]


class Sizes(Tactic):
    """Shape and Size: the dimensions themselves, as the call has them."""

    name = "x86.sizes"

    def declines(self, site: Site, target: Target) -> str | None:
        if site.op not in ("Shape", "Size") or len(site.steps) > 1:
            return f"{site.op} gives no sizes"
        return declines_movement(site)

    def emit(self, site: Site, params: Params, target: Target) -> Kernel:
        code = Code(isa_of(target), site.symbols)
        name = f"sizes_{site.key}"
        shape = site.inputs[0].type.shape
        start, end = shape_span(_attrs(site), len(shape)) if site.op == "Shape" else (0, 0)
        with code.function(name), code.when(code.compare("==", code.thread, 0)):
            for k, d in enumerate(shape[start:end] if site.op == "Shape" else (product(shape),)):
                code.store(code.value(code.dim(d)), code.offset(code.buffer(1), k, "i64"))
        return Kernel(name, code.module(), (name,))


class Nothing(Tactic):
    """Results without elements: nothing is done."""

    name = "x86.nothing"

    def declines(self, site: Site, target: Target) -> str | None:
        return None if all(0 in o.type.shape for o in site.outputs) else "there are elements to make"

    def emit(self, site: Site, params: Params, target: Target) -> Kernel:
        code = Code(isa_of(target), site.symbols)
        name = f"nothing_{site.key}"
        with code.function(name):
            pass
        return Kernel(name, code.module(), (name,))


class Triangle(Tactic):
    """Trilu and EyeLike: row by row, by comparing columns with the diagonal."""

    name = "x86.triangle"

    def declines(self, site: Site, target: Target) -> str | None:
        if site.op not in ("Trilu", "EyeLike"):
            return f"{site.op} is no triangle"
        if any(o.strides is not None or o.type.layout for o in (*site.inputs, *site.outputs)):
            return "needs dense, plain operands"
        if site.op == "Trilu" and ints(_attrs(site), "k") is None:
            return "a diagonal known only at run time"
        return declines_movement(site)

    def emit(self, site: Site, params: Params, target: Target) -> Kernel:
        code = Code(isa_of(target), site.symbols)
        name = f"triangle_{site.key}"
        shape, dtype = site.output.shape, site.output.dtype
        element, lanes = moved_as(site.outputs[0]), code.isa.lanes * 4 // max(4, dtype.nbytes)
        attrs = _attrs(site)
        named = attrs["k"]
        k = int(str(named[0] if isinstance(named, (tuple, list)) else named))
        with code.function(name):
            rows, columns = code.dim(shape[-2]), code.dim(shape[-1])
            one = int(np.ones(1, dtype.numpy).view(f"i{dtype.nbytes}")[0])
            with code.share(code.mul(code.dim(product(shape[:-2])), rows)) as task:
                diagonal = code.add(code.rem(task, rows), k)
                start = code.mul(task, columns)
                x, y = (code.offset(code.buffer(i), start, element) for i in (0, 1))

                def body(places: Sequence[Int], mask: Value | None) -> None:
                    for at in places:
                        column, edge = _iota(code, at, lanes), code.splat(code.value(diagonal), lanes)
                        zero = code.zero(element, lanes)
                        if site.op == "EyeLike":
                            value = code.select(code.compare("==", column, edge),
                                                Value(zero.type, f"splat ({element} {one})"), zero)
                        else:
                            inside = code.compare(">=" if attrs["upper"] else "<=", column, edge)
                            loaded = code.load(code.offset(x, at, element), element, lanes, mask)
                            value = code.select(inside, loaded, zero)
                        code.store(value, code.offset(y, at, element), mask)
                each_vector(code, columns, lanes, body)
        return Kernel(name, code.module(), (name,))
