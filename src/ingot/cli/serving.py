"""The commands of serving. What they need beside Ingot itself (the extra `serve`) is imported when one of them runs."""
from __future__ import annotations

import json
import logging
from dataclasses import fields
from pathlib import Path
from typing import Annotated, Any

import typer

from ingot.cli.commands import EnginePath, Json, Threads, app, tell
from ingot.cli.traffic import serving_module, status_of
from ingot.compiler.build import load as load_engine
from ingot.errors import InputError
from ingot.report import Table
from ingot.serve.options import ServeOptions, milliseconds

HELP = {f.name: str(f.metadata["help"]) for f in fields(ServeOptions)}
DEFAULT = ServeOptions()


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
    server = serving_module("server")
    options = ServeOptions(
        host=host, http_port=http_port, grpc_port=grpc_port, threads=threads,
        p99=milliseconds(p99) if p99 else 0.0, control=control, shared_memory=shared_memory,
        certificate=certificate, key=key, token=token, max_bytes=max_bytes, max_elements=max_elements,
        max_depth=max_depth, max_connections=max_connections, record=record, record_payload=record_payload,
        drain=drain, trace=trace)
    serving_module("log").log_to_stderr(logging.INFO)

    def started(running: Any) -> None:
        places = {"http": f"{host}:{running.http_port}", "grpc": f"{host}:{running.grpc_port}"}
        print(json.dumps(places) if as_json else f"HTTP {places['http']}, gRPC {places['grpc']}", flush=True)

    server.serve(repository, options, started)


@app.command()
def recommend(
    traffic: Annotated[Path, typer.Argument(metavar="TRAFFIC", help="what ingot serve --record wrote")],
    engine: EnginePath,
    p99: Annotated[str, typer.Option("--p99", metavar="TIME", help="what 99 of 100 answers may take")] = "100ms",
    model: Annotated[str, typer.Option("--model", help="the model's name on record; default: all requests")] = "",
    pad: Annotated[str, typer.Option("--pad", metavar="SYMBOL", help="the axis requests may be padded along")] = "",
    points: Annotated[int, typer.Option("--points", min=1, help="profile points to propose at most")] = 3,
    output: Annotated[Path | None, typer.Option(
        "--output", "-o", metavar="FILE", help="write the model's config.yaml there")] = None,
    threads: Threads = 0,
    as_json: Json = False,
) -> None:
    """Say how to serve recorded traffic: profile points, batching, instances and threads, with the predicted gain.

    Measures the engine's cost by shape on this machine, and runs the traffic through the batcher on paper.

    Example: ingot recommend traffic.jsonl model.ingot --p99 50ms -o config.yaml
    """
    advise = serving_module("advise")
    goal = milliseconds(p99) / 1e3
    arrivals = serving_module("traffic").read_traffic(traffic, model)
    found, shapes = advise.advised(load_engine(engine, threads=threads or None), arrivals, goal, pad, points, threads)
    best, now = found.best, found.now
    others = [c for c in found.candidates if c is not now and c is not best][:8]
    rows = tuple((c.label, c.instances, c.threads, round(1e3 * c.result.quantile(0.5), 2),
                  round(1e3 * c.result.quantile(0.99), 2), round(c.speed, 2))
                 for c in (now, *([best] if best is not now else []), *others))
    table = Table("Simulated on the recorded traffic (the first row: as it is served by default)",
                  ("batching", "instances", "threads", "p50 ms", "p99 ms", "bears x rate"), rows)
    lines = [f"tune for rows: {', '.join(map(str, found.points))}",
             f"build with: --shapes {' --shapes '.join(shapes)}"]
    lines += [f"pad lengths to: {', '.join(map(str, found.lengths))}"] if found.lengths else []
    then, today = 1e3 * best.result.quantile(0.99), 1e3 * now.result.quantile(0.99)
    lines.append(f"predicted: p99 {then:.1f} ms instead of {today:.1f} ms, "
                 f"{best.speed:.2f} times the recorded rate within {p99} instead of {now.speed:.2f}")
    if output:
        output.write_text(best.to_yaml(found.lengths))
    tell({"points": found.points, "lengths": found.lengths, "shapes": shapes, "config": best.to_yaml(found.lengths),
          "candidates": table.to_json()} if as_json else None, table, "\n".join(lines), best.to_yaml(found.lengths))


@app.command()
def diagnose(
    model: Annotated[str, typer.Argument(metavar="MODEL", help="a model's name on the server")],
    at: Annotated[str, typer.Option("--at", metavar="HOST:PORT", help="the server's HTTP side")] = "127.0.0.1:8000",
    as_json: Json = False,
) -> None:
    """Say why a model is slow in production: five suspects in order, each measured, each confirmed or ruled out.

    Example: ingot diagnose resnet50 --at 127.0.0.1:8000
    """
    models = {m["name"]: m for m in status_of(at)["models"]}
    if model not in models:
        raise InputError(f"the server has no model '{model}'", mend=f"it has: {', '.join(models) or 'none'}")
    if not models[model]["batches"]:
        raise InputError(f"'{model}' has not served anything yet", mend="ask again when it has")
    findings = serving_module("diagnose").diagnose(models[model], [m for n, m in models.items() if n != model])
    table = Table(f"Why is {model} slow?", ("suspect", "verdict", "measured", "mend"), tuple(f.row() for f in findings))
    tell({"findings": table.to_json()} if as_json else None, table)


@app.command()
def package(
    engine: EnginePath,
    output: Annotated[Path, typer.Option("--output", "-o", metavar="FOLDER", help="the folder to write")],
    config: Annotated[Path | None, typer.Option("--config", help="the model's config.yaml")] = None,
    wheel: Annotated[list[Path] | None, typer.Option(
        "--wheel", help="a wheel to install from the folder itself, for example Ingot's own; once per file")] = None,
    seconds: Annotated[float, typer.Option("--seconds", min=0.1, help="how long to measure for the evidence")] = 1.0,
    as_json: Json = False,
) -> None:
    """Write a folder to build a container from: Dockerfile, pinned packages, engine, health check, Truss, evidence.

    Example: ingot package model.ingot -o container --wheel dist/ingot-0.1.0-py3-none-any.whl
    """
    wheels = {p.name.partition("-")[0]: p for p in wheel or []}
    files = serving_module("package").package(engine, load_engine(engine), output, config, wheels, seconds)
    tell({"files": [str(f) for f in files]} if as_json else None, "\n".join(map(str, files)),
         f"docker build -t {engine.stem} {output}")
