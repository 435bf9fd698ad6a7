"""Pointwise regions: any steps, any rank, any broadcasting, in one pass over memory."""
from __future__ import annotations

from collections.abc import Iterator, Mapping

import numpy as np

from ingot.graph import Dim, TensorType
from ingot.kernels.codegen import Code, Value, element_of, isa_of
from ingot.kernels.codegen.expression import SUPPORTED
from ingot.kernels.codegen.small import SMALL
from ingot.kernels.codegen.steps import declines_steps, run_steps
from ingot.kernels.tactic import Kernel, Operand, Params, Site, Tactic
from ingot.kernels.x86.nest import Nest, Side, View
from ingot.target import Target

_CHEAP = frozenset(("Add", "Sub", "Mul", "Div", "Max", "Min", "Clip", "Relu", "LeakyRelu", "PRelu", "Abs", "Neg",
                    "Sqrt",
                    "HardSigmoid", "HardSwish", "Identity", "Where", "Cast", "Equal", "Less", "Greater", "And", "Or",
                    "Not", "Floor", "Ceil", "Round", "Reciprocal", "Sum", "BatchNormalization", "QuantizeLinear",
                    "DequantizeLinear", "Quantize", "Dequantize"))


def along_axis(site: Site) -> dict[int, int]:
    """Operands that hold one value per place of one axis, whatever their own rank, with that axis."""
    found: dict[int, int] = {}
    for s in site.steps:
        if s.op == "BatchNormalization":
            found.update((i, 1) for i in s.inputs[1:] if i is not None and i >= 0)
        elif s.op in ("QuantizeLinear", "DequantizeLinear"):
            axis = int(str(dict(s.attrs).get("axis", 1)))
            named = [i for i in s.inputs[1:] if i is not None and i >= 0 and site.inputs[i].type.rank == 1]
            found.update((i, axis % site.output.rank) for i in named if site.output.rank)
    return found


def aligned(operand: Operand, out: TensorType, axis: int | None = None) -> tuple[Dim, ...]:
    """The operand's logical shape with the rank of the result."""
    shape = operand.type.shape
    if axis is not None and operand.type.rank == 1:
        return (*(1,) * axis, *shape, *(1,) * (out.rank - axis - 1))
    return (*(1,) * (out.rank - len(shape)), *shape)


def padded_channels(operand: Operand, out: TensorType, axis: int | None = None) -> bool:
    """Whether a plain constant must be packed: its channels fill up with zeros to whole blocks."""
    if not out.layout or operand.type.layout or not operand.constant:
        return False
    shape, c = aligned(operand, out, axis), out.shape[1]
    return shape[1] == c and c != 1 and not (isinstance(c, int) and c % out.block == 0)


def broadcast_view(operand: Operand, out: TensorType, axis: int | None = None) -> View | str:
    """The operand over the physical dimensions of the result; or why it cannot be walked along with it.

    With `axis`, a vector lies along that axis of the result, not along the last one.
    """
    t = operand.type
    if t.layout and t.layout != out.layout:
        return f"an operand lies in {t.layout}, the result in {out.layout or 'plain order'}"
    if t.layout:
        return _over(t.physical, out.physical, operand.steps)
    shape = aligned(operand, out, axis)
    if len(shape) != out.rank:
        return f"{t} has more dimensions than the result"
    steps: tuple[Dim, ...] = operand.steps
    full = tuple(0 if k != axis else steps[0] for k in range(out.rank)) if axis is not None and t.rank == 1 else \
        (*(0,) * (out.rank - len(steps)), *steps)
    if not out.layout:
        return _over(shape, out.shape, full)
    view = _over(shape, out.shape, full)
    if isinstance(view, str):
        return view
    n, c, *spatial = view.strides
    if c != 0 and out.shape[1] != 1:
        if padded_channels(operand, out, axis):
            rest = _dense((shape[0], -(-out.shape[1] // out.block) * out.block, *shape[2:]))
            n, c, *spatial = (0 if d == 1 else s for d, s in zip(shape, rest, strict=True))
        elif not (isinstance(out.shape[1], int) and out.shape[1] % out.block == 0):
            return f"a plain operand beside {out.shape[1]} channels in blocks of {out.block}"
    return View((n, c * out.block, *spatial, c))


def _dense(shape: tuple[Dim, ...]) -> tuple[Dim, ...]:
    step: Dim = 1
    found: list[Dim] = []
    for dim in reversed(shape):
        found.insert(0, step)
        step = step * dim
    return tuple(found)


def _over(shape: tuple[Dim, ...], out: tuple[Dim, ...], steps: tuple[Dim, ...]) -> View | str:
    strides: list[Dim] = []
    for have, want, step in zip(shape, out, steps, strict=True):
        if have != want and have != 1:
            return f"{have} against {want}: whether it broadcasts is known only at run time"
        strides.append(0 if have == 1 else step)
    return View(tuple(strides))


def declines_operands(site: Site) -> str | None:
    """Why an operand of a pointwise site cannot be walked along with the result, or None."""
    named = along_axis(site)
    for i, operand in enumerate(site.inputs):
        if operand.type.dtype.name not in SUPPORTED | SMALL:
            return f"no expressions on {operand.type.dtype}"
        view = broadcast_view(operand, site.output, named.get(i))
        if isinstance(view, str):
            return view
    return None


def packed_constants(site: Site, constants: Mapping[int, np.ndarray]) -> Mapping[int, np.ndarray]:
    """The constants whose channels must fill whole blocks."""
    found: dict[int, np.ndarray] = {}
    named = along_axis(site)
    for i, operand in enumerate(site.inputs):
        if i in constants and padded_channels(operand, site.output, named.get(i)):
            array = constants[i].reshape([int(str(d)) for d in aligned(operand, site.output, named.get(i))])
            more = -array.shape[1] % site.output.block
            found[i] = np.ascontiguousarray(np.pad(array, [(0, more if a == 1 else 0) for a in range(array.ndim)]))
    return found


class Pointwise(Tactic):
    """One loop nest over the result; every step in registers."""

    name = "x86.pointwise"

    def declines(self, site: Site, target: Target) -> str | None:
        if len(site.outputs) != 1:
            return "more than one result"
        if why := declines_steps(site, site.steps):
            return why
        if any(s.types[0].shape != site.output.shape for s in site.steps):
            return "a step has another shape than the result"
        return declines_operands(site)

    def space(self, site: Site, target: Target) -> Iterator[Params]:
        heavy = sum(s.op not in _CHEAP for s in site.steps)
        yield {"unroll": 4 if not heavy and len(site.steps) < 6 else 2 if heavy < 3 else 1}

    def pack(self, site: Site, params: Params, target: Target,
             constants: Mapping[int, np.ndarray]) -> Mapping[int, np.ndarray]:
        return packed_constants(site, constants)

    def emit(self, site: Site, params: Params, target: Target) -> Kernel:
        code = Code(isa_of(target), site.symbols)
        name = f"pointwise_{site.key}"
        named = along_axis(site)
        with code.function(name):
            ins = {}
            for i, operand in enumerate(site.inputs):
                view = broadcast_view(operand, site.output, named.get(i))
                if isinstance(view, View):
                    ins[i] = Side(code.buffer(i), element_of(operand.type.dtype), view)
            out = Side(code.buffer(len(site.inputs)), element_of(site.output.dtype), View(site.outputs[0].steps))

            def compute(load: object) -> Value:
                return run_steps(code, site, 0, {}, load)   # type: ignore[arg-type]
            Nest(code, site.output.physical, out, ins, params["unroll"])(compute)
        return Kernel(name, code.module(), (name,))
