"""The one place that reads environment variables. They steer debugging and places, never results."""
from __future__ import annotations

import difflib
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from pathlib import Path

from ingot.errors import IngotError


@dataclass(frozen=True)
class Env:
    """What the INGOT_* variables say; a field's name in capitals is the variable's name after INGOT_."""

    dump: str = ""          # folder that receives every stage's text form, numbered
    log: str = "warning"    # debug | info | warning
    threads: int = 0        # worker threads where the caller names none; 0: what cgroup and affinity allow
    keys: str = ""          # folder of signing keys; empty: ingot/keys in the user's configuration folder
    cache: str = ""         # folder of tuning results and compiled code; empty: the user's cache folder


def _threads(text: str) -> int:
    count = int(text)
    if count < 0:
        raise ValueError(text)
    return count


def _log(text: str) -> str:
    if text not in ("debug", "info", "warning"):
        raise ValueError(text)
    return text


_PARSE: Mapping[str, tuple[Callable[[str], object], str]] = {
    "dump": (str, "write the name of a folder"),
    "log": (_log, "write debug, info or warning"),
    "threads": (_threads, "write a whole number, 0 for all that are allowed"),
    "keys": (str, "write the name of a folder"),
    "cache": (str, "write the name of a folder"),
}


def read(environ: Mapping[str, str] = os.environ) -> Env:  # noqa: TID251 - this is the one place
    """The environment's settings. Raises IngotError on an unknown INGOT_ variable or a bad value."""
    known = {f"INGOT_{f.name.upper()}": f.name for f in fields(Env)}
    values: dict[str, object] = {}
    for key in sorted(k for k in environ if k.startswith("INGOT_")):
        if key not in known:
            near = difflib.get_close_matches(key, known, 1)
            raise IngotError(f"unknown environment variable {key}", where="the environment",
                             mend=f"did you mean {near[0]}?" if near else f"known: {', '.join(known)}")
        parse, mend = _PARSE[known[key]]
        try:
            values[known[key]] = parse(environ[key])
        except ValueError:
            raise IngotError(f"{key}={environ[key]!r} cannot be read", where="the environment", mend=mend) from None
    return Env(**values)  # type: ignore[arg-type]


def prefer(name: str, value: str) -> None:
    """Set a variable of another library, before it is imported, unless the user has set it."""
    os.environ.setdefault(name, value)  # noqa: TID251


def cache_folder(environ: Mapping[str, str] = os.environ) -> Path:  # noqa: TID251
    """Where tuning results and compiled code are kept: INGOT_CACHE, else ingot/ in the user's cache folder."""
    if told := read(environ).cache:
        return Path(told).expanduser()
    base = environ.get("XDG_CACHE_HOME") or str(Path(environ.get("HOME") or Path.home()) / ".cache")
    return Path(base) / "ingot"


def keys_folder(environ: Mapping[str, str] = os.environ) -> Path:  # noqa: TID251
    """Where signing keys are kept: INGOT_KEYS, else ingot/keys in the user's configuration folder."""
    if told := read(environ).keys:
        return Path(told).expanduser()
    base = environ.get("XDG_CONFIG_HOME") or str(Path(environ.get("HOME") or Path.home()) / ".config")
    return Path(base) / "ingot" / "keys"
