"""One node of an ONNX model while it is being converted: its parts may still change."""
from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np

from ingot.graph import TensorType


@dataclass
class Item:
    """A node on its way in. Lives inside one step of the conversion, never longer."""

    op: str
    inputs: list[str]
    outputs: list[str]
    attrs: dict[str, object]
    where: str
    type_of: Callable[[str], TensorType | None]             # of a value that is made already
    constant: Callable[[np.ndarray], str]                   # enters a constant, gives its name
    fresh: Callable[[], str]                                # a name nobody has
    read: Callable[[str], bool]                             # whether anything reads a value
    before: list[Item] = field(default_factory=list)        # nodes to make first
    after: list[Item] = field(default_factory=list)         # nodes to make next

    def another(self, op: str, inputs: list[str], outputs: list[str], **attrs: object) -> Item:
        """A further node at the same place."""
        return Item(op, inputs, outputs, attrs, self.where, self.type_of, self.constant, self.fresh, self.read)

    def operand(self, position: int) -> str:
        """The name of an input, empty when absent."""
        return self.inputs[position] if position < len(self.inputs) else ""

    def put(self, position: int, name: str) -> None:
        """Set an input, with absent ones before it where needed."""
        self.inputs += [""] * (position + 1 - len(self.inputs))
        self.inputs[position] = name
