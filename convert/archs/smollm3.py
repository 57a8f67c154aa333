"""SmolLM3: Llama, but every fourth block does without rotary position embedding."""

from __future__ import annotations

from typing import Any

from llmkit.convert.archs import decoder, llama
from llmkit.convert.archs.config import ConfigReader, excerpt
from llmkit.convert.archs.hparams import HParams
from llmkit.convert.archs.rope import read_rope
from llmkit.convert.archs.rules import Family
from llmkit.convert.archs.structure import Structure
from llmkit.errors import UnsupportedError

# llama.cpp's graph has the number built in.
ROPELESS_INTERVAL = 4


def read_hparams(config: ConfigReader) -> HParams:
    """Hyper-parameters; what config.json leaves out has the default of transformers' SmolLM3Config."""
    for key in ("attention_bias", "mlp_bias"):
        config.require(key, (False,), False)
    hparams = decoder.read_decoder(
        config, n_kv_heads=4, n_context=32768, rope=read_rope(config, theta=2000000.0), tied=True
    )
    _require_interval(config, hparams.n_layers)
    return hparams


def _require_interval(config: ConfigReader, n_layers: int) -> None:
    """Refuse blocks with and without rotation (1 and 0) other than in the graph."""
    rotates = config.values.get("no_rope_layers")
    if rotates is None:
        config.require("no_rope_layer_interval", (ROPELESS_INTERVAL,), ROPELESS_INTERVAL)
        return
    computed = [int((i + 1) % ROPELESS_INTERVAL != 0) for i in range(n_layers)]
    if not isinstance(rotates, list) or rotates[:n_layers] != computed:
        raise UnsupportedError(
            f"{config.path}: no_rope_layers is {excerpt(rotates)}; this architecture is computed with a 0 in every "
            f"{ROPELESS_INTERVAL}th place and 1 elsewhere only"
        )


def write_config(h: HParams) -> dict[str, Any]:
    """`read_hparams` backwards."""
    return {**decoder.write_decoder(h), "no_rope_layer_interval": ROPELESS_INTERVAL}


def notes(config: ConfigReader, hparams: HParams) -> tuple[str, ...]:
    """llama.cpp attends to everything, also in the blocks that slide a window where the config turns that on."""
    if not config.boolean("use_sliding_window", False):
        return ()
    return decoder.unused_window(config.values.get("sliding_window"), hparams)


def _rotates(hparams: HParams, block: int) -> bool:
    return (block + 1) % ROPELESS_INTERVAL != 0


def _with_windows(config: ConfigReader, hparams: HParams) -> HParams:
    """Where `layer_types` does not list them, the blocks without rotation have the window."""
    kinds = [decoder.FULL if _rotates(hparams, i) else decoder.SLIDING for i in range(hparams.n_layers)]
    return decoder.with_windows_of_some(config.filled({"layer_types": kinds}), hparams)


FAMILY = Family(
    model_type="smollm3",
    architectures=("SmolLM3ForCausalLM",),
    gguf_architecture="smollm3",
    read_hparams=read_hparams,
    write_config=write_config,
    tensors=llama.TENSORS,
    notes=notes,
    structure=Structure(rotates=_rotates, complete=_with_windows),
)
