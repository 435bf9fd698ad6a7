"""A target: the kind of device, its instruction set, and which very device it is."""
from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Target:
    """What code is generated for. `device` names the very device; it enters every tuning key."""

    kind: str                                   # "x86", "neon", "cuda", "reference"
    isa: str = ""                               # "avx2", "avx512"
    features: frozenset[str] = frozenset()      # LLVM feature names the device has
    cpu: str = ""                               # LLVM cpu name, for scheduling
    device: str = ""                            # for example "AMD EPYC 9R14"
    threads: int = 1                            # worker threads a run uses, the caller included

    def __str__(self) -> str:
        return f"{self.kind}/{self.isa}/{self.cpu}/{self.threads}t"

    @property
    def fingerprint(self) -> str:
        """What must be equal for tuning results and cached code to be used again."""
        return f"{self.kind}/{self.isa}/{self.cpu}/{self.device}/{self.threads}t"
