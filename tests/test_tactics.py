"""Every tactic, on every sample it will serve, against the reference: instruction sets, threads, symbolic batches."""
from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from itertools import islice
from types import MappingProxyType

import numpy as np
import pytest
from kernel_checks import POINTS, check, site_of, targets

from ingot.errors import IngotError
from ingot.graph import F32, Node, Symbol, symbol
from ingot.kernels import TACTICS, Operand, Params, Site, Tactic
from ingot.kernels.codegen import target_for
from ingot.ops import OPS, infer
from ingot.runtime.compiler import assembly


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
                    check(tactic, site, params, target, given, threads=1 + (k + (isa == "avx2")) % 3,
                          skew=(k + (isa == "avx512")) % 2)


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
    except IngotError:      # a symbolic size the op refuses: the sample says nothing then
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


# Ops of which no f32 sample may be left to the reference.
NATIVE = sorted({name for name, op in OPS.items() if op.pointwise} | {
    "ArgMax", "ArgMin", "AveragePool", "BatchNormalization", "Concat", "ConstantOfShape", "CumSum", "DepthToSpace",
    "DequantizeLinear", "Einsum", "Expand", "EyeLike", "Flatten", "Gather", "GatherElements", "GatherND",
    "GlobalAveragePool", "GlobalLpPool", "GlobalMaxPool", "GroupNormalization", "Hardmax", "InstanceNormalization",
    "LRN", "LayerNormalization", "LogSoftmax", "LpNormalization", "LpPool", "MaxPool", "OneHot", "Pad",
    "QuantizeLinear", "RMSNormalization", "Range", "ReduceL1", "ReduceL2", "ReduceLogSum", "ReduceLogSumExp",
    "ReduceMax", "ReduceMean", "ReduceMin", "ReduceProd", "ReduceSum", "ReduceSumSquare", "Reorder", "Reshape",
    "Resize", "ScatterElements", "ScatterND", "Shape", "Size", "Slice", "Softmax", "SpaceToDepth", "Split",
    "Squeeze", "Tile", "TopK", "Transpose", "Trilu", "Unsqueeze"})


@pytest.mark.parametrize("op", NATIVE)
def test_no_sample_is_left_to_the_reference(op: str) -> None:
    for isa in ("avx2", "avx512", "neon"):
        target = target_for(isa)
        for sample in OPS[op].samples:
            site, _ = site_of(op, sample)
            if site.output.dtype == F32:
                reasons = [tactic.declines(site, target) for tactic in TACTICS[target.kind]]
                assert None in reasons, f"{site} on {isa}: {reasons}"
