"""Phi-3, 3.5 and 4: joined projections, LongRoPE for the long contexts, in the smallest Phi-4 heads rotated in part."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, Final

from llmkit.convert.archs import blocks, decoder
from llmkit.convert.archs.config import ConfigReader
from llmkit.convert.archs.hparams import HParams
from llmkit.convert.archs.phi import require_plain_heads
from llmkit.convert.archs.rope import Rope, read_rope
from llmkit.convert.archs.rules import Family
from llmkit.convert.archs.structure import Structure
from llmkit.formats.gguf import u32

_ORIGINAL: Final = "original_max_position_embeddings"


def read_hparams(config: ConfigReader) -> HParams:
    """Hyper-parameters; what config.json leaves out has the default of transformers' Phi3Config."""
    rope = _read_rope(config)
    h = decoder.read_decoder(config, n_context=4096, rms_eps=1e-5, rope=rope)
    require_plain_heads(config, h)
    window = config.values.get("sliding_window")
    return replace(
        h,
        # 0, not nothing: where the key is missing, older llama.cpp assumes the window of Phi-3.
        sliding_window=0 if window is None else config.integer("sliding_window"),
        extra={"rope.scaling.original_context_length": u32(int(rope.number(_ORIGINAL)))},
    )


def _read_rope(config: ConfigReader) -> Rope:
    """LongRoPE was called "su" at first; the context it starts from is config.json's own before that of the scaling."""
    rope = read_rope(config, share=1.0)
    if rope.scaling == "su":
        rope = replace(rope, scaling="longrope")
    rope.require("default", "longrope")
    stated = config if _ORIGINAL in config else ConfigReader(config.path, rope.parameters)
    return replace(rope, parameters={**rope.parameters, _ORIGINAL: stated.integer(_ORIGINAL, 4096)})


def write_config(h: HParams) -> dict[str, Any]:
    """`read_hparams` backwards; LongRoPE as published, since older transformers refuse any further key in it."""
    found = {**decoder.write_decoder(h), "sliding_window": h.sliding_window or None}
    parameters = {} if h.rope is None else dict(h.rope.parameters)
    found[_ORIGINAL] = parameters.pop(_ORIGINAL, h.n_context)
    if h.rope is not None and h.rope.scaling == "longrope":
        found["rope_scaling"] = {"type": "longrope", **parameters}
    return found


def notes(config: ConfigReader, h: HParams) -> tuple[str, ...]:
    """Where llama.cpp's graph departs from transformers'."""
    found = []
    if h.sliding_window and h.sliding_window < h.n_context:
        found.append(
            f"sliding_window {h.sliding_window} has no effect: llama.cpp attends to the whole context in this "
            "architecture"
        )
    if h.rope is not None and h.rope.scaling == "longrope":
        original = int(h.rope.number(_ORIGINAL))
        if original < h.n_context:
            found.append(
                f"llama.cpp takes LongRoPE's short factors in sessions of up to {original} tokens of context, its long "
                "factors in longer ones, however short the text: choose --context by need"
            )
    return tuple(found)


FAMILY = Family(
    model_type="phi3",
    architectures=("Phi3ForCausalLM",),
    gguf_architecture="phi3",
    read_hparams=read_hparams,
    write_config=write_config,
    tensors=(
        *blocks.embedding(),
        *blocks.norm("attn_norm", "model.layers.{i}.input_layernorm"),
        *blocks.linear(
            "attn_qkv", lambda h: blocks.queries(h) + 2 * blocks.keys(h), blocks.embd, blocks.ATTENTION + "qkv_proj"
        ),
        *blocks.linear("attn_output", blocks.embd, blocks.queries, blocks.ATTENTION + "o_proj"),
        *blocks.norm("ffn_norm", "model.layers.{i}.post_attention_layernorm"),
        # Gate and up in one, which is also how the graph wants them.
        *blocks.linear("ffn_up", lambda h: 2 * h.n_ff, blocks.embd, blocks.MLP + "gate_up_proj"),
        *blocks.linear("ffn_down", blocks.embd, blocks.ff, blocks.MLP + "down_proj"),
        *blocks.norm("output_norm", "model.norm"),
        *blocks.head(),
    ),
    notes=notes,
    structure=Structure(),
)
