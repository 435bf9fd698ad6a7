"""Beyond one machine: the container folder serves what it says, and replicas on Ray batch, refuse and retry rightly."""
import asyncio
import hashlib
import importlib
import json
import re
import subprocess
import sys
import types
import urllib.request

import numpy as np
import pytest
import yaml

import ingot
from ingot.errors import InputError
from ingot.serve.package import package
from tests.serve_running import QUICK, SMALL, serving, status

pytestmark = pytest.mark.cpu


@pytest.fixture(scope="module")
def engine(tmp_path_factory):
    make, shapes = SMALL["double"]
    path = tmp_path_factory.mktemp("beyond") / "double.ingot"
    ingot.save(ingot.build(make().SerializeToString(), shapes=shapes, options=QUICK), path)
    return path


@pytest.fixture(scope="module")
def container(engine, tmp_path_factory):
    folder = tmp_path_factory.mktemp("container") / "made"
    config = engine.parent / "config.yaml"
    config.write_text("max_batch: 4\n")
    wheel = engine.parent / "ingot-0.1.0-py3-none-any.whl"
    wheel.write_bytes(b"a wheel")
    package(engine, ingot.load(engine), folder, config, {"ingot": wheel}, seconds=0.05)
    return folder


# --- the container ------------------------------------------------------------------------------------------------

def test_evidence_names_every_file_by_its_hash(container, engine):
    told = json.loads((container / "evidence.json").read_text())
    files = {str(p.relative_to(container)) for p in container.rglob("*") if p.is_file()}
    assert set(told["files"]) == files - {"evidence.json"}
    for name, digest in told["files"].items():
        assert hashlib.sha256((container / name).read_bytes()).hexdigest() == digest, name
    assert told["sha256"] == hashlib.sha256(engine.read_bytes()).hexdigest()
    assert all(row["median_seconds"] > 0 for row in told["benchmark"])


def test_every_requirement_is_pinned_to_what_is_installed(container):
    lines = (container / "requirements.txt").read_text().splitlines()
    assert lines[-1] == "./wheels/ingot-0.1.0-py3-none-any.whl"
    assert (container / "wheels" / "ingot-0.1.0-py3-none-any.whl").exists()
    pins = dict(line.split("==") for line in lines[:-1])
    for name in ("numpy", "grpcio", "uvicorn", "click"):        # click is a dependency of a dependency
        assert pins[name] == importlib.metadata.version(name)


def test_the_container_serves_and_its_health_check_tells(container):
    dockerfile = (container / "Dockerfile").read_text()
    command = json.loads(re.search(r"^CMD (\[.*\])$", dockerfile, re.M)[1])
    assert command[:3] == ["ingot", "serve", "models"]
    check = json.loads(re.search(r'HEALTHCHECK .*CMD (\["python", "-c", \\\n.*\])', dockerfile)[1].replace("\\\n", ""))
    truss = yaml.safe_load((container / "truss" / "config.yaml").read_text())["docker_server"]
    with serving(container / "models") as server:
        port = server.http.partition(":")[2]
        asked = [sys.executable, "-c", check[2].replace("8000", port)]
        assert subprocess.run(asked, check=False).returncode == 0
        for endpoint in ("readiness_endpoint", "liveness_endpoint"):
            assert status(server.url + truss[endpoint]) == 200
        body = json.dumps({"inputs": [{"name": "x", "datatype": "FP32", "shape": [1, 4], "data": [1, 2, 3, 4]}]})
        with urllib.request.urlopen(server.url + truss["predict_endpoint"], body.encode(), timeout=30) as answer:
            assert json.load(answer)["outputs"][0]["data"] == [2, 4, 6, 8]
    assert subprocess.run(asked, check=False, stderr=subprocess.DEVNULL).returncode != 0


def test_a_folder_with_files_is_not_written_over(container, engine):
    with pytest.raises(InputError, match="not empty"):
        package(engine, ingot.load(engine), container, None, {})


# --- Ray: its own part is replaced by what it promises; benchmarks/serving_ray.py runs the real one ----------------

class DiedError(Exception):
    """Stands for Ray's error of a lost replica."""


@pytest.fixture
def on_ray(monkeypatch):
    """ingot.serve.ray over a stand-in for Ray that keeps what it was told."""
    ray, serve, exceptions = (types.ModuleType(n) for n in ("ray", "ray.serve", "ray.exceptions"))
    serve.deployment = lambda made, **told: types.SimpleNamespace(bind=lambda *words: (made, told, words))
    ray.serve, exceptions.RayActorError = serve, DiedError
    for name, module in (("ray", ray), ("ray.serve", serve), ("ray.exceptions", exceptions)):
        monkeypatch.setitem(sys.modules, name, module)
    monkeypatch.delitem(sys.modules, "ingot.serve.ray", raising=False)
    yield importlib.import_module("ingot.serve.ray")
    sys.modules.pop("ingot.serve.ray", None)


def test_requests_that_wait_run_together_and_get_their_own_rows(on_ray, engine):
    replica = on_ray.EngineReplica(str(engine), 1)
    runs = []
    run = replica._run
    replica._run = lambda requests: runs.append(len(requests)) or run(requests)

    async def all_of_them():
        return await asyncio.gather(*(replica.infer({"x": np.full((1 + i % 3, 4), i, np.float32)}) for i in range(9)))
    for i, found in enumerate(asyncio.run(all_of_them())):
        assert np.array_equal(found["y"], np.full((1 + i % 3, 4), 2 * i, np.float32))
    assert sum(runs) == 9
    assert len(runs) < 9        # the engine takes 16 rows: those that waited ran together
    assert max(runs) > 1


def test_a_request_that_does_not_fit_fails_alone(on_ray, engine):
    replica = on_ray.EngineReplica(str(engine), 1)

    async def good_and_bad():
        asked = [replica.infer({"x": np.ones((1, n), np.float32)}) for n in (4, 5, 4)]
        return await asyncio.gather(*asked, return_exceptions=True)
    first, bad, last = asyncio.run(good_and_bad())
    assert np.array_equal(first["y"], np.full((1, 4), 2, np.float32))
    assert isinstance(bad, InputError)
    assert np.array_equal(last["y"], np.full((1, 4), 2, np.float32))


@pytest.mark.parametrize(("deaths", "answered"), [(0, True), (3, True), (4, False)])
def test_a_request_whose_replica_dies_is_sent_again(on_ray, deaths, answered):
    asked = []

    async def remote(feeds):
        asked.append(feeds)
        if len(asked) <= deaths:
            raise DiedError
        return feeds
    handle = types.SimpleNamespace(infer=types.SimpleNamespace(remote=remote))
    feeds = {"x": np.ones(1)}
    if answered:
        assert asyncio.run(on_ray.ask(handle, feeds))["x"] is feeds["x"]
    else:
        with pytest.raises(DiedError):
            asyncio.run(on_ray.ask(handle, feeds))
    assert len(asked) == min(deaths + 1, 4)


def test_a_deployment_says_its_cpus_and_how_it_grows(on_ray):
    made, told, words = on_ray.deployment("folder/model.ingot", threads=2, replicas=(1, 4), queue=3)
    assert made is on_ray.EngineReplica
    assert words == ("folder/model.ingot", 2)
    assert told["name"] == "model"
    assert told["ray_actor_options"] == {"num_cpus": 2}
    assert told["autoscaling_config"] == {"min_replicas": 1, "max_replicas": 4, "target_ongoing_requests": 3}
    assert on_ray.deployment("m.ingot", replicas=(2, 2))[1]["num_replicas"] == 2
