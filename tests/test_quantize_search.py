"""The search for sites that break int8, and plans as files."""
from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from ingot.compiler.build import build_with_report
from ingot.compiler.front import front
from ingot.compiler.options import BuildOptions
from ingot.compiler.precision import calibrated
from ingot.compiler.sensitivity import Judge, dissimilarity, read_plan, search, write_plan
from ingot.errors import InputError
from ingot.graph import Graph, GraphBuilder, TensorType
from ingot.graph.types import F32
from ingot.ops import infer
from ingot.passes import simplified
from ingot.quantize import quantisable
from ingot.quantize.rounding import Manner
from ingot.report.front import front_plot, front_table
from ingot.runtime.host import host_target

BROKEN = (2, 5, 9)          # layers whose input has one channel that drowns the others
LAYERS, WIDTH = 12, 48


def broken_net() -> Graph:
    """A chain of layers, three of which read one channel 3,000 times larger than the rest and do not use it."""
    rng = np.random.default_rng(0)
    build = GraphBuilder(infer)
    x = build.input("x", TensorType(F32, (16, WIDTH)))
    for k in range(LAYERS):
        weight = rng.standard_normal((WIDTH, WIDTH)).astype(np.float32) * (2 / WIDTH) ** 0.5
        if k in BROKEN:
            far = np.zeros(WIDTH, np.float32)
            far[7] = 3000.0
            x = build.node("Add", x, build.constant(f"far{k}", far))
            weight[7] = 0.0
        x = build.node("Relu", x) if k else x
        x = build.node("MatMul", x, build.constant(f"w{k}", weight), name=f"layer{k}")
        x = build.node("Add", x, build.constant(f"b{k}", 0.1 * rng.standard_normal(WIDTH).astype(np.float32)))
    return build.finish(x)


def data() -> list[dict[str, np.ndarray]]:
    rng = np.random.default_rng(1)
    return [{"x": rng.standard_normal((16, WIDTH)).astype(np.float32)} for _ in range(6)]


@pytest.mark.cpu
def test_the_search_finds_exactly_the_layers_that_break() -> None:
    graph, target = broken_net(), host_target(2)
    base = simplified(graph, target)
    calibration = calibrated(graph, target, data(), method="minmax")
    sites = quantisable(base)
    from_layer = {s.name: k for k in range(LAYERS) for s in sites if s.name.startswith(f"layer{k}")
                  and not s.name[len(f"layer{k}"):len(f"layer{k}") + 1].isdigit()}
    assert len(sites) == LAYERS == len(from_layer)
    judge = Judge(base, target, calibration, data(), manner=Manner(smooth=()))
    found = search(judge, sites, budget=1.0)
    assert found.whole > 5.0
    assert {from_layer[n] for n in found.floats} == set(BROKEN)
    assert found.error <= 1.0
    assert found.measured < 2 * LAYERS + 12


@pytest.mark.cpu
def test_a_budget_makes_a_mixed_engine_that_meets_it(tmp_path) -> None:
    options = BuildOptions(precision="int8", tune=False, threads=2, method="minmax", accuracy_budget=0.5)
    made = build_with_report(broken_net(), None, options, calibration=data())
    assert made.plan is not None and made.plan.search is not None
    assert made.plan.search.error <= 0.5
    assert made.plan.accuracy[made.engine.graph.outputs[0]] >= 0.995
    write_plan({s.site.name: "int8" if s.kept else "f32" for s in made.plan.sites}, tmp_path / "plan.json")
    again = build_with_report(broken_net(), None, BuildOptions(precision="int8", tune=False, threads=2, method="minmax",
                                                               plan=tmp_path / "plan.json"), calibration=data())
    assert {s.name for s in again.plan.chosen} == {s.name for s in made.plan.chosen}


def test_a_metric_counts_in_points() -> None:
    graph, target = broken_net(), host_target(2)
    base = simplified(graph, target)
    calibration = calibrated(graph, target, data(), method="minmax")
    judge = Judge(base, target, calibration, data(), metric=lambda feeds, outputs: 0.25)
    assert judge.error(quantisable(base)) == 0.0


def test_dissimilarity_is_in_percent_and_knows_nan() -> None:
    x = np.eye(4)
    assert dissimilarity({"y": x}, {"y": 2 * x}) == pytest.approx(0.0)
    assert dissimilarity({"y": x}, {"y": -x}) == pytest.approx(200.0)
    assert dissimilarity({"y": x}, {"y": x * np.nan}) > 100.0


def test_a_plan_that_asks_for_nonsense_is_refused(tmp_path) -> None:
    (tmp_path / "plan.json").write_text('{"sites": {"a": "int3"}}')
    with pytest.raises(InputError, match="int3"):
        read_plan(tmp_path / "plan.json")
    write_plan({"nothing here": "int8"}, tmp_path / "plan.json")
    with pytest.raises(InputError, match="that the model has not"):
        build_with_report(broken_net(), None, BuildOptions(precision="int8", tune=False, plan=tmp_path / "plan.json"),
                          calibration=data())


@pytest.mark.cpu
def test_the_front_goes_from_all_integers_to_all_floats(tmp_path) -> None:
    graph, target = broken_net(), host_target(2)
    base = simplified(graph, target)
    judge = Judge(base, target, calibrated(graph, target, data(), method="minmax"), data(), manner=Manner(smooth=()))
    sites = quantisable(base)
    found = front(base, target, judge, sites, None, (1.0, 100.0))
    assert {len(p.floats) for p in found} == {0, len(BROKEN), LAYERS}
    assert [p.error for p in found] == sorted(p.error for p in found)
    seconds = {0: 1.0, len(BROKEN): 3.0, LAYERS: 2.0}
    timed = [replace(p, seconds=seconds[len(p.floats)], beaten=len(p.floats) == len(BROKEN)) for p in found]
    drawn = front_plot(timed, LAYERS, "broken")
    assert drawn.count("<circle") == 3 and drawn.count("#999") == 2
    assert [r[:2] for r in front_table(timed, LAYERS).rows] == [(LAYERS - len(p.floats), len(p.floats)) for p in timed]
