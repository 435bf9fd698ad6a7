"""Choosing a kernel for every site: right first, then fast."""
from ingot.tune.choice import Choice, Trial, default_choice, generator_version, tactic_named

__all__ = ["Choice", "Trial", "default_choice", "generator_version", "tactic_named"]
