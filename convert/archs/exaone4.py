"""EXAONE 4.0: norms after attention and MLP; the largest has sliding windows, and no positions in layers without."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, Final

from llmkit.convert.archs import blocks, decoder
from llmkit.convert.archs.config import ConfigReader, excerpt
from llmkit.convert.archs.hparams import HParams
from llmkit.convert.archs.rules import Family
from llmkit.errors import FormatError, UnsupportedError

# llama.cpp computes sliding windows if a model has as many layers, and only then.
_LAYERS_WITH_WINDOWS: Final = 64


def read_hparams(config: ConfigReader) -> HParams:
    """Hyper-parameters; what config.json leaves out has the default of transformers' Exaone4Config."""
    h = decoder.read_decoder(config, n_context=2048, n_kv_heads=32, rms_eps=1e-5)
    if h.n_heads * h.head_dim != h.n_embd:
        raise UnsupportedError(
            f"{config.path}: num_attention_heads {h.n_heads} times head_dim {h.head_dim} is not hidden_size "
            f"{h.n_embd}; llama.cpp computes this architecture with equal widths only"
        )
    window = _window(config)
    layers = _sliding_layers(config, h.n_layers) if window is not None else (False,) * h.n_layers
    if (window is not None) != (h.n_layers == _LAYERS_WITH_WINDOWS):
        raise UnsupportedError(
            f"{config.path}: sliding_window {window} with num_hidden_layers {h.n_layers}; llama.cpp computes this "
            f"architecture with windows if it has {_LAYERS_WITH_WINDOWS} layers, and without if not"
        )
    return replace(h, sliding_window=window, sliding_layers=None if window is None else layers)


def write_config(h: HParams) -> dict[str, Any]:
    """`read_hparams` backwards."""
    found = decoder.write_decoder(h)
    if h.n_layers != _LAYERS_WITH_WINDOWS:
        return {**found, "sliding_window": None, **decoder.write_sliding_layers((False,) * h.n_layers)}
    # What llama.cpp computes where the file says nothing.
    layers = h.sliding_layers or tuple((i + 1) % 4 != 0 for i in range(h.n_layers))
    return {**found, "sliding_window": h.sliding_window or 4096, **decoder.write_sliding_layers(layers)}


def _window(config: ConfigReader) -> int | None:
    """How many tokens a sliding layer attends to. A config that says null has none, one that says nothing 4096."""
    if "sliding_window" in config.values and config.values["sliding_window"] is None:
        return None
    return config.integer("sliding_window", 4096)


def _sliding_layers(config: ConfigReader, n_layers: int) -> tuple[bool, ...]:
    """For each layer whether it slides: stated one by one, as a pattern such as "LLLG", or as a period."""
    kinds = config.values.get("layer_types")
    if kinds is not None:
        layers = decoder.named_layers(kinds, n_layers)
        if layers is None:
            names = f"{decoder.SLIDING} or {decoder.FULL}"
            raise FormatError(
                config.path, f"layer_types must name {names} for {n_layers} layers, found {excerpt(kinds)}"
            )
        return layers
    pattern = config.values.get("sliding_window_pattern")
    if isinstance(pattern, str) and pattern and not pattern.strip("LG"):
        # The last layer looks at everything, whatever the pattern says.
        return tuple(pattern[i % len(pattern)] == "L" and i < n_layers - 1 for i in range(n_layers))
    return decoder.all_but_every(config.integer("sliding_window_pattern", 4), n_layers)


FAMILY = Family(
    model_type="exaone4",
    architectures=("Exaone4ForCausalLM",),
    gguf_architecture="exaone4",
    read_hparams=read_hparams,
    write_config=write_config,
    tensors=(
        *blocks.embedding(),
        *blocks.attention(),
        *blocks.norm("attn_q_norm", blocks.ATTENTION + "q_norm", width=lambda h: h.head_dim),
        *blocks.norm("attn_k_norm", blocks.ATTENTION + "k_norm", width=lambda h: h.head_dim),
        *blocks.norm("post_attention_norm", "model.layers.{i}.post_attention_layernorm"),
        *blocks.gated_mlp(),
        *blocks.norm("post_ffw_norm", "model.layers.{i}.post_feedforward_layernorm"),
        *blocks.norm("output_norm", "model.norm"),
        *blocks.head(),
    ),
)
