"""Tactics for NVIDIA GPUs, best guess first: Triton and Gluon source, compiled to cubins on any machine.

A target is `Target("cuda", isa="sm_90", ...)`; the feature "tf32" lets products of f32 use the matrix units' tf32 mode.
Activations of convolutions lie channels last (layout "nhwc"); convolutions and movement take plain operands as well.
"""
from ingot.kernels.cuda.along import Running, Scatter, TopK
from ingot.kernels.cuda.attention import FlashAttention
from ingot.kernels.cuda.base import CudaTactic, Drafts
from ingot.kernels.cuda.conv import Convolution, Depthwise
from ingot.kernels.cuda.conv_stem import StemConvolution
from ingot.kernels.cuda.indexed import ConstantPad, Gather, Generated, OneHot, Pooling, Resampling
from ingot.kernels.cuda.kernel import COUNTERS, DATA, WORKSPACE, CudaKernel, CudaLaunch, Pointer, Scalar, TensorMap
from ingot.kernels.cuda.matmul import MatMul
from ingot.kernels.cuda.pointwise import Copies, Pointwise
from ingot.kernels.cuda.rows import Normalization, Reduction
from ingot.kernels.cuda.tma import TmaConvolution, TmaMatMul
from ingot.kernels.tactic import TACTICS

TACTICS["cuda"] = (
    Depthwise(),
    TmaConvolution(),
    StemConvolution(),
    Convolution(),
    TmaMatMul(),
    MatMul(),
    FlashAttention(),
    Normalization(),
    Reduction(),
    Pointwise(),
    Copies(),
    Pooling(),
    Resampling(),
    ConstantPad(),
    Gather(),
    OneHot(),
    Generated(),
    Running(),
    TopK(),
    Scatter(),
)

__all__ = ["COUNTERS", "DATA", "WORKSPACE", "CudaKernel", "CudaLaunch", "CudaTactic", "Drafts", "Pointer", "Scalar",
           "TensorMap"]
