"""GPT-OSS: a mixture of experts with biases throughout, attention sinks, and a sliding window in every other block.

Published checkpoints store the experts as MXFP4, which the target keeps bit for bit; transformers also saves them
unquantised, transposed. Gate and up rows alternate in both.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any, Final

from llmkit.convert.archs import blocks, decoder
from llmkit.convert.archs.config import ConfigReader, excerpt
from llmkit.convert.archs.hparams import Experts, HParams
from llmkit.convert.archs.rope import Rope, read_rope
from llmkit.convert.archs.rules import Family, Presence, Source, TensorRule, tensor
from llmkit.convert.archs.structure import Structure
from llmkit.convert.transforms import View
from llmkit.errors import UnsupportedError

_EXPERTS: Final = blocks.MLP + "experts."
# What transformers' GptOssConfig computes where config.json says nothing.
_DEFAULT_ROPE: Final[dict[str, Any]] = {"factor": 32.0, "original_max_position_embeddings": 4096, "truncate": False}
# The activation's constants in llama.cpp (src/llama-graph.cpp).
_ALPHA: Final = 1.702
_LIMIT: Final = 7.0


def read_hparams(config: ConfigReader) -> HParams:
    """Hyper-parameters; what config.json leaves out has the default of transformers' GptOssConfig."""
    for key, value in (("swiglu_alpha", _ALPHA), ("swiglu_limit", _LIMIT)):
        if config.number(key, value) != value:
            raise UnsupportedError(f"{config.path}: {key} {excerpt(config.values[key])}; llama.cpp computes {value}")
    if not config.boolean("attention_bias", True):
        raise UnsupportedError(f"{config.path}: attention_bias false; llama.cpp's architecture has these biases")
    h = decoder.read_decoder(
        config, n_context=131072, n_kv_heads=8, head_dim=64, rms_eps=1e-5, rope=_rope(config, truncated=True)
    )
    experts = Experts(
        n_experts=config.integer("num_local_experts", 128), n_used=config.integer("num_experts_per_tok", 4), n_ff=h.n_ff
    )
    return replace(
        h,
        attention_bias=True,
        experts=experts,
        sliding_window=config.integer("sliding_window", 128),
        sliding_layers=_sliding_layers(config, h.n_layers),
    )


def _rope(config: ConfigReader, truncated: bool = False) -> Rope:
    """The rotary settings; `truncated` as llama.cpp computes them, whatever config.json says."""
    rope = read_rope(config, theta=150000.0)
    if not (config.object("rope_parameters") or config.object("rope_scaling")):
        rope = replace(rope, scaling="yarn", parameters={**_DEFAULT_ROPE})
    if truncated:
        rope = replace(rope, parameters={key: value for key, value in rope.parameters.items() if key != "truncate"})
    return rope


def _sliding_layers(config: ConfigReader, n_layers: int) -> tuple[bool, ...] | None:
    """Which blocks have the window; None for every other one from the first on, which llama.cpp expects."""
    found = config.values.get("layer_types")
    if found is None:
        return None
    layers = decoder.named_layers(found, n_layers)
    if layers is None:
        raise UnsupportedError(
            f"{config.path}: layer_types {excerpt(found)}; expected {n_layers} of {decoder.FULL} and {decoder.SLIDING}"
        )
    return None if layers == _every_other(n_layers) else layers


def _every_other(n_layers: int) -> tuple[bool, ...]:
    return tuple(i % 2 == 0 for i in range(n_layers))


def write_config(h: HParams) -> dict[str, Any]:
    """`read_hparams` backwards."""
    experts = blocks.experts_of(h)
    config = decoder.write_decoder(h)
    if config.get("rope_scaling") is None:
        config["rope_scaling"] = {"rope_type": "default"}  # transformers takes nothing for the published scaling
    return {
        **config,
        "swiglu_limit": _LIMIT,
        "num_local_experts": experts.n_experts,
        "num_experts_per_tok": experts.n_used,
        "sliding_window": h.sliding_window,
        **decoder.write_sliding_layers(h.sliding_layers or _every_other(h.n_layers)),
    }


def from_file(metadata: ConfigReader, h: HParams) -> HParams:
    """Published models have `truncate` false, which a file cannot say: the rest of their scaling stands for it."""
    published = {**_DEFAULT_ROPE, "beta_fast": 32.0, "beta_slow": 1.0}
    rope = h.rope
    if rope is None or rope.scaling != "yarn" or {**published, **rope.parameters} != published:
        return h
    return replace(h, rope=replace(rope, parameters={**rope.parameters, "truncate": False}))


def notes(config: ConfigReader, hparams: HParams) -> tuple[str, ...]:
    """YaRN blends frequencies between two dimensions, whose fractions count in transformers and not in llama.cpp."""
    rope = _rope(config)
    if rope.scaling == "yarn" and rope.parameters.get("truncate") is False:
        return (
            "rope scaling 'yarn' has truncate false, and llama.cpp truncates: rotary frequencies within YaRN's ramp "
            "differ slightly, as in every GGUF file of this architecture",
        )
    return ()


def _matrix(role: str, name: str, rows: blocks.Size, columns: blocks.Size, place: int | None = None) -> TensorRule:
    """Matrices of the experts [experts, rows, columns], every other row of which counts if a `place` is given."""

    def pick(stored: View, axis: int) -> View:
        return stored if place is None else stored.part(axis, place, None, 2)

    def n_rows(h: HParams) -> int:
        return rows(h) if place is None else 2 * rows(h)

    def n_experts(h: HParams) -> int:
        return blocks.experts_of(h).n_experts

    return tensor(
        f"{role}.weight",
        lambda h: (n_experts(h), rows(h), columns(h)),
        Source(
            f"{_EXPERTS}{name}",
            stored=lambda h: (n_experts(h), columns(h), n_rows(h)),
            view=lambda h, stored: pick(stored.swap(1, 2), 1),
        ),
        Source(
            f"{_EXPERTS}{name}_blocks",
            stored=lambda h: (n_experts(h), n_rows(h), columns(h)),
            view=lambda h, stored: pick(stored, 1),
        ),
    )


def _bias(role: str, name: str, rows: blocks.Size, place: int | None = None) -> TensorRule:
    return tensor(
        f"{role}.bias",
        lambda h: (blocks.experts_of(h).n_experts, rows(h)),
        Source(
            f"{_EXPERTS}{name}_bias",
            stored=lambda h: (blocks.experts_of(h).n_experts, rows(h) if place is None else 2 * rows(h)),
            view=lambda h, stored: stored if place is None else stored.part(1, place, None, 2),
        ),
    )


def _required(h: HParams) -> Presence:
    return Presence.REQUIRED


TENSORS = (
    *blocks.embedding(),
    *blocks.norm("attn_norm", "model.layers.{i}.input_layernorm"),
    *blocks.attention(bias=_required, output_bias=_required),
    tensor("attn_sinks.weight", lambda h: (h.n_heads,), blocks.ATTENTION + "sinks"),
    *blocks.norm("post_attention_norm", "model.layers.{i}.post_attention_layernorm"),
    *blocks.linear(
        "ffn_gate_inp", lambda h: blocks.experts_of(h).n_experts, blocks.embd, blocks.MLP + "router", bias=_required
    ),
    _matrix("ffn_gate_exps", "gate_up_proj", blocks.ff, blocks.embd, 0),
    _bias("ffn_gate_exps", "gate_up_proj", blocks.ff, 0),
    _matrix("ffn_up_exps", "gate_up_proj", blocks.ff, blocks.embd, 1),
    _bias("ffn_up_exps", "gate_up_proj", blocks.ff, 1),
    _matrix("ffn_down_exps", "down_proj", blocks.embd, blocks.ff),
    _bias("ffn_down_exps", "down_proj", blocks.embd),
    *blocks.norm("output_norm", "model.norm"),
    *blocks.head(),
)

FAMILY = Family(
    model_type="gpt_oss",
    architectures=("GptOssForCausalLM",),
    gguf_architecture="gpt-oss",
    read_hparams=read_hparams,
    tensors=TENSORS,
    notes=notes,
    write_config=write_config,
    from_file=from_file,
    structure=Structure(
        norm_before_mlp="post_attention_norm",
        activation="swiglu_oss",
        gate_alpha=_ALPHA,
        gate_limit=_LIMIT,
        slides=lambda h, i: i % 2 == 0,
        complete=lambda config, h: replace(h, rope=_rope(config)),  # llama.cpp truncates YaRN's ramp
    ),
)
