"""Launches that no kernel of the device serves: operands come to the host, the reference runs, results go back."""
from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np

from ingot.errors import InternalError
from ingot.graph import evaluate
from ingot.kernels import Operand
from ingot.kernels.reference import from_physical, run_site, to_physical
from ingot.lower import Program
from ingot.runtime.cuda.driver import Driver, Handle


class HostLaunches:
    """Runs single launches of a program on the host. Values of strings stay there, by name."""

    def __init__(self, driver: Driver, program: Program) -> None:
        self._driver, self._program = driver, program
        self._objects: dict[str, np.ndarray] = {}

    def begin(self, arrays: Sequence[np.ndarray | None]) -> None:
        """Before a run: its inputs of strings."""
        self._objects = {v: a for v, a in zip(self._program.inputs, arrays, strict=True)
                         if a is not None and a.dtype.kind in "OUS"}

    def strings(self, value: str) -> np.ndarray:
        """A value of strings."""
        root = self._program.root(value)[0]
        found = self._objects.get(root, self._program.constants.get(root))
        if found is None:
            raise InternalError(f"'{value}' was not made")
        return np.asarray(found)

    def run(self, index: int, sizes: Mapping[str, int], stream: Handle, address: Callable[[str], int]) -> None:
        """Run one launch, after what is queued on the stream, and queue its results' way back."""
        launch = self._program.launches[index]
        given: list[np.ndarray | None] = []
        for value, operand in zip(launch.reads, launch.site.inputs, strict=True):
            if operand.type.dtype.name == "str":
                given.append(self.strings(value).reshape(operand.type.at(sizes).shape))  # type: ignore[arg-type]
            else:
                whole, view = self._fetched(operand, address(value), sizes, stream)
                given.append(from_physical(view, operand.type.at(sizes)))
        results = run_site(launch.site, given, sizes)
        writes = tuple(filter(None, launch.writes))
        for value, operand, result in zip(writes, launch.site.outputs, results, strict=True):
            type_ = operand.type.at(sizes)
            if result.shape != type_.shape:
                raise InternalError(f"the reference made {list(result.shape)}, its type says {type_}",
                                    where=launch.where)
            if type_.dtype.name == "str":
                self._objects[self._program.root(value)[0]] = result
                continue
            made = to_physical(result.astype(type_.dtype.numpy, copy=False), type_)
            if operand.strides is None:
                whole = np.ascontiguousarray(made)
            else:               # what lies between the rows is somebody else's
                whole, view = self._fetched(operand, address(value), sizes, stream)
                view[...] = made
            if whole.nbytes:
                self._driver.upload(address(value), whole.ctypes.data, whole.nbytes, stream)
            self._driver.finish(stream)     # the array may go

    def _fetched(self, operand: Operand, address: int, sizes: Mapping[str, int],
                 stream: Handle) -> tuple[np.ndarray, np.ndarray]:
        """All bytes from an operand's first element to its last, and the operand in physical form over them."""
        shape = tuple(evaluate(d, sizes) for d in operand.type.physical)
        steps = tuple(evaluate(s, sizes) for s in operand.steps)
        extent = 0 if 0 in shape else 1 + sum((n - 1) * s for n, s in zip(shape, steps, strict=True))
        dtype = operand.type.dtype.numpy
        whole = np.empty(extent, dtype)
        if whole.nbytes:
            self._driver.download(whole.ctypes.data, address, whole.nbytes, stream)
            self._driver.finish(stream)
        plain = whole.view(np.uint8) if dtype.itemsize == 1 else whole      # numpy cannot stride over all fp8 types
        view = np.lib.stride_tricks.as_strided(plain, shape, tuple(s * dtype.itemsize for s in steps))
        return whole, view.view(dtype)


__all__ = ["HostLaunches"]
