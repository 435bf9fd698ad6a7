"""A session on a GPU, without one: graphs, addresses, copies and fallbacks, through a driver that records."""
from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import contextmanager
from textwrap import dedent

import numpy as np
import pytest

from ingot.bench import GpuLimits, gpu_limits, spent, trace
from ingot.engine import Engine, make_variant
from ingot.errors import InputError
from ingot.graph import F32, parse
from ingot.kernels import TACTICS
from ingot.kernels.cuda import CudaKernel
from ingot.lower import lower
from ingot.ops import infer
from ingot.ops.reference import run_graph
from ingot.passes import Precision, optimize
from ingot.report import roofline_table
from ingot.runtime.cuda import ranges
from ingot.runtime.cuda.interop import DeviceArray
from ingot.runtime.cuda.session import CudaSession
from ingot.target import Target
from ingot.tune import tactic_named
from tests.fake_cuda import FakeDriver, SiteTactic

SM90 = Target("cuda", "sm_90")
CONV = """
    symbol N: 1..2..4
    input x: f32[N,3,8,8]
    const w: f32[16,3,3,3]
    const v: f32[16,16,3,3]
    y = Conv(x, w) {'pads': (1, 1, 1, 1)}
    r = Relu(y)
    z = Conv(r, v) {'pads': (1, 1, 1, 1)}
    s = Add(z, r)
    p = GlobalAveragePool(s)
    o = Reshape(p) {'shape': (0, 16)}
    return o
"""


@pytest.fixture
def tactic() -> Iterator[SiteTactic]:
    before = TACTICS["cuda"]
    TACTICS["cuda"] = (made := SiteTactic(),)
    yield made
    TACTICS["cuda"] = before


def opened(text: str, driver: FakeDriver, precision: str = "f32", **more: object) -> CudaSession:
    graph = parse(dedent(text), infer)
    program = lower(optimize(graph, SM90, precision=Precision(precision)), SM90)
    variant = make_variant(program, SM90)
    kernels: dict[str, CudaKernel] = {}
    for launch in program.launches:
        if launch.native:
            choice = variant.choices[launch.site.key]
            made = tactic_named(choice.tactic, SM90).emit(launch.site, choice.params, SM90)
            assert isinstance(made, CudaKernel)
            kernels[launch.site.key] = made
    return CudaSession(Engine("test", graph, (variant,)), variant, kernels, driver, **more)     # type: ignore[arg-type]


def feeds(n: int, seed: int = 0) -> dict[str, np.ndarray]:
    return {"x": np.random.default_rng(seed).standard_normal((n, 3, 8, 8), np.float32)}


def agrees(session: CudaSession, given: dict[str, np.ndarray], found: dict[str, np.ndarray], bar: float = 1e-5) -> None:
    wanted = run_graph(session.engine.graph, given)
    assert found.keys() == wanted.keys()
    for name, array in wanted.items():
        assert found[name].shape == array.shape and found[name].dtype == array.dtype
        assert np.abs(found[name] - array).max() <= bar * np.abs(array).max()


def test_it_computes_what_the_model_says_at_every_size(tactic):
    session = opened(CONV, FakeDriver())
    for n in (2, 4, 1, 2):
        agrees(session, feeds(n, n), session.run(feeds(n, n)))


def test_a_shape_is_captured_once_and_replayed(tactic):
    session = opened(CONV, driver := FakeDriver())
    session.run(feeds(2))
    driver.calls.clear()
    session.run(feeds(2))
    assert driver.names().count("replay") == 1 and "graph" not in driver.names()
    held = len(driver.graphs)
    session.run(feeds(3))
    assert driver.names().count("graph") == 4           # copies in and out or none of either: the fastest is kept
    assert len(driver.graphs) == held + 1


def test_in_half_precision_it_stays_near(tactic):
    session = opened(CONV, FakeDriver(), "f16")
    agrees(session, feeds(2), session.run(feeds(2)), 0.02)


def test_a_node_without_a_kernel_runs_on_the_host_between_two_graphs(tactic):
    tactic.leaves = frozenset({"GlobalAveragePool"})
    text = CONV.replace("return o", "t = Tanh(o)\n    return t")
    session = opened(text, driver := FakeDriver())
    assert [x.site.op for x in session.variant.program.launches if not x.native] == ["GlobalAveragePool"]
    agrees(session, feeds(2), session.run(feeds(2)))
    assert driver.names().count("replay") == 2
    x = DeviceArray(driver, driver.alloc(2 * 3 * 8 * 8 * 4), (2, 3, 8, 8), np.dtype(np.float32), None)
    driver.fill(x.address, 0, x.nbytes, None)
    with pytest.raises(InputError, match="run on the host"):
        session.bind(x)


def test_arrays_on_the_device_are_read_and_written_in_place(tactic):
    session = opened(CONV, driver := FakeDriver())
    given = feeds(2)
    at = driver.alloc(given["x"].nbytes)
    driver.upload(at, given["x"].ctypes.data, given["x"].nbytes, None)
    x = DeviceArray(driver, at, (2, 3, 8, 8), np.dtype(np.float32), None)
    out = DeviceArray(driver, driver.alloc(2 * 16 * 4), (2, 16), np.dtype(np.float32), None)
    session.run_on_device(x, out={"o": out})
    driver.calls.clear()
    made = session.run_on_device(x, out={"o": out})["o"]
    assert driver.names().count("replay") == 1
    assert not {"upload", "download", "copy", "graph"} & set(driver.names())
    assert made.address == out.address
    agrees(session, given, {"o": made.numpy()})


def test_a_bound_call_only_replays(tactic):
    session = opened(CONV, driver := FakeDriver())
    given = feeds(2)
    at = driver.alloc(given["x"].nbytes)
    driver.upload(at, given["x"].ctypes.data, given["x"].nbytes, None)
    call = session.bind(DeviceArray(driver, at, (2, 3, 8, 8), np.dtype(np.float32), None))
    driver.calls.clear()
    made = call()
    assert [n for n in driver.names() if n != "run"] == ["replay"]
    agrees(session, given, {"o": made["o"].numpy()})


def test_requests_in_a_row_come_back_in_order(tactic):
    session = opened(CONV, FakeDriver())
    requests = [feeds(1 + k % 3, k) for k in range(7)]
    found = list(session.stream(requests))
    assert len(found) == 7
    for given, made in zip(requests, found, strict=True):
        agrees(session, given, made)


def test_sessions_share_weights_and_give_them_back(tactic):
    driver = FakeDriver()
    session = opened(CONV, driver)
    session.run(feeds(1))
    held = len(driver.memory)
    other = CudaSession(session.engine, session.variant, {k.site.key: c for k, c in zip(
        session.variant.program.launches, session._kernels, strict=True) if c}, driver)
    assert other._image is session._image
    assert len(driver.memory) == held + 2               # an arena of its own, and what lies beside it
    del session, other
    gc.collect()
    assert not driver.memory and not driver.graphs and not driver.modules and not driver.streams


def test_dependent_launches_are_those_named(tactic):
    session = opened(CONV, driver := FakeDriver())
    session.run(feeds(1))
    assert not any(c[2] for c in driver.calls if c[0] == "run")
    session.with_dependent([1])
    session.run(feeds(1))               # captures and races
    driver.calls.clear()
    agrees(session, feeds(1), session.run(feeds(1)))
    assert [c[2] for c in driver.calls if c[0] == "run"].count(True) == 1


def test_values_in_the_arena_are_aligned_for_the_copy_engine(tactic):
    session = opened(CONV, FakeDriver())
    assert all(at % 256 == 0 for at in session.plan.offsets.values())


def test_an_output_that_is_an_input_is_copied(tactic):
    session = opened("""
        input x: f32[4,4]
        y = Relu(x)
        return y, x
    """, FakeDriver())
    x = np.arange(-8, 8, dtype=np.float32).reshape(4, 4)
    found = session.run(x)
    assert (found["x"] == x).all() and (found["y"] == np.maximum(x, 0)).all()


def test_a_wrong_shape_or_dtype_is_refused(tactic):
    session = opened(CONV, driver := FakeDriver())
    with pytest.raises(InputError, match="must be 3"):
        session.run(np.zeros((1, 4, 8, 8), np.float32))
    with pytest.raises(InputError, match="outside the engine's range"):
        session.run(np.zeros((5, 3, 8, 8), np.float32))
    half = DeviceArray(driver, driver.alloc(64), (1, 3, 8, 8), np.dtype(np.float16), None)
    with pytest.raises(InputError, match="<f2, not <f4"):
        session.run(half)


def test_a_profile_names_every_launch(tactic):
    session = opened(CONV, FakeDriver())
    found = session.profile(feeds(2))
    assert [i for i, _ in found] == list(range(len(session.variant.program.launches)))
    assert all(abs(s - 1e-6) < 1e-9 for _, s in found)


def test_a_gpu_has_limits_and_its_launches_a_roofline(tactic, monkeypatch, tmp_path):
    monkeypatch.setenv("INGOT_CACHE", str(tmp_path))
    driver = FakeDriver()
    session = opened(CONV, driver)
    limits = gpu_limits(driver, SM90, F32, side=16, large=4096)
    assert isinstance(limits, GpuLimits) and limits.kind == "f32" and limits.device == "NVIDIA H200"
    assert limits.near == driver.facts.cache // 4 and limits.memory_gbs > 0 and limits.gflops > 0
    found = spent(session.variant.program, [session.profile(feeds(2)) for _ in range(3)], {"N": 2})
    rows = roofline_table(session.variant, found, limits).rows
    assert [r[0] for r in sorted(rows)] == list(range(len(session.variant.program.launches)))
    events = trace(session.variant.program, found)["traceEvents"]
    assert [e["dur"] for e in events] == pytest.approx([1.0] * len(found))


def test_without_a_compiler_no_kernel_counts_as_bound_by_arithmetic(monkeypatch, tmp_path):
    monkeypatch.setenv("INGOT_CACHE", str(tmp_path))
    monkeypatch.setitem(TACTICS, "cuda", ())
    limits = gpu_limits(FakeDriver(), SM90, side=16, large=4096)
    assert limits.gflops == float("inf") and "not measured" in str(limits)


def test_a_profile_names_ranges_for_nsight(tactic, monkeypatch):
    seen: list[str] = []

    class Nvtx:
        @staticmethod
        @contextmanager
        def annotate(text: str, domain: str) -> Iterator[None]:
            assert domain == "ingot"
            seen.append(text)
            yield

    monkeypatch.setattr(ranges, "_nvtx", lambda: Nvtx)
    session = opened(CONV, FakeDriver())
    session.profile(feeds(2))
    assert seen == [f"{i} {x.where}" for i, x in enumerate(session.variant.program.launches)]
