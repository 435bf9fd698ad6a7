"""Trained networks in eight bits: what they lose on held-out digits, and what outlier channels do to them.

    python -m benchmarks.int8_digits --out benchmarks/results/NAME

A CNN, a network of inverted residuals and a small ViT learn scikit-learn's digits; ranges come from training images,
the loss is counted on images that neither training nor calibration saw. A second ViT computes the very same function,
but some channels of what its products read were made hundreds of times larger, and the weights behind them smaller.
Every site is quantised, also those the race would leave in floats.
"""
from __future__ import annotations

import argparse
import json
import tempfile
from collections.abc import Iterator, Mapping
from datetime import date
from pathlib import Path

import numpy as np
import torch
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from torch import Tensor, nn

from ingot.compiler.precision import calibrated, planned
from ingot.compiler.running import watching
from ingot.frontend import load
from ingot.graph import Graph
from ingot.passes import simplified
from ingot.quantize import METHODS
from ingot.quantize.rounding import Manner
from ingot.runtime.host import host_target
from ingot.target import Target
from ingot.tune import Tuning

BATCH = 64


def _conv(inputs: int, outputs: int, kernel: int, groups: int = 1, stride: int = 1) -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2, groups=groups, bias=False),
                         nn.BatchNorm2d(outputs))


class Inverted(nn.Module):
    """Widen, depthwise, narrow, add."""

    def __init__(self, channels: int, factor: int = 4) -> None:
        super().__init__()
        wide = channels * factor
        self.branch = nn.Sequential(_conv(channels, wide, 1), nn.ReLU6(), _conv(wide, wide, 3, wide), nn.ReLU6(),
                                    _conv(wide, channels, 1))

    def forward(self, x: Tensor) -> Tensor:
        return x + self.branch(x)


class Block(nn.Module):
    """A block of a ViT, normalised first."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads, self.first, self.second = heads, nn.LayerNorm(width), nn.LayerNorm(width)
        self.inner, self.outer = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.wide, self.narrow = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        n, t, w = x.shape
        q, k, v = self.inner(self.first(x)).reshape(n, t, 3, self.heads, w // self.heads).permute(2, 0, 3, 1, 4)
        mixed = nn.functional.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(n, t, w)
        x = x + self.outer(mixed)
        return x + self.narrow(nn.functional.gelu(self.wide(self.second(x))))


class SmallViT(nn.Module):
    """Sixteen patches of 2x2 pixels."""

    def __init__(self, width: int = 64, depth: int = 3) -> None:
        super().__init__()
        self.patch, self.place = nn.Linear(4, width), nn.Parameter(0.02 * torch.randn(1, 16, width))
        self.blocks = nn.Sequential(*(Block(width, 4) for _ in range(depth)))
        self.norm, self.head = nn.LayerNorm(width), nn.Linear(width, 10)

    def forward(self, x: Tensor) -> Tensor:
        n = x.shape[0]
        patches = x.reshape(n, 4, 2, 4, 2).permute(0, 1, 3, 2, 4).reshape(n, 16, 4)
        return self.head(self.norm(self.blocks(self.patch(patches) + self.place)).mean(1))


def networks() -> dict[str, nn.Module]:
    """Untrained, seeded."""
    torch.manual_seed(0)
    cnn = nn.Sequential(_conv(1, 32, 3), nn.ReLU(), _conv(32, 64, 3), nn.ReLU(), nn.MaxPool2d(2), _conv(64, 64, 3),
                        nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(64, 10))
    mobile = nn.Sequential(_conv(1, 32, 3), nn.ReLU6(), Inverted(32), Inverted(32), _conv(32, 64, 3, stride=2),
                           nn.ReLU6(), Inverted(64), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(64, 10))
    return {"CNN": cnn, "inverted residuals": mobile, "small ViT": SmallViT()}


def trained(net: nn.Module, x: Tensor, y: Tensor, epochs: int = 40) -> nn.Module:
    """With Adam, a falling rate, and images shifted by a pixel."""
    torch.manual_seed(1)
    steps = epochs * -(-len(x) // BATCH)
    adam = torch.optim.AdamW(net.parameters(), 2e-3, weight_decay=0.02)
    rate = torch.optim.lr_scheduler.OneCycleLR(adam, 4e-3, total_steps=steps)
    net.train()
    for _ in range(epochs):
        for part in torch.randperm(len(x)).split(BATCH):
            across = int(torch.randint(-1, 2, ()))
            loss = nn.functional.cross_entropy(net(torch.roll(x[part], across, 3)), y[part], label_smoothing=0.05)
            adam.zero_grad()
            loss.backward()
            adam.step()
            rate.step()
    return net.eval()


def with_outliers(net: SmallViT, factor: float = 400.0) -> SmallViT:
    """The same function: channels of the normalised inputs made larger, the rows of the weights behind them smaller."""
    with torch.no_grad():
        for k, block in enumerate(net.blocks):
            for norm, linear in ((block.first, block.inner), (block.second, block.wide)):
                for channel in (3 + k, 40 + k):
                    norm.weight[channel] *= factor
                    norm.bias[channel] *= factor
                    linear.weight[:, channel] /= factor
    return net


def graph_of(net: nn.Module) -> Graph:
    """By way of ONNX."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "net.onnx"
        torch.onnx.export(net, (torch.zeros(BATCH, 1, 8, 8),), str(path), input_names=["x"], output_names=["y"],
                          dynamo=True, verbose=False)
        return load(str(path), {"x": (BATCH, 1, 8, 8)})


def batches(images: np.ndarray) -> Iterator[Mapping[str, np.ndarray]]:
    """Whole ones, the last filled up with the first images."""
    for start in range(0, len(images), BATCH):
        part = images[start:start + BATCH]
        yield {"x": np.concatenate([part, images[:BATCH - len(part)]]) if len(part) < BATCH else part}


def accuracy(graph: Graph, target: Target, images: np.ndarray, labels: np.ndarray) -> float:
    """Percent of right answers."""
    run = watching(simplified(graph, target), target, graph.outputs)
    found = np.concatenate([run(f)["y"] for f in batches(images)])[:len(images)]
    return 100 * float((found.argmax(1) == labels).mean())


def untuned(_: object) -> Tuning:
    """Nothing is timed here."""
    raise RuntimeError("accuracy needs no race")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--epochs", type=int, default=40)
    parser.add_argument("--only", nargs="*", help="networks by name; the others keep what OUT has of them")
    parser.add_argument("--out", type=Path)
    given = parser.parse_args()
    digits = load_digits()
    images = (digits.images[:, None] / 8 - 1).astype(np.float32)
    x, held, y, answers = train_test_split(images, digits.target, test_size=600, random_state=0, stratify=digits.target)
    target = host_target()
    rows: list[dict[str, object]] = []

    def row(name: str, net: nn.Module, manners: Mapping[str, Manner]) -> None:
        graph = graph_of(net)
        whole = accuracy(graph, target, held, answers)
        for method in METHODS:
            calibration = calibrated(graph, target, batches(x[:512]), method=method)
            for title, manner in manners.items():
                plan = planned(graph, target, calibration, untuned, manner=manner, race=False)
                found = accuracy(plan.graph, target, held, answers)
                rows.append({"network": name, "form": method + title, "sites": len(plan.chosen), "f32": whole,
                             "int8": found, "lost": whole - found})
                print(rows[-1], flush=True)

    for name, net in networks().items():
        if given.only and name not in given.only:
            continue
        trained(net, torch.from_numpy(x), torch.from_numpy(y), given.epochs)
        row(name, net, {"": Manner()})
        if isinstance(net, SmallViT):
            row("small ViT with outlier channels", with_outliers(net),
                {", no smoothing": Manner(smooth=()), ", SmoothQuant": Manner()})
    if given.out:
        old = given.out.with_suffix(".json")
        fresh = {r["network"] for r in rows}
        kept = json.loads(old.read_text())["rows"] if old.exists() else []
        rows = [r for r in kept if r["network"] not in fresh] + rows
        told = f"{target.device}, {date.today()}; {len(held)} held-out digits, calibrated on 512 training images"
        given.out.with_suffix(".json").write_text(json.dumps({"machine": told, "rows": rows}, indent=1) + "\n")
        lines = ["# Trained networks in eight bits", "",
                 f"{told}. Every site quantised; percent of right answers. {given.epochs} epochs of training.", "",
                 "| network | ranges | sites | f32 | int8 | lost |", "|---|---|---:|---:|---:|---:|"]
        lines += [f"| {r['network']} | {r['form']} | {r['sites']} | {r['f32']:.2f} | {r['int8']:.2f} | "
                  f"{r['lost']:.2f} |" for r in rows]
        given.out.with_suffix(".md").write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
