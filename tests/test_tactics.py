"""Every tactic, on every sample it will serve, against the reference: instruction sets, threads, symbolic batches."""
from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from functools import cache
from itertools import islice
from types import MappingProxyType

import numpy as np
import pytest

import ingot.kernels.x86  # noqa: F401 - registers the tactics
from ingot.graph import F32, Node, Symbol, TensorType, symbol, type_of
from ingot.kernels import TACTICS, Operand, Params, Site, Step, Tactic
from ingot.kernels.codegen import target_for
from ingot.ops import OPS, infer
from ingot.ops.op import Sample
from ingot.ops.reference import evaluate
from ingot.runtime.compiler import assembly
from ingot.runtime.harness import run_logical
from ingot.runtime.host import host_target
from ingot.target import Target

POINTS = 4          # points of each tactic's space that are tested


@cache
def targets() -> dict[str, Target]:
    host = host_target()
    found = {"avx2": dataclasses.replace(target_for("avx2"), threads=2)}
    if host.isa == "avx512":
        found["avx512"] = dataclasses.replace(host, threads=2)
    return found


def site_of(op: str, sample: Sample, layout: str = "") -> tuple[Site, list[np.ndarray | None]]:
    """The one-step site of a sample, and the constants it gives."""
    operands, attrs = sample
    types = tuple(type_of(x) if isinstance(x, np.ndarray) else x for x in operands)
    count = 1 if OPS[op].outputs != -1 else len(attrs.get("split") or range(int(attrs.get("num_outputs") or 1)))
    node = Node(op, tuple(f"x{i}" if t is not None else "" for i, t in enumerate(types)),
                tuple(f"y{i}" for i in range(count)), MappingProxyType(dict(attrs)))
    outs = infer(node, types)
    slots: list[int | None] = []
    inputs, given = [], []
    for x, t in zip(operands, types, strict=True):
        if t is None:
            slots.append(None)
            continue
        slots.append(len(inputs))
        inputs.append(Operand(t, constant=isinstance(x, np.ndarray)))
        given.append(x if isinstance(x, np.ndarray) else None)
    step = Step(op, tuple(slots), tuple(sorted(attrs.items())), outs)
    return Site((step,), tuple(inputs), tuple(Operand(t) for t in outs)), given


def numbers(t: TensorType, rng: np.random.Generator, special: bool) -> np.ndarray:
    """An array of the type; with `special`, some NaN, infinities, zeros and denormals among it."""
    kind, shape = t.dtype.kind, t.shape
    if kind == "bool":
        return rng.random(shape) < 0.5
    if kind in ("int", "uint"):
        return rng.integers(0 if kind == "uint" else -9, 10, shape).astype(t.dtype.numpy)
    x = np.asarray(rng.standard_normal(shape) * 1.5)
    if special:
        values = np.array([np.nan, np.inf, -np.inf, 0.0, -0.0, 1e-40, 88.0, -104.0, 0.5, 2.5])
        x = np.where(rng.random(shape) < 0.3, rng.choice(values, shape), x)
    return x.astype(t.dtype.numpy)


def reference(site: Site, arrays: list[np.ndarray], sizes: dict[str, int]) -> list[np.ndarray]:
    """What ONNX says the site's outputs are."""
    results: dict[int, list[np.ndarray]] = {}
    for k, step in enumerate(site.steps):
        names = tuple("" if i is None else f"x{i}" if i >= 0 else f"r{~i}" for i in step.inputs)
        node = Node(step.op, names, tuple(f"y{j}" for j in range(len(step.types))), MappingProxyType(dict(step.attrs)))
        args = [None if i is None else arrays[i] if i >= 0 else results[~i][0] for i in step.inputs]
        with np.errstate(all="ignore"):
            results[k] = evaluate(node, args, sizes)
    return results[len(site.steps) - 1]


def same(got: np.ndarray, want: np.ndarray, where: str) -> None:
    assert got.shape == want.shape, where
    if got.dtype.kind in "iub":
        assert np.array_equal(got, want.astype(got.dtype)), where
        return
    g, w = got.astype(np.float64), want.astype(np.float64)
    close = {"float64": 1e-12, "float32": 2e-5, "float16": 4e-3}.get(got.dtype.name, 3e-2)
    bound = np.abs(w[np.isfinite(w)]).max(initial=0.0) if np.isfinite(w).any() else 0.0
    with np.errstate(all="ignore"):
        right = (g == w) | (np.isnan(g) & np.isnan(w)) | (np.abs(g - w) <= close * (np.abs(w) + 0.05 * min(bound, 100)))
    assert right.all(), f"{where}\n got {g[~right][:5]}\nwant {w[~right][:5]} at {np.argwhere(~right)[:5].tolist()}"


def check(tactic: Tactic, site: Site, params: Params, target: Target, given: list[np.ndarray | None],
          sizes: dict[str, int] | None = None, special: bool = False, threads: int = 2, seed: int = 0) -> None:
    rng = np.random.default_rng(seed)
    sizes = sizes or {}
    arrays = [x if x is not None else numbers(o.type.at(sizes), rng, special)
              for x, o in zip(given, site.inputs, strict=True)]
    constants = {i: a for i, (a, o) in enumerate(zip(arrays, site.inputs, strict=True)) if o.constant}
    packed = tactic.pack(site, params, target, constants)
    kernel = tactic.emit(site, params, target)
    got = run_logical(kernel, site, target, arrays, sizes, threads, packed)
    want = reference(site, arrays, sizes)
    for g, w in zip(got, want, strict=True):
        same(g, w, f"{tactic.name} {dict(params)} {target.isa} on {site} {sizes}")


def served(op: str, kind: str = "x86") -> Iterator[tuple[Tactic, Site, list[np.ndarray | None], Params]]:
    for sample in OPS[op].samples:
        site, given = site_of(op, sample)
        for tactic in TACTICS[kind]:
            target = targets()["avx2"] if kind == "x86" else target_for(kind)
            if tactic.declines(site, target) is None:
                for params in islice(tactic.space(site, target), POINTS):
                    yield tactic, site, given, params


@pytest.mark.cpu
@pytest.mark.parametrize("op", sorted(OPS))
def test_every_tactic_agrees_with_the_reference(op: str) -> None:
    for isa, target in targets().items():
        for sample in OPS[op].samples:
            site, given = site_of(op, sample)
            for tactic in TACTICS["x86"]:
                if tactic.declines(site, target) is not None:
                    continue
                for k, params in enumerate(islice(tactic.space(site, target), POINTS)):
                    check(tactic, site, params, target, given, threads=1 + (k + (isa == "avx2")) % 3)


# Ops on which some NaN or infinity among the operands must come out as numpy has it.
SPECIAL = sorted(name for name, op in OPS.items() if op.pointwise and name not in ("Cast", "Mod", "BitShift", "Mish"))


@pytest.mark.cpu
@pytest.mark.parametrize("op", SPECIAL)
def test_special_values(op: str) -> None:
    for target in targets().values():
        for sample in OPS[op].samples[:2]:
            site, given = site_of(op, sample)
            for tactic in TACTICS["x86"]:
                if tactic.declines(site, target) is None:
                    check(tactic, site, next(iter(tactic.space(site, target))), target, given, special=True, seed=3)


BATCH = symbol("N")


def symbolic(site: Site) -> Site | None:
    """The site with its first dimension a symbol, where all the types agree on what that is."""
    lead = site.output.shape[0] if site.output.rank else None
    if lead is None or len(site.steps) > 1:
        return None
    whole = [o.type for o in (*site.inputs, *site.outputs)]
    swapped = [dataclasses.replace(t, shape=(BATCH, *t.shape[1:])) if t.rank == site.output.rank and t.shape[0] == lead
               and lead != 1 and not o.constant else t
               for t, o in zip(whole, (*site.inputs, *site.outputs), strict=True)]
    types, outs = swapped[:len(site.inputs)], swapped[len(site.inputs):]
    step = site.steps[0]
    args = tuple(None if i is None else types[i] for i in step.inputs)
    node = Node(step.op, tuple("" if i is None else f"x{i}" for i in step.inputs),
                tuple(f"y{j}" for j in range(len(outs))), MappingProxyType(dict(step.attrs)))
    try:
        found = infer(node, args)
    except Exception:       # noqa: BLE001 - whatever a symbolic size is refused with, the sample says nothing then
        return None
    if list(found) != outs or outs == [o.type for o in site.outputs]:
        return None
    return Site((dataclasses.replace(step, types=tuple(found)),),
                tuple(dataclasses.replace(o, type=t) for o, t in zip(site.inputs, types, strict=True)),
                tuple(Operand(t) for t in outs), (Symbol("N", 1, 3, 16),))


@pytest.mark.cpu
@pytest.mark.parametrize("op", sorted(OPS))
def test_a_symbolic_batch(op: str) -> None:
    found = 0
    for isa, target in targets().items():
        for sample in OPS[op].samples:
            made, given = site_of(op, sample)
            site = symbolic(made)
            if site is None:
                continue
            found += 1
            for tactic in TACTICS["x86"]:
                if tactic.declines(site, target) is None:
                    params = next(iter(tactic.space(site, target)))
                    # positions given as constants must lie inside
                    least = 9 if any(x is not None and x.dtype.kind == "i" for x in given) else 1
                    for n in (least, least + 1, 9) if isa == "avx512" else (least + 2,):
                        check(tactic, site, params, target, given, {"N": n}, threads=2)
    if not found:
        pytest.skip("no sample has a batch")


@pytest.mark.parametrize("op", sorted(OPS))
def test_neon_compiles(op: str) -> None:
    target = target_for("neon")
    for tactic, site, _, params in islice(served(op, "neon"), 8):
        assert "ret" in assembly(tactic.emit(site, params, target), target)


def regions() -> dict[str, Site]:
    """Pointwise sites of several steps, as lowering makes them."""
    def step(op: str, *inputs: int, t: TensorType, **attrs: object) -> Step:
        return Step(op, inputs, tuple(sorted(attrs.items())), (t,))
    x, row, col = TensorType(F32, (BATCH, 7, 33)), TensorType(F32, (33,)), TensorType(F32, (7, 1))
    b, gate = TensorType(F32, (2, 40, 5, 7), "c16"), TensorType(F32, (2, 40, 1, 1), "c16")
    bias = TensorType(F32, (1, 40, 1, 1))
    n = (Symbol("N", 1, 2, 8),)
    return {
        "silu": Site((step("Sigmoid", 0, t=x), step("Mul", 0, ~0, t=x)), (Operand(x),), (Operand(x),), n),
        "rows and columns": Site((step("Add", 0, 1, t=x), step("Mul", ~0, 2, t=x), step("Gelu", ~1, t=x)),
                                 (Operand(x), Operand(row), Operand(col)), (Operand(x),), n),
        "into a wider buffer": Site((step("Relu", 0, t=x),), (Operand(x),), (Operand(x, (700, 100, 1)),), n),
        "from a wider buffer": Site((step("Relu", 0, t=x),), (Operand(x, (700, 100, 1)),), (Operand(x),), n),
        "blocked": Site((step("Mul", 0, 1, t=b), step("Add", ~0, 2, t=b), step("HardSwish", ~1, t=b)),
                        (Operand(b), Operand(gate), Operand(bias, constant=True)), (Operand(b),)),
    }


@pytest.mark.cpu
@pytest.mark.parametrize("name", list(regions()))
def test_regions(name: str) -> None:
    site = regions()[name]
    rng = np.random.default_rng(5)
    given = [rng.standard_normal(o.type.shape).astype(np.float32) if o.constant else None for o in site.inputs]
    for target in targets().values():
        served_by = 0
        for tactic in TACTICS["x86"]:
            if tactic.declines(site, target) is None:
                served_by += 1
                for params in islice(tactic.space(site, target), POINTS):
                    check(tactic, site, params, target, given, {"N": 3} if site.symbols else {})
        assert served_by, name
