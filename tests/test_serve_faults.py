"""What production does to a server: workers that die, hang, run out of memory; clients that leave; SIGTERM; limits."""
import http.client
import json
import os
import signal
import socket
import ssl
import struct
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
import zlib
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

grpc = pytest.importorskip("grpc")
pytest.importorskip("tritonclient.grpc")
import tritonclient.grpc as triton_grpc  # noqa: E402
import tritonclient.http as triton_http  # noqa: E402
from tritonclient.utils import InferenceServerException  # noqa: E402

from tests.serve_running import add_model, serving, status  # noqa: E402

pytestmark = pytest.mark.cpu
SLOW_ROW = np.ones((1, 512), np.float32)


def told(server, path="/status.json"):
    with urllib.request.urlopen(server.url + path, timeout=10) as answer:
        return json.load(answer)


def model_of(server, name):
    return next(m for m in told(server)["models"] if m["name"] == name)


def post(server, path, body, **headers):
    """(status, document) of a POST."""
    client = http.client.HTTPConnection(server.http, timeout=30)
    client.request("POST", path, body, headers)
    answer = client.getresponse()
    text = answer.read()
    client.close()
    return answer.status, json.loads(text) if text.startswith(b"{") else text


def double(value=1.0, rows=1, **more):
    return json.dumps({"inputs": [{"name": "x", "datatype": "FP32", "shape": [rows, 4], "data": [value] * 4 * rows}],
                       **more})


def slow(**more):
    return json.dumps({"inputs": [{"name": "v0", "datatype": "FP32", "shape": [1, 512], "data": [1.0] * 512}], **more})


@pytest.fixture(scope="module")
def repository(tmp_path_factory):
    folder = tmp_path_factory.mktemp("faults")
    add_model(folder, "double")
    add_model(folder, "slow", "queue: 4\nbatching: none\ntimeout: 2\n")
    return folder


@pytest.fixture(scope="module")
def server(repository):
    with serving(repository, log=repository / ".log") as running:
        yield running


def test_a_worker_has_the_next_batch_before_it_is_done_and_a_death_loses_neither(server):
    """Six clients, batches of one: most batches are handed over ahead; both that a dying worker had are answered."""
    before = model_of(server, "slow")

    def one(i):
        with triton_http.InferenceServerClient(server.http) as client:
            x = SLOW_ROW * (i % 5)
            for _ in range(6):
                given = triton_http.InferInput("v0", list(x.shape), "FP32")
                given.set_data_from_numpy(x)
                assert np.allclose(client.infer("slow", [given]).as_numpy("v400"), x)
        return True

    with ThreadPoolExecutor(4) as pool:
        asked = [pool.submit(one, i) for i in range(4)]
        time.sleep(0.15)
        os.kill(before["workers"][0]["pid"], signal.SIGKILL)
        assert all(future.result() for future in asked)
    told = model_of(server, "slow")
    assert told["restarts"] == before["restarts"] + 1
    assert told["ahead"] > before["ahead"]


def test_a_killed_worker_loses_no_request_and_disturbs_no_other_model(server):
    failures, answers, stop = [], [], threading.Event()

    def load(name):
        with triton_http.InferenceServerClient(server.http) as client:
            i = 0
            while not stop.is_set():
                i += 1
                x = np.full((1, 4), i, np.float32) if name == "double" else SLOW_ROW * (i % 7)
                given = triton_http.InferInput("x" if name == "double" else "v0", list(x.shape), "FP32")
                given.set_data_from_numpy(x)
                try:
                    result = client.infer(name, [given])
                    out = result.as_numpy("y" if name == "double" else "v400")
                    good = np.allclose(out, 2 * x if name == "double" else x)
                    answers.append(name)
                    if not good:
                        failures.append((name, "wrong numbers"))
                except InferenceServerException as error:
                    failures.append((name, str(error)))

    threads = [threading.Thread(target=load, args=(n,)) for n in ("double", "double", "slow", "slow")]
    for thread in threads:
        thread.start()
    for _ in range(3):
        time.sleep(0.7)
        os.kill(model_of(server, "slow")["workers"][0]["pid"], signal.SIGKILL)
        until = time.time() + 20
        while not model_of(server, "slow")["ready"]:
            assert time.time() < until
            time.sleep(0.02)
    time.sleep(0.3)
    stop.set()
    for thread in threads:
        thread.join()
    assert failures == []
    assert {"double", "slow"} == set(answers)
    assert model_of(server, "slow")["restarts"] >= 3
    assert model_of(server, "double")["restarts"] == 0


def test_a_hanging_worker_is_replaced_and_its_request_run_again(server):
    worker = model_of(server, "slow")["workers"][0]["pid"]
    os.kill(worker, signal.SIGSTOP)
    code, answer = post(server, "/v2/models/slow/infer", slow())
    assert code == 200, answer
    assert model_of(server, "slow")["workers"][0]["pid"] != worker


def test_the_spare_takes_the_place_of_a_worker_that_dies(server):
    until = time.time() + 30
    while not (before := model_of(server, "double")["workers"][0])["spare"]:
        assert time.time() < until
        time.sleep(0.1)
    os.kill(before["pid"], signal.SIGKILL)
    while (worker := model_of(server, "double")["workers"][0])["pid"] in (0, before["pid"]):
        assert time.time() < until
        time.sleep(0.02)
    assert worker["pid"] == before["spare"]
    assert post(server, "/v2/models/double/infer", double())[0] == 200
    before = worker
    while not (spare := model_of(server, "double")["workers"][0]["spare"]):
        assert time.time() < until
        time.sleep(0.1)
    os.kill(spare, signal.SIGKILL)          # a spare that is dead already is not taken
    time.sleep(0.2)
    os.kill(before["pid"], signal.SIGKILL)
    assert post(server, "/v2/models/double/infer", double())[0] == 200
    assert model_of(server, "double")["workers"][0]["pid"] not in (spare, before["pid"])


def test_a_full_queue_refuses_and_deadlines_hold(server):
    codes = []
    begin = time.time()
    threads = [threading.Thread(target=lambda: codes.append(post(server, "/v2/models/slow/infer", slow())[0]))
               for _ in range(24)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert set(codes) == {200, 429}, (codes, time.time() - begin)
    results = []
    threads = [threading.Thread(target=lambda: results.append(
        post(server, "/v2/models/slow/infer", slow(parameters={"timeout": 1})))) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert 504 in [code for code, _ in results]
    with triton_grpc.InferenceServerClient(server.grpc) as client:
        given = triton_grpc.InferInput("v0", [1, 512], "FP32")
        given.set_data_from_numpy(SLOW_ROW)
        with pytest.raises(InferenceServerException, match=r"(?i)deadline"):
            client.infer("slow", [given], timeout=1)


def test_the_urgent_are_answered_before_those_who_wait(server):
    """Two requests run or are next already; behind them wait two of priority 3, then comes one of priority 1."""
    done = []

    def ask(name, priority):
        assert post(server, "/v2/models/slow/infer", slow(parameters={"priority": priority}))[0] == 200
        done.append(name)
    worker = model_of(server, "slow")["workers"][0]["pid"]
    threads = []
    os.kill(worker, signal.SIGSTOP)         # until all have come
    for name, priority in (("first", 3), ("second", 3), ("late a", 3), ("late b", 3), ("urgent", 1)):
        threads.append(threading.Thread(target=ask, args=(name, priority)))
        threads[-1].start()
        time.sleep(0.05)
    os.kill(worker, signal.SIGCONT)
    for thread in threads:
        thread.join()
    assert done.index("urgent") < done.index("late b")


def test_who_leaves_is_not_computed_for(server):
    before = model_of(server, "slow")["failed"].get("cancelled", 0)
    host, _, port = server.http.partition(":")
    body = slow().encode()
    head = f"POST /v2/models/slow/infer HTTP/1.1\r\nHost: x\r\nContent-Length: {len(body)}\r\n\r\n".encode()
    os.kill(model_of(server, "slow")["workers"][0]["pid"], signal.SIGSTOP)      # so that the others have to wait
    connections = [socket.create_connection((host, int(port))) for _ in range(4)]
    for connection in connections:
        connection.sendall(head + body)
    time.sleep(0.5)
    for connection in connections:
        connection.close()
    until = time.time() + 20
    while model_of(server, "slow")["failed"].get("cancelled", 0) < before + 3:
        assert time.time() < until, model_of(server, "slow")["failed"]
        time.sleep(0.1)


BAD = {
    "no JSON": (b"{", 400), "not an object": (b"[]", 400), "nothing": (b"", 400), "no inputs": (b"{}", 400),
    "deep": (b'{"inputs":' + b"[" * 5000 + b"]" * 5000 + b"}", 400),
    "deep, with strings between": (b'{"inputs":' + b'["]]",' * 200 + b"1" + b"]" * 200 + b"}", 400),
    "a huge shape": (json.dumps({"inputs": [{"name": "x", "datatype": "FP32", "shape": [1 << 40, 1 << 40],
                                             "data": []}]}).encode(), 413),
    "many axes": (json.dumps({"inputs": [{"name": "x", "datatype": "FP32", "shape": [1] * 40, "data": [1]}]}).encode(),
                  400),
    "a negative size": (double().replace("[1, 4]", "[-1, 4]").encode(), 400),
    "a size that is true": (double().replace("[1, 4]", "[true, 4]").encode(), 400),
    "another dtype": (double().replace("FP32", "FP64").encode(), 400),
    "no dtype": (double().replace("FP32", "FLOAT").encode(), 400),
    "text for numbers": (double().replace("1.0", '"a"').encode(), 400),
    "too few": (double(rows=1).replace("[1, 4]", "[2, 4]").encode(), 400),
    "a null character": (double().replace('"x"', '"x\\u0000"').encode(), 400),
    "ragged": (double().replace("[1.0, 1.0, 1.0, 1.0]", "[[1.0, 1.0], 1.0]").encode(), 400),
    "twice the same": (json.dumps({"inputs": json.loads(double())["inputs"] * 2}).encode(), 400),
    "a region nobody knows": (json.dumps({"inputs": [{"name": "x", "datatype": "FP32", "shape": [1, 4], "parameters": {
        "shared_memory_region": "r", "shared_memory_byte_size": 16}}]}).encode(), 400),
}


@pytest.mark.parametrize("name", BAD)
def test_malformed_requests_are_refused_not_survived(server, name):
    body, code = BAD[name]
    assert post(server, "/v2/models/double/infer", body)[0] == code
    assert post(server, "/v2/models/double/infer", double())[0] == 200


@pytest.mark.parametrize(("length", "size"), [("7", 16), ("100000", 16), ("-1", 16), ("x", 16), ("", 16),
                                              ("101", 1 << 60)])
def test_binary_parts_that_do_not_fit_are_refused(server, length, size):
    head = json.dumps({"inputs": [{"name": "x", "datatype": "FP32", "shape": [1, 4],
                                   "parameters": {"binary_data_size": size}}]}).encode()
    code, _ = post(server, "/v2/models/double/infer", head + b"\0" * 16,
                   **{"Inference-Header-Content-Length": length})
    assert code == 400


def test_nan_goes_through_and_json_says_null(server):
    x = np.array([[np.nan, np.inf, -np.inf, 1]], np.float32)
    with triton_http.InferenceServerClient(server.http) as client:
        given = triton_http.InferInput("x", [1, 4], "FP32")
        given.set_data_from_numpy(x)
        assert np.array_equal(client.infer("double", [given]).as_numpy("y"), 2 * x, equal_nan=True)
    code, answer = post(server, "/v2/models/double/infer", double().replace("[1.0, 1.0,", "[null, 1.0,"))
    assert (code, answer["outputs"][0]["data"]) == (200, [None, 2.0, 2.0, 2.0])


def test_a_compressed_bomb_is_refused_before_it_is_large(server):
    packer = zlib.compressobj(9, zlib.DEFLATED, zlib.MAX_WBITS | 16)
    bomb = b"".join([*(packer.compress(b"\0" * (1 << 20)) for _ in range(200)), packer.flush()])
    assert post(server, "/v2/models/double/infer", bomb, **{"Content-Encoding": "gzip"})[0] == 413


def test_a_region_that_shrinks_gives_an_error(server):
    path = "/dev/shm/ingot_shrinks"
    with open(path, "wb") as file:
        file.write(struct.pack("4f", 1, 2, 3, 4))
    try:
        register = "/v2/systemsharedmemory/region/shrinks/register"
        assert post(server, register, json.dumps({"key": "../etc/passwd", "byte_size": 16}))[0] == 400
        assert post(server, register, json.dumps({"key": "/ingot_shrinks", "byte_size": 16}))[0] == 200
        body = json.dumps({"inputs": [{"name": "x", "datatype": "FP32", "shape": [1, 4], "parameters": {
            "shared_memory_region": "shrinks", "shared_memory_byte_size": 16}}]})
        assert post(server, "/v2/models/double/infer", body)[1]["outputs"][0]["data"] == [2, 4, 6, 8]
        os.truncate(path, 0)
        assert post(server, "/v2/models/double/infer", body)[0] == 400
    finally:
        os.unlink(path)


def test_control_is_off_unless_enabled(server):
    assert post(server, "/v2/repository/models/double/unload", b"")[0] == 403
    with triton_grpc.InferenceServerClient(server.grpc) as client, \
            pytest.raises(InferenceServerException, match="control API is off"):
        client.unload_model("double")


def test_sigterm_under_load_answers_every_accepted_request(repository):
    """On every connection each request is answered, until an answer says that the connection closes."""
    with serving(repository, log=repository / ".log2") as server:
        outcomes: list[str] = []

        def client_of(name):
            client = http.client.HTTPConnection(server.http, timeout=30)
            while True:
                try:
                    client.request("POST", f"/v2/models/{name}/infer", double() if name == "double" else slow())
                    answer = client.getresponse()
                    answer.read()
                except (OSError, http.client.HTTPException) as error:
                    outcomes.append(f"{name}: {error!r}")
                    return
                outcomes.append(str(answer.status))
                if answer.headers.get("Connection") == "close":
                    return

        def rpc_of():
            with triton_grpc.InferenceServerClient(server.grpc) as client:
                while True:
                    given = triton_grpc.InferInput("x", [1, 4], "FP32")
                    given.set_data_from_numpy(np.ones((1, 4), np.float32))
                    try:
                        client.infer("double", [given])
                        outcomes.append("200")
                    except InferenceServerException as error:
                        # what comes while the server stops is refused with a status that clients take elsewhere
                        outcomes.append("gRPC: refused" if error.status() == "StatusCode.UNAVAILABLE" else str(error))
                        return

        threads = [threading.Thread(target=client_of, args=(n,)) for n in ["double"] * 8 + ["slow"] * 3]
        threads += [threading.Thread(target=rpc_of) for _ in range(3)]
        for thread in threads:
            thread.start()
        time.sleep(1.0)
        server.terminate()
        for thread in threads:
            thread.join(30)
        assert outcomes.count("200") > 100
        assert set(outcomes) <= {"200", "gRPC: refused"}, set(outcomes)
        assert outcomes.count("gRPC: refused") == 3
        assert server.process.wait(20) == 0
        ended = json.loads((repository / ".log2").read_text().splitlines()[-1])
        assert ended["what"] == "ended"
        assert ended["calls_taken"] == ended["calls_ended"]


def test_a_worker_without_memory_is_refused_with_the_reason(tmp_path):
    add_model(tmp_path, "double")
    add_model(tmp_path, "mirror", "memory: 64\n")
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "model.ingot").write_bytes(b"no engine")
    log = tmp_path / ".log"
    with open(log, "w") as errors:
        process = subprocess.Popen([sys.executable, "-m", "ingot", "serve", str(tmp_path), "--http-port", "0",
                                    "--grpc-port", "-1", "--json"], stdout=subprocess.PIPE, stderr=errors, text=True)
    try:
        url = f"http://{json.loads(process.stdout.readline())['http']}"
        until = time.time() + 60
        while status(url + "/v2/models/double/ready") != 200:
            assert time.time() < until
            time.sleep(0.1)
        assert status(url + "/readyz") == 503           # the truth: two of three models do not answer
        time.sleep(1)
        with urllib.request.urlopen(urllib.request.Request(url + "/v2/repository/index", b"{}"), timeout=5) as answer:
            index = {m["name"]: m for m in json.load(answer)}
        assert index["double"]["state"] == "READY"
        assert "not an engine file" in index["broken"]["reason"]
        assert index["mirror"]["state"] == "UNAVAILABLE"
    finally:
        process.terminate()
        assert process.wait(20) == 0


def test_tls_and_tokens(tmp_path):
    add_model(tmp_path, "double")
    certificate, key, token = tmp_path / "c.pem", tmp_path / "k.pem", tmp_path / "tokens"
    made = subprocess.run(["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-keyout", key,
                           "-out", certificate, "-days", "2", "-subj", "/CN=localhost",
                           "-addext", "subjectAltName=DNS:localhost,IP:127.0.0.1"], capture_output=True, check=False)
    if made.returncode:
        pytest.skip("no openssl to make a certificate with")
    token.write_text("open sesame\n")
    with serving(tmp_path, "--certificate", str(certificate), "--key", str(key), "--token", str(token),
                 log=tmp_path / ".log") as server:
        context = ssl.create_default_context(cafile=str(certificate))

        def get(path, **headers):
            port = server.http.partition(":")[2]
            request = urllib.request.Request(f"https://localhost:{port}{path}", headers=headers)
            try:
                with urllib.request.urlopen(request, timeout=10, context=context) as answer:
                    return answer.status
            except urllib.error.HTTPError as error:
                return error.code
        until = time.time() + 60
        while get("/readyz") != 200:
            assert time.time() < until
            time.sleep(0.1)
        assert get("/v2/models/double") == 401
        assert get("/v2/models/double", Authorization="Bearer wrong") == 401
        assert get("/v2/models/double", Authorization="Bearer open sesame") == 200
        port = server.grpc.partition(":")[2]
        with triton_grpc.InferenceServerClient(f"localhost:{port}", ssl=True,
                                               root_certificates=str(certificate)) as client:
            with pytest.raises(InferenceServerException, match="UNAUTHENTICATED"):
                client.is_server_live()
            assert client.is_server_live(headers={"authorization": "Bearer open sesame"})


def test_an_unusable_start_says_why(tmp_path):
    def run(*words):
        return subprocess.run([sys.executable, "-m", "ingot", "serve", *words], capture_output=True, text=True,
                              timeout=60, check=False)
    assert "no folder of models" in run(str(tmp_path / "nothing")).stderr
    add_model(tmp_path, "double", "batchin: cost\n")
    assert "unknown name 'batchin'" in run(str(tmp_path)).stderr
    assert "is no time" in run(str(tmp_path), "--p99", "soon").stderr
