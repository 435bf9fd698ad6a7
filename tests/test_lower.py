"""Lowering: graph text in, sites and views out. The tactics here take everything, or what a test says."""
from collections.abc import Callable, Iterator

import pytest

from ingot.graph import parse
from ingot.kernels import TACTICS, Kernel, Params, Site, Tactic
from ingot.lower import Program, lower
from ingot.ops import infer
from ingot.target import Target

FAKE = Target("fake")


class Willing(Tactic):
    name = "fake.willing"

    def __init__(self, reason: Callable[[Site], str | None]) -> None:
        self.reason = reason

    def declines(self, site: Site, target: Target) -> str | None:
        return self.reason(site)

    def emit(self, site: Site, params: Params, target: Target) -> Kernel:
        raise AssertionError("lowering emits nothing")


@pytest.fixture
def lowered() -> Iterator[Callable[..., Program]]:
    def run(text: str, reason: Callable[[Site], str | None] = lambda site: None) -> Program:
        TACTICS["fake"] = (Willing(reason),)
        return lower(parse(text, infer), FAKE)
    yield run
    TACTICS.pop("fake", None)


def steps(program: Program) -> list[str]:
    return ["+".join(s.op for s in x.site.steps) for x in program.launches]


def test_bias_activation_and_residual_ride_with_the_product(lowered: Callable[..., Program]) -> None:
    program = lowered("""
        input x: f32[4,8]
        input r: f32[4,16]
        const w: f32[8,16]
        const b: f32[16]
        h = MatMul(x, w)
        a = Add(h, b)
        c = Relu(a)
        d = Add(c, r)
        return d
    """)
    assert steps(program) == ["MatMul+Add+Relu+Add"]
    assert program.launches[0].reads == ("x", "w", "b", "r")
    assert [s.inputs for s in program.launches[0].site.steps] == [(0, 1), (~0, 2), (~1,), (~2, 3)]
    assert [o.constant for o in program.launches[0].site.inputs] == [False, True, True, False]


def test_a_result_read_elsewhere_ends_the_region(lowered: Callable[..., Program]) -> None:
    program = lowered("""
        input x: f32[4,8]
        const w: f32[8,8]
        h = MatMul(x, w)
        a = Relu(h)
        b = Tanh(a)
        c = MatMul(a, w)
        d = Add(b, c)
        return d
    """)
    assert steps(program) == ["MatMul+Relu", "Tanh", "MatMul+Add"]


def test_a_diamond_stays_in_registers(lowered: Callable[..., Program]) -> None:
    program = lowered("""
        input x: f32[4,8]
        const w: f32[8,8]
        h = MatMul(x, w)
        s = Sigmoid(h)
        y = Mul(h, s)
        return y
    """)
    assert steps(program) == ["MatMul+Sigmoid+Mul"]


def test_independent_pointwise_branches_are_pulled_in(lowered: Callable[..., Program]) -> None:
    program = lowered("""
        input x: f32[4,8]
        input y: f32[4,8]
        a = Mul(x, x)
        b = Mul(y, y)
        c = Add(a, b)
        return c
    """)
    assert steps(program) == ["Mul+Mul+Add"]


def test_what_tactics_decline_is_cut_shorter(lowered: Callable[..., Program]) -> None:
    program = lowered("""
        input x: f32[4,8]
        const w: f32[8,8]
        h = MatMul(x, w)
        a = Relu(h)
        b = Erf(a)
        return b
    """, lambda site: "no Erf in an epilogue" if len(site.steps) > 1 and site.steps[-1].op == "Erf" else None)
    assert steps(program) == ["MatMul+Relu", "Erf"]


def test_what_nobody_serves_runs_on_the_reference_and_says_why(lowered: Callable[..., Program]) -> None:
    program = lowered("input x: f32[4,8]\ny = Erf(x)\nreturn y", lambda site: "not today")
    assert not program.launches[0].native
    assert program.launches[0].reasons == ("fake.willing: not today",)


def test_renames_cost_nothing_and_the_output_owns_its_buffer(lowered: Callable[..., Program]) -> None:
    program = lowered("""
        input x: f32[4,8]
        const w: f32[8,8]
        h = MatMul(x, w)
        y = Reshape(h) {'shape': (2, 2, 8)}
        return y
    """)
    assert steps(program) == ["MatMul"]
    assert program.root("h") == ("y", 0)


def test_an_output_that_is_the_input_is_copied(lowered: Callable[..., Program]) -> None:
    program = lowered("input x: f32[4,8]\ny = Reshape(x) {'shape': (32,)}\nreturn y")
    assert steps(program) == ["Identity"]
    assert program.root("y") == ("y", 0)


def test_slices_of_a_merged_product_reach_attention_as_strides(lowered: Callable[..., Program]) -> None:
    text = """
        symbol N: 1..2..8
        input x: f32[N,4,24]
        q, k, v = Split(x) {'axis': 2, 'split': (8, 8, 8)}
        y = Attention(q, k, v) {'q_num_heads': 2, 'kv_num_heads': 2}
        return y
    """
    program = lowered(text)
    assert steps(program) == ["Attention"]
    assert [str(o.strides) for o in program.launches[0].site.inputs] == ["(96, 24, 1)"] * 3
    assert [program.root(v) for v in ("q", "k", "v")] == [("x", 0), ("x", 32), ("x", 64)]
    program = lowered(text, lambda site: "dense only" if any(o.strides for o in site.inputs) else None)
    assert steps(program) == ["Slice", "Slice", "Slice", "Attention"]


def test_a_leading_axis_slice_is_a_view(lowered: Callable[..., Program]) -> None:
    program = lowered("""
        input x: f32[6,8]
        a, b = Split(x) {'axis': 0, 'split': (2, 4)}
        c = Relu(b)
        return c
    """)
    assert steps(program) == ["Relu"]
    assert program.root("b") == ("x", 64)


def test_concat_parts_are_written_in_place(lowered: Callable[..., Program]) -> None:
    program = lowered("""
        input x: f32[1,8]
        const c: f32[1,3]
        a = Relu(x)
        b = Tanh(x)
        y = Concat(a, c, b) {'axis': 1}
        z = Exp(y)
        return z
    """)
    assert steps(program) == ["Relu", "Tanh", "Identity", "Exp"]
    assert program.root("a") == ("y", 0)
    assert program.root("b") == ("y", 44)


def test_concat_of_inner_axes_writes_rows_where_the_producer_can(lowered: Callable[..., Program]) -> None:
    text = """
        input x: f32[4,8]
        a = Relu(x)
        b = Tanh(x)
        y = Concat(a, b) {'axis': 1}
        return y
    """
    program = lowered(text)
    assert steps(program) == ["Relu", "Tanh"]
    assert [x.site.outputs[0].strides for x in program.launches] == [(16, 1), (16, 1)]
    program = lowered(text, lambda site: "dense only" if site.outputs[0].strides else None)
    assert steps(program) == ["Relu", "Tanh", "Concat"]


def test_a_reorder_of_a_pooled_vector_is_free(lowered: Callable[..., Program]) -> None:
    program = lowered("""
        input x: f32[2,32,1,1]
        y = Reorder(x) {'layout': 'c16'}
        z = Relu(y)
        w = Reorder(z) {'layout': ''}
        v = Exp(w)
        return v
    """)
    assert steps(program) == ["Relu", "Exp"]
