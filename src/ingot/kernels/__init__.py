"""Kernels: one folder per target, one file per tactic family, one registry."""
from ingot.kernels import x86
from ingot.kernels.tactic import TACTICS, Kernel, Operand, Params, Site, Step, Tactic, able

__all__ = ["TACTICS", "Kernel", "Operand", "Params", "Site", "Step", "Tactic", "able", "x86"]
