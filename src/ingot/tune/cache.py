"""What races found, kept for later builds: lines of JSON in the user's cache folder, mergeable by copying files.

A line counts when it parses, its checksum holds, and it is of the target and generator asked for. Any other line is
skipped and counted, never fatal.
"""
from __future__ import annotations

import hashlib
import json
import math
import os
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

from ingot.target import Target
from ingot.tune.choice import Choice, Trial

_FORM = 2       # parameters in their order: it is part of a kernel's name


def _line(body: Mapping[str, object]) -> str:
    text = json.dumps(body, sort_keys=True, separators=(",", ":"))
    return json.dumps({"check": hashlib.sha256(text.encode()).hexdigest()[:16], "body": text}) + "\n"


def _choice(body: Mapping[str, object]) -> Choice:
    """Raises ValueError, KeyError, TypeError or AttributeError where the line is not of this form."""
    trials = tuple(Trial(str(t[0]), {str(k): int(v) for k, v in t[1]},
                         None if t[2] is None else _seconds(t[2]), str(t[3]))
                   for t in body["trials"])      # type: ignore[attr-defined]
    params = {str(k): int(v) for k, v in body["params"]}         # type: ignore[attr-defined]
    return Choice(str(body["site"]), str(body["tactic"]), params, _seconds(body["seconds"]), True, trials,
                  tuple(int(i) for i in body["in_place"]))      # type: ignore[attr-defined]


def _seconds(value: object) -> float:
    seconds = float(value)      # type: ignore[arg-type]
    if not math.isfinite(seconds) or seconds < 0:
        raise ValueError("not a time")
    return seconds


@dataclass
class TuningCache:
    """Finished races of one target and generator. `skipped` counts lines of the folder that did not count."""

    folder: Path | None
    target: Target
    generator: str
    skipped: int = 0
    choices: dict[str, Choice] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.folder is None or not self.folder.is_dir():
            return
        found: dict[str, tuple[str, Choice]] = {}
        for path in sorted(self.folder.glob("*.jsonl")):
            with suppress(OSError):
                for line in path.read_bytes().split(b"\n"):
                    if line.strip():
                        self._read(line, found)
        self.choices = {site: choice for site, (_, choice) in found.items()}

    def _read(self, line: bytes, found: dict[str, tuple[str, Choice]]) -> None:
        try:
            told = json.loads(line)
            text = told["body"]
            if hashlib.sha256(text.encode()).hexdigest()[:16] != told["check"]:
                raise ValueError("damaged")
            body = json.loads(text)
            if body["form"] != _FORM:
                raise ValueError("another form")
            if body["target"] != self.target.fingerprint or body["generator"] != self.generator:
                return                                              # sound, of another device or version
            choice = _choice(body)
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
            self.skipped += 1
            return
        # of two races of one site the same one counts, in whatever order the files are read
        old = found.get(choice.site)
        if old is None or text < old[0]:
            found[choice.site] = text, choice

    def get(self, site: str) -> Choice | None:
        """The finished choice for a site's key."""
        return self.choices.get(site)

    def put(self, choice: Choice) -> None:
        """Keep a finished choice: one line, appended in one write, so that several builds may do it at a time."""
        self.choices[choice.site] = choice
        if self.folder is None:
            return
        body = {"form": _FORM, "target": self.target.fingerprint, "generator": self.generator, "site": choice.site,
                "tactic": choice.tactic, "params": [*choice.params.items()], "seconds": choice.seconds,
                "in_place": list(choice.in_place),
                "trials": [[t.tactic, [*t.params.items()], t.seconds, t.note] for t in choice.trials]}
        with suppress(OSError):                                     # a full disk must not end a build
            self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            name = hashlib.sha256(self.target.fingerprint.encode()).hexdigest()[:12]
            flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC
            handle = os.open(self.folder / f"{name}.jsonl", flags, 0o600)
            try:
                os.write(handle, b"\n" + _line(body).encode())      # after a torn line, still a line of its own
            finally:
                os.close(handle)
