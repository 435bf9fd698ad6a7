"""Resize: another number of positions along the axes, by nearest, linear or cubic interpolation."""
from __future__ import annotations

from collections.abc import Sequence
from fractions import Fraction

from ingot.graph import Dim, TensorType
from ingot.ops.op import Attrs, Op, Sample, Types, declare
from ingot.ops.samples import f32
from ingot.ops.shapes import axes_of, dims, given, ints, word


def scaled(size: Dim, scale: float) -> Dim:
    """floor(size * scale). Raises ValueError where a symbolic size has no exact form."""
    if isinstance(size, int):
        return int(size * scale)
    exact = Fraction(scale).limit_denominator(64)
    if float(exact) != scale:
        raise ValueError(f"the symbolic size {size} cannot be scaled by {scale}: give sizes, or a static shape")
    return size * exact.numerator // exact.denominator


def _numbers(attrs: Attrs, name: str) -> tuple[float, ...] | None:
    value = attrs.get(name)
    if value is None or not isinstance(value, Sequence) or not len(value):
        return None
    return tuple(float(v) for v in value)


def resized(types: Types, attrs: Attrs) -> tuple[tuple[Dim, ...], tuple[float | None, ...]]:
    """The result's shape, and per axis the scale that was asked for (None: it follows from the sizes)."""
    x = given(types[0])
    named = ints(attrs, "axes")
    axes = axes_of(range(x.rank) if named is None else named, x.rank)
    scales, sizes = _numbers(attrs, "scales"), dims(attrs, "sizes")
    if (scales is None) == (sizes is None or not sizes):
        raise ValueError("Resize takes either scales or sizes")
    shape = list(x.shape)
    out_scales: list[float | None] = [1.0] * x.rank
    if scales is not None:
        if len(scales) != len(axes):
            raise ValueError(f"scales has {len(scales)} entries, {len(axes)} are needed")
        for a, s in zip(axes, scales, strict=True):
            shape[a], out_scales[a] = scaled(x.shape[a], s), s
        return tuple(shape), tuple(out_scales)
    if sizes is None or len(sizes) != len(axes):
        raise ValueError(f"sizes has {len(sizes or ())} entries, {len(axes)} are needed")
    policy = word(attrs, "keep_aspect_ratio_policy")
    if policy != "stretch":
        ratios = []
        for a, n in zip(axes, sizes, strict=True):
            old = x.shape[a]
            if not isinstance(old, int) or not isinstance(n, int):
                raise ValueError(f"keep_aspect_ratio_policy {policy} over symbolic sizes")
            ratios.append(n / old)
        ratio = min(ratios) if policy == "not_larger" else max(ratios)
        for a in axes:
            old = x.shape[a]
            shape[a], out_scales[a] = (int(old * ratio + 0.5) if isinstance(old, int) else old), ratio
        return tuple(shape), tuple(out_scales)
    for a, n in zip(axes, sizes, strict=True):
        shape[a], out_scales[a] = n, 1.0 if n == x.shape[a] else None
    return tuple(shape), tuple(out_scales)


def _resize(types: Types, attrs: Attrs, outputs: int) -> tuple[TensorType, ...]:
    x = given(types[0])
    shape, _ = resized(types, attrs)
    if x.layout and shape[:2] != x.shape[:2]:
        raise ValueError("a blocked input keeps its batch and channels")
    if word(attrs, "mode") not in ("nearest", "linear", "cubic"):
        raise ValueError(f"unknown mode {attrs['mode']!r}")
    return (TensorType(x.dtype, shape, x.layout),)


def _r(*x: int, layout: str = "", **attrs: object) -> Sample:
    return (f32(*x, layout=layout),), attrs


declare(Op("Resize", "interpolated to other sizes", ("x",), _resize, {
    "antialias": 0, "axes": None, "coordinate_transformation_mode": "half_pixel", "cubic_coeff_a": -0.75,
    "exclude_outside": 0, "extrapolation_value": 0.0, "keep_aspect_ratio_policy": "stretch", "mode": "nearest",
    "nearest_mode": "round_prefer_floor", "roi": None, "scales": None, "sizes": None,
}, promoted={1: "roi", 2: "scales", 3: "sizes"}, blocked=True, samples=(
    _r(1, 3, 5, 7, scales=(1.0, 1.0, 2.0, 2.0)), _r(1, 3, 5, 7, sizes=(1, 3, 10, 9)),
    _r(1, 3, 8, 8, scales=(1.0, 1.0, 0.5, 0.5)),
    _r(1, 3, 5, 7, scales=(2.0, 2.0), axes=(2, 3), coordinate_transformation_mode="asymmetric", nearest_mode="floor"),
    _r(2, 19, 5, 7, mode="linear", scales=(1.0, 1.0, 2.0, 2.0)),
    _r(1, 3, 5, 7, mode="linear", sizes=(1, 3, 11, 4), coordinate_transformation_mode="align_corners"),
    _r(1, 3, 5, 7, mode="linear", sizes=(1, 3, 11, 14), coordinate_transformation_mode="pytorch_half_pixel"),
    _r(1, 2, 9, mode="linear", scales=(1.0, 1.0, 1.5)), _r(1, 2, 5, 6, mode="cubic", scales=(1.0, 1.0, 2.0, 2.0)),
    _r(2, 19, 5, 7, layout="c16", scales=(1.0, 1.0, 2.0, 2.0)),
    _r(1, 16, 5, 7, layout="c16", mode="linear", sizes=(1, 16, 10, 10)),
)))
