"""Products: every form, every tile, epilogues, strides, run-time sizes, thread counts."""
from collections.abc import Mapping
from dataclasses import replace

import numpy as np
import pytest

from ingot.graph import F32, TensorType, evaluate, parse
from ingot.kernels import Operand, Params, Site, Step, Tactic
from ingot.kernels.codegen import ISAS, isa_of, target_for
from ingot.kernels.codegen.tile import fits
from ingot.kernels.reference.site import run_site
from ingot.kernels.x86.matmul import TiledMatMul
from ingot.kernels.x86.matmul_plain import PlainMatMul
from ingot.lower import lower
from ingot.ops import infer
from ingot.runtime.compiler import assembly
from ingot.runtime.harness import run_kernel
from ingot.runtime.host import host_target
from ingot.target import Target

pytestmark = pytest.mark.cpu
TILES, PLAIN = TiledMatMul(), PlainMatMul()
LEVELS = ("avx512", "avx2")


def site_of(text: str, target: Target) -> Site:
    """The one site that the text lowers to, epilogue and all."""
    program = lower(parse(text, infer), target)
    assert len(program.launches) == 1, str(program)
    return program.launches[0].site


def host(isa: str, threads: int = 2) -> Target:
    if isa == "avx512" and "avx512f" not in host_target(1).features:
        pytest.skip("this machine has no AVX-512")
    return host_target(threads, isa)


def check(tactic: Tactic, site: Site, target: Target, params: Params, bindings: Mapping[str, int] | None = None,
          threads: int = 1) -> None:
    """The kernel's result equals the reference's, on numbers that make every sum different."""
    assert tactic.declines(site, target) is None
    bound, rng = dict(bindings or {}), np.random.default_rng(7)
    arrays = [_numbers(rng, o.type.at(bound)) for o in site.inputs]
    constants = {i: a for i, (a, o) in enumerate(zip(arrays, site.inputs, strict=True)) if o.constant}
    packed = tactic.pack(site, params, target, constants)
    kernel = tactic.emit(site, params, target)
    given = [packed.get(i, a) for i, a in enumerate(arrays)]
    got, want = run_kernel(kernel, site, target, given, bound, threads)[0], run_site(site, arrays, bound)[0]
    if site.output.dtype.kind == "float":
        depth = max(evaluate(site.inputs[site.step.inputs[0]].type.shape[-1], bound), 4)
        unit = 2.0 ** -{"f64": 52, "f32": 23, "f16": 10, "bf16": 7}[site.output.dtype.name]
        np.testing.assert_allclose(got.astype(np.float64), want.astype(np.float64), rtol=4 * unit * depth ** 0.5,
                                   atol=4 * unit * depth ** 0.5 * max(1.0, float(np.abs(want).max())))
    else:
        np.testing.assert_array_equal(got, want)


def _numbers(rng: np.random.Generator, t: TensorType) -> np.ndarray:
    if t.dtype.kind == "float":
        return rng.standard_normal(t.shape).astype(t.dtype.numpy)
    return rng.integers(0 if t.dtype.kind in ("uint", "bool") else -9, 2 if t.dtype.kind == "bool" else 9,
                        t.shape).astype(t.dtype.numpy)


FORMS = [("7,20", "20,50"), ("33,64", "64,96"), ("2,3,9,17", "17,40"), ("2,3,9,17", "3,17,33"), ("1,64", "64,100"),
         ("3,1,8", "8,40"), ("5,7", "4,7,19"), ("20", "20,30"), ("2,1,6,5", "1,3,5,17"), ("20", "2,20,30"),
         ("4,1,7", "7,16"), ("1,1,7", "7,16"), ("2,1,3,4,8", "3,8,8")]
COLUMN = [("5,20", "20"), ("20", "20"), ("2,3,20", "20"), ("4,37", "37,1"), ("2,5,70", "2,70,1")]


@pytest.mark.parametrize("isa", LEVELS)
@pytest.mark.parametrize("right", ["const", "input"])
@pytest.mark.parametrize(("a", "b"), FORMS)
def test_tiles_serve_every_form_at_every_point(a: str, b: str, right: str, isa: str) -> None:
    target = host(isa)
    site = site_of(f"input a: f32[{a}]\n{right} b: f32[{b}]\ny = MatMul(a, b)\nreturn y", target)
    points = list(TILES.space(site, target))
    assert 0 < len(points) <= 12
    variants = ({}, {"depth": 8}, {"block": 2, "across": 1})
    for number, point in enumerate(points):
        check(TILES, site, target, {**point, **variants[number % 3]}, threads=1 + number % 3)


@pytest.mark.parametrize("isa", LEVELS)
@pytest.mark.parametrize(("a", "b"), FORMS + COLUMN)
def test_plain_serves_every_form(a: str, b: str, isa: str) -> None:
    target = host(isa)
    for right, dtype in (("input", "f32"), ("const", "f64"), ("input", "i32"), ("input", "i64"), ("input", "f16")):
        site = site_of(f"input a: {dtype}[{a}]\n{right} b: {dtype}[{b}]\ny = MatMul(a, b)\nreturn y", target)
        check(PLAIN, site, target, {}, threads=2)


@pytest.mark.parametrize("isa", LEVELS)
def test_every_tile_that_fits_the_registers(isa: str) -> None:
    target = host(isa)
    texts = ["input a: f32[27,13]\nconst b: f32[13,70]\ny = MatMul(a, b)\nreturn y",
             "input a: f64[27,13]\nconst b: f64[13,40]\ny = MatMul(a, b)\nreturn y"]
    sites = [site_of(t, target) for t in texts]
    shapes = [(r, v) for v in range(1, 9) for r in range(1, 25) if fits(isa_of(target), r, v)]
    assert (8, 3) in shapes or isa == "avx2"
    for rows, vectors in shapes[::1 if isa == "avx512" else 2]:
        check(TILES, sites[rows % 2], target, {"rows": rows, "vectors": vectors, "block": 1}, threads=2)


EPILOGUES = {
    "bias": "const c: f32[{n}]\nr = Add(y, c)",
    "bias and relu": "const c: f32[{n}]\nt = Add(y, c)\nr = Relu(t)",
    "gelu": "const c: f32[{n}]\nt = Add(c, y)\nr = Gelu(t)",
    "silu": "s = Sigmoid(y)\nr = Mul(y, s)",
    "residual": "input c: f32[2,21,{n}]\nconst d: f32[{n}]\nt = Add(y, d)\nr = Add(c, t)",
    "scalar": "const c: f32[]\nr = Mul(y, c)",
    "one": "const c: f32[1,1]\nr = Mul(c, y)",
    "column": "input c: f32[21,1]\nr = Add(y, c)",
    "rows that repeat": "input c: f32[1,21,{n}]\nr = Add(y, c)",
    "batch that repeats": "input c: f32[2,1,1]\nr = Sub(c, y)",
    "a matrix": "const c: f32[21,{n}]\nr = Div(y, c)",
    "mask": "input c: bool[2,21,{n}]\nconst d: f32[]\nr = Where(c, y, d)",
    "compare": "input c: f32[{n}]\nr = Greater(y, c)",
}


@pytest.mark.parametrize("isa", LEVELS)
@pytest.mark.parametrize("name", EPILOGUES)
def test_epilogues(name: str, isa: str) -> None:
    target = host(isa)
    for columns in (64, 43):
        text = (f"input a: f32[2,21,24]\nconst b: f32[24,{columns}]\ny = MatMul(a, b)\n"
                + EPILOGUES[name].format(n=columns) + "\nreturn r")
        text = "\n".join(sorted(text.splitlines(), key=lambda line: not line.startswith(("input", "const"))))
        site = site_of(text, target)
        for params in ({"rows": 4, "vectors": 2, "block": 2}, {"rows": 8, "vectors": 1, "block": 9, "depth": 16}):
            check(TILES, site, target, params, threads=2)
        check(PLAIN, site, target, {}, threads=3)


@pytest.mark.parametrize("isa", LEVELS)
@pytest.mark.parametrize("shape", ["N,16", "N,5,16", "N,12,16", "2,N,16"])
def test_rows_known_at_run_time(shape: str, isa: str) -> None:
    target = host(isa)
    site = site_of(f"symbol N: 1..8..32\ninput a: f32[{shape}]\nconst b: f32[16,100]\nconst c: f32[100]\n"
                   "y = MatMul(a, b)\nr = Add(y, c)\nreturn r", target)
    for params in [*TILES.space(site, target), {"rows": 6, "vectors": 2, "block": 2, "depth": 8}]:
        for n in (1, 2, 7, 32):
            check(TILES, site, target, params, {"N": n}, threads=2)
    for n in (1, 5):
        check(PLAIN, site, target, {}, {"N": n})


@pytest.mark.parametrize("isa", LEVELS)
def test_depth_and_columns_known_at_run_time(isa: str) -> None:
    target = host(isa)
    site = site_of("symbol N: 1..40..90\nsymbol H: 1..2..4\ninput a: f32[H,5,N]\ninput b: f32[H,N,N]\n"
                   "y = MatMul(a, b)\nreturn y", target)
    for params in TILES.space(site, target):
        for n in (1, 16, 33, 90):
            check(TILES, site, target, params, {"N": n, "H": 3}, threads=2)
            check(TILES, site, target, {**params, "depth": 24}, {"N": n, "H": 1})


@pytest.mark.parametrize("isa", LEVELS)
def test_operands_that_lie_inside_larger_ones(isa: str) -> None:
    target = host(isa)
    left, right, out = TensorType(F32, (2, 9, 12)), TensorType(F32, (2, 12, 32)), TensorType(F32, (2, 9, 32))
    step = Step("MatMul", (0, 1), (), (out,))
    site = Site((step,), (Operand(left, (9 * 40, 40, 1)), Operand(right, (12 * 50, 50, 1))),
                (Operand(out, (9 * 96, 96, 1)),))
    for params in TILES.space(site, target):
        check(TILES, site, target, params, threads=2)
    check(PLAIN, site, target, {})
    turned = replace(site, inputs=(Operand(left, (108, 1, 9)), Operand(right, (384, 1, 12))))
    assert "not adjacent" in str(TILES.declines(turned, target))
    check(PLAIN, turned, target, {})


@pytest.mark.parametrize("isa", LEVELS)
@pytest.mark.parametrize("attrs", [{}, {"transB": 1}, {"transA": 1},
                                   {"transA": 1, "transB": 1, "alpha": 0.5, "beta": 2.0}])
@pytest.mark.parametrize("bias", ["", "7,19", "19", "1", "7,1"])
def test_gemm(attrs: dict, bias: str, isa: str) -> None:
    target = host(isa)
    a = "12,7" if attrs.get("transA") else "7,12"
    b = "19,12" if attrs.get("transB") else "12,19"
    for kind in ("const", "input"):
        text = f"input a: f32[{a}]\n{kind} b: f32[{b}]\n" + (f"const c: f32[{bias}]\n" if bias else "")
        site = site_of(f"{text}y = Gemm(a, b{', c' if bias else ''}) {attrs}\nr = Relu(y)\nreturn r", target)
        check(PLAIN, site, target, {}, threads=2)
        if kind == "const" or not attrs.get("transB"):
            check(TILES, site, target, {"rows": 4, "vectors": 1}, threads=2)


def test_reasons_to_decline() -> None:
    target = target_for("avx2")
    one = site_of("input a: f32[4,8]\nconst b: f32[8,1]\ny = MatMul(a, b)\nreturn y", target)
    assert TILES.declines(one, target) == "one column: a tile would idle"
    whole = site_of("input a: i32[4,8]\nconst b: i32[8,9]\ny = MatMul(a, b)\nreturn y", target)
    assert TILES.declines(whole, target) == "it takes f32 or f64"
    assert PLAIN.declines(whole, target) is None


@pytest.mark.parametrize("isa", ISAS)
def test_code_is_made_for_every_instruction_set(isa: str) -> None:
    target = target_for(isa, 4)
    site = site_of("symbol N: 1..4..8\ninput a: f32[N,50,64]\nconst b: f32[64,90]\nconst c: f32[90]\n"
                   "y = MatMul(a, b)\nt = Add(y, c)\nr = Gelu(t)\nreturn r", target)
    for params in list(TILES.space(site, target))[:3]:
        text = assembly(TILES.emit(site, params, target), target)
        assert {"avx512": "zmm", "avx2": "ymm", "neon": "fmla"}[isa] in text
    assert assembly(PLAIN.emit(site, {}, target), target)
