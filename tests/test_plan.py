"""Memory plans: lives that overlap never share bytes; little more than the largest live set."""
import itertools
import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ingot.graph import F32, Symbol, TensorType, symbol
from ingot.kernels import Operand, Site, Step
from ingot.lower import Launch, Program, View
from ingot.plan import plan_memory, pointwise_in_place
from ingot.plan.placement import Block, largest_live, place

N = symbol("N")


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(st.integers(1, 50), st.integers(0, 20), st.integers(0, 6)), min_size=1, max_size=40))
def test_blocks_that_live_together_never_share_bytes(raw: list[tuple[int, int, int]]) -> None:
    blocks = [Block(size * 64, first, first + life) for size, first, life in raw]
    bound, live = largest_live(blocks, 30)
    offsets, total = place(blocks, bound, effort=20_000)
    assert max(live) == bound <= total
    assert total == max(o + b.size for o, b in zip(offsets, blocks, strict=True))
    for i, (a, x) in enumerate(zip(blocks, offsets, strict=True)):
        assert x >= 0
        assert x % 64 == 0
        for b, y in zip(blocks[:i], offsets, strict=False):
            if a.first <= b.last and b.first <= a.last:
                assert x + a.size <= y or y + b.size <= x


def op(name: str, reads: tuple[str, ...], writes: tuple[str, ...], types: dict[str, TensorType]) -> Launch:
    step = Step(name, tuple(range(len(reads))), (), tuple(types[w] for w in writes))
    return Launch(Site((step,), tuple(Operand(types[r]) for r in reads), tuple(Operand(types[w]) for w in writes)),
                  reads, writes)


def program(lines: list[tuple[str, tuple[str, ...], tuple[str, ...]]], types: dict[str, TensorType],
            outputs: tuple[str, ...], views: dict[str, View] | None = None) -> Program:
    launches = tuple(op(*line, types) for line in lines)
    return Program(("x",), outputs, launches, views or {}, {}, types, {"N": Symbol("N", 1, 2, 4)})


def pointwise(launch: Launch) -> list[int]:
    """As the plan's own rule, for the op Relu alone, so that the tests need no declared ops."""
    return [i for i, o in enumerate(launch.site.inputs)
            if launch.site.op == "Relu" and o.type == launch.site.output]


T = TensorType(F32, (N, 16))


def test_a_chain_takes_turns_and_is_planned_for_the_largest_size() -> None:
    names = ["x", *"abcd", "y"]
    plan = plan_memory(program([("MatMul", (p,), (q,)) for p, q in itertools.pairwise(names)],
                               dict.fromkeys(names, T), ("y",)), [(0, 0)] * 5)
    assert plan.sizes["a"] == 4 * 16 * 4
    assert plan.arena == plan.lower_bound == 2 * 256
    assert set(plan.offsets) == set("abcd")         # x and y are the caller's
    assert plan.live == (256, 512, 512, 512, 256)


def test_a_pointwise_result_takes_the_place_of_its_dying_operand() -> None:
    lines = [("MatMul", ("x",), ("a",)), ("Relu", ("a",), ("b",)), ("Relu", ("b",), ("c",)), ("MatMul", ("c",), ("y",))]
    plan = plan_memory(program(lines, dict.fromkeys("xabcy", T), ("y",)), [(0, 0)] * 4, in_place=pointwise)
    assert plan.reused == {"b": "a", "c": "b"}
    assert plan.arena == plan.lower_bound == 256
    assert len({plan.offsets[v] for v in "abc"}) == 1


def test_nothing_is_overwritten_that_is_read_later_or_through_a_view() -> None:
    types = dict.fromkeys("xabcvy", T)
    later = [("MatMul", ("x",), ("a",)), ("Relu", ("a",), ("b",)), ("Add", ("a", "b"), ("y",))]
    plan = plan_memory(program(later, types, ("y",)), [(0, 0)] * 3, in_place=pointwise)
    assert not plan.reused
    views = {"v": View("a")}
    later = [("MatMul", ("x",), ("a",)), ("Relu", ("a",), ("b",)), ("Add", ("v", "b"), ("y",))]
    plan = plan_memory(program(later, types, ("y",), views), [(0, 0)] * 3, in_place=pointwise)
    assert not plan.reused
    assert abs(plan.offsets["a"] - plan.offsets["b"]) >= 256
    both = [("MatMul", ("x",), ("a",)), ("Relu", ("a", "v"), ("b",)), ("Add", ("b",), ("y",))]
    assert not plan_memory(program(both, types, ("y",), views), [(0, 0)] * 3, in_place=pointwise).reused


def test_what_shares_storage_with_an_output_lies_outside_the_arena() -> None:
    lines = [("MatMul", ("x",), ("a",)), ("Relu", ("v",), ("b",)), ("MatMul", ("b",), ("y",))]
    plan = plan_memory(program(lines, dict.fromkeys("xavby", T), ("y", "v"), {"v": View("a")}), [(0, 0)] * 3,
                       in_place=pointwise)
    assert set(plan.offsets) == {"b"}
    assert not plan.reused


def test_parts_written_into_one_buffer_keep_it_alive_from_the_first() -> None:
    types = {**dict.fromkeys(("x", "p", "q", "t", "y"), T), "c": TensorType(F32, (2 * N, 16))}
    views = {"p": View("c"), "q": View("c", N * 64)}
    lines = [("MatMul", ("x",), ("p",)), ("MatMul", ("x",), ("t",)), ("Relu", ("t",), ("q",)),
             ("MatMul", ("c",), ("y",))]
    plan = plan_memory(program(lines, types, ("y",), views), [(0, 0)] * 4, in_place=pointwise)
    assert plan.live == (512, 768, 768, 512)
    assert not plan.reused                            # q is only a part of c


def test_workspaces_are_planned_for_their_launch_alone() -> None:
    lines = [("MatMul", ("x",), ("a",)), ("MatMul", ("a",), ("y",))]
    plan = plan_memory(program(lines, dict.fromkeys("xay", T), ("y",)), [(N * 100, 10), (1000, 0)], threads=3)
    assert plan.live == (256 + 448 + 64, 256 + 1024)
    assert plan.arena == plan.lower_bound == 1280
    a, (w, s) = plan.offsets["a"], plan.workspaces[0]
    spans = sorted([(a, a + 256), (w, w + 448), (s, s + 64)])
    assert all(p[1] <= q[0] for p, q in itertools.pairwise(spans))


@pytest.mark.parametrize("seed", range(5))
def test_random_programs_stay_near_the_lower_bound(seed: int) -> None:
    rng = random.Random(seed)
    types, lines, alive = {"x": T}, [], ["x"]
    for i in range(80):
        types[f"v{i}"] = TensorType(F32, (N, rng.choice((16, 32, 64, 200, 512))))
        lines.append(("MatMul", tuple(rng.sample(alive[-4:], k=min(len(alive), 2))), (f"v{i}",)))
        alive.append(f"v{i}")
    plan = plan_memory(program(lines, types, ("v79",)), [(0, 0)] * 80)
    assert plan.arena <= 1.15 * plan.lower_bound
    assert plan == plan_memory(program(lines, types, ("v79",)), [(0, 0)] * 80)


def test_the_rule_for_pointwise_sites_asks_for_the_same_type() -> None:
    wide = {"x": T, "b": TensorType(F32, (16,)), "y": T}
    launch = op("Add", ("x", "b"), ("y",), wide)
    assert list(pointwise_in_place(launch)) == [0]
