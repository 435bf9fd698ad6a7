"""Kernels for a GPU by choice: carried by an engine, kept in this user's cache, or compiled now, several at a time."""
from __future__ import annotations

import hashlib
import multiprocessing
import os
from collections.abc import Iterable, Mapping
from concurrent.futures import Future, ProcessPoolExecutor

from ingot.engine.code import Bundle, Carried, kernel_from_bytes, kernel_to_bytes
from ingot.engine.engine import Variant
from ingot.errors import CandidateError, EngineError
from ingot.kernels import Kernel, Params, Site, Tactic
from ingot.kernels.cuda import CudaKernel
from ingot.runtime.compiler import CodeCache
from ingot.target import Target
from ingot.tune import generator_version, tactic_named, usable

_REFUSED = b"refused\n"
_FEW = 4            # kernels: for fewer, starting processes takes longer than compiling
_BROKEN = (ValueError, KeyError, TypeError, IndexError)


def kernel_key(site: str, tactic: str, params: Params, target: Target) -> str:
    """What names a compiled kernel: the same on a machine without a GPU as on one with."""
    point = ",".join(f"{k}={v}" for k, v in params.items())
    mode = "tf32" if "tf32" in target.features else ""
    text = f"{site} {tactic}[{point}] {generator_version(target)} {target.isa} {mode}"
    return "cuda " + hashlib.sha256(text.encode()).hexdigest()


def _compiled(tactic: str, site: Site, params: Params, target: Target) -> bytes:
    """In a worker process: the kernel as a blob, or why there is none."""
    try:
        made = tactic_named(tactic, target).emit(site, params, target)
    except CandidateError as error:
        return _REFUSED + str(error).encode()
    if not isinstance(made, CudaKernel):
        return _REFUSED + b"the tactic gives no kernel for a GPU"
    return kernel_to_bytes(made)


class CodeStore:
    """Gives kernels; compiles those it does not have in worker processes, ahead of need where it is told them.

    A `closed` one has what is carried and no more.
    """

    def __init__(self, target: Target, cache: CodeCache | None = None, carried: Iterable[Carried] = (),
                 workers: int = 0, *, closed: bool = False) -> None:
        self.target, self._cache, self._closed = target, cache, closed
        self._known: dict[str, CudaKernel] = {
            kernel_key(c.site, c.tactic, c.params, target): c.kernel for c in carried}
        self._workers = workers or len(os.sched_getaffinity(0))
        self._pool: ProcessPoolExecutor | None = None
        self._coming: dict[str, Future[bytes]] = {}
        self.compiled = 0

    def __enter__(self) -> CodeStore:
        return self

    def __exit__(self, *_: object) -> None:
        if self._pool:
            self._pool.shutdown(wait=True, cancel_futures=True)

    def found(self, key: str) -> CudaKernel | None:
        """What is known already. Raises CandidateError for a point that is known to be refused."""
        if key in self._known:
            return self._known[key]
        raw = self._cache.get(key) if self._cache else None
        if raw is None:
            return None
        if raw.startswith(_REFUSED):
            raise CandidateError(raw.removeprefix(_REFUSED).decode())
        try:
            self._known[key] = kernel_from_bytes(raw)
        except _BROKEN:
            return None
        return self._known[key]

    def prefetch(self, wanted: Iterable[tuple[Tactic, Site, Params]]) -> int:
        """Begin to compile what is not known; gives how many there are. A few are left to when they are needed."""
        open_: dict[str, tuple[Tactic, Site, Params]] = {}
        for tactic, site, params in wanted:
            key = kernel_key(site.key, tactic.name, params, self.target)
            if key not in self._known and key not in self._coming and not (self._cache and self._cache.get(key)):
                open_[key] = tactic, site, params
        if len(open_) < _FEW:
            return 0
        for key, (tactic, site, params) in open_.items():
            if self._pool is None:
                # spawned, not forked: a child must not inherit a context on the GPU, nor threads' locks
                self._pool = ProcessPoolExecutor(self._workers, multiprocessing.get_context("spawn"))
            self._coming[key] = self._pool.submit(_compiled, tactic.name, site, dict(params), self.target)
        return len(self._coming)

    def emit(self, tactic: Tactic, site: Site, params: Params, target: Target) -> Kernel:
        """The kernel at one point. Raises CandidateError where it cannot be built."""
        key = kernel_key(site.key, tactic.name, params, self.target)
        if (known := self.found(key)) is not None:
            return known
        if self._closed:
            raise CandidateError("the engine does not carry it")
        coming = self._coming.pop(key, None)
        raw = coming.result() if coming else _compiled(tactic.name, site, params, self.target)
        self.compiled += 1
        if self._cache:
            self._cache.put(key, raw)
        if raw.startswith(_REFUSED):
            raise CandidateError(raw.removeprefix(_REFUSED).decode())
        self._known[key] = kernel_from_bytes(raw)
        return self._known[key]

    def refuse(self, site: Site, tactic: str, params: Params, why: str) -> None:
        """Remember that a kernel must not be tried again: it broke the device."""
        if self._cache:
            self._cache.put(kernel_key(site.key, tactic, params, self.target), _REFUSED + why.encode())


def kernels_of(variant: Variant, store: CodeStore) -> dict[str, CudaKernel]:
    """The kernel of every choice of a variant. Raises EngineError where one is neither carried nor to be made here."""
    found: dict[str, CudaKernel] = {}
    for launch in variant.program.launches:
        site = launch.site
        if not launch.native or site.key in found:
            continue
        choice = variant.choices.get(site.key)
        if choice is None:
            raise EngineError(f"the engine has no choice for {launch.where}", mend="build the engine anew")
        try:
            kernel = store.found(kernel_key(site.key, choice.tactic, choice.params, variant.target))
            if kernel is None:
                if variant.generator != generator_version(variant.target) or not usable(choice, site, variant.target):
                    raise EngineError(f"the code of {choice.point} for {launch.where} is not to be had here",
                                      why=("the engine does not carry it, and this generator does not make it",),
                                      mend="build the engine anew")
                made = store.emit(tactic_named(choice.tactic, variant.target), site, choice.params, variant.target)
                assert isinstance(made, CudaKernel)     # what emit of a store gives
                kernel = made
        except CandidateError as error:
            raise EngineError(f"the code of {choice.point} for {launch.where} is not to be had here",
                              why=(str(error),), mend="build the engine anew") from None
        found[site.key] = kernel
    return found


def bundle_of(variant: Variant, kernels: Mapping[str, CudaKernel], more: Iterable[Carried] = ()) -> Bundle:
    """What a variant carries: the kernels of its choices, and candidates beside them."""
    chosen = [Carried(k, variant.choices[k].tactic, variant.choices[k].params, kernels[k]) for k in sorted(kernels)]
    taken = {(c.site, c.tactic, tuple(c.params.items())) for c in chosen}
    rest = [c for c in more if (c.site, c.tactic, tuple(c.params.items())) not in taken]
    return Bundle((*chosen, *rest))


__all__ = ["CodeStore", "bundle_of", "kernel_key", "kernels_of"]
