"""The Open Inference Protocol over gRPC."""
from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from google.protobuf.message import DecodeError  # type: ignore[import-untyped]

from ingot.errors import ServeError
from ingot.serve.calls import Call, CallServer, Methods, RefusedError
from ingot.serve.datatype import NUMPY, Data, packed_strings
from ingot.serve.infer import selected, urgency
from ingot.serve.protocol import MESSAGES, METHODS, SERVICE
from ingot.serve.status import CODES
from ingot.serve.tensor import Answer, Request, Tensor, element_count
from ingot.serve.tuned_grpc import grpc

if TYPE_CHECKING:
    from ingot.serve.server import Server

Reply = Any
_FIELDS = {"BOOL": "bool_contents", "INT8": "int_contents", "INT16": "int_contents", "INT32": "int_contents",
           "INT64": "int64_contents", "UINT8": "uint_contents", "UINT16": "uint_contents", "UINT32": "uint_contents",
           "UINT64": "uint64_contents", "FP32": "fp32_contents", "FP64": "fp64_contents", "BYTES": "bytes_contents"}
_CODES = {kind: grpc.StatusCode[name] for kind, (_, name) in CODES.items()}
STREAM = 256            # messages of one stream that may be under way
ModelInferRequest, ModelInferResponse = MESSAGES["ModelInferRequest"], MESSAGES["ModelInferResponse"]


def _value(parameter: Any) -> Any:
    chosen = parameter.WhichOneof("parameter_choice")
    return getattr(parameter, chosen) if chosen else None


def _values(parameters: Mapping[str, Any]) -> dict[str, Any]:
    return {name: _value(parameter) for name, parameter in parameters.items()} if parameters else {}


def _contents(tensor: Any, datatype: str, count: int) -> bytes:
    """The typed contents of a tensor as bytes. Raises ServeError."""
    field = _FIELDS.get(datatype)
    values = getattr(tensor.contents, field) if field else ()
    if len(values) != count:
        raise ServeError(f"'{tensor.name:.80}' has {len(values)} elements in {field or 'raw contents'}, "
                         f"its shape has {count}", where=f"tensor '{tensor.name:.80}'",
                         mend="send its elements as its datatype says, or all tensors as raw contents")
    if datatype == "BYTES":
        return packed_strings(values)
    try:
        return np.array(values, NUMPY[datatype]).tobytes()
    except OverflowError as error:
        raise ServeError(f"the contents of '{tensor.name:.80}' do not fit {datatype}", why=(str(error),),
                         mend="send values the datatype can hold") from None


class Service:
    """Every method of the service, over one server."""

    def __init__(self, server: Server) -> None:
        self._server = server

    def methods(self, follow: Callable[[Call, asyncio.Task[None]], None]) -> Methods:
        """Every method by its path; what is done in tasks is handed to `follow`."""
        unary: dict[bytes, Callable[[Call, bytes], None]] = {}
        stream: dict[bytes, Callable[[Call], AsyncIterator[bytes]]] = {}
        for name, (taken, given, streams) in METHODS.items():
            path, method = f"/{SERVICE}/{name}".encode(), getattr(self, _snake(name))
            if streams:
                stream[path] = method
            else:
                unary[path] = self._infer if name == "ModelInfer" else self._task(
                    method, MESSAGES[taken].FromString, MESSAGES[given].SerializeToString, follow)
        return Methods(unary, stream)

    def _task(self, method: Callable[[Any], Any], read: Callable[[bytes], Any], write: Callable[[Any], bytes],
              follow: Callable[[Call, asyncio.Task[None]], None]) -> Callable[[Call, bytes], None]:
        """A method in a task of its own, behind the token's check; what it refuses becomes a gRPC status."""
        async def run(call: Call, raw: bytes) -> None:
            try:
                self._server.admit_rpc(call.metadata)
                call.answer(write(await method(read(raw))))
            except DecodeError as error:
                call.fail(grpc.StatusCode.INVALID_ARGUMENT, f"the message cannot be read: {error}")
            except ServeError as error:
                call.fail(_CODES[error.kind], str(error))
        return lambda call, raw: follow(call, asyncio.ensure_future(run(call, raw)))

    # --- inference ----------------------------------------------------------------------------------------------

    def _request(self, message: Any) -> Request:
        begin = time.perf_counter()
        limit = self._server.options.max_elements
        raw = message.raw_input_contents
        inputs: list[Tensor] = []
        index = 0
        for item in message.inputs:
            name, datatype, shape = item.name, item.datatype, tuple(item.shape)
            if datatype not in NUMPY:
                raise ServeError(f"'{name:.80}' has the datatype {datatype!r:.40}", where=f"tensor '{name:.80}'",
                                 mend=f"one of: {', '.join(NUMPY)}")
            count = element_count(shape, name, limit)
            more = _values(item.parameters)
            data: Data
            if "shared_memory_region" in more:
                data = self._server.regions.read(more["shared_memory_region"], more.get("shared_memory_byte_size"),
                                                 more.get("shared_memory_offset", 0))
            elif raw:
                if index >= len(raw):
                    raise ServeError(f"there are {len(raw)} raw contents for more tensors",
                                     mend="send raw contents for every tensor, or for none")
                data = raw[index]
                index += 1
            else:
                data = _contents(item, datatype, count)
            inputs.append(Tensor(name, datatype, shape, data))
        if index != len(raw):
            raise ServeError(f"{len(raw) - index} raw contents belong to no tensor",
                             mend="send raw contents for every tensor, or for none")
        if not inputs:
            raise ServeError("there are no inputs", where="inputs", mend="send the tensors its metadata names")
        wanted = tuple(o.name for o in message.outputs) or None
        forms = {o.name: _values(o.parameters) for o in message.outputs if o.parameters}
        if any("classification" in form for form in forms.values()):
            raise ServeError("classification of outputs is not served", kind="unsupported",
                             mend="take the scores and sort them")
        request = Request(message.id, inputs, wanted, *urgency(_values(message.parameters)), forms)
        request.arrived, request.decode = begin, time.perf_counter() - begin
        return request

    def _reply(self, answer: Answer, request: Request) -> Reply:
        begin = time.perf_counter()
        made = ModelInferResponse(model_name=answer.model, model_version=answer.version, id=request.id)
        forms = request.parameters or {}
        raw = made.raw_output_contents
        for tensor in selected(answer, request.wanted):
            out = made.outputs.add(name=tensor.name, datatype=tensor.datatype, shape=tensor.shape)
            form = forms.get(tensor.name)
            if form and "shared_memory_region" in form:
                self._server.regions.write(form["shared_memory_region"], form.get("shared_memory_byte_size"),
                                           form.get("shared_memory_offset", 0), tensor.data)
                out.parameters["shared_memory_region"].string_param = form["shared_memory_region"]
                out.parameters["shared_memory_byte_size"].int64_param = len(tensor.data)
                if offset := form.get("shared_memory_offset", 0):
                    out.parameters["shared_memory_offset"].int64_param = offset
            else:
                raw.append(tensor.data)
        self._server.answered(answer, request, time.perf_counter() - begin)
        return made

    def _infer(self, call: Call, raw: bytes) -> None:
        """One inference, without a task: answered at once where the answer is there at once."""
        try:
            self._server.admit_rpc(call.metadata)
            message = ModelInferRequest.FromString(raw)
            request = self._request(message)
            future = self._server.submit(message.model_name, message.model_version, request)
        except DecodeError as error:
            call.fail(grpc.StatusCode.INVALID_ARGUMENT, f"the message cannot be read: {error}")
            return
        except ServeError as error:
            call.fail(_CODES[error.kind], str(error))
            return

        def answered(future: asyncio.Future[Answer]) -> None:
            if call.done or future.cancelled():
                call.fail(grpc.StatusCode.CANCELLED, "the request was cancelled")
                return
            try:
                call.answer(self._reply(future.result(), request).SerializeToString())
            except ServeError as error:
                call.fail(_CODES[error.kind], str(error))

        if future.done():
            answered(future)
        else:
            call.left = future.cancel
            future.add_done_callback(answered)

    async def model_infer(self, message: Any) -> Reply:
        """One inference."""
        request = self._request(message)
        answer = await self._server.submit(message.model_name, message.model_version, request)
        return self._reply(answer, request)

    async def model_stream_infer(self, call: Call) -> AsyncIterator[bytes]:
        """Inferences of one stream, answered in order; an error is told in its place, and the stream goes on."""
        made = MESSAGES["ModelStreamInferResponse"]
        waiting: asyncio.Queue[asyncio.Task[Any] | None] = asyncio.Queue(STREAM)

        async def one(raw: bytes) -> Reply:
            try:
                return made(infer_response=await self.model_infer(ModelInferRequest.FromString(raw)))
            except DecodeError as error:
                return made(error_message=f"the message cannot be read: {error}"[:4000])
            except ServeError as error:
                return made(error_message=str(error)[:4000])

        async def read() -> None:
            try:
                async for raw in call.messages():
                    await waiting.put(asyncio.ensure_future(one(raw)))
            finally:
                await waiting.put(None)

        try:
            self._server.admit_rpc(call.metadata)
        except ServeError as error:
            raise RefusedError(_CODES[error.kind], str(error)) from None
        reader = asyncio.ensure_future(read())
        try:
            while (task := await waiting.get()) is not None:
                yield (await task).SerializeToString()
        finally:
            reader.cancel()

    # --- health, metadata, statistics ---------------------------------------------------------------------------

    async def server_live(self, message: Any) -> Reply:
        """Whether the process answers."""
        return MESSAGES["ServerLiveResponse"](live=True)

    async def server_ready(self, message: Any) -> Reply:
        """Whether every loaded model would answer."""
        return MESSAGES["ServerReadyResponse"](ready=self._server.ready)

    async def model_ready(self, message: Any) -> Reply:
        """Whether the model would answer."""
        return MESSAGES["ModelReadyResponse"](ready=self._server.repository.get(message.name, message.version).ready)

    async def server_metadata(self, message: Any) -> Reply:
        """The server's name, version and extensions."""
        return MESSAGES["ServerMetadataResponse"](**self._server.metadata())

    async def model_metadata(self, message: Any) -> Reply:
        """The model's inputs and outputs."""
        return MESSAGES["ModelMetadataResponse"](**self._server.model_metadata(message.name, message.version))

    async def model_config(self, message: Any) -> Reply:
        """The few facts of Triton's model configuration that have a meaning here."""
        return MESSAGES["ModelConfigResponse"](config=self._server.model_config(message.name, message.version))

    async def model_statistics(self, message: Any) -> Reply:
        """What each model has done."""
        return MESSAGES["ModelStatisticsResponse"](model_stats=self._server.statistics(message.name, message.version))

    # --- control ------------------------------------------------------------------------------------------------

    async def repository_index(self, message: Any) -> Reply:
        """The models of the repository."""
        return MESSAGES["RepositoryIndexResponse"](models=self._server.repository.index(message.ready))

    async def repository_model_load(self, message: Any) -> Reply:
        """Load a model."""
        self._server.admit_control()
        await self._server.repository.load(message.model_name)
        return MESSAGES["RepositoryModelLoadResponse"]()

    async def repository_model_unload(self, message: Any) -> Reply:
        """Unload a model."""
        self._server.admit_control()
        await self._server.repository.unload(message.model_name)
        return MESSAGES["RepositoryModelUnloadResponse"]()

    async def system_shared_memory_status(self, message: Any) -> Reply:
        """The registered regions."""
        made = MESSAGES["SystemSharedMemoryStatusResponse"]()
        for region in self._server.regions.status(message.name):
            made.regions[region.name].MergeFrom(type(made.regions[region.name])(
                name=region.name, key=region.key, offset=region.offset, byte_size=region.nbytes))
        return made

    async def system_shared_memory_register(self, message: Any) -> Reply:
        """Register a region."""
        self._server.regions.register(message.name, message.key, message.offset, message.byte_size)
        return MESSAGES["SystemSharedMemoryRegisterResponse"]()

    async def system_shared_memory_unregister(self, message: Any) -> Reply:
        """Unregister a region, or all."""
        self._server.regions.unregister(message.name)
        return MESSAGES["SystemSharedMemoryUnregisterResponse"]()


def _snake(name: str) -> str:
    return "".join(f"_{c.lower()}" if c.isupper() else c for c in name).lstrip("_")


def call_server(server: Server, options: Sequence[tuple[str, int]], most: int, linger: bool) -> CallServer:
    """gRPC for a server, not yet listening."""
    made = CallServer(options, most, linger)
    made.methods = Service(server).methods(made.follow)
    return made
