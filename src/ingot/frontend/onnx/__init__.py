"""ONNX in and out."""
from ingot.frontend.onnx.convert import graph_from_onnx

__all__ = ["graph_from_onnx"]
