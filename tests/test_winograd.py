"""Winograd convolution: exact matrices, odd forms, epilogues, padding lanes of NaN, accuracy, and `exact` builds."""
from __future__ import annotations

import itertools
import sys
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).parent))
from test_conv import EPILOGUES, LAYOUTS, check, convolved, make_site, with_epilogue

from ingot.graph import F32, F64, TensorType
from ingot.kernels import TACTICS, Operand, Params, Site, able
from ingot.kernels.codegen import target_for
from ingot.kernels.codegen.winograd import filtering, symmetric
from ingot.kernels.x86.conv_winograd import WinogradConvolution
from ingot.lower import Launch, Program
from ingot.ops.convolution import convolution_window
from ingot.runtime.bench import CpuDevice
from ingot.runtime.compiler import assembly
from ingot.runtime.harness import run_logical
from ingot.runtime.host import host_target
from ingot.target import Target
from ingot.tune import Choice, TuningCache, tune


class EverySize(WinogradConvolution):
    """The points of the space, and as many with tiles of 6 x 6, which only large images get."""

    def space(self, site: Site, target: Target) -> Iterator[Params]:
        points = list(super().space(site, target))
        yield from points
        yield from ({**p, "size": 6} for p in points if p["size"] == 4)


TACTIC = EverySize()
POINTS = 6
FORMS = {
    "same": {"x": (2, 16, 14, 14), "w": (32, 16, 3, 3), "pads": (1, 1, 1, 1)},
    "valid": {"x": (1, 3, 9, 11), "w": (5, 3, 3, 3), "bias": False},
    "uneven": {"x": (3, 37, 7, 5), "w": (40, 37, 3, 3), "pads": (1, 0, 0, 1)},
    "far pads": {"x": (1, 16, 3, 3), "w": (16, 16, 3, 3), "pads": (4, 3, 5, 4)},
    "one row": {"x": (1, 40, 1, 30), "w": (24, 40, 3, 3), "pads": (1, 1, 1, 1)},
    "one pixel": {"x": (2, 17, 3, 3), "w": (7, 17, 3, 3)},
    "upper": {"x": (1, 21, 8, 13), "w": (112, 21, 3, 3), "auto_pad": "SAME_UPPER"},
}


@pytest.mark.parametrize(("outputs", "taps", "points"), [
    (2, 3, (0, 1, -1)), (4, 3, (0, 1, -1, 2, -2)), (6, 3, (0, 1, -1, 2, -2, Fraction(1, 2), Fraction(-1, 2))),
    (3, 2, (0, 1, Fraction(-5, 7))), (2, 5, (3, 1, -1, 2, -2))])
def test_the_matrices_are_exact(outputs: int, taps: int, points: tuple[Fraction | int, ...]) -> None:
    holds(filtering(outputs, taps, points))


@pytest.mark.parametrize("outputs", [2, 4, 6])
def test_the_matrices_of_the_kernels_are_exact_and_short(outputs: int) -> None:
    f = symmetric(outputs)
    holds(f)
    for number in itertools.chain(*f.a, *f.b):          # in f32, too: only G is rounded
        assert Fraction(float(np.float32(float(number)))) == number


def holds(f) -> None:
    """A^T ((G g) * (B^T d)) as a form in g and d: 1 where d[j + k] meets g[k] in y[j], else 0."""
    for j, k, at in itertools.product(range(f.outputs), range(f.taps), range(f.products)):
        assert sum(f.a[j][i] * f.g[i][k] * f.b[i][at] for i in range(f.products)) == (at == j + k)


def test_equal_points_are_refused() -> None:
    with pytest.raises(ValueError, match="different points"):
        filtering(2, 3, (0, 1, 1))


@pytest.mark.cpu
@pytest.mark.parametrize("isa", ["avx512", "avx2"])
@pytest.mark.parametrize("form", FORMS)
def test_every_form(isa: str, form: str) -> None:
    layout = LAYOUTS[isa][1]
    site = make_site(**FORMS[form], layout_in=layout, layout_out=layout)
    for threads in (1, 2, 3):
        check(TACTIC, site, isa, threads=threads, points=POINTS)


@pytest.mark.cpu
@pytest.mark.parametrize("isa", ["avx512", "avx2"])
@pytest.mark.parametrize("epilogue", EPILOGUES)
def test_every_epilogue_at_any_batch(isa: str, epilogue: str) -> None:
    layout = LAYOUTS[isa][1]
    form = {"x": (2, 16, 9, 10), "w": (40, 16, 3, 3), "pads": (1, 1, 1, 1)}
    site = with_epilogue(form, epilogue, layout, layout, batch=2)
    for batch, threads in ((1, 2), (3, 3)):
        check(TACTIC, site, isa, batch, threads, POINTS, least=40.0)


@pytest.mark.cpu
def test_a_long_epilogue() -> None:
    steps = [("Sigmoid", (-1,), {}), ("Mul", (-1, -2), {}), ("Add", (-3, 3), {}), ("Relu", (-4,), {})]
    form = {"x": (1, 16, 9, 10), "w": (16, 16, 3, 3), "pads": (1, 1, 1, 1)}
    extra = Operand(TensorType(F32, (1, 16, 9, 10), "c16"))
    site = make_site(**form, layout_in="c16", layout_out="c16", epilogue=steps, extras=[extra])
    check(TACTIC, site, "avx512", threads=2, points=POINTS)


@pytest.mark.parametrize("form", FORMS)
def test_it_compiles_for_an_absent_instruction_set(form: str) -> None:
    target = target_for("neon")
    site = make_site(**FORMS[form], layout_in="c8", layout_out="c8")
    assert TACTIC.declines(site, target) is None
    for params in itertools.islice(TACTIC.space(site, target), 2):
        assert "fmla" in assembly(TACTIC.emit(site, params, target), target)


@pytest.mark.cpu
@pytest.mark.parametrize(("change", "why"), [
    ({"strides": (2, 2)}, "3x3"), ({"dilations": (2, 2)}, "3x3"), ({"w": (32, 16, 3, 1)}, "3x3"),
    ({"group": 2, "x": (1, 32, 14, 14)}, "groups"), ({"layout_in": ""}, "plain"), ({"dtype": F64}, "f64"),
    ({"x": (1, 16, 4, 14, 14), "w": (32, 16, 1, 3, 3), "pads": (0, 1, 1, 0, 1, 1)}, "3x3")])
def test_what_it_declines(change, why: str) -> None:
    form = {**FORMS["same"], "layout_in": "c16", "layout_out": "c16", **change}
    assert why in (TACTIC.declines(make_site(**form), host_target(1, "avx512")) or "")


@pytest.mark.cpu
@pytest.mark.parametrize(("size", "times"), [(2, 1), (4, 4), (6, 20)])
def test_the_error_beside_direct_sums(size: int, times: float) -> None:
    """Largest error over that of the direct kernel, both against f64."""
    target = host_target(2, "avx2")
    form = {"x": (1, 64, 26, 26), "w": (64, 64, 3, 3), "pads": (1, 1, 1, 1), "bias": False}
    site = make_site(**form, layout_in="c8", layout_out="c8")
    rng = np.random.default_rng(3)
    x, w = (rng.standard_normal(form[k]).astype(np.float32) for k in "xw")
    want = convolved(x, w, convolution_window((site.inputs[0].type, site.inputs[1].type), site.attrs), 1)

    def error(tactic, params) -> float:
        kernel = tactic.emit(site, params, target)
        got, = run_logical(kernel, site, target, [x, w], {}, 2, dict(tactic.pack(site, params, target, {1: w})))
        return float(np.abs(got - want).max())

    direct = next(t for t in TACTICS["x86"] if t.name == "x86.conv_direct_blocked")
    point = next(p for p in TACTIC.space(site, target) if p["size"] == size)
    assert error(TACTIC, point) <= times * error(direct, next(iter(direct.space(site, target))))


@pytest.mark.cpu
@pytest.mark.parametrize(("side", "sizes"), [(7, {2, 4}), (28, {2, 4}), (200, {2, 4, 6})])
def test_the_largest_tiles_are_for_large_images(side: int, sizes: set[int]) -> None:
    site = make_site(x=(1, 64, side, side), w=(64, 64, 3, 3), pads=(1, 1, 1, 1), layout_in="c16", layout_out="c16")
    found = list(WinogradConvolution().space(site, host_target(2, "avx512")))
    assert {p["size"] for p in found} == sizes
    assert len(found) <= POINTS


# --- exact builds ---------------------------------------------------------------------------------------------------

SITE = make_site(**FORMS["same"], layout_in="c16", layout_out="c16")


def program() -> Program:
    rng = np.random.default_rng(0)
    names = ("x", "w", "b")
    constants = {n: rng.standard_normal(o.type.shape).astype(np.float32)
                 for n, o in zip(names, SITE.inputs, strict=True) if o.constant}
    types = {**{n: o.type for n, o in zip(names, SITE.inputs, strict=True)}, "y": SITE.output}
    return Program(("x",), ("y",), (Launch(SITE, names, ("y",)),), {}, constants, types)


@pytest.mark.cpu
def test_an_exact_race_leaves_winograd_out(tmp_path: Path) -> None:
    target = host_target(2, "avx512")
    assert TACTIC.name in [t.name for t in able(SITE, target)[0]]
    willing, reasons = able(SITE, target, exact=True)
    assert TACTIC.name not in [t.name for t in willing]
    assert f"{TACTIC.name}: it is not exact" in reasons
    raced, exact = (tune(program(), target, CpuDevice(target), exact=e).choices[SITE.key] for e in (False, True))
    assert any(t.tactic == TACTIC.name and t.seconds for t in raced.trials)
    assert all(t.tactic != TACTIC.name for t in exact.trials)
    assert exact.tactic != TACTIC.name


@pytest.mark.cpu
def test_an_exact_build_takes_no_winograd_from_the_cache(tmp_path: Path) -> None:
    target = host_target(2, "avx512")
    cache = TuningCache(tmp_path, target, "v")
    cache.put(Choice(SITE.key, TACTIC.name, dict(next(iter(TACTIC.space(SITE, target)))), 1e-6, True))
    assert tune(program(), target, None, cache).choices[SITE.key].tactic == TACTIC.name
    assert tune(program(), target, None, cache, exact=True).choices[SITE.key].tactic == "x86.conv_direct_blocked"
