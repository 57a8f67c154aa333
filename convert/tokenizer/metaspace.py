"""Llama 1 and 2's kind of tokenizer where only tokenizer.json tells of it: BPE with byte fallback over `▁` words.

llama.cpp's tokenizer for these models merges the neighbours whose joint text has the best score; tokenizer.json
ranks pairs instead. A token's score here is minus its place in the order of first merges, which gives back the
scores of the SentencePiece model that such a file was made from. (The peer's converter gives every token one and the
same score, and llama.cpp then splits most words wrongly.)
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from llmkit.convert.tokenizer.bpe import read_merges, trained_tokens
from llmkit.convert.tokenizer.files import TokenizerFiles, steps, token_content
from llmkit.convert.tokenizer.special import declared_contents
from llmkit.convert.tokenizer.stages import Merge
from llmkit.convert.tokenizer.vocabulary import TokenTable, TokenType, Vocabulary, put_added_tokens, too_large
from llmkit.errors import UnsupportedError

_BYTE: Final = re.compile(r"<0x[0-9A-Fa-f]{2}>")
_SPACE: Final = "▁"
_PREFIX_NOTES: Final = {
    "always": "llama.cpp puts a space before text that begins with one, this tokenizer does not",
    "first": "llama.cpp puts a space before text that begins with one and before text that follows a special token, "
    "this tokenizer does not",
}


def metaspace_vocabulary(files: TokenizerFiles, n_vocab: int, notes: list[str]) -> Vocabulary:
    """The vocabulary of a tokenizer.json whose model is BPE with byte fallback.

    Raises FormatError when the file contradicts itself, UnsupportedError when it treats text in ways that
    llama.cpp's tokenizer for these models does not, or the embedding is too small for its tokens.
    """
    path = files.tokenizer_json
    assert files.tokenizer is not None
    model = files.tokenizer["model"]
    vocab = trained_tokens(model, path)
    merges = read_merges(model, vocab, path)
    prefix = _adds_space(files.tokenizer, vocab, path, notes)
    _check_merges(vocab, merges, notes)
    scores = merge_scores(vocab, merges)
    added = files.added_tokens()
    contents = {token.content for token in added}
    special = {*declared_contents(files), token_content(model.get("unk_token"))}
    table = TokenTable(n_vocab, path)
    for text, id in vocab.items():
        if id >= n_vocab:
            if text in contents:
                continue
            raise too_large(path, id, text, n_vocab)
        type = TokenType.NORMAL
        if _BYTE.fullmatch(text):
            type = TokenType.BYTE
        elif text in special:
            type = TokenType.CONTROL
        table.put(id, text, type, scores[text])
    put_added_tokens(table, added, vocab, notes)
    texts, types, all_scores = table.finish(notes)
    return Vocabulary(
        model="llama",
        pre="default",
        texts=texts,
        types=types,
        scores=all_scores,
        merges=None,
        add_space_prefix=prefix,
        adds_bos=True,
        ids={
            **{text: id for text, id in vocab.items() if id < n_vocab},
            **{token.content: token.id for token in added if token.id < n_vocab},
        },
    )


def merge_scores(vocab: Mapping[str, int], merges: Sequence[Merge]) -> dict[str, float]:
    """A score for every token: 0, -1, -2 ... in the order in which merges first make them, then by id.

    Byte tokens and what comes before the first merged token in the vocabulary get 0, as in SentencePiece models.
    """
    made = dict.fromkeys(left + right for left, right in merges)
    scores = {text: float(-place) for place, text in enumerate(made)}
    first = min((vocab[text] for text in made), default=0)
    place = len(scores)
    for text in sorted(vocab, key=vocab.__getitem__):
        if text in scores:
            continue
        if vocab[text] < first:
            scores[text] = 0.0
        else:
            scores[text] = float(-place)
            place += 1
    return scores


def _check_merges(vocab: Mapping[str, int], merges: Sequence[Merge], notes: list[str]) -> None:
    """Note where merging by scores can differ from merging by pairs: a pair that makes a token but is not listed."""
    listed = set(merges)
    missing = 0
    example = ""
    for text in dict.fromkeys(left + right for left, right in merges):
        for i in range(1, len(text)):
            left, right = text[:i], text[i:]
            if left in vocab and right in vocab and (left, right) not in listed:
                missing += 1
                example = example or f"{left!r} + {right!r}"
    if missing:
        notes.append(
            f"llama.cpp merges any two neighbours that make a token; {missing} such pairs are no merges of "
            f"tokenizer.json (such as {example}), so tokens may differ"
        )


def _adds_space(tokenizer: Mapping[str, Any], vocab: Mapping[str, int], path: Path, notes: list[str]) -> bool:
    """Whether text gets a space in front; UnsupportedError for any other treatment than spaces becoming `▁`."""
    replaces = prefix = False
    for step in steps(tokenizer.get("normalizer"), "normalizers"):
        kind = step.get("type")
        if kind == "Prepend" and step.get("prepend") == _SPACE:
            prefix = True
        elif kind == "Replace" and step.get("pattern") == {"String": " "} and step.get("content") == _SPACE:
            replaces = True
        else:
            raise _unsupported(path, "normalizer", step)
    for step in steps(tokenizer.get("pre_tokenizer"), "pretokenizers"):
        if step.get("type") != "Metaspace" or step.get("replacement", _SPACE) != _SPACE:
            raise _unsupported(path, "pre_tokenizer", step)
        replaces = True
        scheme = step.get("prepend_scheme")
        if scheme is None:
            scheme = "always" if step.get("add_prefix_space", True) else "never"
        if scheme not in ("always", "first", "never"):
            raise _unsupported(path, "pre_tokenizer", step)
        prefix = prefix or scheme != "never"
        if scheme in _PREFIX_NOTES:
            notes.append(_PREFIX_NOTES[scheme])
        if step.get("split", True) and any(_SPACE in text[1:] for text in vocab):
            raise UnsupportedError(
                f"{path}: pre_tokenizer: Metaspace splits words, yet the vocabulary has tokens with `▁` inside; "
                "llama.cpp would use them"
            )
    if not replaces:
        raise UnsupportedError(
            f"{path}: neither normalizer nor pre_tokenizer turns spaces into `▁`; llama.cpp always does"
        )
    return prefix


def _unsupported(path: Path, where: str, step: Mapping[str, Any]) -> UnsupportedError:
    return UnsupportedError(
        f"{path}: {where}: {dict(step)!r:.200}; llama.cpp's tokenizer for models with byte fallback only turns "
        "spaces into `▁`"
    )
