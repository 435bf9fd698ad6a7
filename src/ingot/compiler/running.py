"""Graphs run as they are, for what a build wants to know of them: ranges, errors, outputs."""
from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

import numpy as np

from ingot.engine import Engine, make_variant
from ingot.graph import Graph
from ingot.lower import lower
from ingot.passes import optimize
from ingot.runtime.session import Session
from ingot.target import Target

Feeds = Mapping[str, np.ndarray]


def watching(graph: Graph, target: Target, values: Sequence[str]) -> Callable[[Feeds], Mapping[str, np.ndarray]]:
    """Run a graph (as `simplified` left it) with the given values as its outputs; kernels untuned."""
    watched = optimize(replace(graph, outputs=tuple(dict.fromkeys(values))), target)
    variant = make_variant(lower(watched, target), target)
    session = Session(Engine("watched", graph, (variant,)), variant=variant)
    return lambda feeds: session.run(dict(feeds))


__all__ = ["Feeds", "watching"]
