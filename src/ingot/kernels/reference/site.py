"""A site's meaning: its steps, one after the other, on the reference evaluator."""
from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from types import MappingProxyType

import numpy as np

from ingot.graph import Node
from ingot.kernels.tactic import Site, Step
from ingot.ops.reference import evaluate

_FLOATS = ("f16", "bf16", "f32", "f64")


def run_wide(site: Site, arrays: Sequence[np.ndarray | None],
             bindings: Mapping[str, int] | None = None) -> list[np.ndarray]:
    """As `run_site`, in f64 throughout, whatever floating types the site has: the right answer but for its rounding."""
    def step(x: Step) -> Step:
        attrs = tuple((k, "f64" if x.op == "Cast" and k == "to" and v in _FLOATS else v) for k, v in x.attrs)
        return replace(x, attrs=attrs)

    wide = [a.astype(np.float64) if a is not None and (a.dtype.kind == "f" or a.dtype.name == "bfloat16") else a
            for a in arrays]
    with np.errstate(all="ignore"):
        return run_site(replace(site, steps=tuple(map(step, site.steps))), wide, bindings)


def run_site(site: Site, arrays: Sequence[np.ndarray | None],
             bindings: Mapping[str, int] | None = None) -> list[np.ndarray]:
    """The outputs of a site for logical (plain, dense) arrays of its inputs, at sizes of its symbols."""
    results: list[np.ndarray] = []
    last: list[np.ndarray] = []
    for number, step in enumerate(site.steps):
        names = tuple("" if i is None else f"v{i}" if i >= 0 else f"s{~i}" for i in step.inputs)
        outputs = tuple("" if k in step.absent else f"s{number}.{k}" for k in range(len(step.types) + len(step.absent)))
        node = Node(step.op, names, outputs, MappingProxyType(dict(step.attrs)))
        given = [None if i is None else arrays[i] if i >= 0 else results[~i] for i in step.inputs]
        made = evaluate(node, given, dict(bindings or {}))
        last = [np.asarray(a) for k, a in enumerate(made) if k not in step.absent]
        results.append(last[0])
    return last
