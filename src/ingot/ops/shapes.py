"""What type inference is made of: reading attributes, broadcasting, axes, layouts."""
from __future__ import annotations

from collections.abc import Mapping, Sequence

from ingot.graph import BOOL, DTYPES, I64, Dim, DType, Expr, TensorType, parse_dim, product

Types = tuple[TensorType | None, ...]
Attrs = Mapping[str, object]


def dims(attrs: Attrs, name: str) -> tuple[Dim, ...] | None:
    """A tuple of ints or symbolic dimensions; the text form of a dimension is read. None when absent."""
    value = attrs.get(name)
    if value is None:
        return None
    if not isinstance(value, (tuple, list)):
        raise ValueError(f"{name} is {value!r}, not a tuple")
    return tuple(dim_from(v) for v in value)


def dim_from(value: object) -> Dim:
    """An int or expression as it is, a text as the dimension it writes."""
    if isinstance(value, Expr):
        return value
    if isinstance(value, str):
        return parse_dim(value)
    return int(value)  # type: ignore[call-overload, no-any-return]


def ints(attrs: Attrs, name: str) -> tuple[int, ...] | None:
    """A tuple of plain ints, or None when absent."""
    value = dims(attrs, name)
    if value is None:
        return None
    if not all(isinstance(v, int) for v in value):
        raise ValueError(f"{name} must be known numbers, got {value}")
    return tuple(v for v in value if isinstance(v, int))


def integer(attrs: Attrs, name: str) -> int:
    """One plain int."""
    value = attrs.get(name)
    if not isinstance(value, int):
        raise ValueError(f"{name} must be a number, got {value!r}")
    return int(value)


def number(attrs: Attrs, name: str) -> float:
    """One number, as a float."""
    value = attrs.get(name)
    if not isinstance(value, (int, float)):
        raise ValueError(f"{name} must be a number, got {value!r}")
    return float(value)


def word(attrs: Attrs, name: str) -> str:
    """One text attribute."""
    return str(attrs[name])


def dtype_named(attrs: Attrs, name: str) -> DType:
    """The element type an attribute names by its short name, for example 'f32'."""
    value = attrs.get(name)
    if not isinstance(value, str) or value not in DTYPES:
        raise ValueError(f"{name} is {value!r}; known element types: {', '.join(DTYPES)}")
    return DTYPES[value]


def given(t: TensorType | None) -> TensorType:
    """The type of an operand that must be there."""
    if t is None:
        raise ValueError("a needed input is absent")
    return t


def broadcast(*shapes: tuple[Dim, ...]) -> tuple[Dim, ...]:
    """The shape two or more operands broadcast to, by numpy's rules. Raises ValueError."""
    rank = max(map(len, shapes), default=0)
    out: list[Dim] = []
    for axis in range(rank):
        here: Dim = 1
        for shape in shapes:
            dim = shape[axis - rank + len(shape)] if axis >= rank - len(shape) else 1
            here = _both(here, dim, shapes)
        out.append(here)
    return tuple(out)


def _both(a: Dim, b: Dim, shapes: Sequence[tuple[Dim, ...]]) -> Dim:
    if a == b or b == 1:
        return a
    if a == 1:
        return b
    if isinstance(a, int) and isinstance(b, Expr):
        return a            # a symbol that meets a number is that number or 1; the result is the number
    if isinstance(b, int) and isinstance(a, Expr):
        return b
    listed = " and ".join(f"[{','.join(map(str, s))}]" for s in shapes)
    kind = "differ" if isinstance(a, int) else "are not known to be equal (give both dimensions the same symbol)"
    raise ValueError(f"shapes {listed} do not broadcast: {a} and {b} {kind}")


def same_dim(a: Dim, b: Dim, what: str) -> Dim:
    """The common size of two dimensions that must be equal; a number wins over a symbol. Raises ValueError."""
    if a == b or isinstance(b, Expr):
        return a
    if isinstance(a, Expr):
        return b
    raise ValueError(f"{what}: {a} and {b} differ")


def same_dtype(types: Types) -> DType:
    """The one element type of the operands that are there. Raises ValueError."""
    found = list(dict.fromkeys(t.dtype for t in types if t is not None))
    if len(found) != 1:
        raise ValueError(f"element types differ: {', '.join(map(str, found))}")
    return found[0]


def axis_of(axis: int, rank: int, what: str = "axis") -> int:
    """An axis counted from the front. Raises ValueError outside [-rank, rank)."""
    if not -rank <= axis < rank:
        raise ValueError(f"{what} {axis} is outside [-{rank}, {rank})")
    return axis % rank if rank else 0


def axes_of(axes: Sequence[int], rank: int) -> tuple[int, ...]:
    """Axes counted from the front, each once, in the given order."""
    found = tuple(axis_of(a, rank) for a in axes)
    if len(set(found)) != len(found):
        raise ValueError(f"axes {tuple(axes)} name one axis twice")
    return found


def layout_of(shape: tuple[Dim, ...], types: Types) -> str:
    """The layout an elementwise result takes from its operands.

    A blocked operand has the result's rank and channels; operands of the result's full shape all have its layout.
    """
    present = [t for t in types if t is not None]
    layouts = {t.layout for t in present if t.layout}
    if not layouts:
        return ""
    if len(layouts) > 1 or any(not t.layout and t.shape == shape and t.rank > 1 for t in present):
        raise ValueError("the operands lie in different layouts: put a Reorder before one of them")
    for t in present:
        if t.layout and (t.rank != len(shape) or t.shape[1] != shape[1]):
            raise ValueError("a blocked operand cannot be broadcast along its channels")
    return layouts.pop()


GROUP = 8       # channels of which parts of a blocked value are made: half a block of 16, or a block


def joined_layout(parts: Types, axis: int) -> str:
    """The layout of parts side by side along an axis: all lie alike, and along the channels each fills groups of 8."""
    present = [t for t in parts if t is not None]
    layouts = {t.layout for t in present}
    if len(layouts) > 1:
        raise ValueError("the parts lie in different layouts: put a Reorder before some of them")
    block = present[0].block
    for t in present[:-1] if block and axis == 1 else ():
        if not isinstance(t.shape[1], int) or t.shape[1] % GROUP:
            raise ValueError(f"a part of {t.shape[1]} channels ends inside a group of {GROUP}")
    return layouts.pop()


def elementwise(types: Types, dtype: DType | None = None) -> tuple[TensorType, ...]:
    """The broadcast result of the operands, of their common (or the given) element type."""
    present = tuple(t for t in types if t is not None)
    shape = broadcast(*(t.shape for t in present))
    return (TensorType(dtype or same_dtype(types), shape, layout_of(shape, present)),)


def same(types: Types, attrs: Attrs, outputs: int) -> tuple[TensorType, ...]:
    """The first input's type, layout included."""
    return (given(types[0]),)


def predicate(types: Types, attrs: Attrs, outputs: int) -> tuple[TensorType, ...]:
    """The broadcast shape, as truth values; the operands share one element type."""
    same_dtype(types)
    return elementwise(types, BOOL)


def known_size(shape: tuple[Dim, ...]) -> Dim:
    """Elements in a shape."""
    return product(shape)


INDEX = I64     # what ONNX gives for positions
