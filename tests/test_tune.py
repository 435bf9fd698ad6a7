"""The race: a wrong kernel never wins, a slow one neither; anytime; caches merge and survive damage."""
import fcntl
import itertools
import json
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).parent))
from handmade import ADD_SITE, KERNELS, NEG_SITE, ROW_SITE, SYMBOLS, T, graph, loop, program

from ingot.engine import Engine, make_variant
from ingot.errors import CandidateError, UnsupportedError
from ingot.graph import F32, I64, TensorType
from ingot.kernels import TACTICS, Kernel, Operand, Params, Site, Step, Tactic
from ingot.lower import Launch, Program
from ingot.runtime.bench import CpuDevice, undisturbed
from ingot.runtime.compiler import CodeCache
from ingot.runtime.host import host_target
from ingot.runtime.session import Session
from ingot.target import Target
from ingot.tune import Choice, Progress, Trial, TuningCache, tune
from ingot.tune.clock import race
from ingot.tune.lock import timing_turn
from ingot.tune.sample import difference, overwritable, sample_inputs, sum_length

TARGET = host_target(2)

SLOW = "%s0 = fadd float %a, 0.0\n" + "".join(
    f"  %s{k + 1} = call float @llvm.sin.f32(float %s{k})\n" for k in range(60)) + """  %z = fmul float %s60, 0.0
  %a1 = fadd float %a, %z
  %r = fadd float %a1, %b"""
WRONG: dict[str, Kernel] = {
    "numbers": loop("wrong", "%r = fadd float %a, 1.0"),
    "barely": loop("barely", "%q = fadd float %a, %b\n  %r = fmul float %q, 0x3FF0010000000000"),
    "unwritten": Kernel("none", loop("none", "%r = fadd float %a, %b").code.replace(
        "%n = mul i64 %n0, 4", "%m = mul i64 %n0, 4\n  %n = sub i64 %m, 1"), ("none",)),
    "outside": Kernel("far", loop("far", "%r = fadd float %a, %b").code.replace(
        "%n = mul i64 %n0, 4", "%m = mul i64 %n0, 4\n  %n = add i64 %m, 1"), ("far",)),
    "one_thread": Kernel("one", loop("one", "%r = fadd float %a, %b").code.replace(
        "add i64 %i, %threads", "add i64 %i, 3"), ("one",)),
    "only_one_thread": Kernel("only", loop("only", "%r = fadd float %a, %b").code.replace(
        "[%thread, %entry]", "[%twice, %entry]").replace("%n0 = load", "%twice = mul i64 %thread, 2\n  %n0 = load"),
        ("only",)),
    "over_its_input": Kernel("over", loop("over", "%r = fadd float %a, %b").code.replace(
        "store float %r, ptr %op", "store float %r, ptr %op\n  store float %r, ptr %ap"), ("over",)),
    "refused": Kernel("refused", "define nonsense", ("refused",)),
}


class Handmade(Tactic):
    """Kernels by number: the wrong ones come first, and all are faster than the right slow one."""

    name = "test.handmade"

    def declines(self, site: Site, target: Target) -> str | None:
        return None if site.key in KERNELS else "it was not written by hand"

    def space(self, site: Site, target: Target) -> Iterator[Params]:
        yield from ({"kernel": k} for k in range(len(WRONG) + 2 if site == ADD_SITE else 1))

    def emit(self, site: Site, params: Params, target: Target) -> Kernel:
        if site != ADD_SITE:
            return KERNELS[site.key]
        k = params["kernel"]
        if k == len(WRONG):
            slow = loop("slow", SLOW)
            return Kernel("slow", "declare float @llvm.sin.f32(float)\n" + slow.code, slow.phases)
        return [*WRONG.values(), None, KERNELS[site.key]][k]


@pytest.fixture
def handmade(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(TACTICS, "x86", (Handmade(),))


@pytest.mark.cpu
def test_a_wrong_kernel_never_wins_and_neither_does_a_slow_one(handmade: None) -> None:
    found = tune(program(), TARGET, CpuDevice(TARGET))
    choice = found.choices[ADD_SITE.key]
    assert choice.tuned
    assert choice.params == {"kernel": len(WRONG) + 1}
    notes = {t.params["kernel"]: t for t in choice.trials}
    for k, name in enumerate(WRONG):
        assert notes[k].note, name
        assert notes[k].seconds is None, name
    assert "outside" in notes[list(WRONG).index("outside")].note
    assert "2 threads" in notes[list(WRONG).index("only_one_thread")].note
    assert notes[len(WRONG)].seconds > notes[len(WRONG) + 1].seconds > 0
    assert (found.raced, found.cached, found.untuned, found.interrupted) == (3, 0, 0, False)


class WrongAtOpt(Handmade):
    """Right at small sizes, wrong at the size it is tuned at: only the first sixteen elements are computed."""

    def space(self, site: Site, target: Target) -> Iterator[Params]:
        yield from ({"kernel": k} for k in (0, 1))

    def emit(self, site: Site, params: Params, target: Target) -> Kernel:
        right = KERNELS[site.key]
        if params["kernel"]:
            return right
        return Kernel(right.name, right.code.replace("%n = mul i64 %n0, 4", "%n = add i64 0, 12"), right.phases)


@pytest.mark.cpu
def test_a_kernel_that_is_wrong_only_at_the_tuned_size_never_wins(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(TACTICS, "x86", (WrongAtOpt(),))
    found = tune(program(), TARGET, CpuDevice(TARGET))
    for choice in found.choices.values():
        assert choice.params == {"kernel": 1}


@pytest.mark.cpu
def test_a_site_without_a_right_kernel_says_why(monkeypatch: pytest.MonkeyPatch) -> None:
    class AllWrong(Handmade):
        def space(self, site: Site, target: Target) -> Iterator[Params]:
            yield from itertools.islice(super().space(site, target), len(WRONG))
    monkeypatch.setitem(TACTICS, "x86", (AllWrong(),))
    with pytest.raises(UnsupportedError, match="no right kernel for Add") as error:
        tune(program(), TARGET, CpuDevice(TARGET))
    assert any("wrong by" in why for why in error.value.why)


@pytest.mark.cpu
def test_without_a_budget_each_site_takes_its_default(handmade: None) -> None:
    for found in (tune(program(), TARGET), tune(program(), TARGET, CpuDevice(TARGET), budget=0)):
        assert [c.tactic for c in found.choices.values()] == ["test.handmade"] * 3
        assert found.untuned == 3


@pytest.mark.cpu
def test_when_the_budget_ends_every_site_has_a_right_kernel(handmade: None) -> None:
    ticks = itertools.count()
    seen: list[Progress] = []
    found = tune(program(), TARGET, CpuDevice(TARGET), budget=3, clock=lambda: float(next(ticks)), progress=seen.append)
    assert set(found.choices) == {ROW_SITE.key, NEG_SITE.key, ADD_SITE.key}
    assert found.choices[ADD_SITE.key].params["kernel"] >= len(WRONG)
    assert found.untuned == 3
    assert seen[-1].total == 3
    assert seen[-1].left == 0


@pytest.mark.cpu
def test_an_interrupted_race_keeps_what_it_has_and_resumes(handmade: None, tmp_path: Path) -> None:
    calls = itertools.count()

    def interrupt(progress: Progress) -> None:
        if next(calls) == 4:            # three sites have their first kernel, one has raced
            raise KeyboardInterrupt
    cache = TuningCache(tmp_path, TARGET, "v")
    found = tune(program(), TARGET, CpuDevice(TARGET), cache, progress=interrupt)
    assert found.interrupted
    assert (found.raced, found.untuned, len(found.choices)) == (1, 2, 3)
    again = tune(program(), TARGET, CpuDevice(TARGET), TuningCache(tmp_path, TARGET, "v"))
    assert (again.cached, again.raced, again.untuned) == (1, 2, 0)
    last = tune(program(), TARGET, None, TuningCache(tmp_path, TARGET, "v"))
    assert last.cached == 3
    assert last.choices == again.choices


def test_a_cached_choice_outside_the_space_is_not_taken(handmade: None, tmp_path: Path) -> None:
    cache = TuningCache(tmp_path, TARGET, "v")
    cache.put(Choice(NEG_SITE.key, "test.handmade", {"kernel": 99}, 1e-6, True))
    cache.put(Choice(ROW_SITE.key, "test.gone", {"kernel": 0}, 1e-6, True))
    cache.put(Choice(ADD_SITE.key, "test.handmade", {"kernel": 3}, 1e-6, True))
    assert tune(program(), TARGET, None, TuningCache(tmp_path, TARGET, "v")).cached == 1


# --- in place -----------------------------------------------------------------------------------------------------

MIXED = Site((Step("Neg", (0,), (), (T,)), Step("Add", (~0, 1), (), (T,))), (Operand(T), Operand(T)), (Operand(T),),
             tuple(SYMBOLS.values()))
AT_ONCE = loop("at_once", "%m = fneg float %a\n  %r = fadd float %m, %b")
FIRST = loop("first", "%r = fneg float %a")
SECOND = loop("second", "%o = load float, ptr %later\n  %r = fadd float %o, %b")
IN_TWO = Kernel("in_two", FIRST.code + SECOND.code.replace(
    "%o = load", "%later = getelementptr float, ptr %o.p, i64 %i\n  %o = load"), ("first", "second"))


class Mixed(Handmade):
    """Negates and adds, at once or in two passes over the output."""

    def __init__(self, kernel: Kernel) -> None:
        self.kernel = kernel

    def declines(self, site: Site, target: Target) -> str | None:
        return None if site == MIXED else "another site"

    def space(self, site: Site, target: Target) -> Iterator[Params]:
        yield {}

    def emit(self, site: Site, params: Params, target: Target) -> Kernel:
        return self.kernel


def mixed_program() -> Program:
    """y = -(-x + t) + (-x + t), with t = -x + x: t dies at its second reader, x is the caller's."""
    launches = tuple(Launch(MIXED, reads, (out,)) for reads, out in (
        (("x", "z"), "t"), (("x", "t"), "u"), (("x", "u"), "v"), (("z", "v"), "y")))
    return Program(("x", "z"), ("y",), launches, {}, {}, dict.fromkeys("xztuvy", T), SYMBOLS)


@pytest.mark.cpu
@pytest.mark.parametrize(("kernel", "in_place", "reused"), [(AT_ONCE, (0, 1), 2), (IN_TWO, (0,), 0)])
def test_a_result_takes_an_operands_memory_only_where_that_was_found_right(
        kernel: Kernel, in_place: tuple[int, ...], reused: int, monkeypatch: pytest.MonkeyPatch,
        tmp_path: Path) -> None:
    monkeypatch.setitem(TACTICS, "x86", (Mixed(kernel),))
    cache = TuningCache(tmp_path, TARGET, "v")
    found = tune(mixed_program(), TARGET, CpuDevice(TARGET), cache)
    assert found.choices[MIXED.key].in_place == in_place
    assert TuningCache(tmp_path, TARGET, "v").get(MIXED.key) == found.choices[MIXED.key]
    made = make_variant(mixed_program(), TARGET, found.choices, found.kernels)
    assert len(made.plan.reused) == reused
    session = Session(Engine("mixed", graph(), (made,)), 2, variant=made, cache=CodeCache(tmp_path / "code"))
    x, z = (np.random.default_rng(k).standard_normal((7, 4)).astype(np.float32) for k in (0, 1))
    u = -x + (-x + z)
    assert np.allclose(session.run(x, z)["y"], -z + (-x + u), 1e-5, 1e-5)


def test_only_what_is_read_where_it_is_written_may_be_overwritten() -> None:
    norm = Step("LayerNormalization", (0, 1), (), (T,))
    scale = Operand(TensorType(F32, (4,)), None, True)
    assert overwritable(MIXED) == [0, 1]
    assert overwritable(Site((norm,), (Operand(T), scale), (Operand(T),))) == [0]
    product = Step("MatMul", (0, 1), (), (T,))
    square = Operand(TensorType(F32, (4, 4)))
    assert overwritable(Site((product,), (Operand(T), square), (Operand(T),))) == []
    residual = Site((product, Step("Add", (~0, 0), (), (T,))), (Operand(T), square), (Operand(T),))
    assert overwritable(residual) == []             # the main step reads it whole
    assert overwritable(Site(residual.steps, residual.inputs, (Operand(T, (8, 1)),))) == []


# --- the cache ------------------------------------------------------------------------------------------------------

CHOICES = [Choice(f"{i:016x}", "t", {"rows": i, "columns": 8}, i * 1e-6, True,
                  (Trial("t", {"rows": i, "columns": 8}, i * 1e-6), Trial("u", {}, None, "wrong by 3")))
           for i in range(20)]


def filled(folder: Path, choices: list[Choice]) -> TuningCache:
    cache = TuningCache(folder, TARGET, "v")
    for choice in choices:
        cache.put(choice)
    return cache


def test_caches_of_several_machines_merge_by_copying_files(tmp_path: Path) -> None:
    filled(tmp_path / "a", CHOICES[:12])
    filled(tmp_path / "b", CHOICES[8:])
    for name in "ab":
        for file in (tmp_path / name).iterdir():
            (tmp_path / "both").mkdir(exist_ok=True)
            (tmp_path / "both" / f"{name}.jsonl").write_bytes(file.read_bytes())
    merged = TuningCache(tmp_path / "both", TARGET, "v")
    assert merged.skipped == 0
    assert [merged.get(c.site) for c in CHOICES] == CHOICES
    assert [merged.get(c.site).trials for c in CHOICES] == [c.trials for c in CHOICES]


def test_lines_of_another_device_or_generator_do_not_count(tmp_path: Path) -> None:
    filled(tmp_path, CHOICES)
    assert not TuningCache(tmp_path, host_target(64), "v").choices
    other = TuningCache(tmp_path, TARGET, "w")
    assert not other.choices
    assert other.skipped == 0


def test_damage_costs_lines_never_the_build(tmp_path: Path) -> None:
    filled(tmp_path, CHOICES)
    file, = tmp_path.iterdir()
    raw = file.read_bytes()
    rng = np.random.default_rng(0)
    for cut in rng.integers(0, len(raw), 40):
        file.write_bytes(raw[:cut])
        cache = TuningCache(tmp_path, TARGET, "v")
        assert all(c in CHOICES for c in cache.choices.values())
        cache.put(CHOICES[19])                      # after a torn line, still readable
        assert TuningCache(tmp_path, TARGET, "v").get(CHOICES[19].site) == CHOICES[19]
    for at in rng.integers(0, len(raw), 60):
        file.write_bytes(raw[:at] + bytes([rng.integers(0, 256)]) + raw[at + 1:])
        assert all(c in CHOICES for c in TuningCache(tmp_path, TARGET, "v").choices.values())
    lines = [b"\xff\xfe\0garbage", b"[[[[", b"{}", b"[" * 100_000, json.dumps({"check": 1, "body": 2}).encode()]
    file.write_bytes(b"\n".join(lines))
    broken = TuningCache(tmp_path, TARGET, "v")
    assert not broken.choices
    assert broken.skipped == 5
    file.unlink()
    file.mkdir()                                    # a folder where a file should be
    TuningCache(tmp_path, TARGET, "v").put(CHOICES[0])


def test_the_timing_lock_is_held_and_given_back(tmp_path: Path) -> None:
    def free() -> bool:
        handle = os.open(tmp_path / "timing.lock", os.O_RDWR)
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        finally:
            os.close(handle)
        return True

    with timing_turn(tmp_path):
        assert not free()
    assert free()
    with pytest.raises(KeyboardInterrupt), timing_turn(tmp_path):
        raise KeyboardInterrupt
    assert free()
    with timing_turn(None), timing_turn(Path("/proc/nowhere")):
        pass


# --- the clock ------------------------------------------------------------------------------------------------------

def timer(seconds: float, rng: np.random.Generator, noise: float):
    def run(times: int) -> float:
        slow = 1 + noise * rng.random() + (20 * noise if rng.random() < noise else 0)     # now and then, much slower
        return times * seconds * slow
    return run


@pytest.mark.parametrize("seed", range(20))
def test_the_race_finds_the_fastest_on_a_noisy_machine(seed: int) -> None:
    rng = np.random.default_rng(seed)
    speeds = [1e-3 * (1 + 0.06 * k) for k in rng.permutation(12)]
    times, winner = race([timer(s, rng, 0.05) for s in speeds])
    assert winner == int(np.argmin(speeds))
    assert all(t is not None and t >= s for t, s in zip(times, speeds, strict=True))


def test_among_equals_the_first_wins() -> None:
    rng = np.random.default_rng(0)
    for _ in range(10):
        assert race([timer(1e-4, rng, 0.0001) for _ in range(5)])[1] == 0


def test_a_race_stops_at_its_deadline() -> None:
    ticks = itertools.count()
    times, winner = race([timer(1e-4, np.random.default_rng(0), 0)] * 9, 3.5, clock=lambda: float(next(ticks)))
    assert winner == 0
    assert times[0] is not None
    assert times[-1] is None


def test_a_disturbed_block_is_measured_again(monkeypatch: pytest.MonkeyPatch) -> None:
    pushed = iter([0, 3, 3, 3])         # involuntary switches before and after each of two measurements
    times = iter([9e-3, 2e-3, 1e-3])
    monkeypatch.setattr("resource.getrusage", lambda who: SimpleNamespace(ru_nivcsw=next(pushed)))
    assert undisturbed(lambda count: next(times), 1) == 2e-3
    pushed, times = itertools.count(), iter([1e-2, 2e-2, 1.0])      # always disturbed: patience ends
    assert undisturbed(lambda count: next(times), 1) == 1e-2


# --- inputs and tolerance -------------------------------------------------------------------------------------------

def test_inputs_are_the_same_each_time_and_indices_stay_inside() -> None:
    data, indices = TensorType(F32, (5, 3)), TensorType(I64, (100,))
    site = Site((Step("Gather", (0, 1), (("axis", 0),), (TensorType(F32, (100, 3)),)),),
                (Operand(data), Operand(indices)), (Operand(TensorType(F32, (100, 3))),))
    first, second = sample_inputs(site, {}), sample_inputs(site, {})
    assert all(np.array_equal(a, b) for a, b in zip(first, second, strict=True))
    assert 0 <= first[1].min() <= first[1].max() < 3


def test_the_images_that_regions_are_of_are_there() -> None:
    """The race of a RoiAlign once asked the reference for images beyond the batch."""
    types = TensorType(F32, (1, 4, 8, 8)), TensorType(F32, (50, 4)), TensorType(I64, (50,))
    out = TensorType(F32, (50, 4, 2, 2))
    site = Site((Step("RoiAlign", (0, 1, 2), (), (out,)),), tuple(map(Operand, types)), (Operand(out),))
    assert not sample_inputs(site, {})[2].any()


def test_the_sum_of_a_product_counts_its_depth() -> None:
    site = Site((Step("MatMul", (0, 1), (), (TensorType(F32, (4, 8)),)),),
                (Operand(TensorType(F32, (4, 512))), Operand(TensorType(F32, (512, 8)))),
                (Operand(TensorType(F32, (4, 8))),))
    assert 512 <= sum_length(site, {}) < 600


@pytest.mark.parametrize(("found", "wanted", "same"), [
    ([1.0, 2.0], [1.0, 2.0], True), ([1.0, 2.1], [1.0, 2.0], False), ([np.nan, 2.0], [1.0, 2.0], False),
    ([np.nan, 2.0], [np.nan, 2.0], True), ([np.inf, 1.0], [np.inf, 1.0], True), ([np.inf, 1.0], [-np.inf, 1.0], False),
    ([np.inf, 1.0], [3e38, 1.0], False), ([1e-9, 1.0], [0.0, 1.0], True)])
def test_results_are_compared_with_care_for_nan_and_inf(found: list[float], wanted: list[float], same: bool) -> None:
    assert (difference(np.array(found, np.float32), np.array(wanted, np.float32), 1e-5) is None) is same


def test_candidate_errors_are_the_only_ones_a_race_swallows(monkeypatch: pytest.MonkeyPatch) -> None:
    class Broken(Handmade):
        def emit(self, site: Site, params: Params, target: Target) -> Kernel:
            if params.get("kernel") == 0:
                raise CandidateError("too many registers")
            raise ZeroDivisionError
    monkeypatch.setitem(TACTICS, "x86", (Broken(),))
    with pytest.raises(UnsupportedError) as error:
        tune(program(), TARGET)
    assert "too many registers" in str(error.value)
    broken = Broken()
    broken.space = lambda site, target: iter([{"kernel": 1}])
    monkeypatch.setitem(TACTICS, "x86", (broken,))
    with pytest.raises(ZeroDivisionError):
        tune(program(), TARGET)
