"""Where every value of a program lies in memory, decided before anything runs."""
from ingot.plan.check import faults
from ingot.plan.memory import MemoryPlan, external_values, plan_memory, pointwise_in_place

__all__ = ["MemoryPlan", "external_values", "faults", "plan_memory", "pointwise_in_place"]
