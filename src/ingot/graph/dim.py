"""Dimensions: plain ints, or exact integer expressions over named symbols (polynomials with floor divisions).

A `Dim` is an `int` or an `Expr`. Arithmetic on either gives a normalised result: an expression that has
become constant is an int again, and equal expressions compare equal.
"""
from __future__ import annotations

import ast
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from ingot.errors import ModelError


@dataclass(frozen=True, slots=True)
class Floor:
    """The atom `numerator // denominator`, when it does not divide out exactly."""

    numerator: Expr
    denominator: Expr | int

    def __str__(self) -> str:
        return f"({self.numerator})//({self.denominator})"

    def evaluate(self, bindings: Mapping[str, int]) -> int:
        return self.numerator.evaluate(bindings) // evaluate(self.denominator, bindings)


Atom = str | Floor
Monomial = tuple[Atom, ...]     # sorted, repeated for powers; () is the constant term


def _key(monomial: Monomial) -> tuple[int, tuple[str, ...]]:
    return -len(monomial), tuple(map(str, monomial))


@dataclass(frozen=True, slots=True)
class Expr:
    """A sum of integer multiples of monomials, in a canonical order."""

    terms: tuple[tuple[Monomial, int], ...]

    def __str__(self) -> str:
        parts = []
        for monomial, factor in self.terms:
            names = "*".join(str(a) if isinstance(a, str) else f"({a})" for a in monomial)
            parts.append(str(factor) if not names else names if factor == 1 else f"{factor}*{names}")
        return "+".join(parts).replace("+-", "-")

    __repr__ = __str__

    def __add__(self, other: int | Expr) -> int | Expr:
        total = dict(self.terms)
        for monomial, factor in _terms(other):
            total[monomial] = total.get(monomial, 0) + factor
        return _made(total)

    def __mul__(self, other: int | Expr) -> int | Expr:
        total: dict[Monomial, int] = {}
        for a, x in self.terms:
            for b, y in _terms(other):
                both = tuple(sorted(a + b, key=str))
                total[both] = total.get(both, 0) + x * y
        return _made(total)

    __radd__ = __add__
    __rmul__ = __mul__

    def __neg__(self) -> int | Expr:
        return self * -1

    def __sub__(self, other: int | Expr) -> int | Expr:
        return self + (other * -1)

    def __rsub__(self, other: int | Expr) -> int | Expr:
        return self * -1 + other

    def __floordiv__(self, other: int | Expr) -> int | Expr:
        return _divided(self, other)

    def __rfloordiv__(self, other: int) -> int | Expr:
        return _divided(Expr((((), other),)), self)

    def __mod__(self, other: int | Expr) -> int | Expr:
        return self - (self // other) * other

    def __rmod__(self, other: int) -> int | Expr:
        return other - (other // self) * self

    def evaluate(self, bindings: Mapping[str, int]) -> int:
        """The value when every symbol has the given size. Raises KeyError for an unbound symbol."""
        total = 0
        for monomial, factor in self.terms:
            value = factor
            for atom in monomial:
                value *= bindings[atom] if isinstance(atom, str) else atom.evaluate(bindings)
            total += value
        return total

    @property
    def symbols(self) -> frozenset[str]:
        """The names of the symbols this expression depends on."""
        found: set[str] = set()
        for monomial, _ in self.terms:
            for atom in monomial:
                found |= {atom} if isinstance(atom, str) else atom.numerator.symbols | symbols_of(atom.denominator)
        return frozenset(found)


Dim = int | Expr


def _terms(dim: int | Expr) -> tuple[tuple[Monomial, int], ...]:
    return dim.terms if isinstance(dim, Expr) else (((), dim),)


def _made(total: Mapping[Monomial, int]) -> int | Expr:
    terms = tuple(sorted(((m, f) for m, f in total.items() if f), key=lambda t: _key(t[0])))
    if all(not m for m, _ in terms):
        return terms[0][1] if terms else 0
    return Expr(terms)


def _divided(a: Expr, b: int | Expr) -> int | Expr:
    """Exact where every term (int divisor) or one monomial (expression divisor) divides; else a Floor atom."""
    if b == 0:
        raise ZeroDivisionError("a dimension is divided by 0")
    divisor = _terms(b)
    if len(divisor) == 1 and divisor[0][1] != 0:
        names, factor = divisor[0]
        whole: dict[Monomial, int] = {}
        rest: dict[Monomial, int] = {}
        for monomial, f in a.terms:
            left = list(monomial)
            fits = f % factor == 0
            for atom in names:
                if atom in left:
                    left.remove(atom)
                else:
                    fits = False
            if fits:
                whole[tuple(left)] = f // factor
            else:
                rest[monomial] = f
        if not rest:
            return _made(whole)
        # (q*b + r)//b == q + r//b holds for every integer q
        left_over = _made(rest)
        if isinstance(left_over, int):
            if isinstance(b, int):
                return _made(whole) + left_over // b
            if not whole:
                return Expr((((Floor(Expr((((), left_over),)), b),), 1),))
            left_over = Expr((((), left_over),))
        return _made(whole) + _floor(left_over, b)
    if isinstance(b, Expr) and a == b:
        return 1
    if isinstance(b, Expr) and (quotient := _polynomial_quotient(a, b)) is not None:
        return quotient
    return Expr((((Floor(a, b),), 1),))


def _floor(a: Expr, b: int | Expr) -> int | Expr:
    """a // b as an atom; a quotient divided again is one quotient: (n // c + k) // b == (n + k*c) // (c*b)."""
    (names, factor), *others = a.terms
    if isinstance(b, int) and b > 0 and len(names) == 1 and factor == 1 and isinstance(inner := names[0], Floor):
        c = inner.denominator
        if isinstance(c, int) and c > 0 and all(not m for m, _ in others):
            return (inner.numerator + sum(f for _, f in others) * c) // (c * b)
    return Expr((((Floor(a, b),), 1),))


def _polynomial_quotient(a: Expr, b: Expr) -> int | Expr | None:
    """a / b when b divides a as a polynomial (for example `N*S + N` by `S + 1`), else None."""
    lead_names, lead_factor = b.terms[0]
    quotient: int | Expr = 0
    rest: int | Expr = a
    for _ in range(8):
        if rest == 0:
            return quotient
        if not isinstance(rest, Expr):
            return None
        names, factor = rest.terms[0]
        left = list(names)
        for atom in lead_names:
            if atom not in left:
                return None
            left.remove(atom)
        if factor % lead_factor:
            return None
        part = _made({tuple(left): factor // lead_factor})
        quotient, rest = quotient + part, rest - part * b
    return None


def symbol(name: str) -> Expr:
    """The expression that is the named symbol alone."""
    return Expr((((name,), 1),))


def evaluate(dim: int | Expr, bindings: Mapping[str, int]) -> int:
    """The size of a dimension under bindings of its symbols."""
    return dim if isinstance(dim, int) else dim.evaluate(bindings)


def symbols_of(dim: int | Expr) -> frozenset[str]:
    """The symbols a dimension depends on; none for an int."""
    return dim.symbols if isinstance(dim, Expr) else frozenset()


def product(dims: tuple[int | Expr, ...]) -> int | Expr:
    """The product of dimensions; 1 for none."""
    total: int | Expr = 1
    for dim in dims:
        total = total * dim
    return total


_BINARY: Mapping[type, Callable[[int | Expr, int | Expr], int | Expr]] = {
    ast.Add: lambda a, b: a + b, ast.Sub: lambda a, b: a - b, ast.Mult: lambda a, b: a * b,
    ast.FloorDiv: lambda a, b: a // b, ast.Mod: lambda a, b: a % b}


def parse_dim(text: str) -> int | Expr:
    """Read the text form of a dimension, for example `N`, `2*N+1` or `(H+1)//2`. Raises ModelError."""
    def walk(node: ast.expr) -> int | Expr:
        if isinstance(node, ast.Constant) and isinstance(node.value, int):
            return node.value
        if isinstance(node, ast.Name):
            return symbol(node.id)
        if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.USub):
            return walk(node.operand) * -1
        if isinstance(node, ast.BinOp) and type(node.op) in _BINARY:
            return _BINARY[type(node.op)](walk(node.left), walk(node.right))
        raise ModelError(f"{text!r} is not a dimension", mend="write a number, a symbol, or + - * // of them")
    try:
        return walk(ast.parse(text.strip(), mode="eval").body)
    except (SyntaxError, ZeroDivisionError):
        raise ModelError(f"{text!r} is not a dimension", mend="write a number, a symbol, or + - * // of them") from None


@dataclass(frozen=True, slots=True)
class Symbol:
    """A named dimension and its profile: right on the whole range, tuned at `opt`, planned for `max`."""

    name: str
    min: int = 1
    opt: int = 1
    max: int = 1

    def __post_init__(self) -> None:
        if not 0 < self.min <= self.opt <= self.max:
            raise ModelError(f"the profile of {self.name} is {self.min}..{self.opt}..{self.max}",
                             mend="write min..opt..max with 1 <= min <= opt <= max")

    def __str__(self) -> str:
        return f"{self.name}: {self.min}..{self.opt}..{self.max}"


def rises(dim: Dim) -> bool:
    """Whether a dimension never falls as its symbols grow: then it is largest where they are."""
    if isinstance(dim, int):
        return True
    return all(factor > 0 or not monomial for monomial, factor in dim.terms) and all(
        isinstance(atom, str) or (isinstance(atom.denominator, int) and atom.denominator > 0 and rises(atom.numerator)
                                  and lowest_is_positive(atom.numerator))
        for monomial, _ in dim.terms for atom in monomial)


def lowest_is_positive(dim: Dim) -> bool:
    """Whether a rising dimension is at least 0 at symbols of 1, so that products with it rise too."""
    return dim >= 0 if isinstance(dim, int) else dim.evaluate(dict.fromkeys(dim.symbols, 1)) >= 0


def interval(dim: Dim, symbols: Mapping[str, Symbol]) -> tuple[int, int]:
    """Numbers that a dimension is never below and never above in the profile; not always the closest such."""
    if isinstance(dim, int):
        return dim, dim
    low = high = 0
    for monomial, factor in dim.terms:
        ends = factor, factor
        for atom in monomial:
            a, b = ends
            c, d = _atom_interval(atom, symbols)
            products = a * c, a * d, b * c, b * d
            ends = min(products), max(products)
        low, high = low + min(ends), high + max(ends)
    return low, high


def _atom_interval(atom: Atom, symbols: Mapping[str, Symbol]) -> tuple[int, int]:
    if isinstance(atom, str):
        return symbols[atom].min, symbols[atom].max
    a, b = interval(atom.numerator, symbols)
    c, d = interval(atom.denominator, symbols)
    if c <= 0 <= d:         # the divisor may be 1 or -1, and nothing is known
        return -max(abs(a), abs(b)), max(abs(a), abs(b))
    quotients = a // c, a // d, b // c, b // d
    return min(quotients), max(quotients)
