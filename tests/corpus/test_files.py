"""Files that took other runtimes in: external data that leads elsewhere, versions from the future, forged exports."""
import os
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper
from torch import nn

import ingot
from ingot.compiler.check import check_engine
from ingot.errors import IngotError, ModelError, VerifyError
from ingot.frontend import load
from ingot.frontend.onnx import onnx_from_graph

FAST = ingot.BuildOptions(tune=False)
pytestmark = [pytest.mark.cpu, pytest.mark.filterwarnings("ignore")]
SECRET = np.arange(4, dtype=np.float32)


def external(folder: Path, **entries: str) -> Path:
    """A model whose four weights lie where the entries say."""
    tensor = TensorProto(name="w", data_type=TensorProto.FLOAT, dims=[4], data_location=TensorProto.EXTERNAL)
    for key, value in entries.items():
        tensor.external_data.add(key=key, value=value)
    graph = helper.make_graph(
        [helper.make_node("Add", ["x", "w"], ["y"])], "g", [helper.make_tensor_value_info("x", TensorProto.FLOAT, [4])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [4])], [tensor])
    folder.mkdir(exist_ok=True)
    path = folder / "model.onnx"
    path.write_bytes(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)]).SerializeToString())
    return path


@pytest.fixture
def secret(tmp_path: Path) -> Path:
    path = tmp_path / "secret.bin"
    path.write_bytes(SECRET.tobytes())
    return path


@pytest.mark.parametrize(("thread", "location"), [
    ("onnx#3991", "../secret.bin"), ("CVE-2022-25882", "./../secret.bin"), ("CVE-2024-27318", "sub/../../secret.bin"),
    ("CVE-2024-5187", "..\\secret.bin"), ("CVE-2025-51480", "sub/../../../{root}/secret.bin")])
def test_external_data_outside_the_folder_is_not_read(tmp_path, secret, thread, location):
    (tmp_path / "model" / "sub").mkdir(parents=True)
    with pytest.raises(ModelError, match=r"outside|no file|relative"):
        load(external(tmp_path / "model", location=location.format(root=tmp_path.name)))


def test_an_absolute_path_is_not_read(tmp_path, secret):
    """onnx#6959, and every path that starts at the root."""
    with pytest.raises(ModelError, match="not a relative path"):
        load(external(tmp_path / "model", location=str(secret)))


def test_a_symbolic_link_that_leads_out_is_not_followed(tmp_path, secret):
    """CVE-2026-27489."""
    path = external(tmp_path / "model", location="weights.bin")
    (path.parent / "weights.bin").symlink_to(secret)
    with pytest.raises(ModelError, match="outside"):
        load(path)
    (path.parent / "link").symlink_to(tmp_path, target_is_directory=True)
    with pytest.raises(ModelError, match="outside"):
        load(external(tmp_path / "model", location="link/secret.bin"))


def test_a_hard_link_is_not_read(tmp_path, secret):
    """CVE-2026-34446: no path tells that the file is another one's. A copy is read."""
    path = external(tmp_path / "model", location="weights.bin")
    weights = path.parent / "weights.bin"
    os.link(secret, weights)
    with pytest.raises(ModelError, match="hard links") as error:
        load(path)
    assert "cp 'weights.bin'" in str(error.value)
    weights.unlink()
    weights.write_bytes(secret.read_bytes())
    np.testing.assert_array_equal(load(path).constants["w"], SECRET)


@pytest.mark.parametrize("entries", [
    {"__class__": "evil"}, {"__init__": "evil"}, {"offset": "-4"}, {"length": "-1"}, {"length": str(1 << 60)},
    {"offset": str(1 << 62)}, {"offset": "four"}, {"length": "8"}])
def test_entries_that_corrupt_or_exhaust_are_refused_or_ignored(tmp_path, entries):
    """CVE-2026-34445: keys that become attributes, sizes that allocate."""
    path = external(tmp_path / "model", location="weights.bin", **entries)
    (path.parent / "weights.bin").write_bytes(SECRET.tobytes())
    if next(iter(entries)).startswith("__"):
        np.testing.assert_array_equal(load(path).constants["w"], SECRET)
    else:
        with pytest.raises(ModelError):
            load(path)


def test_writing_a_model_writes_no_other_file(tmp_path, secret):
    """CVE-2025-51480, the other direction: a location in a model that was read is not where anything is written."""
    path = external(tmp_path / "model", location="weights.bin")
    (path.parent / "weights.bin").write_bytes(SECRET.tobytes())
    before = {p: p.read_bytes() for p in tmp_path.rglob("*") if p.is_file()}
    written = onnx_from_graph(load(path))
    ingot.save(ingot.build(path, options=FAST), tmp_path / "model" / "m.ingot")
    assert all(not t.external_data for t in written.graph.initializer)
    assert {p: p.read_bytes() for p in tmp_path.rglob("*") if p.is_file() and p.suffix != ".ingot"} == before
    assert os.path.getsize(tmp_path / "model" / "m.ingot") > 0


def model_of(nodes, constants: dict, inputs: dict, opset: int = 17, ir: int = 9) -> onnx.ModelProto:
    graph = helper.make_graph(
        nodes, "g", [helper.make_tensor_value_info(n, TensorProto.FLOAT, s) for n, s in inputs.items()],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)],
        [numpy_helper.from_array(a, n) for n, a in constants.items()])
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=ir)


def test_a_bias_of_the_wrong_shape_is_named():
    """pytorch#166797: what the exporter wrote."""
    weights = {"w": np.ones((4, 3, 1, 1), np.float32), "b": np.ones(7, np.float32)}
    model = model_of([helper.make_node("Conv", ["x", "w", "b"], ["y"], name="node_Conv_649")], weights,
                     {"x": [1, 3, 8, 8]})
    with pytest.raises(ModelError) as error:
        ingot.build(model, options=FAST)
    assert "node_Conv_649" in str(error.value)


@pytest.mark.parametrize("version", [8, 11, 13, 99])
def test_the_version_of_the_format_does_not_matter(version):
    """onnxruntime#20559, #14932, #8796: unsupported IR version."""
    model = model_of([helper.make_node("Relu", ["x"], ["y"])], {}, {"x": [2, 3]}, ir=version)
    assert ingot.build(model, options=FAST).verdict["passed"]


def test_everything_that_cannot_be_read_is_told_at_once():
    """onnx-tensorrt#800, TensorRT#2625, #2756, #2866: no importer for an op, one at a time."""
    nodes = [helper.make_node("Frobnicate", ["x"], ["a"], name="first"),
             helper.make_node("Defenestrate", ["x"], ["b"], name="second"), helper.make_node("Relu", ["x"], ["y"])]
    with pytest.raises(IngotError) as error:
        ingot.build(model_of(nodes, {}, {"x": [2, 3]}), options=FAST)
    assert "Frobnicate" in str(error.value) and "Defenestrate" in str(error.value)


class Unshuffle(nn.Module):
    def forward(self, x):
        return nn.functional.pixel_unshuffle(x, 2)


def test_an_export_by_somebody_else_is_held_against_the_module():
    """pytorch#186080: SpaceToDepth in the place of PixelUnshuffle passes every check of its form."""
    model = model_of([helper.make_node("SpaceToDepth", ["x"], ["y"], blocksize=2)], {}, {"x": [1, 2, 4, 4]})
    with pytest.raises(VerifyError, match="differs from PyTorch"):
        ingot.build(model, options=FAST, original=Unshuffle())
    assert not check_engine(Unshuffle(), ingot.build(model, options=FAST)).passed


def test_batch_norm_of_training_in_an_export_is_named():
    """pytorch#169178's kind: statistics of the batch instead of the trained ones."""
    ones = np.ones(3, np.float32)
    node = helper.make_node("BatchNormalization", ["x", "s", "b", "m", "v"], ["y", "m2", "v2"], training_mode=1)
    model = model_of([node], {"s": ones, "b": ones, "m": ones * 0, "v": ones}, {"x": [2, 3, 8, 8]})
    try:
        notes = ingot.build(model, options=FAST).verdict["notes"]
    except IngotError as error:
        assert "training" in str(error)
    else:
        assert any("training mode" in str(n) for n in notes)


class Norm(nn.Module):
    """Layer norm written out: the square of what is large overflows in half precision."""

    def __init__(self, plain: bool) -> None:
        super().__init__()
        self.plain, self.norm = plain, nn.LayerNorm(64)

    def forward(self, x):
        if self.plain:
            return self.norm(x)
        mean = x.mean(-1, keepdim=True)
        return (x - mean) / ((x - mean).pow(2).mean(-1, keepdim=True) + 1e-5).sqrt()


LARGE = (torch.randn(2, 5, 64, generator=torch.Generator().manual_seed(0)) * 400).half()


def test_layer_norm_in_half_precision_does_not_overflow():
    """TensorRT#2564 and #4493: values whose squares are beyond 65504."""
    module = Norm(True).half().eval()
    engine = ingot.build(module, LARGE, FAST)
    got = next(iter(ingot.Session(engine).run(LARGE.numpy()).values()))
    with torch.no_grad():
        wanted = module(LARGE).float().numpy()
    assert np.isfinite(got).all() and engine.verdict["passed"]
    np.testing.assert_allclose(got.astype(np.float32), wanted, atol=4e-3 * np.abs(wanted).max())


def test_layer_norm_written_out_in_half_precision_is_alarmed_with_its_cause():
    """TensorRT#2564 the other way: PyTorch's own squares overflow, all becomes 0; the engine's do not."""
    with pytest.raises(VerifyError) as error:
        ingot.build(Norm(False).half().eval(), LARGE, FAST)
    assert "Pow" in str(error.value) and "overflow in half precision" in str(error.value)
    engine = ingot.build(Norm(False).half().eval(), LARGE, ingot.BuildOptions(tune=False, allow_unverified=True))
    got = next(iter(ingot.Session(engine).run(LARGE.numpy()).values())).astype(np.float32)
    with torch.no_grad():
        np.testing.assert_allclose(got, Norm(False)(LARGE.float()).numpy(), atol=4e-3)
