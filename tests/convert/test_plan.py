"""Plans: what they decide from headers and config alone, and what they refuse."""

from __future__ import annotations

import math
import tempfile
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import llmkit
from llmkit.convert.checkpoint import open_checkpoint
from llmkit.convert.gguf_target import plan_gguf
from llmkit.convert.plan import Computed, ConversionPlan, Stored
from llmkit.errors import FormatError, LlmkitError, UnsupportedError
from llmkit.formats.gguf import open_gguf
from llmkit.quantize.recipes import find_recipe
from llmkit.types import TensorType
from tests.tinymodels import TinyLlama, encode, write_json, write_raw_safetensors


def plan(folder: Path, model: TinyLlama, recipe: str = "q4_k_m") -> ConversionPlan:
    return plan_gguf(open_checkpoint(model.write(folder)), find_recipe(recipe))


def test_the_plan_covers_every_tensor_once_in_ranges_that_do_not_overlap(tmp_path: Path) -> None:
    p = plan(tmp_path, TinyLlama(n_shards=3))
    sources = [part.tensor.name for t in p.tensors for part in t.parts if isinstance(part, Stored)]
    assert sorted(sources) == sorted(TinyLlama().shapes())
    (file,) = p.files
    end = len(file.header)
    for tensor in p.tensors:
        assert end <= tensor.offset < end + 32
        end = tensor.offset + tensor.nbytes
    assert end <= p.total_bytes < end + 32


def test_a_row_that_does_not_divide_falls_back_with_its_reason_and_cost(tmp_path: Path) -> None:
    p = plan(tmp_path, TinyLlama(n_embd=192, n_ff=256, n_heads=3, n_kv_heads=1))
    by_wanted = {(f.wanted, f.type): f for f in p.fallbacks}
    f = by_wanted[TensorType.Q4_K, TensorType.Q5_0]
    assert f.reason == "rows of 192 weights are not a multiple of 256"
    assert f.n_bits / f.n_elements == 5.5
    assert f.n_bits_wanted / f.n_elements == 4.5
    assert p.bits_per_weight > p.bits_per_weight_wanted
    assert not plan(tmp_path, TinyLlama()).fallbacks


def test_tied_embeddings_do_without_lm_head_and_one_that_is_there_is_kept(tmp_path: Path) -> None:
    tied = plan(tmp_path / "tied", TinyLlama(tied=True))
    assert "output.weight" not in [t.name for t in tied.tensors]
    assert next(t for t in tied.tensors if t.name == "token_embd.weight").type is TensorType.Q6_K
    # transformers ties only what is equal; a fine-tune may have trained the two apart.
    both = plan(tmp_path / "both", TinyLlama(config={"tie_word_embeddings": True}))
    assert "output.weight" in [t.name for t in both.tensors]
    assert any("lm_head.weight" in note and "kept" in note for note in both.notes)


def test_rotary_frequencies_of_older_checkpoints_are_left_out(tmp_path: Path) -> None:
    model = TinyLlama()
    folder = model.write(tmp_path)
    weights = model.weights()
    for i in range(2):
        weights[f"model.layers.{i}.self_attn.rotary_emb.inv_freq"] = np.ones(32, np.float32)
    model.write_weights(folder, weights)
    p = plan_gguf(open_checkpoint(folder), find_recipe("f16"))
    assert len(p.tensors) == len(model.shapes())


def test_both_generations_of_config_give_the_same_plan(tmp_path: Path) -> None:
    scaling = {"factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 128}
    old = {"rope_theta": 500000.0, "rope_scaling": {"rope_type": "llama3", **scaling}}
    new = {
        "rope_theta": ...,
        "rope_parameters": {"rope_theta": 500000.0, "rope_type": "llama3", **scaling},
        "torch_dtype": ...,
        "dtype": "bfloat16",
    }
    plans = [plan(tmp_path / "model", TinyLlama(config=config)) for config in (old, new)]
    assert plans[0].files[0].header == plans[1].files[0].header
    assert plans[0].tensors[0].name == "rope_freqs.weight"


def test_llama3_frequency_factors_equal_those_of_transformers(tmp_path: Path) -> None:
    import torch
    from transformers import LlamaConfig
    from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

    scaling = {
        "rope_type": "llama3",
        "rope_theta": 500000.0,
        "factor": 32.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 8192,
    }
    config = LlamaConfig(
        hidden_size=256, num_attention_heads=4, max_position_embeddings=131072, rope_parameters=scaling
    )
    expected, _ = ROPE_INIT_FUNCTIONS["llama3"](config, torch.device("cpu"))
    p = plan(tmp_path, TinyLlama(config={"rope_theta": ..., "rope_parameters": scaling}))
    (part,) = p.tensors[0].parts
    assert isinstance(part, Computed)
    factors = part.values
    assert min(factors) == 1.0
    assert max(factors) == 32.0
    for i, factor in enumerate(factors):
        frequency = 500000.0 ** (-2 * i / 64) / factor
        assert math.isclose(frequency, float(expected[i]), rel_tol=1e-6)


def test_a_sliding_window_and_unknown_rope_scaling_are_noted(tmp_path: Path) -> None:
    config = {
        "architectures": ["MistralForCausalLM"],
        "model_type": "mistral",
        "sliding_window": 64,
        "rope_scaling": {"type": "dynamic", "factor": 2.0},
    }
    notes = plan(tmp_path, TinyLlama(config=config)).notes
    assert any("sliding_window 64" in note for note in notes)
    assert any("'dynamic'" in note for note in notes)


LLAMA3 = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 128,
}


def scaled(**changes: object) -> TinyLlama:
    """A model whose rope scaling is Llama 3's but for the changes; another type has only those."""
    scaling = changes if "rope_type" in changes else {**LLAMA3, **changes}
    return TinyLlama(config={"rope_scaling": scaling})


REFUSED: dict[str, tuple[TinyLlama, type[Exception], list[str]]] = {
    "unknown architecture": (
        TinyLlama(config={"architectures": ["LamaForCausalLM"]}),
        UnsupportedError,
        ["LamaForCausalLM", "names like it: LlamaForCausalLM", "MistralForCausalLM"],
    ),
    "no architecture": (TinyLlama(config={"architectures": ...}), FormatError, ["config.json", "architectures"]),
    "shape contradicts config": (
        TinyLlama(config={"intermediate_size": 1024}),
        FormatError,
        ["gate_proj.weight", "[512, 256]", "[1024, 256]", "config.json"],
    ),
    "vocabulary contradicts config": (
        TinyLlama(config={"vocab_size": 321}),
        FormatError,
        ["model.embed_tokens.weight", "[320, 256]", "[321, 256]"],
    ),
    "more layers than tensors": (
        TinyLlama(config={"num_hidden_layers": 3}),
        FormatError,
        ["model.layers.2.input_layernorm.weight", "missing"],
    ),
    "fewer layers than tensors": (
        TinyLlama(config={"num_hidden_layers": 1}),
        UnsupportedError,
        ["9 tensors have no place", "model.layers.1."],
    ),
    "untied without lm_head": (
        TinyLlama(tied=True, config={"tie_word_embeddings": False}),
        FormatError,
        ["lm_head.weight", "missing", "tie_word_embeddings"],
    ),
    "other activation": (TinyLlama(config={"hidden_act": "gelu"}), UnsupportedError, ["hidden_act", "'gelu'", "silu"]),
    "heads do not divide": (TinyLlama(config={"num_key_value_heads": 3}), FormatError, ["num_key_value_heads 3"]),
    "a string where a number belongs": (
        TinyLlama(config={"hidden_size": "256"}),
        FormatError,
        ["config.json", "hidden_size", "'256'"],
    ),
    "an absurd number": (TinyLlama(config={"hidden_size": 10**12}), FormatError, ["hidden_size", "1000000000000"]),
    "another family, with no hint to pass it off as one": (
        TinyLlama(config={"architectures": ["XverseForCausalLM"]}),
        UnsupportedError,
        ["'XverseForCausalLM' is not known to llmkit; known: ", "LlamaForCausalLM"],
    ),
    "quantised by an unknown method": (
        TinyLlama(config={"quantization_config": {"quant_method": "aqlm"}}),
        UnsupportedError,
        ["config.json", "quantised by 'aqlm'", "known: awq, ", "original"],
    ),
    "biases that config.json denies": (
        TinyLlama(bias=True, config={"attention_bias": False}),
        FormatError,
        ["q_proj.bias", "config.json describes a model without it"],
    ),
    "biases that are not there": (
        TinyLlama(config={"mlp_bias": True}),
        FormatError,
        ["model.layers.0.mlp.gate_proj.bias", "missing"],
    ),
    "a number float32 cannot hold": (
        TinyLlama(config={"rms_norm_eps": 1e300}),
        FormatError,
        ["rms_norm_eps", "1e+300"],
    ),
    "a number no float can hold": (TinyLlama(config={"rope_theta": 10**400}), FormatError, ["rope_theta", "1000000"]),
    "a base of zero": (TinyLlama(config={"rope_theta": 0}), FormatError, ["rope_theta", "found 0"]),
    "a very long value": (TinyLlama(config={"hidden_size": "A" * 10**6}), FormatError, ["hidden_size", "AAA...\n"]),
    "both generations, different": (
        TinyLlama(config={"rope_parameters": {"rope_type": "default"}, "rope_scaling": LLAMA3}),
        FormatError,
        ["rope_parameters and rope_scaling contradict each other"],
    ),
    "scaling by layer type": (
        TinyLlama(config={"rope_parameters": {"full_attention": {"rope_theta": 1e6}}}),
        FormatError,
        ["full_attention", "differ by layer"],
    ),
    "a misspelt scaling": (scaled(rope_type="lama3"), UnsupportedError, ["'lama3'", "llama3", "yarn"]),
    "longrope": (scaled(rope_type="longrope"), UnsupportedError, ["'longrope'"]),
    "scaling without a factor": (scaled(rope_type="linear"), FormatError, ["linear", "factor", "None"]),
    "a factor that is a string": (scaled(factor="8"), FormatError, ["'llama3'", "factor", "'8'"]),
    "a factor that is not a number": (scaled(factor=float("nan")), FormatError, ["factor", "nan"]),
    "frequencies in the wrong order": (
        scaled(low_freq_factor=4.0),
        FormatError,
        ["low_freq_factor 4 must be less than high_freq_factor 4"],
    ),
    "part of the head rotated": (
        TinyLlama(config={"partial_rotary_factor": 0.5}),
        FormatError,
        ["partial_rotary_factor", "0.5"],
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_refused(case: str, tmp_path: Path) -> None:
    model, error, words = REFUSED[case]
    with pytest.raises(error) as caught:
        plan(tmp_path, model)
    message = f"{caught.value}\n"
    assert len(message.split("; known: ")[0]) < 500  # the list of families is as long as it is
    for word in words:
        assert word in message


def test_names_from_files_are_escaped_in_messages(tmp_path: Path) -> None:
    model = TinyLlama()
    folder = model.write(tmp_path)
    model.write_weights(folder, {**model.weights(), "evil\x1b]0;title\x07": np.zeros(4, np.float32)})
    with pytest.raises(UnsupportedError, match="1 tensors have no place") as caught:
        plan_gguf(open_checkpoint(folder), find_recipe("f16"))
    assert "\x1b" not in str(caught.value)


def test_integer_weights_are_refused(tmp_path: Path) -> None:
    model = TinyLlama()
    folder = model.write(tmp_path)
    tensors = {n: ("BF16", w.shape, encode(w, "BF16")) for n, w in model.weights().items()}
    tensors["model.layers.0.mlp.up_proj.weight"] = ("I8", (512, 256), bytes(512 * 256))
    write_raw_safetensors(folder / "model.safetensors", tensors)
    with pytest.raises(UnsupportedError, match=r"up_proj.weight' has dtype I8; weights may be F32, F16, BF16"):
        plan_gguf(open_checkpoint(folder), find_recipe("f16"))


MISTRAL = {"architectures": ["MistralForCausalLM"], "model_type": "mistral"}


@pytest.mark.parametrize(
    ("config", "n_kv_heads"),
    [
        ({"num_key_value_heads": ...}, 16),
        ({"num_key_value_heads": None}, 16),
        ({**MISTRAL, "num_key_value_heads": ...}, 8),
    ],
)
def test_defaults_are_those_of_the_family(config: dict[str, Any], n_kv_heads: int, tmp_path: Path) -> None:
    from transformers import AutoConfig

    absent = {"max_position_embeddings": ..., "rms_norm_eps": ..., "rope_theta": ..., "sliding_window": ...}
    model = TinyLlama(n_heads=16, n_kv_heads=n_kv_heads, config={**config, **absent})
    path = tmp_path / "m-F16.gguf"
    llmkit.convert(model.write(tmp_path / "m"), "gguf-f16", output=path)
    theirs = AutoConfig.from_pretrained(tmp_path / "m")
    with open_gguf(path) as file:
        assert file.get("llama.attention.head_count_kv") == theirs.num_key_value_heads == n_kv_heads
        assert file.get("llama.context_length") == theirs.max_position_embeddings
        assert file.get("llama.attention.layer_norm_rms_epsilon") == pytest.approx(theirs.rms_norm_eps)
        assert file.get("llama.rope.freq_base") == theirs.rope_parameters["rope_theta"]


VALUES = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.floats(),
    st.text(max_size=5),
    st.lists(st.integers(), max_size=2),
    st.dictionaries(st.sampled_from([*LLAMA3, "type", "rope_theta", "x"]), st.one_of(st.floats(), st.text())),
    st.sampled_from([10**400, -(10**400), 1e308, -0.0, {"rope_type": "yarn"}, {**LLAMA3, "factor": 0}]),
)


@given(st.dictionaries(st.sampled_from([*TinyLlama().config_json(), "rope_scaling", "head_dim"]), VALUES, max_size=3))
@settings(max_examples=300)
def test_any_config_is_planned_or_refused(changes: dict[str, Any]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        plan(Path(folder), FUZZED, recipe="q4_0")
        write_json(Path(folder) / "config.json", FUZZED.config_json() | changes)
        with suppress(LlmkitError):
            plan_gguf(open_checkpoint(Path(folder)), find_recipe("q4_0"))


FUZZED = TinyLlama(n_layers=1, n_embd=32, n_ff=32, n_heads=2)
