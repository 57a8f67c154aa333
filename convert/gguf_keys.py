"""What GGUF files say about an architecture's hyper-parameters.

Keys are those that llama.cpp's loader reads (src/llama-arch.cpp, gguf-py/gguf/constants.py).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Final

from llmkit.convert.archs import Experts, HParams, Rope, StateSpace, excerpt
from llmkit.convert.gguf_yarn import yarn_keys
from llmkit.convert.plan import Computed, PlannedTensor
from llmkit.convert.rotary import llama3_factors, longrope_attention
from llmkit.errors import UnsupportedError
from llmkit.formats.gguf import Value, ValueType, array, boolean, f32, string, u32
from llmkit.types import TensorType, tensor_bytes

# The numbers by which files name how a router's outputs become weights (llama.cpp, src/llama-hparams.h).
GATING: Final = {"softmax": 1, "sigmoid": 2}
# The numbers of poolings (llama.cpp, include/llama.h, `enum llama_pooling_type`).
POOLING: Final = {"mean": 1, "cls": 2, "last": 3}

# Architectures whose graphs load and use rope_freqs.weight (llama.cpp, src/models: LLM_TENSOR_ROPE_FREQS and
# get_rope_factors); a file that has it is not loaded by the others.
_WITH_ROPE_FACTORS: Final = frozenset(
    (
        *("llama", "llama-embed", "llama4", "mistral3", "deci", "arcee", "apertus", "exaone", "exaone4", "exaone-moe"),
        *("granite", "granite_swa", "granitehybrid", "granitemoe", "minicpm", "nanbeige", "step35"),
    )
)

# Architectures whose files may have LongRoPE's factors; llama.cpp does not load those tensors in all.
_LONGROPE: Final = frozenset({"phi3"})

# Field of the hyper-parameters -> key and type; fields that are None are left out.
KEYS: Final[dict[str, tuple[str, Callable[[Any], Value]]]] = {
    "n_layers": ("block_count", u32),
    "n_context": ("context_length", u32),
    "n_embd": ("embedding_length", u32),
    "n_ff": ("feed_forward_length", u32),
    "n_heads": ("attention.head_count", u32),
    "n_kv_heads": ("attention.head_count_kv", u32),
    "rms_eps": ("attention.layer_norm_rms_epsilon", f32),
    "norm_eps": ("attention.layer_norm_epsilon", f32),
    "n_vocab": ("vocab_size", u32),
    "sliding_window": ("attention.sliding_window", u32),
    "sliding_layers": ("attention.sliding_window_pattern", lambda layers: array(ValueType.BOOL, layers)),
    "attention_scale": ("attention.scale", f32),
    "embedding_scale": ("embedding_scale", f32),
    "residual_scale": ("residual_scale", f32),
    "logit_scale": ("logit_scale", f32),
    "attention_softcap": ("attn_logit_softcapping", f32),
    "final_softcap": ("final_logit_softcapping", f32),
    "parallel_residual": ("use_parallel_residual", boolean),
    "causal": ("attention.causal", boolean),
    "pooling": ("pooling_type", lambda name: u32(POOLING[name])),
}
EXPERT_KEYS: Final[dict[str, tuple[str, Callable[[Any], Value]]]] = {
    "n_experts": ("expert_count", u32),
    "n_used": ("expert_used_count", u32),
    "n_ff": ("expert_feed_forward_length", u32),
    "n_shared": ("expert_shared_count", u32),
    "n_ff_shared": ("expert_shared_feed_forward_length", u32),
    "weights_scale": ("expert_weights_scale", f32),
    "weights_norm": ("expert_weights_norm", boolean),
    "gating": ("expert_gating_func", lambda name: u32(GATING[name])),
    "n_dense_layers": ("leading_dense_block_count", u32),
}


STATE_KEYS: Final[dict[str, tuple[str, Callable[[Any], Value]]]] = {
    "n_inner": ("ssm.inner_size", u32),
    "n_convolved": ("ssm.conv_kernel", u32),
    "n_state": ("ssm.state_size", u32),
    "rank": ("ssm.time_step_rank", u32),
    "n_groups": ("ssm.group_count", u32),
    "normed": ("ssm.dt_b_c_rms", boolean),
}


def architecture_metadata(arch: str, h: HParams, notes: list[str]) -> dict[str, Value]:
    """The keys that begin with the architecture's name, and the number of token types; adds to `notes` what is lost."""
    found = _stated(h, KEYS)
    if h.experts is not None:
        found |= _stated(h.experts, EXPERT_KEYS)
    if h.states is not None:
        found |= _stated(h.states, STATE_KEYS)
    if h.n_heads:
        found |= {"attention.key_length": u32(h.head_dim), "attention.value_length": u32(h.head_dim)}
    if h.rope is not None:
        found |= {
            "rope.freq_base": f32(h.rope.theta),
            "rope.dimension_count": u32(h.rope.n_rotated(h.head_dim)),
        }
        found |= _scaling(arch, h.rope, h, notes)
    if h.sliding_rope is not None:
        h.sliding_rope.require("default")  # files have no keys for more
        found["rope.freq_base_swa"] = f32(h.sliding_rope.theta)
    named = {f"{arch}.{key}": value for key, value in {**found, **h.extra}.items()}
    if h.n_token_types is not None:
        named["tokenizer.ggml.token_type_count"] = u32(h.n_token_types)
    return named


def _stated(
    record: HParams | Experts | StateSpace, keys: dict[str, tuple[str, Callable[[Any], Value]]]
) -> dict[str, Value]:
    values = ((key, make, getattr(record, field)) for field, (key, make) in keys.items())
    return {key: make(value) for key, make, value in values if value is not None}


def _scaling(arch: str, rope: Rope, h: HParams, notes: list[str]) -> dict[str, Value]:
    """Linear and YaRN scaling are keys, llama3's factors a tensor, LongRoPE has both; the rest is noted or refused."""
    if rope.scaling == "default":
        return {}
    if rope.scaling == "llama3":
        if arch not in _WITH_ROPE_FACTORS:
            raise UnsupportedError(
                f"{rope.path}: rope_type 'llama3', which llama.cpp does not compute for {arch}; known for it: "
                "default, linear, dynamic, yarn"
            )
        return {}
    if rope.scaling == "linear":
        return {"rope.scaling.type": string("linear"), "rope.scaling.factor": f32(rope.number("factor"))}
    if rope.scaling == "yarn":
        return yarn_keys(arch, rope, h.n_context, notes)
    if rope.scaling == "longrope" and arch in _LONGROPE:
        original = int(rope.number("original_max_position_embeddings", h.n_context))
        return {
            "rope.scaling.type": string("longrope"),
            "rope.scaling.attn_factor": f32(longrope_attention(rope, h.n_context)),
            "rope.scaling.original_context_length": u32(original),
        }
    if rope.scaling == "dynamic":
        notes.append(
            "rope scaling 'dynamic' is left out, which llama.cpp does not compute: "
            "the model is exact up to the context it was first trained for"
        )
        return {}
    raise UnsupportedError(
        f"{rope.path}: rope_type {excerpt(rope.scaling)} is not known for this architecture; "
        "known: default, linear, dynamic, llama3, yarn"
    )


def rope_factors(h: HParams) -> list[PlannedTensor]:
    """What divides the rotary frequencies, where the scaling is of that kind: float32 [rotated dimensions / 2].

    LongRoPE has two such tensors, of which llama.cpp takes one by the size of the session's context.
    """
    rope = h.rope
    if rope is None:
        return []
    n_rotated = rope.n_rotated(h.head_dim)
    if rope.scaling == "llama3":
        return [_computed("rope_freqs.weight", llama3_factors(rope, n_rotated, h.n_context))]
    if rope.scaling == "longrope":
        return [
            _computed("rope_factors_long.weight", rope.factors("long_factor", n_rotated // 2)),
            _computed("rope_factors_short.weight", rope.factors("short_factor", n_rotated // 2)),
        ]
    return []


def _computed(name: str, values: Sequence[float]) -> PlannedTensor:
    shape, type = (len(values),), TensorType.F32
    return PlannedTensor(name, shape, type, (Computed(tuple(values)),), 0, tensor_bytes(type, shape), wanted=type)
