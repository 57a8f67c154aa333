"""Recipes choose, tensor by tensor, the types that llama-quantize chooses, and the files have the same bytes."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import pytest

import llmkit
from llmkit.errors import UnsupportedError
from llmkit.formats.gguf import open_gguf
from llmkit.quantize.recipes import RECIPES, find_recipe
from tests import peer
from tests.tinymodels import TinyLlama

# Rows that divide by 256, by 32 only, by neither; tied and untied. test_quantized_types.py has the numbers of blocks.
MODELS = {
    "2 blocks": TinyLlama(n_layers=2),
    "8 blocks, tied": TinyLlama(n_layers=8, tied=True, n_ff=256, n_kv_heads=1),
    "9 blocks, rows of 96": TinyLlama(n_layers=9, n_embd=96, n_ff=256, n_heads=3, n_kv_heads=3),
    "5 blocks, tied, rows of 96": TinyLlama(n_layers=5, n_embd=96, n_ff=128, n_heads=3, n_kv_heads=1, tied=True),
    "3 blocks, rows of 80": TinyLlama(n_layers=3, n_embd=80, n_ff=160, n_heads=5, n_kv_heads=5),
    "biases": TinyLlama(n_layers=4, bias=True),
}
# q2_k_s needs an importance matrix.
QUANTIZING = [name for name, recipe in RECIPES.items() if recipe.quantizes and name != "q2_k_s"]


@pytest.mark.parametrize("case", MODELS)
def test_files_equal_those_of_llama_quantize(case: str, tmp_path: Path) -> None:
    folder = MODELS[case].write(tmp_path / "model")
    convert = partial(llmkit.convert, folder, memory="64MiB")
    convert("gguf-bf16", output=tmp_path / "bf16.gguf")
    for name in QUANTIZING:
        convert(f"gguf-{name}", output=tmp_path / "ours.gguf", overwrite=True)
        peer.quantize(tmp_path / "bf16.gguf", tmp_path / "theirs.gguf", RECIPES[name].file_type)
        with open_gguf(tmp_path / "ours.gguf") as ours, open_gguf(tmp_path / "theirs.gguf") as theirs:
            types = [{n: t.dtype for n, t in file.tensors.items()} for file in (ours, theirs)]
            assert types[0] == types[1], name
            different = [n for n in ours.tensors if ours.raw(n).tobytes() != theirs.raw(n).tobytes()]
            assert not different, name
            assert ours.get("general.file_type") == theirs.get("general.file_type") == RECIPES[name].file_type


def test_short_names_and_case() -> None:
    assert find_recipe("q4") is RECIPES["q4_k_m"]
    assert find_recipe("Q5_K_S") is RECIPES["q5_k_s"]
    with pytest.raises(UnsupportedError, match=r"unknown type 'q7'; known: f32, f16, .*q4_k_m"):
        find_recipe("q7")
