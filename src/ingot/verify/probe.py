"""What a model is verified on where no inputs are given: seeded random values, other sizes, and special values."""
from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from ingot.graph import Expr, Graph, Node, TensorType, evaluate
from ingot.graph.dim import Dim

Feeds = Mapping[str, np.ndarray]

# What an index passes through unchanged on its way to the table it looks up.
_CARRIERS = frozenset({"Cast", "Identity", "Reshape", "Squeeze", "Unsqueeze", "Expand", "Transpose", "Flatten", "Slice",
                       "Concat", "Split", "Tile"})
_PLAIN_RANGE = 4        # an integer input of unknown use takes values below this


@dataclass(frozen=True)
class Probe:
    """One set of inputs, what it is, and whether the items of axis 0 are judged one by one."""

    name: str
    feeds: Feeds
    bindings: Mapping[str, int]


def _readers(graph: Graph, value: str) -> tuple[Node, ...]:
    return graph.readers.get(value, ())


def index_limit(graph: Graph, value: str) -> int | None:
    """One more than the largest valid index, where `value` is looked up in tables; None where it is not an index."""
    limits: list[int] = []
    pending, seen = [value], {value}
    while pending:
        name = pending.pop()
        for node in _readers(graph, name):
            if node.op == "Gather" and node.inputs[1] == name:
                table = graph.types[node.inputs[0]]
                size = table.shape[int(node.attrs.get("axis", 0))]  # type: ignore[call-overload]
                limits += [size] if isinstance(size, int) else []
            elif node.op == "RoiAlign" and node.inputs[2] == name:      # which image of the batch a box is of
                images = graph.types[node.inputs[0]].shape[0]
                limits.append(images if isinstance(images, int) else 1)
            elif node.op in _CARRIERS:
                fresh = [o for o in node.outputs if o and o not in seen]
                seen.update(fresh)
                pending += fresh
    return min(limits, default=None)


def _shape(type_: TensorType, bindings: Mapping[str, int]) -> tuple[int, ...]:
    return tuple(evaluate(d, bindings) for d in type_.shape)


def _is_mask(name: str) -> bool:
    return "mask" in name.lower()


def _random(graph: Graph, name: str, bindings: Mapping[str, int], rng: np.random.Generator) -> np.ndarray:
    type_ = graph.types[name]
    shape, dtype = _shape(type_, bindings), type_.dtype
    if _is_mask(name) and dtype.kind in ("int", "uint", "bool", "float") and shape:
        lengths = rng.integers(1, shape[-1] + 1, shape[:-1])        # a prefix of ones, at least one; the first is full
        lengths.flat[:1] = shape[-1]
        return (np.arange(shape[-1]) < lengths[..., None]).astype(dtype.numpy)
    if dtype.kind in ("int", "uint"):
        limit = index_limit(graph, name)
        if limit is None and dtype.name == "u8" and type_.rank > 2:
            limit = 256         # pixels
        return rng.integers(0, _PLAIN_RANGE if limit is None else limit, shape).astype(dtype.numpy)
    if dtype.kind == "bool":
        return rng.integers(0, 2, shape).astype(bool)
    if dtype.kind == "str":
        return np.full(shape, "a", dtype=object)
    return rng.standard_normal(shape).astype(dtype.numpy)


def random_feeds(graph: Graph, bindings: Mapping[str, int], seed: int) -> dict[str, np.ndarray]:
    """Seeded inputs within what the model can take: normal floats, indices inside their tables, prefix masks."""
    rng = np.random.default_rng(seed)
    return {name: _random(graph, name, bindings, rng) for name in graph.inputs}


SPECIAL = ("zeros", "large", "tiny", "NaN", "+inf", "-inf")


def _special(kind: str, array: np.ndarray) -> np.ndarray:
    """One item made special. Large and tiny stay far from overflow and from denormals: a sum must not leave them."""
    if kind == "zeros":
        return np.zeros_like(array)
    if kind in ("large", "tiny"):
        scale = 2.0 ** 12 if kind == "large" else 2.0 ** -12
        return (array.astype(np.float64) * scale).astype(array.dtype)
    changed = array.copy()
    changed.flat[changed.size // 2:changed.size // 2 + 1] = {"NaN": np.nan, "+inf": np.inf, "-inf": -np.inf}[kind]
    return changed


def other_sizes(graph: Graph) -> dict[str, int] | None:
    """Sizes of the symbols that differ from the tuned ones, as small as may be; None where nothing is dynamic."""
    sizes = {}
    for symbol in graph.symbols.values():
        wanted = [n for n in (2, 3, 1) if symbol.min <= n <= symbol.max and n != symbol.opt]
        far = symbol.min if symbol.min != symbol.opt else symbol.max
        sizes[symbol.name] = wanted[0] if wanted else far
    return sizes if any(sizes[s.name] != s.opt for s in graph.symbols.values()) else None


def _batch(graph: Graph) -> str | None:
    """The symbol that is the leading axis of every input, if there is one."""
    leads: set[Dim] = {graph.types[i].shape[0] if graph.types[i].shape else 1 for i in graph.inputs}
    lead = leads.pop() if len(leads) == 1 else 1
    return str(lead) if isinstance(lead, Expr) and str(lead) in graph.symbols else None


def special_probes(graph: Graph, seed: int) -> list[Probe]:
    """Zeros, large, tiny, NaN and infinite float inputs, side by side in one batch where the batch is dynamic."""
    floats = [i for i in graph.inputs if graph.types[i].dtype.kind == "float" and not _is_mask(i)]
    sizes = {s.name: s.opt for s in graph.symbols.values()}
    if not floats:
        return []
    batch = _batch(graph)
    room = graph.symbols[batch].max if batch else 0
    if batch and room > 1 and graph.symbols[batch].min <= len(SPECIAL):
        kinds = SPECIAL[:room]
        sizes[batch] = max(len(kinds), graph.symbols[batch].min)
        feeds = random_feeds(graph, sizes, seed)
        for name in floats:
            for item, kind in enumerate(kinds):
                feeds[name][item] = _special(kind, feeds[name][item])
        return [Probe(f"special values ({', '.join(kinds)})", feeds, sizes)]
    probes = []
    for kind in SPECIAL:
        feeds = random_feeds(graph, sizes, seed)
        probes.append(Probe(kind, {**feeds, **{n: _special(kind, feeds[n]) for n in floats}}, sizes))
    return probes


def probes(graph: Graph, seed: int = 0) -> list[Probe]:
    """Everything a model is verified on, the most telling first."""
    tuned = {s.name: s.opt for s in graph.symbols.values()}
    found = [Probe("random" + _at(tuned), random_feeds(graph, tuned, seed), tuned)]
    if other := other_sizes(graph):
        found.append(Probe("random" + _at(other), random_feeds(graph, other, seed + 1), other))
    return found + special_probes(graph, seed + 2)


def _at(sizes: Mapping[str, int]) -> str:
    return " at " + ", ".join(f"{k}={v}" for k, v in sizes.items()) if sizes else ""
