"""Forms of sites that lowering makes and samples do not have: fused steps, strides, layouts, symbols, odd modes."""
from __future__ import annotations

from itertools import islice

import numpy as np
import pytest
from kernel_checks import POINTS, check, site_of, targets

from ingot.graph import BF16, BOOL, F16, F32, F64, I32, I64, U8, DType, Symbol, TensorType, symbol
from ingot.kernels import TACTICS, Operand, Site, Step
from ingot.runtime.harness import run_logical

pytestmark = pytest.mark.cpu
N = symbol("N")
S = symbol("S")
SYMBOLS = (Symbol("N", 1, 2, 8), Symbol("S", 1, 40, 64))


def t(*shape: object, layout: str = "", dtype: DType = F32) -> TensorType:
    return TensorType(dtype, shape, layout)      # type: ignore[arg-type]


def step(op: str, *inputs: int | None, t: TensorType, **attrs: object) -> Step:
    return Step(op, inputs, tuple(sorted(attrs.items())), (t,))


def agree(site: Site, sizes: dict[str, int] | None = None, name: str = "", special: bool = False) -> None:
    """Some tactic serves the site, and every one that does agrees with the reference."""
    rng = np.random.default_rng(5)
    given = [rng.uniform(0.1, 1, o.type.shape).astype(np.float32) if o.constant else None for o in site.inputs]
    for target in targets().values():
        willing = [x for x in TACTICS["x86"] if x.declines(site, target) is None]
        assert willing, [f"{x.name}: {x.declines(site, target)}" for x in TACTICS["x86"]]
        assert not name or name in {x.name for x in willing}
        for tactic in willing:
            for params in islice(tactic.space(site, target), POINTS):
                check(tactic, site, params, target, given, {"N": 2, "S": 9, **(sizes or {})}, special=special)


def pointwise_sites() -> dict[str, Site]:
    x, row, col = t(N, 7, 33), t(33), t(7, 1)
    b, gate, bias = t(2, 40, 5, 7, layout="c16"), t(2, 40, 1, 1, layout="c16"), t(1, 40, 1, 1)
    h = t(N, 5, 9, dtype=F16)
    return {
        "silu": Site((step("Sigmoid", 0, t=x), step("Mul", 0, ~0, t=x)), (Operand(x),), (Operand(x),), SYMBOLS),
        "rows and columns": Site((step("Add", 0, 1, t=x), step("Mul", ~0, 2, t=x), step("Gelu", ~1, t=x)),
                                 (Operand(x), Operand(row), Operand(col)), (Operand(x),), SYMBOLS),
        "into a wider buffer": Site((step("Relu", 0, t=x),), (Operand(x),), (Operand(x, (700, 100, 1)),), SYMBOLS),
        "from a wider buffer": Site((step("Relu", 0, t=x),), (Operand(x, (700, 100, 1)),), (Operand(x),), SYMBOLS),
        "one column of a wider buffer": Site((step("Identity", 0, t=t(N, 7, 1)),), (Operand(t(N, 7, 1)),),
                                             (Operand(t(N, 7, 1), (21, 3, 1)),), SYMBOLS),
        "blocked": Site((step("Mul", 0, 1, t=b), step("Add", ~0, 2, t=b), step("HardSwish", ~1, t=b)),
                        (Operand(b), Operand(gate), Operand(bias, constant=True)), (Operand(b),)),
        "blocked, symbolic plane": Site((step("Add", 0, 1, t=t(N, 20, S, S, layout="c8")),),
                                        (Operand(t(N, 20, S, S, layout="c8")), Operand(t(20, 1, 1), constant=True)),
                                        (Operand(t(N, 20, S, S, layout="c8")),), SYMBOLS),
        "blocked, by position": Site((step("Mul", 0, 1, t=b),), (Operand(b), Operand(t(5, 7))), (Operand(b),)),
        "symbolic rows": Site((step("Add", 0, 1, t=t(N, S)),), (Operand(t(N, S)), Operand(t(N, 1))),
                              (Operand(t(N, S)),), SYMBOLS),
        "mask": Site((step("Where", 0, 1, 2, t=t(N, 3, S, S)),),
                     (Operand(t(1, 1, S, S, dtype=BOOL)), Operand(t(N, 3, S, S)), Operand(t(), constant=True)),
                     (Operand(t(N, 3, S, S)),), SYMBOLS),
        "halves": Site((step("Add", 0, 0, t=h), step("Tanh", ~0, t=h)), (Operand(h),), (Operand(h),), SYMBOLS),
        "brain floats": Site((step("Mul", 0, 1, t=t(N, 9, dtype=BF16)),), (Operand(t(N, 9, dtype=BF16)),
                             Operand(t(9, dtype=BF16))), (Operand(t(N, 9, dtype=BF16)),), SYMBOLS),
        "through integers": Site((step("Cast", 0, t=t(N, 40, dtype=I32), to="i32"),
                                  step("Mul", ~0, ~0, t=t(N, 40, dtype=I32)), step("Cast", ~1, t=t(N, 40), to="f32")),
                                 (Operand(t(N, 40)),), (Operand(t(N, 40)),), SYMBOLS),
        "bytes": Site((step("Max", 0, 1, t=t(N, 100, dtype=U8)),), (Operand(t(N, 100, dtype=U8)),
                      Operand(t(100, dtype=U8))), (Operand(t(N, 100, dtype=U8)),), SYMBOLS),
        "normalised per channel": Site(
            (step("BatchNormalization", 0, 1, 2, 3, 4, t=b), step("Relu", ~0, t=b)),
            (Operand(b), *(Operand(t(40), constant=True),) * 4), (Operand(b),)),
    }


@pytest.mark.parametrize("name", list(pointwise_sites()))
@pytest.mark.parametrize("sizes", [(1, 1), (3, 37), (2, 64)])
def test_pointwise_regions(name: str, sizes: tuple[int, int]) -> None:
    site = pointwise_sites()[name]
    agree(site, dict(zip(("N", "S"), sizes, strict=True)), "x86.pointwise")


def row_sites(n: object) -> dict[str, Site]:
    """Softmax and normalisations over rows of n elements."""
    x, row = t(N, 3, n), t(n)
    scale, bias = Operand(row, constant=isinstance(n, int)), Operand(row, constant=isinstance(n, int))
    mask = Operand(t(N, 1, n))
    return {
        "softmax of a masked, scaled score": Site(
            (step("Mul", 0, 1, t=x), step("Add", ~0, 2, t=x), step("Softmax", ~1, t=x, axis=-1)),
            (Operand(x), Operand(t()), mask), (Operand(x),), SYMBOLS, 2),
        "softmax, then a product": Site((step("Softmax", 0, t=x, axis=2), step("Mul", ~0, 1, t=x)),
                                        (Operand(x), mask), (Operand(x),), SYMBOLS),
        "log-softmax of a sum": Site((step("Add", 0, 0, t=x), step("LogSoftmax", ~0, t=x, axis=-1)),
                                     (Operand(x),), (Operand(x),), SYMBOLS, 1),
        "residual, then layer norm": Site(
            (step("Add", 0, 1, t=x), step("LayerNormalization", ~0, 2, 3, t=x, axis=-1)),
            (Operand(x), Operand(x), scale, bias), (Operand(x),), SYMBOLS, 1),
        "layer norm, then Gelu": Site(
            (step("LayerNormalization", 0, 1, 2, t=x, axis=-1), step("Gelu", ~0, t=x)),
            (Operand(x), scale, bias), (Operand(x),), SYMBOLS),
        "rms norm of a residual": Site((step("Add", 0, 1, t=x), step("RMSNormalization", ~0, 2, t=x, epsilon=1e-6)),
                                       (Operand(x), Operand(x), scale), (Operand(x),), SYMBOLS, 1),
        "layer norm into a wider buffer": Site(
            (step("LayerNormalization", 0, 1, 2, t=x, axis=-1),), (Operand(x), scale, bias),
            (Operand(x, (10000, 3000, 1)),), SYMBOLS),
    }


@pytest.mark.parametrize("name", list(row_sites(8)))
@pytest.mark.parametrize("n", [1, 7, 16, 65, 197, 768, 1000])
def test_rows(name: str, n: int) -> None:
    agree(row_sites(n)[name], {"N": 2})


@pytest.mark.parametrize("name", list(row_sites(8)))
def test_rows_of_symbolic_length(name: str) -> None:
    for s in (1, 16, 50):
        agree(row_sites(S)[name], {"N": 2, "S": s})


def test_softmax_of_infinities_and_nan() -> None:
    agree(site_of("Softmax", ((t(9, 40),), {}))[0], special=True)
    agree(site_of("Softmax", ((t(9, 5000),), {}))[0], special=True)


def test_a_long_sum_is_accurate() -> None:
    site, _ = site_of("ReduceSum", ((t(1 << 20),), {"keepdims": 0}))
    x = np.random.default_rng(0).uniform(0, 1, 1 << 20).astype(np.float32)
    for target in targets().values():
        tactic = next(x for x in TACTICS["x86"] if x.declines(site, target) is None)
        got = run_logical(tactic.emit(site, {}, target), site, target, [x])[0]
        assert abs(float(got) / x.astype(np.float64).sum() - 1) < 5e-7


REDUCTIONS = [((N, 5, 7), (0,)), ((N, 5, 7), (1,)), ((N, 5, 7), (0, 2)), ((N, S, 33), (1,)), ((N, S, 33), (2,)),
              ((N, S), (1,)), ((300, 17), (0,)), ((2, 3, 4, 5, 6), (1, 3))]


@pytest.mark.parametrize("op", ["ReduceMean", "ReduceMax", "ReduceLogSumExp", "ReduceL2"])
@pytest.mark.parametrize(("shape", "axes"), REDUCTIONS)
def test_reductions(op: str, shape: tuple, axes: tuple[int, ...]) -> None:
    x = t(*shape)
    out = t(*(1 if a in axes else d for a, d in enumerate(shape)))
    site = Site((step(op, 0, t=out, axes=axes), step("Mul", ~0, 1, t=out)), (Operand(x), Operand(t())), (Operand(out),),
                SYMBOLS)
    agree(site, {"N": 3, "S": 20})
    plain = Site((step(op, 0, t=out, axes=axes),), (Operand(x),), (Operand(out),), SYMBOLS)
    agree(plain, {"N": 1, "S": 40}, special=op == "ReduceMax")


@pytest.mark.parametrize("channels", [3, 16, 24, 33])
@pytest.mark.parametrize("op", ["GlobalAveragePool", "GlobalMaxPool"])
def test_the_plane_of_blocks_is_pooled_to_plain_channels(op: str, channels: int) -> None:
    for layout in ("c16", "c8"):
        out = t(N, channels, 1, 1)
        agree(Site((step(op, 0, t=out),), (Operand(t(N, channels, 5, 7, layout=layout)),), (Operand(out),), SYMBOLS),
              {"N": 2}, "x86.reduction")


def test_the_pooled_plane_with_steps_after_it() -> None:
    for channels, layout in ((32, "c16"), (19, "c16"), (19, "c8"), (19, "")):
        out = t(N, channels, 1, 1)
        agree(Site((step("GlobalAveragePool", 0, t=out), step("Mul", ~0, 1, t=out), step("Sigmoid", ~1, t=out)),
                   (Operand(t(N, channels, 3, 4, layout=layout)), Operand(t(channels, 1, 1))), (Operand(out),),
                   SYMBOLS))


def test_pooling_with_steps_after_it() -> None:
    for layout, channels in (("", 5), ("c16", 32), ("c8", 24), ("c16", 19)):
        x, y = t(N, channels, 11, 9, layout=layout), t(N, channels, 6, 5, layout=layout)
        pool = step("MaxPool", 0, t=y, kernel_shape=(3, 3), strides=(2, 2), pads=(1, 1, 1, 1))
        agree(Site((pool, step("Add", ~0, 1, t=y), step("Relu", ~1, t=y)), (Operand(x), Operand(y)), (Operand(y),),
                   SYMBOLS), {"N": 2}, "x86.pooling")


def test_pooling_of_a_symbolic_plane() -> None:
    for layout in ("", "c16"):
        x, y = t(N, 16, S, S, layout=layout), t(N, 16, (S - 1) // 2 + 1, (S - 1) // 2 + 1, layout=layout)
        site = Site((step("AveragePool", 0, t=y, kernel_shape=(3, 3), strides=(2, 2), pads=(1, 1, 1, 1)),),
                    (Operand(x),), (Operand(y),), SYMBOLS)
        for s in (1, 2, 13, 40):
            agree(site, {"N": 2, "S": s}, "x86.pooling")


RESIZES = [{"mode": "cubic", "sizes": (1, 3, 9, 4), "exclude_outside": 1},
           {"mode": "cubic", "scales": (1.0, 1.0, 0.6, 1.7), "cubic_coeff_a": -0.5},
           {"mode": "linear", "sizes": (1, 3, 2, 3), "antialias": 1},
           {"mode": "cubic", "sizes": (1, 3, 3, 3), "antialias": 1},
           {"mode": "linear", "scales": (1.0, 1.0, 2.0, 2.0), "coordinate_transformation_mode": "half_pixel_symmetric"},
           *({"mode": "nearest", "sizes": (1, 3, 9, 5), "nearest_mode": m, "coordinate_transformation_mode": c}
             for m in ("round_prefer_floor", "round_prefer_ceil", "floor", "ceil")
             for c in ("half_pixel", "asymmetric", "align_corners"))]


@pytest.mark.parametrize("attrs", RESIZES, ids=str)
def test_resize_modes(attrs: dict) -> None:
    agree(site_of("Resize", ((t(1, 3, 6, 7),), attrs))[0], {}, "x86.resample")
    if "exclude_outside" not in attrs:
        agree(site_of("Resize", ((t(1, 3, 6, 7, layout="c8"),), attrs))[0], {}, "x86.resample")


@pytest.mark.parametrize("mode", ["reflect", "edge", "wrap"])
def test_pad_modes(mode: str) -> None:
    agree(site_of("Pad", ((t(2, 3, 5, 7),), {"mode": mode, "pads": (0, 1, 3, 2, 1, 0, 4, 6)}))[0], {}, "x86.resample")
    agree(site_of("Pad", ((t(4, 7, dtype=I64),), {"mode": mode, "pads": (2, 3), "axes": (1,)}))[0], {}, "x86.resample")
    agree(site_of("Pad", ((t(4, 7, dtype=U8),), {"mode": mode, "pads": (2, 3), "axes": (1,)}))[0], {}, "x86.resample")


PERMUTATIONS = [
    ((N, 5, 33), (0, 2, 1)), ((40, 70), (1, 0)), ((N, 3, 20, 17), (0, 2, 3, 1)), ((N, 20, 17, 3), (0, 3, 1, 2)),
    ((N, S, 4, 16), (0, 2, 1, 3)), ((S, N), (1, 0)), ((2, 3, 4, 5, 6), (4, 2, 0, 3, 1)), ((32, 64), (1, 0))]


@pytest.mark.parametrize(("shape", "perm"), PERMUTATIONS)
@pytest.mark.parametrize("dtype", [F32, I64, F16, U8])
def test_permutations(shape: tuple, perm: tuple[int, ...], dtype: DType) -> None:
    x, y = t(*shape, dtype=dtype), t(*(shape[a] for a in perm), dtype=dtype)
    site = Site((step("Transpose", 0, t=y, perm=perm),), (Operand(x),), (Operand(y),), SYMBOLS)
    for n, s in ((1, 1), (3, 37), (8, 64)):
        agree(site, {"N": n, "S": s}, "x86.transpose")


@pytest.mark.parametrize(("source", "result"), [("", "c16"), ("c16", ""), ("", "c8"), ("c8", ""), ("c8", "c16"),
                                                ("c16", "c8")])
@pytest.mark.parametrize("channels", [3, 8, 16, 17, 40])
def test_reorders(source: str, result: str, channels: int) -> None:
    for plane, dtype in (((S, 7), F32), ((5,), F32), ((4, 4), F32), ((S, 3), F16)):
        x, y = t(N, channels, *plane, layout=source, dtype=dtype), t(N, channels, *plane, layout=result, dtype=dtype)
        site = Site((step("Reorder", 0, t=y, layout=result),), (Operand(x),), (Operand(y),), SYMBOLS)
        for s in (1, 9, 16):
            agree(site, {"N": 2, "S": s}, "x86.reorder")


def test_positions_outside_the_axis_are_clamped() -> None:
    """Such a model is in error; the kernel must still stay inside its buffers, and does what its docstring says."""
    x = np.arange(30, dtype=np.float32).reshape(6, 5)
    far = np.array([-100, -7, -6, 5, 6, 1 << 40, -(1 << 40)])
    site, _ = site_of("Gather", ((t(6, 5), t(7, dtype=I64)), {}))
    for target in targets().values():
        tactic = next(x for x in TACTICS["x86"] if x.declines(site, target) is None)
        got = run_logical(tactic.emit(site, {}, target), site, target, [x, far])[0]
        assert np.array_equal(got, x[[0, 0, 0, 5, 5, 5, 0]])


def test_gather_of_a_symbolic_table() -> None:
    x, at, y = t(S, 24), t(N, 7, dtype=I64), t(N, 7, 24)
    site = Site((step("Gather", 0, 1, t=y, axis=0),), (Operand(x), Operand(at)), (Operand(y),), SYMBOLS)
    agree(site, {"N": 3, "S": 30}, "x86.gather")


@pytest.mark.parametrize("attrs", [{"starts": (0, 1), "ends": (9, 99), "axes": (1, 2), "steps": (2, 3)},
                                   {"starts": (-1,), "ends": (-99,), "axes": (2,), "steps": (-2,)}])
@pytest.mark.parametrize("dtype", [F32, I64, F16, U8])
def test_slices(attrs: dict, dtype: DType) -> None:
    agree(site_of("Slice", ((t(3, 9, 40, dtype=dtype),), attrs))[0], {}, "x86.copy")


def test_a_counted_loop_of_three_turns() -> None:
    """LLVM's NewGVN takes a wrong turn here: it must not be among the compiler's passes."""
    attrs = {"kernel_shape": (3,), "pads": (1, 2), "strides": (1,)}
    agree(site_of("LpPool", ((t(1, 16, 14, layout="c16"),), attrs))[0], {}, "x86.pooling")


@pytest.mark.parametrize("attrs", [{"k": (5,)}, {"k": (9,), "largest": 0}, {"k": (3,), "axis": 0}])
@pytest.mark.parametrize("op", ["TopK", "ArgMax", "ArgMin"])
def test_order_among_nan_zeros_and_infinities(op: str, attrs: dict) -> None:
    attrs = attrs if op == "TopK" else {"axis": attrs.get("axis", 1)}
    agree(site_of(op, ((t(9, 40),), attrs))[0], special=True)
    agree(site_of(op, ((t(9, 40, dtype=F64),), attrs))[0], special=True)


def test_nan_stays_where_it_is_in_a_resize_by_nearest() -> None:
    agree(site_of("Resize", ((t(2, 3, 6, 7),), {"scales": (1.0, 1.0, 2.0, 3.0)}))[0], special=True)
