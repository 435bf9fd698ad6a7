"""Choices -> code in memory. Machine code never comes from an engine file: this machine makes it, and caches it."""
from __future__ import annotations

import json
import os
import threading
import weakref
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from ingot.engine import Variant
from ingot.errors import CandidateError, EngineError
from ingot.graph import parse_dim
from ingot.kernels import Kernel, Site
from ingot.runtime.compiler import (
    CodeCache,
    Library,
    code_key,
    code_tag,
    compile_code,
    compile_together,
    load_object,
    load_objects,
)
from ingot.target import Target
from ingot.tune import Choice, generator_version, tactic_named, usable


class Code:
    """A kernel in memory: the addresses of its phases, the memory it asks for, the bytes of its packed operands."""

    __slots__ = ("__weakref__", "_library", "name", "packed", "phases", "scratch", "workspace")

    def __init__(self, told: Mapping[str, Any], library: Library) -> None:
        """Raises KeyError, TypeError, ValueError or CandidateError where what is told is not of a kernel's form."""
        self.name = str(told["name"])
        self.phases = tuple(library.address(p) for p in told["phases"])
        self.workspace, self.scratch = parse_dim(told["workspace"]), parse_dim(told["scratch"])
        self.packed = None if told["packed"] is None else {int(k): int(n) for k, n in told["packed"]}
        self._library = library             # what the addresses point into


@dataclass
class _Loaded:
    """Code that some session of this process holds, so that several share it."""

    lock: threading.Lock
    codes: weakref.WeakValueDictionary[str, Code]


_loaded = _Loaded(threading.Lock(), weakref.WeakValueDictionary())


def _after_fork() -> None:
    _loaded.lock = threading.Lock()         # another thread may have held it, and is not in the child to release it


os.register_at_fork(after_in_child=_after_fork)


def choice_key(site: Site, choice: Choice, target: Target) -> str:
    """What names the code of a choice without emitting it."""
    return code_key(f"{site.key} {choice.point} {generator_version(target)} {target.fingerprint}", target)


@dataclass(frozen=True)
class _Object:
    """Compiled code, not yet loaded, and what is told of it."""

    told: Mapping[str, Any]
    code: bytes

    @property
    def tag(self) -> str:
        return str(self.told["tag"])


def _told(kernel: Kernel, tag: str, packed: Mapping[int, np.ndarray] | None) -> dict[str, Any]:
    """What a cache entry says of its code."""
    return {"name": kernel.name, "phases": kernel.phases, "workspace": str(kernel.workspace), "tag": tag,
            "scratch": str(kernel.scratch),
            "packed": None if packed is None else [[k, a.nbytes] for k, a in sorted(packed.items())]}


def _object(key: str, site: Site, choice: Choice, target: Target, cache: CodeCache | None,
            kernel: Kernel | None) -> _Object:
    """The code of a choice, from the cache of this machine or generated now. Raises EngineError."""
    if cache and (raw := cache.get(key)):
        head, _, code = raw.partition(b"\n")
        told = json.loads(head)         # the cache gives back only what was put there
        if told.keys() == _FIELDS:
            return _Object(told, code)
    made, packed = (kernel, None) if kernel else _generated(site, choice, target)
    tag = code_tag(made.code)
    found = _Object(_told(made, tag, packed), compile_code(made.code, target, cache, made.name, tag))
    if cache:
        cache.put(key, json.dumps(found.told).encode() + b"\n" + found.code)
    return found


_FIELDS = {"name", "phases", "workspace", "scratch", "tag", "packed"}
Wanted = tuple[Site, Choice, Kernel | None]


def load_choices(wanted: Mapping[str, Wanted], target: Target, cache: CodeCache | None = None) -> dict[str, Code]:
    """The code of choices, each with its kernel where the caller has made it; by the same names.

    It comes from this process, from the cache of this machine, or is generated now. Raises EngineError for a choice
    that no race here could have made.
    """
    keys = {name: choice_key(site, choice, target) for name, (site, choice, _) in wanted.items()}
    with _loaded.lock:
        codes = {key: code for key in keys.values() if (code := _loaded.codes.get(key)) is not None}
        objects = {keys[name]: _object(keys[name], site, choice, target, cache, kernel)
                   for name, (site, choice, kernel) in wanted.items() if keys[name] not in codes}
        libraries = load_objects({o.tag: o.code for o in objects.values()}, target) if objects else {}
        for key, found in objects.items():
            codes[key] = _loaded.codes[key] = Code(found.told, libraries[found.tag])
    return {name: codes[key] for name, key in keys.items()}


def load_together(wanted: Mapping[str, tuple[Site, Choice, Kernel]], target: Target) -> dict[str, Code]:
    """The code of choices with their kernels, compiled as one module and past the cache; by the same names.

    Sessions find it as long as the caller holds it. Raises CandidateError where LLVM refuses one of them.
    """
    keys = {name: choice_key(site, choice, target) for name, (site, choice, _) in wanted.items()}
    with _loaded.lock:
        codes = {key: code for key in keys.values() if (code := _loaded.codes.get(key)) is not None}
        made = {keys[n]: (kernel, code_tag(kernel.code)) for n, (_, _, kernel) in wanted.items()
                if keys[n] not in codes}
        if made:
            texts = {tag: kernel.code for kernel, tag in made.values()}
            engine = load_object(compile_together(texts, target), target).engine
        for key, (kernel, tag) in made.items():
            codes[key] = _loaded.codes[key] = Code(_told(kernel, tag, None), Library(engine, tag))
    return {name: codes[key] for name, key in keys.items()}


def _generated(site: Site, choice: Choice, target: Target) -> tuple[Kernel, Mapping[int, np.ndarray]]:
    """The kernel of a choice, and (of zeros) the constants it packs: their sizes are what counts."""
    try:
        return _emitted(site, choice, target)
    except (LookupError, ValueError, TypeError, ArithmeticError, AttributeError, CandidateError) as error:
        raise EngineError(f"the engine's site {site} has no kernel", where=str(target),
                          why=(f"{type(error).__name__}: {error}",), mend="build the engine anew") from error


def _emitted(site: Site, choice: Choice, target: Target) -> tuple[Kernel, Mapping[int, np.ndarray]]:
    if not usable(choice, site, target):
        raise EngineError(f"the engine chose {choice.point} for {site}, which is not to be had here",
                          where=str(target), why=("no tactic of that name offers that point for this site",),
                          mend="build the engine anew")
    tactic = tactic_named(choice.tactic, target)
    zeros = {k: np.zeros(o.type.at({}).shape, o.type.dtype.numpy) for k, o in enumerate(site.inputs)  # type: ignore
             if o.constant}
    return tactic.emit(site, choice.params, target), tactic.pack(site, choice.params, target, zeros)


def load_codes(variant: Variant, cache: CodeCache | None = None,
               kernels: Mapping[str, Kernel] | None = None) -> tuple[Code | None, ...]:
    """The code of every launch, in order; None for those that run on the reference."""
    wanted: dict[str, Wanted] = {}
    for launch in variant.program.launches:
        key = launch.site.key
        if launch.native and key not in variant.choices:
            raise EngineError(f"the engine has no choice for {launch.where}", why=(f"its site is {launch.site}",),
                              mend="build the engine anew")
        if launch.native:
            wanted[key] = launch.site, variant.choices[key], (kernels or {}).get(key)
    made = load_choices(wanted, variant.target, cache)
    for index, launch in enumerate(variant.program.launches):
        packed = {k: a.nbytes for (i, k), a in variant.packed.items() if i == index}
        if launch.native and made[launch.site.key].packed not in (None, packed):
            reads = made[launch.site.key].packed
            raise EngineError(f"the packed constants of {launch.where} are not what its kernel reads",
                              why=(f"they have {packed} bytes by operand, the kernel reads {reads}",),
                              mend="build the engine anew")
    return tuple(made[x.site.key] if x.native else None for x in variant.program.launches)
