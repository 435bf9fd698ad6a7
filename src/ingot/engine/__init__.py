"""The engine: everything a run needs, as data."""
from ingot.engine.engine import Engine, Variant
from ingot.engine.variant import make_variant

__all__ = ["Engine", "Variant", "make_variant"]
