"""Older opsets: what a node meant then, said in today's terms. One small function per change of meaning.

Most changes need nothing: an attribute that has become a shape-like operand (axes, shape, split, pads, k, ...) is an
attribute here too, and is taken as it stands.
"""
from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np
from onnx import TensorProto

from ingot.errors import ModelError, UnsupportedError
from ingot.frontend.onnx.item import Item
from ingot.graph import Dim, TensorType, product
from ingot.ops.shapes import axis_of, integer, number

OLDEST = 1
Upgrade = Callable[[Item], None]


def _type(item: Item, position: int = 0) -> TensorType:
    found = item.type_of(item.operand(position))
    if found is None:
        raise ModelError(f"input {position} is absent", where=item.where)
    return found


def _flat_axis(item: Item) -> None:
    """Softmax before 13 flattened its input at `axis` (1 unless given) and worked on the rows."""
    x = _type(item)
    axis = axis_of(integer({"axis": 1, **item.attrs}, "axis"), x.rank)
    item.attrs["axis"] = -1
    if axis == x.rank - 1:
        return
    rows, whole, done = item.fresh(), item.outputs[0], item.fresh()
    shape: tuple[Dim, ...] = (product(x.shape[:axis]), product(x.shape[axis:]))
    item.before.append(item.another("Reshape", [item.inputs[0]], [rows], shape=shape))
    item.after.append(item.another("Reshape", [done], [whole], shape=x.shape))
    item.inputs, item.outputs = [rows], [done]


def _clip_bounds(item: Item) -> None:
    """Clip before 11 had its bounds as attributes."""
    dtype = _type(item).dtype.numpy
    for position, name in ((1, "min"), (2, "max")):
        if name in item.attrs:
            item.put(position, item.constant(np.asarray(number(item.attrs, name), dtype=dtype)))
            del item.attrs[name]


def _pad_value(item: Item) -> None:
    """Pad before 11 had its value as an attribute; an operand after the promoted pads."""
    value = item.attrs.pop("value", 0.0)
    if value:
        item.put(2, item.constant(np.asarray(value, dtype=_type(item).dtype.numpy)))


def _spatial(item: Item) -> None:
    """BatchNormalization before 9 could have statistics per element."""
    if not item.attrs.pop("spatial", 1):
        raise UnsupportedError("BatchNormalization with spatial=0", where=item.where, mend="use opset 9 or later")


def _dropout(item: Item) -> None:
    """Dropout at inference is the identity; before 12 the ratio was an attribute."""
    item.attrs.clear()
    if len(item.inputs) > 2 and item.inputs[2]:
        raise UnsupportedError("Dropout with training_mode", where=item.where, mend="export the model for inference")
    if len(item.outputs) > 1 and item.read(item.outputs[1]):
        raise UnsupportedError("the mask of a Dropout is read", where=item.where, mend="export it for inference")
    item.op, item.inputs, item.outputs = "Identity", item.inputs[:1], item.outputs[:1]


def _upsample(item: Item) -> None:
    """Upsample is Resize with asymmetric coordinates, rounded down."""
    mode = str(item.attrs.get("mode", "nearest"))
    item.op = "Resize"
    item.attrs.update(coordinate_transformation_mode="asymmetric", nearest_mode="floor",
                      mode="linear" if "linear" in mode else mode)
    if len(item.inputs) > 1:
        item.inputs = [item.inputs[0], "", item.inputs[1]]


def _resize_10(item: Item) -> None:
    """Resize at 10 had its scales second, and the coordinates of Upsample."""
    _upsample(item)


def _resize_11(item: Item) -> None:
    """Resize before 13 knew tf_half_pixel_for_nn."""
    if item.attrs.get("coordinate_transformation_mode") == "tf_half_pixel_for_nn":
        raise UnsupportedError("tf_half_pixel_for_nn", where=item.where, mend="export with opset 13 or later")


def _scatter(item: Item) -> None:
    """Scatter has been renamed ScatterElements."""
    item.op = "ScatterElements"


def _group_norm(item: Item) -> None:
    """GroupNormalization before 21 had one scale and bias per group, not per channel."""
    x, groups = _type(item), integer(item.attrs, "num_groups")
    channels = x.shape[1]
    for position in (1, 2):
        column, wide, flat = item.fresh(), item.fresh(), item.fresh()
        item.before += [item.another("Unsqueeze", [item.inputs[position]], [column], axes=(1,)),
                        item.another("Expand", [column], [wide], shape=(groups, channels // groups)),
                        item.another("Reshape", [wide], [flat], shape=(channels,))]
        item.inputs[position] = flat


def _grid_mode(item: Item) -> None:
    """GridSample before 20 named its modes after their planes."""
    mode = str(item.attrs.get("mode", "bilinear"))
    item.attrs["mode"] = {"bilinear": "linear", "bicubic": "cubic"}.get(mode, mode)


def _top_k(item: Item) -> None:
    """TopK before 10 had k as a plain number."""
    item.attrs["k"] = (integer(item.attrs, "k"),)


def _training_outputs(item: Item) -> None:
    """BatchNormalization before 14 gave its statistics as further outputs when training."""
    if any(o and item.read(o) for o in item.outputs[1:]):
        raise UnsupportedError("the statistics of a BatchNormalization are read", where=item.where,
                               mend="export the model for inference")
    item.outputs = item.outputs[:1]


def _aligned(item: Item) -> None:
    """Binary ops before 7 broadcast only when told to, the second operand's axes beginning at `axis`."""
    axis, told = item.attrs.pop("axis", None), item.attrs.pop("broadcast", 0)
    if not told or axis is None:
        return
    x, y = _type(item), _type(item, 1)
    after = x.rank - axis_of(integer({"axis": axis}, "axis"), x.rank) - y.rank
    if after > 0:
        wide = item.fresh()
        item.before.append(item.another("Unsqueeze", [item.inputs[1]], [wide],
                                        axes=tuple(range(y.rank, y.rank + after))))
        item.inputs[1] = wide


def _slope_per_channel(item: Item) -> None:
    """PRelu before 7 took one slope per channel as a vector."""
    x, slope = _type(item), _type(item, 1)
    if slope.rank == 1 and slope.shape != (1,) and x.rank > 2:
        wide = item.fresh()
        item.before.append(item.another("Unsqueeze", [item.inputs[1]], [wide], axes=tuple(range(1, x.rank - 1))))
        item.inputs[1] = wide


def _without(*names: str) -> Upgrade:
    """Attributes that said nothing about the result."""
    def drop(item: Item) -> None:
        for name in names:
            item.attrs.pop(name, None)
    return drop


def _default(name: str, value: object) -> Upgrade:
    """What an attribute was when it was not given."""
    def fill(item: Item) -> None:
        item.attrs.setdefault(name, value)
    return fill


def _named_type(item: Item) -> None:
    """Cast before 6 named its element type in words."""
    to = item.attrs.get("to")
    if isinstance(to, str):
        known = dict(TensorProto.DataType.items())
        if to.upper() not in known:
            raise UnsupportedError(f"element type {to!r} is unknown", where=item.where)
        item.attrs["to"] = known[to.upper()]


def _test_mode(item: Item) -> None:
    """BatchNormalization before 7 said by `is_test` whether it was to use the statistics given."""
    if not item.attrs.pop("is_test", 0) and any(o and item.read(o) for o in item.outputs[1:]):
        raise UnsupportedError("BatchNormalization without is_test", where=item.where,
                               mend="export the model for inference")
    item.outputs = item.outputs[:1]


def _paddings(item: Item) -> None:
    """Pad before 2 called its pads paddings."""
    if "paddings" in item.attrs:
        item.attrs["pads"] = item.attrs.pop("paddings")


def _two_scales(item: Item) -> None:
    """Upsample before 7 had a scale for the height and one for the width."""
    if "height_scale" in item.attrs or "width_scale" in item.attrs:
        item.attrs["scales"] = (1.0, 1.0, number({"height_scale": 1.0, **item.attrs}, "height_scale"),
                                number({"width_scale": 1.0, **item.attrs}, "width_scale"))
        del item.attrs["height_scale"], item.attrs["width_scale"]


def _whole_power(item: Item) -> None:
    """LpPool before 2 had its power as a float."""
    power = number({"p": 2.0, **item.attrs}, "p")
    if not power.is_integer():
        raise UnsupportedError(f"{item.op} with the power {power}", where=item.where, mend="use a whole power")
    item.attrs["p"] = int(power)


def _one_axis_tiled(item: Item) -> None:
    """Tile before 6 repeated along one axis, both of them operands."""
    if len(item.inputs) > 2:
        raise UnsupportedError("Tile along one axis", where=item.where, mend="export with opset 6 or later")


def _refused(reason: str) -> Upgrade:
    def refuse(item: Item) -> None:
        raise UnsupportedError(f"{item.op}: {reason}", where=item.where, mend="export with a newer opset")
    return refuse


# op -> (the opset that changed it, what to do with a node of an earlier one), the oldest change first
UPGRADES: Mapping[str, tuple[tuple[int, Upgrade], ...]] = {
    **dict.fromkeys(("Add", "Sub", "Mul", "Div", "Pow", "And", "Or", "Xor", "Equal", "Greater", "Less"),
                    ((7, _aligned),)),
    "BatchNormalization": ((7, _test_mode), (9, _spatial), (14, _training_outputs)),
    "Cast": ((6, _named_type),),
    "Concat": ((4, _default("axis", 1)),),
    "Elu": ((6, _default("alpha", 1.0)),),
    "GRU": ((7, _without("output_sequence")),),
    "Gemm": ((7, _without("broadcast")),),
    "GlobalLpPool": ((2, _whole_power),),
    "LSTM": ((7, _without("output_sequence")),),
    "LpPool": ((2, _whole_power),),
    "PRelu": ((7, _slope_per_channel),),
    "RNN": ((7, _without("output_sequence")),),
    "Selu": ((6, _default("alpha", 1.6732)), (6, _default("gamma", 1.0507))),
    "Tile": ((6, _one_axis_tiled),),
    "Clip": ((11, _clip_bounds),),
    "DFT": ((20, _refused("its axis was an attribute before opset 20")),),
    "Dropout": ((99, _dropout),),
    "GridSample": ((20, _grid_mode),),
    "GroupNormalization": ((21, _group_norm),),
    "Hardmax": ((13, _flat_axis),),
    "LogSoftmax": ((13, _flat_axis),),
    "Pad": ((2, _paddings), (11, _pad_value)),
    "Resize": ((11, _resize_10), (13, _resize_11)),
    "Scatter": ((99, _scatter),),
    "Softmax": ((13, _flat_axis),),
    "TopK": ((10, _top_k),),
    "Upsample": ((7, _two_scales), (99, _upsample)),
}


def upgrade(item: Item, opset: int) -> None:
    """Say a node of the given opset in today's terms. Raises UnsupportedError or ModelError."""
    if opset < 6:
        item.attrs.pop("consumed_inputs", None)     # said which memory might be reused
    for changed, function in UPGRADES.get(item.op, ()):
        if opset < changed:
            try:
                function(item)
            except ValueError as error:
                raise ModelError(str(error), where=item.where) from None
