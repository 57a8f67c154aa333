"""config.json from metadata: what it says gives the same metadata again."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Final

import pytest

from llmkit.convert.archs import FAMILIES, ConfigReader, Family, HParams, Presence
from llmkit.convert.gguf_keys import architecture_metadata, rope_factors
from llmkit.convert.gguf_source import GGUFSource
from llmkit.convert.matching import expected_rules
from llmkit.convert.restore.hparams import read_hparams
from llmkit.formats.gguf import Value, ValueType, array, f32, u32
from llmkit.types import TensorInfo
from tests.convert.archs.configs import SIZES

FILE: Final = Path("m.gguf")
BY_NAME: Final = {family.model_type: family for family in FAMILIES}
YARN: Final = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 128}
LINEAR: Final = {"rope_type": "linear", "factor": 8.0}
WINDOWS: Final = ["full_attention", "sliding_attention", "sliding_attention", "full_attention"]
KV: Final = {"num_key_value_heads": 2}


def family_and_config(model_type: str, **values: Any) -> tuple[Family, HParams]:
    family = BY_NAME[model_type]
    return family, family.read_hparams(ConfigReader(FILE, {**SIZES, **values}))


def source_of(family: Family, h: HParams, metadata: dict[str, Value]) -> GGUFSource:
    """A file of these hyper-parameters, without rotary factors and values."""
    assert not rope_factors(h)
    tensors = []
    for rule, block in expected_rules(family, h):
        is_there = rule.presence(h) is Presence.REQUIRED
        if is_there:
            name = rule.role if block is None else f"blk.{block}.{rule.role}"
            tensors.append(TensorInfo(name, "F32", rule.shape(h), FILE, 0, 0))
    return GGUFSource((FILE,), metadata, tuple(tensors), 32)


def config_of(family: Family, source: GGUFSource) -> dict[str, Any]:
    assert family.write_config is not None
    return family.write_config(read_hparams(source, family.gguf_architecture))


@pytest.mark.parametrize(
    ("model_type", "values"),
    [
        ("gemma", {"head_dim": 32, **KV}),
        ("gemma", {"rope_scaling": LINEAR, **KV}),
        ("gemma2", {"query_pre_attn_scalar": 256, "layer_types": WINDOWS, **KV}),
        ("gemma2", {"attn_logit_softcapping": 20.0, "final_logit_softcapping": 10.0, "sliding_window": 128, **KV}),
        ("gemma2", {"num_hidden_layers": 46, "query_pre_attn_scalar": 16, **KV}),
        ("gemma3", {"num_hidden_layers": 7, "rope_scaling": LINEAR, "rope_local_base_freq": 5000.0, **KV}),
        ("gemma3", {"layer_types": WINDOWS, "final_logit_softcapping": 30.0, **KV}),
        ("gemma3", {"layer_types": ["full_attention"] * 4, **KV}),
        ("gemma3", {"num_hidden_layers": 62, "query_pre_attn_scalar": 16, "tie_word_embeddings": False, **KV}),
        ("mixtral", {"num_local_experts": 6, "num_experts_per_tok": 3, **KV}),
        ("olmoe", {"num_experts": 6, "num_experts_per_tok": 3, "rope_theta": 5e5}),
        ("phi", {"partial_rotary_factor": 1.0}),
        ("phi", {"hidden_size": 320, "partial_rotary_factor": 0.4, "rope_scaling": LINEAR}),
        ("phi3", {"sliding_window": None, **KV}),
        ("phi3", {"sliding_window": 2047, "partial_rotary_factor": 0.75, "original_max_position_embeddings": 64}),
        ("qwen2", {"tie_word_embeddings": True, **KV}),
        ("qwen2", {"rope_scaling": YARN, "rope_theta": 1e6, **KV}),
        ("qwen2_moe", {"num_experts": 6, "shared_expert_intermediate_size": 80, **KV}),
        ("qwen2_moe", {"moe_intermediate_size": 32, "qkv_bias": False, **KV}),
        ("qwen3", {"head_dim": 32, **KV}),
        ("qwen3_moe", {"norm_topk_prob": True, "moe_intermediate_size": 40, **KV}),
        ("qwen3_moe", {"norm_topk_prob": True, "tie_word_embeddings": True, "rope_scaling": YARN, **KV}),
        ("smollm3", {"tie_word_embeddings": True, **KV}),
    ],
)
def test_the_config_that_comes_back_says_the_same(model_type: str, values: dict[str, Any]) -> None:
    family, h = family_and_config(model_type, **values)
    metadata = architecture_metadata(family.gguf_architecture, h, [])
    config = config_of(family, source_of(family, h, metadata))
    again = family.read_hparams(ConfigReader(FILE, config))
    assert architecture_metadata(family.gguf_architecture, again, []) == metadata
    assert again.tied_embeddings == h.tied_embeddings
    assert again.attention_bias == h.attention_bias or model_type == "qwen2"  # which has no switch


@pytest.mark.parametrize(
    ("stated", "sliding"),
    [(u32(2), (True, False, True, False)), (u32(0), (True,) * 4), (u32(1), (False,) * 4)],
)
def test_windows_stated_as_a_number(stated: Value, sliding: tuple[bool, ...]) -> None:
    family, h = family_and_config("gemma3", **KV)
    metadata = architecture_metadata("gemma3", h, [])
    source = source_of(family, h, {**metadata, "gemma3.attention.sliding_window_pattern": stated})
    assert read_hparams(source, "gemma3").sliding_layers == sliding
    assert config_of(family, source)["layer_types"] == [
        "sliding_attention" if slides else "full_attention" for slides in sliding
    ]


def test_windows_stated_one_by_one() -> None:
    family, h = family_and_config("gemma2", **KV)
    listed = array(ValueType.BOOL, (True, True, False, True))
    metadata = {**architecture_metadata("gemma2", h, []), "gemma2.attention.sliding_window_pattern": listed}
    assert read_hparams(source_of(family, h, metadata), "gemma2").sliding_layers == (True, True, False, True)


def test_what_a_file_of_gemma_2_leaves_out_is_what_llama_cpp_assumes() -> None:
    family, h = family_and_config("gemma2", **KV)
    stated = architecture_metadata("gemma2", h, [])
    left_out = ("softcapping", "sliding_window", "freq_base", "dimension_count")
    config = config_of(family, source_of(family, h, {k: v for k, v in stated.items() if not k.endswith(left_out)}))
    found = {key: config[key] for key in ("attn_logit_softcapping", "final_logit_softcapping", "sliding_window")}
    assert found == {"attn_logit_softcapping": 50.0, "final_logit_softcapping": 30.0, "sliding_window": 4096}
    assert config["rope_theta"] == 10000.0


@pytest.mark.parametrize("head_dim", [80, 100, 96, 128, 256])
def test_every_share_of_a_head_comes_back(head_dim: int) -> None:
    family, h = family_and_config("phi", hidden_size=4 * head_dim)
    metadata = architecture_metadata("phi2", h, [])
    for rotated in range(2, head_dim + 1, 2):
        source = source_of(family, h, {**metadata, "phi2.rope.dimension_count": u32(rotated)})
        config = config_of(family, source)
        assert int(head_dim * config["partial_rotary_factor"]) == rotated
        assert family.read_hparams(ConfigReader(FILE, config)).rope.n_rotated(head_dim) == rotated  # type: ignore[union-attr]


def test_a_rotary_base_of_the_windows() -> None:
    family, h = family_and_config("gemma3", **KV)
    metadata = {**architecture_metadata("gemma3", h, []), "gemma3.rope.freq_base_swa": f32(1e-5 * 3e9)}
    assert config_of(family, source_of(family, h, metadata))["rope_local_base_freq"] == 30000.0
