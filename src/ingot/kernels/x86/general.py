"""The tactics of every op that is neither a contraction nor attention."""
from ingot.kernels.tactic import Tactic
from ingot.kernels.x86.pointwise import Pointwise

GENERAL: tuple[Tactic, ...] = (
    Pointwise(),
)
