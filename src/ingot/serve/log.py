"""The server's log: one JSON object a line."""
from __future__ import annotations

import json
import logging
import sys
import time

_OWN = frozenset(logging.makeLogRecord({}).__dict__) | {"message", "asctime", "taskName"}


class JsonLines(logging.Formatter):
    """time, level, what, and whatever else the record carries."""

    def format(self, record: logging.LogRecord) -> str:
        """One line."""
        line = {"time": time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(record.created)) + f".{int(record.msecs):03}Z",
                "level": record.levelname.lower(), "what": record.getMessage(),
                **{k: v for k, v in record.__dict__.items() if k not in _OWN}}
        if record.exc_info:
            line["trace"] = self.formatException(record.exc_info)
        return json.dumps(line, default=str)


def log_to_stderr(level: int) -> None:
    """Send the server's log, and what uvicorn and gRPC have to say, to standard error."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(JsonLines())
    for name, least in (("ingot", level), ("uvicorn.error", logging.WARNING), ("grpc", logging.WARNING)):
        logger = logging.getLogger(name)
        logger.handlers, logger.propagate = [handler], False
        logger.setLevel(max(level, least))
