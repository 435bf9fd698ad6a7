"""Graph -> Program: cut the graph into sites, each to be computed by one kernel."""
from ingot.lower.program import Launch, Program, View
from ingot.lower.regions import lower, site_of

__all__ = ["Launch", "Program", "View", "lower", "site_of"]
