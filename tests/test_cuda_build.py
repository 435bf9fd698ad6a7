"""Builds for a GPU, without one: races on a driver that records, engines on files, keys, and the wrong GPU."""
from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from ingot import env
from ingot.cli import main
from ingot.compiler.gpu import build_gpu, merged, tune_engine
from ingot.compiler.options import BuildOptions
from ingot.compiler.stages import Clock, Dump
from ingot.engine import Engine, opened, read_engine, write_engine
from ingot.engine.code import Bundle, kernel_from_bytes, kernel_to_bytes
from ingot.engine.signing import distrust_key, keys, new_key, require_trust, signed, trust_key
from ingot.errors import EngineError, InputError
from ingot.graph import F16, Graph, parse, parse_dim
from ingot.kernels import TACTICS
from ingot.kernels.cuda import CudaKernel, CudaLaunch, Pointer, Scalar, TensorMap
from ingot.ops import infer
from ingot.ops.reference import run_graph
from ingot.runtime.cuda.driver import Facts
from ingot.runtime.cuda.open import open_cuda
from ingot.runtime.cuda.target import cuda_target, variant_on
from ingot.target import Target
from ingot.tune import generator_version
from tests.fake_cuda import H200, FakeDriver, SiteTactic
from tests.test_cuda_session import CONV, feeds

pytest.importorskip("cryptography")
B200 = replace(H200, name="NVIDIA B200", architecture="sm_100")
SM90 = BuildOptions(target="cuda:sm_90", precision="f32", points=2)


@pytest.fixture(autouse=True)
def tactic(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[SiteTactic]:
    monkeypatch.setenv("INGOT_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("INGOT_KEYS", str(tmp_path / "keys"))
    # compiled here, not in worker processes, which know nothing of this tactic
    monkeypatch.setattr("ingot.runtime.cuda.code.CodeStore.prefetch", lambda self, wanted: 0)
    before = TACTICS["cuda"]
    TACTICS["cuda"] = (made := SiteTactic(),)
    yield made
    TACTICS["cuda"] = before


def model() -> Graph:
    from textwrap import dedent
    return parse(dedent(CONV), infer)


def built(options: BuildOptions = SM90, driver: FakeDriver | None = None) -> Engine:
    return build_gpu(model(), options, Clock(), Dump(None), driver=driver, name="test").engine


def through_file(engine: Engine, folder: Path) -> Engine:
    write_engine(engine, folder / "a.ingot")
    return read_engine(folder / "a.ingot")


def elsewhere(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """From here on it is another machine: nothing is cached, no key is known."""
    monkeypatch.setenv("INGOT_CACHE", str(folder / "other-cache"))
    monkeypatch.setenv("INGOT_KEYS", str(folder / "other-keys"))


def test_on_a_gpu_sites_are_raced_and_the_engine_is_verified():
    driver = FakeDriver()
    engine = built(replace(SM90, target="cuda"), driver)
    variant = opened(engine.variants[0])
    assert engine.verdict["passed"] and all(c.tuned for c in variant.choices.values())
    assert variant.target.device == "NVIDIA H200" and variant.target.fact("multiprocessors", 0) == 132
    given = feeds(2)
    found = open_cuda(engine, driver=driver).run(given)["o"]
    wanted = run_graph(engine.graph, given)["o"]
    assert np.abs(found - wanted).max() <= 1e-5 * np.abs(wanted).max()


def test_without_a_gpu_it_is_cross_compiled_and_says_so(tmp_path: Path):
    engine = through_file(built(), tmp_path)
    variant = opened(engine.variants[0])
    assert variant.target.device == "" and not any(c.tuned for c in variant.choices.values())
    assert engine.verdict == {} and variant.report["tuned"] is False
    assert {c.site for c in variant.code.kernels} == set(variant.choices)


def test_half_precision_is_verified_within_its_own_tolerance():
    engine = built(replace(SM90, target="cuda", precision="f16"), FakeDriver())
    assert engine.verdict["passed"]
    assert all("(f16)" in c["source"] for c in engine.verdict["cases"])     # type: ignore[index]


def test_a_file_gives_back_the_code_that_was_written(tmp_path: Path):
    engine = built()
    again = opened(through_file(engine, tmp_path).variants[0])
    assert again.code.digest == opened(engine.variants[0]).code.digest
    kernel = CudaKernel("k", "", (), parse_dim("N*4"), launches=(CudaLaunch(
        "entry", b"\x7fELF...", (parse_dim("N+1"), 2, 1), 128, 1024, (
            Pointer(0, parse_dim("N*2")), Scalar(0.125, "f32"), Scalar(parse_dim("N"), "i64"), Scalar(7), TensorMap(
                1, F16, (parse_dim("N"), 64), (64, 1), (64, 64), 128, 0, (-1, -1), (-1, -1), (2, 2))),
        2, True),), counters=16, data=b"abc")
    assert kernel_from_bytes(kernel_to_bytes(kernel)) == kernel


def test_an_operand_that_is_not_aligned_stays_so_in_a_file(tmp_path: Path):
    engine = built()
    variant = opened(engine.variants[0])
    first = variant.program.launches[0]
    site = replace(first.site, inputs=(replace(first.site.inputs[0], aligned=False), *first.site.inputs[1:]))
    program = replace(variant.program, launches=(replace(first, site=site), *variant.program.launches[1:]))
    again = opened(through_file(replace(engine, variants=(replace(variant, program=program),)), tmp_path).variants[0])
    assert again.program.launches[0].site.key == site.key


def test_carried_code_runs_only_when_its_signer_is_trusted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    key = new_key(env.keys_folder())
    engine = through_file(built(), tmp_path)
    elsewhere(tmp_path, monkeypatch)
    with pytest.raises(EngineError, match="a key that is not trusted here") as refused:
        open_cuda(engine, driver=FakeDriver())
    assert key.public in str(refused.value) and "ingot key trust" in str(refused.value)
    open_cuda(engine, driver=FakeDriver(), trust=True).run(feeds(1))
    trust_key(env.keys_folder(), key.public, "builder")
    open_cuda(engine, driver=FakeDriver()).run(feeds(1))
    distrust_key(env.keys_folder(), "builder")
    with pytest.raises(EngineError, match="not trusted"):
        open_cuda(engine, driver=FakeDriver())


def test_code_that_nobody_signed_wants_explicit_trust(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    engine = through_file(built(), tmp_path)
    elsewhere(tmp_path, monkeypatch)
    with pytest.raises(EngineError, match="nobody has signed"):
        open_cuda(engine, driver=FakeDriver())
    open_cuda(engine, driver=FakeDriver(), trust=True).run(feeds(1))


@pytest.mark.parametrize("trust", [False, True])
def test_a_changed_byte_of_signed_code_is_refused(trust: bool):
    folder = env.keys_folder()
    new_key(folder)
    bundle = opened(built().variants[0]).code
    require_trust(bundle, folder)

    def changed(**more: object) -> Bundle:
        first = bundle.kernels[0]
        launch = replace(first.kernel.launches[0], **more)      # type: ignore[arg-type]
        other = replace(first, kernel=replace(first.kernel, launches=(launch,)))
        return replace(bundle, kernels=(other, *bundle.kernels[1:]))

    cubin = bundle.kernels[0].kernel.launches[0].cubin
    for wrong in (changed(cubin=cubin[:-1] + b"x"), changed(threads=64), changed(grid=(2, 1, 1)),
                  changed(arguments=(Pointer(0, 64),)), replace(bundle, kernels=bundle.kernels[1:])):
        with pytest.raises(EngineError, match="not what was signed"):
            require_trust(wrong, folder, trust=trust)


def test_a_signature_of_another_key_is_no_signature():
    folder = env.keys_folder()
    new_key(folder, "one")
    bundle = opened(built().variants[0]).code
    assert bundle.signature is not None
    other = new_key(folder, "two")
    with pytest.raises(EngineError, match="not what was signed"):
        require_trust(replace(bundle, signature=replace(bundle.signature, key=other.public)), folder)


def test_candidates_travel_and_are_raced_where_nothing_can_be_compiled(tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
                                                                       tactic: SiteTactic):
    engine = through_file(built(replace(SM90, candidates=True)), tmp_path)
    variant = opened(engine.variants[0])
    assert len(variant.code.kernels) == 2 * len(variant.choices)
    elsewhere(tmp_path, monkeypatch)
    monkeypatch.setattr(tactic, "emit", None)           # there is no compiler
    driver = FakeDriver()
    made = tune_engine(engine, driver=driver, trust=True)
    tuned = opened(made.engine.variants[0])
    assert tuned.target.device == "NVIDIA H200" and all(c.tuned for c in tuned.choices.values())
    assert made.engine.verdict["passed"] and len(made.engine.variants) == 2
    again = through_file(made.engine, tmp_path)
    assert variant_on(again, driver, strict=True).target.device == "NVIDIA H200"
    open_cuda(again, driver=driver, trust=True).run(feeds(3))


def test_candidates_of_another_generator_are_not_raced(tmp_path: Path):
    engine = built(replace(SM90, candidates=True))
    old = replace(engine, variants=(replace(opened(engine.variants[0]), generator="0" * 12),))
    with pytest.raises(EngineError, match="another kernel generator") as refused:
        tune_engine(old, driver=FakeDriver(), trust=True)
    assert generator_version(Target("cuda")) in str(refused.value)


def test_the_wrong_gpu_is_told_what_was_found_what_is_wanted_and_the_command():
    engine = built(replace(SM90, target="cuda"), FakeDriver())
    with pytest.raises(EngineError) as refused:
        open_cuda(engine, driver=FakeDriver(B200))
    told = str(refused.value)
    assert "wanted: cuda:sm_90 (NVIDIA H200)" in told and "found: cuda:sm_100 (NVIDIA B200)" in told
    assert "ingot build MODEL --target cuda" in told
    with pytest.raises(EngineError, match="wants a GPU, and there is none here"):
        variant_on(engine, None)


def test_another_gpu_of_the_architecture_runs_it_unless_strict():
    engine = built(replace(SM90, target="cuda"), FakeDriver())
    h100 = Facts("NVIDIA H100 PCIe", "sm_90", "13.0", 114, 232448, 50 << 20, 80 << 30)
    open_cuda(engine, driver=FakeDriver(h100)).run(feeds(1))
    with pytest.raises(EngineError, match="was not built for this GPU"):
        open_cuda(engine, driver=FakeDriver(h100), strict=True)


def test_variants_for_several_devices_live_in_one_file(tmp_path: Path):
    first = built(replace(SM90, target="cuda:sm_100"))
    engine = through_file(merged(first, built(replace(SM90, target="cuda"), FakeDriver())), tmp_path)
    assert [str(t) for t in engine.targets] == ["cuda:sm_90 (NVIDIA H200)", "cuda:sm_100"]
    assert variant_on(engine, FakeDriver(B200)).target.isa == "sm_100"
    with pytest.raises(InputError, match="different models"):
        merged(first, replace(first, portable=replace(first.graph, outputs=("s",))))


def test_a_target_is_what_the_word_says():
    driver = FakeDriver()
    assert cuda_target("cuda", driver).device == "NVIDIA H200"
    assert cuda_target("cuda:sm_90a", None).isa == "sm_90"
    assert cuda_target("cuda:sm_80", driver).device == ""
    assert cuda_target("cuda", driver, tf32=True).fingerprint != cuda_target("cuda", driver).fingerprint
    for word, why in (("cuda", "there is no GPU here"), ("cuda:sm_12", "no architecture"), ("rocm", "no target")):
        with pytest.raises(InputError, match=why):
            cuda_target(word, None)


def test_keys_on_the_command_line(capsys: pytest.CaptureFixture[str], tmp_path: Path):
    assert main(["key", "list"]) == 0 and "no keys" in capsys.readouterr().out
    assert main(["key", "new"]) == 0
    own, = keys(env.keys_folder())
    assert own.private and own.public in capsys.readouterr().out
    secret = env.keys_folder() / "own.key"
    assert secret.stat().st_mode & 0o077 == 0
    (tmp_path / "b.pub").write_text("ab" * 32 + "\n")
    assert main(["key", "trust", str(tmp_path / "b.pub"), "--name", "b"]) == 0
    assert [k.name for k in keys(env.keys_folder())] == ["b", "own"]
    assert main(["key", "trust", "nonsense"]) == 1 and "64 hex digits" in capsys.readouterr().err
    assert main(["key", "new"]) == 1 and "already" in capsys.readouterr().err
    assert main(["key", "remove", "b"]) == 0 and main(["key", "remove", "b"]) == 1


def test_signing_without_a_key_leaves_code_unsigned():
    bundle = opened(built().variants[0]).code
    assert bundle.signature is None and signed(bundle, env.keys_folder()) is bundle
