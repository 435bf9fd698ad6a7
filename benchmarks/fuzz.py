"""Damaged and invented files against the two readers: every one ends in a value or in one of Ingot's errors.

    python -m benchmarks.fuzz model --seconds 600       the ONNX reader
    python -m benchmarks.fuzz engine --seconds 600      the engine reader

The inputs are mutations of valid files: bytes (flips, cuts, insertions, pieces of other files), and structure (fields
of the protobuf message, values of the engine's manifest, which is then hashed anew so that it is believed). Each
is read in a worker process under a limit of its address space and of the time one input may take. What ends otherwise
than in a value or an `IngotError` is a failure: the input is kept in --keep. The counts are added to --out.
"""
from __future__ import annotations

import argparse
import contextlib
import datetime
import hashlib
import json
import multiprocessing
import os
import random
import resource
import signal
import struct
import sys
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Callable, Iterator
from multiprocessing.sharedctypes import Synchronized
from pathlib import Path
from types import FrameType
from typing import Any

import numpy as np
import onnx
from google.protobuf.descriptor import FieldDescriptor
from onnx import helper, numpy_helper
from onnx.backend.test.case.node import collect_testcases

import ingot
from ingot.engine import read_engine
from ingot.engine.format import _HEAD, MAGIC, VERSION
from ingot.errors import IngotError, InternalError
from ingot.frontend import load
from ingot.runtime.session import Session

SECONDS = 5.0                   # of processor time one input may take
ADDRESS_SPACE = 4 << 30         # bytes a worker may map beyond what it has at its start
GROWTH = 1 << 30                # bytes a worker's peak of resident memory may grow over its whole life
PER_WORKER = 40_000             # inputs after which a worker is replaced
NUMBERS = (0, 1, -1, 2, 3, 7, 8, 63, 64, 65, 127, 128, 255, 256, 4095, 65535, 65536, 1 << 20, (1 << 31) - 1, -(1 << 31),
           1 << 32, 1 << 40, (1 << 63) - 1, -(1 << 63), -2, 1000)
RESULTS = Path(__file__).parent / "results" / "fuzz.json"
Target = Callable[[bytes], None]
Maker = Callable[[random.Random], bytes]


# ----------------------------------------------------------------------------------------------------------- mutations

def mutated_bytes(rng: random.Random, seeds: list[bytes]) -> bytes:
    """A file of the corpus with one to eight places changed."""
    raw = bytearray(rng.choice(seeds))
    for _ in range(rng.choice((1, 1, 1, 2, 3, 8))):
        at = rng.randrange(len(raw) + 1)
        match rng.randrange(8):
            case 0 if raw:
                raw[at % len(raw)] ^= 1 << rng.randrange(8)
            case 1 if raw:
                raw[at % len(raw)] = rng.randrange(256)
            case 2:
                del raw[at:]
            case 3:
                del raw[at:at + rng.choice((1, 2, 4, 16, 64))]
            case 4:
                raw[at:at] = rng.randbytes(rng.choice((1, 2, 4, 16)))
            case 5:
                other = rng.choice(seeds)
                start = rng.randrange(len(other))
                raw[at:at + rng.choice((0, 8, 32))] = other[start:start + rng.choice((1, 8, 32, 128))]
            case 6:
                raw[at:at] = raw[at:at + rng.choice((4, 16, 64))] * rng.choice((1, 2, 50))
            case _:
                form = rng.choice(("<q", "<i", ">q", "<h"))
                size = struct.calcsize(form)
                raw[at:at + size] = (rng.choice(NUMBERS) & ((1 << 8 * size) - 1)).to_bytes(size, "little")
    return bytes(raw)


def mutated_message(rng: random.Random, seeds: list[bytes]) -> bytes:
    """A model of the corpus with some fields of its message set otherwise, repeated, dropped or shuffled."""
    model = onnx.ModelProto.FromString(rng.choice(seeds))
    for _ in range(rng.choice((1, 1, 2, 3, 6))):
        message: Any = model
        while True:         # down to a random message
            inner = [m for f, v in message.ListFields() if f.message_type for m in (v if _many(f) else [v])]
            if not inner or rng.random() < 0.25:
                break
            message = rng.choice(inner)
        _change(message, rng, seeds)
    return bytes(model.SerializeToString())


def _many(field: FieldDescriptor) -> bool:
    return bool(field.is_repeated)


def _change(message: Any, rng: random.Random, seeds: list[bytes]) -> None:
    field = rng.choice(message.DESCRIPTOR.fields)
    kind, name = field.cpp_type, field.name
    if rng.random() < 0.1:
        message.ClearField(name)
        return
    if field.message_type:
        if _many(field):
            items = getattr(message, name)
            choice = rng.randrange(4)
            if choice == 0 or not items:
                items.add()
            elif choice == 1:
                del items[rng.randrange(len(items))]
            elif choice == 2:
                items.add().CopyFrom(rng.choice(items))
            else:
                kept = list(items)
                rng.shuffle(kept)
                copies = [type(m).FromString(m.SerializeToString()) for m in kept]
                del items[:]
                items.extend(copies)
        else:
            getattr(message, name).SetInParent()
        return
    value: Any
    if kind in (FieldDescriptor.CPPTYPE_STRING,):
        value = rng.choice(_words(seeds))
        if field.type == FieldDescriptor.TYPE_BYTES:
            value = rng.choice((value.encode(), rng.randbytes(rng.choice((0, 1, 4, 64)))))
    elif kind in (FieldDescriptor.CPPTYPE_FLOAT, FieldDescriptor.CPPTYPE_DOUBLE):
        value = rng.choice((0.0, -1.0, 1e30, float("nan"), float("inf"), 0.5))
    elif kind == FieldDescriptor.CPPTYPE_ENUM:
        value = rng.choice((*range(-1, 30), 1 << 20))
    else:
        narrow = kind in (FieldDescriptor.CPPTYPE_INT32, FieldDescriptor.CPPTYPE_UINT32)
        value = rng.choice([n for n in NUMBERS if not narrow or abs(n) < 1 << 31])
        if kind in (FieldDescriptor.CPPTYPE_UINT32, FieldDescriptor.CPPTYPE_UINT64):
            value = abs(value)
    with contextlib.suppress(ValueError, TypeError, AttributeError):    # a value the field cannot hold
        if _many(field):
            items = getattr(message, name)
            if items and rng.random() < 0.5:
                items[rng.randrange(len(items))] = value
            else:
                items.extend([value] * rng.choice((1, 1, 2, 100)))
        else:
            setattr(message, name, value)


_known_words: list[str] = []


def _words(seeds: list[bytes]) -> list[str]:
    """Names that occur in the corpus, and some that should not."""
    if not _known_words:
        found = {"", "x", "y", "../x", "/etc/passwd", "a" * 5000, "\0", "ai.onnx.ml", "N", "batch", "-1", "é\u2028"}
        for raw in seeds[::7]:
            graph = onnx.ModelProto.FromString(raw).graph
            found |= {w for n in graph.node for w in (n.op_type, *n.input, *n.output, *(a.name for a in n.attribute))}
        _known_words.extend(sorted(found))
    return _known_words


# -------------------------------------------------------------------------------------------------------------- models

def model_seeds() -> list[bytes]:
    """The node tests of the onnx package as models, and a few with what those have not: all of them small."""
    found = [bytes(c.model.SerializeToString()) for c in collect_testcases(None) if c.model is not None]
    return sorted({raw for raw in (*found, *(bytes(m.SerializeToString()) for m in invented())) if len(raw) < 6000})


def invented() -> Iterator[onnx.ModelProto]:
    """Models with functions, branches, loops, external data, and weights of every way to hold them."""
    def tensor(name: str, *shape: Any, kind: int = onnx.TensorProto.FLOAT) -> onnx.ValueInfoProto:
        return helper.make_tensor_value_info(name, kind, shape)

    def model(nodes: list[onnx.NodeProto], inputs: list[Any], outputs: list[Any], weights: list[Any] = (),  # type: ignore[assignment]
              **more: Any) -> onnx.ModelProto:
        return helper.make_model(helper.make_graph(nodes, "g", inputs, outputs, list(weights)), ir_version=9,
                                 **{"opset_imports": [helper.make_opsetid("", 18)], **more})

    rng = np.random.default_rng(0)
    w = numpy_helper.from_array(rng.standard_normal((4, 3, 3, 3)).astype(np.float32), "w")
    node = helper.make_node
    yield model([node("Conv", ["x", "w"], ["h"], pads=[1, 1, 1, 1]), node("Relu", ["h"], ["r"]),
                 node("GlobalAveragePool", ["r"], ["y"])],
                [tensor("x", "N", 3, 8, 8)], [tensor("y", "N", 4, 1, 1)], [w])
    yield model([node("Shape", ["x"], ["n"]), node("Slice", ["n", "zero", "one"], ["b"]),
                 node("Concat", ["b", "rest"], ["s"], axis=0), node("Reshape", ["x", "s"], ["y"])],
                [tensor("x", "N", 2, "M")], [tensor("y", "N", None)],
                [numpy_helper.from_array(np.array([0], np.int64), "zero"),
                 numpy_helper.from_array(np.array([1], np.int64), "one"),
                 numpy_helper.from_array(np.array([-1], np.int64), "rest")])
    body = helper.make_graph([node("Add", ["a", "x"], ["c"]), node("Identity", ["go"], ["on"])], "body",
                             [tensor("i", kind=onnx.TensorProto.INT64), tensor("go", kind=onnx.TensorProto.BOOL),
                              tensor("a", 2)],
                             [tensor("on", kind=onnx.TensorProto.BOOL), tensor("c", 2)])
    yield model([node("Loop", ["n", "", "x"], ["y"], body=body)], [tensor("x", 2)], [tensor("y", 2)],
                [numpy_helper.from_array(np.array(3, np.int64), "n")])
    left = helper.make_graph([node("Relu", ["x"], ["l"])], "l", [], [tensor("l", 2)])
    right = helper.make_graph([node("Neg", ["x"], ["r"])], "r", [], [tensor("r", 2)])
    yield model([node("If", ["c"], ["y"], then_branch=left, else_branch=right)],
                [tensor("x", 2), tensor("c", kind=onnx.TensorProto.BOOL)], [tensor("y", 2)])
    f = helper.make_function("own", "twice", ["a"], ["b"], [node("Add", ["a", "a"], ["b"])],
                             [helper.make_opsetid("", 18)])
    yield model([node("twice", ["x"], ["h"], domain="own"), node("twice", ["h"], ["y"], domain="own")],
                [tensor("x", 2)], [tensor("y", 2)], functions=[f],
                opset_imports=[helper.make_opsetid("", 18), helper.make_opsetid("own", 1)])
    outside = helper.make_tensor("w", onnx.TensorProto.FLOAT, [2], np.zeros(2, np.float32).tobytes(), raw=True)
    outside.ClearField("raw_data")
    outside.data_location = onnx.TensorProto.EXTERNAL
    for key, value in (("location", "w.bin"), ("offset", "0"), ("length", "8")):
        outside.external_data.add(key=key, value=value)
    yield model([node("Add", ["x", "w"], ["y"])], [tensor("x", 2)], [tensor("y", 2)], [outside])
    for kind in range(1, 27):
        if kind in (onnx.TensorProto.STRING,):
            continue
        count = 8
        held = helper.make_tensor("w", kind, [count], [1] * count)
        yield model([node("Cast", ["w"], ["c"], to=1), node("Add", ["x", "c"], ["y"])], [tensor("x", 8)],
                    [tensor("y", 8)], [held], opset_imports=[helper.make_opsetid("", 25)])


def read_model_bytes(raw: bytes) -> None:
    """What is under test: a graph, or an IngotError that is not an InternalError."""
    load(raw)


# ------------------------------------------------------------------------------------------------------------- engines

def engine_seeds() -> list[bytes]:
    """Engines of small models, as files."""
    found: list[bytes] = []
    with tempfile.TemporaryDirectory() as folder:
        for number, model in enumerate([*invented()][:4]):
            try:
                engine = ingot.build(model, options=ingot.BuildOptions(tune=False, verify=False, threads=1))
            except IngotError:
                continue
            path = Path(folder) / f"{number}.ingot"
            ingot.save(engine, path)
            found.append(path.read_bytes())
    return found


def mutated_engine(rng: random.Random, seeds: list[bytes], parsed: list[tuple[Any, bytes]]) -> bytes:
    """An engine's file with bytes changed, or one with values of its manifest changed and hashed anew."""
    if rng.random() < 0.4:
        raw = mutated_bytes(rng, seeds)
        if rng.random() < 0.5 and len(raw) >= _HEAD.size:       # past the first hash
            length = _HEAD.unpack(raw[:_HEAD.size])[3]
            if _HEAD.size + length <= len(raw):
                digest = hashlib.sha256(raw[_HEAD.size:_HEAD.size + length]).digest()
                raw = _HEAD.pack(MAGIC, VERSION, 0, length, len(raw), digest) + raw[_HEAD.size:]
        return raw
    text, sections = rng.choice(parsed)
    manifest = json.loads(text)
    for _ in range(rng.choice((1, 1, 2, 4))):
        _change_json(manifest, rng)
    body = json.dumps(manifest, separators=(",", ":")).encode()
    return packed_engine(body, sections)


def packed_engine(manifest: bytes, sections: bytes) -> bytes:
    """A file with this manifest, its sections behind it, and a head that vouches for both."""
    start = -(-(_HEAD.size + len(manifest)) // 64) * 64 if sections else _HEAD.size + len(manifest)
    head = _HEAD.pack(MAGIC, VERSION, 0, len(manifest), start + len(sections), hashlib.sha256(manifest).digest())
    return head + manifest + bytes(start - len(head) - len(manifest)) + sections


def parsed_engine(raw: bytes) -> tuple[Any, bytes]:
    """The manifest's text and the sections of an engine's file."""
    length = _HEAD.unpack(raw[:_HEAD.size])[3]
    start = -(-(_HEAD.size + length) // 64) * 64
    return raw[_HEAD.size:_HEAD.size + length], raw[start:]


def _change_json(value: Any, rng: random.Random) -> None:
    """One place inside a JSON value, changed."""
    while True:
        keys = list(value) if isinstance(value, dict) else list(range(len(value)))
        if not keys:
            return
        key = rng.choice(keys)
        if isinstance(value[key], (dict, list)) and value[key] and rng.random() < 0.9:
            value = value[key]
            continue
        break
    match rng.randrange(7):
        case 0:
            value[key] = rng.choice(NUMBERS)
        case 1:
            value[key] = rng.choice(("", "x", "f32[2]", "f32[N,99999999]", "N", "N*N", "(N)//0", "1//0", "2**9**9**9",
                                     "str[2]", "x86.pointwise", "((((((N))))))", "-1", "N" * 3000, "f32[-1]"))
        case 2:
            value[key] = rng.choice((None, True, 0.5, [], {}, [[]], {"t": [1]}, {"d": "N"}, {"f": "0x1p3"},
                                     {"a": [0, "f32", [1]]},
                                     {"a": [0, "f32", [1 << 40]]}, {"g": {}}, [0, "str", [1]]))
        case 3:
            del value[key]
        case 4 if isinstance(value, list):
            value.insert(rng.randrange(len(value) + 1), json.loads(json.dumps(rng.choice(value))))
        case 5 if isinstance(value, list):
            rng.shuffle(value)
        case _:
            if isinstance(value[key], int) and not isinstance(value[key], bool):
                value[key] += rng.choice((-64, -1, 1, 64))
            elif isinstance(value[key], str) and value[key]:
                at = rng.randrange(len(value[key]))
                value[key] = value[key][:at] + rng.choice("09N[],*/-x") + value[key][at + 1:]


def reader_of_engines(folder: Path) -> Target:
    """What is under test: an engine whose graph and variants can be opened and sessions made, or an EngineError."""
    def read(raw: bytes) -> None:
        path = folder / f"{os.getpid()}.ingot"
        path.write_bytes(raw)
        engine = read_engine(path)
        _ = engine.graph
        for variant in engine.variants:
            _ = variant.opened          # type: ignore[union-attr]
        Session(engine, threads=1)
    return read


# ------------------------------------------------------------------------------------------------------------- workers

class TooLongError(BaseException):
    """One input took longer than it may. No Exception, so that nobody in between catches it."""


def _too_long(number: int, frame: FrameType | None) -> None:
    raise TooLongError


def resident() -> int:
    """Peak resident bytes of this process."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def work(make: Maker, target: Target, seed: int, done: Synchronized[int], now: Any, length: Synchronized[int],
         until: float, pipe: Any) -> None:
    """A worker: inputs one after the other, the present one always in shared memory."""
    mapped = int(Path("/proc/self/statm").read_text().split()[0]) * 4096
    resource.setrlimit(resource.RLIMIT_AS, (mapped + ADDRESS_SPACE,) * 2)
    signal.signal(signal.SIGPROF, _too_long)
    rng = random.Random(seed)
    kinds: Counter[str] = Counter()
    before = resident()
    for _ in range(PER_WORKER):
        if time.monotonic() > until:
            break
        raw = make(rng)
        held = raw[:len(now)]
        now[:len(held)], length.value = held, len(held)
        signal.setitimer(signal.ITIMER_PROF, SECONDS)
        try:
            target(raw)
            kinds["read"] += 1
        except InternalError:
            pipe.send(("failure", raw, traceback.format_exc()))
        except IngotError as error:
            kinds[type(error).__name__] += 1
        except (Exception, TooLongError):                   # noqa: BLE001 - whatever else comes is what is looked for
            pipe.send(("failure", raw, traceback.format_exc()))
        finally:
            signal.setitimer(signal.ITIMER_PROF, 0)
        done.value += 1
        if resident() - before > GROWTH:
            pipe.send(("failure", raw, f"resident memory grew to {resident()} bytes\n"))
            break
    pipe.send(("end", dict(kinds), ""))


def supervise(make: Maker, target: Target, seconds: float, seed: int, keep: Path
              ) -> tuple[int, Counter[str], list[str]]:
    """Workers, one after the other, until the time is up: inputs read, how they ended, and the failures' last lines."""
    context = multiprocessing.get_context("fork")
    done, length, now = context.Value("q", 0), context.Value("q", 0), context.Array("c", 1 << 20, lock=False)
    until = time.monotonic() + seconds
    kinds: Counter[str] = Counter()
    failures: list[str] = []

    def failed(raw: bytes, text: str) -> None:
        keep.mkdir(parents=True, exist_ok=True)
        name = hashlib.sha256(raw).hexdigest()[:16]
        (keep / f"{name}.bin").write_bytes(raw)
        (keep / f"{name}.txt").write_text(text)
        failures.append(f"{name}: {text.strip().splitlines()[-1][:200]}")
        print(failures[-1], file=sys.stderr, flush=True)

    while time.monotonic() < until:
        seed += 1
        ours, theirs = context.Pipe(duplex=False)
        process = context.Process(target=work, args=(make, target, seed, done, now, length, until, theirs))
        process.start()
        theirs.close()
        last, moved = done.value, time.monotonic()
        while process.is_alive() or ours.poll():
            try:
                if ours.poll(1.0):
                    kind, what, text = ours.recv()
                    if kind == "failure":
                        failed(what, text)
                    else:
                        kinds.update(what)
            except EOFError:
                break
            if done.value != last:
                last, moved = done.value, time.monotonic()
            elif time.monotonic() - moved > 30 * SECONDS:     # even the alarm did not end it
                process.kill()
                failed(bytes(now[:length.value]), "the reader hung\n")
                break
        process.join()
        if process.exitcode not in (0, -signal.SIGKILL):
            failed(bytes(now[:length.value]), f"the process ended with {process.exitcode}\n")
    return done.value, kinds, failures


def record(out: Path, reader: str, inputs: int, kinds: Counter[str], failures: list[str], seconds: float) -> None:
    """Add one run to the results."""
    document = json.loads(out.read_text()) if out.exists() else {}
    old = document.get(reader, {"inputs": 0, "failures": 0, "ended": {}, "seconds": 0.0})
    document[reader] = {"inputs": old["inputs"] + inputs, "failures": old["failures"] + len(failures),
                        "ended": dict(sorted((Counter(old["ended"]) + kinds).items())),
                        "seconds": round(old["seconds"] + seconds, 1),
                        "until": datetime.datetime.now(datetime.UTC).date().isoformat()}
    document["limits"] = {"seconds": SECONDS, "address_space": ADDRESS_SPACE, "resident_growth": GROWTH}
    out.parent.mkdir(parents=True, exist_ok=True)
    beside = out.with_suffix(".partial")
    beside.write_text(json.dumps(document, indent=2, sort_keys=True) + "\n")
    beside.replace(out)


def maker_and_target(reader: str, folder: Path) -> tuple[Maker, Target]:
    """How inputs of a reader are made, and the reader."""
    if reader == "model":
        seeds = model_seeds()
        return (lambda rng: (mutated_message if rng.random() < 0.6 else mutated_bytes)(rng, seeds)), read_model_bytes
    seeds = engine_seeds()
    parsed = [parsed_engine(raw) for raw in seeds]
    return (lambda rng: mutated_engine(rng, seeds, parsed)), reader_of_engines(folder)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("reader", choices=("model", "engine"))
    parser.add_argument("--seconds", type=float, default=60.0)
    parser.add_argument("--seed", type=int, default=None, help="of the first worker; without it another one every time")
    parser.add_argument("--out", type=Path, default=RESULTS)
    parser.add_argument("--keep", type=Path, default=Path("fuzz-failures"), help="folder for inputs that failed")
    options = parser.parse_args()
    begin = time.monotonic()
    with tempfile.TemporaryDirectory(dir="/dev/shm" if Path("/dev/shm").is_dir() else None) as folder:
        make, target = maker_and_target(options.reader, Path(folder))
        first = options.seed if options.seed is not None else random.SystemRandom().randrange(1 << 40)
        inputs, kinds, failures = supervise(make, target, options.seconds, first, options.keep)
    seconds = time.monotonic() - begin
    record(options.out, options.reader, inputs, kinds, failures, seconds)
    print(f"{options.reader}: {inputs} inputs in {seconds:.0f} s, {len(failures)} failures; {dict(kinds)}")
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
