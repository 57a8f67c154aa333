"""Finding one of llama.cpp's pre-tokenizers by its tokens, where the rules of a tokenizer.json are not known.

The tokens of hard texts by Hugging Face's `tokenizers` are compared with llama.cpp's under each name that could fit.
Both get the part of the vocabulary that these texts can reach, which gives the same tokens as the whole one: a merge
can only act where its result is in the text. So the size of the vocabulary hardly counts.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from llmkit.convert.tokenizer.bytelevel import byte_alphabet, spelled
from llmkit.convert.tokenizer.hardtexts import hard_texts
from llmkit.convert.tokenizer.stages import Merge, Splitter
from llmkit.errors import EngineError
from llmkit.formats.gguf import ValueType, array, boolean, f32, plan_layout, string, u32
from llmkit.protocols import TokenizerJudge

# As many of the vocabulary's own tokens are tried as texts: those that a wrong rule would cut apart.
_MAX_PROBES: Final = 600
_PROBES_PER_TEXT: Final = 12
_LONGEST_TOKEN: Final = 64

# One text in so many shows that most names do not fit. Of those that come nearest, so many are tried on all texts.
_SAMPLED: Final = 6
_NEAREST: Final = 3

# What llama.cpp asks of any file of this architecture; no tensor is read.
_ARCHITECTURE: Final = {
    "general.architecture": string("llama"),
    "llama.context_length": u32(8),
    "llama.embedding_length": u32(8),
    "llama.block_count": u32(1),
    "llama.feed_forward_length": u32(8),
    "llama.attention.head_count": u32(1),
    "llama.attention.layer_norm_rms_epsilon": f32(1e-5),
}


@dataclass(frozen=True, slots=True)
class Trial:
    """How one of llama.cpp's pre-tokenizers did: the texts, of `n_texts`, that it gives other tokens."""

    name: str
    different: tuple[str, ...]
    n_texts: int


def try_pre_tokenizers(splitter: Splitter, names: Sequence[str], judge: TokenizerJudge) -> list[Trial]:
    """Try `names` in this order, up to the first that gives equal tokens on all texts.

    The best comes first; where none fits, only those that come nearest are there. Names that the judge's llama.cpp does
    not know are left out. Raises DependencyError where a package is missing, and EngineError where `tokenizers` cannot
    read the pre-tokenizer.
    """
    texts = [*hard_texts(), *_probes(splitter.vocab)]
    texts = [text for start in range(_SAMPLED) for text in texts[start::_SAMPLED]]
    n_sampled = len(texts) // _SAMPLED
    vocab, merges = _reachable(splitter, texts)
    expected = judge.reference(_tokenizer_json(splitter, vocab, merges), texts)

    def trial(name: str, n_texts: int) -> Trial:
        found = judge.engine(_vocabulary_file(name, vocab, merges), texts[:n_texts])
        pairs = zip(texts, found, expected, strict=False)
        return Trial(name, tuple(text for text, ours, theirs in pairs if ours != theirs), n_texts)

    sampled: list[Trial] = []
    for name in names:
        try:
            sample = trial(name, n_sampled)
        except EngineError:
            continue
        if not sample.different and not (whole := trial(name, len(texts))).different:
            return [whole]
        sampled.append(sample)
    sampled.sort(key=lambda sample: len(sample.different))
    nearest = [trial(sample.name, len(texts)) for sample in sampled[:_NEAREST]]
    return sorted(nearest, key=lambda whole: len(whole.different))


def _probes(vocab: Mapping[str, int]) -> Iterator[str]:
    """Texts of tokens in which different kinds of characters meet, from all over the vocabulary."""
    bytes_of = {character: byte for byte, character in enumerate(byte_alphabet())}
    mixed: list[str] = []
    for token in vocab:
        if not 1 < len(token) <= _LONGEST_TOKEN:
            continue
        try:
            text = bytes(map(bytes_of.__getitem__, token)).decode("utf-8")
        except (KeyError, UnicodeDecodeError):
            continue
        if len(set(map(_kind, text.removeprefix(" ")))) > 1:
            mixed.append(text)
    chosen = mixed[:: max(1, len(mixed) // _MAX_PROBES)]
    for start in range(0, min(len(chosen), _MAX_PROBES), _PROBES_PER_TEXT):
        yield " ".join(chosen[start : start + _PROBES_PER_TEXT])


def _kind(character: str) -> str:
    if character.isalpha():
        return "upper" if character.isupper() else "lower"
    if character.isspace():
        return "end" if character in "\r\n" else "space"
    return "digit" if character.isnumeric() else "other"


def _reachable(splitter: Splitter, texts: Sequence[str]) -> tuple[dict[str, int], list[Merge]]:
    """The tokens that occur in `texts`, numbered anew, and the merges that make them."""
    longest = max(map(len, splitter.vocab), default=0)
    found = {character for character in byte_alphabet() if character in splitter.vocab}
    for text in texts:
        encoded = spelled(text.encode("utf-8"))
        for start in range(len(encoded)):
            for end in range(start + 2, min(len(encoded), start + longest) + 1):
                if encoded[start:end] in splitter.vocab:
                    found.add(encoded[start:end])
    ordered = sorted(found, key=splitter.vocab.__getitem__)
    merges = [(left, right) for left, right in splitter.merges if left + right in found]
    return {token: id for id, token in enumerate(ordered)}, merges


def _tokenizer_json(splitter: Splitter, vocab: Mapping[str, int], merges: Sequence[Merge]) -> str:
    model = {"type": "BPE", "vocab": vocab, "merges": merges, "ignore_merges": splitter.ignore_merges}
    return json.dumps(
        {
            "version": "1.0",
            "added_tokens": [],
            "normalizer": None,
            "pre_tokenizer": splitter.pre_tokenizer,
            "post_processor": None,
            "decoder": None,
            "model": model,
        }
    )


def _vocabulary_file(name: str, vocab: Mapping[str, int], merges: Sequence[Merge]) -> bytes:
    metadata = {
        **_ARCHITECTURE,
        "tokenizer.ggml.model": string("gpt2"),
        "tokenizer.ggml.pre": string(name),
        "tokenizer.ggml.tokens": array(ValueType.STRING, list(vocab)),
        "tokenizer.ggml.merges": array(ValueType.STRING, [f"{left} {right}" for left, right in merges]),
        "tokenizer.ggml.add_bos_token": boolean(False),
    }
    return plan_layout(metadata, []).header
