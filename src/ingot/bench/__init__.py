"""Measuring: latency on this machine, and other runtimes side by side."""
from ingot.bench.latency import Latency, measure, memory_now, peak_memory, summary
from ingot.bench.peers import Peer, alternate, onnxruntime_peer, openvino_peer, torch_peer

__all__ = [
    "Latency", "Peer", "alternate", "measure", "memory_now", "onnxruntime_peer", "openvino_peer", "peak_memory",
    "summary", "torch_peer",
]
