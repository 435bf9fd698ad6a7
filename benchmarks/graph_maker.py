"""Random small graphs whose right answer is known closely: what the compiler is tried on by the hundred thousand.

A graph grows by random steps over the values made so far. Each value carries an interval and, where it is so, the
exponent of its last binary digit: while sums and products stay exact in its type, every order of summation gives the
same bits, so outputs can be compared exactly, and ops that jump (Floor, Cast, ArgMax, comparisons) can be applied.
What is rounded (Exp, Softmax, Div ...) is kept to well-conditioned ranges, and is compared within a tolerance.
"""
from __future__ import annotations

import math
import random
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np

from ingot.errors import IngotError
from ingot.graph import DTYPES, Dim, Graph, GraphBuilder, Node, TensorType, symbol
from ingot.graph.dim import Symbol
from ingot.ops import OPS, clamps, infer
from ingot.passes.dead_code import remove_dead_code

DIGITS = {"f16": 10, "f32": 23, "f64": 50, "bf16": 7}       # binary digits a sum or product may use and stay exact
SYMBOLS = (Symbol("N", 1, 2, 5), Symbol("M", 1, 3, 4))
SHAPES: tuple[tuple[int | str, ...], ...] = (
    ("N", 4), ("N", 3, 4), (3, 4), ("N", "M", 4), ("N", "M"), (2, "M", 3), ("N", 4, 5, 5), (1, 4, 6, 6), (4,), ("M",),
    (), (2, 1, 4), (1, 4), ("N", 8), ("N", 3, 8), (1, 3, 8, 8), ("N", 16), (1,), (17,), ("N", 1, 4))
EVERY = tuple({"N": n, "M": m} for n in range(1, 6) for m in range(1, 5))
CORNERS = ({"N": 1, "M": 1}, {"N": 2, "M": 3}, {"N": 5, "M": 4}, {"N": 4, "M": 2})      # where each step must hold
HUGE = 1e3                  # rounded values stay below


@dataclass(frozen=True)
class Known:
    """What is known of a value's numbers: an interval, and its last binary digit where all of it is exact."""

    low: float
    high: float
    digit: int | None = 0           # all numbers are multiples of 2**-digit; None: rounded

    @property
    def bound(self) -> float:
        return max(abs(self.low), abs(self.high))


FEW: tuple[tuple[int | str, ...], ...] = (("N", 4), ("N", 3, 4), (3, 4), ("N", "M"), (4,), (1, 4, 6, 6))


class CannotError(Exception):
    """This step makes no sense here; another one is drawn."""


def _rounded(low: float, high: float) -> Known:
    if not (math.isfinite(low) and math.isfinite(high)) or max(abs(low), abs(high)) > HUGE:
        raise CannotError
    return Known(low, high, None)


_SMOOTH: dict[str, Callable[[Known], Known]] = {
    "Sigmoid": lambda k: _rounded(0, 1), "Tanh": lambda k: _rounded(-1, 1), "Erf": lambda k: _rounded(-1, 1),
    "Softplus": lambda k: _rounded(0, max(k.high, 0) + 1), "Sin": lambda k: _rounded(-1, 1),
    "Cos": lambda k: _rounded(-1, 1), "Exp": lambda k: _rounded(math.exp(min(k.low, 700)), math.exp(min(k.high, 700))),
    "Gelu": lambda k: _rounded(-0.2, max(k.high, 0)), "Elu": lambda k: _rounded(-1, max(k.high, 0)),
    "HardSigmoid": lambda k: _rounded(0, 1), "HardSwish": lambda k: _rounded(-0.5, max(k.high, 0)),
    "Softsign": lambda k: _rounded(-1, 1), "Mish": lambda k: _rounded(-0.5, max(k.high, 0)),
    "Selu": lambda k: _rounded(-2, 1.1 * max(k.high, 0)), "Atan": lambda k: _rounded(-1.6, 1.6),
    "Asinh": lambda k: _rounded(-k.bound, k.bound), "Swish": lambda k: _rounded(-0.5, max(k.high, 0)),
    "LeakyRelu": lambda k: _rounded(min(k.low, 0) * 0.01, max(k.high, 0)),
    "Celu": lambda k: _rounded(-1, max(k.high, 0)),
}
_KEEPING = ("Relu", "Neg", "Abs", "Identity")
_JUMPING = ("Floor", "Ceil", "Round", "Sign")
_COMPARE = ("Equal", "Greater", "GreaterOrEqual", "Less", "LessOrEqual")


class Maker:
    """Grows one graph from a seed."""

    def __init__(self, seed: int) -> None:
        self.random = random.Random(seed)
        self.build = GraphBuilder(infer, {s.name: s for s in SYMBOLS})
        self.values: list[str] = []
        self.known: dict[str, Known] = {}
        self.inputs: dict[str, Known] = {}
        self.main = self.random.choices(("f32", "f64", "f16", "i64", "i32"), (14, 1, 1, 2, 2))[0]
        self.few = self.random.random() < 0.75          # short, over few shapes: mostly of kernels made before
        for _ in range(self.random.choice((1, 1, 2, 3))):
            self.new_input(self.random.choice(FEW if self.few else SHAPES))

    # --- parts ---------------------------------------------------------------------------------------------------

    def new_input(self, shape: tuple[int | str, ...], dtype: str = "") -> str:
        exact = self.random.random() < 0.6
        kind = dtype or self.main
        dims = tuple(symbol(d) if isinstance(d, str) else d for d in shape)
        name = self.build.input(f"x{len(self.inputs)}", TensorType(DTYPES[kind], dims))
        whole = exact or kind not in DIGITS
        self.inputs[name] = Known(0 if kind in ("u8", "bool") else -3, 1 if kind == "bool" else 3, 0 if whole else None)
        return self.keep(name, self.inputs[name])

    def keep(self, name: str, known: Known) -> str:
        self.values.append(name)
        self.known[name] = known
        return name

    def pick(self, *dtypes: str) -> str:
        fit = [v for v in self.values[-6:] if not dtypes or self.dtype(v) in dtypes]
        if not fit:
            raise CannotError
        return self.random.choice(fit)

    def number(self) -> str:
        """A value that can be calculated with."""
        return self.pick("f32", "f64", "f16", "i64", "i32")

    def shape(self, value: str) -> tuple[Dim, ...]:
        return self.build.types[value].shape

    def dtype(self, value: str) -> str:
        return self.build.types[value].dtype.name

    def floating(self, value: str) -> bool:
        return self.dtype(value) in DIGITS

    def constant(self, shape: tuple[int, ...], dtype: str, low: int = -2, high: int = 2, *,
                 exact: bool = True) -> tuple[str, Known]:
        count = math.prod(shape)
        if exact or dtype not in DIGITS:
            numbers = [self.random.randint(low, high) for _ in range(count)]
            known = Known(low, high, 0)
        else:
            numbers = [self.random.uniform(low, high) for _ in range(count)]
            known = Known(low, high, None)
        array = np.array(numbers, DTYPES[dtype].numpy).reshape(shape)
        return self.build.constant(self.build.fresh("c"), array), known

    def fits(self, dtype: str, low: float, high: float, digit: int | None, terms: int = 1) -> Known:
        """What is known of a sum of so many such terms. Raises CannotError where it could overflow."""
        low, high = low * terms, high * terms
        bound = max(abs(low), abs(high))
        if dtype not in DIGITS:
            if bound >= 2 ** 30:
                raise CannotError
            return Known(low, high, 0)
        if digit is not None and bound * 2 ** digit < 2 ** DIGITS[dtype]:
            return Known(low, high, digit)
        if dtype == "f16" and bound > 1000:
            raise CannotError
        return _rounded(low, high)

    def largest(self, dims: tuple[Dim, ...]) -> int:
        sizes = {s.name: s.max for s in SYMBOLS}
        total = math.prod(d if isinstance(d, int) else d.evaluate(sizes) for d in dims)
        if total > 4096:
            raise CannotError
        return total

    def one_of(self, size: int) -> int:
        """A position along an axis. Raises CannotError where there is none."""
        if size < 1:
            raise CannotError
        return self.random.randrange(-size, size)

    def node(self, op: str, *inputs: str, **attrs: object) -> str:
        return self.add(Node(op, inputs, (self.build.fresh(op.lower()),), attrs))

    def add(self, node: Node) -> str:
        """The node's first output. Raises CannotError where the node does not hold on the whole range of sizes."""
        types = [self.build.types[i] for i in node.inputs]
        general = infer(node, tuple(types))
        for sizes in CORNERS:
            if infer(node, tuple(t.at(sizes) for t in types)) != tuple(t.at(sizes) for t in general):
                raise CannotError
        for t in general:
            self.largest(t.shape)
        # a model with a slice that is cut short at some sizes is refused when it is read
        if node.op == "Slice" and any(clamps(types[0], {**OPS["Slice"].attrs, **node.attrs}, s) for s in EVERY):
            raise CannotError
        self.build.add(node)
        return node.outputs[0]

    # --- steps ---------------------------------------------------------------------------------------------------

    def smooth(self) -> None:
        x = self.pick(*DIGITS)
        op = self.random.choice(list(_SMOOTH))
        known = _SMOOTH[op](self.known[x])
        self.keep(self.node(op, x), known)

    def keeping(self) -> None:
        x, op = self.number(), self.random.choice(_KEEPING)
        k = self.known[x]
        low, high = {"Relu": (max(k.low, 0), max(k.high, 0)), "Neg": (-k.high, -k.low),
                     "Abs": (0, k.bound), "Identity": (k.low, k.high)}[op]
        self.keep(self.node(op, x), Known(low, high, k.digit))

    def jumping(self) -> None:
        x = self.pick(*DIGITS)
        if self.known[x].digit is None:
            raise CannotError
        k = self.known[x]
        self.keep(self.node(self.random.choice(_JUMPING), x), Known(math.floor(k.low), math.ceil(k.high), 0))

    def positive(self) -> None:
        """A root, logarithm or quotient, of what is made large enough first."""
        x = self.pick("f32", "f64")
        one, _ = self.constant((), self.dtype(x), 1, 1)
        k = self.known[x]
        y = self.node("Add", self.node("Abs", x), one)
        top = k.bound + 1
        match self.random.randrange(5):
            case 0:
                self.keep(self.node("Sqrt", y), _rounded(1, math.sqrt(top)))
            case 1:
                self.keep(self.node("Log", y), _rounded(0, math.log(top)))
            case 2:
                self.keep(self.node("Reciprocal", y), _rounded(0, 1))
            case 3:
                z = self.pick(self.dtype(x))
                self.keep(self.node("Div", z, y), _rounded(-self.known[z].bound, self.known[z].bound))
            case _:
                e, _ = self.constant((), self.dtype(x), 2, 2)
                half = self.random.random() < 0.3
                if half:
                    e = self.build.constant(self.build.fresh("c"), np.asarray(0.5, DTYPES[self.dtype(x)].numpy))
                self.keep(self.node("Pow", y, e), _rounded(1, math.sqrt(top) if half else top * top))

    def binary(self) -> None:
        x = self.number()
        y, other = self.partner(x)
        a, b = self.known[x], other
        if self.random.random() < 0.3:
            x, y, a, b = y, x, b, a
        self.keep(*self.combined(self.random.choice(("Add", "Sub", "Mul", "Max", "Min")), x, y, a, b))

    def combined(self, op: str, x: str, y: str, a: Known, b: Known) -> tuple[str, Known]:
        digit = None if a.digit is None or b.digit is None else max(a.digit, b.digit)
        kind = self.dtype(x)
        if op == "Mul":
            ends = [p * q for p in (a.low, a.high) for q in (b.low, b.high)]
            digit = None if a.digit is None or b.digit is None else a.digit + b.digit
            known = self.fits(kind, min(ends), max(ends), digit)
        elif op == "Add":
            known = self.fits(kind, a.low + b.low, a.high + b.high, digit)
        elif op == "Sub":
            known = self.fits(kind, a.low - b.high, a.high - b.low, digit)
        else:
            pick = max if op == "Max" else min
            known = Known(pick(a.low, b.low), pick(a.high, b.high), digit)
        return self.node(op, x, y), known

    def partner(self, x: str) -> tuple[str, Known]:
        """Something to combine with: another value, a scalar, a row or a column."""
        kind = self.dtype(x)
        choice = self.random.randrange(4)
        if choice == 0:
            shape = self.random.choice(((), (1,), (1, 1)))
            if kind in DIGITS and self.random.random() < 0.5:
                factor = self.random.choice((0.5, 0.25, -0.5, 1.5))
                array = np.full(shape, factor, DTYPES[kind].numpy)
                return self.build.constant(self.build.fresh("c"), array), Known(factor, factor, 2)
            return self.constant(shape, kind)
        if choice == 1 and (dims := self.shape(x)):
            shape = tuple(d if isinstance(d, int) and self.random.random() < 0.7 else 1 for d in dims)
            return self.constant(shape[self.random.randrange(len(shape)):], kind, exact=self.random.random() < 0.6)
        if choice == 2 and self.random.random() < 0.3 and len(self.inputs) < 4:
            dims = self.shape(x)
            names = {s.name for s in SYMBOLS}
            shape_ = tuple(1 if self.random.random() < 0.4 else d if isinstance(d, int) else str(d) for d in dims)
            if all(isinstance(d, int) or d in names for d in shape_):
                y = self.new_input(shape_, kind)
                return y, self.known[y]
        y = self.pick(kind)
        return y, self.known[y]

    def compare(self) -> None:
        x = self.number()
        y, other = self.partner(x)
        if self.known[x].digit is None or other.digit is None:
            raise CannotError
        self.keep(self.node(self.random.choice(_COMPARE), x, y), Known(0, 1, 0))

    def logic(self) -> None:
        x = self.pick("bool")
        match self.random.randrange(3):
            case 0:
                self.keep(self.node("Not", x), Known(0, 1, 0))
            case 1:
                self.keep(self.node(self.random.choice(("And", "Or", "Xor")), x, self.pick("bool")), Known(0, 1, 0))
            case _:
                a = self.number()
                b, other = self.partner(a)
                k = self.known[a]
                digit = None if k.digit is None or other.digit is None else max(k.digit, other.digit)
                self.keep(self.node("Where", x, a, b), Known(min(k.low, other.low), max(k.high, other.high), digit))

    def cast(self) -> None:
        x = self.pick()
        k, to = self.known[x], self.random.choice(("f32", "f32", "f64", "i64", "i32", "f16", "bool", "i8", "u8"))
        if to == self.dtype(x) or (k.digit is None and (to not in DIGITS or to == "f16")):
            raise CannotError
        if to == "bool":
            known = Known(0, 1, 0)
        elif to in DIGITS:
            if to == "f16" and k.bound * 2 ** (k.digit or 0) >= 2 ** 10:
                raise CannotError
            known = k if k.digit is not None else _rounded(k.low, k.high)
        else:
            if (to == "u8" and k.low < 0) or (to in ("i8", "u8") and k.bound > 100):
                raise CannotError
            known = Known(math.floor(k.low), math.ceil(k.high), 0)
        self.keep(self.node("Cast", x, to=to), known)

    def clip(self) -> None:
        x = self.number()
        low, high = sorted(self.random.sample((-4, -1, 0, 1, 3, 6), 2))
        kind, k = DTYPES[self.dtype(x)].numpy, self.known[x]
        a, b = (self.build.constant(self.build.fresh("c"), np.asarray(v, kind)) for v in (low, high))
        self.keep(self.node("Clip", x, a, b), Known(min(max(k.low, low), high), min(max(k.high, low), high), k.digit))

    def move(self) -> None:
        """A view or a copy: the same numbers elsewhere."""
        x = self.pick()
        dims = self.shape(x)
        rank, draw = len(dims), self.random
        k = self.known[x]
        op = draw.choice(("Transpose", "Transpose", "Reshape", "Reshape", "Unsqueeze", "Squeeze", "Flatten", "Slice",
                          "Slice", "Expand", "Tile", "Pad", "Gather", "Split", "Concat", "Concat", "Trilu",
                          "DepthToSpace", "SpaceToDepth"))
        if op == "Transpose" and rank > 1:
            made = self.node(op, x, perm=tuple(draw.sample(range(rank), rank)))
        elif op == "Reshape":
            wanted = draw.choice(((-1,), (-1, 4), (2, -1), (0, -1), (1, -1, 2), (-1, 1, 1), (0, 0, -1), (0, 2, -1),
                                  (-1, 2, 2)))
            made = self.node(op, x, shape=wanted)
        elif op == "Unsqueeze" and rank < 5:
            made = self.node(op, x, axes=(draw.randint(0, rank),))
        elif op == "Squeeze" and 1 in dims:
            made = self.node(op, x, axes=(dims.index(1),))
        elif op == "Flatten":
            made = self.node(op, x, axis=draw.randint(0, rank))
        elif op == "Slice" and rank:
            axis = draw.randrange(rank)
            back = draw.random() < 0.2
            start, stop, step = (-1, -(1 << 62), -1) if back else (
                draw.choice((0, 0, 1, -2, -1)), draw.choice((1, 2, 3, -1, 1 << 62)), draw.choice((1, 1, 1, 2)))
            made = self.node(op, x, starts=(start,), ends=(stop,), axes=(axis,), steps=(step,))
        elif op == "Expand" and rank and 1 in dims:
            wide = [draw.choice((2, 3)) if d == 1 and draw.random() < 0.7 else 1 for d in dims]
            made = self.node(op, x, shape=tuple(wide))
        elif op == "Tile" and rank:
            made = self.node(op, x, repeats=tuple(draw.choice((1, 1, 2)) for _ in dims))
        elif op == "Pad" and rank and self.dtype(x) != "bool":
            mode = draw.choice(("constant", "constant", "edge"))
            pads = tuple(draw.choice((0, 0, 1, 2)) for _ in range(2 * rank))
            made = self.node(op, x, pads=pads, mode=mode)
            k = Known(min(k.low, 0), max(k.high, 0), k.digit)
        elif op == "Gather" and rank:
            axis = draw.randrange(rank)
            if not isinstance(dims[axis], int):
                raise CannotError
            size = int(dims[axis])
            at = np.array([self.one_of(size) for _ in range(draw.choice((1, 3)))], np.int64)
            if draw.random() < 0.3:
                at = at[:1].reshape(())
            made = self.node(op, x, self.build.constant(self.build.fresh("i"), at), axis=axis)
        elif op == "Split" and rank:
            axis = draw.randrange(rank)
            size = dims[axis]
            if not isinstance(size, int) or size < 2:
                raise CannotError
            names = (self.build.fresh("s"), self.build.fresh("s") + "b")
            first = draw.randint(1, size - 1)
            made = self.add(Node(op, (x,), names, {"axis": axis, "split": (first, size - first)}))
            self.keep(names[1], k)
        elif op == "Concat" and rank:
            axis = draw.randrange(-rank, rank)
            others = [v for v in self.values[-8:] if self.dtype(v) == self.dtype(x) and len(self.shape(v)) == rank]
            parts = [x, *(draw.choice(others) for _ in range(draw.choice((1, 1, 2))))]
            made = self.node(op, *parts, axis=axis)
            ks = [self.known[p] for p in parts]
            digits = [q.digit for q in ks]
            whole = [d for d in digits if d is not None]
            digit = max(whole) if len(whole) == len(digits) else None
            k = Known(min(q.low for q in ks), max(q.high for q in ks), digit)
        elif op == "Trilu" and rank >= 2:
            made = self.node(op, x, k=(draw.choice((-1, 0, 1)),), upper=draw.randrange(2))
            k = Known(min(k.low, 0), max(k.high, 0), k.digit)
        elif op in ("DepthToSpace", "SpaceToDepth") and rank == 4:
            made = self.node(op, x, blocksize=2)
        else:
            raise CannotError
        self.keep(made, k)

    def product(self) -> None:
        """MatMul with a constant or with another value, or Gemm."""
        x = self.pick("f32", "f32", "f64")
        dims = self.shape(x)
        if not dims:
            raise CannotError
        depth, k = dims[-1], self.known[x]
        if self.random.random() < 0.6 and isinstance(depth, int):
            columns = self.random.choice((1, 3, 4, 8, 17))
            w, other = self.constant((depth, columns), self.dtype(x), exact=self.random.random() < 0.6)
            bound, digit = k.bound * other.bound, None if other.digit is None or k.digit is None else k.digit
            known = self.fits(self.dtype(x), -bound, bound, digit, depth)
            if len(dims) == 2 and self.random.random() < 0.4:
                bias, more = self.constant((columns,), self.dtype(x))
                known = self.fits(self.dtype(x), known.low + more.low, known.high + more.high, known.digit)
                self.keep(self.node("Gemm", x, w, bias), known)
            else:
                self.keep(self.node("MatMul", x, w), known)
            return
        y = self.pick(self.dtype(x))
        if len(self.shape(y)) < 2:
            raise CannotError
        if self.random.random() < 0.5:
            perm = [*range(len(self.shape(y)))]
            perm[-1], perm[-2] = perm[-2], perm[-1]
            y_ = self.node("Transpose", y, perm=tuple(perm))
        else:
            y_ = y
        other = self.known[y]
        digit = None if other.digit is None or k.digit is None else k.digit + other.digit
        bound = k.bound * other.bound
        self.keep(self.node("MatMul", x, y_), self.fits(self.dtype(x), -bound, bound, digit, self.largest((depth,))))

    def reduce(self) -> None:
        x = self.number()
        dims, k = self.shape(x), self.known[x]
        if not dims:
            raise CannotError
        op = self.random.choice(("ReduceSum", "ReduceMean", "ReduceMax", "ReduceMin", "ReduceL1", "ReduceSumSquare",
                                 "ReduceL2", "ReduceLogSumExp"))
        axes = tuple(sorted(self.random.sample(range(len(dims)), self.random.randint(1, min(2, len(dims))))))
        terms = self.largest(tuple(dims[a] for a in axes))
        if op in ("ReduceMean", "ReduceL2", "ReduceLogSumExp") and self.dtype(x) not in ("f32", "f64"):
            raise CannotError
        if op == "ReduceSum":
            known = self.fits(self.dtype(x), min(k.low, 0), max(k.high, 0), k.digit, terms)
        elif op == "ReduceL1":
            known = self.fits(self.dtype(x), 0, k.bound, k.digit, terms)
        elif op == "ReduceSumSquare":
            known = self.fits(self.dtype(x), 0, k.bound ** 2, None if k.digit is None else 2 * k.digit, terms)
        elif op == "ReduceMean":
            known = _rounded(k.low, k.high)
        elif op == "ReduceL2":
            if k.digit is None:         # the root of what may be nearly nothing
                raise CannotError
            known = _rounded(0, k.bound * math.sqrt(terms))
        elif op == "ReduceLogSumExp":
            known = _rounded(k.low, k.high + math.log(max(terms, 1)))
        else:
            known = k
        self.keep(self.node(op, x, axes=axes, keepdims=self.random.randrange(2)), known)

    def normal(self) -> None:
        x = self.pick("f32", "f32", "f64")
        dims = self.shape(x)
        if not dims:
            raise CannotError
        op = self.random.choice(("Softmax", "Softmax", "LogSoftmax", "LayerNormalization", "RMSNormalization"))
        if op in ("Softmax", "LogSoftmax"):
            k = self.known[x]
            if k.high - k.low > 60:
                raise CannotError
            axis = self.random.randrange(-len(dims), len(dims))
            known = _rounded(0, 1) if op == "Softmax" else _rounded(k.low - k.high - 10, 0)
            self.keep(self.node(op, x, axis=axis), known)
            return
        if not isinstance(dims[-1], int) or self.dtype(x) != "f32" or dims[-1] < 3:
            raise CannotError
        scale, _ = self.constant((dims[-1],), "f32", exact=False)
        bias, _ = self.constant((dims[-1],), "f32", exact=False)
        extra = (bias,) if op == "LayerNormalization" and self.random.random() < 0.7 else ()
        known = _rounded(-2 * math.sqrt(dims[-1]) - 2, 2 * math.sqrt(dims[-1]) + 2)
        self.keep(self.node(op, x, scale, *extra, axis=-1, epsilon=0.1), known)

    def window(self) -> None:
        """A convolution or a pooling over an image."""
        x = self.pick("f32")
        dims, k = self.shape(x), self.known[x]
        if len(dims) != 4 or not all(isinstance(d, int) for d in dims[1:]) or min(int(str(d)) for d in dims[2:]) < 2:
            raise CannotError
        channels, draw = int(str(dims[1])), self.random
        if draw.random() < 0.5:
            size = draw.choice((1, 2, 3))
            pads = (draw.choice((0, size // 2)),) * 4
            stride = draw.choice((1, 1, 2))
            groups = channels if draw.random() < 0.3 and channels else 1
            outputs = groups if groups > 1 else draw.choice((3, 8, 17))
            w, other = self.constant((outputs, channels // groups, size, size), "f32", exact=draw.random() < 0.6)
            bound = k.bound * other.bound
            known = self.fits("f32", -bound, bound, None if k.digit is None or other.digit is None else k.digit,
                              channels // groups * size * size)
            extra: tuple[str, ...] = ()
            if draw.random() < 0.5:
                bias, more = self.constant((outputs,), "f32")
                known = self.fits("f32", known.low + more.low, known.high + more.high, known.digit)
                extra = (bias,)
            self.keep(self.node("Conv", x, w, *extra, group=groups, strides=(stride, stride), pads=pads), known)
            return
        op = draw.choice(("MaxPool", "AveragePool", "GlobalAveragePool", "GlobalMaxPool"))
        if op.startswith("Global"):
            made = self.node(op, x)
        else:
            size = draw.choice((2, 3))
            pad = draw.choice((0, size // 2)) if op == "AveragePool" else 0
            made = self.node(op, x, kernel_shape=(size, size), strides=(draw.choice((1, 2)),) * 2, pads=(pad,) * 4,
                             ceil_mode=draw.choice((0, 0, 1)))
        self.keep(made, k if "Max" in op else _rounded(min(k.low, 0), max(k.high, 0)))

    def order(self) -> None:
        """Positions of extremes, running sums: of exact numbers alone."""
        x = self.number()
        dims, k = self.shape(x), self.known[x]
        if not dims or k.digit is None:
            raise CannotError
        axis = self.random.randrange(len(dims))
        size = dims[axis]
        match self.random.randrange(4):
            case 0:
                op = self.random.choice(("ArgMax", "ArgMin"))
                made = self.node(op, x, axis=axis, keepdims=self.random.randrange(2))
                self.keep(made, Known(0, self.largest((size,)), 0))
            case 1:
                known = self.fits(self.dtype(x), min(k.low, 0), max(k.high, 0), k.digit, self.largest((size,)))
                self.keep(self.node("CumSum", x, axis=(axis,), exclusive=self.random.randrange(2),
                                    reverse=self.random.randrange(2)), known)
            case 2 if self.dtype(x) == "f32" and isinstance(size, int):
                names = (self.build.fresh("v"), self.build.fresh("v") + "at")
                count = self.random.randint(min(1, size), size)
                self.add(Node("TopK", (x,), names, {"k": (count,), "axis": axis,
                                                          "largest": self.random.randrange(2)}))
                self.keep(names[1], Known(0, size, 0))
                self.keep(names[0], k)
            case _:
                if self.dtype(x) != "f32":
                    raise CannotError
                self.keep(self.node("Hardmax", x, axis=axis), Known(0, 1, 0))

    STEPS: tuple[tuple[Callable[[Maker], None], int], ...] = ()

    def grow(self, count: int) -> Graph:
        """So many steps, and the graph of them."""
        steps, weights = zip(*self.STEPS, strict=True)
        done = tries = 0
        while done < count and tries < 8 * count:
            tries += 1
            before = len(self.values)
            try:
                self.random.choices(steps, weights)[0](self)
                done += 1
            except (CannotError, IngotError):
                del self.values[before:]
        outputs = [v for v in self.values if v not in self.inputs]
        if not outputs:
            outputs = [self.node("Identity", self.values[0])]
            self.known[outputs[0]] = self.known[self.values[0]]
        kept = outputs[-1:] + ([self.random.choice(outputs)] if self.random.random() < 0.4 else [])
        return remove_dead_code(self.build.finish(*dict.fromkeys(kept)))


Maker.STEPS = ((Maker.smooth, 3), (Maker.keeping, 2), (Maker.jumping, 1), (Maker.positive, 2), (Maker.binary, 7),
               (Maker.compare, 1), (Maker.logic, 2), (Maker.cast, 2), (Maker.clip, 1), (Maker.move, 9),
               (Maker.product, 3), (Maker.reduce, 3), (Maker.normal, 2), (Maker.window, 3), (Maker.order, 1))


@dataclass(frozen=True)
class Made:
    """A random graph, and what is known of its inputs and outputs."""

    graph: Graph
    inputs: Mapping[str, Known]
    outputs: Mapping[str, Known]

    def feeds(self, sizes: Mapping[str, int], seed: int) -> dict[str, np.ndarray]:
        """Inputs of the kind that was promised."""
        rng = np.random.default_rng(seed)
        found = {}
        for name in self.graph.inputs:
            t, k = self.graph.types[name].at(sizes), self.inputs[name]
            if k.digit is None:
                array = np.clip(rng.standard_normal(t.shape), k.low, k.high)
            else:
                array = rng.integers(int(k.low), int(k.high) + 1, t.shape)
            found[name] = np.asarray(array).astype(t.dtype.numpy)
        return found


def made(seed: int) -> Made:
    """The random graph of a seed."""
    maker = Maker(seed)
    graph = maker.grow(maker.random.choice((1, 2, 2, 3) if maker.few else (3, 4, 4, 5, 6, 8, 12)))
    return Made(graph, maker.inputs, {v: maker.known[v] for v in graph.outputs})


def misplaced(array: np.ndarray) -> np.ndarray:
    """The array where its elements are aligned and nothing more."""
    raw = np.empty(array.nbytes + 128, np.uint8)
    start = -raw.__array_interface__["data"][0] % 64 + array.itemsize
    found = raw[start:start + array.nbytes].view(array.dtype).reshape(array.shape)
    found[...] = array
    return found
