"""Sound and sequences: recurrent taggers, convolutions over time, Whisper, Wav2Vec2, and nets over graphs."""
from __future__ import annotations

from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
import transformers as hf
from torch import Tensor, nn

from benchmarks.architectures.model import TEXT_RANGES, TEXT_SIZES, Architecture, Feeds, Sizes, settled, tokens

_SOURCE = f"transformers {hf.__version__}, a small configuration"
_OWN = "written out in PyTorch"


class Tagger(nn.Module):
    """Words, a recurrent net in both directions, a class for each word."""

    def __init__(self, kind: type[nn.LSTM] | type[nn.GRU]) -> None:
        super().__init__()
        self.words = nn.Embedding(100, 24)
        self.net = kind(24, 16, num_layers=2, batch_first=True, bidirectional=True)
        self.out = nn.Linear(32, 9)

    def forward(self, input_ids: Tensor) -> Tensor:
        return self.out(self.net(self.words(input_ids))[0]).log_softmax(-1)


class Causal(nn.Module):
    """A temporal convolutional network: dilated causal convolutions that add up."""

    def __init__(self, width: int = 24) -> None:
        super().__init__()
        self.enter, self.leave = nn.Conv1d(5, width, 1), nn.Conv1d(width, 3, 1)
        self.layers = nn.ModuleList([nn.Conv1d(width, width, 3, dilation=d) for d in (1, 2, 4)])
        self.norms = nn.ModuleList([nn.BatchNorm1d(width) for _ in range(3)])

    def forward(self, x: Tensor) -> Tensor:
        x = self.enter(x)
        for layer, norm, d in zip(self.layers, self.norms, (1, 2, 4), strict=True):
            x = x + F.gelu(norm(layer(F.pad(x, (2 * d, 0)))))
        return self.leave(x)


class Conformer(nn.Module):
    """Conformer blocks: half a feed-forward, attention, a gated depthwise convolution, the other half."""

    def __init__(self, width: int = 32, blocks: int = 2) -> None:
        super().__init__()
        self.stem = nn.Conv1d(20, width, 3, 2, 1)
        self.blocks = nn.ModuleList([nn.ModuleDict({
            "n0": nn.LayerNorm(width), "f0": nn.Linear(width, 64), "g0": nn.Linear(64, width),
            "n1": nn.LayerNorm(width), "qkv": nn.Linear(width, 3 * width), "out": nn.Linear(width, width),
            "n2": nn.LayerNorm(width), "wide": nn.Conv1d(width, 2 * width, 1), "norm": nn.BatchNorm1d(width),
            "depth": nn.Conv1d(width, width, 7, padding=3, groups=width), "narrow": nn.Conv1d(width, width, 1),
            "n3": nn.LayerNorm(width), "f1": nn.Linear(width, 64), "g1": nn.Linear(64, width),
            "last": nn.LayerNorm(width)}) for _ in range(blocks)])
        self.head = nn.Linear(width, 11)

    def forward(self, sound: Tensor) -> Tensor:
        x = self.stem(sound).transpose(1, 2)
        for m in self.blocks:
            x = x + 0.5 * m["g0"](F.silu(m["f0"](m["n0"](x))))
            b, t, c = x.shape
            q, k, v = m["qkv"](m["n1"](x)).view(b, t, 3, 4, c // 4).permute(2, 0, 3, 1, 4)
            x = x + m["out"](F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(b, t, c))
            y = F.glu(m["wide"](m["n2"](x).transpose(1, 2)), 1)
            x = x + m["narrow"](F.silu(m["norm"](m["depth"](y)))).transpose(1, 2)
            x = x + 0.5 * m["g1"](F.silu(m["f1"](m["n3"](x))))
            x = m["last"](x)
        return self.head(x).log_softmax(-1)


class Whisper(nn.Module):
    """Whisper: a log-mel spectrogram and the text so far -> the next words."""

    def __init__(self) -> None:
        super().__init__()
        self.model = settled(hf.WhisperForConditionalGeneration(hf.WhisperConfig(
            vocab_size=100, num_mel_bins=20, d_model=32, encoder_layers=2, decoder_layers=2, encoder_attention_heads=4,
            decoder_attention_heads=4, encoder_ffn_dim=64, decoder_ffn_dim=64, max_source_positions=20,
            max_target_positions=40, pad_token_id=0, bos_token_id=1, eos_token_id=2, decoder_start_token_id=1)))

    def forward(self, features: Tensor, decoder_ids: Tensor) -> Tensor:
        return self.model(input_features=features, decoder_input_ids=decoder_ids, use_cache=False).logits


def _whisper_feed(rng: np.random.Generator, sizes: Sizes) -> Feeds:
    return {"features": rng.standard_normal((sizes["batch"], 20, 40)).astype(np.float32),
            "decoder_ids": rng.integers(3, 100, (sizes["batch"], sizes["target"]))}


class Wav2Vec2(nn.Module):
    """Wav2Vec2: sound as it is -> a class for each slice of it."""

    def __init__(self) -> None:
        super().__init__()
        self.model = settled(hf.Wav2Vec2ForCTC(hf.Wav2Vec2Config(
            vocab_size=20, hidden_size=32, num_hidden_layers=2, num_attention_heads=4, intermediate_size=64,
            conv_dim=[16, 16, 16], conv_stride=[5, 2, 2], conv_kernel=[10, 3, 3], num_conv_pos_embeddings=16,
            num_conv_pos_embedding_groups=4, num_feat_extract_layers=3)))
        for parametrized in list(self.model.modules()):
            if torch.nn.utils.parametrize.is_parametrized(parametrized, "weight"):
                torch.nn.utils.parametrize.remove_parametrizations(parametrized, "weight")

    def forward(self, sound: Tensor) -> Tensor:
        return self.model(sound).logits


class GraphNet(nn.Module):
    """Two rounds of messages along edges, summed where they arrive; the mean over each graph's nodes."""

    def __init__(self, width: int = 16) -> None:
        super().__init__()
        self.enter, self.first = nn.Linear(7, width), nn.Linear(2 * width, width)
        self.second = nn.Linear(2 * width, width)
        self.out = nn.Linear(width, 4)

    def forward(self, nodes: Tensor, edges: Tensor) -> tuple[Tensor, Tensor]:
        x = torch.relu(self.enter(nodes))
        source, to = edges[0], edges[1]
        for layer in (self.first, self.second):
            message = torch.relu(layer(torch.cat([x[source], x[to]], -1)))
            x = x + torch.zeros_like(x).index_add(0, to, message)
        count = torch.zeros_like(x[:, 0]).index_add(0, to, torch.ones_like(to, dtype=x.dtype))
        return self.out(x), count


def _graph_feed(rng: np.random.Generator, sizes: Sizes) -> Feeds:
    n, e = sizes["nodes"], sizes["edges"]
    return {"nodes": rng.standard_normal((n, 7)).astype(np.float32), "edges": rng.integers(0, n, (2, e))}


def _series(channels: int, name: str) -> Any:
    def feed(rng: np.random.Generator, sizes: Sizes) -> Feeds:
        shape = (sizes["batch"], channels, sizes["time"]) if channels else (sizes["batch"], sizes["time"])
        return {name: rng.standard_normal(shape).astype(np.float32)}
    return feed


_TAGS: dict[str, Any] = {"axes": {"input_ids": {0: "batch", 1: "sequence"}}, "ranges": TEXT_RANGES, "sizes": TEXT_SIZES}


def _time(name: str, low: int, opt: int, high: int, other: int, axis: int = 2) -> dict[str, Any]:
    return {"axes": {name: {0: "batch", axis: "time"}}, "ranges": {"batch": (1, 2, 4), "time": (low, opt, high)},
            "sizes": ({"batch": 2, "time": opt}, {"batch": 3, "time": other})}


SEQUENCES = (
    Architecture("lstm_tagger", _OWN, lambda: Tagger(nn.LSTM), tokens(mask=False), **_TAGS),
    Architecture("gru_tagger", _OWN, lambda: Tagger(nn.GRU), tokens(mask=False), **_TAGS),
    Architecture("tcn", _OWN, lambda: settled(Causal()), _series(5, "x"), **_time("x", 4, 40, 64, 17)),
    Architecture("conformer", _OWN, lambda: settled(Conformer()), _series(20, "sound"),
                 **_time("sound", 4, 40, 64, 22)),
    Architecture("whisper", _SOURCE, Whisper, _whisper_feed,
                 {"features": {0: "batch"}, "decoder_ids": {0: "batch", 1: "target"}},
                 ranges={"batch": (1, 2, 4), "target": (2, 6, 32)},
                 sizes=({"batch": 2, "target": 6}, {"batch": 3, "target": 9})),
    Architecture("wav2vec2", _SOURCE, Wav2Vec2, _series(0, "sound"),
                 **_time("sound", 400, 800, 1600, 1001, 1)),
    Architecture("graph_net", _OWN, lambda: settled(GraphNet()), _graph_feed,
                 {"nodes": {0: "nodes"}, "edges": {1: "edges"}}, ("classes", "count"),
                 {"nodes": (2, 9, 20), "edges": (2, 14, 60)},
                 ({"nodes": 9, "edges": 14}, {"nodes": 5, "edges": 23})))
