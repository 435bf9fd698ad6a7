"""Bring rows into another order in one step, and split and join values where that moves the least.

Windows that are shifted (Swin) are written as Slices, Concats, Reshapes and Transposes that move whole rows of the
last axis about, within each sample; the four corners of a patch are put side by side likewise. Such a tree that reads
one value becomes one Gather of its rows, by positions that are known: every number is moved once instead of once a
node. Only trees with a Concat in them: one Transpose has a kernel that is as fast.
"""
from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from types import MappingProxyType

import numpy as np

from ingot.graph import Graph, Node, type_of
from ingot.ops import OPS, infer
from ingot.ops.movement import slices_of
from ingot.passes.dead_code import remove_dead_code
from ingot.passes.graph_pass import graph_pass
from ingot.passes.rows import move_rows
from ingot.passes.siblings import merge_siblings
from ingot.target import Target

MOVES = frozenset({"Slice", "Concat", "Transpose", "Reshape"})
WIDE = 16           # elements of a row: shorter ones are not worth a position each
MOST = 1 << 20      # rows of a sample


@dataclass(frozen=True)
class Rows:
    """A value as rows of another one, `source`, sample by sample.

    `order[..., k]` is the row of the source that piece k of a row here is; `joined` counts the Concats on the way.
    """

    source: str
    order: np.ndarray
    joined: int


def _itself(graph: Graph, value: str) -> Rows | None:
    """A value as its own rows: of rank 3 or more, only the first axis of unknown size."""
    shape = graph.types[value].shape
    if len(shape) < 3 or graph.types[value].layout or value in graph.constants:
        return None
    sizes = [d for d in shape[1:] if isinstance(d, int)]
    if len(sizes) != len(shape) - 1 or min(sizes) < 1 or np.prod(sizes[:-1]) > MOST:
        return None
    return Rows(value, np.arange(int(np.prod(sizes[:-1]))).reshape(*sizes[:-1], 1), 0)


def _moved(graph: Graph, node: Node, found: Mapping[str, Rows]) -> Rows | str:
    """The result of a node that moves rows, as rows of what its tree reads; or why it is none."""
    if node.op not in MOVES or len(node.outputs) != 1:
        return f"it is {node.op}, which does not move rows"
    out = graph.types[node.output]
    given = [found.get(i) or _itself(graph, i) for i in node.inputs if i]
    if out.rank < 3 or any(g is None for g in given):
        return "its operands or its result have fewer than three axes, or symbolic sizes behind the first"
    parts = [g for g in given if g is not None]
    first = parts[0]
    row = graph.types[first.source].shape[-1]
    if any(p.source != first.source for p in parts):
        return "its operands are rows of several values"
    if node.op == "Concat":
        axis = int(str(node.attrs["axis"])) % out.rank
        if axis == 0:
            return "it joins samples"
        return Rows(first.source, np.concatenate([p.order for p in parts], axis - 1), 1 + max(p.joined for p in parts))
    if node.op == "Transpose":
        default = tuple(reversed(range(out.rank)))
        perm = tuple(int(str(p)) for p in node.attrs.get("perm") or default)  # type: ignore[attr-defined]
        if perm[0] != 0 or perm[-1] != out.rank - 1:
            return "it moves the samples or the last axis"
        order = first.order.transpose(*(p - 1 for p in perm[1:-1]), out.rank - 2)
        return replace(first, order=order)
    if node.op == "Reshape":
        wide = out.shape[-1]
        sizes = [d for d in out.shape[1:] if isinstance(d, int)]
        before = graph.types[node.inputs[0]].shape
        if len(sizes) != out.rank - 1 or out.shape[0] != before[0] or not isinstance(wide, int) or not isinstance(
                row, int) or wide % row:
            return "it does not keep the samples, or cuts rows"
        return replace(first, order=first.order.reshape(*sizes[:-1], wide // row))
    return _sliced(graph, node, first)


def _sliced(graph: Graph, node: Node, first: Rows) -> Rows | str:
    shape = graph.types[node.inputs[0]].shape
    cuts = slices_of(graph.types[node.inputs[0]], {**OPS["Slice"].attrs, **node.attrs})
    if any(cut != (0, shape[axis], 1) for axis, cut in enumerate(cuts) if axis in (0, len(cuts) - 1)):
        return "it cuts samples or the last axis"
    picks: list[slice] = []
    for start, length, step in cuts[1:-1]:
        if not isinstance(start, int) or not isinstance(length, int) or step < 1:
            return "where it cuts is not known, or it runs backwards"
        picks.append(slice(start, start + (length - 1) * step + 1, step))
    return replace(first, order=first.order[tuple(picks)])


def _all(graph: Graph) -> dict[str, Rows]:
    """Every value that is rows of another one in another order."""
    found: dict[str, Rows] = {}
    for node in graph.nodes:
        rows = _moved(graph, node, found)
        if isinstance(rows, Rows):
            found[node.output] = rows
    return found


def _ends(graph: Graph, found: Mapping[str, Rows], value: str) -> bool:
    """Whether somebody reads the value for what it is, not to move it further."""
    readers = graph.readers.get(value, ())
    return value in graph.outputs or any(n.output not in found for n in readers)


def _worthwhile(graph: Graph, found: Mapping[str, Rows], node: Node) -> str | None:
    """Why no Gather takes the place of a node's result, None where one does."""
    rows = found.get(node.output)
    if rows is None:
        moved = _moved(graph, node, found)
        return moved if isinstance(moved, str) else None
    width = graph.types[rows.source].shape[-1]
    if not rows.joined:
        return "no Concat is in its tree"
    if not isinstance(width, int) or width < WIDE:
        return f"its rows are shorter than {WIDE}"
    return None if _ends(graph, found, node.output) else "its result is moved further"


def why_not(graph: Graph, node: Node) -> str | None:
    """None if a Gather would take the place of the node's result, else why it stays."""
    return _worthwhile(graph, _all(graph), node)


def _gathered(graph: Graph, node: Node, rows: Rows, taken: set[str]) -> tuple[list[Node], dict[str, np.ndarray]]:
    """Three nodes, the Gather between two Reshapes, and the positions."""
    def fresh(stem: str) -> str:
        count, name = 0, stem
        while name in taken:
            count += 1
            name = f"{stem}.{count}"
        taken.add(name)
        return name

    def made(op: str, inputs: tuple[str, ...], output: str, **attrs: object) -> Node:
        return Node(op, inputs, (output,), MappingProxyType(attrs), node.origin)

    source, out = graph.types[rows.source], graph.types[node.output]
    flat, picked, at = (fresh(f"{node.output}.{part}") for part in ("rows", "ordered", "order"))
    count = int(np.prod([int(str(d)) for d in source.shape[1:-1]]))
    nodes = [made("Reshape", (rows.source,), flat, shape=(source.shape[0], count, source.shape[-1])),
             made("Gather", (flat, at), picked, axis=1), made("Reshape", (picked,), node.output, shape=out.shape)]
    return nodes, {at: np.ascontiguousarray(rows.order.reshape(-1), np.int64)}


@graph_pass(after=(move_rows,), why_not=why_not)
def order_rows(graph: Graph, target: Target) -> Graph:
    """Put one Gather of rows in the place of Slices, Concats and Transposes that move them about (not on a GPU)."""
    if target.kind == "cuda":
        return graph
    found = _all(graph)
    if not any(_worthwhile(graph, found, n) is None for n in graph.nodes):
        return graph
    constants, types, taken = dict(graph.constants), dict(graph.types), set(graph.types)
    nodes: list[Node] = []
    for node in graph.nodes:
        if _worthwhile(graph, found, node) is not None:
            nodes.append(node)
            continue
        made, arrays = _gathered(graph, node, found[node.output], taken)
        constants.update(arrays)
        types.update((k, type_of(a)) for k, a in arrays.items())
        for one in made:
            types.update(zip(one.outputs, infer(one, tuple(types[i] for i in one.inputs)), strict=True))
        nodes += made
    return remove_dead_code(replace(graph, nodes=tuple(nodes), constants=MappingProxyType(constants),
                                    types=MappingProxyType(types)), target)


# --- splits of the last axis ------------------------------------------------------------------------------------------


def _reshaped_alike(graph: Graph, node: Node) -> list[Node] | str:
    """The Reshapes that alone read the parts of a Split of the last axis, all to the same rows; or why not."""
    if node.op != "Split":
        return f"it is {node.op}, not Split"
    x = graph.types[node.inputs[0]]
    if int(str(node.attrs.get("axis", 0))) % x.rank != x.rank - 1 or x.layout:
        return "it does not split the last axis"
    found: list[Node] = []
    for value in node.outputs:
        readers = graph.readers.get(value, ()) if value else ()
        if len(readers) != 1 or readers[0].op != "Reshape" or value in graph.outputs:
            return "a part is not read by one Reshape alone"
        found.append(readers[0])
    shapes = [graph.types[n.output].shape for n in found]
    widths = [graph.types[v].shape[-1] for v in node.outputs]
    if any(len(s) < 1 or s[-1] != w or s[:-1] != shapes[0][:-1] for s, w in zip(shapes, widths, strict=True)):
        return "the Reshapes do not keep the last axis, or differ"
    return found


def why_not_split(graph: Graph, node: Node) -> str | None:
    """None if a Split would follow one Reshape instead of going before several, else why not."""
    found = _reshaped_alike(graph, node)
    return found if isinstance(found, str) else None


@graph_pass(after=(merge_siblings,), why_not=why_not_split)
def reshape_before_split(graph: Graph, target: Target) -> Graph:
    """Reshape once before a Split of the last axis, not each part behind it: parts are then read where they lie."""
    nodes: list[Node] = []
    types = dict(graph.types)
    gone: set[int] = set()
    for node in graph.nodes:
        found = _reshaped_alike(graph, node)
        if isinstance(found, str):
            if id(node) not in gone:
                nodes.append(node)
            continue
        gone |= {id(n) for n in found}
        whole = f"{node.inputs[0]}.rows"
        while whole in types:
            whole += "."
        shape = (*graph.types[found[0].output].shape[:-1], graph.types[node.inputs[0]].shape[-1])
        first = Node("Reshape", node.inputs[:1], (whole,), MappingProxyType({"shape": shape}), found[0].origin)
        types[whole] = infer(first, (types[node.inputs[0]],))[0]
        nodes += [first, replace(node, inputs=(whole, *node.inputs[1:]), outputs=tuple(n.output for n in found),
                                 attrs=MappingProxyType({**node.attrs, "axis": len(shape) - 1}))]
    if not gone:
        return graph
    kept = {*graph.inputs, *graph.constants, *(o for n in nodes for o in n.outputs)}
    return replace(graph, nodes=tuple(nodes), types=MappingProxyType({k: t for k, t in types.items() if k in kept}))


# --- parts that are joined again --------------------------------------------------------------------------------------


def _rejoined(graph: Graph, node: Node) -> tuple[str, ...] | str:
    """The inputs of a Concat with all parts of a Split in a row as what was split; or why there are none."""
    if node.op != "Concat":
        return f"it is {node.op}, not Concat"
    axis = int(str(node.attrs["axis"])) % graph.types[node.output].rank
    inputs, at = node.inputs, 0
    found: list[str] = []
    while at < len(inputs):
        split = graph.producers.get(inputs[at])
        count = len(split.outputs) if split is not None else 0
        if split is not None and split.op == "Split" and inputs[at:at + count] == split.outputs and axis == int(
                str(split.attrs.get("axis", 0))) % graph.types[split.inputs[0]].rank:
            found.append(split.inputs[0])
            at += count
            continue
        found.append(inputs[at])
        at += 1
    return tuple(found) if len(found) < len(inputs) else "it does not join all the parts of a Split"


def why_not_rejoined(graph: Graph, node: Node) -> str | None:
    """None if parts of a Split that the node joins again are taken as the whole, else why not."""
    found = _rejoined(graph, node)
    return found if isinstance(found, str) else None


@graph_pass(after=(merge_siblings,), why_not=why_not_rejoined)
def rejoin_parts(graph: Graph, target: Target) -> Graph:
    """Join what was split, not its parts one by one, where a Concat reads them all in order beside other values."""
    nodes = []
    for node in graph.nodes:
        found = _rejoined(graph, node)
        nodes.append(node if isinstance(found, str) else replace(node, inputs=found))
    if all(a is b for a, b in zip(nodes, graph.nodes, strict=True)):
        return graph
    return replace(graph, nodes=tuple(nodes))
