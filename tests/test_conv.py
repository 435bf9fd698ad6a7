"""Convolutions: forms x layouts x tactics, epilogues, dynamic sizes, thread counts; against numpy."""
from __future__ import annotations

import itertools

import numpy as np
import pytest

from ingot.graph import F32, F64, Symbol, TensorType, evaluate, symbol
from ingot.kernels import Operand, Site, Step, Tactic
from ingot.kernels.codegen import target_for
from ingot.kernels.x86.conv_depthwise import DepthwiseConvolution
from ingot.kernels.x86.conv_direct import DirectConvolution, ProductConvolution, StemConvolution
from ingot.kernels.x86.conv_im2col import Im2colConvolution
from ingot.kernels.x86.conv_plain import PlainConvolution
from ingot.kernels.x86.conv_transposed import TransposedConvolution
from ingot.ops import OPS
from ingot.ops.convolution import convolution_window, transposed_window
from ingot.runtime.compiler import assembly
from ingot.runtime.harness import run_logical
from ingot.runtime.host import host_target

TACTICS: tuple[Tactic, ...] = (DirectConvolution(), ProductConvolution(), StemConvolution(), DepthwiseConvolution(),
                              TransposedConvolution(), Im2colConvolution(), PlainConvolution())


def convolved(x: np.ndarray, w: np.ndarray, window, groups: int) -> np.ndarray:
    """Conv in f64, tap by tap."""
    x, w = x.astype(np.float64), w.astype(np.float64)
    spatial = [tuple(map(int, p)) for p in zip(window.begins, window.ends, strict=True)]
    padded = np.pad(x, [(0, 0), (0, 0), *spatial])
    out = [(n - window.extent(i)) // window.strides[i] + 1 for i, n in enumerate(padded.shape[2:])]
    n, (m, depth) = x.shape[0], w.shape[:2]
    y = np.zeros((n, groups, m // groups, *out))
    wg = w.reshape(groups, m // groups, depth, *w.shape[2:])
    for tap in itertools.product(*map(range, w.shape[2:])):
        at = tuple(slice(t * d, t * d + (o - 1) * s + 1, s)
                   for t, d, o, s in zip(tap, window.dilations, out, window.strides, strict=True))
        part = padded[(slice(None), slice(None), *at)].reshape(n, groups, depth, *out)
        y += np.einsum("ngk...,gmk->ngm...", part, wg[(..., *tap)])
    return y.reshape(n, m, *out)


def transposed(x: np.ndarray, w: np.ndarray, window, groups: int, out: tuple[int, ...]) -> np.ndarray:
    """ConvTranspose in f64, tap by tap: scattered into the full result, then cut."""
    x, w = x.astype(np.float64), w.astype(np.float64)
    n, c = x.shape[:2]
    m = w.shape[1]
    size = [b + o + window.extent(i) + window.strides[i] * x.shape[2 + i]
            for i, (b, o) in enumerate(zip(window.begins, out, strict=True))]
    full = np.zeros((n, groups, m, *size))
    xg, wg = x.reshape(n, groups, c // groups, *x.shape[2:]), w.reshape(groups, c // groups, m, *w.shape[2:])
    for tap in itertools.product(*map(range, w.shape[2:])):
        at = tuple(slice(t * d, t * d + (i - 1) * s + 1, s)
                   for t, d, i, s in zip(tap, window.dilations, x.shape[2:], window.strides, strict=True))
        full[(slice(None), slice(None), slice(None), *at)] += np.einsum("ngk...,gkm->ngm...", xg, wg[(..., *tap)])
    cut = tuple(slice(b, b + o) for b, o in zip(map(int, window.begins), out, strict=True))
    return full[(slice(None), slice(None), slice(None), *cut)].reshape(n, groups * m, *out)


def make_site(x, w, *, bias=True, op="Conv", layout_in="", layout_out="", dtype=F32, epilogue=(), extras=(), batch=None,
              constant=True, free=False, **attrs) -> Site:
    """A site of one convolution: x and w are shapes, `epilogue` (op, inputs, attrs) after it, `extras` operands."""
    attrs = {k: v for k, v in attrs.items() if v is not None}
    if layout_out:
        attrs["layout"] = layout_out
    shape = (symbol("N"), *x[1:]) if batch else tuple(x)
    if free:
        shape = (*shape[:2], *(symbol(f"S{i}") for i in range(len(x) - 2)))
    types = [TensorType(dtype, shape, layout_in), TensorType(dtype, tuple(w))]
    groups = attrs.get("group", 1)
    channels = w[1] * groups if op == "ConvTranspose" else w[0]
    if bias:
        types.append(TensorType(dtype, (channels,)))
    full = {**OPS[op].attrs, **attrs}
    out, = OPS[op].infer(tuple(types), full, 1)
    inputs = tuple(Operand(t, None, i > 0 and constant) for i, t in enumerate(types))
    steps = [Step(op, (0, 1, 2) if bias else (0, 1), tuple(sorted(attrs.items())), (out,))]
    steps += [Step(name, args, tuple(sorted(more.items())), (out,)) for name, args, more in epilogue]
    symbols = (Symbol("N", 1, batch, 4 * batch),) if batch else ()
    symbols += tuple(Symbol(f"S{i}", 1, n, 4 * n) for i, n in enumerate(x[2:])) if free else ()
    return Site(tuple(steps), inputs + tuple(extras), (Operand(out),), symbols)


def expected(site: Site, arrays: list[np.ndarray], bindings) -> np.ndarray:
    step, attrs = site.step, {**OPS[site.op].attrs, **site.attrs}
    types = (site.inputs[0].type.at(bindings), site.inputs[1].type)
    groups = attrs["group"]
    if site.op == "Conv":
        y = convolved(arrays[0], arrays[1], convolution_window(types, attrs), groups)
    else:
        out = tuple(evaluate(d, bindings) for d in step.types[0].shape[2:])
        y = transposed(arrays[0], arrays[1], transposed_window(types, attrs)[0], groups, out)
    if len(step.inputs) > 2:
        y += arrays[2].astype(np.float64).reshape(-1, *(1,) * (y.ndim - 2))
    made = [y]
    for s in site.epilogue:
        args = [arrays[i].astype(np.float64) if i >= 0 else made[~i] for i in s.inputs]
        made.append({"Relu": lambda a: np.maximum(a, 0), "Add": lambda a, b: a + b, "Mul": lambda a, b: a * b,
                     "Sigmoid": lambda a: 1 / (1 + np.exp(-a)), "Clip": lambda a, b, c: np.clip(a, b, c)}[s.op](*args))
    return made[-1]


def check(tactic: Tactic, site: Site, isa: str, batch: int = 1, threads: int = 1, points: int = 3,
          least: float = 1.0, sizes: dict[str, int] | None = None) -> None:
    """Errors count beside the largest number of the result, or `least` (of what is clipped away)."""
    target = host_target(threads, isa)
    assert tactic.declines(site, target) is None
    bindings = {s.name: s.opt for s in site.symbols} | {"N": batch} | dict(sizes or {})
    rng = np.random.default_rng(1)
    arrays = [rng.standard_normal([evaluate(d, bindings) for d in o.type.shape]).astype(o.type.dtype.numpy)
              for o in site.inputs]
    want = expected(site, arrays, bindings)
    constants = {i: arrays[i] for i, o in enumerate(site.inputs) if o.constant}
    for params in itertools.islice(tactic.space(site, target), points):
        kernel = tactic.emit(site, params, target)
        packed = dict(tactic.pack(site, params, target, constants))
        got, = run_logical(kernel, site, target, arrays, bindings, threads, packed)
        assert got.shape == want.shape
        scale = 1e-5 if site.output.dtype == F32 else 1e-12
        worst = np.abs(got - want).max() / max(least, np.abs(want).max())
        assert worst < scale * 4, f"{tactic.name} {dict(params)}: off by {worst}"


def _form(**form):
    return form


FORMS = {
    "3x3": _form(x=(1, 3, 9, 11), w=(5, 3, 3, 3)),
    "same": _form(x=(2, 16, 14, 14), w=(32, 16, 3, 3), pads=(1, 1, 1, 1)),
    "stem": _form(x=(1, 3, 32, 30), w=(40, 3, 7, 7), strides=(2, 2), pads=(3, 3, 3, 3), bias=False),
    "1x1": _form(x=(2, 33, 7, 9), w=(17, 33, 1, 1)),
    "1x1 stride": _form(x=(1, 24, 14, 14), w=(64, 24, 1, 1), strides=(2, 2)),
    "uneven": _form(x=(1, 8, 10, 13), w=(24, 8, 3, 3), strides=(2, 1), pads=(0, 1, 2, 1)),
    "dilated": _form(x=(1, 40, 15, 15), w=(12, 40, 3, 3), dilations=(2, 3), pads=(2, 3, 2, 3)),
    "wide": _form(x=(1, 17, 3, 70), w=(80, 17, 1, 3), pads=(0, 1, 0, 1)),
    "all": _form(x=(2, 32, 5, 5), w=(48, 32, 5, 5)),
    "1d": _form(x=(2, 16, 40), w=(32, 16, 9), strides=(3,), dilations=(2,), pads=(4, 3)),
    "3d": _form(x=(1, 16, 4, 5, 6), w=(24, 16, 3, 2, 3), strides=(1, 1, 2), pads=(1, 0, 1, 1, 1, 1)),
    "upper": _form(x=(1, 16, 9, 9), w=(24, 16, 3, 3), auto_pad="SAME_UPPER", strides=(2, 2)),
    "lower": _form(x=(1, 16, 9, 9), w=(24, 16, 2, 2), auto_pad="SAME_LOWER"),
    "far pads": _form(x=(1, 16, 3, 3), w=(16, 16, 3, 3), pads=(4, 3, 5, 4)),
}
GROUPED = {
    "groups": _form(x=(1, 12, 8, 8), w=(24, 4, 3, 3), group=3, pads=(1, 1, 1, 1)),
    "big groups": _form(x=(2, 32, 7, 7), w=(64, 16, 3, 3), group=2, pads=(1, 1, 1, 1)),
    "resnext": _form(x=(1, 32, 6, 6), w=(32, 4, 3, 3), group=8, pads=(1, 1, 1, 1)),
}
DEPTHWISE = {
    "3x3": _form(x=(2, 16, 9, 9), w=(16, 1, 3, 3), group=16, pads=(1, 1, 1, 1)),
    "3x3 stride": _form(x=(1, 35, 13, 10), w=(35, 1, 3, 3), group=35, strides=(2, 2), pads=(1, 1, 1, 1)),
    "5x5": _form(x=(1, 24, 28, 28), w=(24, 1, 5, 5), group=24, pads=(2, 2, 2, 2)),
    "wide": _form(x=(1, 17, 3, 70), w=(17, 1, 3, 3), group=17, pads=(1, 1, 1, 1)),
    "dilated": _form(x=(1, 32, 12, 12), w=(32, 1, 3, 3), group=32, dilations=(2, 2), pads=(2, 2, 2, 2)),
    "uneven": _form(x=(1, 8, 7, 9), w=(8, 1, 2, 3), group=8, strides=(1, 2), pads=(0, 2, 1, 0)),
    "1d": _form(x=(2, 24, 30), w=(24, 1, 5), group=24, pads=(4, 0)),
    "3d": _form(x=(1, 24, 4, 5, 6), w=(24, 1, 3, 3, 3), group=24, pads=(1, 1, 1, 1, 1, 1)),
}
MULTIPLIED = {"multiplied": _form(x=(1, 24, 8, 8), w=(48, 1, 5, 5), group=24, pads=(2, 2, 2, 2))}
TRANSPOSED = {
    "plain": _form(x=(1, 3, 5, 6), w=(3, 4, 3, 3)),
    "2x2": _form(x=(2, 16, 7, 7), w=(16, 8, 2, 2), strides=(2, 2)),
    "padded": _form(x=(1, 8, 6, 5), w=(8, 20, 3, 3), strides=(2, 2), pads=(1, 1, 1, 1), output_padding=(1, 1)),
    "gan": _form(x=(1, 24, 6, 6), w=(24, 17, 4, 4), strides=(2, 2), pads=(1, 1, 1, 1)),
    "groups": _form(x=(1, 6, 5, 5), w=(6, 2, 3, 3), group=3, strides=(2, 1)),
    "1d": _form(x=(1, 4, 9), w=(4, 5, 3), strides=(2,)),
    "3d": _form(x=(1, 2, 3, 4, 5), w=(2, 3, 2, 2, 2), strides=(2, 2, 2)),
    "dilated": _form(x=(1, 4, 6, 6), w=(4, 3, 3, 3), dilations=(2, 2), strides=(1, 3)),
    "uneven": _form(x=(1, 3, 5, 5), w=(3, 4, 3, 3), pads=(0, 1, 1, 0), bias=False),
    "depthwise": _form(x=(1, 8, 6, 6), w=(8, 1, 3, 3), group=8, strides=(2, 2)),
    "big": _form(x=(2, 32, 9, 7), w=(32, 48, 4, 4), strides=(2, 2), pads=(1, 1, 1, 1)),
    "gaps": _form(x=(1, 16, 5, 4), w=(16, 16, 2, 1), strides=(3, 4)),
    "big groups": _form(x=(1, 32, 5, 5), w=(32, 16, 3, 3), group=2, strides=(2, 3), dilations=(3, 2),
                        pads=(2, 1, 0, 3)),
    "shaped": _form(x=(1, 3, 5, 5), w=(3, 4, 3, 3), strides=(3, 2), output_shape=(15, 10)),
}
ISAS = ("avx512", "avx2")
LAYOUTS = {"avx512": ("", "c16"), "avx2": ("", "c8")}


def cases(forms):
    return [pytest.param(isa, a, b, form, id=f"{isa}-{a}-{b}-{name}") for name, form in forms.items() for isa in ISAS
            for a in LAYOUTS[isa] for b in LAYOUTS[isa]]


@pytest.mark.cpu
@pytest.mark.parametrize(("isa", "a", "b", "form"), cases({**FORMS, **{f"g {k}": v for k, v in GROUPED.items()},
                                                          **{f"d {k}": v for k, v in DEPTHWISE.items()}, **MULTIPLIED}))
def test_every_convolution(isa, a, b, form) -> None:
    site = make_site(**form, layout_in=a, layout_out=b)
    served = [t for t in TACTICS if t.declines(site, host_target(1, isa)) is None]
    assert served
    for threads, tactic in enumerate(served, 1):
        check(tactic, site, isa, threads=threads)


@pytest.mark.cpu
@pytest.mark.parametrize(("isa", "a", "b", "form"), cases(TRANSPOSED))
def test_every_transposed_convolution(isa, a, b, form) -> None:
    site = make_site(**form, op="ConvTranspose", layout_in=a, layout_out=b)
    for tactic in (t for t in TACTICS if t.declines(site, host_target(1, isa)) is None):
        check(tactic, site, isa, threads=2)


@pytest.mark.cpu
@pytest.mark.parametrize("name", ["same", "1x1", "dilated"])
def test_double_precision_and_weights_that_are_not_constant(name) -> None:
    for layout, more in itertools.product(("", "c16"), (_form(dtype=F64), _form(constant=False))):
        site = make_site(**FORMS[name], layout_in=layout, layout_out=layout, **more)
        for tactic in (t for t in TACTICS if t.declines(site, host_target(1, "avx512")) is None):
            check(tactic, site, "avx512")
    form = TRANSPOSED["gan"]
    for layout in ("", "c16"):
        check(PlainConvolution(), make_site(**form, op="ConvTranspose", layout_in=layout, layout_out=layout,
                                            constant=False), "avx512")


@pytest.mark.cpu
@pytest.mark.parametrize("width", [1, 3, 5])
def test_narrow_outputs_with_a_residual(width) -> None:
    form = _form(x=(2, 8, 6, width), w=(12, 8, 3, 1), pads=(1, 0, 1, 0))
    for layout in ("", "c16"):
        site = with_epilogue(form, "residual", layout, layout)
        for tactic in (t for t in TACTICS if t.declines(site, host_target(1, "avx512")) is None):
            check(tactic, site, "avx512", threads=2)


EPILOGUES = {
    "relu": ([("Relu", (-1,), {})], []),
    "residual": ([("Add", (-1, 3), {}), ("Relu", (-2,), {})], ["same"]),
    "clip": ([("Clip", (-1, 3, 4), {})], [(), ()]),
    "silu": ([("Sigmoid", (-1,), {}), ("Mul", (-1, -2), {})], []),
    "scale": ([("Mul", (-1, 3), {}), ("Add", (-2, 4), {}), ("Relu", (-3,), {})], ["channel", "channel*"]),
    "gate": ([("Mul", (-1, 3), {})], ["gate"]),
    "plane": ([("Add", (-1, 3), {})], ["plane"]),
}


def with_epilogue(form, name: str, a: str, b: str, batch: int | None = None) -> Site:
    steps, kinds = EPILOGUES[name]
    out = make_site(**form, layout_in=a, layout_out=b, batch=batch).output
    n, c, *spatial = out.shape
    types = {"same": TensorType(F32, out.shape, b), (): TensorType(F32, ()),
             "channel": TensorType(F32, (c, *(1 for _ in spatial))),
             "channel*": TensorType(F32, (1, c, *(1 for _ in spatial))),
             "gate": TensorType(F32, (n, c, *(1 for _ in spatial)), b),
             "plane": TensorType(F32, (n, 1, *spatial[:-1], 1 if not b else spatial[-1]))}
    extras = [Operand(types[k], None, k == "channel*") for k in kinds]
    return make_site(**form, layout_in=a, layout_out=b, epilogue=steps, extras=extras, batch=batch)


@pytest.mark.cpu
@pytest.mark.parametrize("epilogue", EPILOGUES)
@pytest.mark.parametrize(("isa", "a", "b", "form"), cases({"same": FORMS["same"], "1x1": FORMS["1x1"],
                                                          "depthwise": DEPTHWISE["3x3 stride"]}))
def test_every_epilogue_at_any_batch(isa, a, b, form, epilogue) -> None:
    site = with_epilogue(form, epilogue, a, b, batch=2)
    for threads, tactic in enumerate([t for t in TACTICS if t.declines(site, host_target(1, isa)) is None], 1):
        for batch in (1, 3):
            check(tactic, site, isa, batch, threads, points=2)


FREE = {"same": FORMS["same"], "stem": FORMS["stem"], "1x1": FORMS["1x1"], "1x1 stride": FORMS["1x1 stride"],
        "dilated": FORMS["dilated"], "1d": FORMS["1d"], "3d": FORMS["3d"], "depthwise": DEPTHWISE["3x3 stride"],
        "depthwise 5x5": DEPTHWISE["5x5"], "wide": DEPTHWISE["wide"]}


@pytest.mark.cpu
@pytest.mark.parametrize(("isa", "a", "b", "form"), cases(FREE))
def test_symbolic_spatial_sizes(isa, a, b, form) -> None:
    for epilogue in (None, "residual"):
        site = (make_site(**form, layout_in=a, layout_out=b, free=True) if epilogue is None
                else with_epilogue({**form, "bias": True, "free": True}, epilogue, a, b))
        for tactic in (t for t in TACTICS if t.declines(site, host_target(1, isa)) is None):
            check(tactic, site, isa, threads=2, points=2)
            check(tactic, site, isa, threads=3, points=1, sizes={s.name: s.opt + 7 for s in site.symbols})


@pytest.mark.parametrize("form", [FORMS["same"], FORMS["stem"], FORMS["1x1"], DEPTHWISE["3x3"], GROUPED["resnext"]])
def test_every_tactic_compiles_for_an_absent_instruction_set(form) -> None:
    target = target_for("neon")
    for a, b in itertools.product(("", "c8"), repeat=2):
        site = make_site(**form, layout_in=a, layout_out=b)
        for tactic in TACTICS:
            if tactic.declines(site, target) is None:
                assert "fmla" in assembly(tactic.emit(site, next(iter(tactic.space(site, target))), target), target)




def test_the_plain_tactic_leaves_to_others_what_they_take() -> None:
    target = host_target(1, "avx512")
    plain = PlainConvolution(*TACTICS[:-1])
    assert "x86.conv_im2col" in str(plain.declines(make_site(**FORMS["same"]), target))
    # a longer epilogue, or a strided result, than the fast tactic takes
    narrow = with_epilogue(FORMS["same"], "plane", "", "")
    assert "x86.conv_im2col" in str(plain.declines(narrow, target))
    assert plain.declines(make_site(**GROUPED["resnext"], layout_in="c16", layout_out="c16"), target) is None
    assert plain.declines(make_site(**FORMS["same"], constant=False), target) is None
