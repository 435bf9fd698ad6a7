"""What every op means. Adding a file here and its line below is all it takes to add ops."""
from ingot.ops.op import OPS, REQUIRED, Op, declare, infer

__all__ = ["OPS", "REQUIRED", "Op", "declare", "infer"]
