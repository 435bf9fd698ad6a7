"""Between a node here and the same node in ONNX: promoted operands, element types, attributes of our own."""
from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from ingot.errors import InternalError, ModelError
from ingot.graph import DTYPES, Dim, Node
from ingot.ops.op import OPS
from ingot.ops.shapes import dim_from

ENUM: Mapping[int, str] = {     # TensorProto.DataType -> short name
    1: "f32", 2: "u8", 3: "i8", 4: "u16", 5: "i16", 6: "i32", 7: "i64", 8: "str", 9: "bool", 10: "f16", 11: "f64",
    12: "u32", 13: "u64", 14: "c64", 15: "c128", 16: "bf16", 17: "f8e4m3", 18: "f8e4m3fnuz", 19: "f8e5m2",
    20: "f8e5m2fnuz", 21: "u4", 22: "i4", 23: "f4e2m1", 24: "f8e8m0", 25: "u2", 26: "i2"}
ENUM_OF: Mapping[str, int] = {name: number for number, name in ENUM.items()}

DTYPE_ATTRIBUTES = frozenset({
    ("Cast", "to"), ("BitCast", "to"), ("EyeLike", "dtype"), ("QuantizeLinear", "output_dtype"),
    ("DequantizeLinear", "output_dtype"),
    ("Attention", "softmax_precision")})        # numbers of element types in ONNX, short names here
OWN_ATTRIBUTES = frozenset({
    ("Conv", "layout"), ("ConvTranspose", "layout"), ("ConvInteger", "layout"), ("ShortConv", "layout"),
    ("Range", "dtype"),
    ("ConstantOfShape", "dtype"),
    ("ConstantOfShape", "value")})              # ONNX has them elsewhere, or not at all
SCALARS = frozenset({
    ("Trilu", "k"), ("CumSum", "axis"), ("CumProd", "axis"), ("OneHot", "depth"), ("Range", "start"),
    ("Range", "limit"), ("Range", "delta")})    # promoted operands of rank 0
_FLOATS = frozenset({("Resize", "scales"), ("Resize", "roi")})


@dataclass(frozen=True)
class Promoted:
    """A promoted attribute as the operand it is in ONNX: its entries, element type, and whether it has rank 0."""

    attribute: str
    entries: tuple[Dim | float, ...]
    dtype: np.dtype
    scalar: bool

    def array(self, bindings: Mapping[str, int]) -> np.ndarray:
        """The operand's value. Raises KeyError for an unbound symbol."""
        numbers = [e if isinstance(e, (int, float)) else e.evaluate(bindings) for e in self.entries]
        return np.asarray(numbers[0] if self.scalar else numbers, dtype=self.dtype)


def onnx_inputs(node: Node) -> tuple[str | Promoted, ...]:
    """The node's inputs in ONNX's order: names, and what was promoted. Absent ones are empty; none at the end."""
    promoted = OPS[node.op].promoted
    if not promoted:
        return node.inputs
    attrs, rest = node.attrs, list(node.inputs)
    out: list[str | Promoted] = []
    last = max(promoted)
    while rest or len(out) <= last:
        name = promoted.get(len(out))
        if name is None:
            out.append(rest.pop(0) if rest else "")
            continue
        value = attrs.get(name, OPS[node.op].attrs[name])
        if value is None:
            out.append("")
            continue
        if not isinstance(value, (tuple, list)):
            raise InternalError(f"{name} is {value!r}, not a tuple", where=node.where)
        if (node.op, name) in _FLOATS:
            dtype: np.dtype = np.dtype("float32")
            entries: tuple[Dim | float, ...] = tuple(float(v) for v in value)
        elif node.op == "Range":
            dtype = DTYPES[str(attrs.get("dtype", "i64"))].numpy
            entries = tuple(v if isinstance(v, float) else dim_from(v) for v in value)
        else:
            dtype, entries = np.dtype("int64"), tuple(dim_from(v) for v in value)
        out.append(Promoted(name, entries, dtype, (node.op, name) in SCALARS))
    while out and out[-1] == "":
        out.pop()
    return tuple(out)


def onnx_attributes(node: Node) -> dict[str, object]:
    """The node's attributes in ONNX's terms; those that became operands are left out."""
    op = OPS[node.op]
    gone = set(op.promoted.values()) | {name for kind, name in OWN_ATTRIBUTES if kind == node.op}
    out: dict[str, object] = {}
    for name, value in node.attrs.items():
        if name in gone or value is None:
            continue
        if (node.op, name) in DTYPE_ATTRIBUTES:
            if str(value) not in ENUM_OF:
                raise ModelError(f"{name} is {value!r}, no element type", where=node.where)
            out[name] = ENUM_OF[str(value)]
        else:
            out[name] = value
    if node.op == "ConstantOfShape":
        dtype = DTYPES[str(node.attrs.get("dtype", "f32"))]
        out["value"] = np.asarray([node.attrs.get("value", 0)], dtype=dtype.numpy)
    return out
