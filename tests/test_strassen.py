"""Strassen's products: the scheme multiplies matrices, kernels give the same numbers, special values keep to rows."""
import operator
from collections.abc import Callable, Mapping
from dataclasses import replace

import numpy as np
import pytest

from ingot.graph import parse
from ingot.kernels import Operand, Params, Site, able
from ingot.kernels.codegen import ISAS, target_for
from ingot.kernels.reference.site import run_site
from ingot.kernels.x86.matmul import TiledMatMul
from ingot.kernels.x86.matmul_strassen import (
    StrassenMatMul,
    left_sums,
    nested,
    places,
    results,
    right_sums,
)
from ingot.lower import lower
from ingot.ops import infer
from ingot.runtime.compiler import assembly
from ingot.runtime.harness import run_kernel
from ingot.runtime.host import host_target
from ingot.target import Target

pytestmark = pytest.mark.cpu
STRASSEN = StrassenMatMul()
LEVELS = ("avx512", "avx2")
TEXT = ("symbol N: 1..{opt}..9\ninput a: f32[{items},{s},{k}]\nconst w: f32[{k},{n}]\nconst c: f32[{n}]\n"
        "y = MatMul(a, w)\nt = Add(y, c)\nr = {end}\nreturn r")


def host(isa: str) -> Target:
    if isa == "avx512" and "avx512f" not in host_target(1).features:
        pytest.skip("this machine has no AVX-512")
    return host_target(2, isa)


def site_of(target: Target, items: object, s: int, k: int, n: int, end: str = "Relu(t)", opt: int = 4) -> Site:
    text = TEXT.format(items=items, s=s, k=k, n=n, end=end, opt=opt)
    launch, = lower(parse(text, infer), target).launches
    return launch.site


def run(site: Site, target: Target, params: Params, threads: int = 1, bindings: Mapping[str, int] | None = None,
        change: Callable[[np.ndarray], None] | None = None) -> tuple[np.ndarray, list[np.ndarray]]:
    """What the kernel makes of seeded numbers, and these."""
    rng, bound = np.random.default_rng(5), dict(bindings or {})
    arrays = [rng.standard_normal(o.type.at(bound).shape).astype(np.float32) for o in site.inputs]
    if change is not None:
        change(arrays[0])
    kernel = STRASSEN.emit(site, params, target)
    packed = STRASSEN.pack(site, params, target, {1: arrays[1]})
    given = [packed.get(i, a) for i, a in enumerate(arrays)]
    return run_kernel(kernel, site, target, given, bound, threads)[0], arrays


@pytest.mark.parametrize("levels", [1, 2])
def test_the_scheme_multiplies_matrices(levels: int) -> None:
    """The coefficients, taken from the very code that adds vectors up, give the tensor of the matrix product."""
    cut = 2 ** levels
    units = list(np.eye(cut * cut, dtype=np.int64))
    u, v = (np.array(nested(f, units, levels, operator.add, operator.sub)) for f in (left_sums, right_sums))
    assert u.shape == v.shape == (7 ** levels, cut * cut)
    made = list(np.eye(7 ** levels, dtype=np.int64))
    w = np.array(nested(results, made, levels, operator.add, operator.sub))
    found = np.einsum("cp,pa,pb->abc", w, u, v)
    at = {place: i for i, place in enumerate(places(levels))}
    want = np.zeros_like(found)
    for (i, k), a in at.items():
        for j in range(cut):
            want[a, at[k, j], at[i, j]] = 1
    assert np.array_equal(found, want)


@pytest.mark.parametrize("isa", LEVELS)
@pytest.mark.parametrize("levels", [1, 2])
@pytest.mark.parametrize(("items", "s", "k", "n"), [(2, 24, 256, 256), (3, 29, 132, 348), (1, 64, 64, 128),
                                                     (2, 1, 36, 8)])
def test_results_at_any_size_tile_and_thread_count(items: int, s: int, k: int, n: int, levels: int, isa: str) -> None:
    target = host(isa)
    site = site_of(target, items, s, k, n)
    for number, (rows, vectors, block) in enumerate(((8, 1, 2), (6, 2, 3), (5, 3, 1))):
        params = {"levels": levels, "rows": rows, "vectors": vectors, "block": block}
        got, arrays = run(site, target, params, number + 1)
        want = run_site(site, arrays)[0]
        assert np.abs(got - want).max() <= 5e-6 * np.abs(want).max()


@pytest.mark.parametrize("isa", LEVELS)
@pytest.mark.parametrize("length", [50, "N"])
def test_bias_gelu_and_residual_over_any_number_of_rows(length: object, isa: str) -> None:
    target = host(isa)
    text = ("symbol N: 1..64..99\ninput a: f32[3,{s},192]\nconst w: f32[192,200]\nconst c: f32[200]\n"
            "input d: f32[3,{s},200]\ny = MatMul(a, w)\nt = Add(y, c)\nu = Gelu(t)\nr = Add(d, u)\nreturn r")
    launch, = lower(parse(text.format(s=length), infer), target).launches
    for sizes in ({"N": 1}, {"N": 2}, {"N": 99}) if length == "N" else ({},):
        for levels in (1, 2):
            params = {"levels": levels, "rows": 7, "vectors": 2, "block": 4}
            got, arrays = run(launch.site, target, params, 2, sizes)
            want = run_site(launch.site, arrays, sizes)[0]
            assert np.abs(got - want).max() <= 5e-6 * np.abs(want).max()


@pytest.mark.parametrize("isa", LEVELS)
def test_items_known_at_run_time_with_a_residual(isa: str) -> None:
    target = host(isa)
    text = ("symbol N: 1..4..9\ninput a: f32[N,50,256]\nconst w: f32[256,256]\ninput c: f32[N,50,256]\n"
            "y = MatMul(a, w)\nr = Add(c, y)\nreturn r")
    launch, = lower(parse(text, infer), target).launches
    assert STRASSEN.declines(launch.site, target) is None
    points = list(STRASSEN.space(launch.site, target))
    assert 0 < len(points) <= 6
    for params in points:
        for n in (1, 2, 9):
            got, arrays = run(launch.site, target, params, 2, {"N": n})
            want = run_site(launch.site, arrays, {"N": n})[0]
            assert np.abs(got - want).max() <= 5e-6 * np.abs(want).max()


@pytest.mark.parametrize("levels", [1, 2])
def test_special_values_stay_in_their_rows_and_items(levels: int) -> None:
    target = host_target(2)
    site = site_of(target, 3, 32, 128, 256)
    params = {"levels": levels, "rows": 8, "vectors": 1, "block": 1}

    def change(a: np.ndarray) -> None:
        a[0, 3, 1], a[1, 5, 7], a[1, 30, 0] = np.inf, np.nan, -np.inf

    plain = replace(site, steps=site.steps[:2], outputs=(Operand(site.steps[1].types[0]),))     # Relu(-inf) is finite
    got, arrays = run(plain, target, params, 2, change=change)
    with np.errstate(all="ignore"):
        want = run_site(plain, arrays)[0]
    finite = np.isfinite(want)
    assert not finite.all()
    np.testing.assert_array_equal(np.isfinite(got), finite)
    assert np.abs(got[finite] - want[finite]).max() <= 5e-6 * np.abs(want[finite]).max()

    def enlarge(a: np.ndarray) -> None:
        a[1] *= 2.0**40

    got, arrays = run(site, target, params, 2, change=enlarge)
    want = run_site(site, arrays)[0]
    for item in range(3):           # one item's size is no measure for another's error
        assert np.abs(got[item] - want[item]).max() <= 5e-6 * np.abs(want[item]).max()


def test_the_error_grows_by_a_small_factor_per_level() -> None:
    target = host_target(1)
    site = site_of(target, 1, 128, 768, 768)
    error = {}
    for levels, tactic in ((0, TiledMatMul()), (1, STRASSEN), (2, STRASSEN)):
        rng = np.random.default_rng(1)
        arrays = [rng.standard_normal(o.type.shape).astype(np.float32) for o in site.inputs]
        params = {"rows": 8, "vectors": 3, "block": 4, **({"levels": levels} if levels else {})}
        kernel = tactic.emit(site, params, target)
        packed = tactic.pack(site, params, target, {1: arrays[1]})
        got = run_kernel(kernel, site, target, [packed.get(i, a) for i, a in enumerate(arrays)])[0]
        exact = np.maximum(arrays[0].astype(np.float64) @ arrays[1] + arrays[2], 0)
        error[levels] = float(np.abs(got - exact).max() / exact.max())
    assert error[1] < 4 * error[0]
    assert error[2] < 8 * error[0]
    assert error[2] < 16 * 2.0**-24 * 768 ** 0.5 / 4       # a quarter of what the tuner allows


def test_an_exact_race_leaves_it_out() -> None:
    target = host_target(2)
    site = site_of(target, 2, 128, 256, 256)
    assert [t.name for t in able(site, target)[0]].index(STRASSEN.name) == 1      # an untuned build takes plain tiles
    willing, reasons = able(site, target, exact=True)
    assert STRASSEN.name not in [t.name for t in willing]
    assert f"{STRASSEN.name}: it is not exact" in reasons


def test_reasons_to_decline() -> None:
    target = target_for("avx2")
    assert "too few" in str(STRASSEN.declines(site_of(target, 1, 16, 256, 256), target))
    assert "halves" in str(STRASSEN.declines(site_of(target, 2, 128, 256, 251), target))
    assert [p["levels"] for p in STRASSEN.space(site_of(target, 2, 128, 256, 250), target)].count(2) == 0
    assert STRASSEN.declines(site_of(target, 2, 128, 256, 256), target) is None
    flat, = lower(parse("input a: f32[512,256]\nconst w: f32[256,256]\ny = MatMul(a, w)\nreturn y", infer),
                  target).launches
    assert "items" in str(STRASSEN.declines(flat.site, target))


@pytest.mark.parametrize("isa", ISAS)
def test_code_is_made_for_every_instruction_set(isa: str) -> None:
    target = target_for(isa, 4)
    site = site_of(target, "N", 128, 768, 768, "Gelu(t)", opt=8)
    for params in STRASSEN.space(site, target):
        text = assembly(STRASSEN.emit(site, params, target), target)
        assert {"avx512": "zmm", "avx2": "ymm", "neon": "fmla"}[isa] in text
