"""A TensorFlow function as a Source: tf2onnx gives the graph, the function itself the right answers.

A SavedModel is a program: TensorFlow's operators can read and write files, so that one is built from trusted sources
only. A .keras file is loaded in Keras' safe mode, which refuses code (Lambda layers) in it.
"""
from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import onnx

from ingot.errors import InputError, ModelError, UnsupportedError
from ingot.frontend.shapes import DEFAULT_PROFILE, ShapeSpec
from ingot.frontend.source import Alarm, Export, Source
from ingot.graph import Symbol

# What TensorFlow and tf2onnx raise where they cannot go on.
FAILS = (RuntimeError, ValueError, TypeError, AttributeError, LookupError, NotImplementedError, AssertionError, OSError)
OPSET = 18
SIGNATURE = "serving_default"


def source_from_model(tf: ModuleType, tf2onnx: ModuleType, model: Any, example_inputs: Any,
                      shapes: Mapping[str, ShapeSpec], opset: int | None) -> Source:
    """The source of a model in memory or at a path. Raises InputError, ModelError or UnsupportedError."""
    path = Path(model) if isinstance(model, str) else None
    loaded = _loaded(tf, path) if path else model
    function, signature = _function(tf, loaded, example_inputs)
    examples = _examples(signature, example_inputs)
    export = Export("tf2onnx" + (f", opset {opset}" if opset else ""),
                    partial(_exported, tf, tf2onnx, function, signature, opset or OPSET), opset)
    run = partial(_run, tf, function, tuple(signature))
    return Source(path.stem if path else type(loaded).__name__, f"TensorFlow {tf.__version__}", (export,), run,
                  examples, dict(shapes) or _shapes(signature, examples))


def _loaded(tf: ModuleType, path: Path) -> Any:
    try:
        if path.is_dir():
            return tf.saved_model.load(str(path))
        return tf.keras.models.load_model(str(path), compile=False, safe_mode=True)
    except FAILS as error:
        raise ModelError(f"{path} is no TensorFlow model that can be read", why=(str(error).splitlines()[0],),
                         mend="give the folder of a SavedModel, or a .keras file") from None


def _function(tf: ModuleType, model: Any, example_inputs: Any) -> tuple[Any, dict[str, Any]]:
    """What runs it, and what it is called with: specs by name."""
    signatures = getattr(model, "signatures", None)
    if signatures:
        name = SIGNATURE if SIGNATURE in signatures else next(iter(signatures))
        concrete = signatures[name]
        specs = {k: tf.TensorSpec(v.shape, v.dtype, name=k) for k, v in concrete.structured_input_signature[1].items()}
        kept = (model, concrete)        # the model owns the variables: without it they are gone
        return tf.function(lambda **inputs: kept[1](**inputs)), specs
    if isinstance(model, tf.keras.Model) and getattr(model, "inputs", None):
        specs = {str(i.name).split(":")[0]: tf.TensorSpec(i.shape, i.dtype, name=str(i.name).split(":")[0])
                 for i in model.inputs}
        order = tuple(specs)

        def call(**inputs: Any) -> Any:
            given = [inputs[n] for n in order]
            return model(given[0] if len(given) == 1 else given, training=False)

        return tf.function(call), specs
    if not callable(model) or example_inputs is None:
        raise InputError("a TensorFlow model without a signature needs example inputs by name",
                         mend='ingot.build(model, {"image": array})')
    specs = {k: tf.TensorSpec(np.shape(v), np.asarray(v).dtype, name=k) for k, v in dict(example_inputs).items()}
    return tf.function(lambda **inputs: model(**inputs)), specs


def _examples(signature: Mapping[str, Any], given: Any) -> dict[str, np.ndarray]:
    """The inputs given, else seeded noise of the signature's shapes, open axes at 2."""
    if given is not None:
        values = dict(given) if isinstance(given, Mapping) else dict(
            zip(signature, given if isinstance(given, (tuple, list)) else (given,), strict=True))
        return {k: np.asarray(v, signature[k].dtype.as_numpy_dtype) for k, v in values.items()}
    rng = np.random.default_rng(0)
    found = {}
    for name, spec in signature.items():
        if spec.shape.rank is None:
            raise InputError(f"input '{name}' has no known rank", mend="give example inputs")
        sizes = [2 if d is None else int(d) for d in spec.shape]
        kind = np.dtype(spec.dtype.as_numpy_dtype)
        found[name] = (rng.standard_normal(sizes) if kind.kind == "f" else rng.integers(0, 2, sizes)).astype(kind)
    return found


def _shapes(signature: Mapping[str, Any], examples: Mapping[str, np.ndarray]) -> dict[str, ShapeSpec]:
    """Open axes as symbols: the first is the batch."""
    return {name: tuple(int(d) if d is not None else Symbol("batch" if i == 0 else f"{name}_{i}", *DEFAULT_PROFILE)
                        for i, d in enumerate(spec.shape)) if spec.shape.rank is not None else examples[name].shape
            for name, spec in signature.items()}


def _exported(tf: ModuleType, tf2onnx: ModuleType, function: Any, signature: Mapping[str, Any], opset: int
              ) -> tuple[onnx.ModelProto, tuple[Alarm, ...]]:
    try:
        proto, _ = tf2onnx.convert.from_function(_positional(tf, function, signature),
                                                 input_signature=list(signature.values()), opset=opset)
    except FAILS as error:
        raise UnsupportedError("tf2onnx cannot take it", why=(f"{type(error).__name__}: {str(error).splitlines()[0]}",),
                               mend="change the model where the reason says, or export it yourself") from None
    for value in proto.graph.input:         # open axes come as unk__ names: the shapes given say what they are
        for dim in value.type.tensor_type.shape.dim:
            if dim.dim_param.startswith("unk"):
                dim.ClearField("dim_param")
    return proto, ()


def _positional(tf: ModuleType, function: Any, signature: Mapping[str, Any]) -> Any:
    names = tuple(signature)
    return tf.function(lambda *inputs: function(**dict(zip(names, inputs, strict=True))),
                       input_signature=list(signature.values()))


def _run(tf: ModuleType, function: Any, names: tuple[str, ...], feeds: Mapping[str, np.ndarray]
         ) -> dict[str, np.ndarray]:
    try:
        found = function(**{n: tf.constant(feeds[n]) for n in names})
    except (*FAILS, tf.errors.OpError) as error:
        raise InputError(f"the model itself fails: {type(error).__name__}: {str(error).splitlines()[0]}",
                         mend="give inputs it takes") from None
    flat = tf.nest.flatten(found)
    keys = sorted(found) if isinstance(found, Mapping) else [f"output_{i}" for i in range(len(flat))]
    return {k: v.numpy() for k, v in zip(keys, flat, strict=True)}
