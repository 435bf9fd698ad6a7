"""Sessions: right answers at every size, and a clear complaint for every wrong input."""
import os
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).parent))
from handmade import ADD_SITE, KERNELS, NEG_SITE, ROW_SITE, SIN_SITE, engine, expected, loop

from ingot.errors import EngineError, InputError
from ingot.runtime import loader
from ingot.runtime.compiler import CodeCache
from ingot.runtime.host import host_target
from ingot.runtime.session import Session
from ingot.target import Target

pytestmark = pytest.mark.cpu
RNG = np.random.default_rng(0)


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> CodeCache:
    return CodeCache(tmp_path_factory.mktemp("cache") / "code")


@pytest.fixture(scope="module")
def session(cache: CodeCache) -> Session:
    return Session(engine(), cache=cache, kernels=KERNELS)


def feeds(n: int) -> dict[str, np.ndarray]:
    return {name: RNG.standard_normal((n, 4)).astype(np.float32) for name in ("x", "z")}


def right(found: dict[str, np.ndarray], given: dict[str, np.ndarray], middle: str = "Neg") -> bool:
    wanted = expected(given["x"], given["z"], middle)
    return found.keys() == wanted.keys() and all(np.allclose(found[k], wanted[k], 1e-6, 1e-6) for k in wanted)


@pytest.mark.parametrize("threads", [1, 2, 5])
def test_every_size_of_the_profile_is_right(cache: CodeCache, threads: int) -> None:
    session = Session(engine(), threads, cache=cache, kernels=KERNELS)
    for n in (8, 1, 32, 8, 7, 31):
        given = feeds(n)
        assert right(session.run(given), given)
        assert right(session.run(given["x"], given["z"]), given)


def test_a_launch_on_the_reference_runs_between_native_ones(cache: CodeCache) -> None:
    session = Session(engine(SIN_SITE), cache=cache, kernels=KERNELS)
    for n in (8, 3):
        given = feeds(n)
        assert right(session.run(given), given, "Sin")
        assert [launch for launch, _ in session.profile(given)] == [0, 2, 3]


def test_profile_gives_a_time_for_every_launch(session: Session) -> None:
    found = session.profile(feeds(8))
    assert [launch for launch, _ in found] == [0, 1, 2, 3]
    assert all(0 < seconds < 1 for _, seconds in found)


def test_arrays_that_are_not_dense_are_copied(session: Session) -> None:
    given = feeds(8)
    for twisted in (np.asfortranarray, lambda a: np.repeat(a, 2, 1)[:, ::2], lambda a: a[::-1].copy()[::-1],
                    lambda a: np.frombuffer(b"\0" + a.tobytes(), np.uint8)[1:].view(np.float32).reshape(a.shape)):
        assert right(session.run({k: twisted(a) for k, a in given.items()}), given)


def test_read_only_arrays_are_read(session: Session) -> None:
    given = feeds(8)
    for a in given.values():
        a.flags.writeable = False
    assert right(session.run(given), given)


def test_nan_and_inf_go_through(session: Session) -> None:
    given = feeds(8)
    given["x"][0], given["z"][1, 2] = np.nan, np.inf
    found = session.run(given)
    assert np.isnan(found["y"][0]).all()
    assert found["y"][1, 2] == np.inf
    assert not np.isnan(found["y"][1:]).any()


def test_tensors_of_torch_are_shared_through_dlpack(session: Session) -> None:
    torch = pytest.importorskip("torch")
    given = feeds(8)
    found = session.run({k: torch.from_numpy(a) for k, a in given.items()})
    assert right(found, given)
    assert torch.equal(torch.from_dlpack(found["y"]), torch.from_numpy(found["y"]))
    with pytest.raises(InputError, match="DLPack") as error:
        session.run({k: torch.from_numpy(a).requires_grad_() for k, a in given.items()})
    assert "detached" in error.value.mend


def test_out_receives_the_outputs(session: Session) -> None:
    given = feeds(8)
    out = {"b": np.full((8, 4), np.nan, np.float32)}
    found = session.run(given, out=out)
    assert found["b"] is out["b"]
    assert right(found, given)
    again = {"x": given["x"].copy(), "z": given["z"]}
    assert right(session.run(again, out={"y": again["x"]}), given)       # over an input: filled after the run


X = np.zeros((8, 4), np.float32)


@pytest.mark.parametrize(("given", "text", "mend"), [
    (({"x": X},), "'z' is missing", "pass {'z'"),
    (({"x": X, "z": X, "zz": X},), "no input 'zz'", "did you mean 'z'"),
    (({"x": X, "z": X, "image": X},), "no input 'image'", "name one of: x, z"),
    ((X,), "1 inputs are given, 2 are wanted", "in this order"),
    (({"x": X.astype(np.float64), "z": X},), "'x' is float64, not float32", "astype('float32')"),
    (({"x": X.astype(">f4"), "z": X},), "'x' is >f4", "astype('float32')"),
    (({"x": X.tolist(), "z": X},), "'x' is a list", "np.asarray"),
    (({"x": None, "z": X},), "'x' is a NoneType", "np.asarray"),
    (({"x": X[0], "z": X},), "has 1 axes, not 2", "reshape"),
    (({"x": np.zeros((8, 5), np.float32), "z": X},), r"shape \[8, 5\]", "that shape"),
    (({"x": X, "z": X[:7]},), "shape", "that shape"),
    (({"x": np.zeros((33, 4), np.float32), "z": np.zeros((33, 4), np.float32)},), "N = 33 is outside", "from 1 to 32"),
    (({"x": X[:0], "z": X[:0]},), "N = 0 is outside", "from 1 to 32"),
])
def test_a_wrong_input_is_explained(session: Session, given: tuple, text: str, mend: str) -> None:
    with pytest.raises(InputError, match=text) as error:
        session.run(*given)
    assert mend in error.value.mend
    assert error.value.why or error.value.where
    assert right(session.run(good := feeds(8)), good)       # and the session still works


@pytest.mark.parametrize(("out", "text"), [
    ({"yy": X}, "no output 'yy'"), ({"y": X.astype(np.float64)}, "float64"), ({"y": X[:7]}, r"\[7, 4\]"),
    ({"y": np.zeros((4, 8), np.float32).T}, "not dense"), ({"y": [1]}, "list"),
    ({"y": np.frombuffer(bytes(128), np.float32).reshape(8, 4)}, "read-only")])
def test_a_wrong_out_is_explained(session: Session, out: dict, text: str) -> None:
    with pytest.raises(InputError, match=text):
        session.run(X, X, out=out)


def test_an_engine_of_another_device_is_refused_by_the_session() -> None:
    with pytest.raises(EngineError, match="not built for this device") as error:
        Session(engine(target=Target("x86", "avx2", frozenset(), "other", "Another CPU", 64)))
    assert "Another CPU" in str(error.value)


def test_an_engine_for_another_number_of_threads_runs(cache: CodeCache) -> None:
    one = host_target(1)
    given = feeds(8)
    for made, asked, used in ((engine(target=one), None, 1), (engine(target=one), 2, 2),
                              (engine(target=host_target(64)), None, host_target().threads)):
        session = Session(made, asked, cache=cache, kernels=KERNELS)
        assert session.threads == used
        assert right(session.run(given), given)


def test_threads_share_a_session_and_sessions_share_code(cache: CodeCache) -> None:
    made = engine()
    sessions = [Session(made, cache=cache, kernels=KERNELS) for _ in range(3)]
    codes = {id(c) for s in sessions for c in s._codes}
    assert len(codes) == len(KERNELS)
    wrong: list[int] = []

    def call(i: int) -> None:
        for k in range(200):
            given = {name: np.full((1 + (i + k) % 32, 4), i + k, np.float32) for name in ("x", "z")}
            if not right(sessions[i % 3].run(given), given):
                wrong.append(i)

    callers = [threading.Thread(target=call, args=(i,)) for i in range(8)]
    for c in callers:
        c.start()
    for c in callers:
        c.join()
    assert not wrong


def test_a_warm_code_cache_needs_no_kernel_text(cache: CodeCache) -> None:
    given = feeds(4)
    assert right(Session(engine(), cache=cache, kernels=KERNELS).run(given), given)
    loader._loaded.codes.clear()
    assert right(Session(engine(), cache=cache).run(given), given)      # no tactic is called test.handmade


def test_kernels_of_one_name_are_told_apart(tmp_path: Path) -> None:
    same = {ADD_SITE.key: loop("same", "%r = fadd float %a, %b"), ROW_SITE.key: KERNELS[ROW_SITE.key],
            NEG_SITE.key: loop("same", "%r = fneg float %a", out=1, index="add i64 0, 0")}
    given = feeds(6)
    for kernels in (same, None):                        # compiled, then from the cache
        loader._loaded.codes.clear()
        assert right(Session(engine(), cache=CodeCache(tmp_path / "code"), kernels=kernels).run(given), given)


def test_a_code_entry_of_another_form_is_made_anew(tmp_path: Path) -> None:
    cache, given = CodeCache(tmp_path / "code"), feeds(6)
    made = engine()
    for key, choice in made.variants[0].choices.items():
        site = next(x.site for x in made.variants[0].program.launches if x.site.key == key)
        cache.put(loader.choice_key(site, choice, made.variants[0].target), b'{"name": "old"}\nnot an object')
    loader._loaded.codes.clear()
    assert right(Session(made, cache=cache, kernels=KERNELS).run(given), given)


def test_a_session_works_in_a_forked_child(session: Session) -> None:
    given = feeds(8)
    session.run(given)
    with session._lock:                 # as if another thread were in a run
        child = os.fork()
        if not child:
            os._exit(0 if all(right(session.run(given), given) for _ in range(50)) else 1)
    deadline = time.monotonic() + 30
    while time.monotonic() < deadline:
        done, status = os.waitpid(child, os.WNOHANG)
        if done:
            break
        time.sleep(0.01)
    else:
        os.kill(child, 9)
        os.waitpid(child, 0)
        pytest.fail("the child hangs")
    assert os.waitstatus_to_exitcode(status) == 0
