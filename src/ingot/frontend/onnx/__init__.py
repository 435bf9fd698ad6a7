"""ONNX in and out."""
from ingot.frontend.onnx.convert import flow_from_onnx
from ingot.frontend.onnx.write import onnx_from_graph

__all__ = ["flow_from_onnx", "onnx_from_graph"]
