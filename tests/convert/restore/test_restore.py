"""GGUF files back to checkpoints: weights, config, tokenizer; families one by one are in tests/test_families.py."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

import llmkit
from llmkit.convert.checkpoint import open_checkpoint
from llmkit.convert.tokenizer.vocabulary import TokenType
from llmkit.errors import FormatError, OutputError, UnsupportedError
from llmkit.formats.gguf import open_gguf
from llmkit.formats.safetensors import read_header
from tests.convert.archs.test_experts import Weights, joined, weights
from tests.convert.archs.test_experts import write as write_mixture
from tests.convert.trained import train_sentencepiece
from tests.corpus import plain_texts
from tests.tinygguf import TinyGGUF
from tests.tinymodels import TinyLlama


def weights_of(folder: Path) -> dict[str, np.ndarray]:
    """All tensors, read by the safetensors package."""
    from safetensors.numpy import load_file

    found: dict[str, np.ndarray] = {}
    for path in sorted(folder.glob("*.safetensors")):
        found |= load_file(path)
    return found


def test_weights_come_back_as_they_were(tmp_path: Path) -> None:
    model = TinyLlama(dtype="F32", bias=True, tied=True)
    gguf = llmkit.convert(model.write(tmp_path / "model"), "gguf-f32", output=tmp_path / "m.gguf").path
    result = llmkit.convert(gguf, "safetensors", output=tmp_path / "back")
    assert result.path == tmp_path / "back"
    restored = weights_of(result.path)
    expected = model.weights()
    assert restored.keys() == expected.keys()
    for name, values in expected.items():
        assert np.array_equal(restored[name], values), name


@pytest.mark.parametrize(
    ("stored", "target", "expected"),
    [
        ("gguf-bf16", "safetensors", "BF16"),
        ("gguf-f16", "safetensors", "F16"),
        ("gguf-q4_0", "safetensors", "F16"),
        ("gguf-q8_0", "safetensors-f32", "F32"),
        ("gguf-f32", "safetensors-bf16", "BF16"),
    ],
)
def test_the_type_suits_the_file(stored: str, target: str, expected: str, tmp_path: Path) -> None:
    folder = TinyLlama().write(tmp_path / "model")
    gguf = llmkit.convert(folder, stored, output=tmp_path / "m.gguf").path
    back = llmkit.convert(gguf, target, output=tmp_path / "back").path
    assert {info.dtype for info in read_header(back / "model.safetensors").tensors.values()} == {expected}
    # What the file holds is what the checkpoint holds, but for rounding to the type.
    again = llmkit.convert(back, "gguf-f32", output=tmp_path / "again.gguf").path
    plain = llmkit.quantize(gguf, "f32", output=tmp_path / "plain.gguf", allow_requantize=True).path
    with open_gguf(again) as a, open_gguf(plain) as b:
        assert set(a.tensors) == set(b.tensors)
        for name in a.tensors:
            x, y = a.raw(name).view(np.float32), b.raw(name).view(np.float32)
            assert np.allclose(x, y, rtol=0 if expected == "F32" else 2.0**-8, atol=0)


def test_shards_and_their_index(tmp_path: Path) -> None:
    gguf = llmkit.convert(TinyLlama().write(tmp_path / "model"), "gguf-f16", output=tmp_path / "m.gguf").path
    result = llmkit.convert(gguf, "safetensors", output=tmp_path / "back", split_size="500KB")
    assert len(list(result.path.glob("model-*-of-*.safetensors"))) > 2
    assert set(open_checkpoint(result.path).tensors) == set(TinyLlama().shapes())


@pytest.mark.slow
def test_the_packaged_model(smollm2_gguf: Path, tmp_path: Path) -> None:
    """Against a checkpoint that was unpacked without llmkit: weights bit for bit, config, tokens."""
    import subprocess
    import sys

    from tokenizers import Tokenizer

    script = Path(__file__).resolve().parents[3] / "scripts" / "make_checkpoint.py"
    arguments = ["--gguf", str(smollm2_gguf), "--dtype", "f32", str(tmp_path / "expected")]
    subprocess.run([sys.executable, str(script), *arguments], check=True, capture_output=True)
    back = llmkit.convert(smollm2_gguf, "safetensors-f32", output=tmp_path / "back").path
    restored, expected = weights_of(back), weights_of(tmp_path / "expected")
    assert restored.keys() == expected.keys()
    assert [name for name in expected if not np.array_equal(restored[name], expected[name])] == []
    found, wanted = (json.loads((folder / "config.json").read_text()) for folder in (back, tmp_path / "expected"))
    for key in ("hidden_size", "num_key_value_heads", "rms_norm_eps", "rope_theta", "bos_token_id", "vocab_size"):
        assert found[key] == wanted[key]
    ours, theirs = (Tokenizer.from_file(str(f / "tokenizer.json")) for f in (back, tmp_path / "expected"))
    for text in plain_texts():
        assert ours.encode(text).ids == theirs.encode(text).ids
    config = json.loads((back / "tokenizer_config.json").read_text())
    assert (
        config["chat_template"]
        == json.loads((tmp_path / "expected/tokenizer_config.json").read_text())["chat_template"]
    )


def test_a_sentencepiece_vocabulary_as_tokenizer_json(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from tokenizers import Tokenizer

    monkeypatch.setattr("tests.tinymodels.N_VOCAB", 1200)
    folder = TinyLlama().write(tmp_path / "model")
    (folder / "tokenizer.json").unlink()
    processor = train_sentencepiece(folder)
    gguf = llmkit.convert(folder, "gguf-f16", output=tmp_path / "m.gguf").path
    back = llmkit.convert(gguf, "safetensors", output=tmp_path / "back").path
    tokenizer = Tokenizer.from_file(str(back / "tokenizer.json"))
    # SentencePiece reads special tokens that are spelled out as text, and ends at a zero.
    special = ("<s>", "</s>", "<unk>", "\0")
    texts = [text for text in plain_texts() if text and not any(mark in text for mark in special)]
    assert len(texts) > 100
    for text in texts:
        expected = processor.encode(text)
        found = tokenizer.encode(text, add_special_tokens=False).ids
        assert found == expected, text
        assert tokenizer.decode(found) == processor.decode(expected)
    again = llmkit.convert(back, "gguf-f16", output=tmp_path / "again.gguf").path
    with open_gguf(gguf) as a, open_gguf(again) as b:
        assert a.get("tokenizer.ggml.tokens") == b.get("tokenizer.ggml.tokens")
        types, again_types = (list(file.get("tokenizer.ggml.token_type")) for file in (a, b))
    # tokenizer.json has special tokens, of which the unknown one is one like others.
    assert (types[0], again_types[0]) == (TokenType.UNKNOWN, TokenType.CONTROL)
    assert types[1:] == again_types[1:]


def test_the_folder_appears_only_when_it_is_complete(tmp_path: Path) -> None:
    model = TinyLlama(dtype="F32")
    folder = model.write(tmp_path / "model")
    weights = model.weights()
    weights["model.norm.weight"][3] = np.inf
    model.write_weights(folder, weights)
    gguf = llmkit.convert(folder, "gguf-f32", output=tmp_path / "m.gguf", allow_nonfinite=True).path
    with pytest.raises(llmkit.errors.NonFiniteError, match="output_norm"):
        llmkit.convert(gguf, "safetensors", output=tmp_path / "back")
    assert not (tmp_path / "back").exists()
    dry = llmkit.convert(gguf, "safetensors", output=tmp_path / "back", dry_run=True)
    assert dry.plan.n_params == sum(v.size for v in weights.values())
    assert not (tmp_path / "back").exists()


def test_what_is_there_is_not_replaced_unasked(tmp_path: Path) -> None:
    gguf = llmkit.convert(TinyLlama().write(tmp_path / "model"), "gguf-f16", output=tmp_path / "m.gguf").path
    back = llmkit.convert(gguf, "safetensors", output=tmp_path / "back").path
    (back / "notes.txt").write_text("mine")
    with pytest.raises(OutputError, match="exists already"):
        llmkit.convert(gguf, "safetensors", output=back)
    llmkit.convert(gguf, "safetensors-f32", output=back, overwrite=True)
    assert (back / "notes.txt").read_text() == "mine"
    assert open_checkpoint(back).tensors["model.norm.weight"].dtype == "F32"


def test_what_cannot_be_restored_is_refused(tmp_path: Path) -> None:
    other = TinyGGUF(n_experts=4).write(tmp_path / "experts.gguf")
    with pytest.raises((FormatError, UnsupportedError)):
        llmkit.convert(other, "safetensors", output=tmp_path / "back")
    gguf = llmkit.convert(TinyLlama().write(tmp_path / "model"), "gguf-f16", output=tmp_path / "m.gguf").path
    with pytest.raises(UnsupportedError, match="no options for quantisation"):
        llmkit.convert(gguf, "safetensors", output=tmp_path / "back", pure=True)
    with pytest.raises(UnsupportedError, match="unknown target"):
        llmkit.convert(gguf, "safetensors-q8_0", output=tmp_path / "back")


@pytest.mark.parametrize("layout", [weights, joined])
def test_a_quantised_mixture_comes_back_expert_by_expert(layout: Callable[[Weights], Weights], tmp_path: Path) -> None:
    published = weights()
    folder = write_mixture(tmp_path / "model", published if layout is weights else joined(published))
    gguf = llmkit.convert(folder, "gguf-q8_0", output=tmp_path / "m.gguf").path
    back = weights_of(llmkit.convert(gguf, "safetensors", output=tmp_path / "back").path)
    assert back.keys() == published.keys()
    for name, values in published.items():
        assert (back[name].dtype, back[name].shape) == (np.float16, values.shape)
        # Half a step of Q8_0, whose block's largest value is at most that of all, and the rounding of float16.
        assert np.abs(back[name].astype(np.float32) - values).max() <= np.abs(values).max() * (0.51 / 127 + 2.0**-11)


def test_a_mixture_whose_file_does_not_say_so_is_refused(tmp_path: Path) -> None:
    for architecture in ("qwen2moe", "qwen3moe", "olmoe", "granitemoe"):
        gguf = TinyGGUF(architecture).write(tmp_path / f"{architecture}.gguf")
        with pytest.raises(FormatError, match="not those that its metadata describes"):
            llmkit.convert(gguf, "safetensors", output=tmp_path / "back")
