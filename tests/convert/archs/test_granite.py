"""Granite 3 and 4: multipliers, names of tensors in both generations, and what is not converted."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Final

import numpy as np
import pytest

from llmkit.convert.archs import FAMILIES, ConfigReader
from llmkit.convert.checkpoint import open_checkpoint
from llmkit.convert.matching import match_tensors
from llmkit.errors import FormatError, UnsupportedError
from tests.convert.archs.configs import SIZES, defaults, read
from tests.tinymodels import write_json, write_raw_safetensors

DENSE: Final = {"layer_types": ["attention"] * 4, "num_local_experts": 0}


@pytest.mark.parametrize("model_type", ["granite", "granitemoe", "granitemoehybrid", "granitemoeshared"])
def test_defaults_are_those_of_transformers(model_type: str) -> None:
    more = DENSE if model_type == "granitemoehybrid" else {}
    found, expected = read(model_type, **more), defaults(model_type)
    assert found.n_context == expected.max_position_embeddings
    assert found.n_kv_heads == expected.num_key_value_heads
    assert found.rms_eps == expected.rms_norm_eps
    assert found.attention_scale == expected.attention_multiplier
    assert found.embedding_scale == expected.embedding_multiplier
    assert found.residual_scale == expected.residual_multiplier
    assert found.logit_scale == expected.logits_scaling
    if found.experts is not None:
        assert found.experts.n_experts == expected.num_local_experts
        assert found.experts.n_used == expected.num_experts_per_tok
        assert (found.experts.n_ff_shared or 0) == getattr(expected, "shared_intermediate_size", 0)
    if model_type == "granitemoehybrid":
        assert found.n_ff == expected.shared_intermediate_size
        assert found.rope is expected.position_embedding_type is None
    else:
        assert found.rope is not None
        assert found.rope.theta == expected.rope_parameters["rope_theta"]


@pytest.mark.parametrize("name", ["attention", "full_attention"])
def test_blocks_of_granite_4_have_names_of_either_generation(name: str) -> None:
    found = read("granitemoehybrid", **{**DENSE, "layer_types": [name] * 4}, position_embedding_type="rope")
    assert found.rope is not None
    assert found.extra["rope.scaling.finetuned"].data is True


def moe_checkpoint(folder: Path, names: tuple[str, str, str]) -> Path:
    """A checkpoint of one block with 3 experts, whose router, input and output matrices have these names."""
    folder.mkdir()
    sizes = {**SIZES, "num_hidden_layers": 1, "num_local_experts": 3, "tie_word_embeddings": True}
    write_json(folder / "config.json", {"architectures": ["GraniteMoeForCausalLM"], **sizes})
    layer = "model.layers.0."
    shapes = {
        "model.embed_tokens.weight": (320, 64),
        "model.norm.weight": (64,),
        layer + "input_layernorm.weight": (64,),
        layer + "post_attention_layernorm.weight": (64,),
        **{f"{layer}self_attn.{part}_proj.weight": (64, 64) for part in "qkvo"},
        layer + "block_sparse_moe." + names[0]: (3, 64),
        layer + "block_sparse_moe." + names[1]: (3, 192, 64),
        layer + "block_sparse_moe." + names[2]: (3, 64, 96),
    }
    write_raw_safetensors(
        folder / "model.safetensors", {n: ("F32", s, np.zeros(s, np.float32).tobytes()) for n, s in shapes.items()}
    )
    return folder


def test_experts_have_names_of_either_generation(tmp_path: Path) -> None:
    names = [
        ("router.layer.weight", "input_linear.weight", "output_linear.weight"),
        ("router.weight", "experts.gate_up_proj", "experts.down_proj"),
    ]
    found = []
    (family,) = (family for family in FAMILIES if family.model_type == "granitemoe")
    for i, generation in enumerate(names):
        checkpoint = open_checkpoint(moe_checkpoint(tmp_path / str(i), generation))
        hparams = family.read_hparams(ConfigReader(checkpoint.folder / "config.json", checkpoint.config))
        matched, _ = match_tensors(family, hparams, checkpoint, checkpoint.tensors)
        experts = {m.name: m.parts[0].view for m in matched if "ffn" in m.name}
        assert experts["blk.0.ffn_gate_exps.weight"].shape == (3, 96, 64)
        assert experts["blk.0.ffn_gate_exps.weight"].offset == 0
        assert experts["blk.0.ffn_up_exps.weight"].offset == 96 * 64
        found.append(experts)
    assert found[0] == found[1]


@pytest.mark.parametrize(
    ("model_type", "values", "words"),
    [
        ("granitemoehybrid", {**DENSE, "layer_types": ["mamba", "attention"]}, r"layer_types is .*'mamba'"),
        ("granitemoehybrid", {"num_local_experts": 0}, "layer_types is None"),
        ("granitemoehybrid", {**DENSE, "num_local_experts": 8}, "num_local_experts is 8"),
        ("granitemoehybrid", {"layer_types": ["attention"] * 4}, "num_local_experts is 8"),
    ],
)
def test_refused(model_type: str, values: dict[str, Any], words: str) -> None:
    with pytest.raises(UnsupportedError, match=words):
        read(model_type, **values)


def test_more_experts_than_there_are_cannot_be_used() -> None:
    with pytest.raises(FormatError, match="num_experts_per_tok must be an integer from 1 to 4, found 5"):
        read("granitemoe", num_local_experts=4, num_experts_per_tok=5)
