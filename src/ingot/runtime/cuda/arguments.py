"""The parameters of a launch, packed as the device function takes them."""
from __future__ import annotations

import ctypes
from collections.abc import Mapping

from ingot.errors import InternalError
from ingot.graph import evaluate
from ingot.kernels.cuda import CudaLaunch, Pointer, Scalar, TensorMap
from ingot.runtime.cuda.driver import Driver, Handle, Launch, MapSpec

# CUtensorMapDataType
_MAP_TYPES: Mapping[str, int] = {"u8": 0, "i8": 0, "bool": 0, "f8e4m3": 0, "f8e5m2": 0, "u16": 1, "u32": 2, "i32": 3,
                                 "u64": 4, "i64": 5, "f16": 6, "f32": 7, "f64": 8, "bf16": 9}
_SCALARS = {"i32": ctypes.c_int32, "i64": ctypes.c_int64, "f32": ctypes.c_float}


class Packed:
    """One launch with everything its parameters point to; keep it until the launch was made or captured."""

    def __init__(self, driver: Driver, launch: CudaLaunch, function: Handle, operands: Mapping[int, int],
                 sizes: Mapping[str, int]) -> None:
        """`operands` are addresses: of the site's inputs and outputs by position, and of the kernel's own areas."""
        self._kept: list[object] = []
        self._cells: list[int] = []
        for argument in launch.arguments:
            if isinstance(argument, Pointer):
                self._cell(ctypes.c_uint64(self._address(argument, operands, sizes)))
            elif isinstance(argument, Scalar):
                value = argument.value if isinstance(argument.value, float) else evaluate(argument.value, sizes)
                self._cell(_SCALARS[argument.kind](value))      # type: ignore[arg-type]
            else:
                self._map(driver, argument, self._address(argument, operands, sizes), sizes)
        self._array = (ctypes.c_void_p * max(1, len(self._cells)))(*self._cells)
        x, y, z = (evaluate(d, sizes) for d in launch.grid)
        self.grid = (x, y, z)
        self.function, self._launch = function, launch

    def launch(self, *, dependent: bool) -> Launch | None:
        """The launch, with programmatic stream serialization where that is wanted and allowed; None: nothing to do."""
        if 0 in self.grid:
            return None
        told = self._launch
        return Launch(self.function, self.grid, told.threads, told.shared, told.cluster,
                      dependent and told.dependent, ctypes.addressof(self._array))

    @staticmethod
    def _address(argument: Pointer | TensorMap, operands: Mapping[int, int], sizes: Mapping[str, int]) -> int:
        if argument.of not in operands:
            raise InternalError(f"a kernel asks for operand {argument.of}, which its site has not")
        return operands[argument.of] + evaluate(argument.offset, sizes)

    def _cell(self, value: object) -> None:
        self._kept.append(value)
        self._cells.append(ctypes.addressof(value))     # type: ignore[arg-type]

    def _map(self, driver: Driver, told: TensorMap, address: int, sizes: Mapping[str, int]) -> None:
        shape = tuple(evaluate(d, sizes) for d in told.shape)
        strides = tuple(evaluate(d, sizes) for d in told.strides)
        rank, nbytes = len(shape), told.dtype.nbytes
        steps = (1, *told.steps[::-1], 1) if told.lower else (1,) * rank
        raw = ctypes.create_string_buffer(128 + 64)
        at = -(-ctypes.addressof(raw) // 64) * 64
        driver.encode(MapSpec(_MAP_TYPES[told.dtype.name], address, shape[::-1],
                              tuple(s * nbytes for s in strides[:-1])[::-1], told.box[::-1], steps, told.swizzle,
                              told.lower[::-1], told.upper[::-1]), at)
        self._kept.append(raw)
        self._cells.append(at)
        for n in shape:
            self._cell(ctypes.c_int32(n))
        for n in strides:
            self._cell(ctypes.c_int64(n))


__all__ = ["Packed"]
