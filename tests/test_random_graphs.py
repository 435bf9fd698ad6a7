"""Random graphs through the whole compiler: a slice of them, and those that were once wrong."""
from __future__ import annotations

import os
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

sys.path.insert(0, str(Path(__file__).parents[1]))
import benchmarks.random_graphs as runner
from benchmarks.graph_maker import SYMBOLS, Known, Made, made, misplaced
from benchmarks.random_graphs import EMPTY, Maker, difference, free, merged, supervise, tried
from ingot.errors import IngotError
from ingot.graph import Graph, parse, show
from ingot.lower import Program
from ingot.ops import infer
from ingot.runtime.host import host_target

pytestmark = [pytest.mark.cpu, pytest.mark.filterwarnings("ignore")]

# What the search has found: each as it was when it was wrong, and why it was.
FOUND: Mapping[str, str] = {
    "a slice that is longest at sizes between the corners of the profile": """
        symbol N: 1..2..5
        symbol M: 1..3..4
        input x0: i64[N,M,4]
        const c: i64[] = -4
        const d: i64[] = -1
        a = Clip(x0, c, d)
        b = Slice(a) {'axes': (1,), 'ends': (2,), 'starts': (-1,), 'steps': (2,)}
        return b
    """,
    "a pooling whose input is read again by a step fused with it": """
        symbol N: 1..2..5
        symbol M: 1..3..4
        input x0: f32[1,4,6,6]
        a = AveragePool(x0) {'kernel_shape': (3, 3), 'pads': (1, 1, 1, 1), 'strides': (1, 1)}
        b = Max(x0, a)
        return b
    """,
    "a product whose right operand looks packed, and lies at an odd address": """
        symbol N: 1..2..5
        symbol M: 1..3..4
        input x0: f32[1,3,8,8]
        input x1: f32[1,3,16,16]
        a = MatMul(x0, x0)
        b = MatMul(x1, x1)
        return a, b
    """,
    "a reduction of one element whose input is read again by a step after it": """
        symbol N: 1..2..5
        symbol M: 1..3..4
        input x0: f32[1,4]
        input x1: f32[N,1,4]
        a = ReduceL1(x0) {'axes': (0,)}
        b = Add(x0, a)
        c = ReduceSumSquare(x1) {'axes': (1,)}
        d = Mul(c, x1)
        return b, d
    """,
    "a product of nothing": """
        symbol N: 1..2..5
        symbol M: 1..3..4
        input x0: f32[N,0]
        input x1: f32[0,17]
        input x2: f32[0,3,4]
        input x3: f32[4,5]
        a = MatMul(x0, x1)
        b = MatMul(x2, x3)
        return a, b
    """,
    "onnx.reference cannot flatten what has no elements": """
        symbol N: 1..2..5
        symbol M: 1..3..4
        input x0: f32[N,3,4]
        a = Slice(x0) {'axes': (1,), 'ends': (1,), 'starts': (1,), 'steps': (1,)}
        b = Flatten(a) {'axis': 2}
        c = Flatten(a) {'axis': 0}
        d = Concat(b, b) {'axis': 1}
        return b, c, d
    """,
    "a convolution of a batch of none": """
        symbol N: 1..2..5
        symbol M: 1..3..4
        input x0: f32[1,4,6,6]
        input x1: f32[17,4,2,2]
        const w: f32[2,4,1,1] = [[[[1.0]], [[2.0]], [[0.0]], [[-1.0]]], [[[3.0]], [[1.0]], [[-2.0]], [[1.0]]]]
        a = Slice(x0) {'axes': (0,), 'ends': (-1,), 'starts': (-2,), 'steps': (1,)}
        b = Conv(a, w) {'group': 1, 'pads': (0, 0, 0, 0), 'strides': (1, 1)}
        c = Conv(a, x1) {'group': 1, 'pads': (1, 1, 1, 1), 'strides': (2, 1)}
        return b, c
    """,
    "a pooling of a batch of none": """
        symbol N: 1..2..5
        symbol M: 1..3..4
        input x0: f32[1,4,6,6]
        a = Slice(x0) {'axes': (0,), 'ends': (-1,), 'starts': (0,), 'steps': (1,)}
        b = MaxPool(a) {'ceil_mode': 0, 'kernel_shape': (3, 3), 'pads': (0, 0, 0, 0), 'strides': (1, 1)}
        c = AveragePool(a) {'ceil_mode': 0, 'kernel_shape': (2, 2), 'pads': (1, 1, 1, 1), 'strides': (2, 2)}
        d = GlobalAveragePool(a)
        return b, c, d
    """,
    "the reference sums squares of narrow integers in wide ones": """
        symbol N: 1..2..5
        symbol M: 1..3..4
        input x0: i32[2,1,3]
        a = ReduceSumSquare(x0) {'axes': (1,)}
        b = Add(a, x0)
        return b
    """,
}


@pytest.fixture(scope="module", params=["", "avx2"])
def maker(request: pytest.FixtureRequest) -> Maker:
    return Maker(host_target(2, request.param))


@settings(max_examples=120, deadline=None, database=None,
          suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture])
@given(number=st.integers(0, 1 << 40))
def test_a_random_graph_gives_what_the_reference_gives(maker: Maker, number: int) -> None:
    assert not tried(made(number), maker, number)


def known_of(graph: Graph) -> Made:
    """A graph from its text, its inputs small whole numbers."""
    return Made(graph, {v: Known(-3, 3, 0) for v in graph.inputs},
                {v: Known(-1e9, 1e9, None) for v in graph.outputs})


def every_size(graph: Graph) -> Iterator[dict[str, int]]:
    for n in range(1, 6):
        for m in range(1, 5):
            yield {"N": n, "M": m}


@pytest.mark.parametrize("what", FOUND)
def test_what_was_once_wrong_is_right_at_every_size(maker: Maker, what: str) -> None:
    case = known_of(parse(FOUND[what], infer))
    session = maker.session(case.graph)
    for number, sizes in enumerate(every_size(case.graph)):
        used = {k: v for k, v in sizes.items() if any(k in case.graph.types[i].symbols for i in case.graph.inputs)}
        feeds = {k: misplaced(a) for k, a in case.feeds(sizes, number).items()}
        opt = {s.name: s.opt for s in SYMBOLS}
        assert not difference(case, feeds, {**opt, **used}, session.run(feeds))


REFUSED = {
    "axis 1 has no elements, so none is the greatest": """
        symbol N: 1..2..5
        input x0: i64[N,4]
        a = Slice(x0) {'axes': (1,), 'ends': (1,), 'starts': (-2,), 'steps': (1,)}
        b = ArgMax(a) {'axis': 1, 'keepdims': 1}
        return b
    """,
    "axis 0 has no elements to fill its padding with": """
        symbol N: 1..2..5
        input x0: f32[3,4]
        a = Slice(x0) {'axes': (0,), 'ends': (-1,), 'starts': (-1,), 'steps': (1,)}
        b = Pad(a) {'mode': 'edge', 'pads': (0, 0, 2, 0)}
        return b
    """,
}


@pytest.mark.parametrize("why", REFUSED)
def test_what_nothing_can_answer_is_refused(why: str) -> None:
    with pytest.raises(IngotError, match=why):
        parse(REFUSED[why], infer)


def test_a_planted_error_is_found(maker: Maker) -> None:
    case = made(7)
    feeds = case.feeds({"N": 2, "M": 3}, 7)
    found = maker.session(case.graph).run(feeds)
    assert not difference(case, feeds, {"N": 2, "M": 3}, found)
    name = next(iter(found))
    wrong = np.array(found[name])
    wrong.flat[-1] = wrong.flat[-1] == 0 if wrong.dtype == bool else wrong.flat[-1] * 2 + 1
    assert "'" + name + "'" in difference(case, feeds, {"N": 2, "M": 3}, {**found, name: wrong})


def test_a_crash_of_a_worker_is_a_failure_and_not_the_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def dies(case: Made, maker: Maker, number: int, program: Program) -> str:
        if number == 2:
            os._exit(9)
        return ""

    monkeypatch.setattr(runner, "tried", dies)
    found = supervise(0, 5, 60.0, 1, tmp_path)
    assert found.graphs == 5
    assert list(found.failures) == [2]
    assert "ended with 9" in found.failures[2]
    assert found.ops


def test_kernels_compiled_together_give_what_they_give_one_by_one() -> None:
    cases = [made(n) for n in range(40, 56)]
    alone, together = Maker(host_target(1), block=0), Maker(host_target(1), block=0)
    programs = [together.program(c.graph) for c in cases]
    together.compile(programs)
    assert len(together.kept) > 8
    for case, program in zip(cases, programs, strict=True):
        feeds = case.feeds({"N": 2, "M": 3}, 1)
        one, other = alone.session(case.graph).run(feeds), together.session(case.graph, program).run(feeds)
        assert all(np.array_equal(one[k], other[k], equal_nan=one[k].dtype.kind == "f") for k in one)


def test_no_graph_counts_twice() -> None:
    def result(first: int, end: int) -> dict[str, object]:
        return {**EMPTY, "graphs": end - first, "ranges": [[first, end]], "until": "2026-11-20"}

    both = merged(result(0, 10), result(20, 30))
    assert free(both["ranges"], 0, 100) == (10, 10)
    assert free(both["ranges"], 25, 100) == (30, 100)
    assert merged(both, result(10, 20))["ranges"] == [[0, 30]]
    with pytest.raises(ValueError, match="25 to 30 would count twice"):
        merged(both, result(25, 40))


def test_an_image_without_channels_has_no_groups() -> None:
    """The maker of graphs once divided its no channels among as many groups."""
    assert made(1008663).graph.nodes


def test_graphs_are_the_same_every_time_and_differ() -> None:
    assert show(made(3).graph) == show(made(3).graph)
    assert len({show(made(n).graph) for n in range(60)}) > 50
