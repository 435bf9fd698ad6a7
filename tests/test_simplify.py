"""Text in, text out, for the rules of simplify."""
from __future__ import annotations

from textwrap import dedent

import pytest

from ingot.errors import InternalError
from ingot.graph import Graph, parse, show
from ingot.ops import infer
from ingot.passes import RULES, remove_dead_code, simplify, why_not
from ingot.passes.rewrite import P, Rule, rewrite


def graph_of(text: str) -> Graph:
    return parse(dedent(text), infer)


def nodes_after(step, text: str) -> list[str]:
    """The node lines and the return line of a graph after a pass."""
    graph = remove_dead_code(step(graph_of(text)))
    return [line for line in show(graph).splitlines() if not line.startswith(("symbol", "input", "const"))]


CASES = {
    "relu-of-relu": ("input x: f32[4,32]\na = Relu(x)\nb = Relu(a)\nreturn b",
                     ["b = Relu(x)", "return b"]),
    "add-zero": ("input x: f32[4,32]\nconst z: f32[32] = 0.0\na = Add(x, z)\nb = Relu(a)\nreturn b", None),
    "transpose-of-transpose": ("""
        input x: f32[2,3,5]
        a = Transpose(x) {'perm': (0, 2, 1)}
        b = Transpose(a) {'perm': (1, 0, 2)}
        return b""", ["b = Transpose(x) {'perm': (2, 0, 1)}", "return b"]),
    "transposes-cancel": ("""
        input x: f32[2,3,5]
        a = Transpose(x) {'perm': (0, 2, 1)}
        b = Transpose(a) {'perm': (0, 2, 1)}
        c = Relu(b)
        return c""", ["c = Relu(x)", "return c"]),
    "transpose-of-ones": ("""
        symbol N: 1..2..4
        input x: f32[N,1,5]
        a = Transpose(x) {'perm': (1, 0, 2)}
        return a""", ["a = Reshape(x) {'shape': (1, 'N', 5)}", "return a"]),
    "reshapes": ("""
        symbol N: 1..2..4
        input x: f32[N,4,6]
        a = Flatten(x) {'axis': 2}
        b = Unsqueeze(a) {'axes': (0,)}
        c = Reshape(b) {'shape': ('N', -1)}
        return c""", ["c = Reshape(x) {'shape': ('N', 24)}", "return c"]),
    "reshape-back": ("""
        symbol N: 1..2..4
        input x: f32[N,4,6]
        a = Reshape(x) {'shape': (-1, 6)}
        b = Reshape(a) {'shape': (-1, 4, 6)}
        c = Relu(b)
        return c""", ["c = Relu(x)", "return c"]),
    "transpose-between-reshapes": ("""
        symbol N: 1..2..4
        input x: f32[N,12,16,64]
        a = Reshape(x) {'shape': (-1, 16, 64)}
        b = Transpose(a) {'perm': (0, 2, 1)}
        c = Reshape(b) {'shape': ('N', 12, 64, 16)}
        return c""", ["c = Transpose(x) {'perm': (0, 1, 3, 2)}", "return c"]),
    "slice-of-slice": ("""
        input x: f32[20,30]
        a = Slice(x) {'starts': (2, 3), 'ends': (18, 27)}
        b = Slice(a) {'starts': (1,), 'ends': (15,), 'axes': (0,), 'steps': (2,)}
        return b""",
        ["b = Slice(x) {'axes': (0, 1), 'ends': (16, 27), 'starts': (3, 3), 'steps': (2, 1)}", "return b"]),
    "no-op slice, pad, cast, expand, concat, split, dropout": ("""
        input x: f32[4,6]
        a = Slice(x) {'starts': (0,), 'ends': (99,), 'axes': (1,)}
        b = Pad(a) {'pads': (0, 0, 0, 0)}
        c = Cast(b) {'to': 'f32'}
        d = Expand(c) {'shape': (1, 6)}
        e = Concat(d) {'axis': 0}
        f = Split(e) {'axis': 0, 'num_outputs': 1}
        h = Relu(f)
        return h""", ["h = Relu(x)", "return h"]),
    "gather-one": ("""
        symbol N: 1..2..4
        input x: f32[N,16,64]
        const i: i64[] = 0
        a = Gather(x, i) {'axis': 1}
        return a""",
        ["a.slice.1 = Slice(x) {'axes': (1,), 'ends': (1,), 'starts': (0,), 'steps': (1,)}",
         "a = Reshape(a.slice.1) {'shape': ('N', 64)}", "return a"]),
    "expand-into-pointwise": ("""
        symbol N: 1..2..4
        input x: f32[N,5,64]
        const c: f32[1,1,64]
        e = Expand(c) {'shape': ('N', 1, 1)}
        y = Add(x, e)
        return y""", ["y = Add(x, c)", "return y"]),
    "where-known": ("""
        symbol N: 1..2..4
        input s: f32[N,1,5,5]
        const t: bool[1,1,5,1] = [True, True, True, True, True]
        const zero: f32[] = 0.0
        const low: f32[] = -3e38
        e = Expand(t) {'shape': ('N', 1, 5, 5)}
        w = Where(e, zero, low)
        y = Add(s, w)
        return y""", ["y = Identity(s)", "return y"]),
    "subtract-constant": ("""
        input x: f32[3]
        const c: f32[] = 2.0
        y = Sub(x, c)
        return y""", ["y = Add(x, c.negated.1)", "return y"]),
    "divide-by-power-of-two": ("""
        input x: f32[3]
        const c: f32[] = 8.0
        y = Div(x, c)
        return y""", ["y = Mul(x, c.inverted.1)", "return y"]),
    "square": ("""
        input x: f32[3]
        const c: f32[] = 2.0
        y = Pow(x, c)
        return y""", ["y = Mul(x, x)", "return y"]),
    "power-of-half": ("""
        input x: f32[3]
        const c: f32[] = 0.5
        a = Abs(x)
        y = Pow(a, c)
        return y""", ["a = Abs(x)", "y = Sqrt(a)", "return y"]),
    "clips": ("""
        input x: f32[3]
        const zero: f32[] = 0.0
        const six: f32[] = 6.0
        const ten: f32[] = 10.0
        a = Relu(x)
        b = Clip(a, zero, ten)
        y = Min(b, six)
        return y""", None),
    "concat-of-split": ("""
        input x: f32[4,6]
        a, b = Split(x) {'axis': 1, 'split': (2, 4)}
        c = Concat(a, b) {'axis': -1}
        y = Relu(c)
        return y""", ["y = Relu(x)", "return y"]),
    "split-read-once": ("""
        input x: f32[4,6]
        a, b = Split(x) {'axis': 1, 'split': (2, 4)}
        y = Relu(b)
        return y""",
        ["b = Slice(x) {'axes': (1,), 'ends': (6,), 'starts': (2,), 'steps': (1,)}", "y = Relu(b)", "return y"]),
    "gather-grid": ("""
        symbol N: 1..2..4
        input m: bool[N,16]
        const cols: i64[1,1,1,16] = [0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15]
        r = Range() {'start': (0,), 'limit': ('N',), 'delta': (1,)}
        u = Unsqueeze(r) {'axes': (1, 2, 3)}
        a = Expand(u) {'shape': ('N', 1, 1, 16)}
        b = Expand(cols) {'shape': ('N', 1, 1, 16)}
        c = Unsqueeze(a) {'axes': (-1,)}
        d = Unsqueeze(b) {'axes': (-1,)}
        i = Concat(c, d) {'axis': -1}
        y = GatherND(m, i)
        return y""", ["y = Reshape(m) {'shape': ('N', 1, 1, 16)}", "return y"]),
}


@pytest.mark.parametrize("name", [k for k, v in CASES.items() if v[1] is not None])
def test_a_rule_leaves_this_text(name):
    text, wanted = CASES[name]
    assert nodes_after(simplify, text) == wanted


def test_adding_zero_goes_away_unless_it_widens_the_shape():
    zero = [0.0] * 8
    assert nodes_after(simplify, f"input x: f32[4,8]\nconst z: f32[8] = {zero}\na = Add(x, z)\ny = Relu(a)\nreturn y") \
        == ["y = Relu(x)", "return y"]
    wide = graph_of(f"input x: f32[8]\nconst z: f32[1,8] = {zero}\na = Add(x, z)\ny = Relu(a)\nreturn y")
    assert simplify(wide) is wide
    assert why_not(wide, RULES["add-zero"], wide.nodes[0]) == "the constant widens f32[8] to f32[1,8]"


def test_a_pass_that_changes_nothing_returns_the_same_graph():
    graph = graph_of("input x: f32[4,32]\ny = Relu(x)\nreturn y")
    assert simplify(graph) is graph


def test_a_rule_says_why_it_does_not_fire():
    graph = graph_of("input x: f32[4,8]\nconst w: f32[8,8]\nconst c: f32[8]\na = MatMul(x, w)\nb = Mul(a, c)\n"
                     "return a, b")
    assert why_not(graph, RULES["factor-into-product"], graph.nodes[1]) == "'a' has other readers"
    assert why_not(graph, RULES["gelu"], graph.nodes[1]) == "'a' is made by MatMul, not by Mul"
    assert why_not(graph, RULES["relu-of-relu"], graph.nodes[0]) == "it is MatMul, not Relu"


def test_a_rule_that_changes_a_type_is_our_bug_and_says_so():
    careless = Rule("careless", P("Relu", P("Add", "x", "bias")), make=lambda m: m.add("Relu", m["x"]))
    graph = graph_of("input x: f32[1,8]\nconst b: f32[4,8]\na = Add(x, b)\ny = Relu(a)\nreturn y")
    with pytest.raises(InternalError, match=r"rule careless turned f32\[4,8\] into f32\[1,8\]"):
        rewrite(graph, [careless])


def test_rules_that_never_rest_are_our_bug_too():
    endless = Rule("endless", P("Relu", "x"), make=lambda m: m.add("Relu", m["x"]))
    with pytest.raises(InternalError, match="rule endless fires without end"):
        rewrite(graph_of("input x: f32[4]\ny = Relu(x)\nreturn y"), [endless])


def test_an_output_keeps_its_name_when_its_node_goes_away():
    graph = simplify(graph_of("input x: f32[4]\na = Relu(x)\nb = Exp(a)\ny = Identity(a)\nreturn y, b"))
    assert show(graph).splitlines()[1:] == ["y = Relu(x)", "b = Exp(y)", "return y, b"]
    both = graph_of("input x: f32[4]\ny = Identity(x)\nreturn y")
    assert simplify(both) is both


def test_origins_are_merged():
    graph = graph_of("input x: f32[4]\na = Relu(x)\nb = Relu(a)\nreturn b")
    from dataclasses import replace
    graph = replace(graph, nodes=tuple(replace(n, origin=(f"user/{n.output}",)) for n in graph.nodes))
    slim = rewrite(graph, [Rule("two", P("Relu", P("Relu", "x", bind="inner")), make=lambda m: m.add("Relu", m["x"]))])
    assert [n.origin for n in slim.nodes] == [("user/b", "user/a")]


def test_ten_thousand_nodes_simplify_within_seconds():
    import time
    lines = ["input x: f32[4,32]", "v0 = Relu(x)"]
    lines += [f"v{i} = {'Relu' if i % 3 else 'Exp'}(v{i - 1})" for i in range(1, 10_000)]
    graph = parse("\n".join([*lines, "return v9999"]), infer)
    start = time.perf_counter()
    slim = simplify(graph)
    assert time.perf_counter() - start < 4.0
    assert len(slim.nodes) == 6666


def test_positions_that_count_are_a_slice_of_what_they_pick():
    text = """
        symbol S: 1..8..16
        input x: f32[1,S,4]
        const table: f32[20,4]
        const all: i64[1,20] = {}
        at = Slice(all) {{'starts': (2,), 'ends': ('S+2',), 'axes': (1,)}}
        p = Gather(table, at)
        y = Add(x, p)
        return y"""
    assert nodes_after(simplify, text.format([*range(20)])) == [
        "p.slice.1 = Slice(table) {'axes': (0,), 'ends': ('S+2',), 'starts': (2,), 'steps': (1,)}",
        "p = Reshape(p.slice.1) {'shape': (1, 'S', 4)}", "y = Add(x, p)", "return y"]
    kept = nodes_after(simplify, text.format([*range(18), 17, 18]))
    assert kept[1] == "p = Gather(table, at)"


def test_what_is_never_negative_is_not_compared_with_zero():
    assert nodes_after(simplify, """
        symbol S: 1..8..16
        input m: bool[S,S]
        const zero: i64[] = 0
        r = Range() {'start': (0,), 'limit': ('S',), 'delta': (1,)}
        u = Unsqueeze(r) {'axes': (1,)}
        g = GreaterOrEqual(u, zero)
        y = And(g, m)
        z = Not(y)
        return z""") == ["z = Not(m)", "return z"]


def test_a_flat_gather_in_order_is_a_reshape():
    assert nodes_after(simplify, """
        symbol N: 1..2..4
        symbol S: 1..8..16
        input m: f32[N,S]
        f = Reshape(m) {'shape': (-1, 1)}
        s = Shape(m)
        k = Slice(s) {'starts': (1,), 'ends': (2,)}
        r = Range() {'start': (0,), 'limit': ('N',), 'delta': (1,)}
        u = Unsqueeze(r) {'axes': (1,)}
        v = Mul(u, k)
        c = Range() {'start': (0,), 'limit': ('S',), 'delta': (1,)}
        at = Add(v, c)
        y = Gather(f, at)
        return y""") == ["y = Reshape(m) {'shape': ('N', 'S', 1)}", "return y"]
