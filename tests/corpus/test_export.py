"""Every case of the corpus ends as it must: verified against the module, or with the cause named."""
import re

import numpy as np
import pytest
import torch

import ingot
from ingot.errors import UnsupportedError, VerifyError
from ingot.frontend.torch.run import array_from, results_from
from ingot.verify import Verdict
from tests.corpus.cases import CASES, Case

pytestmark = [pytest.mark.cpu, pytest.mark.filterwarnings("ignore")]
FAST = ingot.BuildOptions(tune=False)


def built(case: Case) -> ingot.Engine:
    return ingot.build(case.make(), case.example(), FAST, dynamic=case.dynamic, opset=case.opset)


# The networks are small ones of their kind and still take seconds; the rest run every time.
_LONG = ("pytorch#168224", "pytorch#157621", "pytorch#105661", "onnxscript#2891", "pytorch#71549", "pytorch#99424",
         "pytorch#106967b", "pytorch#32267b", "pytorch#129534", "pytorch#41774", "pytorch#78442", "pytorch#99662")


@pytest.mark.parametrize("case", [pytest.param(c, id=c.thread, marks=pytest.mark.slow if c.thread in _LONG else ())
                                  for c in CASES])
def test_a_user_s_failure_ends_right_or_named(case: Case):
    if not case.right:
        with pytest.raises((VerifyError, UnsupportedError)) as error:
            built(case)
        assert all(words in str(error.value) for words in case.told), str(error.value)
        return
    engine = built(case)
    verdict = Verdict.from_json(engine.verdict)
    assert verdict.passed and verdict.original.startswith("PyTorch"), str(verdict)
    assert all(any(words in n for n in verdict.notes) for words in case.told), verdict.notes
    if not case.told:
        alarms = [n for n in verdict.notes if n.startswith("alarm")]
        assert not [n for n in alarms if "pre-processing" not in n and "not finite" not in n]
    module, session = case.make().eval(), ingot.Session(engine)
    for make in (case.example, *case.others):
        inputs = make()
        args = inputs if isinstance(inputs, tuple) else (inputs,)
        with torch.no_grad():
            found = module(**inputs) if isinstance(inputs, dict) else module(*(a.clone() for a in args))
        feeds = {k: array_from(v) for k, v in inputs.items()} if isinstance(inputs, dict) else dict(
            zip(engine.graph.inputs, map(array_from, args), strict=True))
        got = session.run(feeds)
        for name, wanted in results_from(found).items():
            scale = max(1e-6, float(wanted.double().abs().max())) if wanted.numel() else 1.0
            np.testing.assert_allclose(got[name], array_from(wanted), rtol=0, atol=2e-5 * scale)


def test_every_case_names_a_thread_once():
    threads = [c.thread for c in CASES]
    assert len(set(threads)) == len(threads)
    assert all(re.fullmatch(r"[\w-]+#\d+[a-z]?", t) for t in threads)
