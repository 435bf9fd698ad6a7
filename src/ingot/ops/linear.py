"""Products of matrices and tensors."""
from __future__ import annotations

import numpy as np

from ingot.graph import I32, Dim, TensorType
from ingot.ops.op import REQUIRED, Attrs, Op, Types, declare
from ingot.ops.samples import f32, f64, i8, integers, scalar, u8, values
from ingot.ops.shapes import broadcast, given, integer, same_dim, same_dtype, word


def product_shape(a: tuple[Dim, ...], b: tuple[Dim, ...]) -> tuple[Dim, ...]:
    """The shape of numpy's matmul, vectors included. Raises ValueError."""
    if not a or not b:
        raise ValueError("MatMul takes no scalars")
    rows = a if len(a) > 1 else (1, *a)
    columns = b if len(b) > 1 else (*b, 1)
    same_dim(rows[-1], columns[-2], "the inner dimensions")
    batch = broadcast(rows[:-2], columns[:-2])
    return (*batch, *(rows[-2:-1] if len(a) > 1 else ()), *(columns[-1:] if len(b) > 1 else ()))


def _matmul(types: Types, attrs: Attrs, outputs: int) -> tuple[TensorType, ...]:
    return (TensorType(same_dtype(types), product_shape(given(types[0]).shape, given(types[1]).shape)),)


declare(Op("MatMul", "numpy's matmul", ("a", "b"), _matmul, samples=(
    ((f32(4, 8), f32(8, 6)), {}), ((f32(33, 65), values(65, 47)), {}), ((f32(128, 256), values(256, 192)), {}),
    ((f32(7, 1), f32(1, 5)), {}), ((f32(7, 13), f32(13, 1)), {}), ((f32(1, 13), values(13, 19)), {}),
    ((f32(1, 64), values(64, 1000)), {}), ((f32(2, 3, 17, 5), f32(2, 3, 5, 19)), {}),
    ((f32(3, 17, 40), values(40, 24)), {}), ((f32(2, 1, 9, 16), f32(3, 16, 33)), {}),
    ((f32(9, 16), f32(2, 3, 16, 5)), {}), ((f32(6, 7), f32(7, 32)), {}), ((f64(6, 7), f64(7, 16)), {}),
    ((f32(13), f32(13)), {}), ((f32(13), f32(13, 7)), {}),
    ((f32(5, 13), f32(13)), {}), ((f32(2, 5, 13), f32(13)), {}), ((f32(13), f32(2, 13, 3)), {}),
    ((f32(6, 100), values(100, 70)), {}), ((f32(1, 1), f32(1, 1)), {}), ((f64(5, 7), f64(7, 3)), {}),
    ((f32(61, 300), values(300, 131)), {}), ((f32(2, 12, 33, 64), f32(2, 12, 64, 33)), {}),
)))


def _gemm(types: Types, attrs: Attrs, outputs: int) -> tuple[TensorType, ...]:
    a, b = given(types[0]), given(types[1])
    if a.rank != 2 or b.rank != 2:
        raise ValueError("Gemm takes matrices")
    m, k = reversed(a.shape) if attrs["transA"] else a.shape
    k2, n = reversed(b.shape) if attrs["transB"] else b.shape
    same_dim(k, k2, "the inner dimensions")
    if types[2:] and types[2] is not None and broadcast(types[2].shape, (m, n)) != (m, n):
        raise ValueError(f"C {types[2]} does not broadcast to [{m},{n}]")
    return (TensorType(same_dtype(types), (m, n)),)


declare(Op("Gemm", "alpha * A' * B' + beta * C", ("a", "b", "c?"), _gemm,
           {"alpha": 1.0, "beta": 1.0, "transA": 0, "transB": 0}, samples=(
    ((f32(4, 8), f32(8, 6)), {}), ((f32(4, 8), f32(8, 6), f32(6)), {}), ((f32(9, 33), values(17, 33), values(17)),
                                                                        {"transB": 1}),
    ((f32(33, 9), f32(33, 17), f32(9, 1)), {"transA": 1}), ((f32(8, 4), f32(6, 8), f32(4, 6)),
                                                            {"transA": 1, "transB": 1, "alpha": 0.5, "beta": 2.0}),
    ((f32(1, 512), values(1000, 512), values(1000)), {"transB": 1}), ((f32(5, 7), f32(7, 3), f32()), {"beta": 0.25}),
    ((f32(7, 1), f32(1, 5), f32(1, 5)), {}), ((f32(64, 128), values(128, 96), values(96)), {"alpha": 1.5}),
    ((f32(13, 19), values(19, 1), values(1)), {}),
)))


def einsum_terms(equation: str, ranks: tuple[int, ...]) -> tuple[tuple[str, ...], str]:
    """The operands' and the result's letters, ellipses spelled out in capitals of their own. Raises ValueError."""
    text = equation.replace(" ", "")
    left, arrow, right = text.partition("->")
    terms = left.split(",")
    if len(terms) != len(ranks):
        raise ValueError(f"{equation!r} names {len(terms)} operands, there are {len(ranks)}")
    hidden = max((r - len(t.replace("...", "")) for t, r in zip(terms, ranks, strict=True) if "..." in t), default=0)
    spare = [c for c in "ABCDEFGHIJKLMNOPQRSTUVWXYZ" if c not in text]
    if hidden > len(spare) or hidden < 0:
        raise ValueError(f"{equation!r} does not fit operands of rank {ranks}")
    dots = "".join(spare[:hidden])
    spelled = []
    for term, rank in zip(terms, ranks, strict=True):
        mine = rank - len(term.replace("...", ""))
        term = term.replace("...", dots[len(dots) - mine:]) if "..." in term else term
        if len(term) != rank:
            raise ValueError(f"{equation!r} does not fit an operand of rank {rank}")
        spelled.append(term)
    if arrow:
        return tuple(spelled), right.replace("...", dots)
    seen = "".join(spelled)
    return tuple(spelled), dots + "".join(sorted(c for c in set(seen) - set(dots) if seen.count(c) == 1))


def _einsum(types: Types, attrs: Attrs, outputs: int) -> tuple[TensorType, ...]:
    operands = tuple(given(t) for t in types)
    terms, result = einsum_terms(word(attrs, "equation"), tuple(t.rank for t in operands))
    sizes: dict[str, Dim] = {}
    for term, t in zip(terms, operands, strict=True):
        for letter, dim in zip(term, t.shape, strict=True):
            sizes[letter] = broadcast((sizes.get(letter, 1),), (dim,))[0]
    if unknown := [c for c in result if c not in sizes]:
        raise ValueError(f"{unknown[0]!r} of the result is in no operand")
    return (TensorType(same_dtype(types), tuple(sizes[c] for c in result)),)


declare(Op("Einsum", "Einstein's sum over the letters the result does not name", ("x*",), _einsum,
           {"equation": REQUIRED}, samples=(
    ((f32(3, 5), f32(5, 7)), {"equation": "ij,jk->ik"}), ((f32(2, 3, 5), f32(2, 5, 7)), {"equation": "bij,bjk->bik"}),
    ((f32(2, 3, 4, 5), f32(2, 3, 6, 5)), {"equation": "bhqd,bhkd->bhqk"}),
    ((f32(3, 5), f32(3, 5)), {"equation": "...i,...i->..."}), ((f32(4, 4),), {"equation": "ii->i"}),
    ((f32(3, 5),), {"equation": "ij->ji"}), ((f32(3, 5),), {"equation": "ij->"}),
    ((f32(3), f32(5)), {"equation": "i,j"}),
)))



def _matmul_integer(types: Types, attrs: Attrs, outputs: int) -> tuple[TensorType, ...]:
    return (TensorType(I32, product_shape(given(types[0]).shape, given(types[1]).shape)),)


declare(Op("MatMulInteger", "product of 8-bit integers, less their zero points, in 32 bits",
           ("a", "b", "a_zero_point?", "b_zero_point?"), _matmul_integer, samples=(
    ((u8(5, 33), i8(33, 17)), {}), ((u8(5, 33), u8(33, 17), u8(), u8()), {}), ((i8(2, 5, 8), i8(8, 3)), {}),
    ((u8(7, 40), integers(40, 24)), {}), ((u8(3, 5, 33), integers(33, 131), scalar(7, "uint8")), {}),
    ((u8(61, 300), integers(300, 70), u8()), {}), ((u8(1, 64), integers(64, 100), u8(1)), {}))))


def _matmul_groups(types: Types, attrs: Attrs, outputs: int) -> tuple[TensorType, ...]:
    x, weight, scale = given(types[0]), given(types[1]), given(types[2])
    group = integer(attrs, "block_size")
    if weight.rank != 2 or group < 1 or not isinstance(weight.shape[0], int) or weight.shape[0] % group:
        raise ValueError(f"the weight {weight} does not divide into groups of {group}")
    if scale.shape != (weight.shape[0] // group, weight.shape[1]):
        raise ValueError(f"the scales {scale} are not one for each group of {group} of {weight}")
    return (TensorType(x.dtype, product_shape(x.shape, weight.shape)),)


def _by_groups(arrays: list[np.ndarray | None], attrs: Attrs) -> list[np.ndarray]:
    x, weight, scale, zero = (*arrays, None)[:4]
    if x is None or weight is None or scale is None:
        raise ValueError("an operand is absent")
    group = integer(attrs, "block_size")
    whole = weight.astype(np.float32)
    if zero is not None:
        whole = whole - np.repeat(zero.astype(np.float32), group, axis=0)
    return [np.matmul(x, whole * np.repeat(scale, group, axis=0))]


declare(Op("MatMulGroups", "a @ ((w - zero_point) * scale), each `block_size` rows of w with scales of their own",
           ("a", "w", "scale", "zero_point?"), _matmul_groups, {"block_size": REQUIRED}, evaluate=_by_groups, samples=(
    ((f32(1, 64), integers(64, 48, low=-8, high=8, dtype="int4"), values(2, 48, low=0.1)), {"block_size": 32}),
    ((f32(5, 96), integers(96, 40, low=0, high=16, dtype="uint4"), values(3, 40, low=0.1),
      integers(3, 40, low=0, high=16, dtype="uint4")), {"block_size": 32}),
    ((f32(2, 33, 64), integers(64, 131), values(1, 131, low=0.01, high=0.02)), {"block_size": 64}),
    ((f32(9, 128), integers(128, 24, low=0, high=256, dtype="uint8"), values(4, 24, low=0.01, high=0.02),
      integers(4, 24, low=0, high=256, dtype="uint8")), {"block_size": 32}))))


def _det(types: Types, attrs: Attrs, outputs: int) -> tuple[TensorType, ...]:
    x = given(types[0])
    return (TensorType(x.dtype, x.shape[:-2]),)


declare(Op("Det", "determinants of square matrices", ("x",), _det, samples=(
    ((f32(3, 3),), {}), ((f32(2, 4, 4),), {}))))

__all__ = ["einsum_terms", "product_shape"]
