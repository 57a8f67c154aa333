"""ModernBERT: rotary positions, gated MLPs, no biases; two of three blocks attend to the tokens near them only."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, Final

from llmkit.convert.archs import blocks, decoder, encoders
from llmkit.convert.archs.config import ConfigReader, excerpt
from llmkit.convert.archs.hparams import HParams
from llmkit.convert.archs.pooling import read_pooling
from llmkit.convert.archs.rope import read_rope
from llmkit.convert.archs.rules import Family, tensor
from llmkit.errors import FormatError
from llmkit.formats.gguf import Value, string, u32

LAYER = "layers.{i}."
_ARCHITECTURE: Final = "modern-bert"
_PATTERN: Final = "attention.sliding_window_pattern"
_ACTIVATION: Final = "hidden_activation"
_CLASSIFIER: Final = "classifier.pooling_type"
_BIASES: Final = ("attention_bias", "mlp_bias", "norm_bias")
_WINDOW: Final = 128  # tokens
_GLOBAL_THETA: Final = 160_000.0
_LOCAL_THETA: Final = 10_000.0
_GLOBAL: Final = decoder.FULL
_LOCAL: Final = decoder.SLIDING
_HEAD_POOLING: Final = {"mean": 1, "cls": 2}  # llama.h, `enum llama_pooling_type`


def read_hparams(config: ConfigReader) -> HParams:
    """Hyper-parameters; what config.json leaves out has the default of transformers' ModernBertConfig."""
    config.require("hidden_activation", ("gelu",), "gelu")
    for key in _BIASES:
        if config.boolean(key, False):
            raise FormatError(config.path, f"{key} is true; this architecture has no biases")
    heads = decoder.Heads(config)
    layers = _local_layers(config)
    thetas = ((_GLOBAL, "global_rope_theta", _GLOBAL_THETA), (_LOCAL, "local_rope_theta", _LOCAL_THETA))
    rope, near = (read_rope(config, theta=config.number(older, theta), layers=layer) for layer, older, theta in thetas)
    for found in (rope, near):
        if found.scaling != "default":
            raise FormatError(config.path, f"rope_type {excerpt(found.scaling)}: this architecture has no scaling")
    extra: dict[str, Value] = {
        "rope.scaling.type": string("none"),
        _ACTIVATION: string("gelu"),
    }
    has_window = any(layers)  # llama.cpp ends the process where there is a window and no block has it
    if has_window and (every := _interval(layers)):
        extra[_PATTERN] = u32(every)
    head = config.values.get("classifier_pooling")
    if head in _HEAD_POOLING:  # of the head that scores texts; it is left out, as the one that predicts tokens is
        extra[_CLASSIFIER] = u32(_HEAD_POOLING[head])
    return HParams(
        n_layers=config.integer("num_hidden_layers"),
        n_embd=config.integer("hidden_size"),
        n_ff=config.integer("intermediate_size"),
        n_heads=heads.n_heads,
        n_kv_heads=heads.n_kv_heads,
        head_dim=heads.head_dim,
        n_vocab=config.integer("vocab_size"),
        n_context=config.integer("max_position_embeddings", 8192),
        norm_eps=config.number("norm_eps", 1e-5),
        rope=rope,
        sliding_rope=near,
        sliding_window=config.integer("local_attention", _WINDOW) if has_window else None,
        sliding_layers=layers if has_window else None,
        tied_embeddings=True,
        causal=False,
        pooling=read_pooling(config.path.parent),
        extra=extra,
    )


def _local_layers(config: ConfigReader) -> tuple[bool, ...]:
    """For each block, whether it attends to the tokens near it only; the first and every third from there do not."""
    n_layers = config.integer("num_hidden_layers")
    types = config.values.get("layer_types")
    if types is None:
        every = config.integer("global_attn_every_n_layers", 3)
        return _all_but_first_of(every, n_layers)
    layers = decoder.named_layers(types, n_layers)
    if layers is None:
        raise FormatError(
            config.path, f"layer_types must name {_GLOBAL} or {_LOCAL} for {n_layers} blocks: {excerpt(types)}"
        )
    if all(layers):
        raise FormatError(config.path, f"layer_types: no block has {_GLOBAL}, which llama.cpp needs one for")
    return layers


def _all_but_first_of(every: int, n_layers: int) -> tuple[bool, ...]:
    """For each block, whether it is not the first of `every` blocks."""
    return tuple(i % every != 0 for i in range(n_layers))


def _interval(layers: tuple[bool, ...]) -> int | None:
    """Every how many blocks one attends to the whole text, the first being such; None if they are otherwise."""
    wide = [i for i, is_local in enumerate(layers) if not is_local]
    every = wide[1] if len(wide) > 1 else len(layers)
    return every if wide == list(range(0, len(layers), every)) else None


def from_file(metadata: ConfigReader, hparams: HParams) -> HParams:
    """The hyper-parameters with the pattern of blocks as this architecture counts: the first attends to everything."""
    activation = f"{_ARCHITECTURE}.{_ACTIVATION}"
    if metadata.values.get(activation, "gelu") != "gelu":
        raise metadata.unsupported(activation, metadata.values[activation], "llmkit knows this architecture with gelu")
    layers = hparams.sliding_layers if hparams.sliding_window else None
    every = metadata.values.get(f"{_ARCHITECTURE}.{_PATTERN}")
    if layers is not None and isinstance(every, int):
        layers = _all_but_first_of(every, hparams.n_layers)
    return replace(hparams, sliding_layers=layers)


def write_config(h: HParams) -> dict[str, Any]:
    """`read_hparams` backwards."""
    near = h.rope if h.sliding_rope is None else h.sliding_rope
    config: dict[str, Any] = {
        "vocab_size": h.n_vocab,
        "hidden_size": h.n_embd,
        "intermediate_size": h.n_ff,
        "num_hidden_layers": h.n_layers,
        "num_attention_heads": h.n_heads,
        "hidden_activation": "gelu",
        "max_position_embeddings": h.n_context,
        "norm_eps": h.norm_eps,
        **dict.fromkeys(_BIASES, False),
        "global_rope_theta": _GLOBAL_THETA if h.rope is None else h.rope.theta,
        "local_rope_theta": _LOCAL_THETA if near is None else near.theta,
        "local_attention": h.sliding_window or _WINDOW,
        **decoder.write_sliding_layers(h.sliding_layers or (False,) * h.n_layers),
    }
    head = h.extra.get(_CLASSIFIER)
    for name, number in _HEAD_POOLING.items():
        if head is not None and head.data == number:
            config["classifier_pooling"] = name
    return config


FAMILY = Family(
    model_type="modernbert",
    architectures=("ModernBertModel", "ModernBertForMaskedLM"),
    gguf_architecture=_ARCHITECTURE,
    read_hparams=read_hparams,
    write_config=write_config,
    from_file=from_file,
    tokenizers=("gpt2",),
    tensors=(
        *blocks.embedding("embeddings.tok_embeddings"),
        *blocks.norm("token_embd_norm", "embeddings.norm"),
        # The first block attends to what the norm of the embeddings gives.
        tensor("attn_norm.weight", lambda h: (h.n_embd,), LAYER + "attn_norm.weight", blocks=lambda h, i: i > 0),
        tensor(
            "attn_qkv.weight", lambda h: (blocks.queries(h) + 2 * blocks.keys(h), h.n_embd), LAYER + "attn.Wqkv.weight"
        ),
        *blocks.linear("attn_output", blocks.embd, blocks.queries, LAYER + "attn.Wo"),
        *blocks.norm("ffn_norm", LAYER + "mlp_norm"),
        *blocks.linear("ffn_up", lambda h: 2 * h.n_ff, blocks.embd, LAYER + "mlp.Wi"),
        *blocks.linear("ffn_down", blocks.embd, blocks.ff, LAYER + "mlp.Wo"),
        *blocks.norm("output_norm", "final_norm"),
    ),
    unused=(r"(head|decoder)\..*",),
    prefixes=(("model.", ""),),
    notes=encoders.notes,
)
