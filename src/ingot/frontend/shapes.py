"""How a caller states input shapes: `input:1..8..32x3x224x224`, or the same as Python values."""
from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence

from ingot.errors import InputError
from ingot.graph import Dim, Symbol, TensorType
from ingot.graph.dim import symbol

ShapeSpec = str | Sequence["int | str | Symbol"]
DEFAULT_PROFILE = (1, 1, 64)    # min, opt, max of a symbol that nobody gave a range

_AXIS = re.compile(r"(?:([A-Za-z_]\w*)=)?(\d+)(?:\.\.(\d+))?(?:\.\.(\d+))?(?:x|$)")
_MEND = "write, for example, input:1..8..32x3x224x224 or input:batch=1..8..32x3x224x224"


def parse_shapes(texts: Iterable[str]) -> dict[str, str]:
    """`["a:1..8x3", "b:5"]` as a mapping from input name to specification. Raises InputError.

    An input named several times has several profiles.
    """
    found: dict[str, str] = {}
    for text in texts:
        name, colon, spec = text.rpartition(":")
        if not colon or not name:
            raise InputError(f"{text!r} does not say which input it is for", mend=_MEND)
        read_spec(spec)
        found[name] = f"{found[name]}|{spec}" if name in found else spec     # again: another profile
        read_spec(found[name])
    return found


def is_shapes(value: object) -> bool:
    """Whether a value can only be shapes by input name, and no example inputs."""
    return isinstance(value, Mapping) and bool(value) and all(
        isinstance(k, str) and (isinstance(v, str) or (isinstance(v, (tuple, list)) and bool(v) and all(
            isinstance(e, (int, str, Symbol)) and not isinstance(e, bool) for e in v))) for k, v in value.items())


def read_spec(spec: ShapeSpec) -> tuple[int | Symbol, ...]:
    """The axes of a specification: a number fixes the size, a range makes it a symbol (unnamed: the name is "?").

    A range is min..max (tuned at max) or min..opt..max. Profiles stand side by side, parted by "|"; the axes are then
    those that hold them all, tuned as the first. Raises InputError.
    """
    first, *others = read_profiles(spec)
    if any(len(o) != len(first) for o in others):
        raise InputError(f"the profiles in {spec!r} differ in their number of axes", mend=_MEND)
    return tuple(_hull(axes) for axes in zip(first, *others, strict=True))


def read_profiles(spec: ShapeSpec) -> tuple[tuple[int | Symbol, ...], ...]:
    """The axes of each profile of a specification; most have one. Raises InputError."""
    if isinstance(spec, str):
        return tuple(_read(part.strip()) for part in spec.split("|"))
    return (tuple(_axis(entry) for entry in spec),)


def _hull(axes: Sequence[int | Symbol]) -> int | Symbol:
    """The range that holds all of these."""
    first = axes[0]
    if all(a == first for a in axes):
        return first
    ranges = [(a.min, a.opt, a.max) if isinstance(a, Symbol) else (a, a, a) for a in axes]
    name = next((a.name for a in axes if isinstance(a, Symbol) and a.name != "?"), "?")
    return Symbol(name, min(r[0] for r in ranges), ranges[0][1], max(r[2] for r in ranges))


def _read(spec: str) -> tuple[int | Symbol, ...]:
    out: list[int | Symbol] = []
    at = 0
    while at < len(spec):
        found = _AXIS.match(spec, at)
        if not found:
            raise InputError(f"cannot read the shape {spec!r} at {spec[at:]!r}", mend=_MEND)
        name, *numbers = found.groups()
        sizes = [int(n) for n in numbers if n]
        if len(sizes) == 1 and not name:
            out.append(_checked(sizes[0], spec))
        else:
            low, opt, high = {1: sizes * 3, 2: [sizes[0], sizes[-1], sizes[-1]]}.get(len(sizes), sizes)
            if not 0 < low <= opt <= high:
                raise InputError(f"the range in {spec!r} is not min..opt..max with 1 <= min <= opt <= max", mend=_MEND)
            out.append(Symbol(name or "?", low, opt, high))
        at = found.end()
    if spec.endswith("x"):
        raise InputError(f"the shape {spec!r} ends with 'x'", mend=_MEND)
    return tuple(out)


def _checked(size: int, spec: object) -> int:
    if size < 0:
        raise InputError(f"the shape {spec!r} has the size {size}", mend=_MEND)
    return size


def _axis(entry: int | str | Symbol) -> int | Symbol:
    if isinstance(entry, (int, Symbol)):
        return _checked(entry, entry) if isinstance(entry, int) else entry
    if entry.isidentifier():
        return Symbol(entry, *DEFAULT_PROFILE)
    read = read_spec(entry)
    if len(read) != 1:
        raise InputError(f"{entry!r} is not one size", mend=_MEND)
    return read[0]


class Symbols:
    """The symbols of a model while its inputs are read: what is shared, what was given, what is assumed."""

    def __init__(self, known: Mapping[str, Symbol] | None = None) -> None:
        self.profiles: dict[str, Symbol] = dict(known or {})
        self.given: set[str] = set()
        self.fixed: dict[str, int] = {}

    def shape(self, name: str, declared: Sequence[Dim | None], spec: ShapeSpec | None) -> tuple[Dim, ...]:
        """The shape of an input the model declares so (None: no size, no name). Raises InputError."""
        axes: Sequence[int | Symbol | None] = [None] * len(declared) if spec is None else read_spec(spec)
        if len(axes) != len(declared):
            raise InputError(f"the shape given for input '{name}' has {len(axes)} axes, the model's {len(declared)}",
                             mend=_MEND)
        return tuple(self._dim(name, i, d, a) for i, (d, a) in enumerate(zip(declared, axes, strict=True)))

    def _dim(self, name: str, axis: int, declared: Dim | None, given: int | Symbol | None) -> Dim:
        if isinstance(declared, int):
            low, high = (given.min, given.max) if isinstance(given, Symbol) else (given, given)
            if given is not None and (low, high) != (declared, declared):
                raise InputError(f"the model fixes axis {axis} of input '{name}' to {declared}",
                                 mend="export the model with that axis dynamic, or leave it at that size")
            return declared
        own = str(declared) if declared is not None else ""
        if own and not own.isidentifier():      # an expression of other symbols: it follows from them
            return declared if declared is not None else 0
        if isinstance(given, int):
            if own and self.fixed.setdefault(own, given) != given:
                raise InputError(f"the dimension '{own}' is fixed to {self.fixed[own]} and to {given}",
                                 mend="give one size wherever the model uses that name")
            return given
        label = own or f"{re.sub(r'[^0-9A-Za-z_]', '_', name)}_{axis}"
        if isinstance(given, Symbol):
            if given.name != "?" and not own:
                label = given.name
            wanted = Symbol(label, given.min, given.opt, given.max)
            if label in self.given and self.profiles[label] != wanted:
                raise InputError(f"the dimension '{label}' is given two ranges: {self.profiles[label]} and {wanted}",
                                 mend="give one range wherever the model uses that name")
            self.profiles[label] = wanted
            self.given.add(label)
        self.profiles.setdefault(label, Symbol(label, *DEFAULT_PROFILE))
        return symbol(label)


def settled(t: TensorType, fixed: Mapping[str, int]) -> TensorType:
    """The type with the symbols that were fixed to one size replaced by it."""
    shape = tuple(d if isinstance(d, int) else _replaced(d, fixed) for d in t.shape)
    return TensorType(t.dtype, shape, t.layout)


def _replaced(dim: Dim, fixed: Mapping[str, int]) -> Dim:
    if isinstance(dim, int) or not dim.symbols & fixed.keys():
        return dim
    return dim.evaluate(fixed) if dim.symbols <= fixed.keys() else _partly(dim, fixed)


def _partly(dim: Dim, fixed: Mapping[str, int]) -> Dim:
    if isinstance(dim, int):
        return dim
    total: Dim = 0
    for monomial, factor in dim.terms:
        part: Dim = factor
        for atom in monomial:
            if isinstance(atom, str):
                part = part * (fixed[atom] if atom in fixed else symbol(atom))
            else:
                part = part * (_replaced(atom.numerator, fixed) // _replaced(atom.denominator, fixed))
        total = total + part
    return total
