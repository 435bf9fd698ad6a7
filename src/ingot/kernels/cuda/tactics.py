"""The tactics of NVIDIA GPUs, best guess first."""
from ingot.kernels.cuda.along import Running, Scatter, TopK
from ingot.kernels.cuda.attention import FlashAttention
from ingot.kernels.cuda.conv import Convolution, Depthwise
from ingot.kernels.cuda.conv_depthwise import DepthwiseTiles
from ingot.kernels.cuda.conv_stem import StemConvolution
from ingot.kernels.cuda.indexed import ConstantPad, Gather, Generated, OneHot, Pooling, Resampling
from ingot.kernels.cuda.matmul import MatMul
from ingot.kernels.cuda.persistent import PersistentMatMul
from ingot.kernels.cuda.pointwise import Copies, Pointwise
from ingot.kernels.cuda.rows import Normalization, Reduction
from ingot.kernels.cuda.tma import TmaConvolution, TmaMatMul
from ingot.kernels.tactic import Tactic

TACTICS: tuple[Tactic, ...] = (
    DepthwiseTiles(),
    Depthwise(),
    TmaConvolution(),
    StemConvolution(),
    Convolution(),
    PersistentMatMul(),
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
