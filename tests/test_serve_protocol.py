"""NVIDIA's client, unchanged, against a running server: HTTP, gRPC, sync, async, all ways to send, all datatypes."""
import asyncio
import itertools

import ml_dtypes
import numpy as np
import pytest

grpc = pytest.importorskip("grpc")
pytest.importorskip("tritonclient.http")
import tritonclient.grpc as triton_grpc  # noqa: E402
import tritonclient.grpc.aio as triton_grpc_aio  # noqa: E402
import tritonclient.http as triton_http  # noqa: E402
import tritonclient.http.aio as triton_http_aio  # noqa: E402
from tritonclient.grpc import service_pb2, service_pb2_grpc  # noqa: E402
from tritonclient.utils import InferenceServerException, serialize_byte_tensor, shared_memory  # noqa: E402

from tests.serve_running import DATATYPES, add_model, serving  # noqa: E402

pytestmark = pytest.mark.cpu
RNG = np.random.default_rng(0)
ROWS = 2


def values(datatype):
    """Two rows of every kind of value the datatype has, the odd ones too."""
    shape = (ROWS, 3)
    if datatype == "BYTES":
        return np.array([b"", "naïve ☃".encode(), b"a\0b", b"x" * 1000, b"\xff\xfe", b"[]"], object).reshape(shape)
    if datatype == "BOOL":
        return np.array([[True, False, True], [False, False, True]])
    if datatype in ("FP16", "FP32", "FP64", "BF16"):
        kind = {"FP16": np.float16, "FP32": np.float32, "FP64": np.float64, "BF16": ml_dtypes.bfloat16}[datatype]
        return np.array([[1.5, -0.0, 3.140625], [65504, -2.0**-10, 0.5]]).astype(kind)
    kind = np.dtype(datatype.lower())
    limits = np.iinfo(kind)
    return np.array([[limits.min, limits.max, 0], [1, 2, 3]], kind)


VALUES = {name: values(name) for name in DATATYPES}


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    repository = tmp_path_factory.mktemp("protocol")
    add_model(repository, "mirror")
    add_model(repository, "double")
    with serving(repository, "--control", log=repository / ".log") as running:
        yield running


def same(a, b):
    assert a.shape == b.shape
    if a.dtype.kind in "OSU":
        assert [v if isinstance(v, bytes) else v.encode() for v in a.reshape(-1)] == list(b.reshape(-1))
    else:
        assert a.dtype == b.dtype
        assert a.tobytes() == b.tobytes()


class Shared:
    """One region for all inputs and one for all outputs."""

    def __init__(self, name):
        self.name, self.places, at = name, {}, 0
        for datatype, array in VALUES.items():
            nbytes = array.nbytes if datatype != "BYTES" else sum(4 + len(v) for v in array.reshape(-1))
            self.places[datatype] = (at, nbytes)
            at += nbytes
        self.total = at
        self.regions = [shared_memory.create_shared_memory_region(f"{name}_{k}", f"/{name}_{k}", at) for k in "io"]
        for datatype, array in VALUES.items():
            if datatype == "BYTES":
                array = serialize_byte_tensor(array)
            shared_memory.set_shared_memory_region(self.regions[0], [array], offset=self.places[datatype][0])

    def output(self, datatype):
        offset, _ = self.places[datatype]
        kind = VALUES[datatype].dtype
        return shared_memory.get_contents_as_numpy(self.regions[1], kind, [ROWS, 3], offset=offset)

    def close(self):
        for region in self.regions:
            shared_memory.destroy_shared_memory_region(region)


def tensors(module, way, shared=None):
    """Inputs and wanted outputs, sent in this way."""
    inputs, outputs = [], []
    for datatype, array in VALUES.items():
        given = module.InferInput(f"in_{datatype}", list(array.shape), datatype)
        http = module in (triton_http, triton_http_aio)
        binary = way != "json" or datatype in ("FP16", "BF16", "BYTES")     # what the client cannot send as JSON
        if way == "shared":
            offset, nbytes = shared.places[datatype]
            given.set_shared_memory(f"{shared.name}_i", nbytes, offset)
            out = module.InferRequestedOutput(f"out_{datatype}")
            out.set_shared_memory(f"{shared.name}_o", nbytes, offset)
        elif http:
            given.set_data_from_numpy(array, binary_data=binary)
            out = module.InferRequestedOutput(f"out_{datatype}", binary_data=binary)
        else:
            given.set_data_from_numpy(array)
            out = module.InferRequestedOutput(f"out_{datatype}")
        inputs.append(given)
        outputs.append(out)
    return inputs, outputs


def check(result, way, shared):
    for datatype, array in VALUES.items():
        same(shared.output(datatype) if way == "shared" else result.as_numpy(f"out_{datatype}"), array)


MATRIX = [(p, w, s) for p, w, s in itertools.product(("http", "grpc"), ("json", "binary", "shared"), ("sync", "async"))
          if (p, w) != ("grpc", "json")]


@pytest.mark.parametrize(("protocol", "way", "style"), MATRIX)
def test_every_datatype_comes_back_as_it_was_sent(server, protocol, way, style):
    name = f"ingot_{protocol}_{way}_{style}"
    shared = Shared(name) if way == "shared" else None
    at = server.http if protocol == "http" else server.grpc

    def register(client):
        for k in ("i", "o"):
            yield client.register_system_shared_memory(f"{name}_{k}", f"/{name}_{k}", shared.total)

    async def with_async():
        module = triton_http_aio if protocol == "http" else triton_grpc_aio
        async with module.InferenceServerClient(at) as client:
            if shared:
                for call in register(client):
                    await call
            inputs, outputs = tensors(module, way, shared)
            results = await asyncio.gather(*(client.infer("mirror", inputs, outputs=outputs, request_id=str(i))
                                             for i in range(5)))
            for result in results:
                check(result, way, shared)
            if shared:
                status = await client.get_system_shared_memory_status()
                assert f"{name}_i" in str(status)
                await client.unregister_system_shared_memory(f"{name}_i")
                await client.unregister_system_shared_memory(f"{name}_o")

    try:
        if style == "async":
            asyncio.run(with_async())
            return
        module = triton_http if protocol == "http" else triton_grpc
        with module.InferenceServerClient(at) as client:
            if shared:
                list(register(client))
            inputs, outputs = tensors(module, way, shared)
            result = client.infer("mirror", inputs, outputs=outputs, request_id="seven")
            told = result.get_response()
            assert (told["id"] if protocol == "http" else told.id) == "seven"
            check(result, way, shared)
            if shared:
                client.unregister_system_shared_memory()
    finally:
        if shared:
            shared.close()


def test_typed_contents_over_grpc(server):
    """What other gRPC clients send: elements in typed fields instead of raw bytes."""
    channel = grpc.insecure_channel(server.grpc)
    request = service_pb2.ModelInferRequest(model_name="double")
    request.inputs.add(name="x", datatype="FP32", shape=[1, 4]).contents.fp32_contents.extend([1, 2, 3, 4])
    answer = service_pb2_grpc.GRPCInferenceServiceStub(channel).ModelInfer(request)
    assert np.frombuffer(answer.raw_output_contents[0], np.float32).tolist() == [2, 4, 6, 8]
    channel.close()


def test_a_stream_answers_in_order(server):
    found = []
    with triton_grpc.InferenceServerClient(server.grpc) as client:
        client.start_stream(lambda result, error: found.append((result, error)))
        for i in range(20):
            given = triton_grpc.InferInput("x", [1, 4], "FP32")
            given.set_data_from_numpy(np.full((1, 4), i, np.float32))
            client.async_stream_infer("double" if i != 7 else "nothing", [given], request_id=str(i))
        client.stop_stream()
    assert len(found) == 20
    assert [r.as_numpy("y")[0, 0] if r else None for r, _ in found] == [2.0 * i if i != 7 else None for i in range(20)]


@pytest.mark.parametrize("algorithm", ["gzip", "deflate"])
@pytest.mark.parametrize("protocol", ["http", "grpc"])
def test_compression(server, protocol, algorithm):
    module = triton_http if protocol == "http" else triton_grpc
    x = np.arange(32, dtype=np.float32).reshape(8, 4)
    with module.InferenceServerClient(server.http if protocol == "http" else server.grpc) as client:
        given = module.InferInput("x", [8, 4], "FP32")
        given.set_data_from_numpy(x)
        more = {"request_compression_algorithm": algorithm, "response_compression_algorithm": algorithm} \
            if protocol == "http" else {"compression_algorithm": algorithm}
        assert np.array_equal(client.infer("double", [given], **more).as_numpy("y"), 2 * x)


@pytest.mark.parametrize("protocol", ["http", "grpc"])
def test_health_metadata_statistics_and_control(server, protocol):
    module = triton_http if protocol == "http" else triton_grpc
    with module.InferenceServerClient(server.http if protocol == "http" else server.grpc) as client:
        assert client.is_server_live()
        assert client.is_server_ready()
        assert client.is_model_ready("double")
        assert client.is_model_ready("double", "1")
        more = {} if protocol == "http" else {"as_json": True}
        assert client.get_server_metadata(**more)["name"] == "ingot"
        told = client.get_model_metadata("mirror", **more)
        assert {t["datatype"] for t in told["inputs"]} == set(DATATYPES)
        assert [int(n) for n in told["inputs"][0]["shape"]] == [-1, 3]
        assert client.get_model_config("double", **more)
        assert "model_stats" in client.get_inference_statistics("double", **more)
        index = client.get_model_repository_index(**more)
        names = {m["name"] for m in (index if protocol == "http" else index["models"])}
        assert names == {"double", "mirror"}
        client.unload_model("double")
        with pytest.raises(InferenceServerException):
            client.get_model_metadata("double")
        client.load_model("double")
        assert client.is_model_ready("double")


@pytest.mark.parametrize("protocol", ["http", "grpc"])
def test_what_does_not_fit_is_refused_with_a_reason(server, protocol):
    module = triton_http if protocol == "http" else triton_grpc
    with module.InferenceServerClient(server.http if protocol == "http" else server.grpc) as client:
        def refused(name="x", shape=(1, 4), datatype="FP32", model="double", outputs=None):
            array = np.zeros(shape, {"FP32": np.float32, "INT32": np.int32}[datatype])
            given = module.InferInput(name, list(shape), datatype)
            given.set_data_from_numpy(array)
            with pytest.raises(InferenceServerException) as error:
                client.infer(model, [given], outputs=outputs)
            return str(error.value)
        assert "no input 'z'" in refused(name="z")
        assert "not [-1, 4]" in refused(shape=(1, 5))
        assert "the model takes 1 to 16" in refused(shape=(17, 4))
        assert "0 rows are given" in refused(shape=(0, 4))
        assert "INT32, not FP32" in refused(datatype="INT32")
        assert "there is no model 'nothing'" in refused(model="nothing")
        assert "no output 'q'" in refused(outputs=[module.InferRequestedOutput("q")])


def test_many_clients_get_their_own_rows(server):
    """Batched with others, of different sizes, nobody gets another's numbers."""
    async def one(client, i):
        rows = 1 + i % 5
        x = np.arange(rows * 4, dtype=np.float32).reshape(rows, 4) + 1000 * i
        given = triton_grpc_aio.InferInput("x", [rows, 4], "FP32")
        given.set_data_from_numpy(x)
        result = await client.infer("double", [given])
        assert np.array_equal(result.as_numpy("y"), 2 * x)

    async def many():
        async with triton_grpc_aio.InferenceServerClient(server.grpc) as client:
            await asyncio.gather(*(one(client, i) for i in range(200)))
            told = await client.get_inference_statistics("double", as_json=True)
            stats = told["model_stats"][0]
            assert int(stats["execution_count"]) < int(stats["inference_count"])

    asyncio.run(many())
