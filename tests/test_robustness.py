"""Whatever is damaged, foreign, hostile or wrong ends in a right answer or in a clear error with a mend: end to end."""
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

import ingot
from ingot.cli import main
from ingot.engine import read_engine, write_engine
from ingot.errors import EngineError, InputError, ModelError, UnsupportedError, VerifyError
from ingot.kernels import TACTICS, Tactic
from ingot.kernels.tactic import able
from ingot.runtime.host import host_target
from ingot.target import Target

pytestmark = pytest.mark.cpu
SHAPES = {"x": "N=1..4..8x3x12x12"}


def small_cnn(path: Path, scale: float = 1.0) -> Path:
    """x[N,3,12,12] -> Conv, Relu, pooling over the plane, Gemm -> y[N,7]."""
    rng = np.random.default_rng(3)
    weights = {"w": rng.standard_normal((20, 3, 3, 3)) * 0.2 * scale, "b": rng.standard_normal(20),
               "v": rng.standard_normal((7, 20)), "c": rng.standard_normal(7)}
    nodes = [helper.make_node("Conv", ["x", "w", "b"], ["h"], name="conv", pads=[1, 1, 1, 1]),
             helper.make_node("Relu", ["h"], ["r"]), helper.make_node("GlobalAveragePool", ["r"], ["p"]),
             helper.make_node("Flatten", ["p"], ["f"]), helper.make_node("Gemm", ["f", "v", "c"], ["y"], transB=1)]
    graph = helper.make_graph(
        nodes, "cnn", [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N", 3, 12, 12])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["N", 7])],
        [numpy_helper.from_array(a.astype(np.float32), n) for n, a in weights.items()])
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9), path)
    return path


def wanted(model: Path, x: np.ndarray) -> np.ndarray:
    return onnx.reference.ReferenceEvaluator(onnx.load(model)).run(None, {"x": x})[0]


def images(batch: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal((batch, 3, 12, 12)).astype(np.float32)


@pytest.fixture(autouse=True)
def own_cache(tmp_path_factory, monkeypatch):
    """Each test has a cache folder of its own."""
    folder = tmp_path_factory.mktemp("cache")
    monkeypatch.setenv("INGOT_CACHE", str(folder))
    return folder


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    """A model, and the file of an engine built from it."""
    folder = tmp_path_factory.mktemp("built")
    model = small_cnn(folder / "cnn.onnx")
    ingot.save(ingot.build(model, SHAPES, ingot.BuildOptions(tune=False)), folder / "cnn.ingot")
    return model, folder / "cnn.ingot"


def fails_well(words: list, capsys, code: int = 1) -> str:
    """The command fails with this code, with a mend and without a traceback; gives what it said."""
    assert main([str(w) for w in words]) == code
    err = capsys.readouterr().err
    assert "Traceback" not in err
    assert "mend:" in err
    return err


# --- engine files ------------------------------------------------------------------------------------------------

@pytest.mark.parametrize("share", [0.0, 0.001, 0.3, 0.7, 0.999])
def test_a_truncated_engine(built, share, tmp_path, capsys):
    raw = built[1].read_bytes()
    (tmp_path / "cut.ingot").write_bytes(raw[:int(len(raw) * share)])
    fails_well(["run", tmp_path / "cut.ingot"], capsys)


def test_a_tampered_engine_is_refused_or_still_right(built, tmp_path):
    model, file = built
    raw = bytearray(file.read_bytes())
    x = images(4)
    right, refused = wanted(model, x), 0
    for at in range(0, len(raw), max(1, len(raw) // 60)):
        changed = bytearray(raw)
        changed[at] ^= 0x41
        (tmp_path / "t.ingot").write_bytes(changed)
        try:
            found = ingot.Session(ingot.load(tmp_path / "t.ingot")).run({"x": x})["y"]
        except EngineError as error:
            assert error.mend
            refused += 1
        else:
            np.testing.assert_allclose(found, right, rtol=1e-4, atol=1e-4)
    assert refused > 30


def test_an_engine_of_an_older_format(built, tmp_path, capsys):
    raw = bytearray(built[1].read_bytes())
    version = raw.find(b"\x01\x00", 4)       # the format's number follows the magic
    raw[version] = 0
    (tmp_path / "old.ingot").write_bytes(raw)
    fails_well(["run", tmp_path / "old.ingot"], capsys)


def test_an_engine_of_another_device_runs_here_and_strict_refuses_it(built, tmp_path):
    model, file = built
    engine = read_engine(file)
    elsewhere = Target("x86", "avx2", frozenset({"avx2"}), "haswell", "A CPU that is not here", 6)
    variant = engine.variant_for(host_target())
    write_engine(replace(engine, variants=(replace(variant, target=elsewhere),)), tmp_path / "foreign.ingot")
    with pytest.raises(EngineError, match="A CPU that is not here") as error:
        ingot.load(tmp_path / "foreign.ingot", strict=True)
    assert "ingot build" in error.value.mend
    x = images(3)
    found = ingot.Session(ingot.load(tmp_path / "foreign.ingot")).run({"x": x})["y"]
    np.testing.assert_allclose(found, wanted(model, x), rtol=1e-4, atol=1e-4)


def test_something_else_under_an_engines_name(tmp_path, capsys):
    (tmp_path / "zip.ingot").write_bytes(b"PK\x03\x04" + bytes(5000))
    fails_well(["run", tmp_path / "zip.ingot"], capsys)
    fails_well(["run", tmp_path], capsys)


# --- models ------------------------------------------------------------------------------------------------------

@pytest.mark.parametrize("location", ["../secret.bin", "/etc/passwd", "sub/../../secret.bin"])
def test_external_data_outside_the_models_folder(location, tmp_path, capsys):
    (tmp_path / "secret.bin").write_bytes(bytes(4096))
    folder = tmp_path / "model"
    folder.mkdir()
    model = onnx.load(small_cnn(folder / "m.onnx"))
    tensor = model.graph.initializer[0]
    tensor.ClearField("raw_data")
    tensor.data_location = TensorProto.EXTERNAL
    for key, value in (("location", location), ("offset", "0"), ("length", "2160")):
        entry = tensor.external_data.add()
        entry.key, entry.value = key, value
    (folder / "m.onnx").write_bytes(model.SerializeToString())
    fails_well(["build", folder / "m.onnx", "--no-tune"], capsys)
    assert not (folder / "m.ingot").exists()


def test_a_profile_too_large_for_any_memory(tmp_path, capsys):
    model = small_cnn(tmp_path / "m.onnx")
    fails_well(["build", model, "--no-tune", "--shapes", "x:N=1..1..4000000000x3x12x12"], capsys)


def test_a_file_that_is_no_model(tmp_path, capsys):
    (tmp_path / "text.onnx").write_text("no model at all")
    fails_well(["build", tmp_path / "text.onnx"], capsys)


# --- inputs ------------------------------------------------------------------------------------------------------

@pytest.mark.parametrize(("given", "text"), [
    ({"X": images(2)}, "name one of: x"),
    ({}, "is missing"),
    ({"x": images(2).astype(np.float64)}, "astype"),
    ({"x": images(2)[:, :2]}, "x"),
    ({"x": images(9)}, "1..8"),
    ({"x": images(8)[:0]}, "1..8"),
    ({"x": [[1.0]]}, "numpy"),
    ({"x": images(1)[0]}, "x"),
], ids=["name", "missing", "dtype", "shape", "too many", "none", "a list", "rank"])
def test_a_wrong_input_says_what_would_be_right(built, given, text):
    session = ingot.Session(ingot.load(built[1]))
    with pytest.raises(InputError) as error:
        session.run(given)
    assert text in str(error.value)
    assert error.value.mend
    np.testing.assert_allclose(session.run({"x": images(1)})["y"], wanted(built[0], images(1)), rtol=1e-4, atol=1e-4)


def test_inputs_in_any_order_of_memory_are_right(built):
    session = ingot.Session(ingot.load(built[1]))
    x = images(8)
    for view in (x[::2], x[:, :, ::-1], np.asfortranarray(x), x.transpose(0, 1, 3, 2)):
        np.testing.assert_allclose(session.run({"x": view})["y"], wanted(built[0], np.ascontiguousarray(view)),
                                   rtol=1e-4, atol=1e-4)


def test_nan_stays_in_its_own_item(built):
    session = ingot.Session(ingot.load(built[1]))
    x = images(5)
    x[2, 1, 4, 4], x[3, 0, 0, 0] = np.nan, np.inf
    found, right = session.run({"x": x})["y"], wanted(built[0], x)
    np.testing.assert_array_equal(np.isnan(found), np.isnan(right))
    np.testing.assert_allclose(found, right, rtol=1e-4, atol=1e-4)
    assert np.isnan(found[2]).all()
    assert np.isfinite(found[[0, 1, 4]]).all()


# --- wrong kernels -----------------------------------------------------------------------------------------------

class Liar(Tactic):
    """Another tactic with its additions turned into subtractions: it is just as fast, and wrong."""

    def __init__(self, honest: Tactic) -> None:
        self.honest, self.name = honest, f"test.liar_{honest.name.partition('.')[2]}"

    def declines(self, site, target):
        if site.op not in ("Conv", "MatMul", "Gemm"):
            return "it lies about products only"
        return self.honest.declines(site, target)

    def space(self, site, target):
        return self.honest.space(site, target)

    def pack(self, site, params, target, constants):
        return self.honest.pack(site, params, target, constants)

    def emit(self, site, params, target):
        kernel = self.honest.emit(site, params, target)
        wrong = kernel.code.replace("@llvm.fma", "@llvm.lie").replace("fadd", "fsub")
        wrong = wrong.replace("@llvm.lie", "@llvm.fma").replace("fmul", "fadd")
        return replace(kernel, code=wrong)


@pytest.fixture
def liars(monkeypatch):
    """Every tactic has a liar before it."""
    honest = TACTICS["x86"]
    monkeypatch.setitem(TACTICS, "x86", tuple(t for x in honest for t in (Liar(x), x)))


def test_a_planted_wrong_kernel_never_wins(liars, tmp_path):
    model = small_cnn(tmp_path / "m.onnx")
    engine = ingot.build(model, SHAPES, ingot.BuildOptions(budget=30))
    variant = ingot.Session(engine).variant
    trials = [t for c in variant.choices.values() for t in c.trials if t.tactic.startswith("test.liar")]
    assert trials, "no liar entered the race"
    assert all(t.seconds is None and t.note for t in trials)
    assert not any(c.tactic.startswith("test.liar") for c in variant.choices.values())
    assert engine.verdict["passed"]


def test_a_wrong_kernel_that_nobody_raced_is_found_by_verification(liars, tmp_path):
    model = small_cnn(tmp_path / "m.onnx")
    with pytest.raises(VerifyError) as error:
        ingot.build(model, SHAPES, ingot.BuildOptions(tune=False))
    assert "Conv" in error.value.where or "MatMul" in error.value.where or "Gemm" in error.value.where
    assert "--allow-unverified" in error.value.mend
    kept = ingot.build(model, SHAPES, ingot.BuildOptions(tune=False, allow_unverified=True))
    assert kept.verdict["passed"] is False
    assert kept.verdict["diverged"]


def test_the_command_line_ends_with_3_where_verification_fails(liars, tmp_path, capsys):
    model = small_cnn(tmp_path / "m.onnx")
    fails_well(["build", model, "--no-tune"], capsys, 3)
    assert not (tmp_path / "m.ingot").exists()
    assert main(["build", str(model), "--no-tune", "--allow-unverified"]) == 0
    assert "NOT verified" in capsys.readouterr().out


# --- caches ------------------------------------------------------------------------------------------------------

def test_a_rebuild_from_a_warm_cache_gives_the_same_bytes(tmp_path):
    model = small_cnn(tmp_path / "m.onnx")
    ingot.save(ingot.build(model, SHAPES, ingot.BuildOptions(budget=60)), tmp_path / "a.ingot")
    ingot.save(ingot.build(model, SHAPES, ingot.BuildOptions(budget=60)), tmp_path / "b.ingot")
    assert (tmp_path / "a.ingot").read_bytes() == (tmp_path / "b.ingot").read_bytes()


def test_a_damaged_cache_costs_time_and_nothing_else(own_cache, tmp_path):
    model = small_cnn(tmp_path / "m.onnx")
    ingot.build(model, SHAPES, ingot.BuildOptions(budget=5))
    files = [p for p in own_cache.rglob("*") if p.is_file() and p.stat().st_size]
    assert files
    rng = np.random.default_rng(0)
    for path in files:
        raw = bytearray(path.read_bytes())
        raw[len(raw) // 3:] = rng.bytes(len(raw) - len(raw) // 3)
        path.write_bytes(raw)
    engine = ingot.build(model, SHAPES, ingot.BuildOptions(budget=5))
    np.testing.assert_allclose(ingot.Session(engine).run({"x": images(2)})["y"], wanted(model, images(2)),
                               rtol=1e-4, atol=1e-4)


def test_a_cache_folder_that_cannot_be_made(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("in the way")
    monkeypatch.setenv("INGOT_CACHE", str(tmp_path / "file" / "cache"))
    model = small_cnn(tmp_path / "m.onnx")
    engine = ingot.build(model, SHAPES, ingot.BuildOptions(tune=False))
    np.testing.assert_allclose(ingot.Session(engine).run({"x": images(2)})["y"], wanted(model, images(2)),
                               rtol=1e-4, atol=1e-4)


# --- interruptions -----------------------------------------------------------------------------------------------

def test_ctrl_c_keeps_the_best_engine_so_far(tmp_path):
    model = small_cnn(tmp_path / "m.onnx")
    command = [sys.executable, "-m", "ingot", "build", str(model), "--shapes", "x:N=1..8..8x3x12x12"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
                          env={**os.environ, "INGOT_CACHE": str(tmp_path / "cache"),
                               "PYTHONPATH": os.pathsep.join(sys.path)}) as process:
        assert "racing kernels" in process.stderr.readline()
        time.sleep(0.2)
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=120)
    assert process.returncode == 0, err
    assert "verified: " in out
    np.testing.assert_allclose(ingot.Session(ingot.load(tmp_path / "m.ingot")).run({"x": images(2)})["y"],
                               wanted(model, images(2)), rtol=1e-4, atol=1e-4)


def test_what_strict_refuses_is_named_with_its_reasons(tmp_path):
    """An op that no tactic serves runs on the reference path, and strict refuses it."""
    graph = helper.make_graph(
        [helper.make_node("Det", ["x"], ["y"], name="the_determinant")], "slow",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N", 3, 3])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["N"])])
    path = tmp_path / "det.onnx"
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9), path)
    engine = ingot.build(path, {"x": "N=1..2..4x3x3"}, ingot.BuildOptions(tune=False))
    launch = ingot.Session(engine).variant.program.launches[0]
    assert not launch.native
    assert able(launch.site, host_target())[0] == []
    with pytest.raises(UnsupportedError, match="the_determinant|Det"):
        ingot.build(path, {"x": "N=1..2..4x3x3"}, ingot.BuildOptions(tune=False, strict=True))


def test_a_model_that_contradicts_itself_names_the_node(tmp_path):
    graph = helper.make_graph(
        [helper.make_node("MatMul", ["x", "w"], ["y"], name="the_product")], "bad",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N", 4])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["N", 2])],
        [numpy_helper.from_array(np.ones((5, 2), np.float32), "w")])
    path = tmp_path / "bad.onnx"
    path.write_bytes(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)],
                                       ir_version=9).SerializeToString())
    with pytest.raises(ModelError, match="the_product"):
        ingot.build(path)
