"""Plans: what they decide from headers and config alone, and what they refuse."""

from __future__ import annotations

import math
from pathlib import Path

import pytest

from llmkit.convert.checkpoint import open_checkpoint
from llmkit.convert.gguf_target import plan_gguf
from llmkit.convert.plan import ConversionPlan
from llmkit.errors import FormatError, UnsupportedError
from llmkit.quantize.recipes import find_recipe
from llmkit.types import TensorType
from tests.tinymodels import TinyLlama, encode, write_json, write_raw_safetensors


def plan(folder: Path, model: TinyLlama, recipe: str = "q4_k_m") -> ConversionPlan:
    return plan_gguf(open_checkpoint(model.write(folder)), find_recipe(recipe))


def test_the_plan_covers_every_tensor_once_in_ranges_that_do_not_overlap(tmp_path: Path) -> None:
    p = plan(tmp_path, TinyLlama(n_shards=3))
    sources = [t.source.name for t in p.tensors if not isinstance(t.source, tuple)]
    assert sorted(sources) == sorted(TinyLlama().shapes())
    end = len(p.header)
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


def test_tied_embeddings_leave_lm_head_out_and_say_so(tmp_path: Path) -> None:
    model = TinyLlama(config={"tie_word_embeddings": True})
    p = plan(tmp_path, model)
    assert "output.weight" not in [t.name for t in p.tensors]
    assert any("lm_head.weight is left out" in note for note in p.notes)
    assert next(t for t in p.tensors if t.name == "token_embd.weight").type is TensorType.Q6_K


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
    assert plans[0].header == plans[1].header
    assert plans[0].tensors[0].name == "rope_freqs.weight"


def test_llama3_frequency_factors_equal_those_of_transformers(tmp_path: Path) -> None:
    torch = pytest.importorskip("torch")
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
    factors = p.tensors[0].source
    assert isinstance(factors, tuple)
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


REFUSED: dict[str, tuple[TinyLlama, type[Exception], list[str]]] = {
    "unknown architecture": (
        TinyLlama(config={"architectures": ["LamaForCausalLM"]}),
        UnsupportedError,
        ["LamaForCausalLM", "did the author mean LlamaForCausalLM", "MistralForCausalLM"],
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
    "other activation": (TinyLlama(config={"hidden_act": "gelu"}), FormatError, ["hidden_act", "'gelu'", "silu"]),
    "heads do not divide": (TinyLlama(config={"num_key_value_heads": 3}), FormatError, ["num_key_value_heads 3"]),
    "a string where a number belongs": (
        TinyLlama(config={"hidden_size": "256"}),
        FormatError,
        ["config.json", "hidden_size", "'256'"],
    ),
    "an absurd number": (TinyLlama(config={"hidden_size": 10**12}), FormatError, ["hidden_size", "1000000000000"]),
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
    for word in words:
        assert word in str(caught.value)


def test_integer_weights_are_refused(tmp_path: Path) -> None:
    model = TinyLlama()
    folder = model.write(tmp_path)
    tensors = {n: ("BF16", w.shape, encode(w, "BF16")) for n, w in model.weights().items()}
    tensors["model.layers.0.mlp.up_proj.weight"] = ("I8", (512, 256), bytes(512 * 256))
    write_raw_safetensors(folder / "model.safetensors", tensors)
    with pytest.raises(UnsupportedError, match=r"up_proj.weight' has dtype I8; weights may be F32, F16, BF16"):
        plan_gguf(open_checkpoint(folder), find_recipe("f16"))


def test_default_head_counts_follow_the_family(tmp_path: Path) -> None:
    model = TinyLlama(n_kv_heads=4, config={"num_key_value_heads": ..., "max_position_embeddings": ...})
    p = plan(tmp_path, model)
    write_json(tmp_path / "config.json", model.config_json())
    assert p.architecture == "llama"
