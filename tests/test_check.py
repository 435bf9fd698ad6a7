"""`ingot check` after the build: against ONNX, against a framework, with pre-processing; and the bisection."""
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

import ingot
from ingot.cli import main
from ingot.compiler.check import check_engine
from ingot.compiler.divergence import divergence
from ingot.compiler.intake import Extras
from ingot.errors import InputError
from ingot.frontend.onnx import onnx_from_graph
from ingot.graph import parse
from ingot.ops import infer
from ingot.ops.reference import run_graph
from ingot.passes import optimize
from ingot.runtime.session import Session
from ingot.verify import Probe, bisect, random_feeds
from ingot.verify.bisect import NONE, windows

FAST = ingot.BuildOptions(tune=False)
pytestmark = [pytest.mark.cpu, pytest.mark.filterwarnings("ignore")]
CHAIN = """
    symbol N: 1..3..8
    input x: f32[N,64]
    const w: f32[64,48]
    const v: f32[48,32]
    const u: f32[32,16]
    a = MatMul(x, w)
    b = Relu(a)
    c = MatMul(b, v)
    d = Sigmoid(c)
    e = MatMul(d, u)
    return e
"""
PYTHON = """
import torch
class Net(torch.nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.conv, self.head = torch.nn.Conv2d(3, 4, 3), torch.nn.Linear(4, 5)
        self.example_input_array = torch.randn(1, 3, 32, 32)
    def forward(self, image):
        return self.head(torch.relu(self.conv(image)).mean((2, 3)))
def make():
    return Net().eval()
def other():
    net = Net().eval()
    net.head.weight.data *= 1.01
    return net
"""


def chain():
    graph = parse(CHAIN, infer)
    rng = np.random.default_rng(0)
    return replace(graph, constants={k: (rng.standard_normal(a.shape) / 8).astype(np.float32)
                                     for k, a in graph.constants.items()})


def probe_of(graph) -> Probe:
    return Probe("random", random_feeds(graph, {"N": 3}, 0), {"N": 3})


def test_windows_keep_to_their_size_and_to_the_order_of_nodes():
    graph = chain()
    parts = windows(graph, ("a", "b", "c", "d", "e"), {"N": 3}, limit=3 * 48 * 4)
    assert parts == [("a",), ("b",), ("c",), ("d", "e")]
    assert windows(graph, ("e", "a"), {"N": 3}) == [("a", "e")]


def test_bisection_names_the_first_node_and_runs_the_engine_once_per_window():
    graph, calls = chain(), []
    probe = probe_of(graph)
    right = run_graph(replace(graph, outputs=("a", "b", "c", "d", "e")), probe.feeds)

    def run(names):
        calls.append(names)
        return {n: right[n] + (0.01 if n in ("c", "d", "e") else 0) for n in names}

    told = bisect(run, graph, ("b", "c", "e"), probe, limit=1)
    assert told.startswith("MatMul 'c'")
    assert calls == [("b",), ("c",)]
    assert bisect(lambda names: right, graph, ("b", "c", "e"), probe) == NONE


def test_the_engine_s_own_kernels_are_bisected_in_small_windows():
    graph = chain()
    engine = ingot.build(graph, options=FAST)
    session = Session(engine)
    optimized = optimize(graph, session.variant.target)
    assert divergence(engine, session.variant, optimized, probe_of(graph), limit=1) == NONE
    # the engine of other weights: its second product is the first to differ
    wrong = replace(graph, constants={**graph.constants, "v": graph.constants["v"] * 1.1})
    told = divergence(engine, session.variant, optimize(wrong, session.variant.target), probe_of(graph), limit=1)
    assert told == NONE                     # both sides are that graph's: what is compared are kernels, not models
    values = Session(ingot.build(replace(wrong, outputs=("b", "c", "e")), options=FAST)).run(probe_of(graph).feeds)
    assert bisect(lambda names: values, graph, ("b", "c", "e"), probe_of(graph), limit=1).startswith("MatMul 'c'")


@pytest.fixture
def net(tmp_path: Path) -> str:
    (tmp_path / "net.py").write_text(PYTHON)
    return str(tmp_path / "net.py")


def test_a_module_is_built_and_checked_on_the_command_line(net, tmp_path, capsys):
    engine = str(tmp_path / "net.ingot")
    assert main(["build", f"{net}:make", "--no-tune", "--shapes", "image:batch=1..2..4x3x32x32"]) == 0
    assert "export by torch.export: right" in capsys.readouterr().out
    assert main(["check", f"{net}:make", engine, "--bisect"]) == 0
    out = capsys.readouterr().out
    assert "against PyTorch" in out and "verified: " in out
    assert main(["check", f"{net}:other", engine]) == 3
    assert "differs from PyTorch" in capsys.readouterr().err


def test_pre_processing_is_named_again_for_the_check(net, tmp_path, capsys):
    engine = str(tmp_path / "net.ingot")
    assert main(["build", f"{net}:make", "--no-tune", "--preprocess", "imagenet:40x48"]) == 0
    assert main(["check", f"{net}:make", engine, "--preprocess", "imagenet:40x48"]) == 0
    assert "after imagenet:40x48" in capsys.readouterr().out
    assert main(["check", f"{net}:make", engine, "--preprocess", "unit:40x48"]) == 3
    assert main(["check", f"{net}:make", engine]) == 1
    assert "name it as in the build" in capsys.readouterr().err


def test_pre_processing_in_front_of_an_onnx_model(tmp_path):
    graph = parse("""
        symbol N: 1..2..4
        input x: f32[N,3,8,8]
        y = Relu(x)
        return y
    """, infer)
    path = tmp_path / "m.onnx"
    path.write_bytes(onnx_from_graph(graph).SerializeToString())
    engine = ingot.build(path, options=FAST, preprocess="signed:12x10")
    assert engine.verdict["passed"]
    assert check_engine(str(path), engine, extras=Extras(preprocess="signed:12x10")).passed
    assert not check_engine(str(path), engine, extras=Extras(preprocess="caffe:12x10")).passed


def test_weights_on_the_command_line(net, tmp_path):
    scope: dict = {}
    exec(compile(PYTHON, "net.py", "exec"), scope)
    torch.save({"state_dict": scope["other"]().state_dict()}, tmp_path / "a.ckpt")
    assert main(["build", f"{net}:make", "--no-tune", "--weights", str(tmp_path / "a.ckpt")]) == 0
    assert main(["check", f"{net}:other", str(tmp_path / "net.ingot")]) == 0
    assert main(["check", f"{net}:make", str(tmp_path / "net.ingot")]) == 3


def test_a_program_in_its_file_is_checked(tmp_path):
    program = torch.export.export(nn.Sequential(nn.Linear(4, 3), nn.Tanh()).eval(), (torch.randn(2, 4),))
    torch.export.save(program, tmp_path / "m.pt2")
    assert main(["build", str(tmp_path / "m.pt2"), "--no-tune"]) == 0
    assert main(["check", str(tmp_path / "m.pt2"), str(tmp_path / "m.ingot")]) == 0


def test_an_engine_with_other_inputs_is_refused():
    engine = ingot.build(chain(), options=FAST)
    with pytest.raises(InputError):
        check_engine(nn.Linear(3, 3), engine)
