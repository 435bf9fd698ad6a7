"""Dimensions are exact arithmetic; a graph's text is the graph; a graph that breaks its rules is refused."""
from __future__ import annotations

from textwrap import dedent

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ingot.errors import ModelError, UnsupportedError
from ingot.graph import F32, Graph, GraphBuilder, Node, Symbol, TensorType, evaluate, parse, parse_dim, show, symbol
from ingot.graph.types import dense_strides
from ingot.ops import infer

NAMES = ("H", "N", "S")


@st.composite
def dims(draw, depth: int = 4):
    """A dimension and the function of plain ints it must equal."""
    kind = draw(st.sampled_from(["number", "symbol"] if depth == 0 else ["number", "symbol", "+", "-", "*", "//", "%"]))
    if kind == "number":
        n = draw(st.integers(-4, 9))
        return n, lambda sizes: n
    if kind == "symbol":
        name = draw(st.sampled_from(NAMES))
        return symbol(name), lambda sizes: sizes[name]
    (a, f), (b, g) = draw(dims(depth - 1)), draw(dims(depth - 1))
    if kind in ("//", "%"):
        divisor = draw(st.integers(1, 6))
        if kind == "//":
            return a // divisor, lambda sizes: f(sizes) // divisor
        return a % divisor, lambda sizes: f(sizes) % divisor
    if kind == "+":
        return a + b, lambda sizes: f(sizes) + g(sizes)
    if kind == "-":
        return a - b, lambda sizes: f(sizes) - g(sizes)
    return a * b, lambda sizes: f(sizes) * g(sizes)


SIZES = st.fixed_dictionaries({name: st.integers(1, 40) for name in NAMES})


@settings(max_examples=200, deadline=None, derandomize=True)
@given(dims(), SIZES)
def test_a_dimension_is_exact_arithmetic(pair, sizes):
    dim, expected = pair
    assert evaluate(dim, sizes) == expected(sizes)


@settings(max_examples=200, deadline=None, derandomize=True)
@given(dims(), SIZES)
def test_the_text_of_a_dimension_is_the_dimension(pair, sizes):
    dim, _ = pair
    assert evaluate(parse_dim(str(dim)), sizes) == evaluate(dim, sizes)
    assert str(parse_dim(str(dim))) == str(dim)


def test_equal_dimensions_compare_equal():
    n, s = symbol("N"), symbol("S")
    assert (n + 1) * (s - 2) == n * s - 2 * n + s - 2
    assert (n * 64 * s) // (64 * s) == n
    assert (2 * n + 3) // 2 == n + 1
    assert (n - n) == 0
    assert isinstance(n - n, int)
    assert (n * s + n) // (s + 1) == n
    assert n // 2 != s // 2


@pytest.mark.parametrize("text", ["N +", "f(N)", "N ** 2", "1.5", "", "N // 0"])
def test_what_is_no_dimension_is_refused(text):
    with pytest.raises(ModelError, match="is not a dimension"):
        parse_dim(text)


def test_a_profile_in_the_wrong_order_is_refused():
    with pytest.raises(ModelError, match=r"the profile of N is 4\.\.2\.\.8"):
        Symbol("N", 4, 2, 8)


def test_the_physical_shape_of_a_blocked_tensor():
    n = symbol("N")
    blocked = TensorType(F32, (n, 20, 7, 7), "c16")
    assert blocked.physical == (n, 2, 7, 7, 16)
    assert blocked.nbytes == n * 2 * 49 * 16 * 4
    assert blocked.at({"N": 3}).physical == (3, 2, 7, 7, 16)
    assert dense_strides((n, 4, 5)) == (20, 5, 1)


TEXT = dedent("""\
    symbol N: 1..8..32
    input x: f32[N,4,6]
    const axis: i64[2] = [1, -1]
    const w: f32[6,64]
    const odd: f32[3] = [nan, inf, -inf]
    const limit: f32[] = 0.5
    h = MatMul(x, w)
    a, b = Split(h) {'axis': -1, 'split': (32, 32)}
    y = Reshape(b) {'shape': ('N', 128)}
    z = Clip(a, , limit)
    return y, z""")


def test_the_text_of_a_graph_reads_back():
    graph = parse(TEXT, infer)
    assert show(graph) == TEXT
    assert show(parse(show(graph), infer)) == TEXT
    assert graph.types["y"].shape == (symbol("N"), 128)
    assert graph.producers["z"].inputs == ("a", "", "limit")
    odd = graph.constants["odd"]
    assert np.isnan(odd[0])
    assert odd[1:].tolist() == [np.inf, -np.inf]


@pytest.mark.parametrize(("text", "problem"), [
    ("input x: f32[4]\ny = Relu(z)\nreturn y", "'z' is read before it is made"),
    ("input x: f32[4]\ny = Relu(x)\nz = Exp(x)\nreturn u", "the output 'u' is never made"),
    ("input x: f32[4]\ny = Relu(x)", "a graph ends with 'return'"),
    ("input x: f99[4]\nreturn x", "is not a type"),
    ("input x: f32[4]\nwhat is this\nreturn x", "cannot read the line"),
    ("input x: f32[4]\ny = Nonsense(x)\nreturn y", "unknown op Nonsense"),
    ("input x: f32[4]\ny = Relu(x) {'alpha': 1}\nreturn y", "Relu has no attribute alpha"),
    ("input x: f32[4]\ninput z: f32[5]\ny = Add(x, z)\nreturn y", "do not broadcast"),
    ("input x: f32[4]\ny = MatMul(x)\nreturn y", "takes"),
])
def test_a_graph_that_breaks_its_rules_is_refused(text, problem):
    with pytest.raises((ModelError, UnsupportedError), match=problem):
        parse(text, infer)


def test_values_are_made_once_and_before_they_are_read():
    types = {"x": TensorType(F32, (4,)), "y": TensorType(F32, (4,))}
    with pytest.raises(ModelError, match="'y' is made twice"):
        Graph(("x",), ("y",), (Node("Relu", ("x",), ("y",)), Node("Exp", ("x",), ("y",))), {}, types)
    with pytest.raises(ModelError, match="'y' is read before it is made"):
        Graph(("x",), ("x",), (Node("Relu", ("y",), ("x2",)), Node("Exp", ("x",), ("y",))), {}, types)
    with pytest.raises(ModelError, match="value 'y' has no type"):
        Graph(("x",), ("y",), (Node("Relu", ("x",), ("y",)),), {}, {"x": types["x"]})


def test_a_builder_types_what_it_adds_and_names_it_freshly():
    build = GraphBuilder(infer)
    x = build.input("x", TensorType(F32, (4, 8)))
    w = build.constant("w", np.ones((8, 3), np.float32))
    a, b = build.node("MatMul", x, w), build.node("MatMul", x, w)
    assert a != b
    graph = build.finish(build.node("Add", a, b, name="y"))
    assert graph.types["y"] == TensorType(F32, (4, 3))
    assert graph.producers["y"].inputs == (a, b)
    assert [n.output for n in graph.readers["x"]] == [a, b]
    assert graph.uses["y"] == 1
