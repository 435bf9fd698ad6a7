"""Symbolic shape arithmetic: contents of small tensors as dimensions, and the pass that uses them."""
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ingot.graph import Graph, parse, show
from ingot.ops import infer
from ingot.ops.contents import array_of, contents_of, least
from ingot.ops.reference import run_graph
from ingot.passes.resolve_shapes import resolve_shapes

HEAD = "symbol N: 1..2..8\nsymbol S: 1..4..64\ninput x: f32[N,S,6]\nshape = Shape(x)\n"


def _graph(body: str, result: str = "y") -> Graph:
    return parse(HEAD + body + f"\nreturn {result}", infer)


@pytest.mark.parametrize(("body", "wanted"), [
    ("y = Identity(shape)", ["N", "S", "6"]),
    ("y = Shape(x) {'start': 1}", ["S", "6"]),
    ("y = Size(x)", ["6*N*S"]),
    ("const i: i64[] = 1\ny = Gather(shape, i)", ["S"]),
    ("const i: i64[2] = [-1, 0]\ny = Gather(shape, i)", ["6", "N"]),
    ("y = Slice(shape) {'starts': (1,), 'ends': (9,)}", ["S", "6"]),
    ("y = Slice(shape) {'starts': (-1,), 'ends': (-9,), 'steps': (-1,), 'axes': (0,)}", ["6", "S", "N"]),
    ("const k: i64[1] = [7]\ny = Concat(shape, k) {'axis': 0}", ["N", "S", "6", "7"]),
    ("const k: i64[] = 2\ny = Mul(shape, k)", ["2*N", "2*S", "12"]),
    ("const k: i64[] = 4\ny = Div(shape, k)", ["((N)//(4))", "((S)//(4))", "1"]),
    ("const k: i64[] = 4\na = Mul(shape, k)\ny = Div(a, k)", ["N", "S", "6"]),
    ("const k: i64[] = 3\ny = Mod(shape, k)", ["-3*((N)//(3))+N", "-3*((S)//(3))+S", "0"]),
    ("const k: i64[] = 1\na = Sub(shape, k)\ny = Add(a, shape)", ["2*N-1", "2*S-1", "11"]),
    ("y = ReduceProd(shape) {'keepdims': 0}", ["6*N*S"]),
    ("y = ReduceSum(shape)", ["N+S+6"]),
    ("const k: i64[] = 1\ny = Max(shape, k)", ["N", "S", "6"]),
    ("const k: i64[] = 1\ny = Min(shape, k)", ["1", "1", "1"]),
    ("a = Unsqueeze(shape) {'axes': (0,)}\ny = Squeeze(a) {'axes': (0,)}", ["N", "S", "6"]),
    ("y = Reshape(shape) {'shape': (3, 1)}", ["N", "S", "6"]),
    ("a = Cast(shape) {'to': 'f32'}\nconst k: f32[] = 2.0\nb = Mul(a, k)\nc = Floor(b)\ny = Cast(c) {'to': 'i64'}",
     ["2*N", "2*S", "12"]),
    ("const k: i64[] = -1\nc = Equal(shape, k)\ny = Where(c, k, shape)", ["N", "S", "6"]),
    ("const k: i64[] = 0\nc = Greater(shape, k)\nn = Not(c)\ny = Where(n, k, shape)", ["N", "S", "6"]),
    ("y = ConstantOfShape() {'shape': (2,), 'value': 3, 'dtype': 'i64'}", ["3", "3"]),
    ("y = Range() {'start': ('N',), 'limit': ('N+3',), 'delta': (1,)}", ["N", "N+1", "N+2"]),
    ("a = Slice(shape) {'starts': (0,), 'ends': (1,)}\ny = Expand(a) {'shape': (2,)}", ["N", "N"]),
    ("a, b = Split(shape) {'split': (1, 2)}\ny = Identity(b)", ["S", "6"]),
    ("y = Tile(shape) {'repeats': (2,)}", ["N", "S", "6", "N", "S", "6"]),
    ("a = Reshape(shape) {'shape': (3, 1)}\ny = Transpose(a)", ["N", "S", "6"]),
])
def test_contents_are_followed(body: str, wanted: list[str]):
    graph = _graph(body)
    assert [str(v) for v in contents_of(graph)["y"].flat] == wanted
    x = np.zeros((3, 5, 6), np.float32)
    real = run_graph(graph, {"x": x})["y"]
    expected = [v if isinstance(v, int) else v.evaluate({"N": 3, "S": 5}) for v in contents_of(graph)["y"].flat]
    assert real.reshape(-1).tolist() == expected


@pytest.mark.parametrize("body", [
    "const k: i64[] = 4\na = Sub(shape, k)\nconst h: i64[] = 2\ny = Div(a, h)",     # (N-4)/2 truncates where N < 4
    "const k: i64[] = 3\nc = Equal(shape, k)\ny = Where(c, k, shape)",              # N may be 3
    "const k: i64[] = 3\ny = Max(shape, k)",
    "a = Cast(shape) {'to': 'f32'}\nconst k: f32[] = 0.3\nb = Mul(a, k)\ny = Cast(b) {'to': 'i64'}",
    "const k: i64[] = 1\na = Sub(shape, k)\ny = Cast(a) {'to': 'bool'}",
])
def test_what_is_not_certain_is_not_claimed(body: str):
    assert "y" not in contents_of(_graph(body))


def test_data_has_no_contents():
    graph = parse("input n: i64[1]\nconst k: i64[] = 2\ny = Mul(n, k)\nreturn y", infer)
    assert "y" not in contents_of(graph)


@given(st.integers(1, 40), st.integers(1, 40), st.integers(-5, 5), st.integers(1, 5), st.integers(1, 4))
@settings(max_examples=60, deadline=None)
def test_arithmetic_agrees_with_the_reference(n: int, s: int, shift: int, factor: int, divisor: int):
    graph = _graph(f"const a: i64[] = {shift}\nconst b: i64[] = {factor}\nconst c: i64[] = {divisor}\n"
                   "p = Mul(shape, b)\nq = Add(p, a)\nr = Div(q, c)\ny = Mod(r, c)")
    held = contents_of(graph)
    real: dict[str, np.ndarray] = {}
    run_graph(graph, {"x": np.zeros((n, s, 6), np.float32)}, watch=real.__setitem__)
    for name in set(held) & set(real):
        got = [v if isinstance(v, int) else v.evaluate({"N": n, "S": s}) for v in held[name].flat]
        assert got == real[name].reshape(-1).tolist(), name


def test_a_lower_bound_is_one():
    graph = _graph("const k: i64[] = 5\na = Mul(shape, shape)\ny = Add(a, k)")
    assert [least(v) for v in contents_of(graph)["y"].flat] == [6, 6, 41]


def test_known_values_become_constants_and_open_sizes_are_spelled_out():
    graph = _graph("const i: i64[1] = [2]\nk = Gather(shape, i)\nf = Cast(k) {'to': 'f32'}\n"
                   "z = Mul(x, f)\ny = Reshape(z) {'shape': (0, -1)}")
    done = resolve_shapes(graph)
    assert [n.op for n in done.nodes] == ["Shape", "Mul", "Reshape"]       # Shape is dead now, for another pass
    assert done.constants["f"].tolist() == [6.0]
    assert "{'shape': ('N', '6*S')}" in show(done)
    assert resolve_shapes(done) is done
    x = np.random.default_rng(0).standard_normal((2, 3, 6)).astype(np.float32)
    np.testing.assert_array_equal(run_graph(done, {"x": x})["y"], run_graph(graph, {"x": x})["y"])


def test_the_pass_says_why_it_leaves_a_node():
    graph = _graph("y = Identity(shape)\nr = Relu(x)", "y, r")
    reasons = {n.output: resolve_shapes.why_not(graph, n) for n in graph.nodes if resolve_shapes.why_not}
    assert reasons["y"] == "its value is known, but depends on a symbol"
    assert reasons["r"] == "its value is not known before the model runs"


def test_a_constant_comes_back_as_its_own_element_type():
    graph = _graph("const i: i64[] = 2\nk = Gather(shape, i)\ny = Cast(k) {'to': 'i32'}")
    array = array_of(contents_of(graph)["y"], graph.types["y"])
    assert array is not None
    assert array.dtype == np.int32
    assert array.tolist() == 6
