"""ONNX in and out: shapes, opsets, hostile files, everything wrong in one error, round trips."""
import random
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from onnx.reference import ReferenceEvaluator

from ingot.errors import IngotError, InputError, ModelError, UnsupportedError
from ingot.frontend import load, parse_shapes, read
from ingot.frontend.onnx import onnx_from_graph
from ingot.graph import Flow, Symbol, parse, show
from ingot.ops import OPS, OPSET, infer
from ingot.ops.reference import bindings_from, run_graph

F = TensorProto.FLOAT
Shape = Sequence[int | str | None]


def _model(nodes: Sequence[onnx.NodeProto], inputs: dict[str, Shape], outputs: Sequence[str],
           constants: dict[str, np.ndarray] | None = None, opset: int = OPSET,
           kinds: dict[str, int] | None = None) -> onnx.ModelProto:
    kinds = kinds or {}
    graph = helper.make_graph(
        list(nodes), "g", [helper.make_tensor_value_info(n, kinds.get(n, F), list(s)) for n, s in inputs.items()],
        [helper.make_empty_tensor_value_info(o) for o in outputs],
        [numpy_helper.from_array(a, n) for n, a in (constants or {}).items()])
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=10)


def _relu(*shape: int | str | None) -> onnx.ModelProto:
    return _model([helper.make_node("Relu", ["x"], ["y"])], {"x": shape}, ["y"])


# --- shapes ---

def test_named_dimensions_become_symbols_that_inputs_share():
    graph = load(_model([helper.make_node("Add", ["a", "b"], ["y"])], {"a": ["N", 4], "b": ["N", 4]}, ["y"]))
    assert str(graph.types["y"]) == "f32[N,4]"
    assert graph.symbols == {"N": Symbol("N", 1, 1, 64)}


def test_nameless_dimensions_get_a_name_each():
    graph = load(_relu(None, None, 3))
    assert str(graph.types["x"]) == "f32[x_0,x_1,3]"


def test_a_specification_gives_ranges_and_sizes():
    graph = load(_relu("N", 3, "H", "W"), parse_shapes(["x:1..8..32x3x224x10..20"]))
    assert str(graph.types["y"]) == "f32[N,3,224,W]"
    assert graph.symbols == {"N": Symbol("N", 1, 8, 32), "W": Symbol("W", 10, 20, 20)}


def test_a_size_given_to_one_input_holds_for_all_that_share_the_name():
    model = _model([helper.make_node("Add", ["a", "b"], ["y"])], {"a": ["N", 4], "b": ["N", 4]}, ["y"])
    assert str(load(model, {"b": "7x4"}).types["y"]) == "f32[7,4]"


@pytest.mark.parametrize(("spec", "wanted"), [
    ("B=2..4..8x3", "f32[B,3]"), (("B", 3), "f32[B,3]"), ((Symbol("B", 2, 4, 8), 3), "f32[B,3]"), ((5, 3), "f32[5,3]"),
    ("max=1..2x3", "f32[max,3]")])
def test_a_nameless_dimension_takes_the_given_name(spec: object, wanted: str):
    assert str(load(_relu(None, 3), {"x": spec}).types["y"]) == wanted  # type: ignore[dict-item]


@pytest.mark.parametrize(("spec", "message"), [
    ("1..8", "1 axes"), ("1..8x4", "fixes axis 1"), ("8..1x3", "min..opt..max"), ("3xx3", "cannot read"),
    ("0..1x3", "min..opt..max"), ("axb", "cannot read"), ("1..2x3x", "cannot read|ends with|axes")])
def test_a_wrong_specification_says_why(spec: str, message: str):
    with pytest.raises(InputError, match=message):
        load(_relu("N", 3), {"x": spec})


def test_contradicting_specifications_say_so():
    model = _model([helper.make_node("Add", ["a", "b"], ["y"])], {"a": ["N", 4], "b": ["N", 4]}, ["y"])
    with pytest.raises(InputError, match="two ranges"):
        load(model, {"a": "1..8x4", "b": "1..9x4"})
    with pytest.raises(InputError, match="fixed to 5 and to 6"):
        load(model, {"a": "5x4", "b": "6x4"})
    with pytest.raises(ModelError, match="no input 'c'"):
        load(model, {"c": "5x4"})


def test_bindings_are_read_from_inputs_and_contradictions_named():
    graph = parse("symbol N: 1..1..8\ninput a: f32[N,2]\ninput b: f32[2*N]\nreturn a, b", infer)
    assert bindings_from(graph, {"a": np.zeros((3, 2)), "b": np.zeros(6)}) == {"N": 3}
    with pytest.raises(InputError, match=r"axis 0 of input 'b' is 5; 2\*N is 6"):
        bindings_from(graph, {"a": np.zeros((3, 2)), "b": np.zeros(5)})
    with pytest.raises(InputError, match="axis 1 of input 'a' is 4, not 2"):
        bindings_from(graph, {"a": np.zeros((3, 4)), "b": np.zeros(6)})
    with pytest.raises(InputError, match="'b' is missing"):
        bindings_from(graph, {"a": np.zeros((3, 2))})


def test_a_symbol_that_only_stands_in_an_expression_is_solved_for():
    graph = parse("symbol H: 1..1..8\ninput x: f32[4*H+1]\nreturn x", infer)
    assert bindings_from(graph, {"x": np.zeros(13)}) == {"H": 3}
    with pytest.raises(InputError, match=r"axis 0 of input 'x' is 14; 4\*H\+1 is 13"):
        bindings_from(graph, {"x": np.zeros(14)})


# --- shape arithmetic and structure ---

def test_shape_arithmetic_ends_in_attributes_and_disappears():
    nodes = [helper.make_node("Shape", ["x"], ["s"]), helper.make_node("Gather", ["s", "zero"], ["n"]),
             helper.make_node("Unsqueeze", ["n", "axes"], ["n1"]),
             helper.make_node("Concat", ["n1", "rest"], ["shape"], axis=0),
             helper.make_node("Reshape", ["x", "shape"], ["y"])]
    graph = load(_model(nodes, {"x": ["N", 4, 6]}, ["y"],
                        {"zero": np.array(0), "axes": np.array([0]), "rest": np.array([-1])}))
    assert [(n.op, str(n.attrs["shape"])) for n in graph.nodes] == [("Reshape", "(N, -1)")]
    assert str(graph.types["y"]) == "f32[N,24]"
    assert not graph.constants


def test_functions_are_inlined_and_constant_branches_taken():
    body = helper.make_function("mine", "Twice", ["a"], ["b"], [helper.make_node("Add", ["a", "a"], ["b"])],
                                [helper.make_opsetid("", OPSET)])
    then = helper.make_graph([helper.make_node("Neg", ["t"], ["r"])], "then", [],
                             [helper.make_empty_tensor_value_info("r")])
    other = helper.make_graph([helper.make_node("Abs", ["t"], ["q"])], "else", [],
                              [helper.make_empty_tensor_value_info("q")])
    model = _model([helper.make_node("Twice", ["x"], ["t"], domain="mine"),
                    helper.make_node("If", ["c"], ["y"], then_branch=then, else_branch=other)], {"x": [3]}, ["y"],
                   {"c": np.array(False)})
    model.functions.append(body)
    model.opset_import.append(helper.make_opsetid("mine", 1))
    graph = load(model)
    assert [n.op for n in graph.nodes] == ["Add", "Abs", "Identity"]
    assert run_graph(graph, {"x": np.array([1, -2, 3], np.float32)})["y"].tolist() == [2, 4, 6]


def _with_functions(*bodies: tuple[str, list[str]]) -> onnx.ModelProto:
    model = _model([helper.make_node(bodies[-1][0], ["x"], ["y"], domain="mine")], {"x": [3]}, ["y"])
    imports = [helper.make_opsetid("", OPSET), helper.make_opsetid("mine", 1)]
    for name, called in bodies:
        nodes = [helper.make_node(op, ["a" if i == 0 else f"v{i}"], ["b" if i == len(called) - 1 else f"v{i + 1}"],
                                  domain="" if op == "Relu" else "mine") for i, op in enumerate(called)]
        model.functions.append(helper.make_function("mine", name, ["a"], ["b"], nodes, imports))
    model.opset_import.append(helper.make_opsetid("mine", 1))
    return model


def test_functions_that_unfold_without_end_are_refused():
    with pytest.raises(ModelError, match="calls itself"):
        load(_with_functions(("One", ["Two"]), ("Two", ["One"])))
    levels = [("F0", ["Relu"] * 10), *[(f"F{i}", [f"F{i - 1}"] * 10) for i in range(1, 12)]]
    with pytest.raises(ModelError, match="unfold to more than"):
        load(_with_functions(*levels))
    assert len(load(_with_functions(*levels[:3])).nodes) == 1000


def test_initializers_listed_as_inputs_are_constants():
    graph = load(_model([helper.make_node("Add", ["x", "w"], ["y"])], {"x": [2], "w": [2]}, ["y"],
                        {"w": np.ones(2, np.float32)}))
    assert graph.inputs == ("x",)


def test_automatic_padding_is_spelled_out():
    graph = load(_model([helper.make_node("Conv", ["x", "w"], ["y"], auto_pad="SAME_UPPER", strides=[2, 2])],
                        {"x": ["N", 3, 9, 8]}, ["y"], {"w": np.ones((4, 3, 3, 3), np.float32)}))
    assert dict(graph.nodes[0].attrs) == {"kernel_shape": (3, 3), "strides": (2, 2), "dilations": (1, 1),
                                          "pads": (1, 0, 1, 1)}


def test_names_that_the_text_form_cannot_hold_are_changed():
    graph = load(_model([helper.make_node("Relu", ["x"], ["a (b), c = d"]),
                         helper.make_node("Neg", ["a (b), c = d"], ["y"])], {"x": [2]}, ["y"]))
    assert show(parse(show(graph), infer)) == show(graph)


def test_an_op_without_a_declaration_of_ours_comes_in_by_onnx_inference():
    assert not OPS["LSTM"].samples
    model = _model([helper.make_node("LSTM", ["x", "w", "r"], ["y"], hidden_size=5)], {"x": [7, "N", 3]}, ["y"],
                   {"w": np.ones((1, 20, 3), np.float32) * 0.1, "r": np.ones((1, 20, 5), np.float32) * 0.1})
    graph = load(model)
    assert str(graph.types["y"]) == "f32[7,1,N,5]"
    assert run_graph(graph, {"x": np.ones((7, 2, 3), np.float32)})["y"].shape == (7, 1, 2, 5)


# --- errors ---

def test_everything_that_is_wrong_is_in_one_error():
    nodes = [helper.make_node("FusedThing", ["x"], ["b"], name="second", domain="com.microsoft"),
             helper.make_node("Relu", ["b"], ["after_b"], name="unreached"),
             helper.make_node("MatMul", ["x", "w"], ["c"], name="third"),
             helper.make_node("NoSuchOp", ["x"], ["d"], name="fourth")]
    model = _model(nodes, {"x": [2, 3]}, ["after_b", "c", "d"], {"w": np.ones((4, 4), np.float32)})
    with pytest.raises(ModelError) as caught:
        load(model)
    assert caught.value.what == "the model: 3 nodes cannot be taken"
    text = str(caught.value)
    for part in ("FusedThing 'second': ", "com.microsoft::FusedThing", "NoSuchOp 'fourth'",
                 "MatMul 'third': the inner dimensions: 3 and 4 differ"):
        assert part in text
    assert "unreached" not in text
    assert "mend:" in text


def test_where_data_decides_there_is_no_single_graph_and_the_error_says_what_cuts_it():
    nodes = [helper.make_node("NonZero", ["x"], ["a"], name="first"),
             helper.make_node("Reshape", ["x", "n"], ["d"], name="fourth")]
    model = _model(nodes, {"x": [2, 3], "n": [1]}, ["a", "d"], kinds={"n": TensorProto.INT64})
    with pytest.raises(UnsupportedError) as caught:
        load(model)
    text = str(caught.value)
    assert "NonZero 'a' (from first)" in text and "'n': i64[1]) is not known before" in text
    assert isinstance(read(model), Flow)


@pytest.mark.parametrize("node", [
    helper.make_node("Relu", ["nobody"], ["y"]), helper.make_node("Relu", ["x"], ["x"]),
    helper.make_node("NoSuchOp", ["x"], ["y"]), helper.make_node("Relu", ["x", "x"], ["y"]),
    helper.make_node("Relu", ["x"], ["y"], surprise=1), helper.make_node("Concat", ["x"], ["y"]),
    helper.make_node("Softmax", ["x"], ["y"], axis=7), helper.make_node("Cast", ["x"], ["y"], to=99)])
def test_a_broken_node_is_named(node: onnx.NodeProto):
    node.name = "culprit"
    with pytest.raises(IngotError, match=r"culprit|'x'"):
        load(_model([node], {"x": [2, 3]}, list(node.output)))


def test_an_output_nobody_makes_is_named():
    with pytest.raises(ModelError, match="output 'z'"):
        load(_model([helper.make_node("Relu", ["x"], ["y"])], {"x": [2]}, ["z"]))


@pytest.mark.parametrize("opset", [0, OPSET + 1])
def test_opsets_outside_the_range_are_refused(opset: int):
    with pytest.raises(UnsupportedError, match=f"of opset {opset}"):
        load(_model([helper.make_node("Relu", ["x"], ["y"])], {"x": [2]}, ["y"], opset=opset))


def test_what_is_no_model_is_refused(tmp_path: Path):
    whole = _relu(2, 3).SerializeToString()
    (tmp_path / "cut.onnx").write_bytes(whole[:len(whole) // 2])
    for data in (b"", b"garbage, not protobuf" * 9, whole[:len(whole) // 2]):
        with pytest.raises(ModelError, match=r"no ONNX model|no graph"):
            load(data)
    with pytest.raises(ModelError):
        load(tmp_path / "cut.onnx")
    with pytest.raises(InputError, match="no file"):
        load(tmp_path / "absent.onnx")
    with pytest.raises(InputError, match="no model Ingot can read"):
        load(42)


def test_every_truncation_of_a_model_ends_in_an_error_or_a_whole_graph():
    whole = _model([helper.make_node("Add", ["x", "w"], ["h"]), helper.make_node("Relu", ["h"], ["y"])], {"x": [2, 3]},
                   ["y"], {"w": np.arange(3, dtype=np.float32)}).SerializeToString()
    for length in range(len(whole)):
        try:
            graph = load(whole[:length])
        except IngotError:
            continue
        assert run_graph(graph, {"x": np.zeros((2, 3), np.float32)})["y"].tolist() == [[0, 1, 2]] * 2


def test_damaged_models_end_in_an_error_that_is_ours():
    nodes = [helper.make_node("Conv", ["x", "w"], ["h"], pads=[1, 1, 1, 1], name="convolution"),
             helper.make_node("MaxPool", ["h"], ["p"], kernel_shape=[2, 2]),
             helper.make_node("Resize", ["p", "", "scales"], ["r"], mode="linear"),
             helper.make_node("ReduceMean", ["r", "axes"], ["m"], keepdims=0),
             helper.make_node("Clip", ["m", "low"], ["y"])]
    whole = _model(nodes, {"x": ["N", 3, 8, 8]}, ["y"],
                   {"w": np.ones((4, 3, 3, 3), np.float32), "scales": np.array([1, 1, 2, 2], np.float32),
                    "axes": np.array([2, 3]), "low": np.array(0.5, np.float32)}).SerializeToString()
    load(whole)
    rng, refused = random.Random(0), 0
    for _ in range(4000):
        damaged = bytearray(whole)
        for _ in range(rng.choice((1, 1, 2, 5))):
            at = rng.randrange(len(damaged))
            match rng.randrange(3):
                case 0:
                    damaged[at] ^= 1 << rng.randrange(8)
                case 1:
                    del damaged[at]
                case 2:
                    damaged.insert(at, rng.randrange(256))
        try:
            load(bytes(damaged))
        except IngotError:
            refused += 1
    assert refused > 1000


@pytest.mark.parametrize("dims", [[1 << 60], [1 << 31, 1 << 31], [-1], [3]])
def test_a_tensor_that_lies_about_its_size_is_refused(dims: list[int]):
    model = _model([helper.make_node("Add", ["x", "w"], ["y"])], {"x": [2]}, ["y"], {"w": np.ones(2, np.float32)})
    del model.graph.initializer[0].dims[:]
    model.graph.initializer[0].dims.extend(dims)
    with pytest.raises(ModelError, match="tensor 'w'"):
        load(model)


def test_ranges_on_which_a_slice_or_split_makes_no_one_graph_are_told():
    model = _model([helper.make_node("Slice", ["x", "start", "end"], ["y"])], {"x": ["N", 3]}, ["y"],
                   {"start": np.array([2]), "end": np.array([5])})
    with pytest.raises(UnsupportedError, match=r"N is 1.*narrower range"):
        load(model)
    assert str(load(model, {"x": "5..9x3"}).types["y"]) == "f32[3,3]"
    nodes = [helper.make_node("Shape", ["x"], ["n"], end=1), helper.make_node("Sub", ["n", "two"], ["rest"]),
             helper.make_node("Concat", ["two", "rest"], ["sizes"], axis=0),
             helper.make_node("Split", ["x", "sizes"], ["a", "b"])]
    model = _model(nodes, {"x": ["N", 3]}, ["a", "b"], {"two": np.array([2])})
    with pytest.raises(UnsupportedError, match="the size -1 when N is 1"):
        load(model)
    assert str(load(model, {"x": "3..9x3"}).types["b"]) == "f32[N-2,3]"


def test_a_value_of_absurd_size_is_refused():
    model = _model([helper.make_node("Expand", ["x", "s"], ["y"])], {"x": [1]}, ["y"], {"s": np.array([1 << 60])})
    with pytest.raises(ModelError, match="would take"):
        load(model)
    with pytest.raises(ModelError, match="would take"):
        load(_model([helper.make_node("MatMul", ["x", "x"], ["y"])], {"x": [1 << 30, 1 << 30]}, ["y"]))


# --- external data ---

def _external(folder: Path, location: str, *, offset: int | None = None, length: int | None = None,
              data: bytes | None = np.arange(4, dtype=np.float32).tobytes()) -> Path:
    folder.mkdir(exist_ok=True)
    model = _model([helper.make_node("Add", ["x", "w"], ["y"])], {"x": [4]}, ["y"], {"w": np.zeros(4, np.float32)})
    tensor = model.graph.initializer[0]
    tensor.ClearField("raw_data")
    tensor.data_location = TensorProto.EXTERNAL
    for key, value in (("location", location), ("offset", offset), ("length", length)):
        if value is not None:
            tensor.external_data.add(key=key, value=str(value))
    if data is not None:
        (folder / "weights.bin").write_bytes(data)
    (folder / "model.onnx").write_bytes(model.SerializeToString())
    return folder / "model.onnx"


def test_external_data_beside_the_model_is_mapped(tmp_path: Path):
    graph = load(_external(tmp_path, "weights.bin", offset=0, length=16))
    assert graph.constants["w"].tolist() == [0, 1, 2, 3]
    assert isinstance(graph.constants["w"], np.memmap)


def test_external_data_cannot_leave_the_models_folder(tmp_path: Path):
    (tmp_path / "secret").write_bytes(bytes(16))
    inside = tmp_path / "inside"
    inside.mkdir()
    (inside / "link").symlink_to(tmp_path / "secret")
    (inside / "folder").symlink_to(tmp_path)
    for location in ("../secret", str(tmp_path / "secret"), "link", "folder/secret", "a/../../secret", ""):
        with pytest.raises(ModelError, match=r"outside the model's folder|not a relative path"):
            load(_external(inside, location))


@pytest.mark.parametrize(("offset", "length", "data"), [
    (8, 16, bytes(16)), (0, 8, bytes(16)), (0, 1 << 60, bytes(16)), (-4, 16, bytes(16)), (0, None, bytes(8))])
def test_external_data_must_be_all_there(tmp_path: Path, offset: int, length: int | None, data: bytes):
    with pytest.raises(ModelError, match="it needs 16 bytes"):
        load(_external(tmp_path, "weights.bin", offset=offset, length=length, data=data))


def test_missing_and_unreachable_external_data_say_so(tmp_path: Path):
    path = _external(tmp_path, "gone.bin")
    with pytest.raises(ModelError, match=r"no file 'gone.bin'"):
        load(path)
    with pytest.raises(ModelError, match="came without a folder"):
        load(path.read_bytes())


# --- writing ---

def test_a_graph_with_symbolic_attributes_reads_back_the_same():
    text = """
        symbol N: 1..8..32
        symbol S: 2..16..64
        input x: f32[N,S,8]
        const w: f32[8,4]
        h = MatMul(x, w)
        r = Reshape(h) {'shape': ('N*S', 4)}
        s = Slice(x) {'starts': (0,), 'ends': ('S-1',), 'axes': (1,)}
        p = Range() {'start': (0,), 'limit': ('S',), 'delta': (1,), 'dtype': 'i32'}
        c = Cast(p) {'to': 'f32'}
        e = Expand(c) {'shape': ('N', 'S')}
        m = MaxPool(s) {'kernel_shape': (2,), 'strides': (2,), 'dilations': (1,), 'pads': (0, 0)}
        f = Reshape(m) {'shape': (-1,)}
        k = ReduceSum(e) {'axes': (1,), 'keepdims': 0}
        t = Trilu(x) {'k': (1,)}
        q, u = TopK(x) {'k': (3,)}
        return r, s, k, f, t, q, u
        """
    graph = parse(text, infer)
    model = onnx_from_graph(graph)
    onnx.checker.check_model(model, full_check=True)
    again = load(model.SerializeToString())
    assert show(again) == show(graph)
    x = np.random.default_rng(0).standard_normal((3, 5, 8)).astype(np.float32)
    for a, b in zip(run_graph(graph, {"x": x}).values(), run_graph(again, {"x": x}).values(), strict=True):
        np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize("size", ["S//2", "(S+3)//4+N", "2*N*S-1", "(N*S+1)//(N+1)", "S-1"])
def test_symbolic_sizes_are_written_as_arithmetic_that_runs(size: str):
    graph = parse(f"symbol N: 1..2..8\nsymbol S: 2..4..9\ninput x: f32[N,S]\n"
                  f"y = ConstantOfShape() {{'shape': ('{size}', 2), 'value': 0.0, 'dtype': 'f32'}}\nreturn y", infer)
    model = onnx_from_graph(graph)
    runner = ReferenceEvaluator(model)
    for n, s in ((1, 2), (3, 7), (5, 4)):
        x = np.zeros((n, s), np.float32)
        assert runner.run(None, {"x": x})[0].shape == run_graph(graph, {"x": x})["y"].shape
    assert load(model).types == graph.types


def test_origins_survive_and_node_names_are_unique():
    graph = parse("input x: f32[2]\na = Relu(x)\nb = Neg(a)\nreturn b", infer)
    graph = replace(graph, nodes=tuple(replace(n, origin=("first", "second")) for n in graph.nodes))
    model = onnx_from_graph(graph)
    assert len({n.name for n in model.graph.node}) == 2
    assert [n.origin for n in load(model).nodes] == [("first", "second")] * 2


def test_a_blocked_graph_is_not_written():
    graph = parse("input x: f32[1,16,4,4]\ny = Reorder(x) {'layout': 'c16'}\nreturn y", infer)
    with pytest.raises(UnsupportedError, match="blocked layout"):
        onnx_from_graph(graph)
