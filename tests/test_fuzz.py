"""Damaged files against the readers: a short run of the fuzzer, and what it has found so far."""
from __future__ import annotations

import json
import random
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

sys.path.insert(0, str(Path(__file__).parents[1]))
import ingot
from benchmarks.fuzz import (
    invented,
    maker_and_target,
    packed_engine,
    parsed_engine,
    supervise,
)
from ingot.engine import read_engine, write_engine
from ingot.errors import EngineError, IngotError, InternalError
from ingot.frontend import load
from ingot.runtime.host import host_target
from ingot.runtime.session import Session

pytestmark = [pytest.mark.cpu, pytest.mark.filterwarnings("ignore")]


@pytest.mark.parametrize("reader", ["model", "engine"])
def test_mutated_files_end_in_a_value_or_in_an_error_of_ours(reader: str, tmp_path: Path) -> None:
    make, target = maker_and_target(reader, tmp_path)
    inputs, kinds, failures = supervise(make, target, 4.0, 1, tmp_path / "failures")
    assert inputs > 100
    assert len(kinds) > 1           # not all of them were refused, nor all of them read
    assert not failures


def test_the_fuzzer_notices_what_it_looks_for(tmp_path: Path) -> None:
    def broken(raw: bytes) -> None:
        if raw[0] == 7:
            raise IndexError("planted")

    def make(rng: random.Random) -> bytes:
        return bytes([rng.randrange(10)])

    inputs, _, failures = supervise(make, broken, 0.5, 1, tmp_path / "failures")
    assert 0 < len(failures) <= inputs
    assert all("planted" in f for f in failures)


def _model(*nodes: onnx.NodeProto, opset: int = 18, functions: tuple[onnx.FunctionProto, ...] = ()) -> bytes:
    value = helper.make_tensor_value_info
    graph = helper.make_graph(nodes, "g", [value("x", TensorProto.FLOAT, ["N", 4])],
                              [value("y", TensorProto.FLOAT, None)])
    return bytes(helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=9,
                                   functions=functions).SerializeToString())


def _found_in_models() -> dict[str, bytes]:
    node = helper.make_node
    cast = node("Cast", ["x"], ["y"])
    cast.attribute.add(name="to", type=onnx.AttributeProto.GRAPH).g.name = "no type"
    text = helper.make_tensor("t", TensorProto.FLOAT, [1], [0.0])
    text.data_type, text.raw_data = TensorProto.STRING, b"1234"
    text.ClearField("float_data")
    wordy = node("Constant", [], ["y"])
    wordy.attribute.add(name="value_float", type=onnx.AttributeProto.STRING, s=b"")
    nameless = onnx.FunctionProto()
    itself = onnx.FunctionProto()
    itself.node.add(output=["a"])
    empty = numpy_helper.from_array(np.zeros(0, bool), "c")
    branch = helper.make_graph([node("Relu", ["x"], ["z"])], "b", [], [helper.make_tensor_value_info("z", 1, None)])
    choice = (node("Constant", [], ["c"], value=empty),
              node("If", ["c"], ["y"], then_branch=branch, else_branch=branch))
    grid = helper.make_node("FlexAttention", ["x", "x", "x"], ["y"], domain="ai.onnx.preview",
                            prob_mod=helper.make_graph([node("Mul", ["p", "p"], ["q"])], "m", [
                                helper.make_tensor_value_info("p", TensorProto.FLOAT, ["B", "H", "L", "S"])], [
                                helper.make_tensor_value_info("q", TensorProto.FLOAT, ["B", "H", "L", "S"])]))
    lost = helper.make_model(helper.make_graph([grid, grid], "g", [
        helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 2, 3, 4])], [
        helper.make_tensor_value_info("y", TensorProto.FLOAT, [1, 2, 3, 4])]), ir_version=13,
        opset_imports=[helper.make_opsetid("lost", 26), helper.make_opsetid("ai.onnx.preview", 1)])
    parts = node("Split", ["x"], ["y", "z"], num_outputs=(1 << 31) - 1)
    return {"a Split into two thousand million parts": _model(parts),
            "an If on nothing": _model(*choice),
            "an op to be written out in a model without the standard opset": bytes(lost.SerializeToString()),
            "two functions without a name": _model(node("Relu", ["x"], ["y"]), functions=(nameless, nameless)),
            "a function without a name calls itself": _model(node("Relu", ["x"], ["y"]), functions=(itself,)),
            "TopK of opset 9 without k": _model(node("TopK", ["x"], ["y", "i"]), opset=9),
            "Cast to a graph": _model(cast),
            "an If without a condition": _model(node("If", [], ["y"])),
            "texts in raw bytes": _model(node("Constant", [], ["y"], value=text)),
            "a number that is a text": _model(wordy)}


@pytest.mark.parametrize("what", _found_in_models())
def test_models_that_once_ended_in_a_traceback(what: str) -> None:
    with pytest.raises(IngotError) as error:
        load(_found_in_models()[what])
    assert not isinstance(error.value, InternalError)


@pytest.fixture(scope="module")
def engine_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("fuzz") / "m.ingot"
    ingot.save(ingot.build(next(iter(invented())), options=ingot.BuildOptions(tune=False, verify=False)), path)
    return path


def _changed(file: Path, into: Path, change: object) -> Path:
    text, sections = parsed_engine(file.read_bytes())
    manifest = json.loads(text)
    change(manifest)                # type: ignore[operator]
    into.write_bytes(packed_engine(json.dumps(manifest, separators=(",", ":")).encode(), sections))
    return into


def _no_threads(manifest: dict) -> None:
    manifest["variants"][0]["target"][5] = 0


def _a_launch_that_writes_nothing(manifest: dict) -> None:
    manifest["variants"][0]["program"]["launches"][0][2] = []


def _an_unknown_symbol(manifest: dict) -> None:
    types = manifest["variants"][0]["program"]["types"]
    types[0][1] = types[0][1].replace("N", "E")


def _a_huge_arena(manifest: dict) -> None:
    manifest["variants"][0]["plan"]["arena"] = 1 << 63


@pytest.mark.parametrize("change", [_no_threads, _a_launch_that_writes_nothing, _an_unknown_symbol, _a_huge_arena])
def test_engines_that_once_ended_in_a_traceback(change: object, engine_file: Path, tmp_path: Path) -> None:
    file = _changed(engine_file, tmp_path / "c.ingot", change)
    with pytest.raises(EngineError):
        Session(read_engine(file))


def test_code_is_made_for_this_device_whatever_features_a_file_names(engine_file: Path, tmp_path: Path) -> None:
    engine = read_engine(engine_file)
    variant = engine.variants[0].opened         # type: ignore[union-attr]
    for feature in ("rdr", "", "amx-fp16"):
        other = replace(variant.target, features=variant.target.features | {feature})
        write_engine(replace(engine, variants=(replace(variant, target=other),)), tmp_path / "f.ingot")
        assert read_engine(tmp_path / "f.ingot").variant_for(host_target()) is None
        found = Session(ingot.load(tmp_path / "f.ingot"))       # with a variant of its own
        assert np.isfinite(found.run({"x": np.ones((1, 3, 8, 8), np.float32)})["y"]).all()
