"""ONNX Runtime's ops (com.microsoft), said in standard ones: what exporters and optimisers emit is read."""
from collections.abc import Callable, Mapping

from ingot.frontend.onnx.contrib.attention import ATTENTION
from ingot.frontend.onnx.contrib.maker import Maker
from ingot.frontend.onnx.contrib.plain import PLAIN
from ingot.frontend.onnx.contrib.quantised import QUANTISED

CONTRIB: Mapping[str, Callable[[Maker], tuple[str, ...]]] = {**PLAIN, **QUANTISED, **ATTENTION}

__all__ = ["CONTRIB", "Maker"]
