"""OpenTelemetry: one span per request, its stages as events."""
import time
import urllib.request

import pytest

sdk = pytest.importorskip("opentelemetry.sdk.trace")
pytest.importorskip("yaml")
from opentelemetry import trace  # noqa: E402
from opentelemetry.sdk.trace.export import SimpleSpanProcessor  # noqa: E402
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter  # noqa: E402

from ingot.serve.spans import Spans  # noqa: E402
from ingot.serve.tensor import Answer, Request  # noqa: E402
from tests.serve_running import add_model, serving  # noqa: E402
from tests.test_serve_faults import double, post  # noqa: E402


def test_a_request_is_a_span_with_its_stages_in_order():
    kept = InMemorySpanExporter()
    provider = sdk.TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(kept))
    trace.set_tracer_provider(provider)
    now = time.perf_counter()
    request = Request("7", [], None)
    request.arrived, request.decode, request.taken, request.rows = now - 0.010, 0.001, now - 0.006, 3
    Spans().request(Answer("camera", "2", []), request, now, 0.002)
    span, = kept.get_finished_spans()
    assert dict(span.attributes) == {"model": "camera", "version": "2", "rows": 3, "tries": 1}
    assert [event.name for event in span.events] == ["decoded", "dispatched", "computed"]
    moments = [span.start_time, *(event.timestamp for event in span.events), span.end_time]
    assert [round((m - moments[0]) / 1e6) for m in moments] == [0, 1, 4, 8, 10]
    assert abs(span.end_time / 1e9 - time.time()) < 5


@pytest.mark.cpu
def test_a_server_with_spans_serves(tmp_path):
    add_model(tmp_path, "double")
    with serving(tmp_path, "--trace", log=tmp_path / ".log") as server:
        assert post(server, "/v2/models/double/infer", double())[0] == 200
        with urllib.request.urlopen(server.url + "/v2/health/ready", timeout=10) as answer:
            assert answer.status == 200
