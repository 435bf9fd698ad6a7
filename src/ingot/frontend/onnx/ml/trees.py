"""Tree ensembles of ai.onnx.ml, of every version, as one op that walks them all (`ops/learned.py`).

Every branch becomes "feature <= threshold": f32 has a number before each, so that x < v is x <= the one before v;
"equal" takes two such nodes, and a set of numbers two for each of them.
"""
from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from ingot.frontend.onnx.contrib.maker import Maker
from ingot.frontend.onnx.ml.plain import POST, classified, labels, numbers, rows_of, word, words

Found = tuple[str, ...] | None
_MODES = ("BRANCH_LEQ", "BRANCH_LT", "BRANCH_GTE", "BRANCH_GT", "BRANCH_EQ", "BRANCH_NEQ", "BRANCH_MEMBER")
_LEAVES = 1 << 24           # rows of leaves that a f32 can count
Ref = tuple[str, int]       # ("node", a node of the model), ("leaf", a row) or ("made", a node made for another)


@dataclass
class _Tables:
    """The nodes as they are written: by what they are called, and in order."""

    feature: list[int] = field(default_factory=list)
    value: list[float] = field(default_factory=list)
    sides: list[tuple[Ref, Ref]] = field(default_factory=list)      # where it is not so, where it is
    missing: list[bool] = field(default_factory=list)
    at: dict[Ref, int] = field(default_factory=dict)

    def put(self, name: Ref, feature: int, value: float, no: Ref, yes: Ref, missing: bool) -> None:
        self.at[name] = len(self.feature)
        self.feature.append(feature)
        self.value.append(value)
        self.sides.append((no, yes))
        self.missing.append(missing)

    def branch(self, name: Ref, mode: str, feature: int, values: np.ndarray, no: Ref, yes: Ref,
               missing: bool) -> None:
        """A node of any mode; NaN goes to `yes` where it is tracked, else to `no`."""
        value = values[0]
        below = float(np.nextafter(value, np.float32(-np.inf)))
        if mode == "BRANCH_LEQ":
            self.put(name, feature, float(value), no, yes, missing)
        elif mode == "BRANCH_LT":
            self.put(name, feature, below, no, yes, missing)
        elif mode == "BRANCH_GT":
            self.put(name, feature, float(value), yes, no, not missing)
        elif mode == "BRANCH_GTE":
            self.put(name, feature, below, yes, no, not missing)
        elif mode == "BRANCH_NEQ":
            self.branch(name, "BRANCH_MEMBER", feature, values, yes, no, False)      # NaN differs from every number
        else:               # equal to one of the values
            rest: Ref = no
            for k, v in enumerate(values):
                last = k + 1 == len(values)
                rest = no if last else ("made", len(self.feature) + 2)
                lower: Ref = ("made", len(self.feature) + 1)
                self.put(name if k == 0 else ("made", len(self.feature)), feature, float(v), rest, lower,
                         missing and last)
                self.put(lower, feature, float(np.nextafter(v, np.float32(-np.inf))), yes, rest, False)


def _operands(tables: _Tables, leaves: np.ndarray, roots: Sequence[Ref], tracks: bool) -> list[np.ndarray] | None:
    """The operands of Trees after the rows, trees in the order of their depth; None where a walk would not end."""
    for row in range(len(leaves)):
        tables.put(("leaf", row), 0, row, ("leaf", row), ("leaf", row), False)
    following = np.array([[tables.at[s] for s in both] for both in tables.sides], np.int32).reshape(-1, 2)
    first, depths = np.array([tables.at[r] for r in roots], np.int64), []
    own = np.arange(len(following))
    ends = (following == own[:, None]).all(axis=1)
    for root in first:
        depth, reached = 0, np.array([root])
        while not ends[reached].all():
            reached = np.unique(following[reached])
            depth += 1
            if depth > len(following):
                return None
        depths.append(depth)
    order = np.argsort(depths, kind="stable")
    made = [np.array(tables.feature, np.int32), np.array(tables.value, np.float32), following, leaves,
            first[order].astype(np.int32), np.array(depths, np.int32)[order]]
    return [*made, np.array(tables.missing, bool)] if tracks else made


def _summed(m: Maker, x: str, operands: Sequence[np.ndarray]) -> str:
    return m("Trees", x, *map(m.constant, operands))


# --- versions 1 to 3 --------------------------------------------------------------------------------------------------

def _integers(m: Maker, name: str) -> tuple[int, ...]:
    held = m.attrs.get(name)
    return tuple(int(v) for v in held) if isinstance(held, (tuple, list)) else ()


def _older(m: Maker, prefix: str, outputs: int, only: bool = False) -> list[np.ndarray] | None:
    """The operands of an ensemble whose leaves are nodes; `only`: all classes count as the one there is."""
    trees, nodes, modes = _integers(m, "nodes_treeids"), _integers(m, "nodes_nodeids"), words(m, "nodes_modes")
    if any(k.endswith("_as_tensor") and m.attrs[k] is not None for k in m.attrs) or not set(modes) <= {
            *_MODES[:-1], "LEAF"}:
        return None
    place = {key: i for i, key in enumerate(zip(trees, nodes, strict=True))}
    leaf = {i: row for row, i in enumerate(i for i, mode in enumerate(modes) if mode == "LEAF")}
    weights = np.zeros((len(leaf), outputs), np.float32)
    for tree, node, k, weight in zip(_integers(m, f"{prefix}_treeids"), _integers(m, f"{prefix}_nodeids"),
                                     _integers(m, f"{prefix}_ids"), numbers(m, f"{prefix}_weights"), strict=True):
        if place[tree, node] not in leaf:
            return None         # ONNX has weights at leaves alone
        weights[leaf[place[tree, node]], 0 if only else k] += weight
    features, values = _integers(m, "nodes_featureids"), numbers(m, "nodes_values")
    tracked = _integers(m, "nodes_missing_value_tracks_true") or (0,) * len(modes)
    sides = [_integers(m, f"nodes_{side}nodeids") for side in ("false", "true")]

    def ref(i: int) -> Ref:
        return ("leaf", leaf[i]) if i in leaf else ("node", i)
    tables = _Tables()
    for i, mode in enumerate(modes):
        if mode != "LEAF":
            no, yes = (ref(place[trees[i], side[i]]) for side in sides)
            tables.branch(("node", i), mode, features[i], values[i:i + 1], no, yes, bool(tracked[i]))
    roots = {t: i for i, t in reversed(list(enumerate(trees)))}         # a tree's first node
    return _operands(tables, weights, [ref(i) for _, i in sorted(roots.items())], any(tables.missing))


def _regressor(m: Maker) -> Found:
    aggregate, outputs = word(m, "aggregate_function", "SUM"), m.integer("n_targets", 1)
    x = rows_of(m)
    if x is None or aggregate not in ("SUM", "AVERAGE") or word(m, "post_transform", "NONE") != "NONE":
        return None
    if (operands := _older(m, "target", outputs)) is None:
        return None
    return (_based(m, _averaged(m, _summed(m, x, operands), aggregate == "AVERAGE", len(operands[4]))),)


def _averaged(m: Maker, total: str, average: bool, trees: int) -> str:
    return m("Div", total, m.scalar(trees, total)) if average else total


def _based(m: Maker, total: str) -> str:
    base = numbers(m, "base_values")
    return m("Add", total, m.constant(base)) if base.size else total


def _classifier(m: Maker) -> Found:
    kinds, post, x = labels(m, "classlabels_int64s"), word(m, "post_transform", "NONE"), rows_of(m)
    if x is None or kinds is None or len(kinds) < 2 or post not in POST:
        return None
    single = len(kinds) == 2 and len(set(_integers(m, "class_ids"))) == 1
    operands = _older(m, "class", 1 if single else len(kinds), single)
    if operands is None or (single and numbers(m, "base_values").size > 1):
        return None
    total = _based(m, _summed(m, x, operands))
    if single:          # one score for two classes: a share where all are positive, else a distance from zero
        positive = bool((numbers(m, "class_weights") >= 0).all())
        share = positive and not numbers(m, "base_values").size and post == "NONE"
        other = m("Sub", m.scalar(1, total), total) if share else m("Neg", total)
        total = m("Concat", other, total, axis=1)
    return classified(m, total, kinds, post)


# --- version 5 --------------------------------------------------------------------------------------------------------

def _tensor(m: Maker, name: str) -> np.ndarray:
    held = m.attrs.get(name)
    return held.reshape(-1) if isinstance(held, np.ndarray) else np.empty(0, np.float32)


def _ensemble(m: Maker) -> Found:
    """TreeEnsemble: leaves apart from nodes, numbers in tensors, sets of numbers between NaNs."""
    x, splits, weights = rows_of(m), _tensor(m, "nodes_splits"), _tensor(m, "leaf_weights")
    aggregate = m.integer("aggregate_function", 1)
    if x is None or m.dtype(m.input(0)).name != "f32" or aggregate not in (0, 1) or m.integer("post_transform", 0):
        return None
    if splits.dtype != np.float32 or weights.dtype != np.float32 or len(weights) >= _LEAVES:
        return None
    leaves = np.zeros((len(weights), m.integer("n_targets", 1)), np.float32)
    leaves[np.arange(len(weights)), list(_integers(m, "leaf_targetids"))] = weights
    modes, members = _tensor(m, "nodes_modes").astype(np.int64), iter(_sets(_tensor(m, "membership_values")))
    features, tracked = _integers(m, "nodes_featureids"), _integers(m, "nodes_missing_value_tracks_true")
    sides = [(_integers(m, f"nodes_{side}nodeids"), _integers(m, f"nodes_{side}leafs")) for side in ("false", "true")]
    tables = _Tables()
    for i, mode in enumerate(modes):
        no, yes = (("leaf" if ends[i] else "node", at[i]) for at, ends in sides)
        values = next(members, None) if _MODES[mode] == "BRANCH_MEMBER" else splits[i:i + 1]
        if values is None or not len(values):
            return None
        tables.branch(("node", i), _MODES[mode], features[i], values, no, yes, bool(tracked[i]) if tracked else False)
    operands = _operands(tables, leaves, [("node", r) for r in _integers(m, "tree_roots")], any(tables.missing))
    return None if operands is None else (_averaged(m, _summed(m, x, operands), not aggregate, len(operands[4])),)


def _sets(values: np.ndarray) -> list[np.ndarray]:
    """The sets that NaNs end."""
    cuts = np.flatnonzero(np.isnan(values))
    return [s[~np.isnan(s)] for s in np.split(values, cuts + 1)] if values.size else []


TREES: Mapping[str, Callable[[Maker], Found]] = {
    "TreeEnsembleRegressor": _regressor, "TreeEnsembleClassifier": _classifier, "TreeEnsemble": _ensemble}
