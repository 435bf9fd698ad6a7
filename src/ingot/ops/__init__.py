"""What every op means. Adding a file here and its line below is all it takes to add ops.

Attributes that name an element type do so by its short name ('f32', 'i64'); lists are tuples; an attribute that
is a shape or a position may hold symbolic dimensions (read it with `dims`, which also reads their text form).
"""
from ingot.ops import (
    attention,
    boxes,
    convolution,
    indexing,
    learned,
    linear,
    movement,
    normalisation,
    pointwise,
    pooling,
    quantisation,
    recurrent,
    reduction,
    resize,
    shape,
    short,
)
from ingot.ops.convolution import Window, convolution_window, transposed_window, window
from ingot.ops.movement import clamps, slices_of, split_sizes
from ingot.ops.op import OPS, REQUIRED, Op, declare, infer
from ingot.ops.pooling import pooling_window
from ingot.ops.reduction import reduced_axes
from ingot.ops.shapes import broadcast, dims, ints

OPSET = 28      # the one ONNX opset whose meaning the graph's ops have

__all__ = [
    "OPS", "OPSET", "REQUIRED", "Op", "Window", "attention", "boxes", "broadcast", "clamps", "convolution",
    "convolution_window", "declare", "dims", "indexing", "infer", "ints", "learned", "linear", "movement",
    "normalisation", "pointwise", "pooling", "pooling_window", "quantisation", "recurrent", "reduced_axes", "reduction",
    "resize", "shape", "short", "slices_of",
    "split_sizes", "transposed_window", "window",
]
