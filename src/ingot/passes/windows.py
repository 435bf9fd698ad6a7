"""Rules on the windows of convolutions: padding in one place, and spelled out."""
from __future__ import annotations

from ingot.ops import OPS
from ingot.ops.convolution import convolution_window
from ingot.ops.shapes import dims
from ingot.passes.rewrite import Match, P, Rule


def _paddings(match: Match) -> tuple[tuple[int, ...], tuple[int, ...]] | str:
    """How much a Pad puts before and after each axis, or why it is not known to be zeros around the plane."""
    rank = match.type("x").rank
    pads, axes = dims(match.node("Pad").attrs, "pads") or (), dims(match.node("Pad").attrs, "axes")
    places = range(rank) if axes is None else [int(str(a)) % rank for a in axes]
    if any(not isinstance(p, int) or p < 0 for p in pads):
        return "it cuts, or pads by a symbolic size"
    if match.attr("Pad", "mode") != "constant" or (match["value"] and match.scalar("value") != 0.0):
        return "it does not pad with zeros"
    begins, ends = [0] * rank, [0] * rank
    for k, axis in enumerate(places):
        begins[axis], ends[axis] = int(str(pads[k])), int(str(pads[k + len(pads) // 2]))
    if any(begins[:2]) or any(ends[:2]):
        return "it pads samples or channels"
    return tuple(begins[2:]), tuple(ends[2:])


def _not_paddable(match: Match) -> str | None:
    found = _paddings(match)
    if isinstance(found, str):
        return found
    if match.attr("Conv", "auto_pad") not in ("NOTSET", "VALID"):
        return "the convolution pads by its size"
    return None


def _padded(match: Match) -> str:
    found = _paddings(match)
    before = () if isinstance(found, str) else (*found[0], *found[1])       # _not_paddable declined a reason
    node = match.node("Conv")
    own = dims(node.attrs, "pads") or (0,) * len(before)
    both = tuple(a + int(str(b)) for a, b in zip(before, own, strict=True))
    attrs = {k: v for k, v in node.attrs.items() if k != "auto_pad"}
    return match.add("Conv", match["x"], match["w"], match["b"], **{**attrs, "pads": both})


def _window(match: Match) -> tuple[object, ...]:
    node = match.node("Conv")
    types = tuple(match.state.types[i] if i else None for i in node.inputs)
    found = convolution_window(types, {**OPS["Conv"].attrs, **node.attrs})
    return (*found.begins, *found.ends)


def _not_automatic(match: Match) -> str | None:
    if match.attr("Conv", "auto_pad") == "NOTSET":
        return "its padding is spelled out"
    return None if all(isinstance(p, int) for p in _window(match)) else "its padding depends on a symbolic size"


def _spelled_out(match: Match) -> str:
    attrs = {k: v for k, v in match.node("Conv").attrs.items() if k != "auto_pad"}
    return match.add("Conv", match["x"], match["w"], match["b"], **{**attrs, "pads": _window(match)})


RULES = (
    Rule("pad-into-convolution", P("Conv", P("Pad", "x", "value?"), "w", "b?"), make=_padded, decline=_not_paddable),
    Rule("automatic-padding", P("Conv", "x", "w", "b?"), make=_spelled_out, decline=_not_automatic),
)
