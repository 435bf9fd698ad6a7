"""The tactics of CPUs, best guess first."""
from ingot.kernels.tactic import Tactic
from ingot.kernels.x86.attention import BlockedAttention
from ingot.kernels.x86.conv_chain import ConvolutionChain
from ingot.kernels.x86.conv_depthwise import DepthwiseConvolution
from ingot.kernels.x86.conv_depthwise_words import IntegerDepthwise
from ingot.kernels.x86.conv_direct import DirectConvolution, ProductConvolution, StemConvolution
from ingot.kernels.x86.conv_im2col import Im2colConvolution
from ingot.kernels.x86.conv_plain import PlainConvolution
from ingot.kernels.x86.conv_transposed import TransposedConvolution
from ingot.kernels.x86.conv_winograd import WinogradConvolution
from ingot.kernels.x86.conv_winograd_short import ShortWinograd
from ingot.kernels.x86.conv_words import IntegerConvolution, ShortConvolution
from ingot.kernels.x86.general import GENERAL
from ingot.kernels.x86.matmul import TiledMatMul
from ingot.kernels.x86.matmul_amx import AmxMatMul
from ingot.kernels.x86.matmul_groups import GroupedMatMul
from ingot.kernels.x86.matmul_plain import PlainMatMul
from ingot.kernels.x86.matmul_strassen import StrassenMatMul
from ingot.kernels.x86.matmul_words import IntegerMatMul, ShortMatMul

_CONVOLUTIONS = (ProductConvolution(), DirectConvolution(), StemConvolution(), DepthwiseConvolution(),
                 TransposedConvolution(), Im2colConvolution())

TACTICS: tuple[Tactic, ...] = (
    *_CONVOLUTIONS, WinogradConvolution(), PlainConvolution(*_CONVOLUTIONS), IntegerConvolution(), IntegerDepthwise(),
    ShortConvolution(), ShortWinograd(), ConvolutionChain(),

    TiledMatMul(), StrassenMatMul(), PlainMatMul(), IntegerMatMul(), AmxMatMul(), ShortMatMul(),
    GroupedMatMul(),
    BlockedAttention(),

    *GENERAL,
)
