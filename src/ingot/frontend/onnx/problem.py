"""What is wrong with one node, and all of it in one error."""
from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from ingot.errors import IngotError, ModelError, UnsupportedError


@dataclass(frozen=True)
class Problem:
    """Why one node cannot be taken, and what would help."""

    where: str
    what: str
    mend: str = ""
    unsupported: bool = True        # the model is sound; it is Ingot that cannot

    def __str__(self) -> str:
        return f"{self.where}: {self.what}" + (f" ({self.mend})" if self.mend else "")


def problem_from(error: IngotError, where: str) -> Problem:
    """The problem an error describes."""
    what = error.what + (f" [{'; '.join(error.why)}]" if error.why else "")
    return Problem(where, what, error.mend, isinstance(error, UnsupportedError))


def raised(problems: Sequence[Problem], name: str) -> IngotError:
    """One error for them all: UnsupportedError when the model itself is sound, else ModelError."""
    kind = UnsupportedError if all(p.unsupported for p in problems) else ModelError
    count = len(problems)
    return kind(f"{name}: {count} {'node' if count == 1 else 'nodes'} cannot be taken", why=tuple(map(str, problems)),
                mend="do what stands in brackets, or export the model without these nodes" if kind is UnsupportedError
                else "check the model with onnx.checker.check_model(path, full_check=True), and export it again")
