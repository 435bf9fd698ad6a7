"""Traffic on record: one JSON line per request, with its arrival, model and shapes; its payload only when asked for."""
from __future__ import annotations

import base64
import json
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TextIO

from ingot.errors import InputError
from ingot.serve.tensor import Request


@dataclass(frozen=True)
class Arrival:
    """A request as it was recorded. `at` in seconds since the record's first; shapes by input."""

    at: float
    model: str
    shapes: Mapping[str, tuple[int, ...]]
    datatypes: Mapping[str, str]
    payload: Mapping[str, bytes] | None = None

    @property
    def rows(self) -> int:
        """The first axis of the first input; 1 for a scalar."""
        first = next(iter(self.shapes.values()), ())
        return first[0] if first else 1


class Recorder:
    """Appends requests to a file. Lines are buffered: `flush` from time to time."""

    def __init__(self, path: Path, payload: bool = False) -> None:
        try:
            self._file: TextIO = path.open("a")
        except OSError as error:
            raise InputError(f"cannot record to {path}", why=(error.strerror or str(error),),
                             mend="name a file that can be written") from None
        self._payload = payload

    def add(self, model: str, version: str, request: Request) -> None:
        """One accepted request."""
        line: dict[str, Any] = {"at": time.time(), "model": model, "version": version,
                                "shapes": {t.name: list(t.shape) for t in request.inputs},
                                "datatypes": {t.name: t.datatype for t in request.inputs}}
        if request.priority:
            line["priority"] = request.priority
        if self._payload:
            line["payload"] = {t.name: base64.b64encode(t.data).decode() for t in request.inputs}
        self._file.write(json.dumps(line) + "\n")

    def flush(self) -> None:
        """Write what is buffered."""
        self._file.flush()

    def close(self) -> None:
        """Write the rest, and close."""
        self._file.close()


def read_traffic(path: Path, model: str = "") -> list[Arrival]:
    """The requests of a record (of one model), in order of arrival. Raises InputError."""
    found: list[Arrival] = []
    number = 0
    try:
        with path.open() as file:
            for line in file:
                number += 1
                if not line.strip():
                    continue
                told = json.loads(line)
                if model and told["model"] != model:
                    continue
                payload = {k: base64.b64decode(v) for k, v in told["payload"].items()} if "payload" in told else None
                found.append(Arrival(float(told["at"]), str(told["model"]),
                                     {k: tuple(int(n) for n in v) for k, v in told["shapes"].items()},
                                     dict(told.get("datatypes", {})), payload))
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"cannot read the traffic {path}", why=(str(error),), mend="record it: ingot serve --record"
                         ) from None
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise InputError(f"line {number} of {path} is no recorded request", why=(f"{type(error).__name__}: {error}",),
                         mend="record it with ingot serve --record FILE") from None
    if not found:
        raise InputError(f"{path} holds no requests" + (f" for '{model}'" if model else ""),
                         mend="record some, or name another model")
    found.sort(key=lambda a: a.at)
    first = found[0].at
    return [Arrival(a.at - first, a.model, a.shapes, a.datatypes, a.payload) for a in found]
