"""All architectures by name."""
from __future__ import annotations

from pathlib import Path

import onnx

from benchmarks.architectures.images import IMAGES
from benchmarks.architectures.model import Architecture
from benchmarks.architectures.sequences import SEQUENCES
from benchmarks.architectures.text import TEXT
from benchmarks.architectures.vision import VISION

ARCHITECTURES: dict[str, Architecture] = {a.name: a for a in (*IMAGES, *TEXT, *VISION, *SEQUENCES)}
LIGHT_FOLDER = Path(onnx.__file__).parent / "backend" / "test" / "data" / "light"


def light_models() -> list[Path]:
    """The networks that come with the onnx package, whole, with weights that are made up."""
    return sorted(LIGHT_FOLDER.glob("light_*.onnx"))
