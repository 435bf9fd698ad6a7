"""ONNX's remaining ops: typed by onnx's own shape inference, run by onnx.reference, with no kernel of ours.

Importing this module declares them. What gives sequences, random numbers or sizes that depend on the data is not
among them, nor is control flow: the graph has no place for those.
"""
from __future__ import annotations

from collections.abc import Callable
from types import MappingProxyType
from typing import Any

import numpy as np
import onnx
from onnx import helper, numpy_helper, shape_inference

from ingot.graph import DTYPES, Dim, Expr, TensorType
from ingot.ops import OPS, OPSET, REQUIRED, Op, declare
from ingot.ops.onnx_form import ENUM, ENUM_OF
from ingot.ops.op import Attrs, Types

REFUSED = MappingProxyType({
    "control flow": ("If", "Loop", "Scan", "SequenceMap"),
    "random numbers": ("RandomNormal", "RandomNormalLike", "RandomUniform", "RandomUniformLike", "Bernoulli",
                       "Multinomial"),
    "a size that depends on the data": ("NonZero", "Unique", "NonMaxSuppression", "Compress", "StringSplit"),
    "images in files": ("ImageDecoder",),
})
_OPTION = onnx.defs.OpSchema.FormalParameterOption


def refusal(op: str) -> str | None:
    """Why an op of ONNX has no place in the graph; None where it has, or where ONNX does not know it."""
    return next((why for why, names in REFUSED.items() if op in names), None)


def _parameter(p: Any) -> str:
    return str(p.name) + {_OPTION.Optional: "?", _OPTION.Variadic: "*"}.get(p.option, "")


def _proto(t: TensorType, names: dict[str, Dim]) -> onnx.TypeProto:
    shape: list[int | str] = []
    for d in t.shape:
        if isinstance(d, Expr):
            name = f"d{len(names)}"
            name = next((k for k, v in names.items() if v == d), name)
            names[name] = d
            shape.append(name)
        else:
            shape.append(d)
    return helper.make_tensor_type_proto(ENUM_OF[t.dtype.name], shape)


def attribute_protos(attrs: Attrs) -> list[onnx.AttributeProto]:
    """Attributes as ONNX writes them; absent ones are left out."""
    out = []
    for name, value in sorted(attrs.items()):
        if value is None or value is REQUIRED:
            continue
        if isinstance(value, np.ndarray):
            value = numpy_helper.from_array(value)
        elif isinstance(value, bytes):
            value = onnx.TypeProto.FromString(value)        # what an Optional or a sequence is to hold
        elif isinstance(value, tuple):
            value = [numpy_helper.from_array(v) if isinstance(v, np.ndarray) else v for v in value]
        kind = onnx.AttributeProto.INTS if value == [] else None
        out.append(helper.make_attribute(name, value, attr_type=kind))
    return out


def _inference(schema: Any) -> Callable[[Types, Attrs, int], tuple[TensorType, ...]]:
    def infer(types: Types, attrs: Attrs, outputs: int) -> tuple[TensorType, ...]:
        node = onnx.NodeProto(op_type=schema.name, input=["" if t is None else f"i{k}" for k, t in enumerate(types)],
                              output=[f"o{k}" for k in range(max(outputs, schema.min_output))],
                              attribute=attribute_protos(attrs))
        names: dict[str, Dim] = {}
        given = {f"i{k}": _proto(t, names) for k, t in enumerate(types) if t is not None}
        try:
            made = shape_inference.infer_node_outputs(schema, node, given,
                                                      opset_imports=[helper.make_opsetid("", OPSET)])
        except (shape_inference.InferenceError, onnx.checker.ValidationError) as error:
            raise ValueError(str(error)) from None
        found = []
        for k in range(outputs):
            proto = made.get(f"o{k}")
            if proto is None or not proto.HasField("tensor_type") or not proto.tensor_type.HasField("shape"):
                raise ValueError(f"{schema.name}: onnx cannot tell the shape of its output {k}")
            shape: list[Dim] = []
            for d in proto.tensor_type.shape.dim:
                if not d.HasField("dim_value") and d.dim_param not in names:
                    raise ValueError(f"{schema.name}: onnx cannot tell the sizes of its output {k}")
                shape.append(d.dim_value if d.HasField("dim_value") else names[d.dim_param])
            found.append(TensorType(DTYPES[ENUM[proto.tensor_type.elem_type]], tuple(shape)))
        return tuple(found)
    return infer


def _default(attribute: Any) -> object:
    if attribute.required:
        return REQUIRED
    if not attribute.default_value.name:
        return None
    value = helper.get_attribute_value(attribute.default_value)
    return value.decode() if isinstance(value, bytes) else tuple(value) if isinstance(value, list) else value


def _tensors_only(schema: Any) -> bool:
    """Whether every operand and result is a plain tensor for at least one type, and no attribute is a graph."""
    kinds = [t for p in (*schema.inputs, *schema.outputs) for t in p.types]
    graphs = any(a.type in (onnx.defs.OpSchema.AttrType.GRAPH, onnx.defs.OpSchema.AttrType.GRAPHS)
                 for a in schema.attributes.values())
    return not graphs and not any(k.startswith(("seq", "optional", "map")) for k in kinds)


_known = frozenset(OPS)
for _schema in onnx.defs.get_all_schemas():
    if (not _schema.domain and not _schema.deprecated and _schema.name not in OPS and refusal(_schema.name) is None
            and _schema.name not in ("Constant", "CastLike", "Dropout") and _tensors_only(_schema)):
        declare(Op(_schema.name, f"as ONNX {_schema.since_version} says; runs on the reference",
                   tuple(map(_parameter, _schema.inputs)), _inference(_schema),
                   {name: _default(a) for name, a in _schema.attributes.items()},
                   outputs=-1 if _schema.max_output > 64 else _schema.max_output))

FALLBACK = frozenset(OPS) - _known      # ops that run on the reference alone

__all__ = ["FALLBACK", "attribute_protos", "refusal"]
