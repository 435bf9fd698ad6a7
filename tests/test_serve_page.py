"""The status page, in a real browser."""
import shutil
import urllib.request

import pytest

pytest.importorskip("tritonclient.http")
playwright = pytest.importorskip("playwright.sync_api")
from tests.serve_running import add_model, serving  # noqa: E402
from tests.test_serve_faults import double, post  # noqa: E402

BROWSER = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
pytestmark = [pytest.mark.cpu, pytest.mark.skipif(not BROWSER, reason="there is no Chromium on this machine")]


def test_the_page_shows_models_latency_batches_and_what_is_off_profile(tmp_path):
    add_model(tmp_path, "double")
    with serving(tmp_path, log=tmp_path / ".log") as server, playwright.sync_playwright() as browsers:
        for rows in (1, 1, 3):
            assert post(server, "/v2/models/double/infer", double(rows=rows))[0] == 200
        browser = browsers.chromium.launch(executable_path=BROWSER, args=["--no-sandbox"])
        page = browser.new_page()
        faults = []
        page.on("pageerror", lambda error: faults.append(str(error)))
        page.goto(server.url + "/")
        card = page.locator("section[data-model=double]")
        card.wait_for(timeout=20000)
        assert page.locator("#ready").inner_text() == "ready"
        assert card.locator("[data-fact=requests]").inner_text() == "3"
        assert card.locator("[data-fact=p99]").inner_text().endswith("ms")
        assert card.locator("[data-fact=\"off the tuned shape\"]").inner_text() == "33.3 %"
        assert card.locator(".bars").first.inner_text().split() == ["1", "2", "3", "1"]
        assert post(server, "/v2/models/double/infer", double())[0] == 200
        page.wait_for_function("document.querySelector('[data-fact=requests]').textContent === '4'", timeout=10000)
        browser.close()
        assert faults == []


def test_prometheus_reads_the_metrics(tmp_path):
    parser = pytest.importorskip("prometheus_client.parser")
    add_model(tmp_path, "double")
    with serving(tmp_path, log=tmp_path / ".log") as server:
        assert post(server, "/v2/models/double/infer", double(rows=3))[0] == 200
        assert post(server, "/v2/models/double/infer", b"{}")[0] == 400
        with urllib.request.urlopen(server.url + "/metrics", timeout=10) as answer:
            families = {f.name: f for f in parser.text_string_to_metric_families(answer.read().decode())}
    stages = {s.labels["stage"]: s.value for s in families["ingot_stage_seconds"].samples if s.name.endswith("_count")}
    assert set(stages) == {"decode", "queue", "batch", "copy_in", "compute", "copy_out", "encode", "request"}
    assert set(stages.values()) == {1.0}
    assert {s.value for s in families["ingot_off_profile_batches"].samples} == {1.0}
    assert {s.labels["le"]: s.value for s in families["ingot_batch_rows"].samples if "le" in s.labels}["4"] == 1
    assert {"ingot_worker_memory_bytes", "ingot_precision_share", "ingot_arena_bytes"} <= set(families)
