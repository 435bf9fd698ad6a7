"""CUDA tactics compile on a machine without a GPU; what they ask of a launch is whole."""
from __future__ import annotations

import ast
from itertools import islice

import cuda_checks
import pytest
from cuda_checks import FORMS, LARGE, TARGETS
from kernel_checks import site_of

from ingot.errors import CandidateError
from ingot.graph import F16
from ingot.kernels import TACTICS, Site
from ingot.kernels.cuda import CudaKernel, TensorMap
from ingot.ops import OPS

# a site for each tactic: a form of networks, or an op's sample by number
SITES = {
    "cuda.conv_depthwise": "depthwise", "cuda.conv_depthwise_tiles": "depthwise, stride 2",
    "cuda.conv_tma": "3x3, stride 2, residual", "cuda.conv": "3x3",
    "cuda.conv_stem": "stem from a plain input",
    "cuda.matmul_persistent": "large product and Gelu", "cuda.matmul_tma": "product and Gelu",
    "cuda.matmul": "product and residual", "cuda.attention": ("Attention", 4),
    "cuda.normalize": ("LayerNormalization", 1), "cuda.reduce": ("ReduceMean", 3), "cuda.pointwise": ("Add", 2),
    "cuda.copy": ("Transpose", 1), "cuda.pool": ("MaxPool", 2), "cuda.resample": ("Resize", 4),
    "cuda.pad": ("Pad", 1), "cuda.gather": ("Gather", 1), "cuda.one_hot": ("OneHot", 0), "cuda.fill": ("Trilu", 0),
    "cuda.running": ("CumSum", 0), "cuda.topk": ("TopK", 0), "cuda.scatter": ("ScatterND", 1)}


def site_for(name: str) -> Site:
    where = SITES[name]
    if isinstance(where, str):
        return {**FORMS, **LARGE}[where]
    site, given = site_of(where[0], OPS[where[0]].samples[where[1]])
    return site if name == "cuda.scatter" else cuda_checks.as_dtype(site, given, F16)[0]


def check_kernel(kernel: CudaKernel) -> None:
    for launch in kernel.launches:
        assert launch.cubin[:4] == b"\x7fELF"
        assert launch.entry
        assert launch.threads % 32 == 0
        assert len(launch.grid) == 3
        assert all(m.box and m.swizzle in (0, 32, 64, 128) for m in launch.arguments if isinstance(m, TensorMap))


def test_every_tactic_has_a_site_here() -> None:
    assert sorted(SITES) == sorted(t.name for t in TACTICS["cuda"])


@pytest.mark.parametrize("tactic", TACTICS["cuda"], ids=lambda t: t.name)
def test_every_tactic_compiles(tactic) -> None:
    pytest.importorskip("triton")
    site, target = site_for(tactic.name), TARGETS["sm_90"]
    assert tactic.declines(site, target) is None
    check_kernel(tactic.emit(site, next(iter(tactic.space(site, target))), target))


@pytest.mark.parametrize("isa", ["sm_80", "sm_100"])
@pytest.mark.parametrize("name", ["cuda.conv", "cuda.matmul", "cuda.attention", "cuda.pointwise"])
def test_other_architectures(name: str, isa: str) -> None:
    pytest.importorskip("triton")
    tactic = next(t for t in TACTICS["cuda"] if t.name == name)
    site, target = site_for(name), TARGETS[isa]
    check_kernel(tactic.emit(site, next(iter(tactic.space(site, target))), target))


@pytest.mark.slow
@pytest.mark.parametrize("op", sorted(OPS))
@pytest.mark.parametrize("isa", sorted(TARGETS))
def test_every_sample_compiles(op: str, isa: str) -> None:
    pytest.importorskip("triton")
    for sample in OPS[op].samples:
        site, given = site_of(op, sample)
        for made in (site, cuda_checks.as_dtype(site, given, F16)[0]):
            for tactic in TACTICS["cuda"]:
                if tactic.declines(made, TARGETS[isa]) is None:
                    check_kernel(tactic.emit(made, next(iter(tactic.space(made, TARGETS[isa]))), TARGETS[isa]))


@pytest.mark.parametrize("op", sorted(OPS))
def test_every_sample_is_written(op: str) -> None:
    """Source is a value of its own, and made without Triton: it parses, and its parameters are what is passed."""
    for sample in OPS[op].samples:
        site, _ = site_of(op, sample)
        for tactic in TACTICS["cuda"]:
            for isa in TARGETS:
                if tactic.declines(site, TARGETS[isa]) is not None:
                    continue
                for params in islice(tactic.space(site, TARGETS[isa]), 6):
                    for draft in tactic.write(site, params, TARGETS[isa]).launches:
                        function = ast.parse(draft.source).body[0]
                        assert isinstance(function, ast.FunctionDef)
                        assert [a.arg for a in function.args.args] == [n for n, _ in draft.signature]
                        assert len(draft.arguments) == len(draft.signature)


def test_hopper_alone_gets_warp_group_products() -> None:
    for name in ("cuda.conv_tma", "cuda.matmul_tma"):
        tactic = next(t for t in TACTICS["cuda"] if t.name == name)
        assert tactic.declines(site_for(name), TARGETS["sm_90"]) is None
        assert "Hopper" in (tactic.declines(site_for(name), TARGETS["sm_80"]) or "")


def test_what_the_compiler_refuses_is_a_candidate_error() -> None:
    pytest.importorskip("triton")
    tactic = next(t for t in TACTICS["cuda"] if t.name == "cuda.conv")
    site = site_for("cuda.conv")
    huge = {"rows": 512, "columns": 512, "depth": 128, "warps": 4, "stages": 5, "split": 1}
    with pytest.raises(CandidateError):
        tactic.emit(site, huge, TARGETS["sm_80"])
