"""The engine: everything a run needs, as data."""
from ingot.engine.engine import Engine, Sealed, Variant, opened
from ingot.engine.flow import joint
from ingot.engine.format import graph_digest, read_engine, write_engine
from ingot.engine.variant import is_exact, make_variant

__all__ = ["Engine", "Sealed", "Variant", "graph_digest", "is_exact", "joint", "make_variant", "opened",
           "read_engine", "write_engine"]
