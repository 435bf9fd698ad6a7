"""The OpenAPI document of what is served over HTTP."""
from __future__ import annotations

from typing import Any

from ingot.serve.datatype import NUMPY

_ERROR = {"type": "object", "properties": {"error": {"type": "string"}}, "required": ["error"]}
_TENSOR_IN = {
    "type": "object", "required": ["name", "shape", "datatype"],
    "properties": {"name": {"type": "string"}, "datatype": {"type": "string", "enum": list(NUMPY)},
                   "shape": {"type": "array", "items": {"type": "integer", "minimum": 0}, "maxItems": 16},
                   "parameters": {"type": "object"}, "data": {}}}
_TENSOR_OUT = {
    "type": "object", "required": ["name", "shape", "datatype"],
    "properties": {"name": {"type": "string"}, "datatype": {"type": "string"}, "parameters": {"type": "object"},
                   "shape": {"type": "array", "items": {"type": "integer"}}, "data": {"type": "array"}}}
_REQUEST = {
    "type": "object", "required": ["inputs"],
    "properties": {"id": {"type": "string"}, "parameters": {"type": "object"},
                   "inputs": {"type": "array", "minItems": 1, "items": _TENSOR_IN},
                   "outputs": {"type": "array", "items": {
                       "type": "object", "required": ["name"],
                       "properties": {"name": {"type": "string"}, "parameters": {"type": "object"}}}}}}
_RESPONSE = {
    "type": "object", "required": ["model_name", "outputs"],
    "properties": {"model_name": {"type": "string"}, "model_version": {"type": "string"}, "id": {"type": "string"},
                   "outputs": {"type": "array", "items": _TENSOR_OUT}}}
_REGION = {"type": "object", "required": ["key", "byte_size"],
           "properties": {"key": {"type": "string"}, "offset": {"type": "integer"}, "byte_size": {"type": "integer"}}}
_ANY = {"type": "object"}


def _content(schema: dict[str, Any]) -> dict[str, Any]:
    return {"application/json": {"schema": schema}}


def _operation(summary: str, path: str, answer: dict[str, Any], body: dict[str, Any] | None = None,
               statuses: tuple[int, ...] = (), required: bool = True, kind: str = "") -> dict[str, Any]:
    """One operation; every status it can answer with is said."""
    responses: dict[str, Any] = {"200": {"description": "done", "content": {kind: {"schema": {"type": "string"}}}
                                         if kind else _content(answer)}}
    for status in (400, 401, *statuses):
        responses[str(status)] = {"description": "refused", "content": _content(
            {"type": "object"} if status == 503 else _ERROR)}
    parameters = [{"name": name, "in": "path", "required": True, "schema": {"type": "string", "minLength": 1}}
                  for name in ("model", "version", "region") if f"{{{name}}}" in path]
    made: dict[str, Any] = {"summary": summary, "responses": responses}
    if parameters:
        made["parameters"] = parameters
    if body is not None:
        made["requestBody"] = {"required": required, "content": _content(body)}
    return made


def document(version: str) -> dict[str, Any]:
    """The document, as /openapi.json gives it."""
    paths: dict[str, Any] = {}

    def add(method: str, path: str, summary: str, answer: dict[str, Any], body: dict[str, Any] | None = None,
            statuses: tuple[int, ...] = (), required: bool = True, kind: str = "") -> None:
        paths.setdefault(path, {})[method] = _operation(summary, path, answer, body, statuses, required, kind)

    add("get", "/v2/health/live", "whether the process answers", _ANY)
    add("get", "/v2/health/ready", "whether every loaded model would answer", _ANY, statuses=(503,))
    add("get", "/v2", "the server's name, version and extensions", _ANY)
    add("get", "/v2/models/stats", "what every model has done", _ANY)
    for base in ("/v2/models/{model}", "/v2/models/{model}/versions/{version}"):
        add("get", base, "a model's inputs and outputs", _ANY, statuses=(404, 503))
        add("get", f"{base}/ready", "whether the model would answer", _ANY, statuses=(404, 503))
        add("get", f"{base}/stats", "what the model has done", _ANY, statuses=(404, 503))
        add("get", f"{base}/config", "what is known of its configuration", _ANY, statuses=(404, 503))
        add("post", f"{base}/infer", "run the model", _RESPONSE, _REQUEST,
            (404, 413, 429, 499, 500, 501, 503, 504))
    add("post", "/v2/repository/index", "the models there are", {"type": "array"},
        {"type": "object", "properties": {"ready": {"type": "boolean"}}}, required=False)
    add("post", "/v2/repository/models/{model}/load", "load a model", _ANY, statuses=(403, 404, 503))
    add("post", "/v2/repository/models/{model}/unload", "unload a model", _ANY, statuses=(403, 404, 503))
    for base in ("/v2/systemsharedmemory", "/v2/systemsharedmemory/region/{region}"):
        add("get", f"{base}/status", "the registered regions", {"type": "array"})
        add("post", f"{base}/unregister", "forget a region, or all", _ANY)
    add("post", "/v2/systemsharedmemory/region/{region}/register", "register a region", _ANY, _REGION, (403, 429))
    add("get", "/metrics", "Prometheus metrics", _ANY, kind="text/plain")
    add("get", "/status.json", "what the status page shows", _ANY)
    return {"openapi": "3.0.3", "paths": paths,
            "info": {"title": "Ingot: Open Inference Protocol", "version": version, "license": {"name": "Apache-2.0"}}}
