"""The engine file: exact, byte-identical, atomic; what is wrong with one ends in a clear error or a right answer."""
import hashlib
import json
import struct
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).parent))
from handmade import KERNELS, N, T, engine, expected, graph, program, variant

from ingot.engine import Engine, read_engine, write_engine
from ingot.engine.format import _HEAD, MAGIC, VERSION, _canonical
from ingot.engine.serial import graph_from_json, graph_to_json, value_from_json, value_to_json
from ingot.errors import EngineError, InternalError
from ingot.graph import F32, I64, STR, Graph, Node, Symbol, TensorType, show, symbol
from ingot.lower import View
from ingot.plan import faults
from ingot.runtime import loader
from ingot.runtime.compiler import CodeCache
from ingot.runtime.host import host_target
from ingot.runtime.session import Session
from ingot.target import Target

RNG = np.random.default_rng(0)
X = RNG.standard_normal((5, 4)).astype(np.float32)
Z = RNG.standard_normal((5, 4)).astype(np.float32)


def large() -> Engine:
    """An engine with packed weights of more than a section's worth."""
    weights = {(0, 1): np.array([1, 2, 3, 4], np.float32), (2, 0): RNG.standard_normal(70_001).astype(np.float32)}
    made = replace(engine(), report={"built": "here", "passes": ["a", "b"]}, verdict={"passed": True, "largest": 1e-7})
    return replace(made, variants=(replace(variant(program(), packed={(0, 1): weights[0, 1]}), report={"race": [1]}),))


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("engine") / "model.ingot"
    write_engine(large(), path)
    return path


def answers_right(path: Path) -> bool:
    found = Session(read_engine(path), kernels=KERNELS).run(X, Z)
    wanted = expected(X, Z)
    return all(np.array_equal(found[k], wanted[k]) for k in wanted)


@pytest.mark.cpu
def test_what_is_written_is_read(file: Path) -> None:
    found, made = read_engine(file), large()
    assert (found.name, found.verdict, found.report) == (made.name, made.verdict, made.report)
    assert show(found.graph) == show(made.graph)
    assert found.targets == made.targets == (host_target(),)
    a, b = found.variant_for(host_target()), made.variants[0]
    for name in ("target", "generator", "choices", "plan", "report"):
        assert getattr(a, name) == getattr(b, name), name
    assert str(a.program) == str(b.program)
    assert [x.site for x in a.program.launches] == [x.site for x in b.program.launches]
    assert a.packed.keys() == b.packed.keys()
    assert all(np.array_equal(a.packed[k], b.packed[k]) for k in b.packed)
    mapped = (*a.packed.values(), *found.graph.constants.values())
    assert all(v.ctypes.data % 64 == 0 and not v.flags.writeable for v in mapped)
    assert answers_right(file)


def test_equal_engines_give_equal_bytes(file: Path, tmp_path: Path) -> None:
    write_engine(large(), tmp_path / "again")
    assert (tmp_path / "again").read_bytes() == file.read_bytes()
    write_engine(read_engine(file), tmp_path / "copy")          # also after a journey
    assert (tmp_path / "copy").read_bytes() == file.read_bytes()
    assert sorted(p.name for p in tmp_path.iterdir()) == ["again", "copy"]


def test_a_failed_write_leaves_the_old_file_and_nothing_else(file: Path, tmp_path: Path) -> None:
    path = tmp_path / "model.ingot"
    path.write_bytes(b"old")
    with pytest.raises(InternalError, match="JSON"):
        write_engine(replace(large(), report={"bad": {1, 2}}), path)
    with pytest.raises(OSError, match="No such"):
        write_engine(large(), tmp_path / "nowhere" / "model.ingot")
    assert path.read_bytes() == b"old"
    assert [p.name for p in tmp_path.iterdir()] == ["model.ingot"]


@pytest.mark.cpu
def test_a_truncated_file_is_refused(file: Path, tmp_path: Path) -> None:
    raw = file.read_bytes()
    lengths = {0, 1, 7, 8, 11, 12, 31, 63, 64, 65, len(raw) - 1, len(raw) - 64, *RNG.integers(0, len(raw), 60).tolist()}
    for length in sorted(lengths):
        (tmp_path / "cut").write_bytes(raw[:length])
        with pytest.raises(EngineError) as error:
            read_engine(tmp_path / "cut")
        assert error.value.where
        assert error.value.why
        assert error.value.mend
    (tmp_path / "cut").write_bytes(raw + b"\0")
    with pytest.raises(EngineError, match="damaged"):
        read_engine(tmp_path / "cut")


@pytest.mark.cpu
def test_a_changed_byte_is_found_or_does_not_matter(file: Path, tmp_path: Path) -> None:
    raw = file.read_bytes()
    harmless = 0
    for at in [*range(64), *RNG.integers(64, len(raw), 150).tolist()]:
        changed = bytearray(raw)
        changed[at] ^= 1 << int(RNG.integers(0, 8))
        (tmp_path / "changed").write_bytes(changed)
        try:
            found = read_engine(tmp_path / "changed")
            assert show(found.graph) == show(large().graph)
            assert answers_right(tmp_path / "changed")
            harmless += 1
        except EngineError as error:
            assert error.why or error.mend
    assert harmless <= 20                       # padding between sections


@pytest.mark.parametrize("raw", [b"", b"x" * 10, b"\0" * 4096, b"PK\x03\x04" + b"z" * 500, MAGIC, MAGIC + b"\1" * 200])
def test_garbage_is_refused(raw: bytes, tmp_path: Path) -> None:
    (tmp_path / "garbage").write_bytes(raw)
    with pytest.raises(EngineError, match=r"not an engine file|format, version|damaged"):
        read_engine(tmp_path / "garbage")


def test_a_missing_file_or_a_folder_is_refused(tmp_path: Path) -> None:
    for path in (tmp_path / "none", tmp_path):
        with pytest.raises(EngineError, match="cannot be read"):
            read_engine(path)


@pytest.mark.parametrize(("version", "text", "mend"), [(0, "an older format", "build the engine anew"),
                                                       (VERSION + 1, "a newer format", "install a newer Ingot")])
def test_another_version_is_named(file: Path, tmp_path: Path, version: int, text: str, mend: str) -> None:
    raw = bytearray(file.read_bytes())
    raw[8:12] = struct.pack("<I", version)
    (tmp_path / "old").write_bytes(raw)
    with pytest.raises(EngineError, match=text) as error:
        read_engine(tmp_path / "old")
    assert error.value.mend == mend


def forged(file: Path, path: Path, change) -> Path:
    """The file with its manifest changed, and every hash made right again."""
    raw = file.read_bytes()
    length = _HEAD.unpack(raw[:64])[3]
    manifest = json.loads(raw[64:64 + length])
    sizes = [size for size, _ in manifest["sections"]]
    at, sections = 64 + length, []
    for size in sizes:
        at = -(-at // 64) * 64
        sections.append(raw[at:at + size])
        at += size
    change(manifest)
    text = _canonical(manifest)
    body = _HEAD.pack(MAGIC, VERSION, 0, len(text), 0, hashlib.sha256(text).digest()) + text
    for section in sections:
        body += bytes(-len(body) % 64) + section
    body = body[:24] + struct.pack("<Q", len(body)) + body[32:]
    path.write_bytes(body)
    return path


def first(manifest: dict) -> dict:
    return manifest["variants"][0]


def values(manifest: dict) -> list:
    return first(manifest)["plan"]["values"]


FORGERIES = {
    "no variants": lambda m: m.pop("variants"),
    "not a list": lambda m: m.update(sections=7),
    "negative": lambda m: m["sections"][0].__setitem__(0, -64),
    "huge": lambda m: m["sections"][0].__setitem__(0, 1 << 60),
    "too many digits": lambda m: m["sections"][0].__setitem__(0, 10**5000 % 10**300),
    "no such section": lambda m: first(m)["packed"][0][2].__setitem__(0, 99),
    "other shape": lambda m: first(m)["packed"][0][2].__setitem__(2, [1 << 40]),
    "other dtype": lambda m: first(m)["packed"][0][2].__setitem__(1, "str"),
    "unknown dtype": lambda m: first(m)["packed"][0][2].__setitem__(1, "f3"),
    "no such launch": lambda m: first(m)["packed"][0].__setitem__(0, 77),
    "bad dim": lambda m: first(m)["program"]["views"][0].__setitem__(2, "__import__('os')"),
    "deep": lambda m: m["graph"]["nodes"][0][3].update(a=_deep(3000)),
    "bad tag": lambda m: m["graph"]["nodes"][0][3].update(a={"z": 1}),
    "missing site": lambda m: first(m)["program"]["launches"][0].__setitem__(0, 55),
    "outside the arena": lambda m: first(m)["plan"]["values"][0].__setitem__(1, 1 << 30),
    "below the arena": lambda m: first(m)["plan"]["values"][0].__setitem__(1, -64),
    "small arena": lambda m: first(m)["plan"].update(arena=64),
    "small value": lambda m: first(m)["plan"]["values"][0].__setitem__(2, 4),
    "shared bytes": lambda m: first(m)["plan"].update(reused=[], values=[[v, 0, n] for v, _, n in values(m)]),
    "long operand": lambda m: first(m)["program"]["sites"][0]["inputs"][0].__setitem__(0, "f32[N,400000]"),
    "view of itself": lambda m: first(m)["program"]["views"].append(["b", "v", 0]),
    "view past the end": lambda m: first(m)["program"]["views"][0].__setitem__(2, 1 << 20),
    "no choice": lambda m: first(m)["choices"].clear(),
    "unknown tactic": lambda m: [c.__setitem__(1, "x86.evil") for c in first(m)["choices"]],
    "small constant": lambda m: first(m)["program"]["constants"][0][1].__setitem__(2, [1]),
}


def _deep(levels: int) -> list:
    made: list = []
    for _ in range(levels):
        made = [made]
    return made


@pytest.mark.cpu
@pytest.mark.parametrize("name", FORGERIES)
def test_a_forged_manifest_is_refused_before_any_memory_is_touched(name: str, tmp_path: Path) -> None:
    source = tmp_path / "source"
    write_engine(large() if "constant" not in name else engine(), source)
    limit = sys.getrecursionlimit()
    try:
        sys.setrecursionlimit(100_000 if name == "deep" else limit)
        path = forged(source, tmp_path / "forged", FORGERIES[name])
    finally:
        sys.setrecursionlimit(limit)

    def use() -> None:
        found = read_engine(path)
        assert found.graph
        loader._loaded.codes.clear()
        Session(found, kernels=None if name == "unknown tactic" else KERNELS, cache=CodeCache(tmp_path / "code"))

    with pytest.raises(EngineError) as error:
        use()
    assert error.value.why


def test_an_engine_of_another_generator_is_not_run(tmp_path: Path) -> None:
    old = replace(large(), variants=(replace(large().variants[0], generator="0123456789ab"),))
    write_engine(old, tmp_path / "old")
    found = read_engine(tmp_path / "old")
    assert found.variant_for(host_target()) is None
    assert "kernel generator 0123456789ab" in found.declines(host_target())


def test_an_engine_of_another_device_says_so(tmp_path: Path) -> None:
    other = Target("x86", "avx2", frozenset({"avx2"}), "haswell", "Some CPU", 4)
    write_engine(engine(target=other), tmp_path / "foreign")
    found = read_engine(tmp_path / "foreign")
    reason = found.declines(host_target())
    assert "Some CPU" in reason
    assert host_target().fingerprint in reason
    assert found.variant_for(host_target()) is None
    assert show(found.graph) == show(graph())                   # what a default variant is made from
    assert found.variant_for(other).target == other


# --- values of every kind ----------------------------------------------------------------------------------------

class Memory:
    def __init__(self) -> None:
        self.arrays: list[np.ndarray] = []

    def put(self, array: np.ndarray) -> int:
        self.arrays.append(array)
        return len(self.arrays) - 1

    def get(self, place: int) -> np.ndarray:
        return self.arrays[place]


@pytest.mark.parametrize("value", [
    None, True, False, 0, -3, 2**40, "text", "", 1.5, -0.0, float("inf"), 1e-310, 0.1, (), (1, 2), [1, (2.5, "a")],
    N * 2 + 1, (N, N // 2, -1), b"\0\xff", {"a": (1,)}, F32, (True, None, ("x",))])
def test_attributes_of_every_kind_come_back(value: object) -> None:
    memory = Memory()
    text = json.loads(_canonical(value_to_json(value, memory)))
    found = value_from_json(text, memory)
    assert found == value
    assert type(found) is type(value)
    assert str(found) == str(value)


def test_nan_arrays_and_subgraphs_come_back(tmp_path: Path) -> None:
    inner = Graph(("a",), ("b",), (Node("Relu", ("a",), ("b",)),), {}, {"a": T, "b": T}, {"N": Symbol("N", 1, 2, 3)})
    memory = Memory()
    arrays = {"f": np.array([np.nan, 1]), "i": np.zeros((0, 3), np.int64), "s": np.array(3, np.int8)}
    value = {"g": inner, "nan": float("nan"), **arrays}
    found = value_from_json(json.loads(_canonical(value_to_json(value, memory))), memory)
    assert show(found["g"]) == show(inner)
    assert np.isnan(found["nan"])
    for k, a in arrays.items():
        assert found[k].dtype == a.dtype
        assert np.array_equal(found[k], a, equal_nan=True)


def test_constants_of_every_dtype_come_back_through_a_file(tmp_path: Path) -> None:
    constants = {"e": np.zeros((0, 3), np.float32), "z": np.array(7, np.int64), "t": np.array([["a", "ä"]], object),
                 "b": np.array([True, False]), "h": np.arange(3).astype(np.float16)}
    types = {"e": TensorType(F32, (0, 3)), "z": TensorType(I64, ()), "t": TensorType(STR, (1, 2))}
    made = graph_to_json(Graph((), ("e",), (), constants, {**dict.fromkeys("bh", T), **types}), memory := Memory())
    found = graph_from_json(made, memory)
    assert {k: v.tolist() for k, v in found.constants.items()} == {k: v.tolist() for k, v in constants.items()}
    whole = Engine("constants", Graph((), ("e",), (), constants, {**dict.fromkeys("bh", T), **types}))
    write_engine(whole, tmp_path / "c")
    again = read_engine(tmp_path / "c").graph.constants
    for k, a in constants.items():
        assert again[k].dtype == a.dtype
        assert again[k].shape == a.shape
        assert again[k].tolist() == a.tolist()


def test_a_sound_plan_has_no_faults() -> None:
    made = variant(program())
    assert faults(made.program, made.plan, [(0, 0)] * 4) == []
    assert faults(made.program, made.plan, [(1 << 20, 0)] * 4)
    moved = replace(made.program, views={"v": View("b", symbol("N") * 16)})
    assert "reaches beyond" in faults(moved, made.plan, [(0, 0)] * 4)[0]
