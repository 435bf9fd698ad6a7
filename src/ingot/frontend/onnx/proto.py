"""Pieces of an ONNX model's protos, read: functions inlined, the opset, attributes, declared dimensions, constants."""
from __future__ import annotations

import re
from collections.abc import Iterable, Mapping

import numpy as np
import onnx
from onnx import inliner

from ingot.errors import ModelError, UnsupportedError
from ingot.frontend.onnx.read import Source, array_from, dense_from
from ingot.frontend.onnx.upgrade import OLDEST
from ingot.graph import DTYPES, Dim, Symbol, parse_dim
from ingot.ops import OPSET

MOST_NODES = 1 << 20    # nodes a model may unfold to
# ops that no kernel serves, and whose definition in ONNX is a function of ops that have kernels
WRITTEN_OUT = frozenset({("ai.onnx.preview", "FlexAttention"), ("", "AffineGrid"), ("", "BlackmanWindow"),
                         ("", "HammingWindow"), ("", "HannWindow")})
STANDARD = ("", "ai.onnx")


def inlined(source: Source) -> onnx.ModelProto:
    """The model with its functions inlined, and the ops that only their definition serves. Raises ModelError."""
    model = source.model
    if model.functions:
        _expanded(model)
        try:
            model = inliner.inline_local_functions(model)
        except (RuntimeError, ValueError, onnx.checker.ValidationError, onnx.shape_inference.InferenceError) as error:
            raise ModelError("the model's functions cannot be inlined", why=(str(error),),
                             mend="check the model with onnx.checker, and export it again") from None
    if wanted := sorted({(n.domain, n.op_type) for n in model.graph.node} & WRITTEN_OUT):
        try:
            return inliner.inline_selected_functions(_defaults_said(model), wanted, False, True)
        except (RuntimeError, ValueError, TypeError, onnx.checker.ValidationError, onnx.defs.SchemaError,
                onnx.shape_inference.InferenceError):
            return model            # the nodes are told of, or run as calls, where they stand
    return model


def _defaults_said(model: onnx.ModelProto) -> onnx.ModelProto:
    """A copy in which the nodes to be written out have every attribute: the inliner does not know defaults."""
    made = onnx.ModelProto()
    made.CopyFrom(model)
    opsets = {o.domain: o.version for o in model.opset_import}
    for node in made.graph.node:
        if (node.domain, node.op_type) in WRITTEN_OUT:
            schema = onnx.defs.get_schema(node.op_type, opsets.get(node.domain, OPSET), node.domain)
            given = {a.name for a in node.attribute}
            node.attribute.extend(a.default_value for name, a in schema.attributes.items()
                                  if name not in given and a.default_value.name)
    return made


def _expanded(model: onnx.ModelProto) -> int:
    """How many nodes the model has once its functions are inlined. Raises ModelError for recursion and for too many."""
    functions = {(f.domain, f.name): f for f in model.functions}
    counts: dict[tuple[str, str], int] = {}
    open_calls: set[tuple[str, str]] = set()

    def total(nodes: Iterable[onnx.NodeProto]) -> int:
        found = 0
        for node in nodes:
            found += 1 + sum(total(a.g.node) for a in node.attribute if a.type == onnx.AttributeProto.GRAPH)
            if (called := (node.domain, node.op_type)) in functions:
                found += of(called)
        if found > MOST_NODES:
            raise ModelError(f"the model's functions unfold to more than {MOST_NODES} nodes", mend="export it inlined")
        return found

    def of(called: tuple[str, str]) -> int:
        if called in open_calls:
            raise ModelError(f"the function {called[1]} calls itself", mend="export the model inlined")
        if len(open_calls) > 64:
            raise ModelError("the model's functions call each other more than 64 deep", mend="export it inlined")
        if called not in counts:
            open_calls.add(called)
            counts[called] = total(functions[called].node)
            open_calls.discard(called)
        return counts[called]

    return total(model.graph.node)


def opset_of(model: onnx.ModelProto) -> int:
    """The opset of ONNX's own ops. Raises ModelError or UnsupportedError."""
    found = [o.version for o in model.opset_import if o.domain in STANDARD]
    if not found and model.opset_import:
        return OPSET        # only ops of other domains: each of them is reported
    if not found:
        raise ModelError("the model names no opset", mend="export it again")
    if not OLDEST <= found[0] <= OPSET:
        raise UnsupportedError(f"the model is of opset {found[0]}; served are {OLDEST} to {OPSET}",
                               mend="export it with a newer opset" if found[0] < OLDEST else f"export it with {OPSET}")
    return int(found[0])


def checked_text(*names: object) -> None:
    """Names that are no UTF-8 come as bytes. Raises ModelError."""
    if bad := [n for n in names if not isinstance(n, str)]:
        raise ModelError(f"the name {bad[0]!r} is no text", mend="export the model again, or fetch the file again")


def attribute_of(proto: onnx.AttributeProto, source: Source) -> object:
    """An attribute: lists as tuples, tensors (sparse ones too) as arrays, types as bytes, graphs as they are."""
    kind = onnx.AttributeProto
    if proto.ref_attr_name:
        raise ModelError(f"the attribute {proto.name} refers to a function's, and there is no function")
    match proto.type:
        case kind.FLOAT:
            return proto.f
        case kind.INT:
            return proto.i
        case kind.STRING:
            return proto.s.decode("utf-8", "replace")
        case kind.FLOATS:
            return tuple(proto.floats)
        case kind.INTS:
            return tuple(proto.ints)
        case kind.STRINGS:
            return tuple(s.decode("utf-8", "replace") for s in proto.strings)
        case kind.TENSOR:
            return array_from(proto.t, source)
        case kind.GRAPH:
            return proto.g
        case kind.TENSORS:
            return tuple(array_from(t, source) for t in proto.tensors)
        case kind.SPARSE_TENSOR:
            return dense_from(proto.sparse_tensor, source)
        case kind.TYPE_PROTO:
            return proto.tp.SerializeToString()
    raise UnsupportedError(f"the attribute {proto.name} holds {kind.AttributeType.Name(proto.type)}")


def dtype_of(array: np.ndarray) -> str:
    """The short name of an array's element type."""
    return next(name for name, t in DTYPES.items() if t.numpy == array.dtype)


def declared(dim: onnx.TensorShapeProto.Dimension) -> Dim | None:
    """A declared dimension; None where it has neither size nor name."""
    if dim.HasField("dim_value"):
        if dim.dim_value < 0:
            return None         # some exporters write -1 for "any"
        return int(dim.dim_value)
    checked_text(dim.dim_param)
    text = dim.dim_param.strip()
    if not text:
        return None
    try:
        return parse_dim(text)
    except ModelError:
        return parse_dim("_" + re.sub(r"\W", "_", text))


def profiles(text: str) -> dict[str, Symbol]:
    """Symbols by name, from the text in which a written model keeps them."""
    found: dict[str, Symbol] = {}
    for name, low, opt, high in re.findall(r"(\w+): (\d+)\.\.(\d+)\.\.(\d+)", text):
        found[name] = Symbol(name, int(low), int(opt), int(high))
    return found


def constant_of(attrs: Mapping[str, object], where: str) -> np.ndarray:
    """The array of a Constant node. Raises ModelError or UnsupportedError."""
    for name, dtype in (("value_int", np.int64), ("value_ints", np.int64), ("value_float", np.float32),
                        ("value_floats", np.float32), ("value_string", object), ("value_strings", object)):
        if name in attrs:
            try:
                return np.asarray(attrs[name], dtype=dtype)
            except (ValueError, TypeError) as error:
                raise ModelError(f"the attribute {name} holds something else", where=where,
                                 why=(str(error),)) from None
    value = attrs.get("value", attrs.get("sparse_value"))
    if not isinstance(value, np.ndarray):
        raise UnsupportedError(f"a constant given as {', '.join(attrs) or 'nothing'}", where=where)
    return value
