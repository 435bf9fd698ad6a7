"""Let a graph work in a shorter floating type: f16 or bf16 between kernels, f32 inside them.

Every node that makes or reads f32 is turned, but for those that would lose what matters: functions that grow or
cancel quickly when written out (Exp, Log, Pow, sums of squares), scales of quantised values, bodies of loops, nodes
with an operand too small for the type, and the nodes a caller names because their values overflow on its inputs.
Casts stand where the two meet; a graph keeps the types of its inputs and outputs unless it is told otherwise.

Around products of integers or of f8 what stays in registers is f32, too (`in_registers`): the scaling of a sum that f16
could not hold, what follows it, and the rounding to short numbers. Only what other kernels read is of the short type.
"""
from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from types import MappingProxyType

import numpy as np

from ingot.errors import InputError, ModelError
from ingot.graph import BF16, F16, F32, DType, Graph, Node, TensorType
from ingot.ops import OPS, infer
from ingot.ops.reference import run_graph

SHORT: Mapping[str, DType] = {"f16": F16, "bf16": BF16}
PRECISIONS = ("f16", "bf16", "tf32", "f32")
LARGEST = 65504.0           # of f16
INFINITE = 1e30             # what is as large stands for infinity, in a mask: its nearest in f16 means the same
SENSITIVE = frozenset({
    "Exp", "Log", "Pow", "Softplus", "Mish", "CumSum", "CumProd", "ReduceSumSquare", "ReduceL2", "ReduceLogSum",
    "ReduceLogSumExp", "ReduceProd", "ReduceSum", "MeanVarianceNormalization", "LpNormalization", "LRN", "LpPool",
    "GlobalLpPool", "QuantizeLinear", "DequantizeLinear", "DynamicQuantizeLinear", "Range", "ConstantOfShape",
    "EyeLike", "RandomNormal", "RandomUniform", "Det", "DFT", "STFT", "BatchNormalization", "Reciprocal", "Tan",
    "Sinh", "Cosh", "Asinh", "Acosh", "Atanh", "NonMaxSuppression", "Resize", "GridSample", "RoiAlign", "Bernoulli",
    "RotaryEmbedding", "LSTM", "GRU", "RNN", "TopK", "Unique", "ImageDecoder"})
_FEW = 16                   # elements: an operand of so few is one whose every value counts


@dataclass(frozen=True)
class Precision:
    """How a build computes: `name` is "f16", "bf16", "tf32" or "f32"; `keep` are nodes, by output, that stay in f32.

    With `outside` the graph's inputs and outputs are of the short type too.
    """

    name: str = "f32"
    keep: frozenset[str] = frozenset()
    outside: bool = False

    def __post_init__(self) -> None:
        if self.name not in PRECISIONS:
            raise InputError(f"no precision is called {self.name!r}", mend=f"choose one of: {', '.join(PRECISIONS)}")


@dataclass(frozen=True)
class Overflow:
    """A value that does not fit f16 on the inputs tried: the share of its elements, and the largest magnitude."""

    value: str
    where: str
    share: float
    largest: float

    def __str__(self) -> str:
        return f"{self.where}: {self.share:.2%} of its values are beyond {LARGEST:g}, the largest {self.largest:.3g}"


def overflows(graph: Graph, feeds: Iterable[Mapping[str, np.ndarray]]) -> tuple[Overflow, ...]:
    """The values of a graph that leave f16's range on some of the inputs, measured by the reference in f32."""
    found: dict[str, Overflow] = {}

    def watch(value: str, array: np.ndarray) -> None:
        if array.dtype != np.float32 or not array.size or max(array.max(), -array.min()) <= LARGEST:
            return
        size = np.abs(array)
        finite = size[size < INFINITE]                  # what is infinite in f32 already is the model's own
        beyond = int((finite > LARGEST).sum())
        if beyond and beyond / array.size > (found[value].share if value in found else 0.0):
            found[value] = Overflow(value, graph.producers[value].where, beyond / array.size, float(finite.max()))

    for each in feeds:
        with np.errstate(all="ignore"):
            run_graph(graph, each, watch=watch)
    return tuple(found.values())


def kept_for(graph: Graph, found: Iterable[Overflow]) -> frozenset[str]:
    """The nodes, by first output, that make or read a value that overflows."""
    values = {o.value for o in found}
    return frozenset(n.output for n in graph.nodes if values & {*n.inputs, *n.outputs})


SUMS = frozenset({"MatMulInteger", "ConvInteger", "ShortMatMul"})


def in_registers(graph: Graph) -> tuple[frozenset[str], frozenset[str]]:
    """The values computed in registers between sums of short numbers and the end of their kernels: those sums, what is
    computed element by element from them alone or beside something that is there before, and Quantize and Dequantize
    anywhere. And those of them at the ends, which others read from memory."""
    ends: set[str] = set()
    found = {n.output for n in graph.nodes if n.op in ("Quantize", "Dequantize")}
    place = {v: k for k, n in enumerate(graph.nodes) for v in n.outputs}
    for start, node in enumerate(graph.nodes):
        if node.op not in SUMS:
            continue
        value = node.output
        found.add(value)
        while value not in graph.outputs and len(readers := graph.readers.get(value, ())) == 1:
            reader = readers[0]
            op, beside = OPS.get(reader.op), [i for i in reader.inputs if i and i != value]
            ready = all(place.get(i, -1) < start or i in found for i in beside)
            same = len(reader.outputs) == 1 and graph.types[reader.output].shape == graph.types[value].shape
            if op is None or not op.pointwise or not ready or not same:
                ends.add(value)
                break
            value = reader.output
            found.add(value)
            if reader.op == "Quantize":
                break
        else:
            ends.add(value)
    return frozenset(found), frozenset(ends)


def lower_precision(graph: Graph, precision: Precision) -> Graph:
    """The graph in the short type of the precision; the very same graph for one without ("f32", "tf32")."""
    short = SHORT.get(precision.name)
    return graph if short is None else _Lowered(graph, short, precision).graph()


@dataclass
class _Lowered:
    """A graph being turned; `at` knows under which name each value exists in which type."""

    source: Graph
    short: DType
    precision: Precision
    nodes: list[Node] = field(default_factory=list)
    types: dict[str, TensorType] = field(default_factory=dict)
    constants: dict[str, np.ndarray] = field(default_factory=dict)
    at: dict[tuple[str, str], str] = field(default_factory=dict)        # (value of the source, type) -> name here
    held: frozenset[str] = frozenset()                                  # values in registers, in f32
    ends: frozenset[str] = frozenset()                                  # those of them that memory holds

    def graph(self) -> Graph:
        """Everything, in order."""
        g, outside = self.source, self.precision.outside
        self.held, self.ends = in_registers(g)
        for value in g.inputs:
            turned = outside and g.types[value].dtype == F32
            self.types[value] = replace(g.types[value], dtype=self.short) if turned else g.types[value]
            self.at[value, self.types[value].dtype.name] = value
        for node in g.nodes:
            self._turn(node)
        outputs = [self._get(v, self.short if outside and g.types[v].dtype == F32 else g.types[v].dtype, as_is=True)
                   for v in g.outputs]
        for value, name in zip(g.outputs, outputs, strict=True):
            if name != value:       # an output is called what it was called
                self._rename(name, value)
        return replace(g, nodes=tuple(self.nodes), constants=MappingProxyType(self.constants),
                       types=MappingProxyType(self.types))

    def _turn(self, node: Node) -> None:
        g = self.source
        floats = [v for v in (*node.inputs, *node.outputs) if v and g.types[v].dtype == F32]
        if not floats:
            self._put(node, tuple(self._get(v, g.types[v].dtype) if v else "" for v in node.inputs), node.attrs)
            return
        if node.output in self.held:
            self._put(node, tuple(self._beside(v) if v else "" for v in node.inputs), node.attrs)
            return
        if self._short(node):
            attrs = dict(node.attrs)
            if node.op == "Cast" and attrs.get("to", "f32") == "f32":
                attrs["to"] = self.short.name
            inputs = tuple(self._get(v, self.short if g.types[v].dtype == F32 else g.types[v].dtype) if v else ""
                           for v in node.inputs)
            if self._put(node, inputs, attrs, trial=True):
                return
        self._put(node, tuple(self._get(v, g.types[v].dtype) if v else "" for v in node.inputs), node.attrs)

    def _beside(self, value: str) -> str:
        """A value for a node in registers: as it is from within, else as it lies in memory and then in f32; each reader
        has a Cast of its own, to be done where it is read."""
        dtype = self.source.types[value].dtype
        within = value in self.held and value not in self.ends
        if dtype != F32 or within or value in self.source.constants or value in self.precision.keep:
            return self._get(value, dtype)
        here = self._get(value, self.short)
        name = self._fresh(f"{value}.f32")
        self.nodes.append(Node("Cast", (here,), (name,), MappingProxyType({"to": "f32"})))
        self.types[name] = replace(self.types[here], dtype=F32)
        return name

    def _short(self, node: Node) -> bool:
        """Whether a node may compute in the short type."""
        if node.op in SENSITIVE or node.output in self.precision.keep:
            return False
        if any(isinstance(a, Graph) for a in node.attrs.values()):
            return False
        return self.short is BF16 or not any(_too_small(self.source.constants[v]) for v in node.inputs
                                             if v in self.source.constants)

    def _put(self, node: Node, inputs: tuple[str, ...], attrs: Mapping[str, object], *, trial: bool = False) -> bool:
        turned = replace(node, inputs=inputs, attrs=MappingProxyType(dict(attrs)))
        try:
            made = infer(turned, tuple(self.types[i] if i else None for i in inputs))
        except ModelError:
            if not trial:
                raise
            return False            # the op has no such form: it stays in f32
        renamed = []
        for value, type_ in zip(node.outputs, made, strict=True):
            renamed.append(value)
            if value:
                self.types[value] = type_
                self.at[value, type_.dtype.name] = value
        self.nodes.append(replace(turned, outputs=tuple(renamed)))
        return True

    def _get(self, value: str, dtype: DType, *, as_is: bool = False) -> str:
        """The name of a value in a type; a Cast, or a converted constant, is made where it is not there yet."""
        if (value, dtype.name) in self.at:
            return self.at[value, dtype.name]
        if value in self.source.constants:
            array = self.source.constants[value]
            same = array.dtype == dtype.numpy
            name = value if same or as_is else self._fresh(f"{value}.{dtype}")
            self.constants[name] = array if same else narrowed(array, dtype)
            self.types[name] = replace(self.source.types[value], dtype=dtype)
        else:
            here = next(n for (v, _), n in self.at.items() if v == value)
            name = self._fresh(f"{value}.{dtype}")
            self.nodes.append(Node("Cast", (here,), (name,), MappingProxyType({"to": dtype.name})))
            self.types[name] = replace(self.types[here], dtype=dtype)
        self.at[value, dtype.name] = name
        return name

    def _fresh(self, stem: str) -> str:
        name, count = stem, 0
        while name in self.types or name in self.source.types:
            count += 1
            name = f"{stem}.{count}"
        return name

    def _rename(self, name: str, wanted: str) -> None:
        """Give a value the name of the graph's output; what bears that name gets another."""
        spare = self._fresh(f"{wanted}.{self.short}")
        swap = {name: wanted, wanted: spare} if wanted in self.types else {name: wanted}

        def named(values: tuple[str, ...]) -> tuple[str, ...]:
            return tuple(swap.get(v, v) for v in values)

        self.nodes = [replace(n, inputs=named(n.inputs), outputs=named(n.outputs)) for n in self.nodes]
        self.types = {swap.get(k, k): t for k, t in self.types.items()}
        self.constants = {swap.get(k, k): a for k, a in self.constants.items()}
        self.at = {k: swap.get(v, v) for k, v in self.at.items()}


def narrowed(array: np.ndarray, dtype: DType) -> np.ndarray:
    """A constant in another floating type; finite values beyond f16's range become its largest (masks mean that)."""
    if dtype is F16:
        finite = np.isfinite(array)
        array = np.where(finite, np.clip(array, -LARGEST, LARGEST), array)
    return array.astype(dtype.numpy)


def _too_small(array: np.ndarray) -> bool:
    """Whether a constant of few elements has one that f16 would lose."""
    if array.size > _FEW or array.dtype.kind != "f":
        return False
    size = np.abs(array[array != 0])
    return bool((size < 2.0**-14).any())


__all__ = ["PRECISIONS", "SENSITIVE", "Overflow", "Precision", "in_registers", "kept_for", "lower_precision",
           "overflows"]
