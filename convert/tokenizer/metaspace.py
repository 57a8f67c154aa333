"""Llama 2's and Gemma's kind of tokenizer where only tokenizer.json tells of it: BPE with byte fallback and `▁`.

llama.cpp has two tokenizers for it. The older one, "llama", merges the neighbours whose joint text has the best score;
tokenizer.json ranks pairs instead. A token's score here is minus its place in the order of first merges, which gives
back the scores of the SentencePiece model that such a file was made from. (The peer's converter gives every token one
and the same score, and llama.cpp then splits most words wrongly.) The newer one, "gemma4", ranks pairs too, but always
adds BOS and puts no space before the text. It is taken where scores cannot say what the ranks do.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence, Set
from pathlib import Path
from typing import Any, Final

from llmkit.convert.tokenizer.bpe import read_merges, trained_tokens, usable_merges
from llmkit.convert.tokenizer.files import TokenizerFiles, steps, token_content
from llmkit.convert.tokenizer.special import declared_contents, post_processing
from llmkit.convert.tokenizer.stages import Merge
from llmkit.convert.tokenizer.vocabulary import (
    AddedToken,
    TokenTable,
    TokenType,
    Vocabulary,
    put_added_tokens,
    too_large,
)
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
    problem = _unlike_scores(vocab, merges)
    ranked = bool(problem) and not prefix and not _joins_line_ends(merges) and _has_bos(files, vocab)
    if problem and not ranked:
        notes.append(problem)
    scores = merge_scores(vocab, merges)
    made = {left + right for left, right in merges}
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
    # Spaces are `▁` by the time that added tokens are looked for: merges make the runs of them, if anything does.
    put_added_tokens(table, [token for token in added if not _is_merged(token, made)], vocab, notes)
    texts, types, all_scores = table.finish(notes)
    return Vocabulary(
        model="gemma4" if ranked else "llama",
        pre="gemma4" if ranked else "default",
        texts=texts,
        types=types,
        scores=None if ranked else all_scores,
        merges=tuple(f"{left} {right}" for left, right in usable_merges(merges, notes)) if ranked else None,
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


def _is_merged(token: AddedToken, made: Set[str]) -> bool:
    return token.type is TokenType.USER_DEFINED and token.content in made and not token.content.strip(_SPACE)


def _has_bos(files: TokenizerFiles, vocab: Mapping[str, int]) -> bool:
    """Whether the files name a BOS token: "gemma4" ends the process where there is none."""
    contents = {*vocab, *(token.content for token in files.added_tokens())}
    named = [token_content(source.get("bos_token")) for source in (files.config, files.special_tokens_map)]
    return any(content in contents for content in (*named, post_processing(files.tokenizer).first))


def _joins_line_ends(merges: Sequence[Merge]) -> bool:
    """Whether a merge joins a line end with something else: "gemma4" splits text there first."""
    return any("\n" in left + right and (left + right).strip("\n") for left, right in merges)


def _unlike_scores(vocab: Mapping[str, int], merges: Sequence[Merge]) -> str:
    """Where merging by scores can differ from merging by pairs: a sentence for the user, empty if nowhere.

    Scores take any pair that makes a token, and all pairs of one token as equally good.
    """
    listed = set(merges)
    missing = [
        (text[:i], text[i:])
        for text in dict.fromkeys(left + right for left, right in merges)
        for i in range(1, len(text))
        if text[:i] in vocab and text[i:] in vocab and (text[:i], text[i:]) not in listed
    ]
    if missing:
        left, right = missing[0]
        return (
            f"llama.cpp merges any two neighbours that make a token; {len(missing)} such pairs are no merges of "
            f"tokenizer.json (such as {left!r} + {right!r}), so tokens may differ"
        )
    finished: set[str] = set()
    previous = ""
    for left, right in merges:
        text = left + right
        if text in finished:
            return (
                f"llama.cpp takes all pairs that make one token as equally good; tokenizer.json ranks those of "
                f"{text!r} apart, so tokens may differ"
            )
        if text != previous:
            finished.add(previous)
            previous = text
    return ""


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
        if step.get("type") == "Split" and step.get("pattern") == {"String": " "} and replaces:
            continue  # Gemma's: there is no space left to split at
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
