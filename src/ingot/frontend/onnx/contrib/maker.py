"""What a decomposition is written with: a node's operands and attributes, and a way to make standard nodes."""
from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from ingot.errors import ModelError, UnsupportedError
from ingot.graph import Dim, DType, TensorType

Add = Callable[[str, Sequence[str], int, Mapping[str, object]], tuple[str, ...]]


@dataclass(frozen=True)
class Maker:
    """One node of ONNX Runtime's on its way in. Calling it makes a standard node and gives its (first) result."""

    op: str
    inputs: tuple[str, ...]
    attrs: Mapping[str, object]
    wanted: int                                             # outputs that are asked for
    add: Add
    type_of: Callable[[str], TensorType | None]
    array_of: Callable[[str], np.ndarray | None]            # of a constant
    constant: Callable[[np.ndarray], str]

    def __call__(self, op: str, *inputs: str, **attrs: object) -> str:
        return self.add(op, inputs, 1, attrs)[0]

    def several(self, op: str, count: int, *inputs: str, **attrs: object) -> tuple[str, ...]:
        """A node of several results."""
        return self.add(op, inputs, count, attrs)

    def has(self, position: int) -> bool:
        """Whether an optional operand is given."""
        return position < len(self.inputs) and bool(self.inputs[position])

    def input(self, position: int) -> str:
        """An operand. Raises ModelError where it is absent."""
        if not self.has(position):
            raise ModelError(f"{self.op} needs its input {position}", mend="export the model again")
        return self.inputs[position]

    def type(self, name: str) -> TensorType:
        """The type of a value. Raises UnsupportedError where it is not known."""
        found = self.type_of(name)
        if found is None:
            raise UnsupportedError(f"the rank of '{name}' is not known before the model runs")
        return found

    def shape(self, name: str) -> tuple[Dim, ...]:
        """The shape of a value."""
        return self.type(name).shape

    def dtype(self, name: str) -> DType:
        """The element type of a value."""
        return self.type(name).dtype

    def integer(self, name: str, default: int | None = None) -> int:
        """A whole-number attribute. Raises ModelError where it is absent and has no default."""
        value = self.attrs.get(name, default)
        if not isinstance(value, int):
            raise ModelError(f"{self.op} needs the attribute {name}", mend="export the model again")
        return value

    def number(self, name: str, default: float) -> float:
        """A numeric attribute."""
        value = self.attrs.get(name, default)
        return float(value) if isinstance(value, (int, float)) else default

    def refuse(self, *names: str) -> None:
        """Raises UnsupportedError where an attribute that is not served is set."""
        if bad := [n for n in names if self.attrs.get(n)]:
            raise UnsupportedError(f"{self.op} with {bad[0]}={self.attrs[bad[0]]!r}",
                                   mend=f"export without {bad[0]}, or without ONNX Runtime's fusions")

    def scalar(self, value: float, like: str) -> str:
        """A constant of rank 0, of another value's element type."""
        return self.constant(np.asarray(value, self.dtype(like).numpy))

    def reshape(self, x: str, *shape: Dim) -> str:
        """A value in another shape."""
        return self("Reshape", x, shape=tuple(shape))

    def transpose(self, x: str, *perm: int) -> str:
        """A value with its axes in another order."""
        return self("Transpose", x, perm=perm)

    def cast(self, x: str, dtype: str) -> str:
        """A value as another element type; itself where it is so already."""
        return x if self.dtype(x).name == dtype else self("Cast", x, to=dtype)

    def outputs(self, *names: str) -> tuple[str, ...]:
        """The results as far as they are asked for."""
        return names[:max(1, self.wanted)]
