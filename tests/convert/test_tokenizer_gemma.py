"""Gemma's tokenizer.json: BPE with byte fallback that ranks pairs; runs of spaces and line ends are added tokens."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from sentencepiece import SentencePieceProcessor
from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors

from llmkit.convert.tokenizer import tokenizer_metadata
from tests.convert import trained
from tests.convert.trained import write_json
from tests.convert.vocabfile import LlamaVocabulary
from tests.corpus import plain_texts, texts_with

RUNS = [*("▁" * n for n in range(2, 9)), *("\n" * n for n in range(1, 9))]
OPTIONS: dict[str, Any] = {
    "user_defined_symbols": [*RUNS, "<table>", "</table>"],
    "add_dummy_prefix": False,
    "pad_id": 0,
    "eos_id": 1,
    "bos_id": 2,
    "unk_id": 3,
    "bos_piece": "<bos>",
    "eos_piece": "<eos>",
}


def gemma(spm: SentencePieceProcessor, *, adds_bos: bool) -> Tokenizer:
    """The tokenizer as transformers makes it of Gemma's tokenizer.model: pairs by score, then by their lengths."""
    vocab = {spm.id_to_piece(id): id for id in range(spm.vocab_size())}
    vocab["\t"] = vocab.pop("<0x09>")
    pairs = [
        (-spm.get_score(id), -i, i - len(piece), piece[:i], piece[i:])
        for piece, id in vocab.items()
        if piece != "\t"
        for i in range(1, len(piece))
        if piece[:i] in vocab and piece[i:] in vocab
    ]
    merges = [(left, right) for *_, left, right in sorted(pairs)]
    hf = Tokenizer(models.BPE(vocab=vocab, merges=merges, unk_token="<unk>", fuse_unk=True, byte_fallback=True))
    hf.normalizer = normalizers.Replace(" ", "▁")
    hf.pre_tokenizer = pre_tokenizers.Split(" ", "merged_with_previous")
    hf.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()])
    hf.add_special_tokens([AddedToken(t, normalized=False, special=True) for t in ("<pad>", "<eos>", "<bos>", "<unk>")])
    hf.add_tokens([AddedToken(t, normalized=False) for t in OPTIONS["user_defined_symbols"]])
    hf.post_processor = processors.TemplateProcessing(
        single="<bos> $A" if adds_bos else "$A",
        pair="<bos> $A <bos> $B" if adds_bos else "$A $B",
        special_tokens=[("<bos>", 2)],
    )
    return hf


@pytest.mark.parametrize(
    ("adds_bos", "config"),
    [(True, {}), (False, {}), (False, {"add_bos_token": False})],
    ids=["template", "silent", "refused"],
)
def test_gemma(adds_bos: bool, config: dict[str, Any], tmp_path: Path) -> None:
    spm = trained.train_sentencepiece(tmp_path, **OPTIONS)
    (tmp_path / "tokenizer.model").unlink()
    hf = gemma(spm, adds_bos=adds_bos)
    hf.save(str(tmp_path / "tokenizer.json"))
    write_json(tmp_path / "tokenizer_config.json", {"bos_token": "<bos>", "eos_token": "<eos>", **config})
    notes: list[str] = []
    metadata = tokenizer_metadata(tmp_path, spm.vocab_size() + 3, {}, notes=notes)
    assert metadata["tokenizer.ggml.model"].data == "gemma4"
    assert [note.partition(",")[0] for note in notes] == (["the tokenizer adds no BOS token"] if config else [])
    texts = [*plain_texts(), *texts_with(["<bos>", "<eos>", "<table>"]), " " * 40 + "x" + "\n" * 40]
    texts = [text for text in texts if "▁" not in text]  # which llama.cpp cannot tell from a space
    with LlamaVocabulary(metadata, tmp_path / "v.gguf") as vocabulary:
        assert vocabulary.adds_bos()
        assert vocabulary.special()["bos"] == 2
        for text in texts:
            ids = vocabulary.encode(text, add_special=True)
            assert ids == [2, *hf.encode(text, add_special_tokens=False).ids], text
            assert vocabulary.decode(ids[1:]).decode() == text


def test_without_bos_the_older_kind_is_taken(tmp_path: Path) -> None:
    """llama.cpp would end the process: it adds BOS to the newer kind whether there is one or not."""
    spm = trained.train_sentencepiece(tmp_path, **OPTIONS)
    (tmp_path / "tokenizer.model").unlink()
    gemma(spm, adds_bos=False).save(str(tmp_path / "tokenizer.json"))
    notes: list[str] = []
    metadata = tokenizer_metadata(tmp_path, spm.vocab_size(), {}, notes=notes)
    assert metadata["tokenizer.ggml.model"].data == "llama"
    assert [note for note in notes if note.startswith("llama.cpp takes all pairs that make one token as equally good")]
