"""A graph in a shorter type: where the casts stand, what stays in f32, and what overflows."""
from __future__ import annotations

from textwrap import dedent

import numpy as np
import pytest

from ingot.errors import InputError
from ingot.graph import F16, F32, Graph, parse
from ingot.ops import infer
from ingot.ops.reference import run_graph
from ingot.passes import Precision, kept_for, lower_precision, overflows

HALF = Precision("f16")


def graph_of(text: str) -> Graph:
    return parse(dedent(text), infer)


MLP = """
    input x: f32[4,8]
    const w: f32[8,16]
    const b: f32[16]
    h = MatMul(x, w)
    a = Add(h, b)
    y = Relu(a)
    return y
"""


def test_a_graph_keeps_the_types_of_its_inputs_and_outputs():
    graph = graph_of(MLP)
    made = lower_precision(graph, HALF)
    assert [n.op for n in made.nodes] == ["Cast", "MatMul", "Add", "Relu", "Cast"]
    assert made.inputs == graph.inputs and made.outputs == graph.outputs
    assert made.types["x"].dtype == made.types["y"].dtype == F32
    assert made.types[made.nodes[1].output].dtype == F16


def test_told_so_its_inputs_and_outputs_are_short_too():
    made = lower_precision(graph_of(MLP), Precision("f16", outside=True))
    assert [n.op for n in made.nodes] == ["MatMul", "Add", "Relu"]
    assert made.types["x"].dtype == made.types["y"].dtype == F16 and made.outputs == ("y",)


def test_the_result_is_the_same_but_for_rounding():
    graph = graph_of(MLP)
    x = np.random.default_rng(0).standard_normal((4, 8), np.float32)
    wide, short = (run_graph(g, {"x": x})["y"] for g in (graph, lower_precision(graph, HALF)))
    assert short.dtype == np.float32
    assert 0 < np.abs(wide - short).max() < 0.01 * np.abs(wide).max()


def test_without_a_short_type_nothing_changes():
    graph = graph_of(MLP)
    assert lower_precision(graph, Precision("f32")) is graph is lower_precision(graph, Precision("tf32"))


def test_sensitive_ops_stay_in_f32():
    made = lower_precision(graph_of("""
        input x: f32[4,8]
        r = Relu(x)
        e = Exp(r)
        y = Tanh(e)
        return y
    """), HALF)
    exp = next(n for n in made.nodes if n.op == "Exp")
    assert made.types[exp.inputs[0]].dtype == made.types[exp.output].dtype == F32
    assert made.types[next(n for n in made.nodes if n.op == "Tanh").inputs[0]].dtype == F16


def test_a_constant_that_the_type_would_lose_keeps_its_reader_in_f32():
    made = lower_precision(graph_of("""
        input x: f32[4,8]
        const tiny: f32[] = 1e-12
        a = Relu(x)
        y = Add(a, tiny)
        z = Tanh(y)
        return z
    """), HALF)
    add = next(n for n in made.nodes if n.op == "Add")
    assert made.types[add.output].dtype == F32


def test_a_mask_that_means_minus_infinity_stays_finite():
    made = lower_precision(graph_of("""
        input x: f32[2,2]
        input c: bool[2,2]
        const low: f32[] = -3.4e38
        y = Where(c, x, low)
        return y
    """), HALF)
    assert [float(a) for a in made.constants.values()] == [-65504.0]


def test_a_value_that_overflows_is_named_measured_and_kept():
    graph = graph_of("""
        input x: f32[4,8]
        const k: f32[] = 30000.0
        a = Mul(x, k)
        b = Tanh(a)
        y = Relu(b)
        return y
    """)
    x = np.zeros((4, 8), np.float32)
    x[0, :4] = 3
    found = overflows(graph, [{"x": x}])
    assert [(o.value, o.share, o.largest) for o in found] == [("a", 0.125, 90000.0)]
    assert "12.50%" in str(found[0])
    keep = kept_for(graph, found)
    assert keep == {"a", "b"}
    made = lower_precision(graph, Precision("f16", keep))
    result = run_graph(made, {"x": x})["y"]
    assert np.isfinite(result).all() and result[0, 0] == 1


def test_a_mask_is_no_overflow():
    graph = graph_of("""
        input x: f32[2,2]
        input c: bool[2,2]
        const low: f32[] = -3.4e38
        y = Where(c, x, low)
        z = Softmax(y)
        return z
    """)
    given = {"x": np.ones((2, 2), np.float32), "c": np.array([[True, False], [True, True]])}
    assert overflows(graph, [given]) == ()
    made = run_graph(lower_precision(graph, HALF), given)["z"]
    assert made.tolist() == [[1, 0], [0.5, 0.5]]


def test_integers_are_left_alone_and_tables_are_turned():
    made = lower_precision(graph_of("""
        input i: i64[5]
        const table: f32[7,4]
        const one: i64[] = 1
        j = Add(i, one)
        y = Gather(table, j)
        return y
    """), HALF)
    gather = next(n for n in made.nodes if n.op == "Gather")
    assert made.types[gather.inputs[0]].dtype == F16 and made.types[gather.inputs[1]].dtype.name == "i64"


def test_an_unknown_precision_is_refused():
    with pytest.raises(InputError, match="f8"):
        Precision("f8")
