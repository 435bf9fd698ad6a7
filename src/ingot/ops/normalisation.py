"""Normalisations and softmax."""
from __future__ import annotations

from ingot.graph import F32, Dim, TensorType
from ingot.ops.op import REQUIRED, Attrs, Op, Sample, Types, declare
from ingot.ops.samples import f32, f64, values
from ingot.ops.shapes import axis_of, broadcast, given, integer, ints, same, same_dim


def _channels(x: TensorType, *per_channel: TensorType | None) -> None:
    if x.rank < 2:
        raise ValueError(f"{x} has no channels")
    for t in per_channel:
        if t is not None:
            if t.rank != 1:
                raise ValueError(f"{t} is not one value per channel")
            same_dim(t.shape[0], x.shape[1], "the channels")


def _batch(types: Types, attrs: Attrs, outputs: int) -> tuple[TensorType, ...]:
    x = given(types[0])
    _channels(x, *types[1:])
    if attrs["training_mode"] or outputs != 1:
        raise ValueError("training is not served: export the model for inference")
    return (x,)


def _b(*x: int, layout: str = "", **attrs: object) -> Sample:
    c = x[1]
    return (f32(*x, layout=layout), values(c), values(c), values(c), values(c, low=0.2, high=2.0)), attrs


declare(Op("BatchNormalization", "(x - mean) / sqrt(var + epsilon) * scale + bias, per channel",
           ("x", "scale", "bias", "mean", "var"), _batch, {"epsilon": 1e-5, "momentum": 0.9, "training_mode": 0},
           blocked=True, samples=(_b(2, 19, 5, 7), _b(4, 33), _b(1, 3, 9), _b(1, 4, 3, 4, 5, epsilon=1e-3),
                                  _b(2, 19, 5, 7, layout="c16"))))


def _layer(types: Types, attrs: Attrs, outputs: int) -> tuple[TensorType, ...]:
    x = given(types[0])
    axis = axis_of(integer(attrs, "axis"), x.rank)
    for t in types[1:]:
        if t is not None and broadcast(t.shape, x.shape) != x.shape:
            raise ValueError(f"{t} does not broadcast to {x}")
    shape: tuple[Dim, ...] = (*x.shape[:axis], *(1,) * (x.rank - axis))
    return (x, TensorType(F32, shape), TensorType(F32, shape))[:outputs]


_EPSILON: Attrs = {"axis": -1, "epsilon": 1e-5, "stash_type": 1}
declare(Op("LayerNormalization", "zero mean and unit variance over the axes from `axis` on, times scale plus bias",
           ("x", "scale", "bias?"), _layer, _EPSILON, outputs=3, samples=(
    ((f32(4, 33), values(33), values(33)), {}), ((f32(2, 7, 768), values(768), values(768)), {"epsilon": 1e-12}),
    ((f32(2, 3, 5, 7), values(5, 7), values(5, 7)), {"axis": 2}), ((f32(4, 16), values(16)), {}),
    ((f32(3, 1), values(1), values(1)), {}), ((f32(1, 1, 1023), values(1023), values(1023)), {}))))
declare(Op("RMSNormalization", "x over its root mean square over the axes from `axis` on, times scale",
           ("x", "scale"), _layer, _EPSILON, samples=(
    ((f32(4, 33), values(33)), {}), ((f32(2, 7, 768), values(768)), {"epsilon": 1e-6}),
    ((f32(2, 3, 5, 7), values(5, 7)), {"axis": 2}), ((f32(3, 1), values(1)), {}))))


def _instance(types: Types, attrs: Attrs, outputs: int) -> tuple[TensorType, ...]:
    _channels(given(types[0]), *types[1:])
    return (given(types[0]),)


declare(Op("InstanceNormalization", "zero mean and unit variance per sample and channel, times scale plus bias",
           ("x", "scale", "bias"), _instance, {"epsilon": 1e-5}, samples=(
    ((f32(2, 19, 5, 7), values(19), values(19)), {}), ((f32(2, 3, 17), values(3), values(3)), {"epsilon": 1e-3}))))


def _group(types: Types, attrs: Attrs, outputs: int) -> tuple[TensorType, ...]:
    x, groups = given(types[0]), integer(attrs, "num_groups")
    _channels(x, *types[1:])
    if groups < 1 or (isinstance(x.shape[1], int) and x.shape[1] % groups):
        raise ValueError(f"{x.shape[1]} channels do not divide into {groups} groups")
    return (x,)


declare(Op("GroupNormalization", "zero mean and unit variance per sample and group of channels, times scale plus bias",
           ("x", "scale", "bias"), _group, {"epsilon": 1e-5, "num_groups": REQUIRED, "stash_type": 1}, samples=(
    ((f32(2, 12, 5, 7), values(12), values(12)), {"num_groups": 3}),
    ((f32(1, 8, 9), values(8), values(8)), {"num_groups": 1}))))
declare(Op("LRN", "x over (bias + alpha/size * the sum of squares of neighbouring channels) ** beta", ("x",), same,
           {"alpha": 1e-4, "beta": 0.75, "bias": 1.0, "size": REQUIRED}, samples=(
    ((f32(2, 19, 5, 7),), {"size": 5}), ((f32(1, 7, 3, 3),), {"size": 3, "alpha": 0.1, "beta": 0.5, "bias": 2.0}))))


def _axis(types: Types, attrs: Attrs, outputs: int) -> tuple[TensorType, ...]:
    axis_of(integer(attrs, "axis"), given(types[0]).rank)
    return (given(types[0]),)


_SOFTMAX: tuple[Sample, ...] = (
    ((f32(4, 33),), {}), ((f32(2, 12, 17, 17),), {}), ((f32(2, 5, 7),), {"axis": 1}), ((f32(19,),), {"axis": 0}),
    ((f32(2, 3, 5, 7),), {"axis": -3}), ((f32(3, 1),), {}), ((f64(3, 9),), {}), ((f32(5, 1000),), {}),
    ((f32(1, 2, 128),), {}))
declare(Op("Softmax", "exp(x) over its sum along the axis", ("x",), _axis, {"axis": -1}, samples=_SOFTMAX))
declare(Op("LogSoftmax", "the logarithm of Softmax", ("x",), _axis, {"axis": -1}, samples=_SOFTMAX))
declare(Op("Hardmax", "1 at the first greatest along the axis, else 0", ("x",), _axis, {"axis": -1}, samples=(
    ((f32(4, 33),), {}), ((f32(2, 5, 7),), {"axis": 1}))))
declare(Op("LpNormalization", "x over its p-norm along the axis", ("x",), _axis, {"axis": -1, "p": 2}, samples=(
    ((f32(4, 33),), {}), ((f32(2, 5, 7),), {"axis": 1, "p": 1}))))


def _mvn(types: Types, attrs: Attrs, outputs: int) -> tuple[TensorType, ...]:
    for axis in ints(attrs, "axes") or ():
        axis_of(axis, given(types[0]).rank)
    return (given(types[0]),)


declare(Op("MeanVarianceNormalization", "zero mean and unit variance over the axes", ("x",), _mvn,
           {"axes": (0, 2, 3)}, samples=(((f32(2, 3, 5, 7),), {}), ((f32(4, 9),), {"axes": (1,)}))))
