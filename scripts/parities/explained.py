"""Why files of llmkit's and of llama.cpp's converter differ where they do, and are to.

A difference that is not listed here is one to look into: scripts/parity then ends with status 1.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Final

# What llmkit states and the peer leaves to llama.cpp, which then computes the same value, or to its default.
STATED: Final = (
    ".attention.head_count_kv",  # as many as heads, which llama.cpp assumes
    ".attention.key_length",
    ".attention.q_lora_rank",  # 0: llama.cpp requires the key of latent attention, also where there is no such rank
    ".attention.value_length",
    ".rope.dimension_count",
    ".rope.freq_base",
    ".vocab_size",
    "granitemoe.expert_feed_forward_length",
    "gemma3.attention.sliding_window_pattern",  # only where it is not the usual one, which the peer then gets wrong
    "phi3.rope.scaling.type",  # llama.cpp knows LongRoPE by its factors
    "tokenizer.ggml.add_space_prefix",
    "tokenizer.ggml.add_bos_token",
)

# What the peer states and llmkit leaves to llama.cpp, which then computes the same value.
LEFT_OUT: Final = {
    "tokenizer.ggml.add_sep_token": False,  # its default
    "tokenizer.ggml.eot_token_id": 107,  # Gemma's <end_of_turn>, which it knows by its text
}

# By the architecture or the kind of tokenizer, for all rows.
_BPE_ONLY: Final = "llama.cpp reads it for byte-level BPE only"
_ALWAYS: Final = "the peer says so whatever the tokenizer does; that of the row adds none"
_OLDER_CONFIG: Final = "the peer finds it in transformers 4's config.json only"
BY_KIND: Final = {
    ("bert", "tokenizer.ggml.pre"): _BPE_ONLY,
    ("t5", "tokenizer.ggml.pre"): _BPE_ONLY,
    ("t5", "tokenizer.ggml.remove_extra_whitespaces"): (
        "the peer takes clean_up_tokenization_spaces for it, which concerns decoding; tokens tell which is right"
    ),
    ("modern-bert", "tokenizer.ggml.add_eos_token"): _ALWAYS,
    ("modern-bert", "tokenizer.ggml.add_sep_token"): _ALWAYS,
    ("modern-bert", "modern-bert.attention.layer_norm_epsilon"): _OLDER_CONFIG,
    ("modern-bert", "modern-bert.attention.sliding_window_pattern"): _OLDER_CONFIG,
    ("modern-bert", "modern-bert.attention.layer_norm_rms_epsilon"): "llama.cpp reads the other one, of LayerNorm",
}


@dataclass(frozen=True)
class Reason:
    """Why what matches `what`, in rows whose names match `rows`, is as it should be; both are regular expressions."""

    rows: str
    what: str
    why: str


_JOINED: Final = "it does not read experts that transformers 5 saves in one tensor"
_MODEL_FILE: Final = "it wants the family's tokenizer.model, and the row has a tokenizer.json"

REASONS: Final = (
    Reason(
        "chatglm|glm|glm4.*",
        r"tokenizer\.ggml\.eom_token_id: only ours",
        "config.json has it among the ends of a text; the peer states it for GLM-4.5 and later",
    ),
    Reason(
        "glm",
        r"chatglm\.(attention\.layer_norm_rms_epsilon|context_length|rope\.freq_base):",
        "the peer looks for the names of the older ChatGLM's config.json and takes defaults",
    ),
    Reason(
        "cohere2, other pattern",
        "cohere2.attention.sliding_window_pattern: only ours",
        "it is not the usual one, which llama.cpp takes without the key; logits tell which is right",
    ),
    Reason(
        "deepseek_v2, lite",
        "deepseek2.expert_gating_func: only ours, 1",
        "softmax, which llama.cpp takes without the key",
    ),
    Reason(
        "deepseek_v2, lite",
        r"deepseek2\.rope\.scaling\.(attn_factor|yarn_log_multiplier): only ours",
        "config.json has no mscale_all_dim, and llama.cpp would scale attention otherwise; logits tell which is right",
    ),
    Reason(
        ".*mamba",
        r"blk\.[0-9]+\.ssm_a: bytes differ",
        "-exp(w) in float32, by NumPy and by torch: the last bit differs in places",
    ),
    Reason("gpt2, untied", "gpt2.feed_forward_length:", "the peer writes 4 * n_embd, whatever n_inner is"),
    Reason(
        "gpt_bigcode, a key for each head",
        r"starcoder\.attention\.head_count_kv:|blk\.[0-9]+\.attn_qkv\.(weight|bias): bytes differ",
        "the peer takes multi_query for granted, and the order of its rows",
    ),
    Reason(
        "granitemoehybrid.*",
        r"granite\.(attention\.head_count_kv|expert_|ssm\.|rope\.|feed_forward_length)",
        "without Mamba layers both write granite, whose graph reads none of the hybrid's keys",
    ),
    Reason(
        "nomic_bert, published config",
        r"nomic-bert\.",
        "transformers 5, which the peer asks, reads other names than the published ones; tensors tell which is right",
    ),
    Reason("(mixtral|olmoe), joined experts|deepseek_v3, other mscale", "the peer failed: .*experts", _JOINED),
    Reason("minicpm|minicpm3|nemotron.*", r"the peer failed: .*tokenizer\.model", _MODEL_FILE),
    Reason("internlm2", "the peer failed: SystemExit", _MODEL_FILE),
    Reason("exaone", "the peer failed: .*max_position_embeddings", "it wants the repository's own config class"),
    Reason("gpt_neox.*", "the peer failed: KeyError: 'rotary_pct'", "transformers 5 does not save the key any more"),
    Reason(
        "gpt2, of the hub",
        r"the peer failed: .*h\.0\.attn\.bias",
        "it takes the masks of older checkpoints for weights",
    ),
    Reason("nomic_bert", "the peer failed: KeyError: 'n_positions'", "transformers 5 saves the key under another name"),
    Reason("stablelm, parallel", "the peer failed: ValueError: Unprocessed norms", "it loses the norms that it stacks"),
)


def explain(row: str, difference: str) -> str | None:
    """Why a row has this difference, in the words of `llmkit`'s comparison; None if that is not known."""
    for reason in REASONS:
        if re.fullmatch(reason.rows, row) and re.match(reason.what, difference):
            return reason.why
    return None
