"""Attention: head forms, masks, causality, shared keys, strides, run-time sizes, key blocks."""
from collections.abc import Mapping, Sequence

import numpy as np
import pytest

from ingot.graph import F32, TensorType, parse
from ingot.kernels import Operand, Params, Site, Step
from ingot.kernels.codegen import ISAS, target_for
from ingot.kernels.reference.site import run_site
from ingot.kernels.x86.attention import BlockedAttention
from ingot.lower import lower
from ingot.ops import infer
from ingot.runtime.compiler import assembly
from ingot.runtime.harness import run_kernel
from ingot.runtime.host import host_target
from ingot.target import Target

pytestmark = pytest.mark.cpu
ATTENTION = BlockedAttention()
LEVELS = ("avx512", "avx2")
ONLINE = {"rows": 3, "vectors": 1, "value_rows": 5, "value_vectors": 1, "block": 7, "keys": 16, "parts": 2}


def host(isa: str, threads: int = 2) -> Target:
    if isa == "avx512" and "avx512f" not in host_target(1).features:
        pytest.skip("this machine has no AVX-512")
    return host_target(threads, isa)


def site_of(text: str, target: Target) -> Site:
    """The site of the text's Attention."""
    launches = lower(parse(text, infer), target).launches
    found, = (x.site for x in launches if x.site.op == "Attention")
    return found


def check(site: Site, target: Target, params: Params, bindings: Mapping[str, int] | None = None, threads: int = 1,
          arrays: Sequence[np.ndarray] | None = None) -> np.ndarray:
    assert ATTENTION.declines(site, target) is None
    bound, rng = dict(bindings or {}), np.random.default_rng(3)
    if arrays is None:
        arrays = [rng.random(s) < 0.7 if t.dtype.kind == "bool" else rng.standard_normal(s).astype(np.float32)
                  for t in (o.type.at(bound) for o in site.inputs) for s in [t.shape]]
    kernel = ATTENTION.emit(site, params, target)
    got, want = run_kernel(kernel, site, target, arrays, bound, threads)[0], run_site(site, arrays, bound)[0]
    np.testing.assert_allclose(got, want, rtol=2e-5, atol=2e-5)
    return got


FOUR = "input q: f32[2,3,{s},{d}]\ninput k: f32[2,3,{t},{d}]\ninput v: f32[2,3,{t},{e}]\n"


@pytest.mark.parametrize("isa", LEVELS)
@pytest.mark.parametrize(("s", "t", "d", "e"), [(17, 17, 16, 16), (50, 50, 64, 64), (5, 90, 80, 24), (1, 33, 32, 32),
                                                (33, 7, 5, 3), (20, 21, 96, 128), (1, 1, 8, 8)])
def test_sizes_of_heads_and_sequences(s: int, t: int, d: int, e: int, isa: str) -> None:
    target = host(isa)
    site = site_of(FOUR.format(s=s, t=t, d=d, e=e) + "y = Attention(q, k, v)\nreturn y", target)
    points = list(ATTENTION.space(site, target))
    assert 0 < len(points) <= 12
    for number, params in enumerate([*points, ONLINE]):
        check(site, target, params, threads=1 + number % 3)


MASKS = ["f32[2,1,9,21]", "f32[9,21]", "f32[2,3,9,21]", "f32[2,1,1,21]", "bool[2,1,9,21]", "bool[1,21]", "f32[21]"]


@pytest.mark.parametrize("isa", LEVELS)
@pytest.mark.parametrize("mask", MASKS)
@pytest.mark.parametrize("attrs", [{}, {"is_causal": 1}, {"softcap": 3.0, "scale": 0.3}])
def test_masks(mask: str, attrs: dict, isa: str) -> None:
    target = host(isa)
    site = site_of(FOUR.format(s=9, t=21, d=16, e=16) + f"input m: {mask}\ny = Attention(q, k, v, m) {attrs}\nreturn y",
                   target)
    for params in (next(ATTENTION.space(site, target)), ONLINE):
        check(site, target, params, threads=2)


@pytest.mark.parametrize("isa", LEVELS)
@pytest.mark.parametrize("params", [None, ONLINE])
def test_a_row_that_attends_nothing_is_zero(params: Params | None, isa: str) -> None:
    target = host(isa)
    site = site_of(FOUR.format(s=9, t=21, d=16, e=16) + "input m: bool[2,1,9,21]\ny = Attention(q, k, v, m)\nreturn y",
                   target)
    rng = np.random.default_rng(0)
    arrays = [rng.standard_normal(o.type.shape).astype(np.float32) for o in site.inputs[:3]]
    mask = rng.random((2, 1, 9, 21)) < 0.5
    mask[1, 0, 4] = False
    mask[0, 0, 2, :16] = False
    got = check(site, target, params or next(ATTENTION.space(site, target)), arrays=[*arrays, mask])
    assert not got[1, :, 4].any()
    large = [arrays[0] * 100, arrays[1] * 100, arrays[2], mask]        # scores of thousands: nothing overflows
    assert np.isfinite(check(site, target, params or next(ATTENTION.space(site, target)), arrays=large)).all()


@pytest.mark.parametrize("isa", LEVELS)
@pytest.mark.parametrize("causal", [0, 1])
def test_heads_share_keys(causal: int, isa: str) -> None:
    target = host(isa)
    site = site_of("input q: f32[2,6,19,8]\ninput k: f32[2,2,19,8]\ninput v: f32[2,2,19,8]\n"
                   f"y = Attention(q, k, v) {{'is_causal': {causal}}}\nreturn y", target)
    flat = site_of("input q: f32[2,19,48]\ninput k: f32[2,19,16]\ninput v: f32[2,19,32]\ny = Attention(q, k, v) "
                   f"{{'q_num_heads': 6, 'kv_num_heads': 2, 'is_causal': {causal}}}\nreturn y", target)
    for found in (site, flat):
        for params in (next(ATTENTION.space(found, target)), ONLINE):
            check(found, target, params, threads=3)


@pytest.mark.parametrize("isa", LEVELS)
def test_slices_of_a_merged_product_at_run_time_sizes(isa: str) -> None:
    target = host(isa)
    site = site_of("symbol N: 1..2..8\nsymbol S: 1..40..300\ninput x: f32[N,S,96]\n"
                   "q, k, v = Split(x) {'axis': 2, 'split': (32, 32, 32)}\n"
                   "y = Attention(q, k, v) {'q_num_heads': 2, 'kv_num_heads': 2}\nreturn y", target)
    assert all(o.strides is not None for o in site.inputs)
    for params in (*ATTENTION.space(site, target), ONLINE):
        for n, s in ((1, 1), (3, 40), (2, 137)):
            check(site, target, params, {"N": n, "S": s}, threads=2)


@pytest.mark.parametrize("isa", LEVELS)
def test_an_output_that_lies_inside_a_larger_one(isa: str) -> None:
    t = TensorType(F32, (2, 3, 5, 8))
    step = Step("Attention", (0, 1, 2), (), (t,))
    wide = (3 * 5 * 20, 5 * 20, 20, 1)
    site = Site((step,), (Operand(t), Operand(t, wide), Operand(t, wide)), (Operand(t, wide),))
    for params in (next(ATTENTION.space(site, host(isa))), ONLINE):
        check(site, host(isa), params)


def test_reasons_to_decline() -> None:
    target = target_for("avx2")

    def reason(inputs: str, attrs: str = "{}") -> str | None:
        text = FOUR.format(s=4, t=4, d=8, e=8) + inputs + attrs + "\nreturn y"
        return ATTENTION.declines(site_of(text, target), target)

    assert "cache" in str(reason("input a: f32[2,3,4,8]\ninput b: f32[2,3,4,8]\ny = Attention(q, k, v, , a, b) "))
    assert "window" in str(reason("y = Attention(q, k, v) ", "{'left_window_size': 2}"))
    assert "shorter" in str(reason("input m: f32[4,3]\ny = Attention(q, k, v, m) "))
    assert reason("y = Attention(q, k, v) ") is None


@pytest.mark.parametrize("isa", ISAS)
def test_code_is_made_for_every_instruction_set(isa: str) -> None:
    target = target_for(isa, 4)
    site = site_of("symbol N: 1..4..8\ninput q: f32[N,12,50,64]\ninput m: f32[N,1,1,50]\n"
                   "y = Attention(q, q, q, m)\nreturn y", target)
    for params in (next(ATTENTION.space(site, target)), {**ONLINE, "keys": 32}):
        text = assembly(ATTENTION.emit(site, params, target), target)
        assert {"avx512": "zmm", "avx2": "ymm", "neon": "fmla"}[isa] in text
