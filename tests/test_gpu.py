"""On a GPU: engines built, verified, replayed, shared, moved between machines. Skipped where there is none."""
from __future__ import annotations

import gc
import time
from dataclasses import replace
from pathlib import Path
from textwrap import dedent

import numpy as np
import pytest

from ingot.compiler.build import build_with_report
from ingot.compiler.gpu import short_feeds, tune_engine, wide_results
from ingot.compiler.options import BuildOptions
from ingot.engine import Engine, read_engine, write_engine
from ingot.errors import EngineError
from ingot.graph import Graph, parse
from ingot.ops import infer
from ingot.ops.reference import run_graph
from ingot.runtime.cuda.interop import DeviceArray
from ingot.runtime.cuda.memory import DeviceBlock
from ingot.runtime.cuda.open import open_cuda
from ingot.runtime.cuda.session import CudaSession
from ingot.runtime.cuda.target import found_driver

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(found_driver() is None, reason="there is no GPU here")]

CNN = """
    symbol N: 1..4..8
    input x: f32[N,3,32,32]
    const a: f32[32,3,3,3]
    const b: f32[64,32,3,3]
    const c: f32[64,1,3,3]
    const d: f32[64,64,1,1]
    p = Conv(x, a) {'pads': (1, 1, 1, 1), 'strides': (2, 2)}
    q = Relu(p)
    r = Conv(q, b) {'pads': (1, 1, 1, 1)}
    s = Relu(r)
    t = Conv(s, c) {'pads': (1, 1, 1, 1), 'group': 64}
    u = Conv(t, d)
    v = Add(u, s)
    w = GlobalAveragePool(v)
    y = Flatten(w)
    return y
"""
ENCODER = """
    symbol B: 1..2..4
    symbol S: 1..64..130
    input x: f32[B,S,128]
    const wq: f32[128,128]
    const wk: f32[128,128]
    const wv: f32[128,128]
    const g: f32[128]
    const h: f32[128]
    n = LayerNormalization(x, g, h)
    q = MatMul(n, wq)
    k = MatMul(n, wk)
    v = MatMul(n, wv)
    a = Attention(q, k, v) {'q_num_heads': 4, 'kv_num_heads': 4}
    r = Add(a, x)
    y = Gelu(r)
    return y
"""
QUICK = BuildOptions(target="cuda", points=2)


@pytest.fixture(autouse=True)
def folders(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    base = tmp_path_factory.getbasetemp()
    monkeypatch.setenv("INGOT_CACHE", str(base / "cache"))
    monkeypatch.setenv("INGOT_KEYS", str(base / "keys"))


def graph_of(text: str, scale: float = 0.1) -> Graph:
    graph = parse(dedent(text), infer)
    constants = {k: (a * scale).astype(a.dtype) if a.ndim > 1 else a for k, a in graph.constants.items()}
    return replace(graph, constants=constants)


def built(text: str, options: BuildOptions = QUICK) -> Engine:
    return build_with_report(graph_of(text), options=options, name="test").engine


def agree(session: CudaSession, feeds: dict[str, np.ndarray], bar: float = 0.02) -> None:
    graph = session.engine.graph
    wanted = run_graph(graph, feeds)
    found = wide_results(graph, session.run(short_feeds(session.variant, feeds)))
    for name, array in wanted.items():
        assert found[name].shape == array.shape
        assert np.abs(found[name] - array).max() <= bar * np.abs(array).max()


def images(n: int, seed: int = 0) -> dict[str, np.ndarray]:
    return {"x": np.random.default_rng(seed).standard_normal((n, 3, 32, 32), np.float32)}


@pytest.mark.parametrize("precision", ["f16", "bf16", "tf32", "f32"])
def test_a_network_is_right_in_every_precision_and_at_every_size(precision):
    session = open_cuda(built(CNN, replace(QUICK, precision=precision)))
    assert all(x.native for x in session.variant.program.launches)
    for n in (4, 1, 8, 3):
        agree(session, images(n, n), {"f16": 0.01, "bf16": 0.05, "tf32": 0.01, "f32": 1e-5}[precision])


def test_sizes_that_end_within_a_tile_are_right():
    session = open_cuda(built(ENCODER))
    rng = np.random.default_rng(0)
    for b, s in ((2, 64), (1, 1), (3, 130), (4, 65), (1, 127)):
        agree(session, {"x": rng.standard_normal((b, s, 128), np.float32)})


def test_runs_in_a_row_give_the_same_bytes():
    session = open_cuda(built(CNN))
    first = session.run(images(4))
    for _ in range(50):
        again = session.run(images(4))
        assert all((first[k] == again[k]).all() for k in first)


def test_requests_overlapped_are_those_one_by_one():
    session = open_cuda(built(CNN))
    requests = [images(1 + k % 4, k) for k in range(20)]
    for request, made in zip(requests, session.stream(requests), strict=True):
        assert (made["y"] == session_result(session.engine, request)["y"]).all()


def session_result(engine: Engine, feeds: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    return open_cuda(engine).run(feeds)


def test_tensors_of_pytorch_go_in_and_out_in_place():
    torch = pytest.importorskip("torch")
    if not torch.cuda.is_available():
        pytest.skip("PyTorch sees no GPU")
    session = open_cuda(built(CNN))
    given = images(4)
    x, out = torch.from_numpy(given["x"]).cuda(), torch.empty(4, 64, device="cuda")
    made = session.run_on_device(x, out={"y": out})["y"]
    assert made.address == out.data_ptr()
    shared = torch.from_dlpack(made)
    assert shared.data_ptr() == out.data_ptr()
    assert (shared.cpu().numpy() == session.run(given)["y"]).all()


def test_a_bound_call_costs_the_host_little():
    session = open_cuda(built(CNN))
    driver = session.driver
    given = images(4)["x"]
    block = DeviceBlock(driver, given.nbytes)
    stream = driver.stream()
    driver.upload(block.address, given.ctypes.data, given.nbytes, stream)
    driver.finish(stream)
    call = session.bind(DeviceArray(driver, block.address, given.shape, given.dtype, stream, block))
    times = []
    for _ in range(300):
        begin = time.perf_counter()
        call()
        times.append(time.perf_counter() - begin)
        call.wait()
    assert (call.outputs["y"].numpy() == session.run(given)["y"]).all()
    assert sorted(times)[len(times) // 2] < 50e-6       # the figure itself is in the report; this catches a regression


def test_nothing_leaks_over_runs_and_sessions():
    engine = built(CNN)
    cu = pytest.importorskip("cuda.bindings.driver")

    def free() -> int:
        gc.collect()
        return int(cu.cuMemGetInfo()[1])

    for _ in range(3):
        open_cuda(engine).run(images(4))
    before = free()
    for _ in range(100):
        open_cuda(engine).run(images(4))
    session = open_cuda(engine)
    held = free()
    for k in range(10_000):
        session.run(images(1 + k % 3)) if k % 1000 == 0 else session.run_on_device(images(4))
    after = free()
    assert before - held < 64 << 20 and held - after < 16 << 20


def test_an_engine_runs_from_its_file(tmp_path: Path):
    engine = built(CNN)
    write_engine(engine, tmp_path / "a.ingot")
    again = read_engine(tmp_path / "a.ingot")
    assert again.verdict["passed"]
    assert (open_cuda(again).run(images(4))["y"] == open_cuda(engine).run(images(4))["y"]).all()


def test_carried_candidates_are_raced_without_a_compiler(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    driver = found_driver()
    assert driver is not None
    options = replace(QUICK, target=f"cuda:{driver.facts.architecture}", candidates=True, tune=False, verify=False)
    write_engine(built(CNN, options), tmp_path / "a.ingot")
    monkeypatch.setenv("INGOT_CACHE", str(tmp_path / "elsewhere"))      # a machine that has compiled nothing
    carried = read_engine(tmp_path / "a.ingot")
    with pytest.raises(EngineError, match="nobody has signed"):
        open_cuda(carried)
    made = tune_engine(carried, trust=True)
    assert made.tuning.raced > 0 and made.engine.verdict["passed"]
    agree(open_cuda(made.engine, trust=True), images(4))


def test_a_value_beyond_f16_is_kept_in_f32_by_itself():
    engine = built("""
        input x: f32[16,256]
        const w: f32[256,256]
        const k: f32[] = 100000.0
        h = MatMul(x, w)
        m = Mul(h, k)
        n = Tanh(m)
        y = Add(n, x)
        return y
    """)
    report = open_cuda(engine).variant.report
    assert [o["value"] for o in report["overflow"]] == ["m"] and engine.verdict["passed"]
