"""LLVM IR text -> machine code in memory, through a local cache of object code.

The cache holds only what this user's Ingot compiled on this machine: its folder is private (0700), its
entries carry a hash, and their names come from the IR text, LLVM's version, the cpu and its features.
"""
from __future__ import annotations

import hashlib
import os
import stat
import struct
import tempfile
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import llvmlite.binding as llvm
import numpy as np

from ingot.errors import CandidateError
from ingot.kernels import Kernel
from ingot.runtime.host import AVX512
from ingot.target import Target

_MAGIC = b"ingot-code-1\n"
_TRIPLES = {"x86": "x86_64-unknown-linux-gnu", "neon": "aarch64-unknown-linux-gnu"}


def default_folder() -> Path:
    """The user's cache folder for Ingot."""
    return Path.home() / ".cache" / "ingot"


class CodeCache:
    """Blobs by key in a private folder. A damaged, foreign or unreadable entry is a miss, never an error."""

    def __init__(self, folder: Path | None) -> None:
        self.folder = folder if folder is not None and _private(folder) else None

    def _path(self, key: str) -> Path | None:
        return self.folder / f"{hashlib.sha256(key.encode()).hexdigest()}.code" if self.folder else None

    def get(self, key: str) -> bytes | None:
        """The blob stored under the key, or None."""
        path = self._path(key)
        if path is None:
            return None
        try:
            raw = path.read_bytes()
        except OSError:
            return None
        start = len(_MAGIC) + 32
        body = raw[start:]
        sound = raw.startswith(_MAGIC) and hashlib.sha256(key.encode() + b"\0" + body).digest() == raw[start - 32:start]
        return body if sound else None

    def put(self, key: str, body: bytes) -> None:
        """Store a blob: written beside and renamed, so that readers see all of it or nothing."""
        path = self._path(key)
        if path is None:
            return
        digest = hashlib.sha256(key.encode() + b"\0" + body).digest()
        with suppress(OSError):                     # a full disk must not end a build
            handle, beside = tempfile.mkstemp(dir=path.parent, prefix=".new-")
            try:
                with os.fdopen(handle, "wb") as file:
                    file.write(_MAGIC + digest + body)
                os.replace(beside, path)
            except OSError:
                with suppress(OSError):
                    os.unlink(beside)
                raise


def _private(folder: Path) -> bool:
    """Make the folder, and say whether it is this user's alone."""
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        found = folder.stat()
        if stat.S_IMODE(found.st_mode) & 0o077 and found.st_uid == os.geteuid():
            folder.chmod(0o700)
            found = folder.stat()
    except OSError:
        return False
    return found.st_uid == os.geteuid() and not stat.S_IMODE(found.st_mode) & 0o077


# relocations that want an entry of the global offset table: x86-64's GOT32, GOTPCREL, GOT64, GOTPCREL64, GOTPLT64,
# GOTPCRELX and REX_GOTPCRELX; AArch64's ADR_GOT_PAGE and LD64_GOT_LO12_NC
_RELA = 4
_TABLE_ENTRIES = (3, 9, 27, 28, 30, 41, 42, 311, 312)
_PASSES = "sroa simplify-cfg"      # enters the key of compiled code


@cache
def _initialized() -> None:
    llvm.initialize_all_targets()
    llvm.initialize_all_asmprinters()


def _features(target: Target) -> str:
    absent = sorted(AVX512 - target.features) if target.kind == "x86" else []
    return ",".join([*(f"+{f}" for f in sorted(target.features)), *(f"-{f}" for f in absent)])


def _machine(target: Target) -> llvm.TargetMachine:
    """A target machine. Made anew each time: LLVM's are not to be shared by threads."""
    _initialized()
    made = llvm.Target.from_triple(_TRIPLES[target.kind])
    # position-independent: the sections of an object may land anywhere in memory
    return made.create_target_machine(cpu=target.cpu, features=_features(target), opt=3, reloc="pic", jit=True)


def code_key(code: str, target: Target) -> str:
    """What names compiled code: the text it came from, and everything the compiler was told."""
    version = ".".join(map(str, llvm.llvm_version_info))
    told = f"llvm {version} {_PASSES} {target.kind} {target.cpu} {_features(target)}"
    return f"{hashlib.sha256(code.encode()).hexdigest()} {told}"


def _parsed(code: str, target: Target, name: str) -> llvm.ModuleRef:
    """A module of the text. Raises CandidateError where LLVM does not take it."""
    _initialized()
    try:
        module = llvm.parse_assembly(code)      # in the global context: one of its own may be collected before it
        module.verify()
    except RuntimeError as error:
        raise CandidateError("LLVM refuses the kernel's code", where=name, why=(str(error).strip(),)) from None
    module.triple = _TRIPLES[target.kind]
    return module


def _optimized(module: llvm.ModuleRef, machine: llvm.TargetMachine) -> None:
    # Kernels are explicit about loops and vectors: stack slots into registers is all that is left to do. The whole of
    # -O2 takes twice as long and gave no faster kernel (pooling was slower). NewGVN is left out for good: it makes
    # sums of a loop's counter into phis of constants, which are wrong from the third turn on (LLVM 22).
    passes = llvm.create_new_function_pass_manager()
    passes.add_sroa_pass()
    passes.add_simplify_cfg_pass()
    builder = llvm.create_pass_builder(machine, llvm.create_pipeline_tuning_options(speed_level=2))
    for function in module.functions:
        if not function.is_declaration:
            passes.run(function, builder)


def _tagged(module: llvm.ModuleRef, tag: str) -> llvm.ModuleRef:
    for value in (*module.functions, *module.global_variables):
        if tag and not value.is_declaration:
            value.name += tag
    return module


def code_tag(code: str) -> str:
    """What the names of a kernel's functions end in, so that many kernels can be loaded as one."""
    return "." + hashlib.sha256(code.encode()).hexdigest()[:16]


def compile_code(code: str, target: Target, cache: CodeCache | None = None, name: str = "code",
                 tag: str = "") -> bytes:
    """An object file for a module of LLVM IR; the names it defines end in `tag`. Raises CandidateError."""
    key = code_key(code, target) + tag
    if cache and (found := cache.get(key)):
        return found
    module, machine = _parsed(code, target, name), _machine(target)
    _optimized(module, machine)
    made: bytes = machine.emit_object(_tagged(module, tag))
    if cache:
        cache.put(key, made)
    return made


def compile_together(codes: Mapping[str, str], target: Target) -> bytes:
    """One object file for many modules of LLVM IR, by the tags their names are to end in: LLVM takes some 3 ms to
    begin, however small the module. Raises CandidateError, ValueError where there is no module."""
    first, *others = (_tagged(_parsed(code, target, tag), tag) for tag, code in codes.items())
    for other in others:
        first.link_in(other)
    machine = _machine(target)
    _optimized(first, machine)
    made: bytes = machine.emit_object(first)
    return made


def assembly(kernel: Kernel, target: Target) -> str:
    """The kernel in assembly, for a target that need not be this machine's. Raises CandidateError."""
    module, machine = _parsed(kernel.code, target, kernel.name), _machine(target)
    _optimized(module, machine)
    text: str = machine.emit_assembly(module)
    return text


@dataclass(frozen=True)
class Library:
    """Code loaded into this process. It lives as long as this object: whoever calls into it keeps it."""

    engine: llvm.ExecutionEngine
    tag: str = ""

    def address(self, name: str) -> int:
        """The address of a function. Raises CandidateError where the code has none of that name."""
        found: int = self.engine.get_function_address(name + self.tag)
        if not found:
            raise CandidateError(f"the code has no function '{name}'")
        return found


def _looks_up(code: bytes) -> bool:
    """Whether an object (ELF, 64 bits) finds anything through a global offset table, as it does C's fmodf."""
    start, size, count = (struct.unpack_from(form, code, at)[0] for form, at in (("<Q", 40), ("<H", 58), ("<H", 60)))
    for at in range(start, start + size * count, size):
        offset, length = struct.unpack_from("<QQ", code, at + 24)
        if struct.unpack_from("<I", code, at + 4)[0] == _RELA:
            entries = np.frombuffer(code, "<u8", length // 8, offset).reshape(-1, 3)[:, 1]      # offset, type, addend
            if np.isin(entries & 0xFFFFFFFF, _TABLE_ENTRIES).any():
                return True
    return False


def load_objects(codes: Mapping[str, bytes], target: Target) -> dict[str, Library]:
    """Load object files, by the tag of their names, into this process: together, as each alone takes as long as all.

    One that has a global offset table is loaded alone: LLVM (22, RuntimeDyld) takes its table for that of an object
    which comes after it, whose constants are then read from anywhere. Raises CandidateError where one cannot be linked.
    """
    alone = [tag for tag, code in codes.items() if _looks_up(code)]
    libraries: dict[str, Library] = {}
    try:
        for tags in ([t for t in codes if t not in alone], *([t] for t in alone)):
            engine = llvm.create_mcjit_compiler(llvm.parse_assembly(""), _machine(target))
            for tag in tags:
                engine.add_object_file(llvm.ObjectFileRef.from_data(codes[tag]))
            engine.finalize_object()
            libraries |= {tag: Library(engine, tag) for tag in tags}
    except RuntimeError as error:
        raise CandidateError("the compiled code cannot be loaded", why=(str(error).strip(),)) from None
    return libraries


def load_object(code: bytes, target: Target) -> Library:
    """Load an object file into this process. Raises CandidateError where it cannot be linked."""
    return load_objects({"": code}, target)[""]


def load_kernel(kernel: Kernel, target: Target, cache: CodeCache | None = None) -> Library:
    """Compile a kernel, or find it in the cache, and load it. Raises CandidateError."""
    tag = code_tag(kernel.code)
    return load_objects({tag: compile_code(kernel.code, target, cache, kernel.name, tag)}, target)[tag]
