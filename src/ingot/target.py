"""A target: the kind of device, its instruction set, and which very device it is."""
from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Target:
    """What code is generated for. `device` names the very device; it enters every tuning key.

    Of a GPU, `features` holds facts, "multiprocessors=132" or "driver=580.65" (see `fact`), and "tf32" where products
    of f32 may use the matrix units' shorter mode. Without a `device` it stands for any GPU of its architecture: what
    a machine without one builds for.
    """

    kind: str                                   # "x86", "neon", "cuda", "reference"
    isa: str = ""                               # "avx2", "avx512"; "sm_90"
    features: frozenset[str] = frozenset()      # LLVM feature names the device has; facts of a GPU
    cpu: str = ""                               # LLVM cpu name, for scheduling
    device: str = ""                            # for example "AMD EPYC 9R14", "NVIDIA H200"
    threads: int = 1                            # worker threads a run uses, the caller included

    def __str__(self) -> str:
        if self.kind == "cuda":
            return f"cuda:{self.isa}" + (f" ({self.device})" if self.device else "")
        return f"{self.kind}/{self.isa}/{self.cpu}/{self.threads}t"

    @property
    def fingerprint(self) -> str:
        """What must be equal for tuning results and cached code to be used again."""
        mode = "tf32" if "tf32" in self.features else self.cpu
        return f"{self.kind}/{self.isa}/{mode}/{self.device}/{self.threads}t"

    def fact(self, name: str, default: int) -> int:
        """A number among the features, for example of "multiprocessors=132"."""
        for feature in self.features:
            key, _, value = feature.partition("=")
            if key == name and value.isdigit():
                return int(value)
        return default
