"""A container folder of an engine: what serves it, pinned; how its health is asked; and the evidence of what it is."""
from __future__ import annotations

import hashlib
import json
import platform
import shutil
import time
from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError, distribution, version
from pathlib import Path
from typing import Any

from ingot.bench import measure, summary
from ingot.engine import Engine
from ingot.errors import InputError
from ingot.runtime.host import host_target
from ingot.runtime.session import Session
from ingot.verify import random_feeds

_NEEDS = ("numpy", "onnx", "llvmlite", "ml-dtypes", "typer", "rich", "safetensors", "uvicorn", "httptools", "uvloop",
          "grpcio", "protobuf", "orjson", "prometheus-client", "pyyaml")

_DOCKERFILE = """\
# Serves {name} over the Open Inference Protocol: HTTP on 8000, gRPC on 8001.
FROM python:{python}-slim
WORKDIR /srv
COPY requirements.txt wheels/ ./wheels/
RUN pip install --no-cache-dir --find-links wheels -r wheels/requirements.txt
RUN useradd --create-home server
COPY --chown=server models models
COPY evidence.json .
USER server
EXPOSE 8000 8001
STOPSIGNAL SIGTERM
HEALTHCHECK --interval=10s --timeout=3s --start-period=120s CMD ["python", "-c", \\
  "import urllib.request as u; u.urlopen('http://127.0.0.1:8000/v2/health/ready', timeout=2)"]
CMD ["ingot", "serve", "models", "--host", "0.0.0.0", "--http-port", "8000", "--grpc-port", "8001"]
"""

_TRUSS = """\
model_name: {name}
base_image:
  image: {name}:latest
docker_server:
  start_command: ingot serve /srv/models --host 0.0.0.0 --http-port 8000 --grpc-port 8001
  readiness_endpoint: /v2/health/ready
  liveness_endpoint: /v2/health/live
  predict_endpoint: /v2/models/{name}/infer
  server_port: 8000
resources:
  cpu: "{threads}"
  memory: {memory}Mi
  use_gpu: false
"""


def pinned() -> dict[str, str]:
    """The versions of everything that serves, dependencies of dependencies included, as installed here."""
    found: dict[str, str] = {}
    waiting = list(_NEEDS)
    while waiting:
        name = waiting.pop().lower().replace("_", "-")
        if name in found:
            continue
        try:
            there = distribution(name)
        except PackageNotFoundError:
            continue            # for another system or Python: the requirement's marker said so
        found[name] = there.version
        waiting += [_name_of(r) for r in there.requires or () if "extra ==" not in r]
    return dict(sorted(found.items()))


def _name_of(requirement: str) -> str:
    end = next((i for i, c in enumerate(requirement) if not (c.isalnum() or c in "-_.")), len(requirement))
    return requirement[:end]


def evidence(path: Path, engine: Engine, seconds: float) -> dict[str, Any]:
    """Versions, hashes, the verdict that travels in the engine, and a benchmark made now."""
    session = Session(engine)
    rows = []
    symbols = engine.graph.symbols.values()
    for sizes in ({s.name: s.opt for s in symbols}, {s.name: s.min for s in symbols}):
        feeds = random_feeds(engine.graph, sizes, 0)
        found = summary("ingot", 0, measure(lambda feeds=feeds: session.run(feeds), seconds))     # type: ignore[misc]
        rows.append({"sizes": sizes, "median_seconds": found.median, "p99_seconds": found.p99})
        if not symbols:
            break
    return {"engine": path.name, "sha256": _sha256(path), "date": time.strftime("%Y-%m-%d"),
            "device": host_target().fingerprint, "threads": session.threads, "python": platform.python_version(),
            "verification": dict(engine.verdict), "benchmark": rows, "packages": pinned()}


def _sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def package(path: Path, engine: Engine, folder: Path, config: Path | None, wheels: Mapping[str, Path],
            seconds: float = 1.0) -> list[Path]:
    """Write the folder; gives its files. `wheels` are files to install from, also Ingot's own. Raises InputError."""
    if folder.exists() and any(folder.iterdir()):
        raise InputError(f"{folder} is not empty", where="--output", mend="name a new folder")
    name = path.stem
    models = folder / "models" / name
    (models / "1").mkdir(parents=True)
    (folder / "wheels").mkdir()
    shutil.copyfile(path, models / "1" / "model.ingot")
    if config:
        shutil.copyfile(config, models / "config.yaml")
    told = evidence(path, engine, seconds)
    session_memory = 512 + 2 * (path.stat().st_size >> 20)
    requirements = [f"{n}=={v}" for n, v in told["packages"].items()]
    own = next((p.name for n, p in wheels.items() if n == "ingot"), "")
    requirements.append(f"./wheels/{own}" if own else f"ingot[serve]=={_own_version()}")
    for wheel in wheels.values():
        shutil.copyfile(wheel, folder / "wheels" / wheel.name)
    python = ".".join(platform.python_version_tuple()[:2])
    (folder / "requirements.txt").write_text("\n".join(requirements) + "\n")
    (folder / "Dockerfile").write_text(_DOCKERFILE.format(name=name, python=python))
    truss = folder / "truss"
    truss.mkdir()
    (truss / "config.yaml").write_text(_TRUSS.format(name=name, threads=told["threads"], memory=session_memory))
    told["files"] = {str(p.relative_to(folder)): _sha256(p) for p in sorted(folder.rglob("*")) if p.is_file()}
    (folder / "evidence.json").write_text(json.dumps(told, indent=1, default=str) + "\n")
    return sorted(p for p in folder.rglob("*") if p.is_file())


def _own_version() -> str:
    try:
        return version("ingot")
    except PackageNotFoundError:
        return "0.1.0"
