"""ai.onnx.ml read from .onnx files, and boxes: compiled, and what ONNX Runtime and onnx.reference give."""
from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from onnx.reference import ReferenceEvaluator

import ingot
from ingot import BuildOptions
from ingot.errors import ModelError
from ingot.frontend import read
from ingot.graph import Graph
from ingot.ops.flow import meaning
from ingot.ops.selection import non_max_suppression

skl2onnx = pytest.importorskip("skl2onnx")
ort = pytest.importorskip("onnxruntime")
from sklearn.ensemble import (  # noqa: E402
    GradientBoostingClassifier,
    GradientBoostingRegressor,
    RandomForestClassifier,
    RandomForestRegressor,
)
from sklearn.linear_model import LinearRegression, LogisticRegression  # noqa: E402
from sklearn.pipeline import make_pipeline  # noqa: E402
from sklearn.preprocessing import Binarizer, Normalizer, StandardScaler  # noqa: E402
from sklearn.svm import SVC, SVR, LinearSVC, NuSVC, NuSVR, OneClassSVM  # noqa: E402

pytestmark = [pytest.mark.cpu, pytest.mark.filterwarnings("ignore")]
QUICK = BuildOptions(tune=False, verify=False)
RNG = np.random.default_rng(0)
X = RNG.standard_normal((200, 6)).astype(np.float32)
NEW = RNG.standard_normal((60, 6)).astype(np.float32)
TWO = (X[:, 0] * X[:, 1] + X[:, 2] > 0).astype(int)
THREE = np.digitize(X[:, 0] + X[:, 3], [-0.7, 0.7])
NUMBER = X[:, 0] + np.sin(X[:, 1])

MODELS = {
    "vectors, probabilities of two": lambda: SVC(probability=True).fit(X, TWO),
    "vectors, probabilities of three": lambda: SVC(probability=True).fit(X, THREE),
    "vectors, scores of two": lambda: SVC().fit(X, TWO),
    "vectors, scores of three": lambda: SVC(kernel="poly").fit(X, THREE),
    "vectors, sigmoid": lambda: SVC(kernel="sigmoid", probability=True).fit(X, THREE),
    "vectors, linear": lambda: SVC(kernel="linear").fit(X, THREE),
    "vectors, another form": lambda: NuSVC(probability=True).fit(X, THREE),
    "vectors, numbers": lambda: SVR().fit(X, NUMBER),
    "vectors, numbers by polynomials": lambda: NuSVR(kernel="poly").fit(X, NUMBER),
    "vectors, one class": lambda: OneClassSVM().fit(X),
    "a plane between classes": lambda: LinearSVC().fit(X, THREE),
    "forest of two": lambda: RandomForestClassifier(10).fit(X, TWO),
    "forest of three": lambda: RandomForestClassifier(10).fit(X, THREE),
    "boosted, two": lambda: GradientBoostingClassifier(n_estimators=10).fit(X, TWO),
    "boosted, three": lambda: GradientBoostingClassifier(n_estimators=10).fit(X, THREE),
    "boosted, numbers": lambda: GradientBoostingRegressor(n_estimators=20).fit(X, NUMBER),
    "forest of two numbers": lambda: RandomForestRegressor(9).fit(X, np.stack([NUMBER, X[:, 0]], 1)),
    "logistic": lambda: make_pipeline(StandardScaler(), Normalizer(), LogisticRegression()).fit(X, THREE),
    "linear": lambda: make_pipeline(Binarizer(), LinearRegression()).fit(X, NUMBER),
}


def _file(model: object) -> onnx.ModelProto:
    kind = skl2onnx.common.data_types.FloatTensorType([None, 6])
    shown = hasattr(model, "classes_") and not isinstance(model, LinearSVC)
    options = {id(model): {"zipmap": False}} if shown else None
    return skl2onnx.convert_sklearn(model, initial_types=[("X", kind)], options=options,
                                    target_opset={"": 18, "ai.onnx.ml": 3})


@pytest.mark.parametrize("name", MODELS)
def test_a_file_of_learned_ops_is_compiled_and_agrees_with_onnxruntime(name: str):
    proto = _file(MODELS[name]())
    session = ingot.Session(ingot.build(proto, options=QUICK))
    peer = ort.InferenceSession(proto.SerializeToString(), providers=["CPUExecutionProvider"])
    for rows in (NEW[:1], NEW):
        made = session.run({"X": rows})
        for got, wanted in zip(made.values(), peer.run(None, {"X": rows}), strict=True):
            if wanted.dtype.kind in "iu":
                np.testing.assert_array_equal(got.reshape(wanted.shape), wanted)
            else:
                np.testing.assert_allclose(got.reshape(wanted.shape), wanted, rtol=1e-4, atol=1e-5)
    assert not [op for op in session.referenced if op.startswith("ai.onnx.ml")]


def _ensemble(seed: int, modes: tuple[int, ...], targets: int = 2) -> onnx.ModelProto:
    """A TreeEnsemble (ai.onnx.ml 5) of random trees; numbers are few, so that equality happens."""
    rng = np.random.default_rng(seed)
    lists: dict[str, list[int]] = {k: [] for k in (
        "nodes_featureids", "nodes_truenodeids", "nodes_falsenodeids", "nodes_trueleafs", "nodes_falseleafs",
        "nodes_missing_value_tracks_true", "leaf_targetids", "tree_roots")}
    splits, kinds, weights, members = [], [], [], []

    def grown(depth: int) -> int:
        here = len(splits)
        kind = int(rng.choice(modes))
        kinds.append(kind)
        splits.append(float(rng.integers(-2, 3)) if kind != 6 else 0.0)
        if kind == 6:
            members.extend([*rng.choice(5, 2, replace=False) - 2.0, np.nan])
        lists["nodes_featureids"].append(int(rng.integers(4)))
        lists["nodes_missing_value_tracks_true"].append(int(rng.integers(2)))
        for side in ("true", "false"):
            lists[f"nodes_{side}nodeids"].append(0)
            lists[f"nodes_{side}leafs"].append(0)
        for side in ("true", "false"):
            if depth == 0 or rng.random() < 0.3:
                lists[f"nodes_{side}nodeids"][here] = len(weights)
                lists[f"nodes_{side}leafs"][here] = 1
                weights.append(float(rng.normal()))
                lists["leaf_targetids"].append(int(rng.integers(targets)))
            else:
                lists[f"nodes_{side}nodeids"][here] = grown(depth - 1)
        return here
    for _ in range(3):
        lists["tree_roots"].append(len(splits))
        grown(3)
    tensors = {"nodes_splits": np.array(splits, np.float32), "leaf_weights": np.array(weights, np.float32),
               "nodes_modes": np.array(kinds, np.uint8)}
    if members:
        tensors["membership_values"] = np.array(members, np.float32)
    node = helper.make_node("TreeEnsemble", ["X"], ["Y"], domain="ai.onnx.ml", n_targets=targets, aggregate_function=1,
                            post_transform=0, **lists, **{k: numpy_helper.from_array(v) for k, v in tensors.items()})
    graph = helper.make_graph([node], "g", [helper.make_tensor_value_info("X", TensorProto.FLOAT, ["N", 4])],
                              [helper.make_tensor_value_info("Y", TensorProto.FLOAT, ["N", targets])])
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("ai.onnx.ml", 5), helper.make_opsetid("", 21)],
                             ir_version=10)


@pytest.mark.parametrize("modes", [(0,), (1,), (2,), (3,), (4,), (5,), (6,), (0, 1, 2, 3, 4, 5)], ids=str)
def test_every_way_to_branch_is_as_onnx_says(modes: tuple[int, ...]):
    rows = np.random.default_rng(7).integers(-3, 4, (64, 4)).astype(np.float32)
    rows[::9, 1] = np.nan
    rows[::7, 2] = -0.0
    for seed in range(3):
        model = _ensemble(seed, modes)
        session = ingot.Session(ingot.build(model, options=QUICK))
        peer = ort.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
        made, judges = session.run({"X": rows})["Y"], [peer]
        if 6 not in modes:              # onnx.reference 1.23 ends a set of numbers at 0
            judges.append(ReferenceEvaluator(model))
        for judge in judges:
            np.testing.assert_allclose(made, judge.run(None, {"X": rows})[0], rtol=1e-5, atol=1e-6)
        assert session.referenced == ()


def test_trees_whose_lists_do_not_fit_are_the_models_error():
    model = _ensemble(0, (0,))
    next(a for a in model.graph.node[0].attribute if a.name == "nodes_truenodeids").ints[0] = 99
    with pytest.raises(ModelError, match="TreeEnsemble"):
        read(model)


# --- boxes ------------------------------------------------------------------------------------------------------------

def _suppression(boxes: int, classes: int, most: int, overlap: float, least: float | None, centred: int
                 ) -> onnx.ModelProto:
    constants = {"most": np.array([most]), "overlap": np.array([overlap], np.float32)}
    if least is not None:
        constants["least"] = np.array([least], np.float32)
    nodes = [helper.make_node("NonMaxSuppression", ["boxes", "scores", *constants], ["at"], center_point_box=centred),
             helper.make_node("Gather", ["at", "third"], ["box"], axis=1)]
    constants["third"] = np.array(2)
    graph = helper.make_graph(
        nodes, "g", [helper.make_tensor_value_info("boxes", TensorProto.FLOAT, ["N", boxes, 4]),
                     helper.make_tensor_value_info("scores", TensorProto.FLOAT, ["N", classes, boxes])],
        [helper.make_tensor_value_info("at", TensorProto.INT64, None),
         helper.make_tensor_value_info("box", TensorProto.INT64, None)],
        [numpy_helper.from_array(a, n) for n, a in constants.items()])
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=9)


@pytest.mark.parametrize(("boxes", "classes", "most", "overlap", "least", "centred"), [
    (1, 1, 1, 0.5, None, 0), (33, 2, 5, 0.3, 0.4, 0), (100, 3, 1000, 0.5, None, 0), (257, 4, 20, 0.0, 0.2, 1),
    (64, 1, 1 << 40, 0.7, 0.9, 0)])
def test_suppression_is_compiled_and_chooses_the_very_boxes(boxes: int, classes: int, most: int, overlap: float,
                                                            least: float | None, centred: int):
    model = _suppression(boxes, classes, most, overlap, least, centred)
    session = ingot.Session(ingot.build(model, options=QUICK))
    for batch in (1, 3):
        corner = RNG.random((batch, boxes, 2)) * 5
        given = np.concatenate((corner, corner * (not centred) + RNG.random((batch, boxes, 2)) + 0.2), 2).astype("f")
        scores = np.round(RNG.random((batch, classes, boxes)), 1 if boxes % 2 else 6).astype("f")       # ties, too
        (wanted,) = non_max_suppression([given, scores, np.array(most), np.float32(overlap),
                                         None if least is None else np.float32(least)], {"center_point_box": centred})
        made = session.run({"boxes": given, "scores": scores})
        np.testing.assert_array_equal(made["at"], wanted)
        np.testing.assert_array_equal(made["box"], wanted[:, 2])
    assert session.referenced == ()
    none = session.run({"boxes": given, "scores": np.full_like(scores, -1)})["at"]
    assert len(none) == 0 or least is None


def test_suppression_whose_numbers_are_inputs_runs_on_the_reference():
    model = _suppression(20, 2, 5, 0.3, 0.4, 0)
    kept = [t for t in model.graph.initializer if t.name != "most"]
    del model.graph.initializer[:]
    model.graph.initializer.extend(kept)
    model.graph.input.append(helper.make_tensor_value_info("most", TensorProto.INT64, [1]))
    assert not isinstance(flow := read(model), Graph)
    corner = RNG.random((1, 20, 2))
    feeds = {"boxes": np.concatenate((corner, corner + 1), 2).astype("f"),
             "scores": RNG.random((1, 2, 20)).astype("f"), "most": np.array([3])}
    session = ingot.Session(ingot.build(model, options=QUICK))
    np.testing.assert_array_equal(session.run(feeds)["at"], ReferenceEvaluator(model).run(None, feeds)[0])
    assert session.referenced == ("NonMaxSuppression",) and flow.calls


def test_trees_read_from_a_file_mean_what_onnx_reference_makes_of_them():
    proto = _file(MODELS["forest of three"]())
    made = meaning(read(proto), {"X": NEW})
    for got, wanted in zip(made.values(), ReferenceEvaluator(proto).run(None, {"X": NEW}), strict=True):
        np.testing.assert_allclose(got, wanted, rtol=1e-5, atol=1e-6)
