"""ONNX's own node tests through the kernels: what a tactic serves must give what the reference gives."""
from __future__ import annotations

import numpy as np
import pytest
from kernel_checks import same, targets
from test_onnx_nodes import _array, _cases, _specialised

from ingot.errors import IngotError
from ingot.frontend import load
from ingot.graph import Graph, Node
from ingot.kernels import TACTICS, Operand, Site, Step
from ingot.ops.reference import evaluate
from ingot.runtime.harness import run_logical

pytestmark = [pytest.mark.cpu, pytest.mark.slow]


def _site(graph: Graph, node: Node) -> tuple[Site, list[str]]:
    reads = list(dict.fromkeys(filter(None, node.inputs)))
    slots = tuple(reads.index(i) if i else None for i in node.inputs)
    outs = tuple(graph.types[o] for o in node.outputs if o)
    step = Step(node.op, slots, tuple(sorted(node.attrs.items())), outs)
    return Site((step,), tuple(Operand(graph.types[r]) for r in reads), tuple(Operand(o) for o in outs)), reads


def _checked(graph: Graph, feeds: dict[str, np.ndarray]) -> tuple[int, list[str]]:
    """How many launches ran, and what went wrong."""
    values: dict[str, np.ndarray] = {**{k: np.asarray(v) for k, v in graph.constants.items()}, **feeds}
    ran, wrong = 0, []
    target = next(reversed(targets().values()))
    for node in graph.nodes:
        made = evaluate(node, [values[i] if i else None for i in node.inputs], {})
        values.update((o, a) for o, a in zip(node.outputs, made, strict=True) if o)
        site, reads = _site(graph, node)
        if not all(o.type.static for o in (*site.inputs, *site.outputs)):
            continue
        for tactic in TACTICS["x86"]:
            if tactic.declines(site, target) is not None:
                continue
            ran += 1
            params = next(iter(tactic.space(site, target)))
            try:
                kernel = tactic.emit(site, params, target)
                got = run_logical(kernel, site, target, [values[r] for r in reads], {}, 2)
                for g, o in zip(got, filter(None, node.outputs), strict=True):
                    same(g, values[o], f"{tactic.name} on {site}")
            except (AssertionError, IngotError) as error:
                wrong.append(f"{tactic.name} on {site} {dict(node.attrs)}: {str(error)[:400]}")
    return ran, wrong


def test_the_node_tests_run_natively() -> None:
    ran, wrong = 0, []
    for case in _cases():
        inputs, outputs = case.data_sets[0]     # type: ignore[attr-defined]
        if any(isinstance(v, list) or v is None for v in (*inputs, *outputs)):
            continue
        feeds = {v.name: _array(a) for v, a in zip(case.model.graph.input, inputs, strict=False)}  # type: ignore[attr-defined]
        try:
            graph = load(_specialised(case.model, feeds))   # type: ignore[attr-defined]
        except IngotError:
            continue
        count, bad = _checked(graph, {n: feeds[n] for n in graph.inputs})
        ran += count
        wrong += [f"{case.name}: {b}" for b in bad]      # type: ignore[attr-defined]
    assert not wrong, f"{len(wrong)} of {ran}:\n" + "\n".join(wrong)
    assert ran > 1000
