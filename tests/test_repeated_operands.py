"""One value given twice to a node: kernels take operands by their places, and a site holds each value once."""
from __future__ import annotations

from types import MappingProxyType

import numpy as np
import pytest

import ingot
from ingot import BuildOptions
from ingot.engine import Engine, make_variant
from ingot.errors import IngotError
from ingot.graph import GraphBuilder, Node, TensorType, type_of
from ingot.lower import lower
from ingot.ops import OPS, infer
from ingot.ops.op import Sample
from ingot.ops.reference import evaluate
from ingot.runtime.host import host_target

OPTIONS = BuildOptions(tune=False, verify=False)


def _kind(x: object) -> TensorType | None:
    return type_of(x) if isinstance(x, np.ndarray) else x if isinstance(x, TensorType) else None


def _twins(sample: Sample) -> list[tuple[int, int]]:
    """Pairs of operands of one type: the second can be the first again."""
    kinds = [_kind(x) for x in sample[0]]
    return [(i, j) for j in range(len(kinds)) for i in range(j) if kinds[i] is not None and kinds[i] == kinds[j]]


NEVER = frozenset({"Trees"})         # its tables refer to one another: roots are no depths
CASES = [(name, n, pair) for name, op in sorted(OPS.items()) if name not in NEVER
         for n, s in enumerate(op.samples) for pair in _twins(s)
         if not any(k is not None and k.layout for k in map(_kind, s[0]))]


@pytest.mark.parametrize("name", sorted({c[0] for c in CASES}))
def test_an_operand_given_twice_is_read_in_both_places(name: str):
    """Every op at its samples, one of them for each pair of operands that may be the same value."""
    tried: set[tuple[int, int]] = set()
    for _, number, (first, second) in (c for c in CASES if c[0] == name):
        if (first, second) in tried:
            continue
        operands, attrs = OPS[name].samples[number]
        rng = np.random.default_rng(0)
        build = GraphBuilder(infer)
        names: list[str] = []
        feeds: dict[str, np.ndarray] = {}
        for k, x in enumerate(operands):
            t = _kind(x)
            names.append("" if t is None else names[first] if k == second else f"x{k}")
            if t is None or k == second:
                continue
            if isinstance(x, np.ndarray):
                build.constant(names[k], x)
                feeds[names[k]] = x
            else:
                build.input(names[k], t)
                held = rng.integers(0, 2, [int(str(d)) for d in t.shape]) if t.dtype.kind != "float" else \
                    rng.standard_normal([int(str(d)) for d in t.shape])
                feeds[names[k]] = np.asarray(held, t.dtype.numpy)
        node = Node(name, tuple(names), tuple(f"y{k}" for k in range(max(1, OPS[name].outputs))),
                    MappingProxyType(dict(attrs)), ("n",))
        try:
            build.add(node)
            wanted = evaluate(node, [feeds[v] if v else None for v in names], {})
        except (IngotError, IndexError, ValueError):        # no such node: updates of another shape, say
            continue
        tried.add((first, second))
        graph, target = build.finish(*node.outputs), host_target(2)
        session = ingot.Session(Engine(name, graph, (make_variant(lower(graph, target), target),)))
        made = session.run({v: feeds[v] for v in graph.inputs})
        for output, right in zip(node.outputs, wanted, strict=True):
            if right.dtype.kind in "OUSb" or right.dtype.kind in "iu":
                np.testing.assert_array_equal(made[output], right)
            else:
                wide = [np.asarray(a, np.complex128 if right.dtype.kind == "c" else np.float64)
                        for a in (made[output], right)]
                np.testing.assert_allclose(*wide, rtol=2e-2, atol=2e-2)
