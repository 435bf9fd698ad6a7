"""Let convolutions work on blocked channels (a CPU) or on channels last (a GPU), from end to end.

A convolution that is worth it gets the attribute `layout` ("c16" with AVX-512, "c8" with AVX2): its result lies in
blocks of that many channels. Pointwise ops, pooling and resizing pass the layout on, and so do Concat and Split where
parts end with a block or half of one; a Reorder stands only where a blocked value meets an op that takes plain ones, or
a plain value a chain of blocked ones.

What is worth it: an f32 convolution of rank 3 to 5 with a constant weight, at least half a block of output channels,
and one group, or one channel per group, or groups of whole blocks; and another such convolution that it reaches
without leaving the blocked layout (one alone would pay for two Reorders). A convolution with fewer input channels
than a block reads its input plain. No number changes.

For a GPU the layout is "nhwc", which has no blocks: every convolution of rank 4 with a constant weight in one of the
floating types or i8 gets it, also one alone; one with fewer than eight input channels reads its input plain.
"""
from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from types import MappingProxyType

from ingot.graph import BF16, F16, F32, I8, I32, U8, DType, Graph, Node, TensorType
from ingot.ops import OPS, infer
from ingot.ops.shapes import GROUP
from ingot.passes.duplicates import merge_duplicates
from ingot.passes.graph_pass import graph_pass
from ingot.passes.rewrite import attribute
from ingot.target import Target

BLOCKS = {"avx512": 16, "avx2": 8}      # channels per block, by instruction set
FEW = 8                                 # channels last: an input of fewer channels than this is read plain
FLOATS = frozenset({F32, F16, BF16})
LAST = FLOATS | {I8, I32}             # what channels last serves
BLOCKED = frozenset({F32, BF16, U8, I8, I32})   # what blocks serve
Served = frozenset[DType]
WORD = 4                                # 8-bit channels that sums of integers take at once
NARROW: Mapping[str, DType] = {"ConvInteger": U8, "ShortConv": BF16}    # convolutions with kernels for blocks only
CONVOLUTIONS = frozenset({"Conv", "ConvTranspose", *NARROW})
TO_PLAIN = frozenset({"GlobalAveragePool", "GlobalMaxPool", "GlobalLpPool"})
PASS_ON = frozenset({"MaxPool", "AveragePool", "LpPool", "Resize"})
JOINTS = frozenset({"Concat", "Split"})


def block_of(target: Target) -> int:
    """Channels per block for a target; 0 where it has no use for blocks."""
    return BLOCKS.get(target.isa, 0)


def unfit_last(graph: Graph, node: Node) -> str | None:
    """Why a node is no convolution to work on channels last, None if it is one."""
    if node.op not in CONVOLUTIONS:
        return f"it is {node.op}, not a convolution"
    x, weight = graph.types[node.inputs[0]], graph.types[node.inputs[1]]
    if x.dtype not in ((I8,) if node.op == "ConvInteger" else FLOATS) or x.rank != 4:
        return f"its input is {x}: not floating, or i8, of rank 4"
    if node.inputs[1] not in graph.constants:
        return "its weight is not a constant"
    if _channels(weight, node.op, int(str(attribute(node, "group")))) is None:
        return "its channels are not known"
    return None


def _channels(weight: TensorType, op: str, group: int) -> tuple[int, int] | None:
    """(input, output) channels of a convolution, where they are known."""
    a, b = weight.shape[0], weight.shape[1]
    if not isinstance(a, int) or not isinstance(b, int):
        return None
    return (a, b * group) if op == "ConvTranspose" else (b * group, a)


def unfit(graph: Graph, node: Node, block: int) -> str | None:
    """Why a node is no convolution to be blocked, None if it is one."""
    if node.op not in CONVOLUTIONS:
        return f"it is {node.op}, not a convolution"
    if not block:
        return "the target has no blocked layout"
    x, weight = graph.types[node.inputs[0]], graph.types[node.inputs[1]]
    if x.dtype != NARROW.get(node.op, F32) or not 3 <= x.rank <= 5:
        return f"its input is {x}: not {NARROW.get(node.op, F32)} of rank 3 to 5"
    if node.inputs[1] not in graph.constants:
        return "its weight is not a constant"
    group = int(str(attribute(node, "group")))
    channels = _channels(weight, node.op, group)
    if channels is None:
        return "its channels are not known"
    inner, outer = channels
    if outer < block // 2:
        return f"{outer} output channels leave most of a block of {block} empty"
    if group == 1 or (group == inner == outer and node.op != "ConvTranspose"):
        return None
    if (inner // group) % block or (outer // group) % block:
        return f"its groups have {inner // group} and {outer // group} channels, not whole blocks of {block}"
    return None


def _carries(graph: Graph, node: Node, value: str, served: Served, block: int) -> bool:
    """Whether a node takes a blocked `value` as one that gives its results its layout; `block` is 0 for nhwc."""
    op, x = OPS.get(node.op), graph.types[value]
    if op is None or not op.blocked or x.dtype not in served or x.rank < 3 or node.op in CONVOLUTIONS:
        return False
    if block and x.dtype == BF16 and not op.pointwise and node.op != "Concat":
        return False                    # bf16 in blocks is only what convolutions read
    if node.op in TO_PLAIN:
        return value == node.inputs[0]
    if node.op in JOINTS:
        return bool(block) and _joins(graph, node, block)
    if len(node.outputs) > 1:
        return False
    out = graph.types[node.output]
    if out.dtype not in served or out.rank != x.rank or out.shape[1] != x.shape[1] or not isinstance(out.shape[1], int):
        return False
    if not op.pointwise:
        floats = x.dtype in FLOATS      # no kernel pools integers in blocks
        return floats and node.op in PASS_ON and value == node.inputs[0] and out.shape[0] == x.shape[0]
    return all(_operand(graph, i, out, served) for i in node.inputs if i)


def _joins(graph: Graph, node: Node, block: int) -> bool:
    """Whether the parts of a Concat or Split of f32 (a Concat of bf16, too) can lie in blocks side by side."""
    whole, parts = (node.output, node.inputs) if node.op == "Concat" else (node.inputs[0], node.outputs)
    types = [graph.types[v] for v in parts if v]
    if len(types) != len(parts) or any(v in graph.constants for v in parts) or any(
            t.dtype not in (F32, BF16) for t in types):
        return False
    axis = int(str(attribute(node, "axis"))) % graph.types[whole].rank
    channels = [t.shape[1] for t in types]
    return all(isinstance(c, int) for c in channels) and (
        axis != 1 or all(isinstance(c, int) and c % GROUP == 0 for c in channels[:-1]))


def _operand(graph: Graph, value: str, out: TensorType, served: Served) -> bool:
    """Whether a pointwise op with this blocked result can read the value: blocked, one number, or one a channel."""
    t = graph.types[value]
    if t.dtype not in served:
        return False
    array = graph.constants.get(value)
    if array is not None:
        full = (1,) * (out.rank - array.ndim) + array.shape
        return array.ndim <= out.rank and all(d == 1 for i, d in enumerate(full) if i != 1)
    return t.size == 1 or (t.rank == out.rank and t.shape[1] == out.shape[1])


def _chains(graph: Graph, fits: Sequence[Node], block: int, served: Served = BLOCKED) -> dict[int, int]:
    """Convolution that fits (by id) -> how many such convolutions its chain of blocked ops has."""
    parent: dict[str, str] = {}

    def root(value: str) -> str:
        while parent.setdefault(value, value) != value:
            value = parent[value]
        return value

    ids = {id(n) for n in fits}
    for node in graph.nodes:
        if id(node) in ids:
            parent[root(node.inputs[0])] = root(node.output)
        elif any(_carries(graph, node, i, served, block) for i in node.inputs if i):
            for value in (*node.inputs, *node.outputs):
                if value and value not in graph.constants and node.op not in TO_PLAIN:
                    parent[root(value)] = root(node.output)
    count: dict[str, int] = {}
    for node in fits:                   # what has kernels for blocks only is worth two Reorders
        weight = 2 if node.op in NARROW else 1
        count[root(node.output)] = count.get(root(node.output), 0) + weight
    return {id(n): count[root(n.output)] for n in fits}


def _fitting(graph: Graph, block: int) -> list[Node]:
    return [n for n in graph.nodes if unfit(graph, n, block) is None]


def why_not(graph: Graph, node: Node) -> str | None:
    """None if the convolution would be blocked (blocks of 16), else why it stays plain."""
    reason = unfit(graph, node, 16)
    if reason is None and _chains(graph, _fitting(graph, 16), 16)[id(node)] < 2:
        return "no other blocked convolution is reached from it: the Reorders would cost more than it gains"
    return reason


@dataclass
class _Places:
    """The graph being laid out, and under which names each of its values exists, by layout."""

    graph: Graph
    nodes: list[Node] = field(default_factory=list)
    types: dict[str, TensorType] = field(default_factory=dict)
    names: dict[str, dict[str, str]] = field(default_factory=dict)      # value -> layout -> name

    def blocked(self, value: str) -> str:
        """The blocked layout a value first came in, "" for none."""
        return next(iter(self.names.get(value, {"": value})))

    def get(self, value: str, layout: str) -> str:
        """The name of a value in a layout; a Reorder is added where it is not there yet."""
        there = self.names.setdefault(value, {"": value})
        if layout not in there:
            name = value if layout == "" else self.fresh(f"{value}.{layout}")
            # a graph output keeps its plain name; the blocked one was made under another
            if name in self.types:
                name = self.fresh(f"{value}.plain")
            self.put(Node("Reorder", (there[self.blocked(value)],), (name,), MappingProxyType({"layout": layout})))
            there[layout] = name
        return there[layout]

    def fresh(self, stem: str) -> str:
        count, name = 0, stem
        while name in self.types or name in self.graph.types:
            count += 1
            name = f"{stem}.{count}"
        return name

    def put(self, node: Node) -> None:
        made = infer(node, tuple(self.types[i] if i else None for i in node.inputs))
        self.types.update((o, t) for o, t in zip(node.outputs, made, strict=True) if o)
        self.nodes.append(node)

    def place(self, node: Node, inputs: tuple[str, ...], layout: str, attrs: Mapping[str, object]) -> None:
        """Put a node whose first output (of a Split: all of them) lies in `layout`."""
        laid = node.outputs if node.op in JOINTS else node.outputs[:1]
        names = [self.fresh(f"{v}.{layout}") if layout and v in self.graph.outputs else v for v in laid]
        self.put(replace(node, inputs=inputs, outputs=(*names, *node.outputs[len(laid):]),
                         attrs=MappingProxyType(dict(attrs))))
        self.names.update((v, {layout: name}) for v, name in zip(laid, names, strict=True))


@graph_pass(after=(merge_duplicates,), why_not=why_not)
def choose_layout(graph: Graph, target: Target) -> Graph:
    """Lay the results of convolutions, and what follows them, by channels as the target wants; Reorder at the edges."""
    block, last = block_of(target), target.kind == "cuda"
    fits = [n for n in graph.nodes if unfit_last(graph, n) is None] if last else _fitting(graph, block) if block else []
    served = LAST if last else BLOCKED
    chains = _chains(graph, fits, block, served)
    least = 1 if last else 2
    if not any(count >= least for count in chains.values()):
        return graph
    layout = "nhwc" if last else f"c{block}"
    at = _Places(graph, types={v: graph.types[v] for v in (*graph.inputs, *graph.constants)})
    for node in graph.nodes:
        if chains.get(id(node), 0) >= least:
            _convolution(at, node, layout, FEW if last else block)
        elif (carried := [i for i in node.inputs if i and at.blocked(i)]) and any(
                _carries(graph, node, i, served, block) for i in carried):
            _carrier(at, node, layout)
        else:
            inputs = tuple(at.get(i, "") if i else "" for i in node.inputs)
            at.place(node, inputs, "", node.attrs)
    for value in graph.outputs:
        at.get(value, "")
    return replace(graph, nodes=tuple(at.nodes), types=MappingProxyType(at.types))


def _convolution(at: _Places, node: Node, layout: str, least: int) -> None:
    x = node.inputs[0]
    channels = at.graph.types[x].shape[1]
    narrow = node.op in NARROW and layout != "nhwc"
    few = isinstance(channels, int) and channels < least and not narrow
    plain = few and not at.blocked(x) and attribute(node, "group") == 1
    wanted = "" if plain else layout
    if narrow and isinstance(channels, int) and channels <= WORD and not at.blocked(x):
        wanted = f"c{WORD}"         # the first layer of a network: a word a pixel, or two
    inputs = (at.get(x, wanted), *node.inputs[1:])
    at.place(node, inputs, layout, {**node.attrs, "layout": layout})


def _carrier(at: _Places, node: Node, layout: str) -> None:
    graph = at.graph
    inputs: list[str] = []
    for value in node.inputs:
        if not value:
            inputs.append(value)
            continue
        beside = not OPS[node.op].pointwise and node.op not in JOINTS and value != node.inputs[0]
        lies_plain = beside or value in graph.constants or graph.types[value].size == 1
        inputs.append(at.get(value, "" if lies_plain else layout))
    at.place(node, tuple(inputs), "" if node.op in TO_PLAIN else layout, node.attrs)


__all__ = ["block_of", "choose_layout", "unfit", "why_not"]
