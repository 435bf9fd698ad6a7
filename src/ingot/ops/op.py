"""Op: the single declaration from which checking, typing, folding, tests and docs are derived."""
from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import numpy as np

from ingot.errors import ModelError, UnsupportedError
from ingot.graph import Node, TensorType

Types = tuple[TensorType | None, ...]
Attrs = Mapping[str, object]
Sample = tuple[tuple[TensorType | np.ndarray | None, ...], Attrs]     # an array is a constant operand


class _Required:
    def __repr__(self) -> str:
        return "REQUIRED"


REQUIRED = _Required()      # the default of an attribute that must be given


@dataclass(frozen=True)
class Op:
    """What one op means and takes.

    `inputs` are names; "name?" may be absent, "name*" stands for any number and comes last. `promoted` maps the
    position of an ONNX input that is a shape-like operand (ints known when the graph is built, possibly symbolic)
    to the attribute that holds it here: `Reshape(x, shape)` is `Reshape(x) {'shape': ('N', 128)}`. Such an
    attribute is a tuple of ints or symbolic dimensions. The inputs after a promoted one close up.
    """

    name: str
    doc: str
    inputs: tuple[str, ...]
    infer: Callable[[Types, Attrs, int], tuple[TensorType, ...]]     # (input types, attrs, outputs) -> output types
    attrs: Attrs = field(default_factory=dict)          # name -> default, or REQUIRED; None: absent
    promoted: Mapping[int, str] = field(default_factory=dict)
    pointwise: bool = False                             # each output element depends on the same element alone
    samples: tuple[Sample, ...] = ()                    # what every tactic is tested on
    outputs: int = 1                                    # the most outputs it makes; -1: any number
    blocked: bool = False                               # takes inputs in a blocked layout; other ops take plain ones
    evaluate: Callable[[list[np.ndarray | None], Attrs], list[np.ndarray]] | None = None   # where ONNX has no such op


OPS: dict[str, Op] = {}


def declare(op: Op) -> Op:
    """Enter an op into the registry; called at import, once per op."""
    if op.name in OPS:
        raise ValueError(f"op {op.name} is declared twice")
    OPS[op.name] = op
    return op


def _arity(op: Op) -> tuple[int, int]:
    least = sum(not i.endswith(("?", "*")) for i in op.inputs)
    return least, 1 << 30 if op.inputs and op.inputs[-1].endswith("*") else len(op.inputs)


def infer(node: Node, types: Types) -> tuple[TensorType, ...]:
    """The types of a node's outputs. Raises ModelError or UnsupportedError that names the node."""
    op = OPS.get(node.op)
    if op is None:
        raise UnsupportedError(f"unknown op {node.op}", where=node.where, mend="declare it in ingot/ops")
    least, most = _arity(op)
    if not least <= len(types) <= most:
        raise ModelError(f"{op.name} takes {', '.join(op.inputs) or 'no inputs'}; got {len(types)}", where=node.where)
    for position, name in enumerate(op.inputs[:len(types)]):
        if types[position] is None and not name.endswith(("?", "*")):
            raise ModelError(f"{op.name} needs its input '{name}'", where=node.where)
    if unknown := sorted(node.attrs.keys() - op.attrs.keys()):
        raise ModelError(f"{op.name} has no attribute {unknown[0]}", where=node.where,
                         mend=f"known: {', '.join(op.attrs) or 'none'}")
    attrs = {**op.attrs, **node.attrs}
    if missing := [k for k, v in attrs.items() if v is REQUIRED]:
        raise ModelError(f"{op.name} needs the attribute {missing[0]}", where=node.where)
    if not op.blocked and (laid := [t for t in types if t is not None and t.layout]):
        raise ModelError(f"{op.name} takes plain operands, got {laid[0]}", where=node.where,
                         mend="put a Reorder before")
    try:
        found = op.infer(types, attrs, len(node.outputs))
    except (ValueError, IndexError, ZeroDivisionError, OverflowError) as error:
        raise ModelError(str(error), where=f"{node.where} on {', '.join(map(str, types))}") from None
    if len(found) != len(node.outputs):
        raise ModelError(f"{op.name} makes {len(found)} outputs, {len(node.outputs)} are named", where=node.where)
    return found
