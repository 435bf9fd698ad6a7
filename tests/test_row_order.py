"""Trees of Slices, Concats, Reshapes and Transposes as one Gather of rows; Splits behind Reshapes: the same numbers,
and the forms that stay."""
from __future__ import annotations

from textwrap import dedent

import numpy as np
import pytest

from ingot.graph import Graph, parse
from ingot.kernels.codegen import target_for
from ingot.lower import lower
from ingot.ops import infer
from ingot.ops.reference import run_graph
from ingot.passes import order_rows, rejoin_parts, reshape_before_split, why
from ingot.passes.layout import choose_layout
from ingot.target import Target

ROLL = """
    symbol N: 1..2..4
    input x: f32[N,56,16]
    a = Reshape(x) {'shape': ('N', 8, 7, 16)}
    b = Slice(a) {'axes': (1,), 'starts': (3,), 'ends': (9223372036854775807,)}
    c = Slice(a) {'axes': (1,), 'starts': (0,), 'ends': (3,)}
    d = Concat(b, c) {'axis': 1}
    e = Slice(d) {'axes': (2,), 'starts': (-2,), 'ends': (9223372036854775807,)}
    f = Slice(d) {'axes': (2,), 'starts': (0,), 'ends': (-2,)}
    g = Concat(e, f) {'axis': 2}
    h = Reshape(g) {'shape': ('N', 2, 4, 7, 1, 16)}
    i = Transpose(h) {'perm': (0, 2, 1, 3, 4, 5)}
    j = Relu(i)
    return j"""
CORNERS = """
    symbol N: 1..2..4
    input x: f32[N,6,8,32]
    a = Slice(x) {'axes': (1, 2), 'starts': (0, 0), 'ends': (6, 8), 'steps': (2, 2)}
    b = Slice(x) {'axes': (1, 2), 'starts': (1, 0), 'ends': (6, 8), 'steps': (2, 2)}
    c = Slice(x) {'axes': (1, 2), 'starts': (0, 1), 'ends': (6, 8), 'steps': (2, 2)}
    d = Slice(x) {'axes': (1, 2), 'starts': (1, 1), 'ends': (6, 8), 'steps': (2, 2)}
    e = Concat(a, b, c, d) {'axis': 3}
    f = Reshape(e) {'shape': ('N', 12, 128)}
    g = Relu(f)
    return g"""


def graph_of(text: str) -> Graph:
    return parse(dedent(text), infer)


def same_numbers(before: Graph, after: Graph) -> None:
    for n in (1, 3):
        shape = tuple(d if isinstance(d, int) else n for d in before.types["x"].shape)
        x = np.random.default_rng(n).standard_normal(shape).astype(np.float32)
        found, wanted = (run_graph(g, {"x": x}, {"N": n}) for g in (after, before))
        for name in before.outputs:
            np.testing.assert_array_equal(found[name], wanted[name])


@pytest.mark.parametrize("text", [ROLL, CORNERS], ids=["rolled windows", "corners of a patch"])
def test_a_tree_becomes_one_gather(text: str) -> None:
    before = graph_of(text)
    after = order_rows(before)
    assert [n.op for n in after.nodes] == ["Reshape", "Gather", "Reshape", "Relu"]
    same_numbers(before, after)


def test_a_value_read_on_the_way_is_gathered_too() -> None:
    before = graph_of(ROLL.replace("return j", "k = Relu(g)\n    return j, k"))
    after = order_rows(before)
    assert [n.op for n in after.nodes].count("Gather") == 2
    assert not {"Concat", "Slice", "Transpose"} & {n.op for n in after.nodes}
    same_numbers(before, after)


STAYS = {       # axis of two Slices, the second operand where it is none, axis of the Concat
    "last axis": (3, "", 3),
    "samples": (1, "", 0),
    "two values": (1, "Relu(x)", 1),
}


@pytest.mark.parametrize("name", list(STAYS))
def test_other_joins_stay(name: str) -> None:
    cut, second, axis = STAYS[name]
    first = f"Slice(x) {{'axes': ({cut},), 'starts': (0,), 'ends': (3,)}}"
    graph = graph_of(f"""
        symbol N: 1..2..4
        input x: f32[N,6,8,32]
        a = {first}
        b = {second or first}
        c = Concat(a, b) {{'axis': {axis}}}
        d = Relu(c)
        return d""")
    assert order_rows(graph) is graph
    assert all(reason for _, reason in why(graph, "order_rows"))


def test_short_rows_one_transpose_and_gpus_stay() -> None:
    assert order_rows(graph_of(ROLL.replace("16", "8"))).nodes[1].op == "Slice"
    one = graph_of("input x: f32[2,4,5,32]\na = Transpose(x) {'perm': (0, 2, 1, 3)}\nb = Relu(a)\nreturn b")
    assert order_rows(one) is one
    rolled = graph_of(ROLL)
    assert order_rows(rolled, Target("cuda")) is rolled


def test_one_reshape_before_a_split() -> None:
    text = """
        symbol N: 1..2..4
        input x: f32[N,4,6,48]
        a, b, c = Split(x) {'axis': 3, 'split': (16, 16, 16)}
        d = Reshape(a) {'shape': (-1, 6, 16)}
        e = Reshape(b) {'shape': (-1, 6, 16)}
        f = Reshape(c) {'shape': (-1, 6, 16)}
        g = Add(d, e)
        h = Add(g, f)
        return h"""
    before = graph_of(text)
    after = reshape_before_split(before)
    assert [n.op for n in after.nodes] == ["Reshape", "Split", "Add", "Add"]
    same_numbers(before, after)
    uneven = graph_of(text.replace("f = Reshape(c) {'shape': (-1, 6, 16)}", "f = Reshape(c) {'shape': (-1, 6, 16)}\n"
                                   "        i = Relu(c)").replace("return h", "return h, i"))
    assert reshape_before_split(uneven) is uneven
    rows = graph_of(text.replace("'axis': 3, 'split': (16, 16, 16)", "'axis': 2, 'split': (2, 2, 2)").replace(
        "(-1, 6, 16)", "(-1, 2, 48)"))
    assert reshape_before_split(rows) is rows


def test_all_the_parts_of_a_split_are_joined_as_the_whole() -> None:
    text = """
        symbol N: 1..2..4
        input x: f32[N,48,5]
        a, b = Split(x) {'axis': 1, 'split': (24, 24)}
        c = Relu(b)
        d = Concat(c, a, b, c) {'axis': -2}
        return d"""
    before = graph_of(text)
    after = rejoin_parts(before)
    assert after.nodes[-1].inputs == ("c", "x", "c")
    same_numbers(before, after)
    for other in (text.replace("c, a, b, c", "c, b, a, c"), text.replace("'axis': -2", "'axis': 2")):
        graph = graph_of(other)
        assert rejoin_parts(graph) is graph


def test_parts_of_half_a_block_stay_in_blocks() -> None:
    """24 channels are one block and a half: a Split and a Concat of such parts need no plain layout."""
    graph = graph_of("""
        input x: f32[1,16,9,9]
        const v: f32[48,16,1,1]
        const w: f32[24,24,3,3]
        const u: f32[16,48,1,1]
        a = Conv(x, v)
        b, c = Split(a) {'axis': 1, 'split': (24, 24)}
        d = Conv(c, w) {'pads': (1, 1, 1, 1)}
        e = Concat(b, d) {'axis': 1}
        f = Conv(e, u)
        return f""")
    laid = choose_layout(graph, target_for("avx512"))
    assert [n.op for n in laid.nodes] == ["Reorder", "Conv", "Split", "Conv", "Concat", "Conv", "Reorder"]
    program = lower(laid, target_for("avx512"))
    assert all(x.native for x in program.launches)
    assert {"Split", "Concat"} <= {x.site.op for x in program.launches}     # begun inside a block: copied, not viewed
