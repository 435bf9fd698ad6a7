"""What can be told of a call's results before the model runs: element type, rank, and the sizes that are certain."""
from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np
import onnx
from onnx import helper, numpy_helper, shape_inference

from ingot.graph import DTYPES, I64, Dim, Expr, TensorType
from ingot.ops.fallback import attribute_protos
from ingot.ops.onnx_form import ENUM, ENUM_OF

Types = Sequence[TensorType | None]
Attrs = Mapping[str, object]
MOST_SIZES = 6                  # symbolic axes of one result
MOST_AXES = 64                  # of a result; a shape operand may claim to have a billion entries
Fresh = Callable[[], Dim]       # a size that only the data knows


def guessed(op: str, domain: str, opset: int, attrs: Attrs, types: Types, known: Sequence[np.ndarray | None],
            outputs: int, fresh: Fresh) -> list[TensorType | None]:
    """The types of a node's results, None for each that is no tensor or of unknown rank.

    `known` holds the operands that are constants. Sizes that are not certain are `fresh()`.
    """
    if op == "Slice" and not domain:         # inference keeps the axes that are not cut, where those are known
        cut = _inferred(op, domain, opset, attrs, types, known, outputs, fresh)
        if cut[0] is not None:
            return [*map(_bounded, cut)]
    if not domain and (rule := _RULES.get(op)) is not None and types and types[0] is not None:
        try:
            found = rule(types[0], types, attrs, fresh)
        except (TypeError, ValueError):         # an attribute of another kind: whoever runs the node says so
            found = None
        if found is not None:
            return [*map(_bounded, found), *[None] * outputs][:outputs]
    return [*map(_bounded, _inferred(op, domain, opset, attrs, types, known, outputs, fresh))]


def _bounded(t: TensorType | None) -> TensorType | None:
    """A type with too many sizes that only the data knows is no help: their products grow beyond all bounds."""
    return None if t is None or sum(isinstance(d, Expr) for d in t.shape) > MOST_SIZES else t


def _inferred(op: str, domain: str, opset: int, attrs: Attrs, types: Types, known: Sequence[np.ndarray | None],
              outputs: int, fresh: Fresh) -> list[TensorType | None]:
    """What onnx's own inference says."""
    nothing: list[TensorType | None] = [None] * outputs
    try:
        schema = onnx.defs.get_schema(op, opset, domain)
    except (onnx.defs.SchemaError, TypeError):
        return nothing
    node = onnx.NodeProto(op_type=op, domain=domain, attribute=attribute_protos(attrs),
                          input=[f"i{k}" if t is not None else "" for k, t in enumerate(types)],
                          output=[f"o{k}" for k in range(outputs)])
    names: dict[str, Dim] = {}
    given: dict[str, onnx.TypeProto] = {}
    for k, t in enumerate(types):
        if t is not None:
            shape = []
            for d in t.shape:
                if isinstance(d, Expr):
                    name = next((n for n, v in names.items() if v == d), f"d{len(names)}")
                    names[name] = d
                    shape.append(name)
                else:
                    shape.append(d)         # type: ignore[arg-type]
            given[f"i{k}"] = helper.make_tensor_type_proto(ENUM_OF[t.dtype.name], shape)
    data = {f"i{k}": numpy_helper.from_array(np.ascontiguousarray(a).reshape(a.shape))
            for k, a in enumerate(known) if a is not None and a.dtype.kind in "iufb"}
    try:
        made = shape_inference.infer_node_outputs(schema, node, given, data,
                                                  opset_imports=[helper.make_opsetid(domain, opset)])
    except (shape_inference.InferenceError, onnx.checker.ValidationError, RuntimeError, ValueError):
        return nothing
    found: list[TensorType | None] = []
    for k in range(outputs):
        proto = made.get(f"o{k}")
        if proto is None or not proto.HasField("tensor_type") or not proto.tensor_type.HasField("shape"):
            found.append(None)
            continue
        dims = [d.dim_value if d.HasField("dim_value") else names.get(d.dim_param) for d in proto.tensor_type.shape.dim]
        kind = ENUM.get(proto.tensor_type.elem_type)
        found.append(None if kind is None else
                     TensorType(DTYPES[kind], tuple(fresh() if d is None else d for d in dims)))
    return found


# --- ops with shape-like operands: how many axes the result has -----------------------------------------------------

_Rule = Callable[[TensorType, Types, Attrs, Fresh], "list[TensorType] | None"]


def _length(types: Types, position: int) -> int | None:
    """The known length of a vector operand."""
    t = types[position] if position < len(types) else None
    if t is None or t.rank > 1:
        return None
    length = t.shape[0] if t.rank else 1
    return length if isinstance(length, int) and length <= MOST_AXES else None


def _free(dtype_of: TensorType, rank: int, fresh: Fresh) -> list[TensorType]:
    return [TensorType(dtype_of.dtype, tuple(fresh() for _ in range(rank)))]


def _same_rank(x: TensorType, types: Types, attrs: Attrs, fresh: Fresh) -> list[TensorType]:
    return _free(x, x.rank, fresh)


def _same(x: TensorType, types: Types, attrs: Attrs, fresh: Fresh) -> list[TensorType]:
    return [x]


def _from_shape(x: TensorType, types: Types, attrs: Attrs, fresh: Fresh) -> list[TensorType] | None:
    length = _length(types, 1)
    return None if length is None else _free(x, length, fresh)


def _expand(x: TensorType, types: Types, attrs: Attrs, fresh: Fresh) -> list[TensorType] | None:
    length = _length(types, 1)
    return None if length is None else _free(x, max(x.rank, length), fresh)


def _top_k(x: TensorType, types: Types, attrs: Attrs, fresh: Fresh) -> list[TensorType]:
    axis = int(attrs.get("axis", -1)) % max(1, x.rank)          # type: ignore[call-overload]
    shape = (*x.shape[:axis], fresh(), *x.shape[axis + 1:])
    return [TensorType(x.dtype, shape), TensorType(I64, shape)]


def _fewer(x: TensorType, types: Types, attrs: Attrs, fresh: Fresh) -> list[TensorType] | None:
    length = _length(types, 1)
    return None if length is None or length > x.rank else _free(x, x.rank - length, fresh)


def _reduced(x: TensorType, types: Types, attrs: Attrs, fresh: Fresh) -> list[TensorType] | None:
    if attrs.get("keepdims", 1):
        return _free(x, x.rank, fresh)
    return None if not _length(types, 1) else _fewer(x, types, attrs, fresh)


def _more(x: TensorType, types: Types, attrs: Attrs, fresh: Fresh) -> list[TensorType] | None:
    length = _length(types, 1)
    return None if length is None else _free(x, x.rank + length, fresh)


def _filled(x: TensorType, types: Types, attrs: Attrs, fresh: Fresh) -> list[TensorType] | None:
    length, dtype = _length(types, 0), attrs.get("dtype")
    if length is None or dtype not in DTYPES:
        return None
    return [TensorType(DTYPES[str(dtype)], tuple(fresh() for _ in range(length)))]


def _one_hot(x: TensorType, types: Types, attrs: Attrs, fresh: Fresh) -> list[TensorType] | None:
    choices = types[2] if len(types) > 2 else None
    if choices is None:
        return None
    axis = int(attrs.get("axis", -1)) % (x.rank + 1)            # type: ignore[call-overload]
    return [TensorType(choices.dtype, (*x.shape[:axis], fresh(), *x.shape[axis:]))]


def _range(x: TensorType, types: Types, attrs: Attrs, fresh: Fresh) -> list[TensorType]:
    return _free(x, 1, fresh)


def _split(x: TensorType, types: Types, attrs: Attrs, fresh: Fresh) -> list[TensorType] | None:
    length = _length(types, 1)
    axis = int(attrs.get("axis", 0)) % max(1, x.rank)           # type: ignore[call-overload]
    return None if length is None else [
        TensorType(x.dtype, (*x.shape[:axis], fresh(), *x.shape[axis + 1:])) for _ in range(length)]


_RULES: Mapping[str, _Rule] = {
    **dict.fromkeys(("Tile", "Pad", "Slice", "Resize", "CenterCropPad"), _same_rank),
    **dict.fromkeys(("Trilu", "CumSum", "CumProd"), _same),
    **dict.fromkeys(("ReduceSum", "ReduceMean", "ReduceMax", "ReduceMin", "ReduceProd", "ReduceL1", "ReduceL2",
                     "ReduceLogSum", "ReduceLogSumExp", "ReduceSumSquare"), _reduced),
    "ConstantOfShape": _filled, "Expand": _expand, "OneHot": _one_hot, "Range": _range, "Reshape": _from_shape,
    "Split": _split, "Squeeze": _fewer, "TopK": _top_k, "Unsqueeze": _more}
