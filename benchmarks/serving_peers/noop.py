"""The model that gives back what it is given, in each of the other servers.

    python noop.py mlserver|litserve|bentoml|ray PORT
"""
from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from pathlib import Path

HERE = Path(__file__).resolve().parent


def mlserver(port: int) -> None:
    """MLServer: a folder with settings.json and model-settings.json, `mlserver start`."""
    folder = Path(tempfile.mkdtemp())
    (folder / "settings.json").write_text(json.dumps({"http_port": port, "grpc_port": port + 1,
                                                      "metrics_port": port + 2, "debug": False}))
    (folder / "model-settings.json").write_text(json.dumps({"name": "noop", "implementation": "peer_mlserver.Noop"}))
    (folder / "peer_mlserver.py").write_text((HERE / "peer_mlserver.py").read_text())
    subprocess.run([str(Path(sys.executable).parent / "mlserver"), "start", str(folder)], check=True, cwd=folder)


def litserve(port: int) -> None:
    """LitServe: a LitAPI, `LitServer(api).run()`."""
    subprocess.run([sys.executable, str(HERE / "peer_litserve.py"), str(port)], check=True)


def bentoml(port: int) -> None:
    """BentoML: a service class, `bentoml serve`."""
    subprocess.run([str(Path(sys.executable).parent / "bentoml"), "serve", "peer_bentoml:Noop", "--port", str(port)],
                   check=True, cwd=HERE)


def ray(port: int) -> None:
    """Ray Serve: a deployment, `serve.run`."""
    subprocess.run([sys.executable, str(HERE / "peer_ray.py"), str(port)], check=True)


if __name__ == "__main__":
    {"mlserver": mlserver, "litserve": litserve, "bentoml": bentoml, "ray": ray}[sys.argv[1]](int(sys.argv[2]))
