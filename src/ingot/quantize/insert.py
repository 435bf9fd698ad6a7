"""Put integers into a graph, as data: Quantize and Dequantize around the sites of a plan, integer weights inside.

What is inserted are plain nodes: the graph can be printed, run on the reference, and stored. The pass `fold_quantised`
makes integer regions of them on targets that have such kernels.
"""
from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace

import numpy as np

from ingot.graph import Graph, GraphBuilder, Node
from ingot.ops import infer
from ingot.ops.op import OPS
from ingot.quantize.scales import Calibration, TensorRange
from ingot.quantize.sites import QuantSite
from ingot.quantize.weights import Groups, by_channel, by_groups


@dataclass(frozen=True)
class Manner:
    """How sites are made integer."""

    smooth: tuple[float, ...] = (0.3, 0.5, 0.7)     # SmoothQuant's alphas to try for products (Xiao et al. 2023)
    correct_bias: bool = True   # add back the mean error of rounded weights (Nagel et al. 2019)
    clip_weights: bool = True   # weights' ranges of least squared error
    residuals: bool = True      # additions in networks of images read the integers, too
    rows: float = 0.9           # products scale each row by itself where rows span less than this share of the range


def quantized(graph: Graph, sites: Collection[QuantSite], calibration: Calibration,
              manner: Manner = Manner()) -> Graph:
    """The graph with the given sites on integers. Raises KeyError where the calibration lacks a site's input."""
    return _Insertion(graph, sites, calibration, manner).graph()


class _Insertion:
    """The state of one insertion; lives inside `quantized`."""

    def __init__(self, graph: Graph, sites: Collection[QuantSite], calibration: Calibration, manner: Manner) -> None:
        self.source, self.calibration, self.manner = graph, calibration, manner
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
        """Whether each row of a value gets a scale of its own, found while the engine runs: rows differ so much that
        one scale for all would be too coarse for most, or cut off some. For rows of sequences: a head that reads one
        row for each item would pay for it, and gain little."""
        t = self.calibration.tensors[value]
        whole = max(t.most, 0.0) - min(t.least, 0.0)
        sequences = self.source.types[value].rank > 2
        products = sequences and all(s.op == "MatMul" for s in self.sites.values() if s.input == value)
        return products and 0.0 < t.span < self.manner.rows * whole

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
            t = _smoothed(t, smooth)
        one_sided = -t.least < _ONE_SIDED * t.most
        # what lies below zero is bounded where it is little (a Gelu's least value), else as far away as the rest
        zero = int(np.ceil(255 * -t.least / (t.span - t.least))) if one_sided else 128
        floor = -t.least / zero if one_sided and zero else 0.0
        far = node("ReduceMax", value if one_sided else node("Abs", value), axes=(-1,), keepdims=1)
        scale = node("Max", node("Mul", far, number("part", 1 / (255 - zero))), number("floor", max(floor, 1e-12)))
        at = build.constant(f"{stem}.zero", np.asarray(zero, np.uint8))
        q = node("Quantize", value, node("Reciprocal", scale), at, output_dtype="u8", multiply=1)
        return node("Dequantize", q, scale, at)

    def _dequantized(self, value: str, smooth: np.ndarray | None) -> str:
        """The value through integers, made once."""
        key = value, "" if smooth is None else smooth.tobytes().hex()[:32]
        if key not in self.integers and self._by_rows(value):
            self.integers[key] = self._row_integers(value, smooth)
        if key not in self.integers:
            build, t = self.build, self.calibration.tensors[value]
            found = t.range if smooth is None else _smoothed(t, smooth).range
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

    def _site(self, node: Node, site: QuantSite) -> None:
        build, g = self.build, self.source
        weight = g.constants[site.weight]
        smooth = self._smoothing(site, weight)
        x = self._dequantized(site.input, smooth)
        kept = weight if smooth is None else weight * smooth[:, None]
        axis = 0 if site.op == "Conv" else 1
        integers, scale = by_channel(kept, axis, clip=self.manner.clip_weights)
        shape = tuple(-1 if k == axis else 1 for k in range(weight.ndim))
        stem = build.fresh(f"{site.name}.weight")
        w = build.node("Dequantize", build.constant(f"{stem}.i8", integers),
                       build.constant(f"{stem}.scale", scale.reshape(shape)), name=build.fresh(f"{stem}.back"))
        error = integers * scale.reshape(shape) - kept
        if smooth is not None:
            error = error / smooth[:, None]
        correction = self._correction(site, node, error)
        if correction is None:
            build.add(replace(node, inputs=(x, w, *node.inputs[2:])))
            return
        if site.op == "Conv":
            old = g.constants.get(node.inputs[2]) if len(node.inputs) > 2 else np.zeros(weight.shape[0], np.float32)
            if old is not None:
                bias = build.constant(f"{stem}.bias", (old - correction).astype(np.float32))
                build.add(replace(node, inputs=(x, w, bias)))
                return
        raw = build.fresh(f"{site.name}.raw")
        build.add(replace(node, inputs=(x, w, *node.inputs[2:]), outputs=(raw,)))
        row = correction if site.op == "MatMul" else correction.reshape(1, -1, 1, 1)
        build.node("Sub", raw, build.constant(f"{stem}.correction", row.astype(np.float32)), name=site.name,
                   origin=node.origin)

    def _smoothing(self, site: QuantSite, weight: np.ndarray) -> np.ndarray | None:
        """What each input channel is divided by, and its row of the weight multiplied with; None for nothing.

        Of several strengths the one whose rounding adds the least variance to the result, by the channels' statistics.
        """
        t = self.calibration.tensors[site.input]
        if not self.manner.smooth or site.op != "MatMul" or len(t.peaks) != len(weight) or len(t.energy) != len(weight):
            return None
        if self._by_rows(site.input) and -t.least < _ONE_SIDED * t.most:
            return None         # a row's scale does what smoothing would
        peaks, energy = np.maximum(np.asarray(t.peaks), 1e-5), np.asarray(t.energy)
        rows = np.maximum(np.abs(weight).max(1), 1e-5)
        best, found = _GAIN * _variance(weight, energy, t.range.scale, np.ones_like(peaks)), None
        for strength in self.manner.smooth:
            smooth = peaks ** strength / rows ** (1 - strength)
            smooth = smooth / np.exp(np.log(smooth).mean())
            added = _variance(weight, energy, _smoothed(t, smooth).range.scale, smooth)
            if added < best:
                best, found = added, smooth.astype(np.float32)
        return found

    def _correction(self, site: QuantSite, node: Node, error: np.ndarray) -> np.ndarray | None:
        """The mean of what the rounded weights add to each result channel."""
        means = np.asarray(self.calibration.tensors[site.input].means, np.float64)
        if not self.manner.correct_bias or len(means) != site.channels or self._by_rows(site.input):
            return None         # the mean over rows of very different size is nobody's
        if site.op == "MatMul":
            return np.asarray(means @ error)
        group = weight_groups(site, error)
        inner = error.shape[1]
        flat = error.reshape(error.shape[0], inner, -1).sum(2)
        each = error.shape[0] // group
        return np.concatenate([flat[g * each:(g + 1) * each] @ means[g * inner:(g + 1) * inner] for g in range(group)])


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


def weight_groups(site: QuantSite, weight: np.ndarray) -> int:
    """The groups of a convolution, from its channels."""
    return site.channels // int(weight.shape[1])


def _smoothed(t: TensorRange, smooth: np.ndarray) -> TensorRange:
    """The range once each channel is divided by its part: from the channels' peaks, on the sides that were seen."""
    reach = float((np.asarray(t.peaks) / smooth).max())
    return replace(t, low=max(-reach, t.least / float(smooth.min())) if t.least < 0 else 0.0, high=reach)


def _variance(weight: np.ndarray, energy: np.ndarray, step: float, smooth: np.ndarray) -> float:
    """What rounding adds to the result's variance: steps of the input through the weights, steps of the weights
    through the input."""
    kept = weight * smooth[:, None]
    through = step ** 2 * float((kept ** 2).sum())
    steps = (np.abs(kept).max(0) / 127) ** 2
    return through + float((energy / smooth ** 2).sum()) * float(steps.sum())


_ONE_SIDED = 0.2    # what lies below zero is less than this share of what lies above
_GAIN = 0.8         # smoothing must take this share of the variance, or it is left out


__all__ = ["Manner", "quantized", "weights_quantized"]
