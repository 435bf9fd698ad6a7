"""The engine file.

    0    8   magic
    8    4   format version, little endian
    12   4   0
    16   8   bytes of the manifest
    24   8   bytes of the file
    32  32   sha256 of the manifest
    64       manifest: canonical JSON
    ...      sections, each at a multiple of 64 bytes; their sizes and sha256 are in the manifest

Equal engines give equal bytes. A reader checks every size against the file before it believes it, the manifest's hash
at once, and a section's hash when the part it belongs to is first wanted.
"""
from __future__ import annotations

import hashlib
import json
import mmap
import os
import struct
import tempfile
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from ingot.engine.engine import Check, Engine, Sealed, Variant
from ingot.engine.flow import flow_from_json, flow_to_json, flows_in
from ingot.engine.parallel import pool, spread
from ingot.engine.serial import graph_from_json, graph_to_json, target_from_json, variant_from_json, variant_to_json
from ingot.errors import EngineError, InternalError, ModelError
from ingot.graph import DTYPES, Graph, dtype_from_numpy

MAGIC = b"\x89INGOT\r\n"
VERSION = 2
_HEAD = struct.Struct("<8sIIQQ32s")
_ALIGN = 64
_WRONG_FORM = (ValueError, KeyError, TypeError, IndexError, AttributeError, RecursionError, ModelError, OverflowError)
T = TypeVar("T")


def _canonical(value: object) -> bytes:
    return json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False).encode()


class _Sections:
    """Arrays to be written, each content once. What is hashed beforehand, on several threads, is not hashed again."""

    def __init__(self, ahead: Iterable[np.ndarray] = ()) -> None:
        self.arrays: list[np.ndarray] = []
        self.rows: list[list[object]] = []
        numeric = [a for a in {id(a): a for a in ahead}.values() if a.dtype != object]
        self._hashed = {id(a): found for a, found in zip(numeric, spread(_hashed, numeric), strict=True)}
        self._known: dict[tuple[int, str], int] = {}
        self._by_id: dict[int, tuple[np.ndarray, Any]] = {}

    def put(self, array: np.ndarray) -> Any:
        """The place of an array: its section, element type and shape; strings lie in the place itself."""
        if id(array) in self._by_id:
            return self._by_id[id(array)][1]
        dtype = dtype_from_numpy(array.dtype)
        if dtype.name == "str":
            texts = [v if isinstance(v, str) else {"b": bytes(v).hex()} for v in array.reshape(-1).tolist()]
            place: Any = {"strings": texts, "shape": list(array.shape)}
        else:
            flat, digest = self._hashed.get(id(array)) or _hashed(array)
            index = self._known.setdefault((flat.size, digest), len(self.arrays))
            if index == len(self.arrays):
                self.arrays.append(flat)
                self.rows.append([flat.size, digest])
            place = [index, dtype.name, list(array.shape)]
        self._by_id[id(array)] = array, place                   # the array is kept, so that its id stays its own
        return place


def graph_digest(graph: Graph) -> str:
    """Hex digits that stand for a graph and the bytes of its constants."""
    out = _Sections(graph.constants.values())
    return hashlib.sha256(_canonical([graph_to_json(graph, out), out.rows])).hexdigest()


def _hashed(array: np.ndarray) -> tuple[np.ndarray, str]:
    """The bytes of an array, and their hash."""
    flat = np.ascontiguousarray(array).reshape(-1).view(np.uint8)
    return flat, hashlib.sha256(flat).hexdigest()               # type: ignore[arg-type]


def write_engine(engine: Engine, path: str | os.PathLike[str]) -> None:
    """Write an engine to a file: beside it first, then renamed, so that there is never half an engine.

    Raises OSError where the file cannot be written.
    """
    engines = engine.parts if engine.flow else (engine,)
    opened = [[v.opened if isinstance(v, Sealed) else v for v in e.variants] for e in engines]
    graphs = [e.graph for e in engines]
    calls = (flow for flow in flows_in(engine.flow)) if engine.flow else ()
    out = _Sections([*(a for g in graphs for a in g.constants.values()),
                     *(a for f in calls for a in f.constants.values()),
                     *(a for vs in opened for v in vs for a in (*v.program.constants.values(), *v.packed.values()))])
    parts = [{"variants": [variant_to_json(v, out) for v in vs], "graph": graph_to_json(g, out)}
             for vs, g in zip(opened, graphs, strict=True)]
    body = {"name": engine.name, "verdict": engine.verdict, "report": engine.report,
            **({"flow": flow_to_json(engine.flow, out), "parts": parts} if engine.flow else parts[0])}
    try:
        manifest = _canonical({**body, "sections": out.rows})
    except (TypeError, ValueError) as error:
        raise InternalError("the engine's reports hold what JSON does not", why=(str(error),)) from None
    places, total = _layout(len(manifest), [a.size for a in out.arrays])
    head = _HEAD.pack(MAGIC, VERSION, 0, len(manifest), total, hashlib.sha256(manifest).digest())
    target = Path(path)
    handle, beside = tempfile.mkstemp(dir=target.parent, prefix=f".{target.name}.")
    try:
        with os.fdopen(handle, "wb") as file:
            os.truncate(file.fileno(), total)       # the gaps between sections are zeros
            os.pwrite(file.fileno(), head + manifest, 0)
            spread(partial(_write, file.fileno()), [*zip(places, out.arrays, strict=True)])
            os.fchmod(file.fileno(), 0o644)      # what mkstemp makes is for its maker alone
            os.fsync(file.fileno())
        os.replace(beside, target)
    finally:                        # also when interrupted, nothing is left lying about
        with suppress(OSError):
            os.unlink(beside)
    with suppress(OSError):         # some file systems cannot sync a folder
        folder = os.open(target.parent, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)


def _write(file: int, section: tuple[int, np.ndarray]) -> None:
    at, data = section[0], section[1].data
    while data:
        count = os.pwrite(file, data, at)
        at, data = at + count, data[count:]


def _layout(manifest: int, sizes: Iterable[int]) -> tuple[list[int], int]:
    """Where each section starts, and the bytes of the file."""
    at, places = _HEAD.size + manifest, []
    for size in sizes:
        at = -(-at // _ALIGN) * _ALIGN
        places.append(at)
        at += size
    return places, at


class _File:
    """A mapped engine file. Arrays are views of it, and keep it open."""

    def __init__(self, path: Path, raw: memoryview, places: list[int], rows: list[tuple[int, bytes]]) -> None:
        self._path, self._raw, self._places, self._rows = path, raw, places, rows
        self._sound: set[int] = set()

    def section(self, index: int) -> memoryview:
        """The bytes of a section."""
        return self._raw[self._places[index]:self._places[index] + self._rows[index][0]]

    def sealed(self, read: Callable[[_Taker], T], what: str) -> tuple[T, Check]:
        """What `read` makes of this file, and what waits for the hashes of every section it takes from."""
        taker = _Taker(self)
        try:
            made = read(taker)
        except _WRONG_FORM as error:
            raise _damaged(self._path, f"{what} is not in the form of version {VERSION}: {error}") from None
        return made, self._check(sorted(taker.taken - self._sound))

    def _check(self, sections: list[int]) -> Check:
        """Start to hash the sections; the result waits, and raises EngineError where one is not as it was written."""
        def good(index: int) -> bool:
            return hashlib.sha256(self.section(index)).digest() == self._rows[index][1]

        threads = pool()
        order = sorted(sections, key=lambda i: -self._rows[i][0])       # the long ones first: the threads end together
        hashed = [(index, threads.submit(good, index)) for index in order]
        threads.shutdown(wait=False)

        def wait() -> None:
            # all of them, also after a wrong one: nobody may read the file any more once it has been refused
            if wrong := [index for index, fine in hashed if not fine.result()]:
                raise _damaged(self._path, f"section {wrong[0]} does not match its hash")
            self._sound.update(sections)

        return wait


class _Taker:
    """Gives arrays of a file, and remembers of which sections."""

    def __init__(self, file: _File) -> None:
        self._file = file
        self.taken: set[int] = set()

    def get(self, place: Any) -> np.ndarray:
        """The array at a place. Raises ValueError, TypeError or IndexError where the place is not one."""
        if isinstance(place, dict):
            texts = [bytes.fromhex(v["b"]) if isinstance(v, dict) else str(v) for v in place["strings"]]
            made = np.empty(len(texts), object)
            made[:] = texts
            return made.reshape([int(n) for n in place["shape"]])
        index, name, shape = place
        if index < 0 or not all(isinstance(n, int) and n >= 0 for n in shape):
            raise ValueError("a place is not of this form")
        self.taken.add(index)
        if name == "str":
            raise ValueError("strings do not lie in sections")
        return np.frombuffer(self._file.section(index), np.uint8).view(DTYPES[name].numpy).reshape(shape)


def _damaged(path: Path, why: str) -> EngineError:
    return EngineError(f"{path} is damaged", where=str(path), why=(why,),
                       mend="copy the file again from its source, or build the engine anew")


def _mapped(path: Path) -> memoryview:
    try:
        with open(path, "rb") as file:
            size = os.fstat(file.fileno()).st_size
            if size < _HEAD.size:
                raise _foreign(path, f"it has {size} bytes, an engine has at least {_HEAD.size}")
            return memoryview(mmap.mmap(file.fileno(), 0, flags=mmap.MAP_SHARED, prot=mmap.PROT_READ))
    except OSError as error:
        raise EngineError(f"{path} cannot be read", where=str(path), why=(error.strerror or str(error),),
                          mend="check the path and its permissions") from None


def _foreign(path: Path, why: str) -> EngineError:
    return EngineError(f"{path} is not an engine file", where=str(path), why=(why,),
                       mend="pass a file that 'ingot build' wrote")


def read_engine(path: str | os.PathLike[str]) -> Engine:
    """An engine from its file, memory-mapped read-only. Variants and the graph are opened when first wanted.

    Raises EngineError for a file that is no engine, is truncated or damaged, or of another format version.
    """
    where = Path(path)
    raw = _mapped(where)
    magic, version, zero, length, total, digest = _HEAD.unpack(raw[:_HEAD.size])
    if magic != MAGIC:
        raise _foreign(where, "it does not begin as one")
    if version != VERSION:
        age = "an older" if version < VERSION else "a newer"
        raise EngineError(f"{where} is of {age} format, version {version}", where=str(where),
                          why=(f"this Ingot reads version {VERSION}",),
                          mend="build the engine anew" if version < VERSION else "install a newer Ingot")
    if zero or total != len(raw) or length > len(raw) - _HEAD.size:
        raise _damaged(where, f"it has {len(raw)} bytes of {total}" if total != len(raw) else "its head is wrong")
    text = raw[_HEAD.size:_HEAD.size + length]
    if hashlib.sha256(text).digest() != digest:
        raise _damaged(where, "the manifest does not match its hash")
    try:
        manifest = json.loads(bytes(text))
        rows = [(int(size), bytes.fromhex(hashed)) for size, hashed in manifest["sections"]]
        if any(size < 0 for size, _ in rows):
            raise ValueError("a section of negative size")
        places, end = _layout(length, [size for size, _ in rows])
        if end != total:
            raise ValueError("the sections do not fill the file")
        file = _File(where, raw, places, rows)
        name, verdict, report = str(manifest["name"]), dict(manifest["verdict"]), dict(manifest["report"])
        parts = [(Sealed(partial(_graph, file, p["graph"])),
                  tuple(Sealed(partial(_variant, file, v), target_from_json(v["target"]), str(v["generator"]))
                        for v in p["variants"])) for p in manifest.get("parts", [manifest])]
        if "flow" not in manifest:
            (graph, variants), = parts
            return Engine(name, graph, variants, verdict, report)
        # a flow is walked by its pieces' places: it is read at once
        graphs = [graph.opened for graph, _ in parts]
        flow, check = file.sealed(lambda f: flow_from_json(manifest["flow"], graphs, f), "the flow")
        check()
        if len(flow.parts) != len(parts):
            raise ValueError("the flow has other parts than the engine")
        engines = (Engine(f"{name}.{k}", g, vs) for k, (g, (_, vs)) in enumerate(zip(graphs, parts, strict=True)))
        return Engine(name, flow.graph, (), verdict, report, flow, tuple(engines))
    except _WRONG_FORM as error:
        raise _damaged(where, f"the manifest is not in the form of version {VERSION}: {error}") from None


def _variant(file: _File, value: Mapping[str, Any]) -> tuple[Variant, Check]:
    return file.sealed(lambda f: variant_from_json(value, f), "a variant")


def _graph(file: _File, value: Mapping[str, Any]) -> tuple[Graph, Check]:
    return file.sealed(lambda f: graph_from_json(value, f), "the graph")
