"""ONNX's own backend suite through the whole pipeline: a slice of it in every run, all of it among the slow tests."""
from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from benchmarks.conformance import PAGE, RESULT, Case, Suite, known, page, run_suite

pytestmark = [pytest.mark.cpu, pytest.mark.filterwarnings("ignore")]

STEP = 16       # one case in so many is run every time


@pytest.fixture(scope="module")
def suite() -> Suite:
    """The cases of the installed onnx."""
    return Suite()


def test_a_slice_of_the_suite_passes(suite: Suite):
    names = sorted(n for n, kind in suite.kinds.items() if kind != "real")
    told = [n for n in names if re.match(r"test_(nonzero|if|loop11|loop13_seq|scan9_sum|sequence_map_add|"
                                         r"unique_length_1|strnorm_model_monday_case|optional_get_element_te)", n)]
    cases = [suite.run(n, 120) for n in sorted({*names[::STEP], *told}) if not known(n)]
    assert [f"{c.name}: {c.why}" for c in cases if not c.passed] == []
    assert sum(c.path == "compiled" for c in cases) >= 0.8 * len(cases)


@pytest.mark.slow
def test_the_whole_suite_passes_but_for_what_is_known(suite: Suite, tmp_path: Path):
    names = sorted(suite.functions)
    cases = run_suite(names, tmp_path, 2, 120)
    assert [f"{c.name}: {c.why}" for c in cases.values() if c.passed == bool(known(c.name))] == []
    share = [c for c in cases.values() if c.kind != "real"]
    assert sum(c.passed for c in share) >= 0.99 * len(share)
    assert sum(c.passed and c.path == "compiled" for c in share) >= 0.8 * len(share)


def test_the_page_is_what_was_measured():
    result = json.loads(RESULT.read_text())
    assert PAGE.read_text() == page(result)
    assert [c["name"] for c in result["cases"] if c["passed"] == bool(known(c["name"]))] == []


def test_a_case_that_fails_says_at_which_stage(suite: Suite, monkeypatch: pytest.MonkeyPatch):
    def broken(_: object) -> None:
        raise ValueError("as it were")
    monkeypatch.setitem(suite.functions, "test_abs", broken)
    case = suite.run("test_abs", 120)
    assert isinstance(case, Case) and not case.passed
    assert case.why.startswith("build: ValueError: as it were at test_conformance.py")
