"""Models in which data decides a size or the course: cut into parts, built, written, read back, run and verified."""
from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper
from onnx.reference import ReferenceEvaluator

import ingot
from ingot import BuildOptions
from ingot.cli import main
from ingot.engine import Engine
from ingot.errors import InputError, ModelError, UnsupportedError, VerifyError
from ingot.frontend import read
from ingot.graph import Flow
from ingot.ops.flow import reference_flow
from ingot.ops.selection import non_max_suppression
from ingot.runtime.flow import Driver

pytestmark = pytest.mark.cpu
F, I64, B = TensorProto.FLOAT, TensorProto.INT64, TensorProto.BOOL
QUICK = BuildOptions(tune=False)
RNG = np.random.default_rng(0)


def _model(nodes: Sequence[onnx.NodeProto], inputs: dict[str, tuple[int, Sequence[object]]], outputs: Sequence[str],
           constants: dict[str, np.ndarray] | None = None, opset: int = 21) -> onnx.ModelProto:
    graph = helper.make_graph(
        list(nodes), "g", [helper.make_tensor_value_info(n, k, list(s)) for n, (k, s) in inputs.items()],
        [helper.make_empty_tensor_value_info(o) for o in outputs],
        [numpy_helper.from_array(a, n) for n, a in (constants or {}).items()])
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=9)


def _node(op: str, inputs: str, outputs: str, **attrs: object) -> onnx.NodeProto:
    return helper.make_node(op, inputs.split(), outputs.split(), **attrs)


def _body(nodes: Sequence[onnx.NodeProto], inputs: dict[str, tuple[int, Sequence[object] | None]],
          outputs: dict[str, int]) -> onnx.GraphProto:
    return helper.make_graph(list(nodes), "body",
                             [helper.make_tensor_value_info(n, k, s) for n, (k, s) in inputs.items()],
                             [helper.make_tensor_value_info(n, k, None) for n, k in outputs.items()])


def _selecting() -> onnx.ModelProto:
    """The rows of x whose first column is positive, times a matrix: how many there are is the data's."""
    return _model([
        _node("Gather", "x zero", "first", axis=1), _node("Greater", "first nought", "positive"),
        _node("Cast", "positive", "as_number", to=I64), _node("NonZero", "as_number", "at"),
        _node("Squeeze", "at front", "places"), _node("Gather", "x places", "rows"),
        _node("MatMul", "rows w", "product"), _node("Relu", "product", "y"), _node("Shape", "y", "size"),
        _node("ReduceSum", "y", "total", keepdims=0)],
        {"x": (F, ["N", 8])}, ["y", "size", "total"],
        {"zero": np.asarray(0), "nought": np.float32(0).reshape(()), "front": np.array([0]),
         "w": RNG.standard_normal((8, 5)).astype(np.float32)})


def _session(model: onnx.ModelProto, tmp_path: Path, options: BuildOptions = QUICK, **more: object
             ) -> tuple[ingot.Session, Engine]:
    """Through a file, as users do."""
    engine = ingot.build(model, options=options, **more)
    ingot.save(engine, tmp_path / "e.ingot")
    loaded = ingot.load(tmp_path / "e.ingot")
    return ingot.Session(loaded), loaded


def _rows(count: int, positive: int) -> np.ndarray:
    x = RNG.standard_normal((count, 8)).astype(np.float32)
    x[:, 0] = -1
    x[:positive, 0] = 1
    return RNG.permutation(x)


def test_a_size_that_data_decides_may_be_none_few_or_more_than_was_planned_for(tmp_path: Path):
    model = _selecting()
    session, engine = _session(model, tmp_path, shapes={"x": "N=1..8..600x8"})
    assert engine.verdict["passed"]
    flow = read(model)
    for count, positive in ((8, 3), (8, 8), (1, 1), (8, 0), (600, 500), (40, 20), (600, 70)):
        x = _rows(count, positive)
        got, wanted = session.run({"x": x}), reference_flow(flow, {"x": x})
        assert got["y"].shape == (positive, 5) and got["size"].tolist() == [positive, 5]
        for name in wanted:
            np.testing.assert_allclose(got[name], wanted[name], rtol=1e-5, atol=1e-5)


def test_everything_around_the_call_is_compiled():
    session = ingot.Session(ingot.build(_selecting(), options=BuildOptions(tune=False, verify=False)))
    session.run({"x": _rows(8, 3)})
    assert session.referenced == ("NonZero",)
    assert all(x.native for v in session.variants for x in v.program.launches)
    assert session.arena >= 0


def test_the_report_lists_the_calls_and_strict_refuses_them():
    engine = ingot.build(_selecting(), options=BuildOptions(tune=False, verify=False))
    (call,) = engine.report["calls"]
    assert call["op"] == "NonZero" and call["runs"] == "on the reference" and "at" in call["where"]
    with pytest.raises(UnsupportedError, match="NonZero"):
        ingot.build(_selecting(), options=BuildOptions(tune=False, strict=True))


def test_a_shape_that_is_an_input_is_compiled_when_it_is_known(tmp_path: Path):
    model = _model([_node("Add", "x x", "twice"), _node("Reshape", "twice shape", "shaped"),
                    _node("Exp", "shaped", "y")], {"x": (F, [2, 6]), "shape": (I64, [3])}, ["y"])
    session, engine = _session(model, tmp_path, BuildOptions(tune=False, strict=True))
    assert not engine.verdict["cases"] and engine.verdict["skipped"]       # no shape that was made up fits
    given = {"x": RNG.standard_normal((2, 6)).astype(np.float32), "shape": np.array([3, 2, 2])}
    assert ingot.build(model, options=QUICK, inputs=[given]).verdict["passed"]
    x = RNG.standard_normal((2, 6)).astype(np.float32)
    for shape in ([1, 3, 4], [2, -1, 2], [12, 1, 1], [1, 3, 4]):
        made = session.run({"x": x, "shape": np.array(shape)})["y"]
        np.testing.assert_allclose(made, np.exp(x + x).reshape(shape), rtol=1e-5)
    assert session.referenced == ()
    with pytest.raises(ModelError, match="Reshape"):
        session.run({"x": x, "shape": np.array([5, 5, 5])})


@pytest.mark.parametrize(("begin", "end"), [(-2, 1 << 62), (-5, -1), (0, 4), (1, 6)])
def test_a_slice_that_small_sizes_cut_short_is_right_at_every_size(begin: int, end: int):
    """How many of x[-2:] there are where x has one is no expression of the size: it is cut where it runs."""
    model = _model([_node("MatMul", "x w", "t"), _node("Slice", "t begin end axis", "cut"), _node("Exp", "cut", "y")],
                   {"x": (F, ["N", "M", 4])}, ["y"], {"begin": np.array([begin]), "end": np.array([end]),
                                                     "axis": np.array([1]), "w": np.eye(4, dtype=np.float32)})
    engine = ingot.build(model, {"x": "N=1..2..3xM=1..4..9x4"}, QUICK)
    assert engine.verdict["passed"] and str(engine.flow.types["y"]) == "f32[N,data_1-1,4]"     # the other axes stay
    session = ingot.Session(engine)
    for size in (1, 2, 3, 4, 9):
        x = RNG.standard_normal((2, size, 4)).astype(np.float32)
        np.testing.assert_allclose(session.run({"x": x})["y"], np.exp(x[:, begin:end]), rtol=1e-5)
    assert session.referenced == () or begin != -2     # an empty cut runs on the reference


def test_a_branch_on_data_runs_the_one_that_is_taken(tmp_path: Path):
    then = _body([_node("MatMul", "x w", "a")], {}, {"a": F})
    other = _body([_node("Neg", "x", "n"), _node("ReduceMax", "n", "b", keepdims=1)], {}, {"b": F})
    model = _model([_node("ReduceSum", "x", "s", keepdims=0), _node("Greater", "s zero", "c"),
                    helper.make_node("If", ["c"], ["r"], then_branch=then, else_branch=other), _node("Abs", "r", "y")],
                   {"x": (F, [4, 4])}, ["y"], {"w": np.eye(4, dtype=np.float32) * 2, "zero": np.float32(0).reshape(())})
    session, engine = _session(model, tmp_path)
    assert engine.verdict["passed"]
    x = np.abs(RNG.standard_normal((4, 4))).astype(np.float32)
    np.testing.assert_allclose(session.run({"x": x})["y"], 2 * x, rtol=1e-6)
    np.testing.assert_allclose(session.run({"x": -x})["y"], [[x.max()]], rtol=1e-6)
    assert session.referenced == ()


def test_a_loop_carries_values_that_grow_and_stops_by_its_condition(tmp_path: Path):
    body = _body([_node("Mul", "v scale", "grown"), _node("Concat", "kept v", "more", axis=0),
                  _node("ReduceSum", "grown", "s", keepdims=0), _node("Less", "s limit", "go"),
                  _node("Identity", "s", "seen")],
                 {"i": (I64, []), "c": (B, []), "v": (F, [1, 3]), "kept": (F, None)},
                 {"go": B, "grown": F, "more": F, "seen": F})
    model = _model([helper.make_node("Loop", ["n", "", "x", "x"], ["last", "all", "sums"], body=body)],
                   {"n": (I64, []), "x": (F, [1, 3])}, ["last", "all", "sums"],
                   {"scale": np.float32(2).reshape(()), "limit": np.float32(50).reshape(())})
    session, _ = _session(model, tmp_path, BuildOptions(tune=False, verify=False))
    x = np.ones((1, 3), np.float32)
    for turns, done in ((3, 3), (100, 5), (0, 0)):
        got = session.run({"n": np.asarray(turns), "x": x})
        np.testing.assert_allclose(got["last"], x * 2.0**done)
        assert got["all"].shape == (done + 1, 3) and got["sums"].shape == (done,)
        np.testing.assert_allclose(got["sums"], [3 * 2.0**(k + 1) for k in range(done)])
    assert session.referenced == ()


def test_loops_inside_branches_see_the_values_around_them(tmp_path: Path):
    body = _body([_node("Add", "v shared", "w2"), _node("Identity", "c", "on")],
                 {"i": (I64, []), "c": (B, []), "v": (F, [2])}, {"on": B, "w2": F})
    then = _body([helper.make_node("Loop", ["times", "", "x"], ["a"], body=body)], {}, {"a": F})
    other = _body([_node("Identity", "shared", "b")], {}, {"b": F})
    model = _model([_node("Exp", "x", "shared"),
                    helper.make_node("If", ["flag"], ["y"], then_branch=then, else_branch=other)],
                   {"x": (F, [2]), "flag": (B, [])}, ["y"], {"times": np.asarray(3)})
    session, _ = _session(model, tmp_path)
    x = np.array([0.0, 1.0], np.float32)
    np.testing.assert_allclose(session.run({"x": x, "flag": np.asarray(True)})["y"], x + 3 * np.exp(x), rtol=1e-6)
    np.testing.assert_allclose(session.run({"x": x, "flag": np.asarray(False)})["y"], np.exp(x), rtol=1e-6)


def test_a_scan_runs_its_compiled_body_once_a_step(tmp_path: Path):
    body = _body([_node("MatMul", "h w", "p"), _node("Add", "p x", "q"), _node("Tanh", "q", "n"),
                  _node("Identity", "n", "out")], {"h": (F, [1, 4]), "x": (F, [1, 4])}, {"n": F, "out": F})
    w = RNG.standard_normal((4, 4)).astype(np.float32)
    model = _model([helper.make_node("Scan", ["start", "xs"], ["h", "ys"], body=body, num_scan_inputs=1)],
                   {"start": (F, [1, 4]), "xs": (F, ["T", 1, 4])}, ["h", "ys"], {"w": w})
    session, engine = _session(model, tmp_path)
    assert engine.verdict["passed"]
    h, xs = np.zeros((1, 4), np.float32), RNG.standard_normal((7, 1, 4)).astype(np.float32)
    got, rows = session.run({"start": h, "xs": xs}), []
    for x in xs:
        h = np.tanh(h @ w + x)
        rows.append(h)
    np.testing.assert_allclose(got["ys"], rows, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(got["h"], h, rtol=1e-4, atol=1e-5)


def test_sequences_and_optionals_go_in_and_out(tmp_path: Path):
    graph = helper.make_graph(
        [_node("SequenceInsert", "s x", "longer"), _node("SequenceAt", "longer zero", "first"),
         _node("Relu", "first", "y")],
        "g", [helper.make_tensor_sequence_value_info("s", F, None), helper.make_tensor_value_info("x", F, [3])],
        [helper.make_tensor_sequence_value_info("longer", F, None), helper.make_empty_tensor_value_info("y")],
        [numpy_helper.from_array(np.asarray(0), "zero")])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=9)
    session, engine = _session(model, tmp_path)
    assert "not every input is a tensor" in engine.verdict["skipped"][0]
    a, b = np.array([-1.0, 2.0], np.float32), np.array([1.0, 2.0, 3.0], np.float32)
    got = session.run({"s": [a], "x": b})
    assert [v.tolist() for v in got["longer"]] == [a.tolist(), b.tolist()] and got["y"].tolist() == [0.0, 2.0]
    with pytest.raises(ModelError, match="position 0 lies outside"):
        ingot.Session(ingot.build(_model([_node("SequenceEmpty", "", "e"), _node("SequenceAt", "e z", "y")],
                                         {"z": (I64, [])}, ["y"]), options=BuildOptions(tune=False, verify=False)
                                  )).run({"z": np.asarray(0)})


def test_a_wrong_engine_in_parts_does_not_pass(tmp_path: Path):
    with pytest.raises(VerifyError):
        ingot.build(_selecting(), options=QUICK, original=lambda feeds: {
            k: v + 1 for k, v in reference_flow(read(_selecting()), feeds).items()})


def test_what_does_not_fit_a_flow_is_told():
    session = ingot.Session(ingot.build(_selecting(), options=BuildOptions(tune=False, verify=False)))
    with pytest.raises(InputError, match="'x'"):
        session.run({"x": np.zeros((3, 7), np.float32)})
    with pytest.raises(InputError, match="missing"):
        session.run({})
    with pytest.raises(UnsupportedError, match="precision int8"):
        ingot.build(_selecting(), options=BuildOptions(tune=False, precision="int8"))


def test_sparse_constants_are_dense_inside():
    values = helper.make_tensor("w", F, [2], [1.5, -2.0])
    at = helper.make_tensor("at", I64, [2], [1, 5])
    graph = helper.make_graph([_node("Add", "x w", "y")], "g", [helper.make_tensor_value_info("x", F, [2, 3])],
                              [helper.make_empty_tensor_value_info("y")])
    graph.sparse_initializer.append(helper.make_sparse_tensor(values, at, [2, 3]))
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)])
    session = ingot.Session(ingot.build(model, options=QUICK))
    assert session.run({"x": np.zeros((2, 3), np.float32)})["y"].tolist() == [[0, 1.5, 0], [0, 0, -2.0]]
    graph.sparse_initializer[0].indices.int64_data[1] = 6
    with pytest.raises(ModelError, match="outside its shape"):
        ingot.build(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)]))


def test_a_flow_prints_as_one_graph_and_knows_its_pieces():
    flow = read(_selecting())
    assert isinstance(flow, Flow)
    assert [c.op for c in flow.calls] == ["NonZero"] and len(flow.parts) == 2
    assert {n.op for n in flow.graph.nodes} >= {"NonZero", "MatMul", "Gather"}


@pytest.mark.parametrize("centred", [0, 1])
@pytest.mark.parametrize("threshold", [None, 0.3])
def test_suppression_in_arrays_selects_what_the_reference_does(centred: int, threshold: float | None):
    rng = np.random.default_rng(3)
    boxes = rng.uniform(0, 1, (2, 60, 4)).astype(np.float32)
    boxes[0, 7] = boxes[0, 3]
    boxes[1, :, 2:] *= 0.2
    scores = np.round(rng.uniform(0, 1, (2, 3, 60)), 2).astype(np.float32)     # with ties
    given = [boxes, scores, np.array([9]), np.array([0.35], np.float32),
             None if threshold is None else np.array([threshold], np.float32)]
    names = ["b", "s", "n", "i", *(["t"] if threshold is not None else [])]
    node = helper.make_node("NonMaxSuppression", names, ["y"], center_point_box=centred)
    infos = [helper.make_empty_tensor_value_info(n) for n in names]
    graph = helper.make_graph([node], "g", infos, [helper.make_empty_tensor_value_info("y")])
    made = ReferenceEvaluator(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 11)]))
    wanted, = made.run(None, dict(zip(names, given, strict=False)))
    got, = non_max_suppression(given, {"center_point_box": centred})
    assert got.tolist() == np.asarray(wanted).tolist() and len(got) > 20


def test_the_command_line_takes_models_in_parts(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    onnx.save(_selecting(), tmp_path / "m.onnx")
    model, engine = str(tmp_path / "m.onnx"), str(tmp_path / "m.ingot")
    assert main(["build", model, "-o", engine, "--no-tune"]) == 0
    assert main(["inspect", engine]) == 0
    told = capsys.readouterr().out
    assert "NonZero" in told and "on the slow reference path" in told
    assert main(["check", model, engine]) == 0
    assert main(["run", engine]) == 0
    assert main(["inspect", model]) == 0


class Selecting(torch.nn.Module):
    """Rows that a mask picks: torch's exporter writes NonZero."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = torch.nn.Linear(8, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.layer(x[x[:, 0] > 0])


def test_a_module_that_selects_by_data_is_built_and_verified():
    torch.manual_seed(0)
    module = Selecting().eval()
    engine = ingot.build(module, (torch.randn(9, 8),), options=QUICK)
    assert engine.flow is not None and engine.verdict["passed"]
    x = _rows(9, 4)
    (got,) = ingot.Session(engine).run(x).values()
    np.testing.assert_allclose(got, module(torch.from_numpy(x)).detach().numpy(), rtol=1e-4, atol=1e-5)


def test_a_call_that_always_comes_in_new_forms_is_not_compiled_each_time(monkeypatch: pytest.MonkeyPatch):
    """Compiling takes tens of milliseconds: the first few forms, and later ones once they come again."""
    model = _model([_node("TopK", "x k", "v i"), _node("Exp", "v", "y")], {"x": (F, ["N", 64]), "k": (I64, [1])}, ["y"])
    session = ingot.Session(ingot.build(model, options=BuildOptions(tune=False, verify=False)))
    compiled: list[int] = []
    form = Driver._form
    monkeypatch.setattr(Driver, "_form", lambda self, call, arrays: compiled.append(1) or form(self, call, arrays))
    x = RNG.standard_normal((3, 64)).astype(np.float32)
    for k in (*range(1, 41), *[40] * 3, *range(1, 6)):
        got = session.run({"x": x, "k": np.array([k])})["y"]
        np.testing.assert_allclose(got, np.exp(-np.sort(-x, axis=1)[:, :k]), rtol=1e-5)
    assert 0 < len(compiled) <= 9           # eight at once, and the one that came again


def test_a_shape_from_the_data_needs_no_kernel(monkeypatch: pytest.MonkeyPatch):
    model = _model([_node("Reshape", "x shape", "y")], {"x": (F, ["N", 8]), "shape": (I64, [2])}, ["y"])
    session = ingot.Session(ingot.build(model, options=BuildOptions(tune=False, verify=False)))
    monkeypatch.setattr(Driver, "_form", lambda *given: pytest.fail("it is compiled"))
    x = RNG.standard_normal((3, 8)).astype(np.float32)
    for shape in ([4, 6], [-1, 3], [0, 8], [24, 1]):
        got = session.run({"x": x, "shape": np.array(shape)})["y"]
        np.testing.assert_array_equal(got, x.reshape([3, 8] if shape[0] == 0 else shape))
        assert not np.shares_memory(got, x)
    assert session.referenced == ()
