"""How far two right answers may lie apart, from the dtype and the lengths of the sums.

A sum of k rounded products has, in whatever order it is done, an error that stays below

    lambda * sqrt(k) * u * sum |a_i b_i|            u: the unit roundoff, 2^-24 for f32

with probability at least 1 - 2 exp(-lambda^2 / 2) (Higham and Mary, "A New Approach to Probabilistic Rounding Error
Analysis", SIAM J. Sci. Comput. 41(5), 2019, theorem 2.4 to first order; the certain bound, Higham, "Accuracy and
Stability of Numerical Algorithms", section 3.1, has k in the place of sqrt(k)). The errors of the nodes on the way to
an output are independent of each other, so their squares add: a whole graph counts as one sum of length

    k = sum over the nodes on the longest path to the output of k(node)

where k(node) is the length of the node's sum (inner size of a product, window times channels of a convolution, size
of the reduced axes), 16 for a mathematical function (2 ulp are 4 u, and squares add), 1 for other arithmetic, and 0
for what only moves data. Both sides round, which doubles the error. With lambda = 8, fewer than one element in 10^13
of a right answer lies beyond the tolerance.

Kernels that need fewer products than their op is defined by (minimal filtering, Strassen's scheme) have errors of up
to ten times those of the plain sum. The tolerance grants them nothing extra; they fit because the bound takes every
node's error in full, and real networks stay about a hundred times below it (the verdict says how far).

Where reals become 8-bit integers on the way, no such bound exists from end to end. A difference d of two right
evaluations makes a share d/q of the values fall to the other side of a tie (q: the quantum), each by a whole q, so that
d becomes sqrt(q*d) in the mean square; after a few layers both evaluations carry roundings of their own. Such outputs
get a fixed tolerance, and where that does not do, twice the distance that the original's own answer moves when each
value moves by its last roundings right before it becomes an integer (`verify.integers`). Measured on MobileNetV2, 53
quantisations deep: the reference moves by 0.04 to 0.06 when those values move by 2^-24, the engine differed by 0.047.
What the kernels do is judged more sharply, between integers: there nothing is off by more than one quantum.
"""
from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from dataclasses import dataclass

from ingot.graph import Graph, Node, TensorType, evaluate
from ingot.graph.dim import Dim

LAMBDA = 8.0
UNIT_ROUNDOFF: Mapping[str, float] = {"f64": 2.0**-53, "f32": 2.0**-24, "f16": 2.0**-11, "bf16": 2.0**-8}

SHORT_ROUNDOFF: Mapping[str, float] = {"f16": 2.0**-11, "bf16": 2.0**-8, "tf32": 2.0**-11}

MOVEMENT = frozenset({
    "Identity", "Reshape", "Flatten", "Squeeze", "Unsqueeze", "Transpose", "Expand", "Tile", "Concat", "Split", "Slice",
    "Gather", "GatherElements", "GatherND", "Pad", "Shape", "Size", "Constant", "ConstantOfShape", "Reorder", "Where",
    "DepthToSpace", "SpaceToDepth", "ScatterElements", "ScatterND", "Range", "OneHot", "Trilu", "Dropout", "MaxPool",
    "GlobalMaxPool", "Relu", "Clip", "Max", "Min", "Abs", "Neg", "Sign", "Floor", "Ceil", "Round", "TopK", "ArgMax",
    "ArgMin", "ReduceMax", "ReduceMin", "Equal", "Less", "Greater", "LessOrEqual", "GreaterOrEqual", "And", "Or", "Not",
    "Xor", "IsNaN", "IsInf", "NonZero", "EyeLike", "CastLike", "ReverseSequence", "Compress"})
FUNCTIONS = frozenset({
    "Exp", "Log", "Sqrt", "Reciprocal", "Sigmoid", "Tanh", "Erf", "Gelu", "Softplus", "Softsign", "Sin", "Cos", "Tan",
    "Asin", "Acos", "Atan", "Sinh", "Cosh", "Asinh", "Acosh", "Atanh", "Pow", "Elu", "Selu", "Celu", "Mish", "Swish",
    "HardSwish", "HardSigmoid", "Div"})
_FUNCTION, _ARITHMETIC = 16.0, 1.0
TO_INTEGERS = frozenset({"Quantize", "QuantizeLinear", "DynamicQuantizeLinear"})


@dataclass(frozen=True)
class Tolerance:
    """The largest allowed difference of one output, relative to the largest value of the item it belongs to."""

    relative: float         # 0: must be equal
    source: str             # in words: where it comes from

    def __str__(self) -> str:
        return f"{self.relative:.2g} ({self.source})" if self.relative else f"equal ({self.source})"


# Two right evaluations round a value beside a tie to different integers; what follows then differs by quanta of 1/255
# of a tensor's range, and so do the ties of the next layers.
_QUANTISED = Tolerance(0.05, "reals become 8-bit integers on the way: ties fall to either side")


def _sizes(dims: tuple[Dim, ...], bindings: Mapping[str, int]) -> int:
    return math.prod(evaluate(d, bindings) for d in dims)


def _reduced(node: Node, x: TensorType, bindings: Mapping[str, int]) -> int:
    axes = node.attrs.get("axes")
    if not isinstance(axes, (tuple, list)) or not axes:
        return _sizes(x.shape, bindings)
    return math.prod(evaluate(x.shape[int(a)], bindings) for a in axes)


def rounding_length(node: Node, types: tuple[TensorType | None, ...], bindings: Mapping[str, int]) -> float:
    """k(node): the length of the rounded sum that stands for one element of the node's result."""
    x = types[0] if types else None
    if x is None or node.op in MOVEMENT:
        return 0.0
    if node.op in ("MatMul", "Gemm", "ShortMatMul"):
        transposed = bool(node.attrs.get("transA")) and node.op == "Gemm"
        return float(evaluate(x.shape[-2 if transposed and x.rank > 1 else -1], bindings))
    if node.op in ("Conv", "ConvTranspose", "ShortConv") and len(types) > 1 and types[1] is not None:
        weight = types[1].shape
        sums = (weight[0], *weight[2:]) if node.op == "ConvTranspose" else weight[1:]
        return float(_sizes(sums, bindings))
    if node.op == "Attention":
        key = types[1] if len(types) > 1 and types[1] is not None else x
        return float(evaluate(x.shape[-1], bindings) + evaluate(key.shape[-2], bindings)) + 2 * _FUNCTION
    if node.op in ("Softmax", "LogSoftmax"):
        axis = node.attrs.get("axis", -1)
        return float(evaluate(x.shape[int(axis)], bindings)) + 2 * _FUNCTION  # type: ignore[call-overload]
    if node.op in ("LayerNormalization", "RMSNormalization", "InstanceNormalization", "GroupNormalization",
                   "MeanVarianceNormalization", "LpNormalization"):
        return 2.0 * evaluate(x.shape[-1], bindings) + 2 * _FUNCTION
    if node.op.startswith("Reduce") or node.op in ("GlobalAveragePool", "CumSum"):
        if node.op == "GlobalAveragePool":
            return float(_sizes(x.shape[2:], bindings))
        return float(_reduced(node, x, bindings)) + (_FUNCTION if node.op.endswith(("LogSum", "Exp", "L2")) else 0.0)
    if node.op in ("AveragePool", "LpPool"):
        window = node.attrs.get("kernel_shape")
        return float(math.prod(map(int, window))) if isinstance(window, (tuple, list)) else _ARITHMETIC
    if node.op.endswith(("::SVMRegressor", "::SVMClassifier")):     # a sum of a function of products, one per vector
        vectors, features = node.attrs.get("support_vectors"), max(1, evaluate(x.shape[-1], bindings))
        held = len(vectors) if isinstance(vectors, (tuple, list)) else int(getattr(vectors, "size", 0))
        return max(1.0, held / features) * (features + _FUNCTION)
    if node.op in ("LSTM", "GRU", "RNN"):
        return float(evaluate(x.shape[-1], bindings) + 64) * float(evaluate(x.shape[0], bindings))
    return _FUNCTION if node.op in FUNCTIONS else _ARITHMETIC


def tolerances(graph: Graph, bindings: Mapping[str, int], short: str = "",
               rounded_at: Mapping[str, int] | None = None, known: Collection[str] = ()) -> dict[str, Tolerance]:
    """The tolerance of every value of a graph, for sizes of its symbols. The loosest dtype on the way counts.

    What is computed from `known` values starts at those: both sides have the same ones, bit for bit.
    With a `short` type ("f16", "bf16", "tf32") sums still round as f32, while the operands and the result of every
    node on the way may each have been rounded to that type: three roundings a node, whose squares add to the sums'.
    Where it is known how many operands were rounded on the longest way to an output (`rounded_at`), those count: an
    operand's error is uniform within v, of variance v^2 / 3, the squares of independent ones add, and the other side
    did not round.
    """
    rounded: dict[str, int] = dict.fromkeys((*graph.inputs, *graph.constants), 0)
    length: dict[str, float] = dict.fromkeys((*graph.inputs, *graph.constants), 0.0)
    unit: dict[str, float] = {}
    integers: set[str] = set()      # what depends on reals that were rounded to integers
    done: dict[str, Tolerance] = {}

    def told(value: str) -> Tolerance:
        dtype = graph.types[value].dtype.name
        if value in integers and unit[value]:
            return _QUANTISED
        if short and rounded_at and value in rounded_at:
            return _operand_tolerance(dtype, length[value], unit[value], rounded_at[value], short)
        if short:
            return _short_tolerance(dtype, length[value], unit[value], rounded[value], short)
        return _tolerance(dtype, length[value], unit[value])

    for value in length:
        unit[value] = UNIT_ROUNDOFF.get(graph.types[value].dtype.name, 0.0)
    for node in graph.nodes:
        types = tuple(graph.type(i) for i in node.inputs)
        own = rounding_length(node, types, bindings)
        before = max((length[i] for i in node.inputs if i), default=0.0)
        worst = max((unit[i] for i in node.inputs if i), default=0.0)
        if node.op in TO_INTEGERS or any(i in integers for i in node.inputs):
            integers.update(node.outputs)
        for value in filter(None, node.outputs):
            length[value] = before + own
            rounded[value] = max((rounded[i] for i in node.inputs if i), default=0) + (node.op not in MOVEMENT)
            unit[value] = max(worst, UNIT_ROUNDOFF.get(graph.types[value].dtype.name, 0.0))
            if value in known:
                done[value] = told(value)
                length[value], rounded[value] = 0.0, 0
                integers.discard(value)
    return {v: done.get(v) or told(v) for v in length}


def _short_tolerance(dtype: str, length: float, unit: float, nodes: int, short: str) -> Tolerance:
    if dtype not in UNIT_ROUNDOFF:
        return Tolerance(0.0, f"{dtype} values are not rounded")
    coarse = max(unit, SHORT_ROUNDOFF[short])
    relative = LAMBDA * 2 * math.hypot(unit * math.sqrt(length + 1), coarse * math.sqrt(3 * nodes + 1))
    return Tolerance(relative, f"{LAMBDA:g}*2*sqrt(u^2*{length + 1:.0f} + v^2*{3 * nodes + 1}), u = {unit:.3g}, "
                               f"v = {coarse:.3g} ({short})")


def _operand_tolerance(dtype: str, length: float, unit: float, operands: int, short: str) -> Tolerance:
    if dtype not in UNIT_ROUNDOFF:
        return Tolerance(0.0, f"{dtype} values are not rounded")
    coarse = SHORT_ROUNDOFF[short]
    relative = LAMBDA * math.hypot(2 * unit * math.sqrt(length + 1), coarse * math.sqrt(operands / 3))
    return Tolerance(relative, f"{LAMBDA:g}*sqrt(4*u^2*{length + 1:.0f} + v^2*{operands}/3), u = {unit:.3g}, "
                               f"v = {coarse:.3g} ({short} operands)")


def _tolerance(dtype: str, length: float, unit: float) -> Tolerance:
    if dtype not in UNIT_ROUNDOFF:
        return Tolerance(0.0, f"{dtype} values are not rounded")
    relative = LAMBDA * 2 * unit * math.sqrt(length + 1)
    return Tolerance(relative, f"{LAMBDA:g}*2*u*sqrt({length + 1:.0f}), u = {unit:.3g}")
