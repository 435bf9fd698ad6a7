"""From traffic to advice: what is recorded, simulated, recommended and diagnosed."""
import itertools
import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

pytest.importorskip("yaml")
pytest.importorskip("grpc")
from ingot.cli import main
from ingot.errors import InputError
from ingot.serve.batch import CostPolicy, Limits, PlainPolicy
from ingot.serve.cost import CostCurve
from ingot.serve.diagnose import diagnose
from ingot.serve.load import poisson
from ingot.serve.recommend import best_points, profile_of, recommend
from ingot.serve.simulate import Offered, highest_speed, simulate
from ingot.serve.traffic import Arrival, read_traffic
from tests.serve_running import add_model, serving
from tests.test_serve_faults import double, model_of, post

AMORTISED = CostCurve({0: tuple((n, 0.010 + 0.001 * n) for n in (1, 2, 4, 8, 16))})
LINEAR = CostCurve({0: tuple((n, 0.010 * n) for n in (1, 2, 4, 8, 16))})
LIMITS = Limits(1, 16)


def test_a_queue_on_paper_is_the_queue_of_the_textbook():
    """One server of fixed time under Poisson arrivals: M/D/1, whose mean wait is rho / (2 (1 - rho)) services."""
    traffic = [Offered(at) for at in poisson(60.0, 400.0, 1)]
    found = simulate(traffic, PlainPolicy(LIMITS, 1), LINEAR, overhead=0.0)
    wanted = 0.010 * (1 + 0.6 / (2 * 0.4))
    assert np.mean(found.latencies) == pytest.approx(wanted, rel=0.05)
    assert found.busy == pytest.approx(0.6, rel=0.05)
    assert set(found.batches) == {1}


def test_batching_bears_more_where_a_batch_is_cheap_and_no_less_where_not():
    traffic = [Offered(at) for at in poisson(50.0, 20.0)]
    alone, cost = PlainPolicy(LIMITS, 1), CostPolicy(LIMITS, AMORTISED, 0.1)
    assert highest_speed(traffic, cost, AMORTISED, 0.1) > 3 * highest_speed(traffic, alone, AMORTISED, 0.1)
    cost = CostPolicy(LIMITS, LINEAR, 0.1)
    assert highest_speed(traffic, cost, LINEAR, 0.1) >= 0.97 * highest_speed(traffic, alone, LINEAR, 0.1)


@settings(max_examples=60, deadline=None)
@given(st.dictionaries(st.integers(1, 64), st.integers(1, 50), min_size=1, max_size=7), st.integers(1, 4))
def test_the_proposed_points_are_the_best_there_are(counts, points):
    """Against every choice of points: dynamic programming finds the least."""
    curve = CostCurve({n: ((1, 0.001 * n + 0.0001 * (n % 7)),) for n in range(1, 65)})

    def total(chosen):
        return sum(c * curve.seconds(1, min(p for p in chosen if p >= n)) for n, c in counts.items())
    found = best_points(counts, curve, 0, points, True)
    assert len(found) <= points
    assert max(found) == max(counts)
    others = [c for k in range(1, points + 1) for c in itertools.combinations(sorted(counts), k)
              if max(c) == max(counts)]
    assert total(found) == pytest.approx(min(map(total, others)))


def test_the_profile_is_what_was_sent():
    arrivals = [Arrival(0.1 * i, "m", {"ids": (1, n)}, {}) for i, n in enumerate([16] * 10 + [128] * 3 + [5])]
    assert profile_of(arrivals, {"ids": ("N", "S"), "w": (3,)}, "N") == {"ids": "1..1..32x5..128..128", "w": "3"}


def test_a_recommendation_takes_the_arrangement_that_bears_most():
    """Two instances of one thread are better than one of two where one thread is less than twice as slow."""
    traffic = [Offered(at) for at in poisson(80.0, 10.0)]
    one = CostCurve({0: tuple((n, 0.012 * n) for n in (1, 2, 4, 8, 16))})
    found = recommend(traffic, {2: LINEAR, 1: one}, 16, 1, 0.1)
    assert (found.best.instances, found.best.threads) == (2, 1)
    assert found.best.speed > found.now.speed
    assert found.points[0] == 1
    assert "instances: 2" in found.best.to_yaml()


def status(**more):
    """A healthy model of a server's status."""
    told = {"name": "m", "off_profile": 0.0, "off_profile_seconds": 0.0, "predicted_seconds": 10.0,
            "totals": {"compute": 10.0, "request": 20.0, "decode": 0.1, "encode": 0.1, "queue": 1.0},
            "tuned": {"rows": 8, "length": 0}, "batches": {"8": 100}, "items": 800, "curve": AMORTISED.to_json(),
            "facts": {"precision": {"f32": 1.0}, "launches": 10, "native": 10}}
    return told | more


@pytest.mark.parametrize(("suspect", "more"), [
    ("profile shape", {"off_profile": 1.0, "off_profile_seconds": 6.0}),
    ("served batches", {"batches": {"1": 500}, "items": 500}),
    ("contention", {"predicted_seconds": 4.0}),
    ("precision", {"facts": {"precision": {"f32": 1.0}, "launches": 10, "native": 5}}),
    ("pre-processing", {"totals": {"compute": 10.0, "request": 20.0, "decode": 9.0, "encode": 1.0, "queue": 1.0}})])
def test_each_suspect_is_confirmed_by_what_it_does_and_by_nothing_else(suspect, more):
    findings = diagnose(status(**more), [])
    assert [f.suspect for f in findings] == ["profile shape", "served batches", "contention", "precision",
                                             "pre-processing"]
    told = {f.suspect for f in findings if f.confirmed}
    assert told - {"served batches"} == {suspect} - {"served batches"}
    assert suspect in told


def test_a_record_that_is_none_is_refused(tmp_path):
    path = tmp_path / "traffic.jsonl"
    with pytest.raises(InputError, match="cannot read"):
        read_traffic(path)
    path.write_text("{}\n")
    with pytest.raises(InputError, match="line 1"):
        read_traffic(path)
    path.write_text("")
    with pytest.raises(InputError, match="no requests"):
        read_traffic(path)


@pytest.mark.cpu
def test_recorded_recommended_rebuilt_replayed_and_diagnosed(tmp_path, capsys):
    """The whole way on the command line."""
    folder = add_model(tmp_path / "models", "double")
    record = tmp_path / "traffic.jsonl"
    with serving(tmp_path / "models", "--record", str(record), "--record-payload", log=tmp_path / "log") as server:
        for _ in range(20):
            assert post(server, "/v2/models/double/infer", double(rows=3))[0] == 200
        assert model_of(server, "double")["off_profile"] == 1.0
        assert main(["diagnose", "double", "--at", server.http, "--json"]) == 0
        findings = {f["suspect"]: f["verdict"] for f in json.loads(capsys.readouterr().out)["findings"]}
        assert findings["precision"] == "ruled out"
        assert main(["diagnose", "nothing", "--at", server.http]) == 1
    arrivals = read_traffic(record, "double")
    assert len(arrivals) == 20
    assert arrivals[0].rows == 3
    assert np.frombuffer(arrivals[0].payload["x"], np.float32).tolist() == [1.0] * 12
    capsys.readouterr()
    config = tmp_path / "config.yaml"
    assert main(["recommend", str(record), str(folder / "model.ingot"), "-o", str(config), "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["shapes"] == ["x:1..3..16x4"]
    assert config.read_text() == told["config"]
    assert main(["bench", str(folder / "model.ingot"), "--traffic", str(record), "--closed", "2", "--seconds", "0.5",
                 "--json"]) == 0
    served = json.loads(capsys.readouterr().out)["served"]
    assert [row["failed"] for row in served] == [0, 0]


@pytest.mark.cpu
def test_a_build_takes_its_profile_from_traffic(tmp_path, capsys):
    folder = add_model(tmp_path, "double", onnx_file=True)
    record = tmp_path / "traffic.jsonl"
    record.write_text("".join(json.dumps({"at": i, "model": "d", "shapes": {"x": [5, 4]}}) + "\n" for i in range(9)))
    out = tmp_path / "built.ingot"
    assert main(["build", str(folder / "model.onnx"), "-o", str(out), "--no-tune", "--profile-from", str(record)]) == 0
    capsys.readouterr()
    assert main(["inspect", str(out), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["symbols"] == ["N: 1..5..32"]
