"""Instruction sets as data: what a kernel generator must know of one, and which one this machine has."""
from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import llvmlite.binding as llvm

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


def host_target(threads: int) -> Target:
    """This machine's CPU, with the widest instruction set it has. Raises UnsupportedError without AVX2."""
    features = frozenset(f for f, on in llvm.get_host_cpu_features().items() if on)
    for isa in sorted(ISAS.values(), key=lambda i: -i.lanes):
        if isa.kind == "x86" and features.issuperset(isa.features):
            return Target(isa.kind, isa.name, features, llvm.get_host_cpu_name(), _device_name(), threads)
    raise UnsupportedError("this CPU has no instruction set Ingot generates code for",
                           why=(f"found {llvm.get_host_cpu_name()}",),
                           mend=f"run on a CPU with one of {', '.join(i for i in ISAS if ISAS[i].kind == 'x86')}")


def _device_name() -> str:
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as file:
            for line in file:
                if line.startswith("model name"):
                    return line.partition(":")[2].strip()
    except OSError:
        pass
    return "unknown CPU"
