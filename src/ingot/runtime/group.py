"""Several sessions of one engine side by side: more items per second where one run cannot use every core well."""
from __future__ import annotations

import queue
from collections.abc import Mapping

import numpy as np

from ingot.engine import Engine
from ingot.runtime.session import Session


class SessionGroup:
    """`instances` sessions of `threads` threads each; `run` takes whichever is free, and waits where none is.

    Safe to call from any number of threads; as many runs go on at a time as there are instances. Sessions share the
    engine's weights; each has an arena of its own. Raises EngineError as Session does.
    """

    def __init__(self, engine: Engine, instances: int, threads: int = 1) -> None:
        if instances < 1:
            raise ValueError(f"{instances} instances")
        self.instances, self.threads = instances, threads
        self._free: queue.SimpleQueue[Session] = queue.SimpleQueue()
        for _ in range(instances):
            self._free.put(Session(engine, threads))

    def run(self, *feeds: object, out: Mapping[str, np.ndarray] | None = None) -> dict[str, np.ndarray]:
        """One inference on a free session; arguments and errors as those of Session.run."""
        session = self._free.get()
        try:
            return session.run(*feeds, out=out)
        finally:
            self._free.put(session)
