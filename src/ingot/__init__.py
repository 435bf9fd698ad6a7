"""Ingot: from a trained model to a verified engine as fast as the very device allows."""
from ingot.build import build, load
from ingot.engine import Engine
from ingot.errors import IngotError
from ingot.graph import Symbol
from ingot.options import BuildOptions
from ingot.runtime.session import Session
from ingot.target import Target

__all__ = ["BuildOptions", "Engine", "IngotError", "Session", "Symbol", "Target", "build", "load"]
