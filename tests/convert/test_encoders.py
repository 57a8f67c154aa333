"""Encoders: what their config.json and the files of sentence-transformers say, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from llmkit.convert.archs import ConfigReader, bert, modernbert, nomic_bert, roberta
from llmkit.convert.archs.pooling import read_pooling
from llmkit.errors import FormatError, LlmkitError, UnsupportedError

CONFIG: dict[str, Any] = {
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "vocab_size": 100,
}
NOMIC: dict[str, Any] = {"n_embd": 64, "n_inner": 96, "n_layer": 2, "n_head": 4, "vocab_size": 100}


def config(folder: Path, values: dict[str, Any], **changes: Any) -> ConfigReader:
    return ConfigReader(folder / "config.json", {**values, **changes})


def write_modules(folder: Path, pooling: object, *more: str) -> None:
    kinds = ["Transformer", "Pooling", *more]
    modules = [
        {"idx": i, "path": "" if i == 0 else f"{i}_{kind}", "type": f"sentence_transformers.models.{kind}"}
        for i, kind in enumerate(kinds)
    ]
    (folder / "modules.json").write_text(json.dumps(modules))
    (folder / "1_Pooling").mkdir()
    (folder / "1_Pooling" / "config.json").write_text(json.dumps(pooling))


@pytest.mark.parametrize(
    ("pooling", "expected"),
    [
        ({"pooling_mode_mean_tokens": True, "pooling_mode_cls_token": False}, "mean"),
        ({"pooling_mode_mean_tokens": False, "pooling_mode_cls_token": True}, "cls"),
        ({"pooling_mode_lasttoken": True}, "last"),
        ({"embedding_dimension": 64, "pooling_mode": "mean"}, "mean"),
        ({"pooling_mode": "lasttoken"}, "last"),
    ],
)
def test_pooling(pooling: dict[str, Any], expected: str, tmp_path: Path) -> None:
    assert read_pooling(tmp_path) is None
    write_modules(tmp_path, pooling, "Normalize")
    assert read_pooling(tmp_path) == expected


@pytest.mark.parametrize(
    ("pooling", "more", "kind", "fragment"),
    [
        ({"pooling_mode_max_tokens": True}, (), UnsupportedError, "pooling_mode_max_tokens"),
        ({"pooling_mode_mean_tokens": True, "pooling_mode_cls_token": True}, (), UnsupportedError, "pooling"),
        ({}, (), UnsupportedError, "pooling 'unknown'"),
        ({"pooling_mode": "weightedmean"}, (), UnsupportedError, "weightedmean"),
        ([], (), FormatError, "expected a JSON object"),
        ({"pooling_mode": "mean"}, ("Dense",), UnsupportedError, "models.Dense"),
    ],
)
def test_unknown_pooling(
    pooling: object, more: tuple[str, ...], kind: type[LlmkitError], fragment: str, tmp_path: Path
) -> None:
    write_modules(tmp_path, pooling, *more)
    with pytest.raises(kind) as caught:
        read_pooling(tmp_path)
    assert fragment in str(caught.value)


@pytest.mark.parametrize(
    "modules", [{}, [1], [{"type": "Pooling"}], [{"type": "x.Pooling", "path": "../elsewhere"}], "x"]
)
def test_broken_modules(modules: object, tmp_path: Path) -> None:
    (tmp_path.parent / "elsewhere").mkdir(exist_ok=True)
    (tmp_path.parent / "elsewhere" / "config.json").write_text('{"pooling_mode": "mean"}')
    (tmp_path / "modules.json").write_text(json.dumps(modules))
    with pytest.raises(FormatError):
        read_pooling(tmp_path)


@pytest.mark.parametrize(
    ("changes", "fragment"),
    [
        ({"hidden_act": "relu"}, "hidden_act is 'relu'"),
        ({"position_embedding_type": "relative_key"}, "position_embedding_type is 'relative_key'"),
        ({"is_decoder": True}, "is_decoder is true"),
        ({"vocab_size": None}, "vocab_size is missing"),
    ],
)
def test_bert_that_llama_cpp_does_not_compute(changes: dict[str, Any], fragment: str, tmp_path: Path) -> None:
    with pytest.raises(LlmkitError, match=fragment):
        bert.FAMILY.read_hparams(config(tmp_path, CONFIG, **changes))


def test_positions_for_padding(tmp_path: Path) -> None:
    found = roberta.FAMILY.read_hparams(config(tmp_path, CONFIG, max_position_embeddings=514))
    assert (found.n_context, found.first_position) == (512, 2)
    found = roberta.FAMILY.read_hparams(config(tmp_path, CONFIG, max_position_embeddings=514, pad_token_id=0))
    assert (found.n_context, found.first_position) == (513, 1)
    with pytest.raises(FormatError, match="the first 2 are for padding"):
        roberta.FAMILY.read_hparams(config(tmp_path, CONFIG, max_position_embeddings=2))
    with pytest.raises(FormatError, match="pad_token_id"):
        roberta.FAMILY.read_hparams(config(tmp_path, CONFIG, pad_token_id=-1))


def test_notes(tmp_path: Path) -> None:
    reader = config(tmp_path, CONFIG)
    hparams = bert.FAMILY.read_hparams(reader)
    assert any("the mean is taken" in note for note in bert.FAMILY.notes(reader, hparams))
    write_modules(tmp_path, {"pooling_mode": "cls"})
    (tmp_path / "sentence_bert_config.json").write_text('{"max_seq_length": 128}')
    (note,) = bert.FAMILY.notes(reader, bert.FAMILY.read_hparams(reader))
    assert "after 128 tokens" in note


def test_both_configs_of_nomic(tmp_path: Path) -> None:
    published = {**NOMIC, "n_positions": 8192, "rotary_emb_base": 500, "activation_function": "swiglu"}
    newer = {**CONFIG, "rope_parameters": {"rope_type": "default", "rope_theta": 500.0}}
    found = [nomic_bert.FAMILY.read_hparams(config(tmp_path, values)) for values in (published, newer)]
    for hparams in found:
        assert (hparams.n_embd, hparams.n_ff, hparams.n_heads, hparams.n_context) == (64, 96, 4, 2048)
        assert hparams.rope is not None
        assert hparams.rope.theta == 500
    assert nomic_bert.FAMILY.read_hparams(config(tmp_path, NOMIC)).rope.theta == 1000  # type: ignore[union-attr]


@pytest.mark.parametrize(
    "changes",
    [
        {"qkv_proj_bias": True},
        {"activation_function": "gelu"},
        {"prenorm": True},
        {"rotary_emb_fraction": 0.5},
        {"rotary_emb_interleaved": True},
        {"moe_every_n_layers": 2},
    ],
)
def test_nomic_that_llama_cpp_does_not_compute(changes: dict[str, Any], tmp_path: Path) -> None:
    with pytest.raises(LlmkitError, match=next(iter(changes)) if "fraction" not in str(changes) else "rotates whole"):
        nomic_bert.FAMILY.read_hparams(config(tmp_path, NOMIC, **changes))


def test_attention_of_modernbert(tmp_path: Path) -> None:
    def pattern(**changes: Any) -> Any:
        found = modernbert.FAMILY.read_hparams(config(tmp_path, {**CONFIG, "num_hidden_layers": 5}, **changes))
        assert (found.sliding_window is None) == (found.sliding_layers is None)
        stated = found.extra.get("attention.sliding_window_pattern")
        return found.sliding_layers if stated is None else stated.data

    wide, near = "full_attention", "sliding_attention"
    assert pattern() == 3
    assert pattern(global_attn_every_n_layers=2) == 2
    assert pattern(layer_types=[wide, near, wide, near, wide]) == 2
    assert pattern(layer_types=[wide, near, near, near, near]) == 5
    assert np.array_equal(pattern(layer_types=[wide, wide, near, near, near]), [False, False, True, True, True])
    assert pattern(layer_types=[wide] * 5) is None
    assert pattern(global_attn_every_n_layers=1) is None
    for types in ([wide], [wide, near, wide, near, "chunked"], "full_attention", [near] * 5):
        with pytest.raises(FormatError, match="layer_types"):
            pattern(layer_types=types)


def test_modernbert_that_llama_cpp_does_not_compute(tmp_path: Path) -> None:
    changes: list[dict[str, Any]] = [
        {"norm_bias": True},
        {"hidden_activation": "relu"},
        {"rope_parameters": {"full_attention": {"rope_type": "linear", "factor": 2.0}}},
    ]
    for change in changes:
        with pytest.raises(LlmkitError, match=r"norm_bias|hidden_activation|rope_parameters"):
            modernbert.FAMILY.read_hparams(config(tmp_path, CONFIG, **change))
