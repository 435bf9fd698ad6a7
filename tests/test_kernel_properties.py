"""Random sites of many shapes: whatever a tactic agrees to serve, it serves right, at any thread count."""
from __future__ import annotations

import random
from collections.abc import Callable
from types import MappingProxyType

import numpy as np
import pytest
from kernel_checks import check, targets

from ingot.errors import ModelError
from ingot.graph import F16, F32, F64, I32, I64, U8, Dim, Node, Symbol, TensorType, symbol
from ingot.kernels import TACTICS, Operand, Site, Step
from ingot.ops import infer

pytestmark = pytest.mark.cpu
N, S = symbol("N"), symbol("S")
SYMBOLS = (Symbol("N", 1, 2, 8), Symbol("S", 1, 37, 64))
SIZES = (1, 1, 2, 3, 5, 7, 8, 16, 17, 33, 40, 64)
UNARY = ("Relu", "Sigmoid", "Exp", "Neg", "Abs", "Tanh", "Erf", "Gelu", "HardSwish", "Identity")
BINARY = ("Add", "Sub", "Mul", "Max", "Min")
Maker = Callable[[random.Random], Site]


def some_shape(r: random.Random, least: int, most: int) -> tuple[Dim, ...]:
    """A shape with a symbol here and there, of moderate size."""
    found: list[Dim] = []
    room = 1 << 16
    for axis in range(r.randint(least, most)):
        symbolic = r.random() < 0.25 and room >= 40
        size = r.choice([s for s in SIZES if s <= room])
        found.append((N if axis == 0 else S) if symbolic else size)
        room //= 40 if symbolic else size
    return tuple(found)


def static_shape(r: random.Random, least: int, most: int) -> tuple[int, ...]:
    return tuple(d if isinstance(d, int) else 5 for d in some_shape(r, least, most))


def broadcast_from(r: random.Random, shape: tuple[Dim, ...]) -> tuple[Dim, ...]:
    """A shape that broadcasts to the given one."""
    return tuple(1 if r.random() < 0.3 else d for d in shape)[r.choice((0, 0, r.randint(0, len(shape)))):]


def single(op: str, types: list[TensorType], **attrs: object) -> Site:
    node = Node(op, tuple(f"x{i}" for i in range(len(types))), ("y",), MappingProxyType(attrs))
    made = infer(node, tuple(types))
    step = Step(op, tuple(range(len(types))), tuple(sorted(attrs.items())), made)
    return Site((step,), tuple(map(Operand, types)), tuple(map(Operand, made)), SYMBOLS)


def pointwise(r: random.Random) -> Site:
    shape = some_shape(r, 0, 5)
    layout = r.choice(("c8", "c16")) if len(shape) >= 3 and r.random() < 0.4 else ""
    out = TensorType(F32, shape, layout)
    operands = [Operand(out)]
    for _ in range(r.randint(0, 3)):
        if not layout:
            t = TensorType(F32, broadcast_from(r, shape))
            operands.append(Operand(t, constant=t.static and r.random() < 0.3))
        elif isinstance(shape[1], int) and r.random() < 0.5:
            operands.append(Operand(TensorType(F32, (1, shape[1], *(1,) * (len(shape) - 2))), constant=True))
        else:
            operands.append(Operand(TensorType(F32, (shape[0], shape[1], *(1 if r.random() < 0.5 else d
                                                                          for d in shape[2:])), layout)))
    steps: list[Step] = []
    for k in range(r.randint(1, 5)):
        made = [0, *(~j for j in range(k))]
        inputs = (r.choice(made),) if r.random() < 0.5 else (r.choice(made), r.choice([*range(len(operands)), *made]))
        steps.append(Step(r.choice(UNARY if len(inputs) == 1 else BINARY), inputs, (), (out,)))
    return Site(tuple(steps), tuple(operands), (Operand(out),), SYMBOLS)


def transpose(r: random.Random) -> Site:
    shape = some_shape(r, 1, 5)
    perm = tuple(r.sample(range(len(shape)), len(shape)))
    return single("Transpose", [TensorType(r.choice((F32, I64, F16, U8)), shape)], perm=perm)


def reduction(r: random.Random) -> Site:
    shape = some_shape(r, 1, 4)
    axes = tuple(sorted(r.sample(range(len(shape)), r.randint(1, len(shape)))))
    op = r.choice(("ReduceSum", "ReduceMean", "ReduceMax", "ReduceMin", "ReduceL2", "ReduceLogSumExp"))
    return single(op, [TensorType(r.choice((F32, F64)), shape)], axes=axes, keepdims=r.randint(0, 1))


def softmax(r: random.Random) -> Site:
    shape = some_shape(r, 1, 4)
    return single(r.choice(("Softmax", "LogSoftmax")), [TensorType(r.choice((F32, F64)), shape)],
                  axis=r.randrange(-len(shape), len(shape)))


def normalisation(r: random.Random) -> Site:
    shape = some_shape(r, 1, 4)
    axis = r.randrange(len(shape))
    row = TensorType(F32, shape[axis:])
    return single("LayerNormalization", [TensorType(F32, shape), row, row], axis=axis)


def cut(r: random.Random) -> Site:
    shape = static_shape(r, 1, 4)
    axes = sorted(r.sample(range(len(shape)), r.randint(1, len(shape))))
    return single("Slice", [TensorType(r.choice((F32, I64, F16, U8)), shape)], axes=tuple(axes),
                  starts=tuple(r.randint(-shape[a] - 1, shape[a] + 1) for a in axes),
                  ends=tuple(r.randint(-shape[a] - 2, shape[a] + 2) for a in axes),
                  steps=tuple(r.choice((1, 1, 2, 3, -1, -2)) for _ in axes))


def pool(r: random.Random) -> Site:
    rank = r.randint(1, 3)
    x = TensorType(F32, (r.choice((N, 2)), r.choice((3, 16, 17, 24)), *(r.randint(3, 14) for _ in range(rank))),
                   r.choice(("", "c8", "c16")))
    kernel = tuple(r.randint(1, 3) for _ in range(rank))
    dilations = tuple(r.choice((1, 1, 2)) for _ in range(rank))
    return single(r.choice(("MaxPool", "AveragePool", "LpPool")), [x], kernel_shape=kernel, dilations=dilations,
                  strides=tuple(r.randint(1, 3) for _ in range(rank)), ceil_mode=r.randint(0, 1),
                  pads=tuple(r.randint(0, k - 1) for k in kernel * 2))


def reorder(r: random.Random) -> Site:
    shape = (N, r.choice((3, 8, 16, 17, 40)), *some_shape(r, 1, 3)[1:], S)
    source, result = r.sample(("", "c8", "c16"), 2)
    return single("Reorder", [TensorType(r.choice((F32, F16)), shape, source)], layout=result)


def concat(r: random.Random) -> Site:
    shape = list(some_shape(r, 1, 4))
    axis = r.randrange(len(shape))
    parts = []
    for _ in range(r.randint(1, 4)):
        shape[axis] = r.choice(SIZES)
        parts.append(TensorType(F32, tuple(shape)))
    return single("Concat", parts, axis=axis)


def pad(r: random.Random) -> Site:
    shape = static_shape(r, 1, 4)
    mode = r.choice(("constant", "reflect", "edge", "wrap"))
    most = [max(0, d - 1) if mode == "reflect" else 4 for d in shape]
    return single("Pad", [TensorType(r.choice((F32, I64)), shape)], mode=mode,
                  pads=tuple(r.randint(0, m) for m in most * 2))


def best(r: random.Random) -> Site:
    shape = some_shape(r, 1, 4)
    return single(r.choice(("ArgMax", "ArgMin")), [TensorType(r.choice((F32, I64, I32)), shape)],
                  axis=r.randrange(len(shape)), keepdims=r.randint(0, 1), select_last_index=r.randint(0, 1))


def expand(r: random.Random) -> Site:
    shape = some_shape(r, 1, 4)
    return single("Expand", [TensorType(F32, broadcast_from(r, shape))], shape=shape)


MAKERS: tuple[Maker, ...] = (
    pointwise, transpose, reduction, softmax, normalisation, cut, pool, reorder, concat, pad, best, expand)


def agree(maker: Maker, seed: int) -> None:
    r = random.Random(f"{maker.__name__} {seed}")
    try:
        site = maker(r)
    except ModelError:
        return          # windows or cuts that no model can have
    sizes = {"N": r.choice((1, 2, 3, 8)), "S": r.choice((1, 5, 16, 37))}
    given = [np.random.default_rng(1).uniform(0.1, 1, o.type.shape).astype(np.float32) if o.constant else None
             for o in site.inputs]
    target = r.choice(list(targets().values()))
    willing = [t for t in TACTICS["x86"] if t.declines(site, target) is None]
    assert willing, site
    for tactic in willing:
        check(tactic, site, next(iter(tactic.space(site, target))), target, given, sizes, threads=r.randint(1, 3))


@pytest.mark.parametrize("maker", MAKERS, ids=lambda m: m.__name__)
def test_random_sites(maker: Maker) -> None:
    for seed in range(100 if maker is pointwise else 40):
        agree(maker, seed)


@pytest.mark.slow
@pytest.mark.parametrize("maker", MAKERS, ids=lambda m: m.__name__)
def test_many_random_sites(maker: Maker) -> None:
    for seed in range(100, 1000):
        agree(maker, seed)
