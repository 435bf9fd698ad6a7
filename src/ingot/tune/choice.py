"""A choice: which tactic, at which point of its space, serves a site; and the trials it came from."""
from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path

import ingot.kernels
from ingot.errors import CandidateError, UnsupportedError
from ingot.kernels import TACTICS, Kernel, Params, Site, Tactic, able
from ingot.target import Target

Emit = Callable[[Tactic, Site, Params, Target], Kernel]     # gives a candidate's kernel; raises CandidateError
POINTS = 48         # the most points of one tactic's space that enter a race


@dataclass(frozen=True)
class Trial:
    """One candidate of a race: its time in seconds, or the reason it has none."""

    tactic: str
    params: Params
    seconds: float | None = None
    note: str = ""

    def __str__(self) -> str:
        point = ",".join(f"{k}={v}" for k, v in self.params.items())
        time = "" if self.seconds is None else f" {self.seconds * 1e6:.1f} us"
        return f"{self.tactic}[{point}]{time}" + (f" ({self.note})" if self.note else "")


@dataclass(frozen=True)
class Choice:
    """The candidate that serves a site: the winner of a race when `tuned`, else the default or the best so far.

    `in_place` are the inputs whose memory the result may take: the kernel was found right that way, too.
    """

    site: str                   # the site's key
    tactic: str
    params: Params
    seconds: float | None = None
    tuned: bool = False
    trials: tuple[Trial, ...] = field(default=(), compare=False)
    in_place: tuple[int, ...] = ()

    @property
    def point(self) -> str:
        """Tactic and parameters as one text: with the site's key, what names the generated code."""
        return f"{self.tactic}[{','.join(f'{k}={v}' for k, v in self.params.items())}]"


def generator_version(target: Target) -> str:
    """Twelve hex digits for the text of a target's kernel generator: other text, other kernels, other times.

    Kernels for GPUs use parts of those for CPUs, so their text is all of it; those for CPUs use none of theirs.
    """
    return _generator_version(target.kind == "cuda")


@cache
def _generator_version(gpu: bool) -> str:
    root = Path(ingot.kernels.__file__).parent
    digest = hashlib.sha256()
    for path in sorted(p for p in root.rglob("*.py") if gpu or p.parent != root / "cuda"):
        digest.update(str(path.relative_to(root)).encode() + b"\0" + path.read_bytes() + b"\0")
    return digest.hexdigest()[:12]


def tactic_named(name: str, target: Target) -> Tactic:
    """The tactic of this name. Raises UnsupportedError where the target has none such."""
    for tactic in TACTICS[target.kind]:
        if tactic.name == name:
            return tactic
    raise UnsupportedError(f"no tactic is called {name}", where=str(target), mend="build the engine anew")


def usable(choice: Choice, site: Site, target: Target, *, exact: bool = False) -> bool:
    """Whether a choice from outside (a cache, a file) is one that a race here could have made."""
    for tactic in able(site, target, exact=exact)[0]:
        if tactic.name == choice.tactic:
            points = zip(tactic.space(site, target), range(POINTS), strict=False)
            return any(dict(p) == dict(choice.params) for p, _ in points)
    return False


def emit_now(tactic: Tactic, site: Site, params: Params, target: Target) -> Kernel:
    """The kernel, generated at once. Raises CandidateError."""
    return tactic.emit(site, params, target)


def default_choice(site: Site, target: Target, *, exact: bool = False,
                   emit: Emit = emit_now) -> tuple[Choice, Kernel]:
    """What an untuned build takes: the first point that can be built of the first able tactic, and its kernel.

    Raises UnsupportedError where no tactic can serve the site.
    """
    willing, reasons = able(site, target, exact=exact)
    trials: list[Trial] = []
    for tactic in willing:
        for params in tactic.space(site, target):
            try:
                kernel = emit(tactic, site, params, target)
            except CandidateError as error:
                trials.append(Trial(tactic.name, params, note=str(error)))
                continue
            return Choice(site.key, tactic.name, params, trials=tuple(trials)), kernel
    raise UnsupportedError(f"no kernel for {site}", where=str(target),
                           why=(*reasons, *(str(t) for t in trials)),
                           mend="meet one of the conditions above, or add a tactic under ingot/kernels")
