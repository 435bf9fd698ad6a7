"""Products on AMX tiles, for machines that are not at hand: the assembly is looked at, and the code is run with its
tile instructions played by numpy."""
from __future__ import annotations

import ctypes
import re
import struct
from dataclasses import replace

import llvmlite.binding as llvm
import ml_dtypes
import numpy as np
import pytest

from ingot.graph import Node
from ingot.kernels import Kernel, Site, able
from ingot.kernels.codegen import target_for
from ingot.kernels.x86.matmul_amx import FEATURES, AmxMatMul, configuration
from ingot.ops.reference import evaluate
from ingot.ops.samples import bf16, short_values
from ingot.runtime import host
from ingot.runtime.compiler import assembly
from ingot.runtime.harness import PHASE
from tests.kernel_checks import site_of

AVX512 = target_for("avx512", threads=2)
WITHOUT = replace(AVX512, features=AVX512.features | {"avx512bf16"})
AMX = replace(WITHOUT, features=WITHOUT.features | FEATURES, cpu="sapphirerapids")
TACTIC = AmxMatMul()


def product(rows: int, depth: int, columns: int) -> tuple[Site, np.ndarray]:
    site, given = site_of("ShortMatMul", ((bf16(rows, depth), short_values(depth, columns)), {}))
    assert given[1] is not None
    return site, given[1]


def test_only_machines_with_tiles_take_it() -> None:
    site, _ = product(64, 64, 64)
    names = [t.name for t in able(site, AMX)[0]]
    assert names[0] == "x86.matmul_amx" and "x86.matmul_bf16" in names
    reasons = [r for r in able(site, WITHOUT)[1] if r.startswith("x86.matmul_amx")]
    assert reasons == ["x86.matmul_amx: the processor has no tiles of bf16"]
    odd, _ = product(64, 40, 64)
    assert "multiple of 32" in str(TACTIC.declines(odd, AMX))


def test_tiles_are_not_used_without_leave(monkeypatch: pytest.MonkeyPatch) -> None:
    """The operating system must be asked before the first tile; where it says no, the features are not told."""
    monkeypatch.setattr(llvm, "get_host_cpu_features", lambda: {"avx2": True, "amx-tile": True, "amx-bf16": True})
    for leave in (True, False):
        monkeypatch.setattr(host, "_may_use_tiles", lambda leave=leave: leave)
        assert host._cpu.__wrapped__()[1].issuperset(FEATURES) is leave


def test_the_assembly() -> None:
    """Four products of tiles a turn, two loads of either side, and nothing that spills or multiplies otherwise."""
    site, _ = product(64, 256, 64)
    for params in TACTIC.space(site, AMX):
        lines = [line.split() for line in assembly(TACTIC.emit(site, params, AMX), AMX).splitlines() if line.strip()]
        found = [words[0] for words in lines]
        tiles = params["rows"] // 16 * 2
        assert found.count("tdpbf16ps") == tiles == found.count("tilezero") == found.count("tilestored")
        assert found.count("tileloadd") == params["rows"] // 16 + 2
        assert found.count("ldtilecfg") == found.count("tilerelease") == 1
        assert not {"vdpbf16ps", "vfmadd231ps"} & set(found)


class Tiles:
    """AMX's tile registers in numpy, behind C functions of the intrinsics' names."""

    def __init__(self) -> None:
        self.rows, self.columns = [0] * 8, [0] * 8
        self.data = [np.zeros((16, 64), np.uint8) for _ in range(8)]
        self.released = False
        byte, pointer, long = ctypes.c_int8, ctypes.c_void_p, ctypes.c_int64
        self.functions = {
            "ldtilecfg": ctypes.CFUNCTYPE(None, pointer)(self.configure),
            "tilezero": ctypes.CFUNCTYPE(None, byte)(self.clear),
            "tileloadd64": ctypes.CFUNCTYPE(None, byte, pointer, long)(self.load),
            "tilestored64": ctypes.CFUNCTYPE(None, byte, pointer, long)(self.store),
            "tdpbf16ps": ctypes.CFUNCTYPE(None, byte, byte, byte)(self.multiply),
            "tilerelease": ctypes.CFUNCTYPE(None)(self.release)}

    def configure(self, at: int) -> None:
        palette, start, *rest = struct.unpack("<BB14x16H16B", ctypes.string_at(at, 64))
        assert (palette, start) == (1, 0)
        self.columns, self.rows = list(rest[:8]), list(rest[16:24])
        assert all(c <= 64 for c in self.columns) and all(r <= 16 for r in self.rows)

    def clear(self, tile: int) -> None:
        self.data[tile][:] = 0

    def load(self, tile: int, at: int, pitch: int) -> None:
        self.data[tile][:] = 0
        for r in range(self.rows[tile]):
            row = ctypes.string_at(at + r * pitch, self.columns[tile])
            self.data[tile][r, :len(row)] = np.frombuffer(row, np.uint8)

    def store(self, tile: int, at: int, pitch: int) -> None:
        for r in range(self.rows[tile]):
            ctypes.memmove(at + r * pitch, self.data[tile][r].ctypes.data, self.columns[tile])

    def multiply(self, total: int, left: int, right: int) -> None:
        assert self.rows[left] == self.rows[total] and self.columns[left] == 4 * self.rows[right]
        a, b = (self.data[t].view(ml_dtypes.bfloat16).astype(np.float32) for t in (left, right))
        pairs = b.reshape(16, 16, 2)
        self.data[total].view(np.float32)[:] += np.einsum("rkp,kcp->rc", a.reshape(16, 16, 2), pairs)

    def release(self) -> None:
        self.released = True


def played(kernel: Kernel, buffers: list[np.ndarray], threads: int) -> Tiles:
    """Run the kernel on this machine with its tile instructions played."""
    tiles = Tiles()
    llvm.initialize_native_target()
    llvm.initialize_native_asmprinter()
    for name, function in tiles.functions.items():
        llvm.add_symbol(f"play_{name}", ctypes.cast(function, ctypes.c_void_p).value)
    module = llvm.parse_assembly(re.sub(r"llvm\.x86\.(\w+)", r"play_\1", kernel.code))
    machine = llvm.Target.from_default_triple().create_target_machine(cpu=llvm.get_host_cpu_name(), jit=True)
    engine = llvm.create_mcjit_compiler(module, machine)
    engine.finalize_object()
    table = (ctypes.c_void_p * (len(buffers) + 2))(*(b.ctypes.data for b in buffers))
    call = PHASE(engine.get_function_address("matmul_amx"))
    for thread in range(threads):
        call(ctypes.addressof(table), 0, thread, threads)
    return tiles


@pytest.mark.parametrize(("rows", "depth", "columns"),
                         [(64, 64, 64), (32, 32, 32), (37, 96, 50), (7, 64, 20), (16, 32, 16)])
def test_on_played_tiles(rows: int, depth: int, columns: int) -> None:
    site, weight = product(rows, depth, columns)
    x = np.random.default_rng(rows).standard_normal((rows, depth)).astype(ml_dtypes.bfloat16)
    want, = evaluate(Node("ShortMatMul", ("a", "b"), ("y",), {}), [x, weight], {})
    for params in TACTIC.space(site, AMX):
        packed = TACTIC.pack(site, params, AMX, {1: weight})
        out = np.full((rows, columns), np.nan, np.float32)
        tiles = played(TACTIC.emit(site, params, AMX), [x, packed[1], out], threads=2)
        assert tiles.released
        np.testing.assert_allclose(out, want, rtol=1e-4, atol=1e-4 * np.abs(want).max())


def test_configuration_is_what_the_processor_reads() -> None:
    raw = bytes(configuration([16, 5]))
    assert len(raw) == 64 and raw[0] == 1
    assert list(raw[48:56]) == [16, 16, 5, 5, 16, 5, 16, 16] and struct.unpack("<8H", raw[16:32]) == (64,) * 8
