"""LinearAttention by every rule, with shared heads and states, against the reference."""
from __future__ import annotations

from types import MappingProxyType

import pytest
from kernel_checks import check, targets

from ingot.graph import Node, TensorType
from ingot.kernels import Operand, Site, Step
from ingot.kernels.codegen import target_for
from ingot.kernels.x86.linear_attention import LinearAttention
from ingot.ops import infer
from ingot.ops.samples import f32
from ingot.runtime.compiler import assembly

Q, K, V, STATE = f32(2, 5, 24), f32(2, 5, 12), f32(2, 5, 38), f32(2, 2, 6, 19)
CASES = [("linear", (Q, K, V)), ("linear", (Q, K, V, STATE)), ("gated", (Q, K, V, STATE, f32(2, 5, 12))),
         ("gated", (Q, K, V, None, f32(2, 5, 2))), ("delta", (Q, K, V, None, None, f32(2, 5, 2))),
         ("gated_delta", (Q, K, V, STATE, f32(2, 5, 12), f32(2, 5, 1)))]


def site_of(rule: str, types: tuple[TensorType | None, ...]) -> Site:
    attrs = {"q_num_heads": 4, "kv_num_heads": 2, "update_rule": rule, "scale": 0.3}
    names = tuple("" if t is None else f"x{k}" for k, t in enumerate(types))
    outs = infer(Node("LinearAttention", names, ("y", "s"), MappingProxyType(attrs)), types)
    slots, inputs = [], []
    for t in types:
        slots.append(None if t is None else len(inputs))
        if t is not None:
            inputs.append(Operand(t))
    return Site((Step("LinearAttention", tuple(slots), tuple(sorted(attrs.items())), outs),), tuple(inputs),
                tuple(map(Operand, outs)))


@pytest.mark.cpu
@pytest.mark.parametrize(("rule", "types"), CASES)
def test_linear_attention(rule: str, types: tuple[TensorType | None, ...]) -> None:
    site = site_of(rule, types)
    for target in targets().values():
        assert LinearAttention().declines(site, target) is None
        check(LinearAttention(), site, {}, target, [None] * len(site.inputs), threads=2)


def test_linear_attention_compiles_for_neon() -> None:
    target = target_for("neon")
    assert "ret" in assembly(LinearAttention().emit(site_of(*CASES[5]), {}, target), target)
