"""A module's arguments as named arrays: examples, names, and which axes may vary.

`dynamic` may be

    True                                    axis 0 of every input, under the name `batch`
    "1..8..32" or "batch=1..8..32"          the same, with its range (min..opt..max)
    {"x": {0: "batch=1..8..32", 2: "height"}, "y": {0: "batch"}}        by input and axis
    {"x": "1..8..32x3x224x224"}             by input, in the form of `--shapes`

and the shapes given for the build count as well: each axis with a range is dynamic.
"""
from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch.utils import _pytree as pytree

from ingot.errors import InputError
from ingot.frontend.shapes import ShapeSpec, read_spec
from ingot.graph import Symbol

_MEND = 'give a tensor, a tuple of positional arguments, or a dict of arguments by name'
LARGEST = 64        # of a dynamic axis nobody gave a range


@dataclass(frozen=True)
class Arguments:
    """The arguments of one call: tensors apart from the rest, and how to put them together again."""

    tensors: Mapping[str, torch.Tensor]         # by name, in the order of the call
    leaves: tuple[Any, ...]                     # all of them; None in the place of a tensor
    places: tuple[int, ...]                     # of the tensors among the leaves
    spec: Any                                   # of the tree (args, kwargs)

    def call(self, tensors: Sequence[Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """Positional and named arguments with these tensors in place."""
        leaves = list(self.leaves)
        for place, tensor in zip(self.places, tensors, strict=True):
            leaves[place] = tensor
        args, kwargs = pytree.tree_unflatten(leaves, self.spec)
        return args, kwargs


def arguments_from(module: Any, example_inputs: Any) -> Arguments:
    """The example arguments of a call. Raises InputError where there are none."""
    if example_inputs is None:
        example_inputs = getattr(module, "example_input_array", None)       # Lightning's
    if example_inputs is None:
        raise InputError("a PyTorch module needs example inputs: they say how many there are, their types and shapes",
                         mend=f"ingot.build(module, example_inputs): {_MEND}; where all are f32, their shapes will do")
    if isinstance(example_inputs, Mapping):
        args: tuple[Any, ...] = ()
        kwargs = dict(example_inputs)
    else:
        args = tuple(example_inputs) if isinstance(example_inputs, (tuple, list)) else (example_inputs,)
        kwargs = {}
    args, kwargs = pytree.tree_map(_tensor, (args, kwargs))
    paths, spec = pytree.tree_flatten_with_path((args, kwargs))
    names = parameters(module, len(args))
    tensors: dict[str, torch.Tensor] = {}
    leaves: list[Any] = []
    places: list[int] = []
    for path, leaf in paths:
        if isinstance(leaf, torch.Tensor):
            tensors[_name(path, names, tensors)] = leaf.detach()
            places.append(len(leaves))
            leaves.append(None)
        else:
            leaves.append(leaf)
    if not tensors:
        raise InputError("the example inputs hold no tensor", mend=_MEND)
    return Arguments(tensors, tuple(leaves), tuple(places), spec)


def _tensor(leaf: Any) -> Any:
    return torch.from_numpy(np.ascontiguousarray(leaf)) if isinstance(leaf, np.ndarray) else leaf


def parameters(module: Any, count: int) -> list[str]:
    """The names of a module's parameters, at least `count` of them."""
    try:
        found = [p.name for p in inspect.signature(getattr(module, "forward", module)).parameters.values()
                 if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)]
    except (TypeError, ValueError):
        found = []
    if isinstance(module, torch.jit.ScriptModule):
        found = [a.name for a in module.forward.schema.arguments][1:]
    return found + [f"input_{i}" for i in range(len(found), count)]


def _name(path: Any, parameters: Sequence[str], taken: Mapping[str, Any]) -> str:
    """`x` for a parameter, `cache_0_key` for what lies inside one."""
    kind, first, *inner = path
    words = [parameters[first.idx] if kind.idx == 0 else str(first.key)]
    words += [str(getattr(k, "idx", getattr(k, "key", getattr(k, "name", "")))) for k in inner]
    name = "".join(c if c.isalnum() or c == "_" else "_" for c in "_".join(w for w in words if w != ""))
    while name in taken:
        name += "_"
    return name


def axes_from(tensors: Mapping[str, Any], dynamic: Any, shapes: Mapping[str, ShapeSpec]
              ) -> dict[str, dict[int, Symbol]]:
    """The symbol of every axis that may vary, by input. Raises InputError."""
    found: dict[str, dict[int, Symbol]] = {name: {} for name in tensors}
    for name, spec in shapes.items():
        _from_spec(found, tensors, name, spec)
    if dynamic is None or dynamic is False:
        return _agreed(found)
    if dynamic is True or isinstance(dynamic, (str, Symbol)):
        dynamic = {name: {0: "batch" if dynamic is True else dynamic} for name, t in tensors.items() if t.ndim}
    if not isinstance(dynamic, Mapping):
        raise InputError(f"dynamic={dynamic!r} says nothing Ingot can read",
                         mend='write True, "1..8..32", or {"x": {0: "batch=1..8..32"}}')
    for name, axes in dynamic.items():
        if not isinstance(axes, Mapping):
            _from_spec(found, tensors, name, axes)
            continue
        tensor = _known(tensors, name)
        for axis, entry in axes.items():
            if not isinstance(axis, int) or not -tensor.ndim <= axis < tensor.ndim:
                raise InputError(f"input '{name}' has no axis {axis!r}", where="dynamic",
                                 mend=f"its axes: 0 to {tensor.ndim - 1}")
            found[name][axis % tensor.ndim] = _symbol(entry, int(tensor.shape[axis]), name, axis % tensor.ndim)
    return _agreed(found)


def _known(tensors: Mapping[str, Any], name: str) -> Any:
    if name not in tensors:
        raise InputError(f"the model has no input '{name}'", mend=f"its inputs: {', '.join(tensors)}")
    return tensors[name]


def _from_spec(found: dict[str, dict[int, Symbol]], tensors: Mapping[str, Any], name: str, spec: ShapeSpec) -> None:
    tensor, axes = _known(tensors, name), read_spec(spec)
    if len(axes) != tensor.ndim:
        raise InputError(f"the shape given for input '{name}' has {len(axes)} axes, the example {tensor.ndim}",
                         mend="write one size or range per axis")
    for axis, entry in enumerate(axes):
        if isinstance(entry, Symbol):
            found[name][axis] = _symbol(entry, int(tensor.shape[axis]), name, axis)
        elif entry != tensor.shape[axis]:
            raise InputError(f"axis {axis} of input '{name}' is {entry} here and {tensor.shape[axis]} in the example",
                             mend="give an example of that size, or a range")


def _symbol(entry: Any, size: int, name: str, axis: int) -> Symbol:
    if entry is True:
        entry = f"{name}_{axis}"
    if isinstance(entry, str) and entry.isidentifier():
        return Symbol(entry, 1, size, max(size, LARGEST))
    (made,) = read_spec(entry if isinstance(entry, str) else (entry,))
    if not isinstance(made, Symbol):
        raise InputError(f"{entry!r} is no range", where=f"dynamic, axis {axis} of input '{name}'",
                         mend='write min..max, min..opt..max or name=min..opt..max')
    label = made.name if made.name != "?" else "batch" if axis == 0 else f"{name}_{axis}"
    return Symbol(label, made.min, made.opt, made.max)


def _agreed(found: dict[str, dict[int, Symbol]]) -> dict[str, dict[int, Symbol]]:
    """One range per name: a bare name takes the range that was given elsewhere. Raises InputError."""
    ranges: dict[str, Symbol] = {}
    for axes in found.values():
        for s in axes.values():
            known = ranges.get(s.name)
            if known is None or _assumed(known):
                ranges[s.name] = s
            elif s != known and not _assumed(s):
                raise InputError(f"the dimension '{s.name}' is given two ranges: {known} and {s}", where="dynamic",
                                 mend="give one range wherever that name is used")
    return {name: {axis: ranges[s.name] for axis, s in axes.items()} for name, axes in found.items()}


def _assumed(s: Symbol) -> bool:
    return (s.min, s.max) == (1, max(s.opt, LARGEST))


def specs_from(tensors: Mapping[str, Any], axes: Mapping[str, Mapping[int, Symbol]]) -> dict[str, ShapeSpec]:
    """The shapes of the inputs, as `frontend.load` wants them."""
    return {name: tuple(axes[name].get(i, int(size)) for i, size in enumerate(t.shape)) for name, t in tensors.items()}


def stretched(tensors: Mapping[str, torch.Tensor], axes: Mapping[str, Mapping[int, Symbol]]) -> list[torch.Tensor]:
    """The examples with at least two items on every axis that may vary: a size of one is taken for a constant.

    Axes of one name get one size. Values are repeated.
    """
    sizes: dict[str, int] = {}
    for name, tensor in tensors.items():
        for axis, s in axes[name].items():
            sizes[s.name] = max(sizes.get(s.name, min(2, s.max)), int(tensor.shape[axis]))
    found = []
    for name, tensor in tensors.items():
        for axis, s in axes[name].items():
            index = torch.arange(sizes[s.name]) % tensor.shape[axis]
            tensor = tensor.index_select(axis, index)
        found.append(tensor.contiguous())
    return found
