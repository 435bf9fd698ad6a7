"""Pre-processing inside the graph: it gives what the usual libraries give, and the engine takes decoded images."""
import numpy as np
import pytest
import torch
from torch import nn

import ingot
from ingot.errors import InputError, UnsupportedError
from ingot.frontend.preprocess import RECIPES, joined, prefix_from
from ingot.graph import Graph, parse
from ingot.ops import infer
from ingot.ops.reference import run_graph

MODEL = """
    symbol N: 1..2..4
    input x: f32[N,3,32,32]
    y = Relu(x)
    return y
"""


def prepared(spec: str, images: np.ndarray, model: str = MODEL) -> np.ndarray:
    _, prefix = prefix_from(parse(model, infer), spec)
    return next(iter(run_graph(prefix, {"x": images}).values()))


def images(height: int, width: int) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (2, height, width, 3), dtype=np.uint8)


def torch_resized(array: np.ndarray, size: tuple[int, int], mode: str) -> torch.Tensor:
    x = torch.from_numpy(array).permute(0, 3, 1, 2).to(torch.float64)
    return nn.functional.interpolate(x, size, mode=mode, antialias=True, align_corners=False)


def test_imagenet_without_resizing_is_the_usual_formula():
    data = images(32, 32)
    wanted = (data / 255.0 - np.array([0.485, 0.456, 0.406])) / np.array([0.229, 0.224, 0.225])
    np.testing.assert_allclose(prepared("imagenet", data), wanted.transpose(0, 3, 1, 2), atol=2e-6)


@pytest.mark.parametrize(("height", "width"), [(60, 80), (80, 60), (37, 41), (20, 25), (36, 36)])
def test_imagenet_resizes_the_shorter_side_and_keeps_the_middle(height, width):
    data, short = images(height, width), min(height, width)
    shorter = round(32 * 256 / 224)
    size = tuple(shorter if n == short else shorter * n // short for n in (height, width))
    whole = torch_resized(data, size, "bilinear") / 255
    top, left = (round((n - 32) / 2.0) for n in size)
    whole = whole[:, :, top:top + 32, left:left + 32]
    mean, deviation = (torch.tensor(v).reshape(1, 3, 1, 1) for v in ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)))
    np.testing.assert_allclose(prepared(f"imagenet:{height}x{width}", data), (whole - mean) / deviation, atol=1e-4)


def test_clip_is_cubic_and_stays_within_the_range_of_pixels():
    data = images(64, 48)
    whole = torch_resized(data, (42, 32), "bicubic").clamp(0, 255)[:, :, 5:37] / 255
    recipe = RECIPES["clip"]
    mean, deviation = (torch.tensor(v).reshape(1, 3, 1, 1) for v in (recipe.mean, recipe.deviation))
    np.testing.assert_allclose(prepared("clip:64x48", data), (whole - mean) / deviation, atol=1e-4)


def test_stretching_and_signs():
    data = images(50, 20)
    whole = torch_resized(data, (32, 32), "bilinear")
    np.testing.assert_allclose(prepared("unit:50x20", data), whole / 255, atol=1e-5)
    np.testing.assert_allclose(prepared("signed:50x20", data), whole / 127.5 - 1, atol=1e-5)


def test_caffe_turns_the_channels_around():
    data = images(32, 32)
    wanted = data[..., ::-1].astype(np.float64) - np.array([103.939, 116.779, 123.68])
    np.testing.assert_allclose(prepared("caffe", data), wanted.transpose(0, 3, 1, 2), atol=1e-4)


def test_a_letterbox_keeps_the_ratio_and_fills_the_rest():
    data = images(30, 60)
    made = prepared("yolo:30x60", data)
    np.testing.assert_allclose(made[:, :, 8:24], torch_resized(data, (16, 32), "bilinear") / 255, atol=1e-5)
    np.testing.assert_allclose(made[:, :, :8], 114 / 255, atol=1e-6)
    np.testing.assert_allclose(made[:, :, 24:], 114 / 255, atol=1e-6)


def test_a_model_joined_to_it_takes_images():
    graph = parse(MODEL, infer)
    name, prefix = prefix_from(graph, "imagenet:40x48")
    whole: Graph = joined(prefix, name, graph)
    assert str(whole.types["x"]) == "u8[N,40,48,3]"
    data = images(40, 48)
    wanted = run_graph(graph, {"x": next(iter(run_graph(prefix, {"x": data}).values()))})["y"]
    np.testing.assert_array_equal(run_graph(whole, {"x": data})["y"], wanted)


def test_symbolic_sizes_are_normalised_and_not_resized():
    model = "\n    symbol H: 8..16..32\n    symbol W: 8..16..32" + MODEL.replace("32,32", "H,W")
    assert prepared("imagenet", images(9, 11), model).shape == (2, 3, 9, 11)
    with pytest.raises(UnsupportedError, match="cannot be brought to HxW"):
        prepared("imagenet:9x11", images(9, 11), model)


def test_what_is_asked_wrongly_is_said():
    graph = parse(MODEL, infer)
    with pytest.raises(InputError, match="no pre-processing"):
        prefix_from(graph, "imagnet")
    with pytest.raises(InputError, match="no input 'z'"):
        prefix_from(graph, "z=unit")


@pytest.mark.cpu
def test_an_engine_takes_decoded_images_and_is_held_against_the_module():
    torch.manual_seed(0)
    module = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten()).eval()
    engine = ingot.build(module, torch.randn(1, 3, 32, 32), ingot.BuildOptions(tune=False), dynamic=True,
                         preprocess="imagenet:48x40")
    assert str(engine.graph.types["input"]) == "u8[batch,48,40,3]"
    assert engine.verdict["passed"] and "PyTorch" in str(engine.verdict["original"])
    assert not any("alarm, pre-processing" in n for n in engine.verdict["notes"])
    data = images(48, 40)
    model = MODEL.replace("Relu(x)", "Identity(x)")
    with torch.no_grad():
        wanted = module(torch.from_numpy(prepared("imagenet:48x40", data, model)))
    np.testing.assert_allclose(ingot.Session(engine).run(data)["output"], wanted, atol=1e-5)
