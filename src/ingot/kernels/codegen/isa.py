"""Instruction sets as data: what a kernel generator must know of one."""
from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from ingot.errors import UnsupportedError
from ingot.target import Target


@dataclass(frozen=True)
class Isa:
    """A vector instruction set. `lanes` are f32 elements per register."""

    name: str
    kind: str                   # the target kind that uses it
    lanes: int
    registers: int
    triple: str
    cpu: str                    # LLVM cpu when the very device is not known
    features: tuple[str, ...]   # what the device must have

    @property
    def block(self) -> int:
        """Channels per block in the blocked layout."""
        return max(self.lanes, 8)


ISAS: Mapping[str, Isa] = {i.name: i for i in (
    Isa("avx2", "x86", 8, 16, "x86_64-unknown-linux-gnu", "haswell", ("avx2", "fma", "f16c")),
    Isa("avx512", "x86", 16, 32, "x86_64-unknown-linux-gnu", "skylake-avx512",
        ("avx512f", "avx512dq", "avx512bw", "avx512vl", "avx512cd")),
    Isa("neon", "neon", 4, 32, "aarch64-unknown-linux-gnu", "cortex-a76", ("neon",)),
)}


def isa_of(target: Target) -> Isa:
    """The instruction set of a target. Raises UnsupportedError for an unknown one."""
    if target.isa not in ISAS:
        raise UnsupportedError(f"unknown instruction set '{target.isa}'", mend=f"known: {', '.join(ISAS)}")
    return ISAS[target.isa]


def target_for(isa: str, threads: int = 1) -> Target:
    """A target for an instruction set alone, no device: what code is generated for on machines that lack it."""
    found = isa_of(Target("", isa))
    return Target(found.kind, found.name, frozenset(found.features), found.cpu, "", threads)
