"""Which requests run together, and when: pure decisions; and padding, end to end."""
import asyncio
import itertools
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

pytest.importorskip("yaml")
from ingot.errors import InputError
from ingot.serve.batch import Batch, CostPolicy, Limits, PlainPolicy, Wait
from ingot.serve.config import config_from, read_config
from ingot.serve.cost import CostCurve, grid, measured
from ingot.serve.options import milliseconds
from ingot.serve.simulate import Offered, simulate
from ingot.serve.tensor import Request
from tests.serve_running import add_model, serving


def request(arrived=0.0, rows=1, length=0, priority=0, key=(), deadline=float("inf")):
    made = Request("", [], None, priority, deadline)
    made.arrived, made.rows, made.length, made.key = arrived, rows, length, key
    return made


def curve(**seconds):
    """{rows: seconds} at one length."""
    return CostCurve({0: tuple(sorted((int(k[1:]), v) for k, v in seconds.items()))})


AMORTISED = CostCurve({0: tuple((n, 0.010 + 0.001 * n) for n in (1, 2, 4, 8, 16))})
LINEAR = CostCurve({0: tuple((n, 0.010 * n) for n in (1, 2, 4, 8, 16))})
LIMITS = Limits(1, 16)


def test_where_a_batch_gains_nothing_each_runs_alone():
    queue = [request() for _ in range(10)]
    choice = CostPolicy(LIMITS, LINEAR).decide(queue, 0.0, 100.0)
    assert isinstance(choice, Batch)
    assert (len(choice.requests), choice.rows) == (1, 1)
    assert choice.requests[0] is queue[0]


def test_where_a_batch_gains_all_run_together():
    choice = CostPolicy(LIMITS, AMORTISED).decide([request() for _ in range(10)], 0.0, 100.0)
    assert len(choice.requests) == 10


def test_a_batch_is_never_slower_per_item_than_two_smaller_ones():
    """A cliff behind 4 rows: 8 would take longer than twice 4."""
    cliff = curve(n1=0.010, n2=0.011, n4=0.012, n5=0.030, n8=0.032, n16=0.060)
    for count in range(1, 17):
        choice = CostPolicy(LIMITS, cliff).decide([request() for _ in range(count)], 0.0, 0.0)
        assert len(choice.requests) <= 4, count


def test_padding_to_a_cheaper_profile_point_is_counted():
    """Three rows cost more than four: an engine tuned at 4."""
    tuned = curve(n1=0.010, n2=0.018, n3=0.030, n4=0.012, n8=0.040)
    choice = CostPolicy(LIMITS, tuned).decide([request() for _ in range(3)], 0.0, 0.0)
    assert (len(choice.requests), choice.rows) == (3, 4)


def test_it_waits_only_with_a_goal_and_only_while_that_pays():
    queue = [request()]
    assert isinstance(CostPolicy(LIMITS, AMORTISED).decide(queue, 0.0, 1000.0), Batch)
    soon = CostPolicy(LIMITS, AMORTISED, goal=0.1).decide(queue, 0.0, 1000.0)
    assert isinstance(soon, Wait)
    assert 0 < soon.until <= 0.1
    assert isinstance(CostPolicy(LIMITS, AMORTISED, goal=0.1).decide(queue, 0.0, 5.0), Batch)      # too few come
    assert isinstance(CostPolicy(LIMITS, LINEAR, goal=0.1).decide(queue, 0.0, 1000.0), Batch)      # nothing to gain
    assert isinstance(CostPolicy(LIMITS, AMORTISED, goal=0.1).decide(queue, 0.09, 1000.0), Batch)  # no time left


def test_a_batch_keeps_within_the_goal_of_its_most_urgent():
    queue = [request() for _ in range(16)]
    choice = CostPolicy(LIMITS, AMORTISED, goal=0.025).decide(queue, 0.005, 0.0)
    assert AMORTISED.seconds(choice.rows) <= 0.0151
    assert len(choice.requests) >= 1


def test_what_is_late_already_does_not_make_others_late():
    """Two that missed the goal wait behind one that can be in time; alone they run; for ever they do not wait."""
    queue = [request(arrived=0.0), request(arrived=0.01), request(arrived=0.13)]
    policy = CostPolicy(LIMITS, LINEAR, goal=0.1)
    assert policy.decide(queue, 0.14, 0.0).requests == (queue[2],)
    assert policy.decide(queue[:2], 0.14, 0.0).requests == (queue[0],)
    assert policy.decide([*queue[:2], request(arrived=1.4)], 1.41, 0.0).requests == (queue[0],)
    urgent = request(arrived=0.0, priority=-1)
    assert policy.decide([urgent, *queue], 0.14, 0.0).requests == (urgent,)
    assert CostPolicy(LIMITS, LINEAR).decide(queue, 0.14, 0.0).requests == (queue[0],)      # no goal: in their order


def test_behind_a_burst_more_are_in_time_than_first_come_first_served():
    traffic = [Offered(0.0)] * 30 + [Offered(0.05 + 0.012 * i) for i in range(300)]
    goal = 0.1
    late = {name: sum(t > goal for t in simulate(traffic, policy, LINEAR).latencies)
            for name, policy in (("cost", CostPolicy(LIMITS, LINEAR, goal)), ("plain", PlainPolicy(LIMITS, 1)))}
    assert late["cost"] < 30 < 100 < late["plain"]


def test_ragged_requests_are_cut_by_length():
    """Short with short, long with long: padding the short ones to 64 would cost more than a run of their own."""
    ragged = CostCurve({n: tuple((k, 0.002 + 0.0001 * n * k) for k in (1, 2, 4, 8)) for n in (8, 64)})
    limits = Limits(1, 8, (8, 64))
    queue = [request(length=n) for n in (5, 60, 7, 64, 3, 8)]
    policy = CostPolicy(limits, ragged)
    first = policy.decide(queue, 0.0, 0.0)
    assert (first.length, sorted(r.length for r in first.requests)) == (8, [3, 5, 7, 8])
    rest = [r for r in queue if r not in first.requests]
    second = policy.decide(rest, 0.0, 0.0)
    assert (second.length, sorted(r.length for r in second.requests)) == (64, [60, 64])


@settings(max_examples=200, deadline=None)
@given(st.lists(st.tuples(st.integers(1, 5), st.integers(1, 64)), min_size=1, max_size=12),
       st.lists(st.floats(1e-4, 1e-2), min_size=5, max_size=5))
def test_every_request_runs_once_in_batches_that_fit(shapes, steps):
    """Whatever the curve and the queue: the most urgent is in the next batch, limits hold, and the queue empties."""
    seconds = list(itertools.accumulate(steps))
    points = CostCurve({n: tuple((k, s * (1 + n / 16)) for k, s in zip((1, 2, 4, 8, 16), seconds, strict=True))
                        for n in (8, 16, 64)})
    policy = CostPolicy(Limits(1, 16, (8, 16, 64)), points)
    queue = [request(arrived=i, rows=rows, length=length) for i, (rows, length) in enumerate(shapes)]
    while queue:
        batch = policy.decide(queue, 100.0, 0.0)
        assert queue[0] in batch.requests
        assert batch.filled <= batch.rows <= 16
        assert all(r.length <= batch.length for r in batch.requests)
        whole = points.seconds(batch.filled, batch.length)
        for cut in range(1, len(batch.requests)):
            order = sorted(batch.requests, key=lambda r: r.length)
            parts = [order[:cut], order[cut:]]
            apart = sum(policy.cost(sum(r.rows for r in p), policy.limits.bucket(p[-1].length))[0] for p in parts)
            assert policy.cost(batch.filled, batch.length)[0] <= apart + policy.overhead + 1e-12, whole
        queue = [r for r in queue if r not in batch.requests]


def test_plain_rules():
    queue = [request(arrived=i * 0.001) for i in range(6)]
    policy = PlainPolicy(LIMITS, 8, max_delay=0.01, preferred=(4,))
    assert [r.arrived for r in policy.decide(queue, 0.006, 0.0).requests] == [0.0, 0.001, 0.002, 0.003]
    assert policy.decide(queue[:3], 0.006, 0.0) == Wait(0.01)
    assert len(policy.decide(queue[:3], 0.011, 0.0).requests) == 3
    assert len(PlainPolicy(LIMITS, 1).decide(queue, 0.006, 0.0).requests) == 1


def test_other_keys_and_whoever_must_be_alone_stay_apart():
    queue = [request(key=(1,)), request(key=(2,)), request(key=(1,))]
    assert len(CostPolicy(LIMITS, AMORTISED).decide(queue, 0.0, 0.0).requests) == 2
    queue[0].alone = True
    assert CostPolicy(LIMITS, AMORTISED).decide(queue, 0.0, 0.0).requests == (queue[0],)


def test_a_curve_is_linear_between_points_and_goes_on_beyond_them():
    line = curve(n2=0.020, n4=0.030)
    assert line.seconds(1) == 0.020
    assert line.seconds(3) == pytest.approx(0.025)
    assert line.seconds(8) == pytest.approx(0.050)
    assert CostCurve.from_json(line.to_json()) == line
    assert grid(1, 8, 32) == (1, 2, 3, 4, 6, 7, 8, 9, 12, 16, 24, 32)


def test_measuring_a_curve_stops_at_its_budget():
    taken = []
    found = measured(lambda n, length: taken.append((n, length)), (1, 2, 4), (0,), budget=0.0)
    assert [n for n, _ in found.points[0]] == [1, 2]


def test_a_machine_that_is_slow_for_a_while_makes_no_one_shape_look_dear(monkeypatch):
    """Each run takes a second a row; the first six runs of all take four times as long."""
    clock, runs = [0.0], []
    monkeypatch.setattr("ingot.serve.cost.time", SimpleNamespace(perf_counter=lambda: clock[0]))

    def run(n, length):
        runs.append(n)
        clock[0] += 0.001 * n * (4 if len(runs) <= 6 else 1)
    found = measured(run, (1, 2, 4), (0,))
    assert [(n, round(s, 6)) for n, s in found.points[0]] == [(1, 0.001), (2, 0.002), (4, 0.004)]


def test_a_configuration_says_what_is_wrong_with_it(tmp_path):
    assert read_config(tmp_path / "none.yaml").batching == "cost"
    path = tmp_path / "config.yaml"
    assert config_from({"pad": {"x": -1}, "buckets": [8, 16], "max_delay": 2.5}, path).pad == {"x": -1.0}
    for told, why in (({"instance": 2}, "unknown name"), ({"instances": 0}, "instances is 0"), ([], "no names"),
                      ({"queue": "long"}, "queue is 'long'"), ({"batching": "greedy"}, "batching is 'greedy'"),
                      ({"max_batch": 1.5}, "max_batch is 1.5"), ({"load": 1}, "load is 1"),
                      ({"device": "gpu"}, "device is 'gpu'")):
        with pytest.raises(InputError, match=why):
            config_from(told, path)
    path.write_text("a: [")
    with pytest.raises(InputError, match="cannot be read"):
        read_config(path)
    assert (milliseconds("20ms"), milliseconds("0.5 s"), milliseconds("800us"), milliseconds("7")) == (20, 500, 0.8, 7)


@pytest.mark.cpu
def test_ragged_requests_are_padded_together_and_cut_apart(tmp_path):
    aio = pytest.importorskip("tritonclient.grpc.aio")
    add_model(tmp_path, "ragged", "pad: {x: 0}\nbuckets: [4, 16, 64]\n")
    random = np.random.default_rng(0)
    rows = [random.standard_normal((1 + i % 3, 1 + i * 7 % 64)).astype(np.float32) for i in range(60)]

    async def one(client, x):
        tensor = aio.InferInput("x", list(x.shape), "FP32")
        tensor.set_data_from_numpy(x)
        answer = await client.infer("ragged", [tensor])
        assert np.array_equal(answer.as_numpy("twice"), 2 * x)
        assert np.allclose(answer.as_numpy("sum"), x.sum(1), atol=1e-5)

    async def run(at):
        async with aio.InferenceServerClient(at) as client:
            await asyncio.gather(*(one(client, x) for x in rows))
            told = await client.get_inference_statistics("ragged", as_json=True)
            return told["model_stats"][0]

    with serving(tmp_path, log=tmp_path / ".log") as server:
        stats = asyncio.run(run(server.grpc))
    assert int(stats["inference_count"]) == sum(len(x) for x in rows)
    assert int(stats["execution_count"]) < 60


@pytest.mark.cpu
def test_an_onnx_file_is_built_on_its_first_load_and_instances_share_the_work(tmp_path):
    client = pytest.importorskip("tritonclient.http")
    add_model(tmp_path, "double", "instances: 2\n", onnx_file=True)
    with serving(tmp_path, log=tmp_path / ".log", env={"INGOT_CACHE": str(tmp_path / "cache")}) as server, \
            client.InferenceServerClient(server.http) as at:
        tensor = client.InferInput("x", [2, 4], "FP32")
        tensor.set_data_from_numpy(np.ones((2, 4), np.float32))
        assert np.array_equal(at.infer("double", [tensor]).as_numpy("y"), np.full((2, 4), 2, np.float32))
    assert list((tmp_path / "cache" / "serve").glob("*.ingot"))
