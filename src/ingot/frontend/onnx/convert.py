"""graph_from_onnx: an ONNX model, of any opset from 7 on, as a graph."""
from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from types import MappingProxyType

import numpy as np
import onnx
from onnx import inliner

from ingot.errors import IngotError, ModelError, UnsupportedError
from ingot.frontend.onnx.item import Item
from ingot.frontend.onnx.problem import Problem, problem_from, raised
from ingot.frontend.onnx.read import Source, array_from, read_model
from ingot.frontend.onnx.upgrade import OLDEST, upgrade
from ingot.frontend.shapes import DEFAULT_PROFILE, ShapeSpec, Symbols, read_spec, settled
from ingot.graph import DTYPES, Dim, Expr, Graph, GraphBuilder, Node, Symbol, TensorType, evaluate, parse_dim
from ingot.ops import OPS, OPSET, clamps, dims, infer, pooling_window
from ingot.ops.contents import Contents, follow, known
from ingot.ops.convolution import convolution_window
from ingot.ops.fallback import refusal
from ingot.ops.onnx_form import DTYPE_ATTRIBUTES, ENUM

LARGEST = 1 << 40       # bytes one value may take at its largest; more is a mistake or an attack
MOST_NODES = 1 << 20    # nodes a model may unfold to
SYMBOLS_KEY = "ingot.symbols"       # where a written model keeps the profiles
ORIGIN_KEY = "ingot.origin"         # and a written node the names it came from
_STANDARD = ("", "ai.onnx")
_TEXT = re.compile(r"[\s=,(){}]")    # what the graph's text form cannot hold in a name


def graph_from_onnx(model: str | os.PathLike[str] | bytes | onnx.ModelProto,
                    shapes: Mapping[str, ShapeSpec] | None = None) -> Graph:
    """Read an ONNX model: inlined, upgraded to the one opset, shape arithmetic resolved, dead nodes gone.

    `shapes` says sizes and ranges per input (see `frontend.shapes`). A symbolic dimension that is given none gets the
    profile 1..1..64. Raises InputError (no such file or input, shapes that do not fit), ModelError or
    UnsupportedError; everything wrong with the nodes is in one error.
    """
    source = read_model(model)
    reader = _Reader(source, dict(shapes or {}))
    return reader.graph()


def _inlined(source: Source) -> onnx.ModelProto:
    if not source.model.functions:
        return source.model
    _expanded(source.model)
    try:
        return inliner.inline_local_functions(source.model)
    except (RuntimeError, ValueError, onnx.checker.ValidationError) as error:
        raise ModelError("the model's functions cannot be inlined", why=(str(error),),
                         mend="check the model with onnx.checker, and export it again") from None


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


def _opset(model: onnx.ModelProto) -> int:
    found = [o.version for o in model.opset_import if o.domain in _STANDARD]
    if not found and model.opset_import:
        return OPSET        # only ops of other domains: each of them is reported
    if not found:
        raise ModelError("the model names no opset", mend="export it again")
    if not OLDEST <= found[0] <= OPSET:
        raise UnsupportedError(f"the model is of opset {found[0]}; served are {OLDEST} to {OPSET}",
                               mend="export it with a newer opset" if found[0] < OLDEST else f"export it with {OPSET}")
    return int(found[0])


def _text(*names: object) -> None:
    """Names that are no UTF-8 come as bytes. Raises ModelError."""
    if bad := [n for n in names if not isinstance(n, str)]:
        raise ModelError(f"the name {bad[0]!r} is no text", mend="export the model again, or fetch the file again")


def _attribute(proto: onnx.AttributeProto, source: Source) -> object:
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
    raise UnsupportedError(f"the attribute {proto.name} holds {kind.AttributeType.Name(proto.type)}")


class _Reader:
    """The state of one reading. Lives inside `graph_from_onnx`."""

    def __init__(self, source: Source, shapes: dict[str, ShapeSpec]) -> None:
        self.source, self.model = source, _inlined(source)
        self.opset = _opset(self.model)
        self.shapes = shapes
        self.build = GraphBuilder(infer)
        self.contents: dict[str, Contents] = {}
        self.problems: list[Problem] = []
        self.broken: set[str] = set()           # values of nodes that could not be taken
        self.uses: Counter[str] = Counter()
        self.count = 0
        self.names: dict[str, str] = {}         # the model's names that the text form cannot hold
        self.taken: set[str] = set()
        self._survey(self.model.graph)

    # ------------------------------------------------------------------------------------------------------ names

    def _survey(self, graph: onnx.GraphProto) -> None:
        """Every name and every use, subgraphs included."""
        self.uses.update(o.name for o in graph.output)
        for node in graph.node:
            _text(node.name, node.op_type, node.domain, *node.input, *node.output, *(a.name for a in node.attribute))
            if not any(node.output):
                raise ModelError(f"the node {node.op_type} '{node.name}' makes nothing", mend="export the model again")
            self.uses.update(node.input)
            self.taken.update(node.output)
            for a in node.attribute:
                if a.type == onnx.AttributeProto.GRAPH:
                    self._survey(a.g)
        _text(*(v.name for v in (*graph.input, *graph.output, *graph.initializer)))
        self.taken.update(t.name for t in graph.initializer)
        self.taken.update(v.name for v in graph.input)

    def fresh(self) -> str:
        while True:
            self.count += 1
            name = f"ingot.{self.count}"
            if name not in self.taken and name not in self.build.types:
                self.taken.add(name)
                return name

    def name(self, original: str) -> str:
        if not original or not _TEXT.search(original):
            return original
        if original not in self.names:
            plain = _TEXT.sub("_", original)
            self.names[original] = self.fresh() if plain in self.taken else plain
            self.taken.add(self.names[original])
        return self.names[original]

    # ------------------------------------------------------------------------------------------------- whole graph

    def graph(self) -> Graph:
        proto = self.model.graph
        if proto.sparse_initializer:
            raise UnsupportedError("sparse initializers are not served", mend="export the model with dense weights")
        constants = {t.name for t in proto.initializer}
        self._inputs([v for v in proto.input if v.name not in constants])
        for tensor in proto.initializer:
            self.constant(self.name(tensor.name), array_from(tensor, self.source))
        self.nodes(proto.node, {})
        for out in proto.output:
            if self.name(out.name) not in self.build.types and self.name(out.name) not in self.broken:
                self.problems.append(Problem(f"output '{out.name}'", "nothing makes it", unsupported=False))
        if self.problems:
            raise raised(self.problems, self.source.name)
        outputs = [self.name(o.name) for o in proto.output]
        return _pruned(self.build.finish(*outputs))

    def _inputs(self, inputs: Sequence[onnx.ValueInfoProto]) -> None:
        names = [v.name for v in inputs]
        if unknown := [n for n in self.shapes if n not in names]:
            raise ModelError(f"the model has no input '{unknown[0]}'", mend=f"its inputs: {', '.join(names) or 'none'}")
        saved = {p.key: p.value for p in self.model.metadata_props}.get(SYMBOLS_KEY, "")
        symbols = Symbols(_profiles(saved))
        found: dict[str, TensorType] = {}
        for v in inputs:
            tensor = v.type.tensor_type
            if not v.type.HasField("tensor_type") or tensor.elem_type not in ENUM:
                raise UnsupportedError(f"input '{v.name}' is no tensor", mend="export the model with tensors as inputs")
            spec = self.shapes.get(v.name)
            if not tensor.HasField("shape") and spec is None:
                raise ModelError(f"input '{v.name}' has no shape",
                                 mend=f"give one: --shapes {v.name}:1..8..32x3x224x224")
            declared: list[Dim | None] = [_declared(d) for d in tensor.shape.dim]
            if not tensor.HasField("shape") and spec is not None:
                declared = [None] * len(read_spec(spec))
            found[v.name] = TensorType(DTYPES[ENUM[tensor.elem_type]], symbols.shape(v.name, declared, spec))
        for name, t in found.items():
            self.build.input(self.name(name), settled(t, symbols.fixed))
        used = {s for t in self.build.types.values() for s in t.symbols}
        self.build.symbols.update({k: s for k, s in symbols.profiles.items() if k in used})
        for loose in sorted(used - self.build.symbols.keys()):
            self.build.symbols[loose] = Symbol(loose, *DEFAULT_PROFILE)

    def constant(self, name: str, array: np.ndarray) -> str:
        self.build.constant(name, array)
        if (held := known(array)) is not None:
            self.contents[name] = held
        return name

    # -------------------------------------------------------------------------------------------------------- nodes

    def nodes(self, nodes: Iterable[onnx.NodeProto], scope: Mapping[str, str]) -> None:
        for proto in nodes:
            where = f"{proto.op_type} '{proto.name or next(iter(proto.output), '')}'"
            inputs = [scope.get(i, self.name(i)) for i in proto.input]
            outputs = [scope.get(o, self.name(o)) for o in proto.output]
            if self.broken.intersection(inputs):
                self.broken.update(filter(None, outputs))
                continue
            try:
                self._node(proto, inputs, outputs, where, scope)
            except IngotError as error:
                self.problems.append(problem_from(error, where))
                self.broken.update(filter(None, outputs))

    def _node(self, proto: onnx.NodeProto, inputs: list[str], outputs: list[str], where: str,
              scope: Mapping[str, str]) -> None:
        if missing := [i for i in inputs if i and i not in self.build.types]:
            raise ModelError(f"it reads '{missing[0]}', which nothing makes before it", mend="order the nodes")
        if again := [o for o in outputs if o and o in self.build.types]:
            raise ModelError(f"it makes '{again[0]}', which is made already", mend="give every value one name")
        attrs = {a.name: _attribute(a, self.source) for a in proto.attribute}
        if proto.domain not in _STANDARD:
            raise UnsupportedError(f"op {proto.domain}::{proto.op_type} is not of ONNX's standard set",
                                   mend="export the model without optimisations of other tools")
        if proto.op_type == "Constant":
            self.constant(outputs[0], _constant(attrs, where))
            return
        if proto.op_type == "If":
            if not inputs:
                raise ModelError("it has no condition", where=where)
            self._branch(inputs[0], outputs, attrs, where, scope)
            return
        item = Item(proto.op_type, inputs, outputs, attrs, where, self.build.types.get, self._another,
                    self.fresh, lambda v: bool(self.uses[v]))
        upgrade(item, self.opset)
        kept = next((p.value for p in proto.metadata_props if p.key == ORIGIN_KEY), "")
        origin = tuple(kept.split("\n")) if kept else (proto.name or proto.output[0],)
        for part in (*item.before, item, *item.after):
            self._add(part, origin)

    def _another(self, array: np.ndarray) -> str:
        return self.constant(self.fresh(), array)

    def _branch(self, condition: str, outputs: list[str], attrs: Mapping[str, object], where: str,
                scope: Mapping[str, str]) -> None:
        held = self.contents.get(condition)
        if held is None:
            raise UnsupportedError("its condition depends on the data", mend="export the model with one branch")
        graph = attrs["then_branch" if held.flat[0] else "else_branch"]
        if not isinstance(graph, onnx.GraphProto):
            raise ModelError("it has no branch to take", where=where)
        inner = dict(scope)
        for value in (*(t.name for t in graph.initializer), *(o for n in graph.node for o in n.output if o)):
            inner[value] = self.fresh()
        for tensor in graph.initializer:
            self.constant(inner[tensor.name], array_from(tensor, self.source))
        self.nodes(graph.node, inner)
        for made, out in zip(graph.output, outputs, strict=True):
            result = inner.get(made.name, self.name(made.name))
            if result in self.broken:
                self.broken.add(out)
            else:
                self._append(Node("Identity", (result,), (out,), {}, (where,)))

    def _add(self, item: Item, origin: tuple[str, ...]) -> None:
        if item.op == "CastLike":
            like = item.type_of(item.operand(1))
            item.op, item.inputs = "Cast", item.inputs[:1]
            item.attrs["to"] = like.dtype.name if like else "f32"
        if item.op not in OPS:
            why = refusal(item.op)
            raise UnsupportedError(f"op {item.op} " + (f"needs {why}" if why else "is unknown"))
        self._translate(item)
        while item.outputs and (not item.outputs[-1] or (len(item.outputs) > 1 and OPS[item.op].outputs >= 1
                                                         and not self.uses[item.outputs[-1]])):
            item.outputs.pop()
        while item.inputs and not item.inputs[-1]:
            item.inputs.pop()
        node = Node(item.op, tuple(item.inputs), tuple(item.outputs), MappingProxyType(item.attrs), origin)
        self._append(self._spelled(node))

    def _translate(self, item: Item) -> None:
        """Element types by name, promoted operands as attributes."""
        op, attrs = OPS[item.op], item.attrs
        for kind, name in DTYPE_ATTRIBUTES:
            if kind == item.op and isinstance(number := attrs.get(name), int):
                if number and number not in ENUM:
                    raise UnsupportedError(f"element type {number} is unknown")
                attrs[name] = ENUM.get(number)
        if item.op == "ConstantOfShape":
            value = attrs.get("value")
            array = value if isinstance(value, np.ndarray) else np.zeros(1, np.float32)
            if array.size != 1:
                raise ModelError(f"its value has {array.size} elements, not 1")
            attrs["value"], attrs["dtype"] = array.reshape(-1)[0].item(), str(_dtype(array))
        if item.op == "Range" and (start := item.type_of(item.operand(0))) is not None:
            attrs["dtype"] = start.dtype.name
        for position, name in op.promoted.items():
            operand = item.operand(position)
            t = item.type_of(operand) if operand else None
            if t is None or (item.op == "Resize" and t.shape == (0,)):
                continue
            held = self.contents.get(operand)
            if held is None:
                raise UnsupportedError(f"its operand {name} ('{operand}': {t}) is not known before the model runs",
                                       mend="export with that shape or position as a constant, or computed from shapes")
            attrs[name] = tuple(held.reshape(-1))
        item.inputs = [v for k, v in enumerate(item.inputs) if k not in op.promoted]
        for name in [k for k, v in attrs.items() if v is None]:
            del attrs[name]

    def _append(self, node: Node) -> None:
        self.build.add(node)
        self._bounds(node)
        named = [o for o in node.outputs if o]
        made = [self.build.types[o] for o in named]
        for name, t in zip(named, made, strict=True):
            self._measure(name, t)
        held = follow(node, tuple(self.build.types.get(i) for i in node.inputs), tuple(made),
                      [self.contents.get(i) for i in node.inputs])
        self.contents.update({n: c for n, c in zip(named, held, strict=True) if c is not None})

    def _bounds(self, node: Node) -> None:
        """A slice with symbolic bounds stays within its axis on the whole profile."""
        x = self.build.types.get(node.inputs[0]) if node.op == "Slice" else None
        if x is None or not (x.symbols or any(isinstance(v, Expr) for k in ("starts", "ends") for v in
                                              dims(node.attrs, k) or ())):
            return
        for which in ("min", "max"):
            if clamps(x, node.attrs, sizes := {k: getattr(s, which) for k, s in self.build.symbols.items()}):
                raise UnsupportedError(f"it cuts beyond {x} when {', '.join(f'{k} is {v}' for k, v in sizes.items())}",
                                       mend="give a narrower range with --shapes")

    def _measure(self, name: str, t: TensorType) -> None:
        for which in ("min", "max"):
            sizes = {k: getattr(s, which) for k, s in self.build.symbols.items()}
            if bad := [d for d in t.shape if evaluate(d, sizes) < 0]:
                raise UnsupportedError(f"'{name}' ({t}) would have the size {evaluate(bad[0], sizes)} when "
                                       f"{', '.join(f'{k} is {v}' for k, v in sizes.items())}",
                                       mend="give a narrower range with --shapes")
        largest = evaluate(t.nbytes, {k: s.max for k, s in self.build.symbols.items()})
        if largest > LARGEST:
            raise ModelError(f"'{name}' ({t}) would take {largest} bytes",
                             mend="give smaller sizes with --shapes, or mend the model")

    def _spelled(self, node: Node) -> Node:
        """Windows with every attribute spelled out, automatic padding resolved."""
        types = tuple(self.build.types.get(i) for i in node.inputs)
        attrs = {**OPS[node.op].attrs, **node.attrs}
        if node.op not in ("Conv", "ConvInteger", "MaxPool", "AveragePool", "LpPool") or None in types[:1]:
            return node
        try:
            w = convolution_window(types, attrs) if "Conv" in node.op else pooling_window(types, attrs)
        except (ValueError, IndexError):
            return node         # infer says what is wrong with it
        if any(isinstance(p, Expr) for p in (*w.begins, *w.ends)):
            return node
        plain = {k: v for k, v in node.attrs.items() if k != "auto_pad"}
        spelled = {**plain, "kernel_shape": w.kernel, "strides": w.strides, "dilations": w.dilations,
                   "pads": (*w.begins, *w.ends)}
        return Node(node.op, node.inputs, node.outputs, MappingProxyType(spelled), node.origin)


def _dtype(array: np.ndarray) -> str:
    return next(name for name, t in DTYPES.items() if t.numpy == array.dtype)


def _declared(dim: onnx.TensorShapeProto.Dimension) -> Dim | None:
    if dim.HasField("dim_value"):
        if dim.dim_value < 0:
            return None         # some exporters write -1 for "any"
        return int(dim.dim_value)
    _text(dim.dim_param)
    text = dim.dim_param.strip()
    if not text:
        return None
    try:
        return parse_dim(text)
    except ModelError:
        return parse_dim("_" + re.sub(r"\W", "_", text))


def _profiles(text: str) -> dict[str, Symbol]:
    found: dict[str, Symbol] = {}
    for name, low, opt, high in re.findall(r"(\w+): (\d+)\.\.(\d+)\.\.(\d+)", text):
        found[name] = Symbol(name, int(low), int(opt), int(high))
    return found


def _constant(attrs: Mapping[str, object], where: str) -> np.ndarray:
    for name, dtype in (("value_int", np.int64), ("value_ints", np.int64), ("value_float", np.float32),
                        ("value_floats", np.float32), ("value_string", object), ("value_strings", object)):
        if name in attrs:
            try:
                return np.asarray(attrs[name], dtype=dtype)
            except (ValueError, TypeError) as error:
                raise ModelError(f"the attribute {name} holds something else", where=where,
                                 why=(str(error),)) from None
    value = attrs.get("value")
    if not isinstance(value, np.ndarray):
        raise UnsupportedError(f"a constant given as {', '.join(attrs) or 'nothing'}", where=where)
    return value


def _pruned(graph: Graph) -> Graph:
    """The graph without nodes and constants that nothing reads (the shape arithmetic is in attributes now)."""
    live, kept = set(graph.outputs), []
    for node in reversed(graph.nodes):
        if live.intersection(o for o in node.outputs if o):
            live.update(filter(None, node.inputs))
            kept.append(node)
    constants = {k: v for k, v in graph.constants.items() if k in live}
    made = {*graph.inputs, *constants, *(o for n in kept for o in n.outputs if o)}
    return Graph(graph.inputs, graph.outputs, tuple(reversed(kept)), MappingProxyType(constants),
                 MappingProxyType({k: t for k, t in graph.types.items() if k in made}), graph.symbols)
