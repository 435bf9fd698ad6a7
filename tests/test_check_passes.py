"""Passes are held against the reference, on random and special inputs."""
from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from ingot.errors import InternalError
from ingot.graph import Graph, parse
from ingot.ops import infer
from ingot.passes import apply, optimize
from ingot.passes.check import PROBES, Checker, check_pass, feeds_for
from ingot.passes.graph_pass import Pass
from ingot.target import Target

TEXT = """
symbol N: 1..2..4
input x: f32[N,6]
input i: i64[N,3]
const e: f32[11,6]
const c: f32[6]
g = Gather(e, i)
s = ReduceSum(g) {'axes': (1,), 'keepdims': 0}
a = Add(x, s)
b = Mul(a, c)
d = Relu(b)
f = Relu(d)
y = Exp(f)
return y
"""


def test_the_pipeline_is_checked_and_right():
    graph = parse(TEXT, infer)
    checker = Checker()
    optimize(graph, Target("x86", "avx512"), checker)
    assert {f.step for f in checker.findings} == {"simplify"}
    assert {f.probe for f in checker.findings} == set(PROBES)
    assert len(checker.findings) == len(PROBES) + 1      # and once more, at the smallest size
    checker.verify()


def careless(change) -> tuple[Pass, ...]:
    def simplify(graph: Graph, target: Target) -> Graph:
        return replace(graph, nodes=tuple(map(change, graph.nodes)))
    return (Pass(simplify),)


@pytest.mark.parametrize(("op", "instead", "probe"), [("Exp", "Softplus", "random"), ("Mul", "Add", "random")])
def test_a_pass_that_changes_numbers_is_found(op, instead, probe):
    checker = Checker()
    apply(careless(lambda n: replace(n, op=instead) if n.op == op else n), parse(TEXT, infer), Target("reference"),
          checker)
    assert probe in {f.probe for f in checker.wrong}
    with pytest.raises(InternalError, match="pass simplify changed the numbers"):
        checker.verify()


def test_a_pass_that_hides_a_nan_is_found():
    before = parse("input x: f32[64]\ny = Relu(x)\nreturn y", infer)
    guarded = "n = IsNaN(x)\nz = Where(n, zero, x)\ny = Relu(z)\nreturn y"
    after = parse("input x: f32[64]\nconst zero: f32[] = 0.0\n" + guarded, infer)
    found = {p: check_pass("merge_siblings", before, after, {p: feeds_for(before, p)})[0] for p in PROBES}
    assert [p for p, f in found.items() if f.problem] == ["NaN"]
    assert "NaN in" in found["NaN"].problem


def test_indices_stay_inside_what_they_index():
    graph = parse(TEXT, infer)
    ids = feeds_for(graph, bindings={"N": 4})["i"]
    assert ids.shape == (4, 3)
    assert 2 < ids.max() < 11
    assert ids.min() >= 0


def test_special_inputs_hold_what_they_say():
    graph = parse("input x: f32[4,64]\ny = Relu(x)\nreturn y", infer)
    assert np.isnan(feeds_for(graph, "NaN")["x"]).any()
    assert np.isinf(feeds_for(graph, "infinities")["x"]).any()
    assert np.abs(feeds_for(graph, "extremes")["x"]).max() == np.finfo(np.float32).max
    assert not feeds_for(graph, "zeros")["x"].any()
