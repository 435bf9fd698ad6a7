"""Kernels for NVIDIA GPUs: Triton and Gluon source, compiled to cubins on any machine. The list is in tactics.py.

A target is `Target("cuda", isa="sm_90", ...)`; the feature "tf32" lets products of f32 use the matrix units' tf32 mode.
Activations of convolutions lie channels last (layout "nhwc"); convolutions and movement take plain operands as well.
What stands here is what a kernel is made of, as data: all that running one needs.
"""
from ingot.kernels.cuda.kernel import COUNTERS, DATA, WORKSPACE, CudaKernel, CudaLaunch, Pointer, Scalar, TensorMap

__all__ = ["COUNTERS", "DATA", "WORKSPACE", "CudaKernel", "CudaLaunch", "Pointer", "Scalar", "TensorMap"]
