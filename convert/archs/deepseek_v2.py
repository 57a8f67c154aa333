"""DeepSeek-V2, V2.5, V2-Lite and Coder-V2: latent attention, and many small experts beside shared ones."""

from __future__ import annotations

from typing import Any

from llmkit.convert.archs import blocks, decoder
from llmkit.convert.archs.config import ConfigReader
from llmkit.convert.archs.hparams import Experts, HParams, LatentAttention
from llmkit.convert.archs.latent import absorbed_expansion, latent_attention, rank_keys, read_latent, write_latent
from llmkit.convert.archs.rope import read_rope
from llmkit.convert.archs.rules import Family, TensorRule
from llmkit.errors import FormatError, UnsupportedError
from llmkit.formats.gguf import Value, u32

BY_BEST = "group_limited_greedy"  # chooses groups of experts by the best expert in each


def read_hparams(config: ConfigReader) -> HParams:
    """Hyper-parameters; what config.json leaves out has the default of transformers' DeepseekV2Config."""
    config.require("scoring_func", ("softmax",), "softmax")
    config.require("topk_method", ("greedy", BY_BEST), "greedy")
    if config.boolean("norm_topk_prob", False):
        raise UnsupportedError(
            f"{config.path}: norm_topk_prob is true; DeepSeek-V2 is defined without, and implementations differ on it"
        )
    experts = Experts(
        n_experts=config.integer("n_routed_experts", 64),
        n_used=config.integer("num_experts_per_tok"),
        n_ff=config.integer("moe_intermediate_size", 1407),
        n_shared=config.integer("n_shared_experts", 2),
        weights_scale=config.number("routed_scaling_factor", 1.0),
        gating="softmax",
        n_dense_layers=dense_layers(config, 0),
    )
    latent = read_latent(config, q_rank=1536, kv_rank=512, n_plain=128, n_rotated=64, n_values=128)
    grouped = config.values.get("topk_method") == BY_BEST
    groups = expert_groups(config, experts, 1, 1) if grouped else {}
    return read_deepseek(config, latent, experts, groups, n_context=2048)


def read_deepseek(
    config: ConfigReader, latent: LatentAttention, experts: Experts, groups: dict[str, Value], *, n_context: int
) -> HParams:
    """What V2 and V3 have in common.

    groups: see `expert_groups`. n_context: where config.json says nothing.
    """
    config.require("hidden_act", ("silu", "swish"), "silu")
    n_layers = config.integer("num_hidden_layers")
    n_vocab = config.integer("vocab_size")
    if latent.q_rank is not None and (n_layers in (26, 27) or (n_layers == 48 and n_vocab == 128256)):
        raise UnsupportedError(
            f"{config.path}: q_lora_rank {latent.q_rank} with num_hidden_layers {n_layers}; llama.cpp takes a model of "
            "so many layers for a lite one, which has no q_lora_rank"
        )
    rope = read_rope(config)
    if rope.scaling == "linear":
        raise UnsupportedError(f"{config.path}: rope_type 'linear', with which llama.cpp scales attention wrongly here")
    return HParams(
        n_layers=n_layers,
        n_embd=config.integer("hidden_size"),
        n_ff=config.integer("intermediate_size"),
        n_heads=config.integer("num_attention_heads"),
        n_kv_heads=1,  # the graph attends to the latent numbers, which all heads share
        head_dim=latent.n_rotated,
        n_vocab=n_vocab,
        n_context=config.integer("max_position_embeddings", n_context),
        rms_eps=config.number("rms_norm_eps", 1e-6),
        rope=rope,
        tied_embeddings=config.boolean("tie_word_embeddings", False),
        latent=latent,
        experts=experts,
        extra={
            **rank_keys(latent),
            "attention.key_length": u32(latent.kv_rank + latent.n_rotated),
            "attention.value_length": u32(latent.kv_rank),
            "attention.key_length_mla": u32(latent.n_keys),
            "attention.value_length_mla": u32(latent.n_values),
            **groups,
        },
    )


def write_deepseek(h: HParams) -> dict[str, Any]:
    """`read_deepseek` backwards, with the experts."""
    experts = blocks.experts_of(h)
    return {
        **decoder.write_decoder(h),
        **write_latent(h),
        "n_routed_experts": experts.n_experts,
        "num_experts_per_tok": experts.n_used,
        "moe_intermediate_size": blocks.expert_ff(h),
        "n_shared_experts": experts.n_shared,
        "routed_scaling_factor": 1.0 if experts.weights_scale is None else experts.weights_scale,
        "norm_topk_prob": bool(experts.weights_norm),
        "first_k_dense_replace": experts.n_dense_layers or 0,
        "moe_layer_freq": 1,
    }


def write_groups(h: HParams) -> dict[str, Any]:
    """`expert_groups` backwards; a file that says nothing has one group."""
    keys = {"n_group": "expert_group_count", "topk_group": "expert_group_used_count"}
    return {name: decoder.extra_integer(h, key) or 1 for name, key in keys.items()}


def write_config(h: HParams) -> dict[str, Any]:
    """`read_hparams` backwards."""
    grouped = decoder.extra_integer(h, "expert_group_count") is not None
    choice = {"topk_method": BY_BEST, **write_groups(h)} if grouped else {"topk_method": "greedy"}
    return {**write_deepseek(h), "scoring_func": "softmax", **choice}


def dense_layers(config: ConfigReader, default: int) -> int:
    """How many blocks at the start have an MLP instead of experts; all may."""
    key = "first_k_dense_replace"
    found = config.values[key] if key in config else default
    return 0 if found == 0 and found is not False else config.integer(key, default)


def expert_groups(config: ConfigReader, experts: Experts, n_groups: int, n_used: int) -> dict[str, Value]:
    """The keys for choosing experts from the best groups only; the numbers are for a config.json without.

    Choosing all groups is no restriction, and is stated as one group: llama.cpp refuses to choose all of several.
    """
    n_groups = config.integer("n_group", n_groups)
    n_used = config.integer("topk_group", n_used)
    if experts.n_experts % n_groups:
        raise FormatError(config.path, f"n_routed_experts {experts.n_experts} is not divisible by n_group {n_groups}")
    if n_used >= n_groups:
        n_groups = n_used = 1
    if n_groups > 1 and experts.n_experts // n_groups < 2:
        raise UnsupportedError(
            f"{config.path}: n_group {n_groups} for n_routed_experts {experts.n_experts}; llama.cpp ranks groups by "
            "their two best experts"
        )
    return {"expert_group_count": u32(n_groups), "expert_group_used_count": u32(n_used)}


def notes(config: ConfigReader, hparams: HParams) -> tuple[str, ...]:
    """How llama.cpp chooses groups differs."""
    n_groups = hparams.extra.get("expert_group_count")
    if n_groups is None or n_groups.data == 1:
        return ()
    return (
        f"topk_method {BY_BEST!r}: llama.cpp ranks the groups of experts by the two best of each, this model by the "
        "best: a token may reach other experts",
    )


def is_dense(h: HParams, i: int) -> bool:
    """Whether block i has an MLP."""
    return i < (blocks.experts_of(h).n_dense_layers or 0)


def has_experts(h: HParams, i: int) -> bool:
    """Whether block i has experts."""
    return not is_dense(h, i)


def _shared(h: HParams) -> int:
    return blocks.expert_ff(h) * (blocks.experts_of(h).n_shared or 0)


def shared_experts(prefix: str = blocks.MLP + "shared_experts.") -> tuple[TensorRule, ...]:
    """The experts that every token passes, as one MLP."""
    return (
        *blocks.linear("ffn_gate_shexp", _shared, blocks.embd, prefix + "gate_proj", blocks=has_experts),
        *blocks.linear("ffn_up_shexp", _shared, blocks.embd, prefix + "up_proj", blocks=has_experts),
        *blocks.linear("ffn_down_shexp", blocks.embd, _shared, prefix + "down_proj", blocks=has_experts),
    )


def tensors(*router: TensorRule) -> tuple[TensorRule, ...]:
    """The tensors, of which `router` are V3's own."""
    return (
        *blocks.embedding(),
        *blocks.norm("attn_norm", "model.layers.{i}.input_layernorm"),
        *latent_attention(absorbed_expansion),
        *blocks.norm("ffn_norm", "model.layers.{i}.post_attention_layernorm"),
        *blocks.gated_mlp(blocks=is_dense),
        *blocks.router(blocks.MLP + "gate", blocks=has_experts),
        *router,
        *blocks.gated_experts(blocks=has_experts),
        *shared_experts(),
        *blocks.norm("output_norm", "model.norm"),
        *blocks.head(),
    )


FAMILY = Family(
    model_type="deepseek_v2",
    architectures=("DeepseekV2ForCausalLM",),
    gguf_architecture="deepseek2",
    read_hparams=read_hparams,
    tensors=tensors(),
    notes=notes,
    write_config=write_config,
    wrote=lambda h: blocks.experts_of(h).gating != "sigmoid",
)
