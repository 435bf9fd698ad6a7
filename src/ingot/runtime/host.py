"""This machine: its instruction set, and how many threads it grants this process."""
from __future__ import annotations

import ctypes
import os
import platform
from functools import cache
from pathlib import Path

import llvmlite.binding as llvm

from ingot.errors import UnsupportedError
from ingot.target import Target

# what each instruction set level stands for; the first that the machine has in full is its level
LEVELS: tuple[tuple[str, frozenset[str]], ...] = (
    ("avx512", frozenset({"avx512f", "avx512vl", "avx512bw", "avx512dq", "avx2", "fma", "f16c"})),
    ("avx2", frozenset({"avx2", "fma", "f16c"})),
)
# taken away from a target of a lower level than its machine's, so that the generated code really is of that level
AVX512 = frozenset({
    "avx512f", "avx512vl", "avx512bw", "avx512dq", "avx512cd", "avx512vnni", "avx512bf16", "avx512fp16",
    "avx512ifma", "avx512vbmi", "avx512vbmi2", "avx512bitalg", "avx512vpopcntdq", "avx512vp2intersect"})


@cache
def _device() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()


@cache
def _cpu() -> tuple[str, frozenset[str]]:
    """LLVM's name of this cpu, and the features it has."""
    features = frozenset(name for name, has in llvm.get_host_cpu_features().items() if has)
    if "amx-tile" in features and not _may_use_tiles():
        features = frozenset(f for f in features if not f.startswith("amx-"))
    return llvm.get_host_cpu_name(), features


def _may_use_tiles() -> bool:
    """Whether the kernel lets this process use AMX's tile registers: it must be asked once (arch_prctl, Linux 5.16)."""
    return bool(ctypes.CDLL(None).syscall(158, 0x1023, 18) == 0)   # ARCH_REQ_XCOMP_PERM for XTILEDATA


def _quota(root: Path) -> float | None:
    """CPUs granted by the control groups of this process, None where unlimited. Version 2 first, then 1."""
    found: list[float] = []
    try:
        groups = [line.split(":", 2) for line in (root / "proc/self/cgroup").read_text().splitlines()]
    except OSError:
        return None
    for _, controllers, path in (g for g in groups if len(g) == 3):
        if controllers and "cpu" not in controllers.split(","):
            continue
        base = root / "sys/fs/cgroup" / ("cpu" if controllers else "")
        here = base / path.lstrip("/")
        for folder in (here, *here.parents):        # a limit holds for all that lies below it
            try:
                if controllers:
                    quota, period = (float((folder / f"cpu.cfs_{n}_us").read_text()) for n in ("quota", "period"))
                else:
                    words = (folder / "cpu.max").read_text().split()
                    quota, period = (-1.0 if words[0] == "max" else float(words[0])), float(words[1])
            except (OSError, ValueError, IndexError):
                quota, period = -1.0, 1.0
            if quota > 0 and period > 0:
                found.append(quota / period)
            if folder == base:
                break
    return min(found, default=None)


def available_cpus() -> tuple[int, ...]:
    """The CPUs this process may run on."""
    return tuple(sorted(os.sched_getaffinity(0)))


def thread_count(asked: int | None = None, root: Path = Path("/")) -> int:
    """Worker threads to use: what is asked for, else what affinity and control groups grant; at least 1."""
    if asked:
        return asked
    quota = _quota(root)
    cpus = len(available_cpus())
    return max(1, min(cpus, round(quota) if quota else cpus))


def host_target(threads: int | None = None, isa: str | None = None) -> Target:
    """The target that stands for this machine, or for a lower instruction set level of it.

    Raises UnsupportedError where the machine lacks the level.
    """
    cpu, features = _cpu()
    levels = [name for name, needs in LEVELS if needs <= features]
    if not levels:
        return Target("reference", device=_device(), threads=thread_count(threads))
    level = isa or levels[0]
    if level not in levels:
        raise UnsupportedError(f"this machine has no {level}", where=f"{_device()} ({cpu})",
                               mend=f"choose one of: {', '.join(levels)}")
    kept = features if level == "avx512" else features - AVX512
    return Target("x86", level, kept, cpu, _device(), thread_count(threads))
