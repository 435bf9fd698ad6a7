"""Minimal filtering: the matrices of F(m, r), exact, and linear maps of vectors in registers.

m outputs of a filter of r taps over a signal need m + r - 1 products:

    y = A^T ((G g) * (B^T d))       d: m + r - 1 inputs, g: r taps, y[j] = sum over k of d[j + k] g[k]

(Winograd, Arithmetic Complexity of Computations, 1980; Lavin and Gray, Fast Algorithms for Convolutional Neural
Networks, 2015.) The matrices follow from m + r - 2 points and the point at infinity by transposing Toom and Cook's
multiplication of polynomials: the filter is evaluated at the points (G), and B holds the coefficients of the
polynomials that vanish at all points but one. In two dimensions each is applied to the rows, then to the columns.
"""
from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from functools import cache

from ingot.kernels.codegen.code import Code, Value

Matrix = tuple[tuple[Fraction, ...], ...]

# Points that lose least in f32 among pairs of short dyadic fractions (measured: tests/test_winograd.py), 0 left out.
POINTS: Mapping[int, tuple[Fraction | int, ...]] = {
    2: (1,), 4: (Fraction(3, 4), Fraction(3, 2)), 6: (1, 2, Fraction(1, 2))}


@dataclass(frozen=True)
class Filtering:
    """F(outputs, taps): `a` is A^T [outputs, products], `b` is B^T [products, products], `g` is G [products, taps]."""

    outputs: int
    taps: int
    a: Matrix
    b: Matrix
    g: Matrix

    @property
    def products(self) -> int:
        return self.outputs + self.taps - 1


def _times(p: Sequence[Fraction], root: Fraction) -> list[Fraction]:
    """The coefficients (lowest first) of p(x) * (x - root)."""
    return [(p[i - 1] if i else Fraction(0)) - (root * p[i] if i < len(p) else 0) for i in range(len(p) + 1)]


def filtering(outputs: int, taps: int, points: Sequence[Fraction | int]) -> Filtering:
    """F(outputs, taps) from outputs + taps - 2 different finite points and infinity."""
    at = [Fraction(p) for p in points]
    count = outputs + taps - 1
    if len(set(at)) != count - 1 or len(at) != count - 1:
        raise ValueError(f"F({outputs}, {taps}) takes {count - 1} different points, not {points}")
    b, g = [], []
    for i, p in enumerate(at):
        others = at[:i] + at[i + 1:]
        polynomial, norm = [Fraction(1)], Fraction(1)
        for q in others:
            polynomial = _times(polynomial, q)
            norm *= p - q
        b.append((*polynomial, Fraction(0)))
        g.append(tuple(p**k / norm for k in range(taps)))
    polynomial = [Fraction(1)]
    for q in at:
        polynomial = _times(polynomial, q)
    b.append(tuple(polynomial))
    g.append((*(Fraction(0),) * (taps - 1), Fraction(1)))
    a = tuple((*(p**j for p in at), Fraction(int(j == outputs - 1))) for j in range(outputs))
    return Filtering(outputs, taps, a, tuple(b), tuple(g))


@cache
def symmetric(outputs: int) -> Filtering:
    """F(outputs, 3) for outputs 2, 4 or 6, from points in pairs (half the products of a map are shared then)."""
    pairs = POINTS[outputs]
    return filtering(outputs, 3, (0, *(s * Fraction(p) for p in pairs for s in (1, -1))))


# --- maps in registers ----------------------------------------------------------------------------------------------


def mapped(code: Code, matrix: Matrix, inputs: Sequence[Value]) -> list[Value]:
    """matrix @ inputs. Inputs whose columns, and outputs whose rows, differ in signs alone share their sums."""
    rows, values = [list(r) for r in matrix], list(inputs)
    for left, right in _mates(tuple(zip(*rows, strict=True))):
        a, b = values[left], values[right]
        values[left], values[right] = code.fadd(a, b), code.fsub(a, b)
        for row in rows:
            alike = row[left] == row[right]
            row[left], row[right] = (row[left], Fraction(0)) if alike else (Fraction(0), row[left])
    found: dict[int, Value] = {}
    for first, second in _mates(tuple(map(tuple, rows))):
        pairs = list(zip(rows[first], rows[second], strict=True))
        even, odd = [x if x == y else Fraction(0) for x, y in pairs], [x if x != y else Fraction(0) for x, y in pairs]
        factor = next(x for x in reversed(odd) if x)
        same, other = _sum(code, even, values), _sum(code, [x / factor for x in odd], values)
        found[first], found[second] = _plus(code, factor, other, same), _plus(code, -factor, other, same)
    return [found[r] if r in found else _sum(code, row, values) for r, row in enumerate(rows)]


def _mates(lines: Sequence[Sequence[Fraction]]) -> list[tuple[int, int]]:
    """Pairs of lines that are equal up to signs, some of which agree and some of which do not."""
    found: list[tuple[int, int]] = []
    taken: set[int] = set()
    for i, x in enumerate(lines):
        for j in range(i + 1, len(lines)):
            y = lines[j]
            if {i, j} & taken or any(abs(p) != abs(q) for p, q in zip(x, y, strict=True)):
                continue
            signs = {p == q for p, q in zip(x, y, strict=True) if p}
            if signs == {True, False}:
                found.append((i, j))
                taken |= {i, j}
    return found


def _plus(code: Code, factor: Fraction, value: Value, to: Value) -> Value:
    """to + factor * value."""
    if factor == 1:
        return code.fadd(to, value)
    if factor == -1:
        return code.fsub(to, value)
    return code.fma(code.constant(float(factor), value.element, value.lanes), value, to)


def _sum(code: Code, factors: Sequence[Fraction], values: Sequence[Value]) -> Value:
    """The sum of factor * value, from a term that needs no product where there is one."""
    terms = sorted(((f, v) for f, v in zip(factors, values, strict=True) if f), key=lambda t: t[0] != 1)
    factor, total = terms[0]
    if factor != 1:
        total = code.fmul(code.constant(float(factor), total.element, total.lanes), total)
    for f, v in terms[1:]:
        total = _plus(code, f, v, total)
    return total
