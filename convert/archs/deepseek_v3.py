"""DeepSeek-V3, R1, Moonlight and Kimi-K2: V2 with another router and layers that predict further tokens."""

from __future__ import annotations

from typing import Any

from llmkit.convert.archs import blocks
from llmkit.convert.archs.config import ConfigReader
from llmkit.convert.archs.deepseek_v2 import (
    dense_layers,
    expert_groups,
    has_experts,
    read_deepseek,
    tensors,
    write_deepseek,
    write_groups,
)
from llmkit.convert.archs.hparams import Experts, HParams
from llmkit.convert.archs.latent import read_latent
from llmkit.convert.archs.rules import Family, tensor
from llmkit.errors import UnsupportedError


def read_hparams(config: ConfigReader) -> HParams:
    """Hyper-parameters; what config.json leaves out has the default of transformers' DeepseekV3Config."""
    config.require("scoring_func", ("sigmoid",), "sigmoid")
    config.require("topk_method", ("noaux_tc",), "noaux_tc")
    if not config.boolean("rope_interleave", True):
        raise UnsupportedError(
            f"{config.path}: rope_interleave is false; llama.cpp rotates neighbouring dimensions of this architecture"
        )
    experts = Experts(
        n_experts=config.integer("n_routed_experts", 256),
        n_used=config.integer("num_experts_per_tok", 8),
        n_ff=config.integer("moe_intermediate_size", 2048),
        n_shared=config.integer("n_shared_experts", 1),
        weights_scale=config.number("routed_scaling_factor", 2.5),
        weights_norm=config.boolean("norm_topk_prob", True) or None,
        gating="sigmoid",
        n_dense_layers=dense_layers(config, 3),
    )
    latent = read_latent(config, q_rank=1536, kv_rank=512, n_plain=128, n_rotated=64, n_values=128)
    return read_deepseek(config, latent, experts, expert_groups(config, experts, 8, 4), n_context=4096)


def write_config(h: HParams) -> dict[str, Any]:
    """`read_hparams` backwards; the layers that predict further tokens are not in the file."""
    return {
        **write_deepseek(h),
        **write_groups(h),
        "scoring_func": "sigmoid",
        "topk_method": "noaux_tc",
        "num_nextn_predict_layers": 0,
    }


_correction = tensor(
    "exp_probs_b.bias",
    lambda h: (blocks.experts_of(h).n_experts,),
    blocks.MLP + "gate.e_score_correction_bias",
    blocks=has_experts,
)

FAMILY = Family(
    model_type="deepseek_v3",
    architectures=("DeepseekV3ForCausalLM",),
    gguf_architecture="deepseek2",
    read_hparams=read_hparams,
    tensors=tensors(_correction),
    write_config=write_config,
    wrote=lambda h: blocks.experts_of(h).gating == "sigmoid",
    further_layers=r"model\.layers\.(\d{1,6})\..*",
)
