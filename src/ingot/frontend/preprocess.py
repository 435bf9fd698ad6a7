"""Pre-processing inside the graph: images come as they are decoded, uint8 [N, height, width, 3], red first.

Resizing is linear in the pixels, and its sizes are known: it is two products with constant matrices, one for the rows
and one for the columns. Their weights are those of Pillow's and torchvision's resampling with antialiasing (a triangle
or Catmull-Rom-like cubic, a = -0.5, as wide as the step); cropping keeps some of their rows, a letterbox adds rows of
zeros and a constant. Unlike Pillow nothing is rounded to whole numbers in between: values lie within 1 of 255 of its.
"""
from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np

from ingot.errors import InputError, UnsupportedError
from ingot.graph import F32, U8, Graph, GraphBuilder, Symbol, TensorType
from ingot.graph.dim import Dim
from ingot.ops import infer

_ONES, _ZEROS = (1.0, 1.0, 1.0), (0.0, 0.0, 0.0)


@dataclass(frozen=True)
class Recipe:
    """What is done to an image: how it meets the model's size, then (pixel / scale - mean) / deviation."""

    fit: str                                # "cover": the shorter side, then the middle; "stretch"; "letterbox"
    scale: float = 255.0
    mean: tuple[float, float, float] = _ZEROS
    deviation: tuple[float, float, float] = _ONES
    filter: str = "linear"
    margin: float = 1.0                     # with "cover": the shorter side over the crop's
    blue_first: bool = False
    fill: float = 114.0                     # with "letterbox": of what is added


RECIPES: Mapping[str, Recipe] = {
    "imagenet": Recipe("cover", mean=(0.485, 0.456, 0.406), deviation=(0.229, 0.224, 0.225), margin=256 / 224),
    "clip": Recipe("cover", mean=(0.48145466, 0.4578275, 0.40821073),
                   deviation=(0.26862954, 0.26130258, 0.27577711), filter="cubic"),
    "unit": Recipe("stretch"),
    "signed": Recipe("stretch", mean=(0.5, 0.5, 0.5), deviation=(0.5, 0.5, 0.5)),
    "caffe": Recipe("stretch", scale=1.0, mean=(103.939, 116.779, 123.68), blue_first=True),
    "yolo": Recipe("letterbox"),
}
_SPEC = re.compile(r"(?:(?P<input>[\w.]+)=)?(?P<kind>[a-z]+)(?::(?P<height>\d+)x(?P<width>\d+))?\Z")


def prefix_from(graph: Graph, spec: str) -> tuple[str, Graph]:
    """The graph that makes of decoded images what an input of `graph` takes, and that input's name.

    `spec` is KIND, KIND:HEIGHTxWIDTH or INPUT=KIND:HEIGHTxWIDTH; without a size the images have the model's. Its input
    is u8[N, height, width, 3]. Raises InputError or UnsupportedError.
    """
    found = _SPEC.match(spec)
    if not found or found["kind"] not in RECIPES:
        raise InputError(f"{spec!r} is no pre-processing Ingot knows", where="--preprocess",
                         mend=f"write KIND or KIND:HEIGHTxWIDTH; kinds: {', '.join(RECIPES)}")
    name = found["input"] or _image_input(graph)
    if name not in graph.inputs:
        raise InputError(f"the model has no input '{name}'", where="--preprocess",
                         mend=f"its inputs: {', '.join(graph.inputs)}")
    wanted = graph.types[name]
    if wanted.rank != 4 or wanted.dtype != F32 or wanted.shape[1] != 3:
        raise UnsupportedError(f"input '{name}' is {wanted}, not f32[N,3,height,width]", where="--preprocess",
                               mend="name the input of images: --preprocess INPUT=KIND")
    batch, _, height, width = wanted.shape
    given: tuple[Dim, Dim] = (height, width)
    if found["height"]:
        given = (int(found["height"]), int(found["width"]))
        if not isinstance(height, int) or not isinstance(width, int) or min(given) < 1:
            raise UnsupportedError(f"images of {given[0]}x{given[1]} cannot be brought to {height}x{width}",
                                   where="--preprocess", mend="fix the model's height and width: --shapes")
    return name, _prefix(name, RECIPES[found["kind"]], batch, given, (height, width), graph.symbols)


def _image_input(graph: Graph) -> str:
    found = [v for v in graph.inputs if graph.types[v].rank == 4 and graph.types[v].shape[1] == 3]
    if len(found) != 1:
        raise InputError(f"the model has {len(found)} inputs of three channels", where="--preprocess",
                         mend="name one: --preprocess INPUT=KIND")
    return found[0]


def _prefix(name: str, recipe: Recipe, batch: Dim, given: tuple[Dim, Dim], wanted: tuple[Dim, Dim],
            symbols: Mapping[str, Symbol]) -> Graph:
    shape = (batch, *given, 3)
    used = {s for d in shape if not isinstance(d, int) for s in d.symbols}
    build = GraphBuilder(infer, {k: s for k, s in symbols.items() if k in used})
    value = build.input(name, TensorType(U8, shape))
    origin = ("pre-processing",)
    value = build.node("Transpose", value, perm=(0, 3, 1, 2), origin=origin)
    value = build.node("Cast", value, to="f32", origin=origin)
    fill: np.ndarray | None = None
    if given != wanted:
        sizes = [(int(g), int(w)) for g, w in zip(given, wanted, strict=True)]      # type: ignore[arg-type]
        rows, columns, fill = resampling(recipe, sizes[0], sizes[1])
        value = build.node("MatMul", build.constant(f"{name}.rows", rows), value, origin=origin)
        value = build.node("MatMul", value, build.constant(f"{name}.columns", np.ascontiguousarray(columns.T)),
                           origin=origin)
        if recipe.filter == "cubic":
            low = build.constant(f"{name}.least", np.array(0, np.float32))
            high = build.constant(f"{name}.most", np.array(255, np.float32))
            value = build.node("Clip", value, low, high, origin=origin)
    if fill is not None and fill.any():
        value = build.node("Add", value, build.constant(f"{name}.fill", fill), origin=origin)
    if recipe.blue_first:
        value = build.node("Gather", value, build.constant(f"{name}.order", np.array([2, 1, 0], np.int64)), axis=1,
                           origin=origin)
    factor = 1.0 / (recipe.scale * np.array(recipe.deviation))
    shift = -np.array(recipe.mean) / np.array(recipe.deviation)
    for op, numbers, neutral in (("Mul", factor, 1.0), ("Add", shift, 0.0)):
        if np.any(numbers != neutral):
            constant = build.constant(f"{name}.{op.lower()}", numbers.astype(np.float32).reshape(1, 3, 1, 1))
            value = build.node(op, value, constant, origin=origin)
    return build.finish(value)


def resampling(recipe: Recipe, height: tuple[int, int], width: tuple[int, int]
               ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The matrices of rows and of columns, f32[to, from], and what is added, f32[1, 1, height, width].

    `height` and `width` are (from, to).
    """
    if recipe.fit == "stretch":
        sizes, before = [height[1], width[1]], [0, 0]
    elif recipe.fit == "cover":
        side = min(height[1], width[1])
        shorter = round(side * recipe.margin)
        short = min(height[0], width[0])
        sizes = [max(shorter * n // short if n != short else shorter, to) for n, to in (height, width)]
        before = [-round((n - to) / 2.0) for n, to in zip(sizes, (height[1], width[1]), strict=True)]
    else:
        step = min(height[1] / height[0], width[1] / width[0])
        sizes = [max(1, round(height[0] * step)), max(1, round(width[0] * step))]
        before = [(height[1] - sizes[0]) // 2, (width[1] - sizes[1]) // 2]
    rows, columns = (_matrix(recipe.filter, n, size, to, start) for (n, to), size, start in
                     zip((height, width), sizes, before, strict=True))
    covered = np.outer(rows.any(axis=1), columns.any(axis=1))
    return rows, columns, np.where(covered, 0, recipe.fill).astype(np.float32)[None, None]


def _matrix(kind: str, given: int, size: int, wanted: int, start: int) -> np.ndarray:
    """Resampling of `given` values to `size`, of which those from -start on are kept, `wanted` in all."""
    step = given / size
    reach = max(step, 1.0)                              # antialiasing: the filter is as wide as the step
    support = (1.0 if kind == "linear" else 2.0) * reach
    whole = np.zeros((size, given))
    for i in range(size):
        centre = (i + 0.5) * step
        first, last = max(0, int(centre - support + 0.5)), min(given, int(centre + support + 0.5))
        distance = np.abs((np.arange(first, last) + 0.5 - centre) / reach)
        weights = np.maximum(0.0, 1.0 - distance) if kind == "linear" else _cubic(distance)
        whole[i, first:last] = weights / weights.sum()
    kept = np.zeros((wanted, given), np.float32)
    low, high = max(0, start), min(wanted, start + size)
    kept[low:high] = whole[low - start:high - start]
    return kept


def _cubic(x: np.ndarray, a: float = -0.5) -> np.ndarray:
    near = ((a + 2) * x - (a + 3)) * x * x + 1
    far = ((x - 5) * x + 8) * x * a - 4 * a
    return np.where(x < 1, near, np.where(x < 2, far, 0.0))


def joined(prefix: Graph, name: str, graph: Graph) -> Graph:
    """`graph` with its input `name` made by `prefix` from an input of the same name. Raises InputError."""
    taken = set(graph.types) - {name}
    again = {v: _free(f"{name}.{i}", taken | set(prefix.types)) for i, v in enumerate(prefix.types)
             if v != name and v in taken}
    made = again.get(prefix.outputs[0], prefix.outputs[0])

    def called(value: str) -> str:
        return again.get(value, value)

    nodes = [replace(n, inputs=tuple(map(called, n.inputs)), outputs=tuple(map(called, n.outputs)))
             for n in prefix.nodes]
    nodes += [replace(n, inputs=tuple(made if i == name else i for i in n.inputs)) for n in graph.nodes]
    types = {**{k: t for k, t in graph.types.items() if k != name}, **{called(k): t for k, t in prefix.types.items()}}
    constants = {**graph.constants, **{called(k): a for k, a in prefix.constants.items()}}
    outputs = tuple(made if o == name else o for o in graph.outputs)
    return Graph(graph.inputs, outputs, tuple(nodes), constants, types, {**graph.symbols, **prefix.symbols})


def _free(stem: str, taken: set[str]) -> str:
    while stem in taken:
        stem += "_"
    return stem
