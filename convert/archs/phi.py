"""Phi 1, 1.5 and 2: attention and MLP side by side, biases everywhere, heads rotated in part."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from llmkit.convert.archs import blocks, decoder
from llmkit.convert.archs.config import ConfigReader
from llmkit.convert.archs.hparams import HParams
from llmkit.convert.archs.rope import read_rope
from llmkit.convert.archs.rules import Family, Presence
from llmkit.errors import UnsupportedError


def read_hparams(config: ConfigReader) -> HParams:
    """Hyper-parameters; what config.json leaves out has the default of transformers' PhiConfig."""
    for key in ("qk_layernorm", "tie_word_embeddings"):
        if config.boolean(key, False):
            raise UnsupportedError(f"{config.path}: {key} true, which llama.cpp does not compute in this architecture")
    rope = read_rope(config, share=0.5)
    rope.require("default", "linear", "dynamic")
    h = decoder.read_decoder(config, n_context=2048, rope=rope, activation="gelu_new")
    require_plain_heads(config, h)
    return replace(h, rms_eps=None, norm_eps=config.number("layer_norm_eps", 1e-5))


def write_config(h: HParams) -> dict[str, Any]:
    """`read_hparams` backwards."""
    found = {**decoder.write_without_biases(h), "hidden_act": "gelu_new", "layer_norm_eps": h.norm_eps}
    # Also where it is 1, which is not the default.
    found["partial_rotary_factor"] = 1.0 if h.rope is None else h.rope.share
    del found["rms_norm_eps"]
    return found


def require_plain_heads(config: ConfigReader, h: HParams) -> None:
    """Refuse heads that together are wider or narrower than the model."""
    if h.n_heads * h.head_dim != h.n_embd:
        raise UnsupportedError(
            f"{config.path}: head_dim {h.head_dim}; llama.cpp computes this architecture with hidden_size / "
            f"num_attention_heads ({h.n_embd} / {h.n_heads}) only"
        )


def _always(h: HParams) -> Presence:
    return Presence.REQUIRED


FAMILY = Family(
    model_type="phi",
    architectures=("PhiForCausalLM",),
    gguf_architecture="phi2",
    read_hparams=read_hparams,
    write_config=write_config,
    tensors=(
        *blocks.embedding(),
        *blocks.norm("attn_norm", "model.layers.{i}.input_layernorm", bias=_always),
        *blocks.attention(bias=_always, output="dense", output_bias=_always),
        *blocks.linear("ffn_up", blocks.ff, blocks.embd, blocks.MLP + "fc1", bias=_always),
        *blocks.linear("ffn_down", blocks.embd, blocks.ff, blocks.MLP + "fc2", bias=_always),
        *blocks.norm("output_norm", "model.final_layernorm", bias=_always),
        *blocks.head(bias=_always),
    ),
)
