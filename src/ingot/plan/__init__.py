"""Where every value of a program lies in memory, decided before anything runs."""
from ingot.plan.memory import MemoryPlan, plan_memory, pointwise_in_place

__all__ = ["MemoryPlan", "plan_memory", "pointwise_in_place"]
