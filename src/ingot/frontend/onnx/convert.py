"""An ONNX model, of any opset and any of its domains, as a graph, or as a flow where data decides its course."""
from __future__ import annotations

import difflib
import os
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from types import MappingProxyType
from typing import TypeAlias

import numpy as np
import onnx

from ingot.errors import IngotError, ModelError, UnsupportedError
from ingot.frontend.onnx.contrib import CONTRIB, Maker
from ingot.frontend.onnx.control import inlined_branch, read_control
from ingot.frontend.onnx.cut import Step, cut
from ingot.frontend.onnx.guess import guessed
from ingot.frontend.onnx.item import Item
from ingot.frontend.onnx.ml import DOMAIN as LEARNED_DOMAIN
from ingot.frontend.onnx.ml import LEARNED
from ingot.frontend.onnx.problem import Problem, problem_from, raised
from ingot.frontend.onnx.proto import (
    STANDARD,
    attribute_of,
    checked_text,
    constant_of,
    declared,
    dtype_of,
    inlined,
    opset_of,
    profiles,
)
from ingot.frontend.onnx.read import Source, array_from, dense_from, read_model
from ingot.frontend.onnx.upgrade import upgrade
from ingot.frontend.shapes import DEFAULT_PROFILE, ShapeSpec, Symbols, read_spec, settled
from ingot.graph import (
    DTYPES,
    I64,
    Call,
    Dim,
    Expr,
    Flow,
    Graph,
    GraphBuilder,
    Node,
    Symbol,
    TensorType,
    data_symbol,
    evaluate,
    symbol,
)
from ingot.ops import OPS, OPSET, clamps, dims, infer, pooling_window
from ingot.ops.boxes import room
from ingot.ops.contents import Contents, follow, known
from ingot.ops.convolution import convolution_window
from ingot.ops.fallback import FALLBACK
from ingot.ops.flow import CONTROL, DATA_PREFIX, evaluator
from ingot.ops.onnx_form import DTYPE_ATTRIBUTES, ENUM, onnx_attributes
from ingot.ops.sequence import LISTS

LARGEST = 1 << 40       # bytes one value may take at its largest; more is a mistake or an attack
SYMBOLS_KEY = "ingot.symbols"       # where a written model keeps the profiles
ORIGIN_KEY = "ingot.origin"         # and a written node the names it came from
SMALL = 1024                        # elements of a constant that says something about a result's shape
MICROSOFT = "com.microsoft"
BOXES = 1 << 26                     # bytes of room for the most boxes that a NonMaxSuppression can select
DATA_PROFILE = (1, 17, 65)          # of the symbol s of a size s-1 that data decides: 0..16..64, more is grown into
_TEXT = re.compile(r"[\s=,(){}]")    # what the graph's text form cannot hold in a name


Model: TypeAlias = "str | os.PathLike[str] | bytes | onnx.ModelProto"


class _ByDataError(UnsupportedError):
    """Data decides what a node computes: no part can hold it, a call can."""


def flow_from_onnx(model: Model, shapes: Mapping[str, ShapeSpec] | None = None) -> Graph | Flow:
    """Read an ONNX model: inlined, upgraded to the one opset, shape arithmetic resolved, dead nodes gone.

    It is one graph where no data decides a size or the way, else a flow. `shapes` says sizes and ranges per input (see
    `frontend.shapes`). A symbolic dimension that is given none gets the
    profile 1..1..64. Raises InputError (no such file or input, shapes that do not fit), ModelError or
    UnsupportedError; everything wrong with the nodes is in one error.
    """
    source = read_model(model)
    reader = Reader(source, dict(shapes or {}))
    return reader.model_read()


class Reader:
    """The state of one reading. Lives inside `flow_from_onnx`."""

    def __init__(self, source: Source, shapes: dict[str, ShapeSpec]) -> None:
        self.source, self.model = source, inlined(source)
        self.opset = opset_of(self.model)
        self.shapes = shapes
        self.build = GraphBuilder(infer)
        self.contents: dict[str, Contents] = {}
        self.problems: list[Problem] = []
        self.broken: set[str] = set()           # values of nodes that could not be taken
        self.steps: list[Step] = []             # of the graph being read
        self.sized = 0                          # sizes that were left to the data
        self.made: set[str] = set()             # every value there is, those without a type included
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
            checked_text(node.name, node.op_type, node.domain, *node.input, *node.output,
                         *(a.name for a in node.attribute))
            if not any(node.output):
                raise ModelError(f"the node {node.op_type} '{node.name}' makes nothing", mend="export the model again")
            self.uses.update(node.input)
            self.taken.update(node.output)
            for a in node.attribute:
                if a.type == onnx.AttributeProto.GRAPH:
                    self._survey(a.g)
        checked_text(*(v.name for v in (*graph.input, *graph.output, *graph.initializer)))
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

    def model_read(self) -> Graph | Flow:
        """The whole model."""
        proto = self.model.graph
        constants = {t.name for t in proto.initializer} | {t.values.name for t in proto.sparse_initializer}
        inputs = [v for v in proto.input if v.name not in constants]
        self._inputs(inputs)
        self.initializers(proto, {})
        self.nodes(proto.node, {})
        for out in proto.output:
            if self.name(out.name) not in self.made and self.name(out.name) not in self.broken:
                self.problems.append(Problem(f"output '{out.name}'", "nothing makes it", unsupported=False))
        if self.problems:
            raise raised(self.problems, self.source.name)
        outputs = [self.name(o.name) for o in proto.output]
        names = [self.name(v.name) for v in inputs]
        if all(isinstance(s, Node) for s in self.steps) and all(v in self.build.types for v in (*names, *outputs)):
            return _pruned(self.build.finish(*outputs))
        return replace(self.flow(names, outputs), symbols=self.build.symbols)

    def initializers(self, proto: onnx.GraphProto, scope: Mapping[str, str]) -> None:
        """Enter a graph's constants, the sparse ones made dense."""
        for tensor in proto.initializer:
            self.constant(scope.get(tensor.name, self.name(tensor.name)), array_from(tensor, self.source))
        for sparse in proto.sparse_initializer:
            name = sparse.values.name
            self.constant(scope.get(name, self.name(name)), dense_from(sparse, self.source))

    def flow(self, inputs: Sequence[str], outputs: Sequence[str]) -> Flow:
        """What has been read, cut at its calls."""
        return cut(self.steps, inputs, outputs, self.build.types, self.build.constants, self.build.symbols)

    def fresh_size(self) -> Dim:
        """A size that data decides, 0 included."""
        self.sized += 1
        name = f"{DATA_PREFIX}{self.sized}"
        self.build.symbols[name] = Symbol(name, *DATA_PROFILE)
        return symbol(name) - 1

    def _inputs(self, inputs: Sequence[onnx.ValueInfoProto]) -> None:
        names = [v.name for v in inputs]
        if unknown := [n for n in self.shapes if n not in names]:
            raise ModelError(f"the model has no input '{unknown[0]}'", mend=f"its inputs: {', '.join(names) or 'none'}")
        saved = {p.key: p.value for p in self.model.metadata_props}.get(SYMBOLS_KEY, "")
        symbols = Symbols(profiles(saved))
        found: dict[str, TensorType] = {}
        for v in inputs:
            tensor = v.type.tensor_type
            self.made.add(self.name(v.name))
            if v.type.HasField("sequence_type") or v.type.HasField("optional_type"):
                if v.name in self.shapes:
                    raise ModelError(f"input '{v.name}' is no tensor", mend="give no shape for it")
                continue
            if not v.type.HasField("tensor_type") or tensor.elem_type not in ENUM:
                raise UnsupportedError(f"input '{v.name}' is no tensor", mend="export the model with tensors as inputs")
            spec = self.shapes.get(v.name)
            if not tensor.HasField("shape") and spec is None:
                raise ModelError(f"input '{v.name}' has no shape",
                                 mend=f"give one: --shapes {v.name}:1..8..32x3x224x224")
            said: list[Dim | None] = [declared(d) for d in tensor.shape.dim]
            if not tensor.HasField("shape") and spec is not None:
                said = [None] * len(read_spec(spec))
            found[v.name] = TensorType(DTYPES[ENUM[tensor.elem_type]], symbols.shape(v.name, said, spec))
        for name, t in found.items():
            self.build.input(self.name(name), settled(t, symbols.fixed))
        used = {s for t in self.build.types.values() for s in t.symbols}
        self.build.symbols.update({k: s for k, s in symbols.profiles.items() if k in used})
        for loose in sorted(used - self.build.symbols.keys()):
            self.build.symbols[loose] = Symbol(loose, *DEFAULT_PROFILE)

    def constant(self, name: str, array: np.ndarray) -> str:
        """Enter a constant."""
        self.build.constant(name, array)
        self.made.add(name)
        if (held := known(array)) is not None:
            self.contents[name] = held
        return name

    # -------------------------------------------------------------------------------------------------------- nodes

    def nodes(self, nodes: Iterable[onnx.NodeProto], scope: Mapping[str, str]) -> None:
        """Read nodes in order; what cannot be taken becomes a problem."""
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
        if missing := [i for i in inputs if i and i not in self.made]:
            raise ModelError(f"it reads '{missing[0]}', which nothing makes before it", mend="order the nodes")
        if again := [o for o in outputs if o and o in self.made]:
            raise ModelError(f"it makes '{again[0]}', which is made already", mend="give every value one name")
        attrs = {a.name: attribute_of(a, self.source) for a in proto.attribute}
        kept = next((p.value for p in proto.metadata_props if p.key == ORIGIN_KEY), "")
        origin = tuple(kept.split("\n")) if kept else (proto.name or next(filter(None, proto.output)),)
        if proto.domain == MICROSOFT or (proto.op_type == "SimplifiedLayerNormalization"):
            self._decomposed(proto.op_type, inputs, outputs, attrs, where, origin)
            return
        if proto.domain == LEARNED_DOMAIN and self._learned(proto.op_type, inputs, outputs, attrs, where, origin):
            return
        if proto.domain not in STANDARD:
            version = next((int(o.version) for o in self.model.opset_import if o.domain == proto.domain), 0)
            self.call(Call(Node(proto.op_type, tuple(inputs), tuple(outputs), attrs, origin), proto.domain, version,
                           why=f"no kernel knows the ops of {proto.domain}"))
            return
        if proto.op_type == "NonMaxSuppression" and self._selected(inputs, outputs[0], attrs, where, origin):
            return
        if proto.op_type == "Constant":
            self.constant(outputs[0], constant_of(attrs, where))
            return
        if proto.op_type in CONTROL:
            if proto.op_type == "If" and (held := self.contents.get(next(iter(inputs), ""))) is not None:
                if held.size != 1:
                    raise ModelError(f"its condition has {held.size} elements", mend="give it one")
                inlined_branch(self, bool(held.flat[0]), outputs, attrs, where, scope)
            else:
                read_control(self, Node(proto.op_type, tuple(inputs), tuple(outputs), attrs, origin), scope)
            return
        item = Item(proto.op_type, list(inputs), list(outputs), dict(attrs), where, self.build.types.get,
                    self._another, self.fresh, lambda v: bool(self.uses[v]))
        try:
            upgrade(item, self.opset)
        except UnsupportedError as error:
            self.call(Call(Node(proto.op_type, tuple(inputs), tuple(outputs), attrs, origin), "", self.opset,
                           why=error.what))
            return
        for part in (*item.before, item, *item.after):
            self._add(part, origin)

    def _decomposed(self, op: str, inputs: list[str], outputs: list[str], attrs: Mapping[str, object], where: str,
                    origin: tuple[str, ...]) -> None:
        """A node of ONNX Runtime's, as the standard nodes that mean the same. Raises UnsupportedError."""
        made_of = CONTRIB.get(op)
        if made_of is None:
            near = difflib.get_close_matches(op, CONTRIB, 1)
            raise UnsupportedError(f"op {MICROSOFT}::{op} is not served",
                                   why=(f"the nearest that is: {near[0]}",) if near else (),
                                   mend="export the model without ONNX Runtime's optimisations")
        try:
            results = made_of(self._maker(op, inputs, outputs, attrs, where, origin))
        except (ValueError, TypeError, IndexError, ArithmeticError) as error:      # operands of other forms
            raise ModelError(f"{MICROSOFT}::{op} does not take these operands", why=(str(error),),
                             mend="export the model without ONNX Runtime's optimisations") from None
        for k, out in enumerate(outputs):
            if out and (k >= len(results) or not results[k]):
                if self.uses[out]:
                    raise UnsupportedError(f"the output {k} of {MICROSOFT}::{op} is not served",
                                           mend="export the model without ONNX Runtime's optimisations")
            elif out:
                self._passed(results[k], out, where, origin)

    def _passed(self, value: str, out: str, where: str, origin: tuple[str, ...]) -> None:
        """A value under the name of an output."""
        self._add(Item("Identity", [value], [out], {}, where, self.build.types.get, self._another, self.fresh,
                       lambda v: True), origin)

    def _maker(self, op: str, inputs: list[str], outputs: list[str], attrs: Mapping[str, object], where: str,
               origin: tuple[str, ...]) -> Maker:
        """What a node of another domain is written with."""
        def add(kind: str, given: Sequence[str], count: int, more: Mapping[str, object]) -> tuple[str, ...]:
            names = [self.fresh() for _ in range(count)]
            self.uses.update(names)
            item = Item(kind, list(given), list(names), dict(more), where, self.build.types.get, self._another,
                        self.fresh, lambda v: bool(self.uses[v]))
            self._add(item, origin)
            return tuple(names)
        wanted = max((k + 1 for k, o in enumerate(outputs) if o), default=0)
        return Maker(op, tuple(inputs), attrs, wanted, add, self.build.types.get, self.build.constants.get,
                     self._another)

    def _learned(self, op: str, inputs: list[str], outputs: list[str], attrs: Mapping[str, object], where: str,
                 origin: tuple[str, ...]) -> bool:
        """Whether a node of ai.onnx.ml has been entered as nodes that have kernels; else it runs on the reference."""
        if (form := LEARNED.get(op)) is None or any(i and i not in self.build.types for i in inputs):
            return False
        try:
            results = form(self._maker(op, inputs, outputs, attrs, where, origin))
        except (ValueError, TypeError, LookupError, ArithmeticError) as error:     # lists that do not fit one another
            raise ModelError(f"the numbers of {op} do not fit one another", why=(str(error),),
                             mend="export the model again") from None
        for out, result in zip(outputs, results or (), strict=False):
            if out:
                self._passed(result, out, where, origin)
        return results is not None

    def _selected(self, inputs: list[str], out: str, attrs: Mapping[str, object], where: str,
                  origin: tuple[str, ...]) -> bool:
        """Whether a NonMaxSuppression has been entered as SelectBoxes, which has a kernel, and a cut to what it found.

        For that its numbers must be constants, and the room for the most boxes there can be no more than BOXES bytes.
        """
        types = [self.build.types.get(v) for v in (*inputs, "", "")[:2]]
        if any(t is None or t.dtype.name != "f32" or t.rank != 3 for t in types):
            return False
        held = [None if not v else self.contents.get(v) for v in (*inputs, "", "", "")[2:5]]
        if any(v and (h is None or h.size != 1) for v, h in zip(inputs[2:5], held, strict=False)) or held[0] is None:
            return False
        most, overlap, least = (None if h is None else h.reshape(-1)[0] for h in held)
        boxes, scores = types
        if boxes is None or scores is None or not isinstance(most, (int, np.integer)) or most < 1:
            return False
        largest = {k: s.max for k, s in self.build.symbols.items()}
        limit = min(int(most), evaluate(boxes.shape[1], largest))
        if evaluate(room(boxes, scores, limit), largest) * 24 > BOXES or any(
                s.startswith(DATA_PREFIX) for t in (boxes, scores) for s in t.symbols):
            return False
        maker = self._maker("NonMaxSuppression", inputs, [out], attrs, where, origin)
        told: dict[str, object] = {"most": limit, "overlap": 0.0 if overlap is None else float(overlap),
                                   "centred": attrs.get("center_point_box", 0)}
        if least is not None:
            told["least"] = float(least)
        rows, count = maker.several("SelectBoxes", 2, *inputs[:2], **told)
        call = Call(Node("FirstRows", (rows, count), (out,), {}, origin), "", OPSET, why="the data decides how many")
        self.enter(call, [TensorType(I64, (self.fresh_size(), 3))])
        return True

    def _another(self, array: np.ndarray) -> str:
        return self.constant(self.fresh(), array)

    def _add(self, item: Item, origin: tuple[str, ...]) -> None:
        """Enter a node of today's opset: into a part where it fits, else as a call."""
        if item.op == "CastLike":
            like = item.type_of(item.operand(1))
            if like is not None:
                item.op, item.inputs = "Cast", item.inputs[:1]
                item.attrs["to"] = like.dtype.name
        names = tuple(filter(None, item.outputs))
        if item.op == "CastLike":
            self.call(Call(Node(item.op, tuple(item.inputs), tuple(item.outputs), item.attrs, origin), "", OPSET, True,
                           "what to cast to is not known before the model runs"))
            return
        if item.op not in OPS:
            self.call(Call(Node(item.op, tuple(item.inputs), tuple(item.outputs), item.attrs, origin), "", self.opset,
                           why="no kernel knows it"))
            return
        self._spelled_types(item)
        while item.outputs and (not item.outputs[-1] or (len(item.outputs) > 1 and OPS[item.op].outputs >= 1
                                                         and not self.uses[item.outputs[-1]])):
            item.outputs.pop()
        while item.inputs and not item.inputs[-1]:
            item.inputs.pop()
        given, attrs = tuple(item.inputs), dict(item.attrs)
        before = len(self.steps)
        try:
            if untyped := [v for v in given if v and v not in self.build.types]:
                raise _ByDataError(f"the rank of '{untyped[0]}' is not known before the model runs")
            self._promoted(item)
            node = Node(item.op, tuple(item.inputs), tuple(item.outputs), MappingProxyType(item.attrs), origin)
            self.append(self._spelled(node))
        except IngotError as error:
            by_data = isinstance(error, _ByDataError) or any(
                data_symbol(d) or any(s.startswith(DATA_PREFIX) for s in t.symbols)
                for v in given if (t := self.build.types.get(v)) is not None for d in t.shape)
            training = "training" in error.what
            if not by_data and not training and item.op not in FALLBACK:
                raise
            del self.steps[before:]
            for name in names:
                self.build.types.pop(name, None)
                self.contents.pop(name, None)
            node = Node(item.op, given, tuple(item.outputs), MappingProxyType(attrs), origin)
            self.call(Call(node, "", OPSET, late=item.op not in FALLBACK and not training, why=error.what))

    def call(self, call: Call) -> None:
        """Enter a call. Raises UnsupportedError where nobody knows the op."""
        node = call.node
        attrs = onnx_attributes(node) if call.late and node.op in OPS else dict(node.attrs)
        if not call.late and not call.flows and (call.domain or node.op not in LISTS):
            self._has_meaning(call)
        types = [self.build.types.get(v) for v in node.inputs]
        operands = [None if (a := self.build.constants.get(v)) is None or a.size > SMALL else a for v in node.inputs]
        found = guessed(node.op, call.domain, call.opset, {**node.attrs, **attrs} if call.late else attrs, types,
                        operands, len(node.outputs), self.fresh_size)
        self.enter(call, found)

    def _has_meaning(self, call: Call) -> None:
        """Raises UnsupportedError, with the nearest op there is, where neither a kernel nor the reference knows it."""
        try:
            evaluator(call, [bool(n) for n in call.node.inputs])
        except UnsupportedError as error:
            known = {s.name for s in onnx.defs.get_all_schemas() if s.domain == call.domain}
            if call.node.op in known:
                raise
            near = difflib.get_close_matches(call.node.op, sorted(known), 1)
            raise UnsupportedError(
                f"op {call.op} is unknown", why=(f"the nearest that is known: {near[0]}",) if near else error.why,
                mend="export it as a function of standard ops (an ONNX model may bring its own)") from None

    def enter(self, call: Call, types: Sequence[TensorType | None]) -> None:
        """Enter a call whose results' types are known as far as they are."""
        self.steps.append(call)
        for name, t in zip(call.node.outputs, types, strict=True):
            if name:
                self.made.add(name)
                if t is not None:
                    self.build.types[name] = t

    def _spelled_types(self, item: Item) -> None:
        """Element types by name."""
        attrs = item.attrs
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
            attrs["value"], attrs["dtype"] = array.reshape(-1)[0].item(), str(dtype_of(array))
        if item.op == "Range" and (start := item.type_of(item.operand(0))) is not None:
            attrs["dtype"] = start.dtype.name
        for name in [k for k, v in attrs.items() if v is None]:
            del attrs[name]

    def _promoted(self, item: Item) -> None:
        """Shape-like operands as attributes. Raises _ByDataError where one is not known."""
        op, attrs = OPS[item.op], item.attrs
        for position, name in op.promoted.items():
            operand = item.operand(position)
            t = item.type_of(operand) if operand else None
            if t is None or (item.op == "Resize" and t.shape == (0,)):
                continue
            held = self.contents.get(operand)
            if held is None:
                raise _ByDataError(f"its operand {name} ('{operand}': {t}) is not known before the model runs",
                                   mend="export with that shape or position as a constant, or computed from shapes")
            attrs[name] = tuple(held.reshape(-1))
        item.inputs = [v for k, v in enumerate(item.inputs) if k not in op.promoted]

    def append(self, node: Node) -> None:
        """Enter a node into a part. Raises ModelError or UnsupportedError."""
        self.build.add(node)
        self.steps.append(node)
        self.made.update(filter(None, node.outputs))
        self._bounds(node)
        named = [o for o in node.outputs if o]
        made = [self.build.types[o] for o in named]
        for name, t in zip(named, made, strict=True):
            self._measure(name, t)
        held = follow(node, tuple(self.build.types.get(i) for i in node.inputs), tuple(made),
                      [self.contents.get(i) for i in node.inputs])
        self.contents.update({n: c for n, c in zip(named, held, strict=True) if c is not None})

    def _bounds(self, node: Node) -> None:
        """A slice with symbolic bounds stays within its axis on the whole profile. Raises _ByDataError: cut where it
        runs, since what is left of `x[-2:]` where there is only one is no expression of the size."""
        x = self.build.types.get(node.inputs[0]) if node.op == "Slice" else None
        if x is None or not (x.symbols or any(isinstance(v, Expr) for k in ("starts", "ends") for v in
                                              dims(node.attrs, k) or ())):
            return
        for which in ("min", "max"):
            if clamps(x, node.attrs, sizes := {k: getattr(s, which) for k, s in self.build.symbols.items()}):
                at = ", ".join(f"{k} is {v}" for k, v in sizes.items())
                raise _ByDataError(f"it cuts beyond {x} when {at}; a narrower range in --shapes keeps the model whole")

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
