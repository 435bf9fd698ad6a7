"""An engine opened on a GPU: its variant found, its code taken from where it may be taken from."""
from __future__ import annotations

from ingot import env
from ingot.engine import Engine, Variant
from ingot.engine.signing import require_trust
from ingot.errors import CandidateError
from ingot.kernels.cuda import CudaKernel
from ingot.runtime.compiler import CodeCache
from ingot.runtime.cuda.code import CodeStore, kernel_key, kernels_of
from ingot.runtime.cuda.driver import Driver
from ingot.runtime.cuda.session import CudaSession
from ingot.runtime.cuda.target import found_driver, has_cuda, variant_on
from ingot.runtime.session import Session


def open_cuda(engine: Engine, *, strict: bool = False, trust: bool = False, driver: Driver | None = None,
              cache: CodeCache | None = None) -> CudaSession:
    """A session on the GPU here.

    Code comes from this user's own cache where it is all there; else from the engine, if its signer is trusted here
    or `trust` says so; else it is compiled now. `strict` refuses a variant tuned for another GPU. Raises EngineError
    or DeviceError.
    """
    driver = driver or found_driver()
    variant = variant_on(engine, driver, strict=strict)
    assert driver is not None       # variant_on refuses what has no GPU
    cache = cache or CodeCache(env.cache_folder() / "cuda")
    own = CodeStore(variant.target, cache)
    if (kernels := _known(variant, own)) is None:
        if variant.code.kernels:
            require_trust(variant.code, env.keys_folder(), trust=trust)
            own = CodeStore(variant.target, cache, variant.code.kernels)
        kernels = kernels_of(variant, own)
    return CudaSession(engine, variant, kernels, driver)


def _known(variant: Variant, store: CodeStore) -> dict[str, CudaKernel] | None:
    """The kernels of all choices, where this user's cache has them all."""
    found: dict[str, CudaKernel] = {}
    try:
        for site, choice in variant.choices.items():
            kernel = store.found(kernel_key(site, choice.tactic, choice.params, variant.target))
            if kernel is None:
                return None
            found[site] = kernel
    except CandidateError:
        return None
    return found


def open_session(engine: Engine, threads: int | None = None, *, device: str = "", strict: bool = False,
                 trust: bool = False) -> Session | CudaSession:
    """A session on the GPU where the engine has a variant for one and there is one here, else on the CPU.

    `device` "cuda" or "cpu" says which it must be. Raises EngineError.
    """
    on_gpu = device == "cuda" or (device != "cpu" and has_cuda(engine) and (strict or found_driver() is not None))
    return open_cuda(engine, strict=strict, trust=trust) if on_gpu else Session(engine, threads)


__all__ = ["open_cuda", "open_session"]
