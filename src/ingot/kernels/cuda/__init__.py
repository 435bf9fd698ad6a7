"""Tactics for NVIDIA GPUs, best guess first: Triton and Gluon source, compiled to cubins on any machine.

A target is `Target("cuda", isa="sm_90", ...)`; the feature "tf32" lets products of f32 use the matrix units' tf32 mode.
Activations of convolutions lie channels last (layout "nhwc"); convolutions and movement take plain operands as well.
"""
from ingot.kernels.cuda.kernel import COUNTERS, WORKSPACE, CudaKernel, CudaLaunch, Pointer, Scalar, TensorMap

__all__ = ["COUNTERS", "WORKSPACE", "CudaKernel", "CudaLaunch", "Pointer", "Scalar", "TensorMap"]
