"""Sessions side by side: the same answers, no more at a time than there are, and an arrangement that is measured."""
from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

import ingot
from ingot.bench import arrangements, measure_arrangements
from ingot.cli import main
from ingot.graph import parse
from ingot.ops import infer

TEXT = """
    symbol N: 1..2..64
    input x: f32[N,64]
    const w: f32[64,48]
    y = MatMul(x, w)
    z = Relu(y)
    return z
"""


@pytest.fixture(scope="module")
def engine() -> ingot.Engine:
    return ingot.build(parse(TEXT, infer), options=ingot.BuildOptions(tune=False, threads=2))


def test_a_group_gives_what_a_session_gives_from_many_threads(engine: ingot.Engine) -> None:
    session, group = ingot.Session(engine), ingot.SessionGroup(engine, 2, 1)
    inputs = [np.random.default_rng(k).standard_normal((1 + k % 5, 64)).astype(np.float32) for k in range(40)]
    with ThreadPoolExecutor(8) as threads:
        found = list(threads.map(lambda x: group.run({"x": x})["z"], inputs))
    for x, z in zip(inputs, found, strict=True):
        assert np.array_equal(z, session.run({"x": x})["z"])


def test_a_failed_run_gives_its_session_back(engine: ingot.Engine) -> None:
    group = ingot.SessionGroup(engine, 1)
    for _ in range(3):
        with pytest.raises(ingot.IngotError):
            group.run({"x": np.zeros((2, 63), np.float32)})
    done = threading.Event()
    threading.Thread(target=lambda: (group.run({"x": np.zeros((2, 64), np.float32)}), done.set()), daemon=True).start()
    assert done.wait(30)


def test_no_instance_is_refused(engine: ingot.Engine) -> None:
    with pytest.raises(ValueError, match="0 instances"):
        ingot.SessionGroup(engine, 0)


def test_arrangements_use_every_thread() -> None:
    assert arrangements(1) == ((1, 1),)
    assert arrangements(6) == ((1, 6), (2, 3), (3, 2), (6, 1))


def test_arrangements_are_measured(engine: ingot.Engine) -> None:
    found = measure_arrangements(engine, {"x": np.zeros((2, 64), np.float32)}, 2, 0.0, block=0.01)
    assert [(a.instances, a.threads) for a in found] == [(1, 2), (2, 1)]
    for a in found:      # runs side by side multiply the rate of one
        assert a.runs_per_second * a.seconds == pytest.approx(a.instances, rel=0.7)


def test_the_command_shows_the_best(engine: ingot.Engine, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    ingot.save(engine, tmp_path / "e.ingot")
    assert main(["bench", str(tmp_path / "e.ingot"), "--batch", "2", "--seconds", "0.1", "--throughput"]) == 0
    told = capsys.readouterr().out
    assert "items/s" in told and "most items per second" in told
