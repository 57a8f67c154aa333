"""LoRA adapters made by PEFT: merged as PEFT merges them, and as adapters that llama.cpp applies."""

from __future__ import annotations

import ctypes
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import llmkit
from llmkit.errors import FormatError, LlmkitError, UnsupportedError
from llmkit.formats.gguf import open_gguf
from tests.tinymodels import N_VOCAB, TinyLlama, write_json

MODEL = TinyLlama(dtype="F32", n_embd=64, n_ff=96)
ALL = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
CASES: dict[str, dict[str, Any]] = {
    "attention": {"target_modules": ["q_proj", "v_proj"]},
    "all matrices, ranks and alphas by pattern": {
        "target_modules": ALL,
        "rank_pattern": {"down_proj": 2},
        "alpha_pattern": {"v_proj": 3, "layers.1.self_attn.q_proj": 5},
    },
    "rsLoRA": {"target_modules": ALL, "use_rslora": True},
    "embedding and head": {"target_modules": ["embed_tokens", "lm_head", "q_proj"]},
}


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return MODEL.write(tmp_path_factory.mktemp("lora") / "base")


def make_adapter(base: Path, folder: Path, **settings: Any) -> Any:
    """An adapter with random factors, saved by PEFT; returns PEFT's model."""
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32, attn_implementation="eager")
    model = get_peft_model(model, LoraConfig(**{"r": 4, "lora_alpha": 8, **settings}))
    torch.manual_seed(0)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_" in name:
                parameter.normal_(0, 0.2)
    model.save_pretrained(folder, save_embedding_layers=False)
    return model.eval()


def logits_of(model: Any, ids: list[int]) -> Any:
    import torch

    with torch.inference_mode():
        return model(torch.tensor([ids])).logits[0].numpy()


@pytest.mark.filterwarnings("ignore::UserWarning", "ignore::FutureWarning")
@pytest.mark.parametrize("case", CASES)
def test_merging_gives_what_peft_merges(case: str, base: Path, tmp_path: Path) -> None:
    model = make_adapter(base, tmp_path / "adapter", **CASES[case])
    ids = np.random.default_rng(0).integers(2, N_VOCAB, 40).tolist()
    with_adapter = logits_of(model, ids)
    merged = {
        name.removeprefix("base_model.model."): values.numpy()
        for name, values in model.merge_and_unload().state_dict().items()
    }
    out = llmkit.convert(base, "gguf-f32", output=tmp_path / "m.gguf", lora=[str(tmp_path / "adapter")]).path
    back = llmkit.convert(out, "safetensors", output=tmp_path / "back").path
    from safetensors.numpy import load_file

    restored = load_file(back / "model.safetensors")
    assert restored.keys() == merged.keys()
    for name, values in merged.items():
        assert np.allclose(restored[name], values, rtol=0, atol=2e-6), name
    plain = logits_of(model.base_model.model if hasattr(model, "base_model") else model, ids)
    assert np.abs(plain - with_adapter).max() < 1e-3  # PEFT merged in place
    with llmkit.load(out, n_context=64, full_precision=True) as session:
        assert np.abs(session.logits(ids) - with_adapter).max() < 5e-4


@pytest.mark.filterwarnings("ignore::UserWarning", "ignore::FutureWarning")
def test_the_bytes_do_not_depend_on_chunks_and_scales_multiply(base: Path, tmp_path: Path) -> None:
    make_adapter(base, tmp_path / "adapter", target_modules=ALL)
    adapter = tmp_path / "adapter"
    files = [
        llmkit.convert(
            base,
            "gguf-q8_0",
            output=tmp_path / f"{i}.gguf",
            lora=[f"{adapter}:0.5"] * n,
            memory=memory,
            threads=threads,
        ).path.read_bytes()
        for i, (n, memory, threads) in enumerate([(2, "1GiB", 2), (2, "8KiB", 1)])
    ]
    assert files[0] == files[1]
    whole = llmkit.convert(base, "gguf-q8_0", output=tmp_path / "whole.gguf", lora=[str(adapter)]).path
    assert whole.read_bytes() == files[0]


@pytest.mark.filterwarnings("ignore::UserWarning", "ignore::FutureWarning")
@pytest.mark.parametrize("case", ["attention", "all matrices, ranks and alphas by pattern", "rsLoRA"])
def test_llama_cpp_applies_an_adapter_in_gguf(case: str, base: Path, tmp_path: Path) -> None:
    model = make_adapter(base, tmp_path / "adapter", **CASES[case])
    ids = np.random.default_rng(0).integers(2, N_VOCAB, 40).tolist()
    adapter = llmkit.convert(tmp_path / "adapter", "gguf-lora", base=base, output=tmp_path / "a.gguf").path
    plain = llmkit.convert(base, "gguf-f32", output=tmp_path / "m.gguf").path
    with llmkit.load(plain, n_context=64, full_precision=True) as session:
        before = session.logits(ids)
        lib: Any = session._lib  # type: ignore[attr-defined]
        loaded = lib.llama_adapter_lora_init(session._model, str(adapter).encode())  # type: ignore[attr-defined]
        assert loaded
        adapters, scales = (lib.llama_adapter_lora_p_ctypes * 1)(loaded), (ctypes.c_float * 1)(1.0)
        assert lib.llama_set_adapters_lora(session._context.pointer, adapters, 1, scales) == 0  # type: ignore[attr-defined]
        found = session.logits(ids)
    expected = logits_of(model, ids)
    assert np.abs(before - expected).max() > 0.1
    assert np.abs(found - expected).max() < 5e-4


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::UserWarning", "ignore::FutureWarning")
def test_the_tensors_are_those_of_the_peers_converter(base: Path, tmp_path: Path) -> None:
    make_adapter(base, tmp_path / "adapter", target_modules=ALL)
    ours = llmkit.convert(tmp_path / "adapter", "gguf-lora", base=base, output=tmp_path / "ours.gguf").path
    scripts = Path(__file__).resolve().parents[3] / "scripts"
    source = subprocess.run(
        [sys.executable, str(scripts / "llama_cpp_source.py")], check=True, stdout=subprocess.PIPE, text=True
    ).stdout.strip()
    theirs = tmp_path / "theirs.gguf"
    command = [sys.executable, f"{source}/convert_lora_to_gguf.py", str(tmp_path / "adapter"), "--base", str(base)]
    subprocess.run([*command, "--outtype", "f32", "--outfile", str(theirs)], check=True, capture_output=True)
    with open_gguf(ours) as a, open_gguf(theirs) as b:
        assert set(a.tensors) == set(b.tensors)
        assert [name for name in a.tensors if not np.array_equal(a.raw(name), b.raw(name))] == []
        for key in ("general.architecture", "general.type", "adapter.type", "adapter.lora.alpha"):
            assert a.metadata[key] == b.metadata[key]


def write_adapter(folder: Path, config: dict[str, Any], tensors: dict[str, tuple[int, ...]]) -> Path:
    from safetensors.numpy import save_file

    folder.mkdir()
    write_json(folder / "adapter_config.json", {"peft_type": "LORA", "lora_alpha": 8, **config})
    save_file({k: np.ones(v, np.float32) for k, v in tensors.items()}, folder / "adapter_model.safetensors")
    return folder


QUERY = "base_model.model.model.layers.0.self_attn.q_proj."
GOOD = {QUERY + "lora_A.weight": (4, 64), QUERY + "lora_B.weight": (64, 4)}


@pytest.mark.parametrize(
    ("config", "tensors", "message"),
    [
        ({"peft_type": "IA3"}, GOOD, "peft_type is 'IA3'"),
        ({"use_dora": True}, GOOD, "does not merge DoRA"),
        ({"bias": "all"}, GOOD, "bias is 'all'"),
        ({"alpha_pattern": {"q.*": 1}}, GOOD, "is an expression"),
        ({"lora_alpha": "8"}, GOOD, "lora_alpha must be a positive number"),
        ({}, {QUERY + "lora_A.weight": (4, 64)}, "has no lora_B beside it"),
        ({}, {QUERY + "lora_A.weight": (4, 64), QUERY + "lora_B.weight": (64, 3)}, "does not fit that of A"),
        ({}, {QUERY + "lora_A.weight": (4, 32), QUERY + "lora_B.weight": (64, 4)}, r"the checkpoint has \[64, 64\]"),
        ({}, {k.replace("layers.0", "layers.7"): v for k, v in GOOD.items()}, "which the checkpoint does not have"),
    ],
)
def test_adapters_that_do_not_fit_are_refused(
    config: dict[str, Any], tensors: dict[str, tuple[int, ...]], message: str, base: Path, tmp_path: Path
) -> None:
    folder = write_adapter(tmp_path / "adapter", config, tensors)
    with pytest.raises(LlmkitError, match=message):
        llmkit.convert(base, "gguf-f32", output=tmp_path / "m.gguf", lora=[str(folder)])
    assert not (tmp_path / "m.gguf").exists()


def test_tensors_trained_whole_are_merged_only(base: Path, tmp_path: Path) -> None:
    name = "base_model.model.lm_head.weight"
    folder = write_adapter(tmp_path / "adapter", {}, {**GOOD, name: (N_VOCAB, 64)})
    result = llmkit.convert(base, "gguf-f32", output=tmp_path / "m.gguf", lora=[str(folder)])
    with open_gguf(result.path) as file:
        assert (file.raw("output.weight").view(np.float32) == 1).all()
    assert any("replaces 1" in note for note in result.plan.notes)
    with pytest.raises(UnsupportedError, match="trained whole"):
        llmkit.convert(folder, "gguf-lora", base=base, output=tmp_path / "a.gguf")


def test_the_model_that_an_adapter_names_is_found(base: Path, tmp_path: Path) -> None:
    folder = write_adapter(tmp_path / "adapter", {"base_model_name_or_path": str(base)}, GOOD)
    assert llmkit.convert(folder, "gguf-lora", output=tmp_path / "a.gguf").path.exists()
    config = json.loads((folder / "adapter_config.json").read_text())
    write_json(folder / "adapter_config.json", {**config, "base_model_name_or_path": None})
    with pytest.raises(UnsupportedError, match="--base"):
        llmkit.convert(folder, "gguf-lora", output=tmp_path / "b.gguf")
    other = write_adapter(tmp_path / "other", {}, {k.replace("layers.0", "layers.9"): v for k, v in GOOD.items()})
    with pytest.raises(FormatError, match="which this model does not have"):
        llmkit.convert(other, "gguf-lora", base=base, output=tmp_path / "c.gguf")
