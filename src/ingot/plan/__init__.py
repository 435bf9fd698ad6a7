"""Where every value of a program lies in memory, decided before anything runs."""
from ingot.plan.check import faults
from ingot.plan.memory import (
    InPlace,
    MemoryPlan,
    bytes_at,
    external_values,
    largest_bytes,
    plan_memory,
    pointwise_in_place,
)

__all__ = ["InPlace", "MemoryPlan", "bytes_at", "external_values", "faults", "largest_bytes", "plan_memory",
           "pointwise_in_place"]
