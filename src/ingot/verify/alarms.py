"""What a graph alone gives away: that it was exported for training, that it is random, what was left outside."""
from __future__ import annotations

from fractions import Fraction

import numpy as np

from ingot.frontend.preprocess import RECIPES
from ingot.frontend.source import Alarm
from ingot.graph import Graph, Node

_RANDOM = frozenset({"RandomNormal", "RandomNormalLike", "RandomUniform", "RandomUniformLike", "Bernoulli",
                     "Multinomial"})
_EXACT = 1024       # a scale that is a fraction with such a denominator is the same number in f32 and f64
_IMAGE = 32         # pixels a side at least, for an input to be taken for an image


def graph_alarms(graph: Graph) -> tuple[Alarm, ...]:
    """Every alarm a graph raises by itself."""
    return (*training_alarms(graph), *preprocessing_alarms(graph))


def scale_alarms(graph: Graph) -> tuple[Alarm, ...]:
    """Why a Resize by scales may have another size than in the framework: size * scale lies so near a whole number that
    rounding decides, and ONNX keeps scales in f32 where PyTorch multiplies in f64 (then both round down)."""
    found = []
    for node in graph.nodes:
        scales, x = node.attrs.get("scales"), graph.types.get(node.inputs[0])
        if node.op != "Resize" or not isinstance(scales, tuple) or x is None or len(scales) != x.rank:
            continue
        for size, scale in zip(x.shape, scales, strict=True):
            due = size * float(scale) if isinstance(size, int) else 0.5
            inexact = Fraction(float(scale)).denominator > _EXACT
            if inexact and abs(due - round(due)) <= 2.0 ** -22 * abs(due):
                found.append(Alarm("inexact scale", f"{size} times the scale {scale:.9g} is {due:.9g}, a whole number "
                                   "but for rounding: the export's f32 scale and the framework's f64 give other sizes",
                                   where=node.where, mend="give the size instead: interpolate(x, size=...)"))
    return tuple(dict.fromkeys(found))


def training_alarms(graph: Graph) -> tuple[Alarm, ...]:
    """Nodes that only a model exported in training mode has, and nodes that draw random numbers."""
    found = [n for n in graph.nodes if _trains(graph, n)]
    alarms = []
    if found:
        alarms.append(Alarm("training mode", "the model was exported in training mode",
                            where=", ".join(n.where for n in found[:3]) + (" ..." if len(found) > 3 else ""),
                            why="dropout is random there, and batch norm takes its statistics from the batch",
                            mend="call model.eval(), then export it again"))
    drawn = [n for n in graph.nodes if n.op in _RANDOM]
    if drawn:
        alarms.append(Alarm("random", f"{drawn[0].op} draws random numbers", where=drawn[0].where,
                            why="its result differs from run to run, so it cannot be verified",
                            mend="give the random numbers as an input"))
    return tuple(alarms)


def _trains(graph: Graph, node: Node) -> bool:
    if node.op == "BatchNormalization":
        return bool(node.attrs.get("training_mode", 0))
    if node.op != "Dropout" or len(node.inputs) < 3 or not node.inputs[2]:
        return False
    held = graph.constants.get(node.inputs[2])
    return held is None or bool(np.any(held))


def preprocessing_alarms(graph: Graph) -> tuple[Alarm, ...]:
    """Images that go straight into a convolution: whatever scales and normalises them stayed outside the graph."""
    found = []
    for name in graph.inputs:
        t = graph.types[name]
        readers = graph.readers.get(name, ())
        if (t.dtype.kind == "float" and t.rank == 4 and t.shape[1] in (1, 3) and len(readers) == 1
                and readers[0].op == "Conv" and all(not isinstance(d, int) or d >= _IMAGE for d in t.shape[2:])):
            found.append(Alarm("pre-processing", f"the images of input '{name}' go into a convolution as they come",
                               where=readers[0].where,
                               why="resizing and normalising stayed outside the graph, where nothing checks them",
                               mend=f"--preprocess {' or '.join(RECIPES)} puts them inside"))
    return tuple(found)
