"""LSTM, GRU and RNN: split into a product and a recurrence, and against PyTorch."""
from __future__ import annotations

from types import MappingProxyType

import numpy as np
import pytest

from ingot.graph import GraphBuilder, Node, type_of
from ingot.lower import lower
from ingot.ops import infer
from ingot.ops.recurrent import GATES
from ingot.ops.reference import run_graph
from ingot.passes import optimize
from ingot.target import Target

TARGET = Target("x86", "avx2", threads=2)
RNG = np.random.default_rng(0)
S, B, WIDE, H = 5, 3, 4, 6


def draw(*shape: int) -> np.ndarray:
    return RNG.standard_normal(shape).astype(np.float32)


@pytest.mark.parametrize("kind", GATES)
@pytest.mark.parametrize("attrs", [
    {}, {"direction": "reverse"}, {"direction": "bidirectional", "layout": 1}, {"clip": 0.5},
    {"direction": "bidirectional", "linear_before_reset": 1}, {"input_forget": 1}], ids=str)
@pytest.mark.parametrize("states", ["none", "lengths", "all"])
def test_split_or_whole_they_mean_the_same(kind: str, attrs: dict, states: str) -> None:
    if ("input_forget" in attrs and kind != "LSTM") or ("linear_before_reset" in attrs and kind != "GRU"):
        pytest.skip("not an attribute of it")
    d, g = 2 if attrs.get("direction") == "bidirectional" else 1, GATES[kind]
    turned = attrs.get("layout", 0)
    state = (B, d, H) if turned else (d, B, H)
    arrays = {"x": draw(B, S, WIDE) if turned else draw(S, B, WIDE), "w": draw(d, g * H, WIDE), "r": draw(d, g * H, H)}
    if states != "none":
        arrays |= {"b": draw(d, 2 * g * H), "n": np.array([5, 0, 3], np.int32)}
    if states == "all":
        arrays |= {"h": draw(*state)} | ({"c": draw(*state), "p": draw(d, 3 * H)} if kind == "LSTM" else {})
    build = GraphBuilder(infer)
    for name, array in arrays.items():
        build.input(name, type_of(array))
    outputs = ("y", "yh", "yc")[:3 if kind == "LSTM" else 2]
    build.add(Node(kind, tuple(arrays), outputs, MappingProxyType({"hidden_size": H, **attrs})))
    graph = build.finish(*outputs)
    after = optimize(graph, TARGET)
    assert all(n.op != kind for n in after.nodes)
    assert [x.where for x in lower(after, TARGET).launches if not x.native] == []
    want, got = run_graph(graph, arrays), run_graph(after, arrays)
    for name in outputs:
        assert np.allclose(got[name], want[name], 1e-5, 1e-6), name


@pytest.mark.parametrize("kind", GATES)
def test_the_reference_agrees_with_pytorch(kind: str) -> None:
    torch = pytest.importorskip("torch")
    module = getattr(torch.nn, kind)(WIDE, H, bidirectional=True)
    order = {"LSTM": (0, 3, 1, 2), "GRU": (1, 0, 2), "RNN": (0,)}[kind]     # ONNX's gates among PyTorch's

    def taken(name: str) -> np.ndarray:
        both = [getattr(module, f"{name}_l0{end}").detach().numpy() for end in ("", "_reverse")]
        return np.stack([np.concatenate([np.split(v, len(order))[k] for k in order]) for v in both])
    x = draw(S, B, WIDE)
    arrays = {"x": x, "w": taken("weight_ih"), "r": taken("weight_hh"),
              "b": np.concatenate([taken("bias_ih"), taken("bias_hh")], axis=1)}
    build = GraphBuilder(infer)
    for name, array in arrays.items():
        build.input(name, type_of(array))
    attrs = {"hidden_size": H, "direction": "bidirectional", **({"linear_before_reset": 1} if kind == "GRU" else {})}
    build.add(Node(kind, tuple(arrays), ("y",), MappingProxyType(attrs)))
    made = run_graph(build.finish("y"), arrays)["y"]
    wanted = module(torch.from_numpy(x))[0].detach().numpy()
    assert np.allclose(made.transpose(0, 2, 1, 3).reshape(S, B, -1), wanted, 1e-5, 1e-6)
