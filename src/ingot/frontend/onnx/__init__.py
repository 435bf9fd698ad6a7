"""ONNX in and out."""
from ingot.frontend.onnx.convert import graph_from_onnx
from ingot.frontend.onnx.write import onnx_from_graph

__all__ = ["graph_from_onnx", "onnx_from_graph"]
