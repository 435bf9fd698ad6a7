"""What one entry of the architectures is: a module with small seeded weights, inputs for any sizes, what is dynamic."""
from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

Feeds = dict[str, np.ndarray]
Sizes = Mapping[str, int]
TRACED = "; by the exporter that traces: torch.export's stops at a view of it"
Range = tuple[int, int, int]            # min, opt, max


@dataclass(frozen=True)
class Architecture:
    """One network: how it is made and fed, and which axes of its inputs are dynamic.

    `axes` names, per input, the symbol of each dynamic axis; `ranges` gives each symbol its profile. `sizes` are the
    two sets of sizes it is verified at.
    """

    name: str
    source: str
    make: Callable[[], nn.Module]
    feed: Callable[[np.random.Generator, Sizes], Feeds]
    axes: Mapping[str, Mapping[int, str]]
    outputs: tuple[str, ...] = ("output",)
    ranges: Mapping[str, Range] = field(default_factory=lambda: {"batch": (1, 2, 4)})
    sizes: tuple[Sizes, Sizes] = ({"batch": 2}, {"batch": 3})
    traced: bool = False                # exported by PyTorch's older exporter, which traces
    nodes: Mapping[Any, Callable[..., object]] = field(default_factory=dict)    # own ops, and the ONNX nodes they are
    loose: float = 0.0                  # how far apart, relative, where rounding grows more than elsewhere

    def module(self, seed: int = 0) -> nn.Module:
        """The PyTorch module in eval mode; the same weights every time."""
        torch.manual_seed(seed)
        return self.make().eval()

    def feeds(self, sizes: Sizes, seed: int = 0) -> Feeds:
        """Reproducible inputs at these sizes, in the order of the module's arguments."""
        return self.feed(np.random.default_rng(seed), sizes)

    def shapes(self) -> dict[str, tuple[int | str, ...]]:
        """The profile of every input, as a build takes it."""
        found: dict[str, tuple[int | str, ...]] = {}
        for name, array in self.feeds(self.sizes[0]).items():
            axes = self.axes.get(name, {})
            found[name] = tuple(f"{axes[i]}=" + "..".join(map(str, self.ranges[axes[i]]))
                                if axes.get(i) in self.ranges else n for i, n in enumerate(array.shape))
        return found

    def run(self, module: nn.Module, feeds: Mapping[str, np.ndarray]) -> Feeds:
        """What PyTorch makes of the inputs, by the names of the outputs."""
        with torch.inference_mode():
            found = module(*[torch.from_numpy(np.ascontiguousarray(a)) for a in feeds.values()])
        flat = [found] if isinstance(found, Tensor) else list(found)
        return {n: t.numpy() for n, t in zip(self.outputs, flat, strict=True)}

    def export(self, path: Path, module: nn.Module | None = None) -> Path:
        """Write the model to an ONNX file."""
        module = module or self.module()
        feeds = self.feeds(self.sizes[0])
        example = tuple(torch.from_numpy(a) for a in feeds.values())
        if self.traced:
            axes = {n: dict(self.axes[n]) for n in feeds if self.axes.get(n)}
            torch.onnx.export(module, example, str(path), dynamo=False, input_names=list(feeds),
                              output_names=list(self.outputs), dynamic_axes=axes, opset_version=18)
            return path
        known = {s: torch.export.Dim(s, min=r[0], max=max(r[2], 2)) for s, r in self.ranges.items()}
        for name in {s for a in self.axes.values() for s in a.values()} - known.keys():
            first, _, more = name.partition(" + ")          # an axis that is another one and some more
            known[name] = known[first] + int(more)
        dynamic = tuple({i: known[s] for i, s in self.axes.get(n, {}).items()} for n in feeds)
        program = torch.onnx.export(module, example, dynamo=True, input_names=list(feeds), verbose=False,
                                    output_names=list(self.outputs), dynamic_shapes=dynamic, external_data=False,
                                    custom_translation_table={o._opoverload: f for o, f in self.nodes.items()})
        program.save(str(path), external_data=False)
        return path


def settled(model: nn.Module) -> nn.Module:
    """Weights that make every part of a network count: nothing uniform, nothing blown up, norms not identities."""
    for m in model.modules():
        if isinstance(m, (nn.Linear, nn.Conv1d, nn.Conv2d)):
            fan = m.weight[0].numel()
            nn.init.normal_(m.weight, std=(1.6 / fan) ** 0.5)
            if m.bias is not None:
                nn.init.normal_(m.bias, std=0.1)
        elif isinstance(m, (nn.LayerNorm, nn.GroupNorm)) and m.weight is not None:
            nn.init.normal_(m.weight, 1.0, 0.1)
            if m.bias is not None:
                nn.init.normal_(m.bias, 0.0, 0.1)
        elif isinstance(m, (nn.BatchNorm1d, nn.BatchNorm2d)):
            nn.init.uniform_(m.weight, 0.6, 1.4)
            nn.init.uniform_(m.bias, -0.3, 0.3)
            if m.running_mean is not None and m.running_var is not None:
                nn.init.normal_(m.running_mean, std=0.2)
                nn.init.uniform_(m.running_var, 0.6, 1.6)
        elif isinstance(m, nn.Embedding):
            nn.init.normal_(m.weight, std=0.5)
    return model.eval()


def image(side: int, channels: int = 3, height: int = 0) -> Callable[[np.random.Generator, Sizes], Feeds]:
    """Noise of a fixed side, or of the symbols `height` and `width`."""
    def feed(rng: np.random.Generator, sizes: Sizes) -> Feeds:
        shape = (sizes["batch"], channels, sizes.get("height", height or side), sizes.get("width", side))
        return {"image": rng.standard_normal(shape).astype(np.float32)}
    return feed


def tokens(words: int = 100, *, mask: bool = True) -> Callable[[np.random.Generator, Sizes], Feeds]:
    """Token ids, and a mask with padded tails."""
    def feed(rng: np.random.Generator, sizes: Sizes) -> Feeds:
        shape = sizes["batch"], sizes["sequence"]
        lengths = rng.integers(max(1, shape[1] // 2), shape[1] + 1, (shape[0], 1))
        lengths[0] = shape[1]
        known = (np.arange(shape[1])[None] < lengths).astype(np.int64)
        ids = rng.integers(2, words, shape) * known
        return {"input_ids": ids, "attention_mask": known} if mask else {"input_ids": rng.integers(2, words, shape)}
    return feed


TEXT_AXES: Mapping[str, Mapping[int, str]] = {"input_ids": {0: "batch", 1: "sequence"},
                                              "attention_mask": {0: "batch", 1: "sequence"}}
TEXT_RANGES: Mapping[str, Range] = {"batch": (1, 2, 4), "sequence": (2, 12, 32)}
TEXT_SIZES: tuple[Sizes, Sizes] = ({"batch": 2, "sequence": 12}, {"batch": 3, "sequence": 7})
IMAGE_AXES: Mapping[str, Mapping[int, str]] = {"image": {0: "batch"}}
