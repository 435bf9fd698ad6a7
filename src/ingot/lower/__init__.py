"""Graph -> Program: cut the graph into sites, each to be computed by one kernel."""
from ingot.lower.program import Launch, Program, View

__all__ = ["Launch", "Program", "View"]
