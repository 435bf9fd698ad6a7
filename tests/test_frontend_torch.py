"""PyTorch in: modules, programs and files become engines that are right, or the build says why not."""
import io
import json
import pickle
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

import ingot
from ingot.errors import InputError, ModelError, UnsupportedError, VerifyError
from ingot.frontend import source_from
from ingot.verify import Verdict, accept

FAST = ingot.BuildOptions(tune=False)
pytestmark = [pytest.mark.cpu, pytest.mark.filterwarnings("ignore")]


class Small(nn.Module):
    """A convolution, batch norm, dropout and a head; two inputs, two outputs by name."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm, self.drop = nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.Dropout(0.5)
        self.head = nn.Sequential(nn.Linear(8, 5), nn.ReLU())

    def forward(self, image, offset):
        pooled = self.drop(self.norm(self.conv(image))).mean((2, 3))
        return {"score": self.head(pooled), "pooled": pooled + offset}


class Branch(nn.Module):
    def forward(self, x):
        if x.sum() > 0:
            x = x * 2
        return x + 1


def small() -> Small:
    torch.manual_seed(0)
    return Small().eval()


EXAMPLE = (torch.randn(1, 3, 12, 12, generator=torch.Generator().manual_seed(1)), torch.ones(1, 8))


def test_a_module_becomes_an_engine_at_every_batch_size():
    module = small()
    engine = ingot.build(module, EXAMPLE, FAST, dynamic="1..2..8")
    verdict = Verdict.from_json(engine.verdict)
    assert verdict.passed and verdict.original.startswith("PyTorch")
    assert verdict.notes[0].startswith("export by torch.export: right")
    assert {c.inputs for c in verdict.cases} >= {"given inputs 1", "random at batch=2", "random at batch=3"}
    session = ingot.Session(engine)
    for batch in (1, 5):
        image, offset = torch.randn(batch, 3, 12, 12), torch.randn(batch, 8)
        with torch.no_grad():
            wanted = module(image, offset)
        got = session.run({"image": image.numpy(), "offset": offset.numpy()})
        assert got.keys() == wanted.keys()
        for name in wanted:
            np.testing.assert_allclose(got[name], wanted[name].numpy(), rtol=1e-4, atol=1e-5)


def test_arguments_by_name_nested_and_plain():
    class Nested(nn.Module):
        def forward(self, pair, scale=2.0, *, shift):
            return pair[0] * scale + pair["1" if isinstance(pair, dict) else 1] + shift

    a, b, c = (torch.randn(2, 3) for _ in range(3))
    engine = ingot.build(Nested(), {"pair": (a, b), "scale": 3.0, "shift": c}, FAST)
    assert set(engine.graph.inputs) == {"pair_0", "pair_1", "shift"}
    got = ingot.Session(engine).run({"pair_0": a.numpy(), "pair_1": b.numpy(), "shift": c.numpy()})
    np.testing.assert_allclose(got["output"], (a * 3 + b + c).numpy(), rtol=1e-6)


def test_nodes_carry_the_module_and_the_line():
    graph = accept(source_from(small(), EXAMPLE)).graph
    origins = [n.origin[0] for n in graph.nodes]
    assert any(o.startswith("head.0 (test_frontend_torch.py:") for o in origins)


def test_a_module_in_training_mode_is_named_and_left_so():
    module = small().train()
    before = {k: v.clone() for k, v in module.state_dict().items()}
    verdict = Verdict.from_json(ingot.build(module, EXAMPLE, FAST).verdict)
    alarm = next(n for n in verdict.notes if "training mode" in n)
    assert "drop (Dropout)" in alarm and "norm (BatchNorm2d)" in alarm and "module.eval()" in alarm
    assert verdict.passed and module.training and module.drop.training
    assert all(torch.equal(v, before[k]) for k, v in module.state_dict().items())


def test_random_numbers_in_evaluation_mode_are_named():
    class Noisy(nn.Module):
        def forward(self, x):
            return nn.functional.dropout(x, 0.5)

    with pytest.raises(VerifyError) as error:
        ingot.build(Noisy(), torch.ones(4, 64), FAST)
    assert "dropout draws random numbers" in str(error.value) and "test_frontend_torch.py" in str(error.value)


def test_a_branch_that_tracing_froze_is_named_with_an_input_and_a_mend():
    with pytest.raises(VerifyError) as error:
        ingot.build(Branch(), torch.ones(2, 3), FAST)
    text = str(error.value)
    assert "test_frontend_torch.py" in error.value.where and "if x.sum() > 0" in error.value.where
    assert "torch.where" in text and "torch.cond" in text
    assert "True there, False for the example, negated" in text and "[-1, -1, -1, ...]" in text


def test_a_branch_that_makes_no_difference_is_told_and_not_grave():
    class Kept(nn.Module):
        def forward(self, x):
            if x.sum() > 0:         # a check that changes nothing
                pass
            return torch.where(x.sum() > 0, x * 2, x) + 1

    verdict = Verdict.from_json(ingot.build(Kept(), torch.ones(2, 3), FAST).verdict)
    assert verdict.passed
    assert not any("frozen branch" in n for n in verdict.notes)


@pytest.mark.parametrize("alarm", ["frozen branch", "frozen value"])
def test_a_number_that_tracing_took_from_data_is_named_with_its_line(monkeypatch, alarm):
    from ingot.frontend.torch import module as at

    class Scaled(nn.Module):
        def forward(self, x):
            return x * float(x.max()) if alarm == "frozen branch" else x * int(x.abs().max() >= 0)  # False only for NaN

    def refuse(*arguments, **more):
        raise UnsupportedError("taken away, so that the tracing exporter's result is judged")

    monkeypatch.setattr(at, "exported", refuse)
    with pytest.raises(VerifyError) as error:
        ingot.build(Scaled(), torch.ones(2, 3), FAST)
    assert alarm in str(error.value) and "return x * float(x.max())" in error.value.where
    assert "torch.where" in error.value.mend


def test_when_one_exporter_is_wrong_the_other_is_taken_and_the_report_says_so(monkeypatch):
    from ingot.frontend.torch import module as at
    right = at.exported

    def wrong(*arguments, **more):
        proto, alarms = right(*arguments, **more)
        for node in proto.graph.node:
            if node.op_type == "Relu":
                node.op_type = "Abs"
        return proto, alarms

    monkeypatch.setattr(at, "exported", wrong)
    verdict = Verdict.from_json(ingot.build(small(), EXAMPLE, FAST).verdict)
    assert verdict.passed
    assert "WRONG" in verdict.notes[0] and "score" in verdict.notes[0]
    assert verdict.notes[1].startswith("export by TorchScript tracing: right")


def test_an_exported_program_in_its_file(tmp_path):
    module = small()
    batch = torch.export.Dim("n", min=1, max=6)
    program = torch.export.export(module, tuple(t.repeat(2, *[1] * (t.ndim - 1)) for t in EXAMPLE),
                                  dynamic_shapes=({0: batch}, {0: batch}))
    torch.export.save(program, tmp_path / "model.pt2")
    engine = ingot.build(tmp_path / "model.pt2", options=FAST)
    (symbol,) = engine.graph.symbols.values()
    assert (symbol.min, symbol.max) == (1, 6)
    assert engine.verdict["passed"]
    got = ingot.Session(engine).run(*(np.repeat(t.numpy(), 3, 0) for t in EXAMPLE))
    with torch.no_grad():
        wanted = module(*(t.repeat(3, *[1] * (t.ndim - 1)) for t in EXAMPLE))
    np.testing.assert_allclose(got["score"], wanted["score"].numpy(), rtol=1e-4, atol=1e-5)


def test_a_torchscript_file_needs_shapes_alone(tmp_path):
    module = nn.Sequential(nn.Linear(4, 3), nn.ReLU()).eval()
    torch.jit.trace(module, torch.randn(2, 4)).save(str(tmp_path / "model.pt"))
    engine = ingot.build(tmp_path / "model.pt", {"input": "batch=1..2..8x4"}, FAST)
    x = np.random.default_rng(0).standard_normal((5, 4)).astype(np.float32)
    got = ingot.Session(engine).run(x)
    with torch.no_grad():
        np.testing.assert_allclose(next(iter(got.values())), module(torch.from_numpy(x)).numpy(), rtol=1e-5, atol=1e-6)


def test_a_pickled_module_or_state_dict_is_refused_with_a_mend(tmp_path):
    torch.save(small().state_dict(), tmp_path / "weights.pth")
    torch.save(nn.Linear(2, 2), tmp_path / "module.pt")
    (tmp_path / "old.pt").write_bytes(pickle.dumps({"a": 1}))
    for name in ("weights.pth", "module.pt", "old.pt"):
        with pytest.raises(ModelError) as error:
            ingot.build(tmp_path / name, options=FAST)
        assert "weights_only=True" in error.value.mend


class Evil:
    def __reduce__(self):
        return (Path.touch, (Path("EVIL"),))


def test_no_pickled_code_of_a_file_runs(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    torch.save({"state_dict": Evil()}, "evil.ckpt")
    with pytest.raises(ModelError, match="more than weights"):
        ingot.build(small(), EXAMPLE, FAST, weights="evil.ckpt")
    torch.export.save(torch.export.export(nn.ReLU(), (torch.ones(2),)), "good.pt2")
    held = io.BytesIO()
    torch.save((Evil(), {}), held)
    rewritten("good.pt2", "evil.pt2", lambda name, data: held.getvalue() if name.endswith(".pt") else data)
    with pytest.raises(ModelError, match="more than a program"):
        ingot.build("evil.pt2", options=FAST)
    assert not Path("EVIL").exists()


@pytest.mark.parametrize(("old", "new", "told"), [
    ("torch.ops.aten.relu.default", "torch.hub.load", "not one of PyTorch's own"),
    ("torch.ops.aten.relu.default", "_operator.__class__", "not one of PyTorch's own")])
def test_a_program_of_other_operators_is_refused(tmp_path, old, new, told):
    torch.export.save(torch.export.export(nn.ReLU(), (torch.ones(2),)), tmp_path / "good.pt2")
    rewritten(tmp_path / "good.pt2", tmp_path / "bad.pt2", lambda name, data: data.replace(old.encode(), new.encode()))
    with pytest.raises(ModelError, match=told):
        ingot.build(tmp_path / "bad.pt2", options=FAST)


def test_only_arithmetic_is_evaluated():
    from ingot.frontend.torch.files import _arithmetic
    assert all(map(_arithmetic, ("s0", "s77 + 1", "2*s0", "FloorDiv(s0, 2)", "Max(1, s3 - 1)", "4", "1.5")))
    assert not any(map(_arithmetic, ("__import__('os').system('x')", "exec", "s0.__class__", "(1).__class__", "open",
                                     "s0.func", "lambda", "(s0).subs")))


def rewritten(source, target, change) -> None:
    """The archive with each entry changed."""
    with zipfile.ZipFile(source) as before, zipfile.ZipFile(target, "w") as after:
        for info in before.infolist():
            after.writestr(info.filename, change(info.filename, before.read(info)))


def test_a_checkpoint_of_lightning_goes_into_its_module(tmp_path):
    trained, fresh = small(), Small().eval()
    torch.save({"state_dict": trained.state_dict(), "epoch": 3, "hyper_parameters": {"width": 8}}, tmp_path / "a.ckpt")
    engine = ingot.build(fresh, EXAMPLE, FAST, weights=tmp_path / "a.ckpt")
    got = ingot.Session(engine).run(*(t.numpy() for t in EXAMPLE))
    with torch.no_grad():
        np.testing.assert_allclose(got["score"], trained(*EXAMPLE)["score"].numpy(), rtol=1e-4, atol=1e-5)
    with pytest.raises(ModelError, match="not this module's"):
        ingot.build(nn.Linear(2, 2), torch.ones(1, 2), FAST, weights=tmp_path / "a.ckpt")


def test_what_is_asked_wrongly_is_said():
    with pytest.raises(InputError, match="needs example inputs"):
        ingot.build(small(), options=FAST)
    with pytest.raises(InputError, match="no input 'nobody'"):
        ingot.build(small(), EXAMPLE, FAST, dynamic={"nobody": {0: "batch"}})
    with pytest.raises(InputError, match="fails on the example"):
        ingot.build(small(), (torch.ones(1, 4, 12, 12), torch.ones(1, 8)), FAST)
    with pytest.raises(InputError, match="go with a model of a framework"):
        ingot.build("model.onnx", torch.ones(1), FAST)


def test_two_symbols_with_their_own_ranges():
    class Two(nn.Module):
        def forward(self, x, y):
            return torch.relu(x @ y)

    engine = ingot.build(Two(), (torch.randn(2, 4), torch.randn(4, 3)), FAST,
                         dynamic={"x": {0: "rows=1..4..9"}, "y": {1: "columns=2..3..8"}})
    assert sorted(map(str, engine.graph.symbols.values())) == ["columns: 2..3..8", "rows: 1..4..9"]
    x, y = np.ones((7, 4), np.float32), np.ones((4, 5), np.float32)
    np.testing.assert_allclose(ingot.Session(engine).run(x, y)["output"], np.full((7, 5), 4.0))


def test_the_report_survives_the_engine_file(tmp_path):
    engine = ingot.build(small(), EXAMPLE, FAST)
    ingot.save(engine, tmp_path / "a.ingot")
    assert json.loads(json.dumps(dict(ingot.load(tmp_path / "a.ingot").verdict)))["notes"][0].startswith("export by")
