"""Tokenizers that the tests train on Python's own manual, with Hugging Face's `tokenizers` and with `sentencepiece`."""

from __future__ import annotations

import json
from collections.abc import Iterator
from functools import cache
from io import BytesIO
from pathlib import Path
from pydoc_data.topics import topics
from typing import Any

import sentencepiece
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers

from llmkit.convert.tokenizer.sentencepiece import parse_sentencepiece
from tests.corpus import plain_texts

SPECIAL = ("<|begin_of_text|>", "<|end_of_text|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>")
UNIGRAM_SPECIAL = ("<s>", "<pad>", "</s>", "<unk>", "<mask>")

# What the tokenizer.json of each family splits by, as published.
_CONTRACTIONS = "(?i:'s|'t|'re|'ve|'m|'ll|'d)"
_BY_CASE = (
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+",
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*",
)
LLAMA3 = _CONTRACTIONS + r"|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
QWEN2 = LLAMA3.replace("{1,3}", "")
TEKKEN = "|".join(_BY_CASE) + r"|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
GPT4O = (
    "|".join(words + _CONTRACTIONS + "?" for words in _BY_CASE)
    + r"|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)


def split(regex: str, behavior: str = "isolated", *, invert: bool = False) -> Any:
    return pre_tokenizers.Split(Regex(regex), behavior, invert=invert)


def byte_level(*before: Any, use_regex: bool = False) -> Any:
    """The steps `before`, then the byte-level alphabet, with GPT-2's own splitting if `use_regex`."""
    last = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=use_regex)
    return pre_tokenizers.Sequence([*before, last]) if before else last


@cache
def text() -> tuple[str, ...]:
    """Some 400 kB of English about Python, and the corpus, so that other scripts get merges too."""
    return (*topics.values(), *20 * [text for text in plain_texts() if len(text) < 200])


def train_byte_level(
    folder: Path, pre_tokenizer: Any, *, n_tokens: int = 6000, ignore_merges: bool = False, template: bool = True
) -> Tokenizer:
    """Train and save a tokenizer.json as Llama 3 has it: special tokens after the trained ones."""
    tokenizer = Tokenizer(models.BPE(ignore_merges=ignore_merges))
    tokenizer.pre_tokenizer = pre_tokenizer
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=n_tokens, initial_alphabet=alphabet, show_progress=False)
    tokenizer.train_from_iterator(text(), trainer)
    tokenizer.add_special_tokens([AddedToken(content, normalized=False, special=True) for content in SPECIAL])
    if template:
        bos = SPECIAL[0]
        tokenizer.post_processor = processors.TemplateProcessing(
            single=f"{bos} $A", pair=f"{bos} $A {bos} $B", special_tokens=[(bos, tokenizer.token_to_id(bos))]
        )
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer.save(str(folder / "tokenizer.json"))
    write_json(folder / "tokenizer_config.json", {"bos_token": SPECIAL[0], "eos_token": SPECIAL[1]})
    return tokenizer


def train_sentencepiece(folder: Path, **options: Any) -> sentencepiece.SentencePieceProcessor:
    """Train and save a tokenizer.model with the options of Llama 2, unless `options` say otherwise."""
    model = sentencepiece_model(**options)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "tokenizer.model").write_bytes(model)
    return sentencepiece.SentencePieceProcessor(model_proto=model)


def sentencepiece_model(**options: Any) -> bytes:
    """The content of such a tokenizer.model."""
    model = BytesIO()
    settings: dict[str, Any] = {
        "model_type": "bpe",
        "vocab_size": 1200,
        "byte_fallback": True,
        "character_coverage": 0.9995,
        "normalization_rule_name": "identity",
        "remove_extra_whitespaces": False,
        "split_digits": True,
        "allow_whitespace_only_pieces": True,
        "num_threads": 1,
        "minloglevel": 2,
    }
    sentencepiece.SentencePieceTrainer.train(sentence_iterator=_lines(), model_writer=model, **{**settings, **options})
    return model.getvalue()


def hf_from_sentencepiece(spm: sentencepiece.SentencePieceProcessor, style: str) -> Tokenizer:
    """A tokenizer.json for a SentencePiece model, as transformers makes it: every way to split a piece is a merge."""
    vocab = {spm.id_to_piece(id): id for id in range(spm.vocab_size())}
    ranked = []
    for piece, id in vocab.items():
        if spm.is_control(id) or spm.is_unknown(id) or spm.is_byte(id):
            continue
        pairs = [(piece[:i], piece[i:]) for i in range(1, len(piece)) if piece[:i] in vocab and piece[i:] in vocab]
        ranked += [(-spm.get_score(id), vocab[left], vocab[right], left, right) for left, right in pairs]
    merges = [(left, right) for *_, left, right in sorted(ranked)]
    hf = Tokenizer(models.BPE(vocab=vocab, merges=merges, unk_token="<unk>", fuse_unk=True, byte_fallback=True))
    if style == "prepend":
        hf.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    elif style == "replace":
        hf.normalizer = normalizers.Replace(" ", "▁")
    else:
        hf.pre_tokenizer = pre_tokenizers.Metaspace(replacement="▁", prepend_scheme=style, split=False)
    hf.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()])
    control = [piece for piece, id in vocab.items() if spm.is_control(id) or spm.is_unknown(id)]
    hf.add_special_tokens([AddedToken(piece, normalized=False, special=True) for piece in control])
    bos = spm.id_to_piece(spm.bos_id())
    hf.post_processor = processors.TemplateProcessing(
        single=f"{bos} $A", pair=f"{bos} $A {bos} $B", special_tokens=[(bos, spm.bos_id())]
    )
    return hf


@cache
def unigram_model() -> bytes:
    """A SentencePiece Unigram model of 4000 pieces with the usual normalisation (nmt_nfkc)."""
    model = BytesIO()
    lines = (line for part in text() for line in part.splitlines() if line)
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=lines, model_writer=model, model_type="unigram", vocab_size=4000, num_threads=1, minloglevel=2
    )
    return model.getvalue()


def train_unigram(folder: Path, **parts: Any) -> Tokenizer:
    """Train and save a tokenizer.json as XLM-RoBERTa has it; `parts` replace its normalizer or pre_tokenizer."""
    model = parse_sentencepiece(memoryview(unigram_model()))
    first = [(token, 0.0) for token in UNIGRAM_SPECIAL[:4]]
    pieces = [(piece.text, piece.score) for piece in model.pieces[3:]]
    tokenizer = Tokenizer(models.Unigram([*first, *pieces, (UNIGRAM_SPECIAL[4], 0.0)], 3, False))
    tokenizer.normalizer = parts.get("normalizer", normalizers.Precompiled(model.charsmap))
    tokenizer.pre_tokenizer = parts.get(
        "pre_tokenizer",
        pre_tokenizers.Sequence([pre_tokenizers.WhitespaceSplit(), pre_tokenizers.Metaspace(prepend_scheme="always")]),
    )
    tokenizer.decoder = decoders.Metaspace()
    tokenizer.add_special_tokens([AddedToken(token, normalized=False, special=True) for token in UNIGRAM_SPECIAL])
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>", pair="<s> $A </s> </s> $B </s>", special_tokens=[("<s>", 0), ("</s>", 2)]
    )
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer.save(str(folder / "tokenizer.json"))
    names = ("bos", "pad", "eos", "unk", "mask", "cls", "sep")
    tokens = (*UNIGRAM_SPECIAL, "<s>", "</s>")
    config = {f"{name}_token": token for name, token in zip(names, tokens, strict=True)}
    write_json(folder / "tokenizer_config.json", {**config, "tokenizer_class": "XLMRobertaTokenizer"})
    return tokenizer


def _lines() -> Iterator[str]:
    for topic in topics.values():
        yield from (line for line in topic.splitlines() if line)


def write_json(path: Path, value: object) -> None:
    path.write_text(json.dumps(value, ensure_ascii=False), encoding="utf-8")
