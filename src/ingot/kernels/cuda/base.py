"""What CUDA tactics share: `write` gives the source of the launches, `emit` compiles it."""
from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass

from ingot.graph import Dim
from ingot.kernels.cuda.kernel import CudaKernel
from ingot.kernels.cuda.source import Draft
from ingot.kernels.tactic import Params, Site, Tactic
from ingot.target import Target


@dataclass(frozen=True)
class Drafts:
    """A kernel before it is compiled: its launches, bytes of workspace and bytes of counters."""

    launches: tuple[Draft, ...]
    workspace: Dim = 0
    counters: Dim = 0
    data: bytes = b""


class CudaTactic(Tactic):
    """A tactic whose kernels are Triton or Gluon source."""

    @abstractmethod
    def write(self, site: Site, params: Params, target: Target) -> Drafts:
        """The launches at one point of the space. Raises CandidateError if this point cannot be built."""

    def emit(self, site: Site, params: Params, target: Target) -> CudaKernel:
        """The kernel, compiled. Raises CandidateError where Triton refuses it or is not installed."""
        from ingot.kernels.cuda import compiler  # Triton: heavy, optional, needed for this alone
        drafts = self.write(site, params, target)
        launches = tuple(compiler.compile_draft(d, target) for d in drafts.launches)
        return CudaKernel(self.name, "\n\n".join(d.source for d in drafts.launches), (), drafts.workspace,
                          launches=launches, counters=drafts.counters, data=drafts.data)


__all__ = ["CudaTactic", "Drafts"]
