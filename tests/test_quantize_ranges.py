"""Ranges follow from what was seen; calibration streams, warns, and is a file."""
from __future__ import annotations

import numpy as np
import pytest

from ingot.errors import InputError
from ingot.graph import parse
from ingot.ops import infer
from ingot.ops.reference import run_graph
from ingot.quantize import METHODS, Observer, calibrate, chosen, quantisable, read_calibration, write_calibration
from ingot.quantize.data import batches

MODEL = """
    symbol N: 1..4..8
    input x: f32[N,24]
    const w: f32[24,16]
    y = MatMul(x, w)
    return y
"""


def seen(values: np.ndarray, pieces: int = 4) -> Observer:
    o = Observer(1, values.shape[1])
    for part in np.array_split(values, pieces):
        o.update(part)
    return o


def test_a_streamed_histogram_is_that_of_the_whole() -> None:
    rng = np.random.default_rng(0)
    values = rng.standard_normal((1000, 8)) * np.linspace(0.1, 30, 1000)[:, None]      # the range grows as it streams
    o = seen(values, 20)
    assert o.counts.sum() == values.size == o.seen
    assert o.least == pytest.approx(values.min()) and o.most == pytest.approx(values.max())
    width = (o.high - o.low) / len(o.counts)
    middle = np.median(values)
    below = o.counts[:int((middle - o.low) / width)].sum() / o.seen
    assert below == pytest.approx(0.5, abs=0.05)
    assert np.allclose(o.means, values.astype(np.float32).mean(0), atol=1e-3)
    assert np.allclose(o.peaks, np.abs(values).max(0), rtol=1e-5)


def test_few_outliers_do_not_set_the_range_but_for_minmax() -> None:
    rng = np.random.default_rng(1)
    values = rng.standard_normal((40_000, 4))
    values[7, 1] = 300.0
    o = seen(values)
    assert chosen(o, "minmax").high == pytest.approx(300.0)
    for method in ("percentile", "entropy"):
        assert chosen(o, method).high < 60.0, method


@pytest.mark.parametrize("zeros", [0.0, 0.6, 0.95])
def test_entropy_does_not_clip_because_most_values_are_zero(zeros: float) -> None:
    rng = np.random.default_rng(5)
    values = np.maximum(rng.standard_normal((60_000, 4)), 0.0)
    values[rng.random(values.shape) < zeros] = 0.0
    assert chosen(seen(values), "entropy").high > 2.5       # all but half a percent of what is not zero
    capped = np.minimum(2 * values, 6.0) + 0.0              # Relu6: many at the very end
    assert chosen(seen(capped * 2), "entropy").high > 5.0


@pytest.mark.parametrize("method", sorted(METHODS))
def test_zero_is_an_integer_of_every_range(method: str) -> None:
    rng = np.random.default_rng(2)
    for values in (rng.uniform(3, 9, (100, 4)), rng.uniform(-9, -3, (100, 4)), rng.standard_normal((100, 4))):
        r = chosen(seen(values), method)
        assert r.low <= 0 <= r.high and 0 <= r.zero <= 255
        assert (0 - r.zero) * r.scale == pytest.approx(r.low, abs=r.scale)


def test_mse_clips_where_that_loses_less() -> None:
    values = np.concatenate([np.random.default_rng(3).standard_normal(100_000), [40.0, -40.0]]).reshape(-1, 2)
    assert chosen(seen(values), "mse").high < 30.0


def _calibrated(samples: int, method: str = "mse"):
    graph = parse(MODEL, infer)
    rng = np.random.default_rng(4)
    data = {"x": rng.standard_normal((samples, 24)).astype(np.float32)}
    watched = tuple(s.input for s in quantisable(graph))
    return graph, calibrate(graph, quantisable(graph), lambda feeds: {**feeds, **run_graph(graph, feeds)},
                            batches([data], graph), method=method), watched


def test_a_calibration_is_a_file_that_comes_back_the_same(tmp_path) -> None:
    _, found, watched = _calibrated(40)
    assert set(found.tensors) == set(watched) == {"x"}
    write_calibration(found, tmp_path / "scales.json")
    assert read_calibration(tmp_path / "scales.json") == found


def test_data_that_says_little_is_named() -> None:
    _, few, _ = _calibrated(3)
    assert any("few" in a for a in few.alarms)
    graph = parse(MODEL, infer)
    run = lambda feeds: dict(feeds)     # noqa: E731
    flat = calibrate(graph, quantisable(graph), run, [{"x": np.ones((64, 24), np.float32)}])
    assert any("everywhere" in a for a in flat.alarms)
    pixels = calibrate(graph, quantisable(graph), run,
                       [{"x": np.random.default_rng(0).integers(0, 256, (64, 24)).astype(np.float32)}])
    assert any("bytes of an image" in a for a in pixels.alarms)


def test_no_data_and_no_such_method_are_errors() -> None:
    graph = parse(MODEL, infer)
    with pytest.raises(InputError, match="nothing to calibrate"):
        calibrate(graph, quantisable(graph), lambda feeds: feeds, [])
    with pytest.raises(InputError, match="no method"):
        calibrate(graph, quantisable(graph), lambda feeds: feeds, [], method="magic")


def test_data_comes_from_files_folders_and_iterables(tmp_path) -> None:
    graph = parse(MODEL, infer)
    x = np.arange(10 * 24, dtype=np.float32).reshape(10, 24)
    np.save(tmp_path / "x.npy", x)
    np.savez(tmp_path / "x.npz", x=x)
    for data in (tmp_path / "x.npy", tmp_path / "x.npz", [{"x": x}], [x], list(x)):
        assert np.array_equal(np.concatenate([f["x"] for f in batches(data, graph)]), x)
    assert sum(len(f["x"]) for f in batches(tmp_path, graph)) == 20
    with pytest.raises(InputError, match="lacks the input"):
        list(batches([{"y": x}], graph))
