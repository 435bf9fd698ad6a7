"""Running a tactic on a site and comparing with the reference: what the tests of kernels share."""
from __future__ import annotations

import atexit
import dataclasses
import shutil
import tempfile
from functools import cache
from pathlib import Path
from types import MappingProxyType

import numpy as np

from ingot.graph import BF16, Node, TensorType, type_of
from ingot.kernels import Operand, Params, Site, Step, Tactic
from ingot.kernels.codegen import target_for
from ingot.ops import OPS, infer
from ingot.ops.op import Sample
from ingot.ops.reference import evaluate
from ingot.runtime.compiler import CodeCache
from ingot.runtime.harness import run_logical
from ingot.runtime.host import host_target
from ingot.target import Target

POINTS = 4          # points of each tactic's space that are tested


@cache
def compiled() -> CodeCache:
    """Kernels compiled in this run: one at several sizes is compiled once."""
    folder = tempfile.mkdtemp(prefix="ingot-tests-")
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return CodeCache(Path(folder))


@cache
def targets() -> dict[str, Target]:
    host = host_target()
    found = {"avx2": dataclasses.replace(target_for("avx2"), threads=2)}
    if host.isa == "avx512":
        found["avx512"] = dataclasses.replace(host, threads=2)
    return found


def site_of(op: str, sample: Sample) -> tuple[Site, list[np.ndarray | None]]:
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


def same(got: np.ndarray, want: np.ndarray, where: str, times: float = 1.0) -> None:
    assert got.shape == want.shape, where
    if got.dtype.kind in "iub":
        assert np.array_equal(got, want.astype(got.dtype)), where
        return
    g, w = got.astype(np.float64), want.astype(np.float64)
    close = {"float64": 1e-12, "float32": 2e-5, "float16": 4e-3}.get(got.dtype.name, 3e-2) * times
    bound = np.abs(w[np.isfinite(w)]).max(initial=0.0) if np.isfinite(w).any() else 0.0
    with np.errstate(all="ignore"):
        right = (g == w) | (np.isnan(g) & np.isnan(w)) | (np.abs(g - w) <= close * (np.abs(w) + 0.05 * min(bound, 100)))
    assert right.all(), f"{where}\n got {g[~right][:5]}\nwant {w[~right][:5]} at {np.argwhere(~right)[:5].tolist()}"


def check(tactic: Tactic, site: Site, params: Params, target: Target, given: list[np.ndarray | None],
          sizes: dict[str, int] | None = None, special: bool = False, threads: int = 2, seed: int = 0,
          skew: int = 0) -> None:
    rng = np.random.default_rng(seed)
    sizes = sizes or {}
    arrays = [x if x is not None else numbers(o.type.at(sizes), rng, special)
              for x, o in zip(given, site.inputs, strict=True)]
    constants = {i: a for i, (a, o) in enumerate(zip(arrays, site.inputs, strict=True)) if o.constant}
    packed = tactic.pack(site, params, target, constants)
    kernel = tactic.emit(site, params, target)
    if any(o.type.layout for o in (*site.inputs, *site.outputs)):
        skew = 0        # blocks are aligned
    got = run_logical(kernel, site, target, arrays, sizes, threads, packed, cache=compiled(), skew=skew)
    want = reference(site, arrays, sizes)
    # minimal filtering of bf16 rounds its transformed operands: 0.4 % of the results' root mean square
    short = any(o.type.dtype == BF16 for o in site.inputs)
    times = 1.0 if tactic.exact else 5000.0 if short else 8.0
    for g, w in zip(got, want, strict=True):
        same(g, w, f"{tactic.name} {dict(params)} {target.isa} on {site} {sizes}", times)
