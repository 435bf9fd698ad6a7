"""Measuring: latency on this machine, and other runtimes side by side."""
from ingot.bench.gpu_limits import GpuLimits, gpu_limits, limits_of
from ingot.bench.latency import Latency, measure, memory_now, peak_memory, summary
from ingot.bench.limits import Limits, machine_limits, peak_gflops
from ingot.bench.peers import (
    Peer,
    alternate,
    alternate_blocks,
    onnxruntime_peer,
    openvino_peer,
    ratio_interval,
    torch_peer,
)
from ingot.bench.roofline import Spent, spent, trace, work
from ingot.bench.throughput import Arrangement, arrangements, measure_arrangements

__all__ = [
    "Arrangement", "GpuLimits", "Latency", "Limits", "Peer", "Spent", "alternate", "alternate_blocks", "arrangements",
    "gpu_limits", "limits_of", "machine_limits", "measure", "measure_arrangements", "memory_now", "onnxruntime_peer",
    "openvino_peer", "peak_gflops", "peak_memory", "ratio_interval", "spent", "summary", "torch_peer", "trace",
    "work",
]
