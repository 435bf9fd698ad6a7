"""LayerNormalization, RMSNormalization, InstanceNormalization, GroupNormalization and their kin, row by row."""
from __future__ import annotations

from collections.abc import Sequence

from ingot.graph import F32, F64, Dim, product
from ingot.kernels.codegen import Code, Int, Value, element_of, isa_of, math
from ingot.kernels.steps import declines_order
from ingot.kernels.tactic import Kernel, Params, Site, Tactic
from ingot.kernels.x86.nest import Side, View
from ingot.kernels.x86.rows import Row, each_vector, rows_of, total
from ingot.target import Target


def _number(site: Site, name: str, default: float) -> float:
    return float(site.attrs.get(name, default))     # type: ignore[arg-type]


def _size(code: Code, length: Int, element: str) -> Value:
    """A length as a float."""
    if isinstance(length, int):
        return code.constant(length, element)
    return code.convert("sitofp", length, element)


def _spread(code: Code, v: Value, lanes: int) -> Value:
    """The sum of all lanes, in every lane."""
    return code.splat(code.reduce("fadd", v), lanes)


def _statistics(row: Row, keep: bool, centred: bool) -> tuple[Value, Value]:
    """Mean (0 unless centred) and the mean of squares around it, in every lane, of a row; two passes."""
    code, lanes, element = row.code, row.lanes, row.rows.element
    count = code.splat(_size(code, row.length, element), lanes)

    def first(at: Int, mask: Value | None) -> Value:
        value = row.input(at, mask)
        if keep:
            row.store(at, mask, value)
        if not centred:
            value = code.fmul(value, value)
        return row.masked(mask, value, 0.0)
    mean = code.fdiv(_spread(code, total(code, row.length, element, lanes, first), lanes), count)
    if not centred:
        return code.zero(element, lanes), mean

    def squares(at: Int, mask: Value | None) -> Value:
        value = code.fsub(row.kept(at, mask) if keep else row.input(at, mask), mean)
        return row.masked(mask, code.fmul(value, value), 0.0)
    return mean, code.fdiv(_spread(code, total(code, row.length, element, lanes, squares), lanes), count)


def _inverse(code: Code, variance: Value, epsilon: float) -> Value:
    one, eps = (code.constant(v, variance.element, variance.lanes) for v in (1.0, epsilon))
    return code.fdiv(one, math.square_root(code, code.fadd(variance, eps)))


class RowNormalization(Tactic):
    """LayerNormalization and RMSNormalization, with pointwise steps before (a residual) and after."""

    name = "x86.normalization_rows"

    def declines(self, site: Site, target: Target) -> str | None:
        if site.op not in ("LayerNormalization", "RMSNormalization"):
            return f"{site.op} is no normalisation of rows"
        rows = rows_of(site, self._axis(site))
        return rows if isinstance(rows, str) else None

    def _axis(self, site: Site) -> int:
        return int(str(site.attrs.get("axis", -1))) % site.step.types[0].rank

    def emit(self, site: Site, params: Params, target: Target) -> Kernel:
        code = Code(isa_of(target), site.symbols)
        name = f"normalization_{site.key}"
        rows = rows_of(site, self._axis(site))
        assert not isinstance(rows, str)        # declined
        centred = site.op == "LayerNormalization"
        scale, bias = (*site.step.inputs[1:], None, None)[:2]
        with code.function(name), rows.share(code) as row:
            mean, variance = _statistics(row, rows.prologue, centred)
            factor = _inverse(code, variance, _number(site, "epsilon", 1e-5))

            def last(places: Sequence[Int], mask: Value | None) -> None:
                for at in places:
                    value = row.kept(at, mask) if rows.prologue else row.input(at, mask)
                    value = code.fmul(code.fsub(value, mean) if centred else value, factor)
                    load = row.load(at, mask)
                    if bias is not None and scale is not None:
                        value = code.fma(value, load(scale), load(bias))
                    elif scale is not None:
                        value = code.fmul(value, load(scale))
                    row.finish(at, mask, value)
            each_vector(code, row.length, row.lanes, last)
        return Kernel(name, code.module(), (name,))


class GroupStatistics(Tactic):
    """InstanceNormalization and GroupNormalization: statistics of a group, then a factor and an offset per channel."""

    name = "x86.normalization_groups"

    def declines(self, site: Site, target: Target) -> str | None:
        if site.op not in ("InstanceNormalization", "GroupNormalization"):
            return f"{site.op} is no normalisation of channels"
        if len(site.steps) > 1 or len(site.outputs) > 1:
            return "takes no other steps"
        if site.output.dtype not in (F32, F64) or site.output.layout:
            return f"groups of {site.output}"
        if any(o.type.dtype != site.output.dtype for o in site.inputs):
            return "element types differ"
        if any(o.strides is not None for o in (*site.inputs, *site.outputs)):
            return "groups need dense operands"
        return declines_order(site)

    def emit(self, site: Site, params: Params, target: Target) -> Kernel:
        code = Code(isa_of(target), site.symbols)
        name = f"normalization_{site.key}"
        shape, element = site.output.shape, element_of(site.output.dtype)
        lanes = code.isa.lanes * 4 // site.output.dtype.nbytes
        channels, plane = shape[1], product(shape[2:])
        groups: Dim = channels if site.op == "InstanceNormalization" else int(str(site.attrs["num_groups"]))
        with code.function(name):
            per_group, size = code.dim(channels // groups), code.dim(plane)
            length = code.mul(per_group, size)
            x, scale, bias, y = (code.buffer(i) for i in range(4))
            with code.share(code.mul(code.dim(shape[0]), code.dim(groups))) as task:
                start = code.mul(task, length)
                base = code.offset(x, start, element)
                source = Side(base, element, View((1,)))
                mean, variance = _moments(code, source, length, lanes)
                factor = _inverse(code, variance, _number(site, "epsilon", 1e-5))
                group = code.rem(task, code.dim(groups))
                with code.loop(0, per_group) as c:
                    channel = code.add(code.mul(group, per_group), c)
                    a = code.fmul(code.splat(code.load(code.offset(scale, channel, element), element), lanes), factor)
                    b = code.splat(code.load(code.offset(bias, channel, element), element), lanes)
                    at = code.add(start, code.mul(c, size))
                    _scaled(code, (code.offset(x, at, element), code.offset(y, at, element)), size, element, mean, a, b)
        return Kernel(name, code.module(), (name,))


def _moments(code: Code, source: Side, length: Int, lanes: int) -> tuple[Value, Value]:
    """Mean and variance of `length` consecutive elements, in every lane; two passes."""
    element = source.element
    count = code.splat(_size(code, length, element), lanes)
    zero = code.zero(element, lanes)

    def load(at: Int, mask: Value | None) -> Value:
        return code.load(code.offset(source.pointer, at, element), element, lanes, mask)
    mean = code.fdiv(_spread(code, total(code, length, element, lanes, load), lanes), count)

    def squares(at: Int, mask: Value | None) -> Value:
        value = code.fsub(load(at, mask), mean)
        value = code.fmul(value, value)
        return value if mask is None else code.select(mask, value, zero)
    return mean, code.fdiv(_spread(code, total(code, length, element, lanes, squares), lanes), count)


def _scaled(code: Code, places: tuple[Value, Value], size: Int, element: str, mean: Value, a: Value, b: Value) -> None:
    """(x - mean) * a + b over `size` consecutive elements."""
    x, y = places

    def body(at_all: Sequence[Int], mask: Value | None) -> None:
        for at in at_all:
            value = code.load(code.offset(x, at, element), element, a.lanes, mask)
            code.store(code.fma(code.fsub(value, mean), a, b), code.offset(y, at, element), mask)
    each_vector(code, size, a.lanes, body)
