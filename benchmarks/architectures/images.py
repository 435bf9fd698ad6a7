"""Convolutional networks, written out: the published architectures, fewer and narrower layers."""
from __future__ import annotations

from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks.architectures.model import IMAGE_AXES, Architecture, Range, image, settled


def conv(inputs: int, outputs: int, kernel: int | tuple[int, int] = 3, stride: int = 1, groups: int = 1,
         act: nn.Module | None = None) -> nn.Sequential:
    """Convolution, batch norm, activation."""
    pad = tuple(k // 2 for k in kernel) if isinstance(kernel, tuple) else kernel // 2
    return nn.Sequential(nn.Conv2d(inputs, outputs, kernel, stride, pad, groups=groups, bias=False),
                         nn.BatchNorm2d(outputs), act or nn.Identity())


class Head(nn.Module):
    """Mean over the plane, then a linear layer."""

    def __init__(self, features: nn.Module, channels: int, classes: int = 10) -> None:
        super().__init__()
        self.features, self.head = features, nn.Linear(channels, classes)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.features(x).mean((2, 3)))


class Sum(nn.Module):
    """x + f(x), where wanted with a shortcut and a function after it."""

    def __init__(self, branch: nn.Module, shortcut: nn.Module | None = None, after: nn.Module | None = None) -> None:
        super().__init__()
        self.branch, self.shortcut, self.after = branch, shortcut or nn.Identity(), after or nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        return self.after(self.shortcut(x) + self.branch(x))


class Excite(nn.Module):
    """Squeeze and excite."""

    def __init__(self, channels: int, inner: int, gate: type[nn.Module] = nn.Sigmoid) -> None:
        super().__init__()
        self.down, self.up, self.gate = nn.Conv2d(channels, inner, 1), nn.Conv2d(inner, channels, 1), gate()

    def forward(self, x: Tensor) -> Tensor:
        y = F.adaptive_avg_pool2d(x, 1)
        return x * self.gate(self.up(torch.relu(self.down(y))))


def resnet() -> nn.Module:
    layers: list[nn.Module] = [conv(3, 16, 7, 2, act=nn.ReLU()), nn.MaxPool2d(3, 2, 1)]
    for inputs, width, stride in ((16, 8, 1), (32, 16, 2)):
        branch = nn.Sequential(conv(inputs, width, 1, act=nn.ReLU()), conv(width, width, 3, stride, act=nn.ReLU()),
                               conv(width, 4 * width, 1))
        layers.append(Sum(branch, conv(inputs, 4 * width, 1, stride), nn.ReLU()))
    return settled(Head(nn.Sequential(*layers), 64))


def inverted(inputs: int, wide: int, outputs: int, kernel: int, stride: int, act: type[nn.Module],
             excite: nn.Module | None = None) -> nn.Module:
    branch = nn.Sequential(conv(inputs, wide, 1, act=act()), conv(wide, wide, kernel, stride, wide, act()),
                           excite or nn.Identity(), conv(wide, outputs, 1))
    return Sum(branch) if stride == 1 and inputs == outputs else branch


def mobilenet_v2() -> nn.Module:
    return settled(Head(nn.Sequential(
        conv(3, 16, 3, 2, act=nn.ReLU6()), inverted(16, 48, 24, 3, 2, nn.ReLU6), inverted(24, 72, 24, 3, 1, nn.ReLU6),
        conv(24, 64, 1, act=nn.ReLU6())), 64))


def mobilenet_v3() -> nn.Module:
    return settled(Head(nn.Sequential(
        conv(3, 16, 3, 2, act=nn.Hardswish()),
        inverted(16, 48, 24, 5, 2, nn.Hardswish, Excite(48, 12, nn.Hardsigmoid)),
        inverted(24, 72, 24, 3, 1, nn.ReLU, Excite(72, 16, nn.Hardsigmoid)), conv(24, 64, 1, act=nn.Hardswish())), 64))


def efficientnet() -> nn.Module:
    return settled(Head(nn.Sequential(
        conv(3, 16, 3, 2, act=nn.SiLU()), inverted(16, 48, 24, 5, 2, nn.SiLU, Excite(48, 6)),
        inverted(24, 96, 24, 3, 1, nn.SiLU, Excite(96, 6)), conv(24, 80, 1, act=nn.SiLU())), 80))


class ChannelsLast(nn.Module):
    """A layer over the channels of an image."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


class Scale(nn.Module):
    """A factor per channel."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.gamma = nn.Parameter(torch.rand(channels))

    def forward(self, x: Tensor) -> Tensor:
        return x * self.gamma


def convnext() -> nn.Module:
    def block(c: int) -> nn.Module:
        inner = nn.Sequential(nn.LayerNorm(c, 1e-6), nn.Linear(c, 4 * c), nn.GELU(), nn.Linear(4 * c, c), Scale(c))
        return Sum(nn.Sequential(nn.Conv2d(c, c, 7, padding=3, groups=c), ChannelsLast(inner)))
    down = nn.Sequential(ChannelsLast(nn.LayerNorm(24, 1e-6)), nn.Conv2d(24, 48, 2, 2))
    return settled(Head(nn.Sequential(nn.Conv2d(3, 24, 4, 4), ChannelsLast(nn.LayerNorm(24, 1e-6)), block(24), down,
                                      block(48)), 48))


class Dense(nn.Module):
    """A dense block's layer: its input and what it makes of it, side by side."""

    def __init__(self, channels: int, growth: int) -> None:
        super().__init__()
        self.layer = nn.Sequential(nn.BatchNorm2d(channels), nn.ReLU(), nn.Conv2d(channels, 4 * growth, 1, bias=False),
                                   nn.BatchNorm2d(4 * growth), nn.ReLU(),
                                   nn.Conv2d(4 * growth, growth, 3, padding=1, bias=False))

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([x, self.layer(x)], 1)


def densenet() -> nn.Module:
    layers: list[nn.Module] = [conv(3, 16, 7, 2, act=nn.ReLU()), nn.MaxPool2d(3, 2, 1)]
    layers += [Dense(16 + 8 * i, 8) for i in range(3)]
    layers += [nn.BatchNorm2d(40), nn.ReLU(), nn.Conv2d(40, 20, 1, bias=False), nn.AvgPool2d(2)]
    layers += [Dense(20 + 8 * i, 8) for i in range(2)]
    return settled(Head(nn.Sequential(*layers, nn.BatchNorm2d(36), nn.ReLU()), 36))


class Branches(nn.Module):
    """Several branches over the same input, side by side."""

    def __init__(self, *branches: nn.Module) -> None:
        super().__init__()
        self.branches = nn.ModuleList(branches)

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([b(x) for b in self.branches], 1)


def inception() -> nn.Module:
    relu = nn.ReLU()
    a = Branches(conv(16, 8, 1, act=relu), nn.Sequential(conv(16, 8, 1, act=relu), conv(8, 12, 5, act=relu)),
                 nn.Sequential(conv(16, 8, 1, act=relu), conv(8, 12, 3, act=relu), conv(12, 12, 3, act=relu)),
                 nn.Sequential(nn.AvgPool2d(3, 1, 1), conv(16, 8, 1, act=relu)))
    b = Branches(conv(40, 16, 3, 2, act=relu), nn.MaxPool2d(3, 2, 1))
    c = Branches(conv(56, 16, 1, act=relu),
                 nn.Sequential(conv(56, 12, (1, 7), act=relu), conv(12, 16, (7, 1), act=relu)))
    return settled(Head(nn.Sequential(conv(3, 16, 3, 2, act=relu), a, b, c), 32))


def squeezenet() -> nn.Module:
    def fire(inputs: int, inner: int, outputs: int) -> nn.Module:
        return nn.Sequential(nn.Conv2d(inputs, inner, 1), nn.ReLU(), Branches(
            nn.Sequential(nn.Conv2d(inner, outputs, 1), nn.ReLU()),
            nn.Sequential(nn.Conv2d(inner, outputs, 3, padding=1), nn.ReLU())))
    return settled(Head(nn.Sequential(nn.Conv2d(3, 16, 3, 2), nn.ReLU(), nn.MaxPool2d(3, 2, ceil_mode=True),
                                      fire(16, 4, 16), fire(32, 8, 16), nn.MaxPool2d(3, 2, ceil_mode=True),
                                      nn.Conv2d(32, 20, 1), nn.ReLU()), 20))


class Shuffle(nn.Module):
    """ShuffleNet's unit: half the channels pass by, then the two halves are interleaved."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        half = channels // 2
        self.branch = nn.Sequential(conv(half, half, 1, act=nn.ReLU()), conv(half, half, 3, groups=half),
                                    conv(half, half, 1, act=nn.ReLU()))

    def forward(self, x: Tensor) -> Tensor:
        kept, worked = x.chunk(2, 1)
        y = torch.cat([kept, self.branch(worked)], 1)
        n, c, h, w = y.shape
        return y.view(n, 2, c // 2, h, w).transpose(1, 2).reshape(n, c, h, w)


def shufflenet() -> nn.Module:
    return settled(Head(nn.Sequential(conv(3, 24, 3, 2, act=nn.ReLU()), nn.MaxPool2d(3, 2, 1), Shuffle(24), Shuffle(24),
                                      conv(24, 48, 1, act=nn.ReLU())), 48))


class UNet(nn.Module):
    """Down, up, and what was seen on the way down beside it."""

    def __init__(self) -> None:
        super().__init__()
        relu = nn.ReLU()
        self.a = nn.Sequential(conv(3, 12, act=relu), conv(12, 12, act=relu))
        self.b = nn.Sequential(nn.MaxPool2d(2), conv(12, 24, act=relu), conv(24, 24, act=relu))
        self.c = nn.Sequential(nn.MaxPool2d(2), conv(24, 48, act=relu))
        self.up_b, self.up_a = nn.ConvTranspose2d(48, 24, 2, 2), nn.ConvTranspose2d(24, 12, 2, 2)
        self.d, self.e = conv(48, 24, act=relu), conv(24, 12, act=relu)
        self.out = nn.Conv2d(12, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        a = self.a(x)
        b = self.b(a)
        y = self.d(torch.cat([b, self.up_b(self.c(b))], 1))
        return self.out(self.e(torch.cat([a, self.up_a(y)], 1)))


class Autoencoder(nn.Module):
    """An image, a code of 16 numbers, an image."""

    def __init__(self) -> None:
        super().__init__()
        self.encode = nn.Sequential(nn.Conv2d(1, 8, 3, 2, 1), nn.ELU(), nn.Conv2d(8, 16, 3, 2, 1), nn.ELU())
        self.narrow, self.wide = nn.Linear(16 * 49, 16), nn.Linear(16, 16 * 49)
        self.decode = nn.Sequential(nn.ConvTranspose2d(16, 8, 3, 2, 1, 1), nn.ELU(),
                                    nn.ConvTranspose2d(8, 1, 3, 2, 1, 1), nn.Sigmoid())

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        code = self.narrow(self.encode(x).flatten(1))
        return self.decode(self.wide(code).view(-1, 16, 7, 7)), code


class Diffusion(nn.Module):
    """A diffusion model's U-Net in small: residual blocks that know the time, attention over the plane, up and down."""

    def __init__(self, channels: int = 32) -> None:
        super().__init__()
        c = channels
        self.stem, self.time = nn.Conv2d(4, c, 3, padding=1), nn.Sequential(nn.Linear(c, 2 * c), nn.SiLU(),
                                                                            nn.Linear(2 * c, c))
        self.n0, self.c0 = nn.GroupNorm(8, c), nn.Conv2d(c, c, 3, padding=1)
        self.n1, self.c1 = nn.GroupNorm(8, c), nn.Conv2d(c, c, 3, padding=1)
        self.norm, self.qkv, self.out = nn.GroupNorm(8, c), nn.Conv2d(c, 3 * c, 1), nn.Conv2d(c, c, 1)
        self.context, self.query = nn.Linear(24, 2 * c), nn.Conv2d(c, c, 1)
        self.down, self.up, self.last = nn.Conv2d(c, c, 3, 2, 1), nn.Conv2d(c, c, 3, padding=1), nn.Conv2d(2 * c, 4, 3,
                                                                                                          padding=1)
        self.register_buffer("rates", torch.exp(-torch.arange(c // 2) * (9.0 / (c // 2))))

    def forward(self, x: Tensor, step: Tensor, text: Tensor) -> Tensor:
        angle = step[:, None].float() * self.rates
        t = self.time(torch.cat([angle.sin(), angle.cos()], -1))
        x = first = self.stem(x)
        y = self.c0(F.silu(self.n0(x))) + t[:, :, None, None]
        x = self.down(x + self.c1(F.silu(self.n1(y))))
        n, c, h, w = x.shape
        q, k, v = self.qkv(self.norm(x)).reshape(n, 3, 4, c // 4, h * w).transpose(-1, -2).unbind(1)
        y = F.scaled_dot_product_attention(q, k, v).transpose(-1, -2).reshape(n, c, h, w)
        x = x + self.out(y)
        k, v = self.context(text).view(n, -1, 2, 4, c // 4).permute(2, 0, 3, 1, 4)
        q = self.query(x).reshape(n, 4, c // 4, h * w).transpose(-1, -2)
        x = x + F.scaled_dot_product_attention(q, k, v).transpose(-1, -2).reshape(n, c, h, w)
        x = self.up(F.interpolate(x, scale_factor=2.0, mode="nearest"))
        return self.last(torch.cat([x, first], 1))


def _diffusion_feed(rng, sizes):  # type: ignore[no-untyped-def]
    b = sizes["batch"]
    return {"latent": rng.standard_normal((b, 4, 16, 16)).astype("float32"), "step": rng.integers(0, 1000, (b,)),
            "text": rng.standard_normal((b, 7, 24)).astype("float32")}


_PLANE: Mapping[str, Range] = {"batch": (1, 2, 4), "height": (16, 32, 64), "width": (16, 48, 64)}
_OWN = "written out in PyTorch"
IMAGES = (
    *(Architecture(name, _OWN, make, image(32), IMAGE_AXES) for name, make in (
        ("resnet", resnet), ("mobilenet_v2", mobilenet_v2), ("mobilenet_v3", mobilenet_v3),
        ("efficientnet", efficientnet), ("convnext", convnext), ("densenet", densenet), ("inception", inception),
        ("squeezenet", squeezenet), ("shufflenet", shufflenet))),
    Architecture("unet", _OWN, lambda: settled(UNet()), image(32), IMAGE_AXES),
    Architecture("resnet_any_size", _OWN + ", any height and width", resnet, image(32),
                 {"image": {0: "batch", 2: "height", 3: "width"}}, ranges=_PLANE,
                 sizes=({"batch": 2, "height": 32, "width": 48}, {"batch": 1, "height": 45, "width": 37})),
    Architecture("autoencoder", _OWN, lambda: settled(Autoencoder()), image(28, 1), IMAGE_AXES, ("image_out", "code")),
    Architecture("diffusion_unet", _OWN, lambda: settled(Diffusion()), _diffusion_feed,
                 {"latent": {0: "batch"}, "step": {0: "batch"}, "text": {0: "batch"}}))
