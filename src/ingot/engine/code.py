"""Device code that travels in an engine: kernels as JSON and arrays, and the text that a signature stands for."""
from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from ingot.graph import DTYPES, Dim, Expr, parse_dim
from ingot.kernels import Params
from ingot.kernels.cuda import CudaKernel, CudaLaunch, Pointer, Scalar, TensorMap
from ingot.kernels.cuda.kernel import Argument

Json = Any


@dataclass(frozen=True)
class Signature:
    """Who vouches for carried code: the public key and the signature over its digest, in hex."""

    key: str
    value: str


@dataclass(frozen=True)
class Carried:
    """A kernel that an engine carries: of which site, tactic and point it is."""

    site: str
    tactic: str
    params: Params
    kernel: CudaKernel


@dataclass(frozen=True)
class Bundle:
    """All code of a variant, signed or not."""

    kernels: tuple[Carried, ...] = ()
    signature: Signature | None = None

    @property
    def digest(self) -> bytes:
        """What is signed: a hash of every byte that would run, and of all that says how it is launched."""
        out = _Digests()
        rows = [carried_to_json(c, out) for c in self.kernels]
        text = json.dumps({"code": rows, "blobs": out.digests}, sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(b"ingot code 1\0" + text.encode()).digest()


class _Digests:
    """A writer that keeps the hash of each array alone."""

    def __init__(self) -> None:
        self.digests: list[str] = []

    def put(self, array: np.ndarray) -> Json:
        self.digests.append(hashlib.sha256(np.ascontiguousarray(array)).hexdigest())  # type: ignore[arg-type]
        return len(self.digests) - 1


class Blobs:
    """Arrays of bytes kept aside, as one blob."""

    def __init__(self, parts: list[bytes] | None = None) -> None:
        self.parts = parts or []

    def put(self, array: np.ndarray) -> Json:
        """The place of an array of bytes."""
        self.parts.append(array.tobytes())
        return len(self.parts) - 1

    def get(self, place: Json) -> np.ndarray:
        """The array at a place."""
        return np.frombuffer(self.parts[place], np.uint8)


def _dim(dim: Dim) -> Json:
    return str(dim) if isinstance(dim, Expr) else int(dim)


def _read_dim(value: Json) -> Dim:
    return parse_dim(value) if isinstance(value, str) else int(value)


def _argument_to_json(argument: Argument) -> Json:
    if isinstance(argument, Pointer):
        return ["p", argument.of, _dim(argument.offset)]
    if isinstance(argument, Scalar):
        value = argument.value.hex() if isinstance(argument.value, float) else _dim(argument.value)
        return ["f" if isinstance(argument.value, float) else "s", value, argument.kind]
    m = argument
    return ["m", m.of, m.dtype.name, [_dim(d) for d in m.shape], [_dim(d) for d in m.strides], list(m.box), m.swizzle,
            _dim(m.offset), list(m.lower), list(m.upper), list(m.steps)]


def _argument_from_json(value: Json) -> Argument:
    kind, *rest = value
    match kind:
        case "p":
            return Pointer(int(rest[0]), _read_dim(rest[1]))
        case "s":
            return Scalar(_read_dim(rest[0]), str(rest[1]))
        case "f":
            return Scalar(float.fromhex(rest[0]), str(rest[1]))
        case "m":
            of, dtype, shape, strides, box, swizzle, offset, lower, upper, steps = rest
            return TensorMap(int(of), DTYPES[dtype], tuple(map(_read_dim, shape)), tuple(map(_read_dim, strides)),
                             tuple(map(int, box)), int(swizzle), _read_dim(offset), tuple(map(int, lower)),
                             tuple(map(int, upper)), tuple(map(int, steps)))
    raise ValueError(f"unknown argument {kind!r}")


def kernel_to_json(kernel: CudaKernel, out: Any) -> Json:
    """A kernel; its machine code and data kept aside, its source left out."""
    launches = [[x.entry, out.put(np.frombuffer(x.cubin, np.uint8)), [_dim(d) for d in x.grid], x.threads, x.shared,
                 [_argument_to_json(a) for a in x.arguments], x.cluster, x.dependent] for x in kernel.launches]
    return {"name": kernel.name, "workspace": _dim(kernel.workspace), "counters": _dim(kernel.counters),
            "launches": launches, "data": out.put(np.frombuffer(kernel.data, np.uint8)) if kernel.data else None}


def kernel_from_json(value: Json, source: Any) -> CudaKernel:
    """The kernel that was written. Raises ValueError, KeyError, TypeError or IndexError for what is none."""
    launches = []
    for entry, cubin, grid, threads, shared, arguments, cluster, dependent in value["launches"]:
        x, y, z = map(_read_dim, grid)
        launches.append(CudaLaunch(str(entry), source.get(cubin).tobytes(), (x, y, z), int(threads), int(shared),
                                   tuple(map(_argument_from_json, arguments)), int(cluster), bool(dependent)))
    data = b"" if value["data"] is None else source.get(value["data"]).tobytes()
    return CudaKernel(str(value["name"]), "", (), _read_dim(value["workspace"]), launches=tuple(launches),
                      counters=_read_dim(value["counters"]), data=data)


def carried_to_json(carried: Carried, out: Any) -> Json:
    """A carried kernel."""
    return [carried.site, carried.tactic, [[k, int(v)] for k, v in carried.params.items()],
            kernel_to_json(carried.kernel, out)]


def carried_from_json(value: Json, source: Any) -> Carried:
    """The carried kernel that was written."""
    site, tactic, params, kernel = value
    return Carried(str(site), str(tactic), {str(k): int(v) for k, v in params}, kernel_from_json(kernel, source))


def bundle_to_json(bundle: Bundle, out: Any) -> Json:
    """All code of a variant."""
    signed = bundle.signature
    return {"kernels": [carried_to_json(c, out) for c in bundle.kernels],
            "signature": None if signed is None else [signed.key, signed.value]}


def bundle_from_json(value: Json, source: Any) -> Bundle:
    """The code that was written. Nothing is trusted yet."""
    signed = value["signature"]
    return Bundle(tuple(carried_from_json(c, source) for c in value["kernels"]),
                  None if signed is None else Signature(str(signed[0]), str(signed[1])))


def kernel_to_bytes(kernel: CudaKernel) -> bytes:
    """A kernel as one blob: what a cache keeps."""
    blobs = Blobs()
    head: Mapping[str, Json] = {"kernel": kernel_to_json(kernel, blobs), "sizes": [len(p) for p in blobs.parts]}
    return json.dumps(head).encode() + b"\n" + b"".join(blobs.parts)


def kernel_from_bytes(raw: bytes) -> CudaKernel:
    """The kernel of a blob. Raises ValueError, KeyError, TypeError or IndexError for what is none."""
    text, _, rest = raw.partition(b"\n")
    head, parts, at = json.loads(text), [], 0
    for size in head["sizes"]:
        parts.append(rest[at:at + size])
        at += size
    return kernel_from_json(head["kernel"], Blobs(parts))


__all__ = ["Bundle", "Carried", "Signature", "bundle_from_json", "bundle_to_json", "kernel_from_bytes",
           "kernel_to_bytes"]
