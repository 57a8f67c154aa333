"""The expressions by which byte-level tokenizers split text, each in the one spelling that is compared.

Those of llama.cpp are in src/llama-vocab.cpp (`llm_tokenizer_bpe`), with the originals that some of them stand for;
those of tokenizer.json are as published. `canonical_regex` brings the spellings that match alike to the ones here.
"""

from __future__ import annotations

import re
from typing import Final

CONTRACTIONS: Final = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)"
_UPPER: Final = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]"
_LOWER: Final = r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"
_LEAD: Final = r"[^\r\n\p{L}\p{N}]?"
_SPACES: Final = r"\s+(?!\S)|\s+"
_WORDS_BY_CASE: Final = (f"{_LEAD}{_UPPER}*{_LOWER}+", f"{_LEAD}{_UPPER}+{_LOWER}*")

DIGIT: Final = r"\p{N}"
DIGITS: Final = r"\p{N}+"
DIGITS3: Final = r"\p{N}{1,3}"
# What Hugging Face's Punctuation step takes for punctuation: ASCII's, symbols included, and category P.
PUNCTUATION_MARK: Final = r"[!-/:-@\[-`{-~\p{P}]"

GPT2: Final = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|" + _SPACES
LLAMA3: Final = CONTRACTIONS + rf"|{_LEAD}\p{{L}}+|\p{{N}}{{1,3}}| ?[^\s\p{{L}}\p{{N}}]+[\r\n]*|\s*[\r\n]+|" + _SPACES
QWEN2: Final = LLAMA3.replace("{1,3}", "")
QWEN35: Final = (
    CONTRACTIONS + rf"|{_LEAD}[\p{{L}}\p{{M}}]+|\p{{N}}| ?[^\s\p{{L}}\p{{M}}\p{{N}}]+[\r\n]*|\s*[\r\n]+|" + _SPACES
)
UFAKZEKA: Final = QWEN2.removeprefix(CONTRACTIONS + "|")
SEED_CODER: Final = CONTRACTIONS + rf"|{_LEAD}\p{{L}}+|\p{{N}}| ?[^\s\p{{L}}\p{{N}}\r\n]+|\s*[\r\n]+|" + _SPACES
MINICPM5: Final = LLAMA3.replace("{1,3}", "+")
EXAONE_MOE: Final = (
    CONTRACTIONS
    + rf"|{_LEAD}(?:\p{{L}}\p{{M}}*(?: \p{{L}}\p{{M}}*)*)+|\p{{N}}| ?[^\s\p{{L}}\p{{N}}]+[\r\n/]?|\s*[\r\n]+|"
    + _SPACES
)
TEKKEN: Final = "|".join(_WORDS_BY_CASE) + r"|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|" + _SPACES
GPT4O: Final = (
    "|".join(f"{word}{CONTRACTIONS}?" for word in _WORDS_BY_CASE)
    + r"|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|"
    + _SPACES
)
# The letters that have case, as far as DeepSeek's authors list them.
CASED: Final = (
    "A-Za-zµÀ-ÖØ-öø-ƺƼ-ƿǄ-ʓʕ-ʯͰ-ͳͶͷͻ-ͽͿΆΈ-ΊΌΎ-ΡΣ-ϵϷ-ҁҊ-ԯԱ-ՖႠ-ჅᎠ-Ᏽᏸ-ᏽᲐ-ᲺᲽ-Ჿᴀ-ᴫ"
    "ᵫ-ᵷᵹ-ᶚḀ-ἕἘ-Ἕἠ-ὅὈ-Ὅὐ-ὗὙὛὝὟ-ώᾀ-ᾴᾶ-ᾼιῂ-ῄῆ-ῌῐ-ΐῖ-Ίῠ-Ῥῲ-ῴῶ-ῼℂℇℊ-ℓℕℙ-ℝℤΩℨK-ℭℯ-"
    "ℴℹℼ-ℿⅅ-ⅉⅎↃↄⰀ-ⱻⱾ-ⳤⳫ-ⳮⳲⳳꙀ-ꙭꚀ-ꚛꜢ-ꝯꝱ-ꞇꞋ-ꞎꭰ-ꮿﬀ-ﬆﬓ-ﬗＡ-Ｚａ-ｚ𐐀-𐑏𐒰-𐓓𐓘-𐓻𐲀-𐲲𐳀-𐳲𑢠-𑣟𞤀-"
    "𞥃"
)

JAIS2: Final = (
    CONTRACTIONS
    + rf"|{_LEAD}\p{{L}}+|\p{{N}}{{1,3}}| ?[^\s\p{{L}}\p{{N}}]+[\r\n]*|\s*[\r\n]+|"
    + "|".join(rf"\s{{{n}}}(?!\S)" for n in ("512", "256", "128", "64", "32", "16", "8", "4", "1,2"))
    + r"|\s{1}"
)
# Kimi's: runs of Chinese characters apart, and the words of GPT-4o without them.
_NO_HAN: Final = r"&&[^\p{Han}]]"
_WORDS_BUT_HAN: Final = tuple(word.replace(r"\p{M}]", r"\p{M}" + _NO_HAN) for word in _WORDS_BY_CASE)
KIMI: Final = (
    r"[\p{Han}]+|"
    + "|".join(f"{word}{CONTRACTIONS}?" for word in _WORDS_BUT_HAN)
    + r"|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|"
    + _SPACES
)
BLOOM: Final = " ?[^(\\s|[.,!?…。，、।۔،])]+"
LINE_ENDS: Final = r"[\r\n]"
# Digits in threes, counted from the end of the number.
DIGITS3_FROM_THE_END: Final = r"\d{1,3}(?=(?:\d{3})*\b)"
HAN_KANA: Final = "[一-龥\u3040-ゟ゠-ヿ]+"
DEEPSEEK3: Final = (
    r"""[!"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+"""
    r"| ?[\p{P}\p{S}]+[\r\n]*|\s*[\r\n]+|" + _SPACES
)
SPARK: Final = DEEPSEEK3.replace(r"| ?[\p{P}\p{S}]+[\r\n]*|\s*[\r\n]+|", r"| ?[\p{P}\p{S}]+|[\r\n]|")
PUNCTUATION: Final = "\\s?[!-/:-~！-／：-～‘-‟\u3000-。]+"
HAN_HANGUL: Final = "[一-龥ࠀ-一가-퟿]+"
# Every character belongs to some match of these, so "keep the matches, drop the rest" splits like "isolate".
COVERS_ALL: Final = frozenset({GPT2, LLAMA3, QWEN2, QWEN35, UFAKZEKA, SEED_CODER, MINICPM5, TEKKEN, GPT4O, JAIS2})

# Rewritings, in this order. No contraction is the beginning of another, so their order is free.
_CONTRACTION: Final = r"(?:s|t|re|ve|m|ll|d)"
_REWRITINGS: Final = (
    (r"\(\?i:'" + _CONTRACTION + r"(?:\|'" + _CONTRACTION + r"){6}\)", CONTRACTIONS),
    (r"'\(\?i:\[sdmt\]\|ll\|ve\|re\)", CONTRACTIONS),
    (r"'\(\?i:" + _CONTRACTION + r"(?:\|" + _CONTRACTION + r"){6}\)", CONTRACTIONS),
    (r"^'\(\?:\[sdmt\]\|ll\|ve\|re\)\|", "'s|'t|'re|'ve|'m|'ll|'d|"),
)
_SPELLED_OUT: Final = (
    "(?:'[sS]|'[tT]|'[rR][eE]|'[vV][eE]|'[mM]|'[lL][lL]|'[dD])",
    "'(?:[sSdDmMtT]|[lL][lL]|[vV][eE]|[rR][eE])",
)


def canonical_regex(pattern: str) -> str:
    """One spelling for the spellings of an expression that occur and match alike.

    Real line ends become escapes, and case-insensitive contractions get one form. Possessive quantifiers become
    greedy ones where the next thing is no condition: it could not use what they keep. `\\s*[\\r\\n]` reaches as far
    as `\\s*[\\r\\n]+`, because the spaces before it may be line ends too.
    """
    for raw, escaped in (("\r", r"\r"), ("\n", r"\n"), ("\t", r"\t")):
        pattern = pattern.replace(raw, escaped)
    for spelling in _SPELLED_OUT:
        pattern = pattern.replace(spelling, CONTRACTIONS)
    for regex, spelling in _REWRITINGS:
        pattern = re.sub(regex, spelling, pattern)
    for old, new in (
        (r"[\p{L}]", r"\p{L}"),
        (r"[\p{N}]", r"\p{N}"),
        (r"\p{N}{1}", r"\p{N}"),
        ("?+", "?"),
        ("]*+", "]*"),
        (r"|\s*[\r\n]|", r"|\s*[\r\n]+|"),
    ):
        pattern = pattern.replace(old, new)
    if r"[\r\n]" not in pattern:  # else line ends are cut off before the end of the text is
        pattern = pattern.replace(r"|\s++$|\s+(?!\S)|", r"|\s+(?!\S)|")
    if pattern.endswith(r"|\s+(?!\S)|\s"):
        pattern += "+"
    return re.sub(r"\+\+(?![($])", "+", pattern)
