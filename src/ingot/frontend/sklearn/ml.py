"""ai.onnx.ml in standard ops: what has kernels, so that scalers, linear models and trees are compiled.

A tree ensemble walks all its trees at once: a step looks up feature, threshold and children of the node every (row,
tree) stands at, and goes left or right; leaves lead to themselves, so as many steps as the deepest tree has levels
bring everyone to a leaf (the tree-traversal form of Nakandala et al., "A Tensor Compiler for Unified Machine Learning
Prediction Serving", OSDI 2020). Ops not written here stay as they are, and run on the reference.
"""
from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import onnx
from onnx import helper, numpy_helper

DOMAIN = "ai.onnx.ml"
Attributes = dict[str, Any]


class Writer:
    """Nodes and constants in the place of one node. Lives inside `standard`."""

    def __init__(self, node: onnx.NodeProto, taken: set[str], constants: dict[str, np.ndarray]) -> None:
        self.node, self.taken, self.known = node, taken, constants
        self.nodes: list[onnx.NodeProto] = []
        self.initializers: list[onnx.TensorProto] = []

    def fresh(self, stem: str) -> str:
        count = 0
        while (name := f"{self.node.name or self.node.output[0]}.{stem}{count or ''}") in self.taken:
            count += 1
        self.taken.add(name)
        return name

    def constant(self, array: Any, stem: str = "c") -> str:
        name = self.fresh(stem)
        self.initializers.append(numpy_helper.from_array(np.asarray(array), name))
        return name

    def put(self, op: str, *inputs: str, output: str = "", **attributes: Any) -> str:
        output = output or self.fresh(op.lower())
        made = helper.make_node(op, list(inputs), [output], name=output, **attributes)
        self.nodes.append(made)
        return output


def standard(model: onnx.ModelProto) -> onnx.ModelProto:
    """The model with every ai.onnx.ml node that has a form in standard ops written so."""
    graph = model.graph
    taken = {n for node in graph.node for n in (*node.input, *node.output)} | {t.name for t in graph.initializer}
    constants = {t.name: numpy_helper.to_array(t) for t in graph.initializer}
    nodes: list[onnx.NodeProto] = []
    for node in graph.node:
        form = FORMS.get(node.op_type) if node.domain == DOMAIN else None
        writer = Writer(node, taken, constants)
        attributes = {a.name: _value(a) for a in node.attribute}
        if form is not None and form(writer, attributes):
            nodes += writer.nodes
            graph.initializer.extend(writer.initializers)
        else:
            nodes.append(node)
    del graph.node[:]
    graph.node.extend(nodes)
    return model


def _value(attribute: onnx.AttributeProto) -> Any:
    held = helper.get_attribute_value(attribute)
    if isinstance(held, bytes):
        return held.decode()
    return [h.decode() if isinstance(h, bytes) else h for h in held] if isinstance(held, (list, tuple)) else held


def _float(w: Writer, value: str) -> str:
    return w.put("Cast", value, to=onnx.TensorProto.FLOAT)


# --- scalers, features ------------------------------------------------------------------------------------------------

def _scaler(w: Writer, a: Attributes) -> bool:
    moved = w.put("Sub", _float(w, w.node.input[0]), w.constant(np.array(a["offset"], np.float32)))
    w.put("Mul", moved, w.constant(np.array(a["scale"], np.float32)), output=w.node.output[0])
    return True


def _normalizer(w: Writer, a: Attributes) -> bool:
    x, axes = _float(w, w.node.input[0]), w.constant(np.array([1], np.int64))
    op = {"MAX": "ReduceMax", "L1": "ReduceL1", "L2": "ReduceL2"}[a.get("norm", "MAX")]
    length = w.put(op, w.put("Abs", x) if op == "ReduceMax" else x, axes, keepdims=1)
    nothing = w.put("Equal", length, w.constant(np.float32(0)))
    w.put("Div", x, w.put("Where", nothing, w.constant(np.float32(1)), length), output=w.node.output[0])
    return True


def _binarizer(w: Writer, a: Attributes) -> bool:
    above = w.put("Greater", _float(w, w.node.input[0]), w.constant(np.float32(a.get("threshold", 0.0))))
    w.put("Cast", above, to=onnx.TensorProto.FLOAT, output=w.node.output[0])
    return True


def _imputer(w: Writer, a: Attributes) -> bool:
    if "imputed_value_floats" not in a:
        return False
    x, wanted = w.node.input[0], float(a.get("replaced_value_float", 0.0))
    held = w.put("IsNaN", x) if np.isnan(wanted) else w.put("Equal", x, w.constant(np.float32(wanted)))
    w.put("Where", held, w.constant(np.array(a["imputed_value_floats"], np.float32)), x, output=w.node.output[0])
    return True


def _extractor(w: Writer, a: Attributes) -> bool:
    table, index = w.node.input
    index = w.put("Reshape", index, w.constant(np.array([-1], np.int64)))
    if table in w.known and w.known[table].ndim == 1:
        found = w.put("Gather", table, index, axis=0)
        w.put("Reshape", found, w.constant(np.array([1, -1], np.int64)), output=w.node.output[0])
    else:
        w.put("Gather", table, index, axis=-1, output=w.node.output[0])
    return True


def _vectorizer(w: Writer, a: Attributes) -> bool:
    w.put("Concat", *[_float(w, i) for i in w.node.input], axis=1, output=w.node.output[0])
    return True


# --- linear models ----------------------------------------------------------------------------------------------------

def _linear(w: Writer, a: Attributes, rows: int) -> str:
    weights = np.array(a["coefficients"], np.float32).reshape(rows, -1).T
    product = w.put("MatMul", _float(w, w.node.input[0]), w.constant(np.ascontiguousarray(weights)))
    if not a.get("intercepts"):
        return product
    return w.put("Add", product, w.constant(np.array(a["intercepts"], np.float32)))


def _linear_regressor(w: Writer, a: Attributes) -> bool:
    if a.get("post_transform", "NONE") != "NONE":
        return False
    w.put("Identity", _linear(w, a, int(a.get("targets", 1))), output=w.node.output[0])
    return True


def _linear_classifier(w: Writer, a: Attributes) -> bool:
    labels = a.get("classlabels_ints") or a.get("classlabels_strings")
    rows = max(1, len(a.get("intercepts") or [0]))
    if not labels or (rows == 1 and len(labels) != 2) or a.get("post_transform", "NONE") not in POST:
        return False
    scores = _linear(w, a, rows)
    if rows == 1:
        scores = w.put("Concat", w.put("Neg", scores), scores, axis=1)
    _classified(w, scores, labels, a.get("post_transform", "NONE"))
    return True


POST: dict[str, str] = {"NONE": "", "LOGISTIC": "Sigmoid", "SOFTMAX": "Softmax"}


def _classified(w: Writer, scores: str, labels: list[Any], post: str) -> None:
    """The label of the highest score, and the scores after their transform."""
    best = w.put("ArgMax", scores, axis=1, keepdims=0)
    kind = np.array(labels, np.int64) if isinstance(labels[0], int) else np.array(labels, object)
    w.put("Gather", w.constant(kind, "labels"), best, axis=0, output=w.node.output[0])
    w.put(POST[post] or "Identity", scores, output=w.node.output[1], **({"axis": 1} if post == "SOFTMAX" else {}))


# --- trees ------------------------------------------------------------------------------------------------------------

def _walk(w: Writer, a: Attributes, leaves: np.ndarray, aggregate: str = "SUM") -> str:
    """f32[rows, outputs]: what the leaves that the rows reach hold, over all trees."""
    place = {key: i for i, key in enumerate(zip(a["nodes_treeids"], a["nodes_nodeids"], strict=True))}
    count = len(place)
    own = np.arange(count)
    is_leaf = np.array([m == "LEAF" for m in a["nodes_modes"]])
    trees = np.array(a["nodes_treeids"])
    left, right = (np.array([i if is_leaf[i] else place[trees[i], c] for i, c in enumerate(a[f"nodes_{side}nodeids"])])
                   for side in ("true", "false"))
    roots = [place[t, min(n for u, n in place if u == t)] for t in dict.fromkeys(a["nodes_treeids"])]
    # a child that is its tree's root would never end: nodes come after their parents
    depth, reached = 0, np.array(roots)
    while not is_leaf[reached].all() and depth <= count:
        reached = np.unique(np.concatenate((left[reached], right[reached])))
        depth += 1
    features = np.where(is_leaf, 0, np.array(a["nodes_featureids"])).astype(np.int64)
    values = np.array(a["nodes_values"], np.float32)
    x = _float(w, w.node.input[0])
    # every (row, tree) stands at its tree's root
    rows = w.put("Shape", x, start=0, end=1)
    spread = w.put("Concat", rows, w.constant(np.array([len(roots)], np.int64)), axis=0)
    at = w.put("Expand", w.constant(np.array([roots], np.int64), "roots"), spread)
    tables = {n: w.constant(t, n) for n, t in (("feature", features), ("value", values),
                                               ("left", left.astype(np.int64)), ("right", right.astype(np.int64)))}
    tracked = np.array(a.get("nodes_missing_value_tracks_true") or np.zeros(count), bool)
    for _ in range(depth):
        seen = w.put("GatherElements", x, w.put("Gather", tables["feature"], at, axis=0), axis=1)
        goes = w.put("LessOrEqual", seen, w.put("Gather", tables["value"], at, axis=0))
        if tracked.any():
            table = tables.setdefault("tracked", w.constant(tracked, "tracked"))
            missing = w.put("And", w.put("IsNaN", seen), w.put("Gather", table, at, axis=0))
            goes = w.put("Or", goes, missing)
        at = w.put("Where", goes, w.put("Gather", tables["left"], at, axis=0),
                   w.put("Gather", tables["right"], at, axis=0))
    held = w.put("Gather", w.constant(leaves[own], "leaves"), at, axis=0)          # [rows, trees, outputs]
    op = "ReduceMean" if aggregate == "AVERAGE" else "ReduceSum"
    return w.put(op, held, w.constant(np.array([1], np.int64)), keepdims=0)


def _leaves(a: Attributes, prefix: str, outputs: int) -> np.ndarray:
    place = {key: i for i, key in enumerate(zip(a["nodes_treeids"], a["nodes_nodeids"], strict=True))}
    found = np.zeros((len(place), outputs), np.float32)
    for tree, node, k, weight in zip(a[f"{prefix}_treeids"], a[f"{prefix}_nodeids"], a[f"{prefix}_ids"],
                                     a[f"{prefix}_weights"], strict=True):
        found[place[tree, node], k] += weight
    return found


def _plain_trees(a: Attributes) -> bool:
    return set(a["nodes_modes"]) <= {"BRANCH_LEQ", "LEAF"} and "nodes_values_as_tensor" not in a


def _tree_regressor(w: Writer, a: Attributes) -> bool:
    aggregate, outputs = a.get("aggregate_function", "SUM"), int(a.get("n_targets", 1))
    if not _plain_trees(a) or aggregate not in ("SUM", "AVERAGE") or a.get("post_transform", "NONE") != "NONE":
        return False
    total = _walk(w, a, _leaves(a, "target", outputs), aggregate)
    base = np.array(a.get("base_values") or np.zeros(outputs), np.float32)
    w.put("Add", total, w.constant(base), output=w.node.output[0])
    return True


def _tree_classifier(w: Writer, a: Attributes) -> bool:
    labels = a.get("classlabels_int64s") or a.get("classlabels_strings")
    if not _plain_trees(a) or not labels or a.get("post_transform", "NONE") not in POST:
        return False
    single = len(labels) == 2 and len(set(a["class_ids"])) == 1
    leaves = _leaves({**a, "class_ids": [0] * len(a["class_ids"])}, "class", 1) if single else \
        _leaves(a, "class", len(labels))
    total = _walk(w, a, leaves)
    if base := a.get("base_values"):
        total = w.put("Add", total, w.constant(np.array(base, np.float32)))
    if single:          # one score for two classes: a share where all are positive, else a distance from zero
        share = min(a["class_weights"]) >= 0 and not a.get("base_values") and a.get("post_transform", "NONE") == "NONE"
        other = w.put("Sub", w.constant(np.float32(1)), total) if share else w.put("Neg", total)
        total = w.put("Concat", other, total, axis=1)
    _classified(w, total, labels, a.get("post_transform", "NONE"))
    return True


FORMS: dict[str, Callable[[Writer, Attributes], bool]] = {
    "Scaler": _scaler, "Normalizer": _normalizer, "Binarizer": _binarizer, "Imputer": _imputer,
    "ArrayFeatureExtractor": _extractor, "FeatureVectorizer": _vectorizer, "LinearRegressor": _linear_regressor,
    "LinearClassifier": _linear_classifier, "TreeEnsembleRegressor": _tree_regressor,
    "TreeEnsembleClassifier": _tree_classifier,
}
