"""Put integers into a graph, as data: Quantize and Dequantize around the sites of a plan, integer weights inside.

What is inserted are plain nodes: the graph can be printed, run on the reference, and stored. The pass `fold_quantised`
makes integer regions of them on targets that have such kernels.
"""
from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import replace

import numpy as np

from ingot.graph import Graph, GraphBuilder, Node
from ingot.ops import infer
from ingot.ops.op import OPS
from ingot.ops.quantisation import LARGEST_E4M3
from ingot.quantize.rounding import IntegerWeight, Manner, by_rows, integer_weights, one_sided, smoothed
from ingot.quantize.scales import Calibration
from ingot.quantize.sites import QuantSite
from ingot.quantize.weights import Groups, by_groups


def quantized(graph: Graph, sites: Collection[QuantSite], calibration: Calibration, manner: Manner = Manner(),
              weights: Mapping[str, IntegerWeight] | None = None) -> Graph:
    """The graph with the given sites on integers, their weights as given, or made of the calibration alone.

    Raises KeyError where the calibration lacks a site's input.
    """
    if weights is None:
        weights = integer_weights(graph, sites, calibration, manner)
    return _Insertion(graph, sites, calibration, manner, weights).graph()


class _Insertion:
    """The state of one insertion; lives inside `quantized`."""

    def __init__(self, graph: Graph, sites: Collection[QuantSite], calibration: Calibration, manner: Manner,
                 weights: Mapping[str, IntegerWeight]) -> None:
        self.source, self.calibration, self.manner, self.weights = graph, calibration, manner, weights
        self.sites = {s.name: s for s in sites}
        self.build = GraphBuilder(infer, graph.symbols)
        self.integers: dict[tuple[str, str], str] = {}          # (tensor, smoothing) -> its dequantised form
        self.images = {s.input for s in sites if s.op == "Conv"} if manner.residuals else set()

    def graph(self) -> Graph:
        g, build = self.source, self.build
        for name in g.inputs:
            build.input(name, g.types[name])
        dropped = {s.weight for s in self.sites.values() if g.uses[s.weight] == 1}
        for name, array in g.constants.items():
            if name not in dropped:
                build.constant(name, array)
        for node in g.nodes:
            site = self.sites.get(node.output)
            if site is not None:
                self._site(node, site)
            elif self._reads_integers(node):
                build.add(replace(node, inputs=tuple(
                    self._dequantized(i, None) if i in self.images else i for i in node.inputs)))
            else:
                build.add(node)
        return build.finish(*g.outputs)

    def _reads_integers(self, node: Node) -> bool:
        """An addition of images whose operand is there as integers anyway: four times fewer bytes to read."""
        op = OPS.get(node.op)
        return op is not None and op.pointwise and node.op == "Add" and len(node.inputs) == 2 and any(
            i in self.images for i in node.inputs)

    def _by_rows(self, value: str) -> bool:
        """Whether every site that reads a value wants a scale for each of its rows."""
        t = self.calibration.tensors[value]
        return all(by_rows(self.source, s, t, self.manner) for s in self.sites.values() if s.input == value)

    def _row_integers(self, value: str, smooth: np.ndarray | None) -> str:
        """The value through integers, a scale for each row: u8 about a zero point that all rows share."""
        build, t = self.build, self.calibration.tensors[value]
        origin = (f"integers of {value}",)
        stem = build.fresh(f"{value}.rows")

        def node(op: str, *inputs: str, **attrs: object) -> str:
            return build.node(op, *inputs, name=build.fresh(f"{stem}.{op.lower()}"), origin=origin, **attrs)

        def number(word: str, x: float) -> str:
            return build.constant(build.fresh(f"{stem}.{word}"), np.asarray(x, np.float32))

        if smooth is not None:
            value = node("Mul", value, build.constant(f"{stem}.smooth", (1 / smooth).astype(np.float32)))
            t = smoothed(t, smooth)
        above = one_sided(t)
        # what lies below zero is bounded where it is little (a Gelu's least value), else as far away as the rest
        zero = int(np.ceil(255 * -t.least / (t.span - t.least))) if above else 128
        floor = -t.least / zero if above and zero else 0.0
        far = node("ReduceMax", value if above else node("Abs", value), axes=(-1,), keepdims=1)
        scale = node("Max", node("Mul", far, number("part", 1 / (255 - zero))), number("floor", max(floor, 1e-12)))
        at = build.constant(f"{stem}.zero", np.asarray(zero, np.uint8))
        q = node("Quantize", value, node("Reciprocal", scale), at, output_dtype="u8", multiply=1)
        return node("Dequantize", q, scale, at)

    def _dequantized(self, value: str, smooth: np.ndarray | None) -> str:
        """The value through integers, made once."""
        key = value, "" if smooth is None else smooth.tobytes().hex()[:32]
        if key not in self.integers and self.manner.numbers != "u8":
            self.integers[key] = self._symmetric(value)
        if key not in self.integers and self._by_rows(value):
            self.integers[key] = self._row_integers(value, smooth)
        if key not in self.integers:
            build, t = self.build, self.calibration.tensors[value]
            found = t.range if smooth is None else smoothed(t, smooth).range
            scale = np.float32(found.scale)
            factor = np.asarray(np.float32(1) / scale)
            stem = build.fresh(f"{value}.scale")
            if smooth is not None:
                factor = (factor / smooth).astype(np.float32)
            names = [build.constant(f"{stem}.factor", factor), build.constant(f"{stem}.zero", np.asarray(
                found.zero, np.uint8)), build.constant(stem, np.asarray(scale))]
            origin = (f"integers of {value}",)
            q = build.node("Quantize", value, *names[:2], name=build.fresh(f"{value}.u8"), origin=origin,
                           output_dtype="u8", multiply=1)
            self.integers[key] = build.node("Dequantize", q, names[2], names[1], name=build.fresh(f"{value}.back"),
                                            origin=origin)
        return self.integers[key]

    def _symmetric(self, value: str) -> str:
        """The value through i8 or f8e4m3, zero being zero: i8 over the range that was chosen, f8e4m3 over all that was
        seen, since its steps are small where values are."""
        build, t, numbers = self.build, self.calibration.tensors[value], self.manner.numbers
        reach = max(-t.low, t.high) / 127 if numbers == "i8" else max(-t.least, t.most) / LARGEST_E4M3
        scale = np.float32(max(reach, 1e-12))
        stem, origin = build.fresh(f"{value}.scale"), (f"integers of {value}",)
        factor = build.constant(f"{stem}.factor", np.asarray(np.float32(1) / scale))
        q = build.node("Quantize", value, factor, name=build.fresh(f"{value}.{numbers}"), origin=origin,
                       output_dtype=numbers, multiply=1)
        return build.node("Dequantize", q, build.constant(stem, np.asarray(scale)), name=build.fresh(f"{value}.back"),
                          origin=origin)

    def _site(self, node: Node, site: QuantSite) -> None:
        build, g, made = self.build, self.source, self.weights[site.name]
        x, correction = self._dequantized(site.input, made.smooth), made.correction
        stem = build.fresh(f"{site.name}.weight")
        w = build.node("Dequantize", build.constant(f"{stem}.i8", made.integers),
                       build.constant(f"{stem}.scale", made.scale), name=build.fresh(f"{stem}.back"))
        if correction is None:
            build.add(replace(node, inputs=(x, w, *node.inputs[2:])))
            return
        if site.op == "Conv":
            old = g.constants.get(node.inputs[2]) if len(node.inputs) > 2 else np.zeros(len(made.integers), np.float32)
            if old is not None:
                bias = build.constant(f"{stem}.bias", (old - correction).astype(np.float32))
                build.add(replace(node, inputs=(x, w, bias)))
                return
        raw = build.fresh(f"{site.name}.raw")
        build.add(replace(node, inputs=(x, w, *node.inputs[2:]), outputs=(raw,)))
        row = correction if site.op == "MatMul" else correction.reshape(1, -1, 1, 1)
        build.node("Sub", raw, build.constant(f"{stem}.correction", row.astype(np.float32)), name=site.name,
                   origin=node.origin)


def weights_quantized(graph: Graph, sites: Collection[QuantSite], how: Groups, calibration: Calibration | None = None,
                      moments: Mapping[str, np.ndarray] | None = None) -> Graph:
    """The graph with the weights of the given products in groups of small integers; what they multiply stays f32.

    Without a calibration every element of a weight counts alike. `moments` are the inputs' second moments, by site.
    """
    build = GraphBuilder(infer, graph.symbols)
    chosen = {s.name: s for s in sites if s.op == "MatMul"}
    for name in graph.inputs:
        build.input(name, graph.types[name])
    dropped = {s.weight for s in chosen.values() if graph.uses[s.weight] == 1}
    for name, array in graph.constants.items():
        if name not in dropped:
            build.constant(name, array)
    for node in graph.nodes:
        site = chosen.get(node.output)
        if site is None:
            build.add(node)
            continue
        seen = calibration.tensors.get(site.input) if calibration else None
        energy = np.asarray(seen.energy) if seen and len(seen.energy) == site.channels else None
        found = by_groups(graph.constants[site.weight], how, energy, (moments or {}).get(site.name))
        stem = build.fresh(f"{site.name}.weight")
        names = [build.constant(f"{stem}.groups", found.integers), build.constant(f"{stem}.scale", found.scale)]
        if found.zero is not None:
            names.append(build.constant(f"{stem}.zero", found.zero))
        weight = build.node("DequantizeLinear", *names, name=build.fresh(f"{stem}.back"), axis=0,
                            block_size=found.group)
        x = site.input
        if found.divided is not None:
            divisor = build.constant(f"{stem}.divided", (1 / found.divided).astype(np.float32))
            x = build.node("Mul", x, divisor, name=build.fresh(f"{site.input}.divided"))
        build.add(replace(node, inputs=(x, weight)))
    return build.finish(*graph.outputs)


__all__ = ["Manner", "quantized", "weights_quantized"]
