"""Answers of the reference, kept: asked once, told apart by model and inputs, and asked anew when damaged."""
from __future__ import annotations

from pathlib import Path

import ml_dtypes
import numpy as np
import pytest

from ingot.verify import Original, remembered


def counting(answer: dict[str, np.ndarray]) -> tuple[Original, list[int]]:
    asked: list[int] = []

    def run(feeds: object) -> dict[str, np.ndarray]:
        asked.append(1)
        return answer

    return Original("someone", run), asked


def test_the_same_question_is_asked_once(tmp_path: Path) -> None:
    answer = {"file": np.array([np.nan, -0.0], np.float32), "a/b": np.array(7), "empty": np.zeros((0, 3))}
    original, asked = counting(answer)
    feeds = {"x": np.arange(3)}
    for _ in range(2):
        found = remembered(original, lambda: "model", tmp_path).run(feeds)
        assert [*found] == [*answer]
        for name, array in answer.items():
            assert found[name].tobytes() == array.tobytes() and found[name].dtype == array.dtype
            assert found[name].shape == array.shape
    assert len(asked) == 1


@pytest.mark.parametrize("feeds", [{"x": np.arange(4)}, {"y": np.arange(3)}, {"x": np.arange(3.0)},
                                   {"x": np.arange(3)[None]}, {"x": np.array(["a", "b"], object)}])
def test_other_inputs_are_another_question(tmp_path: Path, feeds: dict[str, np.ndarray]) -> None:
    original, asked = counting({"y": np.zeros(1)})
    memory = remembered(original, lambda: "model", tmp_path)
    memory.run({"x": np.arange(3)})
    memory.run(feeds)
    remembered(original, lambda: "another model", tmp_path).run(feeds)
    assert len(asked) == 3


def test_a_damaged_answer_is_asked_anew(tmp_path: Path) -> None:
    original, asked = counting({"y": np.arange(100.0)})
    memory = remembered(original, lambda: "model", tmp_path)
    memory.run({})
    path, = tmp_path.iterdir()
    whole = path.read_bytes()
    for damaged in (b"", whole[:-30], whole[:400] + b"\xff" + whole[401:], b"\x80\x04."):
        path.write_bytes(damaged)
        assert np.array_equal(memory.run({})["y"], np.arange(100.0))
    assert len(asked) == 5


@pytest.mark.parametrize("array", [np.array(["text"], object), np.ones(2, ml_dtypes.bfloat16)])
def test_what_the_file_cannot_hold_is_not_kept(tmp_path: Path, array: np.ndarray) -> None:
    original, asked = counting({"y": array})
    for _ in range(2):
        assert remembered(original, lambda: "model", tmp_path).run({})["y"] is array
    assert len(asked) == 2 and not [*tmp_path.iterdir()]
