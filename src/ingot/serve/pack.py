"""Requests into one batch in shared memory, and a batch's outputs back into answers."""
from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from ingot.serve.batch import Batch
from ingot.serve.datatype import Data, array_of, bytes_of, numpy_of, string_ends
from ingot.serve.shared import Shared, aligned
from ingot.serve.tensor import Description, Port, Request, Tensor


class Packer:
    """Lays batches of one model into shared memory. `padded` names the axis that is padded, `pad` with what."""

    def __init__(self, description: Description, padded: str = "", pad: Mapping[str, float] | None = None) -> None:
        self.description, self._padded, self._pad = description, padded, pad or {}
        self._axes = [tuple(i for i, d in enumerate(p.dims) if padded and d == padded) for p in description.inputs]
        self._out_axes = [tuple(i for i, d in enumerate(p.dims) if padded and d == padded)
                          for p in description.outputs]

    def lay(self, batch: Batch, memory: Shared) -> dict[str, Any]:
        """Copy the inputs in; gives the message that tells the worker where they are."""
        requests = batch.requests
        columns = [[self._bytes(r, i, batch.length) for r in requests] for i in range(len(self.description.inputs))]
        extra = batch.rows - batch.filled if self.description.batch else 0
        if extra > 0:
            for i, column in enumerate(columns):
                column.append(_last_row(column[-1], requests[-1], i, self.description.inputs[i]) * extra)
        total, places = 0, []
        for column in columns:
            nbytes = sum(map(len, column))
            places.append((total, nbytes))
            total += aligned(nbytes)
        view = memory.upto(total + aligned(1))
        told = []
        for i, column in enumerate(columns):
            at, nbytes = places[i]
            begin = at
            for data in column:
                end = begin + len(data)
                view[begin:end] = data
                begin = end
            told.append((at, nbytes, self._shape(requests[0].inputs[i].shape, i, batch)))
        return {"size": total, "inputs": told, "out": total}

    def _shape(self, shape: tuple[int, ...], index: int, batch: Batch) -> list[int]:
        made = list(shape)
        for axis in self._axes[index]:
            made[axis] = batch.length
        if self.description.batch:
            made[0] = batch.rows
        return made

    def _bytes(self, request: Request, index: int, length: int) -> Data:
        """One request's input, padded to the batch's length where it is shorter."""
        tensor = request.inputs[index]
        axes = self._axes[index]
        if not axes or request.length == length:
            return tensor.data
        fill = self._pad.get(tensor.name, 0)
        array = array_of(tensor.data, tensor.datatype, tensor.shape, tensor.name)
        wide = list(tensor.shape)
        for axis in axes:
            wide[axis] = length
        made = np.full(wide, fill if tensor.datatype != "BYTES" else b"", numpy_of(tensor.datatype))
        made[tuple(slice(0, n) for n in tensor.shape)] = array
        return bytes_of(made, tensor.datatype)

    def split(self, batch: Batch, told: Sequence[Any], memory: Shared) -> list[list[Tensor]]:
        """The outputs of each request, copied out of the shared memory."""
        view = memory.view
        requests = batch.requests
        answers: list[list[Tensor]] = [[] for _ in requests]
        whole = len(requests) == 1 and requests[0].rows == batch.rows
        for index, (port, (at, nbytes, shape)) in enumerate(zip(self.description.outputs, told, strict=True)):
            axes = self._out_axes[index]
            data = view[at:at + nbytes]
            if whole and not (axes and requests[0].length != batch.length):
                answers[0].append(Tensor(port.name, port.datatype, tuple(shape), bytes(data)))
                continue
            cuts = _cuts(port, data, shape)
            row = 0
            for answer, request in zip(answers, requests, strict=True):
                part = bytes(data[cuts(row):cuts(row + request.rows)])
                here = [request.rows, *shape[1:]] if self.description.batch else list(shape)
                if axes and request.length != batch.length:
                    part, here = _cropped(part, port, here, axes, request.length)
                answer.append(Tensor(port.name, port.datatype, tuple(here), part))
                row += request.rows
        return answers


def _last_row(data: Data, request: Request, index: int, port: Port) -> bytes:
    """The bytes of a request's last row: what fills a batch up, for it is sure to be valid."""
    if port.datatype == "BYTES":
        tensor = request.inputs[index]
        count = int(np.prod(tensor.shape, dtype=np.int64))
        each = count // request.rows
        ends = string_ends(data, count, port.name)
        return bytes(data[ends[-each - 1] if count > each else 0:])
    return bytes(data[len(data) - len(data) // request.rows:])


def _cuts(port: Port, data: Data, shape: Sequence[int]) -> Any:
    """Where row n of the bytes begins."""
    rows = shape[0] if shape else 1
    if port.datatype != "BYTES":
        each = len(data) // rows if rows else 0
        return lambda n: n * each
    count = int(np.prod(shape, dtype=np.int64))
    ends = [0, *string_ends(data, count, port.name)]
    step = count // rows if rows else 0
    return lambda n: ends[n * step]


def _cropped(data: bytes, port: Port, shape: list[int], axes: Sequence[int], length: int) -> tuple[bytes, list[int]]:
    """The part of a padded output that is the request's own."""
    array = array_of(data, port.datatype, shape, port.name)
    small = [length if i in axes else n for i, n in enumerate(shape)]
    return bytes_of(array[tuple(slice(0, n) for n in small)], port.datatype), small
