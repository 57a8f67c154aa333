"""Hyper-parameters from metadata: of every family as they were written, and of files of strangers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import llmkit
from llmkit.convert.archs import FAMILIES, ConfigReader, Family, HParams
from llmkit.convert.gguf_keys import architecture_metadata
from llmkit.convert.gguf_source import GGUFSource
from llmkit.convert.matching import expected_rules, source_names
from llmkit.convert.restore.hparams import read_hparams
from llmkit.convert.restore.metadata import share_of
from llmkit.convert.restore.plan import plan_checkpoint
from llmkit.errors import FormatError, LlmkitError, UnsupportedError
from llmkit.formats.gguf import Value, ValueType, array, boolean, f32, f64, i32, open_gguf, string, u32, u64
from llmkit.types import TensorInfo
from tests.tinymodels import N_VOCAB, write_json, write_safetensors, write_tokenizer

SIZES: dict[str, Any] = {
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": N_VOCAB,
    "bos_token_id": 0,
    "eos_token_id": 0,
}
LATENT: dict[str, Any] = {
    "num_key_value_heads": 4,
    "kv_lora_rank": 32,
    "q_lora_rank": 64,
    "qk_nope_head_dim": 32,
    "qk_rope_head_dim": 8,
    "v_head_dim": 16,
}
DEEPSEEK: dict[str, Any] = {
    **LATENT,
    "n_routed_experts": 4,
    "num_experts_per_tok": 2,
    "n_shared_experts": 1,
    "moe_intermediate_size": 32,
    "first_k_dense_replace": 1,
    "n_group": 2,
    "topk_group": 1,
}
NO_ATTENTION = {key: None for key in SIZES if key.startswith(("intermediate", "num_attention", "num_key"))}
CONFIGS: dict[str, dict[str, Any]] = {
    "llama": {},
    "deepseek_v2": DEEPSEEK | {"rope_scaling": {"type": "yarn", "factor": 4.0, "mscale": 0.7, "mscale_all_dim": 0.7}},
    "deepseek_v3": DEEPSEEK | {"q_lora_rank": None},
    "exaone": {"num_layers": 2},
    "exaone4": {"sliding_window": None},
    "internlm2": {"tie_word_embeddings": False},
    "minicpm": {"scale_emb": 12, "scale_depth": 1.4, "dim_model_base": 16},
    "minicpm3": LATENT,
    "mamba": NO_ATTENTION,
    "mamba2": NO_ATTENTION | {"num_heads": 8, "head_dim": 16, "n_groups": 2},
    "falcon_mamba": NO_ATTENTION | {"mixer_rms_eps": 1e-5},
}


def family_of(model_type: str) -> tuple[Family, HParams]:
    (family,) = (family for family in FAMILIES if family.model_type == model_type)
    return family, family.read_hparams(ConfigReader(Path("config.json"), {**SIZES, **CONFIGS[model_type]}))


def source_of(model_type: str) -> GGUFSource:
    """A file of the family, of which only the headers exist."""
    family, h = family_of(model_type)
    metadata = {"general.architecture": string(family.gguf_architecture)}
    metadata |= architecture_metadata(family.gguf_architecture, h, [])
    tensors = []
    for rule, block in expected_rules(family, h):
        name = rule.role if block is None else f"blk.{block}.{rule.role}"
        if rule.presence(h).value == "required":
            shape = rule.shape(h)
            tensors.append(TensorInfo(name, "F32", shape, Path("model.gguf"), 0, 0))
    return GGUFSource((Path("model.gguf"),), metadata, tuple(tensors), 32)


def changed(source: GGUFSource, values: dict[str, Value | None]) -> GGUFSource:
    """The file with some of its architecture's keys otherwise, or without them."""
    architecture = source.metadata["general.architecture"].data
    metadata = dict(source.metadata) | {f"{architecture}.{key}": value for key, value in values.items() if value}
    for key in [key for key, value in values.items() if value is None]:
        metadata.pop(f"{architecture}.{key}", None)
    return GGUFSource(source.files, metadata, source.tensors, source.alignment)


def write_checkpoint(model_type: str, folder: Path) -> Path:
    """A checkpoint of random weights, whatever the family's rules ask for."""
    family, h = family_of(model_type)
    rng = np.random.default_rng(0)
    weights: dict[str, np.ndarray] = {}
    for rule, block in expected_rules(family, h):
        if rule.presence(h).value == "required":
            source = rule.sources[0]
            shape = rule.shape(h)[1:] if "{e}" in source.pattern else rule.shape(h)
            for name in source_names(source, rule, block, h):
                stored = source.stored(h) if source.stored else shape
                weights.setdefault(name, rng.standard_normal(stored, np.float32))
    folder.mkdir()
    write_safetensors(folder / "model.safetensors", weights, "F32")
    write_json(folder / "config.json", {**SIZES, **CONFIGS[model_type], "architectures": [family.architectures[0]]})
    write_tokenizer(folder)
    return folder


@pytest.mark.parametrize("model_type", CONFIGS)
def test_what_a_file_states_is_what_was_written(model_type: str) -> None:
    family, h = family_of(model_type)
    source = source_of(model_type)
    found = read_hparams(source, family.gguf_architecture)
    assert family.wrote(found)
    assert (found.latent, found.experts, found.states) == (h.latent, h.experts, h.states)
    assert (found.n_heads, found.n_kv_heads, found.head_dim) == (h.n_heads, h.n_kv_heads, h.head_dim)
    assert family.write_config is not None
    again = family.read_hparams(ConfigReader(Path("config.json"), family.write_config(found)))
    written = architecture_metadata(family.gguf_architecture, again, [])
    assert written == {key: value for key, value in source.metadata.items() if key != "general.architecture"}


@pytest.mark.parametrize("model_type", ["deepseek_v2", "deepseek_v3", "internlm2", "minicpm3", "mamba2"])
def test_quantised_files_give_the_values_they_hold(model_type: str, tmp_path: Path) -> None:
    """DeepSeek's transposed keys are decoded before they are put in order; 32 plain dimensions make a block."""
    gguf = llmkit.convert(
        write_checkpoint(model_type, tmp_path / "model"), "gguf-q8_0", output=tmp_path / "m.gguf"
    ).path
    back = llmkit.convert(gguf, "safetensors-f32", output=tmp_path / "back").path
    again = llmkit.convert(back, "gguf-f32", output=tmp_path / "again.gguf").path
    plain = llmkit.quantize(gguf, "f32", output=tmp_path / "plain.gguf", allow_requantize=True).path
    with open_gguf(gguf) as packed, open_gguf(again) as a, open_gguf(plain) as b:
        if model_type.startswith("deepseek"):
            assert packed.tensors["blk.0.attn_k_b.weight"].dtype == "Q8_0"
        assert set(a.tensors) == set(b.tensors)
        for name in a.tensors:
            assert np.array_equal(a.raw(name), b.raw(name)), name


def test_a_number_for_each_block() -> None:
    source = source_of("llama")
    same = changed(source, {"attention.head_count_kv": array(ValueType.INT32, (2, 2))})
    assert read_hparams(same, "llama") == read_hparams(source, "llama")
    differing = read_hparams(changed(source, {"attention.head_count_kv": array(ValueType.INT32, (0, 2))}), "llama")
    assert differing.n_kv_heads == 2
    assert differing.extra["attention.head_count_kv"].data == (0, 2)
    pattern = changed(source, {"attention.sliding_window_pattern": u32(2)})
    assert read_hparams(pattern, "llama").sliding_layers == (True, False)


@pytest.mark.parametrize("head_dim", [64, 80, 96, 100, 128, 192, 256])
def test_shares_of_heads_round_down_to_what_is_rotated(head_dim: int) -> None:
    assert [int(head_dim * share_of(n, head_dim)) for n in range(2, head_dim + 1)] == list(range(2, head_dim + 1))


@pytest.mark.parametrize("n_dimensions", [0, 7, 18])
def test_what_is_rotated_is_part_of_a_head(n_dimensions: int) -> None:
    with pytest.raises(FormatError, match=r"rope\.dimension_count .*must be even, and at most 16"):
        read_hparams(changed(source_of("llama"), {"rope.dimension_count": u32(n_dimensions)}), "llama")


ABSURD: dict[str, tuple[str, dict[str, Value | None], str]] = {
    "no width": ("llama", {"embedding_length": None}, "embedding_length"),
    "text for a number": ("llama", {"attention.head_count": string("4")}, "attention.head_count .*found '4'"),
    "true for a number": ("llama", {"block_count": boolean(True)}, "block_count"),
    "a negative number": ("llama", {"attention.head_count_kv": i32(-1)}, "head_count_kv .*found -1"),
    "a fraction": ("llama", {"feed_forward_length": f32(96.5)}, "feed_forward_length"),
    "more blocks than tensors": ("llama", {"block_count": u32(2**31 - 1)}, "block_count .*tensors"),
    "more than 31 bits": ("llama", {"block_count": u64(2**63)}, "block_count"),
    "huge heads": ("llama", {"attention.key_length": u32(2**31 - 2)}, "tensors are not those"),
    "no heads of keys": ("llama", {"attention.head_count_kv": u32(0)}, "not divisible"),
    "uneven heads": ("llama", {"attention.head_count_kv": u32(3)}, "not divisible"),
    "no number": ("llama", {"attention.layer_norm_rms_epsilon": f32(float("nan"))}, "epsilon .*float32 holds"),
    "beyond float32": ("llama", {"rope.freq_base": f64(1e300)}, "freq_base .*float32 holds"),
    "a base below 0": ("llama", {"rope.freq_base": f32(-1.0)}, "freq_base .*positive"),
    "a list of names": ("llama", {"attention.head_count": array(ValueType.STRING, ("4",))}, "head_count"),
    "too short a list": (
        "llama",
        {"attention.sliding_window_pattern": array(ValueType.BOOL, (True,))},
        "sliding_window_pattern must be 2 of true or false",
    ),
    "unknown scaling": ("llama", {"rope.scaling.type": string("magic")}, "rope.scaling.type 'magic'"),
    "a number for a scaling": ("llama", {"rope.scaling.type": u32(1)}, "rope.scaling.type must be a string"),
    "shrinking": ("llama", {"rope.scaling.type": string("yarn"), "rope.scaling.factor": f32(0.5)}, "at least 1"),
    "experts nowhere": ("deepseek_v2", {"expert_count": None}, "tensors are not those"),
    "experts without number": ("deepseek_v2", {"expert_count": string("many")}, "expert_count"),
    "no latent attention": ("deepseek_v2", {"attention.kv_lora_rank": None}, "tensors are not those|must be even"),
    "a rank of nothing": ("minicpm3", {"attention.kv_lora_rank": u32(0)}, "tensors are not those"),
    "keys without own part": ("deepseek_v3", {"attention.key_length_mla": u32(8)}, "must be more than rope"),
    "no rotation": ("deepseek_v3", {"rope.dimension_count": None}, "dimension_count must be a number"),
    "half a state space": ("mamba", {"ssm.state_size": None}, "ssm.state_size must be a number"),
    "no state space": ("mamba", {"ssm.inner_size": None}, "tensors are not those"),
    "no heads of states": ("mamba2", {"ssm.time_step_rank": u32(0)}, "tensors are not those"),
    "a huge state": ("mamba2", {"ssm.state_size": u32(2**31 - 1)}, "tensors are not those"),
}


@pytest.mark.parametrize("case", ABSURD)
def test_absurd_metadata_is_refused(case: str) -> None:
    model_type, values, message = ABSURD[case]
    with pytest.raises((FormatError, UnsupportedError), match=message) as caught:
        plan_checkpoint(changed(source_of(model_type), values))
    assert "model.gguf" in str(caught.value)


NUMBERS = st.one_of(
    st.sampled_from([0, 1, 2, 3, 2**31 - 1, 2**31, 2**32 - 1]).map(u32),
    st.sampled_from([0.0, -1.0, 1e-38, 3e38, float("inf"), float("nan")]).map(f32),
    st.sampled_from([-1, -(2**31)]).map(i32),
    st.booleans().map(boolean),
    st.sampled_from(["", "yarn", "linear"]).map(string),
    st.lists(st.integers(0, 5), max_size=3).map(lambda items: array(ValueType.UINT32, items)),
)
SOURCES = {model_type: source_of(model_type) for model_type in CONFIGS}


@settings(max_examples=200, deadline=None)
@given(model_type=st.sampled_from(sorted(CONFIGS)), data=st.data())
def test_no_metadata_ends_in_another_error(model_type: str, data: st.DataObject) -> None:
    source = SOURCES[model_type]
    prefix = f"{source.metadata['general.architecture'].data}."
    more = ["rope.scaling.type", "rope.scaling.factor", "rope.scaling.attn_factor", "rope.scaling.yarn_log_multiplier"]
    known = sorted({key.removeprefix(prefix) for key in source.metadata if key.startswith(prefix)} | set(more))
    values = data.draw(st.dictionaries(st.sampled_from(known), NUMBERS | st.none(), min_size=1, max_size=3))
    # The file has no tokenizer: what is well otherwise ends with that.
    with pytest.raises(LlmkitError):
        plan_checkpoint(changed(source, values))
