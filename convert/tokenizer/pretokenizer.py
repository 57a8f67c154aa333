"""Which of llama.cpp's pre-tokenizers does what a tokenizer.json does.

llama.cpp splits text by a fixed list of regular expressions that it looks up under a name (`tokenizer.ggml.pre`).
A tokenizer.json states its splitting as a tree of steps. Both are reduced here to a tuple of canonical regular
expressions, applied one after the other, each splitting the pieces of the one before into matches and the rest;
equal tuples split alike whatever the vocabulary. So a fine-tune with other tokens is recognised like its parent.

Source of the table: src/llama-vocab.cpp of the pinned llama.cpp, `llm_tokenizer_bpe` (the expressions, with the
originals they stand for) and `llama_vocab::impl::load` (the names and `ignore_merges`).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final

from llmkit.convert.tokenizer.files import steps
from llmkit.errors import UnsupportedError

_CONTRACTIONS: Final = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)"
_UPPER: Final = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]"
_LOWER: Final = r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"
_LEAD: Final = r"[^\r\n\p{L}\p{N}]?"
_SPACES: Final = r"\s+(?!\S)|\s+"
_WORDS_BY_CASE: Final = (f"{_LEAD}{_UPPER}*{_LOWER}+", f"{_LEAD}{_UPPER}+{_LOWER}*")

GPT2: Final = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|" + _SPACES
DIGIT: Final = r"\p{N}"
LLAMA3: Final = _CONTRACTIONS + rf"|{_LEAD}\p{{L}}+|\p{{N}}{{1,3}}| ?[^\s\p{{L}}\p{{N}}]+[\r\n]*|\s*[\r\n]+|" + _SPACES
QWEN2: Final = _CONTRACTIONS + rf"|{_LEAD}\p{{L}}+|\p{{N}}| ?[^\s\p{{L}}\p{{N}}]+[\r\n]*|\s*[\r\n]+|" + _SPACES
QWEN35: Final = (
    _CONTRACTIONS + rf"|{_LEAD}[\p{{L}}\p{{M}}]+|\p{{N}}| ?[^\s\p{{L}}\p{{M}}\p{{N}}]+[\r\n]*|\s*[\r\n]+|" + _SPACES
)
UFAKZEKA: Final = rf"{_LEAD}\p{{L}}+|\p{{N}}| ?[^\s\p{{L}}\p{{N}}]+[\r\n]*|\s*[\r\n]+|" + _SPACES
SEED_CODER: Final = _CONTRACTIONS + rf"|{_LEAD}\p{{L}}+|\p{{N}}| ?[^\s\p{{L}}\p{{N}}\r\n]+|\s*[\r\n]+|" + _SPACES
BAILING: Final = _CONTRACTIONS + rf"|{_LEAD}\p{{L}}+|\p{{N}}| ?[^\s\p{{L}}\p{{N}}]+[\r\n]*|\s*[\r\n]|" + _SPACES
MINICPM5: Final = _CONTRACTIONS + rf"|{_LEAD}\p{{L}}+|\p{{N}}+| ?[^\s\p{{L}}\p{{N}}]+[\r\n]*|\s*[\r\n]+|" + _SPACES
TEKKEN: Final = "|".join(_WORDS_BY_CASE) + r"|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|" + _SPACES
GPT4O: Final = (
    "|".join(f"{word}{_CONTRACTIONS}?" for word in _WORDS_BY_CASE)
    + r"|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|"
    + _SPACES
)
JAIS2: Final = (
    _CONTRACTIONS
    + rf"|{_LEAD}\p{{L}}+|\p{{N}}{{1,3}}| ?[^\s\p{{L}}\p{{N}}]+[\r\n]*|\s*[\r\n]+|"
    + "|".join(rf"\s{{{n}}}(?!\S)" for n in ("512", "256", "128", "64", "32", "16", "8", "4", "1,2"))
    + r"|\s{1}"
)
_DIGITS3: Final = r"\p{N}{1,3}"
_HAN_KANA: Final = "[一-龥\u3040-ゟ゠-ヿ]+"
_DEEPSEEK3: Final = (
    r"""[!"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+"""
    r"| ?[\p{P}\p{S}]+[\r\n]*|\s*[\r\n]+|" + _SPACES
)

_PUNCTUATION: Final = "\\s?[!-/:-~！-／：-～‘-‟\u3000-。]+"
_HAN_HANGUL: Final = "[一-龥ࠀ-一가-퟿]+"
# The letters that have case, as far as DeepSeek's authors list them.
_CASED: Final = (
    "A-Za-zµÀ-ÖØ-öø-ƺƼ-ƿǄ-ʓʕ-ʯͰ-ͳͶͷͻ-ͽͿΆΈ-ΊΌΎ-ΡΣ-ϵϷ-ҁҊ-ԯԱ-ՖႠ-ჅᎠ-Ᏽᏸ-ᏽᲐ-ᲺᲽ-Ჿᴀ-ᴫ"
    "ᵫ-ᵷᵹ-ᶚḀ-ἕἘ-Ἕἠ-ὅὈ-Ὅὐ-ὗὙὛὝὟ-ώᾀ-ᾴᾶ-ᾼιῂ-ῄῆ-ῌῐ-ΐῖ-Ίῠ-Ῥῲ-ῴῶ-ῼℂℇℊ-ℓℕℙ-ℝℤΩℨK-ℭℯ-"
    "ℴℹℼ-ℿⅅ-ⅉⅎↃↄⰀ-ⱻⱾ-ⳤⳫ-ⳮⳲⳳꙀ-ꙭꚀ-ꚛꜢ-ꝯꝱ-ꞇꞋ-ꞎꭰ-ꮿﬀ-ﬆﬓ-ﬗＡ-Ｚａ-ｚ𐐀-𐑏𐒰-𐓓𐓘-𐓻𐲀-𐲲𐳀-𐳲𑢠-𑣟𞤀-"
    "𞥃"
)

# Every character belongs to some match of these, so "keep the matches, drop the rest" splits like "isolate".
_COVERS_ALL: Final = frozenset(
    {GPT2, LLAMA3, QWEN2, QWEN35, UFAKZEKA, SEED_CODER, BAILING, MINICPM5, TEKKEN, GPT4O, JAIS2}
)


@dataclass(frozen=True, slots=True)
class PreTokenizer:
    """A pre-tokenizer of llama.cpp: its name, what it splits by, and whether whole words skip the merges.

    `deviation` says for which text llama.cpp splits otherwise than its name promises.
    """

    name: str
    stages: tuple[str, ...]
    ignore_merges: bool
    deviation: str = ""


# It has [a-z] and [A-Z] for the classes of upper and lower case, and no marks in words.
_ASCII_CASE: Final = "words with combining marks or with capitals outside ASCII"
# It takes all of these for one control character, which is in no range of letters.
_WIDE_SPACES: Final = "spaces outside ASCII"

KNOWN: Final = (
    PreTokenizer("gpt-2", (GPT2,), False),
    PreTokenizer("smollm", (DIGIT, GPT2), False),
    PreTokenizer("llama-bpe", (LLAMA3,), True),
    PreTokenizer("smaug-bpe", (LLAMA3,), False),
    PreTokenizer("tekken", (TEKKEN,), True, _ASCII_CASE),
    PreTokenizer("qwen2", (QWEN2,), False),
    PreTokenizer("qwen35", (QWEN35,), False),
    PreTokenizer("gpt-4o", (GPT4O,), False, _ASCII_CASE),
    PreTokenizer("deepseek-v3", (_DIGITS3, _HAN_KANA, _DEEPSEEK3), False),
    # DeepSeek splits digits apart; llama.cpp keeps them together and finds no merges between them.
    PreTokenizer(
        "deepseek-llm", (r"[\r\n]", rf"\s?[{_CASED}]+", _PUNCTUATION, r"\s+$", _HAN_HANGUL, DIGIT), False, _WIDE_SPACES
    ),
    PreTokenizer("deepseek-coder", (r"[\r\n]", r"\s?\p{L}+", r"\s?\p{P}+", _HAN_HANGUL, DIGIT), False, _WIDE_SPACES),
    PreTokenizer("minicpm5", (_DIGITS3, MINICPM5), True),
    PreTokenizer("seed-coder", (SEED_CODER,), False),
    PreTokenizer("bailingmoe", (BAILING,), False),
    PreTokenizer("jais-2", (JAIS2,), False),
    PreTokenizer("ufakzeka", (UFAKZEKA,), False),
)

# Names that the pinned llama.cpp accepts; it refuses to load a file with any other.
_ACCEPTED: Final = (
    "default minicpm5 llama3 llama-v3 llama-bpe falcon3 falcon-h1 pixtral midm-2.0 lfm2 jina-v5-nano deepseek-llm "
    "deepseek-coder deepseek-v3 spark2_5 youtu falcon mpt starcoder gpt-2 phi-2 jina-es jina-de gigachat jina-v2-es "
    "jina-v2-de a.x-4.0 mellum modern-bert jais-2 gemma4 granite-embed-multi-311m sarvam-moe jina-v1-en jina-v2-code "
    "roberta-bpe whitespace refact command-r qwen2 deepseek-r1-qwen kormo f2llmv2 qwen35 stablelm2 olmo dbrx "
    "smaug-bpe poro-chat chatglm-bpe glm4 glm5 viking jais tekken smollm codeshell bloom gpt3-finnish exaone exaone4 "
    "exaone-moe chameleon minerva-7b megrez gpt-4o llama4 kanana2 talkie granite-embed-multi-97m tiny_aya cohere2moe "
    "superbpe trillion granite-docling bailingmoe bailingmoe2 llada-moe seed-coder hunyuan hunyuan-dense hy_v4 "
    "joyai-llm kimi-k2 ufakzeka grok-2 afmoe laguna minimax-m2 solar-open mellum2"
)
ACCEPTED_NAMES: Final = frozenset(_ACCEPTED.split())


class _UnknownStepError(Exception):
    """A step of the pre-tokenizer that no regular expression of llama.cpp does; the message describes it."""


def canonical_regex(pattern: str) -> str:
    """One spelling for the spellings of an expression that occur and match alike.

    Real line ends become escapes; case-insensitive contractions get one form (no alternative is a prefix of
    another, so their order is free); `{1}` goes; so do possessive quantifiers, where what follows could not use
    what they keep.
    """
    for raw, escaped in (("\r", r"\r"), ("\n", r"\n"), ("\t", r"\t")):
        pattern = pattern.replace(raw, escaped)
    for spelling in (
        "(?:'[sS]|'[tT]|'[rR][eE]|'[vV][eE]|'[mM]|'[lL][lL]|'[dD])",
        "'(?i:[sdmt]|ll|ve|re)",
        "'(?:[sSdDmMtT]|[lL][lL]|[vV][eE]|[rR][eE])",
    ):
        pattern = pattern.replace(spelling, _CONTRACTIONS)
    if pattern.startswith("'(?:[sdmt]|ll|ve|re)|"):
        pattern = pattern.replace("'(?:[sdmt]|ll|ve|re)|", "'s|'t|'re|'ve|'m|'ll|'d|", 1)
    return pattern.replace(r"\p{N}{1}", r"\p{N}").replace("?+", "?").replace("++", "+")


def is_byte_level(pre_tokenizer: object) -> bool:
    """Whether a tokenizer.json's `pre_tokenizer` spells text in the byte-level alphabet, which needs no fallback."""
    return any(step.get("type") == "ByteLevel" for step in steps(pre_tokenizer, "pretokenizers"))


def stages_of(pre_tokenizer: object) -> tuple[str, ...]:
    """The splitting of a tokenizer.json's `pre_tokenizer` that ends in the byte-level alphabet.

    Raises UnsupportedError, with a description of the step, if it is none that llama.cpp could do.
    """
    found = list(steps(pre_tokenizer, "pretokenizers"))
    try:
        if not is_byte_level(pre_tokenizer):
            raise _UnknownStepError("no ByteLevel step")
        stages: list[str] = []
        for position, step in enumerate(found):
            stages += _step(step, last=position == len(found) - 1)
    except _UnknownStepError as unknown:
        raise UnsupportedError(f"pre_tokenizer: {unknown}") from None
    return tuple(stages)


def choose(stages: tuple[str, ...], ignore_merges: bool) -> PreTokenizer | None:
    """The pre-tokenizer that splits by `stages`, preferably with the same `ignore_merges`; None if there is none."""
    candidates = [known for known in KNOWN if known.stages == stages]
    exact = [known for known in candidates if known.ignore_merges == ignore_merges]
    return next(iter(exact or candidates), None)


def _step(step: dict[str, Any], *, last: bool) -> list[str]:
    """The expressions of one step."""
    kind = step.get("type")
    if kind == "Digits":
        return [DIGIT if step.get("individual_digits") else DIGIT + "+"]
    if kind == "Split":
        return [_split(step)]
    if kind == "ByteLevel":
        if not last:
            raise _UnknownStepError("steps after ByteLevel")
        if step.get("add_prefix_space", True):
            raise _UnknownStepError("ByteLevel with add_prefix_space, which llama.cpp does not do for BPE")
        return [GPT2] if step.get("use_regex", True) else []
    raise _UnknownStepError(f"a step of type {kind}")


def _split(step: dict[str, Any]) -> str:
    pattern = step.get("pattern")
    if not isinstance(pattern, dict) or not isinstance(pattern.get("Regex"), str):
        raise _UnknownStepError(f"Split by {pattern!r:.100}")
    regex = canonical_regex(pattern["Regex"])
    behavior = step.get("behavior")
    keeps_matches = behavior == "Removed" and step.get("invert") is True and regex in _COVERS_ALL
    if behavior != "Isolated" and not keeps_matches:
        raise _UnknownStepError(f"Split with behavior {behavior}, invert {step.get('invert')}, by {regex!r:.200}")
    return regex
