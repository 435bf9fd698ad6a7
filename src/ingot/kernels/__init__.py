"""Kernels: one folder per target, one file per tactic family, one registry."""
from ingot.kernels.tactic import TACTICS, Kernel, Operand, Params, Site, Step, Tactic, able

# isort: split
from ingot.kernels import cuda, x86  # importing a target registers its tactics, which are made of the names above

__all__ = ["TACTICS", "Kernel", "Operand", "Params", "Site", "Step", "Tactic", "able", "cuda", "x86"]
