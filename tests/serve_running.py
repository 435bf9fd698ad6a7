"""A server in a process of its own, and small models for it, for the tests of serving."""
import json
import os
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper

import ingot

DATATYPES = {"BOOL": TensorProto.BOOL, "UINT8": TensorProto.UINT8, "UINT16": TensorProto.UINT16,
             "UINT32": TensorProto.UINT32, "UINT64": TensorProto.UINT64, "INT8": TensorProto.INT8,
             "INT16": TensorProto.INT16, "INT32": TensorProto.INT32, "INT64": TensorProto.INT64,
             "FP16": TensorProto.FLOAT16, "FP32": TensorProto.FLOAT, "FP64": TensorProto.DOUBLE,
             "BF16": TensorProto.BFLOAT16, "BYTES": TensorProto.STRING}
QUICK = ingot.BuildOptions(tune=False, verify=False)


def model(nodes, inputs, outputs, opset=21):
    graph = helper.make_graph(nodes, "small", [helper.make_tensor_value_info(*i) for i in inputs],
                              [helper.make_tensor_value_info(*o) for o in outputs])
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=10)


def mirror():
    """Every datatype in, the same out."""
    nodes = [helper.make_node("Identity", [f"in_{n}"], [f"out_{n}"]) for n in DATATYPES]
    return model(nodes, [(f"in_{n}", t, ["N", 3]) for n, t in DATATYPES.items()],
                 [(f"out_{n}", t, ["N", 3]) for n, t in DATATYPES.items()])


def double():
    """y = x + x, rows of four."""
    return model([helper.make_node("Add", ["x", "x"], ["y"])], [("x", TensorProto.FLOAT, ["N", 4])],
                 [("y", TensorProto.FLOAT, ["N", 4])])


def slow(steps=400):
    """A long way from x to y, as a matrix product after another: y = x."""
    eye = helper.make_tensor("eye", TensorProto.FLOAT, (512, 512), np.eye(512, dtype=np.float32).tobytes(), raw=True)
    nodes = [helper.make_node("MatMul", [f"v{i}", "eye"], [f"v{i + 1}"]) for i in range(steps)]
    graph = helper.make_graph(nodes, "slow", [helper.make_tensor_value_info("v0", TensorProto.FLOAT, ["N", 512])],
                              [helper.make_tensor_value_info(f"v{steps}", TensorProto.FLOAT, ["N", 512])], [eye])
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)


def ragged():
    """The sum of each row, and each element doubled: rows of any length, which zeros make no longer."""
    nodes = [helper.make_node("ReduceSum", ["x", "axes"], ["sum"], keepdims=0),
             helper.make_node("Add", ["x", "x"], ["twice"])]
    graph = helper.make_graph(nodes, "ragged", [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N", "S"])],
                              [helper.make_tensor_value_info("sum", TensorProto.FLOAT, ["N"]),
                               helper.make_tensor_value_info("twice", TensorProto.FLOAT, ["N", "S"])],
                              [helper.make_tensor("axes", TensorProto.INT64, (1,), [1])])
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)


SMALL = {"mirror": (mirror, {f"in_{n}": "1..1..8x3" for n in DATATYPES}), "double": (double, {"x": "1..1..16x4"}),
         "ragged": (ragged, {"x": "1..4..16x1..32..64"}), "slow": (slow, {"v0": "1..1..8x512"})}


def add_model(repository: Path, name: str, config: str = "", kind: str = "", onnx_file: bool = False) -> Path:
    """A small model in a repository; its folder."""
    make, shapes = SMALL[kind or name]
    folder = repository / name
    folder.mkdir(parents=True)
    if onnx_file:
        onnx.save(make(), folder / "model.onnx")
        config += "shapes:\n" + "".join(f"  {k}: {v}\n" for k, v in shapes.items())
    else:
        ingot.save(ingot.build(make().SerializeToString(), shapes=shapes, options=QUICK), folder / "model.ingot")
    if config:
        (folder / "config.yaml").write_text(config)
    return folder


def status(url: str) -> int:
    """The status of a GET."""
    try:
        with urllib.request.urlopen(url, timeout=10) as answer:
            return answer.status
    except urllib.error.HTTPError as error:
        return error.code


class Running:
    """A server process and where it listens."""

    def __init__(self, process, http, grpc):
        self.process, self.http, self.grpc = process, http, grpc
        self.url = f"http://{http}"

    def terminate(self):
        self.process.send_signal(signal.SIGTERM)


@contextmanager
def serving(repository: Path, *options: str, log: Path | None = None, env=None):
    """A server of the repository, ready."""
    command = [sys.executable, "-m", "ingot", "serve", str(repository), "--http-port", "0", "--grpc-port", "0",
               "--json", *options]
    source = str(Path(ingot.__file__).parents[1])
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([source, os.environ.get("PYTHONPATH", "")]),
                   **(env or {})}
    with open(log or os.devnull, "w") as errors:
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=errors, env=environment, text=True)
    try:
        line = process.stdout.readline()
        assert line, f"the server did not start: {Path(log).read_text() if log else 'no log'}"
        places = json.loads(line)
        running = Running(process, places["http"], places["grpc"])
        until = time.time() + 120
        while "--certificate" not in options and status(running.url + "/readyz") == 503:
            assert time.time() < until and process.poll() is None, "the server is not ready"
            time.sleep(0.05)
        yield running
    finally:
        process.terminate()
        try:
            process.wait(20)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        process.stdout.close()
