"""Einsum of any equation: a vector of results at a time, the letters that are summed in loops.

It is here so that no equation is left to the reference; what is a product of matrices is better written as MatMul.
"""
from __future__ import annotations

from collections.abc import Sequence

from ingot.graph import Dim
from ingot.kernels.codegen import Code, Int, Value, Variable, element_of, isa_of
from ingot.kernels.tactic import Kernel, Params, Site, Tactic
from ingot.kernels.x86.nest import Side, View, advance, load_lanes
from ingot.ops.linear import einsum_terms
from ingot.target import Target

_SERVED = ("f32", "f64", "i64", "i32")


def _loops(site: Site) -> tuple[list[tuple[str, Dim]], list[tuple[str, Dim]], list[dict[str, Dim]]] | str:
    """The result's letters and the summed ones with their sizes, and each operand's stride per letter."""
    terms, result = einsum_terms(str(site.attrs["equation"]), tuple(o.type.rank for o in site.inputs))
    sizes: dict[str, Dim] = {}
    for term, operand in zip(terms, site.inputs, strict=True):
        for letter, dim in zip(term, operand.type.shape, strict=True):
            if sizes.get(letter, 1) == 1:
                sizes[letter] = dim
            elif dim not in (1, sizes[letter]):
                return f"{dim} against {sizes[letter]}: whether it broadcasts is known only at run time"
    strides: list[dict[str, Dim]] = []
    for term, operand in zip(terms, site.inputs, strict=True):
        found: dict[str, Dim] = {}
        for letter, dim, step in zip(term, operand.type.shape, operand.steps, strict=True):
            found[letter] = found.get(letter, 0) + (0 if dim == 1 and sizes[letter] != 1 else step)
        strides.append(found)
    kept = [(c, sizes[c]) for c in result]
    return kept, [(c, d) for c, d in sizes.items() if c not in result], strides


class Einsum(Tactic):
    """Results along the last letter in lanes."""

    name = "x86.einsum"

    def declines(self, site: Site, target: Target) -> str | None:
        if site.op != "Einsum":
            return f"{site.op} is no Einsum"
        if len(site.steps) > 1 or site.step.inputs != tuple(range(len(site.inputs))):
            return "takes each operand once, and no other steps"
        if site.output.dtype.name not in _SERVED or any(o.type.layout for o in site.inputs):
            return f"Einsum of {site.output.dtype}"
        found = _loops(site)
        return found if isinstance(found, str) else None

    def emit(self, site: Site, params: Params, target: Target) -> Kernel:
        code = Code(isa_of(target), site.symbols)
        name = f"einsum_{site.key}"
        found = _loops(site)
        assert not isinstance(found, str)       # declined
        kept, summed, strides = found
        element = element_of(site.output.dtype)
        lanes = code.isa.lanes * 4 // site.output.dtype.nbytes if kept else 1
        steps = site.outputs[0].steps
        with code.function(name):
            outer, last = kept[:-1], code.dim(kept[-1][1]) if kept else 1
            dims = [code.dim(d) for _, d in outer]
            pieces = code.ceildiv(last, lanes)
            tasks: Int = pieces
            for d in dims:
                tasks = code.mul(tasks, d)
            with code.share(tasks) as task:
                *places, piece = code.unflatten(task, [*dims, pieces]) if dims else [task]
                start = code.mul(piece, lanes)
                at = [*zip([c for c, _ in outer], places, strict=True), *([(kept[-1][0], start)] if kept else [])]
                sides = [advance(code, Side(code.buffer(i), element, View(())),
                                 [(place, s.get(letter, 0)) for letter, place in at]) for i, s in enumerate(strides)]
                mask = None if lanes == 1 else code.mask(code.sub(last, start), lanes)
                along = [s.get(kept[-1][0], 0) if kept else 0 for s in strides]
                total = code.variable(code.zero(element, lanes))
                _sum(code, summed, strides, sides, along, lanes, mask, total)
                out = Side(code.buffer(len(site.inputs)), element, View(()))
                out = advance(code, out, [(place, step) for (_, place), step in zip(at, steps, strict=True)])
                code.store(total.get(), out.pointer, mask)
        return Kernel(name, code.module(), (name,))


def _sum(code: Code, summed: Sequence[tuple[str, Dim]], strides: Sequence[dict[str, Dim]], sides: Sequence[Side],
         along: Sequence[Dim], lanes: int, mask: Value | None, total: Variable) -> None:
    """Add the products of the operands over all the summed letters."""
    if summed:
        letter, dim = summed[0]
        with code.loop(0, code.dim(dim)) as i:
            moved = [advance(code, side, [(i, s.get(letter, 0))]) for side, s in zip(sides, strides, strict=True)]
            _sum(code, summed[1:], strides, moved, along, lanes, mask, total)
        return
    values = [load_lanes(code, side, stride, lanes, mask) for side, stride in zip(sides, along, strict=True)]
    product = values[0]
    for value in values[1:]:
        product = code.fmul(product, value) if value.is_float else code.binary("mul", product, value)
    held = total.get()
    total.set(code.fadd(held, product) if held.is_float else code.binary("add", held, product))
