"""Kernels: one folder per target, one file per tactic family, and a registry that imports a target on demand."""
from ingot.kernels.tactic import TACTICS, Kernel, Operand, Params, Site, Step, Tactic, able

__all__ = ["TACTICS", "Kernel", "Operand", "Params", "Site", "Step", "Tactic", "able"]
