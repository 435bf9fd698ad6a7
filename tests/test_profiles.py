"""Several profiles in one engine: each tuned and planned for, and a run takes the one nearest to its sizes."""
from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

import ingot
from ingot.cli import main
from ingot.errors import InputError, ModelError
from ingot.frontend import parse_shapes
from ingot.frontend.shapes import read_profiles, read_spec
from ingot.graph import Symbol

pytestmark = pytest.mark.cpu
OPTIONS = ingot.BuildOptions(tune=False, threads=1)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """x[N,S,8], y[N,T,8] -> softmax(x yT) y, of three dynamic sizes."""
    rng = np.random.default_rng(0)
    node = helper.make_node
    value = helper.make_tensor_value_info
    graph = helper.make_graph(
        [node("MatMul", ["x", "w"], ["h"]), node("Transpose", ["y"], ["t"], perm=[0, 2, 1]),
         node("MatMul", ["h", "t"], ["s"]), node("Softmax", ["s"], ["p"]), node("MatMul", ["p", "y"], ["z"])], "g",
        [value("x", TensorProto.FLOAT, ["N", "S", 8]), value("y", TensorProto.FLOAT, ["N", "T", 8])],
        [value("z", TensorProto.FLOAT, ["N", "S", 8])],
        [numpy_helper.from_array(rng.standard_normal((8, 8)).astype(np.float32), "w")])
    path = tmp_path_factory.mktemp("profiles") / "m.onnx"
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9), path)
    return path


SHAPES = {"x": "N=1..1..1xS=1..4..8x8 | N=2..16..32xS=1..6..40x8", "y": "1x1..4..8x8 | 2..16..32x1..5..20x8"}


@pytest.fixture(scope="module")
def engine(model: Path) -> ingot.Engine:
    return ingot.build(model, SHAPES, OPTIONS)


def feeds(n: int, s: int, t: int) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(n + 10 * s + 100 * t)
    return {"x": rng.standard_normal((n, s, 8)).astype(np.float32),
            "y": rng.standard_normal((n, t, 8)).astype(np.float32)}


def test_every_profile_is_planned_for_itself_and_verified(engine: ingot.Engine) -> None:
    assert engine.verdict["passed"]
    assert {c["inputs"].split(",")[0] for c in engine.verdict["cases"]} == {"profile 1", "profile 2"}
    small, large = engine.variants
    assert small.program.symbols["N"] == Symbol("N", 1, 1, 1)
    assert large.program.symbols["S"] == Symbol("S", 1, 6, 40)
    assert small.plan.arena < large.plan.arena
    assert engine.graph.symbols["N"] == Symbol("N", 1, 1, 32)


@pytest.mark.parametrize("sizes", [(1, 1, 1), (1, 8, 8), (2, 1, 20), (16, 6, 5), (32, 40, 20)])
def test_a_run_is_right_in_every_profile(engine: ingot.Engine, model: Path, sizes: tuple[int, int, int]) -> None:
    session = ingot.Session(engine, 1)
    given = feeds(*sizes)
    right = onnx.reference.ReferenceEvaluator(onnx.load(model)).run(None, given)[0]
    for _ in range(2):
        np.testing.assert_allclose(session.run(given)["z"], right, rtol=1e-4, atol=1e-5)


def test_a_run_takes_the_profile_tuned_nearest_to_it(model: Path) -> None:
    shapes = {"x": "N=1..1..32x4x8 | N=1..32..32x4x8", "y": "1..1..32x4x8 | 1..32..32x4x8"}
    session = ingot.Session(ingot.build(model, shapes, OPTIONS), 1)
    small, large = session.variants
    for n, wanted in ((1, small), (2, small), (5, small), (6, large), (32, large)):
        arrays = session._arrays((feeds(n, 4, 4),))
        assert session._tuned_for(arrays).variant is wanted


def test_sizes_of_no_profile_are_refused_with_all_of_them_named(engine: ingot.Engine) -> None:
    session = ingot.Session(engine, 1)
    for n, s, t in ((1, 9, 1), (33, 1, 1), (2, 1, 21)):
        with pytest.raises(InputError) as error:
            session.run(feeds(n, s, t))
        assert "profile 1: N: 1..1..1" in str(error.value)
        assert "profile 2: N: 2..16..32" in str(error.value)
        assert "build" in error.value.mend
    assert session.run(feeds(2, 3, 4))["z"].shape == (2, 3, 8)


def test_profiles_are_kept_in_the_file(engine: ingot.Engine, tmp_path: Path) -> None:
    ingot.save(engine, tmp_path / "m.ingot")
    session = ingot.Session(ingot.load(tmp_path / "m.ingot", threads=1), 1)
    assert len(session.variants) == 2
    for sizes in ((1, 2, 3), (20, 2, 3)):
        np.testing.assert_array_equal(session.run(feeds(*sizes))["z"],
                                      ingot.Session(engine, 1).run(feeds(*sizes))["z"])


def test_given_inputs_are_verified_where_they_belong(model: Path) -> None:
    built = ingot.build(model, SHAPES, OPTIONS, inputs=[feeds(1, 3, 3), feeds(7, 3, 3)])
    given = [c["inputs"] for c in built.verdict["cases"] if "given" in c["inputs"]]
    assert given == ["profile 1, given inputs 1", "profile 2, given inputs 1"]


def test_shapes_given_several_times_on_the_command_line(model: Path, tmp_path: Path) -> None:
    words = ["build", str(model), "-o", str(tmp_path / "m.ingot"), "--no-tune"]
    for x, y in (("1x1..4x8", "1x1..4x8"), ("2..8x1..9x8", "2..8x1..9x8")):
        words += ["--shapes", f"x:{x}", "--shapes", f"y:{y}"]
    assert main(words) == 0
    assert len(ingot.Session(ingot.load(tmp_path / "m.ingot")).variants) == 2


def test_how_profiles_are_read() -> None:
    assert parse_shapes(["a:1x3", "b:5", "a:2..8x3"]) == {"a": "1x3|2..8x3", "b": "5"}
    assert read_profiles("1x3|2..8x3") == ((1, 3), (Symbol("?", 2, 8, 8), 3))
    assert read_spec("1x3|2..8x3") == (Symbol("?", 1, 1, 8), 3)
    for bad in (["a:1x3", "a:2"], ["a:1x3|"], ["a:|1"]):
        with pytest.raises(InputError):
            parse_shapes(bad)


def test_profiles_that_contradict_are_refused(model: Path) -> None:
    with pytest.raises(InputError, match="different numbers"):
        ingot.build(model, {"x": "1x4x8|2x4x8", "y": "1x4x8|1x5x8|2x6x8"}, OPTIONS)
    with pytest.raises((InputError, ModelError), match="two ranges"):
        ingot.build(model, {"x": "1..1..2x4x8|2..4x4x8", "y": "1..1..3x4x8|3..4x4x8"}, OPTIONS)
