"""Do products and convolutions that read one input side by side in one step.

    a = x @ A + p, b = x @ B + q, c = x @ C + r   ->   a, b, c = Split(x @ [A B C] + [p q r])

When it is worthwhile. Products: when every result goes straight into Attention, which reads the parts of a Split in
place; or when each has fewer than 64 columns, too few to fill the machine alone. Convolutions: when each has fewer
than 16 output channels (less than one block of lanes). Elsewhere the Split would cost a copy and save little.
Each result is the same sum in the same order, so special values come out as before.
"""
from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass, replace
from types import MappingProxyType

import numpy as np

from ingot.graph import Graph, Node, TensorType, type_of
from ingot.ops import infer
from ingot.passes.attention import recognise_attention
from ingot.passes.duplicates import frozen
from ingot.passes.gemm import split_gemm
from ingot.passes.graph_pass import graph_pass
from ingot.passes.scale import fold_scale
from ingot.target import Target

NARROW = 64         # columns below which a product is too small to fill the machine alone
FEW = 16            # channels below which a convolution leaves lanes empty
VIEWS = frozenset({"Reshape", "Transpose"})


@dataclass(frozen=True)
class Branch:
    """One of several products or convolutions on one input, and the constant bias added to it, if any."""

    node: Node
    weight: str
    bias: str = ""
    add: Node | None = None     # the Add of the bias, where that is a node of its own

    @property
    def output(self) -> str:
        return self.node.output if self.add is None else self.add.output

    @property
    def origin(self) -> tuple[str, ...]:
        return self.node.origin + (self.add.origin if self.add is not None else ())


def _branch(graph: Graph, node: Node) -> Branch | str:
    """The branch a node begins, or why it begins none."""
    if node.op not in ("MatMul", "Conv"):
        return f"it is {node.op}, not MatMul or Conv"
    weight = node.inputs[1]
    if weight not in graph.constants:
        return "its weight is not a constant"
    if node.op == "Conv":
        bias = node.inputs[2] if len(node.inputs) > 2 else ""
        if bias and bias not in graph.constants:
            return "its bias is not a constant"
        if node.attrs.get("group", 1) != 1:
            return "it is grouped"
        return Branch(node, weight, bias)
    if graph.constants[weight].ndim != 2:
        return "its weight is not a matrix"
    readers = graph.readers.get(node.output, ())
    if len(readers) == 1 and readers[0].op == "Add" and graph.uses[node.output] == 1:
        add = readers[0]
        bias = next((i for i in add.inputs if i != node.output), "")
        array = graph.constants.get(bias)
        if array is not None and array.shape == graph.constants[weight].shape[1:]:
            return Branch(node, weight, bias, add)
    return Branch(node, weight)


def _into_attention(graph: Graph, value: str) -> bool:
    """Whether all that is read of a value are views that end in Attention."""
    readers = graph.readers.get(value, ())
    return bool(readers) and value not in graph.outputs and all(
        n.op == "Attention" or (n.op in VIEWS and _into_attention(graph, n.output)) for n in readers)


def _width(graph: Graph, branch: Branch) -> int:
    return int(graph.constants[branch.weight].shape[0 if branch.node.op == "Conv" else 1])


def _not_worthwhile(graph: Graph, branches: list[Branch]) -> str | None:
    if len(branches) < 2:
        return "no other product or convolution of the same form reads its input"
    if branches[0].node.op == "Conv":
        wide = next((b for b in branches if _width(graph, b) >= FEW), None)
        return f"'{wide.output}' has {_width(graph, wide)} channels: enough alone" if wide else None
    if all(_into_attention(graph, b.output) for b in branches):
        return None
    wide = next((b for b in branches if _width(graph, b) >= NARROW), None)
    return f"'{wide.output}' has {_width(graph, wide)} columns, and not all results go into Attention" if wide else None


def _key(graph: Graph, branch: Branch) -> object:
    """Branches with equal keys can be one."""
    weight = graph.constants[branch.weight]
    shape = weight.shape[1:] if branch.node.op == "Conv" else weight.shape[:1]
    attrs = tuple(sorted((k, frozen(v)) for k, v in branch.node.attrs.items()))
    return branch.node.op, branch.node.inputs[0], str(weight.dtype), shape, attrs


def _groups(graph: Graph) -> list[list[Branch]]:
    found: defaultdict[object, list[Branch]] = defaultdict(list)
    for node in graph.nodes:
        branch = _branch(graph, node)
        if isinstance(branch, Branch):
            found[_key(graph, branch)].append(branch)
    return list(found.values())


def why_not(graph: Graph, node: Node) -> str | None:
    """None if the node would be merged with its siblings, else why it stays alone."""
    branch = _branch(graph, node)
    if isinstance(branch, str):
        return branch
    group = next(g for g in _groups(graph) if any(b.node is node for b in g))
    return _not_worthwhile(graph, group)


def _joined(graph: Graph, branches: list[Branch], types: Mapping[str, TensorType],
            taken: set[str]) -> tuple[list[Node], dict[str, np.ndarray]]:
    """The nodes and constants that do the work of all the branches."""
    first = branches[0].node
    conv = first.op == "Conv"
    origin = tuple(dict.fromkeys(o for b in branches for o in b.origin))
    stem = _free("+".join(b.output for b in branches), taken)
    weight = np.concatenate([graph.constants[b.weight] for b in branches], axis=0 if conv else 1)
    made = {f"{stem}.weight": weight}
    biased = any(b.bias for b in branches)
    if biased:
        made[f"{stem}.bias"] = np.concatenate([
            graph.constants[b.bias] if b.bias else np.zeros(_width(graph, b), weight.dtype) for b in branches])
    inputs = (first.inputs[0], f"{stem}.weight")
    rank = types[first.output].rank
    split = Node("Split", (stem,), tuple(b.output for b in branches), MappingProxyType(
        {"axis": 1 if conv else rank - 1, "split": tuple(_width(graph, b) for b in branches)}), origin)
    if conv:
        node = replace(first, inputs=inputs + ((f"{stem}.bias",) if biased else ()), outputs=(stem,), origin=origin)
        return [node, split], made
    if not biased:
        return [replace(first, inputs=inputs, outputs=(stem,), origin=origin), split], made
    product = replace(first, inputs=inputs, outputs=(f"{stem}.product",), origin=origin)
    return [product, Node("Add", (product.output, f"{stem}.bias"), (stem,), MappingProxyType({}), origin), split], made


def _free(stem: str, taken: set[str]) -> str:
    """A stem none of whose names is taken; long ones are cut."""
    stem = stem if len(stem) <= 80 else f"{stem[:77]}..."
    name, count = stem, 0
    while {name, f"{name}.weight", f"{name}.bias", f"{name}.product"} & taken:
        count += 1
        name = f"{stem}.{count}"
    return name


@graph_pass(after=(split_gemm, fold_scale, recognise_attention), why_not=why_not)
def merge_siblings(graph: Graph, target: Target) -> Graph:
    """Merge products (with constant biases), and narrow convolutions, that read one input into one and a Split."""
    groups = [g for g in _groups(graph) if _not_worthwhile(graph, g) is None]
    if not groups:
        return graph
    constants, types = dict(graph.constants), dict(graph.types)
    placed: dict[int, list[Node]] = {}
    gone: set[int] = set()
    for branches in groups:
        nodes, arrays = _joined(graph, branches, types, set(types))
        constants.update(arrays)
        types.update((k, type_of(a)) for k, a in arrays.items())
        for node in nodes:
            made = infer(node, tuple(types[i] for i in node.inputs))
            types.update(zip(node.outputs, made, strict=True))
        placed[id(branches[0].node)] = nodes
        gone.update(id(n) for b in branches for n in (b.node, b.add) if n is not None)
    result: list[Node] = []
    for node in graph.nodes:
        result += placed.get(id(node), []) if id(node) in gone else [node]
    read = {i for n in result for i in n.inputs} | {*graph.outputs}
    constants = {k: v for k, v in constants.items() if k in read}
    kept = {*graph.inputs, *constants, *(o for n in result for o in n.outputs)}
    return replace(graph, nodes=tuple(result), constants=MappingProxyType(constants),
                   types=MappingProxyType({k: t for k, t in types.items() if k in kept}))
