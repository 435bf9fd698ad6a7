"""scikit-learn in: scalers, linear models and trees as compiled graphs that give what the estimator gives."""
import numpy as np
import pytest

import ingot
from ingot.errors import InputError, UnsupportedError, VerifyError

pytest.importorskip("skl2onnx")
from sklearn.cluster import KMeans
from sklearn.decomposition import PCA
from sklearn.ensemble import (
    GradientBoostingClassifier,
    GradientBoostingRegressor,
    HistGradientBoostingClassifier,
    HistGradientBoostingRegressor,
    RandomForestClassifier,
    RandomForestRegressor,
)
from sklearn.impute import SimpleImputer
from sklearn.linear_model import LogisticRegression, Ridge
from sklearn.neighbors import KNeighborsRegressor
from sklearn.neural_network import MLPClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import MinMaxScaler, Normalizer, StandardScaler
from sklearn.tree import DecisionTreeClassifier

pytestmark = [pytest.mark.cpu, pytest.mark.filterwarnings("ignore")]
FAST = ingot.BuildOptions(tune=False)
RNG = np.random.default_rng(0)
X = RNG.standard_normal((300, 6)).astype(np.float32)
TWO = (X[:, 0] * X[:, 1] + X[:, 2] > 0).astype(int)
THREE = np.digitize(X[:, 0] + X[:, 3], [-0.7, 0.7])
NUMBER = np.sin(X[:, 0]) + X[:, 1] * X[:, 2]
HOLES = np.where(RNG.random(X.shape) < 0.1, np.float32(np.nan), X)

MODELS = {
    "boosted, two classes": lambda: make_pipeline(SimpleImputer(), StandardScaler(),
                                                  GradientBoostingClassifier(n_estimators=20)).fit(X, TWO),
    "boosted, three classes": lambda: GradientBoostingClassifier(n_estimators=10).fit(X, THREE),
    "boosted, numbers": lambda: GradientBoostingRegressor(n_estimators=20).fit(X, NUMBER),
    "histograms, two classes": lambda: HistGradientBoostingClassifier(max_iter=10).fit(HOLES, TWO),
    "histograms, three classes": lambda: HistGradientBoostingClassifier(max_iter=5).fit(X, THREE),
    "histograms, numbers": lambda: HistGradientBoostingRegressor(max_iter=10).fit(HOLES, NUMBER),
    "forest, two classes": lambda: RandomForestClassifier(10).fit(X, TWO),
    "forest, three classes": lambda: RandomForestClassifier(10, max_depth=6).fit(X, THREE),
    "forest, numbers": lambda: RandomForestRegressor(10).fit(X, NUMBER),
    "forest, two numbers": lambda: RandomForestRegressor(5).fit(X, np.stack([NUMBER, X[:, 0]], 1)),
    "tree": lambda: DecisionTreeClassifier().fit(X, THREE),
    "logistic, two classes": lambda: make_pipeline(StandardScaler(), LogisticRegression()).fit(X, TWO),
    "logistic, three classes": lambda: make_pipeline(MinMaxScaler(), LogisticRegression()).fit(X, THREE),
    "ridge": lambda: make_pipeline(Normalizer(), PCA(3), Ridge()).fit(X, NUMBER),
    "network": lambda: MLPClassifier((8,), max_iter=20).fit(X, THREE),
    "clusters": lambda: KMeans(4, n_init=1).fit(X),
}


def results(model, rows: np.ndarray) -> list[np.ndarray]:
    if hasattr(model, "predict_proba"):
        return [model.predict(rows), model.predict_proba(rows)]
    return [model.predict(rows)] if not isinstance(model, KMeans) else [model.predict(rows), model.transform(rows)]


@pytest.mark.parametrize("name", MODELS)
def test_an_estimator_becomes_a_compiled_engine(name):
    model = MODELS[name]()
    engine = ingot.build(model, X[:2], FAST)
    assert engine.verdict["passed"] and str(engine.verdict["original"]).startswith("scikit-learn")
    assert engine.flow is None
    slow = {s.op for v in engine.variants for x in v.program.launches if not x.native for s in x.site.steps}
    assert slow <= {"ArgMax", "ArgMin", "GatherElements"}, slow
    session = ingot.Session(engine)
    for rows in (X[:1], X[100:237]):
        for got, wanted in zip(session.run(rows).values(), results(model, rows), strict=True):
            np.testing.assert_allclose(got.reshape(np.shape(wanted)), wanted, rtol=1e-4, atol=1e-5)


def test_an_export_that_loses_the_side_of_missing_values_is_refused():
    holes = X.copy()
    holes[::5, 0] = np.nan
    holes[::5, 1] += 3
    model = RandomForestClassifier(5, random_state=0).fit(holes, holes[:, 1] > 1)
    try:
        engine = ingot.build(model, holes[:10], FAST)
    except VerifyError as error:            # skl2onnx 1.20 writes that missing values go right, always
        assert "skl2onnx: WRONG" in str(error)
        return
    np.testing.assert_allclose(ingot.Session(engine).run(holes)["probabilities"], model.predict_proba(holes), atol=1e-5)


def test_what_has_a_loop_runs_as_a_flow():
    model = KNeighborsRegressor(3).fit(X, NUMBER)
    engine = ingot.build(model, X[:2], FAST)
    assert engine.verdict["passed"] and engine.flow is not None
    (got,) = ingot.Session(engine).run(X[:50] + 0.01).values()
    np.testing.assert_allclose(got[:, 0], model.predict(X[:50] + 0.01), rtol=1e-3, atol=1e-4)


def test_what_is_asked_wrongly_is_said():
    with pytest.raises(InputError, match="rows and features"):
        ingot.build(Ridge().fit(X, NUMBER), X[0], FAST)
    from sklearn.semi_supervised import LabelPropagation
    with pytest.raises(UnsupportedError, match="skl2onnx cannot take"):
        ingot.build(LabelPropagation().fit(X, TWO), X[:2], FAST)
