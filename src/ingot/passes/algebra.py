"""Rules on numbers: neutral elements, powers, signs, constants that meet, conditions that are known."""
from __future__ import annotations

import math
from collections.abc import Callable
from functools import reduce

import numpy as np

from ingot.graph import Dim
from ingot.passes.rewrite import Const, Match, P, Rule, State, uniform

Make = Callable[[Match], str]
Decline = Callable[[Match], str | None]

MONOTONE_NONNEGATIVE = frozenset({"Abs", "Exp", "Sigmoid", "HardSigmoid", "Softmax", "Relu", "Sqrt", "Softplus",
                                  "ReduceL1", "ReduceL2", "ReduceSumSquare"})
KEEPS_NONNEGATIVE = frozenset({"ReduceMean", "ReduceSum", "ReduceMax", "ReduceMin", "Reshape", "Transpose", "Identity",
                               "Unsqueeze", "Squeeze", "Flatten", "Expand", "Slice", "Cast", "GlobalAveragePool"})


def nonnegative(state: State, value: str, depth: int = 12) -> bool:
    """Whether a value is known never to be below zero (NaN aside)."""
    array = state.constants.get(value)
    if array is not None:
        return array.dtype.kind in "fiub" and array.size > 0 and bool((array >= 0).all())
    node = state.producers.get(value)
    if node is None or depth == 0:
        return False
    if node.op in MONOTONE_NONNEGATIVE:
        return True
    if node.op in KEEPS_NONNEGATIVE:
        return nonnegative(state, node.inputs[0], depth - 1)
    if node.op == "Mul" and node.inputs[0] == node.inputs[1]:
        return True
    if node.op == "Pow":
        power = uniform(state.constants.get(node.inputs[1]))
        return power is not None and power % 2 == 0
    if node.op in ("Add", "Mul", "Div", "Max", "Min"):
        return all(nonnegative(state, i, depth - 1) for i in node.inputs)
    return False


def _real(match: Match, name: str) -> bool:
    return match.type(name).dtype.kind == "float"


def _changes_type(match: Match) -> str | None:
    if match.type("x") != match.out:
        return f"the constant widens {match.type('x')} to {match.out}"
    return None


def _is_not(value: float) -> Decline:
    def decline(match: Match) -> str | None:
        found = match.scalar("c")
        if found != value:
            return f"the constant '{match['c']}' is not {value:g} throughout"
        return _changes_type(match)
    return decline


def _take(name: str = "x") -> Make:
    return lambda match: match[name]


def _like(match: Match, name: str, value: float | int) -> str:
    """A scalar constant of the same dtype as a bound value."""
    return match.constant(np.asarray(value, match.type(name).dtype.numpy))


def _neutral(name: str, op: str, value: float) -> Rule:
    return Rule(name, P(op, "x", Const("c")), make=_take(), decline=_is_not(value))


# --- powers ---------------------------------------------------------------------------------------------------------

def _power(wanted: float) -> Decline:
    def decline(match: Match) -> str | None:
        if not _real(match, "x"):
            return f"its base is {match.type('x').dtype}"
        found = match.scalar("c")
        if found is None or abs(found - wanted) > 1e-9:
            return f"the exponent is not {wanted:g}"
        if wanted in (0.5, -0.5) and not nonnegative(match.state, match["x"]):
            return "the base may be negative: pow(-inf, 0.5) is inf and sqrt(-inf) is NaN"
        return _changes_type(match)
    return decline


def _root(match: Match) -> str:
    return match.add("Sqrt", match["x"])


POWERS = (
    Rule("power-of-one", P("Pow", "x", Const("c")), make=_take(), decline=_power(1.0)),
    Rule("square", P("Pow", "x", Const("c")), make=lambda m: m.add("Mul", m["x"], m["x"]), decline=_power(2.0)),
    Rule("cube", P("Pow", "x", Const("c")), make=lambda m: m.add("Mul", m.add("Mul", m["x"], m["x"]), m["x"]),
         decline=_power(3.0)),
    Rule("power-of-half", P("Pow", "x", Const("c")), make=_root, decline=_power(0.5)),
    Rule("power-of-minus-half", P("Pow", "x", Const("c")), make=lambda m: m.add("Reciprocal", _root(m)),
         decline=_power(-0.5)),
    Rule("power-of-minus-one", P("Pow", "x", Const("c")), make=lambda m: m.add("Reciprocal", m["x"]),
         decline=_power(-1.0)),
)


# --- a constant second operand in one form: x + c, x * c ------------------------------------------------------------

def _not_signed(match: Match) -> str | None:
    kind = match.type("x").dtype.kind
    return None if kind in ("float", "int") else f"{match.type('x').dtype} has no sign"


def _not_power_of_two(match: Match) -> str | None:
    if not _real(match, "x"):
        return f"{match.type('x').dtype} division rounds"
    array = np.abs(match.array("c").astype(np.float64))
    if not np.isfinite(array).all() or not (array > 0).all():
        return "the divisor is zero or not finite"
    fraction, power = np.frexp(array)
    if not (fraction == 0.5).all() or not (np.abs(power) < 100).all():
        return "the divisor is not a power of two: its reciprocal would round"
    return None


def _negated(match: Match) -> str:
    return match.add("Add", match["x"], match.constant(-match.array("c"), f"{match['c']}.negated"))


def _inverted(match: Match) -> str:
    array = match.array("c")
    return match.add("Mul", match["x"], match.constant((1 / array).astype(array.dtype), f"{match['c']}.inverted"))


def _combined(op: str) -> Make:
    """(x op a) op b -> x op (a op b)."""
    def make(match: Match) -> str:
        a, b = match.array("a"), match.array("b")
        both = (a + b if op == "Add" else a * b).astype(a.dtype)
        return match.add(op, match["x"], match.constant(both, f"{match['a']}.{op.lower()}"))
    return make


def _uncombinable(op: str) -> Decline:
    def decline(match: Match) -> str | None:
        a, b = match.array("a"), match.array("b")
        if a.dtype.kind not in "fi":
            return f"{match.type('a').dtype} is not combined"
        if match["x"] in match.state.constants:
            return "all its operands are constants: folding does it"
        shape = np.broadcast_shapes(a.shape, b.shape)
        if math.prod(shape) > max(a.size, b.size):
            return "the combined constant would be larger than both"
        with np.errstate(all="ignore"):
            both = a + b if op == "Add" else a * b
        if a.dtype.kind == "f":
            if not np.isfinite(both).all() or not np.isfinite(a).all() or not np.isfinite(b).all():
                return "the combined constant is not finite"
            if op == "Mul" and ((both == 0) & (a != 0) & (b != 0)).any():
                return "the combined constant underflows"
        return None
    return decline


CONSTANT_OPERANDS = (
    Rule("subtract-constant", P("Sub", "x", Const("c")), make=_negated, decline=_not_signed),
    Rule("divide-by-power-of-two", P("Div", "x", Const("c")), make=_inverted, decline=_not_power_of_two),
    Rule("add-of-add", P("Add", P("Add", "x", Const("a"), bind="inner"), Const("b")),
         make=_combined("Add"), decline=_uncombinable("Add")),
    Rule("mul-of-mul", P("Mul", P("Mul", "x", Const("a"), bind="inner"), Const("b")),
         make=_combined("Mul"), decline=_uncombinable("Mul")),
)


# --- conditions -----------------------------------------------------------------------------------------------------

def spread(match: Match, value: str, shape: tuple[Dim, ...]) -> str:
    """The value itself where it has the shape, else an Expand to it."""
    return value if match.state.types[value].shape == shape else match.add("Expand", value, shape=shape)


def _unknown_condition(match: Match) -> str | None:
    return None if match.scalar("c") is not None else "the condition is not the same throughout"


def _chosen(match: Match) -> str:
    return spread(match, match["a"] if match.scalar("c") else match["b"], match.out.shape)


def _logical(name: str, op: str, value: int) -> Rule:
    def decline(match: Match) -> str | None:
        return None if match.scalar("c") == value else f"the constant is not {bool(value)} throughout"
    return Rule(name, P(op, "x", Const("c")), make=lambda m: spread(m, m["x"], m.out.shape), decline=decline)


def _small_enough(match: Match) -> str | None:
    """Two branches that are scalars choose between two numbers; x in {0, 1} of the same dtype is a plain Cast."""
    a, b = match.scalar("a"), match.scalar("b")
    return None if (a, b) == (1.0, 0.0) and match.type("c").shape == match.out.shape else "it is not a choice of 1 or 0"


CONDITIONS = (
    Rule("where-known", P("Where", Const("c"), "a", "b"), make=_chosen, decline=_unknown_condition),
    Rule("where-of-not", P("Where", P("Not", "c"), "a", "b"),
         make=lambda m: m.add("Where", m["c"], m["b"], m["a"])),
    Rule("where-same", P("Where", "c", "a", "a"), make=lambda m: spread(m, m["a"], m.out.shape)),
    Rule("where-one-or-zero", P("Where", "c", Const("a"), Const("b")), decline=_small_enough,
         make=lambda m: m.add("Cast", m["c"], to=m.out.dtype.name)),
    _logical("and-true", "And", 1),
    _logical("or-false", "Or", 0),
    Rule("not-of-not", P("Not", P("Not", "x", bind="inner", shared=True)), make=_take()),
)


# --- clipping -------------------------------------------------------------------------------------------------------

def _bound(match: Match, name: str, default: float) -> float | None:
    return match.scalar(name) if match[name] else default


def _clip_limits(match: Match) -> tuple[float, float] | None:
    found = [_bound(match, n, d) for n, d in
             (("low", -math.inf), ("high", math.inf), ("low2", -math.inf), ("high2", math.inf))]
    if any(f is None for f in found):
        return None
    low, high, low2, high2 = (f for f in found if f is not None)
    return min(max(low, low2), high2), min(max(high, low2), high2)


def _unknown_limit(match: Match) -> str | None:
    return None if _clip_limits(match) else "a limit is not one known number"


def _clip(match: Match, low: float, high: float) -> str:
    if low == 0 and math.isinf(high):
        return match.add("Relu", match["x"])
    return match.add("Clip", match["x"], "" if math.isinf(low) else _like(match, "x", low),
                     "" if math.isinf(high) else _like(match, "x", high))


def _clip_of_clip(match: Match) -> str:
    limits = _clip_limits(match)
    return _clip(match, *(limits or (-math.inf, math.inf)))


def _relu_of_clip(match: Match) -> str:
    low, high = _bound(match, "low", -math.inf), _bound(match, "high", math.inf)
    return _clip(match, max(low or 0.0, 0.0), max(high or 0.0, 0.0))


CLIPS = (
    Rule("relu-of-relu", P("Relu", P("Relu", "x", bind="inner", shared=True)),
         make=lambda m: m.node("inner").output),
    Rule("relu-of-clip", (P("Relu", P("Clip", "x", "low?", "high?")), P("Clip", P("Relu", "x"), "low?", "high?")),
         make=_relu_of_clip, decline=lambda m: _unknown_limit(m) or (
             "its upper limit is below zero" if (_bound(m, "high", 0.0) or 0.0) < 0.0 else None)),
    Rule("clip-of-clip", P("Clip", P("Clip", "x", "low?", "high?", bind="inner"), "low2?", "high2?"),
         make=_clip_of_clip, decline=_unknown_limit),
    Rule("clip-without-limits", P("Clip", "x", "low?", "high?"), make=_take(),
         decline=lambda m: None if not m["low"] and not m["high"] else "it has a limit"),
    Rule("clip-from-zero", P("Clip", "x", Const("low"), "high?"), make=lambda m: m.add("Relu", m["x"]),
         decline=lambda m: "it is not a Relu" if m["high"] or m.scalar("low") != 0 or not _real(m, "x") else None),
    Rule("min-of-max", P("Min", P("Max", "x", Const("low")), Const("high")),
         make=lambda m: _clip(m, m.scalar("low") or 0.0, m.scalar("high") or 0.0),
         decline=lambda m: _not_a_clip(m)),
    Rule("max-of-min", P("Max", P("Min", "x", Const("high")), Const("low")),
         make=lambda m: _clip(m, m.scalar("low") or 0.0, m.scalar("high") or 0.0),
         decline=lambda m: _not_a_clip(m)),
)


def _not_a_clip(match: Match) -> str | None:
    low, high = match.scalar("low"), match.scalar("high")
    if low is None or high is None:
        return "a limit is not one number"
    if not low <= high:
        return "the limits cross"
    return _changes_type(match)


# --- signs, single operands -----------------------------------------------------------------------------------------

def _one_input(match: Match) -> str | None:
    count = len(match.root.inputs)
    return None if count == 1 else f"it has {count} inputs"


NEUTRAL = (
    _neutral("add-zero", "Add", 0.0),
    _neutral("subtract-zero", "Sub", 0.0),
    _neutral("times-one", "Mul", 1.0),
    _neutral("divide-by-one", "Div", 1.0),
    Rule("neg-of-neg", P("Neg", P("Neg", "x", bind="inner", shared=True)), make=_take()),
    Rule("abs-of-neg", P("Abs", P("Neg|Abs", "x", bind="inner", shared=True)), make=lambda m: m.add("Abs", m["x"])),
    Rule("add-of-neg", P("Add", "x", P("Neg", "y", shared=True)), make=lambda m: m.add("Sub", m["x"], m["y"])),
    Rule("subtract-neg", P("Sub", "x", P("Neg", "y", shared=True)), make=lambda m: m.add("Add", m["x"], m["y"])),
    Rule("only-one", P("Sum|Max|Min|Mean", "*"), make=lambda m: m.root.inputs[0], decline=_one_input),
    Rule("sum-of-two", P("Sum", "x", "y"), make=lambda m: m.add("Add", m["x"], m["y"])),
    Rule("sum-of-many", P("Sum", "*"), make=lambda m: reduce(lambda a, b: m.add("Add", a, b), m.root.inputs),
         decline=lambda m: None if len(m.root.inputs) > 2 else "it has no more than two inputs"),
)


RULES = (*NEUTRAL, *POWERS, *CONSTANT_OPERANDS, *CONDITIONS, *CLIPS)
