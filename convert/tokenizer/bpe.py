"""Byte-level BPE from tokenizer.json (GPT-2's kind: SmolLM, Llama 3, Mistral's Tekken)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import chain
from pathlib import Path
from typing import Any

from llmkit.convert.tokenizer.files import TokenizerFiles, steps, token_id
from llmkit.convert.tokenizer.recognise import recognise
from llmkit.convert.tokenizer.special import declared_contents
from llmkit.convert.tokenizer.stages import Merge, Splitter
from llmkit.convert.tokenizer.vocabulary import TokenTable, TokenType, Vocabulary, put_added_tokens, too_large
from llmkit.errors import FormatError, UnsupportedError
from llmkit.formats.strictjson import json_kind
from llmkit.protocols import TokenizerJudge


def byte_level_vocabulary(
    files: TokenizerFiles, n_vocab: int, pre: str | None, judge: TokenizerJudge | None, notes: list[str]
) -> Vocabulary:
    """The vocabulary of a tokenizer.json whose model is BPE over the byte-level alphabet.

    `pre` overrides the recognition of the pre-tokenizer, `judge` is asked where its rules are not known. Notes about
    what llmkit left out or could not carry over are appended to `notes`.

    Raises FormatError when the file contradicts itself, UnsupportedError when llama.cpp has no such pre-tokenizer
    or the embedding is too small for the trained tokens.
    """
    path = files.tokenizer_json
    assert files.tokenizer is not None
    model = files.tokenizer["model"]
    vocab = trained_tokens(model, path)
    merges = read_merges(model, vocab, path)
    _refuse_affixes(model, path)
    _check_normalizer(files.tokenizer.get("normalizer"), pre, path, notes)
    splitter = Splitter(files.tokenizer.get("pre_tokenizer"), vocab, merges, model.get("ignore_merges") is True)
    cleans = files.config.get("clean_up_tokenization_spaces")
    name = recognise(splitter, cleans if isinstance(cleans, bool) else None, pre, judge, path, notes)

    added = files.added_tokens()
    added_contents = {token.content for token in added}
    table = TokenTable(n_vocab, path)
    for text, id in vocab.items():
        if id < n_vocab:
            table.put(id, text, TokenType.NORMAL)
        elif text not in added_contents:
            raise too_large(path, id, text, n_vocab)
    put_added_tokens(table, added, vocab, notes)
    ids = {**vocab, **{token.content: token.id for token in added}}
    for content in declared_contents(files):
        if ids.get(content, n_vocab) < n_vocab and table.type(ids[content]) is TokenType.NORMAL:
            table.put(ids[content], content, TokenType.CONTROL)
    texts, types, _ = table.finish(notes)
    return Vocabulary(
        model="gpt2",
        pre=name,
        texts=texts,
        types=types,
        scores=None,
        merges=tuple(f"{left} {right}" for left, right in usable_merges(merges, notes)),
        add_space_prefix=False,
        adds_bos=False,
        ids={content: id for content, id in ids.items() if id < n_vocab},
    )


def trained_tokens(model: Mapping[str, Any], path: Path) -> dict[str, int]:
    """`model.vocab` of a BPE tokenizer.json: text -> id, checked; FormatError if it is not that."""
    vocab = model.get("vocab")
    if not isinstance(vocab, dict):
        raise FormatError(path, f"model.vocab: expected an object, found {json_kind(vocab)}")
    owner: dict[int, str] = {}
    for text, value in vocab.items():
        id = token_id(value, path, text)
        if id in owner:
            raise FormatError(path, f"model.vocab: id {id} belongs to both {owner[id]!r} and {text!r}")
        owner[id] = text
    return vocab


def read_merges(model: Mapping[str, Any], vocab: Mapping[str, int], path: Path) -> list[Merge]:
    """`model.merges` in both spellings, "a b" and ["a", "b"], most important first.

    Raises FormatError for a merge that is no pair, or whose parts or result are not in the vocabulary (Hugging
    Face's tokenizers refuses such a file too).
    """
    entries = model.get("merges")
    if not isinstance(entries, list):
        raise FormatError(path, f"model.merges: expected an array, found {json_kind(entries)}")
    merges = _pairs(entries)
    if merges is not None:
        needed = {*chain.from_iterable(merges), *(left + right for left, right in merges)}
        if needed <= vocab.keys():
            return merges
    for index, entry in enumerate(entries):  # something is wrong: find out what
        parts = entry.split(" ") if isinstance(entry, str) else entry
        if not isinstance(parts, list) or len(parts) != 2 or not all(isinstance(part, str) for part in parts):
            raise FormatError(path, f"model.merges: entry {index} is no pair of tokens: {entry!r:.80}")
        left, right = parts
        for text in (left, right, left + right):
            if text not in vocab:
                raise FormatError(path, f"model.merges: entry {index} needs {text!r}, which is not in the vocabulary")
    raise FormatError(path, "model.merges: strings and pairs are mixed")


def _pairs(entries: list[Any]) -> list[Merge] | None:
    """The entries as pairs, quickly; None if any is no pair of strings, or the two spellings are mixed."""
    kinds = set(map(type, entries))
    if kinds <= {str}:
        pairs = [tuple(entry.split(" ")) for entry in entries]
    elif kinds == {list}:
        pairs = list(map(tuple, entries))
    else:
        return None
    if set(map(len, pairs)) <= {2} and set(map(type, chain.from_iterable(pairs))) <= {str}:
        return pairs
    return None


def usable_merges(merges: Sequence[Merge], notes: list[str]) -> list[Merge]:
    """The merges as llama.cpp can use them.

    Of a pair given twice, tokenizers ranks the last, llama.cpp the first: only the last stays. A part with a space
    cannot occur, because spaces are `Ġ` or `▁` when merging begins, and "a b" could not spell it.
    """
    spaced = sum(" " in left or " " in right for left, right in merges)
    last = {merge: rank for rank, merge in enumerate(merges)}
    if len(last) < len(merges):
        notes.append(f"{len(merges) - len(last)} repeated merges are left out")
    if spaced:
        notes.append(f"{spaced} merges contain a space, which no text does by then, and are left out")
    if not spaced and len(last) == len(merges):
        return list(merges)
    return [
        (left, right)
        for rank, (left, right) in enumerate(merges)
        if last[left, right] == rank and " " not in left and " " not in right
    ]


def _refuse_affixes(model: Mapping[str, Any], path: Path) -> None:
    for key in ("continuing_subword_prefix", "end_of_word_suffix"):
        if model.get(key):
            raise UnsupportedError(f"{path}: model.{key} is {model[key]!r}; llama.cpp's BPE has none")


def _check_normalizer(normalizer: object, pre: str | None, path: Path, notes: list[str]) -> None:
    """llama.cpp does not normalise text before BPE: NFC only gets a note, anything that changes more is refused."""
    kinds = [str(step.get("type")) for step in steps(normalizer, "normalizers")]
    if not kinds:
        return
    found = ", ".join(kinds)
    if pre is None and set(kinds) != {"NFC"}:
        raise UnsupportedError(
            f"{path}: this tokenizer normalises text ({found}), which llama.cpp does not do for BPE; tokens would "
            f"differ. --tokenizer-pre NAME converts it all the same"
        )
    notes.append(f"the tokenizer normalises text ({found}), llama.cpp does not: tokens differ for text it changes")
