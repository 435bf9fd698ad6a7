"""Weights alone as small integers: 4 or 8 bits in groups along the depth, what they multiply stays f32."""
from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import numpy as np

from ingot.compiler.options import BuildOptions
from ingot.compiler.running import Feeds, watching
from ingot.errors import InputError
from ingot.graph import Graph
from ingot.quantize import Calibration, QuantSite, quantisable
from ingot.quantize.insert import weights_quantized
from ingot.quantize.weights import Groups
from ingot.target import Target

BITS: Mapping[str, int] = {"int4-weights": 4, "int8-weights": 8}
ROUNDING = ("rtn", "mse", "awq", "gptq")
SIZES = (32, 64, 128)


def groups_of(options: BuildOptions) -> Groups:
    """How the options want weights cut and rounded. Raises InputError."""
    method = options.rounding
    if method not in ROUNDING:
        raise InputError(f"no way of rounding weights is called {method!r}", where="--rounding",
                         mend=f"choose one of: {', '.join(ROUNDING)}")
    if options.group not in SIZES:
        raise InputError(f"groups of {options.group} rows", where="--group",
                         mend=f"choose one of: {', '.join(map(str, SIZES))}")
    return Groups(BITS[options.precision], options.group, False, method)


def products(graph: Graph) -> tuple[QuantSite, ...]:
    """The sites whose weights can be in groups: products by a matrix whose depth divides into eights."""
    return tuple(s for s in quantisable(graph) if s.op == "MatMul" and graph.constants[s.weight].shape[0] % 8 == 0)


def second_moments(base: Graph, target: Target, sites: Sequence[QuantSite], data: Iterable[Feeds], limit: int
                   ) -> dict[str, np.ndarray]:
    """The mean of x x^T over the rows that each site reads, by site: what GPTQ moves errors by. One matrix per input.
    """
    run = watching(base, target, [s.input for s in sites])
    sums: dict[str, np.ndarray] = {}
    samples = 0
    for feeds in data:
        values = run(feeds)
        for name in {s.input for s in sites}:
            x = values[name].reshape(-1, values[name].shape[-1])
            product = (x.T @ x).astype(np.float64) / len(x)
            sums[name] = sums[name] + product if name in sums else product
        samples += max((len(a) for a in feeds.values() if np.ndim(a)), default=1)
        if samples >= limit:
            break
    return {s.name: sums[s.input] for s in sites if s.input in sums}


def weights_only(base: Graph, target: Target, options: BuildOptions, calibration: Calibration | None,
                 data: Sequence[Feeds] | None) -> tuple[Graph, tuple[QuantSite, ...]]:
    """The graph with the weights of its products in groups, and which products those are.

    Without data every element of a weight counts alike. Raises InputError where the rounding needs data.
    """
    how, sites = groups_of(options), products(base)
    if how.method in ("awq", "gptq") and calibration is None:
        raise InputError(f"{how.method} needs representative data", where="--rounding",
                         mend="give --calibrate DATA, or take --rounding mse")
    moments = None
    if how.method == "gptq":
        if data is None:
            raise InputError("gptq needs the data itself, not its ranges", where="--rounding",
                             mend="give --calibrate DATA")
        moments = second_moments(base, target, sites, data, options.samples)
    return weights_quantized(base, sites, how, calibration, moments), sites


__all__ = ["BITS", "ROUNDING", "SIZES", "groups_of", "products", "second_moments", "weights_only"]
