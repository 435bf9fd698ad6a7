"""The engine as the other servers run it: rows of token ids, each as long as its sentence, in one padded batch."""
from __future__ import annotations

import os
from collections.abc import Sequence

import numpy as np

import ingot

SHORTEST = 8            # tokens of a row at least: what the engine takes


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
