"""Small Q/DQ models as four producers write them: ONNX Runtime's static form, NNCF, PyTorch's pt2e, and by hand.

    python -m benchmarks.quantised_models --out tests/quantised [--only pytorch]

The files are kept with the tests, which hold Ingot's engines against the reference on each; NNCF and torchao are needed
only to make them again. What the producers quantise is seeded and random: an image network (a stride, depthwise, a
residual sum, pooling, a classifier) and one of rows (products, a Gelu, a normalisation).
"""
from __future__ import annotations

import argparse
import importlib
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
from onnx import TensorProto, helper, numpy_helper
from torch import Tensor, nn

SHAPES = {"image": (2, 3, 16, 16), "rows": (2, 12, 32)}
_BATCHES = 8


class Image(nn.Module):
    """Convolutions with a stride, depthwise, a residual sum, pooling and a classifier."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.inner = nn.Conv2d(3, 16, 3, 2, 1), nn.Conv2d(16, 32, 1)
        self.depthwise, self.narrow = nn.Conv2d(32, 32, 3, 1, 1, groups=32), nn.Conv2d(32, 16, 1)
        self.head = nn.Linear(16, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.stem(x))
        y = torch.relu(self.depthwise(torch.relu(self.inner(x))))
        x = torch.relu(x + self.narrow(y))
        return self.head(x.mean((2, 3)))


class Rows(nn.Module):
    """Two products with a Gelu between them, added to their input and normalised."""

    def __init__(self) -> None:
        super().__init__()
        self.wide, self.narrow, self.norm = nn.Linear(32, 64), nn.Linear(64, 32), nn.LayerNorm(32)
        self.head = nn.Linear(32, 16)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.norm(x + self.narrow(nn.functional.gelu(self.wide(x)))))


def network(kind: str) -> nn.Module:
    """One of the two, seeded."""
    torch.manual_seed(0)
    return (Image() if kind == "image" else Rows()).eval()


def samples(kind: str) -> Iterator[np.ndarray]:
    """What everybody calibrates on."""
    rng = np.random.default_rng(1)
    for _ in range(_BATCHES):
        yield rng.standard_normal(SHAPES[kind]).astype(np.float32)


def exported(module: Any, kind: str) -> onnx.ModelProto:
    """As ONNX, by PyTorch's newer exporter."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "net.onnx"
        torch.onnx.export(module, (torch.zeros(SHAPES[kind]),), str(path), input_names=["x"], output_names=["y"],
                          dynamo=True, verbose=False, external_data=False)
        return onnx.load(path)


class Reader:
    """What ONNX Runtime's calibration asks for its data."""

    def __init__(self, kind: str) -> None:
        self._left = samples(kind)

    def get_next(self) -> dict[str, np.ndarray] | None:
        """The next batch, None at the end."""
        return next(({"x": x} for x in self._left), None)


def by_onnxruntime(kind: str) -> onnx.ModelProto:
    """Static quantisation to Q/DQ: u8 activations, i8 weights with a scale per channel."""
    quantization = importlib.import_module("onnxruntime.quantization")
    with tempfile.TemporaryDirectory() as folder:
        bare, made = Path(folder) / "bare.onnx", Path(folder) / "made.onnx"
        model = exported(network(kind), kind)
        del model.graph.value_info[:]
        onnx.save(model, bare)
        quantization.quantize_static(
            str(bare), str(made), Reader(kind), per_channel=True, quant_format=quantization.QuantFormat.QDQ,
            activation_type=quantization.QuantType.QUInt8, weight_type=quantization.QuantType.QInt8)
        return onnx.load(made)


def by_nncf(kind: str) -> onnx.ModelProto:
    """NNCF on the ONNX model: MIXED presets, so that signed activations have a zero point."""
    nncf = importlib.import_module("nncf")
    model = exported(network(kind), kind)
    data = nncf.Dataset([{"x": x} for x in samples(kind)])
    return nncf.quantize(model, data, preset=nncf.QuantizationPreset.MIXED, subset_size=_BATCHES)


def by_pytorch(kind: str) -> onnx.ModelProto:
    """PyTorch's pt2e quantisation (torchao) with the quantiser for x86, exported with its Q/DQ ops."""
    pt2e = importlib.import_module("torchao.quantization.pt2e.quantize_pt2e")
    x86 = importlib.import_module("torchao.quantization.pt2e.quantizer.x86_inductor_quantizer")
    quantizer = x86.X86InductorQuantizer().set_global(x86.get_default_x86_inductor_quantization_config())
    captured = torch.export.export(network(kind), (torch.zeros(SHAPES[kind]),)).module()
    prepared = pt2e.prepare_pt2e(captured, quantizer)
    for x in samples(kind):
        prepared(torch.from_numpy(x))
    return exported(pt2e.convert_pt2e(prepared), kind)


def _weight(rng: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray:
    return rng.integers(-127, 128, shape).astype(np.int8)


def by_hand(kind: str) -> onnx.ModelProto:
    """What no tool writes: QLinearConv, QLinearMatMul, MatMulInteger behind DynamicQuantizeLinear, signed activations
    with odd zero points, u8 weights with a zero point, integers as outputs."""
    rng = np.random.default_rng(2)
    held: dict[str, np.ndarray] = {}

    def const(name: str, array: np.ndarray) -> str:
        held[name] = array
        return name

    def number(name: str, value: float, dtype: type = np.float32) -> str:
        return const(name, np.asarray(value, dtype))

    if kind == "image":
        nodes = [
            helper.make_node("QuantizeLinear", ["x", number("sx", 0.031), number("zx", 117, np.uint8)], ["q0"]),
            helper.make_node("QLinearConv", [
                "q0", "sx", "zx", const("w1", _weight(rng, (16, 3, 3, 3))),
                const("t1", rng.uniform(0.001, 0.003, 16).astype(np.float32)), const("u1", np.zeros(16, np.int8)),
                number("s1", 0.024), number("z1", 60, np.uint8),
                const("b1", rng.integers(-900, 900, 16).astype(np.int32))], ["q1"], strides=[2, 2], pads=[1, 1, 1, 1]),
            helper.make_node("DequantizeLinear", ["q1", "s1", "z1"], ["f1"]),
            helper.make_node("Relu", ["f1"], ["r1"]),
            helper.make_node("QuantizeLinear", ["r1", number("s2", 0.02), number("z2", -128, np.int8)], ["q2"]),
            helper.make_node("DequantizeLinear", ["q2", "s2", "z2"], ["d2"]),
            helper.make_node("DequantizeLinear", [
                const("w3", rng.integers(0, 256, (24, 16, 1, 1)).astype(np.uint8)), number("t3", 0.002),
                number("u3", 128, np.uint8)], ["d3"]),
            helper.make_node("Conv", ["d2", "d3", const("b3", rng.standard_normal(24).astype(np.float32))], ["f3"]),
            helper.make_node("QuantizeLinear", ["f3", number("s4", 0.05), number("z4", 3, np.int8)], ["y"])]
        kind_out, shape = TensorProto.INT8, [2, 24, 8, 8]
    else:
        nodes = [
            helper.make_node("QuantizeLinear", ["x", number("sx", 0.029), number("zx", 131, np.uint8)], ["q0"]),
            helper.make_node("QLinearMatMul", [
                "q0", "sx", "zx", const("w1", _weight(rng, (32, 64))), number("t1", 0.002), number("u1", 0, np.int8),
                number("s1", 0.019), number("z1", 99, np.uint8)], ["q1"]),
            helper.make_node("DequantizeLinear", ["q1", "s1", "z1"], ["f1"]),
            helper.make_node("Tanh", ["f1"], ["r1"]),
            helper.make_node("DynamicQuantizeLinear", ["r1"], ["q2", "s2", "z2"]),
            helper.make_node("MatMulInteger", ["q2", const("w2", _weight(rng, (64, 16))), "z2"], ["i2"]),
            helper.make_node("Cast", ["i2"], ["f2"], to=TensorProto.FLOAT),
            helper.make_node("Mul", ["s2", number("t2", 0.003)], ["m2"]),
            helper.make_node("Mul", ["f2", "m2"], ["y"])]
        kind_out, shape = TensorProto.FLOAT, [2, 12, 16]
    graph = helper.make_graph(nodes, f"hand-{kind}",
                              [helper.make_tensor_value_info("x", TensorProto.FLOAT, SHAPES[kind])],
                              [helper.make_tensor_value_info("y", kind_out, shape)],
                              [numpy_helper.from_array(a, n) for n, a in held.items()])
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)


PRODUCERS: dict[str, Callable[[str], onnx.ModelProto]] = {
    "onnxruntime": by_onnxruntime, "nncf": by_nncf, "pytorch": by_pytorch, "hand": by_hand}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="*", choices=list(PRODUCERS), default=list(PRODUCERS))
    parser.add_argument("--out", type=Path, required=True)
    given = parser.parse_args()
    given.out.mkdir(parents=True, exist_ok=True)
    for name in given.only:
        for kind in SHAPES:
            model = PRODUCERS[name](kind)
            for node in model.graph.node:       # where and how the exporter made it is nobody's business here
                del node.metadata_props[:]
                node.doc_string = ""
            del model.metadata_props[:], model.graph.metadata_props[:], model.graph.value_info[:]
            onnx.checker.check_model(model)
            file = given.out / f"{name}-{kind}.onnx"
            onnx.save(model, file)
            ops = sorted({n.op_type for n in model.graph.node})
            print(f"{file.name}: {file.stat().st_size} bytes, {', '.join(ops)}", flush=True)


if __name__ == "__main__":
    main()
