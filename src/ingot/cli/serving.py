"""The commands of serving. What they need beside Ingot itself (the extra `serve`) is imported when one of them runs."""
from __future__ import annotations

import importlib
import json
import logging
from dataclasses import fields
from pathlib import Path
from typing import Annotated, Any

import typer

from ingot.cli.commands import Json, app
from ingot.errors import UnsupportedError
from ingot.serve.options import ServeOptions

HELP = {f.name: str(f.metadata["help"]) for f in fields(ServeOptions)}
DEFAULT = ServeOptions()


def _serving(name: str) -> Any:
    """A module of `ingot.serve`. Raises UnsupportedError where the extra is not installed."""
    try:
        return importlib.import_module(f"ingot.serve.{name}")
    except ModuleNotFoundError as error:
        raise UnsupportedError("serving needs packages that are not installed", why=(str(error),),
                               mend="pip install 'ingot[serve]'") from None


@app.command()
def serve(
    repository: Annotated[Path, typer.Argument(
        metavar="REPO", help="a folder of models (engines or ONNX files), or one such file")],
    host: Annotated[str, typer.Option("--host", help=HELP["host"])] = DEFAULT.host,
    http_port: Annotated[int, typer.Option("--http-port", help=HELP["http_port"])] = DEFAULT.http_port,
    grpc_port: Annotated[int, typer.Option("--grpc-port", help=HELP["grpc_port"])] = DEFAULT.grpc_port,
    threads: Annotated[int, typer.Option("--threads", min=0, help=HELP["threads"])] = 0,
    p99: Annotated[str, typer.Option("--p99", metavar="TIME", help="time that 99 of 100 answers may take, for example "
                                     "20ms: batches may then wait for more; without it they never do")] = "",
    control: Annotated[bool, typer.Option("--control", help=HELP["control"])] = False,
    shared_memory: Annotated[bool | None, typer.Option(
        "--shared-memory/--no-shared-memory", help=HELP["shared_memory"])] = None,
    certificate: Annotated[Path | None, typer.Option("--certificate", help=HELP["certificate"])] = None,
    key: Annotated[Path | None, typer.Option("--key", help=HELP["key"])] = None,
    token: Annotated[Path | None, typer.Option("--token", metavar="FILE", help=HELP["token"])] = None,
    max_bytes: Annotated[int, typer.Option("--max-bytes", min=1, help=HELP["max_bytes"])] = DEFAULT.max_bytes,
    max_elements: Annotated[int, typer.Option("--max-elements", min=1, help=HELP["max_elements"])]
    = DEFAULT.max_elements,
    max_depth: Annotated[int, typer.Option("--max-depth", min=1, help=HELP["max_depth"])] = DEFAULT.max_depth,
    max_connections: Annotated[int, typer.Option("--max-connections", min=1, help=HELP["max_connections"])]
    = DEFAULT.max_connections,
    record: Annotated[Path | None, typer.Option("--record", metavar="FILE", help=HELP["record"])] = None,
    record_payload: Annotated[bool, typer.Option("--record-payload", help=HELP["record_payload"])] = False,
    drain: Annotated[float, typer.Option("--drain", min=0, help=HELP["drain"])] = DEFAULT.drain,
    trace: Annotated[bool, typer.Option("--trace", help=HELP["trace"])] = False,
    as_json: Json = False,
) -> None:
    """Serve models over the Open Inference Protocol (KServe v2), HTTP and gRPC, until SIGTERM.

    Each model has worker processes of its own. One line says where it listens; the log goes to standard error.

    Example: ingot serve models --p99 20ms --record traffic.jsonl
    """
    server = _serving("server")
    options = ServeOptions(
        host=host, http_port=http_port, grpc_port=grpc_port, threads=threads,
        p99=_serving("options").milliseconds(p99) if p99 else 0.0, control=control, shared_memory=shared_memory,
        certificate=certificate, key=key, token=token, max_bytes=max_bytes, max_elements=max_elements,
        max_depth=max_depth, max_connections=max_connections, record=record, record_payload=record_payload,
        drain=drain, trace=trace)
    _serving("log").log_to_stderr(logging.INFO)

    def started(running: Any) -> None:
        places = {"http": f"{host}:{running.http_port}", "grpc": f"{host}:{running.grpc_port}"}
        print(json.dumps(places) if as_json else f"HTTP {places['http']}, gRPC {places['grpc']}", flush=True)

    server.serve(repository, options, started)
