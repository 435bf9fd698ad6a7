"""Calibration: a float engine runs on representative batches, and what it saw becomes a file one can read.

The file is all that a later build needs: the same scales, the same engine, without the data.
"""
from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from ingot.errors import InputError
from ingot.graph import Graph
from ingot.quantize.observe import Observer
from ingot.quantize.ranges import METHODS, Range, chosen, minmax
from ingot.quantize.sites import QuantSite

Feeds = Mapping[str, np.ndarray]
Run = Callable[[Feeds], Mapping[str, np.ndarray]]
FEW = 32            # samples below which ranges are guesses
_VERSION = 1


@dataclass(frozen=True)
class TensorRange:
    """One tensor: the range chosen for it, what was seen of it, and its channels."""

    low: float
    high: float
    least: float
    most: float
    values: int
    odd: int = 0                            # NaN or infinite
    beyond: float = 0.0                     # share of the values outside the range
    peaks: tuple[float, ...] = ()           # largest magnitude per channel
    means: tuple[float, ...] = ()           # mean per channel
    energy: tuple[float, ...] = ()          # mean square per channel
    span: float = 0.0                       # root mean square of what a row of channels spans; 0: not known

    @property
    def range(self) -> Range:
        return Range(self.low, self.high)


@dataclass(frozen=True)
class Calibration:
    """The ranges of a graph's tensors by name, the method that chose them, how many samples there were, and alarms."""

    method: str
    samples: int
    tensors: Mapping[str, TensorRange]
    alarms: tuple[str, ...] = ()
    seconds: float = field(default=0.0, compare=False)


def calibrate(graph: Graph, sites: Iterable[QuantSite], run: Run, data: Iterable[Feeds], *, method: str = "mse",
              limit: int = 512, told: Callable[[int], None] | None = None) -> Calibration:
    """Stream batches through `run`, which gives every tensor named by the sites, and choose a range for each.

    `limit` is the most samples (places of the first axis) taken; `told` hears how many there were so far. Memory is
    that of one batch's tensors and a histogram per tensor. Raises InputError for an unknown method or no data.
    """
    if method not in METHODS:
        raise InputError(f"no method is called {method!r}", mend=f"choose one of: {', '.join(METHODS)}")
    observers = {s.input: Observer(s.axis, s.channels) for s in sites}
    inputs = {name: Observer(0, 1) for name in graph.inputs if graph.types[name].dtype.kind == "float"}
    samples = 0
    for feeds in data:
        values = run(feeds)
        for name, observer in observers.items():
            observer.update(np.asarray(values[name]))
        for name, observer in inputs.items():
            observer.update(np.asarray(feeds[name], np.float32).reshape(1, -1))
        samples += max((len(a) for a in feeds.values() if np.ndim(a)), default=1)
        if told:
            told(samples)
        if samples >= limit:
            break
    if not samples:
        raise InputError("there is nothing to calibrate on", mend="give at least one batch; some hundreds are better")
    tensors = {name: _range(o, method) for name, o in observers.items()}
    return Calibration(method, samples, tensors, alarms(samples, tensors, inputs))


def _range(o: Observer, method: str) -> TensorRange:
    found, whole = chosen(o, method), minmax(o)
    x = o.low + (o.high - o.low) / len(o.counts) * (np.arange(len(o.counts)) + 0.5)
    outside = float(o.counts[(x < found.low) | (x > found.high)].sum() / max(1, o.seen))
    return TensorRange(found.low, found.high, whole.low if o.least > 0 else o.least, o.most, o.seen, o.odd, outside,
                       _short(o.peaks), _short(o.means), _short(o.energy), float(f"{o.span:.6g}"))


def _short(values: np.ndarray) -> tuple[float, ...]:
    """Six digits are enough for a file to read."""
    return tuple(float(f"{v:.6g}") for v in values)


def alarms(samples: int, tensors: Mapping[str, TensorRange], inputs: Mapping[str, Observer]) -> tuple[str, ...]:
    """What looks wrong with the data, each with a mend."""
    found = []
    if samples < FEW:
        found.append(f"{samples} samples are few: ranges may be too narrow; give {FEW} or more")
    for name, o in inputs.items():
        if o.seen and o.most == o.least:
            found.append(f"input '{name}' is {o.most:g} everywhere: give real samples")
        elif o.seen and o.least >= 0 and o.most > 64 and o.most <= 255:
            found.append(f"input '{name}' spans {o.least:g}..{o.most:g}, like bytes of an image: if the model wants "
                         "normalised pixels, give them as it gets them in use")
    for name, t in tensors.items():
        if t.odd:
            found.append(f"'{name}' has {t.odd} NaN or infinite values: the model overflows on these samples")
        if t.values and t.most == t.least:
            found.append(f"'{name}' is {t.most:g} everywhere: these samples do not reach that part of the model")
    return tuple(found)


def write_calibration(calibration: Calibration, path: str | os.PathLike[str]) -> None:
    """Write the file: JSON, one tensor a line."""
    head = {"ingot_calibration": _VERSION, "method": calibration.method, "samples": calibration.samples,
            "alarms": list(calibration.alarms)}
    lines = [f"  {json.dumps(name)}: {json.dumps(asdict(t))}" for name, t in calibration.tensors.items()]
    text = json.dumps(head)[:-1] + ', "tensors": {\n' + ",\n".join(lines) + "\n}}\n"
    Path(path).write_text(text)


def read_calibration(path: str | os.PathLike[str]) -> Calibration:
    """The calibration of a file. Raises InputError for a file that is none."""
    try:
        found = json.loads(Path(path).read_text())
        if found.get("ingot_calibration") != _VERSION:
            raise ValueError("it is no calibration of this version")
        tensors = {name: _tensor(t) for name, t in found["tensors"].items()}
        return Calibration(found["method"], int(found["samples"]), tensors, tuple(found["alarms"]))
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise InputError(f"cannot read the calibration {path}", why=(str(error),),
                         mend="write it with --calibrate DATA --scales FILE") from None


def _tensor(found: Mapping[str, Any]) -> TensorRange:
    known: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in found.items()}
    return TensorRange(**known)


__all__ = ["Calibration", "TensorRange", "alarms", "calibrate", "read_calibration", "write_calibration"]
