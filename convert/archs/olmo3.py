"""OLMo 3: OLMo 2 with sliding windows in three blocks of four, where the rotary embedding is not scaled."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from llmkit.convert.archs import decoder, olmo2
from llmkit.convert.archs.config import ConfigReader
from llmkit.convert.archs.hparams import HParams
from llmkit.convert.archs.rope import Rope, read_rope
from llmkit.convert.archs.rules import Family
from llmkit.formats.gguf import f32


def read_hparams(config: ConfigReader) -> HParams:
    """Hyper-parameters; what config.json leaves out has the default of transformers' Olmo3Config."""
    rope = _read_rope(config)
    found = olmo2.read_without_window(config, rope)
    return replace(
        found,
        sliding_window=decoder.read_window(config, 4096),
        sliding_layers=decoder.read_sliding_layers(config, found.n_layers),
        extra={"rope.freq_base_swa": f32(rope.theta)},
    )


def _read_rope(config: ConfigReader) -> Rope:
    """That of the blocks that attend to everything, once it is known that the others differ by the scaling only."""
    whole = read_rope(config, theta=500000.0, layers="full_attention")
    sliding = config.object("rope_parameters").get("sliding_attention")
    if isinstance(sliding, dict):
        windowed = read_rope(config, theta=500000.0, layers="sliding_attention")
        if windowed.scaling != "default" or windowed.theta != whole.theta:
            raise config.unsupported(
                "rope_parameters of sliding_attention",
                sliding,
                f"llama.cpp computes them without scaling, and with the rope_theta of full_attention, {whole.theta:g}",
            )
    return whole


def write_config(h: HParams) -> dict[str, Any]:
    """`read_hparams` backwards."""
    assert h.sliding_layers is not None, "a file of OLMo 3 lists its blocks"
    return {
        **decoder.write_decoder(h),
        "sliding_window": h.sliding_window,
        **decoder.write_sliding_layers(h.sliding_layers),
    }


FAMILY = Family(
    model_type="olmo3",
    architectures=("Olmo3ForCausalLM",),
    gguf_architecture="olmo2",
    read_hparams=read_hparams,
    tensors=olmo2.TENSORS,
    write_config=write_config,
    wrote=lambda h: h.sliding_window is not None and h.sliding_layers is not None,
)
