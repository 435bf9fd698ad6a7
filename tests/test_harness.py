"""The harness finds what it is there to find."""
import numpy as np
import pytest

from ingot.errors import CandidateError
from ingot.graph import F32, Symbol, TensorType, symbol
from ingot.kernels import Kernel, Operand, Site, Step
from ingot.kernels.reference import from_physical, to_physical
from ingot.runtime.compiler import CodeCache, assembly, compile_code
from ingot.runtime.harness import run_kernel, run_logical
from ingot.runtime.host import host_target
from ingot.target import Target

pytestmark = pytest.mark.cpu
N = symbol("N")

CODE = """
define void @add_one(ptr %buffers, ptr %symbols, i64 %thread, i64 %threads) {{
entry:
  %x.p = getelementptr ptr, ptr %buffers, i64 0
  %x = load ptr, ptr %x.p
  %y.p = getelementptr ptr, ptr %buffers, i64 1
  %y = load ptr, ptr %y.p
  %n0 = load i64, ptr %symbols
  %n1 = mul i64 %n0, 4
  %n = add i64 %n1, {extra}
  br label %head
head:
  %i = phi i64 [{first}, %entry], [%i1, %body]
  %more = icmp slt i64 %i, %n
  br i1 %more, label %body, label %done
body:
  %a.p = getelementptr float, ptr %x, i64 %i
  %a = load float, ptr %a.p
  %b = fadd float %a, 1.0
  %b.p = getelementptr float, ptr %{into}, i64 %i
  store float %b, ptr %b.p
  %i1 = add i64 %i, %threads
  br label %head
done:
  ret void
}}
"""


def kernel(extra: int = 0, first: str = "%thread", into: str = "y") -> Kernel:
    return Kernel("add_one", CODE.format(extra=extra, first=first, into=into), ("add_one",))


def site() -> Site:
    t = TensorType(F32, (N, 4))
    return Site((Step("Add", (0, 0), (), (t,)),), (Operand(t),), (Operand(t),), (Symbol("N", 1, 8, 32),))


X = np.arange(20, dtype=np.float32).reshape(5, 4)


@pytest.mark.parametrize("threads", [1, 2, 3, 8])
def test_a_kernel_runs_at_any_thread_count(threads: int) -> None:
    assert np.array_equal(run_kernel(kernel(), site(), host_target(), [X], {"N": 5}, threads)[0], X + 1)
    assert np.array_equal(run_logical(kernel(), site(), host_target(), [X], {"N": 5}, threads)[0], X + 1)


@pytest.mark.parametrize(("wrong", "text"), [
    (kernel(extra=1), "writes outside output 0"), (kernel(first="-1"), "writes outside output 0"),
    (kernel(into="x"), "writes to input 0"), (Kernel("bad", "define void @f( {", ("f",)), "LLVM refuses"),
    (Kernel("none", kernel().code, ("other",)), "no function")])
def test_a_kernel_that_misbehaves_is_refused(wrong: Kernel, text: str) -> None:
    with pytest.raises(CandidateError, match=text):
        run_kernel(wrong, site(), host_target(), [X], {"N": 5})


def test_what_is_left_unwritten_is_nan() -> None:
    assert np.isnan(run_kernel(kernel(extra=-1), site(), host_target(), [X], {"N": 5})[0][-1, -1])


def test_writing_between_the_rows_of_a_strided_output_is_refused() -> None:
    wide = TensorType(F32, (2, 2))
    s = Site((Step("Add", (0, 0), (), (wide,)),), (Operand(TensorType(F32, (N, 4))),), (Operand(wide, (6, 1)),),
             (Symbol("N", 1, 1, 1),))
    with pytest.raises(CandidateError, match="between the rows"):
        run_kernel(kernel(), s, host_target(), [X[:1]], {"N": 1})


@pytest.mark.parametrize("channels", [1, 8, 16, 17, 40])
@pytest.mark.parametrize("layout", ["c16", "c8"])
def test_layouts_round_trip(channels: int, layout: str) -> None:
    x = np.random.default_rng(0).standard_normal((2, channels, 3, 5)).astype(np.float32)
    t = TensorType(F32, x.shape, layout)
    p = to_physical(x, t)
    assert p.shape == t.physical
    assert np.array_equal(from_physical(p, t), x)
    assert p[1, 0, 2, 4, 0] == x[1, 0, 2, 4]
    assert np.isnan(p).sum() == (-channels % t.block) * 2 * 15


def test_code_for_an_absent_target_compiles_to_assembly() -> None:
    assert "fadd" in assembly(kernel(), Target("neon", "neon", frozenset({"neon"}), "neoverse-n1"))


def test_the_code_cache_hits_and_survives_damage(tmp_path) -> None:
    cache, target = CodeCache(tmp_path / "code"), host_target()
    made = compile_code(kernel().code, target, cache)
    assert (tmp_path / "code").stat().st_mode & 0o077 == 0
    entry, = (tmp_path / "code").iterdir()
    raw = entry.read_bytes()
    for damage in (raw[:40], raw[:-1] + bytes([raw[-1] ^ 1]), b"", b"garbage" * 100):
        entry.write_bytes(damage)
        assert compile_code(kernel().code, target, cache) == made
        assert entry.read_bytes() == raw
