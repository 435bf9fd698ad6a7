"""Attention with caches, lengths, windows and its scores: plain attention after the passes, with the same numbers."""
from __future__ import annotations

from types import MappingProxyType

import numpy as np
import pytest

from ingot.graph import GraphBuilder, Node, Symbol, TensorType, symbol, type_of
from ingot.lower import lower
from ingot.ops import infer
from ingot.ops.reference import run_graph
from ingot.ops.samples import boolean, f16, f32, f64
from ingot.passes import optimize
from ingot.target import Target

TARGET = Target("x86", "avx2", threads=2)
Q, K, PAST = f32(2, 4, 3, 8), f32(2, 2, 5, 8), f32(2, 2, 6, 8)
LENGTHS = np.array([5, 2])
Case = tuple[tuple[TensorType | np.ndarray | None, ...], dict[str, object], tuple[int, ...]]

CASES: list[Case] = [
    ((Q, K, K, None, PAST, PAST), {}, (0, 1, 2)),
    ((Q, K, K, None, PAST, PAST), {"is_causal": 1}, (0, 1, 2)),
    ((Q, K, K, f32(3, 11), PAST, PAST), {"is_causal": 1, "softcap": 2.0}, (0,)),
    ((Q, K, K, boolean(2, 1, 3, 11), PAST, PAST), {"left_window_size": 2, "right_window_size": 1}, (0, 1)),
    ((f32(2, 3, 32), f32(2, 5, 16), f32(2, 5, 16), None, PAST, PAST), {"q_num_heads": 4, "kv_num_heads": 2}, (0, 1, 2)),
    ((f32(2, 3, 32), f32(2, 5, 16), f32(2, 5, 16)), {"q_num_heads": 4, "kv_num_heads": 2}, (0, 1, 2)),
    ((Q, K, K, f32(3, 4)), {}, (0,)), ((Q, K, K, boolean(3, 4)), {"is_causal": 1}, (0,)),
    ((Q, K, K, None, None, None, LENGTHS), {}, (0,)), ((Q, K, K, None, None, None, LENGTHS), {"is_causal": 1}, (0,)),
    ((Q, K, K, f32(4, 3, 5), None, None, LENGTHS), {"is_causal": 1, "left_window_size": 1}, (0,)),
    ((Q, K, K, boolean(5)), {"left_window_size": 0, "right_window_size": 2}, (0,)),
    *(((Q, K, K, f32(3, 5)), {"qk_matmul_output_mode": m, "softcap": 1.5}, (0, 3)) for m in range(4)),
    ((Q, K, K, boolean(2, 1, 3, 5)), {"qk_matmul_output_mode": 3, "is_causal": 1}, (0, 3)),
    ((Q, K, K, None, PAST, PAST), {"qk_matmul_output_mode": 2, "is_causal": 1}, (0, 1, 2, 3)),
    ((Q, K, K), {"softmax_precision": "f64"}, (0,)),
    ((f64(2, 4, 3, 8), f64(2, 2, 5, 8), f64(2, 2, 5, 8), f64(3, 5)), {"is_causal": 1}, (0,)),
    ((f16(2, 4, 3, 8), f16(2, 2, 5, 8), f16(2, 2, 5, 8), None, f16(2, 2, 6, 8), f16(2, 2, 6, 8)), {}, (0, 1, 2)),
]


@pytest.mark.parametrize("case", CASES, ids=lambda c: f"{len(c[0])}-{c[1]}-{c[2]}".replace(" ", ""))
def test_only_plain_attention_is_left(case: Case) -> None:
    operands, attrs, outputs = case
    build, feeds, rng = GraphBuilder(infer), {}, np.random.default_rng(2)
    names = []
    for k, x in enumerate(operands):
        if x is None:
            names.append("")
            continue
        t = type_of(x) if isinstance(x, np.ndarray) else x
        names.append(build.input(f"x{k}", t))
        some = rng.standard_normal(t.shape)
        feeds[f"x{k}"] = x if isinstance(x, np.ndarray) else some > -0.5 if t.dtype.kind == "bool" else \
            some.astype(t.dtype.numpy)
    made = tuple(f"y{k}" if k in outputs else "" for k in range(max(outputs) + 1))
    build.add(Node("Attention", tuple(names), made, MappingProxyType(attrs)))
    graph = build.finish(*filter(None, made))
    after = optimize(graph, TARGET)
    assert all(len(n.outputs) == 1 and len(n.inputs) < 5 for n in after.nodes if n.op == "Attention")
    assert [x.where for x in lower(after, TARGET).launches if not x.native] == []
    want, got = run_graph(graph, feeds), run_graph(after, feeds)
    for name in graph.outputs:
        close = 5e-3 if want[name].dtype == np.float16 else 2e-6
        assert got[name].dtype == want[name].dtype
        assert np.allclose(got[name], want[name], close, close), name


def test_a_cache_of_any_length() -> None:
    n = symbol("P")
    build = GraphBuilder(infer, {"P": Symbol("P", 1, 4, 9)})
    q, k = build.input("q", f32(1, 4, 1, 8)), build.input("k", f32(1, 2, 1, 8))
    past = [build.input(f"p{i}", f32(1, 2, n, 8)) for i in range(2)]
    build.add(Node("Attention", (q, k, k, "", *past), ("y", "pk", "pv"), MappingProxyType({"is_causal": 1})))
    graph = build.finish("y", "pk", "pv")
    after = optimize(graph, TARGET)
    assert [x.where for x in lower(after, TARGET).launches if not x.native] == []
    rng = np.random.default_rng(0)
    for size in (1, 5):
        feeds = {"q": rng.standard_normal((1, 4, 1, 8)), "k": rng.standard_normal((1, 2, 1, 8)),
                 "p0": rng.standard_normal((1, 2, size, 8)), "p1": rng.standard_normal((1, 2, size, 8))}
        feeds = {k: v.astype(np.float32) for k, v in feeds.items()}
        want, got = run_graph(graph, feeds), run_graph(after, feeds)
        for name in graph.outputs:
            assert np.allclose(got[name], want[name], 1e-5, 1e-6)
