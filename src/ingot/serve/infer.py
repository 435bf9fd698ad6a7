"""Inference over HTTP: a body of JSON, binary tensors behind it or not, to a request; an answer back to one."""
from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import orjson

from ingot.errors import ServeError
from ingot.serve.datatype import NUMPY, Data, array_of, bytes_of, size_of, unpacked_strings
from ingot.serve.regions import Regions
from ingot.serve.tensor import Answer, Request, Tensor, element_count

_OPEN = bytes.maketrans(b"{}", b"[]")
_NOT_BRACKETS = bytes(set(range(256)) - set(b"[]{}\"\\"))


def check_depth(text: Data, limit: int) -> None:
    """Raises ServeError where JSON is nested deeper than the limit: before it is parsed."""
    raw = bytes(text)
    if raw.count(b"[") + raw.count(b"{") <= limit:
        return
    if b"\\" in raw:
        raw = raw.replace(b"\\\\", b"").replace(b'\\"', b"")
    # strings are dropped: what stands at odd places between quotes
    marks = b"".join(raw.translate(_OPEN, _NOT_BRACKETS).split(b'"')[::2])
    for _ in range(limit):
        if not marks:
            return
        marks = marks.replace(b"[]", b"")
    if marks:
        raise ServeError(f"the JSON is nested deeper than {limit} levels", mend="send less deeply nested JSON")


def parsed(text: Data, depth: int) -> dict[str, Any]:
    """A JSON object. Raises ServeError."""
    check_depth(text, depth)
    try:
        found = orjson.loads(text)
    except orjson.JSONDecodeError as error:
        raise ServeError("the body is not JSON", why=(str(error)[:200],), mend="send a JSON object") from None
    if type(found) is not dict:
        raise ServeError("the body is no JSON object", mend="send {...}")
    return found


def _flat(value: object, name: str) -> list[Any]:
    """The elements of nested lists, in order."""
    found: list[Any] = value if isinstance(value, list) else [value]
    while found and isinstance(found[0], list):
        if not all(isinstance(v, list) for v in found):
            raise ServeError(f"the data of '{name}' is ragged", where=f"tensor '{name}'", mend="send full rows")
        found = [v for part in found for v in part]
    return found


_KINDS = {"b": frozenset({bool}), "i": frozenset({int}), "u": frozenset({int}),
          "f": frozenset({int, float, type(None)})}


def bytes_from_json(value: object, datatype: str, count: int, name: str) -> bytes:
    """JSON numbers or strings as a tensor's bytes; null is NaN. Raises ServeError."""
    flat = _flat(value, name)
    if len(flat) != count:
        raise ServeError(f"'{name}' has {len(flat)} elements, its shape has {count}", where=f"tensor '{name}'",
                         mend="send as many elements as the shape says")
    if datatype == "BYTES":
        if not all(type(v) is str for v in flat):
            raise ServeError(f"the data of '{name}' holds what is no string", mend="send strings")
        return bytes_of(np.array(flat, object), "BYTES")
    dtype = NUMPY[datatype]
    kinds = _KINDS["f" if datatype == "BF16" else dtype.kind]
    if not kinds.issuperset(map(type, flat)):
        raise ServeError(f"the data of '{name}' holds what is no {datatype}", where=f"tensor '{name}'",
                         mend=f"send {datatype} values")
    try:
        if None in flat:
            flat = [float("nan") if v is None else v for v in flat]
        with np.errstate(over="ignore"):
            return np.array(flat, np.float64).astype(dtype).tobytes() if datatype == "BF16" \
                else np.array(flat, dtype).tobytes()
    except (OverflowError, ValueError) as error:
        raise ServeError(f"the data of '{name}' does not fit {datatype}", why=(str(error),),
                         mend=f"send values {datatype} can hold") from None


def _said(value: object, kind: type, what: str) -> Any:
    if type(value) is not kind:
        raise ServeError(f"{what} is {value!r:.60}", mend=f"send a {kind.__name__}")
    return value


def request_from(body: Data, header: int | None, regions: Regions, *, depth: int, limit: int) -> Request:
    """The request in a body, of which the first `header` bytes are JSON and the rest tensors. Raises ServeError.

    `depth` bounds the nesting of JSON, `limit` the elements of a tensor: both before anything is allocated.
    """
    begin = time.perf_counter()
    view = memoryview(body)
    if header is not None and not 0 <= header <= len(view):
        raise ServeError(f"the JSON part is said to have {header} bytes, the body has {len(view)}",
                         where="Inference-Header-Content-Length", mend="send the length of the JSON part")
    told = parsed(view if header is None else view[:header], depth)
    at = len(view) if header is None else header
    given = told.get("inputs")
    if type(given) is not list or not given:
        raise ServeError("there are no inputs", where="inputs", mend="send a list of tensors")
    inputs: list[Tensor] = []
    for item in given:
        if type(item) is not dict:
            raise ServeError("an input is no JSON object", where="inputs", mend="send {name, shape, datatype, data}")
        name: str = _said(item.get("name"), str, "an input's name")
        shape: list[int] = _said(item.get("shape"), list, "an input's shape")
        datatype = item.get("datatype")
        if type(datatype) is not str or datatype not in NUMPY:
            raise ServeError(f"'{name:.80}' has the datatype {datatype!r:.40}", where=f"tensor '{name:.80}'",
                             mend=f"one of: {', '.join(NUMPY)}")
        count = element_count(shape, name, limit)
        more = item.get("parameters")
        if more is None or type(more) is not dict:
            more = {}
        data: Data
        if "binary_data_size" in more:
            size = _said(more["binary_data_size"], int, f"binary_data_size of '{name:.80}'")
            if size < 0 or at + size > len(view):
                raise ServeError(f"'{name:.80}' is said to have {size} bytes, {len(view) - at} are left",
                                 where=f"tensor '{name:.80}'", mend="send the bytes of every tensor behind the JSON")
            data = view[at:at + size]
            at += size
        elif "shared_memory_region" in more:
            data = regions.read(more["shared_memory_region"], more.get("shared_memory_byte_size"),
                                more.get("shared_memory_offset", 0))
        else:
            if "data" not in item:
                raise ServeError(f"'{name:.80}' has no data", where=f"tensor '{name:.80}'", mend="send data")
            data = bytes_from_json(item["data"], datatype, count, name)
        inputs.append(Tensor(name, datatype, tuple(shape), data))
    if at != len(view):
        raise ServeError(f"{len(view) - at} bytes behind the tensors belong to none",
                         mend="send only the tensors' bytes")
    request = _made(told, inputs)
    request.decode = time.perf_counter() - begin
    request.arrived = begin
    return request


def _made(told: Mapping[str, Any], inputs: list[Tensor]) -> Request:
    wanted: tuple[str, ...] | None = None
    forms: dict[str, Any] = {}
    outputs = told.get("outputs")
    if outputs is not None:
        if type(outputs) is not list or not all(type(o) is dict and type(o.get("name")) is str for o in outputs):
            raise ServeError("the outputs are no list of {name}", where="outputs", mend="send a list, or leave it out")
        if outputs:
            wanted = tuple(o["name"] for o in outputs)
            forms = {o["name"]: o.get("parameters") or {} for o in outputs}
            if not all(type(f) is dict for f in forms.values()):
                raise ServeError("an output's parameters are no object", where="outputs", mend="send {...}")
            if any("classification" in f for f in forms.values()):
                raise ServeError("classification of outputs is not served", kind="unsupported",
                                 mend="take the scores and sort them")
    more = told.get("parameters") or {}
    if type(more) is not dict:
        raise ServeError("the parameters are no object", where="parameters", mend="send {...}")
    id_ = told.get("id", "")
    request = Request(id_ if type(id_) is str else str(id_)[:200], inputs, wanted, *urgency(more),
                      {"forms": forms, "binary": more.get("binary_data_output") is True})
    return request


def urgency(told: Mapping[str, Any]) -> tuple[int, float]:
    """(priority, deadline) of a request's parameters: `priority` (0 or 1 the highest), `timeout` in microseconds."""
    priority, timeout = told.get("priority", 0), told.get("timeout", 0)
    if type(priority) is not int or type(timeout) is not int or not 0 <= priority < 1 << 32 or timeout < 0:
        raise ServeError("priority or timeout is not one", where="parameters", mend="send whole numbers, 0 or more")
    return priority, time.perf_counter() + timeout / 1e6 if timeout else float("inf")


def selected(answer: Answer, wanted: Sequence[str] | None) -> list[Tensor]:
    """The outputs that were asked for, in the order they were asked for."""
    if wanted is None:
        return answer.outputs
    by = {t.name: t for t in answer.outputs}
    return [by[name] for name in wanted]


def body_from(answer: Answer, request: Request, regions: Regions) -> tuple[bytes, int]:
    """(body, bytes of its JSON part, or 0 where it is JSON throughout). Raises ServeError."""
    more = request.parameters or {}
    forms, all_binary = more["forms"], more["binary"]
    outputs: list[dict[str, Any]] = []
    tail: list[Data] = []
    for tensor in selected(answer, request.wanted):
        form = forms.get(tensor.name, {})
        told: dict[str, Any] = {"name": tensor.name, "datatype": tensor.datatype, "shape": tensor.shape}
        outputs.append(told)
        if "shared_memory_region" in form:
            regions.write(form["shared_memory_region"], form.get("shared_memory_byte_size"),
                          form.get("shared_memory_offset", 0), tensor.data)
            told["parameters"] = {"shared_memory_region": form["shared_memory_region"],
                                  "shared_memory_byte_size": len(tensor.data)}
            if offset := form.get("shared_memory_offset", 0):
                told["parameters"]["shared_memory_offset"] = offset
        elif form.get("binary_data", all_binary) is True:
            told["parameters"] = {"binary_data_size": len(tensor.data)}
            tail.append(tensor.data)
        else:
            told["data"] = json_from(tensor)
    document: dict[str, Any] = {"model_name": answer.model, "model_version": answer.version, "outputs": outputs}
    if request.id:
        document["id"] = request.id
    head = orjson.dumps(document, option=orjson.OPT_SERIALIZE_NUMPY)
    return (b"".join((head, *tail)), len(head)) if tail else (head, 0)


def json_from(tensor: Tensor) -> Any:
    """A tensor's elements for JSON, in one flat list; NaN and infinities become null. Raises ServeError."""
    if tensor.datatype == "BYTES":
        count = 1
        for size in tensor.shape:
            count *= size
        return [s.decode("utf-8", "replace") for s in unpacked_strings(tensor.data, count, tensor.name)]
    if not size_of(tensor.datatype):
        raise ServeError(f"'{tensor.name}' has no JSON form", kind="unsupported", mend="ask for binary data")
    flat = array_of(tensor.data, tensor.datatype, (-1,))
    if tensor.datatype in ("BF16", "FP16"):
        return flat.astype(np.float32)
    return flat
