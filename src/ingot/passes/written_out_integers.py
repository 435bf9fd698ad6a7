"""Write integer products, narrow integers and indexing out in ops that have kernels: rules of the pass `write_out`.

Integer products are summed by the kernels of integers where their operands can be brought into the form these take,
else in 32 bits, or as f64, which holds every sum of 8-bit products below 2^53 exactly; what is scaled afterwards is
scaled in f64, as the reference does.
"""
from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace

import numpy as np

from ingot.graph import BOOL, F32, F64, I8, U8, DType
from ingot.passes.rewrite import Match, P, Rule

_WORDS = ("bool", "i8", "u8", "i16", "u16")


def operand(match: Match, index: int) -> str:
    """An input of the root; "" where it is absent."""
    return match.root.inputs[index] if index < len(match.root.inputs) else ""


def _size(match: Match, value: str) -> object:
    return match.type(value).size if value else 1


def _less(match: Match, value: str, zero: str, dtype: DType, axis: int | None = None) -> str:
    """The integers less their zero point, in another type; a zero point per place of an axis lies along it."""
    wide = match.add("Cast", value, to=dtype.name)
    if not zero:
        return wide
    point = match.add("Cast", zero, to=dtype.name)
    rank = match.type(value).rank
    if axis is not None and match.type(zero).rank == 1 and match.type(zero).shape[0] != 1:
        point = match.add("Reshape", point, shape=tuple(
            match.type(zero).shape[0] if k == axis % rank else 1 for k in range(rank)))
    elif match.type(zero).rank:
        point = match.add("Reshape", point, shape=()) if _size(match, zero) == 1 else point
    return match.add("Sub", wide, point)


# --- operands that kernels of integers take ---------------------------------------------------------------------------

def _kernels_form(match: Match, x: str, x_zero: str, w: str, w_zero: str) -> tuple[str, str, str] | None:
    """Input, its zero point and weight as the kernels sum them (u8, u8 and i8 without one), which keeps every sum; None
    where that cannot be: signed inputs move up by 128 with their zero point, weights lose theirs where 8 bits hold it.
    """
    weight, zero = match.const(w), match.const(w_zero) if w_zero else None
    if weight is None or (w_zero and zero is None) or match.type(x).dtype not in (U8, I8):
        return None
    point = match.const(x_zero) if x_zero else np.zeros((), np.int8)
    signed = match.type(x).dtype == I8
    if (x_zero and _size(match, x_zero) != 1) or (signed and point is None):
        return None
    wide = weight.astype(np.int16)
    if zero is not None and zero.any():
        if zero.size != 1:      # a convolution's, per output channel; a product's lie along its columns
            shape = (-1, *(1,) * (wide.ndim - 1)) if match.root.op in ("QLinearConv", "ConvInteger") else (1, -1)
            zero = zero.reshape(shape)
        wide = wide - zero.astype(np.int16).reshape(zero.shape if zero.size != 1 else ())
    if wide.min(initial=0) < -128 or wide.max(initial=0) > 127:
        return None
    if weight.dtype != np.int8 or (zero is not None and zero.any()):
        w = match.constant(wide.astype(np.int8), f"{w}.i8")
    if signed and point is not None:
        moved = match.add("Add", match.add("Cast", x, to="i32"), match.constant(np.asarray(128, np.int32)))
        x = match.add("Cast", moved, to="u8")
        x_zero = match.constant((point.astype(np.int16).reshape(()) + 128).astype(np.uint8), f"{x}.zero")
    elif x_zero and match.type(x_zero).rank and point is not None:
        x_zero = match.constant(point.reshape(()), f"{x_zero}.one")
    return x, x_zero, w


# --- products ---------------------------------------------------------------------------------------------------------

def signed(match: Match) -> str | None:
    """That a product or convolution of i8 by constant i8 has a kernel on a GPU; None for any other."""
    x, weight = match.type(operand(match, 0)), operand(match, 1)
    ours = x.dtype == I8 and match.type(weight).dtype == I8 and match.const(weight) is not None
    return "a kernel of its own serves it" if ours and not any(operand(match, i) for i in (2, 3)) else None


def _several_rows(match: Match, zero: str) -> str | None:
    return "a zero point per row" if zero and _size(match, zero) != 1 else None


def _own_kernel(match: Match, weight: str, x: str, zero: str) -> bool:
    return match.type(x).dtype == U8 and match.type(weight).dtype == I8 and match.const(weight) is not None and not zero


def _served_product(match: Match) -> str | None:
    a, b, a_zero, b_zero = (operand(match, i) for i in range(4))
    if _own_kernel(match, b, a, b_zero) and match.type(b).rank == 2:
        return "a kernel of its own serves it"
    return _several_rows(match, a_zero)


def _integer_product(match: Match, *, unsigned: bool = True) -> str:
    a, b, a_zero, b_zero = (operand(match, i) for i in range(4))
    i32 = match.out.dtype
    if unsigned and match.type(b).rank == 2 and (found := _kernels_form(match, a, a_zero, b, b_zero)):
        return match.add("MatMulInteger", found[0], found[2], found[1])
    return match.add("MatMul", _less(match, a, a_zero, i32), _less(match, b, b_zero, i32))


def _scaled(match: Match, total: str, scales: tuple[str, str, str], zero: str) -> str:
    """round(total * (a_scale * b_scale / y_scale)) + zero, saturated."""
    factor = match.add("Div", match.add("Mul", scales[0], scales[1]), scales[2])
    wide = match.add("Cast", factor, to="f64")
    if match.type(wide).rank and match.type(wide).size == 1:
        wide = match.add("Reshape", wide, shape=())
    real = match.add("Mul", match.add("Cast", total, to="f64"), wide)
    if zero:
        point = match.add("Cast", zero, to="f64")
        real = match.add("Add", real, match.add("Reshape", point, shape=()) if match.type(zero).rank else point)
    low, high = (0.0, 255.0) if match.out.dtype == U8 else (-128.0, 127.0)
    bounds = [match.constant(np.asarray(v, np.float64)) for v in (low, high)]
    return match.add("Cast", match.add("Clip", match.add("Round", real), *bounds), to=match.out.dtype.name)


def _not_one_scale(match: Match) -> str | None:
    if match.out.dtype not in (U8, I8):
        return f"it makes {match.out.dtype}"
    singles = [operand(match, i) for i in (1, 2, 4, 5, 6, 7)]
    return None if all(_size(match, v) == 1 for v in singles) else "a scale or zero point per row or column"


def _quantised_product(match: Match, *, unsigned: bool = True) -> str:
    a, sa, za, b, sb, zb, sy, zy = (operand(match, i) for i in range(8))
    found = _kernels_form(match, a, za, b, zb) if unsigned else None
    total = match.add("MatMulInteger", found[0], found[2], found[1]) if found else \
        match.add("MatMulInteger", a, b, za, zb)
    return _scaled(match, total, (sa, sb, sy), zy)


def _not_one_zero(match: Match) -> str | None:
    x, w, x_zero, w_zero = (operand(match, i) for i in range(4))
    if _own_kernel(match, w, x, w_zero):
        return "a kernel of its own serves it"
    return _several_rows(match, x_zero)


def _integer_convolution(match: Match, *, unsigned: bool = True) -> str:
    x, w, x_zero, w_zero = (operand(match, i) for i in range(4))
    if unsigned and (found := _kernels_form(match, x, x_zero, w, w_zero)):
        return match.add("ConvInteger", found[0], found[2], found[1], **dict(match.root.attrs))
    made = match.add("Conv", _less(match, x, x_zero, F64), _less(match, w, w_zero, F64, 0), **dict(match.root.attrs))
    return match.add("Cast", made, to=match.out.dtype.name)


def _not_plain_convolution(match: Match) -> str | None:
    if match.out.dtype not in (U8, I8):
        return f"it makes {match.out.dtype}"
    singles = [operand(match, i) for i in (1, 2, 6, 7)]
    return None if all(_size(match, v) == 1 for v in singles) else "several scales of the input or the result"


def _quantised_convolution(match: Match, *, unsigned: bool = True) -> str:
    x, sx, zx, w, sw, zw, sy, zy, bias = (operand(match, i) for i in range(9))
    if unsigned and (found := _kernels_form(match, x, zx, w, zw)):
        total = match.add("ConvInteger", found[0], found[2], found[1], **dict(match.root.attrs))
        if bias:
            ones = (1,) * (match.type(x).rank - 2)
            total = match.add("Add", total, match.add("Reshape", bias, shape=(match.type(bias).shape[0], *ones)))
    else:
        total = match.add("Conv", _less(match, x, zx, F64), _less(match, w, zw, F64, 0),
                          match.add("Cast", bias, to="f64") if bias else "", **dict(match.root.attrs))
    if _size(match, sw) != 1:
        rank = match.type(x).rank
        sw = match.add("Reshape", sw, shape=(match.type(sw).shape[0], *(1,) * (rank - 2)))
    return _scaled(match, total, (sx, sw, sy), zy)


# --- narrow integers --------------------------------------------------------------------------------------------------

def _not_narrow(match: Match) -> str | None:
    dtype = match.type(operand(match, 0)).dtype
    return None if dtype.name in _WORDS else f"it takes {dtype}"


def _in_words(match: Match) -> str | tuple[str, ...]:
    """The op on i32, its first result back in the operand's type."""
    x = operand(match, 0)
    wide = match.add("Cast", x, to="i32")
    stems = tuple(f"{match.root.outputs[0]}.wide{k}" for k in range(len(match.root.outputs)))
    made = match.add_many(match.root.op, (wide, *match.root.inputs[1:]), dict(match.root.attrs), stems)
    if match.root.op in ("ArgMax", "ArgMin"):
        return made
    dtype = match.type(x).dtype
    if dtype == BOOL:       # of no elements, too: what the greatest and least of i32 are then stands for False and True
        return (match.add("Greater", made[0], match.constant(np.asarray(0, np.int32))), *made[1:])
    limits = np.iinfo(dtype.numpy)
    bounds = [match.constant(np.asarray(v, np.int32)) for v in (limits.min, limits.max)]
    return (match.add("Cast", match.add("Clip", made[0], *bounds), to=dtype.name), *made[1:])


def _pooled_integers(match: Match) -> str | None:
    if len(match.root.outputs) > 1 and match.state.uses[match.root.outputs[1]]:
        return "its positions are read"
    dtype = match.type(operand(match, 0)).dtype
    return None if dtype.name in ("i8", "u8") else f"it takes {dtype}"


def _pooled_as_floats(match: Match) -> str:
    made = match.add("MaxPool", match.add("Cast", operand(match, 0), to="f32"), **dict(match.root.attrs))
    return match.add("Cast", made, to=match.out.dtype.name)


# --- indexing ---------------------------------------------------------------------------------------------------------

def _not_whole(match: Match) -> str | None:
    return None if match.type(operand(match, 0)).dtype == F32 else "its positions are integers"


def _whole_positions(match: Match) -> str:
    """OneHot at f32 positions: those that are no whole numbers hit nothing."""
    x = operand(match, 0)
    outside = match.constant(np.asarray(1e9, np.float32))
    whole = match.add("Where", match.add("Equal", match.add("Floor", x), x), x, outside)
    return match.add("OneHot", match.add("Cast", whole, to="i64"), operand(match, 1), **dict(match.root.attrs))


def _symbolic_time(match: Match) -> str | None:
    x = match.type(operand(match, 0))
    time = int(str(match.attr(match.root, "time_axis")))
    return None if isinstance(x.shape[time], int) else "the number of steps is known only at run time"


def _reversed(match: Match) -> str:
    """ReverseSequence: every step of every sequence picked from its place."""
    x, lengths = operand(match, 0), operand(match, 1)
    rank, first = match.type(x).rank, int(str(match.attr(match.root, "batch_axis"))) == 0
    swap = (1, 0, *range(2, rank))
    if not first:
        x = match.add("Transpose", x, perm=swap)
    steps = int(str(match.type(x).shape[1]))
    place = match.constant(np.arange(steps).reshape(1, -1))
    wide = lengths if match.type(lengths).dtype.name == "i64" else match.add("Cast", lengths, to="i64")
    ends = match.add("Unsqueeze", wide, axes=(1,))
    mirrored = match.add("Sub", match.add("Sub", ends, match.constant(np.asarray(1))), place)
    at = match.add("Where", match.add("Less", place, ends), mirrored, place)
    made = match.add("GatherND", x, match.add("Unsqueeze", at, axes=(2,)), batch_dims=1)
    return made if first else match.add("Transpose", made, perm=swap)


def _not_static_update(match: Match) -> str | None:
    cache, update = match.type(operand(match, 0)), match.type(operand(match, 1))
    return None if cache.static and update.static else "a size is known only at run time"


def _written(match: Match) -> str:
    """TensorScatter: each step of the update put at its place along the axis."""
    cache, update, start = (operand(match, i) for i in range(3))
    shape, rank = match.type(update).shape, match.type(cache).rank
    axis = int(str(match.attr(match.root, "axis"))) % rank
    steps = np.arange(int(str(shape[axis]))).reshape(tuple(-1 if k == axis else 1 for k in range(rank)))
    at = match.constant(steps)
    if start:
        wide = start if match.type(start).dtype.name == "i64" else match.add("Cast", start, to="i64")
        at = match.add("Add", match.add("Reshape", wide, shape=(shape[0], *(1,) * (rank - 1))), at)
    if match.attr(match.root, "mode") == "circular":
        at = match.add("Mod", at, match.constant(np.asarray(int(str(match.type(cache).shape[axis])))))
    return match.add("ScatterElements", cache, match.add("Expand", at, shape=shape), update, axis=axis)


def _not_static_pool(match: Match) -> str | None:
    types = [match.type(operand(match, 0)), match.out]
    if operand(match, 2):
        return "its result has a shape of its own"
    return None if all(t.static for t in types) else "a size is known only at run time"


def _unpooled(match: Match) -> str:
    """MaxUnpool: the values put at their places among zeros."""
    x, at = operand(match, 0), operand(match, 1)
    count = int(str(match.out.size))
    zeros = match.add("ConstantOfShape", shape=(count,), value=0.0, dtype=match.type(x).dtype.name)
    flat = [match.add("Reshape", v, shape=(int(str(match.type(v).size)),)) for v in (at, x)]
    return match.add("Reshape", match.add("ScatterElements", zeros, *flat, axis=0), shape=match.out.shape)


# --- the rest ---------------------------------------------------------------------------------------------------------

def _low_norm(match: Match) -> str | None:
    return "a kernel of its own serves it" if int(str(match.attr(match.root, "p"))) in (1, 2) else None


def _norm_by_powers(match: Match) -> str:
    """A p-norm as the sum of powers, and its root."""
    x, p = operand(match, 0), int(str(match.attr(match.root, "p")))
    dtype = match.type(x).dtype.numpy
    powers = match.add("Pow", match.add("Abs", x), match.constant(np.asarray(p, dtype)))
    total = match.add(match.root.op, powers, **{**match.root.attrs, "p": 1})
    return match.add("Pow", total, match.constant(np.asarray(1 / p, dtype)))


def _rotates_nothing(match: Match) -> str | None:
    x = match.type(operand(match, 0))
    count = match.attr(match.root, "num_heads")
    if x.rank == 3 and not (count and isinstance(x.shape[2], int)):
        return "the number of heads is not known"
    return None if isinstance(x.shape[-1], int) else "the width is not known"


def _rotated(match: Match) -> str:
    """RotaryEmbedding: pairs of features as real and imaginary parts."""
    x, cosine, sine, places = (operand(match, i) for i in range(4))
    shape, rank = match.type(x).shape, match.type(x).rank
    value = x
    if rank == 3:
        heads = int(str(match.attr(match.root, "num_heads")))
        value = match.add("Reshape", x, shape=(shape[0], shape[1], heads, int(str(shape[2])) // heads))
    width = int(str(match.type(value).shape[-1]))
    turned = int(str(match.attr(match.root, "rotary_embedding_dim") or 0)) or width
    parts = []
    for cache in (cosine, sine):
        found = match.add("Gather", cache, places, axis=0) if places else cache
        parts.append(match.add("Unsqueeze", found, axes=(1 if rank == 4 else 2,)))

    def cut(start: int, end: int, step: int = 1) -> str:
        return match.add("Slice", value, starts=(start,), ends=(end,), axes=(3,), steps=(step,))
    interleaved = bool(match.attr(match.root, "interleaved"))
    a, b = (cut(0, turned, 2), cut(1, turned, 2)) if interleaved else (cut(0, turned // 2), cut(turned // 2, turned))
    real = match.add("Sub", match.add("Mul", parts[0], a), match.add("Mul", parts[1], b))
    imaginary = match.add("Add", match.add("Mul", parts[1], a), match.add("Mul", parts[0], b))
    if interleaved:
        pairs = match.add("Concat", *(match.add("Unsqueeze", v, axes=(4,)) for v in (real, imaginary)), axis=4)
        pieces = [match.add("Reshape", pairs, shape=(*match.type(real).shape[:3], turned))]
    else:
        pieces = [real, imaginary]
    if turned < width:
        pieces.append(cut(turned, width))
    made = match.add("Concat", *pieces, axis=3) if len(pieces) > 1 else pieces[0]
    return match.add("Reshape", made, shape=shape) if rank == 3 else made


_SIGNED: Mapping[str, Callable[[Match], str]] = {
    "linear-product": lambda m: _quantised_product(m, unsigned=False),
    "any-integer-product": lambda m: _integer_product(m, unsigned=False),
    "linear-convolution": lambda m: _quantised_convolution(m, unsigned=False),
    "any-integer-convolution": lambda m: _integer_convolution(m, unsigned=False)}


def for_gpu(rule: Rule) -> Rule:
    """A rule of this file for a GPU: its kernels sum i8 without zero points; what has such, or u8, goes by floats."""
    if rule.name not in _SIGNED:
        return rule

    def decline(match: Match) -> str | None:
        served = signed(match) if match.root.op in ("MatMulInteger", "ConvInteger") else None
        return served or rule.decline(match)

    return replace(rule, make=_SIGNED[rule.name], decline=decline)


RULES = (
    Rule("linear-product", P("QLinearMatMul", "*"), make=_quantised_product, decline=_not_one_scale),
    Rule("any-integer-product", P("MatMulInteger", "*"), make=_integer_product, decline=_served_product),
    Rule("linear-convolution", P("QLinearConv", "*"), make=_quantised_convolution, decline=_not_plain_convolution),
    Rule("any-integer-convolution", P("ConvInteger", "*"), make=_integer_convolution, decline=_not_one_zero),
    Rule("narrow-in-words", P("ReduceMax|ReduceMin|ArgMax|ArgMin|TopK", "*"), make=_in_words, decline=_not_narrow),
    Rule("pooled-integers", P("MaxPool", "*"), make=_pooled_as_floats, decline=_pooled_integers),
    Rule("whole-positions", P("OneHot", "*"), make=_whole_positions, decline=_not_whole),
    Rule("reversed-sequences", P("ReverseSequence", "*"), make=_reversed, decline=_symbolic_time),
    Rule("written-cache", P("TensorScatter", "*"), make=_written, decline=_not_static_update),
    Rule("unpooled", P("MaxUnpool", "*"), make=_unpooled, decline=_not_static_pool),
    Rule("norm-by-powers", P("LpPool|GlobalLpPool", "*"), make=_norm_by_powers, decline=_low_norm),
    Rule("rotary", P("RotaryEmbedding", "*"), make=_rotated, decline=_rotates_nothing),
)
