"""The roofline: operations and bytes by hand, what bounds a kernel, the trace, and the two commands that show it."""
from __future__ import annotations

import json
from pathlib import Path

import pytest

import ingot
from ingot.bench import Limits, Spent, machine_limits, spent, trace, work
from ingot.cli import main
from ingot.graph import parse
from ingot.lower import lower
from ingot.ops import infer
from ingot.runtime.host import host_target
from ingot.verify import random_feeds

MACHINE = Limits(threads=2, gflops=100.0, memory_gbs=10.0, cache_gbs=50.0, near=1 << 20)


@pytest.mark.parametrize(("text", "flops", "nbytes"), [
    ("input x: f32[N,3,8,8]\nconst w: f32[5,3,3,3]\ny = Conv(x, w)\nr = Relu(y)\nreturn r",
     2 * 27 * 4 * 5 * 36 + 4 * 5 * 36, 4 * (4 * 3 * 64 + 135 + 4 * 5 * 36)),
    ("input x: f32[N,16]\nconst w: f32[16,7]\ny = MatMul(x, w)\nreturn y", 2 * 16 * 4 * 7,
     4 * (64 + 112 + 28)),
    ("input x: f32[N,16]\ny = Exp(x)\nz = Add(y, x)\nreturn z", 2 * 64, 4 * 128),
    ("input x: f32[N,16]\ny = ReduceSum(x) {'axes': (1,), 'keepdims': 1}\nreturn y", 64, 4 * (64 + 4)),
])
def test_operations_and_bytes_are_those_of_the_definition(text: str, flops: float, nbytes: float) -> None:
    graph = parse("symbol N: 1..4..8\n" + text, infer)
    launch, = lower(graph, host_target(2)).launches
    assert work(launch.site, {"N": 4}) == (flops, nbytes)


@pytest.mark.parametrize(("one", "bound"), [
    (Spent(0, 1.0, 90e9, 1e3), "arithmetic"), (Spent(0, 1.0, 1e9, 9e9), "memory"),
    (Spent(0, 20e-6, 1e3, 0.9e6), "cache"), (Spent(0, 1.0, 1e9, 1e9), "its code"), (Spent(0, 1e-6, 10, 10), "launch")])
def test_what_bounds_a_kernel(one: Spent, bound: str) -> None:
    assert one.bound(MACHINE) == bound


def test_the_limits_of_a_machine_are_measured() -> None:
    limits = machine_limits(1)
    assert limits.gflops > 1 and limits.memory_gbs > 0.1 and limits.cache_gbs > 0.1 and limits.near > 0


@pytest.fixture
def engine(tmp_path: Path) -> Path:
    graph = parse("symbol N: 1..2..4\ninput x: f32[N,64]\nconst w: f32[64,32]\nh = MatMul(x, w)\n"
                  "y = Softmax(h)\nreturn y", infer)
    ingot.save(ingot.build(graph, options=ingot.BuildOptions(tune=False)), tmp_path / "e.ingot")
    return tmp_path / "e.ingot"


def test_a_trace_has_every_launch_after_the_other(engine: Path) -> None:
    session = ingot.Session(ingot.load(engine))
    feeds = random_feeds(session.engine.graph, {"N": 2}, 0)
    found = spent(session.variant.program, [session.profile(feeds) for _ in range(3)], {"N": 2})
    events = trace(session.variant.program, found)["traceEvents"]
    assert [e["name"] for e in events] == ["MatMul", "Softmax"]
    assert events[1]["ts"] == pytest.approx(events[0]["ts"] + events[0]["dur"])
    assert all(e["dur"] > 0 for e in events)


def test_the_commands_show_it(engine: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "trace.json"
    assert main(["profile", str(engine), "--size", "N=4", "--runs", "2", "--trace", str(file)]) == 0
    told = capsys.readouterr().out
    assert "MatMul" in told and "bound by" in told and "GB/s" in told
    assert len(json.loads(file.read_text())["traceEvents"]) == 2
    assert main(["bench", str(engine), "--batch", "2", "--seconds", "0.1", "--roofline", "--json"]) == 0
    rows = json.loads(capsys.readouterr().out)["roofline"]
    assert {r["ops"] for r in rows} == {"MatMul", "Softmax"}
