"""Language models: small configurations of `transformers`, random weights; MiniLM with its real ones."""
from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
import transformers as hf
from torch import Tensor, nn

from benchmarks.architectures.model import (
    TEXT_AXES,
    TEXT_RANGES,
    TEXT_SIZES,
    TRACED,
    Architecture,
    Feeds,
    Range,
    Sizes,
    settled,
    tokens,
)
from benchmarks.zoo import MiniLm

_SOURCE = f"transformers {hf.__version__}, a small configuration"


class Hidden(nn.Module):
    """An encoder: token ids and mask -> the last hidden state."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = settled(model)

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        return self.model(input_ids=input_ids, attention_mask=attention_mask).last_hidden_state


class Logits(nn.Module):
    """A decoder without a cache: token ids and mask -> logits."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = settled(model)

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        return self.model(input_ids=input_ids, attention_mask=attention_mask, use_cache=False).logits


_SMALL: Mapping[str, Any] = {"vocab_size": 100, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4,
                             "intermediate_size": 64, "max_position_embeddings": 64}


def bert() -> nn.Module:
    return Hidden(hf.BertModel(hf.BertConfig(**_SMALL), add_pooling_layer=False))


def distilbert() -> nn.Module:
    return Hidden(hf.DistilBertModel(hf.DistilBertConfig(vocab_size=100, dim=32, n_layers=2, n_heads=4, hidden_dim=64,
                                                         max_position_embeddings=64)))


def albert() -> nn.Module:
    return Hidden(hf.AlbertModel(hf.AlbertConfig(**_SMALL, embedding_size=16), add_pooling_layer=False))


def deberta() -> nn.Module:
    return Hidden(hf.DebertaV2Model(hf.DebertaV2Config(
        **_SMALL, relative_attention=True, position_buckets=16, pos_att_type=["p2c", "c2p"], norm_rel_ebd="layer_norm",
        share_att_key=True, position_biased_input=False)))


def gpt2() -> nn.Module:
    return Logits(hf.GPT2LMHeadModel(hf.GPT2Config(vocab_size=100, n_embd=32, n_layer=2, n_head=4, n_positions=64)))


_LLAMA: Mapping[str, Any] = {**_SMALL, "num_key_value_heads": 2}


def llama() -> hf.LlamaForCausalLM:
    return hf.LlamaForCausalLM(hf.LlamaConfig(**_LLAMA))


class Prefill(nn.Module):
    """The first pass of a Llama-like decoder: logits, and the keys and values of every layer."""

    def __init__(self) -> None:
        super().__init__()
        self.model = settled(llama())

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> tuple[Tensor, ...]:
        out = self.model(input_ids=input_ids, attention_mask=attention_mask, use_cache=True)
        return (out.logits, *(t for layer in out.past_key_values.layers for t in (layer.keys, layer.values)))


class DecodeStep(nn.Module):
    """One step of a Llama-like decoder: a token and the cache -> logits and the longer cache."""

    def __init__(self) -> None:
        super().__init__()
        self.model = settled(llama())

    def forward(self, input_ids: Tensor, attention_mask: Tensor, past_0: Tensor, past_1: Tensor, past_2: Tensor,
                past_3: Tensor) -> tuple[Tensor, ...]:
        cache = hf.DynamicCache(((past_0, past_1), (past_2, past_3)))
        out = self.model(input_ids=input_ids, attention_mask=attention_mask, past_key_values=cache, use_cache=True)
        return (out.logits, *(t for layer in out.past_key_values.layers for t in (layer.keys, layer.values)))


def _step(rng: np.random.Generator, sizes: Sizes) -> Feeds:
    b, p = sizes["batch"], sizes["past"]
    cache = {f"past_{k}": rng.standard_normal((b, 2, p, 8)).astype(np.float32) for k in range(4)}
    return {"input_ids": rng.integers(2, 100, (b, 1)), "attention_mask": np.ones((b, p + 1), np.int64), **cache}


class T5Encoder(nn.Module):
    """T5's encoder."""

    def __init__(self) -> None:
        super().__init__()
        self.model = settled(hf.T5EncoderModel(_t5()))

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        return self.model(input_ids=input_ids, attention_mask=attention_mask).last_hidden_state


class T5Decoder(nn.Module):
    """T5's decoder over an encoder's states, without a cache."""

    def __init__(self) -> None:
        super().__init__()
        whole = settled(hf.T5ForConditionalGeneration(_t5()))
        self.model, self.head = whole.decoder, whole.lm_head

    def forward(self, decoder_ids: Tensor, states: Tensor, attention_mask: Tensor) -> Tensor:
        return self.head(self.model(input_ids=decoder_ids, encoder_hidden_states=states, use_cache=False,
                                    encoder_attention_mask=attention_mask).last_hidden_state)


def _t5() -> hf.T5Config:
    return hf.T5Config(vocab_size=100, d_model=32, d_kv=8, d_ff=64, num_layers=2, num_decoder_layers=2, num_heads=4,
                       feed_forward_proj="gated-gelu")


def _t5_feed(rng: np.random.Generator, sizes: Sizes) -> Feeds:
    b, s, t = sizes["batch"], sizes["source"], sizes["target"]
    mask = (np.arange(s)[None] < rng.integers(1, s + 1, (b, 1))).astype(np.int64)
    return {"decoder_ids": rng.integers(2, 100, (b, t)), "states": rng.standard_normal((b, s, 32)).astype(np.float32),
            "attention_mask": mask}


def _minilm_feed(rng: np.random.Generator, sizes: Sizes) -> Feeds:
    found = tokens(30000)(rng, sizes)
    return {**found, "token_type_ids": np.zeros_like(found["input_ids"])}


class Mamba(nn.Module):
    """A Mamba block: gates, a short causal convolution, and a selective scan over the sequence as a product of sums.

    The recurrence h[t] = exp(a[t]) h[t-1] + b[t] is evaluated by doubling: each round joins twice as long a stretch.
    """

    def __init__(self, width: int = 16, state: int = 4, length: int = 16) -> None:
        super().__init__()
        self.enter, self.leave = nn.Linear(width, 4 * width), nn.Linear(2 * width, width)
        self.mix = nn.Conv1d(2 * width, 2 * width, 4, padding=3, groups=2 * width)
        self.select, self.rate = nn.Linear(2 * width, 2 * state), nn.Linear(2 * width, 2 * width)
        self.decay, self.skip = nn.Parameter(torch.rand(2 * width, state)), nn.Parameter(torch.rand(2 * width))
        self.length = length

    def forward(self, x: Tensor) -> Tensor:
        y, gate = self.enter(x).chunk(2, -1)
        y = torch.nn.functional.silu(self.mix(y.transpose(1, 2))[..., :self.length].transpose(1, 2))
        b, c = self.select(y).chunk(2, -1)
        step = torch.nn.functional.softplus(self.rate(y))
        keep = torch.exp(-step[..., None] * torch.exp(self.decay))
        add = step[..., None] * b[:, :, None] * y[..., None]
        reach = 1
        while reach < self.length:
            pad = (0, 0, 0, 0, reach, 0)
            before = torch.nn.functional.pad(add[:, :-reach], pad)
            add = add + keep * before
            keep = keep * torch.nn.functional.pad(keep[:, :-reach], pad, value=1.0)
            reach *= 2
        y = (add * c[:, :, None]).sum(-1) + y * self.skip
        return self.leave(y * torch.nn.functional.silu(gate))


def _series(rng: np.random.Generator, sizes: Sizes) -> Feeds:
    return {"x": rng.standard_normal((sizes["batch"], 16, 16)).astype(np.float32)}


_STEP_RANGES: Mapping[str, Range] = {"batch": (1, 2, 4), "past": (1, 9, 40)}
_CACHE = tuple(f"{k}_{i}" for i in range(2) for k in ("key", "value"))
_TEXT: Mapping[str, Any] = {"axes": TEXT_AXES, "ranges": TEXT_RANGES, "sizes": TEXT_SIZES}
TEXT = (
    *(Architecture(n, _SOURCE, m, tokens(), **_TEXT) for n, m in (
        ("bert", bert), ("distilbert", distilbert), ("albert", albert), ("deberta", deberta), ("gpt2", gpt2))),
    Architecture("minilm", "all-MiniLM-L6-v2, its real weights", MiniLm, _minilm_feed, **{
        **_TEXT, "axes": {**TEXT_AXES, "token_type_ids": TEXT_AXES["input_ids"]}}),
    Architecture("llama_prefill", _SOURCE, Prefill, tokens(), outputs=("logits", *_CACHE), **_TEXT),
    Architecture("llama_step", _SOURCE, DecodeStep, _step, {
        "input_ids": {0: "batch"}, "attention_mask": {0: "batch", 1: "past + 1"},
        **{f"past_{k}": {0: "batch", 2: "past"} for k in range(4)}}, ("logits", *_CACHE), _STEP_RANGES,
        ({"batch": 2, "past": 9}, {"batch": 3, "past": 5})),
    Architecture("t5_encoder", _SOURCE + TRACED, T5Encoder, tokens(), traced=True, **_TEXT),
    Architecture("t5_decoder", _SOURCE + TRACED, T5Decoder, _t5_feed, {
        "decoder_ids": {0: "batch", 1: "target"}, "states": {0: "batch", 1: "source"},
        "attention_mask": {0: "batch", 1: "source"}},
        ranges={"batch": (1, 2, 4), "source": (2, 11, 32), "target": (2, 6, 32)},
        sizes=({"batch": 2, "source": 11, "target": 6}, {"batch": 3, "source": 5, "target": 8}), traced=True),
    Architecture("mamba", "written out in PyTorch", lambda: settled(Mamba()), _series, {"x": {0: "batch"}}))
