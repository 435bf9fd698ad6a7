"""What a run on a GPU is made of: buffers of a request, what sizes fix, graphs and the race between them."""
from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from ingot.runtime.cuda.driver import Driver, Handle

_RACE_SECONDS = 0.01    # about how long each graph is timed


@dataclass(frozen=True)
class Slot:
    """Buffers of one request: inputs, outputs written by kernels, and pinned memory of the host for both."""

    inputs: tuple[int, ...]
    outputs: tuple[int, ...]            # per output; 0 where it is copied from elsewhere
    pinned_in: tuple[int, ...]
    pinned_out: tuple[int, ...]
    kept: tuple[object, ...] = ()


@dataclass(frozen=True)
class Bound:
    """What one set of input shapes fixes."""

    shapes: tuple[tuple[int, ...], ...]
    sizes: Mapping[str, int]
    given: tuple[int, ...]                  # bytes per input
    results: tuple[tuple[int, ...], ...]    # shape per output
    made: tuple[int, ...]                   # bytes per output


@dataclass(frozen=True)
class OnHost:
    """A launch of the program that runs on the host, between two graphs."""

    index: int


@dataclass(frozen=True)
class HostRun:
    """A run from pinned memory to pinned memory as one graph, and numpy's views of both."""

    graph: Handle
    inputs: tuple[np.ndarray, ...]
    outputs: tuple[np.ndarray, ...]
    kinds: tuple[tuple[str, np.dtype], ...]     # name and type of every output


Captured = tuple["Handle | OnHost", ...]    # graphs, and what runs between them


def fastest(driver: Driver, queue: Handle, graphs: Sequence[Handle | None]) -> Handle:
    """The graph whose replay ends soonest, as the host sees it; the others are dropped. None stands for none."""
    able = [g for g in graphs if g is not None]
    if len(able) == 1:
        return able[0]

    def seconds(graph: Handle) -> float:
        begin = time.perf_counter()
        driver.replay(graph, queue)
        driver.finish(queue)
        return time.perf_counter() - begin

    first = max(min(seconds(g) for _ in range(2)) for g in able)
    rounds = max(3, min(30, int(_RACE_SECONDS / max(first, 1e-6))))
    times = [[seconds(g) for g in able] for _ in range(rounds)]
    best = min(range(len(able)), key=lambda k: sorted(t[k] for t in times)[rounds // 2])
    for k, graph in enumerate(able):
        if k != best:
            driver.drop(graph)
    return able[best]


__all__ = ["Bound", "Captured", "HostRun", "OnHost", "Slot", "fastest"]
