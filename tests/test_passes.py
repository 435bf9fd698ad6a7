"""Text in, text out, for the passes other than simplify, and for the pipeline."""
from __future__ import annotations

from pathlib import Path
from textwrap import dedent

import numpy as np
import pytest

from ingot.errors import InputError, InternalError
from ingot.graph import F32, Graph, TensorType, parse, show
from ingot.kernels.reference import from_physical, to_physical
from ingot.ops import infer
from ingot.ops.reference import run_graph
from ingot.passes import (
    PASSES,
    RULES,
    choose_layout,
    dump_to,
    fold_batchnorm,
    fold_constants,
    fold_scale,
    merge_duplicates,
    merge_siblings,
    move_rows,
    optimize,
    pipeline,
    recognise,
    recognise_attention,
    remove_dead_code,
    simplify,
    split_gemm,
    why,
    why_not,
)
from ingot.target import Target

AVX512 = Target("x86", "avx512")


def graph_of(text: str) -> Graph:
    return parse(dedent(text), infer)


def lines_of(graph: Graph) -> list[str]:
    return [line for line in show(graph).splitlines() if not line.startswith(("symbol", "input", "const"))]


def ops_of(graph: Graph) -> list[str]:
    return [n.op for n in graph.nodes]


def same_numbers(before: Graph, after: Graph, scale: float = 1.0, **sizes: int) -> None:
    """Both graphs give the same outputs on random inputs, within f32 rounding."""
    rng = np.random.default_rng(1)
    feeds = {}
    for name in before.inputs:
        t = before.types[name].at(sizes)
        real = t.dtype.kind == "float"
        feeds[name] = np.asarray(rng.standard_normal(t.shape) * scale if real else rng.integers(0, 2, t.shape)).astype(
            t.dtype.numpy)
    expected, found = run_graph(before, feeds), run_graph(after, feeds)
    assert expected.keys() == found.keys()
    for name, array in expected.items():
        assert array.dtype == found[name].dtype
        np.testing.assert_allclose(found[name], array, rtol=2e-5, atol=2e-5)


# --- folding, duplicates, dead code ---

def test_constants_are_folded_unless_they_grow():
    graph = graph_of("""
        input x: f32[4,8]
        const w: f32[8,4]
        const one: f32[1] = 1.0
        t = Transpose(w)
        big = Expand(one) {'shape': (600, 600)}
        y = Mul(x, t)
        return y, big""")
    folded = fold_constants(graph)
    assert lines_of(folded) == ["big = Expand(one) {'shape': (600, 600)}", "y = Mul(x, t)", "return y, big"]
    np.testing.assert_array_equal(folded.constants["t"], graph.constants["w"].T)
    reasons = {n.output: reason for n, reason in why(graph, "fold_constants")}
    assert reasons == {"t": None, "big": "its result takes 1439996 bytes more than its inputs",
                       "y": "'x' is not a constant"}


def test_weights_are_folded_even_if_they_grow():
    """As exporters of models without their weights write them: a product packs them at build time."""
    graph = graph_of("""
        input x: f32[4,600]
        const one: f32[1,1,1] = 1.0
        many = Expand(one) {'shape': (1, 600, 600)}
        w = Reshape(many) {'shape': (600, 600)}
        y = MatMul(x, w)
        z = Add(y, x)
        return z""")
    folded = fold_constants(graph)
    assert lines_of(folded) == ["y = MatMul(x, w)", "z = Add(y, x)", "return z"] and folded.constants["w"].all()


def test_equal_work_and_equal_constants_are_kept_once():
    graph = graph_of("""
        input x: f32[4]
        const a: f32[] = 2.0
        const b: f32[] = 2.0
        const c: f32[] = -2.0
        p = Mul(x, a)
        q = Mul(x, b)
        r = Mul(x, c)
        s = Add(p, q)
        y = Add(s, r)
        return y""")
    assert lines_of(merge_duplicates(graph)) == ["p = Mul(x, a)", "r = Mul(x, c)", "s = Add(p, p)", "y = Add(s, r)",
                                                 "return y"]
    assert why_not_of(graph, "merge_duplicates")["r"] == "no earlier node has the same op, inputs and attributes"


def test_minus_zero_is_not_zero_and_nan_is_itself():
    graph = graph_of("input x: f32[2]\nconst a: f32[2]\nconst b: f32[2]\nconst c: f32[2]\nconst d: f32[2]\n"
                     "p = Sum(x, a, b, c, d)\nreturn p")
    arrays = {"a": [0.0, np.nan], "b": [-0.0, np.nan], "c": [0.0, np.nan], "d": [0.0, 1.0]}
    graph = with_constants(graph, **arrays)
    assert merge_duplicates(graph).nodes[0].inputs == ("x", "a", "b", "a", "d")


def with_constants(graph: Graph, **arrays: object) -> Graph:
    from dataclasses import replace
    given = {k: np.asarray(v, np.float32).reshape(graph.constants[k].shape) for k, v in arrays.items()}
    return replace(graph, constants={**graph.constants, **given})


def why_not_of(graph: Graph, name: str) -> dict[str, str | None]:
    return {n.output: reason for n, reason in why(graph, name)}


def test_dead_code_goes_and_says_why_it_stays():
    graph = graph_of("input x: f32[4]\nconst c: f32[4]\na = Relu(x)\nb = Add(a, c)\ny = Exp(a)\nreturn y")
    assert show(remove_dead_code(graph)) == "input x: f32[4]\na = Relu(x)\ny = Exp(a)\nreturn y"
    assert why_not_of(graph, "remove_dead_code") == {"a": "'a' is read by Add 'b'", "b": None,
                                                     "y": "'y' is an output of the graph"}


# --- BatchNormalization, scale, Gemm ---

BN = """const s: f32[{c}]
const b: f32[{c}]
const m: f32[{c}]
const v: f32[{c}]
"""


def bn_graph(text: str, channels: int) -> Graph:
    graph = graph_of(dedent(text).lstrip("\n").replace("BN\n", BN.format(c=channels)))
    return with_constants(graph, v=np.abs(graph.constants["v"]) + 0.1)


@pytest.mark.parametrize(("op", "weight", "extra"), [
    ("Conv", "f32[6,4,3,3]", ""), ("Conv", "f32[6,2,3,3]", " {'group': 2}"),
    ("ConvTranspose", "f32[4,6,3,3]", ""), ("ConvTranspose", "f32[4,3,3,3]", " {'group': 2}")])
def test_batchnorm_folds_into_the_convolution_before_it(op, weight, extra):
    graph = bn_graph(f"""
input x: f32[2,4,8,8]
const w: {weight}
const c: f32[6]
BN
a = {op}(x, w, c){extra}
y = BatchNormalization(a, s, b, m, v)
return y""", 6)
    folded = fold_batchnorm(graph)
    assert ops_of(folded) == [op]
    same_numbers(graph, folded)


def test_batchnorm_folds_into_the_product_before_it_and_else_becomes_mul_and_add():
    graph = bn_graph("""
input x: f32[3,4]
input z: f32[2,6,5]
const w: f32[4,6]
const c: f32[6]
BN
a = Gemm(x, w, c)
y = BatchNormalization(a, s, b, m, v)
u = BatchNormalization(z, s, b, m, v)
return y, u""", 6)
    folded = fold_batchnorm(split_gemm(graph))
    assert ops_of(folded) == ["MatMul", "Add", "Mul", "Add"]
    same_numbers(graph, folded)
    assert why_not(graph, RULES["batchnorm-into-convolution"], graph.nodes[2]) == \
        "'z' is an input, not made by Conv or ConvTranspose"


def test_gemm_becomes_product_and_sum():
    graph = graph_of("""
        input x: f32[4,3]
        input z: f32[5,4]
        const w: f32[6,4]
        const c: f32[6]
        y = Gemm(x, w, c) {'alpha': 0.5, 'beta': 2.0, 'transA': 1, 'transB': 1}
        u = Gemm(x, z) {'alpha': 3.0, 'transA': 1, 'transB': 1}
        return y, u""")
    done = split_gemm(graph)
    assert ops_of(done) == ["Transpose", "MatMul", "Add", "Transpose", "Transpose", "Mul", "MatMul"]
    same_numbers(graph, done)


def test_a_constant_factor_goes_into_the_weight():
    graph = graph_of("""
        input x: f32[2,4,8,8]
        input z: f32[2,5,4]
        const w: f32[6,4,3,3]
        const f: f32[1,6,1,1]
        const o: f32[6,1,1]
        const k: f32[4,7]
        const g: f32[7]
        const h: f32[] = 0.125
        a = Conv(x, w)
        b = Mul(a, f)
        y = Add(b, o)
        s = Mul(z, h)
        c = MatMul(s, k)
        d = Add(c, g)
        u = Mul(d, h)
        return y, u""")
    done = fold_scale(graph)
    assert ops_of(done) == ["Conv", "MatMul", "Add"]
    same_numbers(graph, done)


# --- recognition ---

LAYER = {
    "torch": "d = Sub(x, m)\nq = Pow(d, two)\nv = ReduceMean(q) {'axes': (-1,)}\ne = Add(v, eps)\nr = Sqrt(e)\n"
             "n = Div(d, r)",
    "reciprocal": "d = Sub(x, m)\nq = Mul(d, d)\nv = ReduceMean(q) {'axes': (2,)}\ne = Add(eps, v)\nr = Sqrt(e)\n"
                  "i = Reciprocal(r)\nn = Mul(i, d)",
    "power": "d = Sub(x, m)\nq = Mul(d, d)\nv = ReduceMean(q) {'axes': (2,)}\ne = Add(v, eps)\nr = Pow(e, half)\n"
             "n = Div(d, r)",
}


@pytest.mark.parametrize("form", LAYER)
def test_a_layer_normalisation_written_out_is_recognised(form):
    graph = graph_of(f"""input x: f32[2,5,8]
const two: f32[] = 2.0
const half: f32[] = 0.5
const eps: f32[] = 1e-05
const g: f32[8]
const b: f32[1,1,8]
m = ReduceMean(x) {{'axes': (-1,)}}
{LAYER[form]}
s = Mul(n, g)
y = Add(s, b)
return y""")
    done = recognise(simplify(graph))
    assert next(line for line in lines_of(done) if "=" in line).startswith("y = LayerNormalization(x, g, b.flat.1)")
    same_numbers(graph, done)


def test_an_rms_normalisation_written_out_is_recognised():
    graph = graph_of("""
        input x: f32[2,5,8]
        const two: f32[] = 2.0
        const eps: f32[] = 1e-06
        const g: f32[8]
        q = Pow(x, two)
        v = ReduceMean(q) {'axes': (-1,)}
        e = Add(v, eps)
        r = Sqrt(e)
        i = Reciprocal(r)
        n = Mul(x, i)
        y = Mul(g, n)
        return y""")
    done = recognise(simplify(graph))
    assert ops_of(done) == ["RMSNormalization"]
    same_numbers(graph, done)


ACTIVATIONS = {
    "Gelu": ["d = Div(x, root2)\ne = Erf(d)\na = Add(e, one)\nb = Mul(x, a)\ny = Mul(b, half)",
             "d = Mul(x, rooth)\ne = Erf(d)\na = Add(one, e)\nb = Mul(half, x)\ny = Mul(b, a)",
             "d = Mul(x, rooth)\ne = Erf(d)\na = Add(e, one)\nb = Mul(a, half)\ny = Mul(x, b)",
             ("c = Pow(x, three)\nd = Mul(c, small)\ne = Add(x, d)\nf = Mul(e, tau)\ng = Tanh(f)\nh = Add(g, one)\n"
             "i = Mul(x, half)\ny = Mul(i, h)")],
    "Swish": ["s = Sigmoid(x)\ny = Mul(x, s)", ("n = Neg(x)\ne = Exp(n)\na = Add(e, one)\ns = Div(one, a)\n"
              "y = Mul(s, x)"), "t = Mul(x, slope)\ns = Sigmoid(t)\ny = Mul(x, s)"],
    "HardSwish": ["a = Add(x, three)\nc = Clip(a, zero, six)\nb = Mul(x, c)\ny = Div(b, six)",
                  "a = Add(x, three)\nc = Clip(a, zero, six)\nb = Div(c, six)\ny = Mul(x, b)",
                  "h = HardSigmoid(x) {'alpha': 0.16666667, 'beta': 0.5}\ny = Mul(x, h)"],
    "Mish": ["u = Softplus(x)\nt = Tanh(u)\ny = Mul(x, t)"],
    "Softmax": [("m = ReduceMax(x) {'axes': (-1,)}\nd = Sub(x, m)\ne = Exp(d)\ns = ReduceSum(e) {'axes': (-1,)}\n"
                "y = Div(e, s)")],
    "GlobalAveragePool": ["y = ReduceMean(p) {'axes': (-1, -2)}", "y = AveragePool(p) {'kernel_shape': (5, 6)}"],
}
SCALARS = {"one": 1.0, "half": 0.5, "three": 3.0, "six": 6.0, "zero": 0.0, "root2": 1.4142135, "rooth": 0.70710678,
           "small": 0.044715, "tau": 0.7978845608, "slope": 1.702}


@pytest.mark.parametrize(("op", "text"), [(op, text) for op, texts in ACTIVATIONS.items() for text in texts])
def test_an_activation_written_out_is_recognised(op, text):
    constants = "\n".join(f"const {k}: f32[] = {v}" for k, v in SCALARS.items())
    graph = graph_of(f"input x: f32[3,7]\ninput p: f32[2,3,5,6]\n{constants}\n{text}\nreturn y")
    done = remove_dead_code(recognise(simplify(graph)))
    assert ops_of(done) == [op]
    same_numbers(graph, done, scale=3.0)


# --- attention ---

HEADS = """
symbol N: 1..2..4
input x: f32[N,16,64]
input keep: bool[N,16]
const wq: f32[64,64]
const wk: f32[64,64]
const wv: f32[64,64]
const bq: f32[64]
const bk: f32[64]
const bv: f32[64]
const root: f32[] = 0.5
const quarter: f32[] = 0.25
const zero: f32[] = 0.0
const low: f32[] = -3.4028234663852886e+38
pq = MatMul(x, wq)
q1 = Add(pq, bq)
pk = MatMul(x, wk)
k1 = Add(bk, pk)
pv = MatMul(x, wv)
v1 = Add(pv, bv)
q2 = Reshape(q1) {'shape': (-1, 16, 4, 16)}
k2 = Reshape(k1) {'shape': (-1, 16, 4, 16)}
v2 = Reshape(v1) {'shape': (-1, 16, 4, 16)}
q3 = Transpose(q2) {'perm': (0, 2, 1, 3)}
v3 = Transpose(v2) {'perm': (0, 2, 1, 3)}
"""
FORMS = {
    "scaled-after": """
k3 = Transpose(k2) {'perm': (0, 2, 3, 1)}
s = MatMul(q3, k3)
t = Mul(s, quarter)
""", "both-scaled": """
k4 = Transpose(k2) {'perm': (0, 2, 1, 3)}
k5 = Reshape(k4) {'shape': (-1, 16, 16)}
k6 = Transpose(k5) {'perm': (0, 2, 1)}
k7 = Reshape(k6) {'shape': ('N', 4, 16, 16)}
k3 = Mul(k7, root)
q4 = Mul(q3, root)
t = MatMul(q4, k3)
"""}
MASKS = {"": "p = Softmax(t)\n", "mask": """
m1 = Reshape(keep) {'shape': (-1, 1, 1, 16)}
m2 = Expand(m1) {'shape': ('N', 1, 16, 16)}
m3 = Where(m2, zero, low)
u = Add(t, m3)
p = Softmax(u) {'axis': -1}
""", "guarded": """
m1 = Reshape(keep) {'shape': (-1, 1, 1, 16)}
m3 = Where(m1, zero, low)
u = Add(m3, t)
w = Softmax(u) {'axis': 3}
i = IsNaN(w)
p = Where(i, zero, w)
"""}


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("mask", MASKS)
def test_attention_ends_without_a_transpose(form, mask):
    graph = graph_of(f"""{HEADS}{FORMS[form]}{MASKS[mask]}
a = MatMul(p, v3)
b = Transpose(a) {{'perm': (0, 2, 1, 3)}}
y = Reshape(b) {{'shape': (-1, 16, 64)}}
return y""")
    done = optimize(graph, AVX512)
    mask_ops = ["Reshape", "Where"] if mask else []
    assert sorted(ops_of(done)) == sorted([*mask_ops, "MatMul", "Add", "Split", "Attention"])
    attention = next(n for n in done.nodes if n.op == "Attention")
    assert {k: attention.attrs[k] for k in ("scale", "q_num_heads", "kv_num_heads")} == \
        {"scale": 0.25, "q_num_heads": 4, "kv_num_heads": 4}
    if mask:
        assert str(done.types[attention.inputs[3]]) == "f32[N,1,1,16]"
    same_numbers(graph, done, N=2)


def test_a_triangular_mask_makes_attention_causal():
    rows = [0.0 if j <= i else -3e38 for i in range(4) for j in range(4)]
    graph = graph_of(f"""
        input q: f32[2,3,4,8]
        input k: f32[2,3,4,8]
        input v: f32[2,3,4,8]
        const mask: f32[4,4] = {rows}
        const f: f32[] = 2.0
        t = Transpose(k) {{'perm': (0, 1, 3, 2)}}
        s = MatMul(q, t)
        d = Div(s, f)
        u = Add(d, mask)
        p = Softmax(u)
        y = MatMul(p, v)
        return y""")
    done = recognise_attention(graph)
    assert lines_of(done) == ["y = Attention(q, k, v) {'is_causal': 1, 'scale': 0.5}", "return y"]
    same_numbers(graph, done)


def test_attention_says_why_it_is_not_recognised():
    graph = graph_of("""
        input q: f32[2,3,4,8]
        input k: f32[2,3,8,4]
        input v: f32[2,3,4,8]
        s = MatMul(q, k)
        p = Softmax(s) {'axis': 2}
        y = MatMul(p, v)
        return y""")
    assert why_not_of(graph, "attention")["y"] == "the Softmax does not run over the keys"


# --- siblings ---

def test_narrow_siblings_merge_and_wide_ones_do_not():
    text = """
        input x: f32[2,5,16]
        const a: f32[16,{n}]
        const b: f32[16,8]
        const d: f32[8]
        p = MatMul(x, a)
        q = MatMul(x, b)
        r = Add(q, d)
        return p, r"""
    narrow = graph_of(text.format(n=4))
    done = merge_siblings(narrow)
    assert lines_of(done) == ["p+r.product = MatMul(x, p+r.weight)", "p+r = Add(p+r.product, p+r.bias)",
                              "p, r = Split(p+r) {'axis': 2, 'split': (4, 8)}", "return p, r"]
    same_numbers(narrow, done)
    wide = graph_of(text.format(n=64))
    assert merge_siblings(wide) is wide
    assert why_not_of(wide, "merge_siblings")["p"] == "'p' has 64 columns, and not all results go into Attention"


def test_narrow_convolutions_on_one_input_merge():
    graph = graph_of("""
        input x: f32[2,16,9,9]
        const a: f32[4,16,3,3]
        const b: f32[8,16,3,3]
        const d: f32[8]
        p = Conv(x, a) {'pads': (1, 1, 1, 1)}
        q = Conv(x, b, d) {'pads': (1, 1, 1, 1)}
        return p, q""")
    done = merge_siblings(graph)
    assert ops_of(done) == ["Conv", "Split"]
    same_numbers(graph, done)


# --- layout ---

RESIDUAL = """
symbol N: 1..2..4
input x: f32[N,3,16,16]
const w1: f32[32,3,3,3]
const w2: f32[32,32,3,3]
const w3: f32[32,1,3,3]
const w4: f32[8,32,1,1]
const w5: f32[32,8,1,1]
const f: f32[1,32,1,1]
a = Conv(x, w1) {'pads': (1, 1, 1, 1)}
b = Relu(a)
c = MaxPool(b) {'kernel_shape': (2, 2), 'strides': (2, 2)}
d = Conv(c, w2) {'pads': (1, 1, 1, 1)}
e = Add(d, c)
g = Mul(e, f)
h = Conv(g, w3) {'group': 32, 'pads': (1, 1, 1, 1)}
i = GlobalAveragePool(h)
j = Conv(i, w4)
k = Relu(j)
l = Conv(k, w5)
m = Sigmoid(l)
n = Mul(h, m)
z = GlobalAveragePool(n)
y = Reshape(z) {'shape': ('N', 32)}
return y
"""


def test_blocked_channels_run_from_end_to_end():
    graph = graph_of(RESIDUAL)
    done = choose_layout(graph, AVX512)
    assert [n.op for n in done.nodes if n.op == "Reorder"] == ["Reorder"]       # the pooled plane, into the 1x1
    assert {v: done.types[v].layout for v in "abcdeghjklmnzy"} == {
        **dict.fromkeys("abcdeghjklmn", "c16"), "z": "", "y": ""}
    same_numbers(graph, done, N=2)
    assert choose_layout(graph, Target("reference")) is graph


def test_reorders_stand_at_the_edges_only():
    graph = graph_of("""
        input x: f32[2,32,8,8]
        const w: f32[32,32,3,3]
        const v: f32[64,32,3,3]
        a = Conv(x, w)
        b = Conv(a, v)
        c = Softmax(b) {'axis': 1}
        d = Relu(b)
        return c, d""")
    done = choose_layout(graph, Target("x86", "avx2"))
    assert lines_of(done) == [
        "x.c8 = Reorder(x) {'layout': 'c8'}",
        "a = Conv(x.c8, w) {'layout': 'c8'}", "b = Conv(a, v) {'layout': 'c8'}",
        "b.plain = Reorder(b) {'layout': ''}", "c = Softmax(b.plain) {'axis': 1}",
        "d.c8 = Relu(b)", "d = Reorder(d.c8) {'layout': ''}", "return c, d"]
    same_numbers(graph, done)


def test_a_lone_convolution_stays_plain_and_says_why():
    graph = graph_of("input x: f32[2,3,8,8]\nconst w: f32[32,3,3,3]\na = Conv(x, w)\nb = Softmax(a)\nreturn b")
    assert choose_layout(graph, AVX512) is graph
    reasons = why_not_of(graph, "choose_layout")
    assert reasons["a"].startswith("no other blocked convolution is reached")
    assert reasons["b"] == "it is Softmax, not a convolution"


# --- the pipeline ---

def test_a_pipeline_in_the_wrong_order_does_not_even_import():
    with pytest.raises(InternalError, match="pass simplify must come after fold_constants"):
        pipeline(simplify, fold_constants)


def test_dumps_show_only_the_passes_that_changed_something(tmp_path: Path):
    graph = graph_of("input x: f32[4,32]\na = Relu(x)\nb = Relu(a)\nreturn b")
    optimize(graph, AVX512, dump_to(tmp_path / "dump"))
    names = sorted(p.name for p in (tmp_path / "dump").iterdir())
    assert [n.partition("-")[2] for n in names] == ["loaded.txt", "simplify.txt"]


def test_every_pass_states_its_effect_and_answers_why_not():
    graph = graph_of("input x: f32[4,32]\na = Relu(x)\nb = Relu(a)\nreturn b")
    for name, step in PASSES.items():
        assert step.effect, name
        assert step.rules or step.why_not, name
        assert all(reason is None or isinstance(reason, str) for _, reason in why(graph, name))
    with pytest.raises(InputError, match="no rule or pass is called 'fuse-all'"):
        why(graph, "fuse-all")


def test_rule_names_are_unique():
    names = [r.name for p in PASSES.values() for r in p.rules]
    assert len(names) == len(set(names))


# --- rows ---

def test_rows_nobody_reads_are_not_computed():
    graph = graph_of("""
        symbol N: 1..2..4
        input x: f32[N,9,64]
        input r: f32[N,9,32]
        const w: f32[64,32]
        const b: f32[32]
        const u: f32[32,32]
        const g: f32[32]
        const i: i64[] = 0
        a = MatMul(x, w)
        c = Add(a, b)
        d = Add(c, r)
        e = LayerNormalization(d, g)
        f = MatMul(e, u)
        h = Add(f, d)
        y = Gather(h, i) {'axis': 1}
        return y""")
    done = optimize(graph, AVX512)
    assert [n.inputs[0] for n in done.nodes if n.op == "Slice"] == ["x", "r"]
    assert all(str(done.types[n.output]).startswith("f32[N,1,") for n in done.nodes if n.op in ("MatMul", "Add"))
    same_numbers(graph, done, N=3)


def test_a_reshape_moves_behind_products_and_meets_its_inverse():
    graph = graph_of("""
        symbol N: 1..2..4
        input x: f32[N,9,64]
        const w: f32[64,32]
        const b: f32[32]
        a = Reshape(x) {'shape': (-1, 64)}
        c = MatMul(a, w)
        d = Add(c, b)
        e = Relu(d)
        y = Reshape(e) {'shape': (-1, 9, 32)}
        return y""")
    done = move_rows(graph)
    assert ops_of(done) == ["MatMul", "Add", "Relu"]
    same_numbers(graph, done, N=2)
    assert why_not(graph, RULES["reshape-after-product"], graph.nodes[1]) is None
    reason = why_not(graph, RULES["reshape-after-pointwise"], graph.nodes[3])
    assert reason == "'d' is neither reshaped nor one number for each column"


def test_a_slice_of_columns_stays_behind():
    graph = graph_of("input x: f32[4,8]\nconst w: f32[8,6]\na = MatMul(x, w)\n"
                     "y = Slice(a) {'starts': (0,), 'ends': (2,), 'axes': (1,)}\nreturn y")
    assert move_rows(graph) is graph
    assert why_not_of(graph, "slice-before-row")["y"] == "it cuts the last axis"


def test_positions_that_are_widened_are_looked_up_once():
    graph = graph_of("""
        symbol N: 1..2..4
        input x: f32[N,4,8]
        const table: f32[10,8]
        const at: i64[4] = [3, 1, 0, 9]
        e = Expand(at) {'shape': ('N', 4)}
        p = Gather(table, e)
        y = Add(x, p)
        return y""")
    done = optimize(graph, AVX512)
    assert ops_of(done) == ["Add"]
    same_numbers(graph, done, N=2)


# --- windows ---

def test_padding_goes_into_the_convolution():
    graph = graph_of("""
        input x: f32[2,3,8,9]
        const w: f32[4,3,3,3]
        const none: f32[] = 0.0
        const one: f32[] = 1.0
        a = Pad(x, none) {'pads': (1, 0, 2, 1), 'axes': (2, 3)}
        p = Conv(a, w) {'pads': (0, 1, 0, 1)}
        b = Pad(x, one) {'pads': (0, 0, 1, 1, 0, 0, 1, 1)}
        q = Conv(b, w) {'auto_pad': 'SAME_UPPER', 'strides': (2, 2)}
        return p, q""")
    done = simplify(graph)
    assert lines_of(done) == ["p = Conv(x, w) {'pads': (1, 1, 2, 2)}",
                              "b = Pad(x, one) {'pads': (0, 0, 1, 1, 0, 0, 1, 1)}",
                              "q = Conv(b, w) {'pads': (0, 1, 1, 1), 'strides': (2, 2)}", "return p, q"]
    same_numbers(graph, done)
    assert why_not_of(graph, "pad-into-convolution")["q"] == "it does not pad with zeros"


def test_on_a_gpu_convolutions_and_what_follows_lie_channels_last():
    graph = graph_of("""
        input x: f16[2,3,8,8]
        const w: f16[16,3,3,3]
        const v: f16[16,16,3,3]
        y = Conv(x, w) {'pads': (1, 1, 1, 1)}
        r = Relu(y)
        z = Conv(r, v) {'pads': (1, 1, 1, 1)}
        s = Add(z, r)
        p = GlobalAveragePool(s)
        return p
    """)
    made = choose_layout(graph, Target("cuda", "sm_90"))
    assert [n.op for n in made.nodes] == [n.op for n in graph.nodes]        # no Reorder: the stem reads x plain
    assert [made.types[n.output].layout for n in made.nodes] == ["nhwc", "nhwc", "nhwc", "nhwc", ""]
    lone = choose_layout(graph_of("""
        input x: f32[1,16,8,8]
        const w: f32[16,16,3,3]
        y = Conv(x, w)
        return y
    """), Target("cuda", "sm_90"))
    assert [n.op for n in lone.nodes] == ["Reorder", "Conv", "Reorder"]


def test_channels_last_lie_as_their_physical_shape_says():
    array = np.arange(2 * 3 * 4 * 5, dtype=np.float32).reshape(2, 3, 4, 5)
    type_ = TensorType(F32, array.shape, "nhwc")
    laid = to_physical(array, type_)
    assert type_.physical == laid.shape == (2, 4, 5, 3) and type_.nbytes == laid.nbytes
    assert (from_physical(laid, type_) == array).all()
