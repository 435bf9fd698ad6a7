"""A site's meaning: its steps, one after the other, on the reference evaluator."""
from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import MappingProxyType

import numpy as np

from ingot.graph import Node
from ingot.kernels.tactic import Site
from ingot.ops.reference import evaluate


def run_site(site: Site, arrays: Sequence[np.ndarray | None],
             bindings: Mapping[str, int] | None = None) -> list[np.ndarray]:
    """The outputs of a site for logical (plain, dense) arrays of its inputs, at sizes of its symbols."""
    results: list[np.ndarray] = []
    last: list[np.ndarray] = []
    for number, step in enumerate(site.steps):
        names = tuple("" if i is None else f"v{i}" if i >= 0 else f"s{~i}" for i in step.inputs)
        node = Node(step.op, names, tuple(f"s{number}" if k == 0 else f"s{number}.{k}" for k in range(len(step.types))),
                    MappingProxyType(dict(step.attrs)))
        given = [None if i is None else arrays[i] if i >= 0 else results[~i] for i in step.inputs]
        last = [np.asarray(a) for a in evaluate(node, given, dict(bindings or {}))]
        results.append(last[0])
    return last
