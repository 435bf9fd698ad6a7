"""scikit-learn: boosted trees, forests and pipelines, fitted to made-up data, converted by skl2onnx."""
from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import skl2onnx
import sklearn
from skl2onnx.common.data_types import FloatTensorType
from sklearn.decomposition import PCA
from sklearn.ensemble import (
    GradientBoostingClassifier,
    GradientBoostingRegressor,
    RandomForestClassifier,
)
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import MinMaxScaler, StandardScaler
from sklearn.svm import SVC

Feeds = dict[str, np.ndarray]


@dataclass(frozen=True)
class Estimator:
    """One fitted estimator: its name, and how it is made."""

    name: str
    make: Callable[[], Any]
    classes: int = 0            # 0: a regression
    source: str = f"scikit-learn {sklearn.__version__}"

    def data(self, rows: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
        """Numbers, and what is to be learnt of them."""
        rng = np.random.default_rng(seed)
        x = rng.standard_normal((rows, 6)).astype(np.float32)
        target = x[:, 0] * x[:, 1] + np.sin(2 * x[:, 2]) + 0.3 * x[:, 3]
        return x, np.digitize(target, [-0.6, 0.6][:self.classes - 1]) if self.classes else target

    def fitted(self) -> Any:
        """The estimator; the same one every time."""
        return self.make().fit(*self.data(300))

    def feeds(self, rows: int, seed: int = 1) -> Feeds:
        """New rows. Thresholds lie between numbers that were fitted; these are others."""
        return {"X": self.data(rows, seed)[0]}

    def run(self, fitted: Any, feeds: Mapping[str, np.ndarray]) -> tuple[np.ndarray, ...]:
        """What scikit-learn says."""
        x = feeds["X"]
        if self.classes:
            return fitted.predict(x).astype(np.int64), fitted.predict_proba(x).astype(np.float32)
        return (fitted.predict(x).astype(np.float32).reshape(-1, 1),)

    def export(self, path: Path, fitted: Any) -> Path:
        """Write it as an ONNX file, any number of rows."""
        options = {"zipmap": False} if self.classes else None
        proto = skl2onnx.convert_sklearn(fitted, initial_types=[("X", FloatTensorType([None, 6]))], target_opset=18,
                                         options={id(fitted): options} if options else None)
        path.write_bytes(proto.SerializeToString())
        return path


ESTIMATORS = (
    Estimator("boosted_trees_regressor", lambda: GradientBoostingRegressor(n_estimators=20, random_state=0)),
    Estimator("boosted_trees_classifier", lambda: GradientBoostingClassifier(n_estimators=10, random_state=0), 3),
    Estimator("forest", lambda: RandomForestClassifier(10, max_depth=5, random_state=0), 2),
    Estimator("pipeline_logistic", lambda: make_pipeline(StandardScaler(), LogisticRegression()), 3),
    Estimator("pipeline_pca_svc", lambda: make_pipeline(MinMaxScaler(), PCA(4), SVC(probability=True)), 2),
)
