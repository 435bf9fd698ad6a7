"""Calibration from what people have: a folder of images, a file of text with a tokenizer."""
from __future__ import annotations

import numpy as np
import pytest

from ingot.errors import InputError
from ingot.graph import Graph, parse
from ingot.ops import infer
from ingot.quantize.data import as_batches, batches

IMAGES = """
    input x: u8[2,8,12,3]
    y = Cast(x) {'to': 'f32'}
    return y
"""
WORDS = """
    input input_ids: i64[1,6]
    input attention_mask: i64[1,6]
    y = Add(input_ids, attention_mask)
    return y
"""


def graph(text: str) -> Graph:
    return parse(text, infer)


def test_a_folder_of_images_becomes_batches_of_the_graphs_size(tmp_path) -> None:
    image = pytest.importorskip("PIL.Image")
    for k in range(5):
        image.fromarray(np.full((20 + k, 30, 3), 40 * k, np.uint8)).save(tmp_path / f"{k}.png")
    image.fromarray(np.full((9, 9), 250, np.uint8)).save(tmp_path / "grey.png")
    found = list(batches(tmp_path, graph(IMAGES)))
    assert [f["x"].shape for f in found] == [(2, 8, 12, 3)] * 3
    assert [int(i.mean()) for f in found for i in f["x"]] == [0, 40, 80, 120, 160, 250]
    assert len(as_batches(tmp_path, graph(IMAGES), 3)) == 2
    (tmp_path / "z.png").write_bytes(b"no image")
    with pytest.raises(InputError, match="cannot read the image"):
        list(batches(tmp_path, graph(IMAGES)))
    with pytest.raises(InputError, match="not images"):
        list(batches(tmp_path, graph("input x: f32[1,3,8,12]\ny = Relu(x)\nreturn y")))


def test_lines_of_text_become_tokens(tmp_path) -> None:
    tokenizers = pytest.importorskip("tokenizers")
    words = {"[UNK]": 0, "a": 1, "quick": 2, "fox": 3}
    coder = tokenizers.Tokenizer(tokenizers.models.WordLevel(words, unk_token="[UNK]"))
    coder.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    coder.save(str(tmp_path / "tokenizer.json"))
    (tmp_path / "text.txt").write_text("a quick fox\n\nfox dog a a a a a a\n")
    found = list(batches(tmp_path / "text.txt", graph(WORDS), tmp_path / "tokenizer.json"))
    assert [f["input_ids"][0].tolist() for f in found] == [[1, 2, 3, 0, 0, 0], [3, 0, 1, 1, 1, 1]]
    assert [int(f["attention_mask"].sum()) for f in found] == [3, 6]
    with pytest.raises(InputError, match="--tokenizer"):
        list(batches(tmp_path / "text.txt", graph(WORDS)))
    with pytest.raises(InputError, match="none that a tokenizer makes"):
        list(batches(tmp_path / "text.txt", graph("input x: i64[1,6]\ny = Neg(x)\nreturn y"),
                     tmp_path / "tokenizer.json"))
