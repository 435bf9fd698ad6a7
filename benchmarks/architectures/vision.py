"""Transformers that look at images, and detectors: `transformers` configurations, and heads written out."""
from __future__ import annotations

from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
import transformers as hf
from onnxscript import opset18
from torch import Tensor, nn

from benchmarks.architectures.images import conv
from benchmarks.architectures.model import (
    IMAGE_AXES,
    TEXT_RANGES,
    TRACED,
    Architecture,
    Feeds,
    Sizes,
    image,
    settled,
    tokens,
)

_SOURCE = f"transformers {hf.__version__}, a small configuration"
_SMALL: dict[str, Any] = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64,
                          "image_size": 32, "patch_size": 8}


class Pixels(nn.Module):
    """A model of images: pixels -> its named results."""

    def __init__(self, model: nn.Module, *results: str) -> None:
        super().__init__()
        self.model, self.results = settled(model), results

    def forward(self, image: Tensor) -> tuple[Tensor, ...]:
        out = self.model(pixel_values=image)
        return tuple(getattr(out, r) for r in self.results)


def vit() -> nn.Module:
    return Pixels(hf.ViTForImageClassification(hf.ViTConfig(**_SMALL, num_labels=10)), "logits")


def swin() -> nn.Module:
    config = hf.SwinConfig(image_size=32, patch_size=2, embed_dim=16, depths=[2, 2], num_heads=[2, 4], window_size=4,
                           num_labels=10)
    return Pixels(hf.SwinForImageClassification(config), "logits")


def segformer() -> nn.Module:
    config = hf.SegformerConfig(depths=[1, 1, 1, 1], hidden_sizes=[16, 24, 32, 40], num_attention_heads=[1, 2, 2, 4],
                                decoder_hidden_size=32, num_labels=5)
    return Pixels(hf.SegformerForSemanticSegmentation(config), "logits")


def yolos() -> nn.Module:
    config = hf.YolosConfig(**{**_SMALL, "image_size": [32, 48]}, num_detection_tokens=10, num_labels=5)
    return Pixels(hf.YolosForObjectDetection(config), "logits", "pred_boxes")


class Clip(nn.Module):
    """CLIP: images and texts -> how well each fits each, and the embeddings."""

    def __init__(self) -> None:
        super().__init__()
        text = {"vocab_size": 100, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4,
                "intermediate_size": 64, "max_position_embeddings": 40, "eos_token_id": 99}
        config = hf.CLIPConfig(text_config=text, vision_config=dict(_SMALL), projection_dim=24)
        self.model = settled(hf.CLIPModel(config))

    def forward(self, input_ids: Tensor, attention_mask: Tensor, image: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        out = self.model(input_ids=input_ids, attention_mask=attention_mask, pixel_values=image)
        return out.logits_per_image, out.text_embeds, out.image_embeds


def _clip_feed(rng: np.random.Generator, sizes: Sizes) -> Feeds:
    found = tokens(98)(rng, {"batch": sizes["texts"], "sequence": sizes["sequence"]})
    return {**found, **image(32)(rng, {"batch": sizes["images"]})}


class Detr(nn.Module):
    """DETR: a convolutional backbone, an encoder over the plane, and queries that find boxes in it."""

    def __init__(self, width: int = 32, queries: int = 10) -> None:
        super().__init__()
        relu = nn.ReLU()
        self.backbone = nn.Sequential(conv(3, 16, 3, 2, act=relu), conv(16, 32, 3, 2, act=relu),
                                      conv(32, 64, 3, 2, act=relu))
        self.enter = nn.Conv2d(64, width, 1)
        self.transformer = nn.Transformer(width, 4, 2, 2, 64, dropout=0.0, batch_first=True)
        self.queries = nn.Parameter(torch.randn(queries, width))
        self.rows, self.columns = nn.Parameter(torch.randn(32, width // 2)), nn.Parameter(torch.randn(32, width // 2))
        self.classes, self.boxes = nn.Linear(width, 6), nn.Sequential(nn.Linear(width, width), nn.ReLU(),
                                                                      nn.Linear(width, 4))

    def forward(self, image: Tensor) -> tuple[Tensor, Tensor]:
        h = self.enter(self.backbone(image))
        rows, columns = h.shape[-2:]
        place = torch.cat([self.columns[:columns].unsqueeze(0).repeat(rows, 1, 1),
                           self.rows[:rows].unsqueeze(1).repeat(1, columns, 1)], -1).flatten(0, 1)
        x = h.flatten(2).permute(0, 2, 1) + place
        y = self.transformer(x, self.queries.unsqueeze(0).repeat(x.shape[0], 1, 1))
        return self.classes(y), self.boxes(y).sigmoid()


# ------------------------------------------------------------------------------------------------- detection, selecting

def suppressed(boxes: Tensor, scores: Tensor, most: int, overlap: float, least: float) -> Tensor:
    """ONNX's NonMaxSuppression: rows of (image, class, box), as many as are found."""
    return _nms(boxes, scores, most, overlap, least)


@torch.library.custom_op("ingot_zoo::nms", mutates_args=())
def _nms(boxes: Tensor, scores: Tensor, most: int, overlap: float, least: float) -> Tensor:
    found: list[list[int]] = []
    for n in range(boxes.shape[0]):
        for c in range(scores.shape[1]):
            kept: list[int] = []
            order = sorted(range(boxes.shape[1]), key=lambda i: (-float(scores[n, c, i]), i))
            for i in order:
                if float(scores[n, c, i]) <= least or len(kept) == most:
                    break
                if all(_overlap(boxes[n, i], boxes[n, j]) <= overlap for j in kept):
                    kept.append(i)
            found += [[n, c, i] for i in kept]
    return torch.tensor(found, dtype=torch.int64).reshape(-1, 3)


@_nms.register_fake
def _(boxes: Tensor, scores: Tensor, most: int, overlap: float, least: float) -> Tensor:
    rows = torch.library.get_ctx().new_dynamic_size()
    return boxes.new_empty((rows, 3), dtype=torch.int64)


def _onnx_nms(boxes: object, scores: object, most: int, overlap: float, least: float) -> object:
    """The same as one node."""
    return opset18.NonMaxSuppression(boxes, scores, opset18.Constant(value_ints=[most]),
                                     opset18.Constant(value_floats=[overlap]), opset18.Constant(value_floats=[least]))


def _overlap(a: Tensor, b: Tensor) -> float:
    """Intersection over union of two boxes (y1, x1, y2, x2)."""
    top, low = torch.maximum(a[:2], b[:2]), torch.minimum(a[2:], b[2:])
    both = float((low - top).clamp(min=0).prod())
    areas = float((a[2:] - a[:2]).clamp(min=0).prod() + (b[2:] - b[:2]).clamp(min=0).prod())
    return both / (areas - both) if areas > both else 0.0


class Yolo(nn.Module):
    """A YOLO-like detector: backbone, two scales, boxes decoded and non-maximum suppression inside the graph."""

    def __init__(self, classes: int = 3) -> None:
        super().__init__()
        silu = nn.SiLU()
        self.stem = nn.Sequential(conv(3, 16, 3, 2, act=silu), conv(16, 32, 3, 2, act=silu))
        self.mix = conv(128, 32, 1, act=silu)
        self.down = conv(32, 48, 3, 2, act=silu)
        self.up = conv(80, 32, 1, act=silu)
        self.outs = nn.ModuleList([nn.Conv2d(32, 5 + classes, 1), nn.Conv2d(48, 5 + classes, 1)])

    def forward(self, image: Tensor) -> tuple[Tensor, Tensor]:
        x = self.stem(image)
        x = self.mix(torch.cat([x, *(F.max_pool2d(x, k, 1, k // 2) for k in (5, 9, 13))], 1))
        low = self.down(x)
        x = self.up(torch.cat([x, F.interpolate(low, scale_factor=2.0)], 1))
        found = []
        for value, layer, stride in zip((x, low), self.outs, (4, 8), strict=True):
            y = layer(value)
            n, _, h, w = y.shape
            y = y.permute(0, 2, 3, 1)
            rows, columns = torch.meshgrid(torch.arange(h), torch.arange(w), indexing="ij")
            centre = (torch.stack([rows, columns], -1) + y[..., :2].sigmoid()) * stride
            size = y[..., 2:4].clamp(-3, 3).exp() * stride
            scores = y[..., 4:5].sigmoid() * y[..., 5:].sigmoid()
            found.append(torch.cat([centre - size / 2, centre + size / 2, scores], -1).reshape(n, h * w, -1))
        y = torch.cat(found, 1)
        boxes, scores = y[..., :4], y[..., 4:].transpose(1, 2)
        chosen = suppressed(boxes, scores, 8, 0.5, 0.2)
        return chosen, torch.cat([boxes[chosen[:, 0], chosen[:, 2]],
                                  scores[chosen[:, 0], chosen[:, 1], chosen[:, 2]].unsqueeze(-1)], -1)


class RoiHead(nn.Module):
    """Faster R-CNN's second stage: features of boxes by RoiAlign, then their classes and corrections."""

    def __init__(self) -> None:
        super().__init__()
        relu = nn.ReLU()
        self.features = nn.Sequential(conv(3, 16, 3, 2, act=relu), conv(16, 24, 3, 2, act=relu))
        self.first, self.classes, self.boxes = nn.Linear(24 * 16, 64), nn.Linear(64, 4), nn.Linear(64, 16)

    def forward(self, image: Tensor, boxes: Tensor, of: Tensor) -> tuple[Tensor, Tensor]:
        y = roi_align(self.features(image), boxes, of)
        y = torch.relu(self.first(y.flatten(1)))
        return self.classes(y).softmax(-1), self.boxes(y)


@torch.library.custom_op("ingot_zoo::roi_align", mutates_args=())
def roi_align(x: Tensor, boxes: Tensor, of: Tensor) -> Tensor:
    """ONNX's RoiAlign to 4x4 at a quarter of the image's size, two samples a side, half-pixel."""
    size, samples = 4, 2
    rows = []
    for k in range(boxes.shape[0]):
        x1, y1, x2, y2 = (boxes[k] * 0.25 - 0.5).tolist()
        high, wide = (y2 - y1) / size, (x2 - x1) / size
        at = torch.arange(size * samples, dtype=torch.float32)
        ys, xs = y1 + (at + 0.5) * high / samples, x1 + (at + 0.5) * wide / samples
        value = _bilinear(x[int(of[k])], ys, xs)
        rows.append(value.reshape(x.shape[1], size, samples, size, samples).mean((2, 4)))
    return torch.stack(rows) if rows else x.new_zeros((0, x.shape[1], size, size))


def _bilinear(x: Tensor, ys: Tensor, xs: Tensor) -> Tensor:
    """x[C, H, W] between its pixels; nothing more than a pixel outside."""
    height, width = x.shape[1:]
    inside = ((ys >= -1) & (ys <= height))[:, None] & ((xs >= -1) & (xs <= width))[None]
    ys, xs = ys.clamp(0, height - 1), xs.clamp(0, width - 1)
    y0, x0 = ys.long(), xs.long()
    y1, x1 = (y0 + 1).clamp(max=height - 1), (x0 + 1).clamp(max=width - 1)
    fy, fx = (ys - y0)[:, None], (xs - x0)[None]
    top = x[:, y0][:, :, x0] * (1 - fx) + x[:, y0][:, :, x1] * fx
    low = x[:, y1][:, :, x0] * (1 - fx) + x[:, y1][:, :, x1] * fx
    return (top * (1 - fy) + low * fy) * inside


def _onnx_roi_align(x: object, boxes: object, of: object) -> object:
    """The same as one node."""
    return opset18.RoiAlign(x, boxes, of, output_height=4, output_width=4, sampling_ratio=2, spatial_scale=0.25,
                            coordinate_transformation_mode="half_pixel", mode="avg")


@roi_align.register_fake
def _(x: Tensor, boxes: Tensor, of: Tensor) -> Tensor:
    return x.new_empty((boxes.shape[0], x.shape[1], 4, 4))


def _roi_feed(rng: np.random.Generator, sizes: Sizes) -> Feeds:
    boxes = rng.uniform(0, 24, (sizes["boxes"], 2))
    corners = np.concatenate([boxes, boxes + rng.uniform(4, 8, boxes.shape)], 1).astype(np.float32)
    return {**image(32)(rng, sizes), "boxes": corners, "of": rng.integers(0, sizes["batch"], (sizes["boxes"],))}


_ROI: dict[str, Any] = {
    "axes": {"image": {0: "batch"}, "boxes": {0: "boxes"}, "of": {0: "boxes"}},
    "ranges": {"batch": (1, 2, 4), "boxes": (1, 6, 20)},
    "sizes": ({"batch": 2, "boxes": 6}, {"batch": 3, "boxes": 11})}
VISION = (
    Architecture("vit", _SOURCE, vit, image(32), IMAGE_AXES),
    Architecture("swin", _SOURCE + TRACED, swin, image(32), IMAGE_AXES, traced=True),
    Architecture("segformer", _SOURCE, segformer, image(64), IMAGE_AXES),
    Architecture("clip", _SOURCE, Clip, _clip_feed, {
        "input_ids": {0: "texts", 1: "sequence"}, "attention_mask": {0: "texts", 1: "sequence"},
        "image": {0: "images"}}, ("fit", "text", "picture"),
        {"texts": (1, 3, 4), "images": (1, 2, 4), "sequence": TEXT_RANGES["sequence"]},
        ({"texts": 3, "images": 2, "sequence": 12}, {"texts": 2, "images": 4, "sequence": 7})),
    Architecture("yolos", _SOURCE, yolos, image(48, 3, 32), IMAGE_AXES, ("logits", "boxes")),
    Architecture("detr", "written out in PyTorch", lambda: settled(Detr()), image(48), IMAGE_AXES,
                 ("classes", "boxes")),
    Architecture("yolo", "written out in PyTorch, NonMaxSuppression inside", lambda: settled(Yolo()), image(32),
                 IMAGE_AXES, ("chosen", "boxes"), nodes={_nms: _onnx_nms}),
    Architecture("roi_head", "written out in PyTorch, with RoiAlign", lambda: settled(RoiHead()), _roi_feed,
                 outputs=("classes", "corrections"), nodes={roi_align: _onnx_roi_align}, **_ROI))
