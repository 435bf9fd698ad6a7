"""Session: one caller's arena and launch table over an engine's shared code and weights."""
from __future__ import annotations

import ctypes
import os
import threading
import time
import weakref
from collections.abc import Mapping, Sequence
from itertools import pairwise

import numpy as np

from ingot.engine import Engine, Variant, joint
from ingot.engine.variant import in_place_by
from ingot.env import cache_folder, read
from ingot.errors import EngineError, InternalError, UnsupportedError
from ingot.graph import evaluate
from ingot.kernels import Kernel, Operand
from ingot.kernels.reference import from_physical, run_site, to_physical
from ingot.ops.reference import told
from ingot.plan import faults, plan_memory
from ingot.runtime.compiler import CodeCache
from ingot.runtime.feeds import as_array, bind, checked_out, nearest, ordered
from ingot.runtime.flow import Driver
from ingot.runtime.host import host_target
from ingot.runtime.loader import load_codes
from ingot.runtime.memory import Block, address_of, array_at
from ingot.runtime.pool import pool_for
from ingot.runtime.table import Bound, Table
from ingot.target import Target

_BOUND = 64             # sets of input shapes that are kept ready
_NOTHING: Mapping[str, int] = {}


def code_cache() -> CodeCache:
    """The cache of compiled code in the user's cache folder."""
    return CodeCache(cache_folder() / "code")


class Session:
    """Runs an engine. Safe to call from several threads, which take turns; make more sessions to run side by side.

    Sessions of one engine share its weights and code. `threads` is how many threads a run uses: by default what
    INGOT_THREADS says, else as many as the engine was built for and this machine grants. Raises EngineError where
    the engine has no variant for this device.
    """

    def __init__(self, engine: Engine, threads: int | None = None, *, variant: Variant | None = None,
                 cache: CodeCache | None = None, kernels: Mapping[str, Kernel] | None = None) -> None:
        asked = threads or read().threads or None
        here = host_target(asked)
        self.engine = engine
        self._driver: Driver | None = None
        self._profiles: tuple[Session, ...] = ()
        if engine.flow is not None:
            self._driver = Driver(engine, engine.flow, here, lambda part: _part(part, here, threads, cache))
            self.threads = asked or here.threads
            self.variant = joint(engine.flow, self._driver.variants)
            self.plan = self.variant.plan
            _sessions.add(self)
            return
        chosen, check = (variant, None) if variant else engine.begin(here)
        if chosen is None:
            raise EngineError(f"the engine '{engine.name}' was not built for this device", where=str(here),
                              why=(engine.declines(here) or "",),
                              mend="load it with ingot.load, which makes a default variant, or build it here")
        self._profiles = () if variant else tuple(
            Session(engine, threads, variant=other, cache=cache, kernels=kernels)
            for other in engine.profiles(chosen)[1:])
        self._near: dict[tuple[tuple[int, ...], ...], Session] = {}
        self.variant = chosen
        self.threads = asked or min(here.threads, chosen.target.threads)
        self._program = program = chosen.program
        store = cache if cache is not None else code_cache()
        try:
            codes = load_codes(chosen, store, kernels)      # while the hashes of the weights are checked
        finally:
            if check:
                check()
        self.plan = chosen.plan
        demands = [(c.workspace, c.scratch) if c else (0, 0) for c in codes]
        if wrong := faults(program, chosen.plan, demands):
            raise EngineError(f"the engine '{engine.name}' is not sound", why=tuple(wrong[:3]),
                              mend="build the engine anew")
        if self.threads > chosen.plan.threads:      # scratch areas for more threads than the engine was planned for
            self.plan = plan_memory(program, demands, self.threads, in_place_by(chosen.choices))
        self._codes = codes
        self._pool = pool_for(chosen.target, self.threads, store)
        self._arena = Block(self.plan.arena)
        self._table = Table(chosen, self.plan, codes, self._arena)
        segments = self._table.segments
        self._native = segments[0] if len(segments) == 1 and isinstance(segments[0], tuple) else None
        self._names = frozenset(program.inputs)
        self._dtypes = tuple(program.types[v].dtype.numpy for v in program.inputs)
        self._outputs = tuple((v, program.types[v].dtype.numpy) for v in program.outputs)
        self._copied = tuple(v for v, h in zip(program.outputs, self._table.holders, strict=True) if not h)
        self._objects: dict[str, np.ndarray] = {}       # values of strings, which have no place in memory
        self._bounds: dict[tuple[object, ...], Bound] = {}
        self.after_fork()
        _sessions.add(self)

    @property
    def variants(self) -> tuple[Variant, ...]:
        """What runs: one, or as many as the model has parts or profiles."""
        if self._driver:
            return self._driver.variants
        return (self.variant, *(p.variant for p in self._profiles))

    @property
    def arena(self) -> int:
        """Bytes of memory for intermediate values, of all parts together."""
        return sum(v.plan.arena for v in self.variants) if self._driver or self._profiles else self.plan.arena

    @property
    def referenced(self) -> tuple[str, ...]:
        """The ops that run on the slow reference path; where data decides, those that have done so by now."""
        if self._driver:
            return tuple(sorted(self._driver.referenced))
        slow = (s.op for x in self.variant.program.launches if not x.native for s in x.site.steps)
        return tuple(dict.fromkeys(slow))

    def after_fork(self) -> None:
        """A new lock: another thread may have held it, and is not in the forked child to release it."""
        if self._driver:
            self._driver.begin_again()
        self._lock = threading.Lock()

    # --- a run --------------------------------------------------------------------------------------------------

    def run(self, *feeds: object, out: Mapping[str, np.ndarray] | None = None) -> dict[str, np.ndarray]:
        """Outputs by name, for inputs given as one dict by name or positionally.

        Inputs are numpy arrays or DLPack objects on the CPU; dense ones are read without a copy. `out` names arrays
        that receive outputs in place. Raises InputError where something does not fit.
        """
        if self._driver:
            made = self._driver.run(feeds)
            for name, into in (out or {}).items():
                checked_out({name: into}, [(name, made[name].dtype)], [made[name].shape], [])
                into[...] = made[name]
                made[name] = into
            return made
        arrays = self._arrays(feeds)
        return self._tuned_for(arrays)._run(arrays, out)

    def _tuned_for(self, arrays: Sequence[np.ndarray]) -> Session:
        """Of several profiles, the one tuned nearest to these sizes. Raises InputError where none holds them."""
        if not self._profiles:
            return self
        shapes = tuple([a.shape for a in arrays])
        if (found := self._near.get(shapes)) is None:
            if len(self._near) >= _BOUND:
                self._near.clear()
            every = (self, *self._profiles)
            at = nearest([s._program.symbols for s in every], self._program.inputs, self._program.types, shapes)
            found = self._near[shapes] = every[at]
        return found

    def run_at(self, arrays: Sequence[np.ndarray], sizes: Mapping[str, int]) -> list[np.ndarray]:
        """The outputs in order, for inputs in order and the sizes of symbols that no input has."""
        names, types = self._program.inputs, self._program.types
        dense = [as_array(a, n, types[n]) for a, n in zip(arrays, names, strict=True)]
        known = {k: sizes[k] for k in self._program.symbols if k in sizes}
        return list(self._run(dense, None, known).values())

    def _run(self, arrays: list[np.ndarray], out: Mapping[str, np.ndarray] | None,
             known: Mapping[str, int] = _NOTHING) -> dict[str, np.ndarray]:
        with self._lock:
            key = (*[a.shape for a in arrays], *known.values()) if known else tuple([a.shape for a in arrays])
            bound = self._bounds.get(key) or self._bind(arrays, key, known)
            outputs = self._patched(arrays, bound, out)
            if self._native:
                self._pool.run(*self._native)
            else:
                self._walk(arrays, bound)
            if self._copied or out is not None:
                self._settle(arrays, outputs, bound, out)
            return outputs

    def profile(self, *feeds: object) -> list[tuple[int, float]]:
        """(launch, seconds) of every native call of one run, in order, as seen by the calling thread."""
        if self._driver:
            raise UnsupportedError("a model that data decides the course of is not profiled as a whole",
                                   mend="profile the parts: the engine's `parts` are engines")
        arrays = self._arrays(feeds)
        found: list[tuple[int, float]] = []
        with self._lock:
            key = tuple([a.shape for a in arrays])
            bound = self._bounds.get(key) or self._bind(arrays, key, _NOTHING)
            outputs = self._patched(arrays, bound, None)
            calls = iter(self._table.launches)
            self._keep_strings(arrays)
            for segment in self._table.segments:
                if isinstance(segment, int):
                    self._reference(segment, bound)
                    continue
                cycles = (ctypes.c_int64 * (segment[1] + 1))()
                begin = time.perf_counter()
                self._pool.run(*segment, ctypes.addressof(cycles))
                each = (time.perf_counter() - begin) / max(1, cycles[segment[1]] - cycles[0])
                found += [(next(calls), (b - a) * each) for a, b in pairwise(cycles)]
            self._settle(arrays, outputs, bound, None)
        return found

    def _arrays(self, feeds: tuple[object, ...]) -> list[np.ndarray]:
        """The inputs as dense arrays of the right dtypes, in order."""
        names = self._program.inputs
        if len(feeds) == 1 and type(feeds[0]) is dict and feeds[0].keys() == self._names:
            given = [feeds[0][n] for n in names]
        else:
            given = ordered(feeds, names, self._program.types)
        arrays: list[np.ndarray] = []
        for value, dtype, name in zip(given, self._dtypes, names, strict=True):
            if type(value) is np.ndarray and value.dtype == dtype:
                flags = value.flags
                if flags.c_contiguous and flags.aligned:
                    arrays.append(value)
                    continue
            arrays.append(as_array(value, name, self._program.types[name]))
        return arrays

    def _bind(self, arrays: list[np.ndarray], key: tuple[object, ...], known: Mapping[str, int]) -> Bound:
        shapes = tuple([a.shape for a in arrays])
        program = self._program
        if len(self._bounds) >= _BOUND:
            self._bounds.clear()
        sizes = bind(program.inputs, program.types, program.symbols, shapes, known)
        found = self._bounds[key] = self._table.bound(sizes)
        return found

    def _patched(self, arrays: list[np.ndarray], bound: Bound,
                 out: Mapping[str, np.ndarray] | None) -> dict[str, np.ndarray]:
        """Point the table at these inputs and at output arrays; gives the latter."""
        self._table.apply(bound)
        words = self._table.words
        for array, patches in zip(arrays, bound.inside, strict=True):
            if patches:
                at = address_of(array)
                for word, offset in patches:
                    words[word] = at + offset
        outputs: dict[str, np.ndarray] = {}
        given = {} if out is None else checked_out(out, self._outputs, bound.shapes, arrays)
        for (name, dtype), shape, patches in zip(self._outputs, bound.shapes, bound.outside, strict=True):
            outputs[name] = array = given[name] if name in given else np.empty(shape, dtype)
            if patches:
                at = address_of(array)
                for word, offset in patches:
                    words[word] = at + offset
        return outputs

    def _walk(self, arrays: list[np.ndarray], bound: Bound) -> None:
        """Native calls, and between them the launches that no tactic serves."""
        self._keep_strings(arrays)
        for segment in self._table.segments:
            if isinstance(segment, int):
                self._reference(segment, bound)
            else:
                self._pool.run(*segment)

    def _keep_strings(self, arrays: list[np.ndarray]) -> None:
        self._objects = {v: a for v, a in zip(self._program.inputs, arrays, strict=True) if a.dtype.kind in "OUS"}

    def _reference(self, index: int, bound: Bound) -> None:
        launch, program = self._program.launches[index], self._program
        start = self._table.starts[index]
        given: list[np.ndarray] = []
        for k, (value, operand) in enumerate(zip(launch.reads, launch.site.inputs, strict=True)):
            if operand.type.dtype.name == "str":
                root = program.root(value)[0]
                shape = operand.type.at(bound.sizes).shape
                given.append((program.constants[root] if root in program.constants else self._objects[root])
                             .reshape(shape))                       # type: ignore[arg-type]
            else:
                view = self._array(self._table.words[start + k], operand, bound)
                given.append(from_physical(view, operand.type.at(bound.sizes)))
        results = told(launch.site.op, launch.where, given, lambda: run_site(launch.site, given, bound.sizes))
        writes = tuple(filter(None, launch.writes))
        for k, (value, operand, result) in enumerate(zip(writes, launch.site.outputs, results, strict=True)):
            type_ = operand.type.at(bound.sizes)
            if result.shape != type_.shape:
                raise InternalError(f"the reference made {list(result.shape)}, its type says {type_}",
                                    where=launch.where)
            if type_.dtype.name == "str":
                self._objects[program.root(value)[0]] = result
            else:
                into = self._array(self._table.words[start + len(launch.reads) + k], operand, bound)
                into[...] = to_physical(result.astype(type_.dtype.numpy, copy=False), type_)

    @staticmethod
    def _array(address: int, operand: Operand, bound: Bound) -> np.ndarray:
        """The operand, in physical form, where it lies."""
        shape = tuple(evaluate(d, bound.sizes) for d in operand.type.physical)
        strides = tuple(evaluate(s, bound.sizes) for s in operand.steps)
        return array_at(address, shape, strides, operand.type.dtype.numpy)

    def _settle(self, arrays: list[np.ndarray], outputs: dict[str, np.ndarray], bound: Bound,
                out: Mapping[str, np.ndarray] | None) -> None:
        """Fill the outputs that share their storage with something else, and the caller's arrays behind a copy."""
        program = self._program
        made = {v: address_of(a) for v, a in zip(program.inputs, arrays, strict=True) if a.dtype.kind not in "OUS"}
        made |= {h: address_of(outputs[v]) for v, h in zip(program.outputs, self._table.holders, strict=True) if h}
        for value in self._copied:
            type_ = program.types[value]
            if type_.dtype.name == "str":
                root = program.root(value)[0]
                found = self._objects.get(root, program.constants.get(root))
                if found is not None:
                    outputs[value] = np.array(found).reshape(outputs[value].shape)
                continue
            view = self._array(self._table.address(value, bound.sizes, made), Operand(type_), bound)
            outputs[value][...] = from_physical(view, type_.at(bound.sizes))
        for name, into in (out or {}).items():
            if outputs[name] is not into:
                into[...] = outputs[name]
                outputs[name] = into


def _part(part: Engine, here: Target, threads: int | None, cache: CodeCache | None) -> Session:
    """A session of one part of a flow; one that was just made for another instruction set has its variant at hand."""
    made = [v for v in part.variants if isinstance(v, Variant)]
    variant = made[-1] if made and part.declines(here) is not None else None
    return Session(part, threads, variant=variant, cache=cache)


_sessions: weakref.WeakSet[Session] = weakref.WeakSet()


def _after_fork() -> None:
    for session in list(_sessions):
        session.after_fork()


os.register_at_fork(after_in_child=_after_fork)
