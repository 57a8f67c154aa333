"""What a decoder computes with its tensors: the closed vocabulary of blocks that graphs are built from.

The tensors of a family and its hyper-parameters say most of it: whether queries, keys and values are one matrix or
three, whether there are biases, norms of heads, experts. A `Structure` says what they leave open. Every block is
attention, then an MLP or experts, each added to the residual stream; norms may stand before and after either.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

from llmkit.convert.archs.config import ConfigReader
from llmkit.convert.archs.hparams import HParams


def usual_attention_scale(h: HParams) -> float:
    """What the hyper-parameters say, or one over the root of a head's width."""
    return 1 / math.sqrt(h.head_dim) if h.attention_scale is None else h.attention_scale


@dataclass(frozen=True, slots=True, kw_only=True)
class Structure:
    """Where decoders differ beyond their tensors and hyper-parameters.

    The norms are roles of tensors, None where there is none. `activation` is that of the MLP: "silu", "gelu_tanh", or
    "swiglu_oss", GPT-OSS's, with `gate_alpha` in its sigmoid and gates and factors of at most `gate_limit`.
    `normalizes_experts` tells whether the weights of the chosen experts add up to 1.
    `attention_scale` multiplies the products of queries and keys, `embedding_scale` the embeddings, `logit_scale` the
    logits; None: nothing does. `slides` tells which blocks have a sliding window where the hyper-parameters do not list
    them, `rotates` which have rotary embedding. `complete` adds to the hyper-parameters what config.json says and
    llama.cpp's graph does not compute, which is why they lack it.
    """

    norm_before_attention: str | None = "attn_norm"
    norm_after_attention: str | None = None
    norm_before_mlp: str | None = "ffn_norm"
    norm_after_mlp: str | None = None
    activation: str = "silu"
    gate_alpha: float = 1.0
    gate_limit: float | None = None
    normalizes_experts: bool = True
    attention_scale: Callable[[HParams], float] = usual_attention_scale
    embedding_scale: Callable[[HParams], float | None] = lambda h: h.embedding_scale
    logit_scale: Callable[[HParams], float | None] = lambda h: h.logit_scale
    slides: Callable[[HParams, int], bool] = lambda h, i: True
    rotates: Callable[[HParams, int], bool] = lambda h, i: True
    complete: Callable[[ConfigReader, HParams], HParams] = lambda config, h: h

    def window(self, h: HParams, block: int) -> int | None:
        """How many tokens, itself included, a token of this block attends to; None: all before it."""
        if not h.sliding_window:
            return None
        slides = self.slides(h, block) if h.sliding_layers is None else h.sliding_layers[block]
        return h.sliding_window if slides else None
