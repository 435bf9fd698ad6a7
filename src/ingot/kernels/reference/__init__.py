"""The reference: what every kernel is compared with, and what serves a site that no tactic serves."""
from ingot.kernels.reference.layout import from_physical, to_physical
from ingot.kernels.reference.site import run_site, run_wide

__all__ = ["from_physical", "run_site", "run_wide", "to_physical"]
