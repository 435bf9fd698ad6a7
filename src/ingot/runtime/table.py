"""The launch table of a session: which call comes when, and what every pointer of it points to."""
from __future__ import annotations

import ctypes
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from ingot.engine import Variant
from ingot.errors import InternalError
from ingot.graph import Dim, evaluate
from ingot.lower import Program
from ingot.plan import MemoryPlan, bytes_at, largest_bytes
from ingot.runtime.loader import Code
from ingot.runtime.memory import Block, address_of
from ingot.runtime.pool import launch_table

Patches = tuple[tuple[int, int], ...]       # (word, bytes to add)


@dataclass(frozen=True, slots=True)
class Bound:
    """What one set of input shapes fixes."""

    sizes: Mapping[str, int]                # of the symbols
    words: Patches                          # (word, address) of views whose offset depends on a symbol
    inside: tuple[Patches, ...]             # per input: where its address goes
    outside: tuple[Patches, ...]            # per output
    shapes: tuple[tuple[int, ...], ...]     # of the outputs


def holders(program: Program) -> tuple[str, ...]:
    """Per output, the root written straight into its array; "" for an output that is copied after the run."""
    taken: set[str] = set()
    found: list[str] = []
    for value in program.outputs:
        root, offset = program.root(value)
        whole = offset == 0 and program.types[root].nbytes == program.types[value].nbytes
        own = root not in program.inputs and root not in program.constants and root not in taken
        direct = whole and own and not program.types[value].layout and program.types[value].dtype.name != "str"
        taken |= {root} if direct else set()
        found.append(root if direct else "")
    return tuple(found)


class Table:
    """Words (one pointer for every operand of every launch), symbol areas, and the calls over them.

    `segments` are (table address, calls) for native launches in a row, and the index of a launch for one that runs
    on the reference; `launches` names the launch of each native call.
    """

    def __init__(self, variant: Variant, plan: MemoryPlan, codes: Sequence[Code | None], arena: Block) -> None:
        self._variant, self._program, self._plan, self._arena = variant, variant.program, plan, arena
        program = self._program
        self.holders = holders(program)
        self._side = {root: Block(largest_bytes(program.types[root], program.symbols))
                      for root in (program.root(v)[0] for v in program.outputs)
                      if root not in {*self.holders, *program.inputs, *program.constants}}
        self.starts: list[int] = []
        count = 0
        for launch in program.launches:
            self.starts.append(count)
            count += len(launch.reads) + len(launch.site.outputs) + 2
        self.words = (ctypes.c_int64 * max(1, count))()
        self._moving: list[tuple[int, int, Dim]] = []               # word, base address, offset
        self._given: dict[str, list[tuple[int, Dim]]] = {}          # input, or root of an output -> (word, offset)
        for index in range(len(program.launches)):
            self._fill(index)
        self._areas: dict[tuple[str, ...], int] = {}
        self._order: list[str] = []
        for launch in program.launches:
            names = tuple(s.name for s in launch.site.symbols)
            if names not in self._areas:
                self._areas[names] = len(self._order)
                self._order += names
        self._sizes = (ctypes.c_int64 * max(1, len(self._order)))()
        self._tables: list[object] = []                             # keeps the launch tables alive
        self.segments: list[tuple[int, int] | int] = []
        self.launches: list[int] = []
        self._link(codes)
        self._now: Bound | None = None

    def _fill(self, index: int) -> None:
        """Say what the words of one launch point to, and write those that never change."""
        launch = self._program.launches[index]
        at, writes = self.starts[index], tuple(filter(None, launch.writes))
        for k, value in enumerate((*launch.reads, *writes)):
            packed = self._variant.packed.get((index, k))
            if packed is not None:
                self.words[at + k] = address_of(packed)
            else:
                self._point(at + k, value, launch.where)
        for k, offset in enumerate(self._plan.workspaces[index]):
            self.words[at + len(launch.reads) + len(writes) + k] = self._arena.address + offset

    def _point(self, word: int, value: str, where: str) -> None:
        program = self._program
        root, offset = program.root(value)
        if root in program.inputs or root in self.holders:
            self._given.setdefault(root, []).append((word, offset))
            return
        if root in program.constants:
            base = address_of(program.constants[root]) if program.types[root].dtype.name != "str" else 0
        elif root in self._plan.offsets:
            base = self._arena.address + self._plan.offsets[root]
        elif root in self._side:
            base = self._side[root].address
        else:
            raise InternalError(f"the plan has no place for '{root}'", where=where)
        if isinstance(offset, int):
            self.words[word] = base + offset
        else:
            self._moving.append((word, base, offset))

    def _link(self, codes: Sequence[Code | None]) -> None:
        sizes, words = ctypes.addressof(self._sizes), ctypes.addressof(self.words)
        calls: list[tuple[int, int, int]] = []
        for index, code in enumerate(codes):
            if code is None:
                self._segment(calls)
                calls = []
                self.segments.append(index)
                continue
            area = sizes + 8 * self._areas[tuple(s.name for s in self._program.launches[index].site.symbols)]
            calls += [(phase, words + 8 * self.starts[index], area) for phase in code.phases]
            self.launches += [index] * len(code.phases)
        self._segment(calls)

    def _segment(self, calls: list[tuple[int, int, int]]) -> None:
        if calls:
            table = launch_table(calls)
            self._tables.append(table)
            self.segments.append((ctypes.addressof(table), len(calls)))

    def bound(self, sizes: Mapping[str, int]) -> Bound:
        """What the sizes of the symbols fix. Raises InternalError where the plan is too small for them."""
        program = self._program
        for root, planned in self._plan.sizes.items():
            if bytes_at(program.types[root], sizes) > planned:
                raise InternalError(f"'{root}' needs more memory than was planned", why=(f"at {dict(sizes)}",))

        def patches(name: str) -> Patches:
            return tuple((word, evaluate(offset, sizes)) for word, offset in self._given.get(name, ()))

        moving = tuple((word, base + evaluate(offset, sizes)) for word, base, offset in self._moving)
        shapes = tuple(tuple(evaluate(d, sizes) for d in program.types[v].shape) for v in program.outputs)
        return Bound(sizes, moving, tuple(map(patches, program.inputs)),
                     tuple(patches(h) if h else () for h in self.holders), shapes)

    def apply(self, bound: Bound) -> None:
        """Make the sizes the present ones."""
        if bound is self._now:
            return
        for k, name in enumerate(self._order):
            self._sizes[k] = bound.sizes[name]
        for word, address in bound.words:
            self.words[word] = address
        self._now = bound

    def address(self, value: str, sizes: Mapping[str, int], inputs: Mapping[str, int]) -> int:
        """Where a value that an output is copied from lies; `inputs` are the addresses of arrays given or made."""
        program = self._program
        root, offset = program.root(value)
        at = evaluate(offset, sizes)
        if root in inputs:
            return inputs[root] + at
        if root in program.constants:
            return address_of(program.constants[root]) + at
        return self._side[root].address + at
