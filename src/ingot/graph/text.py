"""The graph's text form: what dumps show and what tests are written in.

    symbol N: 1..8..32
    input x: f32[N,64]
    const w: f32[64,32]
    const axis: i64[1] = [1]
    h = MatMul(x, w)
    y = Reshape(h) {'shape': ('N', 4, 8)}
    return y
"""
from __future__ import annotations

import ast
import re

import numpy as np

from ingot.errors import ModelError
from ingot.graph.dim import Expr, Symbol, parse_dim
from ingot.graph.graph import Graph, GraphBuilder, Infer, Node
from ingot.graph.types import DTYPES, TensorType

_TYPE = re.compile(r"(\w+)\[([^\]]*)\](?::(\w+))?")
_NODE = re.compile(r"([^=]+?) = ([\w.:]+)\(([^){]*)\)(?: (\{.*\}))?")
_INLINE = 16        # constants up to this many elements are written with their values


def _plain(value: object) -> object:
    if isinstance(value, Expr):
        return str(value)
    if isinstance(value, (tuple, list)):
        return tuple(_plain(v) for v in value)
    if isinstance(value, np.ndarray):
        return f"<{value.dtype}{list(value.shape)}>"
    if isinstance(value, Graph):
        return "<graph>"
    return value


def _constant(name: str, array: np.ndarray, type_: TensorType) -> str:
    values = f" = {array.tolist()}" if array.size <= _INLINE and type_.dtype.kind != "str" else ""
    return f"const {name}: {type_}{values}"


def show(graph: Graph) -> str:
    """The text form of a graph; `parse` reads it back (large constants come back with other contents)."""
    lines = [f"symbol {s}" for s in graph.symbols.values()]
    lines += [f"input {v}: {graph.types[v]}" for v in graph.inputs]
    lines += [_constant(v, a, graph.types[v]) for v, a in graph.constants.items()]
    for n in graph.nodes:
        attrs = f" {({k: _plain(n.attrs[k]) for k in sorted(n.attrs)})}" if n.attrs else ""
        lines.append(f"{', '.join(n.outputs)} = {n.op}({', '.join(n.inputs)}){attrs}")
    return "\n".join([*lines, f"return {', '.join(graph.outputs)}"])


def parse_type(text: str) -> TensorType:
    """Read `f32[N,64]` or `f32[N,64,7,7]:c16`. Raises ModelError."""
    found = _TYPE.fullmatch(text.strip())
    if not found or found[1] not in DTYPES:
        raise ModelError(f"{text!r} is not a type", mend="write, for example, f32[N,64]")
    return TensorType(DTYPES[found[1]], tuple(parse_dim(d) for d in found[2].split(",") if d.strip()), found[3] or "")


def _values(text: str) -> np.ndarray:
    """A constant's values; None is what numpy turns into NaN, and 1e999 is infinity."""
    return np.array(ast.literal_eval(re.sub(r"\binf\b", "1e999", re.sub(r"\bnan\b", "None", text))))


def parse(text: str, infer: Infer) -> Graph:
    """Read the text form. Constants written without values get a seeded, reproducible content."""
    build, rng = GraphBuilder(infer), np.random.default_rng(0)
    for line in filter(None, map(str.strip, text.splitlines())):
        head, _, rest = line.partition(" ")
        if head == "symbol":
            name, _, spec = rest.partition(": ")
            build.symbols[name] = Symbol(name, *map(int, spec.split("..")))
        elif head == "input":
            name, _, spec = rest.partition(": ")
            build.input(name, parse_type(spec))
        elif head == "const":
            name, _, spec = rest.partition(": ")
            kind, _, values = spec.partition(" = ")
            t = parse_type(kind)
            array = (_values(values) if values
                     else rng.standard_normal(t.shape) * 0.5)  # type: ignore[arg-type]
            build.constant(name, np.asarray(array).astype(t.dtype.numpy).reshape(t.shape))  # type: ignore[arg-type]
        elif head == "return":
            return build.finish(*(v.strip() for v in rest.split(",")))
        else:
            found = _NODE.fullmatch(line)
            if not found:
                raise ModelError(f"cannot read the line {line!r}", mend="write: y = Op(a, b) {'attr': 1}")
            outs, op, args, attrs = found.groups()
            inputs = tuple(a.strip() for a in args.split(",")) if args.strip() else ()
            build.add(Node(op, inputs, tuple(o.strip() for o in outs.split(",")),
                           ast.literal_eval(attrs) if attrs else {}))
    raise ModelError("a graph ends with 'return'", mend="add a line: return NAME")
