"""More networks that Ingot is measured on, at their full size: EfficientNet-B0, a YOLO-style detector, a U-Net,
ConvNeXt-T, Swin-T and the encoder of Whisper-tiny. The first three are written out, the others are configurations of
`transformers`; weights are random."""
from __future__ import annotations

import torch
from torch import Tensor, nn
from transformers import (
    ConvNextConfig,
    ConvNextForImageClassification,
    SwinConfig,
    SwinForImageClassification,
    WhisperConfig,
)
from transformers.models.whisper.modeling_whisper import WhisperEncoder


def conv(inputs: int, outputs: int, kernel: int, stride: int = 1, groups: int = 1, act: nn.Module | None = None
         ) -> nn.Sequential:
    """Convolution, batch norm, activation (SiLU where none is named)."""
    return nn.Sequential(nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2, groups=groups, bias=False),
                         nn.BatchNorm2d(outputs), nn.SiLU() if act is None else act)


class MBConv(nn.Module):
    """EfficientNet's block: widen, depthwise, squeeze and excite, narrow."""

    def __init__(self, inputs: int, outputs: int, kernel: int, stride: int, factor: int) -> None:
        super().__init__()
        wide = inputs * factor
        self.widen = conv(inputs, wide, 1) if factor != 1 else nn.Identity()
        self.depthwise = conv(wide, wide, kernel, stride, wide)
        inner = max(1, inputs // 4)
        self.squeeze = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Conv2d(wide, inner, 1), nn.SiLU(),
                                     nn.Conv2d(inner, wide, 1), nn.Sigmoid())
        self.narrow = conv(wide, outputs, 1, act=nn.Identity())
        self.plain = stride == 1 and inputs == outputs

    def forward(self, x: Tensor) -> Tensor:
        y = self.depthwise(self.widen(x))
        y = self.narrow(y * self.squeeze(y))
        return x + y if self.plain else y


class EfficientNet(nn.Module):
    """EfficientNet-B0 (Tan and Le 2019)."""

    STAGES = ((1, 16, 1, 1, 3), (6, 24, 2, 2, 3), (6, 40, 2, 2, 5), (6, 80, 3, 2, 3), (6, 112, 3, 1, 5),
              (6, 192, 4, 2, 5), (6, 320, 1, 1, 3))

    def __init__(self, classes: int = 1000) -> None:
        super().__init__()
        layers: list[nn.Module] = [conv(3, 32, 3, 2)]
        channels = 32
        for factor, width, count, stride, kernel in self.STAGES:
            for block in range(count):
                layers.append(MBConv(channels, width, kernel, 1 if block else stride, factor))
                channels = width
        self.features = nn.Sequential(*layers, conv(channels, 1280, 1))
        self.pool, self.head = nn.AdaptiveAvgPool2d(1), nn.Linear(1280, classes)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(torch.flatten(self.pool(self.features(x)), 1))


class C2f(nn.Module):
    """A cross-stage block: half the channels pass through bottlenecks, every stage is kept and joined."""

    def __init__(self, inputs: int, outputs: int, count: int, shortcut: bool = True) -> None:
        super().__init__()
        self.half = outputs // 2
        self.first, self.last = conv(inputs, outputs, 1), conv((2 + count) * self.half, outputs, 1)
        self.blocks = nn.ModuleList(nn.Sequential(conv(self.half, self.half, 3), conv(self.half, self.half, 3))
                                    for _ in range(count))
        self.shortcut = shortcut

    def forward(self, x: Tensor) -> Tensor:
        parts = list(self.first(x).chunk(2, 1))
        for block in self.blocks:
            y = block(parts[-1])
            parts.append(parts[-1] + y if self.shortcut else y)
        return self.last(torch.cat(parts, 1))


class Yolo(nn.Module):
    """A YOLO-style detector (the shape of YOLOv8, 320 x 320): backbone, pyramid pooling, two-way neck, three heads."""

    def __init__(self, width: int = 24, outputs: int = 84) -> None:
        super().__init__()
        w = width
        self.stem = nn.Sequential(conv(3, w, 3, 2), conv(w, 2 * w, 3, 2), C2f(2 * w, 2 * w, 1),
                                  conv(2 * w, 4 * w, 3, 2), C2f(4 * w, 4 * w, 2))
        self.p4 = nn.Sequential(conv(4 * w, 8 * w, 3, 2), C2f(8 * w, 8 * w, 2))
        self.p5 = nn.Sequential(conv(8 * w, 16 * w, 3, 2), C2f(16 * w, 16 * w, 1))
        self.squeeze, self.pool = conv(16 * w, 8 * w, 1), nn.MaxPool2d(5, 1, 2)
        self.spread = conv(32 * w, 16 * w, 1)
        self.up = nn.Upsample(scale_factor=2, mode="nearest")
        self.up4, self.up3 = C2f(24 * w, 8 * w, 1, False), C2f(12 * w, 4 * w, 1, False)
        self.down3, self.down4 = conv(4 * w, 4 * w, 3, 2), conv(8 * w, 8 * w, 3, 2)
        self.mix4, self.mix5 = C2f(12 * w, 8 * w, 1, False), C2f(24 * w, 16 * w, 1, False)
        self.heads = nn.ModuleList(nn.Sequential(conv(c * w, 4 * w, 3), conv(4 * w, 4 * w, 3),
                                                 nn.Conv2d(4 * w, outputs, 1)) for c in (4, 8, 16))

    def forward(self, x: Tensor) -> Tensor:
        c3 = self.stem(x)
        c4 = self.p4(c3)
        y = self.squeeze(self.p5(c4))
        pooled = [y]
        for _ in range(3):
            pooled.append(self.pool(pooled[-1]))
        c5 = self.spread(torch.cat(pooled, 1))
        n4 = self.up4(torch.cat((self.up(c5), c4), 1))
        n3 = self.up3(torch.cat((self.up(n4), c3), 1))
        n4 = self.mix4(torch.cat((self.down3(n3), n4), 1))
        n5 = self.mix5(torch.cat((self.down4(n4), c5), 1))
        return torch.cat([h(n).flatten(2) for h, n in zip(self.heads, (n3, n4, n5), strict=True)], 2)


class UNet(nn.Module):
    """U-Net (Ronneberger et al. 2015), with padding, batch norm and half the width; 256 x 256."""

    def __init__(self, width: int = 32, depth: int = 4, classes: int = 2) -> None:
        super().__init__()

        def pair(inputs: int, outputs: int) -> nn.Sequential:
            return nn.Sequential(conv(inputs, outputs, 3, act=nn.ReLU()), conv(outputs, outputs, 3, act=nn.ReLU()))

        widths = [width << k for k in range(depth + 1)]
        self.down = nn.ModuleList(pair(i, o) for i, o in zip([3, *widths], widths, strict=False))
        self.up = nn.ModuleList(nn.ConvTranspose2d(2 * o, o, 2, 2) for o in widths[-2::-1])
        self.join = nn.ModuleList(pair(2 * o, o) for o in widths[-2::-1])
        self.pool, self.head = nn.MaxPool2d(2), nn.Conv2d(width, classes, 1)

    def forward(self, x: Tensor) -> Tensor:
        kept = []
        for block in self.down[:-1]:
            x = block(x)
            kept.append(x)
            x = self.pool(x)
        x = self.down[-1](x)
        for up, join, skip in zip(self.up, self.join, reversed(kept), strict=True):
            x = join(torch.cat((skip, up(x)), 1))
        return self.head(x)


class ConvNext(nn.Module):
    """ConvNeXt-T (Liu et al. 2022): pixels -> logits."""

    def __init__(self) -> None:
        super().__init__()
        self.model = ConvNextForImageClassification(ConvNextConfig(num_labels=1000))

    def forward(self, pixels: Tensor) -> Tensor:
        return self.model(pixel_values=pixels).logits


class Swin(nn.Module):
    """Swin-T (Liu et al. 2021): pixels -> logits."""

    def __init__(self) -> None:
        super().__init__()
        self.model = SwinForImageClassification(SwinConfig(num_labels=1000))

    def forward(self, pixels: Tensor) -> Tensor:
        return self.model(pixel_values=pixels).logits


class Whisper(nn.Module):
    """The encoder of Whisper-tiny (Radford et al. 2022): 80 x 3000 features of 30 seconds -> 1500 x 384."""

    def __init__(self) -> None:
        super().__init__()
        config = WhisperConfig(d_model=384, encoder_layers=4, encoder_attention_heads=6, encoder_ffn_dim=1536)
        config._attn_implementation = "sdpa"
        self.model = WhisperEncoder(config)

    def forward(self, features: Tensor) -> Tensor:
        return self.model(features).last_hidden_state
