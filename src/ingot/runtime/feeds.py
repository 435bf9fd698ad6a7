"""What a caller hands in, checked: names, dtypes, shapes, sizes of symbols. Every complaint says what would mend it."""
from __future__ import annotations

import difflib
import math
from collections.abc import Mapping, Sequence
from types import MappingProxyType

import numpy as np

from ingot.errors import InputError
from ingot.graph import Symbol, TensorType, evaluate, symbols_of
from ingot.graph.dim import Expr


def _signature(names: Sequence[str], types: Mapping[str, TensorType | None]) -> str:
    return "the inputs are " + ", ".join(f"{n}: {types[n] or 'any value'}" for n in names)


def ordered(feeds: tuple[object, ...], names: Sequence[str], types: Mapping[str, TensorType | None]) -> list[object]:
    """The given inputs, one dict or positional, in the engine's order. Raises InputError."""
    if len(feeds) == 1 and isinstance(feeds[0], Mapping):
        given = feeds[0]
        for name in given:
            if name not in types or name not in names:
                near = difflib.get_close_matches(str(name), names, 1)
                raise InputError(f"the engine has no input '{name}'", why=(_signature(names, types),),
                                 mend=f"did you mean '{near[0]}'?" if near else f"name one of: {', '.join(names)}")
        missing = [n for n in names if n not in given]
        if missing:
            raise InputError(f"the input '{missing[0]}' is missing", why=(_signature(names, types),),
                             mend=f"pass {{'{missing[0]}': array, ...}}")
        return [given[n] for n in names]
    if len(feeds) != len(names):
        raise InputError(f"{len(feeds)} inputs are given, {len(names)} are wanted", why=(_signature(names, types),),
                         mend="pass them in this order, or as one dict by name")
    return list(feeds)


def as_array(value: object, name: str, type_: TensorType) -> np.ndarray:
    """The value as a dense, aligned numpy array of the right dtype; no copy where it is one. Raises InputError."""
    wanted = type_.dtype.numpy
    if not isinstance(value, np.ndarray):
        if hasattr(value, "__dlpack__"):
            try:
                value = np.from_dlpack(value)
            except (BufferError, RuntimeError, TypeError, ValueError) as error:
                raise InputError(f"the input '{name}' cannot be shared through DLPack", where=f"input '{name}'",
                                 why=(str(error),),
                                 mend="pass a numpy array, or the tensor detached and on the CPU") from None
        elif isinstance(value, np.generic):
            value = np.asarray(value)
        else:
            raise InputError(f"the input '{name}' is a {type(value).__name__}, not an array", where=f"input '{name}'",
                             mend=f"pass a numpy array, for example np.asarray(value, np.{wanted})")
    if value.dtype != wanted and not (type_.dtype.name == "str" and value.dtype.kind in "OUS"):
        raise InputError(f"the input '{name}' is {value.dtype}, not {wanted}", where=f"input '{name}'",
                         why=(f"the engine takes {type_}",), mend=f"pass {name}.astype('{wanted}')")
    flags = value.flags
    return value if flags.c_contiguous and flags.aligned else np.array(value, order="C")


def checked_out(out: Mapping[str, np.ndarray], outputs: Sequence[tuple[str, np.dtype]],
                shapes: Sequence[tuple[int, ...]], inputs: Sequence[np.ndarray]) -> dict[str, np.ndarray]:
    """The caller's output arrays that may be written while the inputs are read. Raises InputError.

    One that shares memory with an input or another one is checked too, but left out: it is filled after the run.
    """
    known = {name: (dtype, shape) for (name, dtype), shape in zip(outputs, shapes, strict=True)}
    found: dict[str, np.ndarray] = {}
    for name, array in out.items():
        if name not in known:
            near = difflib.get_close_matches(str(name), known, 1)
            raise InputError(f"the engine has no output '{name}'", where="out",
                             mend=f"did you mean '{near[0]}'?" if near else f"name some of: {', '.join(known)}")
        dtype, shape = known[name]
        if not isinstance(array, np.ndarray) or array.dtype != dtype or array.shape != shape:
            told = f"{array.dtype}{list(array.shape)}" if isinstance(array, np.ndarray) else type(array).__name__
            raise InputError(f"out['{name}'] is {told}", where="out",
                             mend=f"pass np.empty({list(shape)}, np.{dtype})")
        if not array.flags.writeable or not array.flags.c_contiguous:
            raise InputError(f"out['{name}'] is {'read-only' if not array.flags.writeable else 'not dense'}",
                             where="out", mend=f"pass np.empty({list(shape)}, np.{dtype})")
        others = (*inputs, *(a for n, a in out.items() if n != name))
        if array.flags.aligned and not any(np.may_share_memory(array, other) for other in others):
            found[name] = array
    return found


def bind(names: Sequence[str], types: Mapping[str, TensorType], symbols: Mapping[str, Symbol],
         shapes: Sequence[tuple[int, ...]], known: Mapping[str, int] = MappingProxyType({})) -> dict[str, int]:
    """The sizes of the symbols, from the shapes of the inputs and what is known. Raises InputError on a misfit."""
    sizes: dict[str, int] = dict(known)
    source: dict[str, str] = dict.fromkeys(known, "what ran before")
    later: list[tuple[str, int, Expr, int]] = []
    for name, shape in zip(names, shapes, strict=True):
        type_ = types[name]
        if len(shape) != type_.rank:
            raise InputError(f"the input '{name}' has {len(shape)} axes, not {type_.rank}", where=f"input '{name}'",
                             why=(f"its shape is {list(shape)}, the engine takes {type_}",),
                             mend="add or drop axes with reshape")
        for axis, (dim, size) in enumerate(zip(type_.shape, shape, strict=True)):
            if isinstance(dim, int):
                if dim != size:
                    raise _misfit(name, axis, shape, type_, f"axis {axis} must be {dim}")
            elif str(dim) in symbols:
                said = sizes.setdefault(str(dim), size)
                source.setdefault(str(dim), f"axis {axis} of '{name}'")
                if said != size:
                    raise _misfit(name, axis, shape, type_, f"{dim} is {said} by {source[str(dim)]}, {size} here")
            else:
                later.append((name, axis, dim, size))
    for name, axis, dim, size in later:
        free = sorted(symbols_of(dim) - sizes.keys())
        where = dict(zip(names, shapes, strict=True))[name]
        if len(free) == 1:
            found = _solved(dim, size, symbols[free[0]], sizes)
            if found is None:
                raise _misfit(name, axis, where, types[name],
                              f"no {free[0]} in {symbols[free[0]]} makes {dim} = {size}")
            sizes[free[0]], source[free[0]] = found, f"axis {axis} of '{name}'"
        elif free or evaluate(dim, sizes) != size:
            raise _misfit(name, axis, where, types[name], f"axis {axis} must be {dim}"
                          + ("" if free else f" = {evaluate(dim, sizes)}"))
    for symbol in symbols.values():
        size = sizes.setdefault(symbol.name, symbol.opt)
        if not symbol.min <= size <= symbol.max:
            raise InputError(f"{symbol.name} = {size} is outside the engine's range {symbol.min}..{symbol.max}",
                             where=source.get(symbol.name, ""),
                             why=(f"the profile is {symbol} (min..opt..max), memory is planned for max",),
                             mend=f"pass sizes from {symbol.min} to {symbol.max}, or build with a wider --shapes range")
    return sizes


def _solved(dim: Expr, size: int, symbol: Symbol, sizes: Mapping[str, int]) -> int | None:
    """The symbol's value in its range that gives the dimension its size."""
    return next((n for n in range(symbol.min, symbol.max + 1) if dim.evaluate({**sizes, symbol.name: n}) == size), None)


def _misfit(name: str, axis: int, shape: tuple[int, ...], type_: TensorType, why: str) -> InputError:
    return InputError(f"the input '{name}' has shape {list(shape)}, the engine takes {type_}",
                      where=f"input '{name}', axis {axis}", why=(why,), mend="pass an array of that shape")


def nearest(profiles: Sequence[Mapping[str, Symbol]], names: Sequence[str], types: Mapping[str, TensorType],
            shapes: Sequence[tuple[int, ...]]) -> int:
    """The profile that holds these input shapes and is tuned nearest to them. Raises InputError where none does."""
    best: tuple[float, int] | None = None
    refused: InputError | None = None
    for k, symbols in enumerate(profiles):
        try:
            sizes = bind(names, types, symbols, shapes)
        except InputError as error:
            refused = refused or error
            continue
        far = sum(abs(math.log(max(n, 1) / symbols[s].opt)) for s, n in sizes.items())
        best = min(best or (far, k), (far, k))
    if best is not None:
        return best[1]
    told = refused or InputError("the engine has no profile")
    raise InputError(told.what, where=told.where, mend="pass sizes of one of the profiles, or build with one for these",
                     why=tuple(f"profile {k + 1}: {', '.join(map(str, symbols.values()))}"
                               for k, symbols in enumerate(profiles)))
