"""What travels: tensors as bytes, requests, answers, and the description of a model they are checked against."""
from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from ingot.errors import ServeError
from ingot.serve.datatype import NUMPY, Data, size_of, string_ends

MAX_RANK = 16


class Tensor:
    """A named tensor as bytes: row-major, little-endian."""

    __slots__ = ("data", "datatype", "name", "shape")

    def __init__(self, name: str, datatype: str, shape: tuple[int, ...], data: Data) -> None:
        self.name, self.datatype, self.shape, self.data = name, datatype, shape, data


@dataclass(frozen=True)
class Port:
    """An input or output of a model. `dims` are sizes, or the names (or expressions) of those that vary."""

    name: str
    datatype: str
    dims: tuple[int | str, ...]

    @property
    def shape(self) -> list[int]:
        """As the protocol says it: -1 where the size varies."""
        return [d if isinstance(d, int) else -1 for d in self.dims]

    def to_json(self) -> dict[str, Any]:
        """name, datatype and shape, as the protocol's metadata."""
        return {"name": self.name, "datatype": self.datatype, "shape": self.shape}


@dataclass(frozen=True)
class Description:
    """What a model takes and gives, and what one knows about it. `batch` names the symbol every tensor begins with."""

    inputs: tuple[Port, ...]
    outputs: tuple[Port, ...]
    symbols: Mapping[str, tuple[int, int, int]]         # name -> min, opt, max
    batch: str = ""
    facts: Mapping[str, Any] = field(default_factory=dict)      # arena, threads, precision, verdict, ...

    @property
    def max_rows(self) -> int:
        """The largest batch; 1 for a model that takes none."""
        return self.symbols[self.batch][2] if self.batch else 1

    @property
    def min_rows(self) -> int:
        """The smallest batch the engine runs."""
        return self.symbols[self.batch][0] if self.batch else 1

    def to_json(self) -> dict[str, Any]:
        """For the way between processes."""
        return {"inputs": [[p.name, p.datatype, list(p.dims)] for p in self.inputs],
                "outputs": [[p.name, p.datatype, list(p.dims)] for p in self.outputs],
                "symbols": {k: list(v) for k, v in self.symbols.items()}, "batch": self.batch, "facts": self.facts}

    @staticmethod
    def from_json(value: Mapping[str, Any]) -> Description:
        """What `to_json` wrote."""
        def ports(rows: Sequence[Any]) -> tuple[Port, ...]:
            return tuple(Port(n, t, tuple(d)) for n, t, d in rows)
        return Description(ports(value["inputs"]), ports(value["outputs"]),
                           {k: (v[0], v[1], v[2]) for k, v in value["symbols"].items()}, value["batch"],
                           value["facts"])


class Request:
    """One accepted request on its way. Times are of `time.perf_counter`, in seconds."""

    __slots__ = ("alone", "answer", "arrived", "deadline", "decode", "id", "inputs", "key", "leaves", "length",
                 "parameters", "priority", "rows", "taken", "tries", "wanted")

    def __init__(self, id_: str, inputs: list[Tensor], wanted: tuple[str, ...] | None, priority: int = 0,
                 deadline: float = float("inf"), parameters: Mapping[str, Any] | None = None) -> None:
        self.id, self.inputs, self.wanted = id_, inputs, wanted
        self.priority, self.deadline, self.parameters = priority, deadline, parameters
        self.arrived = time.perf_counter()
        self.rows, self.length = 1, 0
        self.key: tuple[Any, ...] = ()
        self.tries, self.alone = 0, False
        self.taken = 0.0
        self.decode = 0.0
        self.answer: asyncio.Future[Answer] | None = None
        self.leaves: Any = None             # over HTTP: gives a message when the client leaves


class Answer:
    """The outputs of one request, and the stages its time went to, in seconds."""

    __slots__ = ("model", "outputs", "version")

    def __init__(self, model: str, version: str, outputs: list[Tensor]) -> None:
        self.model, self.version, self.outputs = model, version, outputs


def element_count(shape: Sequence[int], name: str, limit: int) -> int:
    """Elements of a shape. Raises ServeError for one no tensor has, before anything is allocated."""
    if len(shape) > MAX_RANK:
        raise ServeError(f"the shape of '{name}' has {len(shape)} axes", where=f"tensor '{name}'",
                         mend=f"send at most {MAX_RANK} axes")
    count = 1
    for size in shape:
        if type(size) is not int or size < 0:
            raise ServeError(f"the shape of '{name}' holds {size!r:.40}", where=f"tensor '{name}'",
                             mend="write sizes as whole numbers, 0 or more")
        count *= size
        if count > limit:
            raise ServeError(f"'{name}' has more than {limit} elements", kind="large", where=f"tensor '{name}'",
                             mend="send less at once, or raise the limit: --max-elements")
    return count


class Checker:
    """Checks requests against a description, and finds how many rows and which shape class they have."""

    def __init__(self, description: Description, padded: Sequence[str] = (), limit: int = 1 << 28) -> None:
        self.description, self._limit = description, limit
        self._ports = {p.name: (i, p, size_of(p.datatype)) for i, p in enumerate(description.inputs)}
        self._outputs = frozenset(p.name for p in description.outputs)
        self._single = len(description.inputs) == 1
        # the symbol whose size may be padded, where every axis that varies beside the batch is of it
        others = {d for p in description.inputs for d in p.dims if isinstance(d, str) and d != description.batch}
        self.padded = next(iter(others)) if padded and len(others) == 1 and others <= set(description.symbols) else ""
        self._most = description.max_rows

    def settle(self, request: Request) -> None:
        """Order the inputs, set rows, key and length. Raises ServeError for whatever does not fit the model."""
        given = request.inputs
        if len(given) != len(self._ports):
            raise self._refused(f"{len(given)} inputs are given, {len(self._ports)} are wanted")
        if request.wanted is not None and not self._outputs.issuperset(request.wanted):
            raise self._refused(f"there is no output '{next(n for n in request.wanted if n not in self._outputs)}'")
        ordered: list[Tensor] = given if self._single else [given[0]] * len(given)
        seen = 0
        rows = -1
        sizes: dict[str, int] = {}
        batch = self.description.batch
        symbols = self.description.symbols
        key: list[Any] = []
        for tensor in given:
            known = self._ports.get(tensor.name)
            if known is None:
                raise self._refused(f"there is no input '{tensor.name:.80}'")
            index, port, width = known
            if tensor.datatype != port.datatype:
                raise self._refused(f"'{port.name}' is {tensor.datatype:.20}, not {port.datatype}")
            if len(tensor.shape) != len(port.dims):
                raise self._refused(f"'{port.name}' has shape {list(tensor.shape)}, not {port.shape}")
            count = element_count(tensor.shape, port.name, self._limit)
            for dim, size in zip(port.dims, tensor.shape, strict=True):
                if type(dim) is int:
                    if dim != size:
                        raise self._refused(f"'{port.name}' has shape {list(tensor.shape)}, not {port.shape}")
                elif dim in symbols:
                    if sizes.setdefault(dim, size) != size:         # type: ignore[arg-type]
                        raise self._refused(f"'{port.name}' has shape {list(tensor.shape)}: {dim} is "
                                            f"{sizes[dim]} in another place")       # type: ignore[index]
                else:
                    key.append(size)
            if width:
                if len(tensor.data) != count * width:
                    raise self._refused(f"'{port.name}' has {len(tensor.data)} bytes, its shape and type take "
                                        f"{count * width}")
            elif port.datatype == "BYTES":
                string_ends(tensor.data, count, port.name)
            if port.datatype == "BOOL" and count and max(tensor.data) > 1:
                raise self._refused(f"'{port.name}' holds bytes that are neither 0 nor 1")
            ordered[index] = tensor
            seen |= 1 << index
        if seen != (1 << len(given)) - 1:
            raise self._refused("an input is given twice")
        for name, size in sizes.items():
            least, _, most = symbols[name]
            if name == batch:
                rows = size
                if not 0 < size <= most:
                    raise self._refused(f"{size} rows are given, the model takes 1 to {most}")
            elif not least <= size <= most and not (name == self.padded and 0 < size <= most):
                raise self._refused(f"{name} is {size}, the model takes {least} to {most}")
            elif name == self.padded:
                request.length = size
            else:
                key.append(size)
        request.inputs, request.rows, request.key = ordered, max(rows, 1), tuple(key)

    def _refused(self, what: str) -> ServeError:
        takes = ", ".join(f"{p.name}: {p.datatype}{p.shape}" for p in self.description.inputs)
        gives = ", ".join(f"{p.name}: {p.datatype}{p.shape}" for p in self.description.outputs)
        return ServeError(what, why=(f"the model takes {takes} and gives {gives}",),
                          mend="send what its metadata says: GET /v2/models/MODEL")


KNOWN_DATATYPES = frozenset(NUMPY)
