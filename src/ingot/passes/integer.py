"""Turn quantised graphs into integer regions, and keep their meaning.

QuantizeLinear and DequantizeLinear become Quantize and Dequantize, which broadcast by numpy's rules and are pointwise,
so that a kernel does them in registers. A product or convolution of two dequantised operands, the right one constant,
is summed in integers, which is exact, and scaled once:

    MatMul(Dequantize(x, s, z), Dequantize(w, t))  ->  Mul(Cast(MatMulInteger(x, w, z)), s * t)

The same for Conv (its bias is added after) and Gemm. The f32 result differs from that of the original by rounding only:
the original rounds each dequantised factor and the sum, this one the product of the scales and the last product.
A weight that is dequantised by groups along the depth, beside an input that stays f32, becomes MatMulGroups: its
kernel reads the integers. Integers come as u8 here: a signed activation moves up by 128 with its zero point, a weight
becomes i8 where it fits.
"""
from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import replace
from types import MappingProxyType

import numpy as np

from ingot.graph import F32, I8, U8, Graph, Node, dtype_from_numpy
from ingot.passes.graph_pass import graph_pass
from ingot.passes.resolve_shapes import resolve_shapes
from ingot.passes.rewrite import Const, Match, P, Rule
from ingot.target import Target

_NAMES = {U8: "u8", I8: "i8"}


# --- QuantizeLinear and DequantizeLinear, by numpy's rules ------------------------------------------------------------

def _parameters(match: Match) -> tuple[np.ndarray, np.ndarray | None] | str:
    """Scale and zero point, shaped so that they broadcast to x; or why they cannot be."""
    scale, zero = match.const("s"), match.const("z") if match["z"] else None
    x, axis = match.type("x"), int(str(match.attr(match.root, "axis")))
    if scale is None or (match["z"] and zero is None):
        return "the scale or the zero point is not a constant"
    if match.attr(match.root, "block_size"):
        return "it is quantised by blocks"
    if scale.dtype != np.float32:
        return f"the scale is {scale.dtype}"
    if scale.size == 1:
        return scale.reshape(()), None if zero is None else zero.reshape(())
    if scale.ndim != 1 or not -x.rank <= axis < x.rank:
        return f"the scale has shape {list(scale.shape)}"
    shape = tuple(scale.size if k == axis % x.rank else 1 for k in range(x.rank))
    return scale.reshape(shape), None if zero is None else zero.reshape(shape)


def _not_plain(match: Match) -> str | None:
    found = _parameters(match)
    if isinstance(found, str):
        return found
    quantize = match.root.op == "QuantizeLinear"
    integer = match.out.dtype if quantize else match.type("x").dtype
    real = match.type("x").dtype if quantize else match.out.dtype
    if integer not in _NAMES or real != F32:
        return f"from {match.type('x').dtype} to {match.out.dtype}"
    if quantize and (match.attr(match.root, "precision") or not match.attr(match.root, "saturate")):
        return "it asks for another precision, or for no saturation"
    return None


def _by_numpy(match: Match) -> str:
    found = _parameters(match)
    if isinstance(found, str):
        raise ValueError(found)
    quantize = match.root.op == "QuantizeLinear"
    scale = match.constant(found[0], f"{match['s']}.scale")
    zero = "" if found[1] is None or not found[1].any() else match.constant(found[1], f"{match['s']}.zero")
    if quantize:
        return match.add("Quantize", match["x"], scale, zero, output_dtype=match.out.dtype.name)
    return match.add("Dequantize", match["x"], scale, zero)


def _not_for_weights(match: Match) -> str | None:
    return None if match.array("x").ndim else "it is a number"


def _quantized_now(match: Match) -> str:
    """The constant's integers."""
    scale, zero = match.array("s"), match.array("z") if match["z"] else np.zeros((), np.int32)
    x = match.array("x")
    low, high = (0, 255) if match.out.dtype == U8 else (-128, 127)
    scaled = x * scale if match.attr(match.root, "multiply") else x / scale
    found = np.clip(np.rint(scaled) + zero.astype(np.float32), low, high)
    return match.constant(found.astype(match.out.dtype.numpy), f"{match['x']}.integers")


def _same_again(match: Match) -> str | None:
    """Why integers that are dequantised and quantised come out otherwise."""
    if match.attr("Dequantize", "output_dtype") != "f32" or match.type("x").dtype != match.out.dtype:
        return "into another type"
    scale, again = match.const("s"), match.const("t")
    zero, other = (match.const(n) if match[n] else np.zeros(()) for n in ("z", "y"))
    if scale is None or again is None or zero is None or other is None:
        return "its parameters are not constant"
    if match.attr(match.root, "multiply"):
        same = scale.size == again.size == 1 and abs(float(scale.reshape(())) * float(again.reshape(())) - 1) < 1e-6
    else:
        same = scale.shape == again.shape and bool((scale == again).all())
    if not same:
        return "with another scale"
    return None if np.array_equal(np.broadcast_to(zero, scale.shape), np.broadcast_to(other, scale.shape)) \
        else "with another zero point"


# --- weights ----------------------------------------------------------------------------------------------------------

def _turned(match: Match) -> str:
    """Dequantize(w) transposed is the transposed w dequantised."""
    perm = match.attr(match.root, "perm") or tuple(range(match.array("w").ndim))[::-1]
    order = tuple(int(p) for p in perm)  # type: ignore[attr-defined]
    rank = match.array("w").ndim

    def turn(array: np.ndarray) -> np.ndarray:
        full = array.reshape((1,) * (rank - array.ndim) + array.shape) if array.ndim else array
        return np.ascontiguousarray(full.transpose(order)) if array.ndim else array

    weight = match.constant(turn(match.array("w")), f"{match['w']}.turned")
    scale = match.constant(turn(match.array("t")), f"{match['t']}.turned")
    zero = match.constant(turn(match.array("y")), f"{match['y']}.turned") if match["y"] else ""
    return match.add("Dequantize", weight, scale, zero)


def _constant_zero(match: Match) -> str | None:
    return "the zero point is not constant" if match["y"] and match.const("y") is None else None


def _signed(weight: np.ndarray, zero: np.ndarray | None) -> np.ndarray | None:
    """A weight less its zero point as i8, None where it does not fit."""
    if weight.dtype == np.int8 and (zero is None or not zero.any()):
        return weight
    moved = weight.astype(np.int16) - (0 if zero is None else zero.astype(np.int16))
    return moved.astype(np.int8) if moved.min(initial=0) >= -128 and moved.max(initial=0) <= 127 else None


def _unfit(match: Match, axis: int) -> str | None:
    """Why the operands of a product or convolution are none to be summed in integers. `axis`: the weight's columns."""
    weight, scale, zero = match.array("w"), match.array("t"), match.const("y") if match["y"] else None
    x, left = match.type("x"), match.const("s")
    if match["y"] and zero is None:
        return "the weight's zero point is not constant"
    if x.dtype not in _NAMES or weight.dtype not in (np.int8, np.uint8):
        return f"its operands are {x.dtype} and {dtype_from_numpy(weight.dtype)}"
    if (match.type("s").size != 1 and not _by_row(match)) or (match["z"] and match.type("z").size != 1):
        return "its input has a scale for each channel"
    if left is None and x.dtype != U8:
        return "a signed input with a scale that is not constant"
    if x.dtype == I8 and match["z"] and match.const("z") is None:
        return "a signed input with a zero point that is not constant"
    full = (1,) * (weight.ndim - scale.ndim) + scale.shape
    if any(d != 1 for k, d in enumerate(full) if k != axis % weight.ndim):
        return "its weight's scales lie along the depth"
    return None if _signed(weight, zero) is not None else "its weight, less the zero point, does not fit 8 bits"


def _by_row(match: Match) -> bool:
    """Whether the left operand of a product has a scale for each row."""
    x, scale = match.type("x"), match.type("s")
    return match.root.op == "MatMul" and scale.shape == (*x.shape[:-1], 1) and match.const("s") is None


def _operands(match: Match) -> tuple[str, str, np.ndarray]:
    """The input as u8, its zero point, and the weight as i8."""
    weight = _signed(match.array("w"), match.const("y") if match["y"] else None)
    if weight is None:
        raise ValueError("the weight was to be declined")
    x, zero = match["x"], match["z"]
    if match.type("x").dtype == I8:
        x, zero = _unsigned(match, x), _zero_up(match, zero)
    elif zero and match.const("z") is not None:
        zero = match.constant(match.array("z").reshape(()).astype(np.uint8), f"{zero}.zero")
    return x, zero, weight


def _unsigned(match: Match, x: str) -> str:
    wide = match.add("Cast", x, to="i32")
    moved = match.add("Add", wide, match.constant(np.asarray(128, np.int32)))
    return match.add("Cast", moved, to="u8")


def _zero_up(match: Match, zero: str) -> str:
    old = 0 if not zero else int(match.state.constants[zero].reshape(-1)[0])
    return match.constant(np.asarray(old + 128, np.uint8), f"{match['s']}.zero")


def scaled(match: Match, sums: str, shape: tuple[int, ...]) -> str:
    """The sums as f32, times the product of the scales."""
    real = sums if match.type(sums).dtype == F32 else match.add("Cast", sums, to="f32")
    right = match.array("t")
    right = right.reshape(()) if right.size == 1 else right.reshape(shape)
    left = match.const("s")
    if left is None and match.type("s").size != 1:      # a scale for each row
        return match.add("Mul", match.add("Mul", real, match["s"]), match.constant(right, f"{match['t']}.scale"))
    if left is None:
        scale = match.add("Mul", match["s"], match.constant(right, f"{match['t']}.scale"))
        return match.add("Mul", real, scale)
    product = np.asarray(left.reshape(()).astype(np.float32) * right, np.float32)
    return match.add("Mul", real, match.constant(product, f"{match['t']}.scale"))


# --- products and convolutions ----------------------------------------------------------------------------------------

LEFT = P("Dequantize", "x", "s", "z?", bind="left", shared=True)
RIGHT = P("Dequantize", Const("w"), Const("t"), "y?", bind="right", shared=True)


def _no_product(match: Match) -> str | None:
    if match.array("w").ndim != 2:
        return f"its weight has {match.array('w').ndim} dimensions"
    if match.root.op == "Gemm" and (match.attr(match.root, "transA") or match.attr(match.root, "alpha") != 1.0
                                    or match.attr(match.root, "beta") != 1.0):
        return "it has factors, or its left operand transposed"
    swapped = match.root.op == "Gemm" and match.attr(match.root, "transB")
    return _unfit(match, 0 if swapped else 1)


def _product(match: Match) -> str:
    x, zero, weight = _operands(match)
    if match.root.op == "Gemm" and match.attr(match.root, "transB"):
        weight = np.ascontiguousarray(weight.T)
    sums = match.add("MatMulInteger", x, match.constant(weight, f"{match['w']}.i8"), zero)
    real = scaled(match, sums, (weight.shape[1],))
    return match.add("Add", real, match["c"]) if match["c"] else real


def _no_convolution(match: Match) -> str | None:
    return _unfit(match, 0)


def _convolution(match: Match) -> str:
    x, zero, weight = _operands(match)
    attrs = {k: v for k, v in match.root.attrs.items() if k != "layout"}
    name = match.constant(weight, f"{match['w']}.i8")
    ones = (1,) * (weight.ndim - 2)
    return with_bias(match, scaled(match, match.add("ConvInteger", x, name, zero, **attrs),
                                   (1, weight.shape[0], *ones)))


def with_bias(match: Match, real: str) -> str:
    """A convolution's result plus its bias, where it has one."""
    if not match["b"]:
        return real
    bias, out = match.const("b"), match.type(real)
    shape = (1, match.array("w").shape[0], *(1,) * (out.rank - 2))
    if bias is not None:
        return match.add("Add", real, match.constant(bias.reshape(shape), f"{match['b']}.row"))
    return match.add("Add", real, match.add("Reshape", match["b"], shape=shape))


# --- weights in groups ------------------------------------------------------------------------------------------------

_GROUPED = P("DequantizeLinear", Const("w"), Const("t"), "y?", bind="right", shared=True)


def _no_groups(match: Match) -> str | None:
    weight, scale, group = match.array("w"), match.array("t"), int(str(match.attr("right", "block_size") or 0))
    if weight.ndim != 2 or group < 8 or group % 8:
        return "its weight is no matrix in groups of eight rows or a multiple"
    along = int(str(match.attr("right", "axis"))) % 2
    if match.has("Transpose") != (along == 1):
        return "its groups do not lie along the depth"
    if weight.shape[along] % group or scale.shape[along] * group != weight.shape[along]:
        return "its last group is shorter"
    if weight.dtype.name not in ("int4", "uint4", "int8", "uint8") or scale.dtype != np.float32:
        return f"its weight is {weight.dtype}, its scales are {scale.dtype}"
    return "its zero points are not constant" if match["y"] and match.const("y") is None else None


def _grouped(match: Match) -> str:
    turned = match.has("Transpose")

    def upright(array: np.ndarray) -> np.ndarray:
        return np.ascontiguousarray(array.T) if turned else array

    names = [match.constant(upright(match.array(k)), f"{match[k]}.groups") for k in ("w", "t")]
    zero = match.constant(upright(match.array("y")), f"{match['y']}.groups") if match["y"] else ""
    return match.add("MatMulGroups", match["x"], *names, zero, block_size=int(str(match.attr("right", "block_size"))))


def _not_signed(match: Match) -> str | None:
    if match.type(match.node("Quantize").output).dtype != I8:
        return "it is unsigned already"
    unknown = any(match[n] and match.const(n) is None for n in ("z", "y"))
    return "its zero points are not constant" if unknown else None


def _moved_up(match: Match) -> str:
    """The same reals by way of u8: both zero points move up by 128."""
    def zero(name: str) -> str:
        old = match.array(name) if match[name] else np.zeros((), np.int8)
        return match.constant((old.astype(np.int16) + 128).astype(np.uint8), f"{match[name] or match['s']}.up")

    attrs = {**match.node("Quantize").attrs, "output_dtype": "u8"}
    made = match.add("Quantize", match["x"], match["t"], zero("y"), **attrs)
    return match.add("Dequantize", made, match["s"], zero("z"))


QUANTIZED_AGAIN = Rule("quantized-again", P("Quantize", P("Dequantize", "x", "s", "z?", shared=True), "t", "y?"),
                       make=lambda m: m["x"], decline=_same_again)
RULES = (
    Rule("quantize-by-numpy", (P("QuantizeLinear", "x", "s", "z?"), P("DequantizeLinear", "x", "s", "z?")),
         make=_by_numpy, decline=_not_plain),
    Rule("quantized-constant", P("Quantize", Const("x"), Const("s"), "z?"), make=_quantized_now,
         decline=_not_for_weights),
    Rule("turned-weight", P("Transpose", P("Dequantize", Const("w"), Const("t"), "y?", shared=True)), make=_turned,
         decline=_constant_zero),
    QUANTIZED_AGAIN,
    Rule("signed-activation", P("Dequantize", P("Quantize", "x", "t", "y?", shared=True), "s", "z?"), make=_moved_up,
         decline=_not_signed),
    Rule("integer-product", (P("MatMul", LEFT, RIGHT), P("Gemm", LEFT, RIGHT, "c?")), make=_product,
         decline=_no_product),
    Rule("grouped-weight", (P("MatMul", "x", _GROUPED), P("MatMul", "x", P("Transpose", _GROUPED, shared=True))),
         make=_grouped, decline=_no_groups),
    Rule("integer-convolution", P("Conv", LEFT, RIGHT, "b?"), make=_convolution, decline=_no_convolution),
)

POINTWISE = RULES[:2]       # elsewhere weights become f32 again


def why_not(graph: Graph, node: Node) -> str | None:
    """None if the node is a Dequantize that moves to its readers, else why it stays where it is."""
    if node.op != "Dequantize":
        return f"it is {node.op}, not a Dequantize"
    return "its result is an output of the model" if node.output in graph.outputs else None


@graph_pass(after=(resolve_shapes,), why_not=why_not)
def sink_dequantized(graph: Graph, target: Target) -> Graph:
    """Give every reader of dequantised integers a Dequantize of its own, right before it, to be done in registers."""
    return sunk(graph, {n.output: n for n in graph.nodes if n.op == "Dequantize" and n.output not in graph.outputs})


def sunk(graph: Graph, held: Mapping[str, Node]) -> Graph:
    """The graph with a copy of each of the given nodes (by output) right before each reader of it."""
    if not held:
        return graph
    types, nodes = dict(graph.types), []
    taken: Counter[str] = Counter()
    for node in graph.nodes:
        if node.output in held:
            continue
        names = {}
        for value in dict.fromkeys(i for i in node.inputs if i in held):
            name = f"{value}.{taken[value]}" if taken[value] else value
            while taken[value] and name in types:
                name += "+"
            taken[value] += 1
            names[value], types[name] = name, types[value]
            nodes.append(replace(held[value], outputs=(name,)))
        nodes.append(replace(node, inputs=tuple(names.get(i, i) for i in node.inputs)) if names else node)
    return replace(graph, nodes=tuple(nodes), types=MappingProxyType(types))


__all__ = ["LEFT", "POINTWISE", "QUANTIZED_AGAIN", "RIGHT", "RULES", "scaled", "sink_dequantized", "sunk",
           "with_bias"]
