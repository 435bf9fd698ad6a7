"""The tactics of every op that is neither a contraction nor attention."""
from ingot.kernels.tactic import Tactic
from ingot.kernels.x86.along import ArgBest, Hardmax, Norm, Running, TopK
from ingot.kernels.x86.boxes import SelectBoxes
from ingot.kernels.x86.channels import LocalResponse
from ingot.kernels.x86.einsum import Einsum
from ingot.kernels.x86.fill import Fill, Nothing, Sizes, Triangle
from ingot.kernels.x86.gather import Gather, GatherElements, GatherND, OneHot, Scatter
from ingot.kernels.x86.learned import PairwiseCoupling, Trees
from ingot.kernels.x86.linear_attention import LinearAttention
from ingot.kernels.x86.movement import ConstantPad, Copies
from ingot.kernels.x86.normalisation import GroupStatistics, RowNormalization
from ingot.kernels.x86.pointwise import Pointwise
from ingot.kernels.x86.pooling import Pooling
from ingot.kernels.x86.recurrent import Recurrent
from ingot.kernels.x86.reduction import Reduction
from ingot.kernels.x86.resample import Resampling
from ingot.kernels.x86.sampling import GridSample, RoiAlign
from ingot.kernels.x86.softmax import SoftmaxColumns, SoftmaxRows
from ingot.kernels.x86.transpose import Reorder, Transpose

GENERAL: tuple[Tactic, ...] = (
    Pointwise(),
    SoftmaxRows(),
    SoftmaxColumns(),
    RowNormalization(),
    GroupStatistics(),
    Reduction(),
    Pooling(),
    Transpose(),
    Reorder(),
    Copies(),
    ConstantPad(),
    Resampling(),
    Gather(),
    GatherElements(),
    GatherND(),
    Scatter(),
    OneHot(),
    ArgBest(),
    Running(),
    TopK(),
    Norm(),
    Hardmax(),
    LocalResponse(),
    Sizes(),
    Einsum(),
    Recurrent(),
    LinearAttention(),
    GridSample(),
    RoiAlign(),
    SelectBoxes(),
    Trees(),
    PairwiseCoupling(),
    Fill(),
    Triangle(),
    Nothing(),
)
