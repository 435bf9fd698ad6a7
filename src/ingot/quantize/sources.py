"""Representative data as people have it: a folder of images, a file of text with a tokenizer's file."""
from __future__ import annotations

import importlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from ingot.errors import InputError
from ingot.graph import Graph, evaluate

Feeds = Mapping[str, np.ndarray]
IMAGES = frozenset({".png", ".jpg", ".jpeg", ".bmp", ".webp", ".gif", ".tif", ".tiff"})
TEXTS = frozenset({".txt", ".md", ".csv", ".jsonl"})
# A transformer's inputs, by the names exporters give them, and the field of an encoding they hold.
_FIELDS = {"input_ids": "ids", "attention_mask": "attention_mask", "token_type_ids": "type_ids"}


def _package(name: str, why: str) -> Any:
    try:
        return importlib.import_module(name)
    except ImportError:
        raise InputError(f"{why} needs the package {name.partition('.')[0]}", where="--calibrate",
                         mend="install it, or give arrays (.npz, .npy)") from None


def _sizes(graph: Graph, name: str) -> tuple[int, ...]:
    opt = {s.name: s.opt for s in graph.symbols.values()}
    return tuple(evaluate(d, opt) for d in graph.types[name].shape)


def images_of(folder: Path, graph: Graph) -> Iterator[Feeds]:
    """The images of a folder, sorted, each as one batch of uint8 [1, height, width, 3] of the size the graph takes.

    The graph must have its pre-processing inside: what to do with pixels otherwise is not known. Raises InputError.
    """
    image = _package("PIL.Image", "a folder of images")
    name = graph.inputs[0]
    type_ = graph.types[name]
    if len(graph.inputs) != 1 or type_.dtype.name != "u8" or type_.rank != 4 or type_.shape[3] != 3:
        raise InputError(f"'{name}' takes {type_}, not images", where="--calibrate",
                         mend="put pre-processing inside: --preprocess imagenet:HEIGHTxWIDTH (or another kind)")
    _, height, width, _ = _sizes(graph, name)
    for file in sorted(p for p in folder.iterdir() if p.suffix.lower() in IMAGES):
        try:
            with image.open(file) as opened:
                pixels = np.asarray(opened.convert("RGB").resize((width, height), image.Resampling.BILINEAR), np.uint8)
        except OSError as error:
            raise InputError(f"cannot read the image {file}", where="--calibrate", why=(str(error),)) from None
        yield {name: pixels[None]}


def texts_of(file: Path, tokenizer: Path | None, graph: Graph) -> Iterator[Feeds]:
    """The lines of a file that hold anything, coded by a tokenizer.json, one batch each, as long as the graph is tuned
    for. Raises InputError."""
    if tokenizer is None:
        raise InputError(f"{file} is text: what its words are called is not known", where="--calibrate",
                         mend="give the model's tokenizer: --tokenizer tokenizer.json")
    if unknown := [n for n in graph.inputs if n not in _FIELDS]:
        raise InputError(f"the input '{unknown[0]}' is none that a tokenizer makes", where="--tokenizer",
                         mend=f"it makes {', '.join(_FIELDS)}; give arrays (.npz) instead")
    length = _sizes(graph, graph.inputs[0])[1]
    made = _package("tokenizers", "text")
    if not tokenizer.is_file():
        raise InputError(f"cannot read the tokenizer {tokenizer}", where="--tokenizer")
    try:
        coder = made.Tokenizer.from_file(str(tokenizer))
        lines = file.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"cannot read {file}", where="--calibrate", why=(str(error),)) from None
    coder.enable_truncation(length)
    coder.enable_padding(length=length)
    for line in filter(None, (text.strip() for text in lines)):
        coded = coder.encode(line)
        yield {n: np.asarray([getattr(coded, _FIELDS[n])], graph.types[n].dtype.numpy) for n in graph.inputs}


__all__ = ["IMAGES", "TEXTS", "images_of", "texts_of"]
