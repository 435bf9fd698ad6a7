"""Choices -> code in memory. Machine code never comes from an engine file: this machine makes it, and caches it."""
from __future__ import annotations

import json
import threading
import weakref
from collections.abc import Mapping
from dataclasses import dataclass

from ingot.engine import Variant
from ingot.errors import CandidateError
from ingot.graph import Dim, parse_dim
from ingot.kernels import Kernel, Site
from ingot.runtime.compiler import CodeCache, Library, code_key, compile_code, load_object
from ingot.target import Target
from ingot.tune import Choice, generator_version, tactic_named


class Code:
    """A kernel in memory: the addresses of its phases, and the memory it asks for."""

    __slots__ = ("__weakref__", "_library", "name", "phases", "scratch", "workspace")

    def __init__(self, name: str, phases: tuple[int, ...], workspace: Dim, scratch: Dim, library: Library) -> None:
        self.name, self.phases, self.workspace, self.scratch = name, phases, workspace, scratch
        self._library = library             # what the addresses point into


@dataclass
class _Loaded:
    """Code that some session of this process holds, so that several share it."""

    lock: threading.Lock
    codes: weakref.WeakValueDictionary[str, Code]


_loaded = _Loaded(threading.Lock(), weakref.WeakValueDictionary())


def choice_key(site: Site, choice: Choice, target: Target) -> str:
    """What names the code of a choice without emitting it."""
    return code_key(f"{site.key} {choice.point} {generator_version()} {target.fingerprint}", target)


def _packed(kernel: Kernel, code: bytes) -> bytes:
    head = {"name": kernel.name, "phases": kernel.phases, "workspace": str(kernel.workspace),
            "scratch": str(kernel.scratch)}
    return json.dumps(head).encode() + b"\n" + code


def _unpacked(raw: bytes, target: Target) -> Code | None:
    """Code from a cache entry, None where the entry is not one of this form."""
    head, _, code = raw.partition(b"\n")
    try:
        told = json.loads(head)
        library = load_object(code, target)
        return Code(told["name"], tuple(library.address(p) for p in told["phases"]), parse_dim(told["workspace"]),
                    parse_dim(told["scratch"]), library)
    except (ValueError, KeyError, TypeError, CandidateError):
        return None


def load_choice(site: Site, choice: Choice, target: Target, cache: CodeCache | None = None,
                kernel: Kernel | None = None) -> Code:
    """The code of a choice: from this process, from the cache of this machine, or generated now.

    `kernel` is the choice's kernel where it has been emitted already. Raises CandidateError or UnsupportedError.
    """
    key = choice_key(site, choice, target)
    with _loaded.lock:
        if found := _loaded.codes.get(key):
            return found
        raw = cache.get(key) if cache else None
        code = _unpacked(raw, target) if raw else None
        if code is None:
            made = kernel or tactic_named(choice.tactic, target).emit(site, choice.params, target)
            compiled = compile_code(made.code, target, cache, made.name)
            if cache:
                cache.put(key, _packed(made, compiled))
            library = load_object(compiled, target)
            code = Code(made.name, tuple(library.address(p) for p in made.phases), made.workspace, made.scratch,
                        library)
        _loaded.codes[key] = code
        return code


def load_codes(variant: Variant, cache: CodeCache | None = None,
               kernels: Mapping[str, Kernel] | None = None) -> tuple[Code | None, ...]:
    """The code of every launch, in order; None for those that run on the reference."""
    made: dict[str, Code] = {}
    for launch in variant.program.launches:
        key = launch.site.key
        if launch.native and key not in made:
            made[key] = load_choice(launch.site, variant.choices[key], variant.target, cache, (kernels or {}).get(key))
    return tuple(made[x.site.key] if x.native else None for x in variant.program.launches)
