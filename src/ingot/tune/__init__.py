"""Choosing a kernel for every site: right first, then fast."""
from ingot.tune.cache import TuningCache
from ingot.tune.choice import Choice, Emit, Trial, default_choice, emit_now, generator_version, tactic_named, usable
from ingot.tune.tuner import Device, Progress, Stand, Tuning, tune

__all__ = ["Choice", "Device", "Emit", "Progress", "Stand", "Trial", "Tuning", "TuningCache", "default_choice",
           "emit_now", "generator_version", "tactic_named", "tune", "usable"]
