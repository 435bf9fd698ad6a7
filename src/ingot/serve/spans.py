"""OpenTelemetry spans: one per request with its stages as events, when the `opentelemetry` packages are there."""
from __future__ import annotations

import time
from typing import Any

from ingot.errors import UnsupportedError
from ingot.serve.tensor import Answer, Request

try:
    from opentelemetry import trace
except ImportError:
    trace = None


class Spans:
    """Makes spans with the globally configured tracer. Raises UnsupportedError where OpenTelemetry is not installed."""

    def __init__(self) -> None:
        if trace is None:
            raise UnsupportedError("OpenTelemetry is not installed", where="--trace",
                                   mend="pip install opentelemetry-sdk, and run under opentelemetry-instrument")
        self._tracer: Any = trace.get_tracer("ingot.serve")

    def request(self, answer: Answer, request: Request, now: float, encode: float) -> None:
        """One answered request; `now` of `time.perf_counter`."""
        offset = time.time() - time.perf_counter()

        def at(moment: float) -> int:
            return int((moment + offset) * 1e9)

        span = self._tracer.start_span("infer", start_time=at(request.arrived), attributes={
            "model": answer.model, "version": answer.version, "rows": request.rows, "tries": request.tries + 1})
        span.add_event("decoded", timestamp=at(request.arrived + request.decode))
        span.add_event("dispatched", timestamp=at(request.taken))
        span.add_event("computed", timestamp=at(now - encode))
        span.end(end_time=at(now))
