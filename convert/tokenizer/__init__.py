"""The tokenizer of a checkpoint as GGUF metadata, without transformers, tokenizers or sentencepiece.

files          finds and reads the JSON files
vocabulary     records: tokens, their types, what becomes of holes
bpe            byte-level BPE (tokenizer.json)
stages         how a tokenizer.json splits text, in terms that compare; splitting: the expressions in one spelling
pretokenizer   what llama.cpp's pre-tokenizers do; recognise: which of them a checkpoint gets
prove          finding one by its tokens, on hardtexts
sentencepiece  tokenizer.model
metaspace      SentencePiece's kind of BPE where only tokenizer.json is left
unigram        SentencePiece's other kind, from either file
wordpiece      WordPiece (tokenizer.json or vocab.txt)
tekken         tekken.json, Mistral's own file; tiktoken: lists of tokens; ranked: BPE by ranks of tokens
vocabmerges    vocab.json and merges.txt, with the rules of their class
special        BOS, EOS and the like; infill: the tokens for filling in the middle
chat_template  chat templates
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from llmkit.convert.tokenizer.bpe import byte_level_vocabulary
from llmkit.convert.tokenizer.chat_template import chat_template_metadata
from llmkit.convert.tokenizer.files import TokenizerFiles, read_tokenizer_files
from llmkit.convert.tokenizer.metaspace import metaspace_vocabulary
from llmkit.convert.tokenizer.pretokenizer import WITHOUT_BOS
from llmkit.convert.tokenizer.sentencepiece import read_sentencepiece, sentencepiece_vocabulary
from llmkit.convert.tokenizer.special import special_metadata
from llmkit.convert.tokenizer.stages import is_byte_level
from llmkit.convert.tokenizer.tekken import tekken_vocabulary
from llmkit.convert.tokenizer.tiktoken import tiktoken_file, tiktoken_vocabulary
from llmkit.convert.tokenizer.unigram import FAIRSEQ_FILE, unigram_sentencepiece_vocabulary, unigram_vocabulary
from llmkit.convert.tokenizer.vocabmerges import has_vocab_and_merges, with_tokenizer_json
from llmkit.convert.tokenizer.vocabulary import Vocabulary
from llmkit.convert.tokenizer.wordpiece import VOCAB_TXT, wordpiece_vocabulary
from llmkit.errors import FormatError, UnsupportedError
from llmkit.formats.gguf import Value, string
from llmkit.protocols import TokenizerJudge


def tokenizer_metadata(
    folder: Path,
    n_vocab: int,
    config: Mapping[str, Any],
    *,
    pre: str | None = None,
    judge: TokenizerJudge | None = None,
    notes: list[str] | None = None,
) -> dict[str, Value]:
    """All `tokenizer.*` metadata of the checkpoint in `folder`, for an embedding of `n_vocab` rows.

    `config` is the checkpoint's config.json. `pre` names one of llama.cpp's pre-tokenizers and overrides the
    recognition of the checkpoint's own; `judge` is asked where its rules are not known. What could not be carried over
    exactly is appended to `notes`, one sentence each, for the user to see.

    Raises FormatError for missing or broken tokenizer files, UnsupportedError for tokenizers that llama.cpp would
    not imitate. Reads files of bounded size only and runs nothing in them.
    """
    notes = [] if notes is None else notes
    files = read_tokenizer_files(folder)
    if files.tokenizer is None and has_vocab_and_merges(folder) and not (folder / "tokenizer.model").is_file():
        files = with_tokenizer_json(files, config)
    vocabulary = _vocabulary(files, n_vocab, pre, judge, notes)
    special = special_metadata(files, vocabulary, config, notes)
    found = {**vocabulary.metadata(), **special, **chat_template_metadata(files, notes)}
    if pre is None and "tokenizer.ggml.bos_token_id" not in special and vocabulary.pre in WITHOUT_BOS:
        found["tokenizer.ggml.pre"] = string(WITHOUT_BOS[vocabulary.pre])
    return found


def _vocabulary(
    files: TokenizerFiles, n_vocab: int, pre: str | None, judge: TokenizerJudge | None, notes: list[str]
) -> Vocabulary:
    """Read the vocabulary from the file that has it.

    tokenizer.model comes before tokenizer.json, which lacks the scores of its merges; those of Unigram both have.
    """
    kind = _model_type(files)
    path = files.folder / "tokenizer.model"
    if path.is_file() and kind != "Unigram":
        try:
            model = read_sentencepiece(path)
        except FormatError:
            # Llama 3 repositories carry a list of base64 tokens under this name, beside a tokenizer.json.
            if files.tokenizer is None and tiktoken_file(files.folder) is None:
                raise
            if files.tokenizer is not None:
                notes.append("tokenizer.model is no SentencePiece model; tokenizer.json is taken")
        else:
            if model.is_unigram:
                return unigram_sentencepiece_vocabulary(files, model, path, n_vocab, notes)
            return sentencepiece_vocabulary(files, model, n_vocab, notes)
    if files.tokenizer is None:
        return _without_tokenizer_json(files, n_vocab, pre, judge, notes)
    if kind is None:
        raise FormatError(files.tokenizer_json, "has no tokenizer model (`model` with a `type`)")
    if kind == "WordPiece":
        return wordpiece_vocabulary(files, n_vocab, notes)
    if kind == "Unigram":
        return unigram_vocabulary(files, n_vocab, notes)
    if kind != "BPE":
        raise UnsupportedError(
            f"{files.tokenizer_json}: a tokenizer model of type {kind}; llmkit converts BPE, WordPiece and Unigram"
        )
    is_metaspace = files.tokenizer["model"].get("byte_fallback") is True
    if is_metaspace and not is_byte_level(files.tokenizer.get("pre_tokenizer")):
        return metaspace_vocabulary(files, n_vocab, notes)
    return byte_level_vocabulary(files, n_vocab, pre, judge, notes)


def _model_type(files: TokenizerFiles) -> str | None:
    """The type of tokenizer.json's model, None if it has none; old files do not state it, and differ in keys."""
    model = (files.tokenizer or {}).get("model")
    if not isinstance(model, dict):
        return None
    keys = {"merges": "BPE", "continuing_subword_prefix": "WordPiece", "unk_id": "Unigram"}
    kind = model.get("type") or next((kind for key, kind in keys.items() if key in model), None)
    return kind if isinstance(kind, str) else None


def _without_tokenizer_json(
    files: TokenizerFiles, n_vocab: int, pre: str | None, judge: TokenizerJudge | None, notes: list[str]
) -> Vocabulary:
    """The vocabulary of the file that a kind of tokenizer had before there was tokenizer.json."""
    folder = files.folder
    if (folder / "tekken.json").is_file():
        return tekken_vocabulary(files, n_vocab, pre, judge, notes)
    if (folder / FAIRSEQ_FILE).is_file():
        model = read_sentencepiece(folder / FAIRSEQ_FILE)
        if not model.is_unigram:
            raise UnsupportedError(f"{folder / FAIRSEQ_FILE}: no Unigram model, which such files hold")
        return unigram_sentencepiece_vocabulary(files, model, folder / FAIRSEQ_FILE, n_vocab, notes)
    if (folder / VOCAB_TXT).is_file():
        return wordpiece_vocabulary(files, n_vocab, notes)
    ranked = tiktoken_file(folder)
    if ranked is not None:
        return tiktoken_vocabulary(files, ranked, n_vocab, pre, judge, notes)
    raise FormatError(folder, _missing())


def _missing() -> str:
    looked_for = "found no tokenizer.json, tokenizer.model, tekken.json, vocab.txt, or vocab.json with merges.txt"
    return (
        f"{looked_for}; copy the tokenizer files (tokenizer.json or tokenizer.model, tokenizer_config.json, "
        "special_tokens_map.json) here from the model this one was made from"
    )
