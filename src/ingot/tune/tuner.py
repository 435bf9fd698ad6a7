"""The race: every site's candidates, right first, then fast. Anytime: stopped early, it has an answer for each."""
from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

import numpy as np

from ingot.errors import CandidateError, UnsupportedError
from ingot.kernels import Kernel, Operand, Params, Site, Tactic, able
from ingot.kernels.reference import run_site, run_wide
from ingot.lower import Program
from ingot.target import Target
from ingot.tune.cache import TuningCache
from ingot.tune.choice import POINTS, Choice, Emit, Trial, default_choice, emit_now, tactic_named, usable
from ingot.tune.clock import Timer, race
from ingot.tune.lock import timing_turn
from ingot.tune.sample import (
    difference,
    opt_sizes,
    overwritable,
    rounds_to_integers,
    sample_inputs,
    small_sizes,
    tolerance,
    wide_tolerance,
    widened,
)

_LOG = logging.getLogger("ingot")

Packed = Mapping[int, np.ndarray]
_Sizes = tuple[tuple[str, int], ...]
KEPT = 2 << 30              # bytes of right answers that wait for their race; what is more is computed again


class Stand(Protocol):
    """One site set up on the device."""

    def outputs(self, kernel: Kernel, inputs: Sequence[np.ndarray], packed: Packed, sizes: Mapping[str, int],
                threads: int, fill: int, over: int | None = None) -> list[np.ndarray]:
        """Logical outputs of one guarded run; memory holds bytes `fill` before. Raises CandidateError.

        `over` names an input whose memory the (only) output takes.
        """

    def timer(self, kernel: Kernel, inputs: Sequence[np.ndarray], packed: Packed, sizes: Mapping[str, int]) -> Timer:
        """What runs the kernel so many times in a row and gives the seconds. Raises CandidateError."""


class Device(Protocol):
    """Where candidates are run; the runtime gives one."""

    def stand(self, site: Site) -> Stand:
        """A place for one site's race."""


@dataclass(frozen=True)
class Progress:
    """How far a tuning is: races done of all, the run time of one inference so far (seconds), seconds left."""

    done: int
    total: int
    best: float
    left: float | None
    where: str


@dataclass(frozen=True)
class Tuning:
    """A choice and its kernel for every native site; how many were raced, cached, or left untuned."""

    choices: Mapping[str, Choice]
    kernels: Mapping[str, Kernel]
    raced: int = 0
    cached: int = 0
    untuned: int = 0
    interrupted: bool = False
    seconds: float = 0.0
    skipped: int = 0                # lines of the cache that did not count


@dataclass
class _Entrant:
    tactic: Tactic
    params: Params
    kernel: Kernel | None = None
    packed: Packed = field(default_factory=dict)
    seconds: float | None = None
    note: str = ""

    @property
    def trial(self) -> Trial:
        return Trial(self.tactic.name, dict(self.params), self.seconds, self.note)


class SiteRace:
    """One site's candidates, checked against the reference before their time counts."""

    def __init__(self, site: Site, target: Target, device: Device, constants: Mapping[int, np.ndarray],
                 *, exact: bool = False, emit: Emit = emit_now, points: int = POINTS) -> None:
        self.site, self._target, self._constants, self._emit = site, target, constants, emit
        self._wide = target.kind == "cuda"      # its kernels sum in f32 whatever they read
        self._device, self._stand = device, device.stand(site)
        self._inputs: dict[_Sizes, list[np.ndarray]] = {}
        self._wanted: dict[_Sizes, list[np.ndarray]] = {}
        willing, self._reasons = able(site, target, exact=exact)
        self.entrants = [_Entrant(t, dict(p)) for t in willing
                         for p, _ in zip(t.space(site, target), range(points), strict=False)]

    def _given(self, sizes: Mapping[str, int]) -> list[np.ndarray]:
        """Inputs at these sizes; made once."""
        key = tuple(sizes.items())
        if key not in self._inputs:
            self._inputs[key] = sample_inputs(self.site, sizes, self._constants)
        return self._inputs[key]

    def _right(self, sizes: Mapping[str, int]) -> list[np.ndarray]:
        """The reference's outputs at these sizes; computed once."""
        key = tuple(sizes.items())
        if key not in self._wanted:
            given = self._given(sizes)
            made = run_wide(widened(self.site), given, sizes) if self._wide else run_site(self.site, given, sizes)
            self._wanted[key] = [_ordered(a, o) for a, o in zip(made, self.site.outputs, strict=True)]
        return self._wanted[key]

    def _wrong(self, entrant: _Entrant, sizes: Mapping[str, int], threads: int, fill: int,
               over: int | None = None) -> str | None:
        assert entrant.kernel is not None       # emitted before it is judged
        found = self._stand.outputs(entrant.kernel, self._given(sizes), entrant.packed, sizes, threads, fill, over)
        bar = (wide_tolerance(self.site, sizes, tf32="tf32" in self._target.features) if self._wide
               else tolerance(self.site, sizes))
        for k, (a, b) in enumerate(zip(found, self._right(sizes), strict=True)):
            if why := difference(a, b, bar, quantum=rounds_to_integers(self.site)):
                return f"output {k} with {threads} threads at {dict(sizes) or 'its size'}: {why}"
        return None

    def enter(self, entrant: _Entrant) -> bool:
        """Emit the candidate and judge it at small sizes, with one thread and with all; a note says what is wrong."""
        try:
            entrant.kernel = self._emit(entrant.tactic, self.site, entrant.params, self._target)
            entrant.packed = entrant.tactic.pack(self.site, entrant.params, self._target, self._constants)
            sizes = small_sizes(self.site)
            all_ = max(2, self._target.threads)
            why = self._wrong(entrant, sizes, 1, 0xFF) or self._wrong(entrant, sizes, all_, 0x5A)
        except CandidateError as error:
            why = str(error).replace("\n", " ")
        entrant.note = why or ""
        if why:
            _LOG.debug("%s: %s %s is out: %s", self.site, entrant.tactic.name, entrant.params, why)
        return not why

    def timer(self, entrant: _Entrant) -> Timer:
        """What times the candidate at the sizes to tune at."""
        sizes = opt_sizes(self.site)
        assert entrant.kernel is not None       # entered before it is timed
        return self._stand.timer(entrant.kernel, self._given(sizes), entrant.packed, sizes)

    def proven(self, entrant: _Entrant) -> bool:
        """Whether a winner is right at the sizes it was timed at, too."""
        sizes = opt_sizes(self.site)
        if sizes == small_sizes(self.site):
            return True
        try:
            why = self._wrong(entrant, sizes, self._target.threads, 0xFF)
        except CandidateError as error:
            why = str(error).replace("\n", " ")
        entrant.note = why or ""
        return not why

    def first(self) -> _Entrant:
        """The first candidate that is right. Raises UnsupportedError where none is."""
        for entrant in self.entrants:
            if self.enter(entrant):
                return entrant
        raise self._nothing_right()

    def _nothing_right(self) -> UnsupportedError:
        return UnsupportedError(f"no right kernel for {self.site}", where=str(self._target),
                                why=(*self._reasons, *(str(e.trial) for e in self.entrants)),
                                mend="report the wrong kernels named above")

    @property
    def held(self) -> int:
        """Bytes of the inputs and right answers that are kept."""
        return sum(a.nbytes for kept in (self._inputs, self._wanted) for arrays in kept.values() for a in arrays)

    def rest(self, *, room: float = 0.0) -> None:
        """Let go of memory until the race begins; of arrays where they take more bytes than `room`."""
        self._stand = self._device.stand(self.site)
        if self.held > room:
            self._inputs.clear()
            self._wanted.clear()

    def run(self, default: _Entrant, deadline: float, clock: Callable[[], float], turn: Path | None) -> _Entrant:
        """The fastest right candidate; the default where the deadline leaves no more."""
        field_ = [default]
        for entrant in self.entrants:
            if clock() > deadline:
                break
            if entrant is not default and not entrant.note and self.enter(entrant):
                field_.append(entrant)
        with timing_turn(turn):
            timers = [self.timer(e) for e in field_]
            times, winner = race(timers, deadline, clock=clock)
        for entrant, seconds in zip(field_, times, strict=True):
            entrant.seconds = seconds
        ranked = [field_[winner], *sorted((e for k, e in enumerate(field_) if k != winner and e.seconds is not None),
                                          key=lambda e: e.seconds or math.inf)]
        best = next((e for e in ranked if self.proven(e)), None)
        if best is None:
            raise self._nothing_right()
        for entrant in ranked:
            if entrant.note:
                entrant.seconds = None          # the time of a wrong kernel says nothing
        return best

    def in_place(self, entrant: _Entrant) -> tuple[int, ...]:
        """The inputs whose memory the result may take: alike in form, read where the result is written, and tried."""
        all_ = max(2, self._target.threads)
        cases = [(small_sizes(self.site), 1), (small_sizes(self.site), all_), (opt_sizes(self.site), all_)]
        found: list[int] = []
        for over in overwritable(self.site):
            try:
                if not any(self._wrong(entrant, sizes, threads, 0xFF, over) for sizes, threads in cases):
                    found.append(over)
            except CandidateError:
                continue
        return tuple(found)

    def choice(self, entrant: _Entrant, *, tuned: bool) -> Choice:
        tried = tuple(e.trial for e in self.entrants if e.note or e.seconds is not None)
        return Choice(self.site.key, entrant.tactic.name, entrant.params, entrant.seconds, tuned, tried,
                      self.in_place(entrant) if tuned else ())


def _sites(program: Program) -> dict[str, tuple[Site, int, dict[int, np.ndarray]]]:
    """Site key -> the site, how often it is launched, and its constants at the first launch."""
    found: dict[str, tuple[Site, int, dict[int, np.ndarray]]] = {}
    for launch in program.launches:
        if not launch.native:
            continue
        if (old := found.get(launch.site.key)) is not None:
            found[launch.site.key] = old[0], old[1] + 1, old[2]
            continue
        operands = enumerate(zip(launch.reads, launch.site.inputs, strict=True))
        constants = {i: program.constants[v] for i, (v, o) in operands if o.constant and v in program.constants}
        found[launch.site.key] = launch.site, 1, constants
    return found


def tune(program: Program, target: Target, device: Device | None = None, cache: TuningCache | None = None, *,
         budget: float | None = None, progress: Callable[[Progress], None] | None = None, turn: Path | None = None,
         clock: Callable[[], float] = time.monotonic, exact: bool = False, emit: Emit = emit_now,
         points: int = POINTS) -> Tuning:
    """Choose a kernel for every native site of a program.

    Without a device, or with a `budget` of 0 seconds, each site takes its default. Otherwise every site first gets
    the first candidate that is right; then the sites race in the order of their share of the run time, until the
    budget is spent or Ctrl-C is pressed: what was found by then is kept. `turn` is the folder of the machine's
    timing lock. With `exact`, only exact tactics take part; the cache must then be one of exact races, too. `emit`
    gives a candidate's kernel, `points` limits how many points of each tactic's space take part.
    Raises UnsupportedError where a site has no right kernel.
    """
    begin = clock()
    deadline = math.inf if budget is None else begin + budget
    sites = _sites(program)
    choices: dict[str, Choice] = {}
    kernels: dict[str, Kernel] = {}
    for key, (site, _, _) in sites.items():
        if cache and (known := cache.get(key)) and usable(known, site, target, exact=exact):
            choices[key] = known
            kernels[key] = emit(tactic_named(known.tactic, target), site, known.params, target)
    cached = len(choices)
    open_ = {k: v for k, v in sites.items() if k not in choices}
    interrupted, raced = False, 0

    def tell(where: str) -> None:
        if progress:
            best = sum((choices[k].seconds or 0.0) * sites[k][1] for k in choices)
            left = None if budget is None else max(0.0, deadline - clock())
            progress(Progress(cached + raced, len(sites), best, left, where))

    try:
        if device is not None and (budget is None or budget > 0):
            races: dict[str, tuple[SiteRace, _Entrant]] = {}
            for key, (site, _, constants) in open_.items():
                tell(site.op)
                room = KEPT - sum(contest.held for contest, _ in races.values())
                races[key] = _start(SiteRace(site, target, device, constants, exact=exact, emit=emit, points=points),
                                    deadline, clock, turn, room)
                choices[key], kernels[key] = races[key][0].choice(races[key][1], tuned=False), _kernel(races[key][1])
            order = sorted(races, key=lambda k: -(choices[k].seconds or 0.0) * sites[k][1])
            for key in order:
                if clock() > deadline:
                    break
                contest, default = races.pop(key)
                tell(contest.site.op)
                best = contest.run(default, deadline, clock, turn)
                finished = clock() <= deadline
                choices[key], kernels[key] = contest.choice(best, tuned=finished), _kernel(best)
                raced += finished
                if finished and cache:
                    cache.put(choices[key])
    except KeyboardInterrupt:
        interrupted = True
    for key, (site, _, _) in sites.items():
        if key not in choices:
            choices[key], kernels[key] = default_choice(site, target, exact=exact, emit=emit)
    tell("")
    return Tuning({k: choices[k] for k in sites}, {k: kernels[k] for k in sites}, raced, cached,
                  sum(not c.tuned for c in choices.values()), interrupted, clock() - begin,
                  cache.skipped if cache else 0)


def _kernel(entrant: _Entrant) -> Kernel:
    assert entrant.kernel is not None           # only what was emitted is chosen
    return entrant.kernel


def _start(contest: SiteRace, deadline: float, clock: Callable[[], float],
           turn: Path | None, room: float) -> tuple[SiteRace, _Entrant]:
    """The site's first right candidate, with a first rough time that says how much its race may gain."""
    default = contest.first()
    if clock() <= deadline:
        with timing_turn(turn):
            times, _ = race([contest.timer(default)], deadline, rounds=0, clock=clock)
        default.seconds = times[0]
    contest.rest(room=room)
    return contest, default


def _ordered(array: np.ndarray, operand: Operand) -> np.ndarray:
    """The same array, its elements in memory as a kernel's would lie: comparing is then reading in a row."""
    if array.ndim < 3 or not operand.type.layout or operand.type.block:
        return array
    return np.moveaxis(np.ascontiguousarray(np.moveaxis(array, 1, -1)), -1, 1)


