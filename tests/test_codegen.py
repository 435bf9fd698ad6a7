"""The emitter: what it makes is compiled, run, and compared with Python's own arithmetic."""
import ctypes

import numpy as np
import pytest

from ingot.graph import F32, I64, Symbol, TensorType, symbol
from ingot.kernels import Kernel, Operand, Site, Step
from ingot.kernels.codegen import ISAS, Code, target_for
from ingot.runtime.compiler import assembly, code_tag, compile_code, load_objects
from ingot.runtime.harness import run_kernel
from ingot.runtime.host import host_target


def _sum_of_squares(isa: str) -> tuple[Kernel, Site]:
    n = Symbol("N", 1, 8, 32)
    code = Code(ISAS[isa], [n])
    lanes = ISAS[isa].lanes
    with code.function("f"):
        size = code.dim(symbol("N") * 3 + 1)
        x, y = code.buffer(0), code.buffer(1)
        total = code.variable(code.zero("float", lanes))
        with code.loop(0, size, lanes) as i:
            mask = code.mask(code.sub(size, i), lanes)
            v = code.load(code.offset(x, i), "float", lanes, mask)
            total.set(code.fma(v, v, total.get()))
        with code.when(code.compare("==", code.thread, 0)):
            code.store(code.reduce("fadd", total.get()), y)
    t = TensorType(F32, (symbol("N") * 3 + 1,))
    site = Site((Step("ReduceSumSquare", (0,)),), (Operand(t),), (Operand(TensorType(F32, (1,))),), (n,))
    return Kernel("f", code.module(), ("f",)), site


@pytest.mark.parametrize("isa", sorted(ISAS))
def test_every_instruction_set_compiles_without_the_device(isa: str) -> None:
    assert "f:" in assembly(_sum_of_squares(isa)[0], target_for(isa))


@pytest.mark.cpu
@pytest.mark.parametrize("isa", ["avx2", "avx512"])
@pytest.mark.parametrize("n", [1, 5, 8, 31])
def test_masked_tails_and_symbolic_sizes_are_exact(isa: str, n: int, host_isas: tuple[str, ...]) -> None:
    if isa not in host_isas:
        pytest.skip(f"this machine has no {isa}")
    kernel, site = _sum_of_squares(isa)
    x = np.arange(3 * n + 1, dtype=np.float32)
    (y,) = run_kernel(kernel, site, host_target(1, isa), [x], {"N": n}, threads=2)
    assert y[0] == (x.astype(np.float64) ** 2).sum()


@pytest.mark.cpu
def test_integer_arithmetic_agrees_with_python(host_isas: tuple[str, ...]) -> None:
    n = Symbol("N", 1, 8, 100)
    s = symbol("N")
    dims = (s * s - 3, (s + 5) // 4, (s * -1) // 16, (s * 7 + 2) % 5, 128 // s, 2 - s)
    code = Code(ISAS[host_isas[0]], [n])
    with code.function("f"):
        y = code.buffer(0)
        for i, dim in enumerate(dims):
            code.store(code.value(code.dim(dim)), code.offset(y, i, "i64"))
        low, high = code.share_bounds(code.dim(s))
        code.store(code.value(low), code.offset(y, len(dims), "i64"))
        code.store(code.value(high), code.offset(y, len(dims) + 1, "i64"))
    site = Site((Step("Shape", ()),), (), (Operand(TensorType(I64, (len(dims) + 2,))),), (n,))
    for size in (1, 2, 7, 64, 100):
        (y,) = run_kernel(Kernel("f", code.module(), ("f",)), site, host_target(1, host_isas[0]), [], {"N": size})
        assert y.tolist() == [d.evaluate({"N": size}) for d in dims] + [0, size]


def test_float_literals_are_exact() -> None:
    code = Code(ISAS["avx2"])
    for number in (0.1, 1e-45, 3.4e38, float("inf"), -0.0):
        bits = int(code.constant(number).text, 16)
        assert np.float64(np.float32(number)).view(np.uint64) == bits


_CALLS = """
define void @calls(ptr %x) {
  %v = load float, ptr %x
  %r = frem float %v, 3.0
  store float %r, ptr %x
  ret void
}
"""
_READS = """
define void @reads(ptr %x) {
  %v = load <8 x float>, ptr %x, align 4
  %r = fmul <8 x float> %v, <float 1.0, float 2.0, float 3.0, float 4.0, float 5.0, float 6.0, float 7.0, float 8.0>
  store <8 x float> %r, ptr %x, align 4
  ret void
}
"""


@pytest.mark.cpu
@pytest.mark.parametrize("isa", ["avx2", "avx512"])
def test_what_calls_c_leaves_the_constants_of_what_is_loaded_beside_it(isa: str) -> None:
    """Code that looks up fmodf once gave its table to the code after it, which read its constants from anywhere."""
    target = host_target(1, isa)
    codes = {code_tag(text): compile_code(text, target, tag=code_tag(text)) for text in (_CALLS, _READS)}
    libraries = load_objects(codes, target)
    for name, text, wanted in (("reads", _READS, np.arange(1.0, 9) * 7), ("calls", _CALLS, [1.0, *[7.0] * 7])):
        x = np.full(8, 7, np.float32)
        ctypes.CFUNCTYPE(None, ctypes.c_void_p)(libraries[code_tag(text)].address(name))(x.ctypes.data)
        np.testing.assert_array_equal(x, wanted)
