"""Seeded inputs for a site, and how far two right answers of it may lie apart."""
from __future__ import annotations

import math
import os
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import numpy as np

from ingot.graph import F8E4M3, I8, DType, TensorType, evaluate
from ingot.kernels import Operand, Site, Step
from ingot.ops import OPS
from ingot.ops.quantisation import LARGEST_E4M3

UNIT = {"f64": 2.0**-53, "f32": 2.0**-24, "f16": 2.0**-11, "bf16": 2.0**-8}      # unit roundoff
_E4M3 = 2.0**-13    # what a GPU's sum of 32 products of f8e4m3 loses of its largest term: bits below are cut off
_LAMBDA = 16.0      # both sides round; generous, as a kernel that is wrong is wrong by far more
_ROWS = frozenset({"LayerNormalization", "RMSNormalization", "Softmax", "LogSoftmax"})
_PRODUCTS = frozenset({"MatMul", "Gemm", "Conv", "ConvTranspose", "Einsum", "MatMulInteger", "ConvInteger",
                       "ShortMatMul", "ShortConv"})
_SHORT_SUMS = frozenset({"MatMulInteger", "ConvInteger", "ShortMatMul"})


def small_sizes(site: Site) -> dict[str, int]:
    """Sizes of the symbols for a quick check: small, and odd where the profile allows it."""
    return {s.name: max(s.min, min(s.max, 3)) for s in site.symbols}


def opt_sizes(site: Site) -> dict[str, int]:
    """The sizes a site is tuned at."""
    return {s.name: s.opt for s in site.symbols}


def _values(type_: TensorType, rng: np.random.Generator, limit: int | None) -> np.ndarray:
    shape: tuple[int, ...] = tuple(int(d) for d in type_.shape)         # type: ignore[arg-type]
    kind = type_.dtype.kind
    if kind in ("int", "uint"):
        low, high = (0, limit) if limit is not None else (1, 8)         # never 0 as a divisor
        return rng.integers(low, max(low + 1, high), shape).astype(type_.dtype.numpy)
    if kind == "bool":
        return rng.integers(0, 2, shape).astype(bool)
    return rng.standard_normal(shape, np.float32).astype(type_.dtype.numpy)


def _short_values(type_: TensorType, rng: np.random.Generator) -> np.ndarray:
    """Values of i8 or f8e4m3 that use the whole of the type."""
    shape: tuple[int, ...] = tuple(int(d) for d in type_.shape)         # type: ignore[arg-type]
    spread, reach = (40.0, 127.0) if type_.dtype == I8 else (100.0, LARGEST_E4M3)
    found: np.ndarray = np.clip(rng.standard_normal(shape, np.float32) * spread, -reach, reach)
    return found.astype(type_.dtype.numpy)


def _index_limit(site: Site, operand: int, sizes: Mapping[str, int]) -> int | None:
    """For an operand that indexes another one: the least size it may index into; None for any other operand."""
    limits: list[int] = []
    for step in site.steps:
        op = OPS.get(step.op)
        for position, source in enumerate(step.inputs):
            name = op.inputs[min(position, len(op.inputs) - 1)].rstrip("?*") if op and op.inputs else ""
            data = step.inputs[0]
            if source != operand or name not in ("indices", "batch_indices") or data is None:
                continue
            type_ = site.inputs[data].type if data >= 0 else site.steps[~data].types[0]
            limits.append(min((evaluate(d, sizes) for d in type_.shape), default=1))
    return min(limits, default=None)


def sample_inputs(site: Site, sizes: Mapping[str, int], constants: Mapping[int, np.ndarray] | None = None,
                  ) -> list[np.ndarray]:
    """Logical arrays for a site's inputs: the same for the same site and sizes. `constants` are taken as they are."""
    rng = np.random.default_rng(int(site.key, 16))
    known = constants or {}
    sums = any(s.op in _SHORT_SUMS for s in site.steps)

    def made(i: int, operand: Operand) -> np.ndarray:
        if i in known:
            return known[i]
        if sums and operand.type.dtype in (I8, F8E4M3):
            return _short_values(operand.type.at(sizes), rng)
        return _values(operand.type.at(sizes), rng, _index_limit(site, i, sizes))

    return [made(i, operand) for i, operand in enumerate(site.inputs)]


def overwritable(site: Site) -> list[int]:
    """The inputs of the result's very form that are read element by element, or row by row, where it is written."""
    if len(site.outputs) != 1 or site.outputs[0].strides is not None:
        return []
    found = []
    pointwise = all(s.op in OPS and OPS[s.op].pointwise for s in site.steps)
    for i, operand in enumerate(site.inputs):
        readers = [k for k, step in enumerate(site.steps) if i in step.inputs]
        late = all(k > site.main for k in readers)
        rows = readers == [site.main] and site.op in _ROWS and site.step.inputs[0] == i
        plain = not operand.constant and operand.strides is None and operand.type == site.output
        if plain and readers and (pointwise or late or rows):
            found.append(i)
    return found


def sum_length(site: Site, sizes: Mapping[str, int]) -> float:
    """The length of the sum behind one element of the result, over all steps; some more for functions."""
    total = 4.0 * len(site.steps)
    for step in site.steps:
        types = [site.inputs[i].type if i >= 0 else site.steps[~i].types[0] for i in step.inputs if i is not None]
        made = [t for t in step.types if t.shape]
        if not types:
            continue
        given = max(math.prod(evaluate(d, sizes) for d in t.shape) for t in types)
        gives = max((math.prod(evaluate(d, sizes) for d in t.shape) for t in made), default=1)
        if step.op in _PRODUCTS and len(types) > 1:
            weight = math.prod(evaluate(d, sizes) for d in types[1].shape)
            last = evaluate(types[0].shape[-1], sizes) if types[0].shape else 1
            total += max(last, weight / max(1, evaluate(types[1].shape[0], sizes)) if types[1].shape else 1)
        elif step.op in OPS and not OPS[step.op].pointwise:
            total += max(given / max(1, gives), evaluate(types[0].shape[-1], sizes) if types[0].shape else 1)
    return total


def tolerance(site: Site, sizes: Mapping[str, int]) -> float:
    """The largest allowed difference relative to the result's largest magnitude: from dtype and sum length."""
    dtypes: list[DType] = [o.type.dtype for o in (*site.inputs, *site.outputs)]
    unit = max((UNIT[d.name] for d in dtypes if d.name in UNIT), default=0.0)
    return _LAMBDA * unit * math.sqrt(sum_length(site, sizes))


def widened(site: Site) -> Site:
    """The site with a Cast to f64 after every step that leaves f32 whatever it reads: what the right answer is of."""
    steps: list[Step] = []
    place: dict[int, int] = {}
    for k, step in enumerate(site.steps):
        inputs = tuple(i if i is None or i >= 0 else ~place[~i] for i in step.inputs)
        steps.append(replace(step, inputs=inputs))
        if step.op in ("ShortMatMul", "Dequantize"):
            steps.append(Step("Cast", (~(len(steps) - 1),), (("to", "f64"),), step.types))
        place[k] = len(steps) - 1
    return replace(site, steps=tuple(steps))


def wide_tolerance(site: Site, sizes: Mapping[str, int], *, tf32: bool = False) -> float:
    """As `tolerance`, for a kernel that sums in f32 whatever its operands are, against the right answer in f64.

    Sums round as f32; what is read, written, or held between two steps rounds once each, as its type (or tf32) does.
    """
    dtypes: list[DType] = [o.type.dtype for o in (*site.inputs, *site.outputs)]
    dtypes += [t.dtype for s in site.steps for t in s.types]
    unit = max((UNIT[d.name] for d in dtypes if d.name in UNIT), default=0.0)
    unit = max(unit, UNIT["f16"]) if tf32 and unit else unit
    length = sum_length(site, sizes)
    cut = _E4M3 * length / 32 if any(s.op == "ShortMatMul" for s in site.steps) else 0.0
    return cut + _LAMBDA * (min(unit, UNIT["f32"]) * math.sqrt(length) + unit * math.sqrt(len(site.steps)))


_PART = 1 << 18     # elements that are compared at a time
_FLIPS = 0.02       # share of integers that a rounding just beside a tie may move by one


def rounds_to_integers(site: Site) -> bool:
    """Whether reals become integers on the way: what lies beside a tie may fall to either side of it."""
    return any(s.op in ("Quantize", "QuantizeLinear") for s in site.steps)


def difference(found: np.ndarray, wanted: np.ndarray, relative: float, *, quantum: bool = False) -> str | None:
    """Why the result found is not the one wanted, or None. Infinities and NaNs must stand in the same places.

    With `quantum` a few integers (or numbers of f8e4m3) may be off by one.
    """
    if found.shape != wanted.shape:
        return f"its shape is {list(found.shape)}, not {list(wanted.shape)}"
    if found.size == 0:
        return None
    if quantum and found.dtype == F8E4M3.numpy:
        return _rounded_apart(found, np.asarray(wanted).astype(found.dtype), relative)
    if not (np.issubdtype(wanted.dtype, np.inexact) or wanted.dtype.kind == "V" or wanted.dtype.name == "bfloat16"):
        wrong = int((found != wanted).sum())
        if quantum and wrong and found.dtype.kind in "iu":
            far = int(np.abs(found.astype(np.int64) - wanted.astype(np.int64)).max())
            wrong = 0 if far == 1 and wrong <= max(2, _FLIPS * found.size) else wrong
        return f"{wrong} of {found.size} elements differ" if wrong else None
    wide = np.float64 if wanted.dtype == np.float64 else np.float32
    worst, scale = _apart(found, wanted, wide)
    if math.isfinite(worst) and math.isfinite(scale):
        return None if worst <= relative * scale else f"wrong by {worst:.2g} at a scale of {scale:.2g}"
    a: np.ndarray = np.asarray(found, wide)
    b: np.ndarray = np.asarray(wanted, wide)
    with np.errstate(all="ignore"):
        error = np.abs(a - b)
        finite = np.isfinite(b)
        same = np.where(finite, np.isfinite(a), (a == b) | (np.isnan(a) & np.isnan(b)))
        if not same.all():
            return f"{int((~same).sum())} of {a.size} elements are NaN, infinite or unwritten where they must not be"
        if not finite.any():
            return None
        worst, scale = float(error[finite].max()), float(np.abs(b[finite]).max())
    return None if worst <= relative * scale else f"wrong by {worst:.2g} at a scale of {scale:.2g}"


def _rounded_apart(found: np.ndarray, wanted: np.ndarray, relative: float) -> str | None:
    """Why numbers of f8e4m3 are not those wanted, or None: what was rounded may differ by `relative` of the largest,
    and then, beside a tie, be rounded to the neighbour, which few are. Near zero, steps are finer than that."""
    a, b = found.astype(np.float32), wanted.astype(np.float32)
    if (np.isnan(a) != np.isnan(b)).any():
        return "NaN must stand in the same places"
    size = np.abs(a - b)
    beyond = size > relative * np.nanmax(np.abs(b), initial=0.0)
    ranks = [np.where(x & 0x80, -(x & 0x7F), x) for x in (
        np.ascontiguousarray(x).view(np.uint8).astype(np.int16) for x in (found, wanted))]
    wrong, moved = int((beyond & (np.abs(ranks[0] - ranks[1]) > 1)).sum()), int(beyond.sum())
    if wrong:
        return f"{wrong} of {found.size} elements are off by more than a rounding, by up to {np.nanmax(size):.3g}"
    return f"{moved} of {found.size} are rounded otherwise" if moved > max(2, _FLIPS * found.size) else None


def _apart(found: np.ndarray, wanted: np.ndarray, wide: type) -> tuple[float, float]:
    """The largest difference and the largest magnitude wanted, NaN or infinite where some are.

    In parts that fit a core's cache, several at a time, in the order in which the found ones lie in memory.
    """
    order = sorted(range(found.ndim), key=lambda axis: -found.strides[axis])
    a, b = (np.ascontiguousarray(x.transpose(order)).reshape(-1) for x in (found, wanted))

    def part(at: int) -> tuple[float, float]:
        with np.errstate(all="ignore"):
            right: np.ndarray = b[at:at + _PART].astype(wide)
            error: np.ndarray = a[at:at + _PART].astype(wide)
            error -= right
            np.abs(error, out=error)
            np.abs(right, out=right)
            return float(error.max()), float(right.max())

    starts = range(0, a.size, _PART)
    if len(starts) < 4:
        parts = [part(at) for at in starts]
    else:
        with ThreadPoolExecutor(min(16, os.cpu_count() or 1)) as pool:
            parts = list(pool.map(part, starts))
    return float(np.max([p[0] for p in parts])), float(np.max([p[1] for p in parts]))
