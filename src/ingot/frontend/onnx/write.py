"""onnx_from_graph: a graph as an ONNX model that any runtime can run, and that reads back as the same graph."""
from __future__ import annotations

from typing import Any

import numpy as np
import onnx
from onnx import helper, numpy_helper

from ingot.errors import UnsupportedError
from ingot.frontend.onnx.convert import ORIGIN_KEY, SYMBOLS_KEY
from ingot.graph import Dim, Expr, Graph, Node, TensorType
from ingot.graph.dim import Floor
from ingot.ops import OPSET
from ingot.ops.fallback import attribute_protos
from ingot.ops.onnx_form import ENUM_OF, Promoted, onnx_attributes, onnx_inputs

_OLDEST = 18        # no need to claim an older opset than the one every runtime has
_HARMLESS = frozenset({     # attributes an op gained, whose default is what the op meant before
    ("Cast", "round_mode"), ("Attention", "left_window_size"), ("Attention", "right_window_size"),
    ("Range", "stash_type"), ("QuantizeLinear", "precision")})


def onnx_from_graph(graph: Graph, name: str = "ingot") -> onnx.ModelProto:
    """The graph as an ONNX model, at the oldest opset that means the same.

    Symbolic attributes become shape arithmetic on the inputs; profiles travel in the model's metadata. Raises
    UnsupportedError for a graph with blocked layouts, or a symbol that no input has as a dimension of its own.
    """
    if laid := next((v for v, t in graph.types.items() if t.layout), None):
        raise UnsupportedError(f"'{laid}' lies in a blocked layout, which ONNX does not know",
                               mend="write the graph before the layout pass")
    if own := next((n for n in graph.nodes if not onnx.defs.has(n.op, OPSET, "")), None):
        raise UnsupportedError(f"ONNX has no {own.op}", where=own.where, mend="keep the model it was read from")
    writer = _Writer(graph)
    for node in graph.nodes:
        writer.add(node)
    proto = helper.make_graph(
        writer.nodes, name, [_info(v, graph.types[v]) for v in graph.inputs],
        [_info(v, graph.types[v]) for v in graph.outputs],
        [numpy_helper.from_array(np.ascontiguousarray(a).reshape(a.shape), k)
         for k, a in (*graph.constants.items(), *writer.constants.items())])
    opset = max([_OLDEST, *(_since(n, graph) for n in writer.nodes)])
    imports = [helper.make_opsetid("", opset)]
    model = helper.make_model(proto, opset_imports=imports, producer_name="ingot",
                              ir_version=helper.find_min_ir_version_for(imports))
    if graph.symbols:
        helper.set_model_props(model, {SYMBOLS_KEY: "\n".join(map(str, graph.symbols.values()))})
    return model


def _defaults(schema: Any, op: str) -> dict[str, object]:
    return {name: (a.required, helper.get_attribute_value(a.default_value) if a.default_value.name else None)
            for name, a in schema.attributes.items() if (op, name) not in _HARMLESS}


def _since(node: onnx.NodeProto, graph: Graph) -> int:
    """The oldest opset, down to _OLDEST, at which this node means what it means at OPSET."""
    newest = onnx.defs.get_schema(node.op_type, OPSET, "")
    found = newest.since_version
    extra = {a.name for a in node.attribute} & {name for op, name in _HARMLESS if op == node.op_type}
    while found > _OLDEST and not extra:
        if not onnx.defs.has(node.op_type, found - 1, ""):
            break
        older = onnx.defs.get_schema(node.op_type, found - 1, "")
        if (older.deprecated or older.since_version == found
                or len(older.inputs) != len(newest.inputs) or len(older.outputs) != len(newest.outputs)
                or _defaults(older, node.op_type) != _defaults(newest, node.op_type)
                or not _accepts(older, node, graph)):
            break
        found = older.since_version
    return int(found)


def _accepts(schema: Any, node: onnx.NodeProto, graph: Graph) -> bool:
    for names, parameters in ((node.input, schema.inputs), (node.output, schema.outputs)):
        for k, name in enumerate(names):
            t = graph.types.get(name)
            if t is not None and _KINDS.get(t.dtype.name) not in parameters[min(k, len(parameters) - 1)].types:
                return False
    return True


_KINDS = {"f32": "tensor(float)", "f64": "tensor(double)", "f16": "tensor(float16)", "bf16": "tensor(bfloat16)",
          "bool": "tensor(bool)", "str": "tensor(string)",
          **{f"{k}{b}": f"tensor({n}{b})" for k, n in (("i", "int"), ("u", "uint")) for b in (8, 16, 32, 64)}}


def _info(name: str, t: TensorType) -> onnx.ValueInfoProto:
    return helper.make_tensor_value_info(name, ENUM_OF[t.dtype.name],
                                         [d if isinstance(d, int) else str(d) for d in t.shape])


class _Writer:
    """Nodes, and the constants they need beyond the graph's own. Lives inside `onnx_from_graph`."""

    def __init__(self, graph: Graph) -> None:
        self.graph = graph
        self.nodes: list[onnx.NodeProto] = []
        self.constants: dict[str, np.ndarray] = {}
        self.sizes: dict[Dim | Floor, str] = {}         # what has been computed already -> its name
        self.count = 0
        self.sources = {str(d): (v, axis) for v in reversed(graph.inputs)
                        for axis, d in enumerate(graph.types[v].shape) if isinstance(d, Expr)}

    def _fresh(self) -> str:
        while True:
            self.count += 1
            if (name := f"size.{self.count}") not in self.graph.types:
                return name

    def _put(self, op: str, *inputs: str, **attrs: object) -> str:
        name = self._fresh()
        self.nodes.append(onnx.NodeProto(op_type=op, input=inputs, output=[name], attribute=attribute_protos(attrs)))
        return name

    def _constant(self, array: np.ndarray) -> str:
        name = self._fresh()
        self.constants[name] = array
        return name

    def add(self, node: Node) -> None:
        inputs = [i if isinstance(i, str) else self._operand(i) for i in onnx_inputs(node)]
        made = onnx.NodeProto(op_type=node.op, name=next(filter(None, node.outputs)), input=inputs, output=node.outputs,
                              attribute=attribute_protos(onnx_attributes(node)))
        if node.origin:
            made.metadata_props.add(key=ORIGIN_KEY, value="\n".join(node.origin))
        self.nodes.append(made)

    def _operand(self, p: Promoted) -> str:
        if not any(isinstance(e, Expr) for e in p.entries):
            return self._constant(p.array({}))
        parts = [self._size(e) if isinstance(e, Expr) else self._number(int(e)) for e in p.entries]
        whole = parts[0] if len(parts) == 1 else self._put("Concat", *parts, axis=0)
        if p.scalar:
            whole = self._put("Squeeze", whole)
        return whole if p.dtype == np.dtype("int64") else self._put("Cast", whole, to=ENUM_OF[_short(p.dtype)])

    def _number(self, value: int) -> str:
        if value not in self.sizes:
            self.sizes[value] = self._constant(np.array([value], np.int64))
        return self.sizes[value]

    def _size(self, dim: Dim | Floor) -> str:
        """The name of an i64[1] that holds the dimension."""
        if isinstance(dim, int):
            return self._number(dim)
        if dim in self.sizes:
            return self.sizes[dim]
        if isinstance(dim, Floor):
            top, bottom = self._size(dim.numerator), self._size(dim.denominator)
            # Div truncates and Mod takes the divisor's sign, so this floors
            made = self._put("Div", self._put("Sub", top, self._put("Mod", top, bottom)), bottom)
        elif str(dim) in self.sources:
            value, axis = self.sources[str(dim)]
            made = self._put("Shape", value, start=axis, end=axis + 1)
        else:
            made = self._sum(dim)
        self.sizes[dim] = made
        return made

    def _sum(self, dim: Expr) -> str:
        total = ""
        for monomial, factor in dim.terms:
            part = "" if factor == 1 and monomial else self._number(factor)
            for atom in monomial:
                if isinstance(atom, str) and atom not in self.sources:
                    raise UnsupportedError(f"no input has the dimension {atom}", mend="give one input that dimension")
                value = self._size(atom if isinstance(atom, Floor) else Expr((((atom,), 1),)))
                part = self._put("Mul", part, value) if part else value
            total = self._put("Add", total, part) if total else part
        return total


def _short(dtype: np.dtype) -> str:
    return {"int32": "i32", "float32": "f32", "float64": "f64", "int16": "i16"}[dtype.name]
