"""Ops along one axis, a vector of columns at a time: ArgMax, ArgMin, TopK, CumSum, Hardmax, LpNormalization."""
from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from ingot.graph import product
from ingot.kernels.codegen import Code, Int, Value, element_of, isa_of, math
from ingot.kernels.tactic import Kernel, Params, Site, Tactic
from ingot.ops import OPS, dims
from ingot.ops.shapes import axis_of, integer
from ingot.target import Target

_SERVED = ("f32", "f64", "i64", "i32")


def _attrs(site: Site) -> dict[str, object]:
    return {**OPS[site.op].attrs, **site.attrs}


def _axis(site: Site) -> int:
    attrs, rank = _attrs(site), site.inputs[0].type.rank
    named = attrs["axis"]
    axis = int(str(named[0])) if isinstance(named, (tuple, list)) else integer(attrs, "axis")
    return axis_of(axis, rank)


def _declines(site: Site, ops: tuple[str, ...]) -> str | None:
    if site.op not in ops:
        return f"{site.op} is not {' or '.join(ops)}"
    if len(site.steps) > 1:
        return "takes no other steps"
    if any(o.strides is not None or o.type.layout for o in (*site.inputs, *site.outputs)):
        return "needs dense, plain operands"
    if site.inputs[0].type.dtype.name not in _SERVED or not site.inputs[0].type.rank:
        return f"{site.op} on {site.inputs[0].type}"
    return None


@dataclass(frozen=True)
class Column:
    """A vector of columns at work: their number of elements, the distance between these, and where they begin."""

    code: Code
    outer: Int
    column: Int
    length: Int
    inner: Int
    lanes: int
    mask: Value | None
    element: str

    def address(self, buffer: int, i: Int, length: Int, element: str) -> Value:
        """Element i of the columns, in a buffer whose axis has `length`."""
        code = self.code
        row = code.add(code.mul(self.outer, length), i)
        return code.offset(code.buffer(buffer), code.add(code.mul(row, self.inner), self.column), element)

    def at(self, i: Int) -> Value:
        """Element i of the columns of the input."""
        return self.code.load(self.address(0, i, self.length, self.element), self.element, self.lanes, self.mask)

    def number(self, value: float, element: str = "") -> Value:
        return self.code.constant(value, element or self.element, self.lanes)


@contextmanager
def _columns(code: Code, site: Site) -> Iterator[Column]:
    x, axis = site.inputs[0].type, _axis(site)
    element = element_of(x.dtype)
    inner_dim = product(x.shape[axis + 1:])
    lanes = 1 if inner_dim == 1 else code.isa.lanes * 4 // 8
    outer, length, inner = (code.dim(d) for d in (product(x.shape[:axis]), x.shape[axis], inner_dim))
    pieces = code.ceildiv(inner, lanes)
    with code.share(code.mul(outer, pieces)) as task:
        o, piece = code.unflatten(task, [outer, pieces])
        column = code.mul(piece, lanes)
        mask = None if lanes == 1 else code.mask(code.sub(inner, column), lanes)
        yield Column(code, o, column, length, inner, lanes, mask, element)


def _less(code: Code, a: Value, b: Value, *, equal: bool = False) -> Value:
    if a.is_float:
        return code.fcompare("ole" if equal else "olt", a, b)
    return code.compare("<=" if equal else "<", a, b)


def _and(code: Code, *masks: Value) -> Value:
    found = masks[0]
    for mask in masks[1:]:
        found = code.binary("and", found, mask)
    return found


class ArgBest(Tactic):
    """ArgMax and ArgMin: each column walked once. The first NaN wins, as in numpy."""

    name = "x86.arg_best"

    def declines(self, site: Site, target: Target) -> str | None:
        return _declines(site, ("ArgMax", "ArgMin"))

    def emit(self, site: Site, params: Params, target: Target) -> Kernel:
        code = Code(isa_of(target), site.symbols)
        name = f"arg_best_{site.key}"
        last = bool(_attrs(site)["select_last_index"])
        with code.function(name), _columns(code, site) as c:
            best = code.variable(c.at(0))
            where = code.variable(c.number(0, "i64"))
            with code.loop(1, c.length) as i:
                value, held = c.at(i), best.get()
                pair = (held, value) if site.op == "ArgMax" else (value, held)
                better = _less(code, *pair, equal=last)
                if value.is_float:
                    new, old = code.fcompare("uno", value, value), code.fcompare("uno", held, held)
                    fresh = new if last else _and(code, new, code.binary("xor", old, _true(old)))
                    better = code.binary("or", better, fresh)
                best.set(code.select(better, value, held))
                where.set(code.select(better, code.splat(i, c.lanes), where.get()))
            code.store(where.get(), c.address(1, 0, 1, "i64"), c.mask)
        return Kernel(name, code.module(), (name,))


class Norm(Tactic):
    """LpNormalization: the norm of each column, then the column over it; a norm of 0 gives 0."""

    name = "x86.norm"

    def declines(self, site: Site, target: Target) -> str | None:
        if why := _declines(site, ("LpNormalization",)):
            return why
        return None if site.output.dtype.kind == "float" else "floats only"

    def emit(self, site: Site, params: Params, target: Target) -> Kernel:
        code = Code(isa_of(target), site.symbols)
        name = f"norm_{site.key}"
        first = int(str(_attrs(site)["p"])) == 1
        with code.function(name), _columns(code, site) as c:
            total = code.variable(c.number(0))
            with code.loop(0, c.length) as i:
                x = c.at(i)
                total.set(code.fadd(total.get(), math.absolute(code, x) if first else code.fmul(x, x)))
            norm = total.get() if first else math.square_root(code, total.get())
            zero = code.fcompare("oeq", norm, c.number(0))
            with code.loop(0, c.length) as i:
                value = code.select(zero, c.number(0), code.fdiv(c.at(i), norm))
                code.store(value, c.address(1, i, c.length, c.element), c.mask)
        return Kernel(name, code.module(), (name,))


class Hardmax(Tactic):
    """1 where the first greatest of each column lies, else 0."""

    name = "x86.hardmax"

    def declines(self, site: Site, target: Target) -> str | None:
        return _declines(site, ("Hardmax",))

    def emit(self, site: Site, params: Params, target: Target) -> Kernel:
        code = Code(isa_of(target), site.symbols)
        name = f"hardmax_{site.key}"
        with code.function(name), _columns(code, site) as c:
            best, where = code.variable(c.at(0)), code.variable(c.number(0, "i64"))
            with code.loop(1, c.length) as i:
                value = c.at(i)
                better = _less(code, best.get(), value)
                best.set(code.select(better, value, best.get()))
                where.set(code.select(better, code.splat(i, c.lanes), where.get()))
            with code.loop(0, c.length) as i:
                here = code.compare("==", where.get(), code.splat(i, c.lanes))
                code.store(code.select(here, c.number(1), c.number(0)), c.address(1, i, c.length, c.element), c.mask)
        return Kernel(name, code.module(), (name,))


def _true(mask: Value) -> Value:
    return Value(mask.type, "true" if mask.lanes == 1 else "splat (i1 true)")


class Running(Tactic):
    """CumSum and CumProd: each column walked once."""

    name = "x86.running"

    def declines(self, site: Site, target: Target) -> str | None:
        return _declines(site, ("CumSum", "CumProd"))

    def emit(self, site: Site, params: Params, target: Target) -> Kernel:
        code = Code(isa_of(target), site.symbols)
        name = f"running_{site.key}"
        attrs, adds = _attrs(site), site.op == "CumSum"
        with code.function(name), _columns(code, site) as c:
            total = code.variable(c.number(0 if adds else 1))
            with code.loop(0, c.length) as k:
                i = code.sub(code.sub(c.length, 1), k) if attrs["reverse"] else k
                before, value = total.get(), c.at(i)
                op = ("fadd" if adds else "fmul") if value.is_float else ("add" if adds else "mul")
                after = code.binary(op, before, value)
                code.store(before if attrs["exclusive"] else after, c.address(1, i, c.length, c.element), c.mask)
                total.set(after)
        return Kernel(name, code.module(), (name,))


class TopK(Tactic):
    """One pass over each column per result: the next in the order of value, then of place. Small k only is fast.

    NaN is greater than every number, as in numpy.
    """

    name = "x86.top_k"

    def declines(self, site: Site, target: Target) -> str | None:
        return _declines(site, ("TopK",))

    def emit(self, site: Site, params: Params, target: Target) -> Kernel:
        code = Code(isa_of(target), site.symbols)
        name = f"top_k_{site.key}"
        attrs = _attrs(site)
        k, = dims(attrs, "k") or (0,)
        largest = bool(attrs["largest"])
        with code.function(name), _columns(code, site) as c:
            count = code.dim(k)
            last = code.variable(_worst(c, not largest))        # the key taken before, and its place
            place = code.variable(c.number(-1, "i64"))
            with code.loop(0, count) as j:
                best, where = code.variable(_worst(c, largest)), code.variable(c.number(-1, "i64"))
                value = code.variable(c.number(0))
                with code.loop(0, c.length) as i:
                    x, at = c.at(i), code.splat(code.value(i), c.lanes)
                    key = ordered_key(code, x)
                    better = self._better(code, largest, (key, at), (best.get(), where.get()),
                                          (last.get(), place.get()))
                    best.set(code.select(better, key, best.get()))
                    where.set(code.select(better, at, where.get()))
                    value.set(code.select(better, x, value.get()))
                code.store(value.get(), c.address(1, j, count, c.element), c.mask)
                if len(site.outputs) > 1:
                    code.store(where.get(), c.address(2, j, count, "i64"), c.mask)
                last.set(best.get())
                place.set(where.get())
        return Kernel(name, code.module(), (name,))

    def _better(self, code: Code, largest: bool, new: tuple[Value, Value], best: tuple[Value, Value],
                last: tuple[Value, Value]) -> Value:
        """Whether an element (key, place) comes after the one taken last and before the best so far."""
        def worse(a: Value, b: Value) -> Value:
            return code.compare("<" if largest else ">", a, b)
        tie = _and(code, code.compare("==", new[0], last[0]), code.compare(">", new[1], last[1]))
        left = code.binary("or", worse(new[0], last[0]), tie)
        none = code.compare("<", best[1], math.like(code, best[1], 0))
        return _and(code, left, code.binary("or", worse(best[0], new[0]), none))


def ordered_key(code: Code, x: Value) -> Value:
    """Integers in the order of the values: -0 equal to 0, NaN above all."""
    if not x.is_float:
        return x
    raw = math.bits(code, code.fadd(x, math.like(code, x, 0)))
    most = (1 << 63) - 1 if raw.element == "i64" else (1 << 31) - 1
    size = code.binary("and", raw, math.like(code, raw, most))
    ordered = code.select(code.compare("<", raw, math.like(code, raw, 0)),
                          code.binary("sub", math.like(code, raw, 0), size), raw)
    return code.select(code.fcompare("uno", x, x), math.like(code, raw, most), ordered)


def _worst(c: Column, largest: bool) -> Value:
    """The key that every key is at least (largest) or at most."""
    element = "i64" if c.element in ("double", "i64") else "i32"
    bits = 63 if element == "i64" else 31
    return c.number(-(1 << bits) if largest else (1 << bits) - 1, element)
