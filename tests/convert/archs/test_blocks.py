"""Parts that families are built of, on checkpoints of which only the headers are there."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from llmkit.convert.archs import ConfigReader, find_family
from llmkit.convert.checkpoint import Checkpoint
from llmkit.convert.matching import MatchedTensor, match_tensors
from llmkit.errors import FormatError
from llmkit.types import TensorInfo

SIZES = {"hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 1, "num_attention_heads": 4, "vocab_size": 9}
NEMOTRON = {
    "lm_head.weight": (9, 64),
    "model.embed_tokens.weight": (9, 64),
    "model.norm.weight": (64,),
    "model.norm.bias": (64,),
    **{f"model.layers.0.self_attn.{part}_proj.weight": (64, 64) for part in "qkvo"},
    "model.layers.0.mlp.up_proj.weight": (96, 64),
    "model.layers.0.mlp.down_proj.weight": (64, 96),
    **{
        f"model.layers.0.{norm}_layernorm.{kind}": (64,)
        for norm in ("input", "post_attention")
        for kind in ("weight", "bias")
    },
}


def match(without: str, **changes: Any) -> tuple[list[MatchedTensor], list[str]]:
    path = Path("model.safetensors")
    tensors = {name: TensorInfo(name, "F32", shape, path, 0, 0) for name, shape in NEMOTRON.items() if name != without}
    config = {"architectures": ["NemotronForCausalLM"], **SIZES, **changes}
    reader = ConfigReader(Path("config.json"), config)
    family = find_family(reader)
    checkpoint = Checkpoint(Path("folder"), config, tensors, (path,), {})
    return match_tensors(family, family.read_hparams(reader), checkpoint, tensors)


def source_of_output(matched: list[MatchedTensor]) -> str:
    return next(m.parts[0].tensor.name for m in matched if m.name == "output.weight")


def test_a_graph_that_needs_an_output_matrix_gets_the_embedding_twice_if_they_are_tied() -> None:
    matched, notes = match("lm_head.weight", tie_word_embeddings=True)
    assert source_of_output(matched) == "model.embed_tokens.weight"
    assert notes == []
    matched, notes = match("", tie_word_embeddings=True)
    assert source_of_output(matched) == "lm_head.weight"
    assert "holds it too" in notes[0]


def test_an_output_matrix_that_is_missing_is_not_taken_for_tied() -> None:
    with pytest.raises(FormatError, match=r"'lm_head.weight'.* missing"):
        match("lm_head.weight")
