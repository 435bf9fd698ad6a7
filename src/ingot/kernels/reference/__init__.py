"""The reference: what every kernel is compared with, and what serves a site that no tactic serves."""
from ingot.kernels.reference.layout import from_physical, to_physical

__all__ = ["from_physical", "to_physical"]
