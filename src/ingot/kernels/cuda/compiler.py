"""Drafts to cubins: Triton and its bundled assembler, on any machine, without a GPU and without PyTorch.

The one module that imports Triton; it is imported when the first kernel is compiled.
"""
from __future__ import annotations

import hashlib
import linecache
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import triton
import triton.language as tl
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from triton.compiler.errors import CompilationError
from triton.language.extra import libdevice
from triton.language.extra.cuda import gdc_launch_dependents, gdc_wait
from triton.runtime.errors import OutOfResources, PTXASError

from ingot.errors import CandidateError
from ingot.kernels.cuda.kernel import CudaLaunch, Scalar, TensorMap
from ingot.kernels.cuda.source import SHARED, Draft, capability
from ingot.target import Target

try:
    from triton.experimental import gluon
    from triton.experimental.gluon import _runtime as gluon_runtime
    from triton.experimental.gluon import language as gl
    from triton.experimental.gluon.language.nvidia import hopper
except ImportError:     # a Triton before Gluon: its tactics raise CandidateError
    gluon = None


def names() -> dict[str, Any]:
    """What the text of a kernel may refer to."""
    return {"tl": tl, "libdevice": libdevice, "gdc_wait": gdc_wait, "gdc_launch_dependents": gdc_launch_dependents}


def gluon_names() -> dict[str, Any]:
    """What the text of a Gluon kernel may refer to. Raises CandidateError where this Triton is too old for it."""
    if gluon is None or not hasattr(hopper.tma, "async_load_im2col") or not hasattr(gluon_runtime, "GluonASTSource") \
            or not hasattr(hopper, "cluster"):
        raise CandidateError(f"the Gluon of this Triton ({triton.__version__}) is too old")
    return {"tl": gl, "tma": hopper.tma, "mbarrier": hopper.mbarrier, "cluster": hopper.cluster, "jit": gluon.jit,
            "fence_async_shared": hopper.fence_async_shared, "warpgroup_mma": hopper.warpgroup_mma,
            "warpgroup_mma_wait": hopper.warpgroup_mma_wait, "gdc_wait": gdc_wait,
            "gdc_launch_dependents": gdc_launch_dependents, "libdevice": libdevice}


def function(text: str, known: dict[str, Any]) -> Any:
    """The function `kernel` that a text defines, its source findable by `inspect`."""
    name = f"<kernel {hashlib.sha256(text.encode()).hexdigest()[:16]}>"
    linecache.cache[name] = (len(text), None, text.splitlines(keepends=True), name)
    space = {**known, "__name__": "kernel"}
    exec(compile(text, name, "exec"), space)        # generated text, as LLVM IR is for a CPU; nothing foreign
    return space["kernel"]


def compile_draft(draft: Draft, target: Target) -> CudaLaunch:
    """The launch with its cubin. Raises CandidateError where the compiler refuses."""
    space = gluon_names() if draft.gluon else {**names(), "jit": triton.jit}
    kernel = function(draft.source, space)
    source = gluon_runtime.GluonASTSource if draft.gluon else ASTSource
    places = {n: i for i, (n, _) in enumerate(draft.signature)}
    attrs = {(places[n],): [["tt.divisibility", 16]] for n in sorted(draft.aligned)}
    options = {"num_warps": draft.warps, "num_stages": draft.stages, "num_ctas": draft.cluster}
    if not draft.fused:
        options["enable_fp_fusion"] = False
    try:
        made = triton.compile(source(kernel, dict(draft.signature), {}, attrs),
                              target=GPUTarget("cuda", capability(target), 32), options=options)
    except (CompilationError, OutOfResources, PTXASError, RuntimeError, ValueError, AssertionError) as error:
        raise CandidateError(f"Triton refuses: {' '.join(str(error).split())[:300]}") from None
    meta = made.metadata
    if meta.shared > SHARED[target.isa.rstrip("a")] * 1024:
        raise CandidateError(f"{meta.shared} bytes of shared memory are more than {target.isa} has")
    if meta.global_scratch_size:
        raise CandidateError("it needs Triton's global scratch memory")
    shapes = iter(getattr(meta, "tensordesc_meta", None) or ())
    given = tuple(_boxed(a, next(shapes)) if isinstance(a, TensorMap) else a for a in draft.arguments)
    # every Triton cubin ends with two addresses: global scratch and the profiler's, unused here
    arguments = (*given, Scalar(0, "i64"), Scalar(0, "i64"))
    x, y, z = draft.grid
    return CudaLaunch(meta.name, bytes(made.asm["cubin"]), (x * draft.cluster, y, z), 32 * meta.num_warps, meta.shared,
                      arguments, cluster=draft.cluster, dependent=draft.dependent)


def _boxed(map_: TensorMap, meta: Mapping[str, Any]) -> TensorMap:
    """A tensor map with the box and the swizzle the compiler chose for it."""
    return replace(map_, box=tuple(meta["block_size"]), swizzle=(0, 32, 64, 128)[meta["swizzle"]])


__all__ = ["compile_draft", "function", "names"]
