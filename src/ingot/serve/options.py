"""What a server may be told."""
from __future__ import annotations

import re
from dataclasses import dataclass, field
from pathlib import Path

from ingot.errors import InputError

_UNITS = {"us": 1e-3, "ms": 1.0, "s": 1e3, "": 1.0}


@dataclass(frozen=True)
class ServeOptions:
    """How a server runs."""

    host: str = field(default="127.0.0.1", metadata={"help": "address to listen on"})
    http_port: int = field(default=8000, metadata={"help": "port of HTTP; -1: none, 0: any that is free"})
    grpc_port: int = field(default=8001, metadata={"help": "port of gRPC; -1: none, 0: any that is free"})
    threads: int = field(default=0, metadata={"help": "threads for all instances; 0: what the machine grants"})
    p99: float = field(default=0.0, metadata={"help": "milliseconds that 99 of 100 answers may take; 0: never wait"})
    control: bool = field(default=False, metadata={"help": "let clients load and unload models"})
    shared_memory: bool | None = field(default=None, metadata={
        "help": "let clients name shared memory of this machine; default: on a loopback address only"})
    certificate: Path | None = field(default=None, metadata={"help": "PEM file: serve TLS with this certificate chain"})
    key: Path | None = field(default=None, metadata={"help": "PEM file of the certificate's private key"})
    token: Path | None = field(default=None, metadata={
        "help": "file of bearer tokens, one a line: refuse requests without one of them"})
    max_bytes: int = field(default=64 << 20, metadata={"help": "bytes of a request at most"})
    max_elements: int = field(default=1 << 26, metadata={"help": "elements of a tensor at most"})
    max_depth: int = field(default=32, metadata={"help": "levels of nesting of a JSON request at most"})
    max_connections: int = field(default=4096, metadata={"help": "HTTP requests under way at once at most"})
    record: Path | None = field(default=None, metadata={"help": "file that receives one JSON line per request"})
    record_payload: bool = field(default=False, metadata={"help": "record the inputs too, not just their shapes"})
    drain: float = field(default=30.0, metadata={"help": "seconds that accepted requests have to finish on SIGTERM"})
    trace: bool = field(default=False, metadata={"help": "make OpenTelemetry spans, as its own variables configure it"})


def milliseconds(text: str) -> float:
    """A time as it is written on a command line: 20ms, 0.5s, 800us; bare: milliseconds. Raises InputError."""
    found = re.fullmatch(r"([0-9]+(?:\.[0-9]+)?)\s*(us|ms|s|)", text.strip())
    if not found or float(found[1]) <= 0:
        raise InputError(f"{text!r} is no time", mend="write, for example, 20ms")
    return float(found[1]) * _UNITS[found[2]]
