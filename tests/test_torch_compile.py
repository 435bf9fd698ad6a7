"""torch.compile with Ingot behind it: right answers always; what is not served is named."""
import tomllib
import warnings
from pathlib import Path

import pytest
import torch
from torch import nn

from ingot.compiler.torch_backend import GRAPHS, NotServedWarning, ingot_backend

pytestmark = [pytest.mark.cpu, pytest.mark.filterwarnings("ignore::DeprecationWarning"),
              pytest.mark.filterwarnings("ignore::UserWarning")]


@pytest.fixture(autouse=True)
def fresh():
    torch._dynamo.reset()
    GRAPHS.served, GRAPHS.engines, GRAPHS.left = 0, 0, []
    with torch.no_grad():
        yield


def net() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 5), nn.BatchNorm1d(5), nn.ReLU(), nn.Linear(5, 4)).eval()


def close(a, b) -> None:
    torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)


def test_a_module_is_served_and_sizes_that_vary_share_an_engine():
    module = net()
    compiled = torch.compile(module, backend=ingot_backend)
    for batch in (2, 5, 7, 9, 2, 1):
        x = torch.randn(batch, 6)
        close(compiled(x), module(x))
    assert GRAPHS.left == []
    assert GRAPHS.engines <= 3          # batch 2, the symbolic one, and 1, which Dynamo specialises


def test_past_its_range_a_wider_engine_is_built():
    module = net()
    compiled = torch.compile(module, backend=ingot_backend, dynamic=True)
    for batch in (3, 100, 5):
        x = torch.randn(batch, 6)
        close(compiled(x), module(x))
    assert GRAPHS.engines == 2 and GRAPHS.left == []


def test_graph_breaks_are_fine():
    module = net()

    def call(x):
        y = module(x)
        torch._dynamo.graph_break()
        return y.sum(0), torch.relu(y) * x.shape[0]

    compiled = torch.compile(call, backend=ingot_backend)
    x = torch.randn(3, 6)
    for got, wanted in zip(compiled(x), call(x), strict=True):
        close(got, wanted)
    assert GRAPHS.served == 2


def test_changed_weights_change_the_answer():
    module = net()
    compiled = torch.compile(module, backend=ingot_backend)
    x = torch.randn(3, 6)
    close(compiled(x), module(x))
    module[0].weight.mul_(2)
    close(compiled(x), module(x))
    assert GRAPHS.engines == 2


def test_weights_that_keep_changing_are_left_to_pytorch():
    module = net()
    compiled = torch.compile(module, backend=ingot_backend)
    x = torch.randn(3, 6)
    with warnings.catch_warnings(record=True) as noticed:
        warnings.simplefilter("always")
        for _ in range(6):
            close(compiled(x), module(x))
            module[0].bias.add_(1)
    assert any(w.category is NotServedWarning and "weights keep changing" in str(w.message) for w in noticed)


def test_gradients_are_left_to_pytorch_with_a_warning():
    module = net()
    compiled = torch.compile(module, backend=ingot_backend)
    x = torch.randn(3, 6)
    with torch.enable_grad(), pytest.warns(NotServedWarning, match="gradients"):
        compiled(x).sum().backward()
    assert module[0].weight.grad is not None
    close(compiled(x), module(x))       # under no_grad it is served
    assert GRAPHS.served == 1


def test_what_cannot_be_exported_is_named_and_still_right():
    def call(x):
        return torch.linalg.svd(x)[1] + 1

    compiled = torch.compile(call, backend=ingot_backend)
    x = torch.randn(4, 4)
    with pytest.warns(NotServedWarning, match="svd"):
        got = compiled(x)
    close(got, call(x))


def test_a_graph_that_writes_into_its_input_is_left_to_pytorch():
    def call(x):
        x.add_(1)
        return x * 2

    compiled = torch.compile(call, backend=ingot_backend)
    x, y = torch.zeros(3), torch.zeros(3)
    with pytest.warns(NotServedWarning, match="in place"):
        close(compiled(x), call(y))
    close(x, y)


def test_random_numbers_are_left_to_pytorch():
    def call(x):
        return nn.functional.dropout(x, 0.5, training=True)

    compiled = torch.compile(call, backend=ingot_backend)
    with pytest.warns(NotServedWarning, match="random"):
        compiled(torch.ones(64))


def test_two_sizes_at_once():
    def call(x, y):
        return torch.softmax(x @ y, -1)

    compiled = torch.compile(call, backend=ingot_backend, dynamic=True)
    for rows, columns in ((3, 4), (5, 7), (2, 9)):
        x, y = torch.randn(rows, 8), torch.randn(8, columns)
        close(compiled(x, y), call(x, y))
    assert GRAPHS.left == [] and GRAPHS.engines == 1


def test_the_entry_point_names_this_backend():
    project = tomllib.loads((Path(__file__).parents[1] / "pyproject.toml").read_text())["project"]
    where = project["entry-points"]["torch_dynamo_backends"]["ingot"]
    assert where == f"{ingot_backend.__module__}:{ingot_backend.__name__}"


def test_it_is_found_by_its_name(tmp_path, monkeypatch):
    """As installed: the entry point of a distribution on the path."""
    info = tmp_path / "ingot_entry-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: ingot-entry\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(
        "[torch_dynamo_backends]\ningot = ingot.compiler.torch_backend:ingot_backend\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    from torch._dynamo.backends import registry
    registry._lazy_import.cache_clear()
    for cached in (registry._discover_entrypoint_backends,):
        cached.cache_clear() if hasattr(cached, "cache_clear") else cached()
    registry._discover_entrypoint_backends()
    module = net()
    x = torch.randn(3, 6)
    close(torch.compile(module, backend="ingot")(x), module(x))
    assert GRAPHS.served == 1
