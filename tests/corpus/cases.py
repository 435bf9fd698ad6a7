"""Models that came out wrong, or not at all, for their users: one case per thread, as small as shows it.

`right`: the build ends verified against the module's own run. Otherwise `told` are words that the error or the verdict
must hold: the cause. No weights are downloaded; where a thread needs a trained network, a small one of its kind is
made.
"""
from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn


@dataclass(frozen=True)
class Case:
    """One thread: the module, what it is called with, how it is built, and how it must end."""

    thread: str
    what: str
    make: Callable[[], nn.Module]
    example: Callable[[], Any]
    dynamic: Any = None
    opset: int | None = None
    right: bool = True
    told: tuple[str, ...] = ()
    others: tuple[Callable[[], Any], ...] = field(default=())       # further inputs it must be right on


CASES: list[Case] = []


def case(thread: str, what: str, example: Callable[[], Any], **more: Any) -> Callable[[type], type]:
    """Enter a module class as a case."""
    def enter(kind: type) -> type:
        CASES.append(Case(thread, what, lambda: kind().eval(), example, **more))
        return kind
    return enter


def noise(*shape: int) -> Callable[[], Tensor]:
    return lambda: torch.randn(*shape, generator=torch.Generator().manual_seed(sum(shape)))


# --- classifiers ------------------------------------------------------------------------------------------------------

def _zoo(name: str) -> Callable[[], nn.Module]:
    def make() -> nn.Module:
        sys.path.insert(0, str(Path(__file__).parents[2]))
        from benchmarks.zoo import ZOO
        return ZOO[name].module()
    return make


CASES += [
    Case("pytorch#169178", "ResNet-18 by the new exporter, batch dynamic: 0 % on ImageNet", _zoo("resnet18_small"),
         noise(2, 3, 64, 64), dynamic={"x": {0: "batch=1..2..8"}}, others=(noise(5, 3, 64, 64),)),
    Case("pytorch#166797", "ResNet-50 by the new exporter: a bias of the wrong shape", _zoo("resnet50_small"),
         noise(1, 3, 64, 64)),
    Case("pytorch#168224", "ResNet-50 in evaluation mode differs", _zoo("resnet50_small"), noise(1, 3, 64, 64),
         dynamic=True, others=(noise(3, 3, 64, 64),)),
    Case("pytorch#157621", "a dynamic batch, traced at one, becomes a fixed one", _zoo("mobilenetv2_small"),
         noise(1, 3, 64, 64), dynamic={"x": {0: "batch=1..1..10"}}, others=(noise(7, 3, 64, 64),)),
]


class _Classifier(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.conv, self.norm = nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8)
        self.drop, self.head = nn.Dropout(0.4), nn.Linear(8, 4)

    def forward(self, image: Tensor) -> Tensor:
        return self.head(self.drop(F.relu(self.norm(self.conv(image))).mean((2, 3))))


CASES += [
    Case("onnx#2831", "exported without eval(): dropout and batch norm of training", lambda: _Classifier().train(),
         noise(4, 3, 32, 32), told=("training mode", "drop (Dropout)", "module.eval()")),
    Case("pytorch#105661", "a U-Net left in training mode", lambda: _Classifier().train(), noise(2, 3, 32, 32),
         told=("training mode", "norm (BatchNorm2d)")),
    Case("ultralytics#13556", "the exported classifier returns other classes: normalising stayed outside",
         lambda: _Classifier().eval(), noise(1, 3, 32, 32), told=("pre-processing", "--preprocess")),
]


# --- movement of data -------------------------------------------------------------------------------------------------

@case("pytorch#186080", "PixelUnshuffle reordered by the new exporter", noise(1, 2, 8, 8))
class Unshuffle(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return nn.PixelUnshuffle(2)(x)


@case("onnxscript#2891", "pixel_unshuffle as SpaceToDepth, then shuffled back", noise(2, 3, 6, 6), dynamic=True)
class UnshuffleShuffle(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return F.pixel_shuffle(F.pixel_unshuffle(x, 3) * 2, 3)


@case("pytorch#42292", "a small tensor assigned to a slice of a large one",
      lambda: (torch.zeros(56, 6, 16), torch.rand(22, 16)))
class SliceAssignment(nn.Module):
    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        x = x.clone()
        x[:y.size(0), 0, :] = y
        return x


@case("pytorch#80271", "changes made through a view are lost", noise(2, 5, 4))
class ThroughView(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        x = x.clone()
        view = x[:, 1]
        view[:, 2] = 7.0
        view += 1
        return x * 2


@case("onnx#3781", "values put at pairs of indices",
      lambda: (torch.rand(3, 8, 8), torch.tensor([[0, 1], [3, 3], [7, 2]])))
class PutAtPairs(nn.Module):
    def forward(self, x: Tensor, at: Tensor) -> Tensor:
        x = x.clone()
        x[:, at[:, 0], at[:, 1]] = 0
        return x


@case("pytorch#110056", "an empty slice assigned: the exporter crashed", noise(2))
class EmptyAssignment(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        x = x.clone()
        x[1:-1] = 0
        return x + 1


@case("pytorch#106967b", "sums over repeated indices, from the module itself",
      lambda: (torch.randn(6, 4), torch.tensor([0, 1, 1, 2, 0, 1])), opset=15)
class GraphNet(nn.Module):
    def forward(self, messages: Tensor, node: Tensor) -> Tensor:
        index = node[:, None].expand(-1, 4)
        return torch.zeros(3, 4).scatter_add(0, index, messages)


CASES.append(Case(
    "pytorch#106967", "sums over repeated indices in a traced module: silently wrong below opset 16",
    lambda: torch.jit.trace(GraphNet(), (torch.randn(6, 4), torch.tensor([0, 1, 1, 2, 0, 1]))),
    lambda: (torch.randn(6, 4), torch.tensor([0, 1, 1, 2, 0, 1])), opset=15,
    told=("old opset", "opset 15 changes the results")))


@case("pytorch#101398", "gathers along a spiral of vertices", noise(2, 6, 3), dynamic=True)
class Spiral(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.register_buffer("order", torch.tensor([[0, 1, 2], [1, 2, 3], [2, 3, 4], [3, 4, 5], [4, 5, 0], [5, 0, 1]]))
        self.layer = nn.Linear(9, 4)

    def forward(self, x: Tensor) -> Tensor:
        found = torch.index_select(x, 1, self.order.reshape(-1))
        return self.layer(found.view(x.shape[0], 6, 9))


@case("pytorch#186146", "masked_scatter by the new exporter: values in the wrong order",
      lambda: (torch.zeros(1, 8, 4), torch.tensor([[1, 1, 0, 1, 0, 0, 1, 0]], dtype=torch.bool),
               torch.arange(16.0).reshape(4, 4) + 1))
class MaskedScatter(nn.Module):
    def forward(self, embeds: Tensor, mask: Tensor, inject: Tensor) -> Tensor:
        return embeds.masked_scatter(mask.unsqueeze(-1), inject) * 2


# --- arithmetic -------------------------------------------------------------------------------------------------------

@case("pytorch#44692", "floor_divide rounds toward zero", lambda: torch.tensor([-7.0, -5.0, -0.5, 0.5, 5.0, 7.0]))
class FloorDivide(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        halves = torch.div(x, 2, rounding_mode="floor") - torch.div(x, 2, rounding_mode="trunc")
        return torch.floor_divide(x, 3) + halves


@case("pytorch#78442", "integers floor-divided", lambda: torch.tensor([-7, -6, -5, -1, 0, 1, 5, 7]))
class IntegerFloorDivide(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x // 3


@case("pytorch#60179", "the remainder of negative numbers", lambda: torch.tensor([-7.0, -5.5, -0.5, 0.5, 5.0, 7.25]))
class Remainder(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return torch.remainder(x, 3) + torch.fmod(x, 3) + x % -2


@case("pytorch#66707", "layer norm of halves sums in halves", lambda: torch.rand(1, 5, 128) * 0.1)
class LayerNormHalf(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(128)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(x) * 4


# --- pooling, resizing, sampling, convolution -------------------------------------------------------------------------

@case("pytorch#183528", "average pooling, ceil_mode and padding counted",
      lambda: torch.arange(1.0, 17).reshape(1, 1, 4, 4), dynamic=True)
class CeilPool(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return F.avg_pool2d(x, 3, stride=2, padding=1, ceil_mode=True, count_include_pad=True)


@case("pytorch#131272", "the last window starts in the padding and is skipped", noise(1, 3, 2, 2))
class SkippedWindow(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return F.avg_pool2d(x, 3, stride=3, padding=1, ceil_mode=True)


@case("pytorch#71549", "the same of max pooling", noise(1, 3, 5, 5))
class SkippedMaxWindow(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return F.max_pool2d(x, 2, stride=3, padding=1, ceil_mode=True)


@case("pytorch#99424", "ceil_mode lost", noise(1, 9, 9, 9))
class CeilModeLost(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return F.avg_pool2d(x, 4, stride=2, ceil_mode=True)


@case("pytorch#183523", "bilinear to one pixel", noise(1, 3, 5, 7))
class OnePixel(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return F.interpolate(x, size=(1, 1), mode="bilinear", align_corners=False)


@case("pytorch#32267b", "Resize of opset 10, from the module itself", noise(1, 3, 8, 8), opset=10)
class OldResize(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return F.interpolate(x, size=(13, 17), mode="bilinear", align_corners=False)


CASES.append(Case("pytorch#32267", "Resize of opset 10 is not PyTorch's, in a traced module",
                  lambda: torch.jit.trace(OldResize(), noise(1, 3, 8, 8)()), noise(1, 3, 8, 8), opset=10,
                  told=("old opset", "opset 10 changes the results")))


@case("pytorch#27176", "sizes computed from scales that are not exact", noise(1, 3, 88, 22), right=False,
      told=("[1, 3, 120, 30] where float32[1, 3, 119, 29] was due", "inexact scale", "interpolate(x, size=...)"))
class OddScale(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return F.interpolate(x, scale_factor=120 / 88, mode="bilinear", align_corners=False)


@case("TensorRT#4646", "GridSample from opset 20 on",
      lambda: (torch.randn(2, 3, 5, 6, generator=torch.Generator().manual_seed(0)),
               torch.rand(2, 4, 4, 2, generator=torch.Generator().manual_seed(1)) * 2.2 - 1.1))
class GridSample(nn.Module):
    def forward(self, x: Tensor, grid: Tensor) -> Tensor:
        return F.grid_sample(x, grid, mode="bilinear", padding_mode="zeros", align_corners=False)


@case("pytorch#124956", "transposed convolution: a bias of the wrong shape", noise(1, 3, 10, 12), dynamic=True)
class Transposed(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.layer = nn.ConvTranspose2d(3, 6, (5, 3), stride=2, padding=1, output_padding=1, groups=3)

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x)


# --- sequences --------------------------------------------------------------------------------------------------------

@case("pytorch#110557", "a Transformer encoder with nested tensors", lambda: torch.tensor([[1, 2, 3]]),
      dynamic={"x": {0: "batch", 1: "length=1..3..12"}}, others=(lambda: torch.tensor([[4, 5, 6, 7], [1, 1, 2, 2]]),))
class Encoder(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.embed = nn.Embedding(15, 24)
        layer = nn.TransformerEncoderLayer(24, 4, 32, 0.2, batch_first=True)
        self.layers = nn.TransformerEncoder(layer, 2, enable_nested_tensor=True)

    def forward(self, x: Tensor) -> Tensor:
        return self.layers(self.embed(x))


@case("onnxruntime#19270", "a GRU that runs at the traced batch only", lambda: (torch.randn(10, 1, 20),
      torch.randn(1, 1, 20)), dynamic={"x": {1: "batch"}, "state": {1: "batch"}},
      others=(lambda: (torch.randn(10, 4, 20), torch.randn(1, 4, 20)),))
class GruBatch(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.gru = nn.GRU(20, 20)

    def forward(self, x: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
        return self.gru(x, state)


@case("pytorch#41774", "a bidirectional LSTM with a dynamic batch", noise(2, 7, 6), dynamic=True,
      others=(noise(5, 7, 6),))
class BiLstm(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.lstm = nn.LSTM(6, 5, 2, bidirectional=True, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        return self.lstm(x)[0]


@case("pytorch#191855", "both directions by hand: the time axis frozen by the new exporter", noise(2, 6, 4),
      dynamic={"x": {1: "time=2..6..12"}}, others=(noise(2, 9, 4),))
class ByHand(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.there, self.back = nn.GRU(4, 3, batch_first=True), nn.GRU(4, 3, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat((self.there(x)[0], self.back(x.flip(1))[0].flip(1)), -1)


class _Bert(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.words, self.kinds = nn.Embedding(20, 8), nn.Embedding(2, 8)

    def forward(self, input_ids: Tensor, attention_mask: Tensor, token_type_ids: Tensor) -> Tensor:
        return (self.words(input_ids) + self.kinds(token_type_ids)) * attention_mask.unsqueeze(-1)


CASES.append(Case(
    "pytorch#52667", "BERT's inputs given in another order than forward has them: names swapped",
    lambda: _Bert().eval(),
    lambda: {"input_ids": torch.tensor([[3, 4, 5]]), "token_type_ids": torch.tensor([[0, 0, 1]]),
             "attention_mask": torch.tensor([[1, 1, 0]])},
    dynamic={n: {0: "batch", 1: "length"} for n in ("input_ids", "token_type_ids", "attention_mask")}))


# --- decisions by the data --------------------------------------------------------------------------------------------

@case("wenet#1651", "a length taken from the data becomes a constant", lambda: torch.tensor([2, 5, 3]), right=False,
      told=("cases.py", "torch.where"))
class MaskFromLengths(nn.Module):
    def forward(self, lengths: Tensor) -> Tensor:
        longest = int(lengths.max().item())
        mask = torch.arange(longest)[None, :] < lengths[:, None]
        return F.pad(mask.float(), (0, 8 - longest)) if longest < 8 else mask.float()[:, :8]


@case("pytorch#157355", "a guard on data: two ways through the model", lambda: torch.ones(2, 3), right=False,
      told=("frozen branch", "if x.mean() > 0", "torch.cond"))
class Guarded(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        if x.mean() > 0:
            return x * 2
        return x - 1


@case("pytorch#153955", "an early exit by a value", lambda: torch.full((1, 4), 0.2), right=False,
      told=("frozen branch", "cases.py"))
class EarlyExit(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first, self.second = nn.Linear(4, 4), nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        score = torch.sigmoid(self.first(x))
        if float(score.max()) > 0.9:
            return score
        return torch.sigmoid(self.second(score))


@case("pytorch#143222", "the same decision, written with torch.where", lambda: torch.ones(2, 3))
class Where(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return torch.where(x.mean() > 0, x * 2, x - 1)


@case("pytorch#170180", "boxes over several grids, the sizes dynamic", noise(1, 3, 32, 32), dynamic=True)
class Grids(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.small, self.large = nn.Conv2d(3, 5, 3, 4, 1), nn.Conv2d(3, 5, 3, 8, 1)

    def forward(self, x: Tensor) -> Tensor:
        found = []
        for grid in (self.small(x), self.large(x)):
            height, width = grid.shape[2:]
            rows, columns = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
            place = torch.stack((columns, rows)).to(grid.dtype)
            boxes = torch.cat((torch.sigmoid(grid[:, :2]) + place, torch.exp(grid[:, 2:4]), grid[:, 4:]), 1)
            found.append(boxes.flatten(2).transpose(1, 2))
        return torch.cat(found, 1)


@case("pytorch#99662", "batch norm's counter changed in place while exporting", noise(2, 3, 8, 8))
class Counter(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.BatchNorm2d(3)
        self.register_buffer("calls", torch.zeros(()))

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(x) + 1


@case("pytorch#129534", "a residual of a convolution in three dimensions", noise(1, 2, 6, 6, 6), dynamic=True)
class Volume(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.norm, self.layer = nn.GroupNorm(2, 2), nn.Conv3d(2, 2, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.layer(F.relu(self.norm(x)))


@case("onnx#2831b", "non-deterministic in evaluation mode: dropout as a function", lambda: torch.ones(3, 32),
      right=False, told=("dropout draws random numbers", "cases.py"))
class DropoutFunction(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return F.dropout(x, 0.5) * 2
