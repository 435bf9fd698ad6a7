"""Blocks of well-known networks, exported by PyTorch: built without a node on the reference path, and verified."""
from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ingot.compiler.build import build_with_report
from ingot.compiler.options import BuildOptions

pytestmark = [pytest.mark.cpu, pytest.mark.slow]
pytest.importorskip("onnxscript")


class Network(nn.Module):
    """Layers by name, and what to do with them."""

    def __init__(self, work: Callable[..., object], **layers: nn.Module) -> None:
        super().__init__()
        self.layers, self.work = nn.ModuleDict(layers), work

    def forward(self, x: Tensor) -> object:
        return self.work(x, **self.layers)


def squeeze_and_excite() -> tuple[nn.Module, Tensor]:
    def work(x, stem, norm, expand, depth, down, up, project, head):
        x = F.silu(norm(stem(x)))
        y = F.silu(depth(F.silu(expand(x))))
        gate = torch.sigmoid(up(F.silu(down(y.mean((2, 3), keepdim=True)))))
        return head((x + project(y * gate)).mean((2, 3)))
    return Network(work, stem=nn.Conv2d(3, 24, 3, 2, 1), norm=nn.BatchNorm2d(24), expand=nn.Conv2d(24, 96, 1),
                   depth=nn.Conv2d(96, 96, 5, padding=2, groups=96), down=nn.Conv2d(96, 24, 1),
                   up=nn.Conv2d(24, 96, 1), project=nn.Conv2d(96, 24, 1), head=nn.Linear(24, 10)), \
        torch.randn(2, 3, 33, 32)


def convnext() -> tuple[nn.Module, Tensor]:
    def work(x, stem, first, depth, norm, wide, narrow, head):
        x = first(stem(x).permute(0, 2, 3, 1)).permute(0, 3, 1, 2)
        y = narrow(F.gelu(wide(norm(depth(x).permute(0, 2, 3, 1))))) * 0.3
        return head((x + y.permute(0, 3, 1, 2)).mean((-1, -2)))
    return Network(work, stem=nn.Conv2d(3, 40, 4, 4), first=nn.LayerNorm(40), norm=nn.LayerNorm(40),
                   depth=nn.Conv2d(40, 40, 7, padding=3, groups=40), wide=nn.Linear(40, 160),
                   narrow=nn.Linear(160, 40), head=nn.Linear(40, 7)), torch.randn(2, 3, 32, 32)


def unet() -> tuple[nn.Module, Tensor]:
    def work(x, a, na, b, nb, up, c, nc, out):
        left = F.relu(na(a(x)))
        low = F.relu(nb(b(F.max_pool2d(left, 2))))
        y = F.relu(nc(c(torch.cat([left, up(low)], 1))))
        return torch.softmax(out(F.interpolate(y, scale_factor=2, mode="bilinear", align_corners=False)), 1)
    return Network(work, a=nn.Conv2d(3, 16, 3, padding=1), na=nn.GroupNorm(4, 16), b=nn.Conv2d(16, 32, 3, padding=1),
                   nb=nn.GroupNorm(4, 32), up=nn.ConvTranspose2d(32, 16, 2, 2), c=nn.Conv2d(32, 16, 3, padding=1),
                   nc=nn.GroupNorm(4, 16), out=nn.Conv2d(16, 2, 1)), torch.randn(1, 3, 16, 20)


def gpt() -> tuple[nn.Module, Tensor]:
    def work(i, embed, norm, qkv, out, second, wide, narrow, head):
        x = embed(i)
        b, t, c = x.shape
        q, k, v = (z.view(b, t, 4, 12).transpose(1, 2) for z in qkv(norm(x)).split(48, -1))
        past = torch.tril(torch.ones(t, t, dtype=torch.bool))
        score = ((q @ k.transpose(-1, -2)) / 12**0.5).masked_fill(~past, -math.inf).softmax(-1)
        x = x + out((score @ v).transpose(1, 2).reshape(b, t, c))
        x = x + narrow(F.gelu(wide(second(x)), approximate="tanh"))
        return torch.log_softmax(head(x), -1)
    return Network(work, embed=nn.Embedding(100, 48), norm=nn.LayerNorm(48), qkv=nn.Linear(48, 144),
                   out=nn.Linear(48, 48), second=nn.LayerNorm(48), wide=nn.Linear(48, 192), narrow=nn.Linear(192, 48),
                   head=nn.Linear(48, 100, bias=False)), torch.randint(0, 100, (2, 17))


def llama() -> tuple[nn.Module, Tensor]:
    def norm(x):
        return x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-6)

    def work(i, embed, qkv, out, gate, up, down):
        x = embed(i)
        b, t, c = x.shape
        q, k, v = qkv(norm(x)).view(b, t, 3, 4, 8).permute(2, 0, 3, 1, 4)
        angle = torch.arange(t, dtype=torch.float32)[:, None] * (10000 ** (-torch.arange(0, 8, 2) / 8.0))[None]
        cos, sin = torch.cat([angle.cos()] * 2, -1), torch.cat([angle.sin()] * 2, -1)

        def turned(z):
            return z * cos + torch.cat([-z[..., 4:], z[..., :4]], -1) * sin
        y = F.scaled_dot_product_attention(turned(q), turned(k), v, is_causal=True)
        x = x + out(y.transpose(1, 2).reshape(b, t, c))
        return x + down(F.silu(gate(norm(x))) * up(norm(x)))
    plain = {"bias": False}
    return Network(work, embed=nn.Embedding(50, 32), qkv=nn.Linear(32, 96, **plain), out=nn.Linear(32, 32, **plain),
                   gate=nn.Linear(32, 80, **plain), up=nn.Linear(32, 80, **plain), down=nn.Linear(80, 32, **plain)), \
        torch.randint(0, 50, (2, 13))


def swin() -> tuple[nn.Module, Tensor]:
    def work(x, stem, norm, qkv, out, merge):
        x = stem(x).permute(0, 2, 3, 1)
        b, h, w, c = x.shape
        y = torch.roll(norm(x), (-2, -2), (1, 2)).view(b, h // 4, 4, w // 4, 4, c)
        y = y.permute(0, 1, 3, 2, 4, 5).reshape(-1, 16, c)
        q, k, v = qkv(y).view(-1, 16, 3, 4, 8).permute(2, 0, 3, 1, 4)
        y = ((q * 8**-0.5) @ k.transpose(-2, -1)).softmax(-1) @ v
        y = out(y.transpose(1, 2).reshape(-1, 16, c)).view(b, h // 4, w // 4, 4, 4, c)
        x = x + torch.roll(y.permute(0, 1, 3, 2, 4, 5).reshape(b, h, w, c), (2, 2), (1, 2))
        return merge(torch.cat([x[:, i::2, j::2] for j in (0, 1) for i in (0, 1)], -1)).mean((1, 2))
    return Network(work, stem=nn.Conv2d(3, 32, 4, 4), norm=nn.LayerNorm(32), qkv=nn.Linear(32, 96),
                   out=nn.Linear(32, 32), merge=nn.Linear(128, 64)), torch.randn(2, 3, 64, 32)


def densenet() -> tuple[nn.Module, Tensor]:
    def work(x, stem, n0, c0, n1, c1, n2, c2, out):
        x = F.max_pool2d(stem(x), 3, 2, 1)
        for norm, conv in ((n0, c0), (n1, c1), (n2, c2)):
            x = torch.cat([x, conv(F.relu(norm(x)))], 1)
        return F.avg_pool2d(out(x), 2).mean((2, 3))
    layers = {f"n{i}": nn.BatchNorm2d(16 + 12 * i) for i in range(3)}
    layers |= {f"c{i}": nn.Conv2d(16 + 12 * i, 12, 3, padding=1) for i in range(3)}
    return Network(work, stem=nn.Conv2d(3, 16, 7, 2, 3), out=nn.Conv2d(52, 26, 1), **layers), torch.randn(2, 3, 64, 64)


def shufflenet() -> tuple[nn.Module, Tensor]:
    def work(x, stem, point, depth, group):
        a, b = F.relu(stem(x)).chunk(2, 1)
        x = torch.cat([a, F.leaky_relu(depth(point(b)))], 1)
        n, c, h, w = x.shape
        x = x.view(n, 2, c // 2, h, w).transpose(1, 2).reshape(n, c, h, w)
        return F.elu(group(x)).amax((2, 3))
    return Network(work, stem=nn.Conv2d(3, 24, 3, 1, 1), point=nn.Conv2d(12, 12, 1),
                   group=nn.Conv2d(24, 24, 1, groups=4), depth=nn.Conv2d(12, 12, 3, 1, 1, groups=12)), \
        torch.randn(2, 3, 15, 14)


def video() -> tuple[nn.Module, Tensor]:
    def work(x, conv, norm, flat, up):
        y = flat(F.max_pool3d(F.relu(norm(conv(x))), 2))
        return up(F.avg_pool3d(y, 2, ceil_mode=True))
    return Network(work, conv=nn.Conv3d(2, 9, 3, padding=1), norm=nn.BatchNorm3d(9),
                   flat=nn.Conv3d(9, 5, (1, 3, 3), stride=(1, 2, 2)), up=nn.ConvTranspose3d(5, 3, 2, 2)), \
        torch.randn(2, 2, 8, 18, 18)


def audio() -> tuple[nn.Module, Tensor]:
    def work(x, conv, norm, depth, point):
        y = depth(F.max_pool1d(F.gelu(norm(conv(x))), 3, 2))
        return F.log_softmax(point(F.softplus(y)), 1), F.interpolate(y, size=50, mode="linear")
    return Network(work, conv=nn.Conv1d(1, 20, 10, stride=5), norm=nn.GroupNorm(20, 20), point=nn.Conv1d(20, 6, 1),
                   depth=nn.Conv1d(20, 20, 3, padding=1, groups=20)), torch.randn(2, 1, 400)


def roberta() -> tuple[nn.Module, Tensor]:
    def work(i, words, places, layer):
        known = i != 1
        position = (torch.cumsum(known.int(), 1) * known).long() + 1
        x = layer(words(i) + places(position), src_key_padding_mask=~known)
        weight = known[..., None].float()
        return (x * weight).sum(1) / weight.sum(1).clamp(min=1e-9)
    layer = nn.TransformerEncoderLayer(32, 4, 64, batch_first=True, activation="gelu", dropout=0.0)
    return Network(work, words=nn.Embedding(60, 32), places=nn.Embedding(40, 32), layer=layer), \
        torch.randint(0, 60, (2, 11))


def yolo() -> tuple[nn.Module, Tensor]:
    def work(x, stem, norm, mix, group, out):
        x = F.silu(norm(stem(x)))
        y = F.silu(mix(torch.cat([x, *(F.max_pool2d(x, k, 1, k // 2) for k in (5, 9, 13))], 1)))
        y = F.leaky_relu(group(y), 0.1) + F.interpolate(F.avg_pool2d(group(y), 2, 2), scale_factor=2.0)
        n, _, h, w = y.shape
        return out(y).view(n, 3, 6, h, w).permute(0, 1, 3, 4, 2).sigmoid() * 2 - 0.5
    return Network(work, stem=nn.Conv2d(3, 16, 3, 2, 1), norm=nn.BatchNorm2d(16, eps=1e-3), mix=nn.Conv2d(64, 16, 1),
                   group=nn.Conv2d(16, 32, 3, 1, 1, groups=8), out=nn.Conv2d(32, 18, 1)), torch.randn(2, 3, 32, 48)


def functions() -> tuple[nn.Module, Tensor]:
    def work(x, line):
        y = line(x)
        z = y[:, 0] / y[:, 0].norm(dim=-1, keepdim=True)
        return (z @ z.t(), y * torch.sigmoid(1.702 * y), F.selu(y), F.mish(y), F.celu(x, 0.5), torch.clamp(x, -0.5),
                x.remainder(0.3), torch.sign(x) * x.abs().sqrt(), x.round(), torch.erf(x), torch.logsumexp(x, -1),
                x.prod(-1), F.hardtanh(x), F.softsign(x), torch.atan(x), x.std(-1), x.var((1, 2)), F.softshrink(x),
                torch.einsum("bij,bkj->bik", x, y), torch.flip(x, [1]), x.repeat(1, 2, 1), x.half().float())
    return Network(work, line=nn.Linear(24, 24)), torch.randn(2, 5, 24)


NETWORKS = (squeeze_and_excite, convnext, unet, gpt, llama, swin, densenet, shufflenet, video, audio, roberta, yolo,
            functions)


@pytest.mark.parametrize("isa", ["", "avx2"])
@pytest.mark.parametrize("make", NETWORKS, ids=lambda f: f.__name__)
@pytest.mark.filterwarnings("ignore")
def test_a_network_is_built_natively_and_verified(make: Callable[[], tuple[nn.Module, Tensor]], isa: str,
                                                  tmp_path) -> None:
    torch.manual_seed(0)
    network, example = make()
    path = str(tmp_path / "network.onnx")
    batch = ({0: torch.export.Dim("batch", min=1, max=8)},) if example.shape[0] > 1 else ({},)
    torch.onnx.export(network.eval(), (example,), path, dynamo=True, dynamic_shapes=batch, verbose=False)
    made = build_with_report(path, None, BuildOptions(tune=False, isa=isa))
    assert made.engine.verdict["passed"]
    program = made.engine.variants[0].program
    assert not [x.where for x in program.launches if not x.native]
