"""LSTM, GRU and RNN: what they mean, with every attribute, and the recurrence that remains of them.

onnx.reference leaves out lengths, clipping, most activations and the input-forget coupling, so these are ours. What
does not depend on the step before, the product of all inputs with W, is split off by a pass; `Recurrence` is the rest.
"""
from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np

from ingot.graph import Dim, TensorType
from ingot.ops.op import REQUIRED, Attrs, Op, Types, declare
from ingot.ops.samples import f32, indices, values
from ingot.ops.shapes import given, same_dim

GATES: Mapping[str, int] = {"LSTM": 4, "GRU": 3, "RNN": 1}
DEFAULTS: Mapping[str, tuple[str, ...]] = {"LSTM": ("Sigmoid", "Tanh", "Tanh"), "GRU": ("Sigmoid", "Tanh"),
                                           "RNN": ("Tanh",)}
_ALPHA = {"LeakyRelu": 0.01, "ThresholdedRelu": 1.0, "ScaledTanh": 1.0, "HardSigmoid": 0.2, "Elu": 1.0, "Affine": 1.0}
_BETA = {"ScaledTanh": 1.0, "HardSigmoid": 0.5, "Affine": 0.0}
_NUMPY: Mapping[str, Callable[[np.ndarray, float, float], np.ndarray]] = {
    "Relu": lambda x, a, b: np.maximum(x, 0), "Tanh": lambda x, a, b: np.tanh(x),
    "Sigmoid": lambda x, a, b: 1 / (1 + np.exp(-x)), "Affine": lambda x, a, b: a * x + b,
    "LeakyRelu": lambda x, a, b: np.where(x < 0, a * x, x), "ThresholdedRelu": lambda x, a, b: np.where(x >= a, x, 0),
    "ScaledTanh": lambda x, a, b: a * np.tanh(b * x), "HardSigmoid": lambda x, a, b: np.clip(a * x + b, 0, 1),
    "Elu": lambda x, a, b: np.where(x >= 0, x, a * np.expm1(np.minimum(x, 0))),
    "Softsign": lambda x, a, b: x / (1 + np.abs(x)), "Softplus": lambda x, a, b: np.logaddexp(x, 0)}


def activations(attrs: Attrs) -> tuple[tuple[tuple[str, float, float], ...], ...]:
    """Per direction, each activation with its alpha and beta. Raises ValueError for an unknown one."""
    kind, directions = str(attrs["kind"]), 2 if attrs["direction"] == "bidirectional" else 1
    each = DEFAULTS[kind]
    named = attrs.get("activations")
    given_names = [n.decode() if isinstance(n, bytes) else str(n) for n in named] \
        if isinstance(named, (tuple, list)) and named else [*each] * directions
    if len(given_names) == 2 * len(each) and directions == 1:
        given_names = given_names[:len(each)]       # ONNX's default names those of two directions
    if len(given_names) != len(each) * directions:
        raise ValueError(f"{kind} needs {len(each) * directions} activations, got {len(given_names)}")
    alphas, betas = (list(v) if isinstance(v := attrs.get(k), (tuple, list)) else []
                     for k in ("activation_alpha", "activation_beta"))
    found: list[tuple[str, float, float]] = []
    for name in given_names:
        proper = next((k for k in _NUMPY if k.lower() == name.lower()), None)
        if proper is None:
            raise ValueError(f"the activation {name} is unknown")
        # the numbers are given, in order, to the activations that take one
        alpha = alphas.pop(0) if proper in _ALPHA and alphas else _ALPHA.get(proper, 0.0)
        beta = betas.pop(0) if proper in _BETA and betas else _BETA.get(proper, 0.0)
        found.append((proper, float(np.float32(alpha)), float(np.float32(beta))))
    return tuple(tuple(found[k * len(each):(k + 1) * len(each)]) for k in range(directions))


def reverses(attrs: Attrs) -> tuple[bool, ...]:
    """Per direction, whether it walks from the end."""
    return {"forward": (False,), "reverse": (True,), "bidirectional": (False, True)}[str(attrs["direction"])]


def _recurrence(types: Types, attrs: Attrs, outputs: int) -> tuple[TensorType, ...]:
    x, r = given(types[0]), given(types[1])
    gates, walks = GATES[str(attrs["kind"])], len(reverses(attrs))
    activations(attrs)
    hidden = r.shape[1]
    same_dim(r.shape[2], hidden * gates, "the gates of the recurrent weight")
    same_dim(x.shape[2], hidden * gates * walks, "the gates of the inputs")
    steps, batch = x.shape[:2]
    state: tuple[Dim, ...] = (walks, batch, hidden)
    return (TensorType(x.dtype, (steps, walks, batch, hidden)), *[TensorType(x.dtype, state)] * 2)[:outputs]


def recur(arrays: Sequence[np.ndarray | None], attrs: Attrs) -> list[np.ndarray]:
    """The recurrence in numpy: one step after another, all sequences of a batch at once."""
    x, weight, reset, lengths, h0, c0, peep = (*arrays, *[None] * 7)[:7]
    if x is None or weight is None:
        raise ValueError("an operand is absent")
    kind = str(attrs["kind"])
    steps, batch, _ = x.shape
    hidden, walks = weight.shape[1], reverses(attrs)
    ends = np.full(batch, steps) if lengths is None else np.clip(lengths, 0, steps)
    out = np.zeros((steps, len(walks), batch, hidden), x.dtype)
    last, cells = (np.zeros((len(walks), batch, hidden), x.dtype) for _ in range(2))
    bound = float(str(attrs["clip"] or 0.0))
    rows = np.arange(batch)
    for k, backwards in enumerate(walks):
        def act(n: int, v: np.ndarray, k: int = k) -> np.ndarray:
            name, alpha, beta = activations(attrs)[k][n]
            return _NUMPY[name](np.clip(v, -bound, bound) if bound else v, alpha, beta).astype(v.dtype)
        h = np.zeros((batch, hidden), x.dtype) if h0 is None else h0[k].copy()
        c = np.zeros((batch, hidden), x.dtype) if c0 is None else c0[k].copy()
        part = x.reshape(steps, batch, len(walks), -1)[:, :, k]
        for s in range(steps):
            live = s < ends
            at = np.where(live, ends - 1 - s if backwards else s, 0)
            gates = part[at, rows]
            new, cell = _step(kind, gates, h, c, weight[k], None if reset is None else reset[k],
                              None if peep is None else peep[k], act, attrs)
            h, c = np.where(live[:, None], new, h), np.where(live[:, None], cell, c)
            out[at[live], k, rows[live]] = h[live]
        last[k], cells[k] = h, c
    return [out, last, cells]


def _step(kind: str, x: np.ndarray, h: np.ndarray, c: np.ndarray, weight: np.ndarray, reset: np.ndarray | None,
          peep: np.ndarray | None, act: Callable[..., np.ndarray], attrs: Attrs) -> tuple[np.ndarray, np.ndarray]:
    hidden = h.shape[1]
    if kind == "RNN":
        return act(0, x + h @ weight), c
    if kind == "GRU":
        z, r = np.split(x[:, :2 * hidden] + h @ weight[:, :2 * hidden], 2, -1)
        z, r = act(0, z), act(0, r)
        own, over = x[:, 2 * hidden:], weight[:, 2 * hidden:]
        if attrs["linear_before_reset"]:
            new = act(1, own + r * (h @ over + (0 if reset is None else reset)))
        else:
            new = act(1, own + (r * h) @ over)
        return (1 - z) * new + z * h, c
    i, o, f, g = np.split(x + h @ weight, 4, -1)
    pi, po, pf = np.split(peep, 3) if peep is not None else (0, 0, 0)
    i = act(0, i + pi * c)
    f = 1 - i if attrs["input_forget"] else act(0, f + pf * c)
    cell = f * c + i * act(1, g)
    return act(0, o + po * cell) * act(2, cell), cell


def whole(kind: str) -> Callable[[Sequence[np.ndarray | None], Attrs], list[np.ndarray]]:
    """LSTM, GRU or RNN in numpy."""
    gates = GATES[kind]

    def run(arrays: Sequence[np.ndarray | None], attrs: Attrs) -> list[np.ndarray]:
        x, w, r, b, lengths, h0, c0, peep = (*arrays, *[None] * 8)[:8]
        if x is None or w is None or r is None:
            raise ValueError("an operand is absent")
        if attrs["layout"]:
            x = x.swapaxes(0, 1)
            h0, c0 = (None if v is None else v.swapaxes(0, 1) for v in (h0, c0))
        hidden, reset = r.shape[2], None
        gated = np.concatenate([x @ w[k].T for k in range(w.shape[0])], axis=-1)
        if b is not None:
            own, other = b[:, :gates * hidden], b[:, gates * hidden:]
            if kind == "GRU" and attrs["linear_before_reset"]:
                reset = other[:, 2 * hidden:]
                other = np.concatenate([other[:, :2 * hidden], np.zeros_like(reset)], axis=1)
            gated = gated + (own + other).reshape(-1)
        rest = {k: attrs.get(k) for k in ("activations", "activation_alpha", "activation_beta", "clip", "direction")}
        made = recur([gated.astype(x.dtype), r.swapaxes(1, 2), reset, lengths, h0, c0, peep], {
            **rest, "kind": kind, "input_forget": attrs.get("input_forget", 0),
            "linear_before_reset": attrs.get("linear_before_reset", 0)})
        if attrs["layout"]:
            made = [made[0].transpose(2, 0, 1, 3), *(v.swapaxes(0, 1) for v in made[1:])]
        return made
    return run


_LSTM: Attrs = {"kind": "LSTM"}
declare(Op("Recurrence", "the steps of an LSTM, GRU or RNN, over the products of its inputs", (
    "gates", "weight", "reset_bias?", "lengths?", "initial_h?", "initial_c?", "peepholes?"), _recurrence,
    {"kind": REQUIRED, "activations": None, "activation_alpha": None, "activation_beta": None, "clip": None,
     "direction": "forward", "input_forget": 0, "linear_before_reset": 0}, outputs=3,
    evaluate=lambda arrays, attrs: recur(arrays, attrs), samples=(
    ((f32(5, 2, 28), values(1, 7, 28)), _LSTM),
    ((f32(4, 3, 136), values(2, 17, 68), None, indices(0, 5, 3, dtype="int32"), f32(2, 3, 17), f32(2, 3, 17),
      f32(2, 51)), {"kind": "LSTM", "direction": "bidirectional", "clip": 0.6}),
    ((f32(3, 2, 64), values(1, 16, 64)), {"kind": "LSTM", "direction": "reverse", "input_forget": 1,
                                          "activations": ("HardSigmoid", "Softsign", "ScaledTanh"),
                                          "activation_alpha": (0.3, 0.9), "activation_beta": (0.4, 0.8)}),
    ((f32(5, 2, 27), values(1, 9, 27)), {"kind": "GRU"}),
    ((f32(5, 2, 66), values(2, 11, 33), f32(2, 11), indices(0, 6, 2, dtype="int32"), f32(2, 2, 11)),
     {"kind": "GRU", "direction": "bidirectional", "linear_before_reset": 1}),
    ((f32(4, 3, 35), values(1, 35, 35)), {"kind": "RNN"}),
    *(((f32(3, 2, 20), values(2, 10, 10)), {"kind": "RNN", "direction": "bidirectional", "activations": (a, b)})
      for a, b in (("Relu", "Elu"), ("LeakyRelu", "ThresholdedRelu"), ("Affine", "Softplus"), ("Sigmoid", "Tanh"))))))
