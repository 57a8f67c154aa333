"""Encoders back from GGUF files: tokenizers, pooling, positions."""

from __future__ import annotations

import json
from pathlib import Path
from shutil import copyfile
from typing import Any

import numpy as np
import pytest
from tokenizers import Tokenizer

import llmkit
from llmkit.convert.archs import ConfigReader
from llmkit.convert.archs.hparams import HParams
from llmkit.convert.archs.pooling import read_pooling, write_pooling
from llmkit.convert.archs.roberta import from_file
from llmkit.convert.gguf_source import GGUFSource
from llmkit.convert.restore.tokenizer import tokenizer_documents
from llmkit.convert.tokenizer import tokenizer_metadata
from llmkit.errors import FormatError, NonFiniteError, UnsupportedError
from llmkit.formats.gguf import Value, string, u32
from tests.convert.trained import train_unigram, write_json
from tests.corpus import plain_texts, texts_with
from tests.tinymodels import write_safetensors
from tests.tokenizer_differences import unigram_differs

N_VOCAB = 30522


def restored(metadata: dict[str, Value], folder: Path, n_types: int = 2) -> tuple[Tokenizer, dict[str, Any]]:
    """The tokenizer of a file with this metadata, and its tokenizer_config.json."""
    keys = {**metadata, "tokenizer.ggml.token_type_count": u32(n_types)}
    documents = tokenizer_documents(GGUFSource((folder / "m.gguf",), keys, (), 32), 512)
    write_json(folder / "back.json", documents["tokenizer.json"])
    return Tokenizer.from_file(str(folder / "back.json")), documents["tokenizer_config.json"]


def copy_wordpiece(source: Path, folder: Path, **normalizer: Any) -> Tokenizer:
    """MiniLM's tokenizer with another normalisation."""
    copyfile(source / "tokenizer_config.json", folder / "tokenizer_config.json")
    found = json.loads((source / "tokenizer.json").read_text())
    found |= {"truncation": None, "padding": None, "normalizer": {**found["normalizer"], **normalizer}}
    write_json(folder / "tokenizer.json", found)
    return Tokenizer.from_file(str(folder / "tokenizer.json"))


@pytest.mark.parametrize(("lowercase", "strips"), [(True, None), (False, None), (True, False), (False, True)])
def test_wordpiece(lowercase: bool, strips: bool | None, minilm_checkpoint: Path, tmp_path: Path) -> None:
    hf = copy_wordpiece(minilm_checkpoint, tmp_path, lowercase=lowercase, strip_accents=strips)
    # Six rows more than tokens, as Nomic's embedding has.
    back, config = restored(tokenizer_metadata(tmp_path, N_VOCAB + 6, {}), tmp_path)
    assert back.get_vocab() == hf.get_vocab()
    texts = [*plain_texts(), *texts_with(["[CLS]", "[SEP]", "[MASK]", "[UNK]"]), "[unused7] a##b"]
    for text in texts:
        found, expected = back.encode(text), hf.encode(text)
        assert found.ids == expected.ids, text
        assert back.decode(found.ids) == hf.decode(expected.ids)
    found, expected = (tokenizer.encode("a question", "an answer") for tokenizer in (back, hf))
    assert (found.ids, found.type_ids) == (expected.ids, expected.type_ids)
    assert (config["cls_token"], config["sep_token"], config["mask_token"]) == ("[CLS]", "[SEP]", "[MASK]")
    assert "token_type_ids" in config["model_input_names"]


def test_wordpiece_as_other_converters_write_it(minilm_checkpoint: Path, tmp_path: Path) -> None:
    """They leave out what llama.cpp takes for granted, and the mark of a word before tokens in brackets."""
    hf = copy_wordpiece(minilm_checkpoint, tmp_path)
    metadata = tokenizer_metadata(tmp_path, N_VOCAB, {})
    tokens = [text.removeprefix("▁") if text.startswith("▁[unused") else text for text in metadata[TOKENS].data]
    kept = {key: value for key, value in metadata.items() if not key.endswith(("_token_id", ".lowercase", "s_token"))}
    back, _ = restored({**kept, TOKENS: Value(metadata[TOKENS].type, tokens, metadata[TOKENS].element_type)}, tmp_path)
    assert back.get_vocab() == hf.get_vocab()
    for text in plain_texts():
        assert back.encode(text).ids == hf.encode(text).ids, text


TOKENS = "tokenizer.ggml.tokens"


def test_unigram(tmp_path: Path) -> None:
    hf = train_unigram(tmp_path)
    n_vocab = hf.get_vocab_size()
    metadata = tokenizer_metadata(tmp_path, n_vocab, {})
    back, config = restored(metadata, tmp_path, n_types=1)
    assert back.get_vocab() == hf.get_vocab()
    texts = [*plain_texts(), *texts_with(["<s>", "</s>", "<mask>"]), "", " ", "  two  spaces  ", " a\n b\t"]
    compared = [text for text in texts if not unigram_differs(text)]
    assert len(compared) > 50
    for text in compared:
        assert back.encode(text).ids == hf.encode(text).ids, text
    found, expected = (tokenizer.encode("a question", "an answer") for tokenizer in (back, hf))
    assert found.ids == expected.ids
    assert set(found.type_ids) == {0}, "the model has one type only"
    assert "token_type_ids" not in config["model_input_names"]


def test_unigram_with_added_tokens(tmp_path: Path) -> None:
    """Tokens beyond the trained ones have no score, which would make unknown characters dearer."""
    hf = train_unigram(tmp_path)
    n_vocab = hf.get_vocab_size()
    hf.add_special_tokens(["<extra>"])
    hf.save(str(tmp_path / "tokenizer.json"))
    metadata = tokenizer_metadata(tmp_path, n_vocab + 9, {})
    back, _ = restored(metadata, tmp_path)
    write_json(tmp_path / "tokenizer.json", json.loads((tmp_path / "back.json").read_text()))
    again = tokenizer_metadata(tmp_path, n_vocab + 9, {})
    assert again["tokenizer.ggml.scores"] == metadata["tokenizer.ggml.scores"]
    assert again["tokenizer.ggml.token_type"] == metadata["tokenizer.ggml.token_type"]
    assert back.encode("a<extra>b").ids == hf.encode("a<extra>b").ids
    assert back.get_vocab() == hf.get_vocab()


def test_a_unigram_without_unknown_token(tmp_path: Path) -> None:
    train_unigram(tmp_path)
    metadata = tokenizer_metadata(tmp_path, 5000, {})
    del metadata["tokenizer.ggml.unknown_token_id"]
    types = metadata["tokenizer.ggml.token_type"]
    plain = Value(types.type, [1] * len(types.data), types.element_type)
    with pytest.raises(FormatError, match="unknown_token_id"):
        restored({**metadata, "tokenizer.ggml.token_type": plain}, tmp_path)


def test_an_unknown_kind_of_tokenizer(tmp_path: Path) -> None:
    train_unigram(tmp_path)
    metadata = {**tokenizer_metadata(tmp_path, 5000, {}), "tokenizer.ggml.model": string("rwkv")}
    with pytest.raises(UnsupportedError, match="kind 'rwkv'"):
        restored(metadata, tmp_path)


@pytest.mark.parametrize("pooling", ["mean", "cls", "last", None])
def test_pooling(pooling: str | None, tmp_path: Path) -> None:
    for name, document in write_pooling(pooling, 32).items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        write_json(tmp_path / name, document)
    assert read_pooling(tmp_path) == pooling


@pytest.mark.parametrize(("padding", "expected"), [(None, 2), (0, 1), (5, 6)])
def test_positions_for_padding(padding: int | None, expected: int, tmp_path: Path) -> None:
    metadata = {} if padding is None else {"tokenizer.ggml.padding_token_id": padding}
    assert from_file(ConfigReader(tmp_path / "m.gguf", metadata), hparams()).first_position == expected


def test_positions_for_more_padding_than_there_is_text(tmp_path: Path) -> None:
    metadata = {"tokenizer.ggml.padding_token_id": 2**31}
    with pytest.raises(UnsupportedError, match=r"m\.gguf: tokenizer\.ggml\.padding_token_id"):
        from_file(ConfigReader(tmp_path / "m.gguf", metadata), hparams())


def hparams() -> HParams:
    sizes = {"n_layers": 1, "n_embd": 32, "n_ff": 64, "n_heads": 2, "n_kv_heads": 2, "head_dim": 16}
    return HParams(**sizes, n_vocab=N_VOCAB, n_context=64)


def write_bert(folder: Path, source: Path) -> Path:
    """BERT of one block with MiniLM's tokenizer and pooling."""
    random = np.random.default_rng(0)
    n, layer = 32, "encoder.layer.0."
    shapes: dict[str, tuple[int, ...]] = {
        f"embeddings.{name}_embeddings.weight": (rows, n)
        for name, rows in (("word", N_VOCAB), ("position", 64), ("token_type", 2))
    }
    places = [f"{layer}attention.{name}" for name in ("self.query", "self.key", "self.value", "output.dense")]
    for place, rows, columns in (
        *((place, n, n) for place in places),
        (f"{layer}intermediate.dense", 2 * n, n),
        (f"{layer}output.dense", n, 2 * n),
    ):
        shapes |= {f"{place}.weight": (rows, columns), f"{place}.bias": (rows,)}
    for place in ("embeddings", f"{layer}attention.output", f"{layer}output"):
        shapes |= {f"{place}.LayerNorm.weight": (n,), f"{place}.LayerNorm.bias": (n,)}
    folder.mkdir()
    weights = {name: random.standard_normal(shape, np.float32) for name, shape in shapes.items()}
    weights[f"{layer}output.LayerNorm.bias"][-1] = np.inf
    write_safetensors(folder / "model.safetensors", weights, "F32")
    sizes = {"hidden_size": n, "intermediate_size": 2 * n, "num_hidden_layers": 1, "num_attention_heads": 2}
    more = {"max_position_embeddings": 64, "vocab_size": N_VOCAB, "type_vocab_size": 2}
    write_json(folder / "config.json", {"architectures": ["BertModel"], "model_type": "bert", **sizes, **more})
    for name in ("tokenizer.json", "tokenizer_config.json", "modules.json"):
        copyfile(source / name, folder / name)
    (folder / "1_Pooling").mkdir()
    copyfile(source / "1_Pooling" / "config.json", folder / "1_Pooling" / "config.json")
    return folder


def test_files_in_folders_of_their_own(minilm_checkpoint: Path, tmp_path: Path) -> None:
    folder = write_bert(tmp_path / "model", minilm_checkpoint)
    gguf = llmkit.convert(folder, "gguf-f32", output=tmp_path / "m.gguf", allow_nonfinite=True).path
    back = tmp_path / "back"
    llmkit.convert(gguf, "safetensors", output=back, dry_run=True)
    assert not back.exists()
    with pytest.raises(NonFiniteError, match="layer_output_norm"):
        llmkit.convert(gguf, "safetensors", output=back)
    assert not back.exists(), "neither the folder nor the one in it"
    llmkit.convert(gguf, "safetensors", output=back, allow_nonfinite=True)
    assert read_pooling(back) == "mean"
    assert not (back / "generation_config.json").exists()
    assert json.loads((back / "config.json").read_text())["architectures"] == ["BertModel"]
    llmkit.convert(gguf, "safetensors", output=back, allow_nonfinite=True, overwrite=True)
