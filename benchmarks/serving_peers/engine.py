"""The same engine, batched adaptively by each of the other servers as its documentation sets it up.

    python engine.py bentoml|litserve|mlserver PORT sentences|images ENGINE THREADS MAX_BATCH MAX_DELAY_MS

Requests are JSON: rows of token ids in `x` (or the V2 protocol's), zeros fill up; the answer is the embedding. The
batch is padded to its longest row, as one does by hand. Images are bytes in base 64.
"""
from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

HERE = Path(__file__).resolve().parent


def mlserver(port: int) -> None:
    """MLServer: `max_batch_size` and `max_batch_time` in model-settings.json."""
    folder = Path(tempfile.mkdtemp())
    (folder / "settings.json").write_text(json.dumps({"http_port": port, "grpc_port": port + 1, "debug": False,
                                                      "metrics_port": port + 2, "parallel_workers": 1}))
    (folder / "model-settings.json").write_text(json.dumps({
        "name": "engine", "implementation": "engine_mlserver.Engine", "max_batch_size": int(os.environ["BATCH"]),
        "max_batch_time": float(os.environ["DELAY"]) / 1e3}))
    for name in ("engine_mlserver.py", "engine_session.py"):
        (folder / name).write_text((HERE / name).read_text())
    subprocess.run([str(Path(sys.executable).parent / "mlserver"), "start", str(folder)], check=True, cwd=folder)


def litserve(port: int) -> None:
    """LitServe: `max_batch_size` and `batch_timeout` of the LitAPI."""
    subprocess.run([sys.executable, str(HERE / "engine_litserve.py"), str(port)], check=True)


def bentoml(port: int) -> None:
    """BentoML: `@bentoml.api(batchable=True, max_batch_size, max_latency_ms)`; it finds the delay by itself.

    Beyond `max_latency_ms` it refuses; the delay told is taken for it, its own default (60,000) where that is 0.
    """
    subprocess.run([str(Path(sys.executable).parent / "bentoml"), "serve", "engine_bentoml:Engine", "--port",
                    str(port)], check=True, cwd=HERE)


if __name__ == "__main__":
    os.environ |= dict(zip(("MODEL", "ENGINE", "THREADS", "BATCH", "DELAY"), sys.argv[3:], strict=True))
    {"mlserver": mlserver, "litserve": litserve, "bentoml": bentoml}[sys.argv[1]](int(sys.argv[2]))
