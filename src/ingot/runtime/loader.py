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
from ingot.errors import CandidateError, EngineError, ModelError
from ingot.graph import parse_dim
from ingot.kernels import Kernel, Site
from ingot.runtime.compiler import CodeCache, Library, code_key, compile_code, load_object
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
    return code_key(f"{site.key} {choice.point} {generator_version()} {target.fingerprint}", target)


def _told(kernel: Kernel, packed: Mapping[int, np.ndarray] | None) -> dict[str, Any]:
    """What a cache entry says of its code."""
    return {"name": kernel.name, "phases": kernel.phases, "workspace": str(kernel.workspace),
            "scratch": str(kernel.scratch),
            "packed": None if packed is None else [[k, a.nbytes] for k, a in sorted(packed.items())]}


def _from_cache(raw: bytes, target: Target) -> Code | None:
    """Code from a cache entry, None where the entry is not one of this form."""
    head, _, code = raw.partition(b"\n")
    try:
        return Code(json.loads(head), load_object(code, target))
    except (ValueError, KeyError, TypeError, CandidateError, ModelError):
        return None


def load_choice(site: Site, choice: Choice, target: Target, cache: CodeCache | None = None,
                kernel: Kernel | None = None) -> Code:
    """The code of a choice: from this process, from the cache of this machine, or generated now.

    `kernel` is the choice's kernel where the caller has made it. Raises EngineError for a choice that no race here
    could have made.
    """
    key = choice_key(site, choice, target)
    with _loaded.lock:
        if found := _loaded.codes.get(key):
            return found
        raw = cache.get(key) if cache else None
        code = _from_cache(raw, target) if raw else None
        if code is None:
            made, packed = (kernel, None) if kernel else _generated(site, choice, target)
            compiled, told = compile_code(made.code, target, cache, made.name), _told(made, packed)
            if cache:
                cache.put(key, json.dumps(told).encode() + b"\n" + compiled)
            code = Code(told, load_object(compiled, target))
        _loaded.codes[key] = code
        return code


def _generated(site: Site, choice: Choice, target: Target) -> tuple[Kernel, Mapping[int, np.ndarray]]:
    """The kernel of a choice, and (of zeros) the constants it packs: their sizes are what counts."""
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
    made: dict[str, Code] = {}
    for index, launch in enumerate(variant.program.launches):
        if not launch.native:
            continue
        key = launch.site.key
        if key not in variant.choices:
            raise EngineError(f"the engine has no choice for {launch.where}", why=(f"its site is {launch.site}",),
                              mend="build the engine anew")
        if key not in made:
            made[key] = load_choice(launch.site, variant.choices[key], variant.target, cache, (kernels or {}).get(key))
        packed = {k: a.nbytes for (i, k), a in variant.packed.items() if i == index}
        if made[key].packed not in (None, packed):
            raise EngineError(f"the packed constants of {launch.where} are not what its kernel reads",
                              why=(f"they have {packed} bytes by operand, the kernel reads {made[key].packed}",),
                              mend="build the engine anew")
    return tuple(made[x.site.key] if x.native else None for x in variant.program.launches)
