"""The command line, end to end on a small model: what it prints, what it writes, how it fails."""
import io
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from rich.console import Console

from ingot.cli import main
from ingot.cli.commands import rich_table
from ingot.report import Table

pytestmark = pytest.mark.cpu


def small_model(path: Path, *, wide: int = 24) -> Path:
    """x[N,16] -> MatMul, Add, Relu, MatMul -> y[N,5], with seeded weights."""
    rng = np.random.default_rng(0)
    weights = {"w": (16, wide), "b": (wide,), "v": (wide, 5)}
    nodes = [helper.make_node("MatMul", ["x", "w"], ["h"], name="first"),
             helper.make_node("Add", ["h", "b"], ["a"]), helper.make_node("Relu", ["a"], ["r"]),
             helper.make_node("MatMul", ["r", "v"], ["y"], name="second")]
    graph = helper.make_graph(
        nodes, "small", [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N", 16])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["N", 5])],
        [numpy_helper.from_array(rng.standard_normal(s).astype(np.float32), n) for n, s in weights.items()])
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9), path)
    return path


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """A model and the engine built from it."""
    folder = tmp_path_factory.mktemp("cli")
    model = small_model(folder / "small.onnx")
    assert main(["build", str(model), "--shapes", "x:N=1..2..8x16", "--budget", "2"]) == 0
    return model, folder / "small.ingot"


def told(capsys, *words: object) -> dict:
    """The JSON document a command prints."""
    assert main([*map(str, words), "--json"]) == 0
    return json.loads(capsys.readouterr().out)


def test_build_says_what_it_did(tmp_path, capsys):
    model = small_model(tmp_path / "m.onnx")
    assert main(["build", str(model), "-o", str(tmp_path / "e.ingot"), "--no-tune", "--shapes", "x:N=1..2..8x16"]) == 0
    out = capsys.readouterr().out
    assert "none on the reference path" in out
    assert "verified: " in out
    assert (tmp_path / "e.ingot").stat().st_size > 0


def test_build_in_json(tmp_path, capsys):
    model = small_model(tmp_path / "m.onnx")
    found = told(capsys, "build", model, "--no-tune", "--strict", "--check-passes", "--shapes", "x:N=1..2..8x16")
    assert found["verdict"]["passed"] is True
    assert found["plan"]["reference_path"] == []
    assert Path(found["engine"]) == tmp_path / "m.ingot"


def test_build_for_a_lower_instruction_set_level(tmp_path, capsys):
    model = small_model(tmp_path / "m.onnx")
    found = told(capsys, "build", model, "--no-tune", "--isa", "avx2", "--shapes", "x:N=1..2..8x16")
    assert found["verdict"]["passed"] is True


def test_build_against_onnxruntime_on_given_inputs(tmp_path, capsys):
    pytest.importorskip("onnxruntime")
    model = small_model(tmp_path / "m.onnx")
    np.savez(tmp_path / "in.npz", x=np.ones((3, 16), np.float32))
    found = told(capsys, "build", model, "--no-tune", "--against", "onnxruntime", "--inputs", tmp_path / "in.npz",
                 "--shapes", "x:N=1..2..8x16")
    assert found["verdict"]["original"].startswith("onnxruntime")
    assert found["verdict"]["cases"][0]["inputs"] == "given inputs 1"


def test_run_computes_what_the_model_says(files, tmp_path):
    model, engine = files
    x = np.random.default_rng(1).standard_normal((5, 16)).astype(np.float32)
    np.save(tmp_path / "x.npy", x)
    assert main(["run", str(engine), "--input", f"x={tmp_path / 'x.npy'}", "--output", str(tmp_path / "out")]) == 0
    w = {t.name: numpy_helper.to_array(t) for t in onnx.load(model).graph.initializer}
    np.testing.assert_allclose(np.load(tmp_path / "out" / "y.npy"), np.maximum(x @ w["w"] + w["b"], 0) @ w["v"],
                               rtol=1e-5, atol=1e-5)


def test_run_on_random_inputs_of_a_told_size(files, capsys):
    found = told(capsys, "run", files[1], "--size", "N=7")
    assert found["outputs"][0]["type"] == "float32[7, 5]"


def test_bench_measures_the_batches_that_fit_and_says_which_do_not(files, capsys):
    found = told(capsys, "bench", files[1], "--batch", "1,8,32", "--seconds", "0.1")
    assert [r["batch"] for r in found["latency"]] == [1, 8]
    row = found["latency"][1]
    assert 0 < row["least ms"] <= row["median ms"] <= row["p90 ms"] <= row["p99 ms"]
    assert row["per item ms"] == pytest.approx(row["median ms"] / 8)
    assert found["not_measured"] == ["batch 32: outside the engine's 1..8"]
    assert found["peak_memory"] > 0


def test_bench_beside_a_peer_says_how_far_they_are_apart(files, capsys):
    pytest.importorskip("onnxruntime")
    found = told(capsys, "bench", files[1], "--model", files[0], "--batch", "2", "--seconds", "0.1",
                 "--against", "onnxruntime")
    assert {r["runtime"] for r in found["latency"]} == {"ingot", "onnxruntime"}
    assert found["apart"]["onnxruntime at batch 2"] < 1e-5


def test_bench_beside_pytorch_takes_the_module_from_a_file(files, tmp_path, capsys):
    pytest.importorskip("torch")
    (tmp_path / "mine.py").write_text(f"""
import numpy as np, onnx, torch
from onnx import numpy_helper

def make():
    tensors = onnx.load({str(files[0])!r}).graph.initializer
    w = {{t.name: torch.from_numpy(numpy_helper.to_array(t).copy()) for t in tensors}}
    return lambda x: torch.relu(x @ w["w"] + w["b"]) @ w["v"]
""")
    found = told(capsys, "bench", files[1], "--batch", "2", "--seconds", "0.1", "--against", "torch",
                 "--torch", f"{tmp_path / 'mine.py'}:make")
    assert found["apart"]["torch at batch 2"] < 1e-5
    assert main(["bench", str(files[1]), "--against", "torch", "--torch", f"{tmp_path / 'mine.py'}:no"]) == 1
    assert "has no function" in capsys.readouterr().err


def test_check_in_json_is_one_document_also_where_it_fails(files, tmp_path, capsys):
    other = onnx.load(files[0])
    weight = other.graph.initializer[0]
    weight.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(weight) * np.float32(1.01), weight.name))
    onnx.save(other, tmp_path / "other.onnx")
    capsys.readouterr()
    assert main(["check", str(tmp_path / "other.onnx"), str(files[1]), "--json"]) == 3
    assert json.loads(capsys.readouterr().out)["passed"] is False


def test_check_passes_for_the_right_model_and_fails_for_another(files, tmp_path, capsys):
    assert main(["check", str(files[0]), str(files[1])]) == 0
    other = onnx.load(files[0])
    weight = other.graph.initializer[0]
    weight.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(weight) * np.float32(1.01), weight.name))
    onnx.save(other, tmp_path / "other.onnx")
    capsys.readouterr()
    assert main(["check", str(tmp_path / "other.onnx"), str(files[1])]) == 3
    assert "VerifyError" in capsys.readouterr().err


def test_inspect_shows_passes_race_memory_and_whys(files, capsys):
    assert main(["inspect", str(files[1]), "--race", "--memory", "--passes", "--graph"]) == 0
    out = capsys.readouterr().out
    for words in ("The race", "Memory", "Passes", "largest live set", "verified: ", "return y"):
        assert words in out
    found = told(capsys, "inspect", files[0], "--why", "fold_batchnorm")
    assert "why" in found


def test_inspect_refuses_to_show_the_race_of_a_model(files, capsys):
    assert main(["inspect", str(files[0]), "--race"]) == 1
    assert "ingot build" in capsys.readouterr().err


def test_a_terminal_shows_what_stands_in_brackets():
    console = Console(width=100, file=io.StringIO())
    console.print(rich_table(Table("t", ("kernel", "us"), (("x86.conv[size=6,rows=2]", 1.5), ("[/b]", None)))))
    assert "x86.conv[size=6,rows=2]" in console.file.getvalue()
    assert "[/b]" in console.file.getvalue()


def test_version_names_the_device(capsys):
    assert "x86" in told(capsys, "version")["device"]


@pytest.mark.parametrize(("words", "code", "text"), [
    (["build", "nowhere.onnx"], 1, "nowhere.onnx"),
    (["run", "nowhere.ingot"], 1, "nowhere.ingot"),
    (["fly"], 2, "fly"),
    (["build"], 2, "MODEL"),
    (["run", "x.ingot", "--threads", "-3"], 2, "threads"),
])
def test_errors_have_a_code_and_no_traceback(words, code, text, capsys):
    assert main(words) == code
    err = capsys.readouterr().err
    assert text in err
    assert "Traceback" not in err


@pytest.mark.parametrize(("words", "text"), [
    (["run", "ENGINE", "--input", "z=random"], "inputs: x"),
    (["run", "ENGINE", "--input", "x=missing.npy"], "missing.npy"),
    (["run", "ENGINE", "--size", "N=99"], "outside 1..8"),
    (["run", "ENGINE", "--size", "M=1"], "symbols: N"),
    (["bench", "ENGINE", "--batch", "one"], "1,8,32"),
    (["bench", "ENGINE", "--against", "tvm"], "known: torch, onnxruntime, openvino"),
    (["bench", "ENGINE", "--against", "onnxruntime"], "--model"),
    (["bench", "ENGINE", "--against", "torch"], "--torch FILE.py:NAME"),
    (["bench", "ENGINE", "--against", "torch", "--torch", "nowhere.py:make"], "nowhere.py"),
    (["inspect", "ENGINE", "--why", "no-such-rule"], "no-such-rule"),
    (["build", "MODEL", "--shapes", "x:9..1x16"], "min..opt..max"),
    (["build", "MODEL", "--against", "nobody"], "nobody"),
])
def test_a_wrong_argument_is_an_error_with_a_mend(files, words, text, capsys):
    model, engine = files
    assert main([{"ENGINE": str(engine), "MODEL": str(model)}.get(w, w) for w in words]) == 1
    err = capsys.readouterr().err
    assert text in err
    assert "mend:" in err


def test_an_error_in_json_is_json(capsys):
    assert main(["run", "nowhere.ingot", "--json"]) == 1
    assert json.loads(capsys.readouterr().out)["error"]["kind"]


def test_dump_writes_every_stage_numbered(tmp_path):
    model = small_model(tmp_path / "m.onnx")
    assert main(["build", str(model), "--no-tune", "--dump", str(tmp_path / "dump")]) == 0
    names = sorted(p.name for p in (tmp_path / "dump").iterdir())
    assert any("load" in n for n in names)
    assert any("program" in n for n in names)
    assert any("plan" in n for n in names)
    assert all(n[:2].isdigit() for n in names)


def test_the_environment_is_read_strictly(tmp_path):
    found = subprocess.run([sys.executable, "-m", "ingot", "version"], capture_output=True, text=True,
                           env={"INGOT_DMUP": "x", "PATH": "/usr/bin", "PYTHONPATH": ":".join(sys.path),
                                "HOME": str(tmp_path)}, check=False)
    assert found.returncode == 1
    assert "did you mean INGOT_DUMP" in found.stderr
