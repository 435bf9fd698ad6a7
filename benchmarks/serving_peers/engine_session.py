"""The engine as the other servers run it: rows of token ids in one padded batch, or images."""
from __future__ import annotations

import base64
import os
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

import ingot

SHORTEST = 8            # tokens of a row at least: what the engine takes
SIDE = 224              # of an image, pixels


class Embedder:
    """A session of the engine that the environment names."""

    def __init__(self) -> None:
        self._session = ingot.Session(ingot.load(os.environ["ENGINE"]), int(os.environ["THREADS"]))

    def __call__(self, rows: Sequence[Sequence[int]]) -> np.ndarray:
        """f32[rows, 384] for token ids of each row."""
        length = max(SHORTEST, *map(len, rows))
        ids = np.zeros((len(rows), length), np.int64)
        mask = np.zeros_like(ids)
        for i, row in enumerate(rows):
            ids[i, :len(row)], mask[i, :len(row)] = row, 1
        return next(iter(self._session.run({"input_ids": ids, "attention_mask": mask}).values()))


class Classifier:
    """The same for images."""

    def __init__(self) -> None:
        self._session = ingot.Session(ingot.load(os.environ["ENGINE"]), int(os.environ["THREADS"]))

    def __call__(self, images: Sequence[str | bytes]) -> np.ndarray:
        """f32[images, 1000] for images u8[3, 224, 224], each in base 64."""
        pixels = np.stack([np.frombuffer(base64.b64decode(i), np.uint8).reshape(3, SIDE, SIDE) for i in images])
        return next(iter(self._session.run({"pixels": pixels}).values()))


def model() -> Callable[[Any], np.ndarray]:
    """What the environment asks for."""
    return Classifier() if os.environ["MODEL"] == "images" else Embedder()
