"""The ops of ai.onnx.ml, said in ops that have kernels: what scikit-learn and boosted trees are exported to.

A form gives None where it does not serve a node, before it has made anything; that node runs on the reference.
"""
from collections.abc import Callable, Mapping

from ingot.frontend.onnx.contrib.maker import Maker
from ingot.frontend.onnx.ml.plain import PLAIN
from ingot.frontend.onnx.ml.trees import TREES
from ingot.frontend.onnx.ml.vectors import VECTORS

DOMAIN = "ai.onnx.ml"
LEARNED: Mapping[str, Callable[[Maker], tuple[str, ...] | None]] = {**PLAIN, **TREES, **VECTORS}

__all__ = ["DOMAIN", "LEARNED"]
